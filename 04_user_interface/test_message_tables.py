"""Files of many messages: read, classified piece by piece, and safe to open in a spreadsheet."""

import csv
from pathlib import Path

import message_tables
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from message_tables import ROWS_SHOWN, classify_into, neutralise, num_columns

from gpt_download import load_mini_tokenizer
from message_files import DataError
from previous_chapters import GPTConfig, GPTModel
from text_classifier import Classifier, add_classification_head, classify_texts


@pytest.fixture(scope="module")
def tiny() -> Classifier:
    torch.manual_seed(0)
    tokenizer = load_mini_tokenizer()
    shape = {"vocab_size": tokenizer.n_vocab, "context_length": 16, "emb_dim": 8}
    model = GPTModel(GPTConfig(**shape, num_heads=1, num_layers=1))
    add_classification_head(model, num_classes=2)
    return Classifier(model.eval(), tokenizer, "gpt-mini", ["ham", "=spam()"], 16)


def classified(classifier: Classifier, path: Path, column: str | None = None):
    """All states of the work, and the finished file as a table of texts."""
    output = path.parent / "out.csv"
    output.unlink(missing_ok=True)
    states = list(classify_into(classifier, path, column, output))
    return states, pd.read_csv(output, dtype=str, keep_default_na=False)


@pytest.mark.parametrize(
    "cell", ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "=HYPERLINK(1)"]
)
def test_a_formula_becomes_text(cell):
    assert neutralise(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "hello", "-5", "+44 7700", "1=1", "-1,5%", 7, None, 0.5])
def test_only_formulas_are_changed(cell):
    expected = f"'{cell}" if cell == "+44 7700" else cell  # a space: no plain number
    assert neutralise(cell) == expected


def test_a_duration_is_no_formula_either():
    assert neutralise(pd.Timedelta(days=-1)) == "'-1 days +00:00:00"
    assert neutralise(pd.Timedelta(days=1)) == pd.Timedelta(days=1)


def test_no_part_of_a_text_begins_a_cell_where_semicolons_do(tiny, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("text\nhello;=HYPERLINK(1)\n", "utf-8")
    classified(tiny, path, "text")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))
    assert all(cell[:1] not in "=+-@" for row in rows for cell in row)
    assert rows[1][0].startswith("hello;=HYPERLINK(1)")


def test_no_cell_heading_or_label_of_the_download_is_a_formula(tiny, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('=head,text\n=1+1,"hello there, you"\n@x,=2+2 and more text\n', "utf-8")
    classified(tiny, path, "text")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["'=head", "text"]
    assert [row[:2] for row in rows[1:]] == [
        ["'=1+1", "hello there, you"],
        ["'@x", "'=2+2 and more text"],
    ]
    assert {row[2] for row in rows[1:]} <= {"ham", "'=spam()"}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_answers(tiny, tmp_path, ending):
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
    states, result = classified(tiny, path)
    assert result["text"].tolist() == texts
    best = classify_texts(tiny, texts).max(dim=1)
    labels = [neutralise(tiny.label_names[i]) for i in best.indices.tolist()]
    assert result["predicted_label"].tolist() == labels
    probabilities = result["probability"].astype(float).tolist()
    assert probabilities == pytest.approx(best.values.tolist(), abs=1e-4)
    assert states[-1].num_done == states[-1].num_rows == 4
    assert states[-1].shown["message"].tolist() == texts
    assert sum(states[-1].counts.values()) == 4


def test_a_bare_carriage_return_stays_in_its_cell(tiny, tmp_path):
    path = tmp_path / "in.jsonl"
    texts = ["see you\rat home", "free prize now"]
    pd.DataFrame({"text": texts}).to_json(path, orient="records", lines=True)
    assert classified(tiny, path)[1]["text"].tolist() == texts


def test_a_hundred_thousand_rows_come_back_in_order(tiny, tmp_path):
    path = tmp_path / "many.csv"
    rows = [f"{i},message number {i % 977}" for i in range(100_000)]
    path.write_text("\n".join(["id,text", *rows]), encoding="utf-8")
    states, result = classified(tiny, path, "text")
    assert result["id"].tolist() == [str(i) for i in range(100_000)]
    assert result["predicted_label"][:977].tolist() == result["predicted_label"][977:1954].tolist()
    assert len(states) > 20  # so often, the bar moves
    assert [state.num_done for state in states] == sorted({state.num_done for state in states})
    assert len(states[-1].shown) == ROWS_SHOWN
    assert states[-1].shown["row"].tolist() == list(range(1, ROWS_SHOWN + 1))


def test_commas_in_quotes_are_text(tiny, tmp_path):
    path = tmp_path / "in.csv"
    texts = ["a, " * 2_000 + "b", 'he said "well,"\n' * 1_500]
    pd.DataFrame({"text": texts, "id": ["1,5", "2"]}).to_csv(path, index=False)
    assert num_columns(path) == 2
    states, result = classified(tiny, path, "text")
    assert result["text"].tolist() == texts
    # The browser gets the beginning only.
    assert [text[:199] for text in texts] == [text[:-1] for text in states[-1].shown["message"]]
    assert states[-1].shown["message"].str.len().tolist() == [200, 200]


def test_a_table_of_too_many_cells_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(message_tables, "MAX_CELLS", 5)
    path = tmp_path / "in.csv"
    path.write_text("text,id\nhello,1\nhello,2\n", encoding="utf-8")
    assert len(classified(tiny, path)[1]) == 2
    path.write_text("text,id\nhello,1\nhello,2\nhello,3\n", encoding="utf-8")
    with pytest.raises(DataError, match="more than 5 cells"):
        classified(tiny, path)


def test_a_parquet_file_of_too_many_columns_is_refused(tiny, tmp_path):
    path = tmp_path / "in.parquet"
    pd.DataFrame({f"column {i}": ["text"] for i in range(1_001)}).to_parquet(path)
    with pytest.raises(DataError, match="1,000 columns"):
        classified(tiny, path)


def repeated(value, num_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), [value])


