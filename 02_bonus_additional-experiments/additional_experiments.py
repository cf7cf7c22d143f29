"""The chapter's design choices, one run at a time: fine-tune with one choice changed and measure.

    python 02_bonus_additional-experiments/additional_experiments.py --trainable all --seed 1
    python 02_bonus_additional-experiments/additional_experiments.py --suite main --model gpt-mini

The first command makes one run and writes one JSON file; the second makes all runs of a list
(see suites.py) over several seeds, and goes on where it stopped. make_tables.py makes the tables.
A run is `fine_tune` of the chapter, or a classical model on the same messages.
"""

import argparse
import base64
import json
import platform
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch
from experiment_config import OF_FINETUNE, TRIAL, ExperimentConfig
from other_classifiers import run_classical, run_frozen_features
from suites import COST_MEASURED, SUITES, Row
from tqdm import tqdm

from command_line import add_options, config_from, make_parser, run_command
from evaluation import roc_curve, test_metrics
from files import write_json
from fine_tuning import fine_tune, peak_memory_mb
from gpt_download import SMS_SPAM_ZIP, fetch
from message_files import DataError
from run_messages import Messages, read_run_messages
from text_data import Splits, balance_classes, read_sms_spam

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
ALMEIDA_TRAIN_FRACTION = 0.3

# ---------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------


def read_experiment_messages(config: ExperimentConfig) -> Messages:
    """The messages of a run. Raises ``DownloadError`` where they cannot be had.

    Under the clean protocol the test messages depend on the seed alone: without balancing, all ham
    that it leaves over is added to the training messages, and to nothing else.
    """
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


def is_repeated(splits: Splits) -> np.ndarray:
    """Which test messages stand in the training messages, too, or earlier in the test."""
    test = splits.test["text"]
    return (test.isin(splits.train["text"]) | test.duplicated()).to_numpy()


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


def run_gpt(
    config: ExperimentConfig, messages: Messages, store: MutableMapping | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, 2) of a GPT, and what is worth knowing about it."""
    metrics = fine_tune(config, messages, store).metrics
    names = ("model", "device", "max_length", "train", "validation", "seconds")
    about = {name: metrics[name] for name in names}
    if config.protocol == "almeida":
        about["validation"] = {}
    return np.array(metrics["test_predictions"]["probabilities"]), about


def spam_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a report on messages needs; spam caught and ham blocked are the paper's words for the
    recall of spam and the false positives among ham."""
    metrics = test_metrics(probabilities, labels)
    (_, blocked), (_, caught) = metrics["confusion_matrix"]
    num_ham, num_spam = np.bincount(labels, minlength=2)
    metrics["spam_caught"], metrics["ham_blocked"] = caught / num_spam, blocked / num_ham
    metrics["roc_area"] = roc_curve(labels == 1, probabilities[:, 1]).area
    return metrics


def pack(probabilities: np.ndarray) -> str:
    """Spam probabilities as compressed text, exact to seven digits."""
    spam = probabilities[:, 1].astype("<f4")
    return base64.b64encode(zlib.compress(spam.tobytes(), 9)).decode("ascii")


def unpack(packed: str) -> np.ndarray:
    """The reverse: spam probabilities (N,).

    >>> unpack(pack(np.array([[0.75, 0.25], [0, 1]]))).tolist()
    [0.25, 1.0]
    """
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<f4")


def measure(config: ExperimentConfig, store: MutableMapping | None = None) -> dict[str, Any]:
    """One run from the messages to what its file holds; a `store` is `fine_tune`'s."""
    processor_start = time.process_time()
    messages = read_experiment_messages(config)
    splits = messages.splits
    if config.classifier == "gpt":
        probabilities, about = run_gpt(config, messages, store)
    elif config.classifier == "frozen_features":
        probabilities, about = run_frozen_features(config, messages, store)
    else:
        probabilities, about = run_classical(config, messages)
    labels, repeated = (splits.test["label"] == "spam").to_numpy().astype(int), is_repeated(splits)
    result = {"row": config.row, "seed": config.seed, "command": config.command, **about}
    result["test"] = spam_metrics(probabilities, labels)
    if repeated.any():
        result["test_without_repeated"] = spam_metrics(probabilities[~repeated], labels[~repeated])
    return result | {
        "processor_seconds": round(time.process_time() - processor_start, 3),
        "peak_memory_mb": peak_memory_mb(),
        "from_scratch": store is None,
        "configuration": config.identity(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sklearn": sklearn.__version__,
        },
        "threads": torch.get_num_threads(),
        "predictions": {
            "test_texts_crc32": zlib.crc32("\n".join(splits.test["text"]).encode()),
            "labels": "".join(map(str, labels)),
            "spam_probability": pack(probabilities),
        },
    }


