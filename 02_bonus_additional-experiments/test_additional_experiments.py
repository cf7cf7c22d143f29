"""The experiments: every row acts, a suite runs, shares work and goes on, nothing is overwritten.

Everything runs on a tiny model and the made-up messages; no metric from here is reported.
"""

import json
import shlex

import additional_experiments as experiments
import comparisons
import experiment_config
import numpy as np
import other_classifiers
import pandas as pd
import pytest
import suites
import torch
from experiment_config import ExperimentConfig

import fine_tuning
import run_messages
from command_line import config_from
from gpt_download import DownloadError, load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_data import clean_messages, read_sample_messages, split_messages

TINY = {"vocab_size": 4096, "context_length": 96, "emb_dim": 16, "n_heads": 2, "n_layers": 6}


def few_messages():
    """90 ham and 50 spam, of which some come twice."""
    messages = read_sample_messages().groupby("label").head(90)
    spam = messages[messages["label"] == "spam"].head(45)
    ham = messages[messages["label"] == "ham"].head(85)
    repeated = messages.groupby("label").head(5)
    mixed = pd.concat([ham, spam, repeated]).sample(frac=1, random_state=0)
    return mixed.reset_index(drop=True)


def tiny_decoder(config, device, log=print):
    torch.manual_seed(config.seed if config.weights == "random" else 12345)
    decoder = GPTModel(GPTConfig(**TINY, causal=config.causal))
    with torch.no_grad():  # random layers that change little would hide what options do
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder.eval(), load_mini_tokenizer(), "gpt-mini"


def make_tiny(patch) -> None:
    patch.setattr(fine_tuning, "load_decoder", tiny_decoder)
    patch.setattr(other_classifiers, "load_decoder", tiny_decoder)
    patch.setattr(experiment_config, "default_model_name", lambda: "gpt-mini")
    patch.setattr(experiments, "fetch", lambda file: None)
    patch.setattr(experiments, "read_sms_spam", few_messages)
    patch.setattr(run_messages, "read_sms_spam", few_messages)
    published = split_messages(clean_messages(few_messages()), 9)
    patch.setattr(run_messages, "published_splits", lambda: published)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_tiny(monkeypatch)


def config_of(options: str) -> ExperimentConfig:
    arguments = ["--model", "gpt-mini"] if "--classifier" not in options else []
    arguments += ["--seed", "1", "--quiet", *shlex.split(options)]
    return config_from(experiments.parse_args(arguments), ExperimentConfig)


def measure(options: str, store=None) -> dict:
    return experiments.measure(config_of(options), store)


def scores(result: dict) -> np.ndarray:
    return comparisons.unpack(result["predictions"]["spam_probability"])


def quick(rows):
    """The same rows, each GPT trained for one epoch."""
    return [
        row if row.is_classical else row._replace(options=f"{row.options} --num-epochs 1")
        for row in rows
    ]


def run_quickly(rows, results, monkeypatch, *options: str) -> int:
    monkeypatch.setitem(suites.SUITES, "main", quick(rows))
    arguments = ["--suite", "main", "--results", str(results), "--quiet", *options]
    return experiments.main(arguments)


# ---------------------------------------------------------------------------------------------
# The whole suite
# ---------------------------------------------------------------------------------------------

ROWS = suites.SUITES["main"]


@pytest.fixture(scope="module")
def tiny_suite(tmp_path_factory):
    """The results of the whole main suite for one seed."""
    folder, own_processes = tmp_path_factory.mktemp("results"), []

    def in_this_process(config):
        own_processes.append(config.row)
        experiments.measure_and_save(config)

    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        patch.setattr(experiments, "measure_in_own_process", in_this_process)
        assert run_quickly(ROWS, folder, patch, "--seeds", "1", "--model", "gpt-mini") == 0
    assert sorted(own_processes) == sorted(suites.COST_MEASURED)
    return folder


def read(folder, row: str) -> dict:
    return json.loads((folder / row / "seed-1.json").read_text(encoding="utf-8"))


