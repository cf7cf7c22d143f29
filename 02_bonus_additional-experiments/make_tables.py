"""Tables and figures of the experiments, from the raw result files alone.

    python 02_bonus_additional-experiments/make_tables.py
    python 02_bonus_additional-experiments/make_tables.py --check

The first command writes the tables into README.md, between their marks, and the figures beside
it; the second only says whether the tables are those that the files give.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from additional_experiments import figures, pack, unpack
from matplotlib.figure import Figure
from scipy.stats import binomtest
from suites import (
    ALMEIDA,
    BASELINES,
    BEST,
    BLOCKS,
    CURVES,
    FRACTIONS,
    FURTHER,
    KNOWN,
    LEARNERS,
    SUITES,
    Row,
)

from several_seeds import fill_in, markdown, mean_and_interval
from text_classifier import write_text

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
FIGURES = FOLDER / "figures"
README = FOLDER / "README.md"
REFERENCE = "last-block"
NGRAMS = [row for row in BASELINES if row.name == "char-ngrams"]
NUM_DRAWS = 10_000
NUM_SEEDS = 5  # a row with fewer is not shown

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
    "ignore-index": 95.00,
    "mean-pooling": 96.33,
}
AS_PUBLISHED = "--protocol published --trainable_token_pos last"
# Rows whose weights were not at hand: command, what it is, the published figure if there is one.
NOT_MEASURED = (
    ("--model gpt2-small", "GPT-2 124M, last block, last real token", 98.33),
    (f"--model gpt2-medium {AS_PUBLISHED}", "GPT-2 355M, last block, last position", 84.67),
    (f"--model gpt2-large {AS_PUBLISHED}", "GPT-2 774M, last block, last position", 96.67),
    (f"--model gpt2-xl {AS_PUBLISHED}", "GPT-2 1558M, last block, last position", 98.33),
    (
        f"--model gpt2-xl --trainable_layers all {AS_PUBLISHED}",
        "GPT-2 1558M, all layers, last position",
        98.67,
    ),
    (
        f"--model gpt2-xl --trainable_layers lora --lora_rank 16 --lora_alpha 8 {AS_PUBLISHED}",
        "GPT-2 1558M, LoRA, last position",
        98.33,
    ),
)


# ---------------------------------------------------------------------------------------------
# Reading, and comparing rows
# ---------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """The runs of one row, by seed."""

    row: Row
    runs: list[dict]

    def test(self, figure: str = "accuracy", part: str = "test") -> list[float]:
        """A figure of every run, in the order of seeds."""
        return [run[part][figure] for run in self.runs]

    def correct(self) -> dict[int, np.ndarray]:
        """For each seed, which test messages got the right class."""
        return {run["seed"]: is_correct(run) for run in self.runs}


def is_correct(run: dict) -> np.ndarray:
    labels = np.array(list(run["predictions"]["labels"])) == "1"
    return (unpack(run["predictions"]["spam_probability"]) > 0.5) == labels


def load(rows: Sequence[Row], folder: Path = RESULTS) -> list[Measured]:
    """The rows that have result files of enough seeds."""
    measured = []
    for row in rows:
        paths = (folder / row.name).glob("seed-*.json")
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if len(runs) >= NUM_SEEDS:
            measured.append(Measured(row, sorted(runs, key=lambda run: run["seed"])))
    return measured


def load_one(row: Row, folder: Path = RESULTS) -> Measured:
    """A row that others are compared with. Raises ``ValueError`` where its files are too few."""
    if not (measured := load([row], folder)):
        raise ValueError(f"{folder / row.name} needs the files of {NUM_SEEDS} seeds; run --suite.")
    return measured[0]


@dataclass
class Comparison:
    """A row minus another, on the same test messages."""

    difference: float
    low: float
    high: float
    """95% interval, in shares of the messages."""
    gained: int
    lost: int
    """Messages that only the row, and only the other, got right, over all seeds."""
    p_value: float
    """Exact McNemar test on these two, which takes every answer as independent."""


def compare(ours: Measured, theirs: Measured) -> Comparison:
    """A paired test over the seeds that both rows have.

    The interval is the wider, at either end, of two. A bootstrap on two levels draws seeds with
    replacement, and within each its test messages; both rows keep their answers to a drawn message.
    It knows the luck of the messages, but draws five seeds too much alike. Student's t over the
    seeds' differences makes up for few seeds, but takes five that agree by luck at their word.
    """
    a, b = ours.correct(), theirs.correct()
    seeds = sorted(a.keys() & b.keys())
    check_same_messages(ours, theirs)
    differences = [a[seed].astype(int) - b[seed].astype(int) for seed in seeds]
    rng = np.random.default_rng(0)
    picked = rng.integers(len(seeds), size=(len(seeds), NUM_DRAWS))
    drawn = np.zeros(NUM_DRAWS)
    for chosen in picked:  # messages are drawn anew each time a seed is drawn
        for number, d in enumerate(differences):
            (draws,) = np.nonzero(chosen == number)
            drawn[draws] += rng.choice(d, (len(draws), len(d))).mean(axis=1) / len(seeds)
    low, high = np.percentile(drawn, [2.5, 97.5])
    if len(seeds) > 1:
        _, _, t_low, t_high = mean_and_interval([d.mean() for d in differences])
        low, high = min(low, t_low), max(high, t_high)
    gained = sum(int((d == 1).sum()) for d in differences)
    lost = sum(int((d == -1).sum()) for d in differences)
    p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    mean = float(np.mean([d.mean() for d in differences]))
    return Comparison(mean, float(low), float(high), gained, lost, float(p_value))


def check_same_messages(ours: Measured, theirs: Measured) -> None:
    texts = {run["seed"]: run["predictions"]["test_texts_crc32"] for run in theirs.runs}
    for run in ours.runs:
        if (
            texts.get(run["seed"], run["predictions"]["test_texts_crc32"])
            != (run["predictions"]["test_texts_crc32"])
        ):
            raise ValueError(
                f"{ours.row.name} and {theirs.row.name} were tested on different messages with "
                f"seed {run['seed']}: delete one of the files and measure it again."
            )


def average(one: Measured, other: Measured) -> Measured:
    """The classifier that averages the probabilities of a row and of n-grams, where both have a
    seed."""
    check_same_messages(one, other)
    theirs = {run["seed"]: run for run in other.runs}
    runs = []
    for run in one.runs:
        if run["seed"] in theirs:
            pair = (run["predictions"], theirs[run["seed"]]["predictions"])
            spam = np.mean([unpack(p["spam_probability"]) for p in pair], axis=0)
            mixed = run["predictions"] | {
                "spam_probability": pack(np.stack([1 - spam, spam], axis=1))
            }
            labels = np.array(list(mixed["labels"])).astype(int)
            test = figures(np.stack([1 - spam, spam], axis=1), labels)
            new = {"seed": run["seed"], "predictions": mixed, "test": test, "from_scratch": False}
            runs.append(new)
    weighted = ", class weights" if "--balance weights" in other.row.options else ""
    says = f"{one.row.says}, averaged with n-grams{weighted}"
    return Measured(Row(f"{one.row.name}-averaged", "", says), runs)


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def points(share: float) -> str:
    """A share as percentage points with its sign; no minus before a zero."""
    rounded = round(100 * share, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def accuracy_cells(measured: Measured) -> list[str]:
    mean, deviation, low, high = mean_and_interval(measured.test())
    return [
        f"{mean:.1%}",
        f"{100 * deviation:.1f}",
        f"{100 * low:.1f} to {min(100, 100 * high):.1f}",
    ]


def comparison_cells(ours: Measured, theirs: Measured) -> list[str]:
    if ours.row.name == theirs.row.name:
        return ["", ""]
    result = compare(ours, theirs)
    interval = f"{points(result.difference)} ({points(result.low)} to {points(result.high)})"
    p_value = f"{result.p_value:.3f}" if result.p_value >= 0.001 else "< 0.001"
    return [interval, f"{result.gained} : {result.lost}, {p_value}"]


def cost_cells(measured: Measured) -> list[str]:
    """Processor seconds and peak memory of the run that had a process of its own."""
    alone = [run for run in measured.runs if run["from_scratch"]]
    if not alone:
        return ["", ""]
    return [f"{alone[0]['processor_seconds']:,.0f}", f"{alone[0]['peak_memory_mb']:,.0f}"]


MEASURED_COLUMNS = ("test accuracy", "deviation", "95% interval", "against row 1", "won : lost, p")
COST_COLUMNS = ("CPU seconds", "MB", "options")


def options_cell(row: Row) -> str:
    if row.name.endswith("-averaged"):
        return "from the two rows' predictions"
    return f"`{row.options}`" if row.options else "none"


def known_table(folder: Path = RESULTS) -> str:
    """The rows that readers know, with the published figure beside ours."""
    measured = {m.row.name: m for m in load(KNOWN, folder)}
    rows = []
    for number, row in enumerate(KNOWN, start=1):
        cells, costs = ["not measured yet", "", "", "", ""], ["", ""]
        if row.name in measured:
            m = measured[row.name]
            cells = [*accuracy_cells(m), *comparison_cells(m, measured[REFERENCE])]
            costs = cost_cells(m)
        published = f"{PUBLISHED[row.name]:.1f}%" if row.name in PUBLISHED else ""
        rows.append([str(number), row.says, *cells, published, *costs, options_cell(row)])
    for number, (options, says, published) in enumerate(NOT_MEASURED, start=len(rows) + 1):
        empty = ["not measured here", "", "", "", ""]
        rows.append([str(number), says, *empty, f"{published:.1f}%", "", "", f"`{options}`"])
    table = markdown(["row", "", *MEASURED_COLUMNS, "published", *COST_COLUMNS], rows)
    if len(measured) < len(KNOWN):
        table += "\n\n`--suite main --model gpt-mini` goes on with the rows that are missing."
    return table


def plain_table(suite: Sequence[Row], folder: Path = RESULTS) -> str:
    """Rows with their comparison with row 1."""
    return table_of(load(suite, folder), load(KNOWN[:1], folder)[0])


def table_of(measured: Sequence[Measured], reference: Measured) -> str:
    """Rows with their comparison with another."""
    rows = [
        [
            m.row.says,
            *accuracy_cells(m),
            *comparison_cells(m, reference),
            *cost_cells(m),
            options_cell(m.row),
        ]
        for m in measured
    ]
    columns = list(MEASURED_COLUMNS)
    columns[3] = "against row 1" if reference.row.name == REFERENCE else "against n-grams"
    return markdown(["", *columns, *COST_COLUMNS], rows)


def candidates(folder: Path = RESULTS) -> list[Measured]:
    """What was tried to leave the n-grams behind: rows, and their averages with the n-grams."""
    names = ("last-block", "two-blocks", "all-layers", "mean-pooling", "all-ham-weighted")
    known = [row for row in (*KNOWN, *FURTHER) if row.name in names]
    measured = load([*known, *BEST], folder)
    ngrams = load_one(NGRAMS[0], folder)
    return measured + [average(m, ngrams) for m in measured]


def best_table(folder: Path = RESULTS) -> str:
    """The candidates against the n-grams."""
    return table_of(candidates(folder), load_one(NGRAMS[0], folder))


def curve_points(learner: str, folder: Path = RESULTS) -> list[tuple[int, Measured]]:
    """(training messages, runs) of a learning curve, from the fewest to all."""
    whole = {"pretrained": REFERENCE, "random": "random-last-block", "ngrams": "char-ngrams"}
    rows = [row for row in CURVES if row.name in {f"{learner}-{size}" for size in FRACTIONS}]
    rows += [row for row in (*KNOWN, *FURTHER, *BASELINES) if row.name == whole[learner]]
    measured = load(rows, folder)
    return sorted((m.runs[0]["train"]["num_examples"], m) for m in measured) if measured else []


def curve_table(folder: Path = RESULTS) -> str:
    """Mean test accuracy and its interval by learner and number of training messages."""
    names = {"pretrained": "pretrained", "random": "random weights", "ngrams": "character n-grams"}
    curves = {learner: dict(curve_points(learner, folder)) for learner in LEARNERS}
    sizes = sorted(set().union(*curves.values()))
    rows = []
    for size in sizes:
        cells = []
        for learner in LEARNERS:
            m = curves[learner].get(size)
            mean, _, interval = accuracy_cells(m) if m else ("", "", "")
            cells.append(f"{mean} ({interval})" if m else "")
        rows.append([str(size), *cells])
    return markdown(["training messages", *(names[learner] for learner in LEARNERS)], rows)


def almeida_table(folder: Path = RESULTS) -> str:
    """The paper's protocol: its best row as published, and ours, with and without duplicates."""
    header = [
        *("", "accuracy", "spam caught", "ham blocked", "MCC", "MCC of every seed"),
        *("MCC without repeated messages", "options"),
    ]
    paper = ["SVM, as published by the authors", "97.64%", "83.10%", "0.18%", "0.893", "", "", ""]
    rows = [paper]
    measured = load(ALMEIDA, folder)
    best = [m for m in measured if m.row.name == "almeida-char-ngrams-weighted"]
    gpts = [m for m in measured if not m.row.is_classical]
    for m in measured + [average(gpt, best[0]) for gpt in gpts]:
        cells = [f"{np.mean(m.test(name)):.2%}" for name in ("accuracy", "spam_caught")]
        cells.append(f"{np.mean(m.test('ham_blocked')):.2%}")
        mcc = m.test("mcc")
        every = " ".join(f"{value:.3f}" for value in mcc) if len(set(mcc)) > 1 else "all alike"
        without = ""
        if "test_without_repeated" in m.runs[0]:
            without = f"{np.mean(m.test('mcc', 'test_without_repeated')):.3f}"
        rows.append(
            [
                m.row.says,
                *cells,
                f"{np.mean(mcc):.3f}",
                every,
                without,
                options_cell(m.row),
            ]
        )
    return markdown(header, rows)


