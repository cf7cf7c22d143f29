"""A reader's own data: labelled texts from CSV, TSV, JSON, Parquet and Excel files, or a folder.

Whatever is wrong is said in one sentence: the file, what was found and what to do. Nothing is
repaired by guessing: a row that does not fit is an error, not a loss.
"""

import codecs
import csv
import gzip
import io
import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

NESTED = (list, dict, bytes)
TEXT_NAMES = ("text", "message", "sms", "sentence", "review", "question", "comment", "tweet", "v2")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "topic", "intent", "v1")
LABEL_NAMES += ("labels",)


class DataError(ValueError):
    """A file of messages cannot be used; the message says why and what to do."""


class TextFormat(NamedTuple):
    """How a text file is read, where its name does not say it."""

    separator: str | None = None
    """Of the cells; a tab may be written `\\t`, as a shell passes it on."""
    encoding: str | None = None
    """By a name that Python knows; None is UTF-8."""
    label_sets: Sequence[str] = ()
    """Columns in which a list is the set of a text's labels: it becomes one cell, `hot|cheap`."""


AS_NAMED = TextFormat()


def read_messages(
    path: Path,
    text_column: str | None = None,
    label_column: str | None = None,
    log: Callable[[str], Any] = print,
    text_format: TextFormat = AS_NAMED,
) -> pd.DataFrame:
    """Labelled texts from a file, or from a folder of them; a set of labels may be empty.

    Columns that are not named are guessed; the guess and the rows left out are logged; `attrs`
    of the result name the columns. Raises ``DataError`` if there are no usable rows.
    """
    table = read_table(path, text_format)
    if Path(path).is_dir():
        labels, files = _sub_folders_and_files(Path(path))
        if labels and files:
            log(f"Not read, beside the sub-folders: {', '.join(f.name for f in files)[:200]}.")
    check_columns(table, path, [name for name in (text_column, label_column) if name is not None])
    is_guess = None in (text_column, label_column)
    if text_column is None:
        others = table.columns.difference([label_column], sort=False)
        text_column = guess_text_column(table[others], path)
    if label_column is None:
        label_column = guess_label_column(table.drop(columns=text_column), path)
    if is_guess:
        others = ", ".join(repr(n) for n in table if n not in (text_column, label_column))
        unread = f", nothing from {others[:200]}" if others else ""
        log(f"Reading texts from column {text_column!r}, labels from {label_column!r}{unread}.")
    check_columns(table, path, [text_column, label_column])
    if text_column == label_column:
        raise DataError(f"{path}: text and label cannot both be column {text_column!r}.")
    messages = pd.DataFrame(
        {
            "text": as_strings(table[text_column]),
            "label": as_strings(table[label_column]).map(normal_form),
        }
    )
    if is_guess:
        log(f"The first: {messages.text[0][:60]!r} is {messages.label[0]!r}.")
    has_label = (messages.label != "") | bool(text_format.label_sets)
    messages.attrs = {"text_column": text_column, "label_column": label_column}
    usable = messages[(messages.text.str.strip() != "") & has_label]
    if len(usable) < len(messages):
        log(f"Left out {len(messages) - len(usable)} rows without a text or without a label.")
    if usable.empty:
        raise DataError(f"{path}: no row holds both a text and a label.")
    return usable.reset_index(drop=True)


def normal_form(text: str) -> str:
    """A label, a column's name or a text without what nobody sees: outer and repeated white space,
    marks of zero width, and the difference between composed and decomposed accents.

    >>> normal_form(" very\u00a0 hot\u200b ")
    'very hot'
    """
    visible = re.sub("[\u200b-\u200d\u2060\ufeff]", "", unicodedata.normalize("NFC", text))
    return " ".join(visible.split())


def read_table(path: Path, text_format: TextFormat = AS_NAMED) -> pd.DataFrame:
    """The table in a file, by its ending; every cell of a text format is a string."""
    pieces = read_table_in_pieces(path, text_format=text_format)
    return pd.concat(pieces, ignore_index=True)


