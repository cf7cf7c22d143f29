"""Every file that is fetched: where it comes from, how it is checked, where it is kept.

Files are kept in one cache folder, named by the environment variable `CH06_CACHE` (default: the
user's cache directory). A file that stands there with the right checksum is never fetched again;
one that is truncated or altered is never used and never left in place. With no network, every
missing file yields one message: what is missing, its address, its checksum, where to put it.
"""

import base64
import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import requests
import tiktoken
import torch
from filelock import FileLock
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download, hf_hub_url
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from previous_chapters import END_OF_TEXT, MODEL_CONFIGS, GPTModel, load_weights_into_gpt

CACHE_VARIABLE = "CH06_CACHE"
# How long an address may take before it counts as unreachable: short enough that two of them are
# given up within 10 seconds.
SECONDS_TO_ANSWER = 4
MINI_FOLDER = Path(__file__).parent / "gpt-mini"


class DownloadError(RuntimeError):
    """A file is neither in the cache nor to be had; the message says what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A file pinned by checksum, with its place in the cache and the addresses that offer it."""

    cache_name: str
    """Path below the cache folder."""
    urls: tuple[str, ...] = ()
    """Plain addresses, tried in order."""
    sha256: str | None = None
    """Checksum; None where it is not known, as for some larger GPT-2 models."""
    hub_repo: str | None = None
    """Repository on the Hugging Face Hub, instead of `urls`."""
    hub_revision: str | None = None
    """Commit of that repository."""
    md5: str | None = None
    """Checksum where its publisher gives no SHA-256: tells damage, not forgery."""
    resumable: bool = False
    """Whether what arrived of a large file before a break is kept, to go on from there."""

    @property
    def path(self) -> Path:
        return cache_folder() / self.cache_name

    @property
    def checksum(self) -> tuple[str, str | None]:
        """Name of the algorithm, and the checksum or None."""
        return ("md5", self.md5) if self.md5 else ("sha256", self.sha256)

    @property
    def addresses(self) -> tuple[str, ...]:
        if self.hub_repo is None:
            return self.urls
        return (hf_hub_url(self.hub_repo, self.path.name, revision=self.hub_revision),)


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
    resumable=True,
)

