"""The chapter as one command: fine-tune a GPT to classify text messages.

    python 01_main-chapter-code/finetune.py

With no options it takes the SMS Spam Collection and the default model, trains the last block and
the head, prints the results, and writes the classifier's folder with `metrics.json` and plots.
"""

import argparse
import errno
import hashlib
import json
import math
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from command_line import is_out_of_memory, standard_output
from evaluation import (
    ngram_baseline,
    plot_confusion_matrix,
    plot_values,
    test_figures,
    wilson_interval,
)
from gpt_download import (
    MODEL_CONFIGS,
    DownloadError,
    default_model_name,
    load_pretrained,
    load_tokenizer,
    resolve_model_name,
)
from message_files import DataError, read_messages
from previous_chapters import GPTModel
from text_classifier import (
    FURTHER_PRETRAINING,
    Classifier,
    History,
    Precision,
    Trainable,
    TrainConfig,
    add_classification_head,
    compute_frozen_layers,
    continue_pretraining,
    encode_for_pretraining,
    freeze_all_but,
    pick_device,
    predict_logits,
    save_classifier,
    train_classifier_simple,
    write_text,
)
from text_data import (
    SAMPLE_MESSAGES,
    Pooling,
    Reading,
    SpamDataset,
    Splits,
    augment_messages,
    balance_classes,
    clean_messages,
    encode_messages,
    published_splits,
    read_sample_messages,
    read_sms_spam,
    split_messages,
)

SMS_NAME = "SMS Spam Collection"
MADE_UP_NAME = f"made-up messages ({SAMPLE_MESSAGES.name})"
# For gpt-mini chosen on validation messages; for GPT-2 the customary value, not measured here.
LEARNING_RATES = {"gpt-mini": TrainConfig.learning_rate}
GPT2_LEARNING_RATE = 5e-5
# Epochs of language modelling on the texts before the head is put on. A small model gains from
# them in a minute; for GPT-2 the gain was not measured, and without a GPU they take long.
FURTHER_EPOCHS = {"gpt-mini": 2}
MAX_BASELINE_MESSAGES = 20_000  # beyond this the n-gram baseline takes longer than the GPT
MAX_BASELINE_CHARACTERS = 20_000_000  # and here, than everything else together
# Messages times labels. The regression has a coefficient for each label and n-gram, and its
# optimizer keeps a few dozen copies of them: a gigabyte here, and without a bound all memory.
MAX_BASELINE_SIZE = 200_000
CHECKPOINT = "checkpoint.safetensors"
FROZEN_BYTES_LIMIT = 4 * 1024**3  # hidden states kept in memory; beyond this they are recomputed