PARQUET_BOMBS = {
    "pages of zeros": ({"id": pa.array([0] * 1_000_000)}, {"use_dictionary": False}),
    "numbers that repeat": ({"id": repeated(0, 1_000_000)}, {}),
    "a long text": ({"text": repeated("x" * 2_000_000, 50_000)}, {"store_schema": False}),
    "a text that a cell may hold": ({"text": repeated("x" * 400_000, 50_000)}, {}),
    "lists": (
        {"text": pa.ListArray.from_arrays([0, 500, 1_000], repeated("x" * 100_000, 1_000))},
        {"store_schema": False},
    ),
}


@pytest.mark.parametrize("bomb", PARQUET_BOMBS)
def test_a_parquet_file_that_unpacks_hugely_is_refused_first(tiny, tmp_path, monkeypatch, bomb):
    columns, how = PARQUET_BOMBS[bomb]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), path, compression="zstd", **how)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(message_tables, "MAX_UNPACKED", 7_000_000)
    monkeypatch.delattr(message_tables, "survey_file")  # the reader must not be reached
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match=r"in\.parquet: unpacked, .* more than 7 MB; leave out"):
            classified(tiny, path)
    finally:
        pa.set_memory_pool(usual)
    assert pool.max_memory() < 150_000_000  # two rows of lists; unpacked, the texts take 20 GB


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_an_ordinary_parquet_file_passes_however_it_is_packed(tiny, tmp_path, encoding):
    path = tmp_path / "in.parquet"
    texts = [f"message number {i}, and some more of it" for i in range(300)]
    columns = {"text": texts, "tags": [["a", "b"], []] * 150, "more": [{"a": {"b": "c"}}] * 300}
    how = {"use_dictionary": ["tags"], "column_encoding": {"text": encoding}}
    pq.write_table(pa.table(columns), path, row_group_size=70, **how)
    assert classified(tiny, path)[1]["text"].tolist() == texts


def test_a_parquet_file_that_is_cut_short_is_no_parquet_file(tiny, tmp_path):
    path = tmp_path / "in.parquet"
    pd.DataFrame({"text": [f"message number {i}" for i in range(1_000)]}).to_parquet(path)
    content = path.read_bytes()
    for damaged in (content[:-100], content[:4] + b"?" * 500 + content[504:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a Parquet file that can be read"):
            classified(tiny, path)


@pytest.mark.parametrize(
    ("name", "content", "column", "parts"),
    [
        ("a.csv", b"id,text\n1,hello\n", "message", ["message", "text"]),
        ("a.csv", b"text\nca\xf1on\n", None, ["UTF-8"]),
        ("a.txt", b"ca\xf1on\n", None, ["UTF-8"]),
        ("a.txt", b" \n\n", None, ["no message"]),
        ("a.csv", b"", None, ["empty"]),
        ("a.csv", b"text\n", None, ["no rows"]),
        ("a.csv", "text\nhi\n".encode("utf-16"), None, ["UTF-16", "UTF-8"]),
        ("a.csv", b"text\n\x00\n", None, ["binary"]),
        ("a.csv", b"a,b\n1,2,3,4\n", None, ["table"]),
        ("a.parquet", b"nothing", None, ["Parquet"]),
        ("a.xlsx", b"PK", None, [".csv", ".parquet"]),
        ("a.csv", b"," * 1_000_000, None, ["1,000 columns"]),
        ("a.csv", b"text\nhello\n" + b"," * 1_000_000, None, ["1,000 columns"]),
        ("a.csv", b'\xef\xbb\xbf"x,"y' + b"," * 1_000 + b'"\nhi\n', None, ["1,000 columns"]),
        ("a.csv", b'a,"\n",' * 1_001 + b"\n", None, ["1,000 columns"]),
        ("a.tsv", b"\t" * 1_000_000, None, ["1,000 columns"]),
        ("a.jsonl", b"".join(b'{"%d": 1}\n' % i for i in range(1_001)), None, ["1,000 columns"]),
        ("a.csv", b"text\nhi\n" + b"x" * 500_001 + b"\n", None, ["row 2", "'text'", "500,000"]),
        ("a.txt", b"hi\n" + b" x" * 250_001, None, ["row 2", "500,000"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tiny, tmp_path, name, content, column, parts):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        classified(tiny, path, column)
    for part in parts:
        assert part in str(refused.value)
