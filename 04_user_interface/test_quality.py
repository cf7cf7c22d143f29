"""What a threshold costs on the saved test predictions, and whose predictions they are."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("gradio", reason="needs requirements-extra.txt")

from quality import at_threshold, read_metrics


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1), st.floats(0, 1))
def test_what_is_missed_and_lost_is_counted(pairs, threshold):
    pairs = [(True, 0.5), *pairs]
    found = at_threshold(*map(np.array, zip(*pairs)), threshold)
    positive = [score for is_positive, score in pairs if is_positive]
    negative = [score for is_positive, score in pairs if not is_positive]
    assert found.num_missed == sum(score < threshold for score in positive)
    assert found.num_lost == sum(score >= threshold for score in negative)
    caught = len(positive) - found.num_missed
    assert found.recall == caught / len(positive)
    if caught + found.num_lost:
        assert found.precision == caught / (caught + found.num_lost)
    else:
        assert math.isnan(found.precision)


def test_only_metrics_of_this_classifier_are_read(tmp_path):
    assert read_metrics(tmp_path, {"accuracy": 1}) is None
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"accuracy": 1}}))
    assert read_metrics(tmp_path, {"accuracy": 1}) == {"test": {"accuracy": 1}}
    assert read_metrics(tmp_path, {"accuracy": 0.5}) is None
