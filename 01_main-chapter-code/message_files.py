"""A reader's own data: labelled texts from CSV, TSV, JSON lines and Parquet files.

Whatever is wrong with a file is said in one sentence that names the file, what was found and
what to do.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd


class DataError(ValueError):
    """A file of messages cannot be used; the message says why and what to do."""


def read_messages(
    path: Path, text_column: str | None = None, label_column: str | None = None
) -> pd.DataFrame:
    """Labelled texts from a CSV, TSV, JSON lines or Parquet file.

    Columns that are not named are guessed, and the guess is printed. Raises ``DataError`` if the
    file cannot be read or holds no usable rows.
    """
    table = read_table(path)
    if text_column is None or label_column is None:
        text_column, label_column = guess_columns(table, path, text_column, label_column)
        print(f"Reading texts from column {text_column!r}, labels from column {label_column!r}.")
    check_columns(table, path, [text_column, label_column])
    if text_column == label_column:
        raise DataError(f"{path}: text and label cannot both be column {text_column!r}.")
    messages = pd.DataFrame(
        {"text": as_strings(table[text_column]), "label": as_strings(table[label_column])}
    )
    usable = messages[(messages.text.str.strip() != "") & (messages.label.str.strip() != "")]
    if len(usable) < len(messages):
        print(f"Left out {len(messages) - len(usable)} rows without a text or without a label.")
    if usable.empty:
        raise DataError(f"{path}: no row holds both a text and a label.")
    return usable.reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """The table in a file, by its ending; every cell of a text format is a string."""
    path = Path(path)
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": lambda path: _parse_csv(path, _read_text(path), ","),
        ".tsv": lambda path: _parse_csv(path, _read_text(path), "\t"),
        ".jsonl": _read_json_lines,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: the name must end in {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty.")
    table = readers[path.suffix.lower()](path)
    if table.empty:
        raise DataError(f"{path}: there are no rows below the header.")
    return table


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
    check_columns(table, path, [name for name in (text_column, label_column) if name])
    if len(table.columns) < 2:
        raise DataError(
            f"{path}: one column of texts and one of labels are needed, found only "
            f"{table.columns[0]!r}; is the separator right?"
        )
    cells = table.apply(as_strings)
    if text_column is None:
        text_column = guess_text_column(cells.drop(columns=label_column or []))
    if label_column is None:
        counts = cells.drop(columns=text_column).nunique()
        label_column = (counts[counts > 1] if (counts > 1).any() else counts).idxmin()
    if str(label_column) in set(cells[label_column]):
        raise DataError(
            f"{path}: the first line looks like a message, not like a header; put a line with "
            f"the names of the columns above it."
        )
    return text_column, label_column


def guess_text_column(table: pd.DataFrame) -> str:
    """The column with the longest texts on average."""
    return table.apply(as_strings).map(len).mean().idxmax()


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: the file is in UTF-16; save it as UTF-8.")
    if b"\0" in raw:
        raise DataError(f"{path}: the file holds binary data (NUL bytes), not text.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}); if the file is in "
            f"Latin-1 or Windows-1252, save it as UTF-8."
        ) from None


def _parse_csv(path: Path, text: str, separator: str) -> pd.DataFrame:
    # In a TSV, quotes are ordinary characters unless the whole file is properly quoted.
    quoting = csv.QUOTE_MINIMAL
    if separator == "\t" and not _is_properly_quoted(text):
        quoting = csv.QUOTE_NONE
    try:
        cells = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,  # as one row among others, so that no column is renamed or made an index
            dtype=str,
            keep_default_na=False,
            quoting=quoting,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise DataError(f"{path}: not a table separated by {separator!r}: {reason}.") from None
    header = [name or f"column {number}" for number, name in enumerate(cells.iloc[0], start=1)]
    return cells[1:].set_axis(header, axis="columns").reset_index(drop=True)


def _is_properly_quoted(text: str) -> bool:
    try:
        widths = {len(row) for row in csv.reader(io.StringIO(text), delimiter="\t", strict=True)}
    except csv.Error:
        return False
    return len(widths - {0}) == 1


def _read_json_lines(path: Path) -> pd.DataFrame:
    records = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}: line {number} is not a JSON object with named fields.")
        records.append(record)
    return pd.DataFrame(records, dtype=object)  # so that whole numbers stay whole


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path, dtype_backend="numpy_nullable")  # whole numbers stay whole
    except Exception as error:  # pyarrow's errors share no class
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a Parquet file that can be read: {reason}") from None
    return table.set_axis(table.columns.map(str), axis="columns")