def number(kind: type, allowed: str, holds: Callable[[Any], bool]) -> Callable[[str], Any]:
    """A reader of numbers for argparse which says what is allowed where one is out of range."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text} is out of range: it must be {allowed}")
        return value

    parse.__name__ = {int: "whole number", float: "number"}[kind]  # for "invalid number value"
    return parse


COUNT = number(int, "at least 1", lambda value: value >= 1)
COUNT_OR_NONE = number(int, "at least 0", lambda value: value >= 0)
SEED = number(int, "between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)
SHARE = number(float, "at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE = number(float, "above 0, and finite", lambda value: 0 < value < math.inf)
NOT_NEGATIVE = number(float, "at least 0, and finite", lambda value: 0 <= value < math.inf)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows an option's default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune a GPT to classify texts; without options, to find spam among text "
        "messages. Writes a classifier folder that classify.py opens.",
        formatter_class=HelpFormatter,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, help=f"CSV, TSV, JSON lines or Parquet file; default: {SMS_NAME}"
    )
    data.add_argument("--text-column", help="column of the texts; guessed if not given")
    data.add_argument("--label-column", help="column of the labels; guessed if not given")
    data.add_argument(
        "--protocol",
        choices=["clean", "published"],
        default="clean",
        help="split of the SMS data: without duplicates, or that of well-known published figures",
    )
    data.add_argument(
        "--balance",
        choices=["undersample", "weights", "none"],
        default="undersample",
        help="drop messages of larger classes, weigh classes in the loss, or leave them be",
    )
    data.add_argument(
        "--augment", type=COUNT_OR_NONE, default=0, help="altered copies of each training message"
    )
    data.add_argument(
        "--max-length", type=COUNT, help="tokens read of a message; default: all of the longest"
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="auto",
        help="auto (GPT-2 small, or gpt-mini where that cannot be had) or one of: "
        + ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS),
    )
    model.add_argument(
        "--weights",
        choices=["pretrained", "random"],
        default="pretrained",
        help="random weights show what pretraining is worth",
    )
    model.add_argument(
        "--pretrain-further",
        type=COUNT_OR_NONE,
        metavar="EPOCHS",
        help="epochs of language modelling on the training texts, and on those that balancing "
        f"leaves over, before the head is put on; default: {FURTHER_EPOCHS['gpt-mini']} for "
        "gpt-mini's pretrained weights, else 0",
    )
    model.add_argument(
        "--trainable", choices=get_args(Trainable), default="last_block", help="what is trained"
    )
    model.add_argument(
        "--pooling",
        choices=get_args(Pooling),
        default="last_real",
        help="where a message's class is read: at its last real token, or on average over all",
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=COUNT, default=defaults["num_epochs"], help="passes")
    training.add_argument(
        "--batch-size", type=COUNT, default=defaults["batch_size"], help="messages"
    )
    training.add_argument(
        "--learning-rate",
        type=POSITIVE,
        help=f"at its peak; default: {defaults['learning_rate']} for gpt-mini, "
        f"{GPT2_LEARNING_RATE} for GPT-2",
    )
    training.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default=defaults["schedule"],
        help="the learning rate after the warm-up",
    )
    training.add_argument(
        "--warmup-share",
        type=SHARE,
        default=defaults["warmup_share"],
        help="share of the updates in which the learning rate rises",
    )
    training.add_argument(
        "--max-grad-norm",
        type=NOT_NEGATIVE,
        default=defaults["max_grad_norm"],
        help="clip longer gradients; 0 clips nothing",
    )
    training.add_argument(
        "--weight-decay", type=NOT_NEGATIVE, default=defaults["weight_decay"], help="AdamW's"
    )
    training.add_argument(
        "--dropout", type=SHARE, default=defaults["dropout"], help="in the trained layers"
    )
    training.add_argument(
        "--patience",
        type=COUNT,
        help="stop after so many epochs without a smaller validation loss and keep the best",
    )
    training.add_argument(
        "--precision",
        choices=get_args(Precision),
        default=defaults["precision"],
        help="of matrix products; bfloat16 (16 bits, 8 of them significant) is faster where the "
        "processor has instructions for it, and slower elsewhere",
    )
    training.add_argument(
        "--seed", type=SEED, default=defaults["seed"], help="split, new head, order, dropout"
    )

    run = parser.add_argument_group("run")
    run.add_argument("--output", type=Path, default=Path("classifier"), help="folder to write")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=" ")
    run.add_argument(
        "--resume", action="store_true", help="go on with a run that was stopped, in --output"
    )
    run.add_argument("--quiet", action="store_true", help="print the results only")
    return parser.parse_args(argv)


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start


# ---------------------------------------------------------------------------------------------
# The stages
# ---------------------------------------------------------------------------------------------


def read_data(args: argparse.Namespace, say: Callable) -> tuple[Splits, list[str], str, list[str]]:
    """The three parts of the data, the label names in order, the data's name, and the texts that
    balancing left over."""
    if args.data is not None:
        if args.protocol != "clean":
            raise DataError("--protocol published is a split of the SMS data: leave out --data.")
        messages = read_messages(args.data, args.text_column, args.label_column, say)
        name = args.data.name
    elif args.text_column is not None or args.label_column is not None:
        raise DataError("--text-column and --label-column belong to --data.")
    else:
        try:
            if args.protocol == "published":
                return published_splits(), ["ham", "spam"], f"{SMS_NAME}, published split", []
            messages, name = read_sms_spam(), SMS_NAME
        except DownloadError as error:
            say(
                f"NOTE: the {SMS_NAME} cannot be had here, so a few made-up messages take its "
                f"place. They show that the code runs; their figures mean nothing.\n{error}\n"
            )
            messages, name = read_sample_messages(), MADE_UP_NAME
    cleaned = clean_messages(messages)
    label_names = sort_labels(set(cleaned["label"]))
    if not label_names:
        raise DataError(f"{name}: every text carries several labels; correct them.")
    if len(label_names) < 2:
        raise DataError(
            f"{name}: only the label {label_names[0]!r} occurs, and a classifier needs at least "
            f"two; add messages with another label."
        )
    if len(label_names) > max(2, len(cleaned) / len(Splits._fields)):
        raise DataError(
            f"{name}: {len(label_names)} different labels for {len(cleaned)} different texts; is "
            f"the column of labels the right one?"
        )
    counts = cleaned["label"].value_counts()
    if counts.min() < len(Splits._fields):  # found here, since balancing makes all alike
        raise DataError(
            f"{name}: the label {counts.idxmin()!r} has only {counts.min()} different messages; "
            f"at least {len(Splits._fields)} are needed, to train, validate and test on."
        )
    used = balance_classes(cleaned, args.seed) if args.balance == "undersample" else cleaned
    say(
        f"{name}: {len(messages):,} messages, {len(cleaned):,} without duplicates, "
        f"{len(used):,} used, {len(label_names)} labels."
    )
    left_over = cleaned.loc[~cleaned["text"].isin(used["text"]), "text"].tolist()
    return split_messages(used, args.seed), label_names, name, left_over


def sort_labels(labels: set[str]) -> list[str]:
    """In the order of their numbers if all are whole numbers, else of the alphabet."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def choose_model_name(wish: str, say: Callable = print) -> str:
    """The full name of the model that `--model` names; for auto, the one that can be had."""
    return default_model_name(say) if wish == "auto" else resolve_model_name(wish)


