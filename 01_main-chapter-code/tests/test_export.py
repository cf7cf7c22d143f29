"""Classifiers in other programs: the same probabilities, for any text, from the files alone."""

import dataclasses
import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import fails, run_python, succeeds
from hypothesis import example, given
from hypothesis import strategies as st
from tiny import DECODERS, randomise

import classify
import export
import onnx_classifier
from classifier_folder import save_classifier
from export import in_tokenizers, largest_difference
from gpt_download import SMOLLM2, SMOLLM2_WEIGHTS, build_decoder, is_intact, load_tokenizer
from message_files import DataError
from text_classifier import ClassifierConfig, GPTClassifier

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("transformers", "onnx", "onnxscript", "onnxruntime"))),
    reason="needs 01_main-chapter-code/requirements-extra.txt",
)
TEXTS = [
    *export.TRIAL_TEXTS,
    "see you at noon",
    "WINNER!! £1000 \u4f60\u597d",
    "\r\n\t\0",
    "a" * 500,
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("gpt-mini")


def classifier_of(shape: str, pooling: str, **changes) -> GPTClassifier:
    """Three classes; all parameters random, those that start at zero or one, too."""
    torch.manual_seed(0)
    about = ClassifierConfig("gpt-mini", ("a", "b", "c"), 50, pooling, **changes)
    cfg = dataclasses.replace(DECODERS[shape], vocab_size=4096, context_length=64)
    return randomise(GPTClassifier(build_decoder(cfg), about), std=0.2)


@pytest.mark.parametrize(
    ("shape", "pooling", "kind", "model_class", "thresholds"),
    [
        ("gpt", "last", "transformers", "GPT2ForSequenceClassification", None),
        ("gpt", "mean", "transformers", "GPT2ForTokenClassification", None),
        ("llama", "last", "transformers", "LlamaForTokenClassification", (0.5, 0.2, 0.4)),
        ("llama", "mean", "transformers", "LlamaForTokenClassification", None),
        ("llama", "mean", "onnx", None, (0.5, 0.2, 0.4)),
    ],
)
def test_an_exported_folder_gives_the_classifiers_probabilities(
    tmp_path, tokenizer, shape, pooling, kind, model_class, thresholds
):
    classifier = classifier_of(shape, pooling, thresholds=thresholds)
    export.export(classifier, tokenizer, kind, tmp_path / "out")
    assert largest_difference(classifier, tokenizer, tmp_path / "out", TEXTS) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if kind == "transformers":
        config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
        assert config["architectures"] == [model_class]
        special = {config[f"{name}_token_id"] for name in ("pad", "bos", "eos")}
        assert special == {tokenizer.eot_token}
        assert tokenizer.eot_token < config["vocab_size"]


def test_8_bits_change_probabilities_little_even_beside_massive_activations(
    tmp_path, tokenizer, monkeypatch
):
    classifier = classifier_of("gpt", "last")
    first, _, second = classifier.decoder.trf_blocks[0].ff.layers
    with torch.no_grad():  # one input of the second layer is large, and weighs little
        first.bias[3] = 3000
        second.weight[:, 3] /= 3000
    export.export(classifier, tokenizer, "onnx-int8", tmp_path / "kept")
    monkeypatch.setattr(onnx_classifier, "WIDEST", float("inf"))
    export.export(classifier, tokenizer, "onnx-int8", tmp_path / "rounded")
    kept, rounded = (
        largest_difference(classifier, tokenizer, tmp_path / name, TEXTS)
        for name in ("kept", "rounded")
    )
    assert 1e-5 < kept < 0.1 < rounded


@pytest.mark.parametrize("kind", ["onnx", "onnx-int8"])
def test_a_file_is_classified_by_an_exported_network(tmp_path, tokenizer, kind, capsys):
    classifier = classifier_of("gpt", "mean")
    card = {"training": {"text_column": "text"}}  # of the two columns that could hold texts
    classifier.config = replace(classifier.config, card=card)
    save_classifier(classifier, tmp_path / "classifier")
    rows = ["text,review", *(f"see you at {i},no" for i in range(40))]
    texts = tmp_path / "texts.csv"
    texts.write_text("\n".join(rows), encoding="utf-8")
    arguments = [tmp_path / "classifier", "--format", kind, "--output", tmp_path / "out"]
    arguments += ["--compare", texts] if kind == "onnx-int8" else []
    printed, tables = succeeds(export, capsys, *arguments), []
    for name in ("classifier", "out"):
        output = tmp_path / f"{name}.csv"
        options = ["--file", texts, "--output", output, "--all-probabilities"]
        succeeds(classify, capsys, tmp_path / name, *options)
        tables.append(pd.read_csv(output))
    ours, theirs = (table.filter(like="probability of").to_numpy() for table in tables)
    assert abs(ours - theirs).max() < (0.05 if kind == "onnx-int8" else 2e-4)
    if kind == "onnx-int8":
        num_changed = (tables[0]["predicted_label"] != tables[1]["predicted_label"]).sum()
        assert f"Of 40 labels, {num_changed} are others" in printed


def test_a_damaged_network_is_refused(tmp_path):
    onnx_classifier.write_config(classifier_of("gpt", "last").config, tmp_path)
    for path, content in (("classifier.onnx", b"no network"), ("config.json", b'{"model": 1}')):
        (tmp_path / path).write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or was altered"):
            onnx_classifier.open_onnx(tmp_path)


@pytest.mark.parametrize("name", ["gpt-mini", SMOLLM2])
def test_any_text_becomes_the_same_tokens(name):
    if name == SMOLLM2 and not is_intact(SMOLLM2_WEIGHTS):
        pytest.skip("python 01_main-chapter-code/gpt_download.py smollm2-135m")
    ours = load_tokenizer(name)
    theirs = in_tokenizers(ours, 60)

    @given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=90))
    @example("<|endoftext|> and <|im_start|>")
    @example("aaaaaaa hahahaha" + 31 * "=")
    @example("year 2024,\n\n  10\u00a0000 \x04 times it's\r\n")
    def check(text: str) -> None:
        assert theirs.encode(text).ids == ours.encode_ordinary(text)[:60]

    check()


