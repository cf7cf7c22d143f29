"""Files of many messages: classified piece by piece, and safe to open in a spreadsheet."""

import csv
import threading

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("gradio", reason="needs 04_user_interface/requirements-extra.txt")

from classified_files import Job, neutralise
from html_parts import fleeting_file
from opened import Opened, read_own_messages

from classifier_folder import classify_texts, save_classifier
from message_files import DataError


@pytest.fixture(scope="module")
def opened(make_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_classifier(make_tiny(("ham", "=spam()"), max_length=16), folder)
    return Opened(folder)


@pytest.fixture
def classified(opened):
    """A function that classifies a file, and gives the finished job and the file it wrote."""

    def classify(path, column=None, threshold=0.0):
        job = Job(opened, path, column)
        job.run()
        return job, job.write("csv", threshold)

    return classify


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "=LINK(1)", "+44 7700"],
)
def test_a_formula_becomes_text(cell):
    assert neutralise(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "hello", "-5", "1=1", "-1,5%", 7, None, 0.5])
def test_only_formulas_are_changed(cell):
    assert neutralise(cell) == cell


def test_no_cell_heading_or_label_of_the_download_is_a_formula(classified, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('=head,text\n=1+1,"hello there, you"\n@x,=2+2 and more\n', "utf-8")
    with classified(path, "text")[1].open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["'=head", "text"]
    assert [row[:2] for row in rows[1:]] == [
        ["'=1+1", "hello there, you"],
        ["'@x", "'=2+2 and more"],
    ]
    assert {row[2] for row in rows[1:]} <= {"ham", "'=spam()"}


@pytest.mark.parametrize("ending", [".csv", ".txt"])  # of tables one kind suffices
def test_tables_and_texts_get_the_classifiers_answers(opened, classified, tmp_path, ending):
    texts = ["see you at home", "<b>bold</b> & more", "مرحبا 👩‍👩‍👧", "free prize now"]
    path = tmp_path / f"in{ending}"
    if ending == ".txt":
        path.write_text("\ufeff" + "\r\n".join([*texts, "", " "]), encoding="utf-8", newline="")
    else:
        pd.DataFrame({"text": texts}).to_csv(path, index=False)
    job, output = classified(path)
    result = pd.read_csv(output, keep_default_na=False)
    assert result["text"].tolist() == texts
    expected = classify_texts(opened.classifier, opened.tokenizer, texts)
    labels = [opened.names[i] for i in expected.argmax(dim=1).tolist()]
    assert result["predicted_label"].tolist() == list(map(neutralise, labels))
    assert result["probability"].tolist() == pytest.approx(expected.amax(dim=1), abs=1e-4)
    assert result["probability of ham"].tolist() == pytest.approx(expected[:, 0], abs=1e-4)
    assert job.num_done == 4


def test_every_cell_comes_back_whole_from_csv_and_excel(classified, tmp_path):
    path = tmp_path / "in.jsonl"
    texts = ["a, " * 2_000 + "b", 'he said "well,"\n' * 1_500, "see you\rat home"]
    pd.DataFrame({"text": texts, "id": ["1,5", "2", ""]}).to_json(
        path, orient="records", lines=True
    )
    job, output = classified(path, "text")
    assert output.read_bytes().startswith(b"\xef\xbb\xbf")  # by which spreadsheets know UTF-8
    assert pd.read_csv(output, dtype=str, keep_default_na=False)["text"].tolist() == texts
    excel = pd.read_excel(job.write("xlsx", 0), dtype=str, keep_default_na=False)
    assert excel["text"].tolist()[:2] == texts[:2]
    assert job.texts == texts


def test_excel_gets_what_it_cannot_hold_as_text(classified, tmp_path):
    times = pd.to_datetime(["2026-01-02T03:04:05+01:00"])
    pd.DataFrame({"text": ["bell \x07 rings"], "at": times}).to_parquet(tmp_path / "in.parquet")
    job, _ = classified(tmp_path / "in.parquet")
    excel = pd.read_excel(job.write("xlsx", 0))
    assert "rings" in excel["text"][0]
    assert excel["at"][0].startswith("2026-01-02")


def test_the_downloads_answer_is_that_of_the_page_and_not_of_rounded_numbers(classified, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text\nhello\nmum\n", encoding="utf-8")
    job, _ = classified(path)
    job.probabilities = np.array([[0.49996, 0.50004], [0.98996, 0.01004]])
    labels = [pd.read_csv(job.write("csv", t))["predicted_label"].tolist() for t in (0, 0.99)]
    assert labels == [["'=spam()", "ham"], ["undecided", "undecided"]]


def test_below_the_threshold_the_download_is_undecided(classified, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text\nhello\nmum\n", encoding="utf-8")
    labels = pd.read_csv(classified(path, threshold=0.999)[1])["predicted_label"]
    assert set(labels) == {"undecided"}


def test_what_is_done_of_a_stopped_job_can_be_had(opened, tmp_path, monkeypatch):
    path = tmp_path / "some.csv"
    path.write_text("text\n" + "hello\n" * 3_000, encoding="utf-8")
    job, classify = Job(opened, path), opened.probabilities

    def stop_after_the_first(texts):
        job.wanted = False
        return classify(texts)

    monkeypatch.setattr(opened, "probabilities", stop_after_the_first)
    job.run()
    assert job.ended
    assert 0 < job.num_done < 3_000
    assert len(pd.read_csv(job.write("csv", 0))) == job.num_done


def test_the_files_own_labels_are_found(classified, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("text,kind\nhello there mum,ham\nwin,=spam()\nwell,\n", encoding="utf-8")
    job, _ = classified(path)
    assert job.label_column == "kind"
    assert job.labels().tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("name", "content", "column", "part"),
    [
        ("a.csv", b"id,text\n1,hello\n", "message", "no column 'message'"),
        ("a.csv", b"text,probability\nhi,1\n", None, "adds a column 'probability'"),
        ("a.csv", b"text,probability of ham\nhi,1\n", None, "a column 'probability of ham'"),
        ("a.txt", b"ca\xf1on\n", None, "UTF-8"),
        ("a.txt", b" \n\n", None, "empty"),
        ("a.doc", b"PK", None, ".parquet"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(classified, tmp_path, name, content, column, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part) as refused:
        classified(tmp_path / name, column)
    said = str(refused.value)
    assert said.startswith(f"{name}: ")
    assert ("--" in said) == said.endswith(" The option is one of classify.py.")


def test_a_written_file_is_deleted_after_an_hour(monkeypatch):
    timers = []
    monkeypatch.setattr(
        threading, "Timer", lambda *given: timers.append(given) or threading.Thread()
    )
    path = fleeting_file("a.csv")
    path.touch()
    [(seconds, delete, arguments)] = timers
    delete(*arguments)
    assert seconds == 3600
    assert not path.parent.exists()


def test_own_messages_are_found_after_a_start_from_another_classifier(folder):
    options = Opened(folder).card["training"] | {"start_from": "first", "start_from_sha256": "0"}
    data = folder.parent / "messages.csv"
    assert len(read_own_messages(options, data).splits.train) > 0
    assert read_own_messages(options | {"test_data": "elsewhere.csv"}, data) is None
