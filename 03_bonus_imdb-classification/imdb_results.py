"""What every model of this folder reports: one JSON file, and its test probabilities beside it.

Shapes in comments: N reviews.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from download_prepare_dataset import LABELS
from evaluation import test_metrics
from files import read_json, whole_file, write_json
from message_files import DataError

RESULTS = Path(__file__).parent / "results"  # those that the README reports
MY_RESULTS = Path(__file__).parent / "my-results"  # those of a reader's own runs


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


def with_interval(metrics: dict[str, Any]) -> str:
    """An accuracy, as commands print it."""
    low, high = metrics["accuracy_interval"]
    return f"{metrics['accuracy']:.2%} [{low:.2%}, {high:.2%}]"


def result_lines(result: dict[str, Any]) -> str:
    parts = [part for part in ("validation", "test") if part in result]
    return "\n".join(f"{part:<11}{with_interval(result[part])}" for part in parts)


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
    return read_json(folder / f"{name}.json")


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """By name, the least accurate first. Raises ``DataError`` without files."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    if not names:
        raise DataError(f"there are no result files in {folder}.")
    results = {name: read_result(name, folder) for name in names}
    return dict(sorted(results.items(), key=lambda item: item[1]["test"]["accuracy"]))


def read_positive(name: str, folder: Path = RESULTS) -> np.ndarray:
    """Each test review's probability of being positive (N,), in the order of the test part."""
    with np.load(folder / f"{name}.npz") as arrays:
        return arrays["positive"] / 255
