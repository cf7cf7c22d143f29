"""Documents in step: tables rebuilt, commands parsed, notebooks clean, targets watched."""

import doctest
import json
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from imdb_samples import write_sample_parts

import compare_cuts
import download_prepare_dataset
import imdb_results
import long_texts
import make_table
import train_gpt
import train_linear
from imdb_results import RESULTS, read_positive, read_result
from run_notebooks import find_problems

FOLDER = Path(make_table.__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NOTEBOOKS = ("linear-baselines.ipynb", "comparison.ipynb")
MAIN = sorted(RESULTS.glob("*.json"))


def parser_of(script: str):
    if script == "train_encoder":
        pytest.importorskip("transformers", reason="an extra: requirements-extra.txt")
        pytest.importorskip("accelerate", reason="an extra: requirements-extra.txt")
        import train_encoder

        return train_encoder.parse_args
    modules = (compare_cuts, download_prepare_dataset, make_table, train_gpt, train_linear)
    return {module.__name__: module for module in modules}[script].parse_args


def commands() -> list[str]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    return re.findall(r"03_bonus_imdb-classification/(\w+\.py.*)", blocks)


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_is_understood(command):
    script, *arguments = shlex.split(command)
    parser_of(script.removesuffix(".py"))(arguments)  # an unknown option would end in SystemExit


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_every_result_states_what_it_is_and_how_to_get_it(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    script, *arguments = shlex.split(result["command"])
    parser_of(script.removesuffix(".py"))(arguments)
    assert {"model", "seed", "versions", "peak_memory_mb", "threads"} <= set(result)
    assert ("test" in result) == (path.parent.name not in ("trials", "cuts"))
    assert not any(word.startswith(("/", "~")) for word in arguments)


def test_the_readme_s_table_is_the_one_that_the_raw_files_give():
    assert make_table.make_table() in README


@pytest.mark.parametrize("path", MAIN, ids=lambda path: path.stem)
def test_stored_probabilities_give_the_stated_accuracy(path):
    result = read_result(path.stem)
    positive = read_positive(path.stem)
    assert result["test"]["num_examples"] == len(positive) == 25_000
    matrix = result["test"]["confusion_matrix"]
    # Rounding crosses one half nowhere; only where both classes are as likely may they differ.
    assert abs((positive > 0.5).sum() - (matrix[0][1] + matrix[1][1])) < 10


def test_nb_svm_is_where_it_was_published():
    assert abs(read_result("nb-svm")["test"]["accuracy"] - 0.9122) < 0.005


def test_linear_models_take_less_than_ten_minutes():
    seconds = [sum(read_result(name)["seconds"].values()) for name in train_linear.METHODS]
    assert sum(seconds) < 600


def test_strengths_are_those_that_did_best_on_validation():
    for name, method in train_linear.METHODS.items():
        if method.tried:
            accuracies = read_result(name, RESULTS / "trials")["accuracy_by_C"]
            assert max(accuracies, key=accuracies.get) == f"{method.C:g}"
            assert set(accuracies) == {f"{C:g}" for C in method.tried}


def test_results_are_small_and_name_no_machine():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    for path in RESULTS.rglob("*.json"):
        assert not re.search(r"/(?:tmp|home|root|work|Users)/", path.read_text(encoding="utf-8"))


def test_writing_the_table_changes_nothing_else(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "README.md"
    copy.write_text(README.replace("| majority |", "| guessing |"), encoding="utf-8")
    monkeypatch.setattr(make_table, "README", copy)
    assert make_table.main(["--write"]) == 0
    assert copy.read_text(encoding="utf-8") == README
    assert make_table.main(["--results", str(tmp_path)]) == 2
    assert "no result files" in capsys.readouterr().err


def test_figures_of_others_are_marked():
    table = make_table.make_table()
    for name, accuracy in make_table.PUBLISHED:
        assert f"| {name}, *published by others* | | {accuracy} |" in table


def test_a_result_without_its_memory_has_a_row():
    result = read_result("nb-svm") | {"peak_memory_mb": None}
    assert "| - | cpu |" in make_table.table_row(result)


def test_every_cut_read_the_same_long_reviews():
    result = read_result("gpt-mini-all", RESULTS / "cuts")
    trained = result["by_cut"][result["trained_cut"]]
    assert trained["only_this_right"] == trained["only_trained_right"] == 0
    for cut, figures in result["by_cut"].items():
        gained = figures["only_this_right"] - figures["only_trained_right"]
        more = (figures["accuracy"] - trained["accuracy"]) * result["num_examples"]
        assert gained == pytest.approx(more)
        assert (figures["pieces"] == result["num_examples"]) == (cut != "windows")
        assert (
            f"{figures['accuracy'] + 1e-9:.1%} by {'the ' * (cut in ('head', 'tail'))}{cut}"
            in README
        )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_executed_and_clean(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert find_problems(notebook) == []
    lengths = sorted(c.source.count("\n") + 1 for c in notebook.cells if c.cell_type == "code")
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[int(len(lengths) * 0.9)] <= 15
    assert lengths[-1] <= 30
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "cccc" not in kinds


def test_no_command_s_help_is_without_a_word_on_its_options(capsys):
    scripts = (
        "compare_cuts",
        "download_prepare_dataset",
        "make_table",
        "train_gpt",
        "train_linear",
    )
    for script in scripts:
        with pytest.raises(SystemExit) as stop:
            parser_of(script)(["--help"])
        assert stop.value.code == 0
    help_text = capsys.readouterr().out
    for option in ("--source", "--write", "--cut", "--resume", "--choose"):
        assert option in help_text


@pytest.mark.parametrize(
    "module", [download_prepare_dataset, imdb_results, long_texts, train_gpt, train_linear]
)
def test_examples_in_docstrings_hold(module):
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


def test_parts_can_be_handed_to_the_chapter_s_command(tmp_path):
    from message_files import read_messages

    write_sample_parts(tmp_path)
    messages = read_messages(tmp_path / "train.parquet", "text", "label")
    assert set(messages["label"]) == {"neg", "pos"}
