"""Time and memory against length, batch size, model size, number of messages, threads, workers."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from bench_common import (
    Unavailable,
    in_fresh_process,
    mixed_dataset,
    mixed_messages,
    random_classifier,
    save_figure,
    time_in_turns,
)
from bench_memory import FLOAT, passing_numbers, peaks_by_stage
from lower_bound import achieved_flops, block_operations
from measure_memory import model_for, random_batch
from torch.utils.data import DataLoader

import classify
from classifier_folder import save_classifier
from features import FastClassifier
from fine_tuning import peak_memory_mb
from gpt_download import MODEL_CONFIGS, load_mini_tokenizer, resolve_model_name
from previous_chapters import GPTConfig, GPTModel
from text_classifier import ClassifierConfig, GPTClassifier, calc_logits, predict_logits

OPTIONS = {
    "lengths": ([64, 128, 256, 512, 1024], "tokens"),
    "batch_sizes": ([1, 2, 4, 8, 16, 32, 64], "messages"),
    "shapes": (["gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"], "shapes of models"),
    "messages": ([10**3, 10**4, 10**5, 10**6], "messages in a file"),
    "threads": (sorted({1, 2, os.cpu_count()}), "threads that compute"),
    "workers": ([0, 1, 2], "further processes that load batches"),
    "repetitions": (5, "rounds; the median counts"),
}
ATTENTION = {"fused": "inference", "by hand": "inference_by_hand"}  # as measure_memory.py names it
Rows = list[dict[str, Any]]


@dataclass
class Timer:
    """Medians of functions that take turns; every round of them is kept."""

    device: torch.device
    repetitions: int
    rounds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @torch.inference_mode()
    def medians(self, section: str, functions: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
        seconds = time_in_turns(functions, self.repetitions, self.device)
        kept = {str(name): values for name, values in seconds.items()}
        self.rounds[section] = self.rounds.get(section, {}) | kept
        return {name: median(values) for name, values in seconds.items()}


def run(
    model: str,
    device: torch.device,
    lengths: list[int],
    batch_sizes: list[int],
    shapes: list[str],
    messages: list[int],
    threads: list[int],
    workers: list[int],
    repetitions: int,
) -> dict[str, Any]:
    context = MODEL_CONFIGS[model].context_length
    if max(lengths) > context:
        raise ValueError(f"--lengths: {model} reads {context} tokens at most.")
    shapes = list(map(resolve_model_name, shapes))  # a typo costs no minutes
    classifier, timer = random_classifier(model, device), Timer(device, repetitions)
    tables = {
        "length": against_length(classifier, lengths, timer),
        "batch_size": against_batch_size(classifier, batch_sizes, timer),
        "threads": against_threads(classifier, threads, timer),
        "workers": against_workers(model, workers, timer),
        "model_size": against_model_size(shapes, timer),
        "messages": against_messages(messages, device),
    }
    return {"tables": tables, "rounds": timer.rounds}


def forward(
    classifier: GPTClassifier, batch_size: int, length: int, choice: str = "inference"
) -> Callable[[], torch.Tensor]:
    """A pass of random messages through all blocks at every position."""
    batch = random_batch(classifier, batch_size, length)
    return partial(calc_logits, model_for(classifier, choice, 0), batch)


def against_length(classifier: GPTClassifier, lengths: list[int], timer: Timer) -> Rows:
    """One message of growing length, with attention fused and by hand."""
    cfg, device = classifier.decoder.cfg, classifier.device
    functions = {
        f"{key}, {length}": forward(classifier, 1, length, choice)
        for length in lengths
        for key, choice in ATTENTION.items()
    }
    seconds, rows = timer.medians("length", functions), []
    for length in lengths:
        operations = block_operations(cfg, [length])
        row = {"tokens of one message": length, "GFLOP": cfg.n_layers * operations / 1e9}
        row["attention's fraction"] = 2 * cfg.emb_dim * length**2 / operations
        for key, choice in ATTENTION.items():
            row[f"{key}, seconds"] = seconds[f"{key}, {length}"]
            row[f"{key}, MB"] = extra_mb(classifier.config.model_name, choice, length, device)
            if isinstance(cfg, GPTConfig):  # the formula is of its kind of block
                row[f"{key}, predicted MB"] = FLOAT * passing_numbers(cfg, choice, 1, length) / 1e6
        rows.append(row)
    return rows


def extra_mb(model: str, choice: str, length: int, device: torch.device) -> float | None:
    """What a forward pass needs on top of the model itself; None where it cannot be measured."""
    try:
        stages = peaks_by_stage(model, choice, 1, length, device)
    except Unavailable:
        return None
    return stages["forward"] - stages["model"]


def against_batch_size(classifier: GPTClassifier, batch_sizes: list[int], timer: Timer) -> Rows:
    functions = {size: forward(classifier, size, 32) for size in batch_sizes}
    return [
        {"messages of 32 tokens": size, "seconds": seconds, "messages a second": size / seconds}
        for size, seconds in timer.medians("batch_size", functions).items()
    ]


def against_model_size(shapes: list[str], timer: Timer) -> Rows:
    """One message of 128 tokens through each shape. There is one model in memory at a time, so
    these do not take turns."""
    rows = []
    for shape in shapes:
        classifier = random_classifier(shape, timer.device)
        cfg = classifier.decoder.cfg
        weights = sum(p.numel() * p.element_size() for p in classifier.parameters())
        gflop = cfg.n_layers * block_operations(cfg, [128]) / 1e9
        seconds = timer.medians("model_size", {shape: forward(classifier, 1, 128)})[shape]
        row = {"one message of 128 tokens": shape, "weights, MB": weights / 1e6, "GFLOP": gflop}
        rows.append(row | {"seconds": seconds, "GFLOP/s": gflop / seconds})
        del classifier
    return rows


def against_threads(classifier: GPTClassifier, threads: list[int], timer: Timer) -> Rows:
    """Messages a second as `classify.py` does, and the FLOP/s achieved, with so many threads."""
    model, dataset = FastClassifier(classifier), mixed_dataset(classifier.config.model_name, 64)
    flops: dict[int, list[float]] = {n: [] for n in threads}

    def classify(num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        predict_logits(model, dataset)

    def measure_flops(num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        flops[num_threads].append(achieved_flops(classifier.decoder.cfg, timer.device, 0.5))

    functions = {f"{n} threads": partial(classify, n) for n in threads}
    functions |= {f"FLOP/s, {n} threads": partial(measure_flops, n) for n in threads}
    before = torch.get_num_threads()
    seconds = timer.medians("threads", functions)
    torch.set_num_threads(before)
    return [
        {
            "threads": n,
            "GFLOP/s": median(flops[n]) / 1e9,
            "messages a second": len(dataset) / seconds[f"{n} threads"],
        }
        for n in threads
    ]


def against_workers(model: str, workers: list[int], timer: Timer) -> Rows:
    """Seconds in which batches are made, by so many further processes."""
    dataset = mixed_dataset(model, 1000)

    def make_batches(num_workers: int) -> None:
        for _ in DataLoader(dataset, 8, collate_fn=dataset.collate, num_workers=num_workers):
            pass

    seconds = timer.medians("workers", {n: partial(make_batches, n) for n in workers})
    return [
        {"processes that load": n, "seconds for 1,000 messages": value}
        for n, value in seconds.items()
    ]


def against_messages(numbers: list[int], device: torch.device) -> Rows:
    """`classify.py` on files of growing length, each once in a process of its own. The model is
    tiny on purpose: what is measured is reading, cutting into tokens, batching and writing, and
    whether memory stays flat."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        source, output, classifier = (Path(name) / n for n in ("in.csv", "out.csv", "classifier"))
        save_tiny_classifier(classifier)
        options = [str(classifier), "--file", str(source), "--output", str(output), "--overwrite"]
        options += ["--text-column", "text", "--device", device.type]
        for number in numbers:
            table = pd.DataFrame({"id": range(number), "text": mixed_messages(number)})
            table.to_csv(source, index=False)
            measured = in_fresh_process(classify_file, options)
            if pd.read_csv(output)["id"].tolist() != list(range(number)):
                raise OSError(f"{number} messages went in, others or in another order came out.")
            file_mb = source.stat().st_size / 1e6
            rows.append({"messages in a file": number, "file, MB": file_mb, **measured})
    return rows


