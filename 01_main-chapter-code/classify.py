"""Classify texts with a saved classifier folder.

python 01_main-chapter-code/classify.py DIR "a message"
python 01_main-chapter-code/classify.py DIR < messages.txt
python 01_main-chapter-code/classify.py DIR --file messages.csv --output classified.csv

A file of any size takes the same memory: it is read, classified and written a thousand rows at a
time. The output is there when it is complete.
"""

import argparse
import csv
import os
import startup_errors  # noqa: F401
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from classifier_folder import classify_texts, open_classifier
from command_line import make_parser, printable, run_command
from evaluation import wilson_interval
from files import whole_file
from message_files import (
    AS_NAMED,
    DataError,
    TextFormat,
    as_strings,
    check_columns,
    guess_text_column,
    normal_form,
    read_table_in_pieces,
    text_lines,
)
from multi_label import label_set
from onnx_classifier import NETWORK, open_onnx
from text_classifier import ClassifierConfig, GPTClassifier, pick_device

LINES_AT_ONCE = 256
ADDED_COLUMNS = ("predicted_label", "probability")
ROWS_AT_ONCE = 1000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "classify.py",
        "Classify texts with a folder that finetune.py wrote. Texts come from the command line, "
        "from a file's column, or, one a line, from standard input.",
    )
    parser.add_argument(
        "folder", type=Path, help="classifier folder, or one that export.py wrote as ONNX"
    )
    parser.add_argument("texts", nargs="*", help="texts to classify")
    parser.add_argument("--file", type=Path, help="CSV, TSV, JSON, Parquet or Excel file")
    parser.add_argument(
        "--separator", help="of the cells of a CSV or TSV file; guessed if not given"
    )
    parser.add_argument("--encoding", help="of --file or standard input; UTF-8 if not given")
    parser.add_argument("--text-column", help="column of the texts; guessed if not given")
    parser.add_argument(
        "--label-column", help="column of the true labels: how good are the answers in --output?"
    )
    parser.add_argument(
        "--all-probabilities", action="store_true", help="a column for every label's probability"
    )
    parser.add_argument(
        "--top", type=int, default=1, help="likeliest labels to print for each text; default: 1"
    )
    parser.add_argument(
        "--output", type=Path, help="CSV file to write for --file; default: standard output"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the --output")
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda", "mps"],
        help="where to compute; auto takes a GPU if there is one",
    )
    args = parser.parse_intermixed_args(argv)  # texts may follow options
    if args.file and args.texts:
        parser.error("give texts or --file, not both")
    of_file = (args.output, args.separator, args.text_column, args.all_probabilities or None)
    if not args.file and any(option is not None for option in of_file):
        parser.error(
            "--output, --separator, --text-column and --all-probabilities belong to --file"
        )
    if args.top < 1 or (args.file and args.top > 1):
        parser.error("--top is a number of labels for texts; --file has --all-probabilities")
    if args.file and args.file.is_dir():
        parser.error(f"{args.file} is a folder: --file takes a table, with a text a row")
    if args.device not in ("auto", "cpu") and (args.folder / NETWORK).is_file():
        parser.error(f"{args.folder} is an ONNX network, which is computed on the processor")
    if args.texts and args.encoding is not None:
        parser.error("--encoding belongs to --file and standard input")
    if args.output and os.path.realpath(args.output) == os.path.realpath(args.file):
        parser.error("--output is --file itself, which would be lost: name another file")
    if args.output and not args.output.name.lower().endswith((".csv", ".csv.gz")):
        parser.error("--output is a CSV file: its name must end in .csv or .csv.gz")
    if not args.output and (args.overwrite or args.label_column):
        parser.error("--overwrite and --label-column belong to --file with --output")
    return args


def classify_lines(
    classifier: GPTClassifier, tokenizer, lines: Iterable[str], top: int = 1
) -> Iterator[str]:
    """A line `label <tab> probability <tab> text` for each text, a few hundred at a time; with
    `top`, the labels that come next stand before the text, with their probabilities."""
    lines, about = iter(lines), classifier.config
    while texts := list(islice(lines, LINES_AT_ONCE)):
        for text, row in zip(texts, classify_texts(classifier, tokenizer, texts), strict=True):
            cells = [about.answer(row), f"{about.answer_probability(row):.4f}"]
            named = about.named(row)
            others = [i for i in row.argsort(descending=True).tolist() if i not in named]
            for i in others[: top - 1]:
                cells += [about.label_names[i], f"{row[i]:.4f}"]
            yield "\t".join(map(printable, [*cells, text]))


# --- Files ---------------------------------------------------------------------------------------


class Survey(NamedTuple):
    """What a first look at a whole file finds."""

    columns: list[str]
    text_column: str
    num_rows: int
    text_format: TextFormat


def survey_file(
    path: Path,
    text_column: str | None,
    trained_on: str | None = None,
    text_format: TextFormat = AS_NAMED,
) -> Survey:
    """Read the file once, so that whatever is wrong with it is found before the work begins.

    A text column that is not named is the one that the classifier was `trained_on`, or else
    guessed from the first rows.
    """
    columns: dict[str, None] = {}  # JSON lines may bring further ones later
    num_rows = 0
    for table in read_table_in_pieces(path, ROWS_AT_ONCE, text_format):
        check_columns(table, path, [])
        if text_column is None:
            others = table.drop(columns=text_format.label_sets, errors="ignore")
            text_column = guess_text_column(others, path, trained_on)
            print(f"Reading texts from column {text_column!r}.", file=sys.stderr)
        needed = [text_column, *text_format.label_sets]
        check_columns(table, path, table.columns.intersection(needed))
        columns |= dict.fromkeys(table.columns)
        num_rows += len(table)
    check_columns(pd.DataFrame(columns=list(columns)), path, needed)
    return Survey(list(columns), text_column, num_rows, text_format)


