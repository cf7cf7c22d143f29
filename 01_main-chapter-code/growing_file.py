"""A CSV file that takes hours to write, and survives being stopped."""

import csv
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from files import read_json, whole_file, write_json, write_text
from message_files import DataError


def as_csv(table: pd.DataFrame, header: bool) -> str:
    """Rows as CSV from which every cell comes back whole.

    Python before 3.13 leaves a cell with a bare carriage return without quotes, and its readers
    then end the row there: where one occurs, all texts are quoted.
    """
    options = {"index": False, "header": header, "lineterminator": "\n"}
    text = table.to_csv(**options)
    return table.to_csv(**options, quoting=csv.QUOTE_NONNUMERIC) if "\r" in text else text


class GrowingFile:
    """A file whose pieces stand in `NAME.pieces/`, each whole, until all of them are there.

    `depends_on` says what makes the rows what they are, by names that a reader understands: pieces
    of another run are not gone on with. Raises ``DataError`` now, not after hours, where there is
    nothing to resume or the file cannot be written.
    """

    def __init__(self, path: Path, depends_on: Mapping[str, str], resume: bool, overwrite: bool):
        self.target = Path(os.path.realpath(path))  # a link stays one
        self.pieces = self.target.with_name(self.target.name + ".pieces")
        self.num_pieces = 0
        if path.exists() and not path.is_file():  # it would be destroyed
            raise DataError(f"{path} is a folder or a device, not a file; name a file.")
        if resume:
            self._find_pieces(path, depends_on)
        elif path.exists() and not overwrite:
            raise DataError(
                f"{path} is there already: name another --output, or replace it with --overwrite."
            )
        else:
            shutil.rmtree(self.pieces, ignore_errors=True)
            self.pieces.mkdir()
            write_json(depends_on, self.pieces / "run.json")

    def _find_pieces(self, path: Path, depends_on: Mapping[str, str]) -> None:
        try:
            then = read_json(self.pieces / "run.json")
            changed = [name for name, value in depends_on.items() if then.get(name) != value]
        except FileNotFoundError:
            raise DataError(
                f"--resume: there is no stopped run of {path} to go on with; leave out --resume."
            ) from None
        except AttributeError:
            raise DataError(f"{self.pieces} is damaged; leave out --resume.") from None
        if changed:
            raise DataError(
                f"--resume: the stopped run had another {' and another '.join(changed)}; repeat "
                f"it as it was, or leave out --resume to start anew."
            )
        while self._piece(self.num_pieces).exists():
            self.num_pieces += 1

    def _piece(self, number: int) -> Path:
        return self.pieces / f"{number:08}.csv"

    def add(self, table: pd.DataFrame) -> None:
        """Append rows; the first ones bring the header along."""
        write_text(as_csv(table, header=self.num_pieces == 0), self._piece(self.num_pieces))
        self.num_pieces += 1

    def finish(self) -> None:
        """Put the pieces together; the file is whole, or what it was before."""
        with whole_file(self.target) as partial, partial.open("wb") as whole:
            for piece in map(self._piece, range(self.num_pieces)):
                whole.write(piece.read_bytes())
        shutil.rmtree(self.pieces)
