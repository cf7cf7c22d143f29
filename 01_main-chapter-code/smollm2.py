"""SmolLM2-135M (Ben Allal et al. 2025), a decoder of the Llama kind (Touvron et al. 2023): the
model from scratch, its weights out of a GGUF file, and its tokenizer out of the same file.

It differs from GPT-2 in its parts, not in its plan: RMSNorm instead of LayerNorm, rotary instead
of learned positions, keys and values shared by groups of heads, a gated feed-forward network, and
no biases.

Shapes in comments: B sequences, T tokens each, D embedding dimensions, H heads.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import tiktoken
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_paths import Uninitialised
from previous_chapters import Decoder, MultiHeadAttention, TransformerBlock


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a decoder of the Llama kind; the defaults are SmolLM2-135M's."""

    vocab_size: int = 49152  # tokens, special ones included
    context_length: int = 8192  # longest sequence, in tokens
    emb_dim: int = 576  # length of the vector that represents a token
    n_heads: int = 9  # attention heads in each block
    n_kv_heads: int = 3  # heads of keys and values, each shared by n_heads / n_kv_heads queries
    n_layers: int = 30  # transformer blocks
    hidden_dim: int = 1536  # width of the feed-forward network
    rope_base: float = 100_000.0  # sets the slowest rotation: 2 pi rope_base tokens for a turn
    norm_eps: float = 1e-5  # keeps the norms' division safe
    drop_rate: float = 0.0  # fraction of activations zeroed in training
    causal: bool = True  # whether a token sees only itself and those before it


SMOLLM2_CONFIG = LlamaConfig()


