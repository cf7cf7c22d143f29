"""A reader's own files: what is read from them, and what is said about those that cannot be."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from message_files import DataError, TextFormat, read_messages, read_table

ROWS = [("Win a prize, now", "spam"), ("See you at home", "ham"), ("Call 0900 to claim", "spam")]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def pairs(messages: pd.DataFrame) -> list[tuple[str, str]]:
    return list(messages[["text", "label"]].itertuples(index=False, name=None))


def json_lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def refusal(path: Path, **columns) -> str:
    """What is said about a file that cannot be used; the sentence names the file."""
    with pytest.raises(DataError) as caught:
        read_messages(path, **columns)
    message = str(caught.value)
    assert str(path) in message
    return message


def need_openpyxl() -> None:
    pytest.importorskip("openpyxl", reason="needs 04_user_interface/requirements-extra.txt")


def write_as(path: Path, rows: list[tuple[str, str]]) -> Path:
    """The rows in the format of the path's ending, with an id beside them."""
    table = pd.DataFrame(rows, columns=["text", "label"])
    table.insert(0, "id", range(len(table)))
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".xlsx":
        table.to_excel(path, index=False)
    elif path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return path


QUOTED = '"text","label"\n' + "".join(f'"{text}",{label}\n' for text, label in ROWS)
WITH_SEP = "sep=;\r\ntext;label\r\n" + "".join(f"{text};{label}\r\n" for text, label in ROWS)
ARRAY = json.dumps([{"text": text, "label": label} for text, label in ROWS])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"m.{ending}", None) for ending in ("csv", "tsv", "jsonl", "parquet", "xlsx")),
        *((f"m.{ending}.gz", None) for ending in ("csv", "tsv", "jsonl")),
        *(("m.CSV", QUOTED), ("sep.csv", WITH_SEP), ("m.json", ARRAY), ("m.jsonl", ARRAY)),
    ],
)
def test_every_format_gives_the_same_messages(tmp_path, name, content):
    path = tmp_path / name
    if content:
        write(path, content)
    elif name.endswith(".gz"):
        plain = write_as(tmp_path / name.removesuffix(".gz"), ROWS)
        write(path, gzip.compress(plain.read_bytes()))
    else:
        if name == "m.xlsx":
            need_openpyxl()
        write_as(path, ROWS)
    assert pairs(read_messages(path)) == ROWS


ODD = ['a "quoted" word, and a comma', "two\nlines", "windows\r\nlines", "tab\there", "None", "nan"]
ODD += ["NA", "null", "007", "1e5", "True", "x" * 100_000, "  spaces ", "#no comment", "\\N", "'"]
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)
PAIRS = st.tuples(TEXTS.filter(str.strip), st.sampled_from(["a", "None", "naïve", "0"]))


