"""classify.py on large files: stopped runs lose and repeat nothing, and one writes at a time."""

import csv
import io
import os
from pathlib import Path

import pandas as pd
import pytest
from helpers import kill_at_a_rename
from test_classify import fails

import classify
from files import locked
from growing_file import GrowingFile, as_csv


@pytest.fixture
def arguments(tiny_classifier_folder, tmp_path, monkeypatch) -> list[str]:
    """A command on 35 rows, read ten at a time; every seventh row spans two lines."""
    monkeypatch.setattr(classify, "ROWS_AT_ONCE", 10)
    texts = [f"message {i}" + ("\nand more" if i % 7 == 0 else "") for i in range(35)]
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"id": range(35), "text": texts}).to_csv(source, index=False)
    return [str(tiny_classifier_folder), "--file", str(source), "--output", str(output)]


def stop_after(num_pieces: int, arguments: list[str]) -> None:
    """Let the process die when it is about to write the piece after `num_pieces`."""
    add, done = GrowingFile.add, []

    def add_or_die(self, table):
        if len(done) == num_pieces:
            raise KeyboardInterrupt
        done.append(table)
        add(self, table)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrowingFile, "add", add_or_die)
        assert classify.main(arguments) == 130


@pytest.mark.parametrize("num_pieces", [0, 1, 3])
def test_a_stopped_run_goes_on_to_the_same_file_with_the_rows_that_are_left(
    arguments, tmp_path, capsys, monkeypatch, num_pieces
):
    output = tmp_path / "out.csv"
    assert classify.main(arguments) == 0
    undisturbed = output.read_bytes()
    output.unlink()
    stop_after(num_pieces, arguments)
    assert "--resume" in capsys.readouterr().err
    assert not output.exists()
    seen, real = [], classify.classify_texts
    spy = lambda c, t, texts: seen.extend(texts) or real(c, t, texts)  # noqa: E731
    monkeypatch.setattr(classify, "classify_texts", spy)
    assert classify.main([*arguments, "--resume"]) == 0
    assert [text.split()[1] for text in seen] == [str(i) for i in range(10 * num_pieces, 35)]
    assert output.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.glob("out*")] == ["out.csv"]


def test_a_killed_process_can_be_gone_on_with(tiny_classifier_folder, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"id": range(2500), "text": "a message"}).to_csv(source, index=False)
    arguments = [str(tiny_classifier_folder), "--file", str(source), "--output", str(output)]
    kill_at_a_rename("classify", *arguments, name="00000001.csv")
    assert not output.exists()
    assert classify.main([*arguments, "--resume"]) == 0
    assert pd.read_csv(output)["id"].tolist() == list(range(2500))


@pytest.mark.parametrize("what", ["--file", "classifier", "--text-column"])
def test_what_changed_since_the_run_was_stopped_is_named(arguments, capsys, what):
    stop_after(1, arguments)
    more = []
    if what == "--file":
        with Path(arguments[2]).open("a", encoding="utf-8") as file:
            file.write("35,one more\n")
    elif what == "classifier":
        path = Path(arguments[0]) / "config.json"
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    else:
        more = ["--text-column", "id"]
    assert f"had another {what};" in fails(capsys, *arguments, "--resume", *more)


def test_there_must_be_a_run_to_go_on_with(arguments, tmp_path, capsys):
    assert "no stopped run" in fails(capsys, *arguments, "--resume")
    stop_after(1, arguments)
    (tmp_path / "out.csv.pieces" / "run.json").write_text("[", encoding="utf-8")
    assert "damaged" in fails(capsys, *arguments, "--resume")


def test_a_second_process_on_the_same_output_is_refused(arguments, tmp_path, capsys):
    with locked(tmp_path / "out.csv"):
        assert "another process is writing there" in fails(capsys, *arguments)


@pytest.mark.parametrize(
    "cell", ["a\rb", "\r", "a\r\nb", "two\nlines", 'a "quote", and a comma', "", " a ", "'", "\\"]
)
def test_every_cell_comes_back_whole(cell):
    table = pd.DataFrame({"text": [cell, "plain"], "n": ["1", "2"]})
    rows = list(csv.reader(io.StringIO(as_csv(table, header=True), newline="")))
    assert rows == [["text", "n"], [cell, "1"], ["plain", "2"]]


def test_a_link_to_the_output_stays_one_and_a_device_is_refused(arguments, tmp_path, capsys):
    (tmp_path / "out.csv").symlink_to(tmp_path / "real.csv")
    assert classify.main(arguments) == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert len(pd.read_csv(tmp_path / "real.csv")) == 35
    if Path(os.devnull).exists():
        assert "not a file" in fails(capsys, *arguments[:-1], os.devnull)
        assert not Path(os.devnull).is_file()


def test_columns_that_come_late_are_in_the_header_and_a_wrong_last_row_stops_all(
    arguments, tmp_path, capsys
):
    lines = ['{"text": "hello"}'] * 12 + ['{"text": "more", "late": "x"}']
    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text("\n".join([*lines, "{"]), encoding="utf-8")
    arguments[2] = str(source)
    assert "line 14" in fails(capsys, *arguments)
    assert not output.exists()
    source.write_text("\n".join(lines), encoding="utf-8")
    assert classify.main(arguments) == 0
    result = pd.read_csv(output, keep_default_na=False)
    assert list(result.columns) == ["text", "late", "predicted_label", "probability"]
    assert result["late"].tolist() == [""] * 12 + ["x"]
