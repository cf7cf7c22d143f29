"""The three notebooks: their form, what they promise, and a fresh run of each."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles

import nbformat
import pytest
from conftest import CHAPTER, run_command

import run_notebooks
from gpt_download import SMS_SPAM_ZIP, DownloadError, fetch

NAMES = [path.name for path in run_notebooks.CHAPTER_NOTEBOOKS]
MODULES = sorted(CHAPTER.glob("*.py"))
MAX_BYTES = 3_000_000
HOME = "home"  # put together below, so that no path of a machine stands in this file either

# The chapter's sections in order, each by words that its heading must hold.
SECTIONS = [
    "kinds of fine-tuning",
    "data",
    "loaders|batches",
    "pretrained",
    "head",
    "loss",
    "train",
    "evaluat|accuracy",
    "language model",
    "using|use",
    "summary",
]
EXERCISES = [
    "6.1 Padding to the full context",
    "6.2 The first token instead of the last",
    "6.3 Mean pooling",
    "6.4 Training the last two blocks",
    "6.5 Training all layers",
    "6.6 Class weights on the full unbalanced data",
    "6.7 A threshold for at most one lost message in a thousand",
    "6.8 LoRA by hand",
    "6.9 Another data set: film review sentences",
    "6.10 Three or more classes",
]


@pytest.fixture(scope="module")
def notebooks() -> dict[str, nbformat.NotebookNode]:
    return {name: run_notebooks.read_notebook(CHAPTER / name) for name in NAMES}


@pytest.fixture(params=NAMES)
def notebook(request, notebooks) -> nbformat.NotebookNode:
    """Each of the three in turn."""
    return notebooks[request.param]


def code_cells(notebook) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def headings(notebook, level: int) -> list[str]:
    return re.findall(rf"^#{{{level}}} +(.+?) *$", prose(notebook), flags=re.MULTILINE)


def printed(cells) -> str:
    """All that the cells' outputs say in words."""
    outputs = (output for cell in cells for output in cell.get("outputs", []))
    return "\n".join(map(run_notebooks.output_text, outputs))


# ---------------------------------------------------------------------------------------------
# Saved outputs
# ---------------------------------------------------------------------------------------------


def test_saved_outputs_come_from_one_clean_run(notebook):
    assert run_notebooks.find_problems(notebook) == []
    assert all(cell.source.strip() for cell in notebook.cells), "there is an empty cell"


def test_metadata_says_only_that_it_is_python(notebook):
    assert notebook.metadata == {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }


def test_no_path_of_a_machine_in_code_or_prose(notebook):
    for cell in notebook.cells:
        assert run_notebooks.MACHINE_PATH.search(cell.source) is None, cell.source


def test_pictures_are_shown(notebook):
    kinds = {k for c in code_cells(notebook) for o in c.outputs for k in o.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}, "no output holds a picture"


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small(name):
    assert (CHAPTER / name).stat().st_size < MAX_BYTES


# ---------------------------------------------------------------------------------------------
# Pictures and links in the prose
# ---------------------------------------------------------------------------------------------


def without_code(markdown: str) -> str:
    """Markdown without what stands in backticks: that is shown, not followed."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))


def pictures(markdown: str) -> list[tuple[str, str]]:
    """(alt text, source) of each picture, in Markdown or HTML."""
    found = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)[^)]*\)", markdown)
    for tag in re.findall(r"<img\b[^>]*>", markdown):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        found.append((attributes.get("alt", ""), attributes.get("src", "")))
    return found


def test_every_picture_has_alt_text_and_is_there(notebook):
    for alt, source in pictures(without_code(prose(notebook))):
        assert len(alt.split()) >= 4, f"{source}: say in the alt text what the picture shows"
        assert not source.startswith("attachment:"), f"{source}: keep pictures as files"
        if "://" not in source:
            assert (CHAPTER / source).is_file(), source


def test_links_to_files_and_sections_resolve(notebook):
    text = without_code(prose(notebook))
    anchors = {
        re.sub(r"[`*]", "", h).replace(" ", "-") for n in (1, 2, 3) for h in headings(notebook, n)
    }
    targets = re.findall(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)", text)
    targets += re.findall(r'<a\b[^>]*href="([^"]+)"', text)
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        assert not path or (CHAPTER / path).exists(), target
        assert path or anchor in anchors, target


# ---------------------------------------------------------------------------------------------
# Rhythm
# ---------------------------------------------------------------------------------------------


def test_code_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert median(lengths) <= 6
    assert quantiles(lengths, n=10)[-1] <= 15
    assert max(lengths) <= 30


def test_never_more_than_three_code_cells_without_prose(notebook):
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)  # "mcmccm..."
    assert "cccc" not in kinds


def test_lines_of_code_fit_on_the_page(notebook):
    long = [line for c in code_cells(notebook) for line in c.source.splitlines() if len(line) > 100]
    assert long == []


# ---------------------------------------------------------------------------------------------
# One definition, one home
# ---------------------------------------------------------------------------------------------


def definitions(source: str) -> dict[str, str]:
    """Top-level functions and classes by name, as their syntax trees in words."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name: ast.dump(node) for node in ast.parse(source).body if isinstance(node, kinds)}


