"""Classify texts with a saved classifier folder.

python 01_main-chapter-code/classify.py DIR "a message"
python 01_main-chapter-code/classify.py DIR < messages.txt
python 01_main-chapter-code/classify.py DIR --file messages.csv --output classified.csv

A file of any size takes the same memory: it is read, classified and written a thousand rows at a
time. `--resume` goes on with a run that was stopped.
"""

import argparse
import ctrl_c  # noqa: F401
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from tqdm import tqdm

from classifier_folder import classify_texts, open_classifier
from command_line import make_parser, printable, run_command
from evaluation import wilson_interval
from files import file_sha256
from growing_file import GrowingFile, as_csv
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
from text_classifier import GPTClassifier, pick_device

LINES_AT_ONCE = 256
ADDED_COLUMNS = ("predicted_label", "probability")
ROWS_AT_ONCE = 1000  # a run that is stopped has at most these to do again


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
        "--top", type=int, default=1, help="of texts: so many of the likeliest labels; default: 1"
    )
    parser.add_argument(
        "--output", type=Path, help="CSV file to write for --file; default: standard output"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with a run that was stopped, with the same --file and --output",
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
    if not args.output and (args.resume or args.overwrite or args.label_column):
        parser.error("--resume, --overwrite and --label-column belong to --file with --output")
    return args


def classify_lines(
    classifier: GPTClassifier, tokenizer, lines: Iterable[str], top: int = 1
) -> Iterator[str]:
    """A line `label <tab> probability <tab> text` for each text, a few hundred at a time; with
    `top`, the labels that come next stand before the text, with their probabilities."""
    lines = iter(lines)
    while texts := list(islice(lines, LINES_AT_ONCE)):
        for text, row in zip(texts, classify_texts(classifier, tokenizer, texts), strict=True):
            cells = [classifier.config.answer(row), f"{row.max():.4f}"]
            for i in row.argsort(descending=True)[1:top].tolist():
                cells += [classifier.config.label_names[i], f"{row[i]:.4f}"]
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
            known = trained_on in table.columns
            text_column = trained_on if known else guess_text_column(table, path)
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


def added_columns(classifier: GPTClassifier, all_probabilities: bool) -> list[str]:
    names = classifier.config.label_names if all_probabilities else []
    return [*ADDED_COLUMNS, *(f"probability of {name}" for name in names)]


def classify_file(
    classifier: GPTClassifier,
    tokenizer: Any,
    path: Path,
    survey: Survey,
    num_done: int = 0,
    all_probabilities: bool = False,
) -> Iterator[pd.DataFrame]:
    """The file's pieces after the first `num_done`, with the columns `predicted_label` and
    `probability` added, and with one for each label where wanted."""
    show, added = sys.stderr.isatty(), added_columns(classifier, all_probabilities)
    with tqdm(total=survey.num_rows, desc="classifying", unit="row", disable=not show) as bar:
        pieces = read_table_in_pieces(path, ROWS_AT_ONCE, survey.text_format)
        for number, table in enumerate(pieces):
            if number >= num_done:
                table = table.reindex(columns=survey.columns)
                texts = as_strings(table[survey.text_column]).tolist()
                probabilities = classify_texts(classifier, tokenizer, texts)  # (N, C)
                table[added[0]] = list(map(classifier.config.answer, probabilities))
                table[added[1]] = probabilities.amax(dim=1).numpy().round(4)
                if all_probabilities:
                    table[added[2:]] = probabilities.numpy().round(4)
                yield table
            bar.update(len(table))


def compare_with_labels(path: Path, label_column: str, form: Callable[[str], str]) -> str:
    """Accuracy and confusion matrix of a classified file that carries the true labels; `form`
    makes two spellings of a label one."""
    counts = Counter()
    for table in read_table_in_pieces(path):
        counts.update(zip(table[label_column].map(form), table["predicted_label"].map(form)))
    right, total = sum(n for (true, said), n in counts.items() if true == said), counts.total()
    low, high = wilson_interval(right, total)
    matrix = pd.Series(counts).unstack(fill_value=0).rename_axis(index="true", columns="predicted")
    return f"accuracy {right / total:.1%}, 95% interval [{low:.1%}, {high:.1%}]\n\n{matrix}"


def standard_input_lines(encoding: str | None) -> Iterator[str]:
    """The texts, one a line, without line ends and byte order mark, whatever system wrote them.

    Empty lines are texts, too: line n of the output belongs to line n of the input.
    """
    if sys.stdin is None:
        raise OSError("standard input is closed; give texts, or --file.")
    for line in text_lines(sys.stdin.buffer, "standard input", encoding):
        yield line.rstrip("\r\n")


def classify(args: argparse.Namespace) -> None:
    if (args.folder / NETWORK).is_file():
        classifier, tokenizer = open_onnx(args.folder)
    else:
        classifier, tokenizer = open_classifier(args.folder, pick_device(args.device))
    if not args.file:
        texts = args.texts or standard_input_lines(args.encoding)
        for line in classify_lines(classifier, tokenizer, texts, args.top):
            print(line)
        return
    trained_on = classifier.config.card.get("training", {}).get("text_column")
    label_columns = [args.label_column] if args.label_column else []
    text_format = TextFormat(args.separator, args.encoding, label_columns)
    survey = survey_file(args.file, args.text_column, trained_on, text_format)
    check_added(args.file, survey.columns, added_columns(classifier, args.all_probabilities))
    if not args.output:
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # the bytes of an --output
        tables = classify_file(
            classifier, tokenizer, args.file, survey, all_probabilities=args.all_probabilities
        )
        for i, table in enumerate(tables):
            print(as_csv(table, header=i == 0), end="")
        return
    depends_on = {
        "--file": file_sha256(args.file),
        "classifier": file_sha256(args.folder / "config.json"),  # it has the weights' checksum
        **{"--separator": args.separator, "--encoding": args.encoding},
        "--text-column": survey.text_column,
        "--all-probabilities": args.all_probabilities,
    }
    output = GrowingFile(args.output, depends_on, args.resume, args.overwrite)
    for table in classify_file(
        classifier, tokenizer, args.file, survey, output.num_pieces, args.all_probabilities
    ):
        output.add(table)
    output.finish()
    if args.label_column:
        form = normal_form if classifier.config.thresholds is None else label_set
        print(compare_with_labels(args.output, args.label_column, form))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    go_on = "; if it had begun to write, --resume goes on" if args.output else ""
    return run_command("classify.py", lambda: classify(args), f"stopped{go_on}.", args.output)


if __name__ == "__main__":
    sys.exit(main())
