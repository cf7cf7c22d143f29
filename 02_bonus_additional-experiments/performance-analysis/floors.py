"""The operations that training cannot do without: what remains is memory, padding and overhead.

D is the length of a token's vector, H the number of heads, T the tokens of a message. A block's
matrices hold 12 D^2 weights: D^2 each for queries, keys, values and the output of attention, 8 D^2
for the feed-forward network. A weight costs 2 operations a token: one product, one sum.
"""

from collections.abc import Sequence

from previous_chapters import GPTConfig


def block_operations(cfg: GPTConfig, lengths: Sequence[int]) -> float:
    """Operations of one block on messages of the given lengths, every position computed.

    The scores and sums of attention take 4 D operations for each token that is looked at, T/2 of
    them on average: 2 D T for each token, or 2 D T^2 a message.
    """
    weights = cfg.emb_dim**2
    return 24 * weights * sum(lengths) + 2 * cfg.emb_dim * sum(n * n for n in lengths)


def tail_operations(cfg: GPTConfig, lengths: Sequence[int]) -> float:
    """Operations of the last block for one position a message, with all keys and values made."""
    weights = cfg.emb_dim**2
    return 4 * weights * sum(lengths) + 20 * weights * len(lengths)


def lean_tail_operations(cfg: GPTConfig, lengths: Sequence[int]) -> float:
    """The same without making keys and values: the two matrices act on the one query and on the
    one weighted sum (4 D^2 a message), and each head's scores and sums take 4 D a token."""
    weights = cfg.emb_dim**2
    return 4 * cfg.emb_dim * cfg.num_heads * sum(lengths) + 24 * weights * len(lengths)


def classifying_operations(
    cfg: GPTConfig, lengths: Sequence[int], num_blocks_done: int = 0
) -> float:
    """One pass of each message, after its first `num_blocks_done` blocks: the remaining blocks in
    full, but for the lean tail."""
    in_full = cfg.num_layers - 1 - num_blocks_done
    return in_full * block_operations(cfg, lengths) + lean_tail_operations(cfg, lengths)


def floor_operations(
    cfg: GPTConfig, lengths: Sequence[Sequence[int]], num_epochs: int, num_frozen: int
) -> float:
    """Training with the first `num_frozen` blocks frozen: they take one pass over the real tokens
    of all messages, and the rest takes the training and the evaluations.

    `lengths` holds the tokens of each message of the three parts. Training and validation messages
    are evaluated after every epoch and the test messages at the end. A step of training costs three
    times a forward pass: the backward pass makes gradients by the activations and by the weights.
    """
    frozen = num_frozen * sum(block_operations(cfg, part) for part in lengths)
    passes = [classifying_operations(cfg, part, num_frozen) for part in lengths]
    evaluations = num_epochs * (passes[0] + passes[1]) + passes[2]
    return frozen + 3 * num_epochs * passes[0] + evaluations
