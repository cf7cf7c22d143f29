"""Chapters 2 to 5 in one file: the GPT model, text generation, tokens, and loading weights.

The architecture is that of GPT-2 (Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners"): a stack of pre-norm transformer blocks with learned positions and an
output head that shares its weights with the token embedding.

Shapes in comments: B sequences, T tokens each, D embedding dimensions, H heads, V vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast_paths import KeyValueCache, select_positions  # noqa: F401
from gpt2_weights import check_state_dict, gpt2_state_dict, load_weights_into_gpt  # noqa: F401

END_OF_TEXT = "<|endoftext|>"

Mask = Tensor | None  # an attention mask (B, T): True at real tokens
Cache = KeyValueCache | None
Caches = list[KeyValueCache] | None  # one for each block


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT model. Raises ``ValueError`` if the heads do not divide the embedding."""

    vocab_size: int = 50257  # tokens, <|endoftext|> included
    context_length: int = 1024  # longest sequence, in tokens
    emb_dim: int = 768  # length of the vector that represents a token
    n_heads: int = 12  # attention heads in each block
    n_layers: int = 12  # transformer blocks
    drop_rate: float = 0.0  # fraction of activations zeroed in training
    qkv_bias: bool = True  # whether queries, keys and values have biases, as GPT-2's have
    causal: bool = True  # whether a token sees only itself and those before it
    tied_head: bool = True  # whether the LM head is the token embedding's matrix, as GPT-2's is

    def __post_init__(self) -> None:
        if self.emb_dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} must divide emb_dim={self.emb_dim}.")


# --- Chapter 3: attention ------------------------------------------------------------------------


def causal_mask(query_positions: Tensor, num_keys: int) -> Tensor:
    """True where a query may look: at keys up to its own position, never at later ones.

    >>> causal_mask(torch.arange(3), num_keys=3).int()
    tensor([[1, 0, 0],
            [1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    key_positions = torch.arange(num_keys, device=query_positions.device)
    return key_positions <= query_positions.unsqueeze(-1)  # (..., T_keys)


def attention_by_hand(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention step by step (Vaswani et al. 2017, section 3.2.1).

    Takes (B, H, T, D/H) each and a mask that is True where looking is allowed; returns the
    context vectors (B, H, T, D/H) and the attention weights (B, H, T, T_keys).
    """
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])
    scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1)  # each row sums to 1
    return weights @ values, weights


