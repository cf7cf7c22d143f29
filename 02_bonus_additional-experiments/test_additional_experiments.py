"""The experiments: every option acts, the whole suite runs and resumes, tables are in step.

Everything runs on a tiny model and the made-up messages; no figure from here is reported.
"""

import dataclasses
import json
import shlex

import additional_experiments as experiments
import make_tables
import numpy as np
import pandas as pd
import pytest
import suites
import torch

import finetune
from gpt_download import load_mini_tokenizer
from message_files import DataError
from previous_chapters import GPTConfig, GPTModel
from text_data import clean_messages, read_sample_messages, split_messages

TINY = GPTConfig(vocab_size=4096, context_length=96, emb_dim=16, num_heads=2, num_layers=6)


def few_messages():
    """90 ham and 50 spam, of which some come twice."""
    messages = read_sample_messages().groupby("label").head(90)
    spam = messages[messages["label"] == "spam"].head(45)
    ham = messages[messages["label"] == "ham"].head(85)
    repeated = messages.groupby("label").head(5)
    mixed = pd.concat([ham, spam, repeated]).sample(frac=1, random_state=0)
    return mixed.reset_index(drop=True)


def tiny_model(args, device):
    torch.manual_seed(args.seed if args.weights == "random" else 12345)
    model = GPTModel(TINY)
    with torch.no_grad():  # random layers that change little would hide what options do
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval(), load_mini_tokenizer(), "gpt-mini"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(experiments, "load_model", tiny_model)
    monkeypatch.setattr(finetune, "default_model_name", lambda *_: "gpt-mini")
    monkeypatch.setattr(experiments, "read_sms_spam", few_messages)
    monkeypatch.setattr(
        experiments, "published_splits", lambda: split_messages(clean_messages(few_messages()), 9)
    )


def measure(options: str, reuse=None) -> dict:
    arguments = shlex.split(options)
    if "--classifier" not in options:
        arguments = ["--epochs", "1", *arguments]
    return experiments.run(experiments.parse_args([*arguments, "--quiet"]), reuse)


@pytest.fixture(scope="module")
def base() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "load_model", tiny_model)
        patch.setattr(experiments, "read_sms_spam", few_messages)
        return measure("")


def scores(result: dict) -> np.ndarray:
    return experiments.unpack(result["predictions"]["spam_probability"])


# ---------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--weights random",
        "--pretrain_further 1",
        "--trainable_layers head",
        "--trainable_layers last_two_blocks",
        "--trainable_layers all",
        "--trainable_layers 3",
        "--trainable_layers lora --learning_rate 1e-2",
        "--ensemble",
        "--trainable_token_pos last",
        "--trainable_token_pos first",
        "--trainable_token_pos mean",
        "--average_embeddings",
        "--trainable_token_pos last --context_length model",
        "--no_padding",
        "--disable_causal_mask",
        "--balance weights",
        "--balance none",
        "--augment 1",
        "--train_fraction 0.5",
        "--epochs 2",
        "--batch_size 4",
        "--accumulation_steps 2",
        "--learning_rate 1e-2",
        "--schedule constant",
        "--warmup_share 0.5",
        "--weight_decay 50",
        "--dropout 0.5",
        "--label_smoothing 0.5",
        "--ignore_index 1",
    ],
)
def test_an_option_changes_the_answers_to_the_same_messages(base, options):
    result = measure(options)
    assert result["predictions"]["test_texts_crc32"] == base["predictions"]["test_texts_crc32"]
    assert np.abs(scores(result) - scores(base)).max() > 1e-7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--trainable_layers lora --lora_rank 2", "--trainable_layers lora --lora_rank 4"),
        ("--trainable_layers lora --lora_alpha 2", "--trainable_layers lora --lora_alpha 64"),
        ("--balance weights", "--balance none"),
        ("--trainable_token_pos last", "--trainable_token_pos last --context_length model"),
        ("--no_padding", "--no_padding --accumulation_steps 4"),
        ("--classifier char_ngrams", "--classifier char_ngrams --balance weights"),
        ("--classifier char_ngrams", "--classifier char_ngrams --train_fraction 0.3"),
        ("--classifier char_ngrams", "--classifier char_ngrams --augment 1"),
        ("--classifier word_ngrams", "--classifier naive_bayes"),
        ("--classifier char_svm", "--classifier majority"),
    ],
)
def test_two_settings_differ(one, other):
    assert np.abs(scores(measure(one)) - scores(measure(other))).max() > 1e-9


