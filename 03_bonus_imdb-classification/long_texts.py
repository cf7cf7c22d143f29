"""Texts longer than a model reads: what to keep of them, or how to read them chunk by chunk.

Shapes in comments: T tokens of a text, N texts, K chunks of all texts together.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from text_data import encode_messages

Cut = Literal["head", "tail", "both", "windows"]
WHOLE = 2**31  # tokens: more than any text has


def cut_tokens(ids: Tensor, max_length: int, cut: Cut) -> list[Tensor]:
    """What is read of a text (T,): one chunk of at most `max_length` tokens, or several windows.

    `both` keeps a quarter from the head and the rest from the tail (Sun et al. 2019, "How to
    Fine-Tune BERT for Text Classification?", section 5.3.1). Windows overlap by half, and the last
    one ends with the text.

    >>> [chunk.tolist() for chunk in cut_tokens(torch.arange(9), 4, "both")]
    [[0, 6, 7, 8]]
    >>> [chunk.tolist() for chunk in cut_tokens(torch.arange(9), 4, "windows")]
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]
    """
    last = len(ids) - max_length  # start of the last window
    if last <= 0:
        return [ids]
    if cut == "windows":
        starts = [*range(0, last, max(1, max_length // 2)), last]
        return [ids[start : start + max_length] for start in starts]
    num_head = {"head": max_length, "tail": 0, "both": max_length // 4}[cut]
    return [torch.cat([ids[:num_head], ids[last + num_head :]])]


class Chunks(NamedTuple):
    """What is read of several texts."""

    sequences: list[Tensor]  # K chunks, (T,) each
    document_ids: np.ndarray  # (K,) the text that a chunk is of

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Each text's mean over its chunks: (K,) -> (N,)."""
        return np.bincount(self.document_ids, values) / np.bincount(self.document_ids)


def encode_chunks(texts: Sequence[str], tokenizer, max_length: int, cut: Cut) -> Chunks:
    """Token ids of what is read of each text."""
    whole = encode_messages(list(texts), tokenizer, WHOLE)
    chunks = [(c, i) for i, ids in enumerate(whole) for c in cut_tokens(ids, max_length, cut)]
    return Chunks([chunk for chunk, _ in chunks], np.array([i for _, i in chunks]))