def check_added(path: Path, columns: Iterable[str], added: Iterable[str]) -> None:
    """Raise ``DataError`` if a column that is to be added is there already."""
    if taken := [name for name in added if name in columns]:
        raise DataError(
            f"{path}: classifying adds a column {taken[0]!r}, and there is one already; rename or "
            f"remove it."
        )


def answer_columns(about: ClassifierConfig, probabilities: Tensor) -> dict[str, Any]:
    """The values of `ADDED_COLUMNS`, of the probabilities of N texts (N, C)."""
    of_answers = np.array(list(map(about.answer_probability, probabilities)), dtype=np.float32)
    values = (list(map(about.answer, probabilities)), of_answers.round(4))
    return dict(zip(ADDED_COLUMNS, values, strict=True))


def added_columns(classifier: GPTClassifier, all_probabilities: bool) -> list[str]:
    names = classifier.config.label_names if all_probabilities else []
    return [*ADDED_COLUMNS, *(f"probability of {name}" for name in names)]


def classify_file(
    classifier: GPTClassifier,
    tokenizer: Any,
    path: Path,
    survey: Survey,
    all_probabilities: bool = False,
) -> Iterator[pd.DataFrame]:
    """The file's pieces, with the columns `predicted_label` and `probability` (of several labels,
    the lowest) added, and with one for each label where wanted."""
    show, added = sys.stderr.isatty(), added_columns(classifier, all_probabilities)
    with tqdm(total=survey.num_rows, desc="classifying", unit="row", disable=not show) as bar:
        pieces = read_table_in_pieces(path, ROWS_AT_ONCE, survey.text_format)
        for table in pieces:
            table = table.reindex(columns=survey.columns)
            texts = as_strings(table[survey.text_column]).tolist()
            probabilities = classify_texts(classifier, tokenizer, texts)  # (N, C)
            table = table.assign(**answer_columns(classifier.config, probabilities))
            if all_probabilities:
                values = probabilities.numpy().round(4)
                of_labels = pd.DataFrame(values, table.index, added[2:])
                table = pd.concat([table, of_labels], axis="columns")
            yield table
            bar.update(len(table))


def compare_with_labels(counts: Counter) -> str:
    """Accuracy and confusion matrix, from counts of (true label, predicted label)."""
    if not counts:
        return "No row has a true label: the answers are not compared."
    right, total = sum(n for (true, said), n in counts.items() if true == said), counts.total()
    low, high = wilson_interval(right, total)
    matrix = pd.Series(counts).unstack(fill_value=0).rename_axis(index="true", columns="predicted")
    accuracy = f"accuracy {right / total:.1%}, 95% interval [{low:.1%}, {high:.1%}]"
    return f"{accuracy}\n\n{matrix.to_string()}"


def standard_input_lines(encoding: str | None) -> Iterator[str]:
    """The texts, one a line, without line ends and byte order mark, whatever system wrote them.

    Empty lines are texts, too: line n of the output belongs to line n of the input.
    """
    if sys.stdin is None:
        raise OSError("standard input is closed; give texts, or --file.")
    for line in text_lines(sys.stdin.buffer, "standard input", encoding):
        yield line.rstrip("\r\n")


def classify(args: argparse.Namespace) -> None:
    if args.output and args.output.exists() and not (args.overwrite and args.output.is_file()):
        raise DataError(
            f"{args.output} is there already: name another --output; --overwrite replaces a file."
        )
    if (args.folder / NETWORK).is_file():
        classifier, tokenizer = open_onnx(args.folder)
    else:
        classifier, tokenizer = open_classifier(args.folder, pick_device(args.device))
    if not args.file:
        texts = args.texts or standard_input_lines(args.encoding)
        for line in classify_lines(classifier, tokenizer, texts, args.top):
            print(line)
    else:
        classify_table(classifier, tokenizer, args)


def classify_table(classifier: GPTClassifier, tokenizer: Any, args: argparse.Namespace) -> None:
    """What `--file` holds, to `--output` or standard output."""
    trained_on = classifier.config.card.get("training", {}).get("text_column")
    label_columns = [args.label_column] if args.label_column else []
    text_format = TextFormat(args.separator, args.encoding, label_columns)
    survey = survey_file(args.file, args.text_column, trained_on, text_format)
    check_added(args.file, survey.columns, added_columns(classifier, args.all_probabilities))
    if not args.output:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # the bytes of an --output
    counts, form = Counter(), normal_form if classifier.config.thresholds is None else label_set
    tables = classify_file(classifier, tokenizer, args.file, survey, args.all_probabilities)
    with whole_file(args.output) if args.output else nullcontext(sys.stdout) as output:
        for i, table in enumerate(tables):
            # All texts in quotes, so that a bare carriage return stays within its cell.
            how = {"quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n", "mode": "a"}
            table.to_csv(output, index=False, header=i == 0, **how)
            if args.label_column:
                both = (as_strings(table[name]) for name in (args.label_column, ADDED_COLUMNS[0]))
                pairs = zip(*(labels.map(form) for labels in both))
                counts.update(pair for pair in pairs if pair[0] or form is label_set)
    if args.label_column:
        print(compare_with_labels(counts))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("classify.py", lambda: classify(args), output=args.output)


if __name__ == "__main__":
    sys.exit(main())
