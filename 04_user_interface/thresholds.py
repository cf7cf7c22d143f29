"""The one threshold of the page: below it the classifier is undecided. And what that costs."""

from collections.abc import Sequence

import numpy as np

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
