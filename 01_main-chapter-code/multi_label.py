"""Several labels a message: all that is different then.

In a file the labels stand in one cell, separated by `|` or as a list; an empty one has none. Every
label is decided by itself: the classifier gives a probability for each, and a threshold for each,
chosen on the validation messages, says from where on a message carries it.

Shapes in comments: B messages in a batch, N messages of a data set, C labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import f1_score, precision_recall_curve
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor, nn

from evaluation import ngram_baseline, wilson_interval
from message_files import normal_form
from text_data import Splits, split_messages


def label_set(cell: str) -> str:
    """Several labels in one way to write them.

    >>> label_set("hot | cheap|hot")
    'cheap|hot'
    """
    return "|".join(sorted({normal_form(name) for name in cell.split("|")} - {""}))


def each_label(cells: pd.Series) -> pd.Series:
    """The labels of all cells, one a row."""
    labels = cells.str.split("|").explode()
    return labels[labels != ""]


def split_label_sets(messages: pd.DataFrame, seed: int) -> Splits:
    """Split without regard to labels: many sets of them are too rare to be found in each part."""
    splits = split_messages(messages.assign(label=""), seed)
    label_of = messages.set_index("text")["label"]
    return Splits(*(part.assign(label=part["text"].map(label_of)) for part in splits))


class LabelByLabel(nn.Module):
    """Logits (B, C) of a model as logits (B, 2, C) of "no" and "yes" to each label: cross-entropy
    is then that of every label by itself, known as binary cross-entropy."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        logits = self.model(**batch)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


def best_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """For each label the threshold with the largest F1; 0.5 where all messages carry it, or none.

    Takes probabilities and labels (N, C), 1 where a message carries the label.
    """
    thresholds = []
    for scores, positive in zip(probabilities.T, labels.T.astype(bool), strict=True):
        if positive.all() or not positive.any():
            thresholds.append(0.5)
            continue
        *rates, candidates = precision_recall_curve(positive, scores)
        precision, recall = (rate[-2::-1] for rate in rates)  # from the largest threshold down
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        thresholds.append(float(candidates[::-1][f1.argmax()]))
    return thresholds


def label_set_metrics(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: Sequence[float]
) -> dict[str, Any]:
    """A message counts as right if all its labels are. Micro F1 counts every decision alike, macro
    F1 every label."""
    predicted = (probabilities >= np.array(thresholds)).astype(int)
    correct = int((predicted == labels).all(axis=1).sum())
    f1 = {
        f"{average}_f1": float(f1_score(labels, predicted, average=average, zero_division=0))
        for average in ("micro", "macro")
    }
    interval = list(wilson_interval(correct, len(labels)))
    rates = {"accuracy": correct / len(labels), "accuracy_interval": interval}
    return {"num_examples": len(labels)} | rates | f1


def label_set_baseline(splits: Splits, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """Metrics of an n-gram regression for each label; takes the labels (N, C) of both parts."""
    vectorizer, regression = (step for _, step in ngram_baseline().steps)
    each = OneVsRestClassifier(regression)
    each.fit(vectorizer.fit_transform(splits.train["text"]), train)
    predicted = each.predict(vectorizer.transform(splits.test["text"]))
    return label_set_metrics(predicted, test, [0.5] * test.shape[1])