def load_model(
    args: argparse.Namespace, device: torch.device, say: Callable = print
) -> tuple[GPTModel, Any, str]:
    """The model, its tokenizer and its name."""
    name = choose_model_name(args.model, say)
    if args.weights == "random":
        torch.manual_seed(args.seed)
        return GPTModel(MODEL_CONFIGS[name]).to(device), load_tokenizer(name), name
    model, tokenizer = load_pretrained(name, device)
    return model, tokenizer, name


def choose_further_epochs(args: argparse.Namespace, model_name: str) -> int:
    """Epochs of further pretraining: the wish if there is one, else what suits the model."""
    if args.pretrain_further is not None:
        return args.pretrain_further
    return FURTHER_EPOCHS.get(model_name, 0) if args.weights == "pretrained" else 0


def choose_max_length(
    max_length: int | None, splits: Splits, tokenizer, context: int, say: Callable
) -> int:
    """The wish if there is one, else the longest training message, within the context."""
    if max_length is not None and not 1 <= max_length <= context:
        raise DataError(
            f"--max-length {max_length} must lie between 1 and the model's context of {context}."
        )
    lengths = list(map(len, encode_messages(splits.train["text"], tokenizer, context + 1)))
    chosen = max_length or min(max(lengths), context)
    num_cut = sum(length > chosen for length in lengths)
    if num_cut:
        say(f"{num_cut} training messages are longer than {chosen} tokens; the rest is not read.")
    return chosen


def make_datasets(
    splits: Splits,
    label_names: list[str],
    tokenizer,
    max_length: int,
    pooling: Pooling = "last_real",
) -> list[SpamDataset]:
    number = {name: i for i, name in enumerate(label_names)}
    return [
        SpamDataset(
            encode_messages(part["text"], tokenizer, max_length),
            [number[label] for label in part["label"]],
            reading=Reading(pooling),
        )
        for part in splits
    ]


def evaluate(
    predict: Callable[[SpamDataset], Tensor], datasets: list[SpamDataset]
) -> dict[str, dict]:
    """The figures of the three parts: accuracies, and everything else for the test part.

    `predict` gives the logits (N, C) of a data set's messages.
    """
    figures = {}
    for name, dataset in zip(Splits._fields, datasets, strict=True):
        probabilities = torch.softmax(predict(dataset), dim=-1).numpy()
        figures[name] = test_figures(probabilities, dataset.labels)
        if name != "test":
            figures[name] = {key: figures[name][key] for key in ("num_examples", "accuracy")}
    figures["test_predictions"] = {  # of the last part: curves can be drawn from it later
        "labels": list(dataset.labels),
        "probabilities": np.round(probabilities.astype(float), 6).tolist(),
    }
    return figures


