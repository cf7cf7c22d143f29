"""Time and memory against length, batch size, model size, number of messages, threads, workers."""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from bench_common import (
    NotHere,
    Table,
    interleave,
    machine,
    matrix_rate,
    mixed_messages,
    mixed_sequences,
    random_classifier,
    run_fresh,
)
from bench_memory import peaks_by_stage, predict_mb
from floors import block_operations
from measure_memory import random_batch
from torch.utils.data import DataLoader
from training_ways import Way, logits_of

from finetune import COUNT
from gpt_download import load_mini_tokenizer, resolve_model_name
from previous_chapters import MODEL_CONFIGS, GPTConfig, GPTModel
from text_classifier import Classifier, add_classification_head, predict_logits, save_classifier
from text_data import Batch, SpamDataset, pad_batch

GPT2_SHAPES = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
FUSED, BY_HAND = Way("fused kernel", fused_attention=True), Way("by hand")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument(
        "--lengths", type=COUNT, nargs="+", default=[64, 128, 256, 512, 1024], help="tokens"
    )
    parser.add_argument(
        "--batch-sizes", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="messages"
    )
    parser.add_argument(
        "--shapes", nargs="+", default=list(GPT2_SHAPES), help="shapes for the model's size"
    )
    parser.add_argument(
        "--messages", type=COUNT, nargs="+", default=[10**3, 10**4, 10**5, 10**6], help="streamed"
    )
    parser.add_argument(
        "--threads",
        type=COUNT,
        nargs="+",
        default=sorted({1, 2, os.cpu_count()}),
        help="threads that compute",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 1, 2], help="processes that load batches"
    )
    parser.add_argument("--repetitions", type=COUNT, default=5, help="rounds; the median counts")


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    cfg = MODEL_CONFIGS[name]
    args.shapes = [resolve_model_name(shape) for shape in args.shapes]  # a typo costs no minutes
    if max(args.lengths) > cfg.context_length:
        raise ValueError(f"--lengths: {name} reads {cfg.context_length} tokens at most.")
    model = random_classifier(name, args.device)
    rounds: dict[str, dict[str, list[float]]] = {}
    sections = {
        "length": against_length(model, args, rounds),
        "batch_size": against_batch_size(model, args, rounds),
        "thread_counts": against_threads(model, args, rounds),
        "workers": against_workers(args, rounds),
        "model_size": against_model_size(args, rounds),
        "messages": against_messages(args),
    }
    return {
        "model": name,
        "weights": "random",
        "repetitions": args.repetitions,
        **sections,
        "rounds": rounds,
        **machine(args.device),
    }


# ---------------------------------------------------------------------------------------------
# One quantity at a time
# ---------------------------------------------------------------------------------------------


def forward(model: GPTModel, batch: Batch, way: Way) -> Callable[[], torch.Tensor]:
    return lambda: logits_of(model, batch, way)


def medians(name: str, functions: dict, args: argparse.Namespace, rounds: dict) -> dict[str, float]:
    """Median seconds of functions that take turns; every round goes into `rounds[name]`."""
    with torch.inference_mode():
        rounds[name] = interleave(functions, args.repetitions, args.device)
    return {key: statistics.median(values) for key, values in rounds[name].items()}


def against_length(model: GPTModel, args: argparse.Namespace, rounds: dict) -> list[dict]:
    """One message of growing length, with attention fused and by hand."""
    functions = {
        f"{way.name}, {length}": forward(model, random_batch(model, 1, length), way)
        for length in args.lengths
        for way in (FUSED, BY_HAND)
    }
    seconds = medians("length", functions, args, rounds)
    rows = []
    for length in args.lengths:
        operations = model.cfg.num_layers * block_operations(model.cfg, [length])
        quadratic = model.cfg.num_layers * 2 * model.cfg.emb_dim * length**2
        row = {
            "tokens": length,
            "fused_seconds": seconds[f"{FUSED.name}, {length}"],
            "by_hand_seconds": seconds[f"{BY_HAND.name}, {length}"],
            "gflop": operations / 1e9,
            "quadratic_share": quadratic / operations,
        }
        for key, choice in (("fused", "inference"), ("by_hand", "inference_by_hand")):
            row[f"{key}_extra_mb"] = extra_mb(choice, length, args)
            row[f"{key}_predicted_mb"] = predict_mb(model.cfg, choice, 1, length) - predict_mb(
                model.cfg, choice, 1, 0
            )
        rows.append(row)
    return rows


