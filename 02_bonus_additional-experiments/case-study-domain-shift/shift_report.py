"""Tables and figures of the case study, from its result files."""

from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from command_line import HelpFormatter
from files import read_json, reading_results, write_json, write_text
from message_files import DataError
from several_seeds import mean_and_interval

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TESTS = {"sms": "SMS", "email": "e-mail"}
CONTINUED = "gpt with continued pretraining"
FILTERS = ("gpt", CONTINUED, "ngrams")
METHODS = {  # filter and training in the result files: name in the report
    ("gpt", "email"): "GPT, e-mails only",
    ("gpt", "sms and email"): "GPT, text messages and e-mails",
    (CONTINUED, "sms and email"): "GPT with continued pretraining, both",
    ("ngrams", "email"): "n-grams, e-mails only",
    ("ngrams", "sms and email"): "n-grams, text messages and e-mails",
}
METRICS = {
    "accuracy": "accuracy",
    "roc_area": "area under the ROC curve",
    "calibration_error": "calibration error",
    "confidence": "mean confidence",
    "ham_blocked": "ham blocked",
    "spam_caught": "spam caught",
}


def add_run_and_report(parser: ArgumentParser, results: Path) -> ArgumentParser:
    """Give a parser the commands `run` and `report`; returns that of `run`, for more options."""
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in {"run": "measure what is missing", "report": "print or write it"}.items():
        command = commands.add_parser(name, help=about, formatter_class=HelpFormatter)
        command.add_argument("--results", type=Path, default=results, help="folder of the files")
    run = commands.choices["run"]
    run.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of the runs")
    return run


def keep(path: Path, measure: Callable[[], dict]) -> None:
    """Measure what has no result file yet."""
    if path.exists():
        print(f"{path} is there already; to measure anew, name another folder with --results.")
    else:
        write_json(measure(), path)
        print(f"{path} is written.")


def load(folder: Path) -> list[dict]:
    """All seeds that are measured."""
    return list(map(read_json, sorted(folder.glob("seed-*.json"))))


def learned(results: list[dict]) -> pd.DataFrame:
    """The metrics of every seed, filter, training and test, one line each.

    `size` is the number of labelled e-mails, and `method` what the report calls the training.
    """
    lines = [
        {"filter": name, "training": training, "test": test, **metrics}
        for result in results
        for name, trainings in result["learned"].items()
        for training, tests in trainings.items()
        for test, metrics in tests.items()
    ]
    table = pd.DataFrame(lines)
    table[["training", "size"]] = table["training"].str.extract(r"(\D+?)(?: (\d+))?$")
    table["size"] = table["size"].astype("Int64")
    table["method"] = [METHODS.get(pair) for pair in zip(table["filter"], table["training"])]
    return table


def over_seeds(values: pd.Series, percent: bool = True) -> str:
    """Mean and 95% interval (Student's t)."""
    mean, _, low, high = mean_and_interval(list(values))
    if percent:
        return f"{mean:.1%} ({100 * max(0, low):.1f} to {100 * min(1, high):.1f})"
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def tables(results: list[dict]) -> dict[str, pd.DataFrame]:
    """The tables under their titles; what was not measured is left out."""
    number, table = partial(over_seeds, percent=False), learned(results)
    broken = table.query("training == 'sms'").groupby(["filter", "test"])[[*METRICS]]
    broken = broken.agg(over_seeds).T.rename(METRICS)
    broken = broken[[pair for pair in product(FILTERS, TESTS) if pair in broken]]
    broken.columns = [f"{name}, tested on {TESTS[test]}" for name, test in broken]
    streams = pd.DataFrame([stream for r in results for stream in r["signals"]["streams"]])
    signals = {
        "stability index": ("stability_index", number),
        "mean confidence": ("confidence", over_seeds),
        "called spam": ("spam_fraction", over_seeds),
        "told from text messages": ("two_sample_accuracy", over_seeds),
        "p < 0.05": ("two_sample_p", lambda p: f"{(p < 0.05).sum()} of {len(p)}"),
    }
    signals = streams.groupby("fraction").agg(**signals).rename("{:.0%}".format)
    titles = {"tokens_per_word": "tokens per word", "nats_per_token": "nats a token"}
    sources = {
        title: pd.DataFrame([r["signals"]["sources"][test] for r in results])[[*titles]].agg(number)
        for test, title in TESTS.items()
    }
    accuracies = table.groupby(["test", "size", "method"])["accuracy"].agg(over_seeds)
    accuracies = accuracies.unstack().rename_axis(["test", "labelled e-mails"])
    accuracies = accuracies[[name for name in METHODS.values() if name in accuracies]]
    return {
        "What breaks: trained on text messages alone": broken.rename_axis(""),
        "How one notices: signals without labels, by the fraction of e-mails": (
            signals.rename_axis("e-mails")
        ),
        "How strange the texts are": pd.DataFrame(sources).rename(titles).rename_axis(""),
        "What helps: accuracy on e-mails": accuracies.loc["email"],
        "What is forgotten: accuracy on text messages": accuracies.loc["sms"],
    }


