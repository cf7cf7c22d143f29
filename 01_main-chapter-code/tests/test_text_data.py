"""The messages: reading all of them, splits without leaks, augmentation, batches."""

import random
import string
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt_download import load_mini_tokenizer
from text_data import (
    LOOK_ALIKES,
    ChunkDataset,
    SpamDataset,
    augment_messages,
    balance_classes,
    batches_by_length,
    clean_messages,
    cut_tokens,
    drop_words,
    encode_messages,
    make_loader,
    published_splits,
    split_messages,
    swap_words,
    write_look_alikes,
)


def made_up(counts: dict[str, int]) -> pd.DataFrame:
    rows = [(label, f"{label} number {i}") for label, count in counts.items() for i in range(count)]
    return pd.DataFrame(rows, columns=["label", "text"])


def test_all_messages_are_read_unaltered(sms):
    assert sms["label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    assert sms["text"].str.count('"').sum() > 100  # quotes are kept
    assert not sms["text"].str.contains("\n|\t").any()  # no row swallowed its neighbour


def test_cleaning_drops_repeated_and_contradictory_texts(sms):
    assert len(clean_messages(sms)) == 5574 - 403
    messages = pd.DataFrame(
        [("ham", "a"), ("spam", "b"), ("ham", "a"), ("ham", "c"), ("spam", "c")],
        columns=["label", "text"],
    )
    assert clean_messages(messages)["text"].tolist() == ["a", "b"]


COUNTS = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1, max_size=3),
    st.integers(3, 60),
    min_size=2,
    max_size=5,
)


@given(COUNTS, st.integers(0, 2**31))
def test_splits_are_disjoint_exhaustive_and_stratified(counts, seed):
    messages = made_up(counts)
    splits, again, other = (split_messages(messages, s) for s in (seed, seed, seed + 1))
    texts = [text for part in splits for text in part["text"]]
    assert Counter(texts) == Counter(messages["text"])
    for label, count in counts.items():
        for part, fraction in zip(splits, (0.7, 0.1, 0.2), strict=True):
            assert abs((part["label"] == label).sum() - fraction * count) < 1.2
    assert all(a.equals(b) for a, b in zip(splits, again, strict=True))
    if len(messages) > 60:
        assert set(splits.test["text"]) != set(other.test["text"])


@given(COUNTS)
def test_undersampling_keeps_as_many_of_every_class_as_the_rarest_has(counts):
    balanced = balance_classes(made_up(counts), seed=0)
    assert balanced["label"].value_counts().to_dict() == dict.fromkeys(counts, min(counts.values()))
    assert balanced["text"].is_unique


def test_published_split_is_the_known_one_and_leaks(sms):
    splits = published_splits()
    assert [len(part) for part in splits] == [1045, 149, 300]
    leaked = splits.test[splits.test["text"].isin(splits.train["text"])]
    assert leaked["label"].value_counts().to_dict() == {"spam": 33, "ham": 4}


texts = st.text(string.ascii_letters + " !", min_size=1).filter(str.strip)


@given(texts, st.integers())
def test_augmentation_alters_only_what_it_says(text, seed):
    words = text.split()
    dropped = drop_words(text, random.Random(seed), fraction=0.5).split()
    assert dropped
    assert not Counter(dropped) - Counter(words)
    assert Counter(swap_words(text, random.Random(seed), fraction=0.5).split()) == Counter(words)
    changed = write_look_alikes(text, random.Random(seed), fraction=0.5)
    assert len(changed) == len(text)
    for before, after in zip(text, changed, strict=True):
        assert before == after or after in LOOK_ALIKES[before.lower()]


def test_about_the_given_fraction_is_altered():
    rng, text = random.Random(0), " ".join(["word"] * 10_000)
    assert len(drop_words(text, rng, 0.2).split()) == pytest.approx(8000, rel=0.05)
    assert write_look_alikes("e" * 10_000, rng, 0.2).count("3") == pytest.approx(2000, rel=0.1)
    moved = swap_words(" ".join(map(str, range(1000))), rng).split()
    assert 100 < sum(word != str(i) for i, word in enumerate(moved)) < 300


def test_augmented_messages_keep_originals_and_labels():
    texts = ["win the prize now, it is free and safe, so call us today", "see you at the station"]
    messages = pd.DataFrame({"label": ["spam", "ham"], "text": texts})
    augmented, again = (augment_messages(messages, copies=3, seed=0) for _ in range(2))
    assert augmented[:2].equals(messages)
    assert augmented["label"].tolist() == ["spam", "ham"] * 4
    assert augmented.equals(again)
    assert augmented["text"].nunique() > 2


