"""Signals, without any label, that other texts arrive than a filter was trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from continued_pretraining import calc_next_token_loss
from evaluation import ngram_baseline
from previous_chapters import Decoder
from text_data import SpamDataset, encode_messages, make_loader


def stability_index(reference: np.ndarray, arriving: np.ndarray, num_bins: int = 10) -> float:
    """Population stability index of scores: bins that hold equal fractions of the reference, and
    the sum of (p - q) log(p / q) over them. Rules of thumb call 0.25 a large shift.

    >>> scores = np.linspace(0, 1, 1001)
    >>> shifted = (scores, scores**1.3, scores**3, np.zeros(5))
    >>> [round(stability_index(scores, arriving), 2) for arriving in shifted]
    [0.0, 0.06, 0.85, 1.07]
    """
    edges = np.quantile(reference, np.linspace(0, 1, num_bins + 1)[1:-1])
    fractions = []
    for scores in (reference, arriving):
        counts = np.bincount(np.searchsorted(edges, scores), minlength=num_bins)
        fractions.append((counts + 0.5) / (len(scores) + 0.5 * num_bins))  # no bin is empty
    p, q = fractions
    return float(np.sum((q - p) * np.log(q / p)))


def two_sample_test(reference: Sequence[str], arriving: Sequence[str]) -> tuple[float, float]:
    """How well character n-grams tell the two apart on texts held out, and the chance (p) of
    doing so well if they were alike (Lopez-Paz and Oquab 2017, "Revisiting Classifier
    Two-Sample Tests"); both samples must be of one size."""
    texts = [*reference, *arriving]
    origin = np.repeat([0, 1], [len(reference), len(arriving)])
    # Shuffled: a stream is made part by part, and a part in one fold could not be learned.
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guessed = cross_val_predict(ngram_baseline(), texts, origin, cv=folds)
    hits = int((guessed == origin).sum())
    p_value = binomtest(hits, len(origin), alternative="greater").pvalue
    return hits / len(origin), float(p_value)


@torch.no_grad()
def nats_per_token(decoder: Decoder, tokenizer, texts: Sequence[str], max_tokens: int) -> float:
    """How much the texts surprise the language model: mean next-token loss."""
    sequences = [ids for ids in encode_messages(texts, tokenizer, max_tokens) if len(ids) > 1]
    total = 0.0
    for batch in make_loader(SpamDataset(sequences), batch_size=32):
        num_predicted = batch["attention_mask"][:, 1:].sum().item()
        total += calc_next_token_loss(decoder, batch).item() * num_predicted
    return total / sum(len(ids) - 1 for ids in sequences)


def tokens_per_word(tokenizer, texts: Sequence[str]) -> float:
    """How finely the tokenizer must cut the texts."""
    encoded = tokenizer.encode_ordinary_batch(list(texts))
    return sum(map(len, encoded)) / sum(len(text.split()) for text in texts)
