"""Tables and figures of the experiments, from the raw result files alone.

    python 02_bonus_additional-experiments/make_tables.py --results my-results

writes `tables.md` and the figures into that folder. Without --results it takes the results of this
repository, and fills in README.md, tables.md and figures/.
"""

import re
import startup_errors  # noqa: F401
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from comparisons import NUM_SEEDS, Comparison, Runs, average, compare, load
from experiment_config import MAIN, RESULTS, ROWS
from matplotlib.figure import Figure

from command_line import make_parser, run_command
from files import reading_results, write_text
from message_files import DataError
from several_seeds import mean_and_interval

FOLDER = Path(__file__).parent
DOCUMENTS = (FOLDER / "README.md", FOLDER / "tables.md")
ROW_1, NGRAMS, ALMEIDA_NGRAMS = "last-block", "char-ngrams", "almeida-char-ngrams-weighted"
BLOCKS = ("head", ROW_1, "two-blocks", *(f"blocks-{n}" for n in range(3, 7)), "all-layers")
SMS, TWO_CLASSES, STARS = "text messages", "reviews, two classes", "reviews, eight star ratings"
TASKS = (SMS, TWO_CLASSES, STARS)
CHARACTERS = "character n-grams"
LEARNERS = [learner for learner in ROWS.learner.unique() if learner]

COST = {"CPU seconds": "processor_seconds", "MB": "peak_memory_mb"}
KNOWN = ("", "test accuracy", "deviation", "95% interval", "against row 1", "won : lost, p")

Measured = dict[str, Runs]


def of_suites(measured: Measured, *suites: str) -> Measured:
    return {row: runs for row, runs in measured.items() if ROWS.suite[row] in suites}


def candidates(measured: Measured) -> list[Runs]:
    """What was tried to leave the n-grams behind: rows, and their averages with the n-grams."""
    names = [ROW_1, "two-blocks", "all-layers", "mean-pooling", "all-ham-weighted"]
    names += ROWS.index[ROWS.suite == "best"].tolist()
    rows = [measured[name] for name in names]
    return rows + [average(runs, measured[NGRAMS]) for runs in rows]


def curves(measured: Measured, task: str) -> dict[str, dict[int, Runs]]:
    """The learning curves of a task, by learner and number of labelled examples; what was not
    measured is left out."""
    found: dict[str, dict[int, Runs]] = {}
    for learner in LEARNERS:
        rows = ROWS.index[(ROWS.task == task) & (ROWS.learner == learner)].intersection([*measured])
        if by_size := {measured[r].files[0]["train"]["num_examples"]: measured[r] for r in rows}:
            found[learner] = dict(sorted(by_size.items()))
    return found


# --- Tables --------------------------------------------------------------------------------------


def markdown(lines: Iterable[dict[str, str]] | pd.DataFrame) -> str:
    """A table of lines {column: cell}; a cell that is missing stays empty."""
    table = pd.DataFrame(lines).fillna("").astype(str)
    if table.empty:
        return "Not measured."
    return table.to_markdown(index=False, disable_numparse=True)


def points(fraction: float) -> str:
    """A fraction as percentage points with its sign; no minus before a zero."""
    rounded = round(100 * fraction, 1) + 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def in_points(c: Comparison) -> str:
    """A difference with its 95% interval."""
    return f"{points(c.difference)} ({points(c.low)} to {points(c.high)})"


def line(runs: Runs, reference: Runs | None = None, against: str = "against row 1") -> dict:
    """A row with its accuracy, the comparison with another row, its cost and its options."""
    mean, deviation, low, high = mean_and_interval(runs.accuracies)
    cells = {
        "": runs.says,
        "test accuracy": f"{mean:.1%}",
        "deviation": f"{100 * deviation:.1f}",
        "95% interval": f"{100 * low:.1f} to {min(100, 100 * high):.1f}",
        **(dict.fromkeys((against, "won : lost, p"), "") if reference else {}),
        **dict.fromkeys(COST, ""),
    }
    if reference and runs is not reference:
        c = compare(runs, reference)
        p_value = f"{c.p_value:.3f}" if c.p_value >= 0.001 else "< 0.001"
        cells |= {against: in_points(c), "won : lost, p": f"{c.gained} : {c.lost}, {p_value}"}
    for file in runs.timed[:1]:
        cells |= {cell: f"{file[key]:,.0f}" for cell, key in COST.items()}
    return cells | {"options": runs.options}


def compared(
    measured: Measured, rows: Iterable[str], reference: str = ROW_1, against: str = "against row 1"
) -> str:
    """Rows beside another; those that are not measured are left out."""
    rows = [measured[row] for row in rows if row in measured]
    return markdown(line(runs, measured.get(reference), against) for runs in rows)


