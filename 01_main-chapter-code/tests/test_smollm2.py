"""SmolLM2: its rotary positions, its GGUF file, its tokenizer.

Tests of the real model need its file in the cache and skip without it.
"""

import ast
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers

from gpt_download import SMOLLM2_WEIGHTS, is_intact
from previous_chapters import text_to_token_ids
from smollm2 import SMOLLM2_CONFIG, load_smollm2, read_gguf, rotate, smollm2_tokenizer


def test_a_rotated_query_and_key_know_their_distance_only():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8)

    def score(i: int, j: int) -> float:
        turned = [rotate(x, torch.tensor([at]), 100.0) for x, at in ((query, i), (key, j))]
        return (turned[0] * turned[1]).sum().item()

    assert score(7, 4) == pytest.approx(score(103, 100), abs=1e-4)
    assert abs(score(7, 4) - score(7, 5)) > 1e-2


@pytest.fixture(scope="module")
def weights_path():
    if not is_intact(SMOLLM2_WEIGHTS):
        pytest.skip("needs `python 01_main-chapter-code/gpt_download.py smollm2-135m`")
    return SMOLLM2_WEIGHTS.path


@pytest.fixture(scope="module")
def smollm2(weights_path):
    return load_smollm2(weights_path)


@pytest.fixture(scope="module")
def tokenizer(weights_path):
    return smollm2_tokenizer(weights_path)


@pytest.fixture(scope="module")
def twin(weights_path, transformers):
    """`transformers`' Llama, with the weights as `transformers` reads them."""
    folder, how = weights_path.parent, {"gguf_file": weights_path.name, "dtype": torch.float32}
    return transformers.LlamaForCausalLM.from_pretrained(folder, **how).eval()


@pytest.fixture(scope="module")
def passages():
    """The chapter's held-out passages, out of its notebook."""
    notebook = json.loads((Path(__file__).parents[1] / "ch06.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    cell = next(source for source in sources if source.startswith("HELD_OUT = "))
    return ast.literal_eval(ast.parse(cell).body[0].value).splitlines()


@torch.no_grad()
def test_logits_and_losses_equal_those_of_transformers(smollm2, tokenizer, twin, passages):
    """Of the chapter's passages, and of 1024 tokens at once."""
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    for ids in [text_to_token_ids(text, tokenizer)[:, :1024] for text in (*passages, text)]:
        ours, theirs = smollm2(ids), twin(ids).logits
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
        losses = [
            F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
            for logits in (ours, theirs)
        ]
        torch.testing.assert_close(*losses, atol=2e-4, rtol=0)
    assert ids.shape == (1, 1024)


@pytest.fixture(scope="module")
def reference(weights_path):
    """The same tokenizer by the `tokenizers` package."""
    _, metadata = read_gguf(weights_path)
    tokens, merges = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


HOSTILE = [
    "👩‍👩‍👧‍👦🏳️‍🌈 ok 😀😀😀!!",
    "\u202eשלום עולם\u202c مرحبا",  # from right to left
    "Z̷̡a̸l̵g̶o n\u0303 ñ",  # combining signs
    "08712 300 220, ½ Ⅷ ٣٤ 1\u20e3 x²",
    "a\n\n\t  b   5 \r\n\x0b\x0c\x85\u00a0\u2003\u3000 \n",
    "I'm they'll 'S 's5'd we'RE '' don''t",
    "".join(f"{chr(i)}a {chr(i)} 1{chr(i)}\n" for i in range(160)),
    "<|endoftext|> <|im_start|>user<|im_end|><repo_name>",
    " " * 20_000 + "a" + " " * 20_000 + "5" + " " * 20_000,
    "ab" * 20_000,
    "0" * 20_000,
    "",
]


def test_tokens_of_hostile_texts_and_of_random_pieces_equal_the_references(tokenizer, reference):
    """Merging by rank, as tiktoken does, is the same as merging by the list of merges."""
    rng = random.Random(0)
    pieces = [piece.decode("utf-8", "ignore") for piece in tokenizer.token_byte_values()]
    made_up = ["".join(rng.choices(pieces, k=rng.randint(2, 30))) for _ in range(2000)]
    for text in HOSTILE + made_up:
        assert tokenizer.encode_ordinary(text) == reference.encode(text).ids, repr(text[:200])


def test_characters_without_a_token_are_left_out_and_no_others(tokenizer):
    text = "a\x04b\U00040000c\U000bffffd\U0003ffffe\U000c0000"
    found = tokenizer.decode(tokenizer.encode_ordinary(text))
    assert found == "abcd\U0003ffffe\U000c0000"


def test_special_tokens_are_read_only_where_they_are_allowed(tokenizer):
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (SMOLLM2_CONFIG.vocab_size, 0)
    assert 0 not in tokenizer.encode_ordinary("<|endoftext|>")
    assert text_to_token_ids("a<|endoftext|>b", tokenizer)[0, 1] == 0
    assert tokenizer.encode_ordinary("\ud83d lone") == tokenizer.encode_ordinary("\ufffd lone")
