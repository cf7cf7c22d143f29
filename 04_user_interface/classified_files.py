"""Many messages: a file goes in, a table with every class's probability comes out.

A `Job` works in a thread of its own, so that it goes on whether or not anybody watches it.
"""

import csv
import json
import re
import shutil
import tempfile
import threading
import time
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
from opened import Opened
from thresholds import decide

from classify import ROWS_AT_ONCE, Survey, survey_file
from message_files import DataError, as_strings, read_table_in_pieces, text_lines

FILE_TYPES = [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx", ".gz"]
ROWS_SHOWN = 500  # in the browser; the download holds all
ERRORS_SHOWN = 200
KEPT_SECONDS = 3600  # after the end of a job
ONE_AT_A_TIME = threading.Lock()  # a large file keeps one core busy; the other is for messages

# A spreadsheet runs a cell as a formula if it begins with one of these signs (the wide ones in
# Japanese and Chinese programs); a plain number is harmless.
FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
OF_COMMANDS = re.compile(r", or [^,.]*--encoding [^.]*")  # advice that a page cannot follow
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
    """The file itself; of a text file, with a message on each line, a table in `folder`."""
    if path.suffix.lower() != ".txt":
        return path
    with path.open("rb") as file:
        lines = [line.rstrip("\r\n") for line in text_lines(file, str(path))]
    rows = [json.dumps({"text": line}) + "\n" for line in lines if line.strip()]
    path = folder / f"{path.name}.jsonl"
    path.write_text("".join(rows), encoding="utf-8")
    return path


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
        self.folder = Path(tempfile.mkdtemp(prefix="page-job-"))
        self.wanted, self.ended = True, False
        self.seconds = 0.0
        self.texts: list[str] = []
        self.probabilities = np.empty((0, len(opened.names)))
        """Of the messages that are done: (N, C)."""
        try:
            copy = Path(shutil.copy(file, self.folder / file.name))
            self.path = as_table_file(copy, self.folder)
            trained_on = (opened.card.get("training") or {}).get("text_column")
            self.survey: Survey = survey_file(self.path, text_column, trained_on)
            first = next(read_table_in_pieces(self.path, ROWS_AT_ONCE))
        except DataError as error:
            self.remove()
            said = OF_COMMANDS.sub("", str(error).partition(": ")[2])
            raise DataError(f"{file.name}: {said}") from None
        others = first.drop(columns=self.survey.text_column)
        self.label_column = guess_label_column(others, opened.names)

    def start(self) -> None:
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        try:
            with ONE_AT_A_TIME:
                self._classify()
        finally:
            self.ended = True
            timer = threading.Timer(KEPT_SECONDS, self.remove)
            timer.daemon = True
            timer.start()

    def _classify(self) -> None:
        begin = time.monotonic()
        for piece in read_table_in_pieces(self.path, ROWS_AT_ONCE):
            if not self.wanted:
                return
            texts = as_strings(piece[self.survey.text_column]).tolist()
            self.texts += texts
            done = [self.probabilities, self.opened.probabilities(texts)]
            self.probabilities = np.concatenate(done)
            self.seconds = time.monotonic() - begin

    def remove(self) -> None:
        self.wanted, self.texts = False, []
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def num_done(self) -> int:
        return len(self.probabilities)

    @property
    def remaining_seconds(self) -> float:
        return self.seconds / self.num_done * (self.survey.num_rows - self.num_done)

    def table(self) -> pd.DataFrame:
        """The rows that are done."""
        tables = (t.astype(object) for t in read_table_in_pieces(self.path, ROWS_AT_ONCE))
        return pd.concat(tables, ignore_index=True)[: self.num_done]

    def labels(self) -> np.ndarray:
        """Index of the true class of each row that is done; -1 where the file does not say it."""
        number = {name: i for i, name in enumerate(self.opened.names)}
        labels = as_strings(self.table()[self.label_column]).str.strip()
        return labels.map(number).fillna(-1).to_numpy(dtype=int)

    def write(self, kind: str, threshold: float) -> Path:
        """What is done so far, with the answer at a threshold and all probabilities, as a `csv` or
        an `xlsx` file, no cell of which is a formula."""
        table, shares = self.table(), self.probabilities.astype(float).round(4)
        table["predicted_label"] = [decide(row, self.opened.names, threshold) for row in shares]
        table["probability"] = shares.max(axis=1)
        for name, column in zip(self.opened.names, shares.T):
            table[f"probability of {name}"] = column
        table = table.rename(columns=neutralise).map(neutralise)
        output = self.folder / f"{Path(self.name).stem}-classified.{kind}"
        if kind == "xlsx":
            table.to_excel(output, index=False)
        else:
            # The mark at the beginning tells spreadsheets the encoding. All texts in quotes, so
            # that a bare carriage return stays within its cell.
            quoting, encoding = csv.QUOTE_NONNUMERIC, "utf-8-sig"
            table.to_csv(output, index=False, quoting=quoting, encoding=encoding)
        return output
