"""Metrics against scikit-learn's, properties of intervals and curves, and the pictures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from scipy import stats
from sklearn import metrics

import evaluation as ev


@st.composite
def labels_and_predictions(draw, num_classes=4):
    size = draw(st.integers(1, 60))
    numbers = st.lists(st.integers(0, num_classes - 1), min_size=size, max_size=size)
    return draw(numbers), draw(numbers)


@given(labels_and_predictions())
def test_metrics_equal_scikit_learns(pair):
    labels, predicted = pair
    classes = range(4)
    matrix = ev.confusion_matrix(labels, predicted, 4)
    np.testing.assert_array_equal(
        matrix, metrics.confusion_matrix(labels, predicted, labels=classes)
    )
    assert ev.accuracy(matrix) == pytest.approx(metrics.accuracy_score(labels, predicted))
    theirs = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    for mine, other in zip(ev.precision_recall_f1(matrix), theirs, strict=False):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    assert ev.macro_f1(matrix) == pytest.approx(theirs[2].mean())


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson_interval_equals_scipys(correct, total):
    correct = min(correct, total)
    low, high = ev.wilson_interval(correct, total)
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert 0 <= low <= correct / total <= high <= 1


def test_calibration_of_an_overconfident_model():
    probabilities = np.tile([0.95, 0.05], (100, 1))
    result = ev.calibration(probabilities, [0] * 80 + [1] * 20)
    assert result.expected_error == pytest.approx(0.15)
    assert result.counts.tolist() == [100]
    assert (result.confidence[0], result.accuracy[0]) == pytest.approx((0.95, 0.80))


def test_calibration_of_a_perfect_model_is_zero():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 200_000)
    labels = (rng.uniform(size=len(p)) < p).astype(int)
    result = ev.calibration(np.stack([1 - p, p], axis=1), labels)
    assert result.expected_error < 0.01
    assert result.counts.sum() == len(p)


def test_metrics_of_a_test_set():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    found = ev.spam_metrics(probabilities, [0, 0, 1, 1, 1])
    assert (found["accuracy"], found["confusion_matrix"]) == (3 / 5, [[1, 1], [1, 2]])
    assert (found["ham_blocked"], found["spam_caught"]) == (1 / 2, 2 / 3)
    assert found["roc_area"] == pytest.approx(4 / 6)  # of pairs of spam and ham, in order


def test_examples_are_the_surest_errors_and_right_answers_of_all_classes_in_turn():
    sure = np.array([0.9, 0.6, 0.8, 0.7, 0.95, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    answers = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0])
    labels = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0])  # the first four answers are wrong
    probabilities = np.where(answers[:, None] == [0, 1], sure[:, None], 1 - sure[:, None])
    found = ev.example_messages("abcdefghijk", ["ham", "spam"], labels, probabilities)
    assert "".join(example["text"] for example in found) == "fegjhacd"
    assert found[-1] == {"text": "d", "label": "spam", "answer": "ham"}


def test_pictures_show_what_they_are_given():
    figure = ev.plot_values([1, 2], [0.5, 0.2], [0.6, 0.4], "loss", examples_per_epoch=100)
    train, validation = figure.axes[0].lines
    assert train.get_ydata().tolist() == [0.5, 0.2]
    assert validation.get_ydata().tolist() == [0.6, 0.4]
    assert figure.axes[0].get_xlabel() == "epochs"
    assert figure.axes[0].get_ylabel() == "loss (nats)"

    figure = ev.plot_confusion_matrix(np.array([[7, 1], [2, 9]]), ["$x \\ 100%", "größe"])
    figure.canvas.draw()  # labels are any texts
    assert [text.get_text() for text in figure.axes[0].texts] == ["7", "1", "2", "9"]

    figure = ev.plot_roc_and_precision_recall([True, False, True], [0.9, 0.8, 0.7])
    assert figure.axes[0].get_xlabel() == "false positive rate"

    figure = ev.plot_calibration(ev.calibration(np.array([[0.9, 0.1], [0.4, 0.6]]), [0, 0]))
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[0.6, 0.0], [0.9, 1.0]]

    figure = ev.plot_padded_batch([2, 4])
    cells = figure.axes[0].collections[0].get_array().reshape(2, 4)
    assert cells.tolist() == [[1, 2, 0, 0], [1, 1, 1, 2]]
    plt.close("all")
