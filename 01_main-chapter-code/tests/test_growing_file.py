"""classify.py on large files: little memory, and stopped runs that lose and repeat nothing."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import CHAPTER, command_environment, edit_json, file_size_limit

import classify
from growing_file import GrowingFile, as_csv
from message_files import DataError

TABLE = pd.DataFrame({"text": ["a", "two\nlines", 'a "quote", and a comma'], "n": ["1", "2", "3"]})


def write_messages(path: Path, num_rows: int) -> Path:
    """Rows that differ; every seventh spans two lines, as a cell in quotes may."""
    texts = [f"message {i}" + ("\nand more" if i % 7 == 0 else "") for i in range(num_rows)]
    pd.DataFrame({"id": range(num_rows), "text": texts}).to_csv(path, index=False)
    return path


@pytest.fixture
def arguments(tiny_classifier_folder, tmp_path) -> list[str]:
    """A command on 35 rows, read ten at a time."""
    source = write_messages(tmp_path / "in.csv", 35)
    output = tmp_path / "out.csv"
    return [str(tiny_classifier_folder), "--file", str(source), "--output", str(output)]


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch):
    monkeypatch.setattr(classify, "ROWS_AT_ONCE", 10)


def stop_after(monkeypatch, num_pieces: int) -> None:
    """Let the process die in the middle of writing the piece after `num_pieces`."""
    add, done = GrowingFile.add, []

    def add_or_die(self, table):
        if len(done) == num_pieces:
            with self.partial.open("ab") as file:
                file.write(b'9999,"half a ro')
            raise KeyboardInterrupt
        done.append(table)
        add(self, table)

    monkeypatch.setattr(GrowingFile, "add", add_or_die)


@pytest.mark.parametrize("num_pieces", [0, 1, 3])
def test_a_stopped_run_goes_on_to_the_same_file(arguments, tmp_path, capsys, num_pieces):
    output = tmp_path / "out.csv"
    assert classify.main(arguments) == 0
    undisturbed = output.read_bytes()
    output.unlink()
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, num_pieces)
        assert classify.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    assert not output.exists()
    assert classify.main([*arguments, "--resume"]) == 0
    assert output.read_bytes() == undisturbed
    assert pd.read_csv(output)["id"].tolist() == list(range(35))
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.csv"]


def test_rows_that_are_done_are_not_classified_again(arguments, monkeypatch, capsys):
    with pytest.MonkeyPatch.context() as stopped:
        stop_after(stopped, 2)
        classify.main(arguments)
    seen, classify_texts = [], classify.classify_texts
    monkeypatch.setattr(
        classify, "classify_texts", lambda c, texts: seen.extend(texts) or classify_texts(c, texts)
    )
    assert classify.main([*arguments, "--resume"]) == 0
    noted_rows = 19  # the header is the first of ten rows that are read
    assert [text.split()[1] for text in seen] == [str(i) for i in range(noted_rows, 35)]


def test_a_killed_process_can_be_gone_on_with(tiny_classifier_folder, tmp_path):
    source = write_messages(tmp_path / "in.csv", 8_000)
    command = [sys.executable, str(CHAPTER / "classify.py"), str(tiny_classifier_folder)]
    command += ["--file", str(source), "--output", str(tmp_path / "out.csv")]
    note = tmp_path / "out.csv.progress"
    process = subprocess.Popen(command, env=command_environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < end:
        if note.exists() and json.loads(note.read_text())["num_rows"] > 0:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "out.csv").exists(), "the process was faster than its killer"
    done = subprocess.run([*command, "--resume"], env=command_environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    result = pd.read_csv(tmp_path / "out.csv")
    assert result["id"].tolist() == list(range(8_000))
    assert result["predicted_label"].isin(["ham", "spam"]).all()


def test_what_changed_since_the_run_was_stopped_is_named(arguments, capsys, tmp_path):
    with pytest.MonkeyPatch.context() as stopped:
        stop_after(stopped, 1)
        classify.main(arguments)
    capsys.readouterr()
    resume = [*arguments, "--resume"]
    assert classify.main([*resume, "--text-column", "id"]) == 2
    assert "--text-column" in capsys.readouterr().err
    edit_json(tmp_path / "classifier" / "config.json", max_length=7)
    assert classify.main(resume) == 2
    assert "another classifier;" in capsys.readouterr().err
    with (tmp_path / "in.csv").open("a") as file:
        file.write("35,one more\n")
    assert classify.main(resume) == 2
    assert "another --file and another classifier" in capsys.readouterr().err


def test_there_must_be_a_run_to_go_on_with(arguments, capsys, tmp_path):
    assert classify.main([*arguments, "--resume"]) == 2
    assert "no stopped run" in capsys.readouterr().err
    classify.main(arguments)
    assert classify.main([*arguments, "--resume"]) == 2
    assert "is there, and whole" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        classify.main([*arguments[:3], "--resume"])
    assert stop.value.code == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "note", ["", "[]", '{"num_rows": 1}', '{"run": 1, "num_rows": "x"}', "[" * 100_000], ids=len
)
def test_a_damaged_note_is_no_traceback(tmp_path, note):
    file = GrowingFile(tmp_path / "out.csv", {})
    file.start()
    file.progress.write_text(note)
    with pytest.raises(DataError, match=r"progress is damaged"):
        file.resume()


def test_pieces_that_were_cut_off_are_noticed(tmp_path):
    file = GrowingFile(tmp_path / "out.csv", {})
    file.start()
    file.add(TABLE)
    file.partial.write_bytes(file.partial.read_bytes()[:-1])
    with pytest.raises(DataError, match="cut short"):
        GrowingFile(tmp_path / "out.csv", {}).resume()


def test_a_full_disk_leaves_a_run_to_go_on_with(arguments, tmp_path, capsys):
    with file_size_limit(600):
        assert classify.main(arguments) == 1
    assert "classify.py: " in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()
    assert classify.main([*arguments, "--resume"]) == 0
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == list(range(35))


@pytest.mark.parametrize("cell", ["a\rb", "\r", "a\r\nb", "a\nb\r", 'say "a\rb", or not'])
def test_every_cell_comes_back_whole(tmp_path, cell):
    table = pd.DataFrame({"text": ["plain", cell], "n": [0.5, 1.0]})
    path = tmp_path / "out.csv"
    file = GrowingFile(path, {})
    file.start()
    file.add(table)
    file.add(table)
    file.finish()
    assert pd.read_csv(path, keep_default_na=False)["text"].tolist() == ["plain", cell] * 2
    with path.open(newline="", encoding="utf-8") as lines:
        assert list(csv.reader(lines)) == [["text", "n"], *[["plain", "0.5"], [cell, "1.0"]] * 2]


def test_quotes_are_only_where_they_are_needed():
    assert as_csv(pd.DataFrame({"text": ["a"], "n": [0.5]}), header=True) == "text,n\na,0.5\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_what_is_no_file_is_refused_and_stays(arguments, tmp_path, capsys):
    os.mkfifo(tmp_path / "out.csv")  # it stands for a device such as /dev/null
    assert classify.main(arguments) == 2
    assert "out.csv is a folder or a device, not a file" in capsys.readouterr().err
    assert (tmp_path / "out.csv").is_fifo()
    assert len(list(tmp_path.glob("out*"))) == 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_the_output_stays_one(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    file = GrowingFile(tmp_path / "link.csv", {})
    file.start()
    file.add(TABLE)
    file.finish()
    assert (tmp_path / "link.csv").is_symlink()
    assert len(pd.read_csv(tmp_path / "real.csv")) == len(TABLE)


def test_columns_that_come_late_are_in_the_header(tiny_classifier_folder, tmp_path):
    rows = [{"text": f"a {i}"} for i in range(25)] + [{"text": "b", "late": 7}]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    output = tmp_path / "out.csv"
    arguments = [str(tiny_classifier_folder), "--file", str(source), "--output", str(output)]
    assert classify.main(arguments) == 0
    result = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert list(result.columns) == ["text", "late", "predicted_label", "probability"]
    assert result["late"].tolist() == [""] * 25 + ["7"]


def test_a_wrong_last_row_is_found_before_the_work_begins(arguments, tmp_path, capsys):
    with (tmp_path / "in.csv").open("a") as file:
        file.write("35,one,too many\n")
    assert classify.main(arguments) == 2
    assert "in.csv" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_rows_read_in_pieces_are_those_read_at_once(tiny_classifier_folder, tmp_path, monkeypatch):
    source = write_messages(tmp_path / "in.csv", 35)
    results = []
    for num_rows in (10, 1000):
        monkeypatch.setattr(classify, "ROWS_AT_ONCE", num_rows)
        output = tmp_path / f"{num_rows}.csv"
        options = ["--file", str(source), "--output", str(output)]
        assert classify.main([str(tiny_classifier_folder), *options]) == 0
        results.append(pd.read_csv(output))
    pd.testing.assert_frame_equal(*results, atol=2e-4)
