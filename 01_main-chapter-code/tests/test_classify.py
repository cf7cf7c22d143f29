"""classify.py as a reader runs it: where the texts come from, and where the answers go."""

import ast
import csv
import io
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import helpers
import pandas as pd
import pytest
import torch
from helpers import CHAPTER, command_environment, run_python, succeeds, write_csv

import classify
from classifier_folder import classify_texts, open_classifier

fails = partial(helpers.fails, classify)


def give_standard_input(monkeypatch, raw: bytes) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="ascii", newline="\n")  # as Python's own
    monkeypatch.setattr(sys, "stdin", stdin)


def classified(capsys, *arguments) -> list[list[str]]:
    """Label, probability and text of each line that classify.py prints."""
    return [line.split("\t") for line in succeeds(classify, capsys, *arguments).splitlines()]


def test_arguments_and_lines_get_the_same_answers(tiny_classifier_folder, capsys, monkeypatch):
    texts = ["free prize", "", "see you at home", "  ", "größer 🎉"]
    from_arguments = classified(capsys, tiny_classifier_folder, *texts)
    assert [row[2] for row in from_arguments] == texts
    after_options = ("--device", "cpu", *texts)
    assert classified(capsys, tiny_classifier_folder, *after_options) == from_arguments
    for raw in (
        "free prize\n\nsee you at home\n  \ngrößer 🎉",
        "\ufefffree prize\r\n\r\nsee you at home\r\n  \r\ngrößer 🎉\r\n",  # as Windows writes it
    ):
        give_standard_input(monkeypatch, raw.encode())
        assert classified(capsys, tiny_classifier_folder) == from_arguments
    give_standard_input(monkeypatch, b"")
    assert classified(capsys, tiny_classifier_folder) == []
    opened = open_classifier(tiny_classifier_folder)
    for (label, probability, _), row in zip(from_arguments, classify_texts(*opened, texts)):
        assert label == opened[0].config.label_names[int(row.argmax())]
        assert float(probability) == pytest.approx(float(row.max()), abs=1e-4)


def test_the_likeliest_labels_come_in_their_order(tiny_classifier_folder, capsys):
    ((*cells, text),) = classified(capsys, tiny_classifier_folder, "free prize", "--top", 9)
    assert text == "free prize"
    assert cells[:2] == classified(capsys, tiny_classifier_folder, "free prize")[0][:2]
    assert {*cells[::2]} == {*open_classifier(tiny_classifier_folder)[0].config.label_names}
    probabilities = list(map(float, cells[1::2]))
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)


def test_another_encoding_and_separator_give_the_same_answers(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch
):
    texts = ["tea, café", "größer; 5 €"]
    expected = classified(capsys, tiny_classifier_folder, *texts)
    raw = "\n".join(texts).encode("windows-1252")
    give_standard_input(monkeypatch, raw)
    assert "line 1 is not UTF-8 (byte 0xe9)" in fails(capsys, tiny_classifier_folder)
    give_standard_input(monkeypatch, raw)
    arguments = (tiny_classifier_folder, "--encoding", "windows-1252")
    assert classified(capsys, *arguments) == expected
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    path.write_bytes("\n".join(["id|body", *(f"1|{t}" for t in texts)]).encode("windows-1252"))
    arguments = (*arguments, "--file", path, "--separator", "|", "--output", output)
    classified(capsys, *arguments)
    table = pd.read_csv(output, dtype=str)
    answers = table[["predicted_label", "probability", "body"]].values.tolist()
    assert [row[::2] for row in answers] == [row[::2] for row in expected]
    assert list(table.columns[:2]) == ["id", "body"]


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "<|endoftext|>", "x" * 100_000, "\0", "\ud83d"),
        "\x1b[2Jgone\x07\ttab\nline\x9b\u202e\rover",  # does nothing to the terminal
    ],
)
def test_odd_texts_get_a_label(tiny_classifier_folder, capsys, text):
    [[label, probability, shown]] = classified(capsys, tiny_classifier_folder, text)
    assert label in ("ham", "spam")
    assert 0.5 <= float(probability) <= 1
    assert shown == (text if text.isprintable() else text.encode("unicode_escape").decode())


def test_a_terminal_without_the_characters_gets_them_spelled_out(
    tiny_classifier_folder, monkeypatch
):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert classify.main([str(tiny_classifier_folder), "größer 🎉"]) == 0
    shown = terminal.buffer.getvalue().decode("ascii").rstrip()
    assert shown.split("\t")[2] == "gr\\xf6\\xdfer \\U0001f389"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("output", "status", "last"),
    [
        ("| head -n 1", 0, r"Reading texts.*"),  # a reader may leave early
        ("> /dev/full", 1, r"classify\.py: \[Errno 28\] No space left.*"),
    ],
)
def test_standard_output_that_ends_early_or_is_full(
    tiny_classifier_folder, tmp_path, output, status, last
):
    path = write_csv(tmp_path / "in.csv", [("a message of some length",)] * 5000, "text")
    command = shlex.join(
        map(str, (sys.executable, CHAPTER / "classify.py", tiny_classifier_folder))
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} --file {path} {output}"],
        env=command_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert re.fullmatch(last, done.stderr.splitlines()[-1])
    assert not re.search("Traceback|Exception ignored", done.stderr)


