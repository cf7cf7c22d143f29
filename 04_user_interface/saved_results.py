"""How good is it? The test figures that finetune.py saved beside the classifier."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from text_classifier import Classifier


class SavedResults(NamedTuple):
    """What is known of a classifier's quality; what is missing is None, and `missing` says why."""

    test: dict[str, Any] | None
    """The figures of `evaluation.test_figures`."""
    baseline: dict[str, Any] | None
    """The n-gram regression's accuracy and interval."""
    labels: np.ndarray | None
    """(N,) true classes of the test messages."""
    probabilities: np.ndarray | None
    """(N, C) predicted for them."""
    missing: str


def read_results(folder: Path, classifier: Classifier) -> SavedResults:
    """The saved figures, checked: only numbers that belong to this classifier are shown."""
    test = classifier.card.get("test") or None
    path = folder / "metrics.json"
    if not path.is_file():
        return SavedResults(test, None, None, None, f"There is no {path.name} in the folder.")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if test is None or metrics["test"] != test:
            raise ValueError("it belongs to another classifier")
        predictions = metrics.get("test_predictions")
        if predictions is None:
            raise KeyError("test_predictions")
        labels = np.asarray(predictions["labels"], dtype=int)
        probabilities = np.asarray(predictions["probabilities"], dtype=float)
        shape = (test["num_examples"], len(classifier.label_names))
        fits = labels.shape == shape[:1] and probabilities.shape == shape
        if not fits or not np.isin(labels, range(shape[1])).all():
            raise ValueError("its test predictions do not fit its test figures")
    except KeyError as error:
        reason = f"{path.name} has no field {error}; a newer finetune.py writes it."
    except (TypeError, ValueError) as error:
        reason = f"{path.name} cannot be used: {error}."
    else:
        return SavedResults(test, metrics.get("ngram_baseline"), labels, probabilities, "")
    return SavedResults(test, None, None, None, reason)


class AtThreshold(NamedTuple):
    """What a threshold on one class's probability does to the test messages."""

    num_positive: int
    """Messages of the class."""
    num_missed: int
    """Of those, how many stay below the threshold."""
    num_negative: int
    """Messages of other classes."""
    num_lost: int
    """Of those, how many reach the threshold."""

    @property
    def recall(self) -> float:
        return 1 - self.num_missed / self.num_positive

    @property
    def precision(self) -> float | None:
        """None where nothing reaches the threshold."""
        num_caught = self.num_positive - self.num_missed
        flagged = num_caught + self.num_lost
        return num_caught / flagged if flagged else None


def at_threshold(positive: np.ndarray, scores: np.ndarray, threshold: float) -> AtThreshold:
    """Count what is missed and what is lost; `positive` (N,) booleans, `scores` (N,).

    >>> at_threshold(np.array([True, True, False]), np.array([0.9, 0.4, 0.6]), 0.5)
    AtThreshold(num_positive=2, num_missed=1, num_negative=1, num_lost=1)
    """
    flagged = scores >= threshold
    return AtThreshold(
        int(positive.sum()),
        int((positive & ~flagged).sum()),
        int((~positive).sum()),
        int((~positive & flagged).sum()),
    )
