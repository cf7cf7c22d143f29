"""LoRA: nothing changes at first, only the corrections are trained, merging gives equal outputs."""

import copy

import pytest
import torch

from lora import BLOCK_LINEARS, LoRALinear, add_lora, merge_lora
from previous_chapters import GPTConfig, GPTModel, num_parameters
from text_classifier import (
    TrainConfig,
    add_classification_head,
    freeze_all_but,
    predict_logits,
    train_classifier_simple,
)
from text_data import SpamDataset


@pytest.fixture
def model() -> GPTModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "context_length": 16, "emb_dim": 16, "num_heads": 2}
    model = GPTModel(GPTConfig(**shape, num_layers=2))
    add_classification_head(model, num_classes=2)
    freeze_all_but(model, "head")
    return model


@pytest.fixture
def messages() -> SpamDataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 16, (24,), generator=generator).tolist()
    sequences = [torch.randint(0, 40, (n,), generator=generator) for n in lengths]
    return SpamDataset(sequences, [i % 2 for i in range(24)])


def train(model: GPTModel, messages: SpamDataset) -> None:
    train_classifier_simple(model, messages, messages, TrainConfig(1e-2, num_epochs=2))


def test_a_new_correction_changes_nothing(model, messages):
    before = predict_logits(model, messages)
    add_lora(model, rank=2, alpha=4)
    torch.testing.assert_close(predict_logits(model, messages), before, rtol=0, atol=1e-6)


def test_only_the_corrections_and_the_head_are_trained(model, messages):
    frozen = copy.deepcopy(model)
    add_lora(model, rank=2, alpha=4)
    dims = {"ff.layers.0": 16 + 64, "ff.layers.2": 64 + 16}
    corrections = 2 * 2 * sum(dims.get(name, 32) for name in BLOCK_LINEARS)
    assert num_parameters(model, trainable_only=True) == corrections + 2 * 16 + 2
    train(model, messages)
    for old, block in zip(frozen.trf_blocks, model.trf_blocks):
        for name in BLOCK_LINEARS:
            layer = block.get_submodule(name)
            assert torch.equal(layer.linear.weight, old.get_submodule(name).weight), name
            assert layer.B.abs().max() > 0, f"{name} learned nothing"
    assert torch.equal(model.tok_emb.weight, frozen.tok_emb.weight)


def test_merged_and_unmerged_are_equal(model, messages):
    plain = set(model.state_dict())
    untrained = predict_logits(model, messages)
    add_lora(model, rank=2, alpha=4)
    train(model, messages)
    unmerged = predict_logits(model, messages)
    assert (unmerged - untrained).abs().max() > 0.1
    merge_lora(model)
    torch.testing.assert_close(predict_logits(model, messages), unmerged, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())
    assert set(model.state_dict()) == plain


def test_alpha_scales_the_correction(model, messages):
    inputs = torch.randn(3, 16)
    outputs = {}
    for alpha in (2, 4):
        torch.manual_seed(1)
        layer = LoRALinear(copy.deepcopy(model.trf_blocks[0].att.W_query), rank=2, alpha=alpha)
        torch.nn.init.ones_(layer.B)
        outputs[alpha] = layer(inputs) - layer.linear(inputs)
    torch.testing.assert_close(outputs[4], 2 * outputs[2], rtol=1e-4, atol=1e-6)


def test_layers_can_be_chosen(model):
    add_lora(model, rank=2, alpha=4, layers=("att.W_query", "att.W_value"))
    corrected = {n for n, m in model.trf_blocks[0].named_modules() if isinstance(m, LoRALinear)}
    assert corrected == {"att.W_query", "att.W_value"}


def test_corrections_are_not_corrected_again(model):
    add_lora(model, rank=2, alpha=4)
    with pytest.raises(ValueError, match="corrections already"):
        add_lora(model, rank=2, alpha=4)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_fit_is_refused(model, rank):
    with pytest.raises(ValueError, match=r"rank=\d+ must lie between 1 and 16"):
        add_lora(model, rank, alpha=4)
