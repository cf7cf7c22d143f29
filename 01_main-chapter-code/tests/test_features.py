"""Frozen layers computed once and one position in the last block: the same logits, or refused."""

import pytest
import torch
from tiny import batch_of, tiny_classifier, tiny_dataset

from features import FastClassifier, FeatureDataset, layers_hash
from text_classifier import POOLINGS, calc_logits, freeze_all_but, predict_logits
from training import TrainConfig, train_classifier_simple

NUM_FROZEN = {"head": 3, "last_block": 2, "last_two_blocks": 1}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("trainable", NUM_FROZEN)
def test_features_give_the_same_logits(trainable, pooling, causal):
    classifier = tiny_classifier(trainable=trainable, pooling=pooling, causal=causal)
    dataset, num_layers = tiny_dataset(), NUM_FROZEN[trainable]
    features = FeatureDataset.from_classifier(classifier, dataset, num_layers)
    expected = predict_logits(classifier, dataset)
    fast = FastClassifier(classifier, num_layers)
    torch.testing.assert_close(predict_logits(fast, features), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(predict_logits(fast, dataset), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("trainable", NUM_FROZEN)
def test_cheap_training_equals_plain_training(trainable, pooling):
    """Same losses (1e-5) and same final weights (1e-4)."""
    plain, cheap = (tiny_classifier(trainable=trainable, pooling=pooling) for _ in range(2))
    dataset, config = tiny_dataset(80), TrainConfig(1e-2, num_epochs=2, batch_size=8)
    expected = train_classifier_simple(plain, dataset, dataset, config)
    features = FeatureDataset.from_classifier(cheap, dataset, NUM_FROZEN[trainable])
    model = FastClassifier(cheap, NUM_FROZEN[trainable])
    history = train_classifier_simple(model, features, features, config)
    assert expected.step_losses[-1] != pytest.approx(expected.step_losses[0], abs=1e-3)
    assert history.step_losses == pytest.approx(expected.step_losses, abs=1e-5)
    assert history.validation_loss == pytest.approx(expected.validation_loss, abs=1e-5)
    weights = dict(cheap.named_parameters())
    for name, weight in plain.named_parameters():
        # A key bias adds the same to all scores of a query, which softmax ignores: its gradient
        # is rounding noise, and AdamW makes steps of any noise.
        if not name.endswith("W_key.bias"):
            torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("seed", "num_layers"), [(2, 2), (1, 1)])
def test_features_of_other_weights_or_another_number_of_layers_are_refused(seed, num_layers):
    dataset = tiny_dataset(8)
    features = FeatureDataset.from_classifier(tiny_classifier(seed=1), dataset, 2)
    with pytest.raises(ValueError, match="made by other layers or other weights") as refused:
        predict_logits(FastClassifier(tiny_classifier(seed=seed), num_layers), features)
    assert f"first {num_layers} layers" in str(refused.value)


@pytest.mark.parametrize("trainable", ["all", "last_two_blocks"])
def test_layers_that_are_trained_cannot_be_computed_once(trainable):
    classifier, dataset = tiny_classifier(), tiny_dataset(8)
    features = FeatureDataset.from_classifier(classifier, dataset, 2)
    freeze_all_but(classifier, trainable)
    with pytest.raises(ValueError, match=r"cannot train them, but .* is to be trained"):
        train_classifier_simple(FastClassifier(classifier, 2), features, features, TrainConfig())


def test_a_hash_tells_weights_and_their_places_apart():
    decoder = tiny_classifier().decoder
    assert len({layers_hash(decoder, n) for n in range(4)}) == 4
    before = layers_hash(decoder, 2)
    decoder.trf_blocks[2].ff.layers[0].weight.data.zero_()  # above: does not matter
    assert layers_hash(decoder, 2) == before
    weight = decoder.trf_blocks[0].att.W_query.weight.data
    weight[[0, 1]] = weight[[1, 0]]
    assert layers_hash(decoder, 2) != before


def test_bfloat16_is_rounded_and_kept_in_float32():
    classifier, dataset = tiny_classifier(), tiny_dataset()
    exact, rounded = (
        FeatureDataset.from_classifier(classifier, dataset, 2, precision=precision).sequences
        for precision in ("float32", "bfloat16")
    )
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.05)
    fast = FastClassifier(classifier, precision="bfloat16")
    logits, expected = (calc_logits(model, batch_of(dataset)) for model in (fast, classifier))
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.2
