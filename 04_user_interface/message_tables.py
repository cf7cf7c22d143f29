"""Many messages: a file goes in, a table with labels and confidences comes out."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from numbers import Number
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from html_parts import visible

from classify import Survey, classify_file, survey_file
from growing_file import as_csv
from message_files import ROWS_AT_ONCE, DataError, as_strings
from text_classifier import Classifier

FILE_TYPES = [".csv", ".tsv", ".txt", ".jsonl", ".parquet"]
ROWS_SHOWN = 500  # in the browser; the download holds all
CHARACTERS_SHOWN = 200  # of a message there
# A small file can stand for a table that fills the memory: 50 MB of commas, for instance.
MAX_COLUMNS = 1_000
MAX_CELLS = 20_000_000
MAX_CHARACTERS = 500_000  # of one cell; tiktoken's patterns overflow at a million spaces
# Bytes of a Parquet file's table; ten times the largest upload, and texts shrink to a third or so.
MAX_UNPACKED = 500_000_000

# A spreadsheet runs a cell as a formula if it begins with one of these signs (the wide ones in
# Japanese and Chinese programs); a plain number is harmless.
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")


def neutralise(cell: object) -> object:
    """A cell that a spreadsheet shows instead of running it: a quote goes before a formula.

    >>> neutralise("=1+1"), neutralise("-5"), neutralise("Win!")
    ("'=1+1", '-5', 'Win!')
    """
    if isinstance(cell, Number):
        return cell
    text = str(cell)  # of dates and durations, too
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else cell


def as_table_file(path: Path, folder: Path) -> Path:
    """A text file with a message on each line becomes a table in `folder`; tables stay."""
    if path.suffix.lower() != ".txt":
        return path
    table = folder / f"{path.stem}.jsonl"
    try:
        with path.open(encoding="utf-8-sig") as lines, table.open("w", encoding="utf-8") as rows:
            texts = (line.removesuffix("\n") for line in lines if line.strip())
            rows.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    except UnicodeDecodeError:
        raise DataError(f"{path}: the file is not text in UTF-8; save it as UTF-8.") from None
    if table.stat().st_size == 0:
        raise DataError(f"{path}: the file holds no message.")
    return table


def num_columns(path: Path) -> int:
    """How many columns a table file has, counted without holding the table.

    What is not such a file has none: the reader says later what is wrong with it.
    """
    ending = path.suffix.lower()
    if ending == ".parquet":
        try:
            return len(pq.read_schema(path))
        except (pa.ArrowException, OSError):
            return 0
    if ending == ".jsonl":
        keys: set[str] = set()
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
            for line in lines:
                keys.update(json_keys(line))
                if len(keys) > MAX_COLUMNS:
                    break
        return len(keys)
    separator = b"\t" if ending == ".tsv" else b","
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    # Separators in quoted cells are text, except in a TSV that is not quoted properly. Quotes open
    # a cell at its beginning only; the pattern looks back from them, since `re` finds a sign fast.
    quoted = rb'"(?<![^\r\n%s]")[^"]*+(?:""[^"]*+)*+"?+' % separator
    readings = [re.sub(quoted, b"", content)]
    if ending == ".tsv":
        readings.append(content)
    lines = (line[0] for text in readings for line in re.finditer(rb"[^\r\n]+", text))
    return 1 + max((line.count(separator) for line in lines), default=0)


def json_keys(line: str) -> Iterable[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return ()
    return record if isinstance(record, dict) else ()


def check_unpacked(path: Path) -> None:
    """Raise ``DataError`` for a Parquet file that would fill the memory when it is read."""
    try:
        too_large = any(size > MAX_UNPACKED for size in unpacked_sizes(path))
    except Exception as error:  # pyarrow's errors share no class
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read: {reason}") from None
    if too_large:
        raise DataError(
            f"{path}: unpacked, the table takes more than {MAX_UNPACKED // 10**6:,} MB; leave out "
            f"the columns that are not needed, or split it."
        )


def unpacked_sizes(path: Path) -> Iterator[int]:
    """Bytes of a Parquet file's pages, then of the texts in its first rows, in more rows, …"""
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        columns = [file.metadata.schema.column(i) for i in range(file.metadata.num_columns)]
        # Numbers that repeat take next to nothing in a page, but 8 bytes each in a table.
        yield sum(
            max(chunk.total_uncompressed_size, chunk.num_values * max(8, column.length))
            for group in groups
            for chunk, column in zip(map(group.column, range(len(columns))), columns)
        )
        texts = [i for i, column in enumerate(columns) if column.physical_type == "BYTE_ARRAY"]
        names = [columns[i].path for i in texts]
        num_bytes = 0
        for i, group in enumerate(groups):
            # A text that is stored once may stand in all rows. It is no longer than its column's
            # pages: so many rows are read at a time that not even the longest fill the memory.
            chunks = map(group.column, texts)
            most = sum(chunk.total_uncompressed_size * chunk.num_values for chunk in chunks)
            num_rows = MAX_UNPACKED // 2 * group.num_rows // max(1, most)
            num_rows = min(max(1, num_rows), ROWS_AT_ONCE)
            for batch in file.iter_batches(num_rows, row_groups=[i], columns=names):
                for texts_read in batch.columns:
                    if pa.types.is_dictionary(texts_read.type):  # pandas' categories
                        texts_read = texts_read.dictionary_decode()
                    num_bytes += texts_read.nbytes
                yield num_bytes


