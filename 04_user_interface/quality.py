"""The third tab: the page's threshold and what it costs, the test metrics, calibration."""

from typing import Any

import gradio as gr
import matplotlib.pyplot as plt
import numpy as np
from html_parts import QUIET, heat_table, tiles
from opened import Opened
from thresholds import consequences

from evaluation import calibration, plot_calibration


def threshold_slider() -> gr.Slider:
    return gr.Slider(
        0,
        0.99,
        0,
        step=0.01,
        label="Threshold of the whole page: undecided below this probability",
        info="0 always answers with the likeliest class. It holds in every tab and in downloads.",
        elem_id="threshold",
        render=False,
    )


def quality_tab(opened: Opened, threshold: gr.Slider) -> None:
    if opened.metrics is None:
        threshold.render()
        gr.Markdown("The folder has no metrics.json of this classifier; finetune.py writes it.")
        return
    labels, probabilities = opened.test_predictions
    gr.HTML(tiles(headline(opened.metrics)))
    gr.Markdown(
        "## Where to set the threshold\n"
        "A message whose likeliest class is less probable than the threshold is left undecided, "
        "for a person to look at. The higher the threshold, the fewer wrong answers, and the more "
        "that is left over. Counted on the test messages:"
    )
    threshold.render()
    numbers = gr.HTML(elem_id="consequences", elem_classes="live")
    # On every change, and when the page is opened.
    show = lambda value: tiles(consequences(labels, probabilities, value))  # noqa: E731
    gr.on(None, show, threshold, numbers, trigger_mode="always_last", **QUIET)
    gr.Markdown("## Confusion matrix\nA row for each true class, a column for each predicted one.")
    matrix = np.array(opened.metrics["test"]["confusion_matrix"])
    gr.HTML(confusion_table(matrix, opened.names))
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
    gr.Plot(figure, show_label=False, elem_id="calibration")


def headline(metrics: dict[str, Any]) -> dict[str, str]:
    """The test metrics that are shown large, by their names."""
    test = metrics["test"]
    low, high = test["accuracy_interval"]
    shown = {
        f"right, of {test['num_examples']:,} test messages": f"{test['accuracy']:.1%}",
        "95% interval of that share": f"{low:.1%} – {high:.1%}",
        "macro F1": f"{test['macro_f1']:.3f}",
        "Matthews correlation": f"{test['mcc']:.3f}",
    }
    if baseline := metrics["ngram_baseline"]:
        shown["right, by a linear model on n-grams"] = f"{baseline['accuracy']:.1%}"
    return shown


def confusion_table(matrix: np.ndarray, names: tuple[str, ...]) -> str:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return heat_table("counts", matrix, shares, names, names)
