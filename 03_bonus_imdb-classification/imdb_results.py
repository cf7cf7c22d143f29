"""What every model of this folder reports: one JSON file, and its test probabilities beside it.

Shapes in comments: N reviews.
"""

import json
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from download_prepare_dataset import LABELS
from evaluation import test_figures
from finetune import peak_memory_mb
from message_files import DataError
from text_classifier import write_text

RESULTS = Path(__file__).parent / "results"
RUNS = Path(__file__).parent / "runs"


def label_numbers(part: pd.DataFrame) -> np.ndarray:
    """0 for a negative review, 1 for a positive one: (N,)."""
    return part["label"].map(LABELS.index).to_numpy()


def figures(positive: np.ndarray, part: pd.DataFrame) -> dict[str, Any]:
    """Accuracy with interval and more, from each review's probability of being positive (N,)."""
    return test_figures(np.stack([1 - positive, positive], axis=1), label_numbers(part))


def result_folder(results: Path, num_train: int | None, validation_only: bool) -> Path:
    """Where a result belongs: the main ones, learning curves, or trials to choose options by."""
    if validation_only:
        return results / "trials"
    return results if num_train is None else results / "curve"


def choose_train(
    parts: dict[str, pd.DataFrame], num_train: int | None, seed: int
) -> dict[str, pd.DataFrame]:
    """The parts with `num_train` random training reviews, or all. Raises ``DataError``."""
    if num_train is None:
        return parts
    if num_train > len(parts["train"]):
        raise DataError(
            f"--num-train {num_train}: there are only {len(parts['train'])} training reviews."
        )
    drawn = parts["train"].sample(num_train, random_state=seed)
    if drawn["label"].nunique() < len(LABELS):
        raise DataError(f"--num-train {num_train}: the sample has one class only; take more.")
    return parts | {"train": drawn}


def result_lines(result: dict[str, Any]) -> str:
    """Accuracies with intervals, as a command prints them."""
    lines = []
    for part in ("validation", "test"):
        if part in result:
            low, high = result[part]["accuracy_interval"]
            lines.append(f"{part:<11}{result[part]['accuracy']:.2%} [{low:.2%}, {high:.2%}]")
    return "\n".join(lines)


def public_name(text: str) -> str:
    """A folder's own name, without the path to it; any other text as it is."""
    return Path(text).resolve().name if Path(text).is_dir() else text


def recorded_command(script: str, argv: list[str] | None) -> str:
    """The command as a reader would repeat it, without the names of private folders.

    >>> recorded_command("train_gpt.py", ["a", "--runs", "/x", "--data=/y", "--seed", "3"])
    'train_gpt.py a --seed 3'
    """
    words = iter(sys.argv[1:] if argv is None else argv)
    kept = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in ("--data", "--runs", "--results"):
            if not equals:
                next(words, None)
        elif equals:
            kept.append(f"{option}={public_name(value)}")
        elif word not in ("--quiet", "--resume"):
            kept.append(public_name(word))
    return shlex.join([script, *kept])


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where a result was measured, and the most memory that it took."""
    memory = peak_memory_mb()
    if device.startswith("cuda"):
        memory = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    modules = {"torch": "torch", "transformers": "transformers", "scikit-learn": "sklearn"}
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name, module in modules.items() if module in sys.modules}
    return {
        "peak_memory_mb": memory,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def write_result(
    name: str, result: dict[str, Any], positive: np.ndarray | None = None, folder: Path = RESULTS
) -> None:
    """`NAME.json`, and with `positive` (N,) the test reviews' probabilities in `NAME.npz`.

    Probabilities are kept as whole numbers of 1/255: enough to compare, and small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if positive is not None:
        partial = folder / f"{name}.npz.partial"
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, positive=np.round(positive * 255).astype(np.uint8))
            partial.replace(folder / f"{name}.npz")
        finally:
            partial.unlink(missing_ok=True)
    write_text(json.dumps(result, indent=1) + "\n", folder / f"{name}.json")


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def read_positive(name: str, folder: Path = RESULTS) -> np.ndarray:
    """Each test review's probability of being positive (N,), in the order of the test part."""
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["positive"] / 255
