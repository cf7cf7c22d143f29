"""Classifying: the latency of one message and the throughput of many, in many ways."""

import argparse
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from bench_common import (
    Table,
    evenly_spaced,
    interleave,
    machine,
    mixed_sequences,
    random_classifier,
    reasons,
    try_each,
)
from classifying_ways import other_ways, own_ways

from finetune import COUNT
from gpt_download import resolve_model_name

LATENCY_ROUNDS = 10  # of a single message, which takes milliseconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--messages", type=COUNT, default=1000, help="mixed messages, real ones")
    parser.add_argument(
        "--sample",
        type=COUNT,
        default=200,
        help="of them, evenly spaced by length, that every way classifies in every round",
    )
    parser.add_argument("--repetitions", type=COUNT, default=3, help="rounds; the median counts")


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    model = random_classifier(name, args.device)
    sequences = mixed_sequences(name, args.messages)
    chosen = evenly_spaced(range(len(sequences)), args.sample, lambda i: len(sequences[i]))
    sample = [sequences[i] for i in sorted(chosen)]  # in their order again: as they come
    typical = sorted(sequences, key=len)[len(sequences) // 2]

    # A first pass over a quarter of it, of all lengths, is each way's warm-up, and says how far
    # the answers differ.
    quarter = sorted(sample, key=len)[::4]
    ways = own_ways(model)
    logits = {way: classify(quarter) for way, classify in ways.items()}
    others, their_logits, not_here = try_each(other_ways(model), lambda classify: classify(quarter))
    ways, logits = ways | others, logits | their_logits
    throughput = interleave(
        {way: lambda c=classify: c(sample) for way, classify in ways.items()},
        args.repetitions,
        args.device,
        warm_up=False,
    )
    latency = interleave(
        {way: lambda c=classify: c([typical]) for way, classify in ways.items()},
        LATENCY_ROUNDS,
        args.device,
    )
    expected = logits["plain loop"].softmax(dim=-1)
    return {
        "model": name,
        "weights": "random",
        "data": "SMS Spam Collection, distinct messages in random order",
        "messages": len(sequences),
        "median_tokens": len(typical),
        "sample_messages": len(sample),
        "sample_tokens": sum(map(len, sample)),
        "repetitions": args.repetitions,
        "ways": {
            way: {
                "latency_ms": 1000 * statistics.median(latency[way]),
                "messages_per_second": len(sample) / statistics.median(throughput[way]),
                "largest_difference_of_probabilities": (logits[way].softmax(dim=-1) - expected)
                .abs()
                .max()
                .item(),
            }
            for way in ways
        },
        "not_here": not_here,
        "rounds": {"sample_seconds": throughput, "one_message_seconds": latency},
        **machine(args.device),
    }


def tables(result: dict) -> list[Table]:
    rows = [
        (
            way,
            f"{figures['latency_ms']:.1f}",
            f"{figures['messages_per_second']:.1f}",
            f"{figures['largest_difference_of_probabilities']:.0e}",
        )
        for way, figures in result["ways"].items()
    ]
    header = ("way", "one message, ms", "messages a second", "largest difference of probabilities")
    note = (
        f"Shape: {result['model']}. One message: {result['median_tokens']} tokens. Messages a "
        f"second: {result['sample_messages']:,} of {result['messages']:,} messages, "
        f"{result['sample_tokens']:,} tokens; median of {result['repetitions']} rounds."
    )
    return [Table(header, rows, [note, *reasons(result["not_here"])])]


def plot(result: dict, folder: Path) -> None:
    names = list(result["ways"])
    fig, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    quantities = ("latency_ms", "messages_per_second")
    labels = ("milliseconds for one message", "messages a second")
    for ax, quantity, label in zip(axes, quantities, labels, strict=True):
        values = [result["ways"][name][quantity] for name in names]
        theirs = ["#b0b0b0" if name.startswith("transformers") else "#e6761b" for name in names]
        ax.bar_label(ax.barh(names, values, color=theirs), fmt="%.1f", padding=3)
        ax.set_xlabel(label)
        ax.set_xlim(right=max(values) * 1.2)
    axes[0].invert_yaxis()
    fig.tight_layout()
    fig.savefig(folder / "infer.png", dpi=120)
    plt.close(fig)
