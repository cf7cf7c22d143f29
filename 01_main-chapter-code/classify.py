"""Classify texts with a saved classifier folder.

python 01_main-chapter-code/classify.py DIR "a message"
python 01_main-chapter-code/classify.py DIR < messages.txt
python 01_main-chapter-code/classify.py DIR --file messages.csv --output classified.csv
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pandas as pd

from gpt_download import DownloadError
from message_files import DataError, as_strings, check_columns, guess_text_column, read_table
from text_classifier import Classifier, classify_texts, open_classifier, pick_device, write_text

LINES_AT_ONCE = 256


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="classify.py",
        description="Classify texts with a folder that finetune.py wrote. Texts come from the "
        "command line, from a file's column, or, one a line, from standard input.",
    )
    parser.add_argument("folder", type=Path, help="classifier folder")
    parser.add_argument("texts", nargs="*", help="texts to classify")
    parser.add_argument("--file", type=Path, help="CSV, TSV, JSON lines or Parquet file of texts")
    parser.add_argument("--text-column", help="column of the texts; guessed if not given")
    parser.add_argument(
        "--output", type=Path, help="CSV file to write for --file; default: standard output"
    )
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="default: auto"
    )
    args = parser.parse_intermixed_args(argv)  # texts may follow options
    if args.file and args.texts:
        parser.error("give texts or --file, not both")
    if not args.file and (args.output or args.text_column):
        parser.error("--output and --text-column belong to --file")
    return args


def classify_lines(classifier: Classifier, lines: Iterable[str]) -> Iterator[str]:
    """A line `label <tab> probability <tab> text` for each text, a few hundred at a time."""
    lines = iter(lines)
    while texts := list(islice(lines, LINES_AT_ONCE)):
        for text, row in zip(texts, classify_texts(classifier, texts), strict=True):
            best = int(row.argmax())
            label = printable(classifier.label_names[best])
            yield f"{label}\t{row[best]:.4f}\t{printable(text)}"


def printable(text: str) -> str:
    """Text that stays on its line and does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def classify_table(classifier: Classifier, path: Path, text_column: str | None) -> pd.DataFrame:
    """The file's table with the columns `predicted_label` and `probability` added."""
    table = read_table(path)
    if text_column is None:
        text_column = guess_text_column(table)
        print(f"Reading texts from column {text_column!r}.", file=sys.stderr)
    check_columns(table, path, [text_column])
    texts = as_strings(table[text_column]).tolist()
    probability, best = classify_texts(classifier, texts, progress=sys.stderr.isatty()).max(dim=1)
    names = [classifier.label_names[i] for i in best.tolist()]
    return table.assign(predicted_label=names, probability=probability.numpy().round(4))


def standard_input_lines() -> Iterator[str]:
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeDecodeError:
        raise DataError("standard input is not UTF-8 text.") from None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    # A character that the terminal cannot show is spelled out, not an error.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        classifier = open_classifier(args.folder, pick_device(args.device))
        if args.file:
            table = classify_table(classifier, args.file, args.text_column)
            text = table.to_csv(index=False, lineterminator="\n")
            if args.output:
                write_text(text, args.output)
            else:
                print(text, end="")
        else:
            for line in classify_lines(classifier, args.texts or standard_input_lines()):
                print(line)
    except (ValueError, FileNotFoundError) as error:  # wrong data, a wrong option or folder
        complain(error)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to flush
        return 0
    except (DownloadError, OSError) as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def complain(error: Exception) -> None:
    """An error on one or more lines, without whatever a file would do to the terminal."""
    lines = map(printable, str(error).split("\n"))
    print("classify.py:", "\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