def read_table_in_pieces(
    path: Path, num_rows: int = 10_000, text_format: TextFormat = AS_NAMED
) -> Iterator[pd.DataFrame]:
    """The same table `num_rows` at a time, so that the file may be larger than the memory.

    What is wrong with a row is found when the row is reached.
    """
    path = Path(path)
    readers = dict.fromkeys((".csv", ".tsv"), _read_separated)
    readers |= dict.fromkeys((".json", ".jsonl"), _read_json)
    readers |= {".parquet": _read_parquet, ".xlsx": _read_excel}
    if path.is_dir():
        yield _read_folder(path, text_format)
        return
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending not in readers:
        raise DataError(
            f"{path}: the name must end in {', '.join(readers)}, or one with .gz; "
            f"finetune.py takes a folder of texts, too."
        )
    num_pieces, set_columns = 0, {*text_format.label_sets}
    for piece in readers[ending](path, num_rows, text_format):
        if not piece.empty:
            num_pieces += 1
            piece = piece.rename(columns=normal_form)
            sets = [name for name in piece.columns if {name, name.lower()} & set_columns]
            yield piece.assign(**{name: piece[name].map(_join_list) for name in sets})
    if not num_pieces:
        raise DataError(f"{path}: the file is empty, or holds a header only.")


# --- columns -----------------------------------------------------------------------------------


def as_strings(column: pd.Series) -> pd.Series:
    """Cells as text, missing ones as the empty text."""
    return column.astype(object).where(column.notna(), "").map(str)


def _join_list(cell: Any) -> Any:
    """A list of plain values as one cell; anything else as it is."""
    if type(cell) is not list or any(type(v) in NESTED or "|" in str(v) for v in cell):
        return cell
    return "|".join(map(str, cell))


def _is_nested(column: pd.Series) -> bool:
    return column.map(type).isin(NESTED).any()


def check_columns(table: pd.DataFrame, path: Path, names: Iterable[str]) -> None:
    """Raise ``DataError`` unless these columns are there, once each, with a cell a row."""
    columns = table.columns
    repeated = columns[columns.duplicated()]
    if len(repeated):
        raise DataError(
            f"{path}: two columns are called {repeated[0]!r}; give every column its own name."
        )
    missing = [name for name in names if name not in columns]
    if missing:
        raise DataError(
            f"{path}: there is no column {missing[0]!r}; the columns are "
            f"{', '.join(map(repr, columns))}."
        )
    if nested := [name for name in names if _is_nested(table[name])]:
        raise DataError(
            f"{path}: column {nested[0]!r} holds lists, objects or bytes; one text or one "
            f"label a row is needed, or --multi-label, for lists of labels that hold no |."
        )


def guess_text_column(table: pd.DataFrame, path: Path, trained_on: str | None = None) -> str:
    """The column that a classifier was `trained_on`, else one with a usual name, else that whose
    different cells hold the most text."""
    if trained_on in table.columns:
        return trained_on
    if (named := _named(table, path, TEXT_NAMES, "--text-column")) is not None:
        return named
    if table.columns.empty:
        raise DataError(f"{path}: there is no column of texts beside that of the labels.")

    def size(column: pd.Series) -> int:  # one plain word, such as a link, is hardly a text
        cells = [] if _is_nested(column) else as_strings(column).unique()
        return sum(len(c) if " " in c or not c.isascii() else 1 for c in cells)

    guessed = table.apply(size).idxmax()
    if len(table.columns) == 1 and len(guessed.split()) > 3:
        _complain_about_header(path, "--text-column")
    return guessed


def guess_label_column(table: pd.DataFrame, path: Path) -> str:
    """Of the columns beside that of the texts, the one with a usual name, or the only one."""
    if (named := _named(table, path, LABEL_NAMES, "--label-column")) is not None:
        return named
    if len(table.columns) == 0:
        raise DataError(
            f"{path}: one column of texts and one of labels are needed, found only one. If the "
            f"separator is another one, name it with --separator."
        )
    if len(table.columns) > 1:
        raise DataError(
            f"{path}: which column holds the labels? Name it with --label-column; there are "
            f"{', '.join(map(repr, table))[:200]}."
        )
    if table.columns[0] in set(as_strings(table.iloc[:, 0])):
        _complain_about_header(path, "--label-column")
    return table.columns[0]


def _named(table: pd.DataFrame, path: Path, usual: Sequence[str], option: str) -> str | None:
    found = [name for name in table.columns if name.lower() in usual]
    if len(found) > 1:
        raise DataError(f"{path}: is it {' or '.join(map(repr, found))}? Name it with {option}.")
    return found[0] if found else None


