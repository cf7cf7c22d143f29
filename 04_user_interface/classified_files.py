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
from collections.abc import Iterator
from numbers import Number
from pathlib import Path

import numpy as np
import pandas as pd
from opened import Opened
from thresholds import decide

from classify import ROWS_AT_ONCE, Survey, survey_file
from message_files import DataError, as_strings, read_table_in_pieces, utf8_lines

FILE_TYPES = [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".xlsx", ".gz"]
ROWS_SHOWN = 500  # in the browser; the download holds all
ERRORS_SHOWN = 200
KEPT_SECONDS = 3600  # after the end of a job
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


def as_table_file(path: Path, folder: Path) -> Path:
    """The file itself; of a text file, with a message on each line, a table in `folder`."""
    if path.suffix.lower() != ".txt":
        return path
    with path.open("rb") as file:
        lines = [line.rstrip("\r\n") for line in utf8_lines(file, str(path))]
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
        self.num_done, self.seconds = 0, 0.0
        self.probabilities: list[np.ndarray] = []
        """Of each piece's messages: (rows, C)."""
        try:
            copy = Path(shutil.copy(file, self.folder / file.name))
            self.path = as_table_file(copy, self.folder)
            trained_on = (opened.card.get("training") or {}).get("text_column")
            self.survey: Survey = survey_file(self.path, text_column, trained_on)
            first = next(read_table_in_pieces(self.path, ROWS_AT_ONCE))
        except DataError as error:
            self.remove()
            raise DataError(f"{file.name}: {str(error).partition(': ')[2]}") from None
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
            self.probabilities.append(self.opened.probabilities(texts))
            self.num_done += len(piece)
            self.seconds = time.monotonic() - begin

    def remove(self) -> None:
        self.wanted = False
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def remaining_seconds(self) -> float | None:
        if not self.num_done:
            return None
        return self.seconds / self.num_done * (self.survey.num_rows - self.num_done)

    def pieces(self, threshold: float) -> Iterator[pd.DataFrame]:
        """What is done so far, with the answer at a threshold and all probabilities."""
        names = self.opened.names
        tables = read_table_in_pieces(self.path, ROWS_AT_ONCE)
        for table, shares in zip(tables, list(self.probabilities)):
            table = table.reindex(columns=self.survey.columns)
            table["predicted_label"] = [decide(row, names, threshold) for row in shares]
            rounded = shares.astype(float).round(4)
            table["probability"] = rounded.max(axis=1)
            yield table.assign(
                **{f"probability of {name}": rounded[:, i] for i, name in enumerate(names)}
            )

    def texts(self, numbers: set[int]) -> dict[int, str]:
        """The whole texts of some rows, counted from 0."""
        found, before = {}, 0
        for table in read_table_in_pieces(self.path, ROWS_AT_ONCE):
            texts = as_strings(table[self.survey.text_column]).tolist()
            found |= {n: texts[n - before] for n in numbers if before <= n < before + len(texts)}
            before += len(texts)
        return found

    def labels(self) -> np.ndarray:
        """Index of the true class of each row that is done; -1 where the file does not say it."""
        number = {name: i for i, name in enumerate(self.opened.names)}
        found = []
        for table in self.pieces(0):
            labels = as_strings(table[self.label_column]).str.strip()
            found += labels.map(number).fillna(-1).tolist()
        return np.array(found, dtype=int)

    def write(self, kind: str, threshold: float) -> Path:
        """What is done so far as a `csv` or an `xlsx` file, no cell of which is a formula."""
        output = self.folder / f"{Path(self.name).stem}-classified.{kind}"
        tables = (
            piece.rename(columns=neutralise).map(neutralise) for piece in self.pieces(threshold)
        )
        if kind == "xlsx":
            pd.concat(tables).to_excel(output, index=False)
            return output
        output.unlink(missing_ok=True)
        for i, table in enumerate(tables):
            # The mark at the beginning tells spreadsheets the encoding. All texts in quotes, so
            # that a bare carriage return stays within its cell.
            table.to_csv(
                output,
                mode="a",
                header=i == 0,
                index=False,
                quoting=csv.QUOTE_NONNUMERIC,
                encoding="utf-8" if i else "utf-8-sig",
            )
        return output
