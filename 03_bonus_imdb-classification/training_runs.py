"""What train_gpt.py and train_encoder.py have in common: options, reviews and result."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from command_line import add_options, make_parser
from download_prepare_dataset import PARTS, read_parts
from fine_tuning import Clock
from imdb_results import Measurement, draw, kind_of_run, machine, metrics, write_result
from long_texts import Cut
from options import AT_LEAST_1, option
from run_config import RunConfig

RUNS = Path(__file__).parent / "runs"
ROUND_REVIEWS = 6000  # a checkpoint is saved each time so many reviews were trained on
PROBE_REVIEWS = 500  # classified after each round, to see how it goes
STOPPED = "stopped. Repeat the command with --resume to go on."


def chapters(name: str, default: Any) -> Any:
    """An option of finetune.py with another default."""
    return field(default=default, metadata=RunConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class ReviewsConfig(Measurement, RunConfig):
    """One training run: options of finetune.py, but for `left_out`, and some of its own.

    Raises ``ValueError`` that names everything wrong with it.
    """

    left_out: ClassVar[tuple[str, ...]] = (
        *("text_column", "label_column", "protocol", "balance", "augment", "padding", "output"),
        "patience",
    )

    name: str = field(kw_only=True)
    """Of the run, and of its files."""
    num_epochs: int = chapters("num_epochs", 2)
    batch_size: int = chapters("batch_size", 16)
    max_length: int = option(512, "tokens read at a time", AT_LEAST_1, "data")
    cut: Cut = option(
        "both",
        "what is read of a longer review: its head, its tail, both (a quarter from the head), or "
        "all of it in overlapping windows, whose probabilities are averaged",
        group="data",
    )
    test_size: int | None = option(
        None,
        "for learning curves: random test reviews measured on; default: all",
        AT_LEAST_1,
        "data",
    )
    validation_only: bool = option(
        False, "to choose options by: leave the test half unread; results go to trials", group="run"
    )
    runs: Path = option(RUNS, "folder of the runs' states and trained models", group="run")

    @property
    def kind(self) -> str:
        """Apart, so that a small run does not take the place of the whole one."""
        return kind_of_run(self.train_size, self.validation_only)

    @property
    def folder(self) -> Path:
        return self.runs / self.kind / self.name

    def problems(self) -> list[str]:
        problems = super().problems()
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            problems.append(f"{self.name!r} cannot name a file")
        if self.test_size and self.kind != "curve":
            problems.append("--test-size is for learning curves: with --train-size, and a test")
        return problems + [
            f"{entry.name} has no effect on reviews"
            for entry in fields(self)
            if entry.name in self.left_out and getattr(self, entry.name) != entry.default
        ]


def read_reviews_of(config: ReviewsConfig) -> dict[str, pd.DataFrame]:
    """The reviews that a run learns from and is measured on. Raises ``DataError``."""
    parts = read_parts(config.data, PARTS[:2] if config.validation_only else PARTS)
    parts["train"] = draw(parts["train"], config.train_size, config.seed)
    if config.test_size:
        parts["test"] = draw(parts["test"], config.test_size, seed=0)  # alike for every seed
    return parts


def write_run(
    config: ReviewsConfig,
    about: Mapping[str, Any],
    parts: Mapping[str, pd.DataFrame],
    positive: Mapping[str, np.ndarray],
    clock: Clock,
    device: str,
) -> dict[str, Any]:
    """Write the result of a run and return it: what `about` says, and what every run reports.

    `positive` has each review's probability of being positive (N,) for each part measured on.
    """
    result = {
        **about,
        "seed": config.seed,
        "num_train": len(parts["train"]),
        **{part: metrics(values, parts[part]) for part, values in positive.items()},
        "seconds": {key: round(value, 1) for key, value in clock.seconds.items()},
        "resumed": config.resume,  # the seconds are then those after the stop
        **machine(device),
    }
    probabilities = positive.get("test") if config.train_size is None else None
    write_result(config.name, result, probabilities, config.results / config.kind)
    return result


def parse_run(
    prog: str, description: str, config_class: type[ReviewsConfig], argv: list[str] | None
) -> argparse.Namespace:
    parser = make_parser(prog, description)
    parser.add_argument("name", help="name of the run and of its result file")
    add_options(parser, config_class, leave_out=("name", *config_class.left_out))
    return parser.parse_args(argv)