def survey_table(path: Path, text_column: str | None) -> Survey:
    """`survey_file`, but a table that is too large is refused before it takes the memory."""

    def check_cells(num_rows: int, num_columns: int) -> None:
        if num_rows * num_columns > MAX_CELLS:
            raise DataError(
                f"{path}: the table has more than {MAX_CELLS:,} cells; leave out the columns that "
                f"are not needed, or split it."
            )

    def check(table: pd.DataFrame, num_before: int) -> None:
        check_cells(num_before + len(table), len(table.columns))  # now: the rest may be endless
        for name, column in table.items():
            lengths = as_strings(column).map(len)
            if lengths.max() > MAX_CHARACTERS:
                raise DataError(
                    f"{path}: in row {num_before + int(lengths.argmax()) + 1}, the cell in column "
                    f"{name!r} is longer than {MAX_CHARACTERS:,} characters."
                )

    width = num_columns(path) if path.is_file() else 0
    if width > MAX_COLUMNS:
        raise DataError(f"{path}: the table has more than {MAX_COLUMNS:,} columns.")
    if width and path.suffix.lower() == ".parquet":
        check_unpacked(path)
    survey = survey_file(path, text_column, check)
    check_cells(survey.num_rows, len(survey.columns))
    return survey


def shorten(text: str) -> str:
    """What the browser is sent of a text.

    >>> len(shorten("a" * 1000)), shorten("Win!")
    (200, 'Win!')
    """
    cut = text if len(text) <= CHARACTERS_SHOWN else text[: CHARACTERS_SHOWN - 1] + "…"
    return visible(cut)


class Progress(NamedTuple):
    """Where the work on a file stands."""

    num_done: int
    num_rows: int
    shown: pd.DataFrame
    """The first rows: number, message, label, confidence."""
    counts: Counter
    """Messages by predicted label."""


def classify_into(
    classifier: Classifier, path: Path, text_column: str | None, output: Path
) -> Iterator[Progress]:
    """Classify a file piece by piece into a CSV file, and say after each piece how far it is.

    The file has all columns of the original, `predicted_label` and `probability`; no cell of it
    is a formula. Raises ``DataError`` for a file or column that cannot be used.
    """
    table_file = as_table_file(path, output.parent)
    survey = survey_table(table_file, text_column)
    done, shown, counts = 0, [], Counter()
    for piece in classify_file(classifier, table_file, survey):
        safe = piece.rename(columns=neutralise).map(neutralise)
        with output.open("a", encoding="utf-8", newline="") as file:
            # In quotes: some spreadsheets would begin a cell, or a formula, at a semicolon.
            file.write(as_csv(safe, header=done == 0, quote_texts=True))
        if done < ROWS_SHOWN:
            rows = piece[: ROWS_SHOWN - done]
            numbers = range(done + 1, done + len(rows) + 1)
            texts = as_strings(rows[survey.text_column]).map(shorten)
            confidences = (round(float(value), 4) for value in rows.probability)
            shown.extend(zip(numbers, texts, rows.predicted_label.map(visible), confidences))
        done += len(piece)
        counts.update(piece.predicted_label)
        table = pd.DataFrame(shown, columns=["row", "message", "label", "confidence"])
        yield Progress(done, survey.num_rows, table, counts)
