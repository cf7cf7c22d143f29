"""Hidden states on disk: the same logits to half precision, and nothing is computed twice."""

import pytest
import torch
from tiny import tiny_classifier, tiny_dataset

from feature_store import FeatureStore
from features import FastClassifier, FeatureDataset
from text_classifier import predict_logits


def features(classifier, store, num_layers=2) -> FeatureDataset:
    return FeatureDataset.from_classifier(classifier, tiny_dataset(), num_layers, store=store)


def test_stored_states_give_the_logits_of_computed_ones_and_are_not_computed_again(
    tmp_path, monkeypatch
):
    classifier, computed = tiny_classifier(), []
    expected = predict_logits(classifier, tiny_dataset())
    run_blocks = classifier.decoder.run_blocks

    def counting(x, *args, **kwargs):
        computed.append(len(x))
        return run_blocks(x, *args, **kwargs)

    monkeypatch.setattr(classifier.decoder, "run_blocks", counting)
    with FeatureStore(tmp_path) as store:
        features(classifier, store)
    stored = [features(classifier, s) for s in (store, FeatureStore(tmp_path))]
    assert sum(computed) == len(tiny_dataset())
    features(classifier, FeatureStore(tmp_path), num_layers=1)  # other layers' states are others
    assert sum(computed) == 2 * len(tiny_dataset())
    for data in stored:
        assert data.sequences[0].dtype == torch.float16
        logits = predict_logits(FastClassifier(classifier, num_layers=2), data)
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.02)


def test_whole_files_outlive_a_killed_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("feature_store.SHARD_BYTES", 100)
    store, states = FeatureStore(tmp_path), torch.randn(8, 4)
    for key in ("a", "b"):
        store[key] = states  # 64 bytes each: a file of two
    store["c"] = states  # never written
    (tmp_path / "00001.safetensors.partial").mkdir()
    found = FeatureStore(tmp_path)
    assert [key in found for key in "abc"] == [True, True, False]
    with found:
        found["c"] = 2 * states
    torch.testing.assert_close(FeatureStore(tmp_path)["c"], (2 * states).half())
    min(tmp_path.glob("*.safetensors")).unlink()  # and no other file is written over
    with FeatureStore(tmp_path) as store:
        store["d"] = states
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    with FeatureStore(tmp_path) as one, FeatureStore(tmp_path) as other:  # as in two processes
        one["e"], one["f"] = states, 3 * states[:1]
        other["e"], other["g"] = states, 4 * states[:1]
    found = FeatureStore(tmp_path)
    torch.testing.assert_close(found["f"], (3 * states[:1]).half())
    torch.testing.assert_close(found["g"], (4 * states[:1]).half())
    with pytest.raises(ValueError, match="range of half precision"):
        store["big"] = torch.tensor([[1e5]])