@pytest.mark.parametrize("option", ["--protocol almeida --balance none", "--protocol published"])
def test_a_protocol_has_its_own_test_messages(base, option):
    result = measure(option)
    assert result["predictions"]["test_texts_crc32"] != base["predictions"]["test_texts_crc32"]


def test_a_seed_has_its_own_split_and_repeats_itself(base):
    assert scores(measure("")).tolist() == scores(base).tolist()
    other = measure("--seed 2")
    assert other["predictions"]["test_texts_crc32"] != base["predictions"]["test_texts_crc32"]


def test_padding_costs_positions_and_changes_no_answer_at_the_last_real_token(base):
    positions = {"": base["positions_per_epoch"]}
    for options in ("--context_length longest_in_training", "--context_length model"):
        result = measure(options)
        positions[options] = result["positions_per_epoch"]
        np.testing.assert_allclose(scores(result), scores(base), atol=1e-5)
    in_batch, in_training, in_model = positions.values()
    assert in_batch < in_training < in_model
    assert measure("--no_padding")["positions_per_epoch"] < in_batch


def test_an_index_that_no_label_has_is_ignored_without_a_trace(base):
    assert scores(measure("--ignore_index 4095")).tolist() == scores(base).tolist()


def test_average_embeddings_is_the_mean():
    mean = measure("--trainable_token_pos mean")
    assert scores(measure("--average_embeddings")).tolist() == scores(mean).tolist()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--lora_rank 4", "lora_rank"),
        ("--trainable_layers head --dropout 0.1", "--dropout"),
        ("--no_padding --batch_size 8", "--batch_size"),
        ("--no_padding --context_length model", "--context_length"),
        ("--balance weights --batch_size 1", "leave out --no_padding and --batch_size 1"),
        ("--balance weights --no_padding --accumulation_steps 8", "among the messages of a batch"),
        ("--trainable_token_pos last --context_length longest_in_batch", "other messages"),
        ("--protocol published --balance weights", "--balance"),
        ("--classifier naive_bayes --balance weights", "class weights"),
        ("--classifier char_ngrams --ensemble", "--ensemble"),
        ("--classifier char_ngrams --dropout 0.5", "--dropout does nothing"),
        ("--trainable_layers 7", "6 blocks"),
        ("--suite main --epochs 1", "--epochs"),
        ("--seeds 1 2", "--seeds belongs to --suite"),
    ],
)
def test_options_without_effect_are_refused(options, complaint, tmp_path, capsys):
    arguments = [*shlex.split(options), "--quiet"]
    if "--suite" not in options:
        arguments += ["--results", str(tmp_path)]
    assert experiments.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainable_layers", "some"],
        ["--train_fraction", "0"],
        ["--suite", "none"],
        ["--average_embeddings", "--trainable_token_pos", "first"],
    ],
)
def test_wrong_options_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        experiments.parse_args(arguments)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------


def read(options: str):
    return experiments.read_splits(experiments.parse_args(shlex.split(options)))


def test_all_ham_is_added_to_the_training_messages_and_to_nothing_else():
    balanced, texts = read("")
    everything, same_texts = read("--balance weights")
    assert everything.test.equals(balanced.test)
    assert everything.validation.equals(balanced.validation)
    assert set(balanced.train["text"]) < set(everything.train["text"]) == set(texts)
    assert texts == same_texts
    kept_back = set(balanced.test["text"]) | set(balanced.validation["text"])
    assert not kept_back & set(texts)
    added = everything.train[~everything.train["text"].isin(balanced.train["text"])]
    assert set(added["label"]) == {"ham"}


def test_the_papers_protocol_cuts_the_file_in_its_order():
    messages, (splits, texts) = few_messages(), read("--protocol almeida --balance none")
    cut = round(0.3 * len(messages))
    assert splits.train["text"].tolist() == messages["text"].tolist()[:cut] == texts
    assert splits.test["text"].tolist() == messages["text"].tolist()[cut:]
    repeated = experiments.is_repeated(splits)
    seen = set(texts)
    for text, flag in zip(splits.test["text"], repeated):
        assert flag == (text in seen)
        seen.add(text)
    assert repeated.any()


