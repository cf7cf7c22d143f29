"""Rows of experiments compared, from their result files: over seeds, on the same test messages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from additional_experiments import pack, spam_metrics, unpack
from experiment_config import RESULTS
from scipy.stats import binomtest
from suites import Row

from several_seeds import mean_and_interval

NUM_DRAWS = 10_000
NUM_SEEDS = 5  # a row with fewer is not shown


@dataclass
class Measured:
    """The runs of one row, in the order of their seeds."""

    row: Row
    runs: list[dict]

    def test(self, metric: str = "accuracy", part: str = "test") -> list[float]:
        """A metric of every run."""
        return [run[part][metric] for run in self.runs]


def load(rows: Sequence[Row]) -> list[Measured]:
    """The rows that have result files of enough seeds."""
    measured = []
    for row in rows:
        paths = (RESULTS / row.name).glob("seed-*.json")
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if len(runs) >= NUM_SEEDS:
            measured.append(Measured(row, sorted(runs, key=lambda run: run["seed"])))
    return measured


def load_one(row: Row) -> Measured:
    """A row that others are compared with. Raises ``ValueError`` where its files are too few."""
    if not (measured := load([row])):
        raise ValueError(f"{RESULTS / row.name} needs the files of {NUM_SEEDS} seeds.")
    return measured[0]


def labels_of(run: dict) -> np.ndarray:
    """The true classes of the test messages (N,): 1 for spam."""
    return np.array(list(run["predictions"]["labels"])).astype(int)


def is_correct(run: dict) -> np.ndarray:
    """Which test messages got the right class (N,)."""
    return (unpack(run["predictions"]["spam_probability"]) > 0.5) == labels_of(run)


@dataclass
class Comparison:
    """A row minus another, on the same test messages."""

    difference: float
    low: float
    high: float
    """95% interval, in fractions of the messages."""
    gained: int
    lost: int
    """Messages that only the row, and only the other, got right, over all seeds."""
    p_value: float
    """Exact McNemar test on these two, which takes every answer as independent."""


def compare(ours: Measured, theirs: Measured) -> Comparison:
    """A paired test. Raises ``ValueError`` unless both rows have the same seeds and messages.

    The interval is the wider, at either end, of two. A bootstrap on two levels draws seeds with
    replacement, and within each its test messages; both rows keep their answers to a drawn message.
    It knows the luck of the messages, but draws five seeds too much alike. Student's t over the
    seeds' differences makes up for few seeds, but takes five that agree by luck at their word.
    """
    check_same_messages(ours, theirs)
    differences = [
        is_correct(a).astype(int) - is_correct(b).astype(int)
        for a, b in zip(ours.runs, theirs.runs)
    ]
    rng, num_seeds = np.random.default_rng(0), len(differences)
    drawn = np.zeros(NUM_DRAWS)
    for chosen in rng.integers(num_seeds, size=(num_seeds, NUM_DRAWS)):
        for seed, d in enumerate(differences):  # messages are drawn anew each time a seed is drawn
            (draws,) = np.nonzero(chosen == seed)
            drawn[draws] += rng.choice(d, (len(draws), len(d))).mean(axis=1) / num_seeds
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    mean, _, t_low, t_high = mean_and_interval([d.mean().item() for d in differences])
    gained, lost = (sum(int((d == sign).sum()) for d in differences) for sign in (1, -1))
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return Comparison(mean, min(low, t_low), max(high, t_high), gained, lost, float(p_value))


def check_same_messages(ours: Measured, theirs: Measured) -> None:
    messages = [
        [(run["seed"], run["predictions"]["test_texts_crc32"]) for run in m.runs]
        for m in (ours, theirs)
    ]
    if messages[0] != messages[1]:
        raise ValueError(
            f"{ours.row.name} and {theirs.row.name} have other seeds or test messages, and cannot "
            f"be compared."
        )


def average(one: Measured, other: Measured) -> Measured:
    """The classifier that averages the probabilities of a row and of n-grams."""
    check_same_messages(one, other)
    runs = []
    for run, theirs in zip(one.runs, other.runs):
        pair = [unpack(r["predictions"]["spam_probability"]) for r in (run, theirs)]
        spam = np.mean(pair, axis=0)
        both = np.stack([1 - spam, spam], axis=1)
        predictions = run["predictions"] | {"spam_probability": pack(both)}
        averaged = {"predictions": predictions, "test": spam_metrics(both, labels_of(run))}
        runs.append(run | averaged | {"from_scratch": False})
    weighted = ", class weights" if "--balance weights" in other.row.options else ""
    says = f"{one.row.says}, averaged with n-grams{weighted}"
    return Measured(Row(f"{one.row.name}-averaged", "", says), runs)