def extra_mb(choice: str, length: int, args: argparse.Namespace) -> float | None:
    """What a forward pass needs on top of the model itself; None where it cannot be measured."""
    try:
        stages = peaks_by_stage(args.model, choice, 1, length, args.device)
    except NotHere:
        return None
    return stages["forward"] - stages["model"]


def against_batch_size(model: GPTModel, args: argparse.Namespace, rounds: dict) -> list[dict]:
    """Batches of messages of 32 tokens."""
    functions = {
        str(size): forward(model, random_batch(model, size, 32), FUSED) for size in args.batch_sizes
    }
    return [
        {"batch_size": int(size), "seconds": value, "messages_per_second": int(size) / value}
        for size, value in medians("batch_size", functions, args, rounds).items()
    ]


def against_model_size(args: argparse.Namespace, rounds: dict) -> list[dict]:
    """One message of 128 tokens through each shape. There is one model in memory at a time, so
    these do not take turns."""
    rows, all_rounds = [], {}
    for shape in args.shapes:
        model = random_classifier(shape, args.device)
        function = {shape: forward(model, random_batch(model, 1, 128), FUSED)}
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        operations = model.cfg.num_layers * block_operations(model.cfg, [128])
        seconds = medians("model_size", function, args, rounds)[shape]
        all_rounds |= rounds["model_size"]
        rows.append(
            {
                "model": shape,
                "weights_mb": weights / 1e6,
                "gflop": operations / 1e9,
                "seconds": seconds,
                "gflops": operations / seconds / 1e9,
            }
        )
        del model, function
    rounds["model_size"] = all_rounds
    return rows


def against_threads(model: GPTModel, args: argparse.Namespace, rounds: dict) -> list[dict]:
    """Messages a second of `classify.py`'s way, and the matrix rate, with so many threads."""
    sequences = mixed_sequences(args.model, 64)
    dataset = SpamDataset(sequences, [0] * len(sequences))
    rates: dict[int, list[float]] = {threads: [] for threads in args.threads}

    def classify(threads: int) -> None:
        torch.set_num_threads(threads)
        predict_logits(model, dataset)

    def measure_rate(threads: int) -> None:
        torch.set_num_threads(threads)
        rates[threads].append(matrix_rate(model.cfg, args.device, seconds=0.5))

    functions = {f"{n} threads": lambda n=n: classify(n) for n in args.threads}
    functions |= {f"matrix rate, {n} threads": lambda n=n: measure_rate(n) for n in args.threads}
    before = torch.get_num_threads()
    seconds = medians("thread_counts", functions, args, rounds)
    torch.set_num_threads(before)
    return [
        {
            "threads": threads,
            "matrix_gflops": statistics.median(rates[threads]) / 1e9,
            "messages_per_second": len(dataset) / seconds[f"{threads} threads"],
        }
        for threads in args.threads
    ]


def against_workers(args: argparse.Namespace, rounds: dict) -> list[dict]:
    """Seconds in which the batches of 1,000 messages are made, by so many further processes."""
    sequences = mixed_sequences(args.model, 1000)
    rows = SpamDataset(sequences, [0] * len(sequences))

    def make_batches(workers: int) -> None:
        for _ in DataLoader(rows, 8, collate_fn=pad_batch, num_workers=workers):
            pass

    functions = {str(n): lambda n=n: make_batches(n) for n in args.workers}
    return [
        {"workers": int(workers), "seconds": seconds}
        for workers, seconds in medians("workers", functions, args, rounds).items()
    ]


