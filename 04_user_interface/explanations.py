"""Why this answer? Words left out one at a time, and the attention between tokens.

Leaving a part of the input out and watching the answer is called occlusion (Zeiler and Fergus
2014 did it to pictures; Li, Monroe and Jurafsky 2016 to words). It asks the model itself and
nothing else, so it holds for any classifier; what it cannot see is two words that each suffice.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from features import FastClassifier
from text_classifier import POOLINGS, GPTClassifier, predict_logits
from text_data import LONGEST_TOKEN, ChunkDataset

MAX_PARTS = 48  # a longer message is cut into so many groups at most, to be answered in time
TEXTS_AT_ONCE = 16  # between which it is asked whether the explanation is still wanted
# Thai to Burmese, Khmer, Chinese and Japanese have no spaces between words: a few signs at a time.
NO_SPACES = "\u0e00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"\s*[{NO_SPACES}]{{1,4}}|\s*[^\s{NO_SPACES}]{{1,80}}|\s+$")


class Explanation(NamedTuple):
    """How much each part of a message speaks for a class."""

    parts: list[str]
    """The text that the model read, cut into words or groups of words."""
    changes: list[float]
    """Log-odds of the class that each part adds; negative where it speaks against."""
    probabilities_without: list[float]
    """Probability of the class for the message without each part."""
    unread: str
    """The rest of the text, which is beyond the model's maximum length."""


def text_read(tokenizer, text: str, max_length: int) -> str:
    """The beginning of a text that its first `max_length` tokens spell out."""
    beginning = text[: LONGEST_TOKEN * max_length]
    ids = tokenizer.encode_ordinary(beginning)
    if len(ids) <= max_length and beginning == text:
        return text  # with signs that the tokenizer does not know, and drops
    # A cut within a character leaves bytes that are none; they are dropped.
    return tokenizer.decode_bytes(ids[:max_length]).decode("utf-8", errors="ignore")


def split_into_parts(text: str, max_parts: int = MAX_PARTS) -> list[str]:
    """Words with the space before them, or groups of words where they are too many.

    >>> split_into_parts("Win a prize")
    ['Win', ' a', ' prize']
    >>> split_into_parts("Win a prize", max_parts=2)
    ['Win a', ' prize']
    """
    words = WORD.findall(text)
    size = max(1, math.ceil(len(words) / max_parts))
    return ["".join(words[i : i + size]) for i in range(0, len(words), size)]


def log_odds(logits: Tensor, label_index: int) -> Tensor:
    """Log of p / (1 - p) of one class: (N, C) -> (N,), exact even where p rounds to 1."""
    others = torch.cat([logits[:, :label_index], logits[:, label_index + 1 :]], dim=1)
    return logits[:, label_index] - others.logsumexp(dim=1)


def explain(
    classifier: GPTClassifier,
    tokenizer,
    text: str,
    label_index: int,
    wanted: Callable[[], bool] = lambda: True,
) -> Explanation | None:
    """What each part of a message adds to a class; None if that is no longer `wanted` midway."""
    config = classifier.config
    read = text_read(tokenizer, text, config.max_length) if config.cut == "head" else text
    parts = split_into_parts(read)
    rests = ["".join([*parts[:i], *parts[i + 1 :]]).lstrip() for i in range(len(parts))]
    texts, found = [read, *rests], []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        if not wanted():
            return None
        chunks = ChunkDataset(config.chunks(texts[start : start + TEXTS_AT_ONCE], tokenizer))
        logits = predict_logits(FastClassifier(classifier), chunks).double()
        found += log_odds(chunks.mean(logits.softmax(dim=1)).log(), label_index).tolist()
    with_all, *without = found
    changes = [with_all - rest for rest in without]
    probabilities = torch.sigmoid(torch.tensor(without)).tolist()
    return Explanation(parts, changes, probabilities, text[len(read) :])


class Attention(NamedTuple):
    """What one head of one layer looks at in a message of T tokens."""

    weights: Tensor
    """(T, T): row = token that looks, column = token looked at."""
    decisive: Tensor
    """(T,) from where the class is read: the rows, pooled as their logits are."""
    tokens: list[str]


def attention(classifier: GPTClassifier, tokenizer, text: str, layer: int, head: int) -> Attention:
    """The attention of one layer and head, both counted from 1."""
    ids = classifier.config.encode([text], tokenizer)[0]  # (T,)
    with torch.no_grad():
        maps = classifier.decoder.attention_maps(ids.unsqueeze(0).to(classifier.device))
    weights = maps[layer - 1, 0, head - 1].cpu()
    mask = torch.ones(1, len(ids), dtype=torch.bool)
    decisive = POOLINGS[classifier.config.pooling](weights.unsqueeze(0), mask)[0]
    names = [token_name(tokenizer, i) for i in ids.tolist()]
    return Attention(weights, decisive, names)


def token_name(tokenizer, token_id: int) -> str:
    """A token as text: spaces made visible, and the bytes of half a character spelled out."""
    text = tokenizer.decode_single_token_bytes(token_id).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace(" ", "␣")
