"""What a run is measured by: accuracies, a baseline, seconds and memory.

Shapes in comments: N messages, K chunks of them, C classes.
"""

import os
import platform
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation import ngram_baseline, test_metrics, wilson_interval
from multi_label import best_thresholds, label_set_baseline, label_set_metrics
from text_classifier import ClassifierConfig
from text_data import ChunkDataset, Splits

MAX_BASELINE_CHARACTERS = 20_000_000  # beyond this the n-grams take longer than everything else
# Messages times labels. The regression has a coefficient for each label and n-gram, and its
# optimizer keeps a few dozen copies of them: half a gigabyte here, without a bound all memory.
MAX_BASELINE_SIZE = 100_000
# Whose versions a result names, if it was made with them.
PACKAGES = ("torch", "transformers", "accelerate", "torchao", "sklearn", "onnx", "onnxruntime")


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start


def measure(
    logits: list[Tensor], datasets: list[ChunkDataset], about: ClassifierConfig
) -> dict[str, Any]:
    """Metrics of the three parts: accuracies, and everything else for the test part.

    Takes the logits (K, C) of each part's chunks.
    """
    metrics, metrics_of = {}, test_metrics
    measured = [
        (dataset.mean(about.probabilities(part)).numpy(), np.array(dataset.text_labels))  # (N, C)
        for part, dataset in zip(logits, datasets, strict=True)
    ]
    if about.thresholds is not None:
        metrics["thresholds"] = best_thresholds(*measured[1])  # of the validation part
        metrics_of = partial(label_set_metrics, thresholds=metrics["thresholds"])
    for name, (probabilities, labels) in zip(Splits._fields, measured, strict=True):
        metrics[name] = metrics_of(probabilities, labels)
        if name != "test":
            metrics[name] = {key: metrics[name][key] for key in ("num_examples", "accuracy")}
    metrics["test_predictions"] = {  # of the last part: curves can be drawn from it later
        "labels": labels.tolist(),
        "probabilities": np.round(probabilities.astype(float), 6).tolist(),
    }
    return metrics


def evaluate_baseline(
    splits: Splits, datasets: list[ChunkDataset], multi_label: bool
) -> dict[str, Any] | None:
    """Test accuracy of the n-gram regression on the same messages, where it is quick."""
    size = len(splits.train) * splits.train["label"].nunique()
    num_characters = splits.train["text"].str.len().sum()
    if size > MAX_BASELINE_SIZE or num_characters > MAX_BASELINE_CHARACTERS:
        return None
    if multi_label:
        train, _, test = (np.array(dataset.text_labels) for dataset in datasets)
        return label_set_baseline(splits, train, test)
    baseline = ngram_baseline().fit(splits.train["text"], splits.train["label"])
    correct = int((baseline.predict(splits.test["text"]) == splits.test["label"]).sum())
    return {
        "accuracy": correct / len(splits.test),
        "accuracy_interval": list(wilson_interval(correct, len(splits.test))),
    }


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own, whose seconds and memory hold
    nothing of what was done before."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        raise MemoryError(f"the system ended {function.__name__}") from None


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Where a result was measured, with what, and the most memory that it took so far."""
    kind, info = torch.device(device).type, Path("/proc/cpuinfo")
    names = re.findall("model name.*: (.+)", info.read_text()) if info.exists() else []
    processor = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    loaded = {name: sys.modules[name].__version__ for name in PACKAGES if name in sys.modules}
    return {
        "device": kind,
        "processor": torch.cuda.get_device_name() if kind == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "peak_memory_mb": peak_memory_mb(kind),
        "versions": {"python": platform.python_version(), **loaded},
    }


def peak_memory_mb(device: str = "cpu") -> float | None:
    """Most memory the process held so far, in MB: of the GPU if it computes there. None where the
    system does not tell."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    info = Path("/proc/self/status")
    status = info.read_text(encoding="utf-8") if info.exists() else ""
    if own := re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE):
        return round(int(own[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux, of the parent process too
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