@settings(max_examples=50)
@example([(text, "nan") for text in ODD])
@given(st.lists(PAIRS, min_size=1, max_size=8))
def test_any_text_comes_back_as_it_was(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("any")
    for ending in ("csv", "jsonl", "parquet"):
        path = write_as(folder / f"m.{ending}", rows)
        assert pairs(read_messages(path, "text", "label", log=lambda _: None)) == rows


@pytest.mark.parametrize("encoding", ["windows-1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize(
    ("name", "separator"), [("m.csv", "\\t"), ("m.csv.gz", ";"), ("m.tsv", "|")]
)
def test_a_separator_and_an_encoding_can_be_named(tmp_path, name, separator, encoding):
    rows = [("café, 2; \nand more", "ham"), ('a "big" prize', "spam")]
    table = pd.DataFrame(rows, columns=["text", "label"])
    content = table.to_csv(sep=separator.replace("\\t", "\t"), index=False).encode(encoding)
    path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert pairs(read_messages(path, text_format=TextFormat(separator, encoding))) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "m.csv", "\ufefftext,label\nhello,ham\n")
    for encoding in (None, "UTF-8", "utf_8_sig"):
        table = read_table(path, TextFormat(encoding=encoding))
        assert list(table) == ["text", "label"]


@pytest.mark.parametrize(
    ("text_format", "says"),
    [
        (TextFormat(separator="||"), r"--separator '\|\|' must be one character"),
        (TextFormat(separator='"'), "--separator .* must be one character"),
        (TextFormat(encoding="latin-11"), "--encoding latin-11"),
        (TextFormat(encoding="ascii"), "--encoding"),
    ],
)
def test_a_separator_or_an_encoding_that_cannot_be_is_named(tmp_path, text_format, says):
    with pytest.raises(DataError, match=says):
        read_messages(write(tmp_path / "m.csv", LATIN1), text_format=text_format)


def write_all(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    return folder


def test_sub_folders_are_labels_and_their_files_texts(tmp_path, capsys):
    files = {"ham__b__2.txt": "two\nlines\n", "ham__a": "hello, you\r\n", "spam__1.txt": "win"}
    others = {"spam__.DS_Store": "no text", "notes.txt": "about the data", ".git__x": "no label"}
    others |= {"ham__.checkpoints__a": "an old text", "README": "about the data, too"}
    folder = write_all(tmp_path / "mails", **files, **others)
    expected = [("hello, you", "ham"), ("two\nlines", "ham"), ("win", "spam")]
    assert pairs(read_messages(folder)) == expected
    assert "Not read, beside the sub-folders: notes.txt.\n" in capsys.readouterr().out


@pytest.mark.parametrize("names", [("neg.txt", "pos.txt"), ("r.neg", "r.pos")])
def test_files_of_a_folder_are_labels_and_their_lines_texts(tmp_path, names):
    contents = ["dull\n\ntoo long\n", "a joy\r\nso fine\x85"]
    folder = write_all(tmp_path, **dict(zip(names, contents)), **{"the.README.1.txt": "About"})
    neg, pos = (name.removesuffix(".txt") for name in names)
    expected = [("dull", neg), ("too long", neg), ("a joy", pos), ("so fine", pos)]
    assert pairs(read_messages(folder)) == expected


def test_a_folder_that_cannot_be_used_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.csv" / "ham").mkdir(parents=True)
    assert "no texts" in refusal(tmp_path / "empty.csv")
    parts = write_all(tmp_path / "parts", train__pos__1="good", test__pos__1="fine")
    assert f"--data {parts / 'train'} --test-data {parts / 'test'}" in refusal(parts)
    files = write_all(tmp_path / "files", **{"train.csv": "text,label", "test.csv": "text,label"})
    assert f"--data {files / 'train.csv'} --test-data {files / 'test.csv'}" in refusal(files)
    write(parts / "train" / "pos" / "2", "café".encode("latin-1"))
    assert f"{Path('pos', '2')}: line 1 is not UTF-8" in refusal(parts / "train")
    messages = read_messages(parts / "train", text_format=TextFormat(encoding="latin-1"))
    assert pairs(messages) == [("good", "pos"), ("café", "pos")]


HI, WIN = ("hello, you", "ham"), ("free", "spam")
LONG = 'a "long" story ' * 20_000
LONG_CELL = LONG.replace('"', '""')
MEANINGS = {
    "byte order mark": ("csv", '\ufefftext,label\r\n"hello, you",ham\r\nfree,spam\r\n', [HI, WIN]),
    "semicolons": ("csv", "text;label\nhello, you;ham\nfree;spam\n", [HI, WIN]),
    "columns without a name": ("csv", 'label,body,,\nham,"hello, you",,\nspam,free,,\n', [HI, WIN]),
    "stray quotes": (
        "tsv",
        'text\tlabel\n"Sorry, I\'ll call\tham\nsay "hi\tham\n" free\tspam\n',
        [("\"Sorry, I'll call", "ham"), ('say "hi', "ham"), ('" free', "spam")],
    ),
    "two lone quotes with rows between": (
        "tsv",
        'text\tlabel\n"Sorry\tham\nhi\tham\nfree"\tspam\n',
        [('"Sorry', "ham"), ("hi", "ham"), ('free"', "spam")],
    ),
    "proper quotes": (
        "tsv",
        'text\tlabel\n"a ""big"" prize"\tspam\n"two\nlines\tand a tab"\tham\n"short"\nplain\tham\n',
        [('a "big" prize', "spam"), ("two\nlines\tand a tab", "ham"), ("plain", "ham")],
    ),
    "a long quoted cell": (
        "tsv",
        f'text\tlabel\n"{LONG_CELL}"\tham\n"short"\tspam\n',
        [(LONG, "ham"), ("short", "spam")],
    ),
    "lists in other columns": (
        "jsonl",
        json_lines(*({"meta": {"a": 1}, "tags": [1], "text": t, "label": y} for t, y in ROWS)),
        ROWS,
    ),
}


@pytest.mark.parametrize("case", MEANINGS)
def test_lines_are_read_as_they_are_meant(tmp_path, case):
    ending, content, rows = MEANINGS[case]
    assert pairs(read_messages(write(tmp_path / f"m.{ending}", content))) == rows


def write_cells(path: Path, cells: list[list[str]]) -> Path:
    pd.DataFrame(cells).to_excel(path, header=False, index=False)
    return path


def test_a_workbook_begins_with_the_names_of_its_columns_below_empty_rows(tmp_path):
    need_openpyxl()
    cells = [["", "", ""], ["text", "", "label"], ["a", "x", "1"], ["", "", ""], ["b", "", "2.5"]]
    table = read_table(write_cells(tmp_path / "m.xlsx", cells))
    assert list(table) == ["text", "column 2", "label"]
    assert table.values.tolist() == [["a", "x", "1"], ["b", "", "2.5"]]
    twice = write_cells(tmp_path / "twice.xlsx", [["text", "label", "text"], ["a", "b", "c"]])
    assert "two columns are called 'text'" in refusal(twice)
    empty = write_cells(tmp_path / "empty.xlsx", [])
    assert "the file is empty" in refusal(empty)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "as_texts"),
    [
        ([0, 1, None, 10], ["0", "1", "10"]),  # a gap must not turn 1 into 1.0
        ([True, False, None, True], ["True", "False", "True"]),
        (["größe", "価格", "🎉", ""], ["größe", "価格", "🎉"]),
        ([1.5, 2.0, 2.5, None], ["1.5", "2.0", "2.5"]),
    ],
)
def test_labels_of_any_type_become_texts(tmp_path, capsys, ending, labels, as_texts):
    texts = [f"message number {i}" for i in range(len(labels))]
    path = tmp_path / f"m.{ending}"
    if ending == "jsonl":
        write(path, json_lines(*({"text": t, "label": y} for t, y in zip(texts, labels))))
    else:
        pq.write_table(pa.table({"text": texts, "label": labels}), path)
    assert read_messages(path, "text", "label")["label"].tolist() == as_texts
    assert "Left out 1 rows" in capsys.readouterr().out