def suite_table(folder: Path = RESULTS) -> str:
    """What all runs of the suite took together."""
    measured = load(SUITES["main"], folder)
    seconds = [run["processor_seconds"] for row in measured for run in row.runs]
    cells = [str(len(measured)), str(len(seconds)), f"{sum(seconds):,.0f}"]
    cells.append(f"{sum(seconds) / 3600:.1f}")
    return markdown(["rows", "runs", "processor seconds of one thread, in all", "hours"], [cells])


TABLES = {
    "suite": suite_table,
    "known": known_table,
    "further": lambda folder=RESULTS: plain_table(FURTHER, folder),
    "blocks": lambda folder=RESULTS: plain_table(block_rows(), folder),
    "baselines": lambda folder=RESULTS: plain_table(BASELINES, folder),
    "best": best_table,
    "curves": curve_table,
    "almeida": almeida_table,
}


def block_rows() -> list[Row]:
    """From no unfrozen block to all of the model."""
    names = {row.name: row for row in (*KNOWN, *BLOCKS)}
    order = ("head", "last-block", "two-blocks", *(row.name for row in BLOCKS), "all-layers")
    return [names[name] for name in order]


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def forest_plot(measured: Sequence[Measured], reference: Measured) -> Figure:
    """Differences with their 95% intervals, in points of test accuracy."""
    measured = [m for m in measured if m.row.name != reference.row.name]
    results = [compare(m, reference) for m in measured]
    order = sorted(range(len(results)), key=lambda i: results[i].difference)
    fig, ax = plt.subplots(figsize=(8.5, 1.2 + 0.27 * len(order)))
    for place, i in enumerate(order):
        result = results[i]
        color = "#08519c" if result.low > 0 else "#b2182b" if result.high < 0 else "gray"
        ax.plot([100 * result.low, 100 * result.high], [place, place], color=color)
        ax.plot(100 * result.difference, place, "o", color=color)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xscale("symlog", linthresh=5)
    ax.set_xticks(
        [-50, -20, -10, -5, -2, 0, 2, 5], ["−50", "−20", "−10", "−5", "−2", "0", "2", "5"]
    )
    ax.set_yticks(range(len(order)), [measured[i].row.says for i in order], fontsize=8)
    ax.set_xlim(100 * min(r.low for r in results) - 1, 100 * max(r.high for r in results) + 0.5)
    ax.set_title(f"against: {reference.row.says}", fontsize=10)
    ax.set_xlabel("difference in test accuracy (points)")
    ax.grid(alpha=0.3, axis="x")
    fig.tight_layout()
    return fig