def evaluate_baseline(splits: Splits) -> dict[str, Any] | None:
    """Test accuracy of the n-gram regression on the same messages, where it is quick."""
    num_messages, num_labels = len(splits.train), splits.train["label"].nunique()
    num_characters = splits.train["text"].str.len().sum()
    if (
        num_messages > MAX_BASELINE_MESSAGES
        or num_characters > MAX_BASELINE_CHARACTERS
        or num_messages * num_labels > MAX_BASELINE_SIZE
    ):
        return None
    baseline = ngram_baseline().fit(splits.train["text"], splits.train["label"])
    correct = int((baseline.predict(splits.test["text"]) == splits.test["label"]).sum())
    return {
        "accuracy": correct / len(splits.test),
        "accuracy_interval": list(wilson_interval(correct, len(splits.test))),
    }


def fits_in_memory(datasets: list[SpamDataset], model: GPTModel, num_frozen: int) -> bool:
    """Whether the hidden states that `compute_frozen_layers` would keep may be kept."""
    last_only = num_frozen == len(model.trf_blocks)  # of each message, where the last token is read
    num_states = sum(
        len(dataset)
        if last_only and dataset.reading.position == "last_real"
        else sum(dataset.lengths)
        for dataset in datasets
    )
    return num_states * model.cfg.emb_dim * 4 <= FROZEN_BYTES_LIMIT


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


@dataclass
class Job:
    """What a run works on, as its options say."""

    splits: Splits
    unlabelled: list[str]
    """Texts to pretrain further on: the training messages and those that balancing left over."""
    label_names: list[str]
    data_name: str
    model: GPTModel
    tokenizer: Any
    model_name: str
    max_length: int
    datasets: list[SpamDataset]
    config: TrainConfig
    further_epochs: int
    options: dict[str, Any]
    """What must be the same when the run is resumed."""


def prepare(args: argparse.Namespace, device: torch.device, say: Callable, clock: Clock) -> Job:
    """Read the data and load the model."""
    refuse_options_without_effect(args)
    with clock.stage("data"):
        splits, label_names, data_name, left_over = read_data(args, say)
        unlabelled = [*splits.train["text"], *left_over]
        if args.augment:
            train = augment_messages(splits.train, args.augment, args.seed)
            splits = splits._replace(train=train)
    with clock.stage("model"):
        model, tokenizer, model_name = load_model(args, device, say)
        context = model.cfg.context_length
        max_length = choose_max_length(args.max_length, splits, tokenizer, context, say)
        datasets = make_datasets(splits, label_names, tokenizer, max_length, args.pooling)
    config = train_config(args, model_name)
    further_epochs = choose_further_epochs(args, model_name)
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    options = {k: v for k, v in options.items() if k not in ("resume", "quiet", "output")}
    options |= {"model": model_name, "learning_rate": config.learning_rate}
    options |= {"pretrain_further": further_epochs, "data_sha256": fingerprint(splits)}
    return Job(
        splits,
        unlabelled,
        label_names,
        data_name,
        model,
        tokenizer,
        model_name,
        max_length,
        datasets,
        config,
        further_epochs,
        options,
    )


def train_config(args: argparse.Namespace, model_name: str) -> TrainConfig:
    """The training that the options describe."""
    default_rate = LEARNING_RATES.get(model_name, GPT2_LEARNING_RATE)
    return TrainConfig(
        learning_rate=args.learning_rate or default_rate,
        num_epochs=args.epochs,
        batch_size=args.batch_size,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        warmup_share=args.warmup_share,
        schedule=args.schedule,
        max_grad_norm=args.max_grad_norm or None,
        patience=args.patience,
        use_class_weights=args.balance == "weights",
        precision=args.precision,
        seed=args.seed,
    )


def pretrain_further(job: Job, seed: int, progress: bool) -> None:
    """Go on with language modelling on the messages' texts, without their labels."""
    context = job.model.cfg.context_length
    sequences = encode_for_pretraining(job.unlabelled, job.tokenizer, context)
    config = replace(
        FURTHER_PRETRAINING,
        num_epochs=job.further_epochs,
        precision=job.config.precision,
        seed=seed,
    )
    continue_pretraining(job.model, sequences, config, progress)