# tiktoken looks for its files under the SHA-1 of their addresses.
_TIKTOKEN_HOST = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_TOKENIZER_FILES = (
    RemoteFile(
        "tiktoken/6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        (_TIKTOKEN_HOST + "vocab.bpe",),
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    RemoteFile(
        "tiktoken/6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        (_TIKTOKEN_HOST + "encoder.json",),
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
)

GPT2_WEIGHTS = {
    "gpt2-small (124M)": RemoteFile(
        "gpt2-small/model.safetensors",
        sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        hub_repo="openai-community/gpt2",
        hub_revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
    ),
    "gpt2-medium (355M)": RemoteFile(
        "gpt2-medium/model.safetensors",
        hub_repo="openai-community/gpt2-medium",
        hub_revision="6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    ),
    "gpt2-large (774M)": RemoteFile(
        "gpt2-large/model.safetensors",
        hub_repo="openai-community/gpt2-large",
        hub_revision="32b71b12589c2f8d625668d2335a01cac3249519",
    ),
    "gpt2-xl (1558M)": RemoteFile(
        "gpt2-xl/model.safetensors",
        sha256="0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        hub_repo="openai-community/gpt2-xl",
        hub_revision="15ea56dee5df4983c59b2538573817e1667135e2",
    ),
}


# ---------------------------------------------------------------------------------------------
# The cache
# ---------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder named by `CH06_CACHE`, or `ch06` in the user's cache directory."""
    folder = os.environ.get(CACHE_VARIABLE) or pooch.os_cache("ch06")
    return Path(os.path.expanduser(folder))  # unlike Path.expanduser, accepts an unknown ~user


def fetch(file: RemoteFile) -> Path:
    """Path of a file in the cache, downloaded there if need be.

    Several processes may ask at once: one fetches, the others wait for it. Raises
    ``DownloadError`` if the file is not to be had.
    """
    try:
        if is_intact(file):
            return file.path
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file.path}.lock"):
            if not is_intact(file):
                file.path.unlink(missing_ok=True)  # truncated or altered
                _download(file)
    except OSError as error:
        raise DownloadError(_how_to_help(file, [f"{type(error).__name__}: {error}"])) from error
    return file.path


def is_intact(file: RemoteFile) -> bool:
    """Whether the file stands in the cache, whole and unaltered as far as one can know."""
    if not file.path.is_file():
        return False
    algorithm, checksum = file.checksum
    if checksum is not None:
        with file.path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest() == checksum
    try:
        with safe_open(file.path, "pt"):  # compares the size with what the header announces
            return True
    except (SafetensorError, OSError):
        return False


def _download(file: RemoteFile) -> None:
    """Try the addresses in turn; whatever arrives must pass the check or is removed."""
    reasons = []
    for url in file.addresses:
        try:
            _check_answer(url)
            if file.hub_repo is None:
                downloader = pooch.HTTPDownloader(progressbar=True, timeout=SECONDS_TO_ANSWER)
                if file.resumable:
                    downloader = partial(_download_on, file.path)
                algorithm, checksum = file.checksum
                known_hash = checksum and f"{algorithm}:{checksum}"
                with _quiet_pooch():
                    pooch.retrieve(
                        url, known_hash, file.path.name, file.path.parent, downloader=downloader
                    )
            else:
                with _short_hub_timeout():
                    hf_hub_download(
                        file.hub_repo,
                        file.path.name,
                        revision=file.hub_revision,
                        local_dir=file.path.parent,
                        etag_timeout=SECONDS_TO_ANSWER,
                    )
            if is_intact(file):
                return
            reasons.append(f"{url}: what arrived is truncated or altered")
        except Exception as error:
            # pooch, the Hub's client and the HTTP libraries below them share no class of errors.
            first_line = str(error).partition("\n")[0][:200]
            reasons.append(f"{url}: {type(error).__name__}: {first_line}")
        file.path.unlink(missing_ok=True)
    raise DownloadError(_how_to_help(file, reasons))


def _download_on(path: Path, url: str, output_file: str, _: pooch.Pooch | None) -> None:
    """pooch's downloader for a large file: goes on from where an earlier attempt broke off.

    What arrives is kept beside the file until it is whole; pooch then compares checksums.
    """
    kept = path.with_name(path.name + ".partial")
    have = kept.stat().st_size if kept.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=SECONDS_TO_ANSWER) as answer:
        # 416: nothing is left to send, so what is kept must be whole, or of another file.
        if answer.status_code != requests.codes.requested_range_not_satisfiable:
            answer.raise_for_status()
            goes_on = answer.status_code == requests.codes.partial_content
            have = have if goes_on else 0  # a server may know no ranges and send all again
            total = have + int(answer.headers.get("Content-Length", 0))
            bar = tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=path.name)
            with kept.open("ab" if goes_on else "wb") as stream, bar:
                for chunk in answer.iter_content(1 << 16):
                    stream.write(chunk)
                    bar.update(len(chunk))
    kept.replace(output_file)


def _check_answer(url: str) -> None:
    """Raise ``OSError`` unless something answers at `url` soon.

    Looking up a host name has no time limit of its own and the libraries retry for minutes, so
    the question is put once, from a thread that need not be waited for.
    """
    if hub_constants.is_offline_mode():
        raise OSError("offline mode is set (HF_HUB_OFFLINE)")
    failure: list[Exception | None] = [OSError(f"no answer in {SECONDS_TO_ANSWER} seconds")]

    def ask() -> None:
        try:
            requests.head(url, timeout=SECONDS_TO_ANSWER, allow_redirects=False)
            failure[0] = None
        except Exception as error:
            failure[0] = error

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    if failure[0] is not None:
        raise failure[0]


@contextmanager
def _short_hub_timeout():
    """A Hub that falls silent is asked six times over; wait for each answer as for any other."""
    seconds = hub_constants.HF_HUB_DOWNLOAD_TIMEOUT
    hub_constants.HF_HUB_DOWNLOAD_TIMEOUT = min(seconds, SECONDS_TO_ANSWER)
    try:
        yield
    finally:
        hub_constants.HF_HUB_DOWNLOAD_TIMEOUT = seconds