def curves_plot(folder: Path = RESULTS) -> Figure:
    """Learning curves with the interval of each mean."""
    names = {"pretrained": "gpt-mini, pretrained", "random": "gpt-mini, random weights"}
    fig, ax = plt.subplots(figsize=(6.5, 4))
    for learner, style in zip(LEARNERS, ("o-", "s--", "^:")):
        found = curve_points(learner, folder)
        if not found:
            continue
        sizes, measured = zip(*found)
        summaries = [mean_and_interval(m.test()) for m in measured]
        means = [100 * summary[0] for summary in summaries]
        ax.plot(sizes, means, style, label=names.get(learner, "character n-grams"))
        low, high = ([100 * summary[i] for summary in summaries] for i in (2, 3))
        ax.fill_between(sizes, low, high, alpha=0.15)
    ax.set_xscale("log")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set(xlabel="training messages", ylabel="test accuracy (%)")
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    fig.tight_layout()
    return fig


def blocks_plot(folder: Path = RESULTS) -> Figure:
    """Accuracy and processor seconds by what is trained."""
    measured = load(block_rows(), folder)
    names = {"head": "0", "last-block": "1", "two-blocks": "2", "all-layers": "all"}
    labels = [names.get(m.row.name, m.row.name.removeprefix("blocks-")) for m in measured]
    summaries = [mean_and_interval(m.test()) for m in measured]
    places = range(len(measured))
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    means = np.array([100 * summary[0] for summary in summaries])
    halves = np.array([100 * (summary[3] - summary[0]) for summary in summaries])
    left.errorbar(places, means, halves, fmt="o", capsize=4)
    left.set_ylabel("test accuracy (%), mean and 95% interval")
    seconds = [float(cost_cells(m)[0].replace(",", "") or "nan") for m in measured]
    right.bar(places, seconds, color="#9ecae1")
    right.set_ylabel("processor seconds of a run")
    for ax in (left, right):
        ax.set_xticks(places, labels)
        ax.set_xlabel("unfrozen blocks (all: the embeddings, too)")
        ax.grid(alpha=0.3, axis="y")
    fig.tight_layout()
    return fig


