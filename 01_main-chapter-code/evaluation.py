"""How good is it? Metrics, intervals, a baseline to beat, and the chapter's pictures.

Shapes in comments: N messages, C classes. What the chapter teaches is computed by hand, and a test
compares it with scikit-learn's; the rest is scikit-learn's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

Z_95 = 1.959963984540054  # a standard normal value lies within +-Z_95 with probability 0.95

# --- From a confusion matrix ---------------------------------------------------------------------


def confusion_matrix(labels: Sequence[int], predicted: Sequence[int], num_classes: int):
    """Counts (C, C): row = true class, column = predicted class.

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    matrix = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(matrix, (np.asarray(labels), np.asarray(predicted)), 1)
    return matrix


def accuracy(matrix: np.ndarray) -> float:
    """Share of messages on the diagonal."""
    return float(np.trace(matrix) / matrix.sum())


def precision_recall_f1(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, (C,) each; 0 where a class was never predicted,
    or never there."""
    correct = np.diag(matrix).astype(float)
    predicted, actual = matrix.sum(axis=0), matrix.sum(axis=1)
    precision = np.divide(correct, predicted, out=np.zeros_like(correct), where=predicted > 0)
    recall = np.divide(correct, actual, out=np.zeros_like(correct), where=actual > 0)
    both = predicted + actual
    f1 = np.divide(2 * correct, both, out=np.zeros_like(correct), where=both > 0)
    return precision, recall, f1


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1 over the classes: every class counts alike, however rare it is."""
    return float(precision_recall_f1(matrix)[2].mean())


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): honest for few messages and near 0 and 1.

    >>> low, high = wilson_interval(287, 300)
    >>> f"{287 / 300:.1%} [{low:.1%}, {high:.1%}]"
    '95.7% [92.7%, 97.5%]'
    """
    if num_examples < 1:
        raise ValueError("An interval needs at least one example.")
    share, z2n = num_correct / num_examples, Z_95**2 / num_examples
    middle = (share + z2n / 2) / (1 + z2n)
    half = Z_95 * math.sqrt(share * (1 - share) / num_examples + z2n / num_examples / 4)
    half /= 1 + z2n
    # At the ends the interval touches 0 or 1 exactly; rounding must not push it past them.
    low = 0.0 if num_correct == 0 else middle - half
    high = 1.0 if num_correct == num_examples else middle + half
    return low, high


# --- From probabilities --------------------------------------------------------------------------


class Calibration(NamedTuple):
    """Per bin of confidence: its mean, the share that was right, and how many messages."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray
    expected_error: float


def calibration(probabilities: np.ndarray, labels: Sequence[int]) -> Calibration:
    """Does a confidence of 90% mean being right 9 times in 10?

    Takes probabilities (N, C). The expected calibration error is the mean distance between
    confidence and accuracy over ten equal bins, weighted by their messages (Naeini et al. 2015;
    Guo et al. 2017). Empty bins are left out.
    """
    num_bins = 10
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == np.asarray(labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    filled = counts > 0
    mean_confidence = np.bincount(bins, confidence, num_bins)[filled] / counts[filled]
    share_correct = np.bincount(bins, correct, num_bins)[filled] / counts[filled]
    error = np.sum(counts[filled] * np.abs(mean_confidence - share_correct)) / len(confidence)
    return Calibration(mean_confidence, share_correct, counts[filled], float(error))


def test_metrics(probabilities: np.ndarray, labels: Sequence[int]) -> dict:
    """What a report on a test set needs: accuracy with interval, macro F1, Matthews' correlation
    coefficient (-1 to 1, where guessing scores 0), the confusion matrix."""
    predicted = probabilities.argmax(axis=1)
    matrix = confusion_matrix(labels, predicted, probabilities.shape[1])
    is_constant = np.count_nonzero(matrix) == 1  # of which scikit-learn warns
    return {
        "num_examples": len(labels),
        "accuracy": accuracy(matrix),
        "accuracy_interval": list(wilson_interval(int(np.trace(matrix)), len(labels))),
        "macro_f1": macro_f1(matrix),
        "mcc": 0.0 if is_constant else float(metrics.matthews_corrcoef(labels, predicted)),
        "confusion_matrix": matrix.tolist(),
    }


test_metrics.__test__ = False  # the name is no test for pytest


def spam_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """`test_metrics` of a spam filter, whose class 1 is spam, and the area under its ROC curve;
    spam caught and ham blocked are the recall of spam and the false positives among ham."""
    found = test_metrics(probabilities, labels)
    (passed, blocked), (missed, caught) = found["confusion_matrix"]
    found["spam_caught"] = caught / (missed + caught)
    found["ham_blocked"] = blocked / (passed + blocked)
    found["roc_area"] = float(metrics.roc_auc_score(labels, probabilities[:, 1]))
    return found


# --- A baseline to beat --------------------------------------------------------------------------


def example_messages(
    texts: Sequence[str], label_names: Sequence[str], labels: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, str]]:
    """Eight of N texts with label and answer: the three surest errors, and right answers of all
    classes in turn."""
    answers, sure = probabilities.argmax(axis=1), probabilities.max(axis=1)  # (N,), (N,)
    wrong = [i for i in np.argsort(-sure, kind="stable") if answers[i] != labels[i]][:3]
    right = [np.flatnonzero((answers == labels) & (labels == c)) for c in set(labels.tolist())]
    in_turn = [members[n] for n in range(8) for members in right if len(members) > n]
    return [
        {"text": texts[i], "label": label_names[labels[i]], "answer": label_names[answers[i]]}
        for i in in_turn[: 8 - len(wrong)] + wrong
    ]


