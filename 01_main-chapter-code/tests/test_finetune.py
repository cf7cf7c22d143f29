"""finetune.py as a reader runs it: options, bad input, and bad luck."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import (
    made_up_messages,
    run_command,
    write_csv,
)
from safetensors.torch import load_file

import fine_tuning
import finetune
import gpt_download
import run_messages
from classifier_folder import classify_texts, open_classifier
from files import file_sha256
from message_files import DataError
from run_config import SMS_NAME, RunConfig
from run_messages import read_run_messages
from training import History, TrainConfig

QUICK = ("--model", "gpt-mini", "--continued-pretraining-epochs", "0", "--trainable", "head")
QUICK += ("--num-epochs", "1", "--quiet")


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


def outcome(metrics: dict, output: Path) -> dict:
    """All that a run leads to, but for the times: metrics, history and weights."""
    kept = {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mb")}
    return kept | {"weights_sha256": file_sha256(output / "model.safetensors")}


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
            assert path.suffix in (".partial", ".lock"), path
    if (folder / "config.json").exists():
        open_classifier(folder)


def fails(capsys, *arguments, status: int = 2) -> str:
    """What is said about a run that fails: one sentence that starts with the command's name."""
    try:
        got = finetune.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        got = error.code
    assert got == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "finetune.py: " in said
    return said


# --- from start to finish ----------------------------------------------------------------------


def test_the_two_commands_in_turn(messages_csv, tmp_path):
    """As in the README: fine-tune, then classify with the folder that was written."""
    output = tmp_path / "my classifier"
    options = ("--model", "gpt-mini", "--num-epochs", 20, "--output", output)
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
        *("config.json", "metrics.json", "model.safetensors"),
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
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent():
    held = b"x" * 1_000_000_000
    code = "import fine_tuning; print(fine_tuning.peak_memory_mb())"
    folder = Path(finetune.__file__).parent
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=folder, text=True)
    assert 50 < float(printed) < len(held) / 1e6


@pytest.mark.parametrize("options", [(), ("--pooling", "mean"), ("--padding", "training")])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_saved_classifier_is_the_one_that_was_measured(
    unbalanced_csv, tmp_path, options, precision
):
    """The last evaluation and classifying compute in float32, whatever the training rounded."""
    options = ("--trainable", "all", "--precision", precision, *options)
    metrics = train(unbalanced_csv, tmp_path / "out", *options)
    config = RunConfig(data=unbalanced_csv, text_column="text", label_column="label", quiet=True)
    test = read_run_messages(config, lambda *_: None).splits.test
    probabilities = classify_texts(*open_classifier(tmp_path / "out"), list(test["text"]))
    measured = torch.tensor(metrics["test_predictions"]["probabilities"])
    torch.testing.assert_close(probabilities, measured, atol=1e-5, rtol=0)


def test_a_merged_lora_run_opens_as_an_ordinary_classifier(unbalanced_csv, tmp_path):
    options = ("--trainable", "lora", "--lora-rank", "2", "--learning-rate", "0.01")
    metrics = train(unbalanced_csv, tmp_path / "out", *options)
    classifier, _ = open_classifier(tmp_path / "out")
    assert not any("lora" in name.lower() for name, _ in classifier.named_parameters())
    plain = train(unbalanced_csv, tmp_path / "head")
    assert metrics["test_predictions"] != plain["test_predictions"]


@pytest.mark.parametrize("ending", ["tsv", "jsonl", "parquet"])
def test_every_format_trains_the_same_classifier(messages_csv, tmp_path, ending):
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


def test_any_labels_and_any_number_of_them(tmp_path):
    names = ["10", "9", "-1"]
    rows = [(text, names[i % 3]) for i, (text, _) in enumerate(made_up_messages())]
    metrics = train(write_csv(tmp_path / "m.csv", rows), tmp_path / "out")
    assert metrics["labels"] == ["-1", "9", "10"]  # by number, not by alphabet
    assert len(metrics["test"]["confusion_matrix"]) == 3