PLOTS = {
    "against-row-1": lambda folder=RESULTS: forest_plot(
        load([*KNOWN, *FURTHER, *BLOCKS], folder), load(KNOWN[:1], folder)[0]
    ),
    "against-ngrams": lambda folder=RESULTS: forest_plot(
        [*load(BASELINES[1:], folder), *candidates(folder)], load(NGRAMS, folder)[0]
    ),
    "learning-curves": curves_plot,
    "blocks": blocks_plot,
}


# ---------------------------------------------------------------------------------------------
# The document
# ---------------------------------------------------------------------------------------------


def make_all(folder: Path = RESULTS) -> dict[str, str]:
    return {name: make(folder) for name, make in TABLES.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make_tables.py", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if outdated")
    args = parser.parse_args(argv)
    try:
        before = README.read_text(encoding="utf-8")
        after = fill_in(before, make_all())
        if args.check:
            print("The tables are up to date." if before == after else "The tables are outdated.")
            return int(before != after)
        write_text(after, README)
        FIGURES.mkdir(exist_ok=True)
        for name, plot in PLOTS.items():
            figure = plot()
            figure.savefig(FIGURES / f"{name}.png", dpi=110)
            plt.close(figure)
    except (OSError, ValueError) as error:
        print(f"make_tables.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
