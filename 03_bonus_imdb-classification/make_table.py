"""The README's table, in Markdown, and its picture, from the raw result files."""

import startup_errors  # noqa: F401
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from command_line import make_parser, run_command
from files import reading_results, whole_file
from imdb_results import RESULTS, read_results, with_interval

PICTURE = "accuracy-and-time.png"
TRAINING = ("pretraining", "frozen_layers", "training")  # stages before the test reviews are read

Result = dict[str, Any]


def training_seconds(result: Result) -> float:
    return sum(result["seconds"].get(stage, 0) for stage in TRAINING)


def kept_states(result: Result) -> str:
    """A remark where another run may have computed the frozen layers."""
    return " + kept states" if result.get("options", {}).get("kept_states") else ""


def method(result: Result) -> str:
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


def table_row(result: Result) -> dict[str, str]:
    memory = result["peak_memory_mb"]  # None on Windows, which does not tell
    return {
        "model": result["model"],
        "trained layers, or C": method(result),
        "reviews": f"{result['num_train']:,}",
        "test accuracy, 95% interval": with_interval(result["test"]),
        "training, s": f"{training_seconds(result):,.0f}{kept_states(result)}",
        "memory, MB": "-" if memory is None else f"{memory:,.0f}",
    }


def make_table(results: Mapping[str, Result]) -> str:
    table = pd.DataFrame(map(table_row, results.values()))
    return table.to_markdown(index=False, disable_numparse=True)


def plot_accuracy_and_time(results: Mapping[str, Result]) -> Figure:
    """Each model's interval, and its seconds of training beside it."""
    fig, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(7, 3.6))
    for name, result in results.items():
        if name != "majority":  # which would stretch both axes
            low, high = (100 * end for end in result["test"]["accuracy_interval"])
            left.plot([low, high], [name] * 2, lw=6, solid_capstyle="butt")
            place = (training_seconds(result), name)
            right.plot(*place, "o")
            right.annotate(f"{kept_states(result)}  ", place, ha="right", va="center", fontsize=8)
    left.set_xlabel("test accuracy (%), 95% interval")
    right.set(xscale="log", xlabel="training (s, logarithmic)")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    fig.tight_layout()
    return fig


def write_table_and_picture(folder: Path) -> None:
    with reading_results(folder):
        results = read_results(folder)
        print(make_table(results))
        with whole_file(folder / PICTURE) as partial:
            plot_accuracy_and_time(results).savefig(partial, format="png", dpi=90)


def main(argv: list[str] | None = None) -> int:
    about = f"Print the README's table and draw its picture, {PICTURE}, from the raw result files."
    parser = make_parser("make_table.py", about)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    args = parser.parse_args(argv)
    return run_command("make_table.py", lambda: write_table_and_picture(args.results))


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
