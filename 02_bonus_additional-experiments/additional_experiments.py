"""The chapter's design choices, one run at a time: fine-tune with one choice changed and measure.

    python 02_bonus_additional-experiments/additional_experiments.py --trainable_layers all --seed 1
    python 02_bonus_additional-experiments/additional_experiments.py --suite main --model gpt-mini

The first command makes one run and writes one JSON file; the second makes all runs of a list
(see suites.py) over several seeds, and goes on where it stopped. make_tables.py makes the tables.
"""

import argparse
import base64
import json
import math
import platform
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC
from suites import COST_MEASURED, SUITES, Row
from tqdm import tqdm

from evaluation import ngram_baseline, roc_curve, test_figures
from finetune import (
    COUNT,
    COUNT_OR_NONE,
    GPT2_LEARNING_RATE,
    LEARNING_RATES,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    Clock,
    choose_max_length,
    choose_model_name,
    load_model,
    make_datasets,
    number,
    peak_memory_mb,
)
from gpt_download import MODEL_CONFIGS, DownloadError
from lora import add_lora
from message_files import DataError
from previous_chapters import GPTModel, num_parameters
from text_classifier import (
    FURTHER_PRETRAINING,
    TrainConfig,
    Trainer,
    add_classification_head,
    compute_frozen_layers,
    continue_pretraining,
    encode_for_pretraining,
    freeze_all_but,
    pick_device,
    predict_logits,
    write_text,
)
from text_data import (
    Reading,
    SpamDataset,
    Splits,
    augment_messages,
    balance_classes,
    clean_messages,
    make_loader,
    pad_messages,
    published_splits,
    read_sms_spam,
    split_messages,
)

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
LABELS = ["ham", "spam"]
ALMEIDA_TRAIN_SHARE = 0.3
DEFAULT_SEEDS = (1, 2, 3, 4, 5)
FRACTION = number(float, "above 0 and at most 1", lambda value: 0 < value <= 1)
SMOOTHING = number(float, "between 0 and 1", lambda value: 0 <= value <= 1)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(
        prog="additional_experiments.py",
        description="Fine-tune a GPT on the SMS Spam Collection with one of the chapter's choices "
        "changed, and write what came out as one JSON file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument("--row", default="trial", help="name of the row, and of its results' folder")
    what.add_argument("--seed", type=SEED, default=1, help="split, head, order, dropout")
    what.add_argument(
        "--suite",
        choices=sorted(SUITES),
        help="all rows of a list, each with its own options; options given beside it go to all",
    )
    what.add_argument("--seeds", type=SEED, nargs="+", help="seeds of a suite; 1 to 5 if not given")
    what.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    what.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=" ")
    what.add_argument("--quiet", action="store_true", help="no progress bars")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--classifier",
        choices=["gpt", *BASELINES],
        default="gpt",
        help="the GPT, or a classical model of the same messages",
    )
    model.add_argument(
        "--model",
        default="auto",
        help="auto (GPT-2 small, or gpt-mini where that cannot be had) or one of: "
        + ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS),
    )
    model.add_argument(
        "--weights", choices=["pretrained", "random"], default="pretrained", help="to start from"
    )
    model.add_argument(
        "--pretrain_further",
        type=COUNT_OR_NONE,
        default=0,
        metavar="EPOCHS",
        help="epochs of language modelling on the training texts and on the ham that balancing "
        "leaves over, without labels, before the head is put on",
    )
    model.add_argument(
        "--trainable_layers",
        type=trainable_layers,
        default="last_block",
        help="head, last_block, last_two_blocks, all, lora, or a number of last blocks",
    )
    model.add_argument("--lora_rank", type=COUNT, help="rank of LoRA's corrections; 8 if not given")
    model.add_argument("--lora_alpha", type=POSITIVE, help="their scale; 16 if not given")
    model.add_argument(
        "--ensemble",
        action="store_true",
        help="average the probabilities with those of the character n-grams",
    )

    reading = parser.add_argument_group("reading")
    place = reading.add_mutually_exclusive_group()
    place.add_argument(
        "--trainable_token_pos",
        choices=["last_real", "last", "first", "mean"],
        default="last_real",
        help="where the class is read; last is the last position, padding or not",
    )
    place.add_argument(
        "--average_embeddings",
        dest="trainable_token_pos",
        action="store_const",
        const="mean",
        help="the same as --trainable_token_pos mean: average over all real tokens",
    )
    reading.add_argument(
        "--context_length",
        choices=["longest_in_batch", "longest_in_training", "model"],
        help="to which length messages are padded; default: longest_in_batch, but "
        "longest_in_training for --trainable_token_pos last, which reads the padding",
    )
    reading.add_argument(
        "--no_padding", action="store_true", help="one message at a time, unpadded"
    )
    reading.add_argument(
        "--disable_causal_mask", action="store_true", help="let tokens look at later ones, too"
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--protocol",
        choices=["clean", "published", "almeida"],
        default="clean",
        help="split: without duplicates; that of well-known figures; the collection's own paper's",
    )
    data.add_argument(
        "--balance",
        choices=["undersample", "weights", "none"],
        default="undersample",
        help="training messages: as many ham as spam, or all of them with or without class weights",
    )
    data.add_argument(
        "--augment", type=COUNT_OR_NONE, default=0, help="altered copies of each training message"
    )
    data.add_argument(
        "--train_fraction", type=FRACTION, default=1.0, help="share of the training messages"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=COUNT, default=defaults.num_epochs, help="passes")
    training.add_argument(
        "--batch_size", type=COUNT, help="messages at a time; 8 if not given, 1 with --no_padding"
    )
    training.add_argument(
        "--accumulation_steps", type=COUNT, default=1, help="batches for each update"
    )
    training.add_argument(
        "--learning_rate",
        type=POSITIVE,
        help=f"at its peak; default: {defaults.learning_rate} for gpt-mini, "
        f"{GPT2_LEARNING_RATE} for GPT-2",
    )
    training.add_argument(
        "--schedule",
        choices=["constant", "cosine"],
        default=defaults.schedule,
        help="the learning rate after the warm-up",
    )
    training.add_argument(
        "--warmup_share",
        type=SHARE,
        default=defaults.warmup_share,
        help="share of the updates in which the learning rate rises",
    )
    training.add_argument(
        "--weight_decay", type=NOT_NEGATIVE, default=defaults.weight_decay, help="AdamW's"
    )
    training.add_argument(
        "--dropout", type=SHARE, default=defaults.dropout, help="in the trained layers"
    )
    training.add_argument(
        "--label_smoothing", type=SMOOTHING, default=defaults.label_smoothing, help="share"
    )
    training.add_argument(
        "--ignore_index",
        type=int,
        default=defaults.ignore_index,
        help="label that does not count in the loss",
    )
    return parser.parse_args(argv)


