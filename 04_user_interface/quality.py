"""The third tab: the test metrics that finetune.py saved, what a threshold costs, calibration."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from html_parts import heat_table, tiles

from evaluation import calibration, plot_calibration, precision_recall_curve
from text_classifier import GPTClassifier


class AtThreshold(NamedTuple):
    num_missed: int
    num_lost: int
    recall: float
    precision: float


def at_threshold(positive: np.ndarray, scores: np.ndarray, threshold: float) -> AtThreshold:
    """What a threshold does: how many messages of the class stay below it (missed), and how many
    others reach it (lost). Precision is NaN where none does.

    `positive` (N,) says which messages belong to the class, `scores` (N,) are its probabilities.

    >>> at_threshold(np.array([True, True, False]), np.array([0.9, 0.4, 0.6]), 0.5)
    AtThreshold(num_missed=1, num_lost=1, recall=0.5, precision=0.5)
    """
    num_positive = int(positive.sum())
    num_flagged = int((scores >= threshold).sum())
    num_caught = int((positive & (scores >= threshold)).sum())
    precision = num_caught / num_flagged if num_flagged else float("nan")
    missed, lost = num_positive - num_caught, num_flagged - num_caught
    return AtThreshold(missed, lost, num_caught / num_positive, precision)


def read_metrics(folder: Path, test: dict[str, Any]) -> dict[str, Any] | None:
    """What finetune.py saved beside the classifier whose test metrics these are, or None."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return metrics if metrics.get("test") == test else None


def quality_tab(classifier: GPTClassifier, folder: Path) -> None:
    names, test = classifier.config.label_names, classifier.config.card.get("test")
    if test is None:
        gr.Markdown("The folder holds no test metrics; finetune.py writes them.")
        return
    metrics = read_metrics(folder, test)
    headline(test, metrics)
    gr.Markdown("## Confusion matrix\nA row for each true class, a column for each predicted one.")
    matrix = np.array(test["confusion_matrix"])
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    gr.HTML(heat_table("counts", matrix, shares, names, names))
    if metrics is None:
        gr.Markdown("No curves: the folder has no metrics.json of this classifier.")
        return
    labels = np.array(metrics["test_predictions"]["labels"])
    probabilities = np.array(metrics["test_predictions"]["probabilities"])
    threshold_section(names, labels, probabilities)
    calibration_section(labels, probabilities)


def headline(test: dict[str, Any], metrics: dict[str, Any] | None) -> None:
    low, high = test["accuracy_interval"]
    shown = {
        f"right, of {test['num_examples']:,} test messages": f"{test['accuracy']:.1%}",
        "95% interval of that share": f"{low:.1%} – {high:.1%}",
        "macro F1": f"{test['macro_f1']:.3f}",
        "Matthews correlation": f"{test['mcc']:.3f}",
    }
    if metrics and metrics.get("ngram_baseline"):
        accuracy = metrics["ngram_baseline"]["accuracy"]
        shown["right, by a linear model on n-grams"] = f"{accuracy:.1%}"
    gr.HTML(tiles(shown))


def threshold_section(names: tuple[str, ...], labels: np.ndarray, probabilities: np.ndarray):
    def show(name: str, threshold: float) -> tuple[str, pd.DataFrame]:
        positive, scores = labels == names.index(name), probabilities[:, names.index(name)]
        found = at_threshold(positive, scores, threshold)
        num_positive = int(positive.sum())
        numbers = {
            f"missed, of {num_positive} {name}": f"{found.num_missed}",
            f"lost, of {len(labels) - num_positive} others": f"{found.num_lost}",
            "recall": f"{found.recall:.1%}",
            "precision": "–" if np.isnan(found.precision) else f"{found.precision:.1%}",
        }
        return tiles(numbers), curve_points(positive, scores, found)

    gr.Markdown(
        "## Where to set the threshold\n"
        "A message is put into the class if its probability reaches the threshold. Messages of "
        "the class below it are **missed**, messages of other classes above it are **lost**. The "
        "orange line marks the threshold on the curve."
    )
    present = [name for i, name in enumerate(names) if 0 < (labels == i).sum() < len(labels)]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            label = gr.Dropdown(present, value=present[-1], label="Class in question")
            threshold = gr.Slider(
                0.01, 0.99, 0.5, step=0.01, label="Threshold", elem_id="test-threshold"
            )
            numbers = gr.HTML(elem_id="missed-and-lost")
        with gr.Column(scale=3, min_width=300):
            curve = gr.LinePlot(
                x="recall",
                y="precision",
                color="line",
                color_map={"all thresholds": "#6366f1", "chosen threshold": "#ea580c"},
                x_lim=[0, 1.01],
                y_lim=[0, 1.01],
                x_title="recall (share of the class that is caught)",
                y_title="precision",
                color_title=" ",
                label="Precision and recall on the test messages",
                height=320,
            )
    # On every change of the two, and when the page is opened.
    gr.on(
        None,
        show,
        [label, threshold],
        [numbers, curve],
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",
    )


def curve_points(positive: np.ndarray, scores: np.ndarray, chosen: AtThreshold) -> pd.DataFrame:
    """The curve, and an upright line at the chosen threshold."""
    curve = precision_recall_curve(positive, scores)
    points = pd.DataFrame({"recall": curve.x, "precision": curve.y, "line": "all thresholds"})
    for height in (0, chosen.precision):
        points.loc[len(points)] = [chosen.recall, height, "chosen threshold"]
    return points.dropna()


def calibration_section(labels: np.ndarray, probabilities: np.ndarray) -> None:
    result = calibration(probabilities, labels)
    gr.Markdown(
        "## Is it as right as it is sure?\n"
        "Messages are grouped by the confidence of their answer. On the dotted line, a confidence "
        "of 90% means being right 9 times in 10; below it, the classifier is too sure of itself. "
        "Groups of a few messages, the small dots, say little. Expected calibration error: "
        f"**{result.expected_error:.3f}**."
    )
    figure = plot_calibration(result)
    plt.close(figure)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.Dataframe(
                [
                    [f"{confidence:.1%}", f"{right:.1%}", count]
                    for confidence, right, count in zip(*result[:3])
                ],
                headers=["confidence", "right", "messages"],
                label="Groups of test messages",
                interactive=False,
                buttons=[],
            )
        with gr.Column(scale=3, min_width=300):
            gr.Plot(figure, show_label=False)