def make_classifier(job: Job, args: argparse.Namespace) -> int:
    """Put the new head on and freeze what is not to be trained; returns the frozen blocks."""
    torch.manual_seed(args.seed)
    add_classification_head(job.model, len(job.label_names))
    return freeze_all_but(job.model, args.trainable)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from reading the data to writing the folder; returns what metrics.json holds."""
    say, progress = (lambda *_: None) if args.quiet else print, not args.quiet
    clock, device = Clock(), pick_device(args.device)
    job = prepare(args, device, say, clock)
    checkpoint = prepare_folder(args, job.options, say)
    if checkpoint is None:
        return read_json(args.output / "metrics.json")

    if job.further_epochs:
        with clock.stage("pretraining"):
            texts = f"{len(job.unlabelled):,} texts, without their labels"
            say(f"Pretraining {job.model_name} further on {texts}.")
            pretrain_further(job, args.seed, progress)
    model, num_frozen = job.model, make_classifier(job, args)
    num_train = len(job.splits.train)
    say(f"{job.model_name} on {device}: training {args.trainable}, {num_train:,} messages.")
    with clock.stage("frozen_layers"):
        if fits_in_memory(job.datasets, model, num_frozen):
            job.datasets = [
                compute_frozen_layers(model, dataset, num_frozen, progress, args.precision)
                for dataset in job.datasets
            ]
    with clock.stage("training"):
        train, validation, _ = job.datasets
        history = train_classifier_simple(
            model, train, validation, job.config, checkpoint, progress
        )
    refuse_divergence(history, job.config)
    with clock.stage("evaluation"):
        figures = evaluate(partial(predict_logits, model), job.datasets)
    return write_results(args, job, figures, history, clock, {"device": str(device)})


def refuse_divergence(history: History, config: TrainConfig) -> None:
    losses = [*history.step_losses, *history.train_loss, *history.validation_loss]
    if not all(map(math.isfinite, losses)):  # the steps' own do not tell what the last step did
        raise DataError(
            f"The loss is no longer a number: the training diverged with --learning-rate "
            f"{config.learning_rate}; choose a smaller one."
        )


def write_results(
    args: argparse.Namespace,
    job: Job,
    figures: dict[str, dict],
    history: History,
    clock: Clock,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Write the trained classifier's folder; returns what its metrics.json holds."""
    with clock.stage("baseline"):
        baseline = evaluate_baseline(job.splits)
    by_epoch = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    metrics = {
        "model": job.model_name,
        "weights": args.weights,
        "data": job.data_name,
        "num_labels": len(job.label_names),
        "labels": job.label_names,
        "seed": args.seed,
        **figures,
        "ngram_baseline": baseline,
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "peak_memory_mb": peak_memory_mb(),
        "max_length": job.max_length,
        "options": job.options,
        "history": {name: getattr(history, name) for name in by_epoch},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        **machine,
    }
    card = {
        "trained_on": job.data_name,
        "training": job.options,
        "test": metrics["test"],
        "made_up_data": job.data_name == MADE_UP_NAME,
    }
    classifier = Classifier(
        job.model,
        job.tokenizer,
        job.model_name,
        job.label_names,
        job.max_length,
        card,
        args.pooling,
    )
    write_folder(args.output, classifier, metrics, history)
    (args.output / CHECKPOINT).unlink(missing_ok=True)
    return metrics


def refuse_options_without_effect(args: argparse.Namespace) -> None:
    """An option that is accepted and ignored misleads whoever measures with it."""
    if args.trainable == "head" and args.dropout:
        raise DataError(
            "--dropout acts within trained blocks, and --trainable head trains none: leave one out."
        )
    if args.balance == "weights" and args.batch_size == 1:
        raise DataError(
            "--balance weights acts among the messages of a batch: leave it out, or take a "
            "--batch-size of at least 2."
        )
    if args.protocol == "published" and args.balance != "undersample":
        raise DataError(f"--protocol published undersamples: leave out --balance {args.balance}.")