def test_a_label_column_that_is_named_may_be_called_like_a_label(tmp_path):
    rows = [("Win a prize", "spam"), ("See you at home", "no"), ("Call to claim", "spam")]
    path = write(tmp_path / "m.csv", "text,spam\n" + "".join(f"{t},{y}\n" for t, y in rows))
    assert "--label-column" in refusal(path)
    assert pairs(read_messages(path, label_column="spam")) == rows


def test_labels_are_read_without_what_nobody_sees(tmp_path):
    spellings = ["hot", "hot ", " hot", "h\u200bot", "hot\u00a0", "\ufeffhot"]
    rows = [(f"text {i}", label) for i, label in enumerate([*spellings, "cafe\u0301", "café"])]
    messages = read_messages(write_as(tmp_path / "m.csv", rows))
    assert messages["label"].tolist() == ["hot"] * 6 + ["café"] * 2


LONG_CELL_ROW, BODY_ROW = "a very long cell here,short,{i}", "s{i},a rather long message,{two}"


@pytest.mark.parametrize(
    ("header", "row", "named", "text_column", "label_column"),
    [
        ("id,source,label,body", "{i},web,{two},a long message", {}, "body", "label"),
        ("text,label,country", "short,{i},a very long cell here", {}, "text", "label"),
        ("split, Text ,Label", LONG_CELL_ROW, {}, "Text", "Label"),
        ("link,body", "https://a.very.long/link/{two},short text {i}", {}, "body", "link"),
        ("text,body,label", BODY_ROW, {"text_column": "body"}, "body", "label"),
        ("subject,body,kind", BODY_ROW, {"label_column": "subject"}, "body", "subject"),
    ],
)
def test_columns_are_guessed_and_the_guess_is_said(
    tmp_path, capsys, header, row, named, text_column, label_column
):
    """Usual names count more than what the columns hold; a column that is named is no guess."""
    lines = [header, *(row.format(i=i, two=i % 2) for i in range(6))]
    messages = read_messages(write(tmp_path / "m.csv", "\n".join(lines)), **named)
    assert messages.attrs == {"text_column": text_column, "label_column": label_column}
    said = capsys.readouterr().out
    assert f"texts from column {text_column!r}, labels from {label_column!r}" in said
    assert f"The first: {messages.text[0]!r} is {messages.label[0]!r}." in said