def test_six_texts_are_enough_for_two_labels(tmp_path):
    metrics = train(write_csv(tmp_path / "m.csv", made_up_messages(3)), tmp_path / "out")
    assert [metrics[part]["num_examples"] for part in ("train", "validation", "test")] == [2, 2, 2]


def test_no_baseline_where_it_would_take_all_memory(messages_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "MAX_BASELINE_SIZE", 2 * 42 - 1)
    assert train(messages_csv, tmp_path / "out")["ngram_baseline"] is None


def test_labels_in_other_scripts_and_with_odd_signs(tmp_path):
    names = ["größe\x1b[31m", "100% \\ off"]
    rows = [(text, names[label == "spam"]) for text, label in made_up_messages()]
    metrics = train(write_csv(tmp_path / "m.csv", rows), tmp_path / "out")
    assert metrics["labels"] == sorted(names)


def test_a_very_long_text_is_cut_and_said(tmp_path, capsys):
    rows = [*made_up_messages(), *(("free prize " * 10_000 + str(i), "spam") for i in range(8))]
    path = write_csv(tmp_path / "m.csv", rows)
    arguments = ["--data", path, "--output", tmp_path / "out", *QUICK[:-1], "--max-length", "20"]
    assert finetune.main([*map(str, arguments), "--balance", "none"]) == 0
    assert "longer than 20 tokens" in capsys.readouterr().out


def test_without_data_or_network_made_up_messages_are_marked(tmp_path, monkeypatch, capsys):
    def nothing():
        raise gpt_download.DownloadError("no network")

    monkeypatch.setattr(run_messages, "read_sms_spam", nothing)
    arguments = ["--output", str(tmp_path / "out"), *QUICK[:-1]]
    assert finetune.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("mean nothing") == 2  # before the run, and below its metrics
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["card"]["made_up_data"] is True


# --- every option acts -------------------------------------------------------------------------

BASE = ("--trainable", "last_block", "--num-epochs", "2", "--balance", "none")


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


def observe(data: Path, output: Path, *options) -> dict:
    """All that a run with these options leads to."""
    torch.set_num_threads(1)
    return outcome(train(data, output, *BASE, *options), output)


@pytest.fixture(scope="module")
def base_run(unbalanced_csv, tmp_path_factory):
    return observe(unbalanced_csv, tmp_path_factory.mktemp("base") / "out")


def test_the_same_command_gives_the_same_result(base_run, unbalanced_csv, tmp_path):
    assert observe(unbalanced_csv, tmp_path) == base_run


# Options that only training.py reads are tested there.
@pytest.mark.parametrize(
    "options",
    [
        ("--text-column", "subject", "--label-column", "label"),
        ("--text-column", "text", "--label-column", "parity"),
        ("--balance", "weights"),
        ("--balance", "undersample"),
        ("--augment", "1"),
        ("--train-size", "20"),
        ("--max-length", "4"),
        ("--padding", "training"),
        ("--padding", "context"),
        ("--weights", "random"),
        ("--continued-pretraining-epochs", "1"),
        ("--trainable", "head"),
        ("--trainable", "2"),
        ("--trainable", "lora"),
        ("--pooling", "mean"),
        ("--pooling", "first"),
        ("--no-causal",),
        ("--micro-batch-size", "1", "--dropout", "0.2"),
        ("--max-grad-norm", "0.1"),
        ("--precision", "bfloat16"),
        ("--seed", "7"),
    ],
    ids=" ".join,
)
def test_an_option_acts(base_run, unbalanced_csv, tmp_path, options):
    changed = observe(unbalanced_csv, tmp_path, *options)
    assert changed["weights_sha256"] != base_run["weights_sha256"]
    assert changed["history"] != base_run["history"]


