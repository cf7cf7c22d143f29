"""Fewer bits a weight, on the processor: size, speed and accuracy.

Accuracy is that of a fine-tuned gpt-mini on real messages; size and speed also of another shape.
"""

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import bench_common as bench
import torch
from torch import nn

from evaluation import wilson_interval
from features import FastClassifier
from fine_tuning import RunConfig, RunResult, fine_tune, make_datasets
from text_classifier import GPTClassifier, predict_logits
from text_data import SpamDataset

OPTIONS = {
    "messages": (64, "mixed messages for speed"),
    "num_epochs": (5, "of gpt-mini's fine-tuning"),
    "repetitions": (5, "rounds; the median counts"),
}


def bfloat16(classifier: GPTClassifier) -> GPTClassifier:
    """All weights, embeddings too, and activations: 8 bits of precision, half the memory."""
    bench.require_bf16(classifier.device)
    return copy.deepcopy(classifier).to(torch.bfloat16)


def int8_by_pytorch(classifier: GPTClassifier) -> GPTClassifier:
    """PyTorch's own dynamic quantisation, for processors: matrices in 8 bits, activations too
    while they are multiplied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they point to torchao, which is measured too
        changed = copy.deepcopy(classifier)
        return torch.ao.quantization.quantize_dynamic(changed, {nn.Linear}, torch.qint8)


def by_torchao(make_config: Callable[[Any], Any], classifier: GPTClassifier) -> GPTClassifier:
    """The blocks' matrices in one of torchao's formats, not the small head."""
    from torchao import quantization

    changed = copy.deepcopy(classifier)
    quantization.quantize_(changed.decoder.trf_blocks, make_config(quantization))
    return changed


int8_by_torchao = partial(by_torchao, lambda q: q.Int8DynamicActivationInt8WeightConfig())
int8_weights = partial(by_torchao, lambda q: q.Int8WeightOnlyConfig())
# One scale for each 32 weights. torchao keeps 4 bits in a byte on a processor, so that neither size
# nor speed gains, but the rounding is that of 4 bits.
int4_weights = partial(
    by_torchao,
    lambda q: q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(32)),
)
WAYS: dict[str, Callable[[GPTClassifier], GPTClassifier]] = {
    "float32": copy.deepcopy,
    "bfloat16": bfloat16,
    "int8 weights and activations, PyTorch": int8_by_pytorch,
    "int8 weights and activations, torchao": int8_by_torchao,
    "int8 weights, torchao": int8_weights,
    "int4 weights, torchao": int4_weights,
}


def classify(classifier: GPTClassifier, dataset: SpamDataset) -> torch.Tensor:
    """Logits (N, C), as `classify.py` computes them."""
    return predict_logits(FastClassifier(classifier), dataset)


def stored_mb(classifier: GPTClassifier) -> float:
    """Size of the classifier as a file."""
    buffer = io.BytesIO()
    torch.save(classifier.state_dict(), buffer)
    return buffer.tell() / 1e6


def fine_tuned_mini(num_epochs: int, seed: int = RunConfig.seed) -> tuple[RunResult, SpamDataset]:
    """gpt-mini as `finetune.py --model gpt-mini --continued-pretraining-epochs 0` trains it, and
    its test messages. (Continued pretraining takes a minute or two, and is beside the point.)"""
    how = {"continued_pretraining_epochs": 0, "num_epochs": num_epochs, "seed": seed}
    result = fine_tune(RunConfig(model="gpt-mini", device="cpu", quiet=True, **how))
    *_, test = make_datasets(result.messages, result.tokenizer, result.classifier.config)
    return result, test


def quality(logits: torch.Tensor, expected: torch.Tensor, labels: list[int]) -> dict[str, Any]:
    """Accuracy with interval, and how far the answers are from those of 32 bits."""
    predicted = logits.argmax(dim=1)
    num_correct = int((predicted == torch.tensor(labels)).sum())
    moved = (logits.softmax(dim=1) - expected.softmax(dim=1)).abs()
    return {
        "accuracy": num_correct / len(labels),
        "95% interval": list(wilson_interval(num_correct, len(labels))),
        "changed labels": int((predicted != expected.argmax(dim=1)).sum()),
        "largest difference of probabilities": moved.max().item(),
    }


def run(
    model: str, device: torch.device, messages: int, num_epochs: int, repetitions: int
) -> dict[str, Any]:
    mixed, shape = bench.mixed_dataset(model, messages), bench.random_classifier(model, device)
    fine_tuned, test = fine_tuned_mini(num_epochs)
    makers = {
        way: lambda quantise=quantise: (quantise(fine_tuned.classifier), quantise(shape))
        for way, quantise in WAYS.items()
    }
    ways, logits, unavailable = bench.try_each(makers, lambda both: classify(both[0], test))
    functions = {way: partial(classify, large, mixed) for way, (_, large) in ways.items()}
    rounds = bench.time_in_turns(functions, repetitions)
    rows = [
        {
            "weights": way,
            **quality(logits[way], logits["float32"], test.labels),
            "gpt-mini, MB": stored_mb(mini),
            "shape, MB": stored_mb(large),
            "shape, messages a second": len(mixed) / median(rounds[way]),
        }
        for way, (mini, large) in ways.items()
    ]
    note = (
        f"Accuracy: fine-tuned gpt-mini on {len(test)} test messages. Messages a second: "
        f"{messages}, grouped by length."
    )
    result = {"tables": {"ways": rows}, "notes": [note], "unavailable": unavailable}
    return result | {"rounds": rounds}


plot = partial(bench.plot_bars, columns=["shape, MB", "shape, messages a second"])