def test_a_share_of_the_training_messages_keeps_both_labels():
    splits, _ = read("--train_fraction 0.05")
    whole, _ = read("")
    assert splits.train["label"].nunique() == 2
    assert len(splits.train) == max(2, round(0.05 * len(whole.train)))
    assert set(splits.train["text"]) < set(whole.train["text"])


@pytest.mark.parametrize("share", ["1", "0.9999", "0.985"])  # of 64; the last leaves one out
def test_a_share_that_leaves_too_few_takes_all(share):
    whole, _ = read("")
    assert len(whole.train) == 64
    splits, _ = read(f"--train_fraction {share}")
    assert splits.train.equals(whole.train)


def test_figures_name_what_the_paper_names():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]])
    figures = experiments.figures(probabilities, np.array([0, 0, 1, 1]))
    assert figures["ham_blocked"] == figures["spam_caught"] == figures["accuracy"] == 0.5
    assert figures["roc_area"] == 0.5


# ---------------------------------------------------------------------------------------------
# Runs and suites
# ---------------------------------------------------------------------------------------------


def test_an_average_of_two_rows_is_what_the_option_ensemble_measures(base):
    pair = []
    for row, options in ((suites.KNOWN[0], ""), (suites.BASELINES[3], "--classifier char_ngrams")):
        pair.append(make_tables.Measured(row, [measure(options)]))
    averaged = make_tables.average(*pair).runs[0]
    together = measure("--ensemble")
    np.testing.assert_allclose(scores(averaged), scores(together), atol=1e-6)
    for name in ("accuracy", "mcc", "roc_area"):
        assert averaged["test"][name] == pytest.approx(together["test"][name])


@pytest.mark.parametrize(
    "options",
    ["", "--trainable_layers head", "--disable_causal_mask", "--trainable_token_pos last"],
)
def test_reused_frozen_layers_change_nothing(options):
    reuse = experiments.Reuse()
    measure(f"{options} --train_fraction 0.4", reuse)
    again = measure(options, reuse)
    np.testing.assert_allclose(scores(again), scores(measure(options)), atol=1e-5)


def test_a_command_gives_the_configuration_back():
    options = "--row x --trainable_layers lora --lora_rank 4 --no_padding --average_embeddings"
    args = experiments.parse_args(shlex.split(options))
    script, *arguments = shlex.split(experiments.command_of(args))
    assert script == "additional_experiments.py"
    again = experiments.parse_args(arguments)
    assert experiments.configuration(again) == experiments.configuration(args)


