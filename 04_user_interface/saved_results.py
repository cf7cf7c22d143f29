"""How good is it? The test figures that finetune.py saved beside the classifier."""

import json
from collections.abc import Callable
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


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_list_of(length: int, holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == length and all(map(holds, value))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def check_fields(figures: Any, name: str, fields: dict[str, Callable[[Any], bool]]) -> None:
    """Raise ``ValueError`` naming the first field that is missing or holds something else."""
    if not isinstance(figures, dict):
        raise ValueError(f"the field {name!r} holds no fields of its own")
    for field, holds in fields.items():
        if not holds(figures.get(field)):
            wrong = "does not hold what finetune.py writes" if field in figures else "is missing"
            raise ValueError(f"the field '{name}.{field}' {wrong}")


def check_card(card: dict[str, Any], num_classes: int) -> None:
    """What the page shows of config.json; raises ``ValueError`` like `check_fields`."""
    if card.get("training") is not None:
        check_fields(card["training"], "training", {})
    if card.get("test") is not None:
        expected = {
            "num_examples": is_count,
            "accuracy": is_number,
            "accuracy_interval": is_list_of(2, is_number),
            "macro_f1": is_number,
            "mcc": is_number,
            "confusion_matrix": is_list_of(num_classes, is_list_of(num_classes, is_count)),
        }
        check_fields(card["test"], "test", expected)


def read_results(folder: Path, classifier: Classifier) -> SavedResults:
    """The saved figures, checked: only numbers that belong to this classifier are shown.

    Raises ``ValueError`` where config.json's own figures are damaged; of a damaged metrics.json,
    `missing` tells.
    """
    try:
        check_card(classifier.card, len(classifier.label_names))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}.") from None
    test = classifier.card.get("test")
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
        fits = fits and ((probabilities >= 0) & (probabilities <= 1)).all()
        if not fits or not np.isin(labels, range(shape[1])).all():
            raise ValueError("its test predictions do not fit its test figures")
        baseline = metrics.get("ngram_baseline")
        if baseline is not None:
            check_fields(baseline, "ngram_baseline", {"accuracy": is_number})
    except KeyError as error:
        reason = f"{path.name} has no field {error}; a newer finetune.py writes it."
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"{path.name} cannot be used: {error}."
    else:
        return SavedResults(test, baseline, labels, probabilities, "")
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
