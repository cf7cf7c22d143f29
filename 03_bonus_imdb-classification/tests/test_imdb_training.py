"""Training in a tiny form: every option acts, a killed run goes on to the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from imdb_samples import write_sample_parts

import compare_cuts
import imdb_results
import long_texts
import train_gpt
import train_linear
from download_prepare_dataset import read_parts
from finetune import Clock
from gpt_download import load_mini_tokenizer
from long_texts import encode_pieces
from previous_chapters import GPTConfig, GPTModel
from text_classifier import TrainConfig, Trainer, open_classifier, predict_logits
from text_data import Reading, SpamDataset
from train_gpt import make_dataset, predict_positive

FOLDER = Path(train_gpt.__file__).parent
TINY = ["--max-length", "8", "--epochs", "1", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_sample_parts(tmp_path_factory.mktemp("parts"))


def gpt_arguments(folder: Path, parts: Path, name: str, *options) -> list[str]:
    places = ["--data", parts, "--runs", folder / "runs", "--results", folder / "results"]
    return [name, *map(str, places), *TINY, *map(str, options)]


def gpt_result(folder: Path, parts: Path, *options, name: str = "tiny") -> dict:
    assert train_gpt.main(gpt_arguments(folder, parts, name, *options)) == 0
    kind = (
        "trials" if "--validation-only" in options else "curve" if "--num-train" in options else ""
    )
    metrics = folder / "runs" / kind / name / "metrics.json"
    return json.loads(metrics.read_text(encoding="utf-8"))


# --- long texts --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["head", "tail", "both", "windows"])
@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 12, 13, 40])
def test_pieces_keep_to_the_length_and_windows_miss_nothing(cut, num_tokens):
    ids = torch.arange(num_tokens)
    pieces = long_texts.cut_tokens(ids, 8, cut)
    assert all(0 < len(piece) <= 8 for piece in pieces)
    if num_tokens <= 8:
        assert len(pieces) == 1
        assert torch.equal(pieces[0], ids)
    elif cut == "windows":
        assert set(torch.cat(pieces).tolist()) == set(range(num_tokens))
        assert pieces[-1][-1] == num_tokens - 1
    else:
        first, last = {"head": (0, 7), "tail": (num_tokens - 8, -1), "both": (0, -1)}[cut]
        assert len(pieces[0]) == 8
        assert pieces[0][0] == first
        assert pieces[0][-1] == ids[last]


def test_pieces_of_many_texts_know_their_owners():
    tokenizer = load_mini_tokenizer()
    texts = [f"word {'again ' * n}" for n in (1, 30, 3)] * 400  # more than one chunk
    pieces = long_texts.encode_pieces(texts, tokenizer, 8, "windows")
    assert pieces.owners.max() == len(texts) - 1
    counts = np.bincount(pieces.owners)
    assert counts[0] == 1 < counts[1]
    means = pieces.mean(pieces.owners.astype(float))
    assert np.allclose(means, np.arange(len(texts)))


# --- the GPT -----------------------------------------------------------------------------------


def test_result_classifier_and_probabilities_agree(tmp_path, parts):
    result = gpt_result(tmp_path, parts)
    written = imdb_results.read_result("tiny", tmp_path / "results")
    assert written == result
    assert written["model"] == "gpt-mini"
    assert written["seed"] == 1
    test = imdb_results.read_positive("tiny", tmp_path / "results")
    labels = np.array([0, 1] * 12)  # as the samples are written
    assert result["test"]["accuracy"] == pytest.approx(((test > 0.5) == labels).mean())
    assert result["test"]["num_examples"] == 24
    low, high = result["test"]["accuracy_interval"]
    assert low < result["test"]["accuracy"] < high or result["test"]["accuracy"] in (0, 1)
    assert set(result["seconds"]) >= {"training", "inference"}
    assert "command" in written
    assert str(tmp_path) not in json.dumps(written)
    classifier = open_classifier(tmp_path / "runs" / "tiny")
    assert classifier.label_names == ["neg", "pos"]
    assert "test" not in classifier.card  # figures of --cut, where a classifier reads the head


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--cut", "head"),
        ("--cut", "tail"),
        ("--cut", "windows"),
        ("--num-train", 10),
        ("--max-length", 6),
        ("--trainable", "last_block"),
        ("--trainable", "lora"),
        ("--pretrain-further", 1),
        ("--pooling", "mean"),
        ("--epochs", 2),
        ("--batch-size", 4),
        ("--learning-rate", 1e-5),
        ("--dropout", 0.5),
        ("--word-dropout", 0.5),
        ("--seed", 2),
        ("--precision", "bfloat16"),
    ],
)
def test_every_option_changes_the_result(tmp_path, parts, option, value):
    def outcome(folder: Path, *options) -> list[float]:
        return gpt_result(folder, parts, "--validation-only", *options)["history"][
            "validation_loss"
        ]

    assert outcome(tmp_path / "a") != outcome(tmp_path / "b", option, value)


def test_trained_parameters_are_those_that_were_asked_for(tmp_path, parts):
    trained = {
        trainable: gpt_result(
            tmp_path, parts, "--trainable", trainable, "--validation-only", name=trainable
        )["trained_parameters"]
        for trainable in ("last_block", "lora", "all")
    }
    mini = GPTModel(train_gpt.MODEL_CONFIGS["gpt-mini"])
    head = 256 * 2 + 2
    block = sum(p.numel() for p in mini.trf_blocks[-1].parameters())
    lora = 6 * 8 * (4 * (256 + 256) + 2 * (256 + 1024))
    assert trained["last_block"] == block + 2 * 256 + head
    assert trained["lora"] == lora + head
    assert trained["all"] == sum(p.numel() for p in mini.parameters()) + head


def test_curves_and_trials_are_kept_apart_from_results(tmp_path, parts):
    gpt_result(tmp_path, parts, "--validation-only", name="trial")
    gpt_result(tmp_path, parts, "--num-train", 8, "--num-test", 6, name="curve-8")
    results = tmp_path / "results"
    assert "test" not in imdb_results.read_result("trial", results / "trials")
    curve = imdb_results.read_result("curve-8", results / "curve")
    assert curve["num_train"] == 8
    assert curve["test"]["num_examples"] == 6
    assert not list(results.glob("*.json"))


def tiny_model() -> GPTModel:
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(64, 16, 16, num_heads=2, num_layers=2))
    train_gpt.freeze_all_but(model, "all")
    train_gpt.add_classification_head(model, 2)
    return model


def random_reviews(num: int) -> SpamDataset:
    generator = torch.Generator().manual_seed(num)
    lengths = torch.randint(2, 16, (num,), generator=generator).tolist()
    ids = [torch.randint(0, 64, (n,), generator=generator) for n in lengths]
    return SpamDataset(ids, [int(i[0]) % 2 for i in ids])


def test_rounds_see_every_review_once_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "ROUND_REVIEWS", 10)
    seen = []
    before = Trainer.train_epoch

    def note(trainer, progress=None):
        seen.append([tuple(s.tolist()) for s in trainer.train.sequences])
        before(trainer, progress)

    monkeypatch.setattr(Trainer, "train_epoch", note)
    data = random_reviews(25)
    config = TrainConfig(num_epochs=2, batch_size=4)
    train_gpt.train_in_rounds(tiny_model(), data, data, config, tmp_path / "c", Clock())
    assert [len(part) for part in seen] == [9] * 3 * 2
    everything = Counter(tuple(s.tolist()) for s in data.sequences)
    for epoch in (seen[:3], seen[3:]):
        counts = Counter(chain.from_iterable(epoch))
        assert counts.keys() == everything.keys()
        assert (counts - everything).total() == 2  # of 25, to make three times nine


def test_word_dropout_leaves_out_others_each_time_and_never_the_last():
    data = SpamDataset([torch.arange(1000), torch.arange(1)], [1, 0], reading=Reading("mean"))
    some, others = (train_gpt.drop_tokens(data, 0.25, seed) for seed in (1, 2))
    for part in (some, others):
        ids = part.sequences[0]
        assert 700 < len(ids) < 800
        assert (ids.diff() > 0).all()  # in their order
        assert ids[-1] == 999
        assert part.sequences[1].tolist() == [0]
        assert (part.labels, part.lengths) == ([1, 0], [len(ids), 1])
        assert part.reading == data.reading
    assert some.sequences[0].tolist() != others.sequences[0].tolist()
    assert torch.equal(train_gpt.drop_tokens(data, 0.25, 1).sequences[0], some.sequences[0])


def test_what_is_measured_loses_no_words(tmp_path, monkeypatch):
    measured = []
    before = Trainer.evaluate_epoch

    def note(trainer, validation):
        measured.append(trainer.train.lengths + validation.lengths)
        before(trainer, validation)

    monkeypatch.setattr(Trainer, "evaluate_epoch", note)
    data, config = random_reviews(25), TrainConfig(num_epochs=1)
    train_gpt.train_in_rounds(
        tiny_model(), data, data, config, tmp_path / "c", Clock(), word_dropout=0.5
    )
    assert [sorted(lengths) for lengths in measured] == [sorted(data.lengths * 2)]


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(train_gpt, "ROUND_REVIEWS", 10)
    data = random_reviews(25)
    config = TrainConfig(num_epochs=2, batch_size=4, dropout=0.1)

    def train(name: str) -> GPTModel:
        model = tiny_model()
        train_gpt.train_in_rounds(
            model, data, data, config, tmp_path / name, Clock(), word_dropout=0.3
        )
        return model

    whole = train("whole")
    before = Trainer.train_epoch

    def stop_in_round_4(trainer, progress=None):
        if trainer.history.num_epochs == 3:
            raise KeyboardInterrupt
        before(trainer, progress)

    monkeypatch.setattr(Trainer, "train_epoch", stop_in_round_4)
    with pytest.raises(KeyboardInterrupt):
        train("killed")
    monkeypatch.setattr(Trainer, "train_epoch", before)
    resumed = train("killed")
    assert torch.equal(predict_logits(whole, data), predict_logits(resumed, data))


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_resumes_after_kill_9(tmp_path):
    parts = write_sample_parts(tmp_path / "parts", num_train=3100)  # two rounds
    arguments = gpt_arguments(tmp_path, parts, "killed", "--trainable", "last_block")
    process = subprocess.Popen(
        [sys.executable, str(FOLDER / "train_gpt.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = tmp_path / "runs" / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 400
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    checkpoint.with_name("seconds.json").unlink(missing_ok=True)  # it may have come too late
    assert train_gpt.main([*arguments, "--resume"]) == 0
    resumed = imdb_results.read_result("killed", tmp_path / "results")
    assert len(resumed["history"]["validation_loss"]) == 2
    assert train_gpt.main([*arguments, "--resume"]) == 0  # finished: nothing is trained again
    assert imdb_results.read_result("killed", tmp_path / "results") == resumed


def test_further_pretraining_is_done_once_and_kept_until_the_end(tmp_path, parts, monkeypatch):
    options = ("--pretrain-further", 1, "--trainable", "last_block")
    whole = gpt_result(tmp_path / "whole", parts, *options)
    assert whole["seconds"]["pretraining"] > 0
    assert whole["options"]["pretrain_further"] == 1

    def stop(*_):
        raise KeyboardInterrupt

    given = gpt_arguments(tmp_path, parts, "tiny", *options)
    with monkeypatch.context() as patch:
        patch.setattr(train_gpt, "put_head_on", stop)
        assert train_gpt.main(given) == 130
    weights = tmp_path / "runs" / "tiny" / train_gpt.FURTHER_WEIGHTS
    assert weights.exists()
    weights.with_name("seconds.json").write_text('{"pretraining": 1000.0}', encoding="utf-8")
    monkeypatch.setattr(train_gpt, "continue_pretraining", stop)
    assert train_gpt.main([*given, "--resume"]) == 0
    resumed = imdb_results.read_result("tiny", tmp_path / "results")
    assert resumed["seconds"]["pretraining"] >= 1000  # what was spent before the kill counts too
    assert resumed["history"] == whole["history"]
    assert not weights.exists()
    assert train_gpt.main(given) == 130  # anew: nothing of the run before is taken


def test_a_trial_and_a_run_of_one_name_are_two(tmp_path, parts, capsys):
    gpt_result(tmp_path, parts, "--validation-only")
    assert train_gpt.main([*gpt_arguments(tmp_path, parts, "tiny"), "--resume"]) == 2
    assert "no run to go on with" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a/b", "../a", "-a", ".", ""])
def test_a_name_that_files_cannot_have_is_refused_at_once(tmp_path, parts, name, capsys):
    with pytest.raises(SystemExit):
        train_gpt.main(gpt_arguments(tmp_path, parts, name))
    assert capsys.readouterr().err


def test_another_command_s_result_is_not_overwritten(tmp_path, parts, capsys):
    linear = ["nb-svm", "--data", str(parts), "--results", str(tmp_path / "results"), "--quiet"]
    assert train_linear.main(linear) == 0
    assert train_gpt.main(gpt_arguments(tmp_path, parts, "nb-svm")) == 2
    assert "choose another" in capsys.readouterr().err


def test_recorded_commands_name_no_private_folder(tmp_path):
    given = ["a", f"--data={tmp_path}", "--runs", str(tmp_path), "--model", str(tmp_path)]
    given += ["--other=google/bert", f"--place={tmp_path}", "--resume"]
    command = imdb_results.recorded_command("x.py", given)
    assert command == f"x.py a --model {tmp_path.name} --other=google/bert --place={tmp_path.name}"


def test_cuts_are_compared_on_the_same_reviews(tmp_path, parts):
    gpt_result(tmp_path, parts)
    places = ["--data", parts, "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
    given = ["tiny", "--num-reviews", "9", "--device", "cpu", "--quiet", *map(str, places)]
    assert compare_cuts.main(given) == 0
    result = imdb_results.read_result("tiny", tmp_path / "results" / "cuts")
    assert result["num_examples"] == 9
    assert result["trained_cut"] == "both"
    assert set(result["by_cut"]) == {"head", "tail", "both", "windows"}
    assert result["by_cut"]["windows"]["pieces"] > 9 == result["by_cut"]["head"]["pieces"]
    right = np.array([True, True, False]), np.array([True, False, False])
    assert compare_cuts.compare(*right)["only_this_right"] == 1


def test_cuts_are_read_the_way_that_was_trained(tmp_path, parts):
    gpt_result(tmp_path, parts, "--pooling", "mean")
    test = imdb_results.read_positive("tiny", tmp_path / "results")
    classifier = open_classifier(tmp_path / "runs" / "tiny")
    texts = read_parts(parts)["test"]["text"].tolist()
    pieces = encode_pieces(texts, classifier.tokenizer, classifier.max_length, "both")
    positive = {
        pooling: predict_positive(
            classifier.model, make_dataset(pieces, np.zeros(24), pooling), pieces, "float32", False
        )
        for pooling in (classifier.pooling, "last_real")
    }
    kept = 1 / 255  # a result file keeps a byte of each probability
    assert positive["mean"] == pytest.approx(test, abs=kept)
    assert positive["last_real"] != pytest.approx(test, abs=kept)


def test_without_long_reviews_there_is_nothing_to_compare(tmp_path, parts, capsys):
    gpt_result(tmp_path, parts, "--max-length", 512)
    assert compare_cuts.main(["tiny", "--data", str(parts), "--runs", str(tmp_path / "runs")]) == 2
    assert "longer than 512 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-length", "513"], "context of gpt-mini, 512"),
        (["--dropout", "0.1", "--trainable", "lora"], "--dropout does nothing"),
        (["--word-dropout", "0.1", "--trainable", "last_block"], "--word-dropout changes"),
        (["--num-train", "1000"], "only 24 training reviews"),
        (["--num-test", "5"], "with --num-train"),
        (["--num-train", "8", "--num-test", "999"], "there are 24 reviews"),
        (["--num-train", "8", "--num-test", "5", "--validation-only"], "with a test"),
        (["--model", "gpt-maxi"], "choose one of"),
        (["--resume"], "no run to go on with"),
        (["--data", "nowhere"], "train.parquet is missing"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(tmp_path, parts, capsys, options, said):
    assert train_gpt.main(gpt_arguments(tmp_path, parts, "x", *options)) == 2
    assert said in capsys.readouterr().err


def test_resuming_with_other_options_is_refused(tmp_path, parts, capsys):
    gpt_result(tmp_path, parts)
    arguments = gpt_arguments(tmp_path, parts, "tiny", "--resume", "--cut", "head")
    assert train_gpt.main(arguments) == 2
    assert "cut was 'both'" in capsys.readouterr().err


def test_bfloat16_computes_nearly_the_same():
    model, data = tiny_model(), random_reviews(20)
    exact = predict_logits(model, data)
    rough = predict_logits(model, data, precision="bfloat16")
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05
    with pytest.raises(ValueError, match="precision='float8'"):
        TrainConfig(precision="float8")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_is_the_default_on_a_gpu(tmp_path, parts):
    result = gpt_result(tmp_path, parts, "--device", "cuda")
    assert result["options"]["precision"] == "bfloat16"
    assert result["peak_memory_mb"] > 0


# --- linear models -----------------------------------------------------------------------------


def linear_arguments(folder: Path, parts: Path, *options) -> list[str]:
    return [*options, "--data", str(parts), "--results", str(folder), "--quiet"]


def test_linear_models_learn_and_are_written(tmp_path, parts):
    assert train_linear.main(linear_arguments(tmp_path, parts)) == 0
    accuracy = {
        name: imdb_results.read_result(name, tmp_path)["test"]["accuracy"]
        for name in train_linear.METHODS
    }
    assert accuracy.pop("majority") == 0.5
    assert min(accuracy.values()) > 0.9  # a few words tell the samples apart
    assert imdb_results.read_result("nb-svm", tmp_path)["num_train"] == 48  # validation too
    assert len(imdb_results.read_positive("nb-svm", tmp_path)) == 24
    assert imdb_results.read_result("nb-svm", tmp_path)["parameters"] > 9


def test_choosing_reads_no_test_review(tmp_path, parts, capsys):
    folder = tmp_path / "parts"
    write_sample_parts(folder)
    test = pd.read_parquet(folder / "test.parquet")
    test["label"] = test["label"].map({"neg": "pos", "pos": "neg"})
    test.to_parquet(folder / "test.parquet", index=False)  # measured on these, all would be wrong
    options = linear_arguments(tmp_path, folder, "nb-svm", "--choose", "--num-train", "20")
    assert train_linear.main(options) == 0
    chosen = imdb_results.read_result("nb-svm-20", tmp_path / "trials")
    assert set(chosen["accuracy_by_C"]) == {f"{C:g}" for C in train_linear.METHODS["nb-svm"].tried}
    assert max(chosen["accuracy_by_C"].values()) > 0.9
    assert "test" not in chosen
    assert not list(tmp_path.glob("*.json"))


def test_nothing_is_chosen_for_a_method_without_strength(capsys):
    with pytest.raises(SystemExit) as stop:
        train_linear.main(["nb-svm", "majority", "--choose"])
    assert stop.value.code == 2
    assert "majority has no strength" in capsys.readouterr().err
    assert train_linear.parse_args(["--choose"]).methods == list(train_linear.METHODS)


def test_a_killed_measuring_process_is_answered_in_a_sentence(tmp_path, parts, capsys, monkeypatch):
    def broken(*_):
        raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(train_linear, "run", broken)
    assert train_linear.main(linear_arguments(tmp_path, parts, "nb-svm")) == 1
    assert "--num-train" in capsys.readouterr().err


def test_an_unknown_model_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        train_linear.main(["svm"])
    assert stop.value.code == 2
    assert "choose of majority" in capsys.readouterr().err


def test_nb_svm_by_hand():
    x = train_linear.csr_matrix(np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], float))
    y = np.array([1, 1, 0, 0])
    model = train_linear.NBSVM(C=1.0).fit(x, y)
    p, q = np.array([3, 2, 1]) / 6, np.array([1, 2, 3]) / 6  # counts plus one, as shares
    assert np.allclose(model.log_ratio_, np.log(p / q))
    assert model.predict(x).tolist() == y.tolist()
    bayes = train_linear.NBSVM(C=1.0, beta=0.0).fit(x, y)
    ratio = bayes.weights_[[0, 2]] / bayes.log_ratio_[[0, 2]]
    assert np.allclose(ratio, ratio[0])  # only the naive Bayes direction is left
    assert bayes.intercept_ == 0