def known_rows(measured: Measured) -> pd.DataFrame:
    """The rows that readers know, with the published accuracy beside ours."""
    known, lines = ROWS[ROWS.suite.isin(["known", "larger"])], []
    for number, (row, about) in enumerate(known.iterrows(), start=1):
        cells = {"": about.description, "test accuracy": "not measured here"}
        cells |= {"options": f"`{about.options}`"}
        if row in measured:
            cells = line(measured[row], measured[ROW_1] if about.suite == "known" else None)
        lines.append(cells | {"row": number, "published": f"{float(about.published):.1f}%"})
    return pd.DataFrame(lines)[["row", *KNOWN, "published", *COST, "options"]]


def short_table(measured: Measured) -> str:
    """Of the known rows, those that are measured and what matters most."""
    table = known_rows(measured).dropna(subset="deviation")
    return markdown(table[["row", "", "test accuracy", "against row 1", "published"]])


def curve_table(measured: Measured, task: str, leads: bool = False) -> str:
    """Mean test accuracy and half the width of its 95% interval, by learner and by the number of
    labelled examples; or the points by which the learner leads the n-grams."""
    by_learner, table = curves(measured, task), {}
    ngrams = by_learner.pop(CHARACTERS, {}) if leads else {}
    for learner, by_size in by_learner.items():
        cells = table[learner] = {}
        for size, runs in by_size.items():
            if size in ngrams:
                cells[size] = in_points(compare(runs, ngrams[size]))
            elif not leads:
                mean, _, low, _ = mean_and_interval(runs.accuracies)
                cells[size] = f"{100 * mean:.1f} ± {100 * (mean - low):.1f}"
    return markdown(pd.DataFrame(table).sort_index().T.rename_axis("").reset_index())


def almeida_table(measured: Measured) -> str:
    """The paper's protocol: its best row as published, and ours, with and without duplicates."""
    columns = ("", "accuracy", "spam caught", "ham blocked", "MCC")
    paper = ("SVM, as published by the authors", "97.64%", "83.10%", "0.18%", "0.893")
    lines, rows = [dict(zip(columns, paper))], list(of_suites(measured, "almeida").values())
    gpts = [runs for runs in rows if "--classifier" not in runs.options]
    for runs in rows + [average(runs, measured[ALMEIDA_NGRAMS]) for runs in gpts]:
        mcc, cells = runs.metric("mcc"), [runs.says]
        names = ("accuracy", "spam_caught", "ham_blocked")
        cells += [f"{np.mean(runs.metric(name)):.2%}" for name in names]
        cells = dict(zip(columns, [*cells, f"{np.mean(mcc):.3f}"]))
        every = " ".join(f"{value:.3f}" for value in mcc)
        cells["MCC of every seed"] = every if len(set(mcc)) > 1 else "all alike"
        if runs.files:
            without = np.mean([file["test_without_repeated"]["mcc"] for file in runs.files])
            cells["MCC without repeated messages"] = f"{without:.3f}"
        lines.append(cells | {"options": runs.options})
    return markdown(lines)


def rows_of(suite: str) -> list[str]:
    """The rows of a suite that are no points of a learning curve."""
    return list(ROWS.index[(ROWS.suite == suite) & ~ROWS.options.str.contains("--train-size")])


TABLES = {
    "short": short_table,
    "known": lambda measured: markdown(known_rows(measured)),
    "smollm2": partial(
        compared,
        rows=rows_of("smollm2"),
        reference="smollm2-last-block",
        against="against its last block, mean",
    ),
    "further": partial(compared, rows=rows_of("further")),
    "blocks": partial(compared, rows=BLOCKS),
    "baselines": partial(compared, rows=rows_of("baselines")),
    "best": lambda measured: markdown(
        line(runs, measured[NGRAMS], "against n-grams") for runs in candidates(measured)
    ),
    "curves": partial(curve_table, task=SMS),
    "leads": partial(curve_table, task=SMS, leads=True),
    "reviews": partial(curve_table, task=TWO_CLASSES),
    "reviews_leads": partial(curve_table, task=TWO_CLASSES, leads=True),
    "stars": partial(curve_table, task=STARS),
    "stars_leads": partial(curve_table, task=STARS, leads=True),
    "almeida": almeida_table,
}


# --- Figures -------------------------------------------------------------------------------------


def forest_plot(rows: Iterable[Runs], reference: Runs) -> Figure:
    """Differences with their 95% intervals, in points of test accuracy."""
    results = [(compare(runs, reference), runs.says) for runs in rows if runs is not reference]
    results.sort(key=lambda result: result[0].difference)
    difference, low, high = 100 * np.array([result[:3] for result, _ in results]).T
    color = np.select([low > 0, high < 0], ["#08519c", "#b2182b"], "gray")
    fig, ax = plt.subplots(figsize=(8.5, 1.2 + 0.27 * len(results)))
    ax.hlines(range(len(results)), low, high, color)
    ax.scatter(difference, range(len(results)), c=color, zorder=2)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xscale("symlog", linthresh=5)
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5]
    ax.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    ax.set_yticks(range(len(results)), [says for _, says in results], fontsize=8)
    ax.set_xlim(low.min() - 1, high.max() + 0.5)
    ax.set_title(f"against: {reference.says}", fontsize=10)
    ax.set_xlabel("difference in test accuracy (points; compressed below −5)")
    ax.grid(alpha=0.3, axis="x")
    fig.tight_layout()
    return fig