# In one epoch; there are only 64 training messages here.
SAME_AS_ROW_1 = {"last-block", "accumulated", *(f"pretrained-{n}" for n in (100, 200, 400))}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_gives_answers_of_its_own(row, tiny_suite):
    result, base = read(tiny_suite, row.name), read(tiny_suite, "last-block")
    predictions = result["predictions"]
    right = (scores(result) > 0.5) == comparisons.labels_of(result)
    assert result["test"]["accuracy"] == pytest.approx(right.mean())
    if "almeida" in row.name:
        assert predictions["test_texts_crc32"] != base["predictions"]["test_texts_crc32"]
        return
    assert predictions["test_texts_crc32"] == base["predictions"]["test_texts_crc32"]
    difference = np.abs(scores(result) - scores(base)).max()
    assert difference < 1e-5 if row.name in SAME_AS_ROW_1 else difference > 1e-7


def test_frozen_states_are_computed_once_for_all_rows_and_seeds():
    store = {}
    measure("--num-epochs 1", store)
    num_states = len(store)
    measure("--num-epochs 1 --pooling mean", store)
    assert len(store) == num_states > 0
    measure("--num-epochs 1 --seed 2", store)  # other ham, and the same spam
    assert num_states < len(store) < 2 * num_states


def test_complete_suite_says_how_to_measure_anew(tiny_suite, monkeypatch, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny_suite.rglob("*.json")}
    assert run_quickly(ROWS, tiny_suite, monkeypatch, "--seeds", "1") == 0
    said = capsys.readouterr().out
    assert f"All {len(ROWS)} results" in said
    assert "name another folder with --results" in said
    assert {path: path.stat().st_mtime_ns for path in tiny_suite.rglob("*.json")} == before


# ---------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--classifier char_ngrams --dropout 0.5 --no-causal", "--dropout does nothing for"),
        ("--classifier char_ngrams --dropout 0.5 --no-causal", "--causal does nothing for"),
        ("--classifier naive_bayes --balance weights", "class_weight"),
        ("--balance none --train-size 25", "leave out --balance"),
        ("--protocol almeida --augment 1", "--protocol almeida"),
        ("--trainable 7", "from 0 to 6"),
    ],
)
def test_options_without_effect_are_refused(options, complaint, tmp_path, capsys):
    arguments = [*shlex.split(options), "--quiet", "--results", str(tmp_path)]
    assert experiments.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["--suite main --row mine", "--seeds 1 2", "--suite none"])
def test_wrong_use_of_a_suite_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        experiments.main(arguments.split())
    assert stop.value.code == 2


def test_command_gives_the_configuration_back():
    config = config_of("--row x --trainable lora --lora-rank 4 --batch-size 1 --no-causal")
    script, *arguments = shlex.split(config.command)
    assert script == "additional_experiments.py"
    again = config_from(experiments.parse_args(arguments), ExperimentConfig)
    assert (again.row, again.identity()) == (config.row, config.identity())


def test_every_row_of_every_suite_is_a_configuration():
    for rows in suites.SUITES.values():
        for row in rows:
            config = experiments.config_of(row, 3, ExperimentConfig(model="gpt-mini"))
            assert (config.row, config.seed) == (row.name, 3)


def test_reference_does_not_depend_on_what_suits_the_model():
    config = ExperimentConfig().for_model("smollm2-135m")
    assert (config.trainable, config.pooling) == ("last_block", "last")
    assert config.continued_pretraining_epochs == 0


# ---------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------


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
    kept_back = {*balanced.splits.test["text"], *balanced.splits.validation["text"]}
    assert not kept_back & set(texts)


def test_papers_protocol_cuts_the_file_in_its_order():
    texts, messages = (
        few_messages()["text"].tolist(),
        messages_of("--protocol almeida --balance none"),
    )
    cut = round(0.3 * len(texts))
    assert messages.splits.train["text"].tolist() == texts[:cut] == messages.unlabelled
    assert messages.splits.test["text"].tolist() == texts[cut:]
    repeated = experiments.is_repeated(messages.splits)
    assert repeated.tolist() == [text in texts[:i] for i, text in enumerate(texts)][cut:]
    assert repeated.any()


