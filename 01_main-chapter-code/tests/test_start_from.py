"""finetune.py --start-from: a training that goes on from a saved classifier."""

import json

import numpy as np
import pytest
from helpers import edit_json, fails, made_up_messages, write_csv
from test_finetune import QUICK, one_thread, train

import finetune

__all__ = ["one_thread"]  # the fixture
pytestmark = pytest.mark.usefixtures("no_pictures")
HARDLY = ("--learning-rate", "1e-12")  # what is trained stays what it was


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A file of messages, and the folder of a classifier that learned them."""
    folder = tmp_path_factory.mktemp("first")
    data = write_csv(folder / "messages.csv", made_up_messages())
    train(data, folder / "out", "--learning-rate", "1e-2", "--num-epochs", "3")
    return data, folder / "out"


def probabilities(metrics: dict) -> np.ndarray:
    return np.array(metrics["test_predictions"]["probabilities"])


def start_from(folder) -> tuple:
    model = QUICK.index("--model")
    options = [*QUICK[:model], *QUICK[model + 2 :]]
    return (*options, "--start-from", folder)


def test_with_the_same_labels_decoder_and_head_go_on(first, tmp_path):
    data, folder = first
    before = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    arguments = ("--data", data, "--output", tmp_path / "out", *start_from(folder), *HARDLY)
    assert finetune.main(list(map(str, arguments))) == 0
    after = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(probabilities(after), probabilities(before), atol=1e-5)
    assert after["model"] == "gpt-mini"
    further = (*arguments[:3], tmp_path / "more", *start_from(folder), "--learning-rate", "1e-2")
    assert finetune.main(list(map(str, further))) == 0
    more = json.loads((tmp_path / "more" / "metrics.json").read_text(encoding="utf-8"))
    assert more["history"]["step_losses"][0] < before["history"]["step_losses"][0]


def test_with_other_labels_the_head_is_new(first, tmp_path, capsys):
    other = [(text, {"ham": "no", "spam": "yes"}[label]) for text, label in made_up_messages()]
    data = write_csv(tmp_path / "other.csv", other)
    loud = [option for option in start_from(first[1]) if option != "--quiet"]
    arguments = ("--data", data, "--output", tmp_path / "out", *loud, *HARDLY)
    assert finetune.main(list(map(str, arguments))) == 0
    assert "with a new head" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["labels"] == ["no", "yes"]
    before = json.loads((first[1] / "metrics.json").read_text(encoding="utf-8"))
    assert np.abs(probabilities(metrics) - probabilities(before)).max() > 0.1


def test_a_run_is_gone_on_with_only_from_the_same_folder(first, tmp_path, capsys):
    data, folder = first
    arguments = ("--data", data, "--output", tmp_path / "out", *start_from(folder))
    assert finetune.main(list(map(str, arguments))) == 0
    path = tmp_path / "out" / "metrics.json"
    options = json.loads(path.read_text(encoding="utf-8"))["options"]
    edit_json(path, options=options | {"start_from_sha256": "another"})
    assert "other options or data" in fails(finetune, capsys, *arguments, "--resume")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "smollm2-135m"), "is a gpt-mini: leave out --model"),
        (("--weights", "random"), "leave out --weights"),
        (("--continued-pretraining-epochs", "1"), "leave out --weights, --no-causal"),
    ],
)
def test_what_contradicts_the_classifier_is_refused(first, tmp_path, capsys, options, says):
    arguments = ("--data", first[0], "--output", tmp_path / "out", *start_from(first[1]))
    assert says in fails(finetune, capsys, *arguments, *options)
