"""The options of one run of the experiments: those of the chapter, and what makes it a row."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gpt_download import default_model_name, resolve_model_name
from options import AT_LEAST_0, option
from run_config import RunConfig
from text_classifier import Pooling, Trainable

RESULTS = Path(__file__).parent / "results"
TRIAL = "trial"  # the row that may be measured again and again
MEASURED, MODEL = "what is measured", "model"  # headings of the command's help

OF_FINETUNE = ("data", "text_column", "label_column", "output", "resume", "overwrite")
NO_PART_OF_A_RESULT = ("results", "device", "quiet", *OF_FINETUNE)
FOR_CLASSICAL = {  # the options that act on a model which trains no GPT
    *("row", "seed", "classifier", "protocol", "balance", "augment", "train_size"),
    *NO_PART_OF_A_RESULT,
}
FOR_FROZEN_FEATURES = FOR_CLASSICAL | {"model", "weights", "pooling", "max_length", "precision"}


@dataclass(frozen=True)
class ExperimentConfig(RunConfig):
    """One run of the chapter, as a row of a table.

    Where nothing is given, every model is trained in the same way, the reference of the tables:
    its last block, read at the last token, without continued pretraining.
    """

    row: str = option(TRIAL, "name of the row, and of its results' folder", group=MEASURED)
    results: Path = option(RESULTS, "folder of the result files", group=MEASURED)
    classifier: Literal[
        *("gpt", "frozen_features"),
        *("majority", "naive_bayes", "word_ngrams", "char_ngrams", "char_svm"),
    ] = option(
        "gpt",
        "the GPT; a regression on its frozen, pooled states; or a classical model of the messages",
        group=MODEL,
    )
    protocol: Literal["clean", "published", "almeida"] = option(
        "clean",
        "split: without duplicates; that of well-known figures; the collection's own paper's",
        group="data",
    )
    continued_pretraining_epochs: int = option(
        0, "epochs of language modelling on the texts before", AT_LEAST_0, MODEL
    )
    trainable: Trainable | Literal["lora"] | int = option(
        "last_block", "what is trained; a number of last blocks", AT_LEAST_0, MODEL
    )
    pooling: Pooling = option("last", "which tokens' logits make those of the message", group=MODEL)

    def problems(self) -> list[str]:
        problems = super().problems()
        is_balanced = self.balance == "undersample" and self.protocol != "almeida"
        if (self.train_size or self.augment) and not is_balanced:
            problems.append(
                "--train-size and --augment change balanced messages: leave out --balance and "
                "--protocol almeida"
            )
        if self.classifier != "gpt":
            acts = FOR_FROZEN_FEATURES if self.classifier == "frozen_features" else FOR_CLASSICAL
            problems += [
                f"--{name} does nothing for --classifier {self.classifier}"
                for name in self.changed()
                if name.replace("-", "_") not in acts
            ]
        return problems

    def changed(self) -> dict[str, Any]:
        """What is not at its default, by the names of the options."""
        values = ((entry, getattr(self, entry.name)) for entry in fields(self))
        return {e.name.replace("_", "-"): value for e, value in values if value != e.default}

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result."""
        beside = ("row", *NO_PART_OF_A_RESULT)
        return {name: value for name, value in vars(self).items() if name not in beside}

    def arguments(self, leave_out: Sequence[str] = ()) -> list[str]:
        """The arguments of the command that give this configuration."""
        words = []
        for name, value in self.changed().items():
            if name in leave_out:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", str(value)]
        return words

    @property
    def command(self) -> str:
        """The command of this run."""
        return shlex.join(["additional_experiments.py", *self.arguments(NO_PART_OF_A_RESULT)])

    @property
    def path(self) -> Path:
        return self.results / self.row / f"seed-{self.seed}.json"

    def with_model_name(self) -> "ExperimentConfig":
        """The same run with the model's name instead of `auto`; a classical one needs none."""
        if self.classifier not in ("gpt", "frozen_features"):
            return self
        auto = self.model == "auto"
        return replace(self, model=default_model_name() if auto else resolve_model_name(self.model))
