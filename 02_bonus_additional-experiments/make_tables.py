"""Tables and figures of the experiments, from the raw result files alone.

    python 02_bonus_additional-experiments/make_tables.py

writes the tables into README.md and tables.md, between their marks, and the figures beside them.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from comparisons import Measured, average, compare, load, load_one
from matplotlib.figure import Figure
from suites import ALMEIDA, BASELINES, BEST, BLOCKS, FURTHER, KNOWN, LARGER, SUITES, Row

from command_line import make_parser, run_command
from files import write_text
from several_seeds import mean_and_interval

FOLDER = Path(__file__).parent
DOCUMENTS = (FOLDER / "README.md", FOLDER / "tables.md")
FIGURES = FOLDER / "figures"
ROWS = {row.name: row for rows in SUITES.values() for row in rows}
ROW_1, NGRAMS = ROWS["last-block"], ROWS["char-ngrams"]

# Test accuracies in percent of the well-known table: GPT-2 124M on an A100, one seed, 300 test
# messages of which 37 stand in the training set, from the README of
# github.com/rasbt/LLMs-from-scratch, ch06/02_bonus_additional-experiments (Apache 2.0).
PUBLISHED = {
    "last-position": 95.00,
    "first-token": 75.00,
    "head": 72.00,
    "two-blocks": 98.33,
    "all-layers": 96.67,
    "random-all-layers": 93.67,
    "lora": 96.67,
    "full-context": 78.33,
    "batch-of-one": 98.00,
    "accumulated": 98.33,
    "last-block": 98.33,
    "no-causal-mask": 95.33,
    "mean-pooling": 96.33,
    "gpt2-small": 98.33,
    "gpt2-medium": 84.67,
    "gpt2-large": 96.67,
    "gpt2-xl": 98.33,
    "gpt2-xl-all-layers": 98.67,
    "gpt2-xl-lora": 98.33,
}


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """A table of rows {column: cell}; a cell that is missing stays empty."""
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)


def points(fraction: float) -> str:
    """A fraction as percentage points with its sign; no minus before a zero."""
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def accuracy_cells(m: Measured) -> dict[str, str]:
    mean, deviation, low, high = mean_and_interval(m.test())
    return {
        "test accuracy": f"{mean:.1%}",
        "deviation": f"{100 * deviation:.1f}",
        "95% interval": f"{100 * low:.1f} to {min(100, 100 * high):.1f}",
    }


def cells(m: Measured, reference: Measured) -> dict[str, str]:
    """Accuracy, and the comparison with another row."""
    against = "against row 1" if reference.row == ROW_1 else "against n-grams"
    if m.row == reference.row:
        return accuracy_cells(m) | {against: "", "won : lost, p": ""}
    result = compare(m, reference)
    interval = f"{points(result.difference)} ({points(result.low)} to {points(result.high)})"
    p_value = f"{result.p_value:.3f}" if result.p_value >= 0.001 else "< 0.001"
    counts = f"{result.gained} : {result.lost}, {p_value}"
    return accuracy_cells(m) | {against: interval, "won : lost, p": counts}


def cost_cells(m: Measured) -> dict[str, str]:
    """Processor seconds and peak memory of the run that had a process of its own."""
    for run in m.runs:
        if run["from_scratch"]:
            seconds, memory = run["processor_seconds"], run["peak_memory_mb"]
            return {"CPU seconds": f"{seconds:,.0f}", "MB": f"{memory:,.0f}"}
    return {"CPU seconds": "", "MB": ""}


def options_cell(row: Row) -> dict[str, str]:
    if row.name.endswith("-averaged"):
        return {"options": "from the two rows' predictions"}
    return {"options": f"`{row.options}`" if row.options else "none"}


def known_table() -> str:
    """The rows that readers know, with the published accuracy beside ours."""
    rows = [*KNOWN, *LARGER]
    measured, reference = {m.row.name: m for m in load(rows)}, load_one(ROW_1)
    lines = []
    for number, row in enumerate(rows, start=1):
        line = {"row": str(number), "": row.says, "test accuracy": "not measured here"}
        if m := measured.get(row.name):
            line |= cells(m, reference) if row in KNOWN else accuracy_cells(m)
        line["published"] = f"{PUBLISHED[row.name]:.1f}%"
        lines.append(line | (cost_cells(m) if m else {}) | options_cell(row))
    return markdown(lines)


def candidates() -> list[Measured]:
    """What was tried to leave the n-grams behind: rows, and their averages with the n-grams."""
    names = ("last-block", "two-blocks", "all-layers", "mean-pooling", "all-ham-weighted")
    measured, ngrams = load([*(ROWS[name] for name in names), *BEST]), load_one(NGRAMS)
    return measured + [average(m, ngrams) for m in measured]


def table_of(measured: Sequence[Measured], reference: Measured) -> str:
    """Rows with their comparison with another."""
    return markdown(
        [
            {"": m.row.says} | cells(m, reference) | cost_cells(m) | options_cell(m.row)
            for m in measured
        ]
    )


def block_rows() -> list[Row]:
    """From no trained block to all of the model."""
    names = ("head", "last-block", "two-blocks", *(row.name for row in BLOCKS), "all-layers")
    return [ROWS[name] for name in names]


# Learner: its name, and its row with all training messages.
LEARNERS = {
    "pretrained": ("gpt-mini", "last-block"),
    "random": ("gpt-mini's shape, random weights", "random-last-block"),
    "ngrams": ("character n-grams", "char-ngrams"),
    "smollm2-frozen": ("SmolLM2, frozen, a regression on its features", "smollm2-frozen"),
    "smollm2-last-block": ("SmolLM2, last block", "smollm2-last-block"),
}


def curve_points(learner: str) -> dict[int, Measured]:
    """A learning curve: runs by the number of training messages, from the fewest to all."""
    rows = [row for name, row in ROWS.items() if re.fullmatch(rf"{learner}-\d+", name)]
    measured = load([*rows, ROWS[LEARNERS[learner][1]]])
    return {m.runs[0]["train"]["num_examples"]: m for m in measured}


def curve_table() -> str:
    """Mean test accuracy and its interval by learner and number of training messages."""
    lines: dict[int, dict[str, str]] = {}
    for learner, (name, _) in LEARNERS.items():
        for size, m in curve_points(learner).items():
            mean, _, interval = accuracy_cells(m).values()
            lines.setdefault(size, {"training messages": str(size)})[name] = f"{mean} ({interval})"
    return markdown(list(lines.values()))


def almeida_table() -> str:
    """The paper's protocol: its best row as published, and ours, with and without duplicates."""
    paper = ("SVM, as published by the authors", "97.64%", "83.10%", "0.18%", "0.893")
    columns = ("", "accuracy", "spam caught", "ham blocked", "MCC")
    lines, measured = [dict(zip(columns, paper))], load(ALMEIDA)
    [best] = [m for m in measured if m.row.name == "almeida-char-ngrams-weighted"]
    for m in measured + [average(m, best) for m in measured if not m.row.is_classical]:
        mcc = m.test("mcc")
        rates = [f"{np.mean(m.test(n)):.2%}" for n in ("accuracy", "spam_caught", "ham_blocked")]
        line = dict(zip(columns, (m.row.says, *rates, f"{np.mean(mcc):.3f}")))
        every = " ".join(f"{value:.3f}" for value in mcc)
        line["MCC of every seed"] = every if len(set(mcc)) > 1 else "all alike"
        if not m.row.name.endswith("-averaged"):
            without = np.mean(m.test("mcc", "test_without_repeated"))
            line["MCC without repeated messages"] = f"{without:.3f}"
        lines.append(line | options_cell(m.row))
    return markdown(lines)


