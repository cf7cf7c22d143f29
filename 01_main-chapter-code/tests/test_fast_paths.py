"""What the fast paths skip changes nothing: one position, and the cache for generating."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fast_paths import KeyValueCache, block_at_positions, select_positions
from previous_chapters import (
    GPTConfig,
    GPTModel,
    TransformerBlock,
    generate,
    generate_text_simple,
)

TINY = GPTConfig(vocab_size=100, context_length=16, emb_dim=32, n_heads=4, n_layers=3)
POSITIONS = torch.tensor([8, 0, 4])


@pytest.fixture
def x():
    return torch.randn(3, 9, TINY.emb_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def input_ids():
    return torch.randint(TINY.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))


def random_block(**changes) -> TransformerBlock:
    torch.manual_seed(0)
    block = TransformerBlock(dataclasses.replace(TINY, **changes)).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


def random_model() -> GPTModel:
    torch.manual_seed(0)
    model = GPTModel(TINY).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


# --- one position -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("attention_mask", [None, torch.arange(9) < torch.tensor([[9], [5], [7]])])
def test_at_one_position_without_causal_mask_all_real_tokens_are_seen(x, attention_mask):
    block = random_block(causal=False)
    expected = select_positions(block(x, attention_mask), POSITIONS)
    actual = block_at_positions(block, x, POSITIONS, attention_mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_an_adapted_layer_makes_keys_and_values_itself(x):
    block = random_block()
    block.att.W_value = torch.nn.Sequential(block.att.W_value, torch.nn.Tanh())
    expected = select_positions(block(x), POSITIONS)
    torch.testing.assert_close(
        block_at_positions(block, x, POSITIONS), expected, atol=1e-5, rtol=1e-5
    )


# --- the cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_given", [1, 12])
def test_generation_with_and_without_cache_is_the_same_even_beyond_the_context(
    input_ids, num_given
):
    model, prompts = random_model(), input_ids[:, :num_given]
    plain = generate_text_simple(model, prompts, 20, TINY.context_length)
    assert plain.shape[1] > TINY.context_length
    assert torch.equal(generate(model, prompts, 20), plain)
    assert torch.equal(generate(model, prompts, 20, use_cache=False), plain)


def test_cached_steps_give_the_logits_of_one_pass_and_compute_no_token_twice(input_ids):
    model = random_model()
    caches = [KeyValueCache() for _ in model.trf_blocks]
    computed = []
    model.trf_blocks[0].att.W_key.register_forward_hook(
        lambda module, inputs, output: computed.append(output.shape[1])
    )
    pieces = [model(part, caches=caches) for part in input_ids.split([5, 1, 4, 2], dim=1)]
    assert computed == [5, 1, 4, 2]
    assert caches[-1].num_tokens == 12
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(input_ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"17 tokens .* context of 16"):
        model(input_ids[:, :5], caches=caches)
