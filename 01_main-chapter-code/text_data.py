"""The messages: reading, cleaning, balancing, splitting, augmenting, and batches of them.

Messages travel as a pandas DataFrame with the columns `text` (str) and `label` (str).
Shapes in comments: B messages in a batch, T tokens in the longest of them, C classes.
"""

import csv
import io
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from gpt_download import SMS_SPAM_ZIP, fetch
from message_files import DataError

SAMPLE_MESSAGES = Path(__file__).parent / "gpt-mini" / "sample-messages.tsv"
SPLIT_FRACTIONS = (0.7, 0.1, 0.2)  # training, validation, test


# --- Reading -------------------------------------------------------------------------------------


def read_sms_spam(zip_path: Path | None = None) -> pd.DataFrame:
    """All 5,574 messages of the SMS Spam Collection (Almeida, Hidalgo, Yamakami 2011).

    The zip is fetched unless a path is given. Quotes are ordinary characters in this file: with
    pandas' defaults, one that is not closed swallows two rows, and 55 texts are altered.
    """
    with zipfile.ZipFile(zip_path or fetch(SMS_SPAM_ZIP)) as archive:
        return _read_without_quoting(archive.read("SMSSpamCollection").decode("utf-8"))


def read_sample_messages() -> pd.DataFrame:
    """The made-up messages of this project: to try the code on, never to report results on."""
    return _read_without_quoting(SAMPLE_MESSAGES.read_text(encoding="utf-8"))


def _read_without_quoting(text: str) -> pd.DataFrame:
    return pd.read_csv(
        io.StringIO(text),
        sep="\t",
        names=["label", "text"],
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,  # "None" and "nan" are messages too
        dtype=str,
    )


# --- Cleaning, balancing, splitting --------------------------------------------------------------


def clean_messages(messages: pd.DataFrame) -> pd.DataFrame:
    """Without repeated texts, and without texts that carry different labels.

    A text that stood both in training and test would be remembered, not understood.
    """
    labels_per_text = messages.groupby("text")["label"].transform("nunique")
    return messages[labels_per_text == 1].drop_duplicates("text").reset_index(drop=True)


