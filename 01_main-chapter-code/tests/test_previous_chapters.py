"""The GPT model: parity with an independent GPT-2, causality, generation, loading weights."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gpt_download import load_mini_tokenizer
from previous_chapters import (
    GELU,
    MODEL_CONFIGS,
    GPTConfig,
    GPTModel,
    KeyValueCache,
    LayerNorm,
    MultiHeadAttention,
    calc_perplexity,
    calc_text_loss,
    generate,
    gpt2_state_dict,
    load_weights_into_gpt,
    num_parameters,
    select_positions,
    text_to_token_ids,
    token_ids_to_text,
)

TINY = GPTConfig(vocab_size=100, context_length=16, emb_dim=32, num_heads=4, num_layers=3)


def random_model(cfg: GPTConfig = TINY, seed: int = 0) -> GPTModel:
    """A model whose every parameter, biases and norms included, is random."""
    torch.manual_seed(seed)
    model = GPTModel(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def input_ids():
    return torch.randint(TINY.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))


# --- parts ------------------------------------------------------------------------------------


def test_fused_attention_equals_attention_by_hand():
    torch.manual_seed(0)
    attention = MultiHeadAttention(TINY).eval()
    x = torch.randn(2, 9, TINY.emb_dim)
    by_hand, weights = attention(x, return_weights=True)
    torch.testing.assert_close(attention(x), by_hand, atol=1e-6, rtol=0)
    assert weights.shape == (2, 4, 9, 9)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 9))
    assert weights.triu(1).abs().max() == 0  # nobody looks ahead


def test_attention_at_one_position_equals_attention_at_all():
    torch.manual_seed(0)
    attention = MultiHeadAttention(TINY).eval()
    x, last = torch.randn(3, 9, TINY.emb_dim), torch.tensor([8, 0, 4])
    expected = attention(x)[torch.arange(3), last].unsqueeze(1)
    torch.testing.assert_close(attention(x, last), expected, atol=1e-6, rtol=0)
    by_hand, weights = attention(x, last, return_weights=True)
    torch.testing.assert_close(by_hand, expected, atol=1e-6, rtol=0)
    assert weights[1, :, 0, 1:].abs().max() == 0


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_one_position_without_keys_and_values_of_its_own_equals_the_taught_way(dropout):
    """Outputs and all gradients, with the same weights dropped."""
    attention = MultiHeadAttention(dataclasses.replace(TINY, drop_rate=dropout)).train()
    torch.manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, last = torch.randn(3, 9, TINY.emb_dim), torch.tensor([8, 0, 4])
    direction = torch.randn(3, 1, TINY.emb_dim)

    def taught_way(x):
        queries = attention._split_heads(attention.W_query(select_positions(x, last)))
        keys, values = (attention._split_heads(f(x)) for f in (attention.W_key, attention.W_value))
        scores = queries @ keys.transpose(-2, -1) / keys.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.arange(9) > last.view(-1, 1, 1, 1), -torch.inf)
        weights = F.dropout(scores.softmax(-1).squeeze(2), dropout).unsqueeze(2)
        return attention._merge_heads(weights @ values)

    results = []
    for way in (taught_way, lambda x: attention(x, last)):
        torch.manual_seed(1)  # for dropout
        given = x.clone().requires_grad_()
        output = way(given)
        wanted = [given, *attention.parameters()]
        results.append([output, *torch.autograd.grad((output * direction).sum(), wanted)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_an_adapted_layer_makes_keys_and_values_itself():
    torch.manual_seed(0)
    attention = MultiHeadAttention(TINY).eval()
    x, last = torch.randn(3, 9, TINY.emb_dim), torch.tensor([8, 0, 4])
    attention.W_value = torch.nn.Sequential(attention.W_value, torch.nn.Tanh())
    expected = attention(x)[torch.arange(3), last].unsqueeze(1)
    torch.testing.assert_close(attention(x, last), expected, atol=1e-6, rtol=0)


def test_fused_norm_and_activation_equal_those_by_hand():
    torch.manual_seed(0)
    norm = LayerNorm(32)
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(4, 32) * 5 + 2
    torch.testing.assert_close(norm(x), norm.by_hand(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(GELU()(x), GELU.by_hand(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emb_dim": 30}, "emb_dim=30"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"num_heads": 2.0}, "num_heads=2.0"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
    ],
)
def test_impossible_configuration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


# --- the whole model --------------------------------------------------------------------------


def test_later_tokens_never_change_earlier_logits(input_ids):
    model = random_model()
    changed = input_ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % TINY.vocab_size
    before, after = model(input_ids), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=0)
    assert (before[:, 7:] - after[:, 7:]).abs().min(dim=-1).values.max() > 1e-3


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match=r"17 tokens .* 16"):
        random_model()(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("gpt2-small (124M)", 124.44),
        ("gpt2-medium (355M)", 354.82),
        ("gpt2-large (774M)", 774.03),
        ("gpt2-xl (1558M)", 1557.61),
        ("gpt-mini", 5.92),
    ],
)
def test_number_of_parameters(name, millions):
    with torch.device("meta"):
        model = GPTModel(MODEL_CONFIGS[name])
    model.out_head.weight = model.tok_emb.weight
    assert num_parameters(model) == pytest.approx(millions * 1e6, abs=1e4)


def hugging_face_twin(model: GPTModel):
    """`transformers`' GPT-2 with the weights of ours."""
    transformers = pytest.importorskip("transformers", reason="requirements-extra.txt")
    cfg = model.cfg
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_layer=cfg.num_layers,
            n_head=cfg.num_heads,
        )
    ).eval()
    tensors = gpt2_state_dict(model)
    missing, unexpected = twin.transformer.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert not [name for name in missing if not name.endswith((".attn.bias", "masked_bias"))]
    twin.tie_weights()
    return twin


