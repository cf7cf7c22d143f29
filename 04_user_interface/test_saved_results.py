"""The figures of the third tab: read only where they belong to the classifier."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from saved_results import at_threshold, read_results

from evaluation import test_figures as figures_of
from text_classifier import Classifier

LABELS = [0, 0, 1, 1, 1]
PROBABILITIES = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]]


def written(folder, **changes) -> Classifier:
    """metrics.json in the folder, and the classifier that it belongs to."""
    test = figures_of(np.array(PROBABILITIES), LABELS)
    metrics = {
        "test": test,
        "ngram_baseline": {"accuracy": 0.5},
        "test_predictions": {"labels": LABELS, "probabilities": PROBABILITIES},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes), encoding="utf-8")
    return Classifier(None, None, "gpt-mini", ["ham", "spam"], 10, {"test": test})


def test_saved_figures_are_read(tmp_path):
    results = read_results(tmp_path, written(tmp_path))
    assert results.test["accuracy"] == 0.6
    assert results.labels.tolist() == LABELS
    assert results.probabilities.tolist() == PROBABILITIES
    assert (results.baseline, results.missing) == ({"accuracy": 0.5}, "")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"test": {"accuracy": 1}}, "another classifier"),
        ({"test_predictions": None}, "test_predictions"),
        ({"test_predictions": {"labels": LABELS}}, "probabilities"),
        ({"test_predictions": {"labels": [0], "probabilities": [[1, 0]]}}, "do not fit"),
        ({"test_predictions": {"labels": "x", "probabilities": []}}, "cannot be used"),
        ({"ngram_baseline": {}}, "'ngram_baseline.accuracy' is missing"),
        ({"ngram_baseline": 5}, "'ngram_baseline'"),
        ({"test_predictions": {"labels": LABELS, "probabilities": [[2, 0]] * 5}}, "do not fit"),
        ({"test_predictions": {"labels": [7] * 5, "probabilities": PROBABILITIES}}, "do not fit"),
    ],
)
def test_figures_that_do_not_belong_are_not_shown(tmp_path, changes, part):
    results = read_results(tmp_path, written(tmp_path, **changes))
    assert part in results.missing
    assert results.probabilities is None
    assert results.test["accuracy"] == 0.6  # config.json's own figures stay


@pytest.mark.parametrize(
    ("card", "part"),
    [
        ({"test": {"accuracy": 1}}, "'test.num_examples' is missing"),
        ({"test": 5}, "'test'"),
        ({"training": 5}, "'training'"),
    ],
)
def test_damaged_figures_of_the_configuration_are_named(tmp_path, card, part):
    classifier = Classifier(None, None, "gpt-mini", ["ham", "spam"], 10, card)
    with pytest.raises(ValueError, match=r"config\.json: the field") as refused:
        read_results(tmp_path, classifier)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_examples", "5"),
        ("accuracy", None),
        ("accuracy_interval", [0.5]),
        ("mcc", "high"),
        ("confusion_matrix", [[1, 2], [3]]),
        ("confusion_matrix", [[1, -2], [3, 0.5]]),
    ],
)
def test_a_figure_of_another_kind_is_named(tmp_path, field, value):
    classifier = written(tmp_path)
    classifier.card["test"][field] = value
    with pytest.raises(ValueError, match=f"'test.{field}' does not hold"):
        read_results(tmp_path, classifier)


@pytest.mark.parametrize("content", [None, "{", "[]", "7"])
def test_a_missing_or_damaged_file_is_named(tmp_path, content):
    classifier = written(tmp_path)
    (tmp_path / "metrics.json").unlink()
    if content is not None:
        (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    results = read_results(tmp_path, classifier)
    assert "metrics.json" in results.missing
    assert results.labels is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1), st.floats(0, 1))
def test_what_is_missed_and_lost_is_counted(pairs, threshold):
    found = at_threshold(*map(np.array, zip(*pairs)), threshold)
    positive = [score for is_positive, score in pairs if is_positive]
    negative = [score for is_positive, score in pairs if not is_positive]
    assert found.num_missed == sum(score < threshold for score in positive)
    assert found.num_lost == sum(score >= threshold for score in negative)
    assert (found.num_positive, found.num_negative) == (len(positive), len(negative))


def test_precision_and_recall_at_a_threshold():
    found = at_threshold(np.array(LABELS) == 1, np.array(PROBABILITIES)[:, 1], 0.5)
    assert (found.recall, found.precision) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert at_threshold(np.array([True]), np.array([0.2]), 0.5).precision is None