def test_some_options_act_on_the_numbers_of_messages(base_run, unbalanced_csv, tmp_path):
    assert base_run["train"]["num_examples"] == 63
    augmented = observe(unbalanced_csv, tmp_path / "a", "--augment", "2")
    assert augmented["train"]["num_examples"] == 3 * 63
    assert augmented["test"]["num_examples"] == base_run["test"]["num_examples"]
    few = observe(unbalanced_csv, tmp_path / "few", "--train-size", "20")
    assert few["train"]["num_examples"] == 20
    balanced = observe(unbalanced_csv, tmp_path / "b", "--balance", "undersample")
    assert balanced["train"]["num_examples"] == 42
    short = observe(unbalanced_csv, tmp_path / "c", "--max-length", "4")
    assert (short["max_length"], base_run["max_length"] > 4) == (4, True)


def test_continued_pretraining_reads_nothing_that_is_validated_or_tested_on(unbalanced_csv):
    config = RunConfig(data=unbalanced_csv, text_column="text", label_column="label")
    messages = read_run_messages(config, lambda *_: None)
    assert len(messages.unlabelled) == 42 + 30  # of 60 ham, as many as there are spam were kept
    held_out = {*messages.splits.validation["text"], *messages.splits.test["text"]}
    assert held_out.isdisjoint(messages.unlabelled)


def test_what_suits_a_model_fills_in_what_is_not_given():
    def epochs(name: str, **options):
        return RunConfig(**options).for_model(name).continued_pretraining_epochs

    assert epochs("gpt-mini") > 0
    assert epochs("gpt-mini", weights="random") == 0
    assert epochs("gpt2-small (124M)") == 0
    assert epochs("gpt2-small (124M)", continued_pretraining_epochs=3) == 3
    assert epochs("gpt-mini", continued_pretraining_epochs=0) == 0


def test_the_protocol_chooses_the_split():
    try:
        gpt_download.fetch(gpt_download.SMS_SPAM_ZIP)
    except gpt_download.DownloadError as error:
        pytest.skip(str(error).splitlines()[0])
    repeated = {}
    for protocol in ("clean", "published"):
        messages = read_run_messages(RunConfig(protocol=protocol), lambda *_: None)
        assert messages.label_names == ["ham", "spam"]
        assert SMS_NAME in messages.name
        splits = messages.splits
        repeated[protocol] = set(splits.train["text"]) & set(splits.test["text"])
    assert repeated["clean"] == set()
    assert len(repeated["published"]) > 20  # the messages that flatter the published figures


def test_quiet_prints_the_results_only(messages_csv, tmp_path, capsys):
    arguments = ["--data", messages_csv, "--text-column", "text", "--label-column", "label"]
    arguments += ["--output", tmp_path / "out", *QUICK]
    assert finetune.main(list(map(str, arguments))) == 0
    quiet = capsys.readouterr()
    assert "test, n-gram baseline" in quiet.out
    assert quiet.err == ""
    arguments[-1] = "--overwrite"
    assert finetune.main(list(map(str, arguments))) == 0
    assert len(capsys.readouterr().out) > len(quiet.out)