def test_empty_and_written_out_special_texts_are_ordinary_ones():
    tokenizer = load_mini_tokenizer()
    empty, marked = encode_messages(["", "<|endoftext|>"], tokenizer, max_length=20)
    assert empty.tolist() == [tokenizer.eot_token]
    assert tokenizer.eot_token not in marked  # spelled out, not obeyed
    assert tokenizer.decode(marked.tolist()) == "<|endoftext|>"


@pytest.mark.parametrize("part", ["see you ", "x", "0", "\u00e9 ", "\U0001f600"])
@pytest.mark.parametrize("max_length", [1, 2, 100])
def test_what_is_read_of_a_long_text_is_its_first_tokens(part, max_length):
    tokenizer, text = load_mini_tokenizer(), part * 20_000
    [ids] = encode_messages([text], tokenizer, max_length)
    assert ids.tolist() == tokenizer.encode_ordinary(text)[:max_length]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 9))
def test_batches_hold_every_message_once_padded_on_the_right_to_their_longest(lengths, batch_size):
    sequences = [torch.full((length,), i + 1) for i, length in enumerate(lengths)]
    dataset = SpamDataset(sequences, [length % 3 for length in lengths])
    for options in ({}, {"shuffle": True}, {"shuffle": True, "group_by_length": True}):
        loader = make_loader(dataset, batch_size, **options)
        assert len(loader) == -(-len(lengths) // batch_size)
        seen = []
        for batch in loader:
            assert batch["attention_mask"].any(dim=0).all()  # no column of padding only
            for row, mask, label in zip(*batch.values(), strict=True):
                message = row[0].item() - 1
                seen.append(message)
                expected = [message + 1] * lengths[message]
                assert row[mask].tolist() == row[: lengths[message]].tolist() == expected
                assert label == lengths[message] % 3
        assert sorted(seen) == list(range(len(lengths)))


def test_grouping_by_length_spares_padding_and_stays_random():
    lengths = np.random.default_rng(0).geometric(1 / 30, size=640)
    dataset = SpamDataset([torch.ones(n, dtype=torch.long) for n in lengths])

    def masks(**options) -> list[torch.Tensor]:
        loader = make_loader(dataset, 8, shuffle=True, **options)
        return [batch["attention_mask"] for batch in loader]

    def order(seed: int) -> list[list[int]]:
        return [mask.sum(dim=1).tolist() for mask in masks(group_by_length=True, seed=seed)]

    assert sum(mask.numel() for mask in masks(group_by_length=True)) < 1.25 * lengths.sum()
    assert sum(mask.numel() for mask in masks()) > 1.8 * lengths.sum()
    assert order(1) == order(1)
    assert order(1) != order(2)


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 100))
def test_batches_by_length_hold_every_message_once_within_the_limit(lengths, max_tokens):
    batches = batches_by_length(lengths, max_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == sorted(lengths)


@pytest.mark.parametrize("cut", ["head", "tail", "both", "windows"])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 12, 13, 40])
def test_chunks_keep_to_the_length_and_windows_miss_nothing(cut, num_tokens):
    ids = torch.arange(num_tokens)
    chunks = cut_tokens(ids, 8, cut)
    assert all(0 < len(chunk) <= 8 for chunk in chunks)
    if num_tokens <= 8:
        assert len(chunks) == 1
        assert torch.equal(chunks[0], ids)
    elif cut == "windows":
        assert set(torch.cat(chunks).tolist()) == set(range(num_tokens))
        assert chunks[-1][-1] == num_tokens - 1
    else:
        first, last = {"head": (0, 7), "tail": (num_tokens - 8, -1), "both": (0, -1)}[cut]
        assert len(chunks[0]) == 8
        assert chunks[0][0] == first
        assert chunks[0][-1] == ids[last]


def test_each_text_gets_the_mean_of_its_chunks():
    texts = [cut_tokens(torch.arange(n), 8, "windows") for n in (3, 40, 8)]
    data = ChunkDataset(texts, [0, 1, 0])
    assert data.labels == [0] + [1] * (len(data) - 2) + [0]
    values = torch.stack([data.document_ids, torch.arange(len(data))], dim=1).float()  # (K, 2)
    assert data.mean(values).tolist() == [[0, 0], [1, (len(data) - 1) / 2], [2, len(data) - 1]]
