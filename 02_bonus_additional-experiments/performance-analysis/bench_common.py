"""What all benchmarks share: timing in turns, models and messages, raw files, tables, pictures."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from files import read_json
from gpt_download import MODEL_CONFIGS, build_decoder, load_tokenizer
from previous_chapters import GPTConfig
from text_classifier import ClassifierConfig, GPTClassifier
from text_data import SpamDataset, clean_messages, encode_messages, read_sms_spam

RESULTS = Path(__file__).parent / "results"
TINY = GPTConfig(vocab_size=64, context_length=32, emb_dim=64, n_heads=2, n_layers=2)
SHAPES = {**MODEL_CONFIGS, "tiny": TINY}
Function = Callable[[], Any]


# --- Timing --------------------------------------------------------------------------------------


def synchronize() -> None:
    """Wait for the GPU, if there is one: its work runs behind Python's back."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def seconds_of(function: Function) -> float:
    synchronize()
    start = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - start


def take_turns(functions: Mapping[str, Function], rounds: int) -> dict[str, list]:
    """What each function returns in each round. Taking turns, all of them are slower alike while
    the machine is."""
    results: dict[str, list] = {name: [] for name in functions}
    with tqdm(total=len(functions) * rounds, unit="run") as bar:
        for _ in range(rounds):
            for name, function in functions.items():
                bar.set_description(name)
                results[name].append(function())
                bar.update()
    return results


def time_in_turns(functions: Mapping[str, Function], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, after a first round that does not count: it compiles
    and allocates."""
    timed = {name: partial(seconds_of, function) for name, function in functions.items()}
    return {name: seconds[1:] for name, seconds in take_turns(timed, rounds + 1).items()}


def try_each(
    makers: Mapping[str, Function], call: Callable[[Any], Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
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
            unavailable[name] = (str(error) or type(error).__name__).strip().splitlines()[0][:100]
    return ways, results, unavailable


def require_bf16(device: torch.device) -> None:
    """Raise ``RuntimeError`` on a processor that would only imitate bfloat16, slowly."""
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise RuntimeError("the processor has no bf16 instructions")


# --- Models and messages -------------------------------------------------------------------------


def random_classifier(model: str, device: torch.device) -> GPTClassifier:
    """A two-class classifier of the named shape; no time depends on its random weights."""
    cfg = SHAPES[model]
    with torch.device("meta"):  # shapes only, so that each weight is written once
        about = ClassifierConfig(model, ("ham", "spam"), cfg.context_length)
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


def mixed_dataset(model: str, num_messages: int) -> SpamDataset:
    """Their token ids, within the model's context."""
    texts, tokenizer = mixed_messages(num_messages), load_tokenizer(model)
    return SpamDataset(encode_messages(texts, tokenizer, MODEL_CONFIGS[model].context_length))


def evenly_spaced(items: Iterable, num: int, size: Callable[[Any], float]) -> list:
    """A sample that stands for all items: the middle ones of `num` groups of equal number, when
    they are sorted by their size.

    >>> evenly_spaced(range(100), 4, size=lambda item: item)
    [12, 37, 62, 87]
    """
    ordered = sorted(items, key=size)
    num = min(num, len(ordered))
    return [ordered[int((i + 0.5) * len(ordered) / num)] for i in range(num)]


# --- Results: raw files, tables, pictures --------------------------------------------------------


def load_result(name: str) -> dict[str, Any]:
    """What `benchmark.py NAME` wrote into results/."""
    return read_json(RESULTS / f"{name}.json")


def shown(value: float | str | list | None) -> str:
    """Three digits of a measurement; counts and larger numbers in full.

    >>> [shown(value) for value in (7, 0.1234, 6230.4, 2.98e-7, None, "xl", [0.936, 0.982])]
    ['7', '0.123', '6,230', '3e-07', '-', 'xl', '0.936 to 0.982']
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " to ".join(map(shown, value))
    if pd.isna(value):
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.0e}" if 0 < value < 1e-3 else f"{value:.3g}"


def as_markdown(result: dict[str, Any]) -> str:
    """A result's tables, each a list of rows, its notes, the ways that could not be taken, and the
    command and the machine."""
    parts = []
    for rows in result["tables"].values():
        cells = pd.DataFrame(rows).map(shown)
        align = ["left"] + ["right"] * (cells.shape[1] - 1)
        parts.append(cells.to_markdown(index=False, disable_numparse=True, colalign=align))
    missing = result.get("unavailable", {})
    parts += [*result["notes"], *(f"Unavailable: {n} ({why})." for n, why in missing.items())]
    options, rounds = result["options"], result["options"].get("repetitions")
    where = f"`python {result['command']}`, {options['model']}, {result['processor']}, "
    where += f"{result['threads']} threads, PyTorch {result['versions']['torch']}"
    return "\n\n".join([*parts, where + (f", median of {rounds} rounds." if rounds else ".")])


def plot_bars(
    result: dict[str, Any], path: Path, columns: Sequence[str], num_names: int = 1
) -> None:
    """Those of the columns that a result's table has, a panel each, with a bar for each row, which
    is named by the table's first columns."""
    (rows,) = map(pd.DataFrame, result["tables"].values())
    columns = rows.columns.intersection(columns, sort=False)
    names = rows.iloc[:, :num_names].astype(str).agg(" x ".join, axis=1).str.partition(":")[0]
    size, shape = (12, 0.8 + 0.32 * len(rows)), (1, len(columns))
    fig, (axes,) = plt.subplots(*shape, figsize=size, sharey=True, squeeze=False)
    for ax, column in zip(axes, columns, strict=True):
        rows.set_index(names)[column].plot.barh(ax=ax, color="#e6761b", xlabel=column, ylabel="")
        ax.bar_label(ax.containers[0], [shown(v).strip("-") for v in rows[column]], padding=3)
        ax.set_xlim(0, 1.2 * rows[column].max())
    axes[0].invert_yaxis()
    save_figure(fig, path)


def save_figure(fig: plt.Figure, path: Path) -> None:
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)
