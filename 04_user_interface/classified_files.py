"""Many messages: a file goes in, a table with every class's probability comes out."""

import csv
import re
from collections.abc import Iterator
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
from html_parts import new_file
from opened import Opened
from thresholds import decide

from classify import ADDED_COLUMNS, check_added
from message_files import (
    DataError,
    as_strings,
    check_columns,
    guess_text_column,
    read_table,
    text_lines,
)

ROWS_AT_ONCE = 250  # few enough to be stopped soon
FILE_TYPES = [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx", ".gz"]

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


def read_rows(path: Path) -> pd.DataFrame:
    """The table in a file; of a text file, one with a row for each line that is not empty."""
    if path.suffix.lower() != ".txt":
        return read_table(path)
    with path.open("rb") as file:
        lines = [line.rstrip("\r\n") for line in text_lines(file, str(path))]
    if not any(map(str.strip, lines)):
        raise DataError(f"{path}: the file is empty.")
    return pd.DataFrame({"text": filter(str.strip, lines)})


def guess_label_column(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    """The column whose cells all are names of classes, if there is one."""
    for column in table.columns:
        if set(as_strings(table[column]).str.strip()) <= {*names, ""}:
            return column
    return None


class Job:
    """The classification of one file. Raises ``DataError`` for a file that cannot be used."""

    def __init__(self, opened: Opened, file: Path, text_column: str | None = None):
        self.opened, self.name = opened, file.name
        self.probabilities = np.empty((0, len(opened.names)))
        """Of the messages that are done: (N, C)."""
        try:
            self.table = table = read_rows(file)
            trained_on = (opened.card.get("training") or {}).get("text_column")
            if not text_column:
                known = trained_on in table.columns
                text_column = trained_on if known else guess_text_column(table, file)
            check_columns(table, file, [text_column])
            check_added(file, table.columns, ADDED_COLUMNS)
        except DataError as error:  # without the folder, which visitors need not know
            said = str(error).partition(": ")[2]
            where = " The option is one of classify.py." if "--" in said else ""
            raise DataError(f"{file.name}: {said}{where}") from None
        self.text_column = text_column
        self.texts = as_strings(table[text_column]).tolist()
        self.label_column = guess_label_column(table.drop(columns=text_column), opened.names)

    def run(self) -> Iterator[None]:
        """Classify some rows between one value and the next."""
        for start in range(0, len(self.texts), ROWS_AT_ONCE):
            answers = self.opened.probabilities(self.texts[start : start + ROWS_AT_ONCE])
            self.probabilities = np.concatenate([self.probabilities, answers])
            yield

    @property
    def num_done(self) -> int:
        return len(self.probabilities)

    def labels(self) -> np.ndarray:
        """Index of the true class of each row that is done; -1 where the file does not say it."""
        number = {name: i for i, name in enumerate(self.opened.names)}
        if not self.label_column:
            return np.full(self.num_done, -1)
        labels = as_strings(self.table[self.label_column][: self.num_done]).str.strip()
        return labels.map(number).fillna(-1).to_numpy(dtype=int)

    def write(self, threshold: float) -> Path:
        """What is done so far, with the answer at a threshold and all probabilities, as a CSV file
        no cell of which is a formula."""
        shares = self.probabilities.round(4)
        table = self.table[: len(shares)].astype(object)
        table["predicted_label"] = [decide(row, self.opened.names, threshold) for row in shares]
        table["probability"] = shares.max(axis=1)
        for name, column in zip(self.opened.names, shares.T):
            table[f"probability of {name}"] = column
        table = table.rename(columns=neutralise).map(neutralise)
        output = new_file(f"{Path(self.name).stem}-classified.csv")
        # The mark at the beginning tells spreadsheets the encoding. All texts in quotes, so that a
        # bare carriage return stays within its cell.
        quoting, encoding = csv.QUOTE_NONNUMERIC, "utf-8-sig"
        table.to_csv(output, index=False, quoting=quoting, encoding=encoding)
        return output
