"""Rows of experiments compared, from their result files: over seeds, on the same test messages."""

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from experiment_config import RESULTS, ROWS
from scipy.stats import binomtest

from evaluation import spam_metrics
from files import read_json
from several_seeds import mean_and_interval

NUM_DRAWS = 10_000
NUM_SEEDS = 5  # a row with fewer is not shown


def pack(probabilities: np.ndarray) -> str:
    """Spam probabilities as compressed text, exact to seven digits."""
    spam = probabilities[:, 1].astype("<f4")
    return base64.b64encode(zlib.compress(spam.tobytes(), 9)).decode("ascii")


def unpack(packed: str) -> np.ndarray:
    """The reverse: spam probabilities (N,).

    >>> unpack(pack(np.array([[0.75, 0.25], [0, 1]]))).tolist()
    [0.25, 1.0]
    """
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<f4")


@dataclass
class Runs:
    """The runs of one row: S seeds in their order, N test messages in each."""

    says: str
    options: str
    """As a table shows them."""
    spam: np.ndarray | None
    """Probabilities of spam (S, N); of reviews, which have other classes, there are none."""
    labels: np.ndarray
    """True classes (S, N), 1 for spam."""
    is_correct: np.ndarray
    """Which test messages got the right class (S, N)."""
    messages: list[tuple[int, int]]
    """Each run's seed, and a checksum of its test messages."""
    files: list[dict]
    """What the runs' files hold; none for averages."""

    @property
    def timed(self) -> list[dict]:
        """Of the files, those of runs that had a process of their own."""
        return [file for file in self.files if file["from_scratch"]]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of every run."""
        return self.is_correct.mean(axis=1).tolist()

    def metric(self, name: str) -> list[float]:
        """Another test metric of every run."""
        both = np.stack([1 - self.spam, self.spam], axis=-1)
        return [spam_metrics(*run)[name] for run in zip(both, self.labels)]


def load(results: Path = RESULTS) -> dict[str, Runs]:
    """The rows that have result files of enough seeds."""
    loaded = {}
    for row, about in ROWS.iterrows():
        files = list(map(read_json, sorted((results / row).glob("seed-*.json"))))
        if len(files) < NUM_SEEDS:
            continue
        predictions = [file["predictions"] for file in files]
        labels = digits(some["labels"] for some in predictions)
        if "predicted" in predictions[0]:
            spam, predicted = None, digits(some["predicted"] for some in predictions)
        else:
            spam = np.stack([unpack(some["spam_probability"]) for some in predictions])
            predicted = spam > 0.5
        loaded[row] = Runs(
            about.description,
            f"`{about.options}`" if about.options else "none",
            spam,
            labels,
            predicted == labels,
            [(file["seed"], file["predictions"]["test_texts_crc32"]) for file in files],
            files,
        )
    return loaded


def digits(runs: Iterable[str]) -> np.ndarray:
    """Classes (S, N) of runs that hold a digit for each message."""
    return np.array(list(map(list, runs))).astype(int)


class Comparison(NamedTuple):
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


def compare(ours: Runs, theirs: Runs) -> Comparison:
    """A paired test. Raises ``ValueError`` unless both rows have the same seeds and messages.

    The interval is the wider, at either end, of two. A bootstrap on two levels draws seeds and test
    messages with replacement; both rows keep their answers to a drawn message. It knows the luck of
    the messages, but draws five seeds too much alike. Student's t over the seeds' differences makes
    up for few seeds, but takes five that agree by luck at their word.
    """
    check_same_messages(ours, theirs)
    differences = ours.is_correct.astype(int) - theirs.is_correct  # (S, N)
    are_shared = len({checksum for _, checksum in ours.messages}) == 1
    low, high = np.percentile(draw_means(differences, are_shared), [2.5, 97.5]).tolist()
    mean, _, t_low, t_high = mean_and_interval(differences.mean(axis=1).tolist())
    gained, lost = int((differences == 1).sum()), int((differences == -1).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return Comparison(mean, min(low, t_low), max(high, t_high), gained, lost, p_value)


def draw_means(differences: np.ndarray, are_shared: bool) -> np.ndarray:
    """Means (NUM_DRAWS,) of differences (S, N) in bootstrap samples of seeds and test messages.

    Where all seeds share the messages, a sample's are the same for all of its seeds, too: five
    seeds tell no more about another N messages than one.
    """
    rng, (num_seeds, num_messages) = np.random.default_rng(0), differences.shape
    chosen = rng.integers(num_seeds, size=(NUM_DRAWS, num_seeds))
    if are_shared:
        means = draw_messages(num_messages) @ differences.T / num_messages  # (NUM_DRAWS, S)
        return np.take_along_axis(means, chosen, axis=1).mean(axis=1)
    fractions = np.stack([(differences == d).mean(axis=1) for d in (-1, 0, 1)], axis=1)  # (S, 3)
    outcomes = rng.multinomial(num_messages, fractions[chosen])  # of new messages each time
    return (outcomes[..., 2] - outcomes[..., 0]).mean(axis=1) / num_messages


@cache
def draw_messages(num_messages: int) -> np.ndarray:
    """How often each message stands in each bootstrap sample (NUM_DRAWS, N)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(num_messages, np.full(num_messages, 1 / num_messages), size=NUM_DRAWS)


def check_same_messages(ours: Runs, theirs: Runs) -> None:
    if ours.messages != theirs.messages:
        raise ValueError(
            f"{ours.says!r} and {theirs.says!r} have other seeds or test messages, and cannot be "
            f"compared."
        )


def average(one: Runs, ngrams: Runs) -> Runs:
    """The classifier that averages the probabilities of a row and of n-grams."""
    check_same_messages(one, ngrams)
    spam = (one.spam + ngrams.spam) / 2
    weighted = ", class weights" if "--balance weights" in ngrams.options else ""
    return replace(
        one,
        says=f"{one.says}, averaged with n-grams{weighted}",
        options="from the two rows' predictions",
        spam=spam,
        is_correct=(spam > 0.5) == one.labels,
        files=[],
    )
