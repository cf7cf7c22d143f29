"""The embedded model: what is in its folder, and the recipe that made it."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import regex
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from gpt_download import GPT2_SPLIT_PATTERN, MINI_FOLDER, MODEL_CONFIGS, load_mini_tokenizer
from previous_chapters import GPTConfig

spec = importlib.util.spec_from_file_location("pretrain", MINI_FOLDER / "pretrain.py")
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)

TEXT = "The old man and the sea. Have you seen it? I have not seen the old film yet!\n" * 30


# The pattern as GPT-2's authors wrote it.
AS_PUBLISHED = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


TOKENIZER = load_mini_tokenizer()
PUBLISHED = tiktoken.Encoding(
    "published", pat_str=AS_PUBLISHED, mergeable_ranks=TOKENIZER._mergeable_ranks, special_tokens={}
)


@given(st.text() | st.text("aZ'sdmtlvre 1٣.!\n\t\r\u00a0\u2003é是😀", max_size=60))
def test_the_pattern_gives_the_tokens_of_the_published_one(text):
    assert TOKENIZER.encode_ordinary(text) == PUBLISHED.encode_ordinary(text)
    assert regex.findall(GPT2_SPLIT_PATTERN, text) == regex.findall(AS_PUBLISHED, text)


@pytest.mark.parametrize(
    "text",
    [
        "naïve 😀 \x00\x7f" + "".join(map(chr, range(0x250))),
        *(" " * 2_000_000, "a" + " " * 500_000 + "b", "^" * 1_000_000),  # no stack overflows
    ],
    ids=len,
)
def test_any_text_is_encoded_and_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode_ordinary(text)) == text


def test_a_trained_vocabulary_cuts_texts_as_the_library_that_trained_it(tmp_path, monkeypatch):
    library = pretrain.Tokenizer(pretrain.models.BPE())
    monkeypatch.setattr(pretrain, "Tokenizer", lambda _: library)
    file = pretrain.train_vocabulary([TEXT, "naïve café 😀 12345"], vocab_size=400)
    (tmp_path / "vocabulary.tiktoken").write_text(file, encoding="ascii")
    tokenizer = load_mini_tokenizer(tmp_path)
    assert 256 < tokenizer.n_vocab <= 400
    for text in (TEXT, "seen the old man's café, 42 times?!", "  spaces\n\nand lines "):
        ids = tokenizer.encode_ordinary(text)
        assert tokenizer.decode(ids) == text
        # The library writes a sign for each byte of a token.
        lengths = [len(tokenizer.decode_single_token_bytes(i)) for i in ids]
        assert lengths == list(map(len, library.encode(text).tokens))


def test_batches_cover_an_epoch_without_repetition_and_can_be_continued(monkeypatch):
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 64)
    tokens, per_epoch = torch.arange(1000), (1000 - 17) // 16 // 4
    stream = pretrain.batches(tokens, length=16, seed=1, first=0)
    starts = torch.cat([next(stream) for _ in range(per_epoch)])[:, 0]
    assert len(starts.unique()) == 4 * per_epoch
    assert len((starts % 16).unique()) == 1  # windows do not overlap
    continued = pretrain.batches(tokens, length=16, seed=1, first=per_epoch)
    assert torch.equal(next(continued), next(stream))


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    factors = [pretrain.learning_rate_factor(step, 1000) for step in (0, 100, 599, 800, 999)]
    assert factors == pytest.approx([0.01, 1, 1, 0.5, 0.0025])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The recipe on a small model and corpus, in steps that take no time."""
    shape = GPTConfig(vocab_size=280, context_length=128, emb_dim=32, n_heads=2, n_layers=2)
    monkeypatch.setitem(MODEL_CONFIGS, "gpt-mini", shape)
    monkeypatch.setattr(pretrain, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(pretrain, "STEPS_PER_HELD_OUT_LOSS", 5)
    documents = "\n\n<|endoftext|>\n".join(f"{TEXT} number {i}" for i in range(20))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text(documents, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(TEXT * 3, encoding="utf-8")

    def run(output: str, *options: str, status: int = 0) -> Path:
        arguments = ["--corpus", str(tmp_path), "--output", str(tmp_path / output)]
        arguments += ["--device", "cpu", "--num-tokens", f"{20 * 256}", *options]
        assert pretrain.main(arguments) == status
        return tmp_path / output

    return run


def test_the_recipe_learns_and_writes_its_results(run):
    whole = run("whole")
    results = json.loads((whole / "pretraining.json").read_text(encoding="utf-8"))
    assert results["tokens_seen"] == 20 * 256
    losses = results["log"]["held_out_loss"]
    assert results["log"]["held_out_steps"] == [5, 10, 15, 20]
    assert losses[-1] < losses[0] < math.log(280) + 0.5
    assert len(results["samples"]) == 4
    assert (whole / "loss-curve.png").stat().st_size > 1000
    run("whole", status=2)  # nothing is replaced
    again, other = run("again"), run("other", "--seed", "5")
    expected, same, changed = (load_file(o / "model.safetensors") for o in (whole, again, other))
    assert all(torch.equal(expected[name], same[name]) for name in expected)
    assert not torch.equal(expected["wte.weight"], changed["wte.weight"])


@pytest.mark.parametrize("name", ["train/a.txt", "valid.txt"])
def test_a_corpus_that_is_incomplete_or_too_small_is_named(run, tmp_path, capsys, name):
    (tmp_path / name).write_text("short", encoding="utf-8")
    run("out", status=2)
    (tmp_path / name).unlink()
    run("out", status=2)
    said = capsys.readouterr().err.splitlines()
    assert "too small" in said[-2]
    assert "must hold train/*.txt and valid.txt" in said[-1]
