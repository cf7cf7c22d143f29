"""Fewer bits a weight: size, speed and accuracy of a fine-tuned gpt-mini on real messages, and
size and speed of another shape."""

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from bench_common import (
    Unavailable,
    mixed_dataset,
    plot_bars,
    random_classifier,
    time_in_turns,
    try_each,
    unavailable_notes,
)
from classifying_ways import bfloat16, int4_weights, int8_by_pytorch, int8_by_torchao, int8_weights

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
WAYS: dict[str, Callable[[GPTClassifier], GPTClassifier]] = {
    "float32": copy.deepcopy,
    "bfloat16": bfloat16,
    "int8 weights and activations, PyTorch": int8_by_pytorch,
    "int8 weights and activations, torchao": int8_by_torchao,
    "int8 weights, torchao": int8_weights,
    "int4 weights, torchao": int4_weights,
}


def stored_mb(classifier: GPTClassifier) -> float:
    """Size of the classifier as a file."""
    buffer = io.BytesIO()
    torch.save(classifier.state_dict(), buffer)
    return buffer.tell() / 1e6


def run(
    model: str, device: torch.device, messages: int, num_epochs: int, repetitions: int
) -> dict[str, Any]:
    if device.type != "cpu":
        raise Unavailable("these formats are a processor's; add --device cpu")
    mixed, shape = mixed_dataset(model, messages), random_classifier(model, device)
    fine_tuned, test = fine_tuned_mini(num_epochs)
    makers = {
        way: lambda quantise=quantise: (quantise(fine_tuned.classifier), quantise(shape))
        for way, quantise in WAYS.items()
    }

    def answer_both(classifiers: tuple[GPTClassifier, GPTClassifier]) -> torch.Tensor:
        mini, large = classifiers
        classify(large, mixed)
        return classify(mini, test)

    classifiers, logits, unavailable = try_each(makers, answer_both)
    functions = {way: partial(classify, large, mixed) for way, (_, large) in classifiers.items()}
    rounds = time_in_turns(functions, repetitions, device, warm_up=False)
    rows = [
        {
            "weights": way,
            **quality(logits[way], logits["float32"], test.labels),
            "gpt-mini, MB": stored_mb(mini),
            "shape, MB": stored_mb(large),
            "shape, messages a second": len(mixed) / median(rounds[way]),
        }
        for way, (mini, large) in classifiers.items()
    ]
    return {
        "tables": {"ways": rows},
        "data": fine_tuned.metrics["data"],
        "test_messages": len(test),
        "unavailable": unavailable,
        "rounds": rounds,
    }


def classify(classifier: GPTClassifier, dataset: SpamDataset) -> torch.Tensor:
    """Logits (N, C), as `classify.py` computes them."""
    return predict_logits(FastClassifier(classifier), dataset)


def fine_tuned_mini(num_epochs: int, seed: int = RunConfig.seed) -> tuple[RunResult, SpamDataset]:
    """gpt-mini as `finetune.py --model gpt-mini --continued-pretraining-epochs 0` trains it, and
    its test messages. (Continued pretraining takes a minute or two, and is beside the point.)"""
    config = RunConfig(
        model="gpt-mini",
        continued_pretraining_epochs=0,
        num_epochs=num_epochs,
        seed=seed,
        device="cpu",
        quiet=True,
    )
    result = fine_tune(config)
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


def notes(result: dict[str, Any]) -> list[str]:
    note = (
        f"Accuracy: fine-tuned gpt-mini on {result['test_messages']} test messages. Messages a "
        f"second: {result['options']['messages']}, grouped by length."
    )
    return [note, *unavailable_notes(result["unavailable"])]


def plot(result: dict[str, Any], path: Path) -> None:
    ways = pd.DataFrame(result["tables"]["ways"]).set_index("weights")
    plot_bars(ways[["shape, MB", "shape, messages a second"]], path)
