"""finetune.py and classify.py as a reader runs them: options, bad input, and bad luck."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import (
    CHAPTER,
    command_environment,
    edit_json,
    file_size_limit,
    made_up_messages,
    run_command,
    write_csv,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

import classify
import finetune
import gpt_download
from message_files import read_messages
from text_classifier import classify_texts, open_classifier
from text_data import clean_messages, split_messages

QUICK = ("--model", "gpt-mini", "--pretrain-further", "0", "--trainable", "head", "--epochs", "1")
QUICK += ("--quiet",)


@pytest.fixture(autouse=True)
def one_thread():
    """As in the commands that run beside the tests, so that both give the same numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(data: Path, output: Path, *options) -> dict:
    """Run finetune.py in this process, which must succeed; returns metrics.json."""
    arguments = ["--data", data, "--output", output, *QUICK, *options]
    assert finetune.main([str(argument) for argument in arguments]) == 0
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def without_times(metrics: dict) -> dict:
    return {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mb")}


def check_folder_is_whole(folder: Path) -> None:
    """Every file that carries its final name can be read to the end."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            assert isinstance(json.loads(path.read_text(encoding="utf-8")), dict), path
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.suffix == ".png":
            raw = path.read_bytes()
            assert raw.startswith(b"\x89PNG"), path
            assert b"IEND" in raw[-12:], path
        else:
            assert path.suffix == ".partial", path
    if (folder / "config.json").exists():
        open_classifier(folder)


def complaint(capsys, status: int, expected: int, command: str) -> str:
    """What was said about a run that failed: one sentence that starts with the command's name."""
    assert status == expected
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"{command}: " in said
    return said


def finetune_fails(capsys, *arguments, status: int = 2) -> str:
    try:
        got = finetune.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        got = error.code
    return complaint(capsys, got, status, "finetune.py")


def classify_fails(capsys, *arguments, status: int = 2) -> str:
    try:
        got = classify.main([str(argument) for argument in arguments])
    except SystemExit as error:
        got = error.code
    return complaint(capsys, got, status, "classify.py")


# --- both commands, from start to finish -------------------------------------------------------


def test_the_two_commands_in_turn(messages_csv, tmp_path):
    """As in the README: fine-tune, then classify with the folder that was written."""
    output = tmp_path / "my classifier"
    options = ("--model", "gpt-mini", "--epochs", 20, "--output", output)
    done = run_command("finetune.py", "--data", messages_csv, *options)
    assert done.returncode == 0, done.stderr
    assert "column 'text'" in done.stdout
    assert "n-gram baseline" in done.stdout
    assert str(output) in done.stdout
    assert "Traceback" not in done.stderr
    check_folder_is_whole(output)
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("accuracy.png", "confusion-matrix.png", "loss.png"),
        *("config.json", "metrics.json", "model.safetensors", "run.json"),
    }
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["train"]["accuracy"] > 0.9  # these messages are told apart by a few words

    lines = "claim free cash prize call\n\nlunch later at home with mum\n"
    done = run_command("classify.py", output, stdin=lines)
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(row[0], row[2]) for row in rows] == [
        ("spam", "claim free cash prize call"),
        ("ham", "lunch later at home with mum"),
    ]
    assert all(0.5 <= float(row[1]) <= 1 for row in rows)


def test_metrics_hold_what_they_promise(messages_csv, tmp_path):
    metrics = train(messages_csv, tmp_path / "out")
    assert metrics["model"] == "gpt-mini"
    assert metrics["data"] == "messages.csv"
    assert metrics["num_labels"] == 2
    assert metrics["labels"] == ["ham", "spam"]
    assert metrics["seed"] == 123
    sizes = [metrics[part]["num_examples"] for part in ("train", "validation", "test")]
    assert sizes == [42, 6, 12]
    for part in ("train", "validation", "test"):
        assert 0 <= metrics[part]["accuracy"] <= 1
    test = metrics["test"]
    matrix = test["confusion_matrix"]
    assert sum(map(sum, matrix)) == 12
    assert test["accuracy"] == pytest.approx((matrix[0][0] + matrix[1][1]) / 12)
    low, high = test["accuracy_interval"]
    assert 0 <= low <= test["accuracy"] <= high <= 1
    assert 0 <= test["macro_f1"] <= 1
    assert -1 <= test["mcc"] <= 1
    predictions = metrics["test_predictions"]
    assert [sum(row) for row in predictions["probabilities"]] == pytest.approx([1] * 12, abs=1e-5)
    right = [
        row.index(max(row)) == label
        for row, label in zip(predictions["probabilities"], predictions["labels"], strict=True)
    ]
    assert test["accuracy"] == sum(right) / 12
    stages = {"data", "model", "frozen_layers", "training", "evaluation"}
    assert stages <= metrics["seconds"].keys()
    assert all(seconds >= 0 for seconds in metrics["seconds"].values())
    assert metrics["peak_memory_mb"] is None or metrics["peak_memory_mb"] > 50


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_peak_memory_is_the_process_own_not_what_its_parent_held():
    held = b"x" * 1_000_000_000
    code = "import finetune; print(finetune.peak_memory_mb())"
    folder = Path(finetune.__file__).parent
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
    assert 50 < float(printed) < len(held) / 1e6


