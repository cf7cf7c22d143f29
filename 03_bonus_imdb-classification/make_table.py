"""The README's table, in Markdown, from the raw result files."""

import ctrl_c  # noqa: F401
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from command_line import make_parser, run_command
from files import read_json, reading_results
from imdb_results import RESULTS, with_interval
from message_files import DataError

TRAINING = ("pretraining", "frozen_layers", "training")  # stages before the test reviews are read


def method(result: dict[str, Any]) -> str:
    """What was trained, and how where it is not the plain way."""
    options = result.get("options", {})
    pooling, dropped = options.get("pooling", "last"), options.get("word_dropout")
    parts = {
        result["method"] or "-": True,
        "continued pretraining": options.get("continued_pretraining_epochs"),
        f"{pooling} pooling": pooling != "last",
        f"word dropout {dropped or 0:.0%}": dropped,
    }
    return ", ".join(part for part, holds in parts.items() if holds)


def table_row(result: dict[str, Any]) -> dict[str, str]:
    seconds = result["seconds"]
    memory = result["peak_memory_mb"]  # None on Windows, which does not tell
    earlier = " + kept states" if result.get("options", {}).get("kept_states") else ""
    return {
        "model": result["model"],
        "trained layers, or C": method(result),
        "reviews": f"{result['num_train']:,}",
        "test accuracy, 95% interval": with_interval(result["test"]),
        "training, s": f"{sum(seconds.get(stage, 0) for stage in TRAINING):,.0f}{earlier}",
        "memory, MB": "-" if memory is None else f"{memory:,.0f}",
    }


def make_table(folder: Path = RESULTS) -> str:
    """Measured models by test accuracy, the weakest first. Raises ``DataError`` without files."""
    results = list(map(read_json, folder.glob("*.json")))
    if not results:
        raise DataError(f"there are no result files in {folder}.")
    with reading_results(folder):
        results.sort(key=lambda result: result["test"]["accuracy"])
        table = pd.DataFrame(map(table_row, results))
    return table.to_markdown(index=False, disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("make_table.py", "Print the README's table from the raw result files.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    args = parser.parse_args(argv)
    return run_command("make_table.py", lambda: print(make_table(args.results)))


if __name__ == "__main__":
    sys.exit(main())
