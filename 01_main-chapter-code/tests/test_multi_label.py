"""Several labels a message: how they are read, trained, measured, saved and printed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import succeeds, write_csv
from sklearn.metrics import f1_score
from tiny import batch_of, tiny_classifier, tiny_dataset
from torch.nn import functional as F

import classify
import finetune
from classifier_folder import open_classifier
from message_files import DataError
from multi_label import LabelByLabel, best_thresholds, label_set_metrics
from run_config import RunConfig
from run_messages import read_run_messages
from text_classifier import calc_logits, calc_loss_batch, evaluate_model

QUICK = ("--model", "gpt-mini", "--num-epochs", "8", "--continued-pretraining-epochs", "0")
PARTS = {"price": "it was far too expensive", "taste": "the soup tasted of nothing"}


def reviews(size: int = 60) -> list[tuple[str, str]]:
    """Texts of none, one or both parts, each a label."""
    sets = [(), ("price",), ("taste",), ("taste", "price")]
    return [
        (" and ".join([f"visit number {i}", *map(PARTS.get, sets[i % 4])]), " | ".join(sets[i % 4]))
        for i in range(size)
    ]


def test_sets_of_labels_are_read_with_those_of_none(tmp_path, capsys):
    path = write_csv(tmp_path / "m.csv", [*reviews(), ("visit number 1", "rare | taste")] * 2)
    config = RunConfig(data=path, balance="none", multi_label=True, train_size=30)
    with pytest.raises(DataError, match="'rare' has only 1"):
        read_run_messages(config)
    write_csv(path, reviews())
    messages = read_run_messages(config)
    said = capsys.readouterr().out
    assert "price 30, taste 30." in said
    assert "15 texts carry none of the labels." in said
    assert messages.label_names == ["price", "taste"]
    assert {*messages.splits.test["label"]} <= {"", "price", "taste", "price|taste"}
    assert list(map(len, messages.splits)) == [30, 6, 12]
    strange = write_csv(tmp_path / "t.csv", [("a visit", "service|price")])
    with pytest.raises(DataError, match="'service' does not occur"):
        read_run_messages(RunConfig(data=path, balance="none", multi_label=True, test_data=strange))


def test_loss_and_accuracy_are_those_of_every_label_by_itself():
    classifier, dataset = tiny_classifier(3), tiny_dataset(12)
    dataset.labels = torch.randint(0, 2, (12, 3), generator=torch.manual_seed(0)).tolist()
    batch, model = batch_of(dataset), LabelByLabel(classifier)
    logits, labels = calc_logits(classifier, batch), torch.tensor(dataset.labels)
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(calc_loss_batch(model, batch), expected)
    loss, accuracy = evaluate_model(model, dataset)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert accuracy == pytest.approx(((logits > 0) == labels).float().mean().item())


def test_thresholds_have_the_largest_f1():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((40, 3)), rng.integers(0, 2, (40, 3))
    labels[:, 2] = 0
    thresholds = best_thresholds(probabilities, labels)
    assert thresholds[2] == 0.5
    for i in (0, 1):
        best = max(f1_score(labels[:, i], probabilities[:, i] >= t) for t in probabilities[:, i])
        assert f1_score(labels[:, i], probabilities[:, i] >= thresholds[i]) == best


def test_a_message_is_right_if_all_its_labels_are():
    probabilities = np.array([[0.9, 0.2], [0.9, 0.4], [0.1, 0.1], [0.9, 0.9]])
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    metrics = label_set_metrics(probabilities, labels, [0.5, 0.3])
    assert metrics["accuracy"] == 0.75
    assert metrics["micro_f1"] == pytest.approx(8 / 9)
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)


def test_from_a_file_to_the_labels_that_classify_prints(tmp_path, capsys, no_pictures):
    data, folder = write_csv(tmp_path / "m.csv", reviews(120)), tmp_path / "out"
    options = ("--data", data, "--multi-label", "--balance", "none", "--output", folder, *QUICK)
    said = succeeds(finetune, capsys, *options)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert f"micro F1 {metrics['test']['micro_f1']:.3f}" in said
    assert metrics["ngram_baseline"]["micro_f1"] > 0.9
    assert metrics["test"]["micro_f1"] > 0.9
    classifier, _ = open_classifier(folder)
    assert list(classifier.config.thresholds) == metrics["thresholds"]

    config = RunConfig(data=data, balance="none", multi_label=True)
    test = read_run_messages(config, lambda *_: None).splits.test
    path, output = tmp_path / "test.csv", tmp_path / "classified.csv"
    test.to_csv(path, index=False)
    arguments = ("--file", path, "--output", output, "--label-column", "label")
    said = succeeds(classify, capsys, folder, *arguments, "--all-probabilities")
    assert f"accuracy {metrics['test']['accuracy']:.1%}" in said
    table = pd.read_csv(output, keep_default_na=False)
    columns = table[["probability of price", "probability of taste"]].to_numpy()
    measured = np.array(metrics["test_predictions"]["probabilities"])
    np.testing.assert_allclose(columns, measured, atol=1e-4)
    is_named = measured >= metrics["thresholds"]
    assert {*is_named.sum(axis=1)} > {1, 2}
    lowest = np.where(is_named, measured, 2).min(axis=1)
    expected = np.where(is_named.any(axis=1), lowest, measured.max(axis=1))
    np.testing.assert_allclose(table["probability"], expected, atol=1e-4)
    both = f"visit number 7 and {PARTS['taste']} and {PARTS['price']}"
    label, probability, text = succeeds(classify, capsys, folder, both, "--top", "2").split("\t")
    assert (label, text.strip()) == ("price|taste", both)  # all labels are named: none comes next
    assert float(probability) >= min(metrics["thresholds"]) - 1e-4
