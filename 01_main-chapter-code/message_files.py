"""A reader's own data: labelled texts from CSV, TSV, JSON lines and Parquet files.

Whatever is wrong with a file is said in one sentence that names the file, what was found and
what to do.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

ROWS_AT_ONCE = 10_000
# Characters of a quoted TSV cell. A quote that nobody closes would take the rest of the file, and
# all memory, for one cell; Python's own limit of 131,072 is too small for a long document.
MAX_CELL = 10_000_000


class DataError(ValueError):
    """A file of messages cannot be used; the message says why and what to do."""


def read_messages(
    path: Path,
    text_column: str | None = None,
    label_column: str | None = None,
    say: Callable[[str], Any] = print,
) -> pd.DataFrame:
    """Labelled texts from a CSV, TSV, JSON lines or Parquet file.

    Columns that are not named are guessed, and the guess is said, as are rows left out. Raises
    ``DataError`` if the file cannot be read or holds no usable rows.
    """
    table = read_table(path)
    if text_column is None or label_column is None:
        text_column, label_column = guess_columns(table, path, text_column, label_column)
        say(f"Reading texts from column {text_column!r}, labels from column {label_column!r}.")
    check_columns(table, path, [text_column, label_column])
    if text_column == label_column:
        raise DataError(f"{path}: text and label cannot both be column {text_column!r}.")
    messages = pd.DataFrame(
        {"text": as_strings(table[text_column]), "label": as_strings(table[label_column])}
    )
    usable = messages[(messages.text.str.strip() != "") & (messages.label.str.strip() != "")]
    if len(usable) < len(messages):
        say(f"Left out {len(messages) - len(usable)} rows without a text or without a label.")
    if usable.empty:
        raise DataError(f"{path}: no row holds both a text and a label.")
    return usable.reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """The table in a file, by its ending; every cell of a text format is a string."""
    return pd.concat(read_table_in_pieces(path), ignore_index=True)


def read_table_in_pieces(path: Path, num_rows: int = ROWS_AT_ONCE) -> Iterator[pd.DataFrame]:
    """The same table `num_rows` at a time, so that the file may be larger than the memory.

    What is wrong with a row is found when the row is reached.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, int], Iterator[pd.DataFrame]]] = {
        ".csv": lambda path, num_rows: _read_csv(path, num_rows, ","),
        ".tsv": lambda path, num_rows: _read_csv(path, num_rows, "\t"),
        ".jsonl": _read_json_lines,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: the name must end in {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    empty = True
    for piece in readers[path.suffix.lower()](path, num_rows):
        if not piece.empty:
            empty = False
            yield piece
    if empty:
        raise DataError(f"{path}: there are no rows below the header.")


def as_strings(column: pd.Series) -> pd.Series:
    """Cells as text, missing ones as the empty text."""
    return column.astype(object).where(column.notna(), "").map(str)


def check_columns(table: pd.DataFrame, path: Path, names: Sequence[str]) -> None:
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


def guess_columns(
    table: pd.DataFrame, path: Path, text_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The longest texts on average are the text, the fewest different values the label."""
    check_columns(table, path, [name for name in (text_column, label_column) if name is not None])
    if len(table.columns) < 2:
        raise DataError(
            f"{path}: one column of texts and one of labels are needed, found only "
            f"{table.columns[0]!r}; is the separator right?"
        )
    cells = table.apply(as_strings)
    if text_column is None:
        others = cells.drop(columns=[] if label_column is None else label_column)
        text_column = guess_text_column(others)
    if label_column is None:
        counts = cells.drop(columns=text_column).nunique()
        label_column = (counts[counts > 1] if (counts > 1).any() else counts).idxmin()
        if str(label_column) in set(cells[label_column]):  # a column that was named has a header
            raise DataError(
                f"{path}: the first line looks like a message, not like a header; put a line with "
                f"the names of the columns above it. If it is the header, name the label's column "
                f"with --label-column."
            )
    return text_column, label_column


def guess_text_column(table: pd.DataFrame) -> str:
    """The column with the longest texts on average."""
    return table.apply(as_strings).map(len).mean().idxmax()


def _check_text(path: Path) -> None:
    """Raise ``DataError`` unless the file is text in UTF-8."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: the file is in UTF-16; save it as UTF-8.")
        file.seek(0)
        if any(b"\0" in line for line in file):
            raise DataError(f"{path}: the file holds binary data (NUL bytes), not text.")
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); if the "
                    f"file is in Latin-1 or Windows-1252, save it as UTF-8."
                ) from None


def _read_csv(path: Path, num_rows: int, separator: str) -> Iterator[pd.DataFrame]:
    _check_text(path)
    # In a TSV, quotes are ordinary characters unless the whole file is properly quoted.
    quoting = csv.QUOTE_MINIMAL
    if separator == "\t" and not _is_properly_quoted(path):
        quoting = csv.QUOTE_NONE
    header = None
    try:
        with pd.read_csv(
            path,
            encoding="utf-8-sig",
            sep=separator,
            header=None,  # as one row among others, so that no column is renamed or made an index
            dtype=str,
            keep_default_na=False,
            quoting=quoting,
            chunksize=num_rows,
        ) as pieces:
            for cells in pieces:
                if header is None:
                    names = enumerate(cells.iloc[0], start=1)
                    header = [name or f"column {number}" for number, name in names]
                    cells = cells[1:]
                yield cells.set_axis(header, axis="columns").reset_index(drop=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"{path}: not a table separated by {separator!r}: {reason}.") from None


def _is_properly_quoted(path: Path) -> bool:
    csv.field_size_limit(MAX_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            widths = {len(row) for row in csv.reader(file, delimiter="\t", strict=True)}
    except csv.Error:
        return False
    return len(widths - {0}) == 1


def _read_json_lines(path: Path, num_rows: int) -> Iterator[pd.DataFrame]:
    _check_text(path)
    records = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                records.append(_read_json_object(line, f"{path}: line {number}"))
            if len(records) == num_rows:
                yield pd.DataFrame(records, dtype=object)  # so that whole numbers stay whole
                records = []
    if records:
        yield pd.DataFrame(records, dtype=object)


def _read_json_object(line: str, where: str) -> dict:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} is not a JSON object with named fields.")
    return record


def _read_parquet(path: Path, num_rows: int) -> Iterator[pd.DataFrame]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(num_rows):
                # Whole numbers stay whole, even where some are missing; and without pandas'
                # metadata, a named index is a column like any other.
                table = batch.to_pandas(integer_object_nulls=True, ignore_metadata=True)
                table = table.set_axis(table.columns.map(str), axis="columns")
                yield table.loc[:, ~table.columns.str.fullmatch(r"__index_level_\d+__")]
    except Exception as error:  # pyarrow's errors share no class
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read: {reason}") from None
