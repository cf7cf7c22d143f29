"""What a trained GPT makes of long test reviews when other parts of them are read.

    python 03_bonus_imdb-classification/compare_cuts.py gpt-mini-all

opens the classifier that train_gpt.py left in `runs/NAME`, lets it read the head, the tail, both
ends, or all windows of the same reviews, and writes `my-results/cuts/NAME.json`.
"""

import argparse
import startup_errors  # noqa: F401
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from classifier_folder import classify_texts, open_classifier
from command_line import make_parser, run_command
from download_prepare_dataset import REVIEWS, read_parts
from evaluation import wilson_interval
from imdb_results import MY_RESULTS, draw, label_numbers, with_interval, write_result
from measuring import machine
from message_files import DataError
from text_classifier import pick_device
from text_data import NO_LIMIT, Cut, encode_messages
from train_gpt import RUNS

SEED = 1  # of the reviews drawn


def run(args: argparse.Namespace) -> None:
    """Everything from opening the classifier to writing and printing the result."""
    device = pick_device()
    classifier, tokenizer = open_classifier(args.runs / args.name, device)
    about = classifier.config
    test = read_parts(args.data, ["test"])["test"]
    encoded = encode_messages(list(test["text"]), tokenizer, NO_LIMIT)
    long = test[[len(ids) > about.max_length for ids in encoded]]
    if long.empty:
        raise DataError(f"No test review is longer than {about.max_length} tokens.")
    drawn = draw(long, min(args.num_reviews, len(long)), SEED)
    texts, labels = list(drawn["text"]), label_numbers(drawn)
    right, by_cut = {}, {}
    for cut in get_args(Cut):
        classifier.config = replace(about, cut=cut)
        probabilities = classify_texts(classifier, tokenizer, texts, progress=True)  # (N, C)
        right[cut] = probabilities.argmax(dim=1).numpy() == labels
        by_cut[cut] = {
            "chunks": sum(map(len, classifier.config.chunks(texts, tokenizer))),
            "accuracy": right[cut].mean().item(),
            "accuracy_interval": wilson_interval(int(right[cut].sum()), len(labels)),
        }
        print(f"{cut:<9}{with_interval(by_cut[cut])}")
    for cut, metrics in by_cut.items():
        metrics["only_this_right"] = int((right[cut] & ~right[about.cut]).sum())
        metrics["only_trained_right"] = int((~right[cut] & right[about.cut]).sum())
    result = {
        "model": about.model_name,
        "seed": SEED,
        "max_length": about.max_length,
        "trained_cut": about.cut,
        "num_long": len(long),
        "num_examples": len(drawn),
        "by_cut": by_cut,
        **machine(device),
        "command": f"compare_cuts.py {args.name} --num-reviews {args.num_reviews}",
    }
    write_result(args.name, result, None, args.results / "cuts")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("compare_cuts.py", __doc__.partition("\n")[0])
    parser.add_argument("name", help="name of the run whose classifier is taken")
    parser.add_argument("--num-reviews", type=int, default=2000, help="long reviews drawn")
    parser.add_argument("--data", type=Path, default=REVIEWS, help="folder of the three parts")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trained models")
    parser.add_argument("--results", type=Path, default=MY_RESULTS, help="folder to write")
    args = parser.parse_args(argv)
    output = args.results / "cuts" / f"{args.name}.json"
    return run_command("compare_cuts.py", lambda: run(args), output=output)


if __name__ == "__main__":
    sys.exit(main())
