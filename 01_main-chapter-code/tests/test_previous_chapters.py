"""The decoders: parity with independent ones, causality, generation, loading weights."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import DECODERS, GPT, LLAMA, random_decoder

from export import shape_in_transformers
from gpt_download import GPT2_WEIGHTS, MODEL_CONFIGS, load_mini_tokenizer
from previous_chapters import (
    GPTModel,
    MultiHeadAttention,
    calc_perplexity,
    calc_text_loss,
    generate,
    generate_text_simple,
    gpt2_state_dict,
    load_weights_into_gpt,
    num_parameters,
    text_to_token_ids,
    token_ids_to_text,
)

# --- parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_equals_attention_by_hand_and_sees_no_padding(causal):
    torch.manual_seed(0)
    attention = MultiHeadAttention(20, 32, 16, 0.0, num_heads=4, causal=causal).eval()
    x = torch.randn(2, 9, 20)
    attention_mask = torch.arange(9) < torch.tensor([[9], [4]])  # (2, 9)
    by_hand, weights = attention.by_hand(x, attention_mask)
    output = attention(x, attention_mask)
    torch.testing.assert_close(output, by_hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(output[1:, :4], attention(x[1:, :4]), atol=1e-6, rtol=0)
    assert weights.shape == (2, 4, 9, 9)
    looks_ahead = weights[0].triu(1) > 0
    assert looks_ahead.any() != causal


def test_heads_must_divide_the_embedding():
    with pytest.raises(ValueError, match="n_heads=4 must divide emb_dim=30"):
        dataclasses.replace(GPT, emb_dim=30)


# --- the whole model --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_later_tokens_never_change_earlier_logits(input_ids, kind):
    model, changed = random_decoder(DECODERS[kind]), input_ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % GPT.vocab_size
    before, after = model(input_ids), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=0)
    assert (before[:, 7:] - after[:, 7:]).abs().amax(-1).min() > 1e-3


def test_an_input_that_is_too_long_or_empty_is_refused():
    with pytest.raises(ValueError, match=r"17 tokens .* context of 16"):
        random_decoder()(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="The prompt is empty"):
        generate(random_decoder(), torch.empty(1, 0, dtype=torch.long), 3)


def test_number_of_parameters():
    millions = {"small (124M)": 124.44, "medium (355M)": 354.82, "large (774M)": 774.03}
    millions = {f"gpt2-{size}": number for size, number in millions.items()}
    for name, number in (millions | {"gpt2-xl (1558M)": 1557.61, "gpt-mini": 5.92}).items():
        with torch.device("meta"):
            model = GPTModel(MODEL_CONFIGS[name])
        assert num_parameters(model) == pytest.approx(number * 1e6, abs=1e4)


# The structure of each GPT-2 (layers, heads) at a small width, and that of a Llama.
STRUCTURES = {"llama": LLAMA} | {
    name: dataclasses.replace(cfg, vocab_size=211, context_length=40, emb_dim=4 * cfg.n_heads)
    for name, cfg in MODEL_CONFIGS.items()
    if name in GPT2_WEIGHTS
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_logits_and_attention_maps_equal_those_of_an_independent_model(transformers, name):
    cfg = STRUCTURES[name]
    model = random_decoder(cfg)
    kind, sizes, weights = shape_in_transformers(model)
    sizes |= {"vocab_size": cfg.vocab_size, "tie_word_embeddings": True}
    theirs = getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
    twin = transformers.AutoModelForCausalLM.from_config(theirs).eval()
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    rng = torch.Generator().manual_seed(2)
    ids = torch.randint(cfg.vocab_size, (2, cfg.context_length), generator=rng)
    with torch.no_grad():
        expected = twin(ids, output_attentions=True)
    torch.testing.assert_close(model(ids), expected.logits, atol=1e-4, rtol=0)
    maps = torch.stack(expected.attentions)
    torch.testing.assert_close(model.attention_maps(ids), maps, atol=1e-5, rtol=0)


# --- loading weights --------------------------------------------------------------------------


def state_with(prefix: str = "", **extra) -> dict[str, torch.Tensor]:
    tensors = gpt2_state_dict(random_decoder(seed=5))
    return {prefix + name: tensor for name, tensor in tensors.items()} | extra


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_load_with_and_without_prefix_and_in_half_precision(prefix, input_ids):
    tensors = {name: tensor.half() for name, tensor in state_with(prefix).items()}
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    tensors[f"{prefix}h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
    model = GPTModel(GPT).eval()
    load_weights_into_gpt(model, tensors)
    assert model.out_head.weight is model.tok_emb.weight
    assert model.tok_emb.weight.dtype == torch.float32
    expected = random_decoder(seed=5)(input_ids)
    torch.testing.assert_close(model(input_ids), expected, atol=0.05, rtol=0)


UNTIED = dataclasses.replace(GPT, tied_head=False, qkv_bias=False)


@pytest.mark.parametrize("cfg", [GPT, UNTIED], ids=["tied", "its own head, no biases"])
def test_weights_survive_the_round_trip_exactly(input_ids, cfg):
    original, model = random_decoder(cfg), GPTModel(dataclasses.asdict(cfg)).eval()
    load_weights_into_gpt(model, gpt2_state_dict(original))
    assert torch.equal(model(input_ids), original(input_ids))


def test_every_wrong_tensor_is_named_at_once_and_nothing_is_changed():
    tensors = state_with()
    del tensors["h.1.ln_1.weight"], tensors["wpe.weight"]
    tensors["h.2.mlp.c_fc.weight"] = torch.zeros(5, 7)
    tensors["h.3.surprise"] = torch.zeros(1)
    tensors["lm_head.weight"] = torch.zeros(100, 32)
    model = random_decoder()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="5 problems") as caught:
        load_weights_into_gpt(model, tensors)
    for problem in (
        "h.1.ln_1.weight is missing, expected (32,)",
        "wpe.weight is missing, expected (16, 32)",
        "h.2.mlp.c_fc.weight is (5, 7), expected (32, 128)",
        "h.3.surprise is (1,), expected none",
        "lm_head.weight is (100, 32), expected none",
    ):
        assert problem in str(caught.value)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def nested(params: dict[str, torch.Tensor]) -> dict:
    """GPT-2's tensors as nested dictionaries of arrays, as its first checkpoints are read."""
    tree = {"blocks": [{} for _ in range(GPT.n_layers)]}
    for name, tensor in params.items():
        *path, leaf = name.split(".")
        is_norm = path[-1].startswith("ln_")
        leaf = "b" if leaf == "bias" else "g" if is_norm else "w"
        node = tree
        if path[0] == "h":
            node = tree["blocks"][int(path[1])]
            for part in path[2:]:
                node = node.setdefault(part, {})
        node[leaf if path[0] in ("h", "ln_f") else path[0]] = tensor.numpy()
    return tree