def test_a_parquet_file_may_have_numbers_for_names_and_an_index(tmp_path):
    rows = [("a b c", "x"), ("d e f", "y")]
    pd.DataFrame(rows).to_parquet(tmp_path / "numbers.parquet")
    assert pairs(read_messages(tmp_path / "numbers.parquet", "0", "1")) == rows
    table = pd.DataFrame({"id": ["a1", "a2", "a3"], "text": ["x", "y", "z"]})
    table.set_index("id").to_parquet(tmp_path / "named.parquet")
    table.iloc[[2, 0]].to_parquet(tmp_path / "unnamed.parquet")
    named, unnamed = (read_table(tmp_path / f"{name}.parquet") for name in ("named", "unnamed"))
    assert named["id"].tolist() == ["a1", "a2", "a3"]
    assert list(unnamed.columns) == ["id", "text"]


def test_lists_in_a_parquet_file_are_read_whole(tmp_path):
    lists = [list(range(n, n + 2000)) for n in range(2)]
    table = pd.DataFrame({"lists": lists, "text": ["a", "b"]})
    table.to_parquet(tmp_path / "m.parquet")
    assert list(read_table(tmp_path / "m.parquet")["lists"]) == lists


RECORDS = ({"text": "a b", "label": 1}, {"text": "c"}, {"label": 2}, {}, {"text": "", "label": 3})


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("m.csv", "text,label\n,ham\n   ,spam\nfree,\nwin,spam\nonly\n", ("win", "spam")),
        ("m.jsonl", json_lines(*RECORDS), ("a b", "1")),
    ],
)
def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, capsys, name, content, row):
    messages = read_messages(write(tmp_path / name, content), "text", "label")
    assert pairs(messages) == [row]
    assert list(messages.index) == [0]
    assert "Left out 4 rows" in capsys.readouterr().out


