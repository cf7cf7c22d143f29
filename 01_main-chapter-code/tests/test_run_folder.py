"""The folder that finetune.py writes: overwritten only when told, whole, resumed bit for bit."""

import json
import shutil
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from helpers import file_size_limit, kill_at_a_rename, made_up_messages, succeeds, write_csv
from safetensors.torch import load_file
from test_finetune import QUICK, fails, outcome, train

import fine_tuning
import finetune
from classifier_folder import open_classifier
from message_files import DataError
from run_folder import open_run_folder

pytestmark = pytest.mark.usefixtures("one_thread")


READERS = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".safetensors": load_file,
    ".pt": partial(torch.load, weights_only=True),
    ".png": plt.imread,
    **dict.fromkeys((".partial", ".lock"), str),
}


def check_folder_is_whole(folder: Path) -> None:
    """Every file that carries its final name can be read to the end."""
    for path in folder.iterdir():
        READERS[path.suffix](path)
    if (folder / "config.json").exists():
        open_classifier(folder)


def test_an_output_folder_that_cannot_be_written_is_named(messages_csv, tmp_path, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine", encoding="utf-8")
    for output in (in_the_way, in_the_way / "below"):
        said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK, status=1)
        assert str(output) in said
    assert in_the_way.read_text(encoding="utf-8") == "mine"


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path, dict]:
    """A file of messages, the folder of a run over it that nobody disturbed, and what it led to."""
    folder = tmp_path_factory.mktemp("done")
    data = write_csv(folder / "messages.csv", made_up_messages())
    return data, folder / "out", outcome(train(data, folder / "out"), folder / "out")


@pytest.fixture
def finished(done, tmp_path) -> tuple[Path, ...]:
    """The options of that run, whose output is a copy of its folder."""
    output = shutil.copytree(done[1], tmp_path / "finished")
    return "--data", done[0], "--output", output, *QUICK


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("room", [100, 15_000, 1_000_000])
def test_a_full_disk_leaves_no_half_and_the_run_can_go_on(done, tmp_path, capsys, room):
    """The room suffices for nothing, for the checkpoint, or for all but the weights."""
    data, output = done[0], tmp_path / "out"
    with file_size_limit(room):
        fails(capsys, "--data", data, "--output", output, *QUICK, status=1)
    check_folder_is_whole(output)
    assert not list(output.glob("*.partial"))
    assert not (output / "config.json").exists()
    resumed = train(data, output, *(["--resume"] if room > 100 else []))
    assert outcome(resumed, output) == done[2]


def test_a_classifier_is_replaced_only_when_told(done, finished, tmp_path, capsys):
    output = finished[3]
    before = contents(output)
    said = fails(capsys, *finished, "--seed", "5")
    for part in ("holds a classifier", "--output", "--overwrite", "--resume"):
        assert part in said
    assert contents(output) == before
    second = train(done[0], output, "--seed", "5", "--overwrite")
    expected = train(done[0], tmp_path / "fresh", "--seed", "5")
    assert outcome(second, output) == outcome(expected, tmp_path / "fresh")


def test_metrics_of_the_readers_own_are_not_replaced_unasked(tmp_path):
    (tmp_path / "metrics.json").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="--overwrite"), open_run_folder(tmp_path, {}):
        pass
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "mine"


def test_a_second_process_on_the_same_folder_is_refused(messages_csv, tmp_path, capsys):
    with open_run_folder(tmp_path / "out", {}):
        arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK)
        assert "another process is writing there" in fails(capsys, *arguments)


LONGER = ("--trainable", "last_block", "--num-epochs", "4", "--patience", "3", "--dropout", "0.1")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict]:
    """A file of messages, and what a longer run over it leads to that nobody disturbs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_csv(folder / "messages.csv", made_up_messages())
    return data, outcome(train(data, folder / "out", *LONGER), folder / "out")


def resume(data: Path, output: Path) -> dict:
    return outcome(train(data, output, *LONGER, "--resume"), output)


@pytest.mark.parametrize(
    ("name", "moment", "count"),
    [
        ("checkpoint.pt", "before", 2),
        ("metrics.json", "after", 1),
        ("model.safetensors", "after", 1),
        ("config.json", "after", 1),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path, name, moment, count):
    data, expected = undisturbed
    output = tmp_path / "out"
    arguments = ("--data", data, "--output", output, *QUICK, *LONGER)
    kill_at_a_rename(*arguments, name=name, moment=moment, count=count)
    check_folder_is_whole(output)
    assert resume(data, output) == expected
    check_folder_is_whole(output)
    assert {path.suffix for path in output.iterdir()} == {".json", ".png", ".safetensors"}


def test_ctrl_c_says_how_to_go_on(messages_csv, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fine_tuning, "train_classifier_simple", interrupted)
    arguments = ["--data", str(messages_csv), "--output", str(tmp_path / "out"), *QUICK]
    assert finetune.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.fixture
def unfinished(done, tmp_path) -> tuple[Path, ...]:
    """The options of a run of which there is a checkpoint only."""
    arguments = ("--data", done[0], "--output", tmp_path / "unfinished", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning, "predict_logits", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finetune.main(list(map(str, arguments)))
    return arguments


def test_an_unfinished_run_is_gone_on_with_only_when_told(done, unfinished, capsys):
    assert "holds a run that was stopped" in fails(capsys, *unfinished)
    anew = train(done[0], unfinished[3], "--overwrite")
    assert outcome(anew, unfinished[3]) == done[2]


@pytest.mark.parametrize(
    ("run", "options", "says"),
    [
        ("finished", ("--seed", "5"), "had other options"),
        ("finished", ("--data", "unbalanced_csv"), "other options or data"),
        ("unfinished", ("--seed", "5"), "seed: 123 then, 5 now"),
        ("finished", ("--output", "tmp_path"), "no run to go on with"),
    ],
)
def test_resuming_what_is_another_run_or_none_is_refused(
    request, capsys, monkeypatch, run, options, says
):
    arguments, (name, value) = request.getfixturevalue(run), options
    value = value if name == "--seed" else request.getfixturevalue(value)
    monkeypatch.setattr(fine_tuning, "make_model", None)  # refused before long work
    before = contents(arguments[3])
    assert says in fails(capsys, *arguments, name, value, "--resume")
    assert contents(arguments[3]) == before


def test_resuming_a_finished_run_says_so_and_changes_nothing(finished, capsys):
    before = contents(finished[3])
    arguments = [option for option in finished if option != "--quiet"]
    said = succeeds(finetune, capsys, *arguments, "--resume")
    for part in ("finished already", "MB of memory at most", "n-gram baseline"):
        assert part in said
    assert contents(finished[3]) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [("metrics.json", b'{"options": '), ("metrics.json", b"[]"), ("checkpoint.pt", b"cut off")],
)
def test_resuming_from_a_damaged_file_names_it(finished, capsys, name, content):
    (finished[3] / name).write_bytes(content)
    assert str(finished[3]) in fails(capsys, *finished, "--resume")