def classify_file(options: list[str]) -> dict[str, float | None]:
    start = time.perf_counter()
    if classify.main(options):
        raise OSError("classify.py failed")
    return {"seconds": time.perf_counter() - start, "peak, MB": peak_memory_mb()}


def save_tiny_classifier(folder: Path) -> None:
    vocabulary = load_mini_tokenizer().n_vocab
    cfg = GPTConfig(vocabulary, context_length=256, emb_dim=16, n_heads=2, n_layers=1)
    torch.manual_seed(0)
    about = ClassifierConfig("gpt-mini", ("ham", "spam"), cfg.context_length)
    save_classifier(GPTClassifier(GPTModel(cfg), about), folder)


def notes(result: dict[str, Any]) -> list[str]:
    return []


# The panels of the picture: section, its x axis, what is drawn, and its label.
PANELS = (
    ("length", 0, ["fused, seconds", "by hand, seconds"], "seconds a message"),
    ("length", 0, ["fused, MB", "by hand, MB"], "memory of the pass (MB)"),
    ("batch_size", 0, ["messages a second"], "messages a second"),
    ("model_size", 2, ["seconds"], "seconds a message of 128 tokens"),
    ("messages", 0, ["peak, MB"], "peak memory (MB)"),
    ("threads", 0, ["messages a second"], "messages a second"),
)


def plot(result: dict[str, Any], path: Path) -> None:
    fig, axes = plt.subplots(2, 3, figsize=(13, 7))
    for ax, (section, x, quantities, label) in zip(axes.flat, PANELS, strict=True):
        rows = pd.DataFrame(result["tables"][section])
        rows = rows.astype(dict.fromkeys(quantities, float)).set_index(rows.columns[x])
        rows[quantities].plot(ax=ax, style="o-", grid=True, legend=len(quantities) > 1)
        ax.set(ylabel=label, ylim=(0, 1.1 * ax.get_ylim()[1]))
        ax.set_xscale("log" if section == "messages" else "linear")
    save_figure(fig, path)
