"""What a trained GPT makes of long test reviews when other parts of them are read.

    python 03_bonus_imdb-classification/compare_cuts.py gpt-mini-all

opens the classifier that train_gpt.py left in `runs/NAME`, lets it read the head, the tail, both
ends, or all windows of the same reviews, and writes `results/cuts/NAME.json`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

from download_prepare_dataset import REVIEWS, read_parts
from evaluation import wilson_interval
from finetune import COUNT, SEED
from imdb_results import (
    RESULTS,
    RUNS,
    label_numbers,
    machine,
    recorded_command,
    write_result,
)
from long_texts import Cut, encode_pieces
from message_files import DataError
from text_classifier import open_classifier, pick_device
from train_gpt import make_dataset, predict_positive
from training_runs import exit_status, run_name


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare_cuts.py",
        description="Let a classifier of train_gpt.py read several parts of the same long test "
        "reviews, and write how often it is right with each.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", type=run_name, help="name of the run whose classifier is taken")
    parser.add_argument("--num-reviews", type=COUNT, default=2000, help="long reviews drawn")
    parser.add_argument("--seed", type=SEED, default=1, help="which reviews are drawn")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=" "
    )
    parser.add_argument("--data", type=Path, default=REVIEWS, help="folder of the three parts")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs' states")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--quiet", action="store_true", help="print the results only")
    args = parser.parse_args(argv)
    args.command = recorded_command("compare_cuts.py", argv)
    return args


def compare(right: np.ndarray, as_trained: np.ndarray) -> dict[str, Any]:
    """How often a cut is right, and where it differs from the cut trained with: both (N,)."""
    return {
        "accuracy": right.mean().item(),
        "accuracy_interval": list(wilson_interval(int(right.sum()), len(right))),
        "only_this_right": int((right & ~as_trained).sum()),
        "only_trained_right": int((~right & as_trained).sum()),
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from opening the classifier to writing the result; returns the result."""
    device = pick_device(args.device)
    classifier = open_classifier(args.runs / args.name, device)
    options, tokenizer = classifier.card.get("training", {}), classifier.tokenizer
    if not {"cut", "precision"} <= options.keys():
        raise DataError(f"{args.runs / args.name} is no classifier that train_gpt.py made.")
    test = read_parts(args.data)["test"]
    lengths = [len(ids) for ids in tokenizer.encode_ordinary_batch(test["text"].tolist())]
    long = test[np.array(lengths) > classifier.max_length]
    if long.empty:
        raise DataError(f"No test review is longer than {classifier.max_length} tokens.")
    drawn = long.sample(min(args.num_reviews, len(long)), random_state=args.seed)
    labels, right, num_pieces = label_numbers(drawn), {}, {}
    for cut in get_args(Cut):
        pieces = encode_pieces(drawn["text"].tolist(), tokenizer, classifier.max_length, cut)
        positive = predict_positive(
            classifier.model,
            make_dataset(pieces, labels, classifier.pooling),
            pieces,
            options["precision"],
            not args.quiet,
        )
        right[cut], num_pieces[cut] = (positive > 0.5) == labels, len(pieces.sequences)
    result = {
        "model": classifier.model_name,
        "seed": args.seed,
        "max_length": classifier.max_length,
        "trained_cut": options["cut"],
        "num_long": len(long),
        "num_examples": len(drawn),
        "by_cut": {
            cut: {"pieces": num_pieces[cut], **compare(values, right[options["cut"]])}
            for cut, values in right.items()
        },
        **machine(str(device)),
        "command": args.command,
    }
    write_result(args.name, result, folder=args.results / "cuts")
    return result


def result_table(result: dict[str, Any]) -> str:
    """Accuracy with interval for each cut."""
    lines = []
    for cut, figures in result["by_cut"].items():
        low, high = figures["accuracy_interval"]
        lines.append(f"{cut:<9}{figures['accuracy']:.2%} [{low:.2%}, {high:.2%}]")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_status(
        "compare_cuts.py", lambda: print(result_table(run(args))), "Stopped; nothing was written."
    )


if __name__ == "__main__":
    sys.exit(main())