def fingerprint(splits: Splits) -> str:
    """SHA-256 of all messages in their order: whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for part in splits:
        digest.update(json.dumps(part[["text", "label"]].values.tolist()).encode())
    return digest.hexdigest()


def prepare_folder(args: argparse.Namespace, options: dict, say: Callable) -> Path | None:
    """The checkpoint's path, or None if the run to be resumed is finished already.

    Finds out now, not after the training, whether the folder can be written.
    """
    checkpoint, run_file = args.output / CHECKPOINT, args.output / "run.json"
    if not args.resume:
        try:
            args.output.mkdir(parents=True, exist_ok=True)
            checkpoint.unlink(missing_ok=True)
            write_text(json.dumps(options, indent=2) + "\n", run_file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG):  # no room: a failure, no wrong option
                raise
            raise DataError(
                f"--output {args.output}: this folder cannot be written ({error.strerror}); "
                f"choose another."
            ) from None
        return checkpoint
    if not run_file.exists():
        raise DataError(f"--resume: there is no run to go on with in {args.output}.")
    if changed := changed_options(read_json(run_file), options):
        if len(changed) == 1 and "data_sha256" in changed[0]:
            raise DataError(
                "--resume: the messages are no longer those of the run; bring them back, or start "
                "anew without --resume."
            )
        raise DataError(f"--resume: the run had other options: {'; '.join(changed)}.")
    metrics_file = args.output / "metrics.json"
    no_checkpoint = metrics_file.exists() and not checkpoint.exists()
    if no_checkpoint and not changed_options(read_json(metrics_file).get("options", {}), options):
        say(f"The run in {args.output} is finished already.")
        return None
    return checkpoint


def changed_options(then: dict, now: dict) -> list[str]:
    """What was different; an option that was not there yet has the value that all runs had."""
    then = {"precision": "float32", "pooling": "last_real"} | then
    return [f"{k} was {then.get(k)!r}" for k, v in now.items() if then.get(k) != v]


def read_json(path: Path) -> dict[str, Any]:
    """What this command wrote earlier; raises ``DataError`` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); start anew without --resume.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not from this command; start anew without --resume.")
    return content


def write_folder(output: Path, classifier: Classifier, metrics: dict, history: History) -> None:
    epochs = range(1, history.num_epochs + 1)
    num_train = metrics["train"]["num_examples"]
    for quantity in ("loss", "accuracy"):
        train, validation = (
            getattr(history, f"{part}_{quantity}") for part in ("train", "validation")
        )
        save_figure(plot_values(epochs, train, validation, quantity, num_train), output, quantity)
    if len(classifier.label_names) <= 20:
        matrix = np.array(metrics["test"]["confusion_matrix"])
        figure = plot_confusion_matrix(matrix, classifier.label_names)
        save_figure(figure, output, "confusion-matrix")
    save_classifier(classifier, output)
    write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", output / "metrics.json")


def save_figure(figure, output: Path, name: str) -> None:
    partial = output / f"{name}.png.partial"
    try:
        figure.savefig(partial, format="png", dpi=120)
        partial.replace(output / f"{name}.png")
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        plt.close(figure)


def peak_memory_mb() -> float | None:
    """Most memory the process held so far, in MB; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if own := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return round(int(own[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux, of the parent process too
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def results_table(metrics: dict) -> str:
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
    lines.append(f"\ntest macro F1 {test['macro_f1']:.3f}, MCC {test['mcc']:.3f}")
    if metrics["data"] == MADE_UP_NAME:
        lines.append("These are made-up messages: the figures mean nothing.")
    return "\n".join(lines)


def closing_words(metrics: dict, output: Path) -> str:
    """What the run took, where its result is, and what to do with it."""
    seconds, peak = sum(metrics["seconds"].values()), metrics["peak_memory_mb"]
    folder = f'"{output}"' if " " in str(output) else output
    memory = "" if peak is None else f", {peak} MB at most"
    return (
        f"\n{seconds:.0f} seconds{memory}.\n"
        f"The classifier is in {output}; try it:\n"
        f'  python {Path(__file__).parent.name}/classify.py {folder} "a message of yours"'
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        with standard_output():
            metrics = run(args)
            print(results_table(metrics))
            if not args.quiet:
                print(closing_words(metrics, args.output))
    except (DataError, ValueError) as error:
        print(f"finetune.py: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, `head` say, has left
        return 1
    except (DownloadError, OSError) as error:
        print(f"finetune.py: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"finetune.py: out of memory; try a smaller --batch-size or --max-length. {error}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "\nStopped. Repeat the command with --resume to go on, or without if it had not begun "
            "to train.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
