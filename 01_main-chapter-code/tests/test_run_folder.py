"""The folder that finetune.py writes: overwritten only when told, whole, resumed bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import (
    CHAPTER,
    command_environment,
    file_size_limit,
    made_up_messages,
    write_csv,
)
from safetensors.torch import load_file
from test_finetune import QUICK, fails, one_thread, outcome, train

import fine_tuning
import finetune
from classifier_folder import open_classifier

__all__ = ["one_thread"]  # the fixture


def check_folder_is_whole(folder: Path) -> None:
    """Every file that carries its final name can be read to the end."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict), path
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.suffix == ".png":
            raw = path.read_bytes()
            assert raw.startswith(b"\x89PNG"), path
            assert b"IEND" in raw[-12:], path
        else:
            assert path.suffix in (".partial", ".lock"), path
    if (folder / "config.json").exists():
        open_classifier(folder)


def test_an_output_folder_that_cannot_be_written_is_named(messages_csv, tmp_path, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine", encoding="utf-8")
    for output in (in_the_way, in_the_way / "below"):
        said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK)
        assert f"--output {output}" in said
        assert "choose another" in said
    assert in_the_way.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_output_folder_is_named(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    output.chmod(0o555)
    said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK)
    output.chmod(0o755)
    assert f"--output {output}" in said
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("room", [100, 15_000, 1_000_000])
def test_a_full_disk_leaves_no_half_and_the_run_can_go_on(messages_csv, tmp_path, capsys, room):
    """The room suffices for nothing, for the checkpoint, or for all but the weights."""
    output = tmp_path / "out"
    with file_size_limit(room):
        fails(capsys, "--data", messages_csv, "--output", output, *QUICK, status=1)
    check_folder_is_whole(output)
    assert not list(output.glob("*.partial"))
    assert not (output / "config.json").exists()
    resumed = train(messages_csv, output, *(["--resume"] if room > 100 else []))
    expected = train(messages_csv, tmp_path / "undisturbed")
    assert outcome(resumed, output) == outcome(expected, tmp_path / "undisturbed")


def test_a_classifier_is_replaced_only_when_told(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    train(messages_csv, output)
    before = {path: path.read_bytes() for path in output.iterdir()}
    arguments = ("--data", messages_csv, "--output", output, *QUICK, "--seed", "5")
    said = fails(capsys, *arguments)
    for part in ("holds a classifier", "--output", "--overwrite", "--resume"):
        assert part in said
    assert {path: path.read_bytes() for path in output.iterdir()} == before
    second = train(messages_csv, output, "--seed", "5", "--overwrite")
    expected = train(messages_csv, tmp_path / "fresh", "--seed", "5")
    assert outcome(second, output) == outcome(expected, tmp_path / "fresh")


def test_a_second_process_on_the_same_folder_is_refused(messages_csv, tmp_path, capsys):
    with fine_tuning.RunFolder(tmp_path / "out", {}):
        arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK)
        assert "another process is writing there" in fails(capsys, *arguments)
    train(messages_csv, tmp_path / "out")


# --- stopped and resumed -----------------------------------------------------------------------

LONGER = ("--trainable", "last_block", "--num-epochs", "4", "--patience", "3", "--dropout", "0.1")

KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
import finetune

name, moment, countdown = sys.argv[1], sys.argv[2], int(sys.argv[3])
replace = Path.replace

def replace_or_die(self, target):
    global countdown
    countdown -= Path(target).name == name
    if countdown == 0 and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if countdown == 0 and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Path.replace = replace_or_die
finetune.main(sys.argv[4:])
"""

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict]:
    """A file of messages, and what a run over it leads to that nobody disturbs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_csv(folder / "messages.csv", made_up_messages())
    return data, outcome(train(data, folder / "out", *LONGER), folder / "out")


def resume(data: Path, output: Path) -> dict:
    return outcome(train(data, output, *LONGER, "--resume"), output)


