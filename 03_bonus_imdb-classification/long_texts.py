"""Texts longer than a model reads: what to keep of them, or how to read them chunk by chunk.

Shapes in comments: T tokens of a text, N texts, K chunks of all texts together.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from text_data import SpamDataset

Cut = Literal["head", "tail", "both", "windows"]


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


class ChunkDataset(SpamDataset):
    """What is read of several texts: K chunks, each with the label of the text that it is of."""

    def __init__(self, whole: Sequence[Tensor], labels: np.ndarray, *how):
        """Takes the token ids (T,) of N whole texts, their labels (N,), and how they are cut: the
        other arguments of `cut_tokens`."""
        chunks = [(chunk, i) for i, ids in enumerate(whole) for chunk in cut_tokens(ids, *how)]
        self.document_ids = np.array([i for _, i in chunks])  # (K,)
        super().__init__([chunk for chunk, _ in chunks], labels[self.document_ids])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Each text's mean over its chunks: (K,) -> (N,)."""
        return np.bincount(self.document_ids, values) / np.bincount(self.document_ids)
