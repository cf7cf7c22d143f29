"""Many messages: a file goes in, a CSV file with labels and probabilities comes out."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import count
from numbers import Number
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from html_parts import visible

from classify import Survey, classify_file, survey_file
from message_files import DataError, as_strings
from text_classifier import GPTClassifier

FILE_TYPES = [".csv", ".tsv", ".txt", ".jsonl", ".parquet"]
ROWS_SHOWN = 500  # in the browser; the download holds all

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


def survey_upload(path: Path, text_column: str | None, folder: Path) -> tuple[Path, Survey]:
    """The table file that an uploaded file is, and what is in it.

    A text file, with a message on each line, becomes a table in `folder`. Raises ``DataError`` for
    a file or column that cannot be used.
    """
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError:
            raise DataError(f"{path}: the file is not text in UTF-8; save it as UTF-8.") from None
        rows = [json.dumps({"text": line}) + "\n" for line in lines if line.strip()]
        path = folder / f"{path.name}.jsonl"
        path.write_text("".join(rows), encoding="utf-8")
    return path, survey_file(path, text_column)


def beginning(text: str) -> str:
    """What the browser is sent of a text."""
    return visible(text if len(text) <= 200 else text[:199] + "…")


class Progress(NamedTuple):
    """Where the work on a file stands."""

    num_done: int
    num_rows: int
    shown: pd.DataFrame
    """The first rows: number, message, label, confidence."""
    counts: Counter
    """Messages by predicted label."""


def classify_upload(
    classifier: GPTClassifier, tokenizer, path: Path, text_column: str | None, output: Path
) -> Iterator[Progress]:
    """Classify a file piece by piece into a CSV file, and tell after each piece how far it is.

    The CSV file has all columns of the original, `predicted_label` and `probability`; no cell of
    it is a formula. Raises ``DataError`` for a file or column that cannot be used.
    """
    table_file, survey = survey_upload(path, text_column, output.parent)
    num_done, shown, counts = 0, [], Counter()
    for piece in classify_file(classifier, tokenizer, table_file, survey):
        # All in quotes, so that a bare carriage return stays within its cell.
        piece.rename(columns=neutralise).map(neutralise).to_csv(
            output, mode="a", header=num_done == 0, index=False, quoting=csv.QUOTE_ALL
        )
        rows = piece[: ROWS_SHOWN - len(shown)]
        texts = as_strings(rows[survey.text_column]).map(beginning)
        probabilities = rows.probability.astype(float).round(4)
        shown += zip(count(num_done + 1), texts, rows.predicted_label, probabilities)
        num_done += len(piece)
        counts.update(piece.predicted_label)
        table = pd.DataFrame(shown, columns=["row", "message", "label", "confidence"])
        yield Progress(num_done, survey.num_rows, table, counts)
