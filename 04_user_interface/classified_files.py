"""Many messages: a file goes in, a table with every class's probability comes out.

A `Job` goes on whether or not anybody watches it.
"""

import csv
import re
import threading
import time
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
from html_parts import fleeting_file, visible
from opened import Opened
from thresholds import decide

from classify import ROWS_AT_ONCE, added_columns, check_added
from message_files import (
    DataError,
    as_strings,
    check_columns,
    guess_text_column,
    read_table,
    text_lines,
)

FILE_TYPES = [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx", ".gz"]
ROWS_SHOWN = 500  # in the browser; the download holds all
ERRORS_SHOWN = 200
ONE_AT_A_TIME = threading.Lock()  # a large file keeps one core busy; the other is for messages

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
        self.wanted, self.ended = True, False
        self.probabilities = np.empty((0, len(opened.names)))
        """Of the messages that are done: (N, C)."""
        self.begin = 0.0
        try:
            self.table = table = read_rows(file)
            trained_on = (opened.card.get("training") or {}).get("text_column")
            text_column = text_column or guess_text_column(table, file, trained_on)
            check_columns(table, file, [text_column])
            check_added(file, table.columns, added_columns(opened.classifier, True))
        except DataError as error:  # without the folder, which visitors need not know
            said = str(error).partition(": ")[2]
            where = " The option is one of classify.py." if "--" in said else ""
            raise DataError(f"{file.name}: {said}{where}") from None
        self.text_column = text_column
        self.texts = as_strings(table[text_column]).tolist()
        self.label_column = guess_label_column(table.drop(columns=text_column), opened.names)

    def run(self) -> None:
        try:
            with ONE_AT_A_TIME:
                self.begin = time.monotonic()
                for start in range(0, len(self.texts), ROWS_AT_ONCE):
                    if not self.wanted:
                        return
                    answers = self.opened.probabilities(self.texts[start : start + ROWS_AT_ONCE])
                    self.probabilities = np.concatenate([self.probabilities, answers])
        finally:
            self.ended = True

    @property
    def num_done(self) -> int:
        return len(self.probabilities)

    @property
    def remaining_seconds(self) -> float:
        """An estimate; some messages must be done."""
        passed = time.monotonic() - self.begin
        return passed * (len(self.texts) / self.num_done - 1)

    def labels(self) -> np.ndarray:
        """Index of the true class of each row that is done; -1 where the file does not say it."""
        number = {name: i for i, name in enumerate(self.opened.names)}
        labels = as_strings(self.table[self.label_column][: self.num_done]).str.strip()
        return labels.map(number).fillna(-1).to_numpy(dtype=int)

    def write(self, kind: str, threshold: float) -> Path:
        """What is done so far, with the answer at a threshold and all probabilities, as a `csv` or
        an `xlsx` file, no cell of which is a formula."""
        shares = self.probabilities
        table = self.table[: len(shares)].astype(object)
        table["predicted_label"] = [decide(row, self.opened.names, threshold) for row in shares]
        shares = shares.round(4)
        table["probability"] = shares.max(axis=1)
        for name, column in zip(self.opened.names, shares.T):
            table[f"probability of {name}"] = column
        table = table.rename(columns=neutralise).map(neutralise)
        output = fleeting_file(f"{Path(self.name).stem}-classified.{kind}")
        if kind == "xlsx":
            # Excel has no control characters, and no dates with time zones: these become text.
            table = table.where(table.notna(), None).rename(columns=visible)
            table = table.map(lambda c: c if isinstance(c, Number | None) else visible(str(c)))
            table.to_excel(output, index=False)
        else:
            # The mark at the beginning tells spreadsheets the encoding. All texts in quotes, so
            # that a bare carriage return stays within its cell.
            quoting, encoding = csv.QUOTE_NONNUMERIC, "utf-8-sig"
            table.to_csv(output, index=False, quoting=quoting, encoding=encoding)
        return output
