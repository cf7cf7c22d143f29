"""The experiments: classifiers learn, a suite shares work and goes on, nothing is overwritten.

Everything runs on a tiny model and the made-up messages; no metric from here is reported.
"""

import shlex

import additional_experiments as experiments
import numpy as np
import other_classifiers
import pandas as pd
import pytest
import torch
from comparisons import unpack
from experiment_config import CLASSICAL, ROWS, ExperimentConfig

import fine_tuning
import run_messages
from gpt_download import DownloadError, load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_data import read_sample_messages


def few_messages():
    """90 ham and 50 spam, of which some come twice."""
    messages = read_sample_messages().groupby("label").head(90)
    spam = messages[messages["label"] == "spam"].head(45)
    ham = messages[messages["label"] == "ham"].head(85)
    repeated = messages.groupby("label").head(5)
    mixed = pd.concat([ham, spam, repeated]).sample(frac=1, random_state=0)
    return mixed.reset_index(drop=True)


def tiny_decoder(config, device, log=print):
    torch.manual_seed(1)
    shape = GPTConfig(4096, context_length=96, emb_dim=16, n_heads=2, n_layers=2)
    return GPTModel(shape).eval(), load_mini_tokenizer(), "gpt-mini"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for module in (fine_tuning, other_classifiers):
        monkeypatch.setattr(module, "load_decoder", tiny_decoder)
    for module in (experiments, run_messages):
        monkeypatch.setattr(module, "read_sms_spam", few_messages)
    monkeypatch.setattr(experiments, "fetch", lambda file: None)


def config_of(options: str) -> ExperimentConfig:
    arguments = ["--seed", "1", "--quiet", *shlex.split(options)]
    return experiments.runs_of(experiments.make_options().parse_args(arguments))[0]


def measure(options: str, store=None) -> dict:
    return experiments.measure(config_of(options), store)


# --- Measurements --------------------------------------------------------------------------------


GPT = "gpt --trainable all --learning-rate 5e-3 --pooling mean"


@pytest.mark.parametrize("classifier", [GPT, "frozen_features --pooling mean", *CLASSICAL])
def test_a_classifier_is_measured_by_its_own_answers(classifier):
    result = measure(f"--classifier {classifier}")
    accuracy = result["test"]["accuracy"]
    assert accuracy == 0.5 if classifier == "majority" else accuracy > 0.6
    labels = np.array(list(result["predictions"]["labels"])).astype(int)
    spam = unpack(result["predictions"]["spam_probability"])
    assert ((spam > 0.5) == labels).mean() == accuracy


def test_frozen_states_are_computed_once_for_all_rows_and_seeds():
    store = {}
    measure("--num-epochs 1", store)
    num_states = len(store)
    measure("--num-epochs 1 --pooling mean", store)
    assert len(store) == num_states > 0
    measure("--num-epochs 1 --seed 2", store)  # other ham, and the same spam
    assert num_states < len(store) < 2 * num_states


# --- Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--balance none --train-size 25", "leave out --balance"),
        ("--protocol almeida --augment 1", "--protocol almeida"),
        ("--protocol reviews --augment 1", "for text messages"),
        ("--classifier minilm --trainable all --num-epochs 2", "--num-epochs 2 --trainable all"),
        ("--classifier prompt", "asks --model smollm2-135m"),
        ("--protocol stars --classifier char_svm", "--classifier char_svm takes two"),
        ("--num-examples 2", "no effect on --classifier gpt"),
    ],
)
def test_options_without_effect_are_refused(options, complaint, tmp_path, capsys):
    arguments = [*shlex.split(options), "--quiet", "--row", "mine", "--results", str(tmp_path)]
    assert experiments.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_options_beside_a_suite_go_to_every_gpt_and_its_own_win(capsys):
    arguments = shlex.split("--suite main --seeds 1 --batch-size 4 --model gpt2-small")
    args = experiments.make_options().parse_args(arguments)
    runs = {run.row: run for run in experiments.runs_of(args)}
    assert (runs["last-block"].batch_size, runs["batch-of-one"].batch_size) == (4, 1)
    assert runs["last-block"].command == (
        "additional_experiments.py --batch-size 4 --seed 1 --model gpt2-small --row last-block"
    )
    with pytest.raises(SystemExit):
        experiments.main([*arguments, "--row", "mine"])
    assert "leave out --row" in capsys.readouterr().err