def _complain_about_header(path: Path, option: str) -> None:
    raise DataError(
        f"{path}: the first line looks like a message, not like a header; put a line with the "
        f"names of the columns above it. If it is the header, name the column with {option}."
    )


# --- formats -----------------------------------------------------------------------------------


def text_lines(file: BinaryIO, name: str, encoding: str | None = None) -> Iterator[str]:
    """The lines of a text, with their ends; UTF-8 if no other encoding is named.

    Raises ``DataError``; where no encoding is named, with the line that is not UTF-8.
    """
    errors = "surrogateescape" if encoding is None else "strict"  # bytes that are no UTF-8 are kept
    try:
        is_utf8 = encoding is None or codecs.lookup(encoding).name == "utf-8"
        codec = "utf-8-sig" if is_utf8 else encoding  # leaves out a byte order mark
        lines = io.TextIOWrapper(file, codec, errors, newline="\n")
        for number, line in enumerate(lines, start=1):
            if encoding is None and (wrong := re.search("[\0\udc80-\udcff]", line)):
                binary = "looks like binary data" if wrong[0] == "\0" else "is not UTF-8"
                raise DataError(
                    f"{name}: line {number} {binary} (byte 0x{ord(wrong[0]) % 256:02x}); save it "
                    f"as UTF-8, or name its encoding: --encoding utf-16, windows-1252 or latin-1, "
                    f"perhaps."
                )
            yield line
    except LookupError:
        raise DataError(f"--encoding {encoding}: there is no encoding of this name.") from None
    except UnicodeError as error:
        raise DataError(f"{name}: this is not the --encoding of the text ({error}).") from None


def _lines(path: Path, text_format: TextFormat) -> Iterator[str]:
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            yield from text_lines(file, str(path), text_format.encoding)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the compressed file is damaged ({error}).") from None


def _read_separated(path: Path, num_rows: int, text_format: TextFormat) -> Iterator[pd.DataFrame]:
    """Tables of the rows below the first, which has the names; missing last cells are empty."""
    lines = _lines(path, text_format)
    separator = (text_format.separator or "").replace("\\t", "\t")
    is_tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
    first = next(lines, "")
    if declared := re.fullmatch(r"sep=(.)\s*", first):  # a line that Excel writes
        separator, first = separator or declared[1], "\n"
    lines = chain([first], lines)
    separator = separator or ("\t" if is_tsv else _guess_separator(first, path))
    is_quoted = not is_tsv or _is_properly_quoted(path, text_format, separator)
    rows = _rows(path, lines, separator, csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE)
    header = _header(next(rows, []))
    while piece := list(islice(rows, num_rows)):
        yield pd.DataFrame([row + [""] * (len(header) - len(row)) for row in piece], columns=header)


def _header(cells: Iterable[str]) -> list[str]:
    return [name or f"column {i}" for i, name in enumerate(cells, start=1)]


def _guess_separator(header: str, path: Path) -> str:
    """A comma, or a semicolon where the header has only these, outside of quotes."""
    found = {*re.sub('"[^"]*"', "", header)} & {",", ";"}
    if len(found) == 2:
        raise DataError(f"{path}: the header has , and ; : name the --separator.")
    return found.pop() if found else ","


def _is_properly_quoted(path: Path, text_format: TextFormat, separator: str) -> bool:
    """Whether quotes enclose cells in a TSV file; in most they are ordinary characters."""
    try:
        rows = _rows(path, _lines(path, text_format), separator, csv.QUOTE_MINIMAL)
        width = len(next(rows, []))
        widths = {len(row) for row in rows if "\n" in "".join(row)}
    except DataError:
        return False
    # A lone quote would swallow what follows, to the next one, cells with their line breaks: the
    # row is too short then, or else each line of the file is a row by itself.
    if widths == {width} and width > 1:
        lines = _lines(path, text_format)
        return any(line.count(separator) != width - 1 for line in lines if line.strip())
    return widths <= {width}


def _rows(path: Path, lines: Iterable[str], separator: str, quoting: int) -> Iterator[list[str]]:
    """The cells of each row, empty lines left out. Raises ``DataError``, with the line in which the
    row begins, for wrong quotes and for a row that is longer than the first."""
    if len(separator) != 1 or separator in '"\r\n':
        raise DataError(f"--separator {separator!r} must be one character, such as ; or \\t.")
    csv.field_size_limit(10_000_000)  # characters; a long document is more than the usual 131,072
    rows = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
    begin, width = 1, None
    try:
        for row in rows:
            if row:
                width = width or len(row)
                if len(row) > width:
                    raise DataError(
                        f"{path}: line {begin} has {len(row)} cells separated by {separator!r}, "
                        f"the header has {width}; quote cells that hold it, or name another "
                        f"--separator."
                    )
                yield row
            begin = rows.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that begins in line {begin} is no CSV ({error}). A cell with quotes "
            f"in it must be quoted as a whole, its own quotes doubled."
        ) from None