def test_a_closed_stream_is_a_failure_in_one_sentence(tiny_classifier_folder, capsys, monkeypatch):
    for name in ("input", "output"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, f"std{name.removesuffix('put')}", None)  # as Python does
            said = fails(capsys, tiny_classifier_folder, status=1)
        assert re.fullmatch(rf"classify\.py: standard {name} is closed; .*\n", said)


def test_out_of_memory_exits_1(tiny_classifier_folder, capsys, monkeypatch):
    def run_out_of_memory(*_, **__):
        torch.empty(2**50)  # more than any address space

    monkeypatch.setattr(classify, "classify_texts", run_out_of_memory)
    assert "out of memory" in fails(capsys, tiny_classifier_folder, "hello", status=1)


@pytest.mark.skipif(os.name == "nt", reason="needs the right to make links")
def test_a_loop_of_links_in_the_outputs_place_is_replaced(of_json, capsys):
    output = of_json[4]
    output.symlink_to(output)
    succeeds(classify, capsys, *of_json)
    assert output.read_text(encoding="utf-8").startswith('"text",')


def test_a_csv_file_goes_in_and_a_csv_file_comes_out(tiny_classifier_folder, tmp_path, capsys):
    texts = ['a "quoted", cell', "two\nlines", "None", "", "see you at home tonight", "größer"]
    texts += ["a\rb", "\r", "a\r\nb", " a ", "'", "\\"]
    ids = [f"{i:03}" for i in range(len(texts))]
    table = pd.DataFrame({"id": ids, "body": texts, "x": "NA"})
    table.to_csv(tmp_path / "in.csv", index=False, quoting=csv.QUOTE_ALL)
    output = tmp_path / "out.csv"
    arguments = (tiny_classifier_folder, "--file", tmp_path / "in.csv")
    assert classified(capsys, *arguments, "--output", output) == []
    with output.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    result = pd.DataFrame(rows, columns=header)
    assert list(result.columns) == ["id", "body", "x", "predicted_label", "probability"]
    assert result["body"].tolist() == texts
    assert result["id"].tolist() == table["id"].tolist()
    assert set(result["x"]) == {"NA"}
    direct = [row[:2] for row in classified(capsys, tiny_classifier_folder, *texts)]
    assert result["predicted_label"].tolist() == [label for label, _ in direct]
    probabilities = [float(probability) for _, probability in direct]
    assert result["probability"].astype(float).tolist() == pytest.approx(probabilities, abs=1e-4)
    assert not list(tmp_path.glob("out.csv.*"))

    printed = succeeds(classify, capsys, *arguments, "--text-column", "body")
    assert printed == output.read_bytes().decode()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--file", "absent.csv"), ["absent.csv", "no such file"]),
        (("--file", "in.csv", "--text-column", "txt"), ["in.csv", "'txt'", "'id', 'body'"]),
        (("--file", "in.csv", "a text"), ["not both"]),
        (("a text", "--output", "out.csv"), ["--output", "--file"]),
        (("--file", "in.csv", "--output", "./in.csv"), ["--output is --file itself"]),
        (("a text", "--text-column", ""), ["--text-column", "--file"]),
        (("--file", "again.csv", "--output", "out.csv"), ["again.csv", "'probability'", "rename"]),
        (("--file", "in.csv", "--overwrite"), ["--overwrite", "--output"]),
        (("--file", "in.csv", "--output", "there.csv"), ["there.csv", "already", "--overwrite"]),
        (("--file", "in.csv", "--output", "folder.csv", "--overwrite"), ["replaces a file"]),
        (("--file", "in.csv", "--output", "out.zip"), [".csv or .csv.gz"]),
        (("--file", "twice.csv"), ["two columns are called 'body'"]),
        (("--file", "."), ["folder"]),
        (("--separator", ";", "a text"), ["--separator", "--file"]),
        (("--encoding", "latin-1", "a text"), ["--encoding", "--file"]),
    ],
)
def test_classify_names_what_is_wrong(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch, arguments, parts
):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("id,body\n1,hello\n", encoding="utf-8")
    Path("again.csv").write_text("body,probability\nhello,1\n", encoding="utf-8")
    Path("there.csv").write_text("mine", encoding="utf-8")
    Path("twice.csv").write_text("body,body\na,b\n", encoding="utf-8")
    Path("folder.csv").mkdir()
    said = fails(capsys, tiny_classifier_folder, *arguments)
    for part in parts:
        assert part in said
    assert not Path("out.csv").exists()
    assert Path("there.csv").read_text(encoding="utf-8") == "mine"


@pytest.fixture
def of_json(tiny_classifier_folder, tmp_path, monkeypatch):
    """A command on 13 rows, read ten at a time, with a column that comes late."""
    monkeypatch.setattr(classify, "ROWS_AT_ONCE", 10)
    source = tmp_path / "in.jsonl"
    lines = ['{"text": "hello"}'] * 12 + ['{"text": "more", "late": "x"}']
    source.write_text("\n".join(lines), encoding="utf-8")
    return tiny_classifier_folder, "--file", source, "--output", tmp_path / "out.csv"


