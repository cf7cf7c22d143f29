"""The chapter's design choices, one run at a time: fine-tune with one choice changed and measure.

    python 02_bonus_additional-experiments/additional_experiments.py --trainable all --seed 1
    python 02_bonus_additional-experiments/additional_experiments.py --suite main --results \
        my-results

The first command makes one run and prints its test metrics; with --row NAME it keeps them in a JSON
file. The second makes all runs of a suite of rows.csv over several seeds, and goes on where it
stopped. make_tables.py makes the tables. A run is `fine_tune` of the chapter, or another classifier
on the same messages.
"""

import argparse
import shlex
import startup_errors  # noqa: F401
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from comparisons import pack
from experiment_config import ACT_ON, MAIN, OF_FINETUNE, REVIEWS, ROWS, ExperimentConfig
from other_classifiers import run_classical, run_encoder, run_frozen_features
from prompting import run_prompt
from tqdm import tqdm

from command_line import add_options, config_from, make_parser, run_command
from evaluation import spam_metrics, test_metrics
from feature_store import FeatureStore
from features import LatestStore, Store
from files import read_json, reading_results, write_json
from fine_tuning import fine_tune
from gpt_download import SMS_SPAM_ZIP, fetch
from measuring import in_fresh_process, machine
from message_files import DataError
from run_messages import Messages, read_run_messages, sort_labels, take_some
from text_classifier import pick_device
from text_data import Splits, balance_classes, read_sms_spam

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
ALMEIDA_TRAIN_FRACTION = 0.3
REVIEWS_FOLDER = Path(__file__).parents[1] / "03_bonus_imdb-classification" / "reviews"
REVIEW_CHARACTERS = 1000

# --- Messages ------------------------------------------------------------------------------------


def read_experiment_messages(config: ExperimentConfig) -> Messages:
    """The messages of a run. Raises ``DownloadError`` where they cannot be had.

    Under the clean protocol the test messages depend on the seed alone: without balancing, all ham
    that it leaves over is added to the training messages, and to nothing else.
    """
    if config.protocol in REVIEWS:
        return review_messages(config)
    fetch(SMS_SPAM_ZIP)  # before anything falls back on made-up messages
    if config.protocol == "almeida":
        return almeida_messages(config.balance, config.seed)
    messages = read_run_messages(replace(config, balance="undersample"), lambda *_: None)
    if config.balance == "undersample":
        return messages
    train = messages.splits.train
    labels = [*train["label"], *["ham"] * (len(messages.unlabelled) - len(train))]
    everything = pd.DataFrame({"text": messages.unlabelled, "label": labels})
    return messages._replace(splits=messages.splits._replace(train=everything))


def almeida_messages(balance: str, seed: int) -> Messages:
    """The split of the collection's own paper: the first 30% of the file, duplicates as they are.

    It has no validation part. Training messages stand in its place; nothing is chosen by them.
    """
    messages = read_sms_spam()
    num_train = round(ALMEIDA_TRAIN_FRACTION * len(messages))
    train, test = messages[:num_train], messages[num_train:].reset_index(drop=True)
    texts = list(train["text"])
    if balance == "undersample":
        train = balance_classes(train, seed)
    return Messages(Splits(train, train, test), ["ham", "spam"], "Almeida et al. 2011", texts)


def review_messages(config: ExperimentConfig) -> Messages:
    """914, 130 and 1,000 film reviews, labelled by their halves or their stars.

    Test and validation reviews are the same for every seed; training reviews are drawn from the
    same 2,000. What is read of a review are its first 250 and its last 750 characters. Raises
    ``DataError`` where the reviews are missing.
    """
    column = {"reviews": "label", "stars": "rating"}[config.protocol]

    def read(part: str, size: int) -> pd.DataFrame:
        path = REVIEWS_FOLDER / f"{part}.parquet"
        if not path.exists():
            raise DataError(f"{path} is missing; run {path.parts[-3]}/download_prepare_dataset.py.")
        drawn = pd.read_parquet(path).sample(size, random_state=0, ignore_index=True)
        long = drawn["text"].str.len() > REVIEW_CHARACTERS
        ends = drawn["text"].str[:250] + " … " + drawn["text"].str[250 - REVIEW_CHARACTERS :]
        texts = drawn["text"].where(~long, ends)
        return pd.DataFrame({"text": texts, "label": drawn[column].astype(str)})

    pool = read("train", 2000)
    train = everything = pool.sample(914, random_state=config.seed, ignore_index=True)
    if config.train_size:
        train = take_some(train, config.train_size, config.seed)
    splits = Splits(train, read("validation", 130), read("test", 1000))
    names = sort_labels(set(pool["label"]))
    return Messages(splits, names, f"film reviews, {column}", list(everything["text"]))


def is_repeated(splits: Splits) -> np.ndarray:
    """Which test messages stand in the training messages, too, or earlier in the test."""
    test = splits.test["text"]
    return (test.isin(splits.train["text"]) | test.duplicated()).to_numpy()


# --- One run -------------------------------------------------------------------------------------


OF_GPT = ("model", "device", "max_length", "train", "validation", "seconds")
OTHERS = {
    "frozen_features": run_frozen_features,
    "prompt": run_prompt,
    "minilm": run_encoder,
    "contrastive": run_encoder,
}


