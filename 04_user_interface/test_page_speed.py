"""What the page must reach, on an idle machine with two cores; run with `-m slow`."""

import json
from pathlib import Path
from statistics import median

import pytest

pytest.importorskip("gradio", reason="needs requirements-extra.txt")

import measure


@pytest.mark.slow
def test_the_page_is_fast_enough(folder):
    result = measure.measure(folder)
    assert result["start_seconds"] < 10
    assert median(result["single_seconds"]) < 0.3
    assert median(result["together_seconds"]) < 1


def test_the_readmes_table_is_the_one_that_the_measurements_give():
    result = json.loads(measure.RESULTS.read_text(encoding="utf-8"))
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    assert measure.make_table(result) in readme
