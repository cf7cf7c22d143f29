"""The options of one run of the main job, in one documented dataclass."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from features import Precision
from gpt_download import MODEL_CONFIGS
from options import AT_LEAST_0, AT_LEAST_1, POSITIVE, option
from text_classifier import Pooling, Trainable
from text_data import Cut
from training import TrainConfig

SMS_NAME = "SMS Spam Collection"

# What suits a model where an option is not given. For gpt-mini and SmolLM2 the values were chosen
# on validation messages of other seeds (101 to 106); for GPT-2 they are the customary ones, not
# measured here.
GPT2_DEFAULTS = {
    "learning_rate": 5e-5,
    "pooling": "last",
    "trainable": "last_block",
    "continued_pretraining_epochs": 0,
}
MODEL_DEFAULTS = {
    "gpt-mini": GPT2_DEFAULTS | {"learning_rate": 1e-3, "continued_pretraining_epochs": 2},
    "smollm2-135m": GPT2_DEFAULTS | {"learning_rate": 3e-4, "pooling": "mean"},
}


OF_DATA = (
    *("separator", "encoding", "text_column", "label_column", "multi_label"),
    *("validation_data", "test_data"),
)
OF_OUTPUT = ("output", "resume", "overwrite", "keep_examples", "quiet")  # they shape no result


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """One run of the main job. Raises ``ValueError`` that names everything wrong with it."""

    data: Path | None = option(
        None,
        "CSV, TSV, JSON, Parquet or Excel file; or a folder with a sub-folder of text files for "
        f"each label, or with a file for each, a text a line; default: {SMS_NAME}",
        group="data",
    )
    separator: str | None = option(
        None, "of the cells of a CSV or TSV file; default: guessed", group="data"
    )
    encoding: str | None = option(
        None, "of text files, windows-1252 or utf-16 for example; default: UTF-8", group="data"
    )
    text_column: str | None = option(None, "column of the texts; default: guessed", group="data")
    label_column: str | None = option(None, "column of the labels; default: guessed", group="data")
    multi_label: bool = option(
        False,
        "a text may carry several labels, a list or separated by |, or none; each gets a "
        "probability, and a threshold chosen on the validation messages",
        group="data",
    )
    validation_data: Path | None = option(
        None, "file to validate on; default: a tenth of the messages", group="data"
    )
    test_data: Path | None = option(
        None, "file to test on; default: a fifth of the messages", group="data"
    )
    protocol: Literal["clean", "published"] = option(
        "clean",
        "split of the SMS data: without duplicates, or that of well-known published figures",
        group="data",
    )
    balance: Literal["undersample", "weights", "none"] = option(
        "undersample",
        "drop messages of larger classes, weigh classes in the loss, or leave them be",
        group="data",
    )
    augment: int = option(0, "altered copies of each training message", AT_LEAST_0, "data")
    train_size: int | None = option(
        None, "training messages used, for learning curves; default: all", AT_LEAST_1, "data"
    )
    max_length: int | None = option(
        None,
        "tokens read of a message; default: all of the longest training message",
        AT_LEAST_1,
        "data",
    )
    cut: Cut = option(
        "head",
        "what is read of a longer message: its head, its tail, both (a quarter from the head), or "
        "all of it in overlapping windows, whose probabilities are averaged",
        group="data",
    )
    padding: Literal["batch", "training", "context"] = option(
        "batch",
        "fill messages up to the longest of their batch, which changes no result; or to the "
        "longest of the training part or the model's context, as if padding were text",
        group="data",
    )

    model: str = option(
        "auto",
        "auto (the first of SmolLM2, GPT-2 small and gpt-mini that can be had) or one of: "
        + ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS),
        group="model",
    )
    start_from: Path | None = option(
        None,
        "classifier folder to go on from: its model, and its head where the labels are the same",
        group="model",
    )
    weights: Literal["pretrained", "random"] = option(
        "pretrained", "random weights show what pretraining is worth", group="model"
    )
    continued_pretraining_epochs: int | None = option(
        None,
        "epochs of language modelling on the training texts, and on those that balancing leaves "
        "over, before the head is put on, with their own learning rate and batches; default: what "
        "suits the model",
        AT_LEAST_0,
        "model",
    )
    trainable: Trainable | Literal["lora", "dora"] | int | None = option(
        None,
        "which part is trained, or how many of the last blocks; default: last_block",
        AT_LEAST_0,
        "model",
    )
    lora_rank: int | None = option(
        None, "rank of the corrections of lora and dora; default: 8", AT_LEAST_1, "model"
    )
    lora_alpha: float | None = option(
        None,
        "corrections are multiplied by this, divided by the rank; default: 16",
        POSITIVE,
        "model",
    )
    pooling: Pooling | None = option(
        None,
        "what stands for the message: the logits at its last real token, their mean over its real "
        "tokens, or those at its first token; default: what suits the model",
        group="model",
    )
    causal: bool = option(True, "--no-causal lets tokens look at later ones, too", group="model")

    learning_rate: float | None = option(
        None, "AdamW's step size, at its peak; default: what suits the model", POSITIVE
    )

    output: Path | None = option(None, "folder to write", group="run")
    resume: bool = option(False, "go on with a run that was stopped, in --output", group="run")
    overwrite: bool = option(False, "replace what is in --output", group="run")
    keep_examples: bool = option(
        False,
        "keep eight test messages, right and wrong answers, in metrics.json: the page shows them "
        "to whoever has the folder",
        group="run",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto", "where to compute; auto takes a GPU if there is one", group="run"
    )
    precision: Precision = option(
        "float32",
        "of matrix products; bfloat16 (16 bits, 8 of them significant) is faster where the "
        "processor has instructions for it, and slower elsewhere",
        group="run",
    )
    quiet: bool = option(False, "print the results only", group="run")

    def problems(self) -> list[str]:
        """What is wrong with the options, and those that would be ignored."""
        frozen_blocks = self.trainable in ("head", "lora", "dora", 0)
        ignored = {
            "--dropout acts in trained blocks; --trainable head, lora and dora have none": (
                frozen_blocks and self.dropout
            ),
            "--lora-rank and --lora-alpha belong to --trainable lora and dora": (
                self.trainable not in ("lora", "dora") and (self.lora_rank or self.lora_alpha)
            ),
            "--balance weights acts among the messages of a batch: take a --batch-size above 1": (
                self.balance == "weights" and self.batch_size == 1
            ),
            "--protocol published is a split of the SMS data: leave out --data": (
                self.protocol == "published" and self.data is not None
            ),
            f"--protocol published undersamples: leave out --balance {self.balance}": (
                self.protocol == "published" and self.balance != "undersample"
            ),
            f"{', '.join('--' + name.replace('_', '-') for name in OF_DATA)} belong to --data": (
                self.data is None
                and any(getattr(self, name) not in (None, False) for name in OF_DATA)
            ),
            "--no-causal shows a token the next one, which it is to predict: leave out "
            "--continued-pretraining-epochs": (
                not self.causal and self.continued_pretraining_epochs
            ),
            "--multi-label goes with --balance none": self.multi_label and self.balance != "none",
            "--keep-examples is for texts with one label each: leave out --multi-label": (
                self.keep_examples and self.multi_label
            ),
            "--padding training and context are for --pooling last, whose position they move": (
                self.padding != "batch" and self.pooling not in (None, "last")
            ),
            "--start-from brings a classifier, which is pretrained, causal or not, and no language "
            "model: leave out --weights, --no-causal and --continued-pretraining-epochs": (
                self.start_from
                and (
                    self.weights == "random" or not self.causal or self.continued_pretraining_epochs
                )
            ),
            "--start-from is --output, which would be replaced: name two folders": (
                self.start_from is not None and self.start_from == self.output
            ),
            "--resume goes on with what --overwrite would replace: leave one out": (
                self.resume and self.overwrite
            ),
        }
        return super().problems() + [text for text, holds in ignored.items() if holds]

    def for_model(self, name: str) -> "RunConfig":
        """The same run with the model's name, and with what suits it where nothing is given."""
        defaults = MODEL_DEFAULTS.get(name, GPT2_DEFAULTS)
        if self.weights == "random" or self.start_from or not self.causal:
            defaults = defaults | {"continued_pretraining_epochs": 0}
        if self.padding != "batch":
            defaults = defaults | {"pooling": "last"}
        missing = {key: value for key, value in defaults.items() if getattr(self, key) is None}
        return replace(self, model=name, **missing)

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result, as JSON can hold it."""
        kept = {name: value for name, value in asdict(self).items() if name not in OF_OUTPUT}
        return {
            n: file_name(value) if isinstance(value, Path) else value for n, value in kept.items()
        }


def file_name(path: Path) -> str:
    """A file's name without its folders, which are the reader's own affair; bytes that are no
    UTF-8 are shown as a sign, since no JSON file can hold them."""
    return os.fsencode(path.name).decode("utf-8", "replace")