def _read_json(path: Path, num_rows: int, text_format: TextFormat) -> Iterator[pd.DataFrame]:
    """An object a line, or one array of objects."""
    lines = _lines(path, text_format)
    first = next(lines, "")
    if first.startswith("["):
        parts = iter([(f"{path}", first + "".join(lines))])
    else:
        numbered = enumerate(chain([first], lines), start=1)
        parts = ((f"{path}: line {i}", line) for i, line in numbered if line.strip())
    records = (record for where, text in parts for record in _json_objects(text, where))
    while piece := list(islice(records, num_rows)):
        yield pd.DataFrame(piece, dtype=object)  # so that whole numbers stay whole


def _json_objects(text: str, where: str) -> list[dict]:
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair is no text
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
    objects = content if isinstance(content, list) else [content]
    for entry in objects:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {str(entry)[:60]} is not a JSON object with named fields.")
    return objects


def _read_parquet(path: Path, num_rows: int, _: TextFormat) -> Iterator[pd.DataFrame]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(num_rows):
                # Whole numbers stay whole, even where some are missing; and without pandas'
                # metadata, a named index is a column like any other.
                table = batch.to_pandas(integer_object_nulls=True, ignore_metadata=True)
                for i, field in enumerate(batch.schema):
                    if pa.types.is_nested(field.type):  # else arrays, which NumPy abbreviates
                        table.isetitem(i, batch.column(i).to_pylist())
                table = table.set_axis(table.columns.map(str), axis="columns")
                yield table.loc[:, ~table.columns.str.fullmatch(r"__index_level_\d+__")]
    except Exception as error:  # pyarrow's errors share no class
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read: {reason}") from None


def _read_excel(path: Path, num_rows: int, _: TextFormat) -> Iterator[pd.DataFrame]:
    """The first sheet of a workbook."""
    try:
        table = pd.read_excel(path, header=None, dtype=str, keep_default_na=False)
    except ImportError:
        raise DataError(
            f"{path}: reading .xlsx needs `python -m pip install openpyxl`; or save it as CSV."
        ) from None
    except Exception as error:  # openpyxl's errors share no class
        raise DataError(f"{path}: not a workbook that can be read: {error}") from None
    table = table[(table != "").any(axis="columns")]
    if table.empty:
        return
    table, table.columns = table[1:], _header(table.iloc[0])
    for start in range(0, len(table), num_rows):
        yield table[start : start + num_rows].reset_index(drop=True)


def _sub_folders_and_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """What lies in a folder of texts, but for hidden entries and a README."""
    entries = sorted(e for e in folder.iterdir() if not re.match(r"\.|.*readme", e.name.lower()))
    return [e for e in entries if e.is_dir()], [e for e in entries if e.is_file()]


def _read_folder(folder: Path, text_format: TextFormat) -> pd.DataFrame:
    """Sub-folders are labels, their files texts; without any, files are labels, lines are texts."""
    labels, files = _sub_folders_and_files(folder)
    by_stem = {entry.stem: entry for entry in (*labels, *files)}
    if {"train", "test"} <= by_stem.keys():
        raise DataError(
            f"{folder} holds two parts: --data {by_stem['train']} --test-data {by_stem['test']}."
        )
    rows = [
        {"text": "".join(_lines(file, text_format)).strip(), "label": label.name}
        for label in labels
        for file in sorted(label.rglob("*"))
        if file.is_file() and not re.search(r"[/\\]\.", str(file.relative_to(folder)))
    ]
    if not labels:
        same_stem = len({file.stem for file in files}) < len(files)  # reviews.pos, reviews.neg
        rows = [
            {"text": line.strip(), "label": file.name if same_stem else file.stem}
            for file in files
            for line in _lines(file, text_format)
        ]
    if not rows:
        raise DataError(f"{folder}: there are no texts in this folder.")
    return pd.DataFrame(rows)
