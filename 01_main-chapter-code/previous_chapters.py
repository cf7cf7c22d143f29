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

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT model.

    Raises ``ValueError`` if a size is not positive or the heads do not divide the embedding.
    """

    vocab_size: int = 50257
    """Number of tokens, `<|endoftext|>` included."""
    context_length: int = 1024
    """Longest sequence, in tokens."""
    emb_dim: int = 768
    """Length of the vector that represents a token."""
    num_heads: int = 12
    """Attention heads in each block."""
    num_layers: int = 12
    """Transformer blocks."""
    drop_rate: float = 0.0
    """Share of activations zeroed in training (embedding, attention, residual)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "emb_dim", "num_heads", "num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
        if self.emb_dim % self.num_heads:
            raise ValueError(
                f"emb_dim={self.emb_dim} cannot be split among num_heads={self.num_heads}; "
                f"choose a number of heads that divides it."
            )
        if not isinstance(self.drop_rate, (int, float)) or not 0 <= self.drop_rate < 1:
            raise ValueError(f"drop_rate={self.drop_rate!r} must lie in [0, 1).")


MODEL_CONFIGS = {
    "gpt-mini": GPTConfig(
        vocab_size=4096, context_length=512, emb_dim=256, num_heads=4, num_layers=6
    ),
    "gpt2-small (124M)": GPTConfig(emb_dim=768, num_heads=12, num_layers=12),
    "gpt2-medium (355M)": GPTConfig(emb_dim=1024, num_heads=16, num_layers=24),
    "gpt2-large (774M)": GPTConfig(emb_dim=1280, num_heads=20, num_layers=36),
    "gpt2-xl (1558M)": GPTConfig(emb_dim=1600, num_heads=25, num_layers=48),
}


# ---------------------------------------------------------------------------------------------
# Chapter 3: attention
# ---------------------------------------------------------------------------------------------


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


class MultiHeadAttention(nn.Module):
    """Causal self-attention with H heads: each token gathers from itself and those before it."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.num_heads = cfg.num_heads
        self.head_dim = cfg.emb_dim // cfg.num_heads
        self.W_query = nn.Linear(cfg.emb_dim, cfg.emb_dim)
        self.W_key = nn.Linear(cfg.emb_dim, cfg.emb_dim)
        self.W_value = nn.Linear(cfg.emb_dim, cfg.emb_dim)
        self.out_proj = nn.Linear(cfg.emb_dim, cfg.emb_dim)
        self.dropout = nn.Dropout(cfg.drop_rate)

    def forward(
        self,
        x: Tensor,
        last_positions: Tensor | None = None,
        return_weights: bool = False,
        visible: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D), or (B, 1, D) if only `last_positions` (B,) shall look around.

        With `visible` (B, T) there is no causal mask: every token looks at all those for which it
        is True, earlier or later. With a `cache`, the tokens of x follow those that it holds, look
        at them too, and are added to it.

        With `return_weights`, the attention is computed by hand, without dropout, and its weights
        (B, H, T, T) come back too; otherwise the same result is computed faster.
        """
        if cache is not None and last_positions is not None:
            raise ValueError("A cache is for generating, where every new token looks around.")
        num_earlier = 0 if cache is None else cache.num_tokens
        num_keys = num_earlier + x.shape[1]
        x_query = x if last_positions is None else select_positions(x, last_positions)
        queries = self._split_heads(self.W_query(x_query))  # (B, H, T or 1, D/H)
        if visible is not None:
            mask = visible[:, None, None, :]  # (B, 1, 1, T)
        elif last_positions is None:
            positions = torch.arange(num_earlier, num_keys, device=x.device)
            mask = causal_mask(positions, num_keys)  # (T, T_keys)
        else:
            mask = causal_mask(last_positions.view(-1, 1, 1), num_keys)  # (B, 1, 1, T)
            if not return_weights and is_plain(self.W_key) and is_plain(self.W_value):
                return self._merge_heads(self._look_from_one_position(queries, x, mask))

        keys = self._split_heads(self.W_key(x))  # (B, H, T, D/H)
        values = self._split_heads(self.W_value(x))  # (B, H, T, D/H)
        if cache is not None:
            keys, values = cache.extend(keys, values)  # (B, H, T_keys, D/H)
        if return_weights:
            context, weights = attention_by_hand(queries, keys, values, mask)
            return self._merge_heads(context), weights
        is_causal = last_positions is None and visible is None and num_earlier == 0
        context = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if is_causal else mask,
            is_causal=is_causal,  # the kernel makes the (T, T) mask itself
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return self._merge_heads(context)

    def _look_from_one_position(self, queries: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Attention of one query a message, without making a key and a value for every token.

        With keys k = K x + b, a score q.k equals (q K).x + q.b: the matrix moves over to the query,
        of which there is one, away from the T tokens. Likewise a weighted sum of values V x + c is
        V (weighted sum of x) + c times the sum of the weights. Two products with (D, D) matrices a
        token become two with (H, D).

        Takes queries (B, H, 1, D/H), x (B, T, D), mask (B, 1, 1, T); gives (B, H, 1, D/H).
        """
        q = queries.squeeze(2)  # (B, H, D/H)
        key_weight, key_bias = self._by_head(self.W_key)  # (H, D/H, D), (H, D/H)
        value_weight, value_bias = self._by_head(self.W_value)

        q_times_key = torch.einsum("bhk,hkd->bhd", q, key_weight)  # (B, H, D)
        scores = q_times_key @ x.transpose(1, 2) + (q * key_bias).sum(-1, keepdim=True)  # (B, H, T)
        scores = (scores / math.sqrt(self.head_dim)).masked_fill(~mask.squeeze(2), -torch.inf)
        weights = self.dropout(torch.softmax(scores, dim=-1))
        context = torch.einsum("bhd,hkd->bhk", weights @ x, value_weight)  # (B, H, D/H)
        context = context + weights.sum(dim=-1, keepdim=True) * value_bias
        return context.unsqueeze(2)

    def _by_head(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """A layer's weight (H, D/H, D) and bias (H, D/H), cut among the heads."""
        shape = (self.num_heads, self.head_dim)
        return layer.weight.unflatten(0, shape), layer.bias.unflatten(0, shape)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D/H)

    def _merge_heads(self, context: Tensor) -> Tensor:
        return self.out_proj(context.transpose(1, 2).flatten(-2))  # (B, T, D)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its weight and bias and no more: neither adapted nor quantised."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