class MultiHeadAttention(nn.Module):
    """Self-attention with H heads: each token gathers from itself and those before it, or from all
    if not `causal`. Masks are made as needed, so that nothing has the size of `context_length`."""

    uses_positions = False  # GPT-2 adds them to the embeddings; a Llama turns queries and keys

    def __init__(
        self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False, causal=True
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.causal = causal
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attention_mask: Mask = None, cache: Cache = None) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Padding stands on the right, where causal attention never looks: only the other kind needs
        an `attention_mask`. With a `cache`, the tokens follow those that it holds and are added.
        """
        num_earlier = cache.num_tokens if cache is not None else 0
        positions = torch.arange(num_earlier, num_earlier + x.shape[1], device=x.device)
        queries = self.queries(x, positions)  # (B, H, T, D/H)
        keys, values = self.keys(x, positions), self.values(x)
        if cache is not None:
            keys, values = cache.extend(keys, values)  # (B, H, T_keys, D/H)
        in_kernel = self.causal and num_earlier == 0  # the kernel makes the (T, T) mask itself
        mask = None if in_kernel else self.mask(positions, keys.shape[2], attention_mask)
        return self.merge_heads(self.attend(queries, keys, values, mask))

    def by_hand(self, x: Tensor, attention_mask: Mask = None) -> tuple[Tensor, Tensor]:
        """The same result step by step, without dropout, and the attention weights (B, H, T, T);
        `forward` uses PyTorch's fused kernel."""
        positions = torch.arange(x.shape[1], device=x.device)
        queries, keys = self.queries(x, positions), self.keys(x, positions)
        mask = self.mask(positions, x.shape[1], attention_mask)
        keys, values = self.for_each_query(keys), self.for_each_query(self.values(x))
        context, weights = attention_by_hand(queries, keys, values, mask)
        return self.merge_heads(context), weights

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D/H). GPT-2's do not depend on the `positions`."""
        return self.split_heads(self.W_query(x))

    def keys(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.split_heads(self.W_key(x))

    def values(self, x: Tensor) -> Tensor:
        return self.split_heads(self.W_value(x))

    def for_each_query(self, heads: Tensor) -> Tensor:
        """Keys or values, one head for each head of queries: GPT-2 has as many."""
        return heads

    def mask(self, positions: Tensor, num_keys: int, attention_mask: Mask) -> Tensor:
        """True where a query may look, in a shape that broadcasts to (B, H, T, T_keys)."""
        if self.causal:
            return causal_mask(positions, num_keys)
        if attention_mask is None:
            return torch.ones(1, 1, 1, num_keys, dtype=torch.bool, device=positions.device)
        return attention_mask[:, None, None, :]

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Context vectors (B, H, T, D/H); without a mask, no token looks at a later one."""
        dropout = self.dropout.p if self.training else 0.0
        keys, values = self.for_each_query(keys), self.for_each_query(values)
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout, mask is None)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T, D/H)

    def merge_heads(self, context: Tensor) -> Tensor:
        return self.out_proj(context.transpose(1, 2).flatten(-2))  # (B, T, D)


# --- Chapter 4: the model ------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 for every token's vector, then a learned scale and shift (Ba, Kiros,
    Hinton 2016)."""

    eps = 1e-5  # keeps the division safe where the variance is 0

    def __init__(self, emb_dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """The smooth activation of GPT-2, in its tanh approximation (Hendrycks, Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers around a GELU, applied to every token by itself: D -> 4D -> D."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        dim = cfg.emb_dim
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to its input."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        sizes = (cfg.emb_dim, cfg.emb_dim, cfg.context_length)
        self.att = MultiHeadAttention(*sizes, cfg.drop_rate, cfg.n_heads, cfg.qkv_bias, cfg.causal)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_resid = nn.Dropout(cfg.drop_rate)

    def forward(self, x: Tensor, attention_mask: Mask = None, cache: Cache = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.add_to_stream(x, self.att(self.norm1(x), attention_mask, cache))

    def add_to_stream(self, x: Tensor, attended: Tensor) -> Tensor:
        """x, plus what attention gave, plus what the feed-forward network makes of both."""
        x = x + self.drop_resid(attended)
        return x + self.drop_resid(self.ff(self.norm2(x)))


class Decoder(nn.Module):
    """Token embeddings `tok_emb`, a stack of blocks `trf_blocks`, a `final_norm` and an output head
    `out_head`. A subclass makes these parts, then calls `init_weights`."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.register_load_state_dict_pre_hook(check_state_dict)

    @property
    def device(self) -> torch.device:
        return self.tok_emb.weight.device

    def embed(self, input_ids: Tensor, num_earlier: int = 0) -> Tensor:
        """Token embeddings (B, T) -> (B, T, D) of tokens that `num_earlier` others precede. Raises
        ``ValueError`` if they do not fit the context."""
        num_tokens, context = num_earlier + input_ids.shape[1], self.cfg.context_length
        if num_tokens > context:
            raise ValueError(f"{num_tokens} tokens do not fit the context of {context}: cut them.")
        return self.tok_emb(input_ids)

    def run_blocks(
        self, x: Tensor, attention_mask: Mask = None, start=0, stop=None, caches: Caches = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D) through the blocks from `start` up to, not including, `stop`."""
        for i in range(len(self.trf_blocks))[start:stop]:
            x = self.trf_blocks[i](x, attention_mask, caches[i] if caches else None)
        return x

    def forward(
        self, input_ids: Tensor, attention_mask: Mask = None, caches: Caches = None
    ) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V).

        `attention_mask` is True at real tokens, to whose right padding may stand. With `caches`,
        the tokens follow those that the caches hold.
        """
        x = self.embed(input_ids, caches[0].num_tokens if caches else 0)
        x = self.run_blocks(x, attention_mask, caches=caches)
        return self.out_head(self.final_norm(x))

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """Who looks at whom, for plotting: token ids (B, T) -> (layers, B, H, T, T)."""
        x, maps = self.embed(input_ids), []
        for i, block in enumerate(self.trf_blocks):
            maps.append(block.att.by_hand(block.norm1(x))[1])
            x = self.run_blocks(x, start=i, stop=i + 1)
        return torch.stack(maps)

    def init_weights(self) -> None:
        """GPT-2's start: normal with deviation 0.02, smaller where blocks add to the residual
        stream, so that its variance does not grow with the number of blocks."""
        adding = ("out_proj.weight", "layers.2.weight", "down.weight")
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                shrink = math.sqrt(2 * self.cfg.n_layers) if name.endswith(adding) else 1.0
                nn.init.normal_(parameter, std=0.02 / shrink)


class GPTModel(Decoder):
    """GPT-2: positions are learned. Takes a `GPTConfig` or a dictionary of its fields."""

    def __init__(self, cfg: GPTConfig | Mapping):
        super().__init__(GPTConfig(**cfg) if isinstance(cfg, Mapping) else cfg)
        cfg = self.cfg
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.n_layers))
        self.final_norm = LayerNorm(cfg.emb_dim)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        if cfg.tied_head:
            self.out_head.weight = self.tok_emb.weight  # one matrix reads and writes tokens
        self.init_weights()

    def embed(self, input_ids: Tensor, num_earlier: int = 0) -> Tensor:
        """Token plus position embeddings: (B, T) -> (B, T, D)."""
        tokens = super().embed(input_ids, num_earlier)
        positions = torch.arange(num_earlier, num_earlier + tokens.shape[1], device=tokens.device)
        return self.drop_emb(tokens + self.pos_emb(positions))