def measure_and_save(config: ExperimentConfig, store: MutableMapping | None = None) -> dict:
    result = measure(config, store)
    config.path.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, config.path)
    return result


def is_done(config: ExperimentConfig) -> bool:
    """Whether the run's file is there. Raises ``DataError`` if another command made it."""
    if not config.path.exists():
        return False
    command = json.loads(config.path.read_text(encoding="utf-8"))["command"]
    if command != config.command:
        raise DataError(
            f"{config.path} is there already, made by\n  {command}\nand not by\n"
            f"  {config.command}\nRepeat its options, delete it, or choose another folder with "
            f"--results."
        )
    return True


# ---------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("additional_experiments.py", __doc__.partition("\n")[0])
    parser.add_argument(
        "--suite",
        choices=sorted(SUITES),
        help="all rows of a list, each with its own options; those given beside it go to every GPT",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of a suite; default: 1 to 5")
    add_options(parser, ExperimentConfig, leave_out=OF_FINETUNE)
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if args.suite and given & {"row", "seed"}:
        parser.error("--suite has rows of its own, and --seeds: leave out --row and --seed")
    if args.seeds and not args.suite:
        parser.error("--seeds belongs to --suite: one run has one --seed")
    return args


def config_of(row: Row, seed: int, base: ExperimentConfig) -> ExperimentConfig:
    """One run of a suite, with the options that are given for all; its own come last and win."""
    for_all = base.arguments()
    if row.is_classical:
        for_all = ["--results", str(base.results)]
    own = ["--row", row.name, "--seed", str(seed), *shlex.split(row.options)]
    config = config_from(parse_args([*for_all, *own]), ExperimentConfig)
    return replace(config, quiet=True).with_model_name()


def measure_in_own_process(config: ExperimentConfig) -> None:
    """A run from scratch, so that its seconds and its memory are its own."""
    command = [sys.executable, __file__, *config.arguments()]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise ChildProcessError(done.stderr.decode(errors="replace").strip())


def run_suite(name: str, seeds: Sequence[int], base: ExperimentConfig) -> None:
    """All runs that have no result yet, row by row; the rows that are alike share frozen states.

    The first seed of the rows in `COST_MEASURED` runs in a process of its own, for its seconds and
    memory.
    """
    rows, start = SUITES[name], time.monotonic()
    if not all(row.is_classical for row in rows):  # nothing is fetched for classical models
        base = base.with_model_name()
    runs = [config_of(row, seed, base) for row in rows for seed in seeds]
    todo = [config for config in runs if not is_done(config)]
    if not todo:
        print(
            f"All {len(runs)} results of the suite {name} are in {base.results} already, and "
            f"nothing was measured. To measure anew, name another folder with --results."
        )
        return
    store = {}
    for config in (bar := tqdm(todo, name, unit="run", disable=base.quiet)):
        bar.set_postfix_str(f"{config.row}, seed {config.seed}")
        if config.row in COST_MEASURED and config.seed == seeds[0]:
            measure_in_own_process(config)
        else:
            measure_and_save(config, store)
    seconds = time.monotonic() - start
    print(f"{name}: {len(todo)} of {len(runs)} runs made now, in {seconds:,.0f} seconds.")


def run_one(config: ExperimentConfig) -> None:
    config = config.with_model_name()  # as a suite names it in its files
    if config.row != TRIAL and is_done(config):
        raise DataError(
            f"{config.path} is there already: delete it, or choose another folder with --results, "
            f"to measure again."
        )
    result = measure_and_save(config)
    test = result["test"]
    low, high = test["accuracy_interval"]
    print(
        f"{config.row}, seed {config.seed}: test accuracy {test['accuracy']:.1%} "
        f"[{low:.1%}, {high:.1%}] of {test['num_examples']:,} messages, MCC {test['mcc']:.3f}, "
        f"{sum(result['seconds'].values()):.0f} seconds"
    )


def run(args: argparse.Namespace) -> None:
    config = config_from(args, ExperimentConfig)
    if args.suite:
        run_suite(args.suite, args.seeds or DEFAULT_SEEDS, config)
    else:
        run_one(config)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(
        "additional_experiments.py", lambda: run(args), "stopped. Repeat the command to go on."
    )


if __name__ == "__main__":
    sys.exit(main())