@pytest.mark.parametrize("name", [name for name in MODEL_CONFIGS if name != "gpt-mini"])
def test_logits_equal_an_independent_gpt2(name):
    """The structure of each configuration (layers, heads) at a small width."""
    shape = MODEL_CONFIGS[name]
    cfg = dataclasses.replace(shape, vocab_size=211, context_length=40, emb_dim=4 * shape.num_heads)
    model = random_model(cfg)
    twin = hugging_face_twin(model)
    ids = torch.randint(cfg.vocab_size, (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        difference = (model(ids) - twin(ids).logits).abs().max()
    assert difference < 1e-4


def test_attention_maps_equal_those_of_an_independent_gpt2(input_ids):
    model = random_model()
    twin = hugging_face_twin(model)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = torch.stack(twin(input_ids, output_attentions=True).attentions)
    torch.testing.assert_close(model.attention_maps(input_ids), theirs, atol=1e-5, rtol=0)


# --- loading weights --------------------------------------------------------------------------


def state_with(prefix: str = "", **extra) -> dict[str, torch.Tensor]:
    tensors = gpt2_state_dict(random_model(seed=5))
    return {prefix + name: tensor for name, tensor in tensors.items()} | extra


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_load_with_and_without_prefix_and_in_half_precision(prefix, input_ids):
    tensors = {name: tensor.half() for name, tensor in state_with(prefix).items()}
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    tensors[f"{prefix}h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors[f"{prefix}wte.weight"].clone()
    model = GPTModel(TINY).eval()
    load_weights_into_gpt(model, tensors)
    assert model.out_head.weight is model.tok_emb.weight
    assert model.tok_emb.weight.dtype == torch.float32
    expected = random_model(seed=5)(input_ids)
    torch.testing.assert_close(model(input_ids), expected, atol=0.05, rtol=0)


def test_weights_survive_the_round_trip_exactly(input_ids):
    model = GPTModel(TINY).eval()
    load_weights_into_gpt(model, state_with())
    assert torch.equal(model(input_ids), random_model(seed=5)(input_ids))


def test_every_wrong_tensor_is_named_at_once_and_nothing_is_changed():
    tensors = state_with()
    del tensors["h.1.ln_1.weight"]
    del tensors["wpe.weight"]
    tensors["h.2.mlp.c_fc.weight"] = torch.zeros(5, 7)
    tensors["h.3.surprise"] = torch.zeros(1)
    tensors["lm_head.weight"] = torch.zeros(100, 32)
    model = random_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="5 problems") as caught:
        load_weights_into_gpt(model, tensors)
    message = str(caught.value)
    assert "missing: h.1.ln_1.weight (32,)" in message
    assert "missing: wpe.weight (16, 32)" in message
    assert "wrong shape: h.2.mlp.c_fc.weight is (5, 7), expected (32, 128)" in message
    assert "unexpected: h.3.surprise" in message
    assert "not tied: lm_head.weight" in message
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_names_given_twice_are_refused():
    tensors = state_with() | {"transformer.wte.weight": torch.zeros(100, 32)}
    with pytest.raises(ValueError, match=r"wte\.weight twice"):
        load_weights_into_gpt(GPTModel(TINY), tensors)


def test_weights_are_not_loaded_under_a_new_head():
    model = GPTModel(TINY)
    model.out_head = torch.nn.Linear(32, 2)
    with pytest.raises(ValueError, match="before the output head is replaced"):
        load_weights_into_gpt(model, state_with())


# --- generating and measuring -----------------------------------------------------------------


def test_greedy_generation_takes_the_likeliest_token_each_time(input_ids):
    model = random_model()
    expected = input_ids[:, :3]
    for _ in range(5):
        logits = model(expected)[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, input_ids[:, :3], 5), expected)
    assert torch.equal(generate(model, input_ids[:, :3], 5, temperature=2.0, top_k=1), expected)


def test_generation_goes_on_beyond_the_context(input_ids):
    longer = generate(random_model(), input_ids, max_new_tokens=20)
    assert longer.shape == (3, 32)


def test_each_sequence_ends_at_its_own_end_of_text(input_ids):
    model = random_model()
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
    model = random_model()
    ids = torch.zeros(2000, 1, dtype=torch.long)
    sample = lambda seed, **kw: generate(  # noqa: E731
        model, ids, 1, generator=torch.Generator().manual_seed(seed), **kw
    )[:, 1]
    assert torch.equal(sample(1, temperature=1.0), sample(1, temperature=1.0))
    assert not torch.equal(sample(1, temperature=1.0), sample(2, temperature=1.0))
    logits = model(ids[:1])[0, -1]
    allowed = set(logits.topk(5).indices.tolist())
    assert set(sample(1, temperature=1.0, top_k=5).tolist()) <= allowed
    counts = torch.bincount(sample(3, temperature=0.5, top_k=5), minlength=100) / 2000
    kept = torch.full_like(logits, -torch.inf)
    kept[list(allowed)] = logits[list(allowed)]
    torch.testing.assert_close(counts, F.softmax(kept / 0.5, -1), atol=0.05, rtol=0)


@pytest.mark.parametrize("num_given", [1, 12])
def test_generation_with_and_without_cache_is_the_same_even_beyond_the_context(
    input_ids, num_given
):
    model, prompts = random_model(), input_ids[:, :num_given]
    plain = generate(model, prompts, 20, use_cache=False)
    assert plain.shape[1] > TINY.context_length
    assert torch.equal(generate(model, prompts, 20), plain)


def test_cached_steps_give_the_logits_of_one_pass_and_compute_no_token_twice(input_ids):
    model = random_model()
    caches = [KeyValueCache() for _ in model.trf_blocks]
    computed = []
    model.trf_blocks[0].att.W_key.register_forward_hook(
        lambda module, inputs, output: computed.append(output.shape[1])
    )
    pieces = [model(part, caches) for part in input_ids.split([5, 1, 4, 2], dim=1)]
    assert computed == [5, 1, 4, 2]
    assert caches[-1].num_tokens == 12
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids), atol=1e-5, rtol=0)


