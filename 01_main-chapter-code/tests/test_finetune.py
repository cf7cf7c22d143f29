"""finetune.py as a reader runs it: options, bad input, and bad luck."""

import io
import json
import operator
import os
import re
import sys
from functools import partial
from pathlib import Path

import helpers
import pytest
import torch
from helpers import made_up_messages, run_command, succeeds, write_csv

import classify
import fine_tuning
import finetune
import gpt_download
import measuring
import run_messages
from classifier_folder import classify_texts, open_classifier
from files import file_sha256
from run_config import RunConfig
from run_messages import read_run_messages

QUICK = ("--model", "gpt-mini", "--continued-pretraining-epochs", "0", "--trainable", "head")
QUICK += ("--num-epochs", "1", "--quiet")


pytestmark = pytest.mark.usefixtures("no_pictures", "one_thread")


def train(data: Path, output: Path, *options) -> dict:
    """Run finetune.py in this process, which must succeed; returns metrics.json."""
    arguments = ["--data", data, "--output", output, *QUICK, *options]
    assert finetune.main([str(argument) for argument in arguments]) == 0
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def outcome(metrics: dict, output: Path) -> dict:
    """All that a run leads to, but for the times: metrics, history and weights."""
    kept = {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mb")}
    return kept | {"weights_sha256": file_sha256(output / "model.safetensors")}


fails = partial(helpers.fails, finetune)


@pytest.fixture(scope="module")
def as_in_the_readme(tmp_path_factory):
    """What finetune.py prints with its own defaults, in a process as a reader starts it, and the
    folder that it writes."""
    folder = tmp_path_factory.mktemp("readme")
    data, output = write_csv(folder / "messages.csv", made_up_messages()), folder / "my classifier"
    options = ("--data", data, "--model", "gpt-mini", "--device", "cpu", "--output", output)
    done = run_command("finetune.py", *options, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout, output


def test_the_two_commands_in_turn(as_in_the_readme, capsys, monkeypatch):
    """As in the README: fine-tune, then classify with the folder that was written."""
    said, output = as_in_the_readme
    for part in ("column 'text'", "points", "Better: --model smollm2-135m", str(output)):
        assert part in said
    names = ["accuracy.png", "config.json", "confusion-matrix.png", "loss.png", "metrics.json"]
    assert sorted(path.name for path in output.iterdir()) == [*names, "model.safetensors"]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["accuracy"] > 0.9  # these messages are told apart by a few words
    assert metrics["options"]["text_column"] == "text"  # guessed; classify.py looks for it

    lines = b"claim free cash prize call\n\nlunch later at home with mum\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    rows = [line.split("\t") for line in succeeds(classify, capsys, output).splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("spam", "claim free cash prize call"),
        (rows[1][0], ""),  # line n of the output belongs to line n of the input
        ("ham", "lunch later at home with mum"),
    ]
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    held = b"x" * 1_000_000_000
    assert 50 < measuring.in_fresh_process(measuring.peak_memory_mb) < len(held) / 1e6


@pytest.mark.parametrize(
    ("accuracy", "interval", "sentence"),
    [
        (0.92, [0.88, 0.95], "2.0 points above the n-gram baseline, which lies within"),
        (0.80, [0.75, 0.85], "10.0 points below the n-gram baseline."),
    ],
)
def test_the_baseline_is_compared_with_what_so_few_messages_can_tell(accuracy, interval, sentence):
    test = {"num_examples": 262, "accuracy": accuracy, "accuracy_interval": interval}
    metrics = {"model": "m", "ngram_baseline": {"accuracy": 0.9}, "test": test}
    assert finetune.compared_with_baseline(metrics).startswith(f"m is {sentence}")


def test_metrics_agree_with_the_predictions_and_the_data(messages_csv, tmp_path):
    metrics = train(messages_csv, tmp_path / "out")
    assert (metrics["model"], metrics["data"], metrics["seed"]) == ("gpt-mini", "messages.csv", 123)
    sizes = [metrics[part]["num_examples"] for part in ("train", "validation", "test")]
    assert sizes == [42, 6, 12]
    test, predictions = metrics["test"], metrics["test_predictions"]
    assert [sum(row) for row in predictions["probabilities"]] == pytest.approx([1] * 12, abs=1e-5)
    answers = [row.index(max(row)) for row in predictions["probabilities"]]
    num_right = sum(map(operator.eq, answers, predictions["labels"]))
    matrix = test["confusion_matrix"]
    assert test["accuracy"] * 12 == pytest.approx(num_right) == matrix[0][0] + matrix[1][1]
    low, high = test["accuracy_interval"]
    assert low < test["accuracy"] < high
    assert {"data", "model", "frozen_layers", "training"} <= metrics["seconds"].keys()


def test_test_messages_are_kept_only_when_told(messages_csv, tmp_path):
    output = tmp_path / "out"
    assert "examples" not in train(messages_csv, output)
    kept = train(messages_csv, output, "--overwrite", "--keep-examples")["examples"]
    predictions = classify_texts(*open_classifier(output), [example["text"] for example in kept])
    known = dict(made_up_messages())
    assert len(kept) == 8
    for example, row in zip(kept, predictions.tolist(), strict=True):
        assert example["label"] == known[example["text"]]
        assert example["answer"] == ("ham", "spam")[row.index(max(row))]


@pytest.mark.parametrize(
    "options",
    [
        ("--trainable", "last_block", "--precision", "bfloat16"),
        ("--trainable", "all", "--pooling", "mean", "--precision", "bfloat16"),
        ("--trainable", "lora", "--lora-rank", "2", "--learning-rate", "0.01"),  # merged
        ("--padding", "training"),
        ("--max-length", "4", "--cut", "tail"),
        ("--max-length", "4", "--cut", "windows", "--trainable", "all", "--pooling", "mean"),
    ],
)
def test_the_saved_classifier_is_the_one_that_was_measured(unbalanced_csv, tmp_path, options):
    """The last evaluation and classifying compute in float32, whatever the training rounded."""
    metrics = train(unbalanced_csv, tmp_path / "out", *options)
    test = read_run_messages(RunConfig(data=unbalanced_csv), lambda *_: None).splits.test
    probabilities = classify_texts(*open_classifier(tmp_path / "out"), list(test["text"]))
    measured = torch.tensor(metrics["test_predictions"]["probabilities"])
    torch.testing.assert_close(probabilities, measured, atol=1e-5, rtol=0)


def test_six_texts_are_enough_and_no_baseline_takes_all_memory(tmp_path, monkeypatch):
    data = write_csv(tmp_path / "m.csv", made_up_messages(3))
    metrics = train(data, tmp_path / "out")
    assert [metrics[part]["num_examples"] for part in ("train", "validation", "test")] == [2, 2, 2]
    assert metrics["ngram_baseline"] is not None
    monkeypatch.setattr(measuring, "MAX_BASELINE_SIZE", 3)
    assert train(data, tmp_path / "out", "--overwrite")["ngram_baseline"] is None


def test_a_very_long_text_is_cut_and_said(tmp_path, capsys):
    rows = [*made_up_messages(), *(("free prize " * 1000 + str(i), "spam") for i in range(8))]
    path = write_csv(tmp_path / "m.csv", rows)
    arguments = ["--data", path, "--output", tmp_path / "out", *QUICK[:-1], "--balance", "none"]
    said = succeeds(finetune, capsys, *arguments, "--max-length", "20")
    assert "exceed 20 tokens; --cut head" in said


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_data_file_may_have_a_name_that_is_no_utf8(messages_csv, tmp_path):
    data = tmp_path / os.fsdecode(b"caf\xe9.csv")
    messages_csv.rename(data)
    assert train(data, tmp_path / "out")["data"] == "caf\ufffd.csv"


def test_without_data_or_network_made_up_messages_are_marked(tmp_path, monkeypatch, capsys):
    def nothing():
        raise gpt_download.DownloadError("no network")

    monkeypatch.setattr(run_messages, "read_sms_spam", nothing)
    few = ["--train-size", "20", "--max-length", "8"]
    said = succeeds(finetune, capsys, "--output", tmp_path / "out", *QUICK[:-1], *few)
    assert said.count("mean nothing") == 2  # before the run, and below its metrics
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["card"]["made_up_data"] is True


BASE = ("--trainable", "last_block", "--num-epochs", "2", "--balance", "none")


@pytest.fixture(scope="module")
def base_run(unbalanced_csv, tmp_path_factory) -> dict:
    torch.set_num_threads(1)
    return train(unbalanced_csv, tmp_path_factory.mktemp("base") / "out", *BASE)


# What only training.py reads is tested there, and what the experiments' rows change, there.
@pytest.mark.parametrize(
    "options",
    [
        ("--text-column", "subject", "--label-column", "label"),
        ("--text-column", "text", "--label-column", "parity"),
        *(("--balance", "weights"), ("--precision", "bfloat16"), ("--seed", "7")),
    ],
    ids=" ".join,
)
def test_an_option_acts(base_run, unbalanced_csv, tmp_path, options):
    assert train(unbalanced_csv, tmp_path, *BASE, *options)["history"] != base_run["history"]


def test_what_suits_a_model_fills_in_what_is_not_given():
    for name, given, pooling, epochs in (
        ("gpt-mini", {}, "last", 2),
        ("gpt-mini", {"weights": "random"}, "last", 0),
        ("gpt-mini", {"continued_pretraining_epochs": 0}, "last", 0),
        ("gpt2-small (124M)", {"continued_pretraining_epochs": 3}, "last", 3),
        ("smollm2-135m", {}, "mean", 0),
        ("smollm2-135m", {"padding": "training"}, "last", 0),
    ):
        config = RunConfig(**given).for_model(name)
        assert (config.pooling, config.continued_pretraining_epochs) == (pooling, epochs)
    with pytest.raises(ValueError, match="--pooling last"):
        RunConfig(padding="training", pooling="mean")


def test_quiet_prints_the_results_only(messages_csv, tmp_path, capsys):
    columns = ("--text-column", "text", "--label-column", "label")
    train(messages_csv, tmp_path / "out", *columns)
    quiet = capsys.readouterr()
    assert "test, n-gram baseline" in quiet.out
    assert quiet.err == ""
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK[:-1], "--overwrite")
    assert len(succeeds(finetune, capsys, *arguments)) > len(quiet.out)


