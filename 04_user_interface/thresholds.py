"""The one threshold of the page: below it the classifier is undecided. And what that costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evaluation import wilson_interval

UNDECIDED = "undecided"


def decide(probabilities: np.ndarray, label_names: Sequence[str], threshold: float) -> str:
    """The likeliest class, where its probability reaches the threshold.

    >>> decide(np.array([0.3, 0.7]), ["ham", "spam"], 0.6)
    'spam'
    >>> decide(np.array([0.3, 0.5, 0.2]), ["a", "b", "c"], 0.6)
    'undecided'
    """
    best = int(np.argmax(probabilities))
    return label_names[best] if probabilities[best] >= threshold else UNDECIDED


def consequences(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> dict[str, str]:
    """What a threshold does to labelled messages: (N,) true classes, (N, C) probabilities."""
    answered = probabilities.max(axis=1) >= threshold
    right = answered & (probabilities.argmax(axis=1) == labels)
    num_answered, num_right = int(answered.sum()), int(right.sum())
    found = {"undecided": f"{len(labels) - num_answered:,} of {len(labels):,}"}
    found["wrong"] = f"{num_answered - num_right:,}"
    if num_answered:
        low, high = wilson_interval(num_right, num_answered)
        found["right, of those answered"] = f"{num_right / num_answered:.1%}"
        found["95% interval of that share"] = f"{low:.1%} – {high:.1%}"
    return found


def by_class(
    label_names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, threshold: float
) -> pd.DataFrame:
    """The same for each class: what became of its messages, and how often its name is right."""
    answered = probabilities.max(axis=1) >= threshold
    answers = probabilities.argmax(axis=1)
    rows = []
    for i, name in enumerate(label_names):
        members, called = labels == i, answered & (answers == i)
        right = int((members & called).sum())
        undecided = int((members & ~answered).sum())
        wrong = int(members.sum()) - right - undecided
        precision = f"{right / called.sum():.1%}" if called.any() else "–"
        rows.append([name, int(members.sum()), right, wrong, undecided, precision])
    columns = ["class", "messages", "right", "wrong", "undecided", "right when named"]
    return pd.DataFrame(rows, columns=columns)


def answered_and_right(labels: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """The curve of all thresholds: the share that is answered, and how much of that is right."""
    sure = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels)[np.argsort(-sure, kind="stable")]
    ends = np.flatnonzero(np.diff(np.sort(sure)[::-1], append=-np.inf)) + 1  # after ties
    shares = np.cumsum(right)[ends - 1] / ends
    return pd.DataFrame({"answered": ends / len(labels), "right": shares})
