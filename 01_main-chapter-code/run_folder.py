"""The folder that a run writes: one process at a time, nothing overwritten unasked, resumable."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from classifier_folder import save_classifier
from evaluation import plot_confusion_matrix, plot_values
from files import locked, read_json, reading_results, whole_file, write_json
from message_files import DataError
from text_classifier import GPTClassifier
from training import Checkpoint

CHECKPOINT, METRICS = "checkpoint.pt", "metrics.json"
MAX_LABELS_DRAWN = 20  # in a confusion matrix


class RunFolder:
    """The output of a run, or None, to which nothing is written."""

    def __init__(self, path: Path | None, identity: Mapping[str, Any]):
        self.path = path
        self.checkpoint = None if path is None else Checkpoint(path / CHECKPOINT, identity)
        self.is_finished = False

    def look_at_what_is_there(self, resume: bool, overwrite: bool) -> None:
        classifier = (self.path / "config.json").exists()
        unfinished = self.checkpoint.path.exists()
        if resume:
            if unfinished:
                self.checkpoint.read()  # now, before long work, it is found to be another run's
                return
            if not classifier:
                raise DataError(
                    f"--resume: there is no run to go on with in {self.path}; leave out --resume."
                )
            with reading_results(self.path):
                options = self.metrics().get("options")
            if options != self.checkpoint.identity:
                raise DataError(
                    f"--resume: the run in {self.path} is finished and had other options or data; "
                    f"leave out --resume, and name another --output."
                )
            self.is_finished = True
        elif overwrite:
            self.checkpoint.remove()
        elif classifier or unfinished or (self.path / METRICS).exists():
            what = "a run that was stopped" if unfinished else "a classifier or its metrics"
            raise DataError(
                f"{self.path} holds {what}: name another folder with --output, replace it with "
                f"--overwrite, or go on with it with --resume."
            )

    def metrics(self) -> dict[str, Any]:
        return read_json(self.path / METRICS)

    def write(self, classifier: GPTClassifier, metrics: dict[str, Any]) -> None:
        """The classifier, metrics.json and the plots; the checkpoint is no longer needed."""
        if self.path is None:
            return
        with warnings.catch_warnings():
            # Labels may hold signs that the font lacks: boxes are drawn, and that is all.
            warnings.filterwarnings("ignore", message="Glyph")
            for name, figure in _plots(metrics).items():
                with whole_file(self.path / f"{name}.png") as partial:
                    figure.savefig(partial, format="png", dpi=120)
                plt.close(figure)
        write_json(metrics, self.path / METRICS)
        save_classifier(classifier, self.path)
        self.checkpoint.remove()


@contextmanager
def open_run_folder(
    path: Path | None, identity: Mapping[str, Any], resume: bool = False, overwrite: bool = False
) -> Iterator[RunFolder]:
    """The folder of a run, with a lock on it until the run is over.

    `identity` is whatever must be the same when the run is resumed. Raises ``DataError`` where the
    folder holds a classifier or an unfinished run and `overwrite` was not said, or where `resume`
    finds nothing to go on with, or another run; ``OSError`` where it cannot be written.
    """
    folder = RunFolder(path, identity)
    if path is None:
        yield folder
        return
    path.mkdir(parents=True, exist_ok=True)
    with locked(folder.checkpoint.path):
        folder.look_at_what_is_there(resume, overwrite)
        yield folder


def _plots(metrics: dict[str, Any]) -> dict[str, Figure]:
    plots, history, num_train = {}, metrics["history"], metrics["train"]["num_examples"]
    for name in ("loss", "accuracy"):
        train, validation = history[f"train_{name}"], history[f"validation_{name}"]
        plots[name] = plot_values(range(1, len(train) + 1), train, validation, name, num_train)
    matrix = np.array(metrics["test"].get("confusion_matrix", []))  # none of several labels
    if 0 < len(matrix) <= MAX_LABELS_DRAWN:
        plots["confusion-matrix"] = plot_confusion_matrix(matrix, metrics["labels"])
    return plots