def test_a_cache_and_last_positions_do_not_go_together():
    attention, x = MultiHeadAttention(TINY), torch.randn(2, 3, TINY.emb_dim)
    with pytest.raises(ValueError, match="cache is for generating"):
        attention(x, last_positions=torch.tensor([1, 2]), cache=KeyValueCache())


def test_nothing_is_generated_from_nothing():
    with pytest.raises(ValueError, match="The prompt is empty"):
        generate(random_model(), torch.empty(1, 0, dtype=torch.long), 3)


def test_a_full_cache_is_refused(input_ids):
    model = random_model()
    caches = [KeyValueCache() for _ in model.trf_blocks]
    model(input_ids, caches)
    with pytest.raises(ValueError, match=r"17 tokens .* 16"):
        model(input_ids[:, :5], caches)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}])
def test_impossible_sampling_is_refused(wrong, input_ids):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        generate(random_model(), input_ids, 1, **wrong)


def test_generation_leaves_the_training_mode_as_it_was(input_ids):
    model = random_model().train()
    generate(model, input_ids, 1)
    assert model.training


def test_text_loss_predicts_every_token_once():
    tokenizer = load_mini_tokenizer()
    cfg = dataclasses.replace(MODEL_CONFIGS["gpt-mini"], context_length=8, num_layers=1)
    model = random_model(cfg)
    text = "The quick brown fox jumps over the lazy dog, and then sleeps the whole day long."
    ids = text_to_token_ids(text, tokenizer)[0]
    assert (len(ids) - 1) % 8  # the last window is not full
    losses = []
    for start in range(0, len(ids) - 1, 8):
        window, targets = ids[start : start + 8], ids[start + 1 : start + 9]
        log_probabilities = F.log_softmax(model(window[None])[0], dim=-1)
        losses += [-log_probabilities[i, t].item() for i, t in enumerate(targets)]
    assert len(losses) == len(ids) - 1
    expected = sum(losses) / len(losses)
    assert calc_text_loss(model, tokenizer, text, batch_size=2) == pytest.approx(expected, abs=1e-5)
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
