"""Tables and figures of the case study, from its result files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from files import write_text
from message_files import DataError
from several_seeds import mean_and_interval

FOLDER = Path(__file__).parent
RESULTS, FIGURES, TABLES = FOLDER / "results", FOLDER / "figures", FOLDER / "tables.md"

TESTS = {"sms": "SMS", "email": "e-mail"}
FILTERS = ("gpt", "gpt with continued pretraining", "ngrams")
METHODS = {  # name in the report: filter and training in the result files, by labelled e-mails
    "GPT, e-mails only": ("gpt", "email {}"),
    "GPT, text messages and e-mails": ("gpt", "sms and email {}"),
    "GPT with continued pretraining, both": (FILTERS[1], "sms and email {}"),
    "n-grams, e-mails only": ("ngrams", "email {}"),
    "n-grams, text messages and e-mails": ("ngrams", "sms and email {}"),
}
METRICS = {
    "accuracy": "accuracy",
    "roc_area": "area under the ROC curve",
    "calibration_error": "calibration error",
    "confidence": "mean confidence",
    "ham_blocked": "ham blocked",
    "spam_caught": "spam caught",
}


def load(folder: Path) -> list[dict]:
    """All seeds. Raises ``DataError`` where there are too few for an interval."""
    paths = sorted(folder.glob("seed-*.json"))
    if len(paths) < 2:
        raise DataError(f"{folder} holds {len(paths)} result files; `run` makes them.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def over_seeds(values: Sequence[float], percent: bool = True) -> str:
    """Mean and 95% interval (Student's t)."""
    mean, _, low, high = mean_and_interval(list(values))
    if percent:
        return f"{mean:.1%} ({100 * max(0, low):.1f} to {100 * min(1, high):.1f})"
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def learned(results: list[dict], name: str, training: str, test: str, metric: str) -> list[float]:
    return [result["learned"][name][training][test][metric] for result in results]


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def broken_table(results: list[dict]) -> list[dict]:
    """Trained on text messages, tested on text messages and on e-mails."""
    return [
        {"": title}
        | {
            f"{name} on {TESTS[test]}": over_seeds(learned(results, name, "sms", test, metric))
            for name in FILTERS
            for test in TESTS
        }
        for metric, title in METRICS.items()
    ]


def sizes_in(results: list[dict]) -> list[int]:
    names = results[0]["learned"]["ngrams"]
    return [int(name.removeprefix("email ")) for name in names if name.startswith("email ")]


def accuracy_table(results: list[dict], test: str) -> list[dict]:
    """Accuracy by the number of labelled e-mails."""
    return [
        {"labelled e-mails": str(size)}
        | {
            method: over_seeds(learned(results, name, training.format(size), test, "accuracy"))
            for method, (name, training) in METHODS.items()
        }
        for size in sizes_in(results)
    ]


def signals_table(results: list[dict]) -> list[dict]:
    """Signals without labels by the fraction of e-mails in what arrives."""
    rows = []
    for streams in zip(*(result["signals"]["streams"] for result in results)):
        columns = {name: [stream[name] for stream in streams] for name in streams[0]}
        noticed = sum(p_value < 0.05 for p_value in columns["two_sample_p"])
        rows.append(
            {
                "e-mails": f"{streams[0]['fraction']:.0%}",
                "stability index": over_seeds(columns["stability_index"], percent=False),
                "mean confidence": over_seeds(columns["confidence"]),
                "called spam": over_seeds(columns["spam_fraction"]),
                "told from text messages": over_seeds(columns["two_sample_accuracy"]),
                "p < 0.05": f"{noticed} of {len(streams)}",
            }
        )
    return rows


def language_table(results: list[dict]) -> list[dict]:
    """How strange the texts are to tokenizer and language model."""
    titles = {"tokens_per_word": "tokens per word", "nats_per_token": "nats a token"}
    sources = [result["signals"]["sources"] for result in results]
    return [
        {"": title}
        | {TESTS[test]: over_seeds([s[test][name] for s in sources], False) for test in TESTS}
        for name, title in titles.items()
    ]


SECTIONS: dict[str, Callable[[list[dict]], list[dict]]] = {
    "What breaks: trained on text messages alone": broken_table,
    "How one notices: signals without labels, by the fraction of e-mails": signals_table,
    "How strange the texts are": language_table,
    "What helps: accuracy on e-mails": lambda results: accuracy_table(results, "email"),
    "What is forgotten: accuracy on text messages": lambda results: accuracy_table(results, "sms"),
}


def make_tables(results: list[dict]) -> str:
    """The whole of tables.md."""
    text = "# The case study in numbers\n\nMean over five seeds, with Student's t 95% interval.\n"
    for title, make in SECTIONS.items():
        table = pd.DataFrame(make(results)).to_markdown(index=False, disable_numparse=True)
        text += f"\n## {title}\n\n{table}\n"
    return text


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


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
    fig.tight_layout()
    return fig


def signals_plot(results: list[dict]) -> Figure:
    """Two signals over the fraction of e-mails in what arrives, each seed a line."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for result in results:
        streams = pd.DataFrame(result["signals"]["streams"])
        left.plot(100 * streams["fraction"], streams["stability_index"], "o-", alpha=0.6)
        right.plot(100 * streams["fraction"], 100 * streams["two_sample_accuracy"], "o-", alpha=0.6)
    left.axhline(0.25, ls=":", color="gray", label="rule of thumb: large")
    left.set_ylabel("stability index of the scores")
    right.axhline(50, ls=":", color="gray", label="guessing")
    right.set_ylabel("told from old text messages (%)")
    for ax in (left, right):
        ax.set_xlabel("e-mails among what arrives (%)")
        ax.grid(alpha=0.3)
        ax.legend()
    fig.tight_layout()
    return fig


def helped_plot(results: list[dict]) -> Figure:
    """Accuracy on e-mails over the number of labelled e-mails."""
    sizes = sizes_in(results)
    fig, ax = plt.subplots(figsize=(7, 4.2))
    for (method, (name, training)), style in zip(METHODS.items(), ("o-", "s-", "D-", "^:", "v:")):
        names = [training.format(size) for size in sizes]
        accuracies = [learned(results, name, n, "email", "accuracy") for n in names]
        means, _, _, high = 100 * np.array([mean_and_interval(values) for values in accuracies]).T
        ax.errorbar(sizes, means, high - means, fmt=style, capsize=3, label=method)
    ax.set_xscale("log")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set(
        xlabel="labelled e-mails", ylabel="accuracy on e-mails (%), 95% interval", ylim=(30, 102)
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.tight_layout()
    return fig


PLOTS = {"confidence": confidence_plot, "signals": signals_plot, "helped": helped_plot}


def write_report(results: list[dict]) -> None:
    write_text(make_tables(results), TABLES)
    FIGURES.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        plot(results).savefig(FIGURES / f"{name}.png", dpi=110)