def num_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Parameters of a model; tied ones are counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


# --- Chapters 2 and 5: tokens, generating text, measuring a language model -----------------------


def text_to_token_ids(text: str, tokenizer) -> Tensor:
    """Text -> token ids (1, T); a literal `<|endoftext|>` becomes the special token."""
    ids = tokenizer.encode(text, allowed_special={END_OF_TEXT}, disallowed_special=())
    return torch.tensor(ids, dtype=torch.long).unsqueeze(0)


def token_ids_to_text(token_ids: Tensor, tokenizer) -> str:
    """Token ids (1, T) or (T,) -> text."""
    return tokenizer.decode(token_ids.reshape(-1).tolist())


@torch.no_grad()
def generate_text_simple(model, idx: Tensor, max_new_tokens: int, context_size: int) -> Tensor:
    """The plain loop: the likeliest token each time, (B, T) -> (B, T + max_new_tokens)."""
    for _ in range(max_new_tokens):
        logits = model(idx[:, -context_size:])[:, -1]  # (B, V)
        idx = torch.cat([idx, logits.argmax(dim=-1, keepdim=True)], dim=1)
    return idx


@torch.no_grad()
def generate(
    model: Decoder,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each of B prompts token by token: (B, T) -> (B, up to T + max_new_tokens).

    `temperature=0` takes the likeliest token (greedy); above 0 the next token is drawn from
    softmax(logits / temperature), among the `top_k` likeliest if that is given, repeatably with a
    seeded `generator`. A sequence that produced `eos_id` is filled with it while others go on.

    With `use_cache`, each step computes its new token only, until the text outgrows the context:
    then every token's position shifts at every step.
    """
    if input_ids.shape[1] == 0:
        raise ValueError("The prompt is empty: begin with <|endoftext|>.")
    was_training = model.training
    model.eval()
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    caches = [KeyValueCache() for _ in model.trf_blocks] if use_cache else None
    for _ in range(max_new_tokens):
        if input_ids.shape[1] > model.cfg.context_length:
            caches = None
        num_done = caches[0].num_tokens if caches else 0
        context = input_ids[:, num_done:][:, -model.cfg.context_length :]
        logits = model(context, caches=caches)[:, -1]  # (B, V)
        next_ids = _next_token(logits, temperature, top_k, generator)  # (B,)
        if eos_id is not None:
            next_ids = torch.where(finished, eos_id, next_ids)
            finished |= next_ids == eos_id
        input_ids = torch.cat([input_ids, next_ids.unsqueeze(1)], dim=1)
        if finished.all():
            break
    model.train(was_training)
    return input_ids


def _next_token(logits: Tensor, temperature: float, top_k: int | None, generator) -> Tensor:
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@torch.no_grad()
def calc_text_loss(model: Decoder, tokenizer, text: str) -> float:
    """Mean cross-entropy of the next token over a text, in nats per token.

    The text is cut into windows of at most 1,024 tokens, each token but the first predicted exactly
    once; a window's first tokens see less than its last. Raises ``ValueError`` for an empty text.
    """
    ids = text_to_token_ids(text, tokenizer).squeeze(0).to(model.device)
    num_targets = len(ids) - 1
    if num_targets < 1:
        raise ValueError("The text has fewer than two tokens: there is no next token.")
    was_training = model.training
    model.eval()
    window, total = min(model.cfg.context_length, 1024), 0.0
    for start in range(0, num_targets, window):
        inputs, targets = ids[start:-1][:window], ids[start + 1 :][:window]
        logits = model(inputs.unsqueeze(0)).squeeze(0)  # (T, V)
        total += F.cross_entropy(logits, targets, reduction="sum").item()
    model.train(was_training)
    return total / num_targets


def calc_perplexity(model: Decoder, tokenizer, text: str) -> float:
    """exp(mean loss per token); comparable only between models with the same tokenizer."""
    return math.exp(calc_text_loss(model, tokenizer, text))