def trainable_layers(text: str) -> str | int:
    """A name, or a number of blocks."""
    names = ("head", "last_block", "last_two_blocks", "all", "lora")
    if text in names:
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} must be one of {', '.join(names)}, or a number of blocks"
    )


def refuse_options_without_effect(args: argparse.Namespace) -> None:
    """An option that is accepted and ignored misleads whoever measures with it."""
    frozen_blocks = args.trainable_layers in ("head", 0, "lora")
    wrong = {
        "--seeds belongs to --suite: one run has one --seed": args.seeds is not None,
        "--lora_rank and --lora_alpha belong to --trainable_layers lora": (
            args.trainable_layers != "lora" and (args.lora_rank or args.lora_alpha)
        ),
        "--dropout acts in trained blocks, of which head and lora have none": (
            frozen_blocks and args.dropout
        ),
        "--no_padding takes one message at a time: leave out --batch_size, or give 1": (
            args.no_padding and args.batch_size not in (None, 1)
        ),
        "--balance weights acts among the messages of a batch: leave out --no_padding and "
        "--batch_size 1": (
            args.balance == "weights"
            and (args.no_padding or args.batch_size == 1)
            and not args.label_smoothing  # which weighs the classes of a single message
        ),
        "--no_padding pads nothing: leave out --context_length": (
            args.no_padding and args.context_length
        ),
        "--trainable_token_pos last with --context_length longest_in_batch would make an answer "
        "depend on the other messages of the batch; choose longest_in_training or model": (
            args.trainable_token_pos == "last" and args.context_length == "longest_in_batch"
        ),
        "--protocol published undersamples: leave out --balance": (
            args.protocol == "published" and args.balance != "undersample"
        ),
        "--classifier naive_bayes and majority know no class weights: choose another --balance": (
            args.classifier in ("naive_bayes", "majority") and args.balance == "weights"
        ),
        "--ensemble averages a GPT with n-grams: leave out --classifier": (
            args.ensemble and args.classifier != "gpt"
        ),
    }
    complaints = [complaint for complaint, holds in wrong.items() if holds]
    if args.classifier != "gpt":
        untouched = vars(parse_args(["--classifier", args.classifier]))
        changed = [k for k, v in vars(args).items() if v != untouched[k] and k not in FOR_ALL]
        complaints += [
            f"--{name} does nothing for --classifier {args.classifier}" for name in changed
        ]
    if complaints:
        raise DataError("; ".join(complaints) + ".")


