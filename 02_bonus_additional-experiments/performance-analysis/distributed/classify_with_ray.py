"""Classify Parquet files on many processes or machines: Ray Data hands out their parts.

    python classify_with_ray.py classifier messages classified --workers 2

A part is a row group of a file. It is classified by one worker and written whole, as a file of the
output folder, so that each row is there once: a part of a worker that died is done again by
another, and a command that was stopped and is repeated does the parts that are not there yet.
"""

import argparse
import logging
import os
import startup_errors  # noqa: F401
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from classifier_folder import classify_texts, open_classifier
from classify import ADDED_COLUMNS, answer_columns, check_added
from command_line import make_parser, run_command
from files import file_sha256, read_json, whole_file, write_json
from message_files import DataError, as_strings
from text_classifier import pick_device

PROGRAM = Path(__file__).name


class PartClassifier:
    """A worker: opens the classifier once, then classifies part after part."""

    def __init__(self, folder: Path, text_column: str):
        self.classifier, self.tokenizer = open_classifier(folder, pick_device())
        self.text_column = text_column

    def __call__(self, part: dict[str, Any]) -> dict[str, int]:
        """Write a part's rows with their labels, if that was not done before; returns their
        number."""
        output = Path(part["output"])
        if not output.exists():
            table = pq.ParquetFile(part["file"]).read_row_group(part["row_group"])
            texts = as_strings(table[self.text_column].to_pandas()).tolist()
            probabilities = classify_texts(self.classifier, self.tokenizer, texts)  # (N, C)
            added = answer_columns(self.classifier.config, probabilities)
            for name, column in added.items():
                table = table.append_column(name, [column])
            with whole_file(output) as partial:
                pq.write_table(table, partial)
        return {"rows": pq.read_metadata(output).num_rows}


def list_parts(files: list[Path], text_column: str, output: Path) -> list[dict[str, Any]]:
    """The row groups of Parquet files, and where each is to be written. Raises ``DataError``."""
    parts = []
    for file in files:
        about = pq.read_metadata(file)
        if text_column not in about.schema.names:
            raise DataError(f"{file} has no column {text_column!r}; name it with --text-column.")
        check_added(file, about.schema.names, ADDED_COLUMNS)
        for i in range(about.num_row_groups):
            if about.row_group(i).num_rows:
                target = output / f"{file.stem}-{i:05}.parquet"
                parts.append({"file": str(file), "row_group": i, "output": str(target)})
    return parts


def classify_parts(args: argparse.Namespace) -> None:
    """Classify all parts, and print the number of rows and the seconds after Ray had started.

    Raises ``DataError`` for wrong input, and for an output of another input or classifier.
    """
    folder, output, source = args.folder.resolve(), args.output.resolve(), args.input.absolute()
    files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    if not (parts := list_parts(files, args.text_column, output)):
        raise DataError(f"{args.input} holds no rows of Parquet files.")
    about = {
        "classifier": file_sha256(folder / "config.json"),  # it has the weights' checksum
        "input": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
        "text_column": args.text_column,
    }
    output.mkdir(parents=True, exist_ok=True)
    if (note := output / "run.json").exists() and read_json(note) != about:
        raise DataError(f"{output} is of another input or classifier: name another folder.")
    write_json(about, note)
    start_ray(args.workers)
    start, num_rows = time.perf_counter(), 0
    done = ray.data.from_items(parts, override_num_blocks=len(parts)).map(
        PartClassifier,
        fn_constructor_args=(folder, args.text_column),
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=1,
        num_gpus=int(args.gpu),
    )
    with tqdm(total=len(parts), unit="part", disable=None) as bar:
        for part in done.iter_rows():
            num_rows += part["rows"]
            bar.update()
    seconds = time.perf_counter() - start
    print(f"{num_rows:,} rows in {seconds:,.0f} s, {num_rows / seconds:,.0f} a second.")


def start_ray(workers: int) -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start one here; both report nothing home."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    how = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
    if "RAY_ADDRESS" not in os.environ:
        how |= {"num_cpus": workers + 1, "include_dashboard": False}
        # Beside other work, Ray's usual niceness of 15 is slow, and its usual 30 s are too short.
        how["_system_config"] = {"worker_niceness": 0, "agent_register_timeout_ms": 300_000}
    ray.init(**how)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(PROGRAM, __doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="classifier folder of finetune.py")
    parser.add_argument("input", type=Path, help="Parquet file, or folder of them")
    parser.add_argument("output", type=Path, help="folder to write: a file for each row group")
    parser.add_argument("--text-column", default="text", help="column of the texts")
    parser.add_argument("--workers", type=int, default=2, help="processes, a core each")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker, too")
    args = parser.parse_args(argv)
    stopped = "stopped; repeat the command to go on."
    return run_command(PROGRAM, lambda: classify_parts(args), stopped, args.output)


if __name__ == "__main__":
    sys.exit(main())
