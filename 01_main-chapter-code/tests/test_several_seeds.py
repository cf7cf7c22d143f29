"""several_seeds.py: every run is kept, differences are paired, wrong options cost no work."""

import json
from pathlib import Path

import pytest
from helpers import fails

import several_seeds

QUICK = ["--model", "gpt-mini", "--trainable", "head", "--num-epochs", "1"]
QUICK += ["--continued-pretraining-epochs", "0"]


@pytest.fixture
def run_two(tmp_path, messages_csv):
    """Runs two seeds; gives the exit status, and the file that was written."""

    def run() -> tuple[int, Path]:
        arguments = ["run", "trial", "--seeds", "1", "2", "--results", str(tmp_path / "new")]
        status = several_seeds.main([*arguments, "--data", str(messages_csv), *QUICK])
        [path] = (tmp_path / "new").iterdir()
        return status, path

    return run


def test_every_run_is_kept_and_averaged(run_two):
    status, path = run_two()
    assert status == 0
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert [run["seed"] for run in runs] == [1, 2]
    mean = sum(run["test"]["accuracy"] for run in runs) / 2
    assert f"| {mean:.1%} " in several_seeds.make_table(path.parent)


def test_finished_seeds_are_kept_when_the_next_one_fails(run_two, monkeypatch):
    fine_tune = several_seeds.fine_tune

    def fail_at_2(config, **options):
        if config.seed == 2:
            raise OSError("the disk is full")
        return fine_tune(config, **options)

    monkeypatch.setattr(several_seeds, "fine_tune", fail_at_2)
    status, path = run_two()
    assert status == 1
    [run] = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert run["seed"] == 1


def result(*accuracies: float, first_seed: int = 1, num_test: int = 100) -> dict:
    runs = [
        {
            "seed": first_seed + i,
            "data": "d",
            "test": {"accuracy": a, "num_examples": num_test},
            "ngram_baseline": None,
        }
        for i, a in enumerate(accuracies)
    ]
    return {"command": "c", "runs": runs}


def test_differences_are_paired_by_seed():
    difference = several_seeds.paired_difference(result(0.9, 0.8, 0.7), result(0.8, 0.7, 0.6))
    assert difference == "10.0 points (10.0 to 10.0)"
    for other in ({"first_seed": 2}, {"num_test": 200}):
        with pytest.raises(several_seeds.DataError, match="cannot be paired"):
            several_seeds.paired_difference(result(0.9, 0.8), result(0.9, 0.8, **other))


def test_row_without_a_baseline_has_a_dash():
    assert several_seeds.table_row(result(0.5, 0.5))["n-grams"] == "–"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["compare", "absent"], "absent.json: there is no such result"),
        (["run", "there", "--seeds", "1", "2"], "there.json is there already"),
        (["run", "a/b", "--seeds", "1", "2"], "'a/b'"),
        (["run", "a", "--seeds", "1", "1"], "each once"),
        (["run", "a", "--seeds", "1", "2", "--output", "x"], "--output"),
        (["run", "a", "--seeds", "1", "2", "--seed", "3"], "--seed"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_the_work_begins(
    tmp_path, capsys, monkeypatch, arguments, complaint
):
    monkeypatch.setattr(several_seeds, "fine_tune", None)
    monkeypatch.setattr(several_seeds, "RESULTS", tmp_path)
    (tmp_path / "there.json").touch()
    assert complaint in fails(several_seeds, capsys, *arguments)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "null", '{"runs": [{"seed": 1}]}'])
def test_a_damaged_result_is_named(tmp_path, capsys, content):
    (tmp_path / "name.json").write_text(content, encoding="utf-8")
    for arguments in (["table"], ["compare", "name"]):
        said = fails(several_seeds, capsys, *arguments, "--results", tmp_path)
        assert str(tmp_path) in said
        assert "damaged" in said
