"""Classifying: the latency of one message and the throughput of many, in many ways."""

import argparse
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from bench_common import format_table, interleave, machine, mixed_sequences, random_classifier
from classifying_ways import all_ways

from finetune import COUNT
from gpt_download import resolve_model_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--messages", type=COUNT, default=1000, help="mixed messages, real ones")
    parser.add_argument(
        "--shares", type=COUNT, default=8, help="equal parts of the messages; a round takes one"
    )
    parser.add_argument("--repetitions", type=COUNT, default=3, help="rounds; the median counts")


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    model = random_classifier(name, args.device)
    sequences = mixed_sequences(name, args.messages)
    shares = [sequences[i :: args.shares] for i in range(args.shares)]
    few = shares[0][:16]
    ways = all_ways(model)
    usable = {way: classify for way, classify in ways.items() if callable(classify)}

    expected = usable["plain loop"](few).softmax(dim=-1)
    difference = {
        way: (classify(few).softmax(dim=-1) - expected).abs().max().item()
        for way, classify in usable.items()
    }
    typical = sorted(sequences, key=len)[len(sequences) // 2]
    latency = interleave(
        {way: lambda _, c=classify: c([typical]) for way, classify in usable.items()},
        max(10, args.repetitions),
        args.device,
    )
    throughput = interleave(
        {way: lambda i, c=classify: c(shares[i % len(shares)]) for way, classify in usable.items()},
        args.repetitions,
        args.device,
        warm_up=False,  # the comparison and the latencies have done that
    )
    results = {
        way: {
            "latency_ms": 1000 * statistics.median(latency[way]),
            "messages_per_second": len(shares[0]) / statistics.median(throughput[way]),
            "largest_difference_of_probabilities": difference[way],
        }
        for way in usable
    }
    return {
        "model": name,
        "weights": "random",
        "data": "SMS Spam Collection, distinct messages in random order",
        "messages": args.messages,
        "median_tokens": len(typical),
        "real_tokens": sum(map(len, sequences)),
        "messages_timed": len(shares[0]) * args.repetitions,
        "repetitions": args.repetitions,
        "ways": results,
        "not_here": {way: reason for way, reason in ways.items() if not callable(reason)},
        **machine(args.device),
    }


def table(result: dict) -> str:
    rows = [
        (
            way,
            f"{figures['latency_ms']:.1f}",
            f"{figures['messages_per_second']:.1f}",
            f"{figures['largest_difference_of_probabilities']:.0e}",
        )
        for way, figures in result["ways"].items()
    ]
    header = ("way", "one message, ms", "messages a second", "difference")
    lines = [
        f"{result['model']}, {result['threads']} threads, {result['messages']:,} messages, "
        f"{result['messages_timed']} of them timed; "
        f"one message: {result['median_tokens']} tokens",
        format_table(rows, header),
    ]
    lines += [f"{way}: not here, {reason}" for way, reason in result["not_here"].items()]
    return "\n".join(lines)


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