def test_the_default_model_is_asked_for_only_where_none_is_named(
    messages_csv, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(fine_tuning, "default_model_name", lambda _: asked.append(1) or "gpt-mini")
    train(messages_csv, tmp_path / "named")
    assert asked == []
    assert train(messages_csv, tmp_path / "auto", "--model", "auto")["model"] == "gpt-mini"
    assert asked == [1]


# --- wrong options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--modle", "x"), ["--modle"]),
        (("--model", "gpt5"), ["'gpt5'", "gpt-mini", "gpt2-small"]),
        (("--trainable", "none"), ["--trainable", "'none'"]),
        (("--balance", "over"), ["--balance", "undersample", "weights"]),
        (("--device", "tpu"), ["--device", "'tpu'", "cpu"]),
        (("--protocol", "mine"), ["--protocol", "published"]),
        (("--protocol", "published"), ["--protocol", "--data"]),
        (("--num-epochs", "0"), ["--num-epochs", "0", "at least 1"]),
        (("--num-epochs", "1.5"), ["--num-epochs", "'1.5'", "whole number"]),
        (("--learning-rate", "0"), ["--learning-rate", "above 0"]),
        (("--learning-rate", "nan"), ["--learning-rate", "nan"]),
        (("--learning-rate", "inf"), ["--learning-rate", "finite"]),
        (("--learning-rate", "1e30"), ["--learning-rate", "diverged", "smaller"]),
        (("--weight-decay", "-1"), ["--weight-decay", "at least 0"]),
        (("--dropout", "1"), ["--dropout", "below 1"]),
        (("--dropout", "0.1", "--trainable", "head"), ["--dropout", "--trainable head"]),
        (("--balance", "weights", "--batch-size", "1"), ["--balance", "at least 2"]),
        (("--protocol", "published", "--balance", "none"), ["--protocol", "--balance none"]),
        (("--warmup-ratio", "1"), ["--warmup-ratio", "below 1"]),
        (("--max-grad-norm", "0"), ["--max-grad-norm", "above 0"]),
        (("--seed", "4294967296"), ["--seed", "between 0 and"]),
        (("--max-length", "0"), ["--max-length", "at least 1"]),
        (("--lora-rank", "4"), ["--lora-rank", "--trainable lora"]),
        (("--padding", "training", "--pooling", "mean"), ["--padding", "--pooling last"]),
        (("--resume", "--overwrite"), ["--resume", "--overwrite"]),
        (("--trainable", "7"), ["trainable=7", "from 0 to 6"]),
        (("--max-length", "513"), ["--max-length", "513", "512"]),
        (("--text-column", "txt"), ["messages.csv", "'txt'", "'text', 'label'"]),
        (("--label-column", "lbl"), ["messages.csv", "'lbl'", "'text', 'label'"]),
        (("--label-column", ""), ["messages.csv", "''", "'text', 'label'"]),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named(messages_csv, tmp_path, capsys, options, parts):
    output = tmp_path / "out"
    said = fails(capsys, "--data", messages_csv, "--output", output, *QUICK, *options)
    for part in parts:
        assert part in said
    assert not (output / "config.json").exists()


def test_an_absent_device_is_named(messages_csv, tmp_path, capsys):
    absent = next(
        name
        for name in ("mps", "cuda")
        if not getattr(torch.backends, name).is_built()
        or not {"mps": torch.backends.mps, "cuda": torch.cuda}[name].is_available()
    )
    arguments = ("--data", messages_csv, "--output", tmp_path / "out", "--device", absent)
    assert f"'{absent}'" in fails(capsys, *arguments)


@pytest.mark.parametrize("where", ["step_losses", "train_loss", "validation_loss"])
def test_divergence_is_seen_wherever_it_shows(where):
    history = History(step_losses=[1.0], train_loss=[1.0], validation_loss=[1.0])
    fine_tuning.raise_if_diverged(history, TrainConfig())
    getattr(history, where).append(float("nan"))
    with pytest.raises(DataError, match="diverged"):
        fine_tuning.raise_if_diverged(history, TrainConfig())


def test_columns_without_a_file_are_refused(tmp_path, capsys):
    for name in ("text", ""):
        said = fails(capsys, "--text-column", name, "--output", tmp_path / "out", *QUICK)
        assert "--data" in said


def test_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    said = capsys.readouterr().out
    for part in ("default: 5", "default: classifier", "--text-column", "gpt2-small", "last_block"):
        assert part in said
    for part in ("None", "default: False", "default: True"):
        assert part not in said


# --- wrong data --------------------------------------------------------------------------------


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
    said = fails(capsys, "--data", path, "--output", output, *QUICK, *columns)
    for part in ("bad.csv", *parts):
        assert part in said
    assert not output.exists()


def test_a_process_that_fails_leaves_with_the_status_and_no_traceback(tmp_path):
    done = run_command("finetune.py", "--data", tmp_path / "absent.csv")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "absent.csv: there is no such file" in done.stderr
