"""The notebook: clean outputs, short cells, numbers in the prose that a cell shows."""

import re
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent
COMMAND = FOLDER.parent / "01_main-chapter-code" / "run_notebooks.py"
PATH = FOLDER / "experiments.ipynb"
NUMBER = re.compile(r"\*\*([+\-−]?\d[\d,]*(?:\.\d+)?)\s?%?\*\*")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells) -> str:
    """All that the cells' outputs say in words."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in outputs]
    return "\n".join(texts).replace("−", "-")


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, COMMAND, *arguments], capture_output=True, text=True)


def test_saved_outputs_come_from_one_clean_run():
    done = run("--check", PATH)
    assert done.returncode == 0, done.stderr


def test_code_cells_are_short_and_explained(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert median(lengths) <= 6
    assert quantiles(lengths, n=10)[-1] <= 15
    assert max(lengths) <= 30
    assert "cccc" not in "".join(cell.cell_type[0] for cell in notebook.cells)


def test_bold_numbers_stand_next_to_the_cell_that_shows_them(notebook):
    missing, found = [], 0
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            shown = printed(notebook.cells[max(0, i - 2) : i + 3])
            for number in NUMBER.findall(cell.source):
                found += 1
                exact = re.escape(number.replace("−", "-"))
                if not re.search(rf"(?<![\d.,]){exact}(?!\d|[.,]\d)", shown):
                    missing.append((number, cell.source[:60]))
    assert missing == []
    assert found >= 4


def test_the_story_shows_the_figures(notebook):
    pictures = [
        out for c in code_cells(notebook) for out in c.outputs if "image/png" in out.get("data", {})
    ]
    assert len(pictures) >= 4
    assert PATH.stat().st_size < 1_000_000


@pytest.mark.slow
def test_a_fresh_run_prints_the_same(notebook, tmp_path):
    done = run("--output", tmp_path, PATH)
    assert done.returncode == 0, done.stderr
    fresh = nbformat.read(tmp_path / PATH.name, as_version=4)
    assert printed(code_cells(fresh)) == printed(code_cells(notebook))