def test_the_saved_classifier_is_the_one_that_was_measured(messages_csv, tmp_path):
    metrics = train(messages_csv, tmp_path / "out", "--trainable", "last_block", "--epochs", "3")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["test"] == metrics["test"]
    arguments = ["--data", str(messages_csv), "--seed", str(metrics["seed"])]
    splits, labels, *_ = finetune.read_data(finetune.parse_args(arguments), print)
    classifier = open_classifier(tmp_path / "out")
    best = classify_texts(classifier, splits.test["text"].tolist()).argmax(dim=1).tolist()
    right = [labels[i] == label for i, label in zip(best, splits.test["label"], strict=True)]
    assert sum(right) / len(right) == metrics["test"]["accuracy"]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_every_format_trains_the_same_classifier(messages_csv, tmp_path, ending, capsys):
    expected = train(messages_csv, tmp_path / "csv")
    path = tmp_path / f"messages.{ending}"
    table = pd.DataFrame(made_up_messages(), columns=["text", "label"])
    if ending == "tsv":
        table.to_csv(path, sep="\t", index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    metrics = train(path, tmp_path / ending)
    assert metrics["data"] == path.name
    for part in ("test", "history", "labels"):
        assert metrics[part] == expected[part]


def test_any_labels_and_any_number_of_them(tmp_path, capsys):
    names = ["10", "9", "-1"]
    rows = [(text, names[i % 3]) for i, (text, _) in enumerate(made_up_messages())]
    metrics = train(write_csv(tmp_path / "m.csv", rows), tmp_path / "out")
    assert metrics["labels"] == ["-1", "9", "10"]  # by number, not by alphabet
    assert len(metrics["test"]["confusion_matrix"]) == 3
    assert classify.main([str(tmp_path / "out"), "hello"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split("\t")[0] in names


def test_six_texts_are_enough_for_two_labels(tmp_path):
    metrics = train(write_csv(tmp_path / "m.csv", made_up_messages(3)), tmp_path / "out")
    assert [metrics[part]["num_examples"] for part in finetune.Splits._fields] == [2, 2, 2]


def test_no_baseline_where_it_would_take_all_memory(messages_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "MAX_BASELINE_SIZE", 2 * 42 - 1)
    assert train(messages_csv, tmp_path / "out")["ngram_baseline"] is None


def test_labels_in_other_scripts_and_with_odd_signs(tmp_path, capsys):
    names = ["größe\x1b[31m", "100% \\ off"]
    rows = [(text, names[label == "spam"]) for text, label in made_up_messages()]
    metrics = train(write_csv(tmp_path / "m.csv", rows), tmp_path / "out")
    assert metrics["labels"] == sorted(names)
    assert classify.main([str(tmp_path / "out"), "hello"]) == 0
    assert "\x1b" not in capsys.readouterr().out.splitlines()[-1]


def test_a_very_long_text_is_cut_and_said(tmp_path, capsys):
    rows = [*made_up_messages(), *(("free prize " * 10_000 + str(i), "spam") for i in range(8))]
    path = write_csv(tmp_path / "m.csv", rows)
    arguments = ["--data", path, "--output", tmp_path / "out", *QUICK[:-1], "--max-length", "20"]
    assert finetune.main([*map(str, arguments), "--balance", "none"]) == 0
    assert "longer than 20 tokens" in capsys.readouterr().out
    assert classify.main([str(tmp_path / "out"), "free prize " * 10_000]) == 0


def test_without_data_or_network_made_up_messages_are_marked(tmp_path, monkeypatch, capsys):
    def nothing():
        raise gpt_download.DownloadError("no network")

    monkeypatch.setattr(finetune, "read_sms_spam", nothing)
    arguments = ["--output", str(tmp_path / "out"), *QUICK[:-1]]
    assert finetune.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("mean nothing") == 2  # before the run, and below its figures
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["made_up_data"] is True


# --- finetune.py: every option acts ------------------------------------------------------------

BASE = ("--trainable", "last_block", "--epochs", "2", "--balance", "none", "--max-grad-norm", "1")


@pytest.fixture(scope="module")
def unbalanced_csv(tmp_path_factory) -> Path:
    """90 messages, of which 30 are spam, with another text and another label to choose."""
    rows = made_up_messages(60)
    kept = [row for i, row in enumerate(rows) if row[1] == "ham" or i < 60]
    rows = [
        (text, label, text.split()[0] + f" {i}", f"{i % 2}") for i, (text, label) in enumerate(kept)
    ]
    folder = tmp_path_factory.mktemp("unbalanced")
    return write_csv(folder / "messages.csv", rows, "text,label,subject,parity")


@pytest.fixture(scope="module")
def base_run(unbalanced_csv, tmp_path_factory):
    return observe(unbalanced_csv, tmp_path_factory.mktemp("base"))


def observe(data: Path, output: Path, *options) -> dict:
    """All that a run with these options leads to: figures, history and weights."""
    torch.set_num_threads(1)
    metrics = train(data, output, *BASE, *options)
    weights = json.loads((output / "config.json").read_text(encoding="utf-8"))["weights_sha256"]
    return {"metrics": without_times(metrics), "weights": weights}


def test_the_same_command_gives_the_same_result(base_run, unbalanced_csv, tmp_path):
    assert observe(unbalanced_csv, tmp_path) == base_run


@pytest.mark.parametrize(
    "options",
    [
        ("--text-column", "subject", "--label-column", "label"),
        ("--text-column", "text", "--label-column", "parity"),
        ("--balance", "weights"),
        ("--balance", "undersample"),
        ("--augment", "1"),
        ("--max-length", "4"),
        ("--weights", "random"),
        ("--pretrain-further", "1"),
        ("--trainable", "head"),
        ("--trainable", "last_two_blocks"),
        ("--trainable", "all"),
        ("--pooling", "mean"),
        ("--epochs", "3"),
        ("--batch-size", "5"),
        ("--learning-rate", "0.002"),
        ("--schedule", "constant"),
        ("--warmup-share", "0.5"),
        ("--max-grad-norm", "0"),
        ("--max-grad-norm", "0.1"),
        ("--weight-decay", "0.5"),
        ("--dropout", "0.2"),
        ("--precision", "bfloat16"),
        ("--seed", "7"),
    ],
    ids=" ".join,
)
def test_an_option_acts(base_run, unbalanced_csv, tmp_path, options):
    changed = observe(unbalanced_csv, tmp_path, *options)
    assert changed["weights"] != base_run["weights"]
    assert changed["metrics"]["history"] != base_run["metrics"]["history"]


def classify_again(data: Path, folder: Path, metrics: dict, **changes) -> tuple[Tensor, Tensor]:
    """Probabilities of the test messages by the saved folder, and those in its metrics."""
    splits = split_messages(clean_messages(read_messages(data, "text", "label")), 123)
    classifier = replace(open_classifier(folder), **changes)
    again = classify_texts(classifier, list(splits.test["text"]))
    return again, torch.tensor(metrics["test_predictions"]["probabilities"])


def test_a_folder_is_read_the_way_it_was_trained(unbalanced_csv, tmp_path):
    metrics = observe(unbalanced_csv, tmp_path, "--pooling", "mean")["metrics"]
    again, expected = classify_again(unbalanced_csv, tmp_path, metrics)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    by_last, _ = classify_again(unbalanced_csv, tmp_path, metrics, pooling="last_real")
    assert (by_last - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("trainable", "low", "high"), [("last_block", 1e-5, 0.05), ("all", 0, 1e-5)]
)
def test_figures_are_those_of_the_folder_but_for_rounded_frozen_layers(
    unbalanced_csv, tmp_path, trainable, low, high
):
    """The last evaluation and classifying compute in float32, whatever the training rounded."""
    options = ("--precision", "bfloat16", "--trainable", trainable)
    metrics = observe(unbalanced_csv, tmp_path, *options)["metrics"]
    again, measured = classify_again(unbalanced_csv, tmp_path, metrics)
    assert low <= (again - measured).abs().max() < high


def test_all_of_the_training_has_the_precision_that_is_wished(
    unbalanced_csv, tmp_path, monkeypatch
):
    wished = []

    def spied_on(function: Callable) -> Callable:
        def spy(*arguments, **named):
            configs = [a for a in arguments if isinstance(a, finetune.TrainConfig)]
            wished.append(configs[0].precision if configs else arguments[4])
            return function(*arguments, **named)

        return spy

    for name in ("compute_frozen_layers", "continue_pretraining", "train_classifier_simple"):
        monkeypatch.setattr(finetune, name, spied_on(getattr(finetune, name)))
    options = ("--precision", "bfloat16", "--pretrain-further", "1")
    observe(unbalanced_csv, tmp_path, *options)
    assert wished == ["bfloat16"] * 5  # the language model, three parts' frozen layers, training


def test_patience_stops_early_and_keeps_the_best(unbalanced_csv, tmp_path):
    hasty = ("--learning-rate", "0.05", "--epochs", "8", "--schedule", "constant")
    losses = observe(unbalanced_csv, tmp_path / "all", *hasty)["metrics"]["history"]
    patient = observe(unbalanced_csv, tmp_path / "some", *hasty, "--patience", "1")
    stopped = patient["metrics"]["history"]["validation_loss"]
    assert len(losses["validation_loss"]) == 8
    rises = [
        i
        for i, loss in enumerate(losses["validation_loss"])
        if i and loss > min(losses["validation_loss"][:i])
    ]
    assert len(stopped) == rises[0] + 1
    assert stopped == losses["validation_loss"][: rises[0] + 1]


def test_some_options_act_on_the_numbers_of_messages(base_run, unbalanced_csv, tmp_path):
    assert base_run["metrics"]["train"]["num_examples"] == 63
    augmented = observe(unbalanced_csv, tmp_path / "a", "--augment", "2")["metrics"]
    assert augmented["train"]["num_examples"] == 3 * 63
    assert augmented["test"]["num_examples"] == base_run["metrics"]["test"]["num_examples"]
    balanced = observe(unbalanced_csv, tmp_path / "b", "--balance", "undersample")["metrics"]
    assert balanced["train"]["num_examples"] == 42
    short = observe(unbalanced_csv, tmp_path / "c", "--max-length", "4")["metrics"]
    assert (short["max_length"], base_run["metrics"]["max_length"] > 4) == (4, True)


def test_further_pretraining_reads_what_is_neither_validated_nor_tested_on(unbalanced_csv):
    arguments = ["--data", str(unbalanced_csv), "--text-column", "text", "--label-column", "label"]
    splits, _, _, left_over = finetune.read_data(finetune.parse_args(arguments), print)
    assert len(left_over) == 30  # of 60 ham, as many as there are spam were kept
    used = {text for part in splits for text in part["text"]}
    assert used.isdisjoint(left_over)


def test_further_pretraining_is_the_default_for_pretrained_gpt_mini_only():
    def epochs(name, *options):
        return finetune.choose_further_epochs(finetune.parse_args(list(options)), name)

    assert epochs("gpt-mini") > 0
    assert epochs("gpt-mini", "--weights", "random") == 0
    assert epochs("gpt2-small (124M)") == 0
    assert epochs("gpt2-small (124M)", "--pretrain-further", "3") == 3
    assert epochs("gpt-mini", "--pretrain-further", "0") == 0


def test_the_protocol_chooses_the_split():
    try:
        gpt_download.fetch(gpt_download.SMS_SPAM_ZIP)
    except gpt_download.DownloadError as error:
        pytest.skip(str(error).splitlines()[0])
    parts = {}
    for protocol in ("clean", "published"):
        args = finetune.parse_args(["--protocol", protocol])
        splits, labels, name, _ = finetune.read_data(args, lambda *_: None)
        assert labels == ["ham", "spam"]
        assert finetune.SMS_NAME in name
        parts[protocol] = set(splits.train["text"]) & set(splits.test["text"])
    assert parts["clean"] == set()
    assert len(parts["published"]) > 20  # the messages that flatter the published figures


def test_quiet_prints_the_results_only(messages_csv, tmp_path, capsys):
    arguments = ["--data", messages_csv, "--text-column", "text", "--label-column", "label"]
    arguments += ["--output", tmp_path / "out", *QUICK]
    assert finetune.main(list(map(str, arguments))) == 0
    quiet = capsys.readouterr()
    assert "test, n-gram baseline" in quiet.out
    assert quiet.err == ""
    assert finetune.main(list(map(str, arguments[:-1]))) == 0
    assert len(capsys.readouterr().out) > len(quiet.out)


def test_the_default_model_is_asked_for_only_where_none_is_named(
    messages_csv, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(finetune, "default_model_name", lambda _: asked.append(1) or "gpt-mini")
    train(messages_csv, tmp_path / "named")
    assert asked == []
    assert train(messages_csv, tmp_path / "auto", "--model", "auto")["model"] == "gpt-mini"
    assert asked == [1]


# --- finetune.py: wrong options ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--modle", "x"), ["--modle"]),
        (("--model", "gpt5"), ["'gpt5'", "gpt-mini", "gpt2-small"]),
        (("--trainable", "none"), ["--trainable", "'none'", "last_block", "all"]),
        (("--balance", "over"), ["--balance", "undersample", "weights"]),
        (("--device", "tpu"), ["--device", "'tpu'", "cpu"]),
        (("--schedule", "step"), ["--schedule", "cosine"]),
        (("--weights", "mine"), ["--weights", "random"]),
        (("--protocol", "mine"), ["--protocol", "published"]),
        (("--protocol", "published"), ["--protocol", "--data"]),
        (("--epochs", "0"), ["--epochs", "0", "at least 1"]),
        (("--epochs", "two"), ["--epochs", "'two'", "whole number"]),
        (("--epochs", "1.5"), ["--epochs", "'1.5'", "whole number"]),
        (("--batch-size", "-3"), ["--batch-size", "-3", "at least 1"]),
        (("--learning-rate", "0"), ["--learning-rate", "above 0"]),
        (("--learning-rate", "nan"), ["--learning-rate", "nan"]),
        (("--learning-rate", "inf"), ["--learning-rate", "finite"]),
        (("--learning-rate", "1e30"), ["--learning-rate", "diverged", "smaller"]),
        (("--weight-decay", "-1"), ["--weight-decay", "at least 0"]),
        (("--dropout", "1"), ["--dropout", "below 1"]),
        (("--dropout", "0.1", "--trainable", "head"), ["--dropout", "--trainable head"]),
        (("--balance", "weights", "--batch-size", "1"), ["--balance", "at least 2"]),
        (("--protocol", "published", "--balance", "none"), ["--protocol", "--balance none"]),
        (("--warmup-share", "1"), ["--warmup-share", "below 1"]),
        (("--max-grad-norm", "-1"), ["--max-grad-norm", "at least 0"]),
        (("--patience", "0"), ["--patience", "at least 1"]),
        (("--augment", "-1"), ["--augment", "at least 0"]),
        (("--seed", "-1"), ["--seed", "between 0 and"]),
        (("--seed", "4294967296"), ["--seed", "between 0 and"]),
        (("--max-length", "0"), ["--max-length", "at least 1"]),
        (("--max-length", "513"), ["--max-length", "513", "512"]),
        (("--text-column", "txt"), ["messages.csv", "'txt'", "'text', 'label'"]),
        (("--label-column", "lbl"), ["messages.csv", "'lbl'", "'text', 'label'"]),
        (("--label-column", ""), ["messages.csv", "''", "'text', 'label'"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named(messages_csv, tmp_path, capsys, options, parts):
    output = tmp_path / "out"
    said = finetune_fails(capsys, "--data", messages_csv, "--output", output, *QUICK, *options)
    for part in parts:
        assert part in said
    assert not (output / "config.json").exists()


def test_an_absent_device_is_named(messages_csv, tmp_path, capsys, tiny_classifier_folder):
    absent = next(
        name
        for name in ("mps", "cuda")
        if not getattr(torch.backends, name).is_built()
        or not {"mps": torch.backends.mps, "cuda": torch.cuda}[name].is_available()
    )
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", "--device", absent)
    assert f"'{absent}'" in finetune_fails(capsys, *arguments)
    assert f"'{absent}'" in classify_fails(capsys, tiny_classifier_folder, "hi", "--device", absent)


@pytest.mark.parametrize("where", ["step_losses", "train_loss", "validation_loss"])
def test_divergence_is_seen_wherever_it_shows(where):
    history = finetune.History(step_losses=[1.0], train_loss=[1.0], validation_loss=[1.0])
    finetune.refuse_divergence(history, finetune.TrainConfig())
    getattr(history, where).append(float("nan"))
    with pytest.raises(finetune.DataError, match="diverged"):
        finetune.refuse_divergence(history, finetune.TrainConfig())


def test_memory_is_reported_where_the_system_tells():
    metrics = {"seconds": {"training": 2.0}, "peak_memory_mb": None}
    assert finetune.closing_words(metrics, Path("out")).splitlines()[1] == "2 seconds."


def test_columns_without_a_file_are_refused(tmp_path, capsys):
    for name in ("text", ""):
        said = finetune_fails(capsys, "--text-column", name, "--output", tmp_path / "out", *QUICK)
        assert "--data" in said


def test_help_shows_every_default(capsys):
    for main in (finetune.main, classify.main):
        with pytest.raises(SystemExit) as caught:
            main(["--help"])
        assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "default: last_block" in said
    assert "default: None" not in said
    assert "--text-column" in said


# --- finetune.py: wrong data -------------------------------------------------------------------


def data_file(folder: Path, kind: str) -> Path:
    path = folder / "bad.csv"
    rows = made_up_messages()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "header only":
        path.write_text("text,label\n", encoding="utf-8")
    elif kind == "one class":
        write_csv(path, [(text, "ham") for text, _ in rows])
    elif kind == "a class too small":
        write_csv(path, [(text, "ham") for text, _ in rows] + [("win", "spam"), ("now", "spam")])
    elif kind == "a label for each text":
        write_csv(path, [(text, f"label {i}") for i, (text, _) in enumerate(rows)])
    elif kind == "contradictions only":
        write_csv(path, [(text, label) for text, _ in rows for label in ("ham", "spam")])
    elif kind == "no labels":
        write_csv(path, [(text, "") for text, _ in rows])
    elif kind == "no texts":
        write_csv(path, [(" ", label) for _, label in rows])
    elif kind == "one column":
        write_csv(path, [(text,) for text, _ in rows], header="text")
    elif kind == "UTF-16":
        path.write_bytes("text,label\nhello,ham\n".encode("utf-16"))
    elif kind == "Latin-1":
        path.write_bytes("text,label\ncafé,ham\n".encode("latin-1"))
    elif kind == "binary":
        path.write_bytes(os.urandom(300) + b"\0")
    return path


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("absent", ["no such file"]),
        ("empty", ["is empty"]),
        ("header only", ["no rows"]),
        ("one class", ["'ham'", "at least two"]),
        ("a class too small", ["'spam'", "only 2", "at least 3"]),
        ("a label for each text", ["60 different labels", "column of labels"]),
        ("contradictions only", ["several labels"]),
        ("no labels", ["no row holds both"]),
        ("no texts", ["no row holds both"]),
        ("one column", ["'text'", "separator"]),
        ("UTF-16", ["UTF-8"]),
        ("Latin-1", ["line 2", "UTF-8"]),
        ("binary", []),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path, capsys, kind, parts):
    path = data_file(tmp_path, kind)
    columns = ("--text-column", "text", "--label-column", "label")
    columns = columns if kind.startswith(("no ", "a ", "contra", "one class")) else ()
    output = tmp_path / "out"
    said = finetune_fails(capsys, "--data", path, "--output", output, *QUICK, *columns)
    for part in ("bad.csv", *parts):
        assert part in said
    assert not output.exists()


def test_a_process_that_fails_leaves_with_the_status_and_no_traceback(tmp_path):
    done = run_command("finetune.py", "--data", tmp_path / "absent.csv")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent.csv: there is no such file" in done.stderr


# --- finetune.py: where the results go ---------------------------------------------------------


def test_an_output_folder_that_cannot_be_written_is_named(messages_csv, tmp_path, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine", encoding="utf-8")
    for output in (in_the_way, in_the_way / "below"):
        said = finetune_fails(capsys, "--data", messages_csv, "--output", output, *QUICK)
        assert f"--output {output}" in said
        assert "choose another" in said
    assert in_the_way.read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_output_folder_is_named(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    output.mkdir()
    output.chmod(0o555)
    said = finetune_fails(capsys, "--data", messages_csv, "--output", output, *QUICK)
    output.chmod(0o755)
    assert f"--output {output}" in said
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("room", [100, 15_000, 1_000_000])
def test_a_full_disk_leaves_no_half_and_the_run_can_go_on(messages_csv, tmp_path, capsys, room):
    """The room suffices for nothing, for the checkpoint, or for all but the weights."""
    output = tmp_path / "out"
    with file_size_limit(room):
        finetune_fails(capsys, "--data", messages_csv, "--output", output, *QUICK, status=1)
    check_folder_is_whole(output)
    assert not list(output.glob("*.partial"))
    assert not (output / "config.json").exists()
    resumed = train(messages_csv, output, *(["--resume"] if room > 100 else []))
    expected = train(messages_csv, tmp_path / "undisturbed")
    assert without_times(resumed) == without_times(expected)


def test_a_folder_is_overwritten_by_the_next_run(messages_csv, tmp_path):
    output = tmp_path / "out"
    train(messages_csv, output)
    second = train(messages_csv, output, "--seed", "5")
    assert second["seed"] == 5
    expected = train(messages_csv, tmp_path / "fresh", "--seed", "5")
    assert without_times(second) == without_times(expected)


# --- finetune.py: stopped and resumed ----------------------------------------------------------

LONGER = ("--trainable", "last_block", "--epochs", "4", "--patience", "3", "--dropout", "0.1")

KILLED_AT_A_RENAME = """
import os, signal, sys
from pathlib import Path
import finetune

name, moment, countdown = sys.argv[1], sys.argv[2], int(sys.argv[3])
replace = Path.replace

def replace_or_die(self, target):
    global countdown
    countdown -= Path(target).name == name
    if countdown == 0 and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = replace(self, target)
    if countdown == 0 and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

Path.replace = replace_or_die
finetune.main(sys.argv[4:])
"""

needs_kill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict]:
    """A file of messages, and what a run over it leads to that nobody disturbs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undisturbed")
    data = write_csv(folder / "messages.csv", made_up_messages())
    metrics = train(data, folder / "out", *LONGER)
    config = json.loads((folder / "out" / "config.json").read_text(encoding="utf-8"))
    return data, without_times(metrics) | {"weights_sha256": config["weights_sha256"]}


def resume(data: Path, output: Path) -> dict:
    metrics = train(data, output, *LONGER, "--resume")
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    return without_times(metrics) | {"weights_sha256": config["weights_sha256"]}


@needs_kill
@pytest.mark.parametrize(
    ("name", "moment", "count"),
    [
        ("run.json", "after", 1),
        ("checkpoint.safetensors", "before", 1),
        ("checkpoint.safetensors", "before", 3),
        ("model.safetensors", "after", 1),
        ("metrics.json", "before", 1),
        ("metrics.json", "after", 1),
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(undisturbed, tmp_path, name, moment, count):
    data, expected = undisturbed
    output = tmp_path / "out"
    arguments = ("--data", data, "--output", output, *QUICK, *LONGER)
    script = [sys.executable, "-c", KILLED_AT_A_RENAME, name, moment, count, *arguments]
    done = subprocess.run(
        list(map(str, script)), env=command_environment(), cwd=CHAPTER, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_folder_is_whole(output)
    assert resume(data, output) == expected
    check_folder_is_whole(output)


@needs_kill
@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2])
def test_a_run_killed_at_any_time_goes_on_to_the_same_result(undisturbed, tmp_path, pause):
    data, expected = undisturbed
    output = tmp_path / "out"
    arguments = ("--data", data, "--output", output, *QUICK, *LONGER)
    process = subprocess.Popen(
        [sys.executable, str(CHAPTER / "finetune.py"), *map(str, arguments)],
        env=command_environment(),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 100
    while not (output / "checkpoint.safetensors").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.wait()
    check_folder_is_whole(output)
    assert resume(data, output) == expected
    assert {path.suffix for path in output.iterdir()} == {".json", ".png", ".safetensors"}


def test_ctrl_c_says_how_to_go_on(messages_csv, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "train_classifier_simple", interrupted)
    arguments = ["--data", str(messages_csv), "--output", str(tmp_path / "out"), *QUICK]
    assert finetune.main(arguments) == 130
    assert "--resume" in capsys.readouterr().err
    monkeypatch.undo()
    train(messages_csv, tmp_path / "out", "--resume")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--learning-rate", "0.01"),
        ("--seed", "5"),
        ("--trainable", "all"),
        ("--precision", "bfloat16"),
    ],
)
def test_resuming_with_other_options_is_refused(messages_csv, tmp_path, capsys, option, value):
    output = tmp_path / "out"
    train(messages_csv, output)
    before = (output / "metrics.json").read_bytes()
    arguments = ("--data", messages_csv, "--output", output, *QUICK, option, value, "--resume")
    said = finetune_fails(capsys, *arguments)
    assert "--resume" in said
    assert option.strip("-").replace("-", "_") in said
    assert (output / "metrics.json").read_bytes() == before


def test_a_run_from_before_an_option_can_be_resumed(messages_csv, tmp_path):
    output = tmp_path / "out"
    expected = train(messages_csv, output)
    options = json.loads((output / "run.json").read_text(encoding="utf-8"))
    del options["precision"], options["pooling"]
    (output / "run.json").write_text(json.dumps(options), encoding="utf-8")
    assert train(messages_csv, output, "--resume") == expected


def test_resuming_with_other_data_is_refused(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    train(messages_csv, output)
    write_csv(messages_csv, made_up_messages(seed=1))
    arguments = ("--data", messages_csv, "--output", output, *QUICK, "--resume")
    said = finetune_fails(capsys, *arguments)
    assert "the messages are no longer those of the run" in said
    assert "data_sha256" not in said


def test_resuming_a_finished_run_says_so_and_changes_nothing(messages_csv, tmp_path, capsys):
    output = tmp_path / "out"
    train(messages_csv, output)
    before = {path: path.read_bytes() for path in output.iterdir()}
    capsys.readouterr()
    loud = [option for option in QUICK if option != "--quiet"]
    arguments = ["--data", messages_csv, "--output", output, *loud, "--resume"]
    assert finetune.main(list(map(str, arguments))) == 0
    said = capsys.readouterr().out
    assert "finished already" in said
    assert "MB at most" in said
    assert "n-gram baseline" in said
    assert {path: path.read_bytes() for path in output.iterdir()} == before


def test_resuming_where_nothing_is_says_so(messages_csv, tmp_path, capsys):
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", *QUICK, "--resume")
    assert "no run to go on with" in finetune_fails(capsys, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["run.json", "metrics.json", "checkpoint.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe{}", b"[" * 100_000], ids=lambda content: str(content[:9])
)
def test_resuming_from_a_damaged_file_names_it(messages_csv, tmp_path, capsys, name, content):
    output = tmp_path / "out"
    train(messages_csv, output)
    (output / name).write_bytes(content)
    arguments = ("--data", messages_csv, "--output", output, *QUICK, "--resume")
    said = finetune_fails(capsys, *arguments)
    assert str(output / name) in said
    assert "start anew" in said


# --- classify.py: where the texts come from ----------------------------------------------------


def give_standard_input(monkeypatch, raw: bytes) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="ascii", newline="\n")  # as Python's own
    monkeypatch.setattr(sys, "stdin", stdin)


def classified(capsys, *arguments) -> list[list[str]]:
    """Label, probability and text of each line that classify.py prints."""
    assert classify.main([str(argument) for argument in arguments]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_arguments_and_lines_get_the_same_answers(tiny_classifier_folder, capsys, monkeypatch):
    texts = ["free prize", "see you at home", "größer 🎉"]
    from_arguments = classified(capsys, tiny_classifier_folder, *texts)
    assert [row[2] for row in from_arguments] == texts
    for raw in (
        "free prize\n\n  \nsee you at home\ngrößer 🎉",
        "\ufefffree prize\r\n\r\nsee you at home\r\ngrößer 🎉\r\n",  # as Windows writes it
    ):
        give_standard_input(monkeypatch, raw.encode())
        assert classified(capsys, tiny_classifier_folder) == from_arguments
    classifier = open_classifier(tiny_classifier_folder)
    for (label, probability, _), row in zip(from_arguments, classify_texts(classifier, texts)):
        assert label == classifier.label_names[int(row.argmax())]
        assert float(probability) == pytest.approx(float(row.max()), abs=1e-4)


def test_many_lines_are_answered_in_order(tiny_classifier_folder, capsys, monkeypatch):
    lines = [f"message number {i} " + "word " * (i % 7) + "end" for i in range(600)]
    give_standard_input(monkeypatch, "\n".join(lines).encode())
    assert [row[2] for row in classified(capsys, tiny_classifier_folder)] == lines


def test_texts_may_follow_options(tiny_classifier_folder, capsys):
    expected = classified(capsys, tiny_classifier_folder, "one", "two", "--device", "cpu")
    assert classified(capsys, tiny_classifier_folder, "--device", "cpu", "one", "two") == expected


def test_nothing_on_standard_input_is_no_error(tiny_classifier_folder, capsys, monkeypatch):
    give_standard_input(monkeypatch, b"")
    assert classified(capsys, tiny_classifier_folder) == []


def test_standard_input_that_is_not_utf8_is_refused(tiny_classifier_folder, capsys, monkeypatch):
    give_standard_input(monkeypatch, "café\n".encode("latin-1"))
    assert "UTF-8" in classify_fails(capsys, tiny_classifier_folder)


@pytest.mark.parametrize("text", ["", " ", "<|endoftext|>", "x" * 100_000, "\0", "\ud83d"])
def test_odd_texts_get_a_label(tiny_classifier_folder, capsys, text):
    [[label, probability, shown]] = classified(capsys, tiny_classifier_folder, text)
    assert label in ("ham", "spam")
    assert 0.5 <= float(probability) <= 1
    assert shown == (text if text.isprintable() else text.encode("unicode_escape").decode())


def test_a_written_out_end_of_text_is_ordinary_text(tiny_classifier_folder):
    classifier = open_classifier(tiny_classifier_folder)
    literal, empty = classify_texts(classifier, ["<|endoftext|>", ""])
    assert not torch.allclose(literal, empty)


def test_control_characters_do_not_reach_the_terminal(tiny_classifier_folder, capsys):
    text = "\x1b[2Jgone\x07\ttab\nline\x9b\u202e\rover"
    [row] = classified(capsys, tiny_classifier_folder, text)
    assert len(row) == 3
    assert row[2] == r"\x1b[2Jgone\x07\ttab\nline\x9b\u202e\rover"


def test_labels_cannot_speak_to_the_terminal_either(tiny_classifier_folder, capsys):
    edit_json(tiny_classifier_folder / "config.json", label_names=["a\x1b[2J", "b\n\x1b[2J"])
    [row] = classified(capsys, tiny_classifier_folder, "hello")
    assert row[0] in (r"a\x1b[2J", r"b\n\x1b[2J")


def test_a_terminal_without_the_characters_gets_them_spelled_out(tiny_classifier_folder, tmp_path):
    script = ("classify.py", tiny_classifier_folder, "größer 🎉")
    done = run_command(*script, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\t")[2] == "gr\\xf6\\xdfer \\U0001f389\n"
    data, output = write_csv(tmp_path / "größer.csv", made_up_messages()), tmp_path / "out"
    script = ("finetune.py", "--data", data, "--output", output, *QUICK[:-1])
    done = run_command(*script, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfer.csv" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="the shell's head is needed")
def test_a_reader_of_the_output_may_leave_early(tiny_classifier_folder):
    lines = b"a message of some length\n" * 20_000
    command = [sys.executable, str(CHAPTER / "classify.py"), str(tiny_classifier_folder)]
    process = subprocess.Popen(
        command,
        env=command_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    try:
        _, stderr = process.communicate(lines, timeout=100)
    except ValueError:  # communicate does not like the closed pipe
        stderr = process.stderr.read()
        process.wait(100)
    assert b"Traceback" not in stderr
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("command", "options"),
    [("classify.py", "text"), ("classify.py", "file"), ("finetune.py", "train")],
)
def test_standard_output_that_is_full_is_a_failure_in_one_sentence(
    tiny_classifier_folder, messages_csv, tmp_path, command, options
):
    arguments = {
        "text": (tiny_classifier_folder, "hello"),
        "file": (tiny_classifier_folder, "--file", messages_csv),
        "train": ("--data", messages_csv, "--output", tmp_path / "out", *QUICK),
    }[options]
    done = run_with_output_to("/dev/full", command, *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{command}: [Errno 28] No space left")
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(("closed", "name"), [("<&-", "input"), (">&-", "output")])
def test_a_closed_stream_is_a_failure_in_one_sentence(tiny_classifier_folder, closed, name):
    command = f'"$0" "$@" {closed}'
    script = [sys.executable, str(CHAPTER / "classify.py"), str(tiny_classifier_folder)]
    done = subprocess.run(
        ["sh", "-c", command, *script],
        env=command_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"classify.py: standard {name} is closed; ")
    assert done.stderr.count("\n") == 1


def run_with_output_to(path: str, script: str, *arguments):
    """A command of this folder, to its end, with its standard output sent to a file."""
    with open(path, "w") as output:
        return subprocess.run(
            [sys.executable, str(CHAPTER / script), *map(str, arguments)],
            env=command_environment(),
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )


def run_out_of_memory(*_, **__):
    torch.empty(2**50)  # more than any address space


def test_memory_that_ends_is_a_failure_in_one_sentence(
    messages_csv, tiny_classifier_folder, capsys, monkeypatch
):
    monkeypatch.setattr(finetune, "run", run_out_of_memory)
    assert "smaller --batch-size" in finetune_fails(capsys, "--data", messages_csv, status=1)
    monkeypatch.setattr(classify, "classify_texts", run_out_of_memory)
    assert "out of memory" in classify_fails(capsys, tiny_classifier_folder, "hello", status=1)


def test_a_csv_file_goes_in_and_a_csv_file_comes_out(tiny_classifier_folder, tmp_path, capsys):
    texts = ['a "quoted", cell', "two\nlines", "None", "", "see you at home tonight", "größer"]
    table = pd.DataFrame({"id": [f"{i:03}" for i in range(6)], "body": texts, "x": "NA"})
    table.to_csv(tmp_path / "in.csv", index=False)
    output = tmp_path / "out.csv"
    arguments = (tiny_classifier_folder, "--file", tmp_path / "in.csv")
    assert classified(capsys, *arguments, "--output", output) == []
    result = pd.read_csv(output, dtype=str, keep_default_na=False)
    assert list(result.columns) == ["id", "body", "x", "predicted_label", "probability"]
    assert result["body"].tolist() == texts
    assert result["id"].tolist() == table["id"].tolist()
    assert set(result["x"]) == {"NA"}
    classifier = open_classifier(tiny_classifier_folder)
    best = classify_texts(classifier, texts).max(dim=1)
    assert result["predicted_label"].tolist() == [classifier.label_names[i] for i in best.indices]
    assert result["probability"].astype(float).tolist() == pytest.approx(
        best.values.tolist(), abs=1e-4
    )
    assert not list(tmp_path.glob("*.partial"))

    assert classify.main([*map(str, arguments), "--text-column", "body"]) == 0
    assert capsys.readouterr().out == output.read_bytes().decode().replace("\r\n", "\n")


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_other_files_are_classified_alike(tiny_classifier_folder, tmp_path, capsys, ending):
    table = pd.DataFrame({"id": [1, 2, 3], "body": ["free prize", "see you", "at home"]})
    path = tmp_path / f"in.{ending}"
    if ending == "tsv":
        table.to_csv(path, sep="\t", index=False)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    rows = classified(capsys, tiny_classifier_folder, "--file", path)
    direct = classified(capsys, tiny_classifier_folder, *table["body"])
    expected = [f"{i},{text},{label}" for i, (label, _, text) in enumerate(direct, start=1)]
    assert rows[0] == ["id,body,predicted_label,probability"]
    assert [row[0].rpartition(",")[0] for row in rows[1:]] == expected


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--file", "absent.csv"), ["absent.csv", "no such file"]),
        (("--file", "in.csv", "--text-column", "txt"), ["in.csv", "'txt'", "'id', 'body'"]),
        (("--file", "in.csv", "a text"), ["not both"]),
        (("a text", "--output", "out.csv"), ["--output", "--file"]),
        (("--file", "in.csv", "--output", "./in.csv"), ["--output is --file itself"]),
        (("a text", "--text-column", "body"), ["--text-column", "--file"]),
        (("a text", "--text-column", ""), ["--text-column", "--file"]),
        (("--file", "again.csv", "--output", "out.csv"), ["again.csv", "'probability'", "rename"]),
        (("--file", "in.xlsx"), ["in.xlsx", "must end in"]),
        (("--file", "empty.csv"), ["empty.csv", "is empty"]),
        (("--file", "header.csv"), ["header.csv", "no rows"]),
        (("--file", "latin1.csv"), ["latin1.csv", "UTF-8"]),
        (("--device", "tpu", "a text"), ["--device", "'tpu'"]),
    ],
)
def test_classify_names_what_is_wrong(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch, arguments, parts
):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("id,body\n1,hello\n", encoding="utf-8")
    Path("again.csv").write_text("body,probability\nhello,1\n", encoding="utf-8")
    Path("empty.csv").write_bytes(b"")
    Path("header.csv").write_text("id,body\n", encoding="utf-8")
    Path("latin1.csv").write_bytes("body\ncafé\n".encode("latin-1"))
    said = classify_fails(capsys, tiny_classifier_folder, *arguments)
    for part in parts:
        assert part in said
    assert not Path("out.csv").exists()


def test_an_output_file_that_cannot_be_written_is_named(tiny_classifier_folder, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("body\nhello\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    arguments = (tiny_classifier_folder, "--file", tmp_path / "in.csv", "--output")
    assert "out.csv" in classify_fails(capsys, *arguments, tmp_path / "absent" / "out.csv")
    assert "folder" in classify_fails(capsys, *arguments, tmp_path / "folder")
    with file_size_limit(10):
        said = classify_fails(capsys, *arguments, tmp_path / "out.csv", status=1)
    assert said.count("\n") <= 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "folder", "in.csv"]


def test_ctrl_c_ends_classify_quietly(tiny_classifier_folder, capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(classify, "standard_input_lines", interrupted)
    assert classify.main([str(tiny_classifier_folder)]) == 130
    assert capsys.readouterr().err == ""


# --- classify.py: folders that cannot be used --------------------------------------------------


@pytest.mark.parametrize("missing", ["folder", "config.json", "model.safetensors"])
def test_a_folder_that_is_none_is_named(tiny_classifier_folder, tmp_path, capsys, missing):
    folder = tiny_classifier_folder
    if missing == "folder":
        folder = tmp_path / "absent"
    else:
        (folder / missing).unlink()
    said = classify_fails(capsys, folder, "hello")
    assert str(folder) in said
    assert "not a classifier folder" in said


def rehash(folder: Path) -> None:
    """Make config.json vouch for the weights as they are: a lie that the checksum cannot tell."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit_json(folder / "config.json", weights_sha256=digest)


@pytest.mark.parametrize("vouched_for", [False, True])
@pytest.mark.parametrize("how", ["truncated", "random", "empty", "foreign", "one byte"])
def test_damaged_weights_are_named(tiny_classifier_folder, capsys, how, vouched_for):
    weights = tiny_classifier_folder / "model.safetensors"
    raw = weights.read_bytes()
    if how == "foreign":
        save_file({"conv.weight": torch.zeros(3)}, weights)
    elif how == "one byte":
        if vouched_for:
            pytest.skip("other weights of the right shape are a classifier")
        weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    else:
        content = {"truncated": raw[:-7], "random": os.urandom(5000), "empty": b""}[how]
        weights.write_bytes(content)
    if vouched_for:
        rehash(tiny_classifier_folder)
    said = classify_fails(capsys, tiny_classifier_folder, "hello")
    assert str(weights) in said
    assert "config.json" in said


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"label_names": ["a", "b", "c"]}, ["model.safetensors", "out_head"]),
        ({"label_names": ["a"]}, ["label_names"]),
        ({"label_names": ["a", "a"]}, ["label_names", "different"]),
        ({"label_names": "ham"}, ["label_names"]),
        ({"label_names": [1, 2]}, ["label_names"]),
        ({"max_length": 0}, ["max_length=0", "32"]),
        ({"max_length": 33}, ["max_length=33", "32"]),
        ({"max_length": "32"}, ["max_length='32'"]),
        ({"max_length": None}, ["max_length=None"]),
        ({"pooling": "first"}, ["pooling='first'", "last_real, mean"]),
        ({"pooling": []}, ["pooling=[]", "last_real, mean"]),
        ({"model": "gpt5"}, ["'gpt5'", "gpt-mini"]),
        ({"model": 5}, ["model"]),
        ({"format": "something else"}, ["does not describe a classifier"]),
        ({"weights_sha256": "0" * 64}, ["checksum"]),
        ({"architecture": {}}, ["model.safetensors"]),
        ({"architecture": []}, ["config.json"]),
        ({"architecture": {"layers": 3}}, ["config.json", "layers"]),
        ({"architecture": {"\x1b[2J": 3}}, ["config.json", r"\x1b[2J"]),
        ({"vocab_size": 1000}, ["model.safetensors", "vocab_size=1000", "4096"]),
        ({"vocab_size": 10**18}, [f"vocab_size={10**18}"]),
        ({"emb_dim": 32}, ["model.safetensors", "emb_dim=32", "16"]),
        ({"emb_dim": 10**10}, [f"emb_dim={10**10}"]),
        ({"emb_dim": 15}, ["emb_dim=15", "num_heads=2"]),
        ({"emb_dim": -16}, ["emb_dim=-16"]),
        ({"emb_dim": "16"}, ["emb_dim='16'"]),
        ({"num_layers": 1}, ["num_layers=1 there, 2 in the weights"]),
        ({"num_layers": 10**9}, [f"num_layers={10**9}"]),
        ({"num_heads": 4}, ["num_heads=4 there, 2 in the weights"]),
        ({"context_length": 64}, ["context_length=64", "32"]),
        ({"drop_rate": 2}, ["drop_rate=2"]),
    ],
    ids=str,
)
def test_a_lying_config_is_named(tiny_classifier_folder, capsys, changes, parts):
    path = tiny_classifier_folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if changes.keys() <= config["architecture"].keys():
        changes = {"architecture": config["architecture"] | changes}
    edit_json(path, **changes)
    said = classify_fails(capsys, tiny_classifier_folder, "hello")
    assert "\x1b" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize("field", ["architecture", "label_names", "max_length", "weights_sha256"])
def test_a_missing_field_is_named(tiny_classifier_folder, capsys, field):
    path = tiny_classifier_folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config[field]
    path.write_text(json.dumps(config), encoding="utf-8")
    said = classify_fails(capsys, tiny_classifier_folder, "hello")
    assert str(path) in said
    assert field in said


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", os.urandom(100), b"[" * 100_000],
    ids=lambda content: str(content[:9]),
)
def test_a_config_that_is_not_json_is_named(tiny_classifier_folder, capsys, content):
    path = tiny_classifier_folder / "config.json"
    path.write_bytes(content)
    assert str(path) in classify_fails(capsys, tiny_classifier_folder, "hello")


def test_a_tokenizer_that_does_not_fit_is_named(tiny_classifier_folder, capsys, monkeypatch):
    edit_json(tiny_classifier_folder / "config.json", model="gpt2-small (124M)")
    try:
        gpt_download.load_tokenizer("gpt2-small")
    except gpt_download.DownloadError as error:
        pytest.skip(str(error).splitlines()[0])
    said = classify_fails(capsys, tiny_classifier_folder, "hello")
    for part in ("config.json", "vocab_size=4096", "50257"):
        assert part in said


def test_a_tokenizer_that_cannot_be_had_is_a_failure(
    tiny_classifier_folder, capsys, monkeypatch, tmp_path
):
    edit_json(tiny_classifier_folder / "config.json", model="gpt2-small (124M)")
    monkeypatch.setenv("CH06_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(gpt_download.hub_constants, "is_offline_mode", lambda: True)
    said = classify_fails(capsys, tiny_classifier_folder, "hello", status=1)
    assert "SHA-256" in said
    assert "place: " in said