def test_made_up_messages_are_never_measured(tmp_path, monkeypatch, capsys):
    def unavailable(file):
        raise DownloadError("not to be had")

    monkeypatch.setattr(experiments, "fetch", unavailable)
    assert experiments.main(["--model", "gpt-mini", "--results", str(tmp_path), "--quiet"]) == 1
    assert "not to be had" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_frozen_features_are_the_pooled_final_states(pooling, monkeypatch):
    seen = []

    class Regression(other_classifiers.LogisticRegression):
        def predict_proba(self, features):
            seen.append(features)
            return super().predict_proba(features)

    monkeypatch.setattr(other_classifiers, "LogisticRegression", Regression)
    options = f"--classifier frozen_features --model gpt-mini --pooling {pooling}"
    decoder, tokenizer, _ = tiny_decoder(config_of(options), "cpu")
    measure(options)
    for features, text in zip(seen[0], messages_of("").splits.test["text"], strict=True):
        ids = torch.tensor([tokenizer.encode_ordinary(text)])
        states = decoder.final_norm(decoder.run_blocks(decoder.embed(ids)))[0].detach()
        expected = states[-1] if pooling == "last" else states.mean(dim=0)
        np.testing.assert_allclose(features, expected, atol=1e-4)


def test_spam_metrics_are_what_the_paper_names():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    metrics = experiments.spam_metrics(probabilities, np.array([0, 0, 1, 1, 1]))
    assert (metrics["ham_blocked"], metrics["spam_caught"]) == (1 / 2, 2 / 3)
    assert metrics["roc_area"] == pytest.approx(4 / 6)  # of pairs of spam and ham, in order


# ---------------------------------------------------------------------------------------------
# What is there already
# ---------------------------------------------------------------------------------------------


def test_measured_row_is_not_overwritten(tmp_path, capsys):
    arguments = ["--trainable", "head", "--num-epochs", "1", "--seed", "1", "--quiet", "--results"]
    arguments += [str(tmp_path)]
    assert experiments.main([*arguments, "--row", "mine"]) == 0
    path = tmp_path / "mine" / "seed-1.json"
    before = path.read_bytes()
    assert json.loads(before)["configuration"]["model"] == "gpt-mini"  # found out, not "auto"
    assert experiments.main([*arguments, "--row", "mine"]) == 2
    assert "is there already: delete it" in capsys.readouterr().err
    assert experiments.main([*arguments, "--row", "mine", "--batch-size", "4"]) == 2
    assert "--batch-size 4" in capsys.readouterr().err
    assert path.read_bytes() == before
    for _ in range(2):  # a trial may be repeated
        assert experiments.main(arguments) == 0


def test_suite_goes_on_with_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "COST_MEASURED", set())
    assert run_quickly(suites.KNOWN[:1], tmp_path, monkeypatch, "--seeds", "2") == 0
    assert run_quickly(suites.KNOWN[:2], tmp_path, monkeypatch, "--seeds", "2", "3") == 0
    assert "main: 3 of 4 runs made now" in capsys.readouterr().out
    monkeypatch.setattr(experiment_config, "default_model_name", lambda: "gpt2-small (124M)")
    assert run_quickly(suites.KNOWN[:1], tmp_path, monkeypatch, "--seeds", "2") == 2
    assert "--model gpt-mini" in capsys.readouterr().err


def test_options_beside_a_suite_go_to_every_gpt_and_its_own_options_win(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "COST_MEASURED", set())
    rows = [suites.Row("a", "", ""), suites.Row("b", "--batch-size 16", ""), suites.BASELINES[3]]
    options = ("--seeds", "1", "--batch-size", "4")
    assert run_quickly(rows, tmp_path, monkeypatch, *options) == 0
    sizes = [read(tmp_path, row.name)["configuration"]["batch_size"] for row in rows]
    assert sizes == [4, 16, 8]


def test_suite_of_classical_models_fetches_no_weights(tmp_path, monkeypatch):
    monkeypatch.delattr(experiment_config, "default_model_name")
    arguments = ["--suite", "baselines", "--seeds", "1", "--results", str(tmp_path), "--quiet"]
    assert experiments.main(arguments) == 0


def test_run_in_its_own_process_says_what_went_wrong(tmp_path):
    config = config_of(f"--row mine --results {tmp_path}")
    config.path.parent.mkdir()
    config.path.write_text('{"command": "another"}', encoding="utf-8")
    with pytest.raises(ChildProcessError, match="made by\n  another"):
        experiments.measure_in_own_process(config)