UTF16 = "text,label\nhello,ham\n".encode("utf-16")
LATIN1 = "text,label\nhello,ham\ncafé,ham\n".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("m.csv", "", ["empty"]),
        ("m.csv", "text,label\n", ["a header only"]),
        ("m.csv", "text,label\n,\n ,ham\n", ["no row holds both"]),
        ("m.txt", "text,label\na,b\n", ["must end in", ".csv", ".tsv", ".jsonl", ".parquet"]),
        ("m.csv", UTF16, ["0xff", "save it as UTF-8", "--encoding utf-16"]),
        ("m.csv", "text,label\na,b\n".encode("utf-16-le"), ["0x00", "--encoding utf-16"]),
        ("m.csv", "text,label\na,b\n\0\0", ["line 3 looks like binary data"]),
        ("m.csv", LATIN1, ["line 3", "0xe9", "--encoding", "latin-1", "save it as UTF-8"]),
        ("m.parquet", b"PAR1 but no more", ["not a Parquet file"]),
        ("m.csv", "text,label\na,b\nc,d,e\n", ["line 3", "','"]),
        ("m.csv", "sep=,\ntext,label\na,b\nc,d,e\n", ["line 4", "','"]),
        ("m.csv", 'text,label\na,b\n"never closed,ham\nc,d\n', ["line 3", "unexpected end"]),
        ("m.csv", 'text,label\n"Nice oven,hot\n"Old fridge,cold\n', ["line 2", "doubled"]),
        ("m.csv.gz", b"text,label\na,b\n", ["compressed file is damaged"]),
        ("m.csv.gz", gzip.compress(b"text,label\na,b\n")[:-9], ["compressed file is damaged"]),
        ("m.json", '[{"text": "a", "label": 1}, 7]', ["7 is not a JSON object"]),
        ("m.json", '{\n"text": "a"}', ["line 1", "not JSON"]),
        ("m.xlsx", "text,label\na,b\n", ["xlsx"]),
        ("m.tsv", "text\tlabel\na\tb\nc\td\te\n", ["line 3"]),
        ("m.csv", "text,label,text\na,b,c\n", ["'text'", "its own name"]),
        ("m.csv", "text;price,eur;label\na;3,5;hot\nb;2,5;cold\n", ["--separator"]),
        ("m.csv", "text|label\nhello|ham\n", ["--separator"]),
        ("m.csv", "text|label\nhello, you|ham\n", ["line 2", "--separator"]),
        ("m.csv", "text,message,label\na,b,c\n", ["'text' or 'message'", "--text-column"]),
        ("m.csv", "body,kind,source\nlong text,a,x\nlonger text,b,y\n", ["'kind', 'source'"]),
        ("m.jsonl", '{"text": "a", "label": ["x", "y"]}\n', ["'label'", "lists"]),
        ("m.jsonl", '{"text": "a", "tags": ["x", "y"]}\n', ["'tags'", "lists"]),
        ("m.jsonl", '{"chat": [{"role": "user"}], "label": "x"}\n', ["'chat'", "lists"]),
        ("m.jsonl", '{"text": "a \\ud83d", "label": 1}\n', ["line 1", "surrogates"]),
        ("m.jsonl", '{"text": "a", "label": 1}\n{"text": "a"', ["line 2", "not JSON"]),
        ("m.jsonl", '{"text": "a", "label": 1}\n\n["a", 1]\n', ["line 3", "JSON object"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, name, content, parts):
    message = refusal(write(tmp_path / name, content))
    for part in parts:
        assert part in message


def test_a_column_of_bytes_is_no_column_of_texts(tmp_path):
    pd.DataFrame({"text": [b"hi"], "label": ["x"]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="bytes"):
        read_messages(tmp_path / "m.parquet", log=lambda _: None)


@pytest.mark.parametrize("which", ["text_column", "label_column"])
def test_a_missing_column_is_named_beside_those_there_are(tmp_path, which):
    path = write_as(tmp_path / "m.csv", ROWS)
    for name in ("txt", ""):
        message = refusal(path, **{which: name})
        assert f"no column {name!r}; the columns are 'id', 'text', 'label'" in message
    assert "cannot both be" in refusal(path, text_column="text", label_column="text")


@pytest.mark.parametrize(("name", "separator"), [("m.csv", ","), ("m.tsv", "\t")])
def test_a_file_without_a_header_is_recognised(tmp_path, name, separator):
    rows = [*ROWS, ("Lunch tomorrow?", "ham")]
    content = "".join(f"{label}{separator}{text.replace(',', '')}\n" for text, label in rows)
    assert "names of the columns" in refusal(write(tmp_path / name, content))
