"""classify.py as a reader runs it: where the texts come from, and where the answers go."""

import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import helpers
import pandas as pd
import pytest
import torch
from helpers import (
    CHAPTER,
    command_environment,
    file_size_limit,
    made_up_messages,
    run_python,
    write_csv,
)

import classifier_folder
import classify
import gpt_download
from classifier_folder import classify_texts, open_classifier
from fine_tuning import RunConfig, fine_tune

fails = partial(helpers.fails, classify)


def give_standard_input(monkeypatch, raw: bytes) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="ascii", newline="\n")  # as Python's own
    monkeypatch.setattr(sys, "stdin", stdin)


def classified(capsys, *arguments) -> list[list[str]]:
    """Label, probability and text of each line that classify.py prints."""
    assert classify.main([str(argument) for argument in arguments]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_arguments_and_lines_get_the_same_answers(tiny_classifier_folder, capsys, monkeypatch):
    texts = ["free prize", "", "see you at home", "  ", "größer 🎉"]
    from_arguments = classified(capsys, tiny_classifier_folder, *texts)
    assert [row[2] for row in from_arguments] == texts
    for raw in (
        "free prize\n\nsee you at home\n  \ngrößer 🎉",
        "\ufefffree prize\r\n\r\nsee you at home\r\n  \r\ngrößer 🎉\r\n",  # as Windows writes it
    ):
        give_standard_input(monkeypatch, raw.encode())
        assert classified(capsys, tiny_classifier_folder) == from_arguments
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


def test_texts_may_follow_options(tiny_classifier_folder, capsys):
    expected = classified(capsys, tiny_classifier_folder, "one", "two", "--device", "cpu")
    assert classified(capsys, tiny_classifier_folder, "--device", "cpu", "one", "two") == expected


def test_nothing_on_standard_input_is_no_error(tiny_classifier_folder, capsys, monkeypatch):
    give_standard_input(monkeypatch, b"")
    assert classified(capsys, tiny_classifier_folder) == []


def test_another_encoding_and_separator_give_the_same_answers(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch
):
    texts = ["tea, café", "größer; 5 €"]
    expected = classified(capsys, tiny_classifier_folder, *texts)
    give_standard_input(monkeypatch, "\n".join(texts).encode("windows-1252"))
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


def test_standard_input_that_is_not_utf8_is_refused(tiny_classifier_folder, capsys, monkeypatch):
    give_standard_input(monkeypatch, "tea\ncafé\n".encode("latin-1"))
    assert "line 2 is not UTF-8 (byte 0xe9)" in fails(capsys, tiny_classifier_folder)


@pytest.mark.parametrize("text", ["", " ", "<|endoftext|>", "x" * 100_000, "\0", "\ud83d"])
def test_odd_texts_get_a_label(tiny_classifier_folder, capsys, text):
    [[label, probability, shown]] = classified(capsys, tiny_classifier_folder, text)
    assert label in ("ham", "spam")
    assert 0.5 <= float(probability) <= 1
    assert shown == (text if text.isprintable() else text.encode("unicode_escape").decode())


def test_a_written_out_end_of_text_is_ordinary_text(tiny_classifier_folder):
    opened = open_classifier(tiny_classifier_folder)
    literal, empty = classify_texts(*opened, ["<|endoftext|>", ""])
    assert not torch.allclose(literal, empty)


def test_control_characters_do_not_reach_the_terminal(tiny_classifier_folder, capsys):
    text = "\x1b[2Jgone\x07\ttab\nline\x9b\u202e\rover"
    [row] = classified(capsys, tiny_classifier_folder, text)
    assert len(row) == 3
    assert row[2] == r"\x1b[2Jgone\x07\ttab\nline\x9b\u202e\rover"


def test_a_terminal_without_the_characters_gets_them_spelled_out(
    tiny_classifier_folder, monkeypatch
):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert classify.main([str(tiny_classifier_folder), "größer 🎉"]) == 0
    shown = terminal.buffer.getvalue().decode("ascii").rstrip()
    assert shown.split("\t")[2] == "gr\\xf6\\xdfer \\U0001f389"


@pytest.mark.skipif(os.name == "nt", reason="the shell's head is needed")
def test_a_reader_of_the_output_may_leave_early(tiny_classifier_folder):
    lines = b"a message of some length\n" * 20_000
    command = [sys.executable, str(CHAPTER / "classify.py"), str(tiny_classifier_folder)]
    process = subprocess.Popen(
        command,
        env=command_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    try:
        _, stderr = process.communicate(lines, timeout=100)
    except ValueError:  # communicate does not like the closed pipe
        stderr = process.stderr.read()
        process.wait(100)
    assert b"Traceback" not in stderr
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_standard_output_that_is_full_is_a_failure_in_one_sentence(tiny_classifier_folder):
    with open("/dev/full", "w") as output:
        done = subprocess.run(
            [sys.executable, CHAPTER / "classify.py", tiny_classifier_folder, "hello"],
            env=command_environment(),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("classify.py: [Errno 28] No space left")
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_closed_stream_is_a_failure_in_one_sentence(
    tiny_classifier_folder, capsys, monkeypatch, name
):
    monkeypatch.setattr(sys, f"std{name.removesuffix('put')}", None)  # as Python does
    said = fails(capsys, tiny_classifier_folder, status=1)
    assert said.startswith(f"classify.py: standard {name} is closed; ")
    assert said.count("\n") == 1


def test_out_of_memory_exits_1(tiny_classifier_folder, capsys, monkeypatch):
    def run_out_of_memory(*_, **__):
        torch.empty(2**50)  # more than any address space

    monkeypatch.setattr(classify, "classify_texts", run_out_of_memory)
    assert "out of memory" in fails(capsys, tiny_classifier_folder, "hello", status=1)


def test_a_csv_file_goes_in_and_a_csv_file_comes_out(tiny_classifier_folder, tmp_path, capsys):
    texts = ['a "quoted", cell', "two\nlines", "None", "", "see you at home tonight", "größer"]
    table = pd.DataFrame({"id": [f"{i:03}" for i in range(6)], "body": texts, "x": "NA"})
    table.to_csv(tmp_path / "in.csv", index=False)
    output = tmp_path / "out.csv"
    arguments = (tiny_classifier_folder, "--file", tmp_path / "in.csv")
    assert classified(capsys, *arguments, "--output", output) == []
    result = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert list(result.columns) == ["id", "body", "x", "predicted_label", "probability"]
    assert result["body"].tolist() == texts
    assert result["id"].tolist() == table["id"].tolist()
    assert set(result["x"]) == {"NA"}
    opened = open_classifier(tiny_classifier_folder)
    best = classify_texts(*opened, texts).max(dim=1)
    assert result["predicted_label"].tolist() == [
        opened[0].config.label_names[i] for i in best.indices
    ]
    assert result["probability"].astype(float).tolist() == pytest.approx(
        best.values.tolist(), abs=1e-4
    )
    assert not list(tmp_path.glob("out.csv.*"))

    assert classify.main([*map(str, arguments), "--text-column", "body"]) == 0
    assert capsys.readouterr().out == output.read_bytes().decode().replace("\r\n", "\n")


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_other_files_are_classified_alike(tiny_classifier_folder, tmp_path, capsys, ending):
    table = pd.DataFrame({"id": [1, 2, 3], "body": ["free prize", "see you", "at home"]})
    path = tmp_path / f"in.{ending}"
    if ending == "tsv":
        table.to_csv(path, sep="\t", index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    rows = classified(capsys, tiny_classifier_folder, "--file", path)
    direct = classified(capsys, tiny_classifier_folder, *table["body"])
    expected = [f"{i},{text},{label}" for i, (label, _, text) in enumerate(direct, start=1)]
    assert rows[0] == ["id,body,predicted_label,probability"]
    assert [row[0].rpartition(",")[0] for row in rows[1:]] == expected


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--file", "absent.csv"), ["absent.csv", "no such file"]),
        (("--file", "in.csv", "--text-column", "txt"), ["in.csv", "'txt'", "'id', 'body'"]),
        (("--file", "in.csv", "a text"), ["not both"]),
        (("a text", "--output", "out.csv"), ["--output", "--file"]),
        (("--file", "in.csv", "--output", "./in.csv"), ["--output is --file itself"]),
        (("a text", "--text-column", "body"), ["--text-column", "--file"]),
        (("a text", "--text-column", ""), ["--text-column", "--file"]),
        (("--file", "again.csv", "--output", "out.csv"), ["again.csv", "'probability'", "rename"]),
        (("--file", "in.doc"), ["in.doc", "must end in"]),
        (("--file", "in.csv", "--resume"), ["--resume", "--output"]),
        (("--file", "in.csv", "--output", "there.csv"), ["there.csv", "already", "--overwrite"]),
        (("--file", "empty.csv"), ["empty.csv", "is empty"]),
        (("--file", "header.csv"), ["header.csv", "no rows"]),
        (("--file", "latin1.csv"), ["latin1.csv", "UTF-8", "--encoding"]),
        (("--file", "."), ["folder"]),
        (("--separator", ";", "a text"), ["--separator", "--file"]),
        (("--encoding", "latin-1", "a text"), ["--encoding", "--file"]),
        (("--device", "tpu", "a text"), ["--device", "'tpu'"]),
    ],
)
def test_classify_names_what_is_wrong(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch, arguments, parts
):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("id,body\n1,hello\n", encoding="utf-8")
    Path("again.csv").write_text("body,probability\nhello,1\n", encoding="utf-8")
    Path("there.csv").write_text("mine", encoding="utf-8")
    Path("empty.csv").write_bytes(b"")
    Path("in.doc").write_bytes(b"")
    Path("header.csv").write_text("id,body\n", encoding="utf-8")
    Path("latin1.csv").write_bytes("body\ncafé\n".encode("latin-1"))
    said = fails(capsys, tiny_classifier_folder, *arguments)
    for part in parts:
        assert part in said
    assert not Path("out.csv").exists()
    assert Path("there.csv").read_text(encoding="utf-8") == "mine"


def test_an_output_file_that_cannot_be_written_is_named(tiny_classifier_folder, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("body\nhello\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    arguments = (tiny_classifier_folder, "--file", tmp_path / "in.csv", "--output")
    assert "folder" in fails(capsys, *arguments, tmp_path / "folder")
    (tmp_path / "loop").symlink_to("loop")
    fails(capsys, *arguments, tmp_path / "loop" / "out.csv", status=1)
    with file_size_limit(10):
        said = fails(capsys, *arguments, tmp_path / "out.csv", status=1)
    assert said.count("\n") <= 3
    assert not (tmp_path / "out.csv").exists()


def test_ctrl_c_while_libraries_are_imported_is_one_word():
    stopped = run_python("-c", "import ctrl_c; raise KeyboardInterrupt", PYTHONPATH=str(CHAPTER))
    assert stopped.stderr == "stopped.\n"
    commands = [
        p for p in CHAPTER.parent.glob("0*/**/*.py") if "\ndef main(" in p.read_text("utf-8")
    ]
    assert len(commands) >= 20
    for path in commands:
        lines = path.read_text("utf-8").splitlines()
        before = lines[: lines.index("import ctrl_c  # noqa: F401")]
        imported = {line.split()[1] for line in before if line.startswith(("import ", "from "))}
        assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names, path


def test_ctrl_c_ends_classify_in_one_word(tiny_classifier_folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(classify, "standard_input_lines", interrupted)
    assert classify.main([str(tiny_classifier_folder)]) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_folder_that_is_none_is_named(tmp_path, capsys):
    said = fails(capsys, tmp_path / "absent", "hello")
    assert "absent" in said
    assert "not a classifier folder" in said


def test_a_tokenizer_that_cannot_be_had_exits_1(tiny_classifier_folder, capsys, monkeypatch):
    def unavailable(_):
        raise gpt_download.DownloadError("no network")

    monkeypatch.setattr(classifier_folder, "load_tokenizer", unavailable)
    assert "no network" in fails(capsys, tiny_classifier_folder, "hello", status=1)


def test_true_labels_in_the_file_tell_how_good_the_answers_are(
    tiny_classifier_folder, tmp_path, capsys
):
    texts = [f"free prize number {i}" for i in range(20)]
    predicted = [row[0] for row in classified(capsys, tiny_classifier_folder, *texts)]
    other = {"ham": "spam", "spam": "ham"}
    truth = [f" {label} " if i % 4 else other[label] for i, label in enumerate(predicted)]
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    pd.DataFrame({"text": texts, "kind": truth}).to_csv(path, index=False)
    arguments = ["--file", path, "--output", output, "--label-column", "kind"]
    assert classify.main([str(a) for a in (tiny_classifier_folder, *arguments)]) == 0
    assert "accuracy 75.0%, 95% interval [53.1%, 88.8%]" in capsys.readouterr().out
    again = [*arguments, "--overwrite", "--all-probabilities"]
    assert classify.main([str(a) for a in (tiny_classifier_folder, *again)]) == 0
    table = pd.read_csv(output)
    columns = table[["probability of ham", "probability of spam"]]
    assert columns.sum(axis=1).tolist() == pytest.approx([1] * 20, abs=2e-4)
    assert columns.max(axis=1).tolist() == table["probability"].tolist()
    pd.DataFrame({"text": ["a"], "probability of ham": ["mine"]}).to_csv(path, index=False)
    arguments = (tiny_classifier_folder, "--file", path, "--all-probabilities")
    assert "'probability of ham'" in fails(capsys, *arguments)


def test_the_column_that_a_classifier_was_trained_on_is_read(tmp_path, capsys):
    data = write_csv(tmp_path / "data.csv", made_up_messages(10), "short,kind")  # a guess
    tiny = {"model": "gpt-mini", "trainable": "head", "num_epochs": 1, "max_length": 8}
    tiny |= {"continued_pretraining_epochs": 0, "quiet": True}
    fine_tune(RunConfig(data=data, output=tmp_path / "folder", **tiny))
    path = tmp_path / "in.csv"
    path.write_text("short,long\nwin,see you at home tonight\n", encoding="utf-8")
    assert classify.main([str(tmp_path / "folder"), "--file", str(path)]) == 0
    assert "column 'short'" in capsys.readouterr().err


def test_two_columns_of_one_name_are_refused(tiny_classifier_folder, tmp_path, capsys):
    path = tmp_path / "in.csv"
    path.write_text("body,body\na,b\n", encoding="utf-8")
    assert "two columns are called 'body'" in fails(capsys, tiny_classifier_folder, "--file", path)
