"""finetune.py --start-from: a training that goes on from a saved classifier."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import fails, made_up_messages, write_csv
from test_finetune import QUICK, train

import finetune
from files import file_sha256

pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")
HARDLY = ("--learning-rate", "1e-12")  # what is trained stays what it was


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A file of messages, the folder of a classifier that learned them, and its metrics."""
    folder = tmp_path_factory.mktemp("first")
    data, output = write_csv(folder / "messages.csv", made_up_messages()), folder / "out"
    return data, output, train(data, output, "--learning-rate", "1e-2", "--num-epochs", "3")


def start_from(first, output: Path, *options, data: Path | None = None) -> list[str]:
    """The options of a run that starts from the first one's classifier, and names no model."""
    quick = ("--data", data or first[0], "--output", output, *QUICK, "--start-from", first[1])
    quick = [str(option) for option in (*quick, *options)]
    model = quick.index("--model")
    return [*quick[:model], *quick[model + 2 :]]


def go_on(arguments: list[str]) -> dict:
    """metrics.json of a run with these options."""
    assert finetune.main(arguments) == 0
    return json.loads((Path(arguments[3]) / "metrics.json").read_text(encoding="utf-8"))


def probabilities(metrics: dict) -> np.ndarray:
    return np.array(metrics["test_predictions"]["probabilities"])


def test_with_the_same_labels_decoder_and_head_go_on(first, tmp_path):
    before, after = first[2], go_on(start_from(first, tmp_path / "out", *HARDLY))
    np.testing.assert_allclose(probabilities(after), probabilities(before), atol=1e-5)
    assert after["model"] == "gpt-mini"
    assert after["options"]["start_from_sha256"] == file_sha256(first[1] / "config.json")
    more = go_on(start_from(first, tmp_path / "more", "--learning-rate", "1e-2"))
    assert more["history"]["step_losses"][0] < before["history"]["step_losses"][0]


def test_its_pooling_goes_on_too(first, tmp_path):
    mean = tmp_path / "mean"
    train(first[0], mean, "--pooling", "mean")
    arguments = start_from((first[0], mean), tmp_path / "out", *HARDLY)
    assert go_on(arguments)["options"]["pooling"] == "mean"


def test_with_other_labels_the_head_is_new(first, tmp_path, capsys):
    other = [(text, {"ham": "no", "spam": "yes"}[label]) for text, label in made_up_messages()]
    data = write_csv(tmp_path / "other.csv", other)
    arguments = start_from(first, tmp_path / "out", *HARDLY, data=data)
    metrics = go_on([option for option in arguments if option != "--quiet"])
    assert "with a new head" in capsys.readouterr().out
    assert metrics["labels"] == ["no", "yes"]
    assert np.abs(probabilities(metrics) - probabilities(first[2])).max() > 0.1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "smollm2-135m"), "is a gpt-mini: leave out --model"),
        (("--weights", "random"), "leave out --weights"),
        (("--continued-pretraining-epochs", "1"), "leave out --weights, --no-causal"),
    ],
)
def test_what_contradicts_the_classifier_is_refused(first, tmp_path, capsys, options, says):
    assert says in fails(finetune, capsys, *start_from(first, tmp_path / "out", *options))