# Options that act on classical models, too.
FOR_ALL = {
    *("row", "seed", "suite", "seeds", "results", "quiet", "classifier", "ensemble"),
    *("protocol", "balance", "augment", "train_fraction"),
}


# ---------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------


def read_splits(args: argparse.Namespace) -> tuple[Splits, list[str]]:
    """The messages to train, validate and test on, and texts to pretrain on.

    Under the clean protocol the test messages depend on the seed alone: `--balance weights` adds
    all ham that undersampling leaves over to the training messages, and to nothing else. The
    texts for pretraining are always all these.
    """
    if args.protocol == "published":
        splits = published_splits()
        unlabelled = splits.train
    elif args.protocol == "almeida":
        messages = read_sms_spam()
        num_train = round(ALMEIDA_TRAIN_SHARE * len(messages))
        train, test = messages[:num_train], messages[num_train:].reset_index(drop=True)
        unlabelled = train
        if args.balance == "undersample":
            train = balance_classes(train, args.seed)
        splits = Splits(train, messages[:0], test)
    else:
        messages = clean_messages(read_sms_spam())
        balanced = balance_classes(messages, args.seed)
        splits = split_messages(balanced, args.seed)
        left_over = messages[~messages["text"].isin(balanced["text"])]
        unlabelled = pd.concat([splits.train, left_over], ignore_index=True)
        if args.balance != "undersample":
            splits = splits._replace(train=unlabelled)
    train = take_share(splits.train, args.train_fraction, args.seed)
    if args.augment:
        train = augment_messages(train, args.augment, args.seed)
    return splits._replace(train=train), list(unlabelled["text"])


