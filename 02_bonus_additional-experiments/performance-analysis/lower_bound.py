"""The operations that training cannot do without, and the rate at which a machine does them.

A weight of a linear layer costs two operations a token: one product, one sum. A block of GPT-2
holds 12 D^2 of them, where D is the length of a token's vector: D^2 each for queries, keys, values
and the output of attention, 8 D^2 for the feed-forward network. T is the tokens of a message.
`lengths` are the T of several messages.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch.utils.benchmark import Timer

from gpt_download import build_decoder
from previous_chapters import TransformerBlock


@cache
def one_block(cfg) -> TransformerBlock:
    """A block of the given shape, without memory for its weights."""
    with torch.device("meta"):
        return build_decoder(replace(cfg, n_layers=1)).trf_blocks[0]


def block_weights(cfg) -> int:
    """Numbers in a block's matrices: 12 D^2 in GPT-2."""
    return sum(p.numel() for p in one_block(cfg).parameters() if p.dim() == 2)


def block_operations(cfg, lengths: Sequence[int]) -> float:
    """Operations of one block, every position computed.

    The scores and sums of attention take 4 D operations for each token that is looked at, T/2 of
    them on average: 2 D T for each token, or 2 D T^2 a message.
    """
    return 2 * block_weights(cfg) * sum(lengths) + 2 * cfg.emb_dim * sum(n * n for n in lengths)


def tail_operations(cfg, lengths: Sequence[int]) -> float:
    """Operations of the last block for one position a message, with all keys and values made."""
    att = one_block(cfg).att
    keys_and_values = att.W_key.weight.numel() + att.W_value.weight.numel()
    others = block_weights(cfg) - keys_and_values
    return 2 * keys_and_values * sum(lengths) + 2 * others * len(lengths)


def lean_tail_operations(cfg, lengths: Sequence[int]) -> float:
    """The same without making keys and values: the two matrices act on the one query and on the
    one weighted sum, and each head's scores and sums take 4 D a token."""
    return 4 * cfg.emb_dim * cfg.n_heads * sum(lengths) + 2 * block_weights(cfg) * len(lengths)


def classifying_operations(cfg, lengths: Sequence[int], num_blocks_done: int = 0) -> float:
    """One pass after the first `num_blocks_done` blocks: the remaining ones in full, but for the
    last. There, keys that are turned by their positions have to be made."""
    in_full = cfg.n_layers - 1 - num_blocks_done
    tail = tail_operations if one_block(cfg).att.uses_positions else lean_tail_operations
    return in_full * block_operations(cfg, lengths) + tail(cfg, lengths)


def training_operations(
    cfg, lengths: Sequence[Sequence[int]], num_epochs: int, num_frozen: int
) -> float:
    """Training with the first `num_frozen` blocks frozen, which take one pass over all messages;
    `lengths` are those of the training, validation and test messages.

    Training and validation messages are evaluated after every epoch, the test messages at the end.
    A step of training costs three times a forward pass: the backward pass makes gradients by the
    activations and by the weights.
    """
    frozen = num_frozen * sum(block_operations(cfg, part) for part in lengths)
    train, validation, test = (classifying_operations(cfg, part, num_frozen) for part in lengths)
    return frozen + num_epochs * (3 * train + train + validation) + test


def achieved_flops(cfg, device: torch.device, seconds: float = 2.0) -> float:
    """FLOP/s that the device achieves in the model's own largest matrix product."""
    matrices = (p for p in one_block(cfg).parameters() if p.dim() == 2)
    weight = torch.randn(max((p.shape for p in matrices), key=lambda s: s.numel()), device=device)
    x = torch.randn(2048, weight.shape[1], device=device)
    product = {"linear": F.linear, "x": x, "weight": weight}
    timer = Timer("linear(x, weight)", globals=product, num_threads=torch.get_num_threads())
    median = timer.blocked_autorange(min_run_time=seconds).median
    return 2 * len(x) * weight.numel() / median