def ngram_baseline() -> Pipeline:
    """Logistic regression on character n-grams: the simple model that a GPT has to beat."""
    return make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, lowercase=False),
        LogisticRegression(C=100, max_iter=1000),
    )


# --- Pictures ------------------------------------------------------------------------------------


def show(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook, with words for readers who cannot see it."""
    from IPython.display import display  # of the notebooks alone

    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def plot_values(
    epochs: Sequence[float],
    train_values: Sequence[float],
    validation_values: Sequence[float],
    label: str,
    examples_per_epoch: int,
) -> Figure:
    """A quantity over training, on the training and on the validation messages."""
    fig, ax = plt.subplots(figsize=(6, 3.8))
    ax.plot(epochs, train_values, "o-", label=f"training {label}")
    ax.plot(epochs, validation_values, "s--", label=f"validation {label}")
    ax.set_xlabel("epochs")
    ax.set_ylabel(label + (" (nats)" if label == "loss" else ""))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    to_messages, to_epochs = (lambda e: e * examples_per_epoch), (lambda m: m / examples_per_epoch)
    top = ax.secondary_xaxis("top", functions=(to_messages, to_epochs))
    top.set_xlabel("messages seen")
    fig.tight_layout()
    return fig


def plot_confusion_matrix(matrix: np.ndarray, label_names: Sequence[str]) -> Figure:
    """True classes in rows, predicted ones in columns, each cell with its count."""
    size = 1.6 + 0.9 * len(label_names)
    fig, ax = plt.subplots(figsize=(size + 0.6, size))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        color = "white" if shares[row, column] > 0.5 else "black"
        ax.text(column, row, f"{count}", ha="center", va="center", color=color)
    places = range(len(label_names))
    # Names are text, not formulas, whatever dollar signs they hold.
    ax.set_xticks(places, label_names, rotation=30 if len(places) > 3 else 0, parse_math=False)
    ax.set_yticks(places, label_names, parse_math=False)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    fig.tight_layout()
    return fig


def plot_roc_and_precision_recall(positive: Sequence[bool], scores: Sequence[float]) -> Figure:
    """Both curves side by side."""
    false_positives, true_positives, _ = metrics.roc_curve(positive, scores)
    precision, recall, _ = metrics.precision_recall_curve(positive, scores)
    mean_precision = metrics.average_precision_score(positive, scores)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    area = metrics.auc(false_positives, true_positives)
    left.plot(false_positives, true_positives, label=f"area {area:.3f}")
    left.plot([0, 1], [0, 1], ":", color="gray", label="guessing")
    left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
    right.step(recall, precision, where="post", label=f"average precision {mean_precision:.3f}")
    right.axhline(np.mean(positive), ls=":", color="gray", label="guessing")
    right.set(xlabel="recall", ylabel="precision", title="precision and recall", ylim=(0, 1.03))
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend()
    fig.tight_layout()
    return fig


def plot_calibration(result: Calibration) -> Figure:
    """Accuracy against confidence; points below the diagonal are overconfident."""
    fig, ax = plt.subplots(figsize=(4.6, 4.2))
    ax.plot([0, 1], [0, 1], ":", color="gray", label="perfectly calibrated")
    ax.scatter(result.confidence, result.accuracy, 10 + 3 * np.sqrt(result.counts) * 5, alpha=0.7)
    ax.set(
        xlabel="confidence",
        ylabel="share correct",
        xlim=(min(0.45, result.confidence.min() - 0.05), 1.02),
        ylim=(0, 1.05),
    )
    ax.set_title(f"expected calibration error {result.expected_error:.3f}")
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    return fig


def plot_padded_batch(lengths: Sequence[int]) -> Figure:
    """A padded batch: real tokens, the last real one of each message, and padding."""
    cells = np.zeros((len(lengths), max(lengths)))
    for row, length in enumerate(lengths):
        cells[row, :length] = 1
        cells[row, length - 1] = 2
    fig, ax = plt.subplots(figsize=(8, 0.8 + 0.3 * len(lengths)))
    colors = plt.matplotlib.colors.ListedColormap(["#e5e5e5", "#9ecae1", "#08519c"])
    ax.pcolormesh(cells, cmap=colors, vmin=0, vmax=2, edgecolors="white", lw=0.5)
    ax.invert_yaxis()
    ax.set(xlabel="position (tokens)", ylabel="message in the batch")
    ax.set_yticks(np.arange(len(lengths)) + 0.5, range(len(lengths)))
    names = ["padding", "real token", "last real token"]
    handles = [plt.matplotlib.patches.Patch(color=colors(i), label=n) for i, n in enumerate(names)]
    ax.legend(handles=handles, ncol=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    fig.tight_layout()
    return fig
