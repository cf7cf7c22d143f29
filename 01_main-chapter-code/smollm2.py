"""SmolLM2, a decoder of the Llama kind. Names published first; filled in next."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from previous_chapters import Decoder


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a decoder of the Llama kind."""

    vocab_size: int = 49152  # tokens, <|endoftext|> included
    context_length: int = 8192  # longest sequence, in tokens
    emb_dim: int = 576  # length of the vector that represents a token
    n_heads: int = 9  # attention heads in each block
    n_kv_heads: int = 3  # heads of keys and values, each shared by n_heads / n_kv_heads queries
    n_layers: int = 30  # transformer blocks
    hidden_dim: int = 1536  # width of the feed-forward network
    rope_base: float = 100_000.0  # of the rotary positions' wavelengths
    norm_eps: float = 1e-5  # keeps the norms' division safe
    drop_rate: float = 0.0  # fraction of activations zeroed in training
    causal: bool = True  # whether a token sees only itself and those before it


SMOLLM2_CONFIG = LlamaConfig()


class LlamaModel(Decoder):
    def __init__(self, cfg: LlamaConfig):
        raise NotImplementedError


def load_gguf(path: Path) -> dict[str, Tensor]:
    raise NotImplementedError


def load_smollm2(path: Path) -> LlamaModel:
    raise NotImplementedError


def smollm2_tokenizer(path: Path):
    raise NotImplementedError
