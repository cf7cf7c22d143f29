"""A classifier folder with all that the page can say about it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from classifier_folder import classify_texts, open_classifier
from evaluation import example_messages
from fine_tuning import fingerprint
from message_files import DataError
from remote_files import is_intact
from run_config import RunConfig
from run_messages import read_run_messages
from text_data import SMS_SPAM_ZIP


class TestPredictions(NamedTuple):
    labels: np.ndarray
    """(N,) index of each test message's true class."""
    probabilities: np.ndarray
    """(N, C)"""


class Opened:
    """An opened classifier and its saved metrics.

    Raises what `open_classifier` does, and ``DataError`` where it gives several labels.
    """

    def __init__(self, folder: Path):
        self.classifier, self.tokenizer = open_classifier(folder)
        self.config = self.classifier.config
        if self.config.thresholds is not None:
            raise DataError(
                f"{folder} gives several labels a message, which this page cannot show; use "
                f"classify.py."
            )
        self.names, self.card = self.config.label_names, self.config.card
        self.metrics = read_metrics(folder, self.card.get("test"))

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Those (N, C) of each text's classes. Outer white space is not read."""
        stripped = [text.strip() for text in texts]
        return classify_texts(self.classifier, self.tokenizer, stripped).numpy()

    @property
    def test_predictions(self) -> TestPredictions:
        saved = self.metrics["test_predictions"]
        return TestPredictions(np.array(saved["labels"]), np.array(saved["probabilities"]))

    def examples(self) -> list[list[str]]:
        """Test messages, each with its label and the answer: those that the folder keeps, else
        such as are at hand."""
        if self.metrics is None:
            return []
        examples = self.metrics.get("examples", [])
        if not examples and (test_texts := read_test_texts(self.card["training"])):
            examples = example_messages(test_texts, self.names, *self.test_predictions)
        return [[example[key] for key in ("text", "label", "answer")] for example in examples]


def read_metrics(folder: Path, test: dict[str, Any] | None) -> dict[str, Any] | None:
    """What finetune.py saved beside the classifier whose test metrics these are, or None."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return metrics if test is not None and metrics.get("test") == test else None


def read_test_texts(options: dict[str, Any]) -> list[str]:
    """The test messages of a run with these options, if they are those of the SMS collection, and
    that is in the cache."""
    own_files = any(options.get(name) for name in ("data", "validation_data", "test_data"))
    if own_files or not is_intact(SMS_SPAM_ZIP):
        return []
    known = {name: options[name] for name in RunConfig.__dataclass_fields__ if name in options}
    messages = read_run_messages(RunConfig(**known | {"start_from": None}), log=lambda *_: None)
    is_same = fingerprint(messages.splits) == options["data_sha256"]
    return messages.splits.test["text"].tolist() if is_same else []
