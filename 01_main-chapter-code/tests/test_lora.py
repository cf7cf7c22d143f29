"""LoRA and DoRA: nothing changes at first, the corrections alone are trained, merging is exact."""

import copy

import pytest
import torch
from torch import nn

from lora import DoRALinear, LoRALinear, add_lora, merge_lora
from previous_chapters import GPTConfig, GPTModel, num_parameters
from smollm2 import LlamaConfig, LlamaModel
from text_classifier import ClassifierConfig, GPTClassifier, freeze_all_but, predict_logits
from text_data import SpamDataset
from training import TrainConfig, train_classifier_simple

SHAPE = {"vocab_size": 40, "context_length": 16, "emb_dim": 16, "n_heads": 2, "n_layers": 2}
DECODERS = {
    "gpt": lambda: GPTModel(GPTConfig(**SHAPE)),
    "llama": lambda: LlamaModel(LlamaConfig(**SHAPE, n_kv_heads=1, hidden_dim=24)),
}


@pytest.fixture(params=DECODERS)
def classifier(request) -> GPTClassifier:
    torch.manual_seed(0)
    config = ClassifierConfig(request.param, ("ham", "spam"), max_length=16)
    classifier = GPTClassifier(DECODERS[request.param](), config)
    freeze_all_but(classifier, "head")
    return classifier


@pytest.fixture(params=[LoRALinear, DoRALinear], ids=["lora", "dora"])
def kind(request) -> type[LoRALinear]:
    return request.param


@pytest.fixture
def messages() -> SpamDataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 16, (24,), generator=generator).tolist()
    sequences = [torch.randint(0, 40, (n,), generator=generator) for n in lengths]
    return SpamDataset(sequences, [i % 2 for i in range(24)])


def train(classifier: GPTClassifier, messages: SpamDataset) -> None:
    config = TrainConfig(learning_rate=1e-2, num_epochs=2)
    train_classifier_simple(classifier, messages, messages, config)


def linears(block: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def test_a_new_correction_changes_nothing(classifier, messages, kind):
    before = predict_logits(classifier, messages)
    add_lora(classifier.decoder, rank=2, alpha=4, kind=kind)
    torch.testing.assert_close(predict_logits(classifier, messages), before, rtol=0, atol=1e-6)


def test_every_linear_layer_of_a_block_is_corrected_and_nothing_else_but_the_head_is_trained(
    classifier, messages, kind
):
    frozen = copy.deepcopy(classifier.decoder)
    add_lora(classifier.decoder, rank=2, alpha=4, kind=kind)
    shapes = [
        layer.weight.shape for block in frozen.trf_blocks for layer in linears(block).values()
    ]
    corrections = sum(2 * (outputs + inputs) for outputs, inputs in shapes)
    if kind is DoRALinear:
        corrections += sum(outputs for outputs, _ in shapes)
    assert num_parameters(classifier, trainable_only=True) == corrections + 2 * 16 + 2
    train(classifier, messages)
    for old, block in zip(frozen.trf_blocks, classifier.decoder.trf_blocks, strict=True):
        for name, linear in linears(old).items():
            layer = block.get_submodule(name)
            assert torch.equal(layer.linear.weight, linear.weight), name
            assert layer.B.abs().max() > 0, f"{name} learned nothing"
            if kind is DoRALinear:
                assert not torch.allclose(layer.magnitude, linear.weight.norm(dim=1)), name
    assert torch.equal(classifier.decoder.tok_emb.weight, frozen.tok_emb.weight)


def test_merged_and_unmerged_are_equal(classifier, messages, kind):
    plain = set(classifier.state_dict())
    untrained = predict_logits(classifier, messages)
    add_lora(classifier.decoder, rank=2, alpha=4, kind=kind)
    train(classifier, messages)
    unmerged = predict_logits(classifier, messages)
    assert (unmerged - untrained).abs().max() > 0.1
    merge_lora(classifier.decoder)
    merged = predict_logits(classifier, messages)
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


def test_alpha_scales_the_correction():
    inputs, linear = torch.randn(3, 16), nn.Linear(16, 16)
    outputs = {}
    for alpha in (2, 4):
        torch.manual_seed(1)
        layer = LoRALinear(linear, rank=2, alpha=alpha)
        torch.nn.init.ones_(layer.B)
        outputs[alpha] = layer(inputs) - linear(inputs)
    torch.testing.assert_close(outputs[4], 2 * outputs[2], rtol=1e-4, atol=1e-5)


def test_layers_can_be_chosen(classifier):
    add_lora(classifier.decoder, rank=2, alpha=4, layers=("att.W_query", "att.W_value"))
    modules = classifier.decoder.trf_blocks[0].named_modules()
    corrected = {name for name, m in modules if isinstance(m, LoRALinear)}
    assert corrected == {"att.W_query", "att.W_value"}


def test_corrections_are_not_corrected_again(classifier):
    add_lora(classifier.decoder, rank=2, alpha=4)
    with pytest.raises(ValueError, match="corrections already"):
        add_lora(classifier.decoder, rank=2, alpha=4)


@pytest.mark.parametrize("rank", [0, 17])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=r"rank=\d+ must lie between 1 and 16"):
        LoRALinear(nn.Linear(16, 16), rank, alpha=4)