def test_the_default_model_is_asked_for_only_where_none_is_named(monkeypatch):
    asked = []
    monkeypatch.setattr(fine_tuning, "default_model_name", lambda _: asked.append(1) or "gpt-mini")
    for model, times in (("gpt-mini", 0), ("auto", 1)):
        name = fine_tuning.load_decoder(RunConfig(model=model), torch.device("cpu"))[2]
        assert (name, len(asked)) == ("gpt-mini", times)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--modle", "x"), ["--modle"]),
        (("--model", "gpt5"), ["'gpt5'", "gpt-mini", "gpt2-small"]),
        (("--trainable", "none"), ["--trainable", "'none'"]),
        (("--trainable", "7"), ["trainable=7", "from 0 to 6"]),
        (("--num-epochs", "0"), ["num_epochs=0", "at least 1"]),
        (("--num-epochs", "1.5"), ["--num-epochs", "'1.5'", "whole number"]),
        (("--learning-rate", "nan"), ["learning_rate=nan", "above 0"]),
        (("--learning-rate", "1e30"), ["--learning-rate", "diverged", "smaller"]),
        (("--max-length", "513"), ["--max-length", "513", "512"]),
        (("--dropout", "0.1", "--trainable", "head"), ["--dropout", "--trainable head"]),
        (("--balance", "weights", "--batch-size", "1"), ["--balance", "above 1"]),
        (("--protocol", "published", "--balance", "none"), ["--data", "--balance none"]),
        (("--lora-rank", "4"), ["--lora-rank", "--trainable lora"]),
        (("--resume", "--overwrite"), ["--resume", "--overwrite"]),
        (("--multi-label",), ["--multi-label goes with --balance none"]),
        (("--keep-examples", "--multi-label", "--balance", "none"), ["--keep-examples"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named(messages_csv, tmp_path, capsys, options, parts):
    output = tmp_path / "out"
    said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK, *options)
    for part in parts:
        assert part in said
    assert not (output / "config.json").exists()


def test_a_model_that_sees_later_tokens_is_not_to_predict_them():
    assert RunConfig(causal=False).for_model("gpt-mini").continued_pretraining_epochs == 0
    with pytest.raises(ValueError, match="--no-causal shows a token the next one"):
        RunConfig(causal=False, continued_pretraining_epochs=1)


def test_columns_without_a_file_are_refused(capsys):
    assert "belong to --data" in fails(capsys, "--text-column", "", *QUICK)


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    said = capsys.readouterr().out
    assert "default: 5" in said
    assert not re.search("None|default: False|default: True", said)


@pytest.mark.parametrize(
    ("relabel", "parts"),
    [
        (lambda i, label: ["ham"], ["'ham'", "at least two"]),
        (lambda i, label: ["rare" if i < 2 else label], ["'rare'", "only 2", "at least 3"]),
        (lambda i, label: [f"label {i}"], ["60 different labels", "column of labels"]),
        (lambda i, label: ["ham", "spam"], ["several labels"]),
        (lambda i, label: [], ["holds a header only"]),
    ],
    ids=["one class", "a class too small", "a label a text", "contradictions", "nothing"],
)
def test_data_that_cannot_be_used_is_named(tmp_path, capsys, relabel, parts):
    pairs = enumerate(made_up_messages())
    rows = [(text, new) for i, (text, label) in pairs for new in relabel(i, label)]
    path, output = write_csv(tmp_path / "bad.csv", rows), tmp_path / "out"
    columns = ("--text-column", "text", "--label-column", "label")
    said = fails(capsys, "--data", path, "--output", output, *QUICK, *columns)
    for part in ("bad.csv", *parts):
        assert part in said
    assert not output.exists()
