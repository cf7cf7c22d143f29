"""What the page must reach, on an idle machine with two cores; run with `-m slow`."""

import statistics
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs requirements-extra.txt")

import measure
from trial_page import made_up_csv, train_small

README = Path(__file__).parent / "README.md"


@pytest.mark.slow
def test_the_page_is_fast_enough(tmp_path):
    folder = train_small(tmp_path / "classifier", made_up_csv(tmp_path / "messages.csv"))
    result = measure.measure(folder)
    assert result["start_seconds"] < 10
    assert statistics.median(result["single_seconds"]) < 0.3
    assert statistics.median(result["together_seconds"]) < 1


def test_the_readmes_table_is_the_one_that_the_figures_give():
    assert measure.make_table() in README.read_text(encoding="utf-8")


def test_a_page_that_does_not_start_is_no_traceback(tmp_path, capsys):
    assert measure.main(["run", str(tmp_path / "none")]) == 1
    assert "did not start: it ended with exit status 2" in capsys.readouterr().err
