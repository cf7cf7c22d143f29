"""What readers are told: commands parse, links resolve, notebooks are clean, numbers hold.

Everything here looks at all README files, other pages and notebooks of the collection.
"""

import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import torch
from helpers import CHAPTER, run_command

import run_notebooks
import several_seeds
from command_line import config_from
from previous_chapters import GPTModel
from run_notebooks import PRIVATE, find_problems
from text_classifier import ClassifierConfig
from training import TrainConfig

TOP = CHAPTER.parent


def files(pattern: str) -> list[Path]:
    found = [*TOP.glob(pattern), *TOP.glob(f"0*/**/{pattern}")]
    return sorted(path for path in found if not re.search(r"[\\/]\.", str(path.relative_to(TOP))))


NOTEBOOKS = files("*.ipynb")
DOCUMENTS = files("*.md") + NOTEBOOKS
SCRIPTS = {path.stem: path for path in files("*.py")}
PYPROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
OPTIONAL = PYPROJECT["project"]["optional-dependencies"]
EXTRAS = str([packages for name, packages in OPTIONAL.items() if name != "chapter"])
CHAPTER_NOTEBOOKS = [path for path in NOTEBOOKS if path.parent == CHAPTER]


def for_each(name: str, paths: list[Path]):
    return pytest.mark.parametrize(name, paths, ids=lambda path: path.relative_to(TOP).as_posix())


@functools.cache
def read_notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]


FINDING_NOTEBOOKS = [  # of other folders, whose first cell finds the chapter's modules
    path for path in NOTEBOOKS if path.parent != CHAPTER and "FOLDER =" in code_of(path)[0].source
]


def prose_of(path: Path) -> str:
    if path.suffix == ".ipynb":
        cells = read_notebook(path).cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def without_code(markdown: str) -> str:
    """Markdown without what stands in backticks: that is shown, not followed."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL))


def printed(cells) -> str:
    """All that the cells' outputs say in words."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join(texts).replace("−", "-")


# --- Commands ------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[tuple[str, str]]:
    """(script, arguments) of the commands in blocks of code and in backticks."""
    code = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL) + re.findall("`(.+?)`", text)
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        yield from re.findall(r"(\w+)\.py((?: [^|&<>;]*)?)", line)