def as_python(cell) -> str:
    """A cell's source without the lines that only IPython understands."""
    return re.sub(r"^[%!].*$", "", cell.source, flags=re.MULTILINE)


def test_what_the_chapter_defines_equals_the_modules(notebooks):
    homes = {}
    for path in MODULES:
        homes |= definitions(path.read_text(encoding="utf-8"))
    taught = {}
    for cell in code_cells(notebooks["ch06.ipynb"]):
        taught |= definitions(as_python(cell))
    shared = sorted(taught.keys() & homes.keys())
    assert len(shared) >= 10, f"only {shared} are taught"
    assert [name for name in shared if taught[name] != homes[name]] == []


def test_definitions_are_compared_in_earnest():
    assert definitions("def f(x):\n    return x  # one") == definitions("def f( x ): return x")
    assert definitions("def f(x): return x") != definitions("def f(x): return -x")


# ---------------------------------------------------------------------------------------------
# Sections and exercises
# ---------------------------------------------------------------------------------------------


def test_the_chapter_has_all_sections_in_order(notebooks):
    rest = iter(headings(notebooks["ch06.ipynb"], level=2))
    for words in SECTIONS:
        assert any(re.search(words, heading, re.IGNORECASE) for heading in rest), words


def test_every_exercise_is_stated_and_solved(notebooks):
    titles = headings(notebooks["exercise-solutions.ipynb"], level=2)
    assert [title for title in titles if re.match(r"6\.\d", title)] == EXERCISES
    chapter = prose(notebooks["ch06.ipynb"])
    for exercise in EXERCISES:
        title = exercise.split(" ", 1)[1]
        assert title in chapter, f"the chapter does not state the exercise {exercise!r}"


def test_every_solution_was_executed(notebooks):
    solved, section = {}, None
    for cell in notebooks["exercise-solutions.ipynb"].cells:
        if cell.cell_type == "markdown":
            for title in re.findall(r"^## (.+)$", cell.source, flags=re.MULTILINE):
                section = title
        elif section in EXERCISES:
            solved.setdefault(section, []).append(cell)
    assert list(solved) == EXERCISES
    for title, cells in solved.items():
        assert all(cell.execution_count for cell in cells), title
        assert printed(cells).strip(), f"{title} shows no result"


# ---------------------------------------------------------------------------------------------
# Numbers in the prose
# ---------------------------------------------------------------------------------------------

BOLD_NUMBER = re.compile(r"\*\*([+\-−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s?%?\*\*")
CELLS_AWAY = 2


def number_is_in(number: str, text: str) -> bool:
    """Whether the number stands in the text as a whole, not as a part of a longer one."""
    number = re.escape(number.replace("−", "-"))
    return re.search(rf"(?<![\d.,]){number}(?!\d|[.,]\d)", text.replace("−", "-")) is not None


def test_bold_numbers_stand_next_to_the_cell_that_shows_them(notebook):
    missing = []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            nearby = notebook.cells[max(0, i - CELLS_AWAY) : i + CELLS_AWAY + 1]
            shown = printed(nearby)
            numbers = BOLD_NUMBER.findall(without_code(cell.source))
            missing += [
                (number, cell.source[:80]) for number in numbers if not number_is_in(number, shown)
            ]
    assert missing == []


def test_numbers_are_compared_as_a_whole():
    assert number_is_in("97.3", "accuracy 97.3%, more")
    assert number_is_in("-1.2", "difference −1.2.")
    assert not number_is_in("97.3", "197.3")
    assert not number_is_in("97", "97.3")
    assert BOLD_NUMBER.findall("**97.3%** and **0.12**, not **Figure 6**") == ["97.3", "0.12"]