def select_positions(x: Tensor, positions: Tensor) -> Tensor:
    """One position of each sequence: (B, T, D) and (B,) -> (B, 1, D)."""
    return x[torch.arange(len(x), device=x.device), positions].unsqueeze(1)


# ---------------------------------------------------------------------------------------------
# Chapter 4: the model
# ---------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """Gives every token's vector mean 0 and variance 1, then scales and shifts it by learned
    amounts (Ba, Kiros, Hinton 2016)."""

    eps = 1e-5  # keeps the division safe where the variance is 0

    def __init__(self, emb_dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)

    def by_hand(self, x: Tensor) -> Tensor:
        """The same result step by step; `forward` uses PyTorch's fused kernel."""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + self.eps) + self.shift


class GELU(nn.Module):
    """The smooth activation of GPT-2, in its tanh approximation (Hendrycks, Gimpel 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")

    @staticmethod
    def by_hand(x: Tensor) -> Tensor:
        """The same result as a formula; `forward` uses PyTorch's fused kernel."""
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """Two linear layers around a GELU, applied to every token by itself: D -> 4D -> D."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg.emb_dim, 4 * cfg.emb_dim),
            GELU(),
            nn.Linear(4 * cfg.emb_dim, cfg.emb_dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then a feed-forward network, each normalised before and added to its input."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.att = MultiHeadAttention(cfg)
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg.emb_dim)
        self.norm2 = LayerNorm(cfg.emb_dim)
        self.drop_resid = nn.Dropout(cfg.drop_rate)

    def forward(
        self,
        x: Tensor,
        last_positions: Tensor | None = None,
        visible: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), or (B, 1, D) if only `last_positions` (B,) are wanted.

        One position still attends to all those before it, but the queries, the output
        projection and the feed-forward network are computed for that position alone.
        """
        shortcut = x if last_positions is None else select_positions(x, last_positions)
        attended = self.att(self.norm1(x), last_positions, visible=visible, cache=cache)
        x = shortcut + self.drop_resid(attended)
        return x + self.drop_resid(self.ff(self.norm2(x)))


