"""A saved classifier is a folder: model.safetensors and config.json. Saving, opening, using it.

Shapes in comments: N texts, C classes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fast_paths import Uninitialised
from features import FastClassifier
from files import file_sha256, save_tensors, write_json
from gpt_download import (
    MODEL_CONFIGS,
    architecture_of,
    build_decoder,
    decoder_config,
    load_tokenizer,
    resolve_model_name,
)
from text_classifier import ClassifierConfig, GPTClassifier, predict_logits
from text_data import ChunkDataset

FORMAT = "gpt-classifier-1"
# Of the configuration, beside the model's name.
FIELDS = [field.name for field in dataclasses.fields(ClassifierConfig)][1:]


class Prediction(NamedTuple):
    label: str
    probability: float


def classify_texts(
    classifier: nn.Module, tokenizer, texts: Sequence[str], progress: bool = False
) -> Tensor:
    """Probabilities (N, C) of each text's classes, in the order of `label_names`, by a
    `GPTClassifier` or an `OnnxClassifier`."""
    dataset = ChunkDataset(classifier.config.chunks(texts, tokenizer))
    model = FastClassifier(classifier) if isinstance(classifier, GPTClassifier) else classifier
    logits = predict_logits(model, dataset, progress)
    return dataset.mean(classifier.config.probabilities(logits))


def classify_review(text: str, classifier: GPTClassifier, tokenizer) -> Prediction:
    """The likeliest class of one text, and its probability."""
    probabilities = classify_texts(classifier, tokenizer, [text])[0]  # (C,)
    best = int(probabilities.argmax())
    return Prediction(classifier.config.label_names[best], probabilities[best].item())


def save_classifier(classifier: GPTClassifier, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`; whoever is stopped midway leaves no half.

    The configuration is removed first and written last, with a checksum over itself and the
    weights: a folder that has one is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    save_tensors(classifier.state_dict(), folder / "model.safetensors", {"format": "pt"})
    config = {
        "format": FORMAT,
        "model": classifier.config.model_name,
        "architecture": architecture_of(classifier.decoder.cfg),
        **{name: getattr(classifier.config, name) for name in FIELDS},
    }
    config["checksum"] = checksum(config, folder / "model.safetensors")
    write_json(config, folder / "config.json")


def open_classifier(
    folder: Path | str, device: torch.device | str = "cpu"
) -> tuple[GPTClassifier, Any]:
    """The classifier in a folder, in evaluation mode, and its tokenizer.

    Raises ``ValueError``, or ``FileNotFoundError`` where a file is absent, with a sentence that
    says what is wrong with the folder; nothing is ever unpickled.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not a classifier folder: {name} is missing; finetune.py makes one."
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("format") != FORMAT:
            raise ValueError("config.json does not describe a classifier of this project")
        if config.pop("checksum", None) != checksum(config, folder / "model.safetensors"):
            raise ValueError("the checksum in config.json is not that of its files")
        classifier = _build(config, load_file(folder / "model.safetensors"))
    except KeyError as error:
        raise ValueError(f"{folder} cannot be opened: the field {error} is missing.") from error
    except (SafetensorError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} is damaged or was altered: {reason}") from error
    return classifier.to(device).eval(), load_tokenizer(classifier.config.model_name)


def _build(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> GPTClassifier:
    name = resolve_model_name(config["model"])
    about = ClassifierConfig(model_name=name, **{field: config[field] for field in FIELDS})
    with torch.device("meta"), Uninitialised():  # the weights bring their own memory
        decoder = build_decoder(decoder_config(config["architecture"]))
        classifier = GPTClassifier(decoder, about)
    classifier.load_state_dict(weights, assign=True)
    for weight_name, tensor in weights.items():
        if tensor.dtype != torch.float32 or not tensor.sum().isfinite():
            raise ValueError(f"{weight_name} must hold finite numbers in float32")
    return classifier


def checksum(config: Mapping[str, Any], weights: Path) -> str:
    """SHA-256 over the configuration and the file of weights."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    digest.update(bytes.fromhex(file_sha256(weights)))
    return digest.hexdigest()


def import_book_classifier(
    path: Path | str,
    label_names: Sequence[str],
    max_length: int,
    model_name: str = "gpt2-small (124M)",
    architecture: Mapping[str, Any] | None = None,
) -> GPTClassifier:
    """A classifier that readers of the accompanying book saved as a `.pth` file.

    The book fills every message up to `max_length` and reads the last position; so does this
    classifier. `architecture` is the book's dictionary; without it, `model_name` decides. Raises
    ``ValueError`` if the weights do not fit.
    """
    model_name = resolve_model_name(model_name)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = {f"decoder.{n}": t for n, t in weights.items() if not n.endswith(".att.mask")}
    cfg = decoder_config({"kind": "gpt2", **architecture}) if architecture else None
    about = ClassifierConfig(model_name, tuple(label_names), max_length, pad_to=max_length)
    classifier = GPTClassifier(build_decoder(cfg or MODEL_CONFIGS[model_name]), about)
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {model_name}: {error}") from error
    return classifier.eval()
