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


def floor_operations(
    cfg: GPTConfig, lengths: Sequence[Sequence[int]], num_epochs: int, tail=tail_operations
) -> float:
    """Training the last block: frozen blocks once, then the tail in training and evaluations.

    `lengths` holds the tokens of each message of the three parts. Training and validation messages
    are evaluated after every epoch and all three parts at the end. A step of training costs three
    times a forward pass.
    """
    frozen = (cfg.num_layers - 1) * sum(block_operations(cfg, part) for part in lengths)
    tails = [tail(cfg, part) for part in lengths]
    evaluations = num_epochs * (tails[0] + tails[1]) + sum(tails)
    return frozen + 3 * num_epochs * tails[0] + evaluations


def all_layers_operations(
    cfg: GPTConfig, lengths: Sequence[Sequence[int]], num_epochs: int
) -> float:
    """Training all layers: nothing is computed once for all, but the last block is still lean."""
    passes = [
        (cfg.num_layers - 1) * block_operations(cfg, part) + lean_tail_operations(cfg, part)
        for part in lengths
    ]
    return 3 * num_epochs * passes[0] + num_epochs * (passes[0] + passes[1]) + sum(passes)
