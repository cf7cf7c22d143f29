"""The classifier as a module: pooling, padding, freezing, losses and predictions."""

import pytest
import torch
import torch.nn.functional as F
from tiny import batch_of, tiny_classifier, tiny_dataset

from text_classifier import (
    POOLINGS,
    ClassifierConfig,
    GPTClassifier,
    calc_accuracy_loader,
    calc_logits,
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    freeze_all_but,
    pick_device,
    predict_logits,
    set_dropout,
    train_mode,
)
from text_data import IGNORED, SpamDataset, collate, make_loader
from training import TrainConfig, train_classifier_simple


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_no_logits(pooling, causal):
    classifier, dataset = tiny_classifier(pooling=pooling, causal=causal), tiny_dataset(12)
    alone = torch.cat([calc_logits(classifier, collate([dataset[i]])) for i in range(12)])
    batch = batch_of(dataset)
    torch.testing.assert_close(calc_logits(classifier, batch), alone, rtol=0, atol=1e-5)
    wide = {name: F.pad(batch[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(classifier(**wide), alone, rtol=0, atol=1e-5)


def test_the_mean_is_that_of_all_final_states():
    classifier, ids = tiny_classifier(pooling="mean"), tiny_dataset().sequences[0]
    decoder = classifier.decoder
    with torch.no_grad():
        x = decoder.final_norm(decoder.run_blocks(decoder.embed(ids.unsqueeze(0))))
        by_hand = decoder.out_head(x.mean(dim=1))
    torch.testing.assert_close(predict_logits(classifier, SpamDataset([ids])), by_hand)


def test_the_first_token_sees_later_ones_without_the_causal_mask_only():
    dataset = tiny_dataset(12)
    changed = SpamDataset([torch.cat([ids[:1], 49 - ids[1:]]) for ids in dataset.sequences])
    for causal in (True, False):
        classifier = tiny_classifier(pooling="first", causal=causal)
        moved = predict_logits(classifier, changed) - predict_logits(classifier, dataset)
        assert (moved.abs().max() < 1e-5) == causal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": ["a"]}, "at least two different texts"),
        ({"label_names": ["a", "a"]}, "at least two different texts"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": True}, "max_length=True"),
        ({"pooling": "middle"}, "'middle' must be one of last, mean, first"),
        ({"cut": "middle"}, "'middle' must be one of head, tail, both, windows"),
        ({"max_length": 41}, "exceeds the model's context of 40 tokens"),
    ],
)
def test_wrong_configurations_are_named(change, message):
    options = {"model_name": "gpt-mini", "label_names": ["a", "b"], "max_length": 40}
    with pytest.raises(ValueError, match=message):
        GPTClassifier(tiny_classifier().decoder, ClassifierConfig(**options | change))


@pytest.mark.parametrize("trainable", [-1, 4, True, "lora", "everything", None])
def test_parts_that_cannot_be_trained_are_named(trainable):
    with pytest.raises(ValueError, match=r"must be one of head, last_block, .* from 0 to 3"):
        freeze_all_but(tiny_classifier(), trainable)


@pytest.mark.parametrize(
    ("trainable", "num_frozen", "parts"),
    [
        ("head", 3, ("out_head",)),
        ("last_block", 2, ("out_head", "final_norm", "trf_blocks.2")),
        ("last_two_blocks", 1, ("out_head", "final_norm", "trf_blocks.1", "trf_blocks.2")),
        (3, 0, ("out_head", "final_norm", "trf_blocks")),
        ("all", 0, ("",)),
    ],
)
def test_only_the_named_part_is_trained_and_the_rest_stays_bit_identical(
    trainable, num_frozen, parts
):
    classifier, dataset = tiny_classifier(), tiny_dataset()
    assert freeze_all_but(classifier, trainable) == num_frozen
    decoder = classifier.decoder
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    train_classifier_simple(classifier, dataset, dataset, TrainConfig(num_epochs=1, dropout=0.1))
    for name, parameter in decoder.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith(parts), name


def test_frozen_parts_stay_in_evaluation_mode_and_dropout_acts_in_training_only():
    classifier, batch = tiny_classifier(), batch_of(tiny_dataset(8))
    set_dropout(classifier, 0.5)
    assert torch.equal(calc_logits(classifier, batch), calc_logits(classifier, batch))
    train_mode(classifier)
    decoder = classifier.decoder
    assert [block.training for block in decoder.trf_blocks] == [False, False, True]
    assert (decoder.drop_emb.training, decoder.out_head.training) == (False, True)
    assert not torch.equal(calc_logits(classifier, batch), calc_logits(classifier, batch))


def test_loss_and_accuracy_are_those_of_all_messages_at_once_whatever_the_batch_size():
    classifier, dataset = tiny_classifier(num_classes=3), tiny_dataset(50, num_classes=3)
    logits, labels = calc_logits(classifier, batch_of(dataset)), torch.tensor(dataset.labels)
    expected = F.cross_entropy(logits, labels).item()
    right = (logits.argmax(dim=1) == labels).float().mean().item()
    assert evaluate_model(classifier, dataset) == pytest.approx((expected, right), abs=1e-5)
    for batch_size in (1, 7, 50):
        loader = make_loader(dataset, batch_size)
        assert calc_loss_loader(classifier, loader) == pytest.approx(expected, abs=1e-5)
        assert calc_accuracy_loader(classifier, loader) == pytest.approx(right)


def test_class_weights_and_label_smoothing_enter_the_loss():
    classifier, batch = tiny_classifier(), batch_of(tiny_dataset(10))
    logits, labels = calc_logits(classifier, batch), batch["labels"]
    weights = torch.tensor([1.0, 3.0])
    found = calc_loss_batch(classifier, batch, weights)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, weights))
    smooth = 0.8 * F.cross_entropy(logits, labels)
    smooth = smooth - 0.1 * F.log_softmax(logits, dim=-1).sum(dim=-1).mean()
    torch.testing.assert_close(calc_loss_batch(classifier, batch, label_smoothing=0.2), smooth)


def test_messages_of_unknown_class_do_not_count_in_the_loss():
    classifier, dataset = tiny_classifier(), tiny_dataset(8)
    unknown = SpamDataset(dataset.sequences)
    assert unknown.labels == [IGNORED] * 8
    mixed = collate([*dataset, *unknown])
    expected = calc_loss_batch(classifier, batch_of(dataset))
    torch.testing.assert_close(calc_loss_batch(classifier, mixed), expected)


def test_an_absent_device_is_named():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"'tpu' is not available here; available: auto, .*cpu"):
        pick_device("tpu")
