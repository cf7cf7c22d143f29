"""The same numbers with less work: ways around computing what nobody reads.

`KeyValueCache` keeps what generating has computed already; `block_at_positions` computes a block's
output at one position of each sequence. The plain ways stand in `previous_chapters.py`, and tests
show that the results are equal. `Uninitialised` is for models whose weights are in a file.

Shapes: B sequences, T tokens each, D embedding dimensions, H heads.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:  # previous_chapters.py imports this module
    from previous_chapters import MultiHeadAttention, TransformerBlock


class KeyValueCache:
    """The keys and values that one block has made so far, so that no token's are made twice.

    For generating text: there, each step adds one token, and those before it never change.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of T new tokens, (B, H, T, D/H) each; returns those of all tokens."""
        if self.keys is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


def select_positions(x: Tensor, positions: Tensor) -> Tensor:
    """One position of each sequence: (B, T, D) and (B,) -> (B, 1, D)."""
    return x[torch.arange(len(x), device=x.device), positions].unsqueeze(1)


def block_at_positions(
    block: "TransformerBlock", x: Tensor, positions: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """`block(x, attention_mask)` at one position of each sequence: (B, T, D), (B,) -> (B, 1, D).

    That position still looks at the others, but the query, the output projection and the
    feed-forward network are computed for it alone.
    """
    attended = _attention_at(block.att, block.norm1(x), positions, attention_mask)
    return block.add_to_stream(select_positions(x, positions), attended)


def _attention_at(
    attention: "MultiHeadAttention", x: Tensor, positions: Tensor, attention_mask: Tensor | None
) -> Tensor:
    num_tokens = x.shape[1]
    mask = attention.mask(positions.view(-1, 1, 1), num_tokens, attention_mask)  # (B, 1, 1, T)
    queries = attention.queries(select_positions(x, positions), positions.unsqueeze(1))
    layers = (attention.W_key, attention.W_value)
    if not attention.uses_positions and all(_is_plain(layer) for layer in layers):
        context = _folded_attention(attention, queries, x, mask)
    else:
        all_positions = torch.arange(num_tokens, device=x.device)
        keys, values = attention.keys(x, all_positions), attention.values(x)
        context = attention.attend(queries, keys, values, mask)  # (B, H, 1, D/H)
    return attention.merge_heads(context)  # (B, 1, D)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its weight and bias and no more: neither adapted nor quantised."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


def _folded_attention(
    attention: "MultiHeadAttention", queries: Tensor, x: Tensor, mask: Tensor
) -> Tensor:
    """Attention of one query a sequence, without making a key and a value for every token.

    With keys k = K x + b, a score q.k equals (q K).x + q.b: the matrix moves over to the query,
    of which there is one, away from the T tokens. Likewise a weighted sum of values V x + c is
    V (weighted sum of x) + c times the sum of the weights. Two products with (D, D) matrices a
    token become two with (H, D).

    Takes queries (B, H, 1, D/H), x (B, T, D), mask (B, 1, 1, T); gives (B, H, 1, D/H).
    """
    q = queries.squeeze(2)  # (B, H, D/H)
    by_head = (attention.num_heads, attention.head_dim)
    key_weight = attention.W_key.weight.unflatten(0, by_head)  # (H, D/H, D)
    value_weight = attention.W_value.weight.unflatten(0, by_head)

    scores = torch.einsum("bhk,hkd->bhd", q, key_weight) @ x.transpose(1, 2)  # (B, H, T)
    if attention.W_key.bias is not None:
        scores = scores + (q * attention.W_key.bias.unflatten(0, by_head)).sum(-1, keepdim=True)
    scores = (scores / math.sqrt(attention.head_dim)).masked_fill(~mask.squeeze(2), -torch.inf)
    weights = attention.dropout(torch.softmax(scores, dim=-1))
    context = torch.einsum("bhd,hkd->bhk", weights @ x, value_weight)  # (B, H, D/H)
    if attention.W_value.bias is not None:
        bias = attention.W_value.bias.unflatten(0, by_head)
        context = context + weights.sum(dim=-1, keepdim=True) * bias
    return context.unsqueeze(2)


class Uninitialised(TorchFunctionMode):
    """`with torch.device("meta"), Uninitialised():` makes a model of shapes, without memory.

    On the device alone, random weights would still be drawn, which nobody needs, and PyTorch's
    compiler imported to do so, which takes longer than all else that opening a model does.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) != "torch.nn.init":
            return function(*args, **kwargs or {})
