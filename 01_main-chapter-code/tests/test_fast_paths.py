"""What the fast paths skip changes nothing: one position, and the cache for generating."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import DECODERS, GPT, random_decoder, randomise

from fast_paths import KeyValueCache, Uninitialised, block_at_positions, select_positions
from previous_chapters import GPTModel, TransformerBlock, generate, generate_text_simple

POSITIONS = torch.tensor([8, 0, 4])
each_decoder = pytest.mark.parametrize("cfg", DECODERS.values(), ids=DECODERS)


@pytest.fixture
def x():
    return torch.randn(3, 9, GPT.emb_dim, generator=torch.Generator().manual_seed(1))


def random_block(**changes) -> TransformerBlock:
    torch.manual_seed(0)
    return randomise(TransformerBlock(dataclasses.replace(GPT, **changes)), std=0.2)


def without_folding(block: TransformerBlock, x: torch.Tensor, dropout: float) -> torch.Tensor:
    """One query a sequence, but keys and values of all tokens, and dropout step by step."""
    normed, att = block.norm1(x), block.att
    queries = att.queries(select_positions(normed, POSITIONS), POSITIONS.unsqueeze(1))
    keys, values = att.keys(normed, torch.arange(9)), att.values(normed)
    scores = queries @ keys.transpose(-2, -1) / keys.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.arange(9) > POSITIONS.view(-1, 1, 1, 1), -torch.inf)
    weights = F.dropout(scores.softmax(-1).squeeze(2), dropout, block.training).unsqueeze(2)
    return block.add_to_stream(select_positions(x, POSITIONS), att.merge_heads(weights @ values))


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_gradients_and_dropout_at_one_position_equal_the_plain_way(x, dropout, qkv_bias):
    block = random_block(drop_rate=dropout, qkv_bias=qkv_bias).train()
    ways = [
        lambda x: without_folding(block, x, dropout),
        lambda x: block_at_positions(block, x, POSITIONS),
    ]
    if dropout == 0:
        ways.append(lambda x: select_positions(block(x), POSITIONS))
    results = []
    for way in ways:
        torch.manual_seed(1)  # for dropout
        given = x.clone().requires_grad_()
        output = way(given)
        grads = torch.autograd.grad(output.square().sum(), [given, *block.parameters()])
        results.append([output, *grads])
    for actual in results[1:]:
        for want, got in zip(results[0], actual, strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@each_decoder
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 1, 5)])
def test_outputs_and_gradients_at_one_position_of_a_padded_batch_equal_the_plain_block(
    cfg, x, causal, lengths
):
    block, x = random_decoder(cfg, causal=causal).trf_blocks[-1], x.requires_grad_()
    attention_mask = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    plain = select_positions(block(x, attention_mask), POSITIONS)
    fast = block_at_positions(block, x, POSITIONS, attention_mask)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    wanted = [x, *block.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), wanted) for y in (plain, fast)]
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_an_adapted_layer_makes_keys_and_values_itself(x):
    block = random_block()
    block.att.W_value = torch.nn.Sequential(block.att.W_value, torch.nn.Tanh())
    expected = select_positions(block(x), POSITIONS)
    found = block_at_positions(block, x, POSITIONS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@each_decoder
@pytest.mark.parametrize("num_given", [1, 12])
def test_generation_with_and_without_cache_is_the_same_even_beyond_the_context(
    cfg, input_ids, num_given
):
    model, prompts = random_decoder(cfg), input_ids[:, :num_given]
    plain = generate_text_simple(model, prompts, 20, cfg.context_length)
    assert plain.shape[1] > cfg.context_length
    assert torch.equal(generate(model, prompts, 20), plain)
    assert torch.equal(generate(model, prompts, 20, use_cache=False), plain)


@each_decoder
def test_cached_steps_give_the_logits_of_one_pass_and_compute_no_token_twice(cfg, input_ids):
    model = random_decoder(cfg)
    caches = [KeyValueCache() for _ in model.trf_blocks]
    computed = []
    model.trf_blocks[0].att.W_key.register_forward_hook(
        lambda module, inputs, output: computed.append(output.shape[1])
    )
    pieces = [model(part, caches=caches) for part in input_ids.split([5, 1, 4, 2], dim=1)]
    assert computed == [5, 1, 4, 2]
    assert caches[-1].num_tokens == 12
    assert caches[-1].keys.shape[1] == getattr(model.cfg, "n_kv_heads", 4)  # shared ones once
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"17 tokens .* context of 16"):
        model(input_ids[:, :5], caches=caches)


def test_a_model_that_is_not_initialised_has_its_shapes_and_draws_nothing():
    before = torch.get_rng_state()
    with torch.device("meta"), Uninitialised():
        model = GPTModel(GPT)
    with Uninitialised():
        other = GPTModel(GPT)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.tok_emb.weight.is_meta
    for weight, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert weight.shape == expected.shape
