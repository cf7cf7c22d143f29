"""Two processes on one output: the second is refused in a sentence and writes nothing."""

import pytest
from helpers import CHAPTER, fails

from command_line import run_command
from files import locked

# By command: its arguments, and the output that it holds while it runs, both in a folder of ours.
HOLDING = {
    "classify": (["no folder", "--file", "in.csv", "--output", "{}/out.csv"], "out.csv"),
    "several_seeds": (["run", "name", "--seeds", "1", "2", "--results", "{}"], "name.json"),
    "additional_experiments": (["--suite", "main", "--seeds", "2", "--results", "{}"], "main-2"),
    "make_tables": (["--results", "{}/results"], "results"),
    "domain_shift": (["run", "--results", "{}/results"], "results"),
    "altered_messages": (["run", "--results", "{}/results"], "results"),
    "benchmark": (["infer", "--output", "{}/benchmark"], "benchmark"),
    "classify_with_api": (["--model", "any", "--output", "{}/answers"], "answers"),
    "download_prepare_dataset": (["--output", "{}/reviews"], "reviews"),
    "train_linear": (["--results", "{}"], "linear"),
    "compare_cuts": (["name", "--results", "{}"], "cuts/name.json"),
    "pretrain": (["--output", "{}/mini"], "mini"),
}
# Of finetune.py, the test stands in test_run_folder.py.


@pytest.mark.parametrize("script", HOLDING)
def test_a_second_process_is_refused_and_writes_nothing(script, tmp_path, monkeypatch, capsys):
    arguments, output = HOLDING[script]
    monkeypatch.syspath_prepend(next(CHAPTER.parent.glob(f"0*/**/{script}.py")).parent)
    command = pytest.importorskip(script, reason="needs its folder's requirements-extra.txt")
    (tmp_path / output).parent.mkdir(exist_ok=True)
    with locked(tmp_path / output):
        before = sorted(tmp_path.rglob("*"))
        said = fails(command, capsys, *(argument.format(tmp_path) for argument in arguments))
        assert "another process is writing there" in said
        assert sorted(tmp_path.rglob("*")) == before


def test_a_command_holds_its_output_from_first_to_last_and_then_lets_go(tmp_path):
    def work() -> None:
        with pytest.raises(ValueError, match="another process"), locked(tmp_path / "out"):
            pass

    for _ in range(2):
        assert run_command("x.py", work, output=tmp_path / "out") == 0
    assert list(tmp_path.iterdir()) == []
