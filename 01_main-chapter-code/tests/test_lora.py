"""LoRA and DoRA: nothing changes at first, the corrections alone are trained, merging is exact."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import DECODERS, tiny_dataset
from torch import nn

from gpt_download import build_decoder
from lora import DoRALinear, LoRALinear, add_lora, merge_lora
from previous_chapters import num_parameters
from text_classifier import ClassifierConfig, GPTClassifier, freeze_all_but, predict_logits
from training import TrainConfig, train_classifier_simple

MESSAGES = tiny_dataset(24)


@pytest.fixture(params=DECODERS)
def classifier(request) -> GPTClassifier:
    torch.manual_seed(0)
    decoder = build_decoder(replace(DECODERS[request.param], context_length=32))
    classifier = GPTClassifier(decoder, ClassifierConfig("gpt-mini", ("ham", "spam"), 32))
    freeze_all_but(classifier, "head")
    return classifier


@pytest.fixture(params=[LoRALinear, DoRALinear], ids=["lora", "dora"])
def kind(request) -> type[LoRALinear]:
    return request.param


def train(classifier: GPTClassifier) -> None:
    config = TrainConfig(learning_rate=1e-2, num_epochs=2)
    train_classifier_simple(classifier, MESSAGES, MESSAGES, config)


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def test_every_linear_layer_of_a_block_is_corrected_and_nothing_else_but_the_head_is_trained(
    classifier, kind
):
    frozen = copy.deepcopy(classifier.decoder)
    add_lora(classifier.decoder, rank=2, alpha=4, kind=kind)
    shapes = [
        layer.weight.shape for block in frozen.trf_blocks for layer in linears(block).values()
    ]
    corrections = sum(2 * (outputs + inputs) for outputs, inputs in shapes)
    if kind is DoRALinear:
        corrections += sum(outputs for outputs, _ in shapes)
    assert num_parameters(classifier, trainable_only=True) == corrections + 2 * 32 + 2
    train(classifier)
    for old, block in zip(frozen.trf_blocks, classifier.decoder.trf_blocks, strict=True):
        for name, linear in linears(old).items():
            layer = block.get_submodule(name)
            assert torch.equal(layer.linear.weight, linear.weight), name
            assert layer.B.abs().max() > 0, f"{name} learned nothing"
            if kind is DoRALinear:
                assert not torch.allclose(layer.magnitude, linear.weight.norm(dim=1)), name
    assert torch.equal(classifier.decoder.tok_emb.weight, frozen.tok_emb.weight)


def test_a_new_correction_changes_nothing_and_a_merged_one_what_the_unmerged_did(classifier, kind):
    plain = set(classifier.state_dict())
    before = predict_logits(classifier, MESSAGES)
    add_lora(classifier.decoder, rank=2, alpha=4, kind=kind)
    torch.testing.assert_close(predict_logits(classifier, MESSAGES), before, rtol=0, atol=1e-6)
    train(classifier)
    unmerged = predict_logits(classifier, MESSAGES)
    assert (unmerged - before).abs().max() > 0.1
    merge_lora(classifier.decoder)
    merged = predict_logits(classifier, MESSAGES)
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)
    assert set(classifier.state_dict()) == plain


def test_outputs_and_gradients_are_those_of_peft(kind):
    peft = pytest.importorskip("peft", reason="peft is missing: python -m pip install peft")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 12))
    ours = kind(copy.deepcopy(plain[0]), rank=2, alpha=4)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["0"], use_dora=kind is DoRALinear, lora_dropout=0.0
    )
    theirs = peft.get_peft_model(plain, config)
    names = {"A": "lora_A.default.weight", "B": "lora_B.default.weight"}
    if kind is DoRALinear:
        names["magnitude"] = "lora_magnitude_vector.default.weight"
    parameters = dict(theirs.base_model.model[0].named_parameters())
    with torch.no_grad():
        for name, their_name in names.items():  # trained ones, so that every part acts
            value = getattr(ours, name)
            value += 0.3 * torch.randn_like(value)
            parameters[their_name].copy_(value)
    x = torch.randn(5, 16)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    for model in (ours, theirs):
        model(x).square().sum().backward()
    for name, their_name in names.items():
        gradient = parameters[their_name].grad
        torch.testing.assert_close(getattr(ours, name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_corrections_are_not_corrected_again(classifier):
    add_lora(classifier.decoder, rank=2, alpha=4)
    with pytest.raises(ValueError, match="corrections already"):
        add_lora(classifier.decoder, rank=2, alpha=4)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=r"rank=\d+ must lie between 1 and 16"):
        LoRALinear(nn.Linear(16, 16), rank, alpha=4)
