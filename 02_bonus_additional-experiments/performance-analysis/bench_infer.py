"""Classifying: the latency of one message and the throughput of many, in many ways."""

import copy
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import bench_common as bench
import torch
from bench_quantize import bfloat16, int8_by_pytorch, int8_by_torchao
from hugging_face import hugging_face_classifier, hugging_face_inputs
from torch import Tensor

from features import FastClassifier
from onnx_classifier import NETWORK, OnnxClassifier, save_int8, save_onnx
from text_classifier import TOKENS_AT_ONCE, GPTClassifier, calc_logits
from text_data import SpamDataset, batches_by_length

OPTIONS = {
    "messages": (1000, "mixed messages, real ones"),
    "sample": (200, "of them, evenly spaced by length, that every way classifies in every round"),
    "repetitions": (3, "rounds; the median counts"),
}
LATENCY_ROUNDS = 10  # of a single message, which takes milliseconds
BATCH_SIZE = 16
CalcLogits = Callable[[dict[str, Tensor]], Tensor]  # of a batch


@torch.inference_mode()
def in_batches(calc: CalcLogits, max_size: int | None, dataset: SpamDataset, on: str) -> Tensor:
    """Logits (N, C) in batches of so many messages as they come; with None, in those that
    `classify.py` makes: of similar length, as many tokens as suit the kind of device `on`."""
    if max_size is None:
        batches = batches_by_length(dataset.lengths, TOKENS_AT_ONCE[on])
    else:
        batches = [rows.tolist() for rows in torch.arange(len(dataset)).split(max_size)]
    logits = [calc(dataset.collate([dataset[i] for i in rows])) for rows in batches]
    order = torch.tensor([i for rows in batches for i in rows])
    return torch.cat(logits).float().cpu()[order.argsort()]


def from_scratch(classifier: GPTClassifier) -> CalcLogits:
    return partial(calc_logits, FastClassifier(classifier))


def compiled(classifier: GPTClassifier) -> CalcLogits:
    """`torch.compile` of the blocks: they share one compilation, for any shape."""
    changed = copy.deepcopy(classifier)
    for block in changed.decoder.trf_blocks:
        block.compile(dynamic=True)
    return from_scratch(changed)


def in_onnx_runtime(save: Callable[..., None], classifier: GPTClassifier) -> CalcLogits:
    """Exported to ONNX, and run by ONNX Runtime on a processor."""
    if classifier.device.type != "cpu":
        raise RuntimeError("measured on a processor only")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        save(classifier, path)
        return partial(calc_logits, OnnxClassifier(path, classifier.config))


def in_transformers(classifier: GPTClassifier) -> CalcLogits:
    twin = hugging_face_classifier(classifier)
    twin.config.use_cache = False  # keys and values that nobody would read again
    return lambda batch: twin(**hugging_face_inputs(batch, twin)).logits


def makers_of_ways(classifier: GPTClassifier) -> dict[str, Callable[[], Any]]:
    """What makes each way: a function from a data set to logits (N, C). Making or calling one may
    fail with an error of a library's."""
    on, ours = classifier.device.type, from_scratch(classifier)
    theirs = cache(lambda: in_transformers(classifier))  # one copy of the weights for three ways
    int8 = int8_by_pytorch if on == "cpu" else int8_by_torchao
    in_8_bits = partial(save_int8, trial=[torch.arange(1, 17)])
    ways = {
        "plain loop": (lambda: ours, 1),
        f"batches of {BATCH_SIZE}": (lambda: ours, BATCH_SIZE),
        "grouped by length (classify.py)": (lambda: ours, None),
        # Early: an export forgets what was compiled before it.
        "ONNX Runtime, grouped": (lambda: in_onnx_runtime(save_onnx, classifier), None),
        "int8 in ONNX Runtime, grouped": (lambda: in_onnx_runtime(in_8_bits, classifier), None),
        "torch.compile, grouped": (lambda: compiled(classifier), None),
        "bf16, grouped": (lambda: from_scratch(bfloat16(classifier)), None),
        "int8, grouped": (lambda: from_scratch(int8(classifier)), None),
        "transformers, loop": (theirs, 1),
        f"transformers, batches of {BATCH_SIZE}": (theirs, BATCH_SIZE),
        "transformers, grouped": (theirs, None),
    }
    return {
        way: lambda make=make, size=size: partial(in_batches, make(), size, on=on)
        for way, (make, size) in ways.items()
    }


def run(
    model: str, device: torch.device, messages: int, sample: int, repetitions: int
) -> dict[str, Any]:
    sequences = bench.mixed_dataset(model, messages).sequences
    chosen = bench.evenly_spaced(range(len(sequences)), sample, lambda i: len(sequences[i]))
    mixed = SpamDataset([sequences[i] for i in sorted(chosen)])  # as they come
    typical = SpamDataset([sorted(sequences, key=len)[len(sequences) // 2]])

    # A quarter of it, of all lengths, says how far the answers differ.
    quarter = SpamDataset(sorted(mixed.sequences, key=len)[::4])
    makers = makers_of_ways(bench.random_classifier(model, device))
    ways, logits, unavailable = bench.try_each(makers, lambda classify: classify(quarter))
    of_many = {way: partial(classify, mixed) for way, classify in ways.items()}
    of_one = {way: partial(classify, typical) for way, classify in ways.items()}
    seconds = bench.time_in_turns(of_many, repetitions)
    latency = bench.time_in_turns(of_one, LATENCY_ROUNDS)
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
    note = (
        f"One message: {typical.lengths[0]} tokens. Messages a second: {len(mixed):,} of "
        f"{messages:,} messages, {sum(mixed.lengths):,} tokens."
    )
    return {
        "tables": {"ways": rows},
        "notes": [note],
        "unavailable": unavailable,
        "median_tokens": typical.lengths[0],
        "rounds": {"sample_seconds": seconds, "one_message_seconds": latency},
    }


plot = partial(bench.plot_bars, columns=["one message, ms", "messages a second"])
