"""The embedded model: what is in its folder, and the recipe that made it."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from gpt_download import (
    GPT2_SPLIT_PATTERN,
    MINI_FOLDER,
    DownloadError,
    load_mini_tokenizer,
    load_pretrained,
    load_tokenizer,
)
from previous_chapters import MODEL_CONFIGS, gpt2_state_dict, num_parameters

spec = importlib.util.spec_from_file_location("pretrain", MINI_FOLDER / "pretrain.py")
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)

TEXT = "The old man and the sea. Have you seen it? I have not seen the old film yet!\n" * 30


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    documents = "\n\n<|endoftext|>\n".join(f"{TEXT} number {i}" for i in range(20))
    (tmp_path / "corpus" / "train" / "a.txt").write_text(documents, encoding="utf-8")
    (tmp_path / "corpus" / "valid.txt").write_text(TEXT * 3, encoding="utf-8")
    return tmp_path / "corpus"


# --- what is in the folder --------------------------------------------------------------------


def test_weights_are_small_and_in_half_precision_under_gpt2s_names():
    path = MINI_FOLDER / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    model, tokenizer = load_pretrained("gpt-mini")
    assert 3e6 <= num_parameters(model) <= 6e6
    assert model.cfg.context_length >= 512
    assert tokenizer.n_vocab == model.cfg.vocab_size
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(gpt2_state_dict(model))
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


def test_card_quotes_what_the_recipe_measured():
    results = json.loads((MINI_FOLDER / "pretraining.json").read_text(encoding="utf-8"))
    card = (MINI_FOLDER / "README.md").read_text(encoding="utf-8")
    for figure in (
        f"{results['parameters']:,}",
        f"{results['tokens_seen']:,}",
        f"{results['seconds']:,}",
        f"{results['held_out_perplexity']:.1f}",
        f"{results['held_out_loss']:.2f}",
    ):
        assert figure in card
    for sample in results["samples"]:
        assert sample.split("\n")[0] in card
    assert math.exp(results["held_out_loss"]) == pytest.approx(
        results["held_out_perplexity"], abs=0.01
    )


def test_vocabulary_has_all_bytes_and_splits_as_gpt2_does():
    tokenizer = load_mini_tokenizer()
    for text in ("naïve 😀 \x00\x7f", "".join(map(chr, range(0x250))), "  a   b\n\n\tc  "):
        assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text
    try:
        gpt2 = load_tokenizer("gpt2-small")
    except DownloadError as error:
        pytest.skip(f"GPT-2's tokenizer cannot be had: {str(error).splitlines()[0]}")
    for text in (TEXT, "I'll pay £1,000 at 10:30!!  \n\n you've  won\t", "是 naïve's 😀😀 x2y"):
        # Byte pairs are merged within the pieces only, so equal pieces decode alike in both.
        pieces = regex.findall(GPT2_SPLIT_PATTERN, text)
        for encoding in (tokenizer, gpt2):
            separately = [i for piece in pieces for i in encoding.encode_ordinary(piece)]
            assert encoding.encode_ordinary(text) == separately


# The pattern as GPT-2's authors wrote it.
AS_PUBLISHED = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@settings(max_examples=50, deadline=None)
@given(st.text() | st.text("aZ'sdmtlvre 1٣.!\n\t\r\u00a0\u2003é是😀", max_size=60))
def test_the_pattern_gives_the_tokens_of_the_published_one(text):
    tokenizer = load_mini_tokenizer()
    published = tiktoken.Encoding(
        "published",
        pat_str=AS_PUBLISHED,
        mergeable_ranks=tokenizer._mergeable_ranks,
        special_tokens={},
    )
    assert tokenizer.encode_ordinary(text) == published.encode_ordinary(text)
    assert regex.findall(GPT2_SPLIT_PATTERN, text) == regex.findall(AS_PUBLISHED, text)


@pytest.mark.parametrize("text", [" " * 2_000_000, "a" + " " * 500_000 + "b", "^" * 1_000_000])
def test_a_long_run_of_one_sign_is_encoded(text):
    tokenizer = load_mini_tokenizer()
    assert tokenizer.decode(tokenizer.encode_ordinary(text)) == text


# --- the recipe -------------------------------------------------------------------------------


def test_vocabulary_file_gives_the_tokens_of_the_library_that_trained_it(tmp_path, monkeypatch):
    trained = []
    library = pretrain.Tokenizer

    def remember(*arguments):
        trained.append(library(*arguments))
        return trained[0]

    monkeypatch.setattr(pretrain, "Tokenizer", remember)
    tokens = pretrain.train_vocabulary([TEXT, "naïve café 😀 12345"], vocab_size=400)
    assert len(tokens) <= 399
    assert len(set(tokens)) == len(tokens)
    assert tokens[:256] == [bytes([i]) for i in range(256)]
    pretrain.write_tiktoken_file(tokens, tmp_path / "vocabulary.tiktoken")
    tokenizer = load_mini_tokenizer(tmp_path)
    assert tokenizer.eot_token == len(tokens)
    unicode_of = {value: character for character, value in pretrain.byte_values().items()}
    for text in (TEXT, "seen the old man's café, 42 times?!", "  spaces\n\nand lines "):
        theirs = trained[0].encode(text).tokens
        ours = [
            "".join(unicode_of[b] for b in tokenizer.decode_single_token_bytes(i))
            for i in tokenizer.encode_ordinary(text)
        ]
        assert ours == theirs


def test_batches_cover_an_epoch_without_repetition_and_can_be_continued(monkeypatch):
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 64)
    tokens = torch.arange(1000)
    stream = pretrain.batches(tokens, length=16, seed=1, first=0)
    per_epoch = (1000 - 17) // 16 // 4
    first_epoch = [next(stream) for _ in range(per_epoch)]
    assert all(batch.shape == (4, 17) for batch in first_epoch)
    starts = torch.cat(first_epoch)[:, 0]
    assert len(set(starts.tolist())) == 4 * per_epoch
    assert len(set((starts % 16).tolist())) == 1  # windows do not overlap
    second_epoch = next(stream)
    continued = pretrain.batches(tokens, length=16, seed=1, first=per_epoch)
    assert torch.equal(next(continued), second_epoch)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    factors = [pretrain.learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert set(factors[100:600]) == {1.0}
    assert factors[800] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.01
    assert pretrain.window_length(0, 1000, 512) == 128
    assert pretrain.window_length(999, 1000, 512) == 512


@pytest.fixture
def small_recipe(monkeypatch):
    """The recipe on a small model, in steps that take no time."""
    small = MODEL_CONFIGS["gpt-mini"].__class__(
        vocab_size=400, context_length=128, emb_dim=32, num_heads=2, num_layers=2
    )
    monkeypatch.setitem(MODEL_CONFIGS, "gpt-mini", small)
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(pretrain, "STEPS_PER_CHECKPOINT", 5)
    monkeypatch.setattr(pretrain, "STEPS_PER_EVALUATION", 5)
    monkeypatch.setattr(pretrain, "WARMUP_STEPS", 3)


def test_recipe_learns_writes_its_results_and_resumes_exactly(
    corpus, tmp_path, small_recipe, capsys
):
    def run(name: str, *options: str) -> Path:
        output = tmp_path / name
        arguments = ["--corpus", str(corpus), "--output", str(output), "--device", "cpu"]
        arguments += ["--work", str(tmp_path / f"{name}-work"), "--tokens", f"{20 * 256}"]
        assert pretrain.main([*arguments, *options]) == (2 if options else 0)
        return output

    whole = run("whole")
    results = json.loads((whole / "pretraining.json").read_text())
    assert results["tokens_seen"] == 20 * 256
    losses = results["log"]["held_out_loss"]
    assert results["log"]["held_out_steps"] == [5, 10, 15, 20]
    assert losses[-1] < losses[0] < math.log(400) + 0.5
    assert len(results["samples"]) == len(pretrain.SAMPLE_PROMPTS)
    assert (whole / "loss-curve.png").stat().st_size > 1000

    class Stopped(Exception):
        pass

    real = pretrain.save_checkpoint

    def stop_after_ten(path, model, optimizers, step, *rest):
        real(path, model, optimizers, step, *rest)
        if step == 10:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "save_checkpoint", stop_after_ten)
        with pytest.raises(Stopped):
            run("halves")
    for option, value in (("--tokens", "9999"), ("--seed", "5"), ("--learning-rate", "0.1")):
        run("halves", option, value)
        assert "is of a run with another " in capsys.readouterr().err
    halves = run("halves")
    assert "Going on from step 10 of 20" in capsys.readouterr().out
    expected, resumed = (load_file(o / "model.safetensors") for o in (whole, halves))
    assert set(expected) == set(resumed)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    (corpus / "train" / "b.txt").write_text(TEXT, encoding="utf-8")
    run("halves", "--compile")
    assert "another corpus or vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no corpus", "must hold train/*.txt and valid.txt"),
        ("no training text", "train/*.txt holds"),
        ("no held-out text", "valid.txt holds"),
        ("absent device", "is not available here"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(corpus, tmp_path, small_recipe, capsys, change, said):
    arguments = ["--output", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--device", "cpu"]
    if change == "no corpus":
        corpus = tmp_path
    elif change == "no training text":
        (corpus / "train" / "a.txt").write_text("short", encoding="utf-8")
    elif change == "no held-out text":
        (corpus / "valid.txt").write_text("short", encoding="utf-8")
    else:
        arguments[-1] = "mps" if torch.cuda.is_available() else "cuda"
    assert pretrain.main(["--corpus", str(corpus), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_documents_are_joined_by_the_end_of_text():
    tokenizer = load_mini_tokenizer()
    ids = pretrain.encode_documents(["one", "two three"], tokenizer)
    assert ids.dtype == np.uint16
    assert (ids == tokenizer.eot_token).sum() == 2
    assert tokenizer.decode(ids.tolist()) == "one<|endoftext|>two three<|endoftext|>"
