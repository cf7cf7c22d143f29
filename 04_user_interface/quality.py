"""The third tab: the test metrics that finetune.py saved, what a threshold costs, calibration."""

import json
from pathlib import Path
from typing import Any

import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from html_parts import heat_table, tiles

from evaluation import (
    calibration,
    confusion_matrix,
    plot_calibration,
    precision_recall_curve,
    precision_recall_f1,
)
from text_classifier import GPTClassifier


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
        matrix = confusion_matrix(positive.astype(int), (scores >= threshold).astype(int), 2)
        precision, recall, _ = precision_recall_f1(matrix)
        numbers = {
            f"missed, of {matrix[1].sum()} {name}": f"{matrix[1, 0]}",
            f"lost, of {matrix[0].sum()} others": f"{matrix[0, 1]}",
            "recall": f"{recall[1]:.1%}",
            "precision": f"{precision[1]:.1%}",
        }
        return tiles(numbers), curve_points(positive, scores, recall[1], precision[1])

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


def curve_points(
    positive: np.ndarray, scores: np.ndarray, recall: float, precision: float
) -> pd.DataFrame:
    """The curve, and an upright line at the recall and precision of the chosen threshold."""
    curve = precision_recall_curve(positive, scores)
    points = pd.DataFrame({"recall": curve.x, "precision": curve.y, "line": "all thresholds"})
    line = {"recall": recall, "precision": [0, precision], "line": "chosen threshold"}
    return pd.concat([points, pd.DataFrame(line)])


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
