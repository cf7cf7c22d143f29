"""Fewer bits a weight: size, speed and accuracy of a fine-tuned gpt-mini on real messages, and
size and speed of GPT-2's shape."""

import argparse
import copy
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import (
    NotHere,
    Table,
    interleave,
    machine,
    mixed_sequences,
    random_classifier,
    reasons,
    try_each,
)
from classifying_ways import is_block_linear, torch_dynamic_int8, torchao_int8

import finetune
from evaluation import wilson_interval
from finetune import COUNT
from gpt_download import resolve_model_name
from previous_chapters import GPTModel
from text_classifier import Classifier, TrainConfig, open_classifier, predict_logits
from text_data import (
    SpamDataset,
    balance_classes,
    clean_messages,
    encode_messages,
    read_sms_spam,
    split_messages,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape for speed; random weights")
    parser.add_argument("--messages", type=COUNT, default=64, help="mixed messages for speed")
    parser.add_argument("--epochs", type=COUNT, default=5, help="of gpt-mini's fine-tuning")
    parser.add_argument("--repetitions", type=COUNT, default=5, help="rounds; the median counts")


# ---------------------------------------------------------------------------------------------
# The ways to quantise
# ---------------------------------------------------------------------------------------------


def bfloat16(model: GPTModel) -> GPTModel:
    return copy.deepcopy(model).to(torch.bfloat16)


def int8_weights(model: GPTModel) -> GPTModel:
    """Weights of the blocks in 8 bits, one scale a row; activations stay as they are."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    changed = copy.deepcopy(model)
    quantize_(changed, Int8WeightOnlyConfig(), filter_fn=is_block_linear)
    return changed


def int4_weights(model: GPTModel) -> GPTModel:
    """Weights of the blocks in 4 bits, one scale for each 32; torchao keeps each of them in a byte
    on a processor, so that neither size nor speed gains, but the rounding is that of 4 bits."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    changed = copy.deepcopy(model)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    quantize_(changed, config, filter_fn=is_block_linear)
    return changed


WAYS: dict[str, Callable[[GPTModel], GPTModel]] = {
    "float32": copy.deepcopy,
    "bfloat16": bfloat16,
    "int8 weights and activations, PyTorch": torch_dynamic_int8,
    "int8 weights and activations, torchao": torchao_int8,
    "int8 weights, torchao": int8_weights,
    "int4 weights, torchao": int4_weights,
}


def stored_mb(model: GPTModel) -> float:
    """Size of the model as a file."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict:
    if args.device.type != "cpu":
        raise NotHere("these formats are a processor's; add --device cpu")
    name = resolve_model_name(args.model)
    classifier, test = fine_tuned_mini(args.epochs)
    shape = random_classifier(name, torch.device("cpu"))
    sequences = mixed_sequences(name, args.messages)
    mixed = SpamDataset(sequences, [0] * len(sequences))

    makers = {
        way: lambda quantise=quantise: (quantise(classifier.model), quantise(shape))
        for way, quantise in WAYS.items()
    }

    def answer_both(models: tuple[GPTModel, GPTModel]) -> torch.Tensor:
        mini, large = models
        predict_logits(large, mixed)
        return predict_logits(mini, test)

    models, logits, not_here = try_each(makers, answer_both)
    rounds = interleave(
        {way: lambda m=large: predict_logits(m, mixed) for way, (_, large) in models.items()},
        args.repetitions,
        torch.device("cpu"),
        warm_up=False,
    )
    return {
        "model": name,
        "weights": "random",
        "messages": args.messages,
        "repetitions": args.repetitions,
        "fine_tuned": "gpt-mini",
        "data": finetune.SMS_NAME,
        "test_messages": len(test),
        "ways": {
            way: {
                **quality(logits[way], logits["float32"], test.labels),
                "mini_mb": stored_mb(mini),
                "shape_mb": stored_mb(large),
                "messages_per_second": len(mixed) / statistics.median(rounds[way]),
            }
            for way, (mini, large) in models.items()
        },
        "not_here": not_here,
        "rounds": rounds,
        **machine(torch.device("cpu")),
    }


def fine_tuned_mini(epochs: int, seed: int = TrainConfig.seed) -> tuple[Classifier, SpamDataset]:
    """gpt-mini as `finetune.py --model gpt-mini --pretrain-further 0` trains it, and its test
    messages. (Further pretraining takes a minute or two, and is beside the point here.)"""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", "gpt-mini", "--epochs", str(epochs), "--quiet", "--output", folder]
        arguments += ["--pretrain-further", "0", "--device", "cpu", "--seed", str(seed)]
        args = finetune.parse_args(arguments)
        if finetune.run(args)["data"] != finetune.SMS_NAME:
            raise ValueError("The SMS Spam Collection is needed: no result on made-up messages.")
        classifier = open_classifier(folder)
    messages = balance_classes(clean_messages(read_sms_spam()), seed)
    test = split_messages(messages, seed).test
    sequences = encode_messages(test["text"], classifier.tokenizer, classifier.max_length)
    return classifier, SpamDataset(sequences, [int(label == "spam") for label in test["label"]])


def quality(logits: torch.Tensor, expected: torch.Tensor, labels: list[int]) -> dict:
    """Accuracy with interval, and how far the answers are from those of 32 bits."""
    predicted = logits.argmax(dim=1)
    num_correct = int((predicted == torch.tensor(labels)).sum())
    return {
        "accuracy": num_correct / len(labels),
        "accuracy_interval": list(wilson_interval(num_correct, len(labels))),
        "changed_labels": int((predicted != expected.argmax(dim=1)).sum()),
        "largest_difference_of_probabilities": (logits.softmax(1) - expected.softmax(1))
        .abs()
        .max()
        .item(),
    }


# ---------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------


def tables(result: dict) -> list[Table]:
    rows = []
    for way, figures in result["ways"].items():
        low, high = figures["accuracy_interval"]
        rows.append(
            (
                way,
                f"{figures['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
                figures["changed_labels"],
                f"{figures['largest_difference_of_probabilities']:.3f}",
                f"{figures['mini_mb']:.1f}",
                f"{figures['shape_mb']:.0f}",
                f"{figures['messages_per_second']:.1f}",
            )
        )
    header = (
        "weights",
        f"test accuracy, n={result['test_messages']}",
        "changed labels",
        "largest difference of probabilities",
        "gpt-mini, MB",
        f"{result['model']}, MB",
        "its messages a second",
    )
    note = (
        f"Messages a second: {result['messages']} messages, grouped by length; median of "
        f"{result['repetitions']} rounds."
    )
    return [Table(header, rows, [note, *reasons(result["not_here"])])]


def plot(result: dict, folder: Path) -> None:
    names = list(result["ways"])
    panels = (("shape_mb", "file size (MB)"), ("messages_per_second", "messages a second"))
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.2), sharey=True)
    for ax, (key, label) in zip(axes, panels, strict=True):
        values = [result["ways"][name][key] for name in names]
        ax.bar_label(ax.barh(names, values, color="#e6761b"), fmt="%.0f", padding=3)
        ax.set_xlabel(label)
        ax.set_xlim(right=max(values) * 1.15)
    axes[0].invert_yaxis()
    fig.tight_layout()
    fig.savefig(folder / "quantize.png", dpi=120)
    plt.close(fig)