@needs_kill
@pytest.mark.parametrize(
    ("name", "moment", "count"),
    [
        ("checkpoint.safetensors", "before", 2),
        ("metrics.json", "after", 1),
        ("model.safetensors", "after", 1),
        ("config.json", "after", 1),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path, name, moment, count):
    data, expected = undisturbed
    output = tmp_path / "out"
    arguments = ("--data", data, "--output", output, *QUICK, *LONGER)
    script = [sys.executable, "-c", KILLED_AT_A_RENAME, name, moment, count, *arguments]
    done = subprocess.run(
        list(map(str, script)), env=command_environment(), cwd=CHAPTER, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_folder_is_whole(output)
    assert resume(data, output) == expected
    check_folder_is_whole(output)


MARKS = (pytest.mark.slow, pytest.mark.repeated)
LATE = [pytest.param(seed, marks=MARKS) for seed in range(1, 30)]


@needs_kill
@pytest.mark.parametrize("seed", [0, *LATE])
def test_a_run_killed_at_any_time_goes_on_to_the_same_result(undisturbed, tmp_path, seed):
    """Killed up to two seconds after its first checkpoint: in an epoch, or while it writes."""
    data, expected = undisturbed
    output = tmp_path / "out"
    arguments = ("--data", data, "--output", output, *QUICK, *LONGER)
    process = subprocess.Popen(
        [sys.executable, str(CHAPTER / "finetune.py"), *map(str, arguments)],
        env=command_environment(),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while not (output / "checkpoint.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0, 2))
    process.kill()
    process.wait()
    check_folder_is_whole(output)
    assert resume(data, output) == expected
    assert {path.suffix for path in output.iterdir()} == {".json", ".png", ".safetensors"}


def test_ctrl_c_says_how_to_go_on(messages_csv, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "train_classifier_simple", interrupted)
    arguments = ["--data", str(messages_csv), "--output", str(tmp_path / "out"), *QUICK]
    assert finetune.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err


def stop_before_the_end(*arguments) -> None:
    """A run that has only its checkpoint left to show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "predict_logits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune.main(list(map(str, arguments)))


def test_an_unfinished_run_is_gone_on_with_only_when_told(messages_csv, tmp_path, capsys):
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK)
    stop_before_the_end(*arguments)
    assert "holds a run that was stopped" in fails(capsys, *arguments)
    expected = outcome(train(messages_csv, tmp_path / "new"), tmp_path / "new")
    anew = train(messages_csv, tmp_path / "out", "--overwrite")
    assert outcome(anew, tmp_path / "out") == expected


@pytest.mark.parametrize("finished", [True, False])
def test_resuming_with_other_options_is_refused(messages_csv, tmp_path, capsys, finished):
    output = tmp_path / "out"
    arguments = ("--data", messages_csv, "--output", output, *QUICK)
    if finished:
        train(messages_csv, output)
    else:
        stop_before_the_end(*arguments)
    before = {path: path.read_bytes() for path in output.iterdir()}
    said = fails(capsys, *arguments, "--seed", "5", "--resume")
    assert ("had other options" if finished else "seed: 123 then, 5 now") in said
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_resuming_with_other_data_is_refused(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    train(messages_csv, output)
    write_csv(messages_csv, made_up_messages(seed=1))
    said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK, "--resume")
    assert "other options or data" in said


def test_resuming_a_finished_run_says_so_and_changes_nothing(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    train(messages_csv, output)
    before = {path: path.read_bytes() for path in output.iterdir()}
    capsys.readouterr()
    loud = [option for option in QUICK if option != "--quiet"]
    arguments = ["--data", messages_csv, "--output", output, *loud, "--resume"]
    assert finetune.main(list(map(str, arguments))) == 0
    said = capsys.readouterr().out
    assert "finished already" in said
    assert "MB of memory at most" in said
    assert "n-gram baseline" in said
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_resuming_where_nothing_is_says_so(messages_csv, tmp_path, capsys):
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK, "--resume")
    assert "no run to go on with" in fails(capsys, *arguments)


@pytest.mark.parametrize("name", ["metrics.json", "checkpoint.safetensors"])
def test_resuming_from_a_damaged_file_names_it(messages_csv, tmp_path, capsys, name):
    output = tmp_path / "out"
    train(messages_csv, output)
    (output / name).write_bytes(b'{"options": ')  # cut off
    said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK, "--resume")
    assert str(output) in said
