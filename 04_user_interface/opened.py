"""A classifier folder with all that the page can say about it."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from classifier_folder import classify_texts, open_classifier
from evaluation import example_messages, ngram_baseline
from files import read_json
from fine_tuning import read_again
from message_files import DataError
from remote_files import is_intact
from run_messages import Messages
from text_data import SMS_SPAM_ZIP


class Opened:
    """An opened classifier, its saved metrics and, where they are at hand, its messages.

    The messages of the public SMS collection are taken from the cache, others from `data`, the file
    that the classifier was trained on; then the n-gram model that was measured beside it can
    answer, too. Raises what `open_classifier` does, and ``DataError`` where
    `data` holds other messages or the classifier gives several labels.
    """

    def __init__(self, folder: Path, data: Path | None = None):
        self.classifier, self.tokenizer = open_classifier(folder)
        self.config = self.classifier.config
        if self.config.thresholds is not None:
            raise DataError(
                f"{folder} gives several labels a message, which this page cannot show; use "
                f"classify.py."
            )
        self.names, self.card = self.config.label_names, self.config.card
        self.name = f"{self.config.model_name} ({folder.name})"
        self.metrics = read_metrics(folder, self.card.get("test"))
        self.messages = read_own_messages(self.card.get("training"), data)

    def probabilities(self, texts: list[str]) -> np.ndarray:
        """Those (N, C) of each text's classes. Outer white space is not read."""
        stripped = [text.strip() for text in texts]
        return classify_texts(self.classifier, self.tokenizer, stripped).numpy()

    @property
    def test_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each test message: its true class's index (N,), and all probabilities (N, C)."""
        saved = self.metrics["test_predictions"]
        return np.array(saved["labels"]), np.array(saved["probabilities"])

    def examples(self) -> list[list[str]]:
        """Test messages, each with its label and the answer: those that the folder keeps, else
        such as are at hand."""
        if self.metrics is None:
            return []
        examples = self.metrics.get("examples", [])
        if not examples and self.messages is not None:
            texts = self.messages.splits.test["text"].tolist()
            examples = example_messages(texts, self.names, *self.test_predictions)
        return [[example[key] for key in ("text", "label", "answer")] for example in examples]

    def rival_probabilities(self, text: str) -> np.ndarray | None:
        """The n-gram model's (C,), or None where there is none."""
        if self._rival is None:
            return None
        row = dict(zip(self._rival.classes_, self._rival.predict_proba([text])[0]))
        return np.array([row[name] for name in self.names])

    @cached_property
    def _rival(self) -> Pipeline | None:
        if not (self.messages and self.metrics and self.metrics["ngram_baseline"]):
            return None
        train = self.messages.splits.train
        return ngram_baseline().fit(train["text"], train["label"])


def read_metrics(folder: Path, test: dict[str, Any] | None) -> dict[str, Any] | None:
    """What finetune.py saved beside the classifier whose test metrics these are, or None."""
    path = folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    return metrics if test is not None and metrics.get("test") == test else None


def read_own_messages(options: dict[str, Any] | None, data: Path | None) -> Messages | None:
    """The messages of the run with these options, read again, or None if they are not at hand."""
    options = options or {}
    at_hand = data is not None or (options.get("data") is None and is_intact(SMS_SPAM_ZIP))
    files_beside = options.get("test_data") or options.get("validation_data")
    if "data_sha256" not in options or not at_hand or files_beside:
        return None
    messages = read_again(options, data, log=lambda *_: None)
    if messages is None and data is not None:
        raise DataError(f"{data}: these are not the messages that the classifier was trained on.")
    return messages