@contextmanager
def _quiet_pooch():
    """Without pooch's log line, which names a private path in every notebook's output."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def _how_to_help(file: RemoteFile, reasons: list[str]) -> str:
    addresses = "\n           ".join(file.addresses)
    algorithm, checksum = file.checksum
    label = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
    return (
        f"{file.cache_name} is not in the cache and could not be fetched.\n"
        f"  address: {addresses}\n"
        f"  {label}: {checksum or 'not known'}\n"
        f"  place:   {file.path}\n"
        f"Download it on a machine with a network and put it there by hand, or set "
        f"{CACHE_VARIABLE} to a folder that holds it.\n"
        f"What happened: " + "; ".join(reasons)
    )


# ---------------------------------------------------------------------------------------------
# Tokenizers and models
# ---------------------------------------------------------------------------------------------


def resolve_model_name(name: str) -> str:
    """The full name of a model: `gpt2-small` and `gpt2-small (124M)` are the same.

    Raises ``ValueError`` that lists the models for any other name.
    """
    for full_name in MODEL_CONFIGS:
        if name in (full_name, full_name.split(" (")[0]):
            return full_name
    raise ValueError(f"There is no model {name!r}; choose one of: {', '.join(MODEL_CONFIGS)}.")


def default_model_name(say: Callable[[str], Any] = print) -> str:
    """`gpt2-small (124M)` where its files are cached or can be fetched, else `gpt-mini`."""
    try:
        for file in (GPT2_WEIGHTS["gpt2-small (124M)"], *GPT2_TOKENIZER_FILES):
            fetch(file)
    except DownloadError as error:
        say(
            "NOTE: GPT-2's weights cannot be had here, so the small embedded model gpt-mini takes "
            f"their place. Its results are not GPT-2's.\n{error}\n"
        )
        return "gpt-mini"
    return "gpt2-small (124M)"


def load_tokenizer(name: str) -> tiktoken.Encoding:
    """The byte-level BPE tokenizer of a model, with `encode`, `decode` and `eot_token`."""
    if resolve_model_name(name) == "gpt-mini":
        return load_mini_tokenizer()
    folder = fetch(GPT2_TOKENIZER_FILES[0]).parent
    fetch(GPT2_TOKENIZER_FILES[1])
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        return tiktoken.get_encoding("gpt2")
    finally:
        os.environ.pop("TIKTOKEN_CACHE_DIR")
        if before is not None:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


# How GPT-2 cuts a text before byte pairs are merged: contractions, words with the space before
# them, numbers, other signs, spaces (Radford et al. 2019).
GPT2_SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def load_mini_tokenizer(folder: Path = MINI_FOLDER) -> tiktoken.Encoding:
    """gpt-mini's tokenizer, from a file in tiktoken's format: base64 of the bytes, rank."""
    vocabulary = folder / "vocabulary.tiktoken"
    try:
        lines = vocabulary.read_text(encoding="ascii").splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
    except ValueError as error:
        raise ValueError(f"{vocabulary} is damaged: {error}; fetch it anew.") from error
    return tiktoken.Encoding(
        "gpt-mini",
        pat_str=GPT2_SPLIT_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: len(ranks)},
    )


def weights_file(name: str) -> Path:
    """The safetensors file of a pretrained model, fetched if need be; raises like `fetch`."""
    name = resolve_model_name(name)
    return MINI_FOLDER / "model.safetensors" if name == "gpt-mini" else fetch(GPT2_WEIGHTS[name])


def load_pretrained(
    name: str, device: torch.device | str = "cpu"
) -> tuple[GPTModel, tiktoken.Encoding]:
    """A pretrained model in evaluation mode on `device`, and its tokenizer.

    `name` is a key of `MODEL_CONFIGS`, with or without the size in brackets. Raises
    ``ValueError`` for another name or for damaged or foreign weights, and ``DownloadError`` if
    they are not to be had.
    """
    name = resolve_model_name(name)
    weights = weights_file(name)
    tokenizer = load_tokenizer(name)
    model = GPTModel(MODEL_CONFIGS[name])
    try:
        load_weights_into_gpt(model, load_file(weights))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{weights} is damaged or of another model: {error}") from error
    return model.to(device).eval(), tokenizer
