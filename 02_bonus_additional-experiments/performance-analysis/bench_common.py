"""What all benchmarks share: devices, data, fair timing, the machine's rate, results as files."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
PACKAGES = ("torch", "transformers", "accelerate", "torchao", "onnx", "onnxruntime")
Item, Way, Result = TypeVar("Item"), TypeVar("Way"), TypeVar("Result")


class NotHere(Exception):
    """This machine or installation cannot do it; the message says why."""


def need_bf16(device: torch.device) -> None:
    """Raise ``NotHere`` on a processor that would only imitate bfloat16, slowly."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise NotHere("the processor has no bf16 instructions")


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
    functions: Mapping[str, Callable[[], Any]],
    repetitions: int,
    device: torch.device,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each function in each round.

    All take turns, so that a machine that slows down for a while slows them all alike. With
    `warm_up`, an uncounted call of each comes first, which compiles and allocates; leave it out
    where every function was called before.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    with tqdm(total=len(functions) * (repetitions + warm_up), unit="run") as bar:
        for number in range(-warm_up, repetitions):
            for name, function in functions.items():
                bar.set_description(name)
                measured = seconds_of(function, device)
                if number >= 0:
                    seconds[name].append(measured)
                bar.update()
    return seconds


def try_each(
    makers: Mapping[str, Callable[[], Way]], call: Callable[[Way], Result]
) -> tuple[dict[str, Way], dict[str, Result], dict[str, str]]:
    """Make each way and call it once: a compiler, say, fails at its first call only.

    Returns the ways that work, what their first calls returned, and why the others do not work.
    """
    ways, results, not_here = {}, {}, {}
    for name, make in tqdm(makers.items(), "first calls", unit="way"):
        try:
            way = make()
            results[name] = call(way)
            ways[name] = way
        except Exception as error:  # of somebody else's library: it can be of any kind
            first_line = str(error).strip().partition("\n")[0]
            not_here[name] = first_line[:100] or type(error).__name__
    return ways, results, not_here


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


def evenly_spaced(items: Sequence[Item], num: int, size: Callable[[Item], float]) -> list[Item]:
    """A sample that stands for all items: the middle ones of `num` groups of equal number, when
    they are sorted by their size.

    >>> evenly_spaced(range(100), 4, size=lambda item: item)
    [12, 37, 62, 87]
    """
    ordered = sorted(items, key=size)
    num = min(num, len(ordered))
    return [ordered[int((i + 0.5) * len(ordered) / num)] for i in range(num)]


# ---------------------------------------------------------------------------------------------
# A fresh process
# ---------------------------------------------------------------------------------------------


def run_fresh(script: str, *arguments: str) -> str:
    """What a Python script beside this one prints when it runs in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        capture_output=True,
        text=True,
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


def load_average() -> float | None:
    """How many programs wanted to compute in the last minute, on average; None where the system
    does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


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


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """What is shown of a result, on a terminal and in the README."""

    header: tuple[str, ...]
    rows: list[tuple]
    notes: Sequence[str] = ()
    """Sentences below it."""


def as_text(table: Table) -> str:
    """Aligned columns, the first to the left, the others to the right; then the notes."""
    cells = [tuple(map(str, row)) for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        right = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join([*lines, *table.notes])


def as_markdown(table: Table) -> str:
    """The same for a page; each note is a paragraph."""
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    text = "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
    return "\n\n".join([text, *table.notes])


def reasons(not_here: Mapping[str, str]) -> list[str]:
    """A note for each way that could not be taken."""
    return [f"Not here: {way} ({reason})." for way, reason in not_here.items()]