def balance_classes(messages: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Undersampling: as many random messages of every class as the rarest has."""
    num_rarest = messages["label"].value_counts().min()
    return messages.groupby("label").sample(num_rarest, random_state=seed).reset_index(drop=True)


class Splits(NamedTuple):
    """Messages to learn from, to choose by, and to report on."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split_messages(messages: pd.DataFrame, seed: int) -> Splits:
    """70% to train, 10% to validate, 20% to test, with the same mix of classes in each part.

    Raises ``DataError`` if a class is too small to be found in all three.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[], [], []]
    for label, group in messages.groupby("label"):
        num_validation, num_test = (max(1, round(f * len(group))) for f in SPLIT_FRACTIONS[1:])
        num_train = len(group) - num_validation - num_test
        if num_train < 1:
            raise DataError(
                f"Label {label!r} has only {len(group)} different messages, too few to train, "
                f"validate and test on; at least 3 are needed."
            )
        rows = rng.permutation(group.index.to_numpy())
        for part, cut in zip(parts, np.split(rows, [num_train, num_train + num_validation])):
            part.append(cut)
    shuffled = (rng.permutation(np.concatenate(part)) for part in parts)
    return Splits(*(messages.loc[rows].reset_index(drop=True) for rows in shuffled))


def published_splits(zip_path: Path | None = None) -> Splits:
    """The split behind the well-known published figures, to compare with them.

    It reads the file with pandas' default quoting (5,572 rows) and keeps duplicates, so that 37
    of its 300 test messages also stand in its training set, which flatters every model.
    """
    with zipfile.ZipFile(zip_path or fetch(SMS_SPAM_ZIP)) as archive:
        raw = io.BytesIO(archive.read("SMSSpamCollection"))
    messages = pd.read_csv(raw, sep="\t", names=["label", "text"])
    spam = messages[messages["label"] == "spam"]
    ham = messages[messages["label"] == "ham"].sample(len(spam), random_state=123)
    shuffled = pd.concat([ham, spam]).sample(frac=1, random_state=123).reset_index(drop=True)
    first = int(len(shuffled) * SPLIT_FRACTIONS[0])
    second = first + int(len(shuffled) * SPLIT_FRACTIONS[1])
    parts = (shuffled[:first], shuffled[first:second], shuffled[second:])
    return Splits(*(part.reset_index(drop=True) for part in parts))


def class_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """Weights (C,) for the loss under which every class counts alike, 1 on average.

    >>> class_weights([0, 0, 0, 1], num_classes=2)
    tensor([0.6667, 2.0000])
    """
    counts = np.bincount(labels, minlength=num_classes)
    return torch.tensor(len(labels) / (num_classes * counts), dtype=torch.float32)


# --- Augmentation: more training messages from those at hand -------------------------------------

# Characters that look alike, as spammers write them to slip past word lists.
LOOK_ALIKES = {"a": "@4", "e": "3", "i": "1!", "l": "1", "o": "0", "s": "$5", "t": "7"}


def drop_words(text: str, rng: random.Random, fraction: float = 0.1) -> str:
    """Leave out about a `fraction` of the words, but never all of them."""
    words = text.split()
    kept = [word for word in words if rng.random() >= fraction]
    return " ".join(kept) if kept else text


def swap_words(text: str, rng: random.Random, fraction: float = 0.1) -> str:
    """Swap about a `fraction` of the words with their right neighbours."""
    words = text.split()
    for i in range(len(words) - 1):
        if rng.random() < fraction:
            words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def write_look_alikes(text: str, rng: random.Random, fraction: float = 0.1) -> str:
    """Replace about a `fraction` of the letters that have one by a look-alike: `free` -> `fr3e`."""
    return "".join(
        rng.choice(LOOK_ALIKES[character.lower()])
        if character.lower() in LOOK_ALIKES and rng.random() < fraction
        else character
        for character in text
    )


def augment_messages(messages: pd.DataFrame, copies: int, seed: int) -> pd.DataFrame:
    """The messages, and `copies` altered versions of each; for training messages only."""
    rng = random.Random(seed)
    altered = []
    for _ in range(copies):
        for text in messages["text"]:
            change = rng.choice([drop_words, swap_words, write_look_alikes])
            altered.append(change(text, rng))
    labels = list(messages["label"]) * copies
    return pd.concat(
        [messages, pd.DataFrame({"text": altered, "label": labels})], ignore_index=True
    )


# --- Data set and loaders ------------------------------------------------------------------------

LONGEST_TOKEN = 128  # bytes, in GPT-2's vocabulary; fewer in the others'
IGNORED = -100  # the label of a message whose class nobody knows; PyTorch's losses skip it


def encode_messages(texts: Sequence[str], tokenizer, max_length: int) -> list[Tensor]:
    """Token ids (T,) of each text, at most `max_length`; an empty text becomes `<|endoftext|>`.

    Texts are data: a literal `<|endoftext|>` in a message is spelled out in ordinary tokens.
    """
    # Very long texts are truncated before tokenising: only these characters can matter.
    beginnings = [text[: LONGEST_TOKEN * max_length] for text in texts]
    encoded = tokenizer.encode_ordinary_batch(beginnings)
    return [torch.tensor(ids[:max_length] or [tokenizer.eot_token]) for ids in encoded]


def pad_messages(sequences: Sequence[Tensor], num_tokens: int, pad_id: int) -> list[Tensor]:
    """Token ids padded to `num_tokens`, as if the padding were part of the message.

    >>> pad_messages([torch.tensor([5, 6])], num_tokens=4, pad_id=0)
    [tensor([5, 6, 0, 0])]
    """
    return [F.pad(ids, (0, max(0, num_tokens - len(ids))), value=pad_id) for ids in sequences]


Cut = Literal["head", "tail", "both", "windows"]
NO_LIMIT = 2**31  # tokens: more than any text has


def cut_tokens(ids: Tensor, max_length: int, cut: Cut, marked: bool = False) -> list[Tensor]:
    """What is read of a text (T,): one chunk of at most `max_length` tokens, or several windows.

    `both` keeps a quarter from the head and the rest from the tail (Sun et al. 2019, "How to
    Fine-Tune BERT for Text Classification?", section 5.3.1). Windows overlap by half, and the last
    one ends with the text. Where the first and the last token mark the text's ends (`marked`),
    they are those of every chunk.

    >>> [chunk.tolist() for chunk in cut_tokens(torch.arange(9), 4, "both")]
    [[0, 6, 7, 8]]
    >>> [chunk.tolist() for chunk in cut_tokens(torch.arange(9), 4, "windows")]
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]
    >>> [chunk.tolist() for chunk in cut_tokens(torch.arange(9), 4, "head", marked=True)]
    [[0, 1, 2, 8]]
    """
    if marked:
        inner = cut_tokens(ids[1:-1], max_length - 2, cut)
        return [torch.cat([ids[:1], chunk, ids[-1:]]) for chunk in inner]
    last = len(ids) - max_length  # start of the last window
    if last <= 0:
        return [ids]
    if cut == "windows":
        starts = [*range(0, last, max(1, max_length // 2)), last]
        return [ids[start : start + max_length] for start in starts]
    num_head = {"head": max_length, "tail": 0, "both": max_length // 4}[cut]
    return [torch.cat([ids[:num_head], ids[last + num_head :]])]


class SpamDataset(Dataset):
    """Messages as token ids (T,), each with the number of its class."""

    def __init__(self, sequences: Sequence[Tensor], labels: Sequence[int] | None = None):
        labels = [IGNORED] * len(sequences) if labels is None else [int(n) for n in labels]
        if len(sequences) != len(labels):
            raise ValueError(f"{len(sequences)} sequences but {len(labels)} labels.")
        self.sequences = list(sequences)
        self.labels = labels
        self.lengths = [len(sequence) for sequence in sequences]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.sequences[index], self.labels[index]

    def collate(self, items: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """Some of the items as a batch."""
        return collate(items)


class ChunkDataset(SpamDataset):
    """Texts of which a chunk or several are read: K chunks, each with the label of its text."""

    def __init__(
        self,
        chunks_of_texts: Sequence[Sequence[Tensor]],
        labels: Sequence[int | list[int]] | None = None,
    ):
        """Takes the chunks of each of N texts, and the texts' labels: the number of one class, or 1
        or 0 for each."""
        counts = torch.tensor(list(map(len, chunks_of_texts)))  # (N,)
        self.document_ids = torch.arange(len(counts)).repeat_interleave(counts)  # (K,)
        self.text_labels = labels
        chunks = [chunk for chunks in chunks_of_texts for chunk in chunks]
        super().__init__(chunks)
        if labels is not None:
            self.labels = [labels[i] for i in self.document_ids.tolist()]

    def mean(self, values: Tensor) -> Tensor:
        """Each text's mean over its chunks: (K, C) -> (N, C)."""
        counts = self.document_ids.bincount()  # (N,)
        sums = values.new_zeros(len(counts), values.shape[1])
        return sums.index_add(0, self.document_ids, values) / counts.unsqueeze(1)


def collate(items: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """A batch: input_ids (B, T), attention_mask (B, T), labels (B,).

    Messages are padded on the right to the longest among them. The mask is True at real tokens.
    """
    sequences, labels = zip(*items, strict=True)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    input_ids = pad_sequence(sequences, batch_first=True)
    attention_mask = torch.arange(input_ids.shape[1]) < lengths.unsqueeze(1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": torch.tensor(labels),
    }


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """All messages' indices, the shortest first, in batches of at most `max_tokens` tokens.

    Padding counts as tokens too; a message longer than that is a batch of its own.

    >>> batches_by_length([5, 1, 2, 9], max_tokens=6)
    [[1, 2], [0], [3]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


BATCHES_PER_POOL = 16


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Random batches of messages of similar length, so that little padding is needed.

    The messages are shuffled, sorted by length within pools of a few batches, cut into batches,
    and the batches shuffled: random enough to train on, and seldom padded.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[list[int]] = []
    for pool in order.split(BATCHES_PER_POOL * batch_size):
        indices = sorted(pool.tolist(), key=lambda i: lengths[i])
        batches += [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def make_loader(
    dataset: SpamDataset,
    batch_size: int,
    shuffle: bool = False,
    group_by_length: bool = False,
    seed: int = 0,
) -> DataLoader:
    """Batches of a data set, in its order or (`shuffle`) in a random one that `seed` decides.

    With `group_by_length`, random batches hold messages of similar length.
    """
    generator = torch.Generator().manual_seed(seed)
    if shuffle and group_by_length:
        batches = length_grouped_batches(dataset.lengths, batch_size, generator)
        return DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate)
    return DataLoader(dataset, batch_size, shuffle, generator=generator, collate_fn=dataset.collate)
