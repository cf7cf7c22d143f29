"""The notebooks: small steps with words between them, clean outputs, sentences of their own."""

import statistics
from pathlib import Path

import pytest

import run_notebooks

NOTEBOOKS = sorted(Path(__file__).parent.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return run_notebooks.read_notebook(request.param)


def test_cells_are_short_and_explained(notebook):
    code = [cell.source.count("\n") + 1 for cell in notebook.cells if cell.cell_type == "code"]
    assert statistics.median(code) <= 6
    assert sorted(code)[int(0.9 * len(code))] <= 15
    assert max(code) <= 30
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in notebook.cells)
    assert "cccc" not in kinds


def test_readers_predict_and_check_themselves(notebook):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose.count("**Predict") >= 1
    assert prose.count("**Check yourself.**") == prose.count("<details><summary>Answer") >= 2


def test_saved_outputs_are_those_of_one_clean_run(notebook):
    if not any(cell.get("outputs") for cell in notebook.cells):
        pytest.skip("not executed yet: run_all.sh does")
    assert run_notebooks.find_problems(notebook) == []