def test_columns_that_come_late_are_in_the_header_and_a_wrong_last_row_stops_all(of_json, capsys):
    assert classified(capsys, *of_json) == []
    result = pd.read_csv(of_json[4], keep_default_na=False)
    assert list(result.columns) == ["text", "late", "predicted_label", "probability"]
    assert result["late"].tolist() == [""] * 12 + ["x"]
    with of_json[2].open("a", encoding="utf-8") as file:
        file.write("\n{")
    assert "line 14" in fails(capsys, *of_json, "--overwrite")
    assert len(pd.read_csv(of_json[4])) == 13


def test_a_run_that_is_stopped_leaves_no_half(of_json, tmp_path, capsys, monkeypatch):
    pieces, real = [], classify.classify_texts

    def stop_at_the_second(classifier, tokenizer, texts):
        pieces.append(texts)
        if len(pieces) == 2:
            raise KeyboardInterrupt
        return real(classifier, tokenizer, texts)

    monkeypatch.setattr(classify, "classify_texts", stop_at_the_second)
    assert "Stopped." in fails(capsys, *of_json, status=130)
    assert not list(tmp_path.glob("out*"))


def test_a_missing_package_is_named_in_one_line():
    missing = run_python(
        "-c", "import startup_errors; import no_such_thing", PYTHONPATH=str(CHAPTER)
    )
    assert missing.stderr.startswith("The package no_such_thing is missing")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)


def test_ctrl_c_while_libraries_are_imported_is_one_word():
    stopped = run_python(
        "-c", "import startup_errors; raise KeyboardInterrupt", PYTHONPATH=str(CHAPTER)
    )
    assert stopped.stderr == "stopped.\n"
    sources = [path.read_text("utf-8") for path in CHAPTER.parent.glob("0*/**/*.py")]
    commands = [source for source in sources if "\ndef main(" in source]
    assert len(commands) >= 20
    for source in commands:
        nodes = [n for n in ast.parse(source).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        names = [getattr(node, "module", node.names[0].name).partition(".")[0] for node in nodes]
        assert {*names[: names.index("startup_errors")]} <= sys.stdlib_module_names


def test_true_labels_in_the_file_tell_how_good_the_answers_are(
    tiny_classifier_folder, tmp_path, capsys
):
    texts = [f"free prize number {i}" for i in range(20)]
    predicted = [row[0] for row in classified(capsys, tiny_classifier_folder, *texts)]
    other = {"ham": "spam", "spam": "ham"}
    truth = [f" {label} " if i % 4 else other[label] for i, label in enumerate(predicted)]
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"text": texts, "kind": truth}).to_csv(path, index=False)
    arguments = (tiny_classifier_folder, "--file", path, "--output", output)
    arguments += ("--label-column", "kind")
    printed = succeeds(classify, capsys, *arguments)
    assert "accuracy 75.0%, 95% interval [53.1%, 88.8%]" in printed
    succeeds(classify, capsys, *arguments, "--overwrite", "--all-probabilities")
    table = pd.read_csv(output)
    columns = table[["probability of ham", "probability of spam"]]
    assert columns.sum(axis=1).tolist() == pytest.approx([1] * 20, abs=2e-4)
    assert columns.max(axis=1).tolist() == table["probability"].tolist()
    pd.DataFrame({"text": ["a"], "probability of ham": ["mine"]}).to_csv(path, index=False)
    arguments = (tiny_classifier_folder, "--file", path, "--all-probabilities")
    assert "'probability of ham'" in fails(capsys, *arguments)


def test_a_confusion_matrix_of_many_labels_is_shown_whole():
    said = classify.compare_with_labels(Counter({(f"t{i}", f"t{i}"): i + 1 for i in range(90)}))
    assert all(f"t{i} " in said for i in range(90))
    assert {*range(1, 91)} <= {int(word) for word in said.split() if word.isdigit()}


def test_rows_without_a_true_label_are_not_compared_and_labels_are_no_texts(
    tiny_classifier_folder, tmp_path, capsys
):
    path = tmp_path / "in.csv"
    arguments = (tiny_classifier_folder, "--file", path, "--output", tmp_path / "out.csv")
    arguments += ("--label-column", "of the senders", "--overwrite")
    for labels, says in ((["", "", ""], "No row has"), (["ham", "", "spam"], "accuracy 50.0%")):
        rows = "".join(f"hi,{label}\n" for label in labels)
        path.write_text(f"q,of the senders\n{rows}", encoding="utf-8")
        assert classify.main(list(map(str, arguments))) == 0
        printed = capsys.readouterr()
        assert "texts from column 'q'" in printed.err
        assert says in printed.out


def test_the_column_that_a_classifier_was_trained_on_is_read(
    tiny_classifier_folder, tmp_path, capsys
):
    path = write_csv(tmp_path / "in.csv", [("win", "see you at home tonight")], "short,long")
    assert classify.main([str(tiny_classifier_folder), "--file", str(path)]) == 0
    assert "column 'short'" in capsys.readouterr().err
