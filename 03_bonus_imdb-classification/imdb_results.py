"""What every model of this folder reports: one JSON file, and its test probabilities beside it.

Shapes in comments: N reviews.
"""

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from download_prepare_dataset import LABELS, REVIEWS
from evaluation import test_metrics
from files import whole_file, write_json
from measuring import peak_memory_mb
from message_files import DataError
from options import SEED, Options, option

RESULTS = Path(__file__).parent / "results"  # those that the README reports
MY_RESULTS = Path(__file__).parent / "my-results"  # those of a reader's own runs
# Options that do not shape a result.
BESIDE = ("name", "data", "runs", "results", "feature_store", "resume", "overwrite", "quiet")


@dataclass(frozen=True)
class Measurement(Options):
    """Options that all measuring commands of this folder have."""

    left_out: ClassVar[tuple[str, ...]] = ()  # inherited fields that are no options here
    data: Path = option(REVIEWS, "folder of the three parts", group="data")
    seed: int = option(1, "whatever is drawn: reviews, new head, order, dropout", SEED, "training")
    results: Path = option(MY_RESULTS, "folder of the result files", group="run")
    quiet: bool = option(False, "print the results only", group="run")

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result, as JSON can hold it."""
        beside = (*BESIDE, *self.left_out)
        return {name: value for name, value in asdict(self).items() if name not in beside}

    def command(self, script: str, *names: str) -> str:
        """The command as a reader would repeat it, without the names of private folders."""
        words, chosen = [script, *names], self.identity()
        for entry in fields(self):
            value = chosen.get(entry.name, entry.default)
            if entry.metadata and value != entry.default:
                words.append("--" + entry.name.replace("_", "-"))
                words += [] if value is True else [str(value)]
        return shlex.join(words)


def label_numbers(part: pd.DataFrame) -> np.ndarray:
    """0 for a negative review, 1 for a positive one: (N,)."""
    return part["label"].map(LABELS.index).to_numpy()


def metrics(positive: np.ndarray, part: pd.DataFrame) -> dict[str, Any]:
    """Accuracy with interval and more, from each review's probability of being positive (N,)."""
    return test_metrics(np.stack([1 - positive, positive], axis=1), label_numbers(part))


def kind_of_run(curve_size: int | None, is_trial: bool) -> str:
    """The subfolder of a result: main ones, learning curves, or trials to choose options by."""
    return "trials" if is_trial else "" if curve_size is None else "curve"


def draw(reviews: pd.DataFrame, size: int | None, seed: int) -> pd.DataFrame:
    """`size` random reviews, or all. Raises ``DataError`` if there are fewer."""
    if size is None:
        return reviews
    if size > len(reviews):
        raise DataError(f"{size} reviews cannot be drawn: there are only {len(reviews)}.")
    return reviews.sample(size, random_state=seed)


def result_lines(result: dict[str, Any]) -> str:
    """Accuracies with intervals, as a command prints them."""
    measured = {part: result[part] for part in ("validation", "test") if part in result}
    return "\n".join(
        "{:<11}{:.2%} [{:.2%}, {:.2%}]".format(part, found["accuracy"], *found["accuracy_interval"])
        for part, found in measured.items()
    )


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where a result was measured, and the most memory that it took."""
    on_gpu = device.startswith("cuda")
    modules = {"torch": "torch", "transformers": "transformers", "scikit-learn": "sklearn"}
    used = {name: sys.modules[key] for name, key in modules.items() if key in sys.modules}
    return {
        "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_memory_mb(),
        "device": torch.cuda.get_device_name() if on_gpu else device,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()}
        | {name: module.__version__ for name, module in used.items()},
    }


def write_result(
    name: str, result: dict[str, Any], positive: np.ndarray | None, folder: Path
) -> None:
    """`NAME.json`, and with `positive` (N,) the test reviews' probabilities in `NAME.npz`.

    Probabilities are kept as whole numbers of 1/255: enough to compare, and small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if positive is not None:
        with whole_file(folder / f"{name}.npz") as partial:
            np.savez_compressed(partial, positive=np.round(positive * 255).astype(np.uint8))
    write_json(result, folder / f"{name}.json")


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def read_positive(name: str, folder: Path = RESULTS) -> np.ndarray:
    """Each test review's probability of being positive (N,), in the order of the test part."""
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["positive"] / 255