def all_commands() -> dict[str, set[str]]:
    """The arguments with which pages, notebooks and result files call each command."""
    calls = [call for path in DOCUMENTS for call in commands_in(prose_of(path))]
    for path in files("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "command" in content:
            calls += commands_in(f"`{content['command']}`")
    arguments: dict[str, set[str]] = {}
    for script, given in calls:
        if script in SCRIPTS and "def main(" in SCRIPTS[script].read_text(encoding="utf-8"):
            arguments.setdefault(script, set()).add(given)
    return arguments


def parse(script: str, arguments: list[str], monkeypatch) -> None:
    """Let a command understand its arguments, and do no more."""
    monkeypatch.syspath_prepend(SCRIPTS[script].parent)
    try:
        module = importlib.import_module(script)
    except ModuleNotFoundError as missing:
        if missing.name not in EXTRAS:
            raise
        pytest.skip(f"{missing.name} is an extra")
    # Of the module whose function does it: the encoders' command calls that of the GPTs'.
    does_it = module if hasattr(module, "run_command") else sys.modules["train_gpt"]
    monkeypatch.setattr(does_it, "run_command", lambda *_, **__: 0)
    assert module.main(arguments) == 0
    if {"parse_args", "RunConfig"} <= vars(module).keys():  # right each, but not together
        config_from(module.parse_args(arguments), module.RunConfig)


COMMANDS = all_commands()


@pytest.mark.parametrize("script", sorted(COMMANDS))
def test_every_quoted_command_is_understood(script, monkeypatch, capsys):
    for arguments in sorted({"--help", *COMMANDS[script]}):
        try:
            parse(script, shlex.split(arguments, comments=True), monkeypatch)
        except SystemExit as stop:
            error = capsys.readouterr().err
            if stop.code and "are required" not in error:  # prose may leave some out
                pytest.fail(f"{script}.py {arguments}: {error}")


# --- Links and pictures --------------------------------------------------------------------------


def anchors_of(path: Path) -> set[str]:
    """What a link to a section is called, by Jupyter or by GitHub."""
    headings = re.findall(r"^#+ +(.+?) *$", prose_of(path), re.MULTILINE)
    if path.suffix == ".ipynb":
        return {re.sub(r"[`*]", "", heading).replace(" ", "-") for heading in headings}
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@for_each("document", DOCUMENTS)
def test_links_lead_to_files_and_sections(document):
    text = without_code(prose_of(document))
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    targets += re.findall(r'\b(?:href|src)="([^"]+)"', text)
    for target in targets:
        if not re.match(r"[a-z]+:|\.\./\.\./actions/", target):  # GitHub's page of the tests
            name, _, anchor = target.partition("#")
            path = document.parent / name if name else document
            assert path.exists(), target
            assert not anchor or anchor in anchors_of(path), target


@for_each("document", DOCUMENTS)
def test_pictures_have_alt_text(document):
    text = without_code(prose_of(document))
    alts = re.findall(r"!\[([^\]]*)\]\(", text)
    for tag in re.findall(r"<img\b[^>]*>", text):
        alts += re.findall(r'\balt="([^"]*)"', tag) or [""]
    cells = code_of(document) if document in CHAPTER_NOTEBOOKS + FINDING_NOTEBOOKS else []
    for output in (output for cell in cells for output in cell.outputs):
        if "image/png" in output.get("data", {}):
            alts.append(output.metadata.get("image/png", {}).get("alt", ""))
    for alt in alts:
        assert len(alt.split()) >= 4, f"{alt!r}: say what the picture shows"


# --- Notebooks -----------------------------------------------------------------------------------


@for_each("path", NOTEBOOKS)
def test_notebook_is_saved_from_one_clean_run(path):
    notebook = read_notebook(path)
    assert find_problems(notebook) == []
    assert path.stat().st_size < 3_000_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert cell.source.strip(), "there is an empty cell"
        assert not PRIVATE.search(cell.source), cell.source
        assert set(cell.metadata) <= {"tags"}, cell.source


@for_each("path", CHAPTER_NOTEBOOKS + FINDING_NOTEBOOKS)
@pytest.mark.parametrize("folder", [CHAPTER, TOP, None], ids=["chapter", "top", "elsewhere"])
def test_first_cell_finds_the_modules_or_says_what_to_install(folder, path, tmp_path):
    cell = code_of(path)[0].source
    # -I -S: without this environment's packages, so that every module beside it is missing
    command = [sys.executable, "-I", "-S", "-c", cell]
    done = subprocess.run(command, cwd=folder or tmp_path, capture_output=True, text=True)
    says = done.stderr.strip().splitlines()[-1]
    assert ("text_classifier" in says) == (folder is None)
    assert "torch" in says
    assert re.search(r"pip install -r \S*requirements\S*\.txt", says)


def is_in(number: str, text: str) -> bool:
    """Whether a number stands in a text as a whole, not as a part of a longer one."""
    number = re.escape(number.replace("−", "-"))
    return re.search(rf"(?<![\d.,]){number}(?!\d|[.,]\d)", text) is not None


@for_each("path", NOTEBOOKS)
def test_bold_numbers_stand_near_the_cell_that_prints_them(path):
    cells = read_notebook(path).cells
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            text = without_code(cell.source)
            shown = printed(cells[max(0, i - 2) : i + 3])
            numbers = re.findall(r"\*\*([+\-−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)\s?%?\*\*", text)
            assert [number for number in numbers if not is_in(number, shown)] == [], text


def test_every_exercise_is_stated_and_solved():
    stated, solved = map(prose_of, (CHAPTER / "ch06.ipynb", CHAPTER / "exercise-solutions.ipynb"))
    exercises = re.findall(r"Exercise (6\.\d+): (.+?)\*\* \(.+?\)\. (.+)", stated)
    assert re.findall(r"^## (6\.\d+) (.+)\n\n\*(.+)\*", solved, re.M) == exercises
    assert len(exercises) >= 10


# --- One definition, one home; and the notebook's own definitions train ---------------------------


def tree_of(path: Path) -> list[ast.stmt]:
    """The statements of a module, or of a notebook's cells without IPython's own lines."""
    cells = [cell.source for cell in code_of(path)] if path.suffix == ".ipynb" else []
    source = "\n".join(cells) or path.read_text(encoding="utf-8")
    return ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)).body


def definitions(path: Path) -> dict[str, str]:
    """A module's or a notebook's functions and classes, without comments and layout."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name: ast.unparse(node) for node in tree_of(path) if isinstance(node, kinds)}


@for_each("path", CHAPTER_NOTEBOOKS)
def test_what_is_taught_is_what_the_modules_hold(path):
    homes = {}
    for module in CHAPTER.glob("*.py"):
        homes |= definitions(module)
    taught = definitions(path)
    for name in taught.keys() & homes.keys():
        assert taught[name] == homes[name]
    if path.stem == "ch06":
        assert len(taught.keys() & homes.keys()) >= 10


def taught_until(name: str) -> dict:
    """The chapter's own imports, definitions and CONSTANTS up to the definition of `name`."""
    namespace = {"__name__": "chapter"}
    defining = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    for node in tree_of(CHAPTER / "ch06.ipynb"):
        is_constant = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
        if isinstance(node, defining) or is_constant:
            exec(compile(ast.Module([node], []), "<chapter>", "exec"), namespace)
        if getattr(node, "name", None) == name:
            return namespace
    raise AssertionError(f"ch06.ipynb does not define {name}")


