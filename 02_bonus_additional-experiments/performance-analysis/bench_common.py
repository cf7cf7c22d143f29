"""What all benchmarks share: timing in turns, models and messages, raw files, tables, pictures."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from gpt_download import MODEL_CONFIGS, build_decoder, load_tokenizer, resolve_model_name
from text_classifier import ClassifierConfig, GPTClassifier
from text_data import SpamDataset, clean_messages, encode_messages, read_sms_spam

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "accelerate", "torchao", "onnx", "onnxruntime")
Item, Way, Result = TypeVar("Item"), TypeVar("Way"), TypeVar("Result")


class Unavailable(Exception):
    """This machine or installation cannot do it; the message says why."""


def require(*packages: str) -> None:
    """Raise ``Unavailable`` unless these optional packages are installed."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise Unavailable(f"not installed: {', '.join(missing)}; see requirements-extra.txt")


def require_bf16(device: torch.device) -> None:
    """Raise ``Unavailable`` on a processor that would only imitate bfloat16, slowly."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise Unavailable("the processor has no bf16 instructions")


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


def take_turns(functions: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list]:
    """What each function returns in each round.

    All take turns, so that a machine that slows down for a while slows them all alike.
    """
    results: dict[str, list[Result]] = {name: [] for name in functions}
    with tqdm(total=len(functions) * rounds, unit="run") as bar:
        for _ in range(rounds):
            for name, function in functions.items():
                bar.set_description(str(name))
                results[name].append(function())
                bar.update()
    return results


def time_in_turns(
    functions: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each function in each round.

    With `warm_up`, a round that does not count comes first, which compiles and allocates; leave it
    out where every function was called before.
    """
    timed = {name: partial(seconds_of, f, device) for name, f in functions.items()}
    seconds = take_turns(timed, rounds + warm_up)
    return {name: values[warm_up:] for name, values in seconds.items()}


def try_each(
    makers: Mapping[str, Callable[[], Way]], call: Callable[[Way], Result]
) -> tuple[dict[str, Way], dict[str, Result], dict[str, str]]:
    """Make each way and call it once: a compiler, say, fails at its first call only.

    Returns the ways that work, what their first calls returned, and why the others do not work.
    """
    ways, results, unavailable = {}, {}, {}
    for name, make in tqdm(makers.items(), "first calls", unit="way"):
        try:
            way = make()
            results[name] = call(way)
            ways[name] = way
        except Exception as error:  # of somebody else's library: it can be of any kind
            first_line = str(error).strip().partition("\n")[0]
            unavailable[name] = first_line[:100] or type(error).__name__
    return ways, results, unavailable


def random_classifier(model_name: str, device: torch.device) -> GPTClassifier:
    """A two-class classifier of the named shape; no time depends on its random weights."""
    cfg = MODEL_CONFIGS[resolve_model_name(model_name)]
    with torch.device("meta"):  # shapes only, so that each weight is written once
        about = ClassifierConfig(model_name, ("ham", "spam"), cfg.context_length)
        classifier = GPTClassifier(build_decoder(cfg), about)
    classifier.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in classifier.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.constant_(parameter, float(name.endswith("scale")))
    return classifier.eval()


def mixed_messages(num_messages: int) -> list[str]:
    """Different messages of the SMS Spam Collection in a random order, ham and spam as they come.

    Beyond the 5,171 that there are, they come again.
    """
    texts = clean_messages(read_sms_spam())["text"].sample(frac=1, random_state=0).tolist()
    return (texts * -(-num_messages // len(texts)))[:num_messages]


def mixed_dataset(model_name: str, num_messages: int) -> SpamDataset:
    """Their token ids, within the model's context."""
    context = MODEL_CONFIGS[resolve_model_name(model_name)].context_length
    texts, tokenizer = mixed_messages(num_messages), load_tokenizer(model_name)
    return SpamDataset(encode_messages(texts, tokenizer, context))


def evenly_spaced(items: Iterable[Item], num: int, size: Callable[[Item], float]) -> list[Item]:
    """A sample that stands for all items: the middle ones of `num` groups of equal number, when
    they are sorted by their size.

    >>> evenly_spaced(range(100), 4, size=lambda item: item)
    [12, 37, 62, 87]
    """
    ordered = sorted(items, key=size)
    num = min(num, len(ordered))
    return [ordered[int((i + 0.5) * len(ordered) / num)] for i in range(num)]


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of a module returns in a process of its own, whose memory holds nothing of
    what was done before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what something was measured."""
    installed = {package: package for package in PACKAGES if find_spec(package)}
    versions = {"python": platform.python_version()} | {p: metadata.version(p) for p in installed}
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "processor": torch.cuda.get_device_name() if on_gpu else _processor_name(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        # What other programs took in the last minute, where the system tells.
        "load_average_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def load_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What `benchmark.py NAME` wrote."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def shown(value: float | str | list | None) -> str:
    """Three digits of a measurement; counts and larger numbers in full.

    >>> [shown(value) for value in (7, 0.1234, 6230.4, 2.98e-7, None, "xl", [0.936, 0.982])]
    ['7', '0.123', '6,230', '3e-07', '-', 'xl', '0.936 to 0.982']
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " to ".join(map(shown, value))
    if value is None or value != value:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.3g}"


def tables_as_text(result: dict[str, Any], notes: Sequence[str]) -> str:
    """A result's tables for a terminal. Each is a list of rows, header -> number or text."""
    tables = (pd.DataFrame(rows).map(shown) for rows in result["tables"].values())
    return "\n\n".join([*(table.to_string(index=False) for table in tables), *notes])


def tables_as_markdown(result: dict[str, Any], notes: Sequence[str]) -> str:
    parts = []
    for rows in result["tables"].values():
        cells = pd.DataFrame(rows).map(shown)
        align = ["left"] + ["right"] * (cells.shape[1] - 1)
        parts.append(cells.to_markdown(index=False, disable_numparse=True, colalign=align))
    return "\n\n".join([*parts, *notes])


def unavailable_notes(unavailable: Mapping[str, str]) -> list[str]:
    """A note for each way that could not be taken."""
    return [f"Unavailable: {way} ({reason})." for way, reason in unavailable.items()]


def plot_bars(values: pd.DataFrame, path: Path) -> None:
    """One panel for each column, its name the label, with a bar for each row that has a number."""
    names = [name.partition(":")[0] for name in values.index]
    size = (12, 0.8 + 0.32 * len(names))
    fig, axes = plt.subplots(1, values.shape[1], figsize=size, sharey=True)
    for ax, (label, column) in zip(axes, values.items(), strict=True):
        bars = ax.barh(names, column, color=list(map(_color, names)))
        ax.bar_label(bars, [shown(value).strip("-") for value in column], padding=3)
        ax.set(xlabel=label, xlim=(0, 1.2 * column.max()))
    axes[0].invert_yaxis()
    save_figure(fig, path)


def _color(name: str) -> str:
    """Grey for what the chapter's code is compared with, blue for the lower bound."""
    if name == "plain" or name.startswith("transformers"):
        return "#b0b0b0"
    return "#4c72b0" if name.startswith("lower bound") else "#e6761b"


def save_figure(fig: plt.Figure, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)
