"""Files of many messages: classified piece by piece, and safe to open in a spreadsheet."""

import csv

import pandas as pd
import pytest

pytest.importorskip("gradio", reason="needs requirements-extra.txt")

from classified_files import ROWS_SHOWN, classify_upload, neutralise

from classifier_folder import classify_texts
from message_files import DataError


@pytest.fixture(scope="module")
def tiny(make_tiny):
    return make_tiny(("ham", "=spam()"), max_length=16)


@pytest.fixture
def classified(tiny, tokenizer, tmp_path):
    """A function that gives all states of the work on a file, and the finished file's path."""

    def classify(path, column=None):
        output = tmp_path / "out.csv"
        output.unlink(missing_ok=True)
        return list(classify_upload(tiny, tokenizer, path, column, output)), output

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
    with classified(path, "text")[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["'=head", "text"]
    assert [row[:2] for row in rows[1:]] == [
        ["'=1+1", "hello there, you"],
        ["'@x", "'=2+2 and more"],
    ]
    assert {row[2] for row in rows[1:]} <= {"ham", "'=spam()"}


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_answers(tiny, tokenizer, classified, tmp_path, ending):
    texts = ["see you at home", "<b>bold</b> & more", "مرحبا 👩‍👩‍👧", "free prize now"]
    path = tmp_path / f"in{ending}"
    table = pd.DataFrame({"text": texts})
    if ending == ".parquet":
        table.to_parquet(path)
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif ending == ".txt":
        path.write_text("\ufeff" + "\r\n".join([*texts, "", " "]), encoding="utf-8", newline="")
    else:
        table.to_csv(path, sep="," if ending == ".csv" else "\t", index=False)
    states, output = classified(path)
    result = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert result["text"].tolist() == texts
    best = classify_texts(tiny, tokenizer, texts).max(dim=1)
    labels = [tiny.config.label_names[i] for i in best.indices.tolist()]
    assert result["predicted_label"].tolist() == list(map(neutralise, labels))
    probabilities = result["probability"].astype(float).tolist()
    assert probabilities == pytest.approx(best.values.tolist(), abs=1e-4)
    assert states[-1].num_done == states[-1].num_rows == 4
    assert states[-1].shown["message"].tolist() == texts
    assert sum(states[-1].counts.values()) == 4


def test_every_cell_comes_back_whole_and_the_browser_gets_its_beginning(classified, tmp_path):
    path = tmp_path / "in.jsonl"
    texts = ["a, " * 2_000 + "b", 'he said "well,"\n' * 1_500, "see you\rat home"]
    pd.DataFrame({"text": texts, "id": ["1,5", "2", ""]}).to_json(
        path, orient="records", lines=True
    )
    states, output = classified(path, "text")
    assert pd.read_csv(output, dtype=str, keep_default_na=False)["text"].tolist() == texts
    shown = states[-1].shown["message"].tolist()
    assert [text[:199] for text in texts[:2]] == [text[:-1] for text in shown[:2]]


def test_a_hundred_thousand_rows_come_back_in_order(classified, tmp_path):
    path = tmp_path / "many.csv"
    rows = [f"{i},message number {i % 977}" for i in range(100_000)]
    path.write_text("\n".join(["id,text", *rows]), encoding="utf-8")
    states, output = classified(path, "text")
    result = pd.read_csv(output, dtype=str)
    assert result["id"].tolist() == [str(i) for i in range(100_000)]
    assert result["predicted_label"][:977].tolist() == result["predicted_label"][977:1954].tolist()
    assert len(states) > 20  # so often, the bar moves
    assert [state.num_done for state in states] == sorted({state.num_done for state in states})
    assert states[-1].shown["row"].tolist() == list(range(1, ROWS_SHOWN + 1))


@pytest.mark.parametrize(
    ("name", "content", "column", "parts"),
    [
        ("a.csv", b"id,text\n1,hello\n", "message", ["message", "text"]),
        ("a.csv", b"text,probability\nhi,1\n", None, ["'probability'", "already"]),
        ("a.txt", b"ca\xf1on\n", None, ["UTF-8"]),
        ("a.txt", b" \n\n", None, ["empty"]),
        ("a.xlsx", b"PK", None, [".csv", ".parquet"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(classified, tmp_path, name, content, column, parts):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        classified(path, column)
    for part in parts:
        assert part in str(refused.value)
