"""A CSV file that takes hours to write, and survives being stopped.

file = GrowingFile(Path("classified.csv"), run={"input": checksum})
file.start()                # or file.resume(), after which file.num_rows are done
for table in tables:
    file.add(table)
file.finish()
"""

import csv
import json
import os
from pathlib import Path

import pandas as pd

from message_files import DataError
from text_classifier import write_text


def as_csv(table: pd.DataFrame, header: bool, quote_texts: bool = False) -> str:
    """Rows as CSV from which every cell comes back whole.

    Python before 3.13 leaves a cell with a bare carriage return without quotes, and its readers
    then end the row there: where one occurs, all texts are quoted.
    """
    quoting = csv.QUOTE_NONNUMERIC if quote_texts else csv.QUOTE_MINIMAL
    text = table.to_csv(index=False, header=header, lineterminator="\n", quoting=quoting)
    if "\r" in text and not quote_texts:
        return as_csv(table, header, quote_texts=True)
    return text


class GrowingFile:
    """The file is written piece by piece, and gone on with after the writing was stopped.

    The pieces go to `NAME.partial`. After each of them, `NAME.progress` notes how many rows and
    bytes are whole: what a stopped process wrote beyond that is cut off, so that no row is lost and
    none is there twice. When all are written, the file gets its name.

    `run` says what the rows depend on, by names that a reader understands: a run that differs in
    any of them cannot be gone on with.
    """

    def __init__(self, path: Path, run: dict[str, str]):
        self.path, self.run = path, run
        self.target = path.resolve()  # a link stays one
        self.partial = self.target.with_name(self.target.name + ".partial")
        self.progress = self.target.with_name(self.target.name + ".progress")
        self.num_rows = self.num_bytes = 0

    def start(self) -> None:
        """Begin anew. Raises ``DataError`` or ``OSError`` now, not after hours, if the file cannot
        be written."""
        if self.path.exists() and not self.path.is_file():  # replacing a device would destroy it
            raise DataError(f"{self.path} is a folder or a device, not a file; name a file.")
        self._note_progress()
        self.partial.write_bytes(b"")

    def resume(self) -> None:
        """Take over what is whole. Raises ``DataError`` if there is nothing, or another run's."""
        if not (self.partial.exists() and self.progress.exists()):
            finished = f"; {self.path} is there, and whole" if self.path.exists() else ""
            raise DataError(
                f"--resume: there is no stopped run to go on with, for {self.partial} or "
                f"{self.progress} is missing{finished}."
            )
        try:
            then = json.loads(self.progress.read_text(encoding="utf-8"))
            run, num_rows, num_bytes = then["run"], int(then["num_rows"]), int(then["num_bytes"])
            changed = [name for name, value in self.run.items() if run.get(name) != value]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.progress} is damaged ({error}); leave out --resume.") from None
        if changed:
            raise DataError(
                f"--resume: the stopped run had another {' and another '.join(changed)}; repeat it "
                f"as it was, or leave out --resume to start anew."
            )
        if self.partial.stat().st_size < num_bytes:
            raise DataError(f"{self.partial} was cut short; leave out --resume to start anew.")
        os.truncate(self.partial, num_bytes)
        self.num_rows, self.num_bytes = num_rows, num_bytes

    def add(self, table: pd.DataFrame) -> None:
        """Append rows; the first ones bring the header along."""
        text = as_csv(table, header=self.num_rows == 0).encode()
        with self.partial.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # the rows are on the disk before the note says so
        self.num_rows += len(table)
        self.num_bytes += len(text)
        self._note_progress()

    def finish(self) -> None:
        self.partial.replace(self.target)
        self.progress.unlink()

    def _note_progress(self) -> None:
        note = {"num_rows": self.num_rows, "num_bytes": self.num_bytes, "run": self.run}
        write_text(json.dumps(note, indent=1) + "\n", self.progress)
