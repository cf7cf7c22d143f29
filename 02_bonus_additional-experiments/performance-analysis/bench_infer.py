"""Classifying: the latency of one message and the throughput of many, in many ways."""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from bench_common import (
    evenly_spaced,
    mixed_dataset,
    plot_bars,
    random_classifier,
    time_in_turns,
    try_each,
    unavailable_notes,
)
from classifying_ways import makers_of_ways

from text_data import SpamDataset

OPTIONS = {
    "messages": (1000, "mixed messages, real ones"),
    "sample": (200, "of them, evenly spaced by length, that every way classifies in every round"),
    "repetitions": (3, "rounds; the median counts"),
}
LATENCY_ROUNDS = 10  # of a single message, which takes milliseconds


def run(
    model: str, device: torch.device, messages: int, sample: int, repetitions: int
) -> dict[str, Any]:
    sequences = mixed_dataset(model, messages).sequences
    chosen = evenly_spaced(range(len(sequences)), sample, lambda i: len(sequences[i]))
    mixed = SpamDataset([sequences[i] for i in sorted(chosen)])  # as they come
    typical = SpamDataset([sorted(sequences, key=len)[len(sequences) // 2]])

    # A first pass over a quarter of it, of all lengths, is each way's warm-up, and says how far
    # the answers differ.
    quarter = SpamDataset(sorted(mixed.sequences, key=len)[::4])
    makers = makers_of_ways(random_classifier(model, device))
    ways, logits, unavailable = try_each(makers, lambda classify: classify(quarter))
    of_many = {way: partial(classify, mixed) for way, classify in ways.items()}
    of_one = {way: partial(classify, typical) for way, classify in ways.items()}
    seconds = time_in_turns(of_many, repetitions, device, warm_up=False)
    latency = time_in_turns(of_one, LATENCY_ROUNDS, device)
    probabilities = {way: values.softmax(dim=-1) for way, values in logits.items()}
    expected = probabilities["plain loop"]
    rows = [
        {
            "way": way,
            "one message, ms": 1000 * median(latency[way]),
            "messages a second": len(mixed) / median(seconds[way]),
            "largest difference of probabilities": (values - expected).abs().max().item(),
        }
        for way, values in probabilities.items()
    ]
    return {
        "tables": {"ways": rows},
        "median_tokens": typical.lengths[0],
        "sample_tokens": sum(mixed.lengths),
        "unavailable": unavailable,
        "rounds": {"sample_seconds": seconds, "one_message_seconds": latency},
    }


def notes(result: dict[str, Any]) -> list[str]:
    options = result["options"]
    note = (
        f"One message: {result['median_tokens']} tokens. Messages a second: {options['sample']:,} "
        f"of {options['messages']:,} messages, {result['sample_tokens']:,} tokens."
    )
    return [note, *unavailable_notes(result["unavailable"])]


def plot(result: dict[str, Any], path: Path) -> None:
    ways = pd.DataFrame(result["tables"]["ways"]).set_index("way")
    plot_bars(ways[["one message, ms", "messages a second"]], path)