def take_share(messages: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A random share of the messages with the same mix of labels, at least one of each; all of
    them where what is left out could not hold one of each, too."""
    num_labels = messages["label"].nunique()
    size = max(num_labels, round(share * len(messages)))
    if size > len(messages) - num_labels:
        return messages
    kept, _ = train_test_split(
        messages, train_size=size, stratify=messages["label"], random_state=seed
    )
    return kept.reset_index(drop=True)


def is_repeated(splits: Splits) -> np.ndarray:
    """Which test messages stand in the training messages, too, or earlier in the test."""
    test = splits.test["text"]
    return (test.isin(splits.train["text"]) | test.duplicated()).to_numpy()


# ---------------------------------------------------------------------------------------------
# Classical models
# ---------------------------------------------------------------------------------------------

BASELINES = {
    "majority": lambda: make_pipeline(CountVectorizer(), DummyClassifier()),
    "naive_bayes": lambda: make_pipeline(CountVectorizer(), MultinomialNB()),
    "word_ngrams": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=100, max_iter=1000),
    ),
    "char_ngrams": ngram_baseline,
    "char_svm": lambda: make_pipeline(ngram_baseline()[0], LinearSVC()),
}


def fit_baseline(name: str, train: pd.DataFrame, use_class_weights: bool) -> Pipeline:
    pipeline = BASELINES[name]()
    if use_class_weights:
        pipeline[-1].set_params(class_weight="balanced")
    return pipeline.fit(train["text"], train["label"])


def baseline_probabilities(pipeline: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """Probabilities (N, 2); for a support vector machine, its margins squashed into (0, 1)."""
    if len(texts) == 0:
        return np.empty((0, 2))
    if hasattr(pipeline, "predict_proba"):
        return pipeline.predict_proba(texts)
    spam = 1 / (1 + np.exp(-pipeline.decision_function(texts)))
    return np.stack([1 - spam, spam], axis=1)


# ---------------------------------------------------------------------------------------------
# The GPT
# ---------------------------------------------------------------------------------------------


class Reuse:
    """What the runs of a suite have in common: it is computed once, and the result is the same.

    Kept are all language models to start from, and the hidden states of every text for as long
    as the frozen layers stay what they are.
    """

    def __init__(self):
        self.language_models: dict[str, GPTModel] = {}
        self.states: dict[str, dict[tuple, torch.Tensor]] = {}

    def language_model(self, key: str, make) -> GPTModel:
        """The weights that `make()` gives, unless they are known."""
        if key not in self.language_models:
            self.language_models[key] = make()
        return self.language_models[key]

    def frozen_layers(
        self, key: str, model: GPTModel, dataset: SpamDataset, num_frozen: int, progress: bool
    ) -> SpamDataset:
        """`compute_frozen_layers`, for the texts whose states are not known yet."""
        if num_frozen == 0:
            return dataset
        if key not in self.states:
            self.states = {key: {}}
        states = self.states[key]
        texts = [tuple(ids.tolist()) for ids in dataset.sequences]
        missing = list({text: i for i, text in enumerate(texts) if text not in states}.values())
        if missing:
            new = SpamDataset(
                [dataset.sequences[i] for i in missing],
                [0] * len(missing),
                reading=dataset.reading,
            )
            new = compute_frozen_layers(model, new, num_frozen, progress)
            states.update(zip((texts[i] for i in missing), new.sequences, strict=True))
        hidden = [states[text] for text in texts]
        return SpamDataset(hidden, dataset.labels, num_frozen, dataset.lengths, dataset.reading)


def pretrained_further(
    args: argparse.Namespace, texts: Sequence[str], device: torch.device
) -> tuple[GPTModel, Any, str]:
    """The language model to start from, its tokenizer and its name."""
    model, tokenizer, name = load_model(args, device)
    if args.pretrain_further:
        sequences = encode_for_pretraining(texts, tokenizer, model.cfg.context_length)
        config = replace(FURTHER_PRETRAINING, num_epochs=args.pretrain_further, seed=args.seed)
        continue_pretraining(model, sequences, config, not args.quiet)
    return model, tokenizer, name


def lay_out(
    args: argparse.Namespace, datasets: Sequence[SpamDataset], max_length: int, model, tokenizer
) -> list[SpamDataset]:
    """The data sets, padded and read as the options say."""
    widths = {"longest_in_training": max_length, "model": model.cfg.context_length}
    position, width = args.trainable_token_pos, widths.get(args.context_length, 0)
    if position == "last" and not args.no_padding:
        width = width or max_length
        padded = [pad_messages(data.sequences, width, tokenizer.eot_token) for data in datasets]
        datasets = [SpamDataset(ids, data.labels) for ids, data in zip(padded, datasets)]
    position = "last_real" if position == "last" else position
    reading = Reading(position, not args.disable_causal_mask, width)
    return [SpamDataset(data.sequences, data.labels, reading=reading) for data in datasets]


def choose_trained(args: argparse.Namespace, model: GPTModel) -> int:
    """Freeze the rest, and return how many blocks are frozen for good."""
    num_layers, trained = len(model.trf_blocks), args.trainable_layers
    if trained == "lora":
        freeze_all_but(model, "head")
        add_lora(model, args.lora_rank or 8, args.lora_alpha or 16)
        return 0
    if isinstance(trained, int) and trained > num_layers:
        raise DataError(f"--trainable_layers {trained}: the model has {num_layers} blocks.")
    return freeze_all_but(model, trained)


def train_config(args: argparse.Namespace, model_name: str) -> TrainConfig:
    return TrainConfig(
        learning_rate=args.learning_rate or LEARNING_RATES.get(model_name, GPT2_LEARNING_RATE),
        num_epochs=args.epochs,
        batch_size=args.batch_size or (1 if args.no_padding else TrainConfig.batch_size),
        accumulation_steps=args.accumulation_steps,
        weight_decay=args.weight_decay,
        dropout=args.dropout,
        warmup_share=args.warmup_share,
        schedule=args.schedule,
        use_class_weights=args.balance == "weights",
        label_smoothing=args.label_smoothing,
        ignore_index=args.ignore_index,
        seed=args.seed,
    )


def count_positions(train: SpamDataset, config: TrainConfig) -> int:
    """Positions that one pass over the training messages takes through the model, with padding."""
    generator = torch.Generator().manual_seed(config.seed)
    loader = make_loader(train, config.batch_size, True, True, generator)
    return sum(batch.inputs.shape[0] * batch.inputs.shape[1] for batch in loader)


def run_gpt(
    args: argparse.Namespace, splits: Splits, texts: list[str], clock: Clock, reuse: Reuse
) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Probabilities (N, 2) of the three parts, and what is worth knowing about the model."""
    device = pick_device(args.device)
    start = [args.model, args.weights, args.protocol if args.pretrain_further else ""]
    start += [args.pretrain_further, str(device)]
    if args.weights == "random" or args.pretrain_further:
        start.append(args.seed)
    key = json.dumps(start)
    with clock.stage("model"):
        original, tokenizer, name = reuse.language_model(
            key, lambda: pretrained_further(args, texts, device)
        )
        model = GPTModel(original.cfg).to(device)
        model.load_state_dict(original.state_dict())
        context = model.cfg.context_length
        max_length = choose_max_length(None, splits, tokenizer, context, lambda *_: None)
        datasets = make_datasets(splits, LABELS, tokenizer, max_length)
        datasets = lay_out(args, datasets, max_length, model, tokenizer)
        torch.manual_seed(args.seed)
        add_classification_head(model, len(LABELS))
        num_frozen = choose_trained(args, model)
    config = train_config(args, name)
    positions_per_epoch = count_positions(datasets[0], config)
    with clock.stage("frozen_layers"):
        position, *rest = datasets[0].reading
        last_only = num_frozen == len(model.trf_blocks) and position == "last_real"
        key = json.dumps([key, num_frozen, *rest, last_only])
        datasets = [
            reuse.frozen_layers(key, model, dataset, num_frozen, not args.quiet)
            for dataset in datasets
        ]
    with clock.stage("training"):
        trainer = Trainer(model, datasets[0], config)
        trainer.train_all_epochs(not args.quiet)
    if not all(map(math.isfinite, trainer.history.step_losses)):
        raise DataError("The loss is no longer a number; choose a smaller --learning_rate.")
    with clock.stage("evaluation"):
        parts = [torch.softmax(predict_logits(model, data), dim=-1).numpy() for data in datasets]
    return parts, {
        "model": name,
        "trained_parameters": num_parameters(model, trainable_only=True),
        "max_length": max_length,
        "positions_per_epoch": positions_per_epoch,
        "loss_at_the_end": float(np.mean(trainer.history.step_losses[-20:])),
    }


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


def figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a report on messages needs; spam caught and ham blocked are the paper's words for the
    recall of spam and the false positives among ham."""
    result = test_figures(probabilities, labels)
    (_, blocked), (_, caught) = result["confusion_matrix"]
    num_ham, num_spam = np.bincount(labels, minlength=2)
    result["spam_caught"], result["ham_blocked"] = caught / num_spam, blocked / num_ham
    result["roc_area"] = roc_curve(labels == 1, probabilities[:, 1]).area
    return result


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


def run(args: argparse.Namespace, reuse: Reuse | None = None) -> dict[str, Any]:
    """One run from the messages to what its file holds."""
    refuse_options_without_effect(args)
    clock, processor_start = Clock(), time.process_time()
    with clock.stage("data"):
        splits, texts = read_splits(args)
    use_class_weights = args.balance == "weights"
    about: dict[str, Any] = {"model": args.classifier}
    if args.classifier == "gpt":
        parts, about = run_gpt(args, splits, texts, clock, reuse or Reuse())
    if args.classifier != "gpt" or args.ensemble:
        name = "char_ngrams" if args.ensemble else args.classifier
        with clock.stage("baseline"):
            baseline = fit_baseline(name, splits.train, use_class_weights)
            classical = [baseline_probabilities(baseline, part["text"]) for part in splits]
        parts = [(a + b) / 2 for a, b in zip(parts, classical)] if args.ensemble else classical

    labels = [(part["label"] == "spam").to_numpy().astype(int) for part in splits]
    results = {name: {} for name in Splits._fields}
    for name, probabilities, truth in zip(Splits._fields, parts, labels):
        if len(truth):  # the paper's protocol has no validation messages
            results[name] = figures(probabilities, truth)
    result = {"row": args.row, **about, "seed": args.seed}
    result["command"] = command_of(args)
    result |= results
    repeated = is_repeated(splits)
    if repeated.any():
        result["test_without_repeated"] = figures(parts[2][~repeated], labels[2][~repeated])
    return result | {
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "processor_seconds": round(time.process_time() - processor_start, 3),
        "peak_memory_mb": peak_memory_mb(),
        "from_scratch": reuse is None,
        "configuration": configuration(args),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sklearn": sklearn.__version__,
        },
        "threads": torch.get_num_threads(),
        "predictions": {
            "test_texts_crc32": zlib.crc32("\n".join(splits.test["text"]).encode()),
            "labels": "".join(map(str, labels[2])),
            "spam_probability": pack(parts[2]),
        },
    }


def configuration(args: argparse.Namespace) -> dict[str, Any]:
    """All options that shape the result."""
    beside = ("row", "suite", "seeds", "results", "quiet", "device")
    return {name: value for name, value in vars(args).items() if name not in beside}


def command_of(args: argparse.Namespace) -> str:
    """The command of this run, without the options that are at their defaults."""
    untouched = vars(parse_args([]))
    words = ["additional_experiments.py", "--row", args.row]
    for name, value in configuration(args).items():
        if name == "seed" or value == untouched[name]:
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join([*words, "--seed", str(args.seed)])


def path_of(args: argparse.Namespace) -> Path:
    return args.results / args.row / f"seed-{args.seed}.json"


def run_and_save(args: argparse.Namespace, reuse: Reuse | None = None) -> dict[str, Any]:
    result, path = run(args, reuse), path_of(args)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", path)
    return result


# ---------------------------------------------------------------------------------------------
# A suite
# ---------------------------------------------------------------------------------------------


def arguments_of(row: Row, seed: int, args: argparse.Namespace) -> list[str]:
    """The command line of one run of a suite."""
    arguments = ["--row", row.name, *shlex.split(row.options), "--seed", str(seed)]
    arguments += ["--results", str(args.results), "--quiet"]
    if not row.is_classical:
        arguments += ["--model", args.model, "--device", args.device]
    return arguments


def run_in_own_process(arguments: Sequence[str]) -> None:
    """A run from scratch, so that its seconds and its memory are its own."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip())


def run_suite(args: argparse.Namespace) -> None:
    """All runs that have no result yet, row by row; the rows that are alike share work.

    The first seed of the rows in `COST_MEASURED` runs in a process of its own, for its seconds and
    memory.
    """
    rows, reuse, start = SUITES[args.suite], Reuse(), time.monotonic()
    if not all(row.is_classical for row in rows):  # nothing is fetched for classical models
        args.model = choose_model_name(args.model)
    seeds, num_made = args.seeds or DEFAULT_SEEDS, 0
    runs = [(row, seed) for row in rows for seed in seeds]
    for row, seed in (bar := tqdm(runs, args.suite, unit="run", disable=args.quiet)):
        bar.set_postfix_str(f"{row.name}, seed {seed}")
        arguments = arguments_of(row, seed, args)
        own = parse_args(arguments)
        if is_done(own):
            continue
        if row.name in COST_MEASURED and seed == seeds[0]:
            run_in_own_process(arguments)
        else:
            run_and_save(own, reuse)
        num_made += 1
    seconds = time.monotonic() - start
    print(f"{args.suite}: {num_made} of {len(runs)} runs made now, in {seconds:,.0f} seconds.")


def is_done(args: argparse.Namespace) -> bool:
    """Whether the run's file is there. Raises ``DataError`` if it comes from other options."""
    path = path_of(args)
    if not path.exists():
        return False
    try:
        then = json.loads(path.read_text(encoding="utf-8"))["configuration"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; delete it, and it is made again.") from None
    now = configuration(args)
    changed = {k: f"{k} was {then.get(k)!r}, not {v!r}" for k, v in now.items() if then.get(k) != v}
    if changed:
        remedy = (
            f"give --model {then.get('model')!r}" if list(changed) == ["model"] else "delete it"
        )
        raise DataError(
            f"{path} comes from other options ({'; '.join(changed.values())}): {remedy}, or "
            f"choose another folder with --results."
        )
    return True


def refuse_options_beside_a_suite(argv: Sequence[str] | None) -> None:
    """A suite's rows bring their own options."""
    args, untouched = vars(parse_args(argv)), vars(parse_args([]))
    of_a_suite = ("suite", "seeds", "results", "model", "device", "quiet")
    wrong = [f"--{name}" for name, value in args.items() if value != untouched[name]]
    wrong = [name for name in wrong if name[2:] not in of_a_suite]
    if wrong:
        raise DataError(f"--suite: its rows bring their own options; leave out {', '.join(wrong)}.")


def summary(result: dict[str, Any]) -> str:
    """One line about a run."""
    test = result["test"]
    low, high = test["accuracy_interval"]
    return (
        f"{result['row']}, seed {result['seed']}: test accuracy {test['accuracy']:.1%} "
        f"[{low:.1%}, {high:.1%}] of {test['num_examples']:,} messages, MCC {test['mcc']:.3f}, "
        f"{sum(result['seconds'].values()):.0f} seconds"
    )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.suite:
            refuse_options_beside_a_suite(argv)
            run_suite(args)
        else:
            refuse_options_without_effect(args)
            if args.classifier == "gpt":
                args.model = choose_model_name(args.model)  # as a suite names it in its files
            if args.row != "trial" and is_done(args):
                raise DataError(
                    f"{path_of(args)} is there already: delete it, or choose another folder with "
                    f"--results, to measure again."
                )
            print(summary(run_and_save(args)))
    except (DataError, ValueError) as error:
        print(f"additional_experiments.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError, RuntimeError, MemoryError) as error:
        print(f"additional_experiments.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Repeat the command to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
