"""The messages of one run: read, cleaned, balanced, split, augmented."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from sklearn.model_selection import train_test_split

from gpt_download import DownloadError
from message_files import LABEL_NAMES, DataError, TextFormat, normal_form, read_messages
from multi_label import each_label, label_set, split_label_sets
from run_config import SMS_NAME, RunConfig, file_name
from text_data import (
    SAMPLE_MESSAGES,
    Splits,
    augment_messages,
    balance_classes,
    clean_messages,
    published_splits,
    read_sample_messages,
    read_sms_spam,
    split_messages,
)

MADE_UP_NAME = f"made-up messages ({SAMPLE_MESSAGES.name})"


class Messages(NamedTuple):
    """What a run learns from and is measured on."""

    splits: Splits
    label_names: list[str]
    name: str
    """Of the data, for reports."""
    unlabelled: list[str]
    """Texts for continued pretraining: the training messages and those that balancing left over."""
    columns: Mapping[str, str] = {}
    """The reader's own, named or guessed: `text_column`, `label_column`."""


def read_run_messages(config: RunConfig, log: Callable = print) -> Messages:
    """The messages of a run: read, cleaned, balanced, split, augmented. Raises ``DataError``."""
    messages = _read_and_split(config, log)
    train = messages.splits.train
    if config.train_size is not None and config.multi_label:
        train = train.sample(min(config.train_size, len(train)), random_state=config.seed)
    elif config.train_size is not None:
        train = take_some(train, config.train_size, config.seed)
    if config.augment:
        train = augment_messages(train, config.augment, config.seed)
    return messages._replace(splits=messages.splits._replace(train=train))


def _read_and_split(config: RunConfig, log: Callable) -> Messages:
    if config.data is not None:
        messages = _read_own(config.data, config, log)
        name = file_name(config.data)
    else:
        try:
            if config.protocol == "published":
                splits = published_splits()
                name = f"{SMS_NAME}, published split"
                return Messages(splits, ["ham", "spam"], name, list(splits.train["text"]))
            messages, name = read_sms_spam(), SMS_NAME
        except DownloadError as error:
            log(
                f"NOTE: the {SMS_NAME} cannot be had here, so a few made-up messages take its "
                f"place. They show that the code runs; their metrics mean nothing.\n{error}\n"
            )
            messages, name = read_sample_messages(), MADE_UP_NAME
    labels = _labels_of(messages, config).drop_duplicates()
    for _, alike in labels.groupby(labels.str.casefold().str.removesuffix(".0")):
        if len(alike) > 1:
            log(f"NOTE: {' and '.join(map(repr, alike))} are different labels; is that intended?")
    cleaned = clean_messages(messages)
    counts = _labels_of(cleaned, config).value_counts()
    label_names = sort_labels(set(counts.index))
    _validate_labels(cleaned, label_names, counts, name)
    used = balance_classes(cleaned, config.seed) if config.balance == "undersample" else cleaned
    _log_what_is_used(name, messages, cleaned, used, counts, log)
    split = split_label_sets if config.multi_label else split_messages
    splits = _with_own_parts(split(used, config.seed), config, log)
    elsewhere = [*used["text"], *splits.validation["text"], *splits.test["text"]]
    left_over = cleaned.loc[~_are_among(cleaned["text"], elsewhere), "text"]
    unlabelled = [*splits.train["text"], *left_over]
    return Messages(splits, label_names, name, unlabelled, messages.attrs)


def _read_own(path: Path, config: RunConfig, log: Callable) -> pd.DataFrame:
    """A reader's own messages; texts that differ in what nobody sees are written as the first is.

    The SMS collection is taken letter by letter, since all our results were measured so.
    """
    columns = (config.text_column, config.label_column)
    label_sets = (config.label_column, *LABEL_NAMES) if config.multi_label else ()
    text_format = TextFormat(config.separator, config.encoding, label_sets)
    messages = read_messages(path, *columns, log, text_format)
    if config.multi_label:
        messages["label"] = messages["label"].map(label_set)
        log(f"{(messages['label'] == '').sum():,} texts carry none of the labels.")
    first = messages["text"].groupby(messages["text"].map(normal_form)).transform("first")
    if num_changed := (first != messages["text"]).sum():
        log(
            f"{num_changed:,} texts differ from an earlier one in white space or Unicode form only."
        )
    return messages.assign(text=first)