# --- Messages and measurements -------------------------------------------------------------------


def messages_of(options: str):
    return experiments.read_experiment_messages(config_of(options))


def test_all_ham_is_added_to_the_training_messages_and_to_nothing_else():
    balanced, everything = messages_of(""), messages_of("--balance weights")
    assert everything.splits.test.equals(balanced.splits.test)
    assert everything.splits.validation.equals(balanced.splits.validation)
    texts = everything.splits.train["text"]
    assert set(balanced.splits.train["text"]) < set(texts)
    assert list(texts) == everything.unlabelled == balanced.unlabelled
    true_labels = few_messages().drop_duplicates("text").set_index("text")["label"]
    assert list(everything.splits.train["label"]) == list(true_labels[texts])
    assert not {*balanced.splits.test["text"], *balanced.splits.validation["text"]} & set(texts)


def test_papers_protocol_cuts_the_file_in_its_order():
    texts = few_messages()["text"].tolist()
    messages = messages_of("--protocol almeida --balance none")
    cut = round(0.3 * len(texts))
    assert messages.splits.train["text"].tolist() == texts[:cut] == messages.unlabelled
    assert messages.splits.test["text"].tolist() == texts[cut:]
    repeated = experiments.is_repeated(messages.splits)
    assert repeated.tolist() == [text in texts[:i] for i, text in enumerate(texts)][cut:]
    assert repeated.any()


def test_made_up_messages_are_never_measured(monkeypatch, capsys):
    def unavailable(file):
        raise DownloadError("not to be had")

    monkeypatch.setattr(experiments, "fetch", unavailable)
    assert experiments.main(["--quiet"]) == 1
    assert "not to be had" in capsys.readouterr().err


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_frozen_features_are_the_pooled_final_states(pooling, monkeypatch):
    options = f"--classifier frozen_features --pooling {pooling}"
    monkeypatch.setattr(other_classifiers, "learn_and_predict", lambda config, train, test, _: test)
    config, messages = config_of(options), messages_of(options)
    decoder, tokenizer, _ = tiny_decoder(config, "cpu")
    states = other_classifiers.run_frozen_features(config, messages, None)
    for features, text in zip(states, messages.splits.test["text"], strict=True):
        ids = torch.tensor([tokenizer.encode_ordinary(text)])
        states = decoder.final_norm(decoder.run_blocks(decoder.embed(ids)))[0].detach()
        expected = states[-1] if pooling == "last" else states.mean(dim=0)
        np.testing.assert_allclose(features, expected, atol=1e-4)


# --- What is there already -----------------------------------------------------------------------


def test_measured_row_is_not_overwritten(tmp_path, capsys):
    arguments = ["--trainable", "head", "--num-epochs", "1", "--seed", "1", "--quiet"]
    arguments += ["--results", str(tmp_path)]
    assert experiments.main(arguments) == 0
    assert list(tmp_path.iterdir()) == []  # without a name no result is kept
    arguments += ["--row", "mine"]
    assert experiments.main(arguments) == 0
    path = tmp_path / "mine" / "seed-1.json"
    before = path.read_bytes()
    capsys.readouterr()
    assert experiments.main(arguments) == 0
    assert "0 of 1 runs made now" in capsys.readouterr().out
    assert experiments.main([*arguments, "--batch-size", "4"]) == 2
    assert "--batch-size 4" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_suite_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    own_processes = []

    def in_this_process(function, config):
        own_processes.append(config.path.parts[-2:])
        return function(config)

    monkeypatch.setattr(experiments, "in_fresh_process", in_this_process)
    monkeypatch.setattr(experiments, "ROWS", ROWS.assign(options=ROWS.options + " --num-epochs 1"))
    arguments = ["--suite", "main", "--results", str(tmp_path), "--quiet", "--seeds"]
    for rows, seeds in ((["dropout"], "2"), (["last-block", "dropout"], "23")):
        monkeypatch.setattr(experiments, "MAIN", rows)
        assert experiments.main([*arguments, *seeds]) == 0
    assert "3 of 4 runs made now" in capsys.readouterr().out
    assert own_processes == [("last-block", "seed-2.json")]  # a timed row's first seed
