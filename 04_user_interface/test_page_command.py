"""`python app.py` as a reader runs it."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import app
import pytest

from gpt_download import load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_classifier import Classifier, add_classification_head, save_classifier

HERE = Path(__file__).parent


def fails(capsys, *arguments, status: int = 2) -> str:
    """The sentence with which the command ends."""
    try:
        found = app.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        found = stop.code
    complaint = capsys.readouterr().err
    assert found == status, complaint
    assert "Traceback" not in complaint
    return complaint


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--port", "0"], "between 1 and 65535"),
        (["--port", "x"], "whole number"),
        (["--auth", "me"], "NAME:PASSWORD"),
        (["--auth", "me:"], "NAME:PASSWORD"),
        (["--share"], "unrecognized"),
    ],
)
def test_a_wrong_option_is_named(capsys, arguments, part):
    assert part in fails(capsys, *arguments)


def test_without_a_folder_the_command_that_makes_one_is_offered(capsys, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    monkeypatch.chdir(tmp_path)
    complaint = fails(capsys, "--port", "17861")
    assert "finetune.py --model gpt-mini --output classifier" in complaint
    assert "--train" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("damage", ["config", "weights", "nothing there", "a file"])
def test_a_damaged_folder_is_named(capsys, tmp_path, damage):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    folder = tmp_path / "classifier"
    if damage == "a file":
        folder.write_text("x")
    else:
        folder.mkdir()
    if damage in ("config", "weights"):
        (folder / "config.json").write_text("{" if damage == "config" else json.dumps({"x": 1}))
        (folder / "model.safetensors").write_bytes(b"x")
    assert str(folder) in fails(capsys, folder, "--port", "17861")


@pytest.mark.parametrize(
    ("card", "part"),
    [
        ({"test": {"accuracy": 1}}, "'test.num_examples' is missing"),
        ({"training": 5}, "'training'"),
    ],
)
def test_damaged_figures_are_named(capsys, tmp_path, card, part):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    tokenizer = load_mini_tokenizer()
    shape = {"vocab_size": tokenizer.n_vocab, "context_length": 8, "emb_dim": 8}
    model = GPTModel(GPTConfig(**shape, num_heads=1, num_layers=1))
    add_classification_head(model, num_classes=2)
    save_classifier(Classifier(model, tokenizer, "gpt-mini", ["a", "b"], 8, card), tmp_path)
    complaint = fails(capsys, tmp_path, "--port", "17861")
    assert part in complaint
    assert complaint.count("\n") == 1


def test_a_port_in_use_is_named(capsys, tmp_path):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        complaint = fails(capsys, tmp_path, "--port", port, status=1)
    assert f"port {port}" in complaint
    assert "--port" in complaint


def test_a_host_that_is_not_here_is_named(capsys, tmp_path):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    assert "192.0.2.1" in fails(capsys, tmp_path, "--host", "192.0.2.1", status=1)


def test_a_missing_gradio_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "page", raising=False)
    complaint = fails(capsys, tmp_path, status=1)
    assert "gradio" in complaint
    assert "requirements-extra.txt" in complaint


def test_train_makes_the_folder_with_finetunes_own_run(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(app, "finetune", seen.append)
    assert app.find_folder(tmp_path / "new folder", train=True) == tmp_path / "new folder"
    assert (seen[0].model, seen[0].output) == ("gpt-mini", tmp_path / "new folder")
    assert not seen[0].quiet  # so that the bar is shown


def test_a_training_that_was_stopped_is_gone_on_with(capsys, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert "--train" in fails(capsys, tmp_path, "--port", "17861")
    seen = []
    monkeypatch.setattr(app, "finetune", seen.append)
    app.find_folder(tmp_path, train=True)
    assert seen[0].resume
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match="exists already"):
        app.find_folder(tmp_path, train=True)


def test_train_never_overwrites(tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        app.find_folder(tmp_path, train=True)


def test_the_process_itself_ends_without_a_traceback(tmp_path):
    pytest.importorskip("gradio", reason="needs requirements-extra.txt")
    done = subprocess.run(
        [sys.executable, HERE / "app.py", tmp_path / "none"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (1, 2)  # 1 where something else listens on the port
    assert done.stderr.startswith("app.py: ")
    assert done.stderr.count("\n") == 1


def commands_in(path: Path) -> list[str]:
    return re.findall(r"04_user_interface/app\.py ?([^\n`]*)", path.read_text(encoding="utf-8"))


def test_every_command_of_the_readme_is_understood():
    found = commands_in(HERE / "README.md")
    assert len(found) >= 3
    for command in found:
        app.parse_args(shlex.split(command, comments=True))


def test_the_container_starts_the_page_as_one_that_it_understands():
    text = (HERE / "Dockerfile").read_text(encoding="utf-8")
    command = json.loads(re.search(r"^CMD (.*)$", text, re.MULTILINE)[1])
    args = app.parse_args(command[2:])
    assert args.host == "0.0.0.0"
    assert f"EXPOSE {args.port}" in text
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    assert f"app_port: {args.port}" in readme