def make_tables(results: list[dict]) -> str:
    """The whole of tables.md."""
    text = (
        f"# The case study in numbers\n\n"
        f"{results[0]['model']}: mean over {len(results)} seeds, with Student's t 95% interval.\n"
    )
    for title, table in tables(results).items():
        markdown = table.reset_index().to_markdown(index=False, disable_numparse=True)
        text += f"\n## {title}\n\n{markdown}\n"
    return text


def confidence_plot(results: list[dict]) -> Figure:
    """How sure the filter is of text messages and of e-mails."""
    fig, ax = plt.subplots(figsize=(6, 3.6))
    for i, (test, name) in enumerate(TESTS.items()):
        sources = [result["signals"]["sources"][test] for result in results]
        counts = np.sum([source["confidence_histogram"] for source in sources], axis=0)
        places = np.arange(len(counts)) + 0.4 * i
        ax.bar(places, 100 * counts / counts.sum(), 0.4, align="edge", label=name)
    ax.set_xticks(np.arange(11), [f"{0.5 + 0.05 * i:.2f}" for i in range(11)], fontsize=8)
    ax.set(xlabel="confidence", ylabel="messages (%)")
    ax.legend()
    return fig


def signals_plot(results: list[dict]) -> Figure:
    """Two signals over the fraction of e-mails in what arrives, each seed a line."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for result in results:
        signals = pd.DataFrame(result["signals"]["streams"])
        left.plot(100 * signals["fraction"], signals["stability_index"], "o-", alpha=0.6)
        right.plot(100 * signals["fraction"], 100 * signals["two_sample_accuracy"], "o-", alpha=0.6)
    left.axhline(0.25, ls=":", color="gray", label="rule of thumb: large")
    left.set_ylabel("stability index of the scores")
    right.axhline(50, ls=":", color="gray", label="guessing")
    right.set_ylabel("told from old text messages (%)")
    for ax in (left, right):
        ax.set_xlabel("e-mails among what arrives (%)")
        ax.grid(alpha=0.3)
        ax.legend()
    return fig


def helped_plot(results: list[dict]) -> Figure:
    """Accuracy on e-mails over the number of labelled e-mails."""
    fig, ax = plt.subplots(figsize=(7, 4.2))
    table = learned(results).query("test == 'email'")
    for method, style in zip(METHODS.values(), ("o-", "s-", "D-", "^:", "v:")):
        curve = table[table["method"] == method].groupby("size")["accuracy"].agg(list)
        if curve.empty:
            continue
        means, _, _, high = 100 * np.array([mean_and_interval(values) for values in curve]).T
        ax.errorbar(curve.index, means, high - means, fmt=style, capsize=3, label=method)
    ax.set_xscale("log")
    ax.set_xticks(curve.index, curve.index)
    ax.minorticks_off()
    ax.set(
        xlabel="labelled e-mails", ylabel="accuracy on e-mails (%), 95% interval", ylim=(30, 102)
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return fig


PLOTS = {"confidence": confidence_plot, "signals": signals_plot, "helped": helped_plot}


def write_report(folder: Path) -> None:
    """Tables and figures; those of other results than the repository's lie beside them.

    Raises ``DataError`` where there are too few for an interval.
    """
    results, output = load(folder), FOLDER if folder == RESULTS else folder
    if len(results) < 2:
        raise DataError(f"{folder} holds {len(results)} result files; `run` makes them.")
    with reading_results(folder):
        write_text(make_tables(results), output / "tables.md")
    (output / "figures").mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        figure = plot(results)
        figure.tight_layout()
        figure.savefig(output / "figures" / f"{name}.png", dpi=110)