def test_the_command_writes_what_a_reader_runs(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch
):
    rename, maps, in_use = Path.replace, Path("/proc/self/maps"), []

    def look(path: Path, target: Path) -> None:
        in_use.append(maps.exists() and str(path) in maps.read_text())
        rename(path, target)

    monkeypatch.setattr(Path, "replace", look)
    output = tmp_path / "exported"
    arguments = [tiny_classifier_folder, "--format", "onnx", "--output", output]
    assert "gives the classifier's probabilities" in succeeds(export, capsys, *arguments)
    done = run_python(output / "use.py", "hello", "")
    answers = r"^(.*)\tham [01]\.\d+\tspam [01]\.\d+$"
    assert re.findall(answers, done.stdout, re.MULTILINE) == ["hello", ""]
    assert "is there already" in fails(export, capsys, *arguments)
    assert not any(in_use)  # Windows renames no folder of which a file is mapped


def test_other_probabilities_leave_nothing_behind(
    tiny_classifier_folder, tmp_path, capsys, monkeypatch
):
    real = export.in_transformers

    def wrong(classifier, end_id):
        theirs = real(classifier, end_id)
        theirs.score.weight.data.add_(torch.tensor([[1.0], [-1.0]]))
        return theirs

    monkeypatch.setattr(export, "in_transformers", wrong)
    arguments = (tiny_classifier_folder, "--format", "transformers", "--output", tmp_path / "out")
    assert "other probabilities" in fails(export, capsys, *arguments, status=1)
    assert [path.name for path in tmp_path.iterdir()] == [tiny_classifier_folder.name]


@pytest.mark.parametrize("change", [{"pad_to": 50}, {"pooling": "first"}, {"cut": "windows"}])
def test_what_no_other_program_has_is_refused(tmp_path, tokenizer, change):
    classifier = classifier_of("gpt", "last")
    classifier.config = dataclasses.replace(classifier.config, **change)
    with pytest.raises(DataError, match="there is no export"):
        export.export(classifier, tokenizer, "onnx", tmp_path / "out")
    assert not list(tmp_path.iterdir())
