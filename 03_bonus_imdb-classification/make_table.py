"""The README's table, in Markdown, from the raw result files.

    python 03_bonus_imdb-classification/make_table.py --write

puts it in the place of the old one.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from command_line import make_parser, run_command
from files import write_text
from imdb_results import RESULTS
from message_files import DataError

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- make_table.py -->\n\n", "\n\n<!-- end of the table -->"


def method(result: dict[str, Any]) -> str:
    """What was trained, and how where it is not the plain way."""
    options = result.get("options", {})
    parts = [result["method"] or "-"]
    if options.get("continued_pretraining_epochs"):
        parts.append("continued pretraining")
    if options.get("pooling", "last") != "last":
        parts.append(f"{options['pooling']} pooling")
    if options.get("word_dropout"):
        parts.append(f"word dropout {options['word_dropout']:.0%}")
    return ", ".join(parts)


def table_row(result: dict[str, Any]) -> dict[str, str]:
    test, seconds = result["test"], result["seconds"]
    low, high = test["accuracy_interval"]
    memory = result["peak_memory_mb"]  # None on Windows, which does not tell
    return {
        "model": result["model"],
        "trained layers, or C": method(result),
        "test accuracy": f"{test['accuracy']:.2%}",
        "95% interval": f"[{low:.2%}, {high:.2%}]",
        "parameters": f"{result['parameters']:,}",
        "training, s": f"{seconds['training'] + seconds.get('pretraining', 0):,.0f}",
        "test, s": f"{seconds['inference']:,.0f}",
        "memory, MB": "-" if memory is None else f"{memory:,.0f}",
        "device": result["device"],
        "command": f"`{result['command']}`",
    }


def make_table(folder: Path = RESULTS) -> str:
    """Measured models by test accuracy, the weakest first.

    Raises ``DataError`` where there are no result files.
    """
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    if not results:
        raise DataError(f"there are no result files in {folder}.")
    results.sort(key=lambda result: result["test"]["accuracy"])
    rows = map(table_row, results)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def run(folder: Path, write: bool) -> None:
    table = make_table(folder)
    if not write:
        print(table)
        return
    text = README.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    write_text(before + BEGIN + table + END + after, README)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("make_table.py", "Print the README's table from the raw result files.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--write", action="store_true", help="put it into the README")
    args = parser.parse_args(argv)
    return run_command("make_table.py", lambda: run(args.results, args.write))


if __name__ == "__main__":
    sys.exit(main())
