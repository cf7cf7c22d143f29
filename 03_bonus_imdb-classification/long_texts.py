"""Texts longer than a model reads: what to keep of them, or how to read them piece by piece.

Shapes in comments: T tokens of a text, N texts, W windows of all texts together.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from text_data import encode_messages

Cut = Literal["head", "tail", "both", "windows"]
TEXTS_AT_ONCE = 1000  # as many are held uncut
WHOLE = 2**31  # tokens: more than any text has


def cut_tokens(ids: Tensor, max_length: int, cut: Cut) -> list[Tensor]:
    """What is read of a text (T,): one piece of at most `max_length` tokens, or several windows.

    `both` keeps a quarter from the head and the rest from the tail (Sun et al. 2019, "How to
    Fine-Tune BERT for Text Classification?", section 5.3.1). Windows overlap by half, and the last
    one ends with the text.

    >>> [piece.tolist() for piece in cut_tokens(torch.arange(9), 4, "both")]
    [[0, 6, 7, 8]]
    >>> [piece.tolist() for piece in cut_tokens(torch.arange(9), 4, "windows")]
    [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]
    """
    num_tokens = len(ids)
    if num_tokens <= max_length:
        return [ids]
    if cut == "head":
        return [ids[:max_length]]
    if cut == "tail":
        return [ids[-max_length:]]
    if cut == "both":
        num_head = max_length // 4
        return [torch.cat([ids[:num_head], ids[num_tokens - (max_length - num_head) :]])]
    last = num_tokens - max_length
    starts = [*range(0, last, max(1, max_length // 2)), last]
    return [ids[start : start + max_length] for start in starts]


class Pieces(NamedTuple):
    """What is read of several texts."""

    sequences: list[Tensor]  # W pieces, (T,) each
    owners: np.ndarray  # (W,) which text a piece is of

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Each text's mean over its pieces: (W,) -> (N,)."""
        return np.bincount(self.owners, values) / np.bincount(self.owners)


def encode_pieces(
    texts: Sequence[str], tokenizer, max_length: int, cut: Cut, progress: bool = False
) -> Pieces:
    """Token ids of what is read of each text; few whole texts are in memory at a time."""
    sequences, owners = [], []
    bar = tqdm(total=len(texts), desc="tokens", unit="text", disable=not progress)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = list(texts[start : start + TEXTS_AT_ONCE])
        for i, ids in enumerate(encode_messages(chunk, tokenizer, WHOLE), start):
            # Copies: a view would keep the whole text in memory.
            pieces = [piece.clone() for piece in cut_tokens(ids, max_length, cut)]
            sequences += pieces
            owners += [i] * len(pieces)
        bar.update(len(chunk))
    bar.close()
    return Pieces(sequences, np.array(owners))
