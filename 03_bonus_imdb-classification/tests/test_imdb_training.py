"""Training in a tiny form: options act, a stopped run goes on to the same result."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from imdb_samples import write_sample_parts
from scipy.sparse import csr_matrix

import compare_cuts
import make_table
import train_gpt
import train_linear
from classifier_folder import open_classifier
from imdb_results import read_positive, read_result, read_results
from previous_chapters import Decoder
from text_data import SpamDataset
from train_gpt import GPTLearner, ReviewsConfig


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_sample_parts(tmp_path_factory.mktemp("parts"))


def places(folder: Path, parts: Path) -> dict[str, Path]:
    return {"data": parts, "runs": folder / "runs", "results": folder / "results"}


def run(folder: Path, parts: Path, name: str = "tiny", **options) -> dict:
    tiny = {"max_length": 8, "num_epochs": 1, "device": "cpu", "quiet": True}
    config = ReviewsConfig(name=name, **places(folder, parts), **tiny | options)
    return train_gpt.train(config, GPTLearner)


def arguments(folder: Path, parts: Path, *options) -> list[str]:
    given = [f"--{name}={path}" for name, path in places(folder, parts).items()]
    return [*given, "--quiet", *map(str, options)]


# --- the GPT -----------------------------------------------------------------------------------


def test_result_classifier_and_probabilities_agree(tmp_path, parts):
    result = run(tmp_path, parts)
    assert read_result("tiny", tmp_path / "results") == result
    assert (result["model"], result["seed"], result["num_train"]) == ("gpt-mini", 1, 24)
    positive = read_positive("tiny", tmp_path / "results")
    labels = np.array([0, 1] * 12)  # as the samples are written
    assert result["test"]["accuracy"] == pytest.approx(((positive > 0.5) == labels).mean())
    assert result["seconds"].keys() >= {"training", "inference"}
    assert result["command"] == "train_gpt.py tiny --num-epochs 1 --max-length 8 --device cpu"
    assert str(tmp_path) not in json.dumps(result)
    classifier, _ = open_classifier(tmp_path / "runs" / "tiny")
    assert classifier.config.label_names == ("neg", "pos")
    assert "test" not in classifier.config.card
    assert classifier.config.cut == "both"


def test_trial_reads_no_test_review_and_small_runs_stand_apart(tmp_path):
    parts = write_sample_parts(tmp_path / "parts")
    run(tmp_path, parts, "curve-8", train_size=8, test_size=6)
    assert run(tmp_path, parts, "few", train_size=8, validation_size=9)["num_train"] == 8
    (parts / "test.parquet").unlink()
    run(tmp_path, parts, "trial", validation_only=True)
    results = tmp_path / "results"
    assert "test" not in read_result("trial", results / "trials")
    curve = read_result("curve-8", results / "curve")
    assert (curve["num_train"], curve["test"]["num_examples"]) == (8, 6)
    few = read_result("few", results)  # of all test reviews
    assert [few[part]["num_examples"] for part in ("validation", "test")] == [9, 24]
    assert len(read_positive("few", results)) == 24
    assert len(list(results.glob("*.json"))) == 1


def test_stored_states_give_the_same_result(tmp_path, parts):
    options = {"trainable": 2, "pooling": "mean", "num_epochs": 2, "batch_size": 4}
    plain = run(tmp_path, parts, "plain", **options)
    for name in ("stored", "read"):
        result = run(tmp_path, parts, name, **options, feature_store=tmp_path / "states")
        for key, values in result["history"].items():
            assert values == pytest.approx(plain["history"][key], abs=1e-4)
        positive = (read_positive(some, tmp_path / "results") for some in (name, "plain"))
        np.testing.assert_allclose(*positive, atol=1 / 255)
    assert list((tmp_path / "states").iterdir())
    rows = map(make_table.table_row, (plain, result))
    assert ["kept states" in row["training, s"] for row in rows] == [False, True]


def test_table_and_picture_show_every_run(tmp_path, parts, capsys):
    options = {"trainable": 2, "feature_store": tmp_path / "states"}
    names = ["one", "other"]
    for name in names:
        run(tmp_path, parts, name, **options)
    assert make_table.main(["--results", str(tmp_path / "results")]) == 0
    assert capsys.readouterr().out.count("+ kept states") == 2
    assert (tmp_path / "results" / make_table.PICTURE).read_bytes().startswith(b"\x89PNG")
    results = read_results(tmp_path / "results")
    left, right = make_table.plot_accuracy_and_time(results).axes
    assert len(left.lines) == len(right.lines) == 2
    assert sorted(label.get_text() for label in left.get_yticklabels()) == names


def test_kept_states_are_not_computed_again_in_any_precision(tmp_path, parts, monkeypatch):
    options = {"trainable": 2, "precision": "bfloat16", "feature_store": tmp_path / "states"}
    first = run(tmp_path, parts, "first", **options)
    monkeypatch.delattr(Decoder, "embed")
    assert run(tmp_path, parts, "again", **options)["test"] == first["test"]
    assert f"--feature-store {tmp_path / 'states'}" in first["command"]


def test_rounds_see_every_review_once_an_epoch_and_probes_lose_no_words(
    tmp_path, parts, monkeypatch
):
    monkeypatch.setattr(train_gpt, "ROUND_REVIEWS", 10)
    seen, probed, evaluate = [], [], train_gpt.evaluate_model
    train_epoch = train_gpt.train_epoch

    def note_round(state, dataset, **options):
        seen.append([tuple(ids.tolist()) for ids in dataset.sequences])
        train_epoch(state, dataset, **options)

    def note_probe(model, dataset):
        probed.append(sum(dataset.lengths))
        return evaluate(model, dataset)

    monkeypatch.setattr(train_gpt, "train_epoch", note_round)
    monkeypatch.setattr(train_gpt, "evaluate_model", note_probe)
    run(tmp_path, parts, train_size=23, num_epochs=2)
    assert [len(reviews) for reviews in seen] == [8] * 3 * 2
    first, second = Counter(chain(*seen[:3])), Counter(chain(*seen[3:]))
    assert first == second  # of 23, one is in two rounds, to make three times eight
    run(tmp_path, parts, "dropped", train_size=23, word_dropout=0.5)
    assert sum(map(len, chain(*seen[6:]))) < 0.8 * sum(map(len, chain(*seen[:3])))
    assert set(probed) == set(probed[:2])


def test_word_dropout_leaves_out_others_each_time_and_never_the_last():
    data = SpamDataset([torch.arange(1000), torch.arange(1)], [1, 0])
    dropped = [train_gpt.drop_tokens(data, 0.25, seed) for seed in (1, 2, 1)]
    for part in dropped:
        ids = part.sequences[0]
        assert 700 < len(ids) < 800
        assert (ids.diff() > 0).all()  # in their order
        assert (ids[-1], part.sequences[1].tolist(), part.labels) == (999, [0], [1, 0])
    first, other, again = (part.sequences[0].tolist() for part in dropped)
    assert first == again != other


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(train_gpt, "ROUND_REVIEWS", 10)  # three rounds an epoch
    options = {"continued_pretraining_epochs": 1, "trainable": "lora", "batch_size": 4}
    whole, train_epoch = run(tmp_path, parts, "whole", **options), train_gpt.train_epoch
    for num_done in (0, 2):

        def stop_in_a_round(state, *given, num_done=num_done, **named):
            if state.history.num_epochs == num_done:
                raise KeyboardInterrupt
            train_epoch(state, *given, **named)

        monkeypatch.setattr(train_gpt, "train_epoch", stop_in_a_round)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, parts, resume=num_done > 0, **options)
    monkeypatch.setattr(train_gpt, "train_epoch", train_epoch)
    with pytest.raises(ValueError, match="another run"):
        run(tmp_path, parts, resume=True, **options | {"seed": 2})
    resumed = run(tmp_path, parts, resume=True, **options)
    assert resumed["history"] == whole["history"]
    assert resumed["test"] == whole["test"]
    kept = sorted(path.name for path in (tmp_path / "runs" / "tiny").iterdir())
    assert kept == ["config.json", "metrics.json", "model.safetensors"]
    assert run(tmp_path, parts, resume=True, **options) == resumed  # finished: not trained again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "513"], "gpt-mini's context of 512"),
        (["--train-size", "1000"], "only 24"),
        (["--feature-store", "x"], "choose --trainable head"),
        (["--data", "nowhere"], "train.parquet is missing"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(tmp_path, parts, capsys, options, message):
    assert train_gpt.main(["x", *arguments(tmp_path, parts, *options)]) == 2
    assert message in capsys.readouterr().err


# --- parts of a review -------------------------------------------------------------------------


def test_cuts_are_compared_on_the_same_reviews_with_the_pooling_trained(tmp_path, parts, capsys):
    run(tmp_path, parts, pooling="mean")
    given = [f"--{name}={path}" for name, path in places(tmp_path, parts).items()]
    assert compare_cuts.main(["tiny", "--num-reviews=99", *given]) == 0
    result = read_result("tiny", tmp_path / "results" / "cuts")
    assert result["num_examples"] == result["num_long"] == 24
    by_cut = result["by_cut"]
    assert set(by_cut) == {"head", "tail", "both", "windows"}
    assert by_cut["windows"]["chunks"] > 24 == by_cut["head"]["chunks"]
    as_trained = read_result("tiny", tmp_path / "results")["test"]["accuracy"]
    assert by_cut[result["trained_cut"]]["accuracy"] == as_trained


# --- linear models -----------------------------------------------------------------------------


def test_linear_models_learn_and_choosing_reads_no_test_review(tmp_path, monkeypatch):
    monkeypatch.setattr(train_linear, "in_fresh_process", lambda function, *given: function(*given))
    parts = write_sample_parts(tmp_path / "parts")
    given = [f"--data={parts}", f"--results={tmp_path}"]
    assert train_linear.main(given) == 0
    for name in train_linear.METHODS:
        result, labels = read_result(name, tmp_path), np.array([0, 1] * 12)
        assert (result["num_train"], result["command"]) == (48, f"train_linear.py {name}")
        accuracy = ((read_positive(name, tmp_path) > 0.5) == labels).mean()
        assert result["test"]["accuracy"] == accuracy
        assert accuracy == 0.5 if name == "majority" else accuracy > 0.9  # a few words tell
    (parts / "test.parquet").unlink()
    assert train_linear.main(["nb-svm", "majority", *given, "--choose", "--train-size=20"]) == 0
    chosen = read_result("nb-svm-20", tmp_path / "trials")
    assert set(chosen["accuracy_by_C"]) == {f"{C:g}" for C in train_linear.TRIED["nb-svm"]}
    assert max(chosen["accuracy_by_C"].values()) > 0.9
    assert len(list((tmp_path / "trials").iterdir())) == 1  # a majority vote has nothing to choose


def test_nb_svm_by_hand():
    x = csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], float))
    y = np.array([1, 1, 0, 0])
    model = train_linear.NBSVM(C=1.0).fit(x, y)
    p, q = np.array([3, 2, 1]) / 6, np.array([1, 2, 3]) / 6  # counts plus one, as fractions
    assert np.allclose(model.log_ratio_, np.log(p / q))
    assert model.predict(x).tolist() == y.tolist()
    bayes = train_linear.NBSVM(C=1.0, beta=0.0).fit(x, y)
    ratio = bayes.coef_[[0, 2]] / bayes.log_ratio_[[0, 2]]
    assert np.allclose(ratio, ratio[0])  # only the naive Bayes direction is left
    assert bayes.intercept_ == 0
