"""Training: options that act, early stopping, going on after a stop, continued pretraining."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from tiny import batch_of, tiny_classifier, tiny_dataset, tiny_decoder

import training
from continued_pretraining import calc_next_token_loss, continue_pretraining
from text_classifier import evaluate_model
from training import (
    Checkpoint,
    TrainConfig,
    TrainingState,
    learning_rate_at,
    train_classifier_simple,
    train_epoch,
)


def test_learning_rate_rises_then_falls_along_a_cosine():
    config = TrainConfig(learning_rate=1.0, warmup_ratio=0.1, schedule="cosine")
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == sorted(rates[:11]) + sorted(rates[11:], reverse=True)
    assert 0 < rates[-1] < 0.01
    constant = dataclasses.replace(config, schedule="constant", warmup_ratio=0)
    assert {learning_rate_at(step, 100, constant) for step in range(100)} == {1.0}


def train(config: TrainConfig, dataset=None, class_weights=None, **how) -> tuple:
    """What a training led to: its history, and the head's weights."""
    classifier, dataset = tiny_classifier(), dataset or tiny_dataset()
    history = train_classifier_simple(classifier, dataset, dataset, config, class_weights, **how)
    return history, classifier.decoder.out_head.weight.detach()


BASE = TrainConfig(num_epochs=2, learning_rate=1e-2)
CHANGES = {"learning_rate": 1e-3, "num_epochs": 3, "batch_size": 5, "weight_decay": 0.9}
CHANGES |= {"dropout": 0.3, "warmup_ratio": 0.5, "schedule": "constant", "max_grad_norm": 0.01}
CHANGES |= {"label_smoothing": 0.2, "seed": 7}


@pytest.mark.parametrize(("name", "value"), CHANGES.items())
def test_every_training_option_changes_the_outcome(name, value):
    changed = dataclasses.replace(BASE, **{name: value})
    outcomes = [train(config)[1] for config in (BASE, BASE, changed)]
    assert torch.equal(outcomes[0], outcomes[1])  # the same twice is the same
    assert not torch.equal(outcomes[0], outcomes[2])


def test_values_out_of_range_are_named_together():
    with pytest.raises(ValueError, match="learning_rate=-1 must be above 0") as caught:
        TrainConfig(learning_rate=-1, dropout=1.5, schedule="linear", batch_size=2.5)
    for part in ("dropout=1.5 must be", "'linear' must be constant or cosine", "batch_size=2.5"):
        assert part in str(caught.value)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 3.0])])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(weights):
    config = TrainConfig(1e-2, num_epochs=1, batch_size=10, warmup_ratio=0.0)
    (whole, expected), *others = (
        train(dataclasses.replace(config, micro_batch_size=size), tiny_dataset(10), weights)
        for size in (None, 1, 3)
    )
    for history, weight in others:
        assert history.step_losses == pytest.approx(whole.step_losses, abs=1e-5)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-4)


def test_every_epoch_has_an_order_of_its_own():
    dataset = tiny_dataset(32)
    state = TrainingState(tiny_classifier(), dataset, TrainConfig(learning_rate=1e-12))
    for _ in range(2):
        train_epoch(state, dataset)
    first, second = torch.tensor(state.history.step_losses).view(2, 4)
    assert (first - second).abs().max() > 1e-4


def test_early_stopping_keeps_the_best_weights():
    train, validation = tiny_dataset(12, seed=1), tiny_dataset(60, seed=2)
    classifier = tiny_classifier()
    config = TrainConfig(num_epochs=60, learning_rate=3e-2, patience=3, schedule="constant")
    history = train_classifier_simple(classifier, train, validation, config)
    assert history.num_epochs < 60
    assert history.best_epoch == history.num_epochs - 3
    best_loss = min(history.validation_loss)
    assert history.validation_loss[-1] > best_loss
    assert evaluate_model(classifier, validation)[0] == pytest.approx(best_loss, abs=1e-6)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_training_equals_undisturbed_training(tmp_path, monkeypatch, stop_after):
    dataset, validation = tiny_dataset(40), tiny_dataset(20, seed=5)
    config = TrainConfig(num_epochs=4, learning_rate=1e-2, dropout=0.2, patience=2)
    undisturbed, stopped, resumed = (tiny_classifier() for _ in range(3))
    expected = train_classifier_simple(undisturbed, dataset, validation, config)
    how = (dataset, validation, config, None, Checkpoint(tmp_path / "c.pt", {"data": "tiny"}))
    real, epochs = training.train_epoch, []

    def dies_once(*arguments):
        epochs.append(1)
        if len(epochs) == stop_after + 1:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(training, "train_epoch", dies_once)
    with pytest.raises(KeyboardInterrupt):
        train_classifier_simple(stopped, *how)
    assert train_classifier_simple(resumed, *how) == expected
    assert len(epochs) == expected.num_epochs + 1  # gone on with, not done anew
    for (name, a), b in zip(undisturbed.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_next_token_loss_counts_real_tokens_only():
    decoder, dataset = tiny_decoder(), tiny_dataset(12)
    with torch.no_grad():
        together = calc_next_token_loss(decoder, batch_of(dataset))
        losses = [
            F.cross_entropy(decoder(ids.unsqueeze(0))[0, :-1], ids[1:], reduction="sum")
            for ids in dataset.sequences
        ]
    num_targets = sum(len(ids) - 1 for ids in dataset.sequences)
    torch.testing.assert_close(together, sum(losses) / num_targets)


def test_continued_pretraining_learns_the_texts():
    decoder, sequences = tiny_decoder(), tiny_dataset(32).sequences
    losses = continue_pretraining(decoder, sequences, TrainConfig(1e-2, num_epochs=20))
    assert len(losses) == 20 * 4
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert not decoder.training


def test_a_batch_in_pieces_gives_the_loss_of_the_whole(monkeypatch):
    sequences, config = tiny_dataset(16).sequences, TrainConfig(1e-2, num_epochs=2)
    whole = continue_pretraining(tiny_decoder(), sequences, config)
    monkeypatch.setattr("continued_pretraining.TOKENS_AT_ONCE", {"cpu": 30})
    in_pieces = continue_pretraining(tiny_decoder(), sequences, config)
    assert in_pieces == pytest.approx(whole, abs=1e-4)
    assert in_pieces != whole