class GPTModel(nn.Module):
    """GPT-2: embeddings, a stack of transformer blocks, a final norm and an output head."""

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.tok_emb = nn.Embedding(cfg.vocab_size, cfg.emb_dim)
        self.pos_emb = nn.Embedding(cfg.context_length, cfg.emb_dim)
        self.drop_emb = nn.Dropout(cfg.drop_rate)
        self.trf_blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.num_layers))
        self.final_norm = LayerNorm(cfg.emb_dim)
        self.out_head = nn.Linear(cfg.emb_dim, cfg.vocab_size, bias=False)
        self.out_head.weight = self.tok_emb.weight  # tied: one matrix reads and writes tokens
        self._init_weights()

    def _init_weights(self) -> None:
        """GPT-2's start: normal with deviation 0.02, smaller where blocks add to the residual
        stream, so that its variance does not grow with the number of blocks."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                adds_to_stream = name.endswith(("out_proj.weight", "layers.2.weight"))
                std = 0.02 / math.sqrt(2 * self.cfg.num_layers) if adds_to_stream else 0.02
                nn.init.normal_(parameter, std=std)

    def embed(self, input_ids: Tensor, num_earlier: int = 0) -> Tensor:
        """Token plus position embedding: (B, T) -> (B, T, D), after `num_earlier` tokens.

        Raises ``ValueError`` if the sequences are longer than the context.
        """
        num_tokens = num_earlier + input_ids.shape[1]
        if num_tokens > self.cfg.context_length:
            raise ValueError(
                f"The input has {num_tokens} tokens but the model's context holds "
                f"{self.cfg.context_length}; shorten the input."
            )
        positions = torch.arange(num_earlier, num_tokens, device=input_ids.device)
        return self.drop_emb(self.tok_emb(input_ids) + self.pos_emb(positions))

    def forward(self, input_ids: Tensor, caches: list[KeyValueCache] | None = None) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V).

        With `caches`, one for each block, the tokens follow those that the caches hold.
        """
        x = self.embed(input_ids, caches[0].num_tokens if caches else 0)
        for i, block in enumerate(self.trf_blocks):
            x = block(x, cache=caches[i] if caches else None)
        return self.out_head(self.final_norm(x))

    @torch.no_grad()
    def attention_maps(self, input_ids: Tensor) -> Tensor:
        """Who looks at whom, for plotting: token ids (B, T) -> (layers, B, H, T, T)."""
        x, maps = self.embed(input_ids), []
        for block in self.trf_blocks:
            maps.append(block.att(block.norm1(x), return_weights=True)[1])
            x = block(x)
        return torch.stack(maps)


def num_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Parameters of a model; tied ones are counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


# ---------------------------------------------------------------------------------------------
# Chapters 2 and 5: tokens, generating text, measuring a language model
# ---------------------------------------------------------------------------------------------


def text_to_token_ids(text: str, tokenizer) -> Tensor:
    """Text -> token ids (1, T); a literal `<|endoftext|>` becomes the special token."""
    ids = tokenizer.encode(text, allowed_special={END_OF_TEXT})
    return torch.tensor(ids, dtype=torch.long).unsqueeze(0)


def token_ids_to_text(token_ids: Tensor, tokenizer) -> str:
    """Token ids (1, T) or (T,) -> text."""
    return tokenizer.decode(token_ids.reshape(-1).tolist())


