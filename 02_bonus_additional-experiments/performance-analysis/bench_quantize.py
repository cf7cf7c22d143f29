"""Fewer bits a weight: size, speed and accuracy of a fine-tuned gpt-mini on real messages, and
size and speed of GPT-2's shape."""

import argparse
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import format_table, interleave, machine, mixed_sequences, random_classifier, twin
from classifying_ways import NotHere, is_block_linear, torch_dynamic_int8, torchao_int8

import finetune
from evaluation import wilson_interval
from finetune import COUNT
from gpt_download import resolve_model_name
from previous_chapters import GPTModel
from text_classifier import Classifier, open_classifier, predict_logits
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
    parser.add_argument("--repetitions", type=COUNT, default=3, help="rounds; the median counts")


# ---------------------------------------------------------------------------------------------
# The ways to quantise
# ---------------------------------------------------------------------------------------------


def bfloat16(model: GPTModel) -> GPTModel:
    return twin(model).to(torch.bfloat16)


def int8_weights(model: GPTModel) -> GPTModel:
    """Weights of the blocks in 8 bits, one scale a row; activations stay as they are."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    copy = twin(model)
    quantize_(copy, Int8WeightOnlyConfig(), filter_fn=is_block_linear)
    return copy


def int4_weights(model: GPTModel) -> GPTModel:
    """Weights of the blocks in 4 bits, one scale for each 32; torchao keeps each of them in a byte
    on a processor, so that neither size nor speed gains, but the rounding is that of 4 bits."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_

    copy = twin(model)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    quantize_(copy, config, filter_fn=is_block_linear)
    return copy


WAYS: dict[str, Callable[[GPTModel], GPTModel]] = {
    "float32": twin,
    "bfloat16": bfloat16,
    "int8 weights and activations, PyTorch": torch_dynamic_int8,
    "int8 weights and activations, torchao": torchao_int8,
    "int8 weights, torchao": int8_weights,
    "int4 weights, torchao": int4_weights,
}
NEEDS_TORCHAO = [name for name in WAYS if name.endswith("torchao")]


def stored_mb(model: GPTModel) -> float:
    """Size of the model as a file."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell() / 1e6


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    classifier, test = fine_tuned_mini(args.epochs)
    shape = random_classifier(name, torch.device("cpu"))
    sequences = mixed_sequences(name, args.messages)
    mixed = SpamDataset(sequences, [0] * len(sequences))

    minis, large, not_here = {}, {}, {}
    for way, quantise in WAYS.items():
        try:
            minis[way], large[way] = quantise(classifier.model), quantise(shape)
        except (NotHere, ImportError, NotImplementedError) as reason:
            not_here[way] = str(reason)
    logits = {way: predict_float(model, test) for way, model in minis.items()}
    seconds = interleave(
        {way: lambda _, m=model: predict_logits(m, mixed) for way, model in large.items()},
        args.repetitions,
        torch.device("cpu"),
    )
    return {
        "model": name,
        "weights": "random",
        "messages": args.messages,
        "fine_tuned": "gpt-mini",
        "data": finetune.SMS_NAME,
        "test_messages": len(test),
        "ways": {
            way: {
                **quality(logits[way], logits["float32"], test.labels),
                "mini_mb": stored_mb(minis[way]),
                "shape_mb": stored_mb(large[way]),
                "messages_per_second": len(mixed) / statistics.median(seconds[way]),
            }
            for way in minis
        },
        "not_here": not_here,
        **machine(torch.device("cpu")),
    }


def fine_tuned_mini(epochs: int) -> tuple[Classifier, SpamDataset]:
    """gpt-mini as `finetune.py --model gpt-mini` trains it, and its test messages."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", "gpt-mini", "--epochs", str(epochs), "--quiet", "--output", folder]
        args = finetune.parse_args([*arguments, "--device", "cpu"])
        if finetune.run(args)["data"] != finetune.SMS_NAME:
            raise ValueError("The SMS Spam Collection is needed: no result on made-up messages.")
        classifier = open_classifier(folder)
    messages = balance_classes(clean_messages(read_sms_spam()), args.seed)
    test = split_messages(messages, args.seed).test
    sequences = encode_messages(test["text"], classifier.tokenizer, classifier.max_length)
    return classifier, SpamDataset(sequences, [int(label == "spam") for label in test["label"]])


def predict_float(model: GPTModel, dataset: SpamDataset) -> torch.Tensor:
    return predict_logits(model, dataset).float()


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


def table(result: dict) -> str:
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
    header = ("weights", "accuracy", "changed", "difference", "mini, MB", "MB", "messages/s")
    lines = [
        f"gpt-mini on {result['test_messages']} test messages; size and speed also of "
        f"{result['model']}, {result['threads']} threads",
        format_table(rows, header),
    ]
    lines += [f"{way}: not here, {reason}" for way, reason in result["not_here"].items()]
    return "\n".join(lines)


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
