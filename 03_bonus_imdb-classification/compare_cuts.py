"""What a trained GPT makes of long test reviews when other parts of them are read.

    python 03_bonus_imdb-classification/compare_cuts.py gpt-mini-all

opens the classifier that train_gpt.py left in `runs/NAME`, lets it read the head, the tail, both
ends, or all windows of the same reviews, and writes `my-results/cuts/NAME.json`.
"""

import ctrl_c  # noqa: F401
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from classifier_folder import classify_texts, open_classifier
from command_line import add_options, config_from, make_parser, run_command
from download_prepare_dataset import read_parts
from evaluation import wilson_interval
from imdb_results import Measurement, draw, label_numbers, machine, write_result
from message_files import DataError
from options import AT_LEAST_1, option
from text_classifier import pick_device
from text_data import WHOLE, Cut, encode_messages
from training_runs import RUNS


@dataclass(frozen=True)
class CutsConfig(Measurement):
    """Which classifier reads how many reviews. Raises ``ValueError`` for what cannot be."""

    name: str = field(kw_only=True)
    """Of the run whose classifier is taken."""
    num_reviews: int = option(2000, "long reviews drawn", AT_LEAST_1, "data")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute", group="run")
    runs: Path = option(RUNS, "folder of the runs' states and trained models", group="run")


def run(config: CutsConfig) -> None:
    """Everything from opening the classifier to writing and printing the result."""
    device = pick_device(config.device)
    classifier, tokenizer = open_classifier(config.runs / config.name, device)
    about = classifier.config
    test = read_parts(config.data, ["test"])["test"]
    encoded = encode_messages(list(test["text"]), tokenizer, WHOLE)
    long = test[[len(ids) > about.max_length for ids in encoded]]
    if long.empty:
        raise DataError(f"No test review is longer than {about.max_length} tokens.")
    drawn = draw(long, min(config.num_reviews, len(long)), config.seed)
    texts, labels = list(drawn["text"]), label_numbers(drawn)
    right, by_cut = {}, {}
    for cut in get_args(Cut):
        classifier.config = replace(about, cut=cut)
        probabilities = classify_texts(classifier, tokenizer, texts, not config.quiet)  # (N, C)
        right[cut] = probabilities.argmax(dim=1).numpy() == labels
        interval = wilson_interval(int(right[cut].sum()), len(labels))
        by_cut[cut] = {
            "chunks": sum(map(len, classifier.config.chunks(texts, tokenizer))),
            "accuracy": right[cut].mean().item(),
            "accuracy_interval": list(interval),
        }
        print("{:<9}{:.2%} [{:.2%}, {:.2%}]".format(cut, right[cut].mean(), *interval))
    for cut, metrics in by_cut.items():
        metrics["only_this_right"] = int((right[cut] & ~right[about.cut]).sum())
        metrics["only_trained_right"] = int((~right[cut] & right[about.cut]).sum())
    result = {
        "model": about.model_name,
        "seed": config.seed,
        "max_length": about.max_length,
        "trained_cut": about.cut,
        "num_long": len(long),
        "num_examples": len(drawn),
        "by_cut": by_cut,
        **machine(str(device)),
        "command": config.command("compare_cuts.py", config.name),
    }
    write_result(config.name, result, None, config.results / "cuts")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        "compare_cuts.py",
        "Let a classifier of train_gpt.py read several parts of the same long test reviews, and "
        "write how often it is right with each.",
    )
    parser.add_argument("name", help="name of the run whose classifier is taken")
    add_options(parser, CutsConfig, leave_out=("name",))
    args = parser.parse_args(argv)
    output = args.results / "cuts" / f"{args.name}.json"
    return run_command("compare_cuts.py", lambda: run(config_from(args, CutsConfig)), output=output)


if __name__ == "__main__":
    sys.exit(main())