def measure(config: ExperimentConfig, store: Store | None = None) -> dict[str, Any]:
    """One run from the messages to what its file holds; a `store` is `fine_tune`'s."""
    processor_start = time.process_time()
    messages = read_experiment_messages(config)
    splits = messages.splits
    if config.classifier == "gpt":
        metrics = fine_tune(config, messages, store).metrics
        about = {name: metrics[name] for name in OF_GPT}
        probabilities = np.array(metrics["test_predictions"]["probabilities"])  # (N, C)
    else:
        learns_from = config.num_examples if config.classifier == "prompt" else len(splits.train)
        about = {"train": {"num_examples": learns_from}}
        probabilities = OTHERS.get(config.classifier, run_classical)(config, messages, store)
    labels = splits.test["label"].map(messages.label_names.index).to_numpy()
    result = {"row": config.row, "seed": config.seed, "command": config.command, **about}
    result |= machine(pick_device(config.device) if config.classifier in ACT_ON else "cpu")
    predictions = {
        "test_texts_crc32": zlib.crc32("\n".join(splits.test["text"]).encode()),
        "labels": "".join(map(str, labels)),
    }
    if config.protocol in REVIEWS:
        result["test"] = test_metrics(probabilities, labels)
        predictions["predicted"] = "".join(map(str, probabilities.argmax(axis=1)))
    else:
        result["test"] = spam_metrics(probabilities, labels)
        predictions["spam_probability"] = pack(probabilities)
        new = ~is_repeated(splits)
        if not new.all():
            result["test_without_repeated"] = spam_metrics(probabilities[new], labels[new])
    return result | {
        "processor_seconds": round(time.process_time() - processor_start, 3),
        "from_scratch": store is None,
        "configuration": config.identity(),
        "predictions": predictions,
    }


def is_kept(config: ExperimentConfig) -> bool:
    """Whether the run's file is there. Raises ``DataError`` if other options made it."""
    if not (config.row and config.path.exists()):
        return False
    kept = read_json(config.path)
    if config.made(kept):
        return True
    raise DataError(
        f"{config.path} is there already, made by\n  {kept['command']}\nand not by\n"
        f"  {config.command}\nName another folder with --results, or another --row."
    )


def run_all(runs: Sequence[ExperimentConfig], quiet: bool) -> None:
    """All runs that have no result yet; those of a row are kept."""
    start, several, folder = time.monotonic(), len(runs) > 1, runs[0].feature_store
    with reading_results(runs[0].results):
        todo = [run for run in runs if not is_kept(run)]
    with FeatureStore(folder) if folder else nullcontext(LatestStore()) as store:
        for run in tqdm(todo, unit="run", disable=quiet or not several):
            if several and ROWS.timed.get(run.row) == "yes" and run.seed == runs[0].seed:
                result = in_fresh_process(measure, run)
            else:
                result = measure(run, store if several or folder else None)
            if run.row:
                write_json(result, run.path)
            test = result["test"]
            low, high = test["accuracy_interval"]
            tqdm.write(
                f"{run.row or 'one run'}, seed {run.seed}: test accuracy {test['accuracy']:.1%} "
                f"[{low:.1%}, {high:.1%}] of {test['num_examples']:,} messages, "
                f"MCC {test['mcc']:.3f}"
            )
    print(
        f"{len(todo)} of {len(runs)} runs made now, in {time.monotonic() - start:,.0f} seconds. To "
        f"make the others again, name another folder with --results."
    )


# --- The command ---------------------------------------------------------------------------------


@cache
def make_options() -> argparse.ArgumentParser:
    parser = make_parser("additional_experiments.py", __doc__.partition("\n")[0])
    parser.add_argument(
        "--suite",
        choices=["main", *ROWS.suite.unique()],
        help="all its rows, each with its own options before those given beside it",
    )
    seeds = f"one or several; default: {ExperimentConfig.seed}, of a suite 1 to 5"
    parser.add_argument("--seed", "--seeds", type=int, nargs="+", dest="seeds", help=seeds)
    add_options(parser, ExperimentConfig, leave_out=("seed", *OF_FINETUNE))
    return parser


def row_config(row: str, seed: int, base: ExperimentConfig) -> ExperimentConfig:
    """One run of a suite: what is given for all of it, and the row's own options, which win."""
    given = argparse.Namespace(**vars(base) | {"row": row, "seed": seed, "quiet": True})
    args = make_options().parse_args(shlex.split(ROWS.options[row]), given)
    return config_from(args, ExperimentConfig)


def runs_of(args: argparse.Namespace) -> list[ExperimentConfig]:
    """The runs of a command; those of a suite that share frozen layers one after the other, to
    compute these once for all."""
    base = config_from(args, ExperimentConfig)
    if not args.suite:
        if words := base.without_effect():
            raise DataError(f"{shlex.join(words)} has no effect on --classifier {base.classifier}.")
        return [replace(base, seed=seed) for seed in args.seeds or [base.seed]]
    rows = MAIN if args.suite == "main" else ROWS.index[ROWS.suite == args.suite]
    layers = ("model", "weights", "continued_pretraining_epochs", "trainable", "causal", "padding")
    runs = [row_config(row, seed, base) for row in rows for seed in args.seeds or DEFAULT_SEEDS]
    return sorted(runs, key=lambda run: [str(getattr(run, name)) for name in layers])


def main(argv: Sequence[str] | None = None) -> int:
    args = make_options().parse_args(argv)
    if args.suite and args.row:
        make_options().error("--suite names its rows itself: leave out --row")
    kept = args.suite or args.row
    return run_command(
        "additional_experiments.py",
        lambda: run_all(runs_of(args), args.quiet),
        "stopped. Repeat the command to go on.",
        args.results / "-".join(map(str, [kept, *(args.seeds or ())])) if kept else None,
    )


if __name__ == "__main__":
    sys.exit(main())