def train_as_taught(namespace: dict) -> list[float]:
    """The step losses of one epoch on 16 made-up messages, by the chapter's own training."""
    torch.manual_seed(0)
    cfg = {"vocab_size": 40, "context_length": 12, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
    about = ClassifierConfig("tiny", ("ham", "spam"), max_length=12)
    classifier = namespace["GPTClassifier"](GPTModel(cfg), about)
    sequences = [torch.randint(40, (3 + i % 5,)) for i in range(16)]
    messages = namespace["SpamDataset"](sequences, [i % 2 for i in range(16)])
    train, config = namespace["train_classifier_simple"], TrainConfig(num_epochs=1, batch_size=4)
    return train(classifier, messages, messages, config).step_losses


REPLACEMENTS = {  # of a name's own definition by one that must make itself felt
    "SpamDataset": lambda own: lambda sequences, labels: own([0 * x for x in sequences], labels),
    "collate": lambda own: lambda items: own([(0 * ids, label) for ids, label in items]),
    "GPTClassifier": lambda own: lambda decoder, about: own(decoder.requires_grad_(False), about),
    "calc_loss_batch": lambda own: lambda *args, **options: 0 * own(*args, **options),
    "train_step": lambda own: lambda *args, **options: 2 * own(*args, **options),
}


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_replacing_what_the_notebook_defines_changes_the_training(name):
    namespace = taught_until("train_classifier_simple")
    losses = train_as_taught(namespace)
    assert len(losses) == 4
    assert train_as_taught(namespace) == losses
    namespace[name] = REPLACEMENTS[name](namespace[name])
    assert train_as_taught(namespace) != losses


# --- Results, and the project ---------------------------------------------------------------------


def test_tables_are_those_that_the_raw_files_give(monkeypatch, tmp_path):
    assert several_seeds.make_table() in prose_of(CHAPTER / "README.md")
    folder = TOP / "03_bonus_imdb-classification"
    monkeypatch.syspath_prepend(folder)
    of_reviews = importlib.import_module("make_table")
    assert of_reviews.make_table(of_reviews.read_results()) in prose_of(folder / "README.md")
    assert of_reviews.main(["--results", str(tmp_path)]) == 2


def test_quoted_differences_are_those_of_the_raw_files():
    names = ["1-default", "2-without-continued-pretraining", "3-random-weights", "5-smollm2"]
    default, bare, random, smollm2 = map(several_seeds.read_result, names)
    for pair in ((default, bare), (bare, random), (smollm2, default), (smollm2, None)):
        assert several_seeds.paired_difference(*pair) in prose_of(CHAPTER / "README.md")
    for row in map(several_seeds.table_row, (default, smollm2)):
        for name in ("test accuracy", "95% interval of the mean", "n-grams"):
            assert row[name] in prose_of(TOP / "README.md")


def test_every_module_of_the_chapter_is_installed():
    modules = {path.stem for path in CHAPTER.glob("*.py")} - {"tests"}
    assert modules == set(PYPROJECT["tool"]["setuptools"]["py-modules"])


# --- run_notebooks.py -----------------------------------------------------------------------------


@pytest.fixture
def run_one(tmp_path, monkeypatch):
    """Make a notebook of some cells and execute it in place; the exit status, and what it is."""
    monkeypatch.setattr(run_notebooks, "fetch", lambda file: None)

    def run(*sources: str) -> tuple[int, nbformat.NotebookNode]:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
        status = run_notebooks.main([str(tmp_path / "a.ipynb")])
        return status, nbformat.read(tmp_path / "a.ipynb", as_version=4)

    return run


def test_notebook_is_executed_in_its_folder(run_one):
    status, notebook = run_one("import os\nx = 6\nprint(x)", "x * 7, os.path.exists('a.ipynb')")
    assert status == 0
    assert printed(notebook.cells) == "6\n\n(42, True)"
    assert find_problems(notebook) == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('careful', file=sys.stderr)", "careful"),
        ("object()", " at 0x"),
        ("import os; os._exit(1)", "Kernel died"),
    ],
)
def test_notebook_that_is_not_clean_is_not_saved(run_one, capsys, source, complaint):
    status, notebook = run_one("x = 6", source)
    assert status == 2
    assert complaint in capsys.readouterr().err
    assert notebook.cells[0].execution_count is None


def test_private_paths_are_told_from_addresses():
    private = ("saved in /" + "home/ann/x", r"C:\Users\ann\x", "<object at 0x7f3a2b1c>")
    assert all(map(PRIVATE.search, (*private, "WindowsPath('C:/Users/ann/x')")))
    assert not any(map(PRIVATE.search, ("https://example.org/home/ann", "and/or/tmp/x", "1/2")))


@pytest.mark.slow
@for_each("path", CHAPTER_NOTEBOOKS)
def test_notebook_runs_and_reports_the_same(path, tmp_path):
    done = run_command("run_notebooks.py", path, "--output", tmp_path, timeout=3600)
    assert done.returncode == 0, done.stderr[-5000:]
    fresh, saved = (  # accuracies in percent by name, as the exercises' `report` prints them
        dict(re.findall(r"^(.+): (\d+\.\d)%  \[", printed(code_of(p)), re.M))
        for p in (tmp_path / path.name, path)
    )
    for name in fresh.keys() & saved.keys():  # another processor rounds otherwise
        assert float(fresh[name]) == pytest.approx(float(saved[name]), abs=4), name