def _labels_of(messages: pd.DataFrame, config: RunConfig) -> pd.Series:
    return each_label(messages["label"]) if config.multi_label else messages["label"]


def _are_among(texts: pd.Series, others: Iterable[str]) -> pd.Series:
    """Which texts are among the others, white space and Unicode form aside."""
    return texts.map(normal_form).isin({*map(normal_form, others)})


def _log_what_is_used(
    name: str,
    messages: pd.DataFrame,
    cleaned: pd.DataFrame,
    used: pd.DataFrame,
    counts: pd.Series,
    log: Callable,
) -> None:
    """What became of all messages, in a few lines; `counts` are those of the labels."""
    shown = ", ".join(f"{label} {count:,}" for label, count in counts.head(10).items())
    more = f" and {len(counts) - 10} more labels" if len(counts) > 10 else ""
    log(f"{name}: {len(messages):,} messages, {len(cleaned):,} without duplicates: {shown}{more}.")
    if contradictory := (messages.groupby("text")["label"].nunique() > 1).sum():
        log(f"Left out {contradictory:,} texts that carry different labels.")
    if len(used) < len(cleaned):
        log(
            f"Balanced: {counts.min():,} messages of each label, {len(used):,} of "
            f"{len(cleaned):,}. --balance weights uses all."
        )


def _with_own_parts(splits: Splits, config: RunConfig, log: Callable) -> Splits:
    """With the reader's own files to validate and test on, where they are given; the messages that
    would have been taken for it are trained on, but for those that the files repeat."""
    if config.validation_data is None and config.test_data is None:
        return splits
    train = splits.train
    for part, path in (("validation", config.validation_data), ("test", config.test_data)):
        if path is None:
            continue
        train = pd.concat([train, getattr(splits, part)])
        own = clean_messages(_read_own(path, config, log))
        if own.empty:
            raise DataError(f"{path}: no message is left but texts that carry different labels.")
        if unknown := {*_labels_of(own, config)} - {*_labels_of(train, config)}:
            raise DataError(f"{path}: the label {min(unknown)!r} does not occur in {config.data}.")
        splits = splits._replace(**{part: own})
    validation = splits.validation
    validation = validation[~_are_among(validation["text"], splits.test["text"])]
    repeated = _are_among(train["text"], [*validation["text"], *splits.test["text"]])
    if num_repeated := repeated.sum() + len(splits.validation) - len(validation):
        log(f"Left out {num_repeated} messages that the file to validate or test on repeats.")
    if validation.empty or repeated.all():
        raise DataError(f"{config.data}: no message is left that the other files do not repeat.")
    if lost := {*_labels_of(train, config)} - {*_labels_of(train[~repeated], config)}:
        raise DataError(
            f"{config.data}: the other files repeat all training messages of {min(lost)!r}."
        )
    parts = (train[~repeated], validation, splits.test)
    return Splits(*(part.reset_index(drop=True) for part in parts))


def _validate_labels(
    cleaned: pd.DataFrame, label_names: list[str], counts: pd.Series, name: str
) -> None:
    if len(label_names) < 2:
        raise DataError(
            f"{name}: a classifier needs at least two labels; found: {label_names or 'none'} "
            f"(texts that carry several labels are left out)."
        )
    if len(label_names) > max(2, len(cleaned) / len(Splits._fields)):
        raise DataError(
            f"{name}: {len(label_names)} different labels for {len(cleaned)} different texts; is "
            f"the column of labels the right one?"
        )
    if counts.min() < len(Splits._fields):  # found here, since balancing makes all alike
        raise DataError(
            f"{name}: the label {counts.idxmin()!r} has only {counts.min()} different messages; "
            f"at least {len(Splits._fields)} are needed, to train, validate and test on."
        )


def sort_labels(labels: set[str]) -> list[str]:
    """In the order of their numbers if all are whole numbers, else of the alphabet."""
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def take_some(messages: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    """`size` random messages with the same mix of labels; all of them where what is left out
    could not hold one of each label."""
    num_labels = messages["label"].nunique()
    size = max(num_labels, size)
    if size > len(messages) - num_labels:
        return messages
    counts = messages["label"].value_counts()
    if counts.min() < 2:
        raise DataError(f"--train-size needs two training messages of {counts.idxmin()!r}.")
    kept, _ = train_test_split(
        messages, train_size=size, stratify=messages["label"], random_state=seed
    )
    return kept.reset_index(drop=True)
