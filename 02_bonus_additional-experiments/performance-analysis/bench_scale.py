"""Time and memory against length, batch size, model size, number of messages, threads.

Each measurement gives a table's rows, and the seconds of every round by row.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import bench_common as bench
import matplotlib.pyplot as plt
import pandas as pd
import torch
from bench_memory import FLOAT, measure, model_for, random_batch
from lower_bound import achieved_flops, block_operations

import classify
from classifier_folder import save_classifier
from features import FastClassifier
from gpt_download import load_mini_tokenizer, resolve_model_name
from measuring import in_fresh_process, peak_memory_mb
from previous_chapters import GPTConfig, GPTModel, num_parameters
from text_classifier import ClassifierConfig, GPTClassifier, calc_logits, predict_logits

OPTIONS = {
    "lengths": ([64, 128, 256, 512, 1024], "tokens"),
    "batch_sizes": ([1, 2, 4, 8, 16, 32, 64], "messages"),
    "shapes": (["gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"], "shapes of models"),
    "messages": ([10**3, 10**4, 10**5, 10**6], "messages in a file"),
    "threads": (sorted({1, 2, os.cpu_count()}), "threads that compute"),
    "repetitions": (5, "rounds; the median counts"),
}
ATTENTION = {"fused": "inference", "by hand": "inference_by_hand"}  # as bench_memory.py names it
Measured = tuple[list[dict[str, Any]], dict[str, list[float]]]


def forward(
    classifier: GPTClassifier, batch_size: int, length: int, choice: str = "inference"
) -> Callable[[], torch.Tensor]:
    """A pass of random messages through all blocks at every position."""
    batch = random_batch(classifier, batch_size, length)
    return partial(torch.inference_mode()(calc_logits), model_for(classifier, choice), batch)


def against_length(classifier: GPTClassifier, lengths: list[int], repetitions: int) -> Measured:
    """One message of growing length, with attention fused and by hand."""
    model, cfg, device = classifier.config.model_name, classifier.decoder.cfg, classifier.device
    functions = {
        f"{key}, {length}": forward(classifier, 1, length, choice)
        for length in lengths
        for key, choice in ATTENTION.items()
    }
    rounds, rows = bench.time_in_turns(functions, repetitions), []
    for length in lengths:
        operations = block_operations(cfg, [length])
        row = {"tokens of one message": length, "GFLOP": cfg.n_layers * operations / 1e9}
        row["attention's fraction"] = 2 * cfg.emb_dim * length**2 / operations
        for key, choice in ATTENTION.items():
            peaks = in_fresh_process(measure, model, choice, 1, length, device)
            row[f"{key}, seconds"] = median(rounds[f"{key}, {length}"])
            row[f"{key}, MB"] = peaks["forward"] - peaks["model"]
        rows.append(row)
    return rows, rounds


def against_batch_size(classifier: GPTClassifier, sizes: list[int], repetitions: int) -> Measured:
    rounds = bench.time_in_turns({str(n): forward(classifier, n, 32) for n in sizes}, repetitions)
    seconds = [(n, median(rounds[str(n)])) for n in sizes]
    rows = [
        {"messages of 32 tokens": n, "seconds": s, "messages a second": n / s} for n, s in seconds
    ]
    return rows, rounds


def against_threads(classifier: GPTClassifier, threads: list[int], repetitions: int) -> Measured:
    """Messages a second as `classify.py` does, and the FLOP/s achieved, with so many threads."""
    model, name = FastClassifier(classifier), classifier.config.model_name
    dataset, before, rows = bench.mixed_dataset(name, 64), torch.get_num_threads(), []

    def classify_with(num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        predict_logits(model, dataset)

    rounds = bench.time_in_turns({str(n): partial(classify_with, n) for n in threads}, repetitions)
    for n in threads:
        torch.set_num_threads(n)
        gflops = achieved_flops(classifier.decoder.cfg, classifier.device) / 1e9
        speed = len(dataset) / median(rounds[str(n)])
        rows.append({"threads": n, "GFLOP/s": gflops, "messages a second": speed})
    torch.set_num_threads(before)
    return rows, rounds


def against_model_size(classifier: GPTClassifier, shapes: list[str], repetitions: int) -> Measured:
    """One message of 128 tokens through each shape. There is one of these in memory at a time, so
    they do not take turns."""
    rows, rounds = [], {}
    for shape in map(resolve_model_name, shapes):
        other = bench.random_classifier(shape, classifier.device)
        rounds |= bench.time_in_turns({shape: forward(other, 1, 128)}, repetitions)
        cfg, seconds = other.decoder.cfg, median(rounds[shape])
        gflop = cfg.n_layers * block_operations(cfg, [128]) / 1e9
        row = {"one message of 128 tokens": shape}
        row |= {"weights, MB": FLOAT * num_parameters(other) / 1e6, "GFLOP": gflop}
        rows.append(row | {"seconds": seconds, "GFLOP/s": gflop / seconds})
        del other
    return rows, rounds


def against_messages(classifier: GPTClassifier, numbers: list[int], repetitions: int) -> Measured:
    """`classify.py` on files of growing length, each once in a process of its own. The model is
    tiny on purpose: what is measured is reading, cutting into tokens, batching and writing, and
    whether memory stays flat."""
    cfg = GPTConfig(load_mini_tokenizer().n_vocab, 256, emb_dim=16, n_heads=2, n_layers=1)
    tiny = GPTClassifier(GPTModel(cfg), ClassifierConfig("gpt-mini", ("ham", "spam"), 256))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        source, output, folder = (Path(name) / n for n in ("in.csv", "out.csv", "classifier"))
        save_classifier(tiny, folder)
        options = [str(folder), "--file", str(source), "--output", str(output), "--overwrite"]
        options += ["--device", classifier.device.type]
        for number in numbers:
            pd.DataFrame({"text": bench.mixed_messages(number)}).to_csv(source, index=False)
            row = {"messages in a file": number, "file, MB": source.stat().st_size / 1e6}
            rows.append(row | in_fresh_process(classify_file, options))
    return rows, {}


def classify_file(options: list[str]) -> dict[str, float | None]:
    def run() -> None:
        if classify.main(options):
            raise OSError("classify.py failed.")

    return {"seconds": bench.seconds_of(run), "peak, MB": peak_memory_mb()}


# Each table, and the option that has its values.
TABLES = {
    "length": (against_length, "lengths"),
    "batch_size": (against_batch_size, "batch_sizes"),
    "threads": (against_threads, "threads"),
    "model_size": (against_model_size, "shapes"),
    "messages": (against_messages, "messages"),
}


def run(model: str, device: torch.device, repetitions: int, **values: list[Any]) -> dict[str, Any]:
    classifier, tables, rounds = bench.random_classifier(model, device), {}, {}
    for table, (against, option) in TABLES.items():
        tables[table], rounds[table] = against(classifier, values[option], repetitions)
    return {"tables": tables, "notes": [], "rounds": rounds}


# The panels of the picture: table, its x axis, what is drawn, and its label.
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
    for ax, (table, x, quantities, label) in zip(axes.flat, PANELS, strict=True):
        rows = pd.DataFrame(result["tables"][table])
        rows = rows.astype(dict.fromkeys(quantities, float)).set_index(rows.columns[x])
        rows[quantities].plot(ax=ax, style="o-", grid=True, legend=len(quantities) > 1)
        ax.set(ylabel=label, ylim=(0, 1.1 * ax.get_ylim()[1]))
        ax.set_xscale("log" if table == "messages" else "linear")
    bench.save_figure(fig, path)
