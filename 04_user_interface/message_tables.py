"""Many messages: a file goes in, a table with labels and confidences comes out."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from classify import classify_file, survey_file
from growing_file import as_csv
from message_files import DataError, as_strings
from text_classifier import Classifier

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
    if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def as_table_file(path: Path, folder: Path) -> Path:
    """A text file with a message on each line becomes a table in `folder`; tables stay."""
    if path.suffix.lower() != ".txt":
        return path
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: the file is not text in UTF-8; save it as UTF-8.") from None
    table = folder / f"{path.stem}.jsonl"
    rows = [json.dumps({"text": line}) for line in lines if line.strip()]
    if not rows:
        raise DataError(f"{path}: the file holds no message.")
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


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
    survey = survey_file(table_file, text_column)
    done, shown, counts = 0, [], Counter()
    for piece in classify_file(classifier, table_file, survey):
        safe = piece.rename(columns=neutralise).map(neutralise)
        with output.open("a", encoding="utf-8", newline="") as file:
            file.write(as_csv(safe, header=done == 0))
        if done < ROWS_SHOWN:
            rows = piece[: ROWS_SHOWN - done]
            numbers = range(done + 1, done + len(rows) + 1)
            texts = as_strings(rows[survey.text_column])
            confidences = (round(float(value), 4) for value in rows.probability)
            shown.extend(zip(numbers, texts, rows.predicted_label, confidences))
        done += len(piece)
        counts.update(piece.predicted_label)
        table = pd.DataFrame(shown, columns=["row", "message", "label", "confidence"])
        yield Progress(done, survey.num_rows, table, counts)