# --- The model -----------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """Root mean square 1 for every token's vector, then a learned scale (Zhang, Sennrich 2019,
    "Root Mean Square Layer Normalization"): x / sqrt(mean(x^2) + eps) * scale."""

    def __init__(self, emb_dim: int, eps: float):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, self.eps)


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary positions (Su et al. 2021, "RoFormer"): (B, H, T, K) -> (B, H, T, K).

    Numbers k and k + K/2 of a vector are a point in a plane, which is turned by
    position / base^(2k/K): the product of a query and a key then depends on how far apart they
    are, not on where. `positions` are (T,), or (B, T) where sequences differ.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-torch.arange(half, device=x.device) / half)  # (K/2,)
    angles = (positions.unsqueeze(-1) * frequencies).unsqueeze(-3)  # (1 or B, 1, T, K/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.type_as(x)


class GroupedQueryAttention(MultiHeadAttention):
    """Attention in which several heads share their keys and values (Ainslie et al. 2023, "GQA"),
    with rotary positions."""

    uses_positions = True

    def __init__(self, cfg: LlamaConfig):
        dim = cfg.emb_dim
        super().__init__(
            dim, dim, cfg.context_length, cfg.drop_rate, cfg.n_heads, False, cfg.causal
        )
        self.W_key = nn.Linear(dim, cfg.n_kv_heads * self.head_dim, bias=False)
        self.W_value = nn.Linear(dim, cfg.n_kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.rope_base = cfg.rope_base
        self.group_size = cfg.n_heads // cfg.n_kv_heads

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotate(super().queries(x, positions), positions, self.rope_base)

    def keys(self, x: Tensor, positions: Tensor) -> Tensor:
        return rotate(super().keys(x, positions), positions, self.rope_base)

    def for_each_query(self, heads: Tensor) -> Tensor:
        return heads.repeat_interleave(self.group_size, dim=1)  # (B, H_kv, T, K) -> (B, H, T, K)


class SwiGLU(nn.Module):
    """A feed-forward network whose hidden layer is multiplied by a gate (Shazeer 2020, "GLU
    Variants Improve Transformer")."""

    def __init__(self, cfg: LlamaConfig):
        super().__init__()
        self.gate = nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=False)
        self.up = nn.Linear(cfg.emb_dim, cfg.hidden_dim, bias=False)
        self.down = nn.Linear(cfg.hidden_dim, cfg.emb_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(TransformerBlock):
    """A transformer block with the parts above."""

    def __init__(self, cfg: LlamaConfig):
        nn.Module.__init__(self)  # instead of GPT-2's parts
        self.att = GroupedQueryAttention(cfg)
        self.ff = SwiGLU(cfg)
        self.norm1 = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.norm2 = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.drop_resid = nn.Dropout(cfg.drop_rate)


class LlamaModel(Decoder):
    """A decoder of the Llama kind, its head tied to the token embedding."""

    def __init__(self, cfg: LlamaConfig):
        super().__init__(cfg)
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.trf_blocks = nn.ModuleList(LlamaBlock(cfg) for _ in range(cfg.n_layers))
        self.final_norm = RMSNorm(cfg.emb_dim, cfg.norm_eps)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        self.out_head.weight = self.tok_emb.weight
        self.init_weights()


# --- Its weights, out of a GGUF file -------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # it takes seconds to read a vocabulary
def read_gguf(path: Path) -> tuple[list[gguf.ReaderTensor], dict[str, Any]]:
    """The tensors of a GGUF file, and what it says about the model and its vocabulary."""
    reader = gguf.GGUFReader(path)
    return reader.tensors, {name: field.contents() for name, field in reader.fields.items()}


GGUF_NAMES = {
    "attn_norm.weight": "norm1.scale",
    "attn_q.weight": "att.W_query.weight",
    "attn_k.weight": "att.W_key.weight",
    "attn_v.weight": "att.W_value.weight",
    "attn_output.weight": "att.out_proj.weight",
    "ffn_norm.weight": "norm2.scale",
    "ffn_gate.weight": "ff.gate.weight",
    "ffn_up.weight": "ff.up.weight",
    "ffn_down.weight": "ff.down.weight",
}


def load_smollm2(path: Path) -> LlamaModel:
    """SmolLM2-135M from its GGUF file, in evaluation mode."""
    tensors = {  # quantised ones as the float32 numbers they stand for
        tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in read_gguf(path)[0]
    }
    embedding = tensors.pop("token_embd.weight")
    state = {"tok_emb.weight": embedding, "out_head.weight": embedding}
    state["final_norm.scale"] = tensors.pop("output_norm.weight")
    for name, tensor in tensors.items():
        _blk, i, name = name.split(".", 2)
        if name in ("attn_q.weight", "attn_k.weight"):
            tensor = _halves_apart(tensor, SMOLLM2_CONFIG.emb_dim // SMOLLM2_CONFIG.n_heads)
        state[f"trf_blocks.{i}.{GGUF_NAMES[name]}"] = tensor
    with torch.device("meta"), Uninitialised():  # the file's tensors are taken over
        model = LlamaModel(SMOLLM2_CONFIG)
    model.load_state_dict(state, assign=True)
    model.out_head.weight = model.tok_emb.weight
    return model.eval()


def _halves_apart(weight: Tensor, head_dim: int) -> Tensor:
    """The rows of a query or key matrix in the order that `rotate` wants.

    A GGUF file has the two numbers that are turned together side by side (0, K/2, 1, K/2 + 1 ...).
    """
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


# --- Its tokenizer, out of the same file ---------------------------------------------------------

# GPT-2's way to cut a text before byte pairs are merged (Radford et al. 2019), but digits stand
# alone. The vocabulary lacks a few control characters (and eight planes that Unicode leaves empty):
# they match nothing, and what matches nothing is left out.
_NO_TOKEN = r"\x04\x06\x13\x14\x16\x1d\x{40000}-\x{bffff}"
SPLIT_PATTERN = (
    r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}" + _NO_TOKEN + r"]++"
    r"|\s++$|\s++(?=\p{N})|\s+(?!\S)|\s"
)


def smollm2_tokenizer(path: Path) -> tiktoken.Encoding:
    """SmolLM2's byte-level BPE tokenizer, from its GGUF file.

    The vocabulary is in the order of its merges, so that a token's number is its rank.
    """
    _, metadata = read_gguf(path)
    tokens = metadata["tokenizer.ggml.tokens"]
    num_special = metadata["tokenizer.ggml.token_type"].count(3)  # they come first
    bytes_of = bytes_of_characters()
    return tiktoken.Encoding(
        "smollm2",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={
            bytes(bytes_of[character] for character in token): rank
            for rank, token in enumerate(tokens)
            if rank >= num_special
        },
        special_tokens={token: i for i, token in enumerate(tokens[:num_special])},
    )


def bytes_of_characters() -> dict[str, int]:
    """The printable characters as which GPT-2's kind of vocabulary writes the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