def against_row_1(rows: Sequence[Row]) -> str:
    return table_of(load(rows), load_one(ROW_1))


TABLES = {
    "known": known_table,
    "further": lambda: against_row_1(FURTHER),
    "blocks": lambda: against_row_1(block_rows()),
    "baselines": lambda: against_row_1(BASELINES),
    "best": lambda: table_of(candidates(), load_one(NGRAMS)),
    "curves": curve_table,
    "almeida": almeida_table,
}


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def forest_plot(measured: Sequence[Measured], reference: Measured) -> Figure:
    """Differences with their 95% intervals, in points of test accuracy."""
    results = [(compare(m, reference), m.row.says) for m in measured if m.row != reference.row]
    results.sort(key=lambda result: result[0].difference)
    fig, ax = plt.subplots(figsize=(8.5, 1.2 + 0.27 * len(results)))
    for place, (result, _) in enumerate(results):
        color = "#08519c" if result.low > 0 else "#b2182b" if result.high < 0 else "gray"
        ax.plot([100 * result.low, 100 * result.high], [place, place], color=color)
        ax.plot(100 * result.difference, place, "o", color=color)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xscale("symlog", linthresh=5)
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5]
    ax.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    ax.set_yticks(range(len(results)), [says for _, says in results], fontsize=8)
    lowest, highest = min(r.low for r, _ in results), max(r.high for r, _ in results)
    ax.set_xlim(100 * lowest - 1, 100 * highest + 0.5)
    ax.set_title(f"against: {reference.row.says}", fontsize=10)
    ax.set_xlabel("difference in test accuracy (points)")
    ax.grid(alpha=0.3, axis="x")
    fig.tight_layout()
    return fig


