"""`python app.py` as a reader runs it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs 04_user_interface/requirements-extra.txt")

import app

from classifier_folder import save_classifier

HERE = Path(__file__).parent


@pytest.fixture
def fails(capsys):
    """A function that runs the command and gives the one sentence with which it ends."""

    def run(*arguments, status: int = 2) -> str:
        try:
            found = app.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            found = stop.code
        complaint = capsys.readouterr().err
        assert found == status, complaint
        assert complaint.splitlines()[-1].startswith("app.py: ")
        return complaint

    return run


@pytest.mark.parametrize("auth", ["me", "me:", ":secret"])
def test_a_password_that_is_none_is_refused(fails, auth):
    assert "NAME:PASSWORD" in fails("--auth", auth)


def test_without_a_folder_the_command_that_makes_one_is_offered(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint = fails("--port", 0)
    assert "finetune.py --output classifier" in complaint
    assert "--train" in complaint


def test_a_classifier_that_gives_several_labels_is_refused(fails, tmp_path, make_tiny):
    classifier = make_tiny(("price", "taste"), 16)
    classifier.config = replace(classifier.config, thresholds=(0.5, 0.5))
    save_classifier(classifier, tmp_path)
    assert "several labels" in fails(tmp_path, "--port", 0)


def test_train_makes_a_classifier_goes_on_with_one_and_leaves_one_alone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(app, "fine_tune", seen.append)
    app.train_if_missing(tmp_path / "new")
    (tmp_path / "checkpoint.pt").touch()
    app.train_if_missing(tmp_path)
    (tmp_path / "config.json").touch()
    app.train_if_missing(tmp_path)
    assert [(config.model, config.output, config.resume) for config in seen] == [
        ("gpt-mini", tmp_path / "new", False),
        ("gpt-mini", tmp_path, True),
    ]


def test_the_container_starts_the_page_as_one_that_it_understands():
    text, readme = (
        (HERE / name).read_text(encoding="utf-8") for name in ("Dockerfile", "README.md")
    )
    command = json.loads(re.search(r"^CMD (.*)$", text, re.MULTILINE)[1])
    args = app.parse_args(command[2:])
    assert args.host == "0.0.0.0"
    assert f"EXPOSE {args.port}" in text
    assert f"`app_port: {args.port}`" in readme
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
