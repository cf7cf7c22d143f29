"""The messages of one run: read, cleaned, balanced, split, augmented."""

import re
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from sklearn.model_selection import train_test_split

from gpt_download import DownloadError
from message_files import DataError, read_messages
from run_config import SMS_NAME, RunConfig
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


def read_run_messages(config: RunConfig, log: Callable = print) -> Messages:
    """The messages of a run: read, cleaned, balanced, split, augmented. Raises ``DataError``."""
    messages = _read_and_split(config, log)
    train = messages.splits.train
    if config.train_size is not None:
        train = take_some(train, config.train_size, config.seed)
    if config.augment:
        train = augment_messages(train, config.augment, config.seed)
    return messages._replace(splits=messages.splits._replace(train=train))


def _read_and_split(config: RunConfig, log: Callable) -> Messages:
    if config.data is not None:
        messages = read_messages(config.data, config.text_column, config.label_column, log)
        name = config.data.name
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
    cleaned = clean_messages(messages)
    label_names = sort_labels(set(cleaned["label"]))
    _validate_labels(cleaned, label_names, name)
    used = balance_classes(cleaned, config.seed) if config.balance == "undersample" else cleaned
    log(
        f"{name}: {len(messages):,} messages, {len(cleaned):,} without duplicates, "
        f"{len(used):,} used, {len(label_names)} labels."
    )
    splits = split_messages(used, config.seed)
    left_over = cleaned.loc[~cleaned["text"].isin(used["text"]), "text"]
    return Messages(splits, label_names, name, [*splits.train["text"], *left_over])


def _validate_labels(cleaned: pd.DataFrame, label_names: list[str], name: str) -> None:
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
    kept, _ = train_test_split(
        messages, train_size=size, stratify=messages["label"], random_state=seed
    )
    return kept.reset_index(drop=True)