# ---------------------------------------------------------------------------------------------
# A fresh run
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict[str, nbformat.NotebookNode]:
    """The three notebooks after one run of the documented command; the saved ones stay."""
    try:
        fetch(SMS_SPAM_ZIP)
    except DownloadError:
        pytest.skip("the SMS Spam Collection is neither in the cache nor to be fetched")
    folder = tmp_path_factory.mktemp("executed")
    before = {name: (CHAPTER / name).read_bytes() for name in NAMES}
    done = subprocess.run(
        [sys.executable, CHAPTER / "run_notebooks.py", "--output", folder],
        capture_output=True,
        encoding="utf-8",
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert {name: (CHAPTER / name).read_bytes() for name in NAMES} == before
    return {name: run_notebooks.read_notebook(folder / name) for name in NAMES}


def reported_accuracies(notebook) -> dict[str, float]:
    """What the solutions' `report` printed: accuracies by name."""
    lines = re.findall(r"^(.+): (\d+\.\d)%  \[", printed(notebook.cells), flags=re.MULTILINE)
    return {name: float(percent) / 100 for name, percent in lines}


@pytest.mark.slow
def test_fresh_outputs_are_clean(executed):
    for name, notebook in executed.items():
        assert run_notebooks.find_problems(notebook) == [], name


@pytest.mark.slow
def test_fresh_solutions_reach_what_they_should(executed):
    accuracy = reported_accuracies(executed["exercise-solutions.ipynb"])
    for name in (
        "last block, last real token",
        "last block, mean of all tokens",
        "last two blocks",
        "all layers",
        "LoRA, rank 8, queries and values",
        "unbalanced test: class weights",
    ):
        assert accuracy[name] > 0.9, name
    assert 0.5 < accuracy["last block, first token"] < accuracy["last block, last real token"] - 0.1
    if "reviews: last block" in accuracy:
        assert accuracy["reviews: last block"] > 0.55
        assert accuracy["four classes: last block"] > 0.5


@pytest.mark.slow
def test_fresh_solutions_show_the_padding_failure_and_its_cure(executed):
    text = printed(executed["exercise-solutions.ipynb"].cells)
    curves = {
        name: [int(share) for share in re.findall(r"(\d+)%", line)]
        for name, line in re.findall(
            r"^(last real token|last position) +(.*%)$", text, re.MULTILINE
        )
    }
    assert len(set(curves["last real token"])) == 1
    assert curves["last position"][-1] < curves["last position"][0]


@pytest.mark.slow
def test_fresh_export_agrees(executed):
    text = printed(executed["load-finetuned-model.ipynb"].cells)
    now, then = re.search(r"now: +(.*)\nthen: +(.*)", text).groups()
    assert now == then
    pytest.importorskip("transformers")
    same, total = re.search(r"(\d+) of (\d+) messages become the same tokens", text).groups()
    assert same == total
    assert float(re.search(r"largest difference of \d+ probabilities: (\S+)", text)[1]) < 1e-4


# ---------------------------------------------------------------------------------------------
# The command itself
# ---------------------------------------------------------------------------------------------


def make_notebook(path: Path, *sources: str) -> Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_command_saves_in_place_with_clean_outputs(tmp_path):
    path = make_notebook(tmp_path / "a.ipynb", "x = 6", "print(x)\nprint(x * 7)")
    done = run_command("run_notebooks.py", path)
    assert done.returncode == 0, done.stderr
    notebook = run_notebooks.read_notebook(path)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]
    assert printed(notebook.cells) == "6\n42\n"
    assert all(not cell.metadata for cell in notebook.cells)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ipynb"]
    assert run_command("run_notebooks.py", path, "--check").returncode == 0


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('careful', file=sys.stderr)", "careful"),
        (
            "import pathlib; print(pathlib.Path.home() / 'x', '/' + 'tmp/x')",
            "a path of this machine",
        ),
        ("object()", "an address that changes"),
        ("import os; os._exit(1)", "the kernel died"),
    ],
)
def test_command_reports_what_is_wrong_and_saves_nothing(tmp_path, source, complaint):
    path = make_notebook(tmp_path / "a.ipynb", "x = 6", source)
    before = path.read_bytes()
    done = run_command("run_notebooks.py", path)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert source in done.stderr or source.split("\n")[0][:40] in done.stderr or "died" in complaint
    assert path.read_bytes() == before


def test_command_checks_without_executing(tmp_path):
    path = make_notebook(tmp_path / "a.ipynb", "print(1)")
    done = run_command("run_notebooks.py", path, "--check")
    assert done.returncode == 1
    assert "its count is None, not 1" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["missing.ipynb"], ["README.md"], ["--check", "--output", "x"], ["--no-such-option"]],
)
def test_command_explains_wrong_options(arguments):
    done = run_command("run_notebooks.py", *arguments)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"saved in /{HOME}/ann/x", f"/{HOME}/ann/x"),
        (r"C:\Users\ann\x", r"C:\Users\ann\x"),
        ("WindowsPath('C:/Users/ann/x')", "C:/Users/ann/x"),
        (r"'C:\\Users\\ann'", r"C:\\Users\\ann"),
        ("https://example.org/home/ann", None),
        ("and/or/tmp/x", None),
        ("1/2", None),
    ],
)
def test_paths_of_machines_are_told_from_addresses(text, found):
    match = run_notebooks.MACHINE_PATH.search(text)
    assert (match.group() if match else None) == found
