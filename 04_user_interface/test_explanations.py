"""Occlusion on cases with a known answer, and the attention map of the model itself."""

import math
from dataclasses import replace

import pytest
import torch
from explanations import MAX_PARTS, attention, explain, log_odds, split_into_parts, text_read
from hypothesis import given
from hypothesis import strategies as st

from classifier_folder import classify_texts
from gpt_download import load_tokenizer
from text_data import SpamDataset, encode_messages
from training import TrainConfig, train_classifier_simple


@pytest.fixture(scope="module")
def prize_classifier(make_tiny, tokenizer):
    """A tiny model trained from scratch on messages whose class one word decides."""
    classifier = make_tiny(("ham", "spam"), max_length=96, emb_dim=32)
    others = ["the", "bus", "is", "late", "again", "see", "you", "at", "home", "now"]
    texts = [[others[(i * step + step) % 10] for step in (1, 3, 7, 9, 3)] for i in range(240)]
    for i, words in enumerate(texts):
        if i % 2:
            words[i // 2 % 5] = "prize"
    sequences = encode_messages(map(" ".join, texts), tokenizer, 96)
    dataset = SpamDataset(sequences, [i % 2 for i in range(240)])
    config = TrainConfig(learning_rate=3e-3, num_epochs=6, batch_size=16)
    train_classifier_simple(classifier, dataset, dataset, config)
    return classifier.eval()


def test_a_text_within_the_limit_is_read_whatever_its_tokenizer_drops():
    class Dropping:
        def encode_ordinary(self, text):
            return list(text.replace("\x04", "").encode())

    assert text_read(Dropping(), "a \x04 b", 9) == "a \x04 b"


def test_the_word_that_decides_is_found_with_its_sign(prize_classifier, tokenizer):
    found = explain(prize_classifier, tokenizer, "see you at prize home", 1)
    assert max(zip(found.changes, found.parts))[1] == " prize"
    assert found.probabilities_without[found.parts.index(" prize")] < 0.5
    others = [c for c, part in zip(found.changes, found.parts) if part != " prize"]
    assert found.changes[3] > 2 * max(map(abs, others))


@pytest.mark.parametrize("cut", ["head", "tail", "windows"])
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("causal", [True, False])
def test_probabilities_without_a_word_are_those_of_the_shorter_text(
    make_tiny, tokenizer, cut, pooling, causal
):
    classifier = make_tiny(("ham", "spam"), max_length=12, emb_dim=32)
    classifier.config = replace(classifier.config, pooling=pooling, cut=cut)
    classifier.decoder.cfg = replace(classifier.decoder.cfg, causal=causal)
    classifier.decoder.trf_blocks[0].att.causal = causal
    text = "see the prize you win at home now or late on a bus with mum to come"
    found = explain(classifier, tokenizer, text, 1)
    words = [part.strip() for part in found.parts]
    texts = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    expected = classify_texts(classifier, tokenizer, [text, *texts])[:, 1].double()
    assert found.probabilities_without == pytest.approx(expected[1:].tolist(), abs=1e-5)
    changes = expected[0].logit() - expected[1:].logit()
    assert found.changes == pytest.approx(changes.tolist(), abs=1e-4)


def test_log_odds_are_exact_where_a_probability_rounds_to_one():
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert log_odds(logits, 0).tolist() == pytest.approx([40 - math.log(2), -math.log(2)])


@given(st.text(max_size=300), st.integers(1, 10))
def test_the_parts_are_the_whole_text_and_not_too_many(text, max_parts):
    parts = split_into_parts(text, max_parts)
    assert "".join(parts) == text
    assert len(parts) <= max_parts


@given(st.text(max_size=600))
def test_what_is_read_is_the_beginning_of_the_text(text):
    tokenizer = load_tokenizer("gpt-mini")
    read = text_read(tokenizer, text, max_length=20)
    assert text.startswith(read)
    assert read or not text or len(tokenizer.encode_ordinary(text[0])) > 20


@pytest.mark.parametrize("text", ["a" * 5000, "word " * 5000, "好" * 5000, "👩‍👩‍👧" * 2000])
def test_a_long_text_is_explained_in_few_parts_and_its_rest_named(
    prize_classifier, tokenizer, text
):
    found = explain(prize_classifier, tokenizer, text, 1)
    assert 0 < len(found.parts) <= MAX_PARTS
    assert "".join(found.parts) + found.unread == text
    assert found.unread


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
def test_attention_is_that_of_the_model_and_its_decisive_row_is_the_one_pooled(
    prize_classifier, tokenizer, monkeypatch, pooling
):
    config = replace(prize_classifier.config, pooling=pooling)
    monkeypatch.setattr(prize_classifier, "config", config)
    text = "see you at £5"
    ids = tokenizer.encode_ordinary(text)
    expected = prize_classifier.decoder.attention_maps(torch.tensor([ids]))[0, 0, 1]
    seen = attention(prize_classifier, tokenizer, text, layer=1, head=2)
    assert torch.equal(seen.weights, expected)
    rows = {"last": expected[-1], "mean": expected.mean(dim=0), "first": expected[0]}
    assert torch.equal(seen.decisive, rows[pooling])
    assert len(seen.tokens) == len(ids)
    assert "␣you" in seen.tokens  # a space can be seen


def test_an_explanation_that_is_no_longer_wanted_is_left(prize_classifier, tokenizer):
    assert explain(prize_classifier, tokenizer, "see you at home", 1, lambda: False) is None


def test_words_stay_whole_and_texts_without_spaces_are_cut():
    assert split_into_parts("Donaudampfschifffahrtsgesellschaft ja")[1] == " ja"
    assert len(split_into_parts("今天天气很好我们去公园")) > 2
