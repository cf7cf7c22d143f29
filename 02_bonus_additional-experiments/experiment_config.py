"""The rows of the experiments, and the options of one run: those of the chapter and a few more."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from options import AT_LEAST_0, option
from run_config import OF_DATA, OF_OUTPUT, RunConfig
from text_classifier import Pooling, Trainable

RESULTS = Path(__file__).parent / "results"

# The rows of all tables, by suite: name, options, what the reader compares, test accuracy in the
# well-known table, whether the first seed is timed in a process of its own, and the learning curve
# that the row is a point of: the task, and who learns, in the order in which tables name them.
# With few training messages a GPT makes as many updates as in five epochs of all 914, in at most 40
# epochs; LoRA and DoRA fewer.
# Settings that differ from the chapter's were chosen on validation messages of seeds that the
# tables do not use: learning rate and dropout for all layers on seeds 101 to 106,
# continued pretraining and the learning rate of SmolLM2's LoRA on some of them. The learning rate
# of gpt-mini's LoRA, the epochs with all ham, and what SmolLM2's all layers take were not searched
# for.
# The published accuracies are those of GPT-2 124M on an A100, one seed, 300 test messages of which
# 37 stand in the training set, from the README of github.com/rasbt/LLMs-from-scratch,
# ch06/02_bonus_additional-experiments (Apache 2.0).
ROWS = pd.read_csv(
    Path(__file__).parent / "rows.csv", index_col="row", dtype=str, keep_default_na=False
)
MAIN = ROWS.index[~ROWS.suite.str.match("larger|smollm2|few-")]

REVIEWS = ("reviews", "stars")
CLASSICAL = ("majority", "naive_bayes", "word_ngrams", "char_ngrams", "char_svm")
OF_FINETUNE = ("data", *OF_DATA, "cut", "start_from", *OF_OUTPUT[:-1])
ACT_ON_MESSAGES = ("classifier", "seed", "protocol", "balance", "augment", "train_size")
ACT_ON = {  # and what else acts on each classifier; on the GPT, all of the chapter's options
    "gpt": tuple(entry.name for entry in fields(RunConfig)),
    "frozen_features": ("model", "weights", "causal", "pooling", "max_length", "precision"),
    "prompt": ("model", "weights", "causal", "num_examples"),
}
NO_PART_OF_A_RESULT = ("row", "results", "device", "quiet", "feature_store", *OF_FINETUNE)


@dataclass(frozen=True)
class ExperimentConfig(RunConfig):
    """One run, as a row of a table. Where nothing is given, it is the reference of the tables:
    gpt-mini's last block, read at the last token, without continued pretraining."""

    row: str | None = option(
        None, "name under which the result is kept; default: none is", group="what is measured"
    )
    results: Path = option(RESULTS, "folder of the result files", group="what is measured")
    classifier: Literal["gpt", "frozen_features", "prompt", "minilm", "contrastive", *CLASSICAL] = (
        option(
            "gpt",
            "the GPT; a regression on its frozen, pooled states; the GPT asked as a chat; a "
            "regression on MiniLM's embeddings, or on those after contrastive fine-tuning; or a "
            "classical model of the messages",
            group="model",
        )
    )
    num_examples: int = option(
        0, "answered examples in the prompt of --classifier prompt", AT_LEAST_0, "model"
    )
    protocol: Literal["clean", "published", "almeida", "reviews", "stars"] = option(
        "clean",
        "the SMS messages without duplicates; in the split of well-known figures; in that of the "
        "collection's own paper; or film reviews, positive and negative or by their stars",
        group="data",
    )
    feature_store: Path | None = option(
        None,
        "folder that keeps the frozen layers' states of a suite, in half precision, so that they "
        "are computed once for all its commands; default: in memory",
        group="run",
    )
    model: str = option("gpt-mini", "gpt-mini, smollm2-135m, gpt2-small, ...", group="model")
    continued_pretraining_epochs: int = option(
        0, "epochs of language modelling on the texts before", AT_LEAST_0, "model"
    )
    trainable: Trainable | Literal["lora", "dora"] | int = option(
        "last_block", "what is trained; a number of last blocks", AT_LEAST_0, "model"
    )
    pooling: Pooling = option(
        "last", "which tokens' logits make those of the message", group="model"
    )

    def problems(self) -> list[str]:
        is_balanced = self.balance == "undersample" and self.protocol != "almeida"
        wrong = {
            "--train-size and --augment change balanced messages: leave out --balance and "
            "--protocol almeida": (self.train_size or self.augment) and not is_balanced,
            "--classifier prompt asks --model smollm2-135m, the only one trained to chat": (
                self.classifier == "prompt" and self.model != "smollm2-135m"
            ),
            "--protocol stars has eight classes, and --classifier char_svm takes two": (
                self.protocol == "stars" and self.classifier == "char_svm"
            ),
            "--balance and --augment are for text messages, not for reviews": (
                self.protocol in REVIEWS and (self.balance != "undersample" or self.augment)
            ),
        }
        return super().problems() + [text for text, holds in wrong.items() if holds]

    def without_effect(self) -> list[str]:
        """What was chosen and acts on nothing. Beside a suite, it acts on other rows of it."""
        acting = {*ACT_ON_MESSAGES, *ACT_ON.get(self.classifier, ())}
        return self.words({n: v for n, v in self.identity().items() if n not in acting})

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result."""
        return {name: v for name, v in vars(self).items() if name not in NO_PART_OF_A_RESULT}

    def made(self, result: dict[str, Any]) -> bool:
        """Whether a result is of these options."""
        return result["configuration"].items() <= self.identity().items()

    @property
    def command(self) -> str:
        """The command of this run."""
        words = self.words(self.identity() | {"row": self.row})
        return shlex.join(["additional_experiments.py", *words])

    @property
    def path(self) -> Path:
        """The file of a result that is kept."""
        return self.results / str(self.row) / f"seed-{self.seed}.json"
