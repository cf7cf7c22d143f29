"""What all benchmarks share: devices, data, fair timing, the machine's rate, results as files."""

import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from gpt_download import load_tokenizer, resolve_model_name
from previous_chapters import MODEL_CONFIGS, GPTConfig, GPTModel
from text_classifier import add_classification_head, write_text
from text_data import clean_messages, encode_messages, read_sms_spam

RESULTS = Path(__file__).parent / "results"
PADDED_LENGTH = 120  # tokens, as in the well-known way of doing it
PACKAGES = ("torch", "transformers", "torchao", "onnxruntime")


# ---------------------------------------------------------------------------------------------
# Timing
# ---------------------------------------------------------------------------------------------


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was told: a GPU's work runs behind Python's back."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    wait_for(device)
    start = time.perf_counter()
    function()
    wait_for(device)
    return time.perf_counter() - start


def interleave(
    functions: Mapping[str, Callable[[int], Any]],
    repetitions: int,
    device: torch.device,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each function in each round; with `warm_up`, an uncounted call comes first.

    All take turns, so that a machine that slows down for a while slows them all alike. Each gets
    the number of the round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    bar = tqdm(total=len(functions) * (repetitions + warm_up), unit="run")
    for name, function in functions.items() if warm_up else ():
        bar.set_description(f"warm-up: {name}")
        function(0)
        bar.update()
    for i in range(repetitions):
        for name, function in functions.items():
            bar.set_description(name)
            seconds[name].append(seconds_of(lambda: function(i), device))  # noqa: B023
            bar.update()
    bar.close()
    return seconds


def matrix_rate(cfg: GPTConfig, device: torch.device, seconds: float = 2.0) -> float:
    """Floating-point operations a second of the model's own largest matrix product."""
    x = torch.randn(2048, cfg.emb_dim, device=device)
    weight = torch.randn(4 * cfg.emb_dim, cfg.emb_dim, device=device)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(seconds_of(lambda: F.linear(x, weight), device))
    return 2 * x.shape[0] * weight.numel() / statistics.median(times)


# ---------------------------------------------------------------------------------------------
# Models and messages
# ---------------------------------------------------------------------------------------------


def random_classifier(model_name: str, device: torch.device, seed: int = 0) -> GPTModel:
    """A two-class model of the named shape. Its weights are random: no time depends on them."""
    with torch.device("meta"):  # shapes only, so that each weight is written once
        model = GPTModel(MODEL_CONFIGS[resolve_model_name(model_name)])
        add_classification_head(model, 2)
    model.to_empty(device=device)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, float(name.endswith("scale")))
    return model.eval()


def twin(model: GPTModel) -> GPTModel:
    """A copy with the same weights, to be changed freely."""
    return copy.deepcopy(model)


def mixed_messages(num_messages: int, seed: int = 0) -> list[str]:
    """Different messages of the SMS Spam Collection in a random order, ham and spam as they come.

    Beyond the 5,171 that there are, they come again.
    """
    texts = clean_messages(read_sms_spam())["text"].sample(frac=1, random_state=seed).tolist()
    return (texts * -(-num_messages // len(texts)))[:num_messages]


def mixed_sequences(model_name: str, num_messages: int) -> list[torch.Tensor]:
    """Their token ids (T,), within the model's context."""
    name = resolve_model_name(model_name)
    texts, context = mixed_messages(num_messages), MODEL_CONFIGS[name].context_length
    return encode_messages(texts, load_tokenizer(name), context)


# ---------------------------------------------------------------------------------------------
# Memory of a fresh process
# ---------------------------------------------------------------------------------------------


def run_fresh(script: str, *arguments: str, **environment: str) -> str:
    """What a Python script beside this one prints when it runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        reason = done.stderr.strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"{script} {' '.join(arguments)} failed: {reason}")
    return done.stdout


# ---------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what something was measured."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    name = torch.cuda.get_device_name() if device.type == "cuda" else _processor_name()
    return {
        "device": str(device),
        "processor": name,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def save_result(result: dict[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(result, indent=2) + "\n", folder / f"{name}.json")


def load_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Raises ``FileNotFoundError`` naming the command that makes the file."""
    path = folder / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: `benchmark.py {name}` writes it.")
    return json.loads(path.read_text(encoding="utf-8"))


def format_table(rows: list[tuple], header: tuple) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        right = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)