@pytest.fixture(scope="module")
def tiny_suite(tmp_path_factory):
    """The whole main suite on two seeds, each GPT trained for one epoch."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "load_model", tiny_model)
        patch.setattr(experiments, "read_sms_spam", few_messages)
        own_processes = []

        def in_this_process(arguments):
            own_processes.append(arguments)
            experiments.run_and_save(experiments.parse_args(arguments))

        patch.setattr(experiments, "run_in_own_process", in_this_process)
        patch.setitem(experiments.SUITES, "main", quick(suites.SUITES["main"]))
        arguments = ["--suite", "main", "--seeds", "1", "2", "--results", str(folder), "--quiet"]
        assert experiments.main([*arguments, "--model", "gpt-mini"]) == 0
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
        assert experiments.main([*arguments, "--model", "gpt-mini"]) == 0
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    assert len(own_processes) == len(suites.COST_MEASURED)
    return folder


def quick(rows):
    def options(row):
        short = row.options.replace("--pretrain_further 2", "--pretrain_further 1")
        return short if row.is_classical else f"{short} --epochs 1"

    return [dataclasses.replace(row, options=options(row)) for row in rows]


def test_the_whole_suite_runs_and_leaves_complete_files(tiny_suite):
    for row in suites.SUITES["main"]:
        for seed in (1, 2):
            path = tiny_suite / row.name / f"seed-{seed}.json"
            result = json.loads(path.read_text(encoding="utf-8"))
            assert (result["row"], result["seed"]) == (row.name, seed)
            assert 0 <= result["test"]["accuracy"] <= 1
            assert len(scores(result)) == len(result["predictions"]["labels"])
            assert result["processor_seconds"] > 0
            assert {"model", "command", "configuration", "versions", "seconds"} <= result.keys()
            predicted = scores(result) > 0.5
            labels = np.array(list(result["predictions"]["labels"])) == "1"
            assert np.mean(predicted == labels) == pytest.approx(result["test"]["accuracy"])


def test_tables_and_figures_can_be_made_of_a_suite(tiny_suite, monkeypatch):
    monkeypatch.setattr(make_tables, "NUM_SEEDS", 2)
    marks = "".join(f"<!-- table {name} -->\n<!-- end -->\n" for name in make_tables.TABLES)
    tables = make_tables.make_all(tiny_suite)
    text = make_tables.fill_in(marks, tables)
    assert make_tables.fill_in(text, tables) == text
    for row in suites.SUITES["main"]:
        if row.options:
            assert f"`{row.options}`" in text or row in suites.CURVES, row.name
    for plot in make_tables.PLOTS.values():
        figure = plot(tiny_suite)
        assert all(ax.get_xlabel() for ax in figure.axes)
        make_tables.plt.close(figure)


def test_a_result_of_other_options_is_not_taken_for_this_one(tiny_suite, tmp_path, capsys):
    args = experiments.parse_args(["--row", "a", "--epochs", "1", "--results", str(tmp_path)])
    experiments.run_and_save(args)
    assert experiments.is_done(args)
    args.epochs = 2
    with pytest.raises(DataError, match="epochs was 1, not 2"):
        experiments.is_done(args)
    experiments.path_of(args).write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        experiments.is_done(args)


def test_a_measured_row_is_not_overwritten(tmp_path, capsys):
    arguments = ["--trainable_layers", "head", "--epochs", "1", "--quiet"]
    arguments += ["--results", str(tmp_path)]
    assert experiments.main([*arguments, "--row", "mine"]) == 0
    [path] = (tmp_path / "mine").iterdir()
    before = path.read_bytes()
    assert json.loads(before)["configuration"]["model"] == "gpt-mini"  # found out, not "auto"
    for options, said in (([], "is there already"), (["--dropout", "0"], "is there already")):
        assert experiments.main([*arguments, "--row", "mine", *options]) == 2
        assert said in capsys.readouterr().err
    assert experiments.main([*arguments, "--row", "mine", "--batch_size", "4"]) == 2
    assert "comes from other options" in capsys.readouterr().err
    assert path.read_bytes() == before
    for _ in range(2):  # a trial may be repeated
        assert experiments.main(arguments) == 0


def test_the_models_name_reaches_the_function_that_loads_it(monkeypatch):
    asked = []

    def load(args, device):
        asked.append(args.model)
        return tiny_model(args, device)

    monkeypatch.setattr(experiments, "load_model", load)
    measure("--model gpt2-medium --trainable_layers head")
    assert asked == ["gpt2-medium"]


def test_a_suite_finds_out_once_which_model_it_measures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(experiments.SUITES, "main", quick(suites.KNOWN[:1]))
    arguments = ["--suite", "main", "--seeds", "2", "--results", str(tmp_path), "--quiet"]
    monkeypatch.setattr(experiments, "COST_MEASURED", set())
    assert experiments.main([*arguments, "--model", "gpt-mini"]) == 0
    assert "1 of 1 runs made now, in" in capsys.readouterr().out
    assert experiments.main(arguments) == 0  # gpt-mini is what can be had
    assert "0 of 1 runs made now" in capsys.readouterr().out
    monkeypatch.setattr(finetune, "default_model_name", lambda *_: "gpt2-small (124M)")
    assert experiments.main(arguments) == 2
    error = capsys.readouterr().err
    assert "give --model 'gpt-mini', or choose another folder with --results" in error


def test_a_suite_of_classical_models_fetches_no_weights(tmp_path, monkeypatch):
    monkeypatch.delattr(finetune, "default_model_name")
    arguments = ["--suite", "baselines", "--seeds", "1", "--results", str(tmp_path), "--quiet"]
    assert experiments.main(arguments) == 0


def test_a_row_that_fails_ends_the_suite_with_its_message(tmp_path, monkeypatch, capsys):
    row = suites.Row("wrong", "--dropout 0.1 --trainable_layers head", "")
    monkeypatch.setitem(experiments.SUITES, "main", [row])
    assert experiments.main(["--suite", "main", "--results", str(tmp_path), "--quiet"]) == 2
    assert "--dropout" in capsys.readouterr().err


def test_a_run_in_its_own_process_reports_what_went_wrong(tmp_path):
    arguments = ["--dropout", "0.1", "--trainable_layers", "head", "--results", str(tmp_path)]
    with pytest.raises(RuntimeError, match="--dropout acts"):
        experiments.run_in_own_process(arguments)