@torch.no_grad()
def generate(
    model: GPTModel,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue each of B prompts token by token: (B, T) -> (B, up to T + max_new_tokens).

    `temperature=0` always takes the likeliest token (greedy); above 0 the next token is drawn
    from softmax(logits / temperature), among the `top_k` likeliest if that is given. A sequence
    that produced `eos_id` is finished: it is filled with `eos_id` while others go on, and the
    loop ends when all are finished. Sampling is repeatable with a seeded `generator`.

    With `use_cache`, each step computes its new token only. Once the text outgrows the context,
    every token's position shifts at every step, and all are computed anew in any case.
    """
    if temperature < 0:
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or above.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1, or None for no limit.")
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
        logits = model(context, caches)[:, -1]  # (B, V)
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
def calc_text_loss(model: GPTModel, tokenizer, text: str, batch_size: int = 8) -> float:
    """Mean cross-entropy of the next token over a text, in nats per token.

    The text is cut into windows of the model's context, each token but the first predicted
    exactly once; a window's first tokens see less context than its last. Raises ``ValueError``
    for a text of fewer than two tokens.
    """
    ids = text_to_token_ids(text, tokenizer).squeeze(0)
    if len(ids) < 2:
        raise ValueError("The text has fewer than two tokens: there is no next token to predict.")
    was_training = model.training
    model.eval()
    device = model.tok_emb.weight.device
    context = min(model.cfg.context_length, len(ids) - 1)
    num_full = (len(ids) - 1) // context * context  # tokens that fill whole windows
    inputs = list(ids[:num_full].view(-1, context).split(batch_size))
    targets = list(ids[1 : num_full + 1].view(-1, context).split(batch_size))
    if num_full < len(ids) - 1:
        inputs.append(ids[num_full:-1].unsqueeze(0))
        targets.append(ids[num_full + 1 :].unsqueeze(0))
    total = 0.0
    for input_ids, target_ids in zip(inputs, targets, strict=True):
        logits = model(input_ids.to(device))  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), target_ids.flatten().to(device))
        total += loss.item() * target_ids.numel()
    model.train(was_training)
    return total / (len(ids) - 1)


def calc_perplexity(model: GPTModel, tokenizer, text: str) -> float:
    """exp(mean loss per token): the number of equally likely tokens the model hesitates among.

    It depends on the vocabulary: compare it only between models with the same tokenizer.
    """
    return math.exp(calc_text_loss(model, tokenizer, text))


# ---------------------------------------------------------------------------------------------
# Chapter 5: GPT-2's tensors into this model, and back
# ---------------------------------------------------------------------------------------------

# GPT-2 stores the weights of its linear layers as (in, out); torch.nn.Linear wants (out, in).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_BLOCK_NAMES = {
    "ln_1.weight": "norm1.scale",
    "ln_1.bias": "norm1.shift",
    "attn.c_proj.weight": "att.out_proj.weight",
    "attn.c_proj.bias": "att.out_proj.bias",
    "ln_2.weight": "norm2.scale",
    "ln_2.bias": "norm2.shift",
    "mlp.c_fc.weight": "ff.layers.0.weight",
    "mlp.c_fc.bias": "ff.layers.0.bias",
    "mlp.c_proj.weight": "ff.layers.2.weight",
    "mlp.c_proj.bias": "ff.layers.2.bias",
}


def gpt2_state_dict(gpt: GPTModel) -> dict[str, Tensor]:
    """The model's weights under GPT-2's tensor names and in GPT-2's shapes, without the head.

    GPT-2 keeps queries, keys and values in one matrix `c_attn` of shape (D, 3D).
    """
    tensors = {
        "wte.weight": gpt.tok_emb.weight,
        "wpe.weight": gpt.pos_emb.weight,
        "ln_f.weight": gpt.final_norm.scale,
        "ln_f.bias": gpt.final_norm.shift,
    }
    for i, block in enumerate(gpt.trf_blocks):
        parameters = dict(block.named_parameters())
        for theirs, ours in _BLOCK_NAMES.items():
            tensors[f"h.{i}.{theirs}"] = parameters[ours]
        qkv = (block.att.W_query, block.att.W_key, block.att.W_value)
        tensors[f"h.{i}.attn.c_attn.weight"] = torch.cat([layer.weight for layer in qkv])
        tensors[f"h.{i}.attn.c_attn.bias"] = torch.cat([layer.bias for layer in qkv])
    return {
        name: (tensor.T if name.endswith(_TRANSPOSED) else tensor).detach().contiguous()
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def load_weights_into_gpt(gpt: GPTModel, params: Mapping[str, Tensor]) -> None:
    """Copy GPT-2's tensors into `gpt`, whose head must still be the tied language-model head.

    Names may carry the prefix `transformer.`; causal-mask buffers (`attn.bias`,
    `attn.masked_bias`) are ignored, and `lm_head.weight` is accepted where it equals the token
    embedding. Any dtype is converted to the model's. Raises ``ValueError`` naming every
    missing, unexpected and misshapen tensor at once; the model is then unchanged.
    """
    if gpt.out_head.weight is not gpt.tok_emb.weight:
        raise ValueError("Load GPT-2's weights before the output head is replaced, not after.")
    given = _without_prefix_and_buffers(params)
    head = given.pop("lm_head.weight", None)
    expected = {name: tuple(tensor.shape) for name, tensor in gpt2_state_dict(gpt).items()}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in given]
    problems += [f"unexpected: {name}" for name in given if name not in expected]
    problems += [
        f"wrong shape: {name} is {tuple(given[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    if head is not None and "wte.weight" in given and not torch.equal(head, given["wte.weight"]):
        problems.append("not tied: lm_head.weight differs from wte.weight")
    if problems:
        raise ValueError(
            f"These weights do not fit the model ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
        )

    gpt.tok_emb.weight.copy_(given["wte.weight"])
    gpt.pos_emb.weight.copy_(given["wpe.weight"])
    gpt.final_norm.scale.copy_(given["ln_f.weight"])
    gpt.final_norm.shift.copy_(given["ln_f.bias"])
    for i, block in enumerate(gpt.trf_blocks):
        parameters = dict(block.named_parameters())
        for theirs, ours in _BLOCK_NAMES.items():
            tensor = given[f"h.{i}.{theirs}"]
            parameters[ours].copy_(tensor.T if theirs in _TRANSPOSED else tensor)
        qkv = (block.att.W_query, block.att.W_key, block.att.W_value)
        weights = given[f"h.{i}.attn.c_attn.weight"].T.chunk(3)  # (D, 3D) -> three (D, D)
        biases = given[f"h.{i}.attn.c_attn.bias"].chunk(3)
        for layer, weight, bias in zip(qkv, weights, biases, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def _without_prefix_and_buffers(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given: dict[str, Tensor] = {}
    for name, tensor in params.items():
        short = name.removeprefix("transformer.")
        if short.endswith((".attn.bias", ".attn.masked_bias")):
            continue  # the causal mask, which this model computes itself
        if short in given:
            raise ValueError(f"The weights hold {short} twice, with and without 'transformer.'.")
        given[short] = tensor
    return given