def against_messages(args: argparse.Namespace) -> list[dict]:
    """`classify.py` on files of growing length, each once in a process of its own. The model is
    tiny on purpose: what is measured is reading, cutting into tokens, batching and writing, and
    whether memory stays flat."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny_classifier(folder / "classifier")
        for num_messages in args.messages:
            source, output = folder / "messages.csv", folder / "classified.csv"
            table = pd.DataFrame({"id": range(num_messages), "text": mixed_messages(num_messages)})
            table.to_csv(source, index=False)
            options = [str(folder / "classifier"), "--file", str(source), "--output", str(output)]
            options += ["--text-column", "text", "--device", args.device.type]
            figures = json.loads(run_fresh("measure_stream.py", *options))
            num_answers, in_order = check_answers(output)
            if num_answers != num_messages or not in_order:
                raise RuntimeError(f"{num_messages} messages went in, {num_answers} came out.")
            file_mb = source.stat().st_size / 1e6
            rows.append({"messages": num_messages, "file_mb": file_mb, **figures})
    return rows


def check_answers(path: Path) -> tuple[int, bool]:
    """How many rows a file of answers holds, and whether they are in their order."""
    count, in_order = 0, True
    for piece in pd.read_csv(path, usecols=["id"], chunksize=100_000):
        in_order &= piece["id"].tolist() == list(range(count, count + len(piece)))
        count += len(piece)
    return count, in_order


def save_tiny_classifier(folder: Path) -> None:
    tokenizer = load_mini_tokenizer()
    shape = {"vocab_size": tokenizer.n_vocab, "context_length": 256, "emb_dim": 16}
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(**shape, num_heads=2, num_layers=1))
    add_classification_head(model, 2)
    card = {"trained_on": "nothing", "training": {}, "test": {}, "made_up_data": True}
    classifier = Classifier(model.eval(), tokenizer, "gpt-mini", ["ham", "spam"], 256, card)
    save_classifier(classifier, folder)


# ---------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------

# What each section's table is called, and its columns: key in the raw file, header with unit.
SECTIONS = {
    "length": {
        "tokens": "tokens of one message",
        "fused_seconds": "fused attention, seconds",
        "by_hand_seconds": "by hand, seconds",
        "gflop": "operations, GFLOP",
        "quadratic_share": "attention's share of them",
        "fused_extra_mb": "memory of the pass, fused, MB",
        "fused_predicted_mb": "predicted, MB",
        "by_hand_extra_mb": "by hand, MB",
        "by_hand_predicted_mb": "predicted, MB",
    },
    "batch_size": {
        "batch_size": "messages of 32 tokens in a batch",
        "seconds": "seconds",
        "messages_per_second": "messages a second",
    },
    "model_size": {
        "model": "one message of 128 tokens",
        "weights_mb": "weights, MB",
        "gflop": "operations, GFLOP",
        "seconds": "seconds",
        "gflops": "GFLOP a second",
    },
    "messages": {
        "messages": "messages in a file",
        "file_mb": "file, MB",
        "seconds": "seconds",
        "peak_mb": "peak of the process, MB",
    },
    "thread_counts": {
        "threads": "threads",
        "matrix_gflops": "matrix rate, GFLOP a second",
        "messages_per_second": "messages a second",
    },
    "workers": {
        "workers": "further processes that load",
        "seconds": "seconds for 1,000 messages",
    },
}


def tables(result: dict) -> list[Table]:
    return [
        Table(
            tuple(columns.values()),
            [tuple(shown(row[key]) for key in columns) for row in result[section]],
            [f"Shape: {result['model']}."] if section in ("length", "batch_size") else (),
        )
        for section, columns in SECTIONS.items()
    ]


def shown(value: float | str | None) -> str:
    """Three digits of a measurement; counts and larger numbers in full."""
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def plot(result: dict, folder: Path) -> None:
    fig, axes = plt.subplots(2, 3, figsize=(13, 7))
    panels = (
        ("length", "tokens", ("fused_seconds", "by_hand_seconds"), "seconds a message"),
        ("length", "tokens", ("fused_extra_mb", "by_hand_extra_mb"), "memory of the pass (MB)"),
        ("batch_size", "batch_size", ("messages_per_second",), "messages a second"),
        ("model_size", "gflop", ("seconds",), "seconds a message of 128 tokens"),
        ("messages", "messages", ("peak_mb",), "peak memory (MB)"),
        ("thread_counts", "threads", ("messages_per_second",), "messages a second"),
    )
    for ax, (section, x, quantities, label) in zip(axes.flat, panels, strict=True):
        for quantity in quantities:
            values = [row[quantity] for row in result[section]]
            name = quantity.split("_")[0] if len(quantities) > 1 else None
            name = {"by": "attention by hand", "fused": "fused attention"}.get(name)
            values = [float("nan") if value is None else value for value in values]
            ax.plot([row[x] for row in result[section]], values, "o-", label=name)
        ax.set_xlabel({"gflop": "operations (GFLOP)"}.get(x, x.replace("_", " ")))
        ax.set_ylabel(label)
        ax.set_ylim(0, 1.1 * ax.get_ylim()[1])
        ax.grid(alpha=0.3)
        if section == "messages":
            ax.set_xscale("log")
        if section == "thread_counts":
            ax.set_xticks([row[x] for row in result[section]])
        if len(quantities) > 1:
            ax.legend()
    fig.tight_layout()
    fig.savefig(folder / "scale.png", dpi=120)
    plt.close(fig)