def curves_plot() -> Figure:
    """Learning curves with the interval of each mean."""
    fig, ax = plt.subplots(figsize=(6.5, 4))
    for (learner, (name, _)), style in zip(LEARNERS.items(), ("o-", "s--", "^:", "v-", "D-")):
        if curve := curve_points(learner):
            sizes, measured = list(curve), curve.values()
            means, _, low, high = 100 * np.array([mean_and_interval(m.test()) for m in measured]).T
            ax.plot(sizes, means, style, label=name)
            ax.fill_between(sizes, low, high, alpha=0.15)
    ax.set_xscale("log")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set(xlabel="training messages", ylabel="test accuracy (%)")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    fig.tight_layout()
    return fig


def blocks_plot() -> Figure:
    """Accuracy and processor seconds by what is trained."""
    measured = load(block_rows())
    places, labels = range(len(measured)), ["0", "1", "2", "3", "4", "5", "6", "all"]
    means, _, _, high = 100 * np.array([mean_and_interval(m.test()) for m in measured]).T
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.errorbar(places, means, high - means, fmt="o", capsize=4)
    left.set_ylabel("test accuracy (%), mean and 95% interval")
    costs = [[r["processor_seconds"] for r in m.runs if r["from_scratch"]] for m in measured]
    right.bar(places, [cost[0] if cost else 0 for cost in costs], color="#9ecae1")
    right.set_ylabel("processor seconds of a run")
    for ax in (left, right):
        ax.set_xticks(places, labels)
        ax.set_xlabel("trained blocks (all: the embeddings, too)")
        ax.grid(alpha=0.3, axis="y")
    fig.tight_layout()
    return fig


PLOTS = {
    "against-row-1": lambda: forest_plot(load([*KNOWN, *FURTHER, *BLOCKS]), load_one(ROW_1)),
    "against-ngrams": lambda: forest_plot([*load(BASELINES[1:]), *candidates()], load_one(NGRAMS)),
    "learning-curves": curves_plot,
    "blocks": blocks_plot,
}


# ---------------------------------------------------------------------------------------------
# The documents
# ---------------------------------------------------------------------------------------------


def fill_in(text: str) -> str:
    """The text with each table between its marks as the raw files give it."""
    for name, make in TABLES.items():
        start, end = f"<!-- table {name} -->\n", "\n<!-- end -->"
        if start in text:
            before, _, rest = text.partition(start)
            text = f"{before}{start}\n{make()}\n{end}{rest.partition(end)[2]}"
    return text


def write_all() -> None:
    for path in DOCUMENTS:
        write_text(fill_in(path.read_text(encoding="utf-8")), path)
    FIGURES.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        plot().savefig(FIGURES / f"{name}.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    make_parser("make_tables.py", __doc__.partition("\n")[0]).parse_args(argv)
    return run_command("make_tables.py", write_all)


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