def against_ngrams_plot(measured: Measured) -> Figure:
    rivals = [runs for row, runs in of_suites(measured, "baselines").items() if row != "majority"]
    return forest_plot([*rivals, *candidates(measured)], measured[NGRAMS])


def curves_plot(measured: Measured, tasks: Iterable[str] = TASKS) -> Figure:
    """Learning curves, with the interval of each mean, of those tasks that are measured."""
    tasks = [task for task in tasks if curves(measured, task)]
    size = (max(7, 5.5 * len(tasks)), 5)
    fig, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False, layout="constrained")
    colors = dict(zip(LEARNERS, plt.get_cmap("tab10").colors))
    for ax, task in zip(axes[0], tasks):
        by_learner = curves(measured, task)
        for learner, by_size in by_learner.items():
            sizes = [size for size in by_size if size > 0]  # an axis of logarithms has no 0
            intervals = [mean_and_interval(by_size[size].accuracies) for size in sizes]
            means, _, low, high = 100 * np.array(intervals).reshape(-1, 4).T
            ax.plot(sizes, means, "o-", ms=4, color=colors[learner], label=learner)
            ax.fill_between(sizes, low, high, color=colors[learner], alpha=0.12)
        ax.set_xscale("log")
        sizes = sorted({size for by_size in by_learner.values() for size in by_size} - {0})
        ax.set_xticks(sizes, sizes)
        ax.minorticks_off()
        ax.set(title=task, xlabel="labelled examples")
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy (%), mean and 95% interval")
    handles = {label: h for ax in axes[0] for h, label in zip(*ax.get_legend_handles_labels())}
    names = [learner for learner in LEARNERS if learner in handles]
    fig.legend([handles[n] for n in names], names, loc="outside lower center", ncols=2, fontsize=8)
    return fig


def blocks_plot(measured: Measured) -> Figure:
    """Accuracy and processor seconds by what is trained."""
    rows = [measured[row] for row in BLOCKS]
    places, labels = range(len(rows)), ["0", "1", "2", "3", "4", "5", "6", "all"]
    means, _, _, high = 100 * np.array([mean_and_interval(runs.accuracies) for runs in rows]).T
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    left.errorbar(places, means, high - means, fmt="o", capsize=4)
    left.set_ylabel("test accuracy (%), mean and 95% interval")
    right.bar(places, [runs.timed[0]["processor_seconds"] for runs in rows], color="#9ecae1")
    right.set_ylabel("processor seconds of a run")
    for ax in (left, right):
        ax.set_xticks(places, labels)
        ax.set_xlabel("trained blocks (all: the embeddings, too)")
        ax.grid(alpha=0.3, axis="y")
    fig.tight_layout()
    return fig


PLOTS = {
    "against-row-1": lambda measured: forest_plot(
        of_suites(measured, "known", "further", "blocks").values(), measured[ROW_1]
    ),
    "against-ngrams": against_ngrams_plot,
    "learning-curves": curves_plot,
    "blocks": blocks_plot,
}


# --- The documents -------------------------------------------------------------------------------


def fill_in(text: str, measured: Measured) -> str:
    """The text with each table between its marks as the raw files give it."""

    def fill(marks: re.Match) -> str:
        return f"{marks[1]}\n\n{TABLES[marks[2]](measured)}\n\n<!-- end -->"

    return re.sub(r"(<!-- table (\w+) -->).*?<!-- end -->", fill, text, flags=re.DOTALL)


def write_all(results: Path) -> None:
    """Tables and figures. Raises ``DataError`` unless the main suite is measured."""
    with reading_results(results):
        measured = load(results)
    if missing := set(MAIN) - measured.keys():
        raise DataError(
            f"{results} has less than {NUM_SEEDS} seeds of {len(missing)} rows, such as "
            f"{min(missing)}; `additional_experiments.py --suite main` measures them."
        )
    output, documents = (FOLDER, DOCUMENTS) if results == RESULTS else (results, DOCUMENTS[1:])
    for path in documents:
        write_text(fill_in(path.read_text(encoding="utf-8"), measured), output / path.name)
    figures = output / "figures"
    figures.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        plot(measured).savefig(figures / f"{name}.png", dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("make_tables.py", __doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    results = parser.parse_args(argv).results
    return run_command("make_tables.py", lambda: write_all(results), output=results)


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