def test_a_nested_dictionary_of_arrays_loads_too(input_ids):
    model = GPTModel(GPT).eval()
    load_weights_into_gpt(model, nested(state_with()))
    assert torch.equal(model(input_ids), random_decoder(seed=5)(input_ids))


def test_a_head_of_its_own_starts_as_the_token_embedding_and_is_never_silently_tied():
    model = GPTModel(dataclasses.replace(GPT, tied_head=False))
    load_weights_into_gpt(model, state_with())
    assert torch.equal(model.out_head.weight, model.tok_emb.weight)
    GPTModel(GPT).load_state_dict(model.state_dict())
    torch.nn.init.normal_(model.out_head.weight)
    with pytest.raises(ValueError, match="tied_head=False"):
        GPTModel(GPT).load_state_dict(model.state_dict())


# --- generating and measuring -----------------------------------------------------------------


def test_greedy_generation_takes_the_likeliest_token_each_time(input_ids):
    model = random_decoder().train()
    expected = input_ids[:, :3]
    for _ in range(5):
        logits = model(expected)[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, input_ids[:, :3], 5), expected)
    assert torch.equal(generate_text_simple(model, input_ids[:, :3], 5, 16), expected)
    assert torch.equal(generate(model, input_ids[:, :3], 5, temperature=2.0, top_k=1), expected)
    assert model.training  # as it was


def test_each_sequence_ends_at_its_own_end_of_text(input_ids):
    model = random_decoder()
    free = generate(model, input_ids, 12)[:, 12:]
    eos = free[0, 2].item()  # a token that the first sequence produces early
    stopped = generate(model, input_ids, 12, eos_id=eos)[:, 12:]
    for free_row, row in zip(free.tolist(), stopped.tolist(), strict=True):
        end = free_row.index(eos) if eos in free_row else len(row)
        assert row[:end] == free_row[: min(end, len(row))]
        assert set(row[end:]) <= {eos}
    alone = generate(model, input_ids[:1], 12, eos_id=eos)
    assert alone.shape[1] == 12 + free[0].tolist().index(eos) + 1  # stopped at once


def test_sampling_is_seeded_and_follows_temperature_and_top_k():
    model = random_decoder()
    ids = torch.zeros(2000, 1, dtype=torch.long)

    def sample(seed: int, **how) -> torch.Tensor:
        return generate(model, ids, 1, generator=torch.manual_seed(seed), **how)[:, 1]

    assert torch.equal(sample(1, temperature=1.0), sample(1, temperature=1.0))
    assert not torch.equal(sample(1, temperature=1.0), sample(2, temperature=1.0))
    logits = model(ids[:1])[0, -1]
    allowed = set(logits.topk(5).indices.tolist())
    assert set(sample(1, temperature=1.0, top_k=5).tolist()) <= allowed
    counts = torch.bincount(sample(3, temperature=0.5, top_k=5), minlength=100) / 2000
    kept = torch.full_like(logits, -torch.inf)
    kept[list(allowed)] = logits[list(allowed)]
    torch.testing.assert_close(counts, F.softmax(kept / 0.5, -1), atol=0.05, rtol=0)


def test_text_loss_predicts_every_token_once():
    tokenizer = load_mini_tokenizer()
    cfg = dataclasses.replace(MODEL_CONFIGS["gpt-mini"], context_length=8, n_layers=1)
    model = random_decoder(cfg)
    text = "The quick brown fox jumps over the lazy dog, and then sleeps the whole day long."
    ids = text_to_token_ids(text, tokenizer)[0]
    assert (len(ids) - 1) % 8  # the last window is not full
    windows = zip(ids[:-1].split(8), ids[1:].split(8), strict=True)
    losses = [F.cross_entropy(model(x[None])[0], y, reduction="none") for x, y in windows]
    expected = torch.cat(losses).mean().item()
    assert calc_text_loss(model, tokenizer, text) == pytest.approx(expected, abs=1e-5)
    assert calc_perplexity(model, tokenizer, text) == pytest.approx(math.exp(expected), rel=1e-4)
    with pytest.raises(ValueError, match="fewer than two tokens"):
        calc_text_loss(model, tokenizer, "a")


def test_text_survives_the_tokens():
    tokenizer = load_mini_tokenizer()
    text = "Free entry!! £1000 — 你好 😀\n<|endoftext|>next"
    ids = text_to_token_ids(text, tokenizer)
    assert ids.shape[0] == 1
    assert tokenizer.eot_token in ids
    assert token_ids_to_text(ids, tokenizer) == text
