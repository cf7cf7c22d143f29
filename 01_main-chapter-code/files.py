"""Files that are either whole or not there, outputs that one process at a time writes to, and
archives."""

import gzip
import hashlib
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

DAMAGES = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, UnicodeError)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to instead of `path`, which gets what was written when it is complete.

    The path lies in a folder `NAME.partial` of its own: whatever a killed process left there, the
    next writer removes.
    """
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)  # its folder may have been removed since the work began
    try:
        yield partial / path.name
        (partial / path.name).replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(content: Any, path: Path) -> None:
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ``ValueError`` that names a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


@contextmanager
def reading_results(folder: Path) -> Iterator[None]:
    """Raises ``ValueError`` where result files in a folder do not hold what they should."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, zlib.error) as error:
        raise ValueError(
            f"a result file in {folder} is damaged, or of another command: {error!r}."
        ) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file; `metadata` should have one entry, since several change their order."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(path) as partial:
            save_file(tensors, partial, metadata)
            partial.chmod(0o644)  # safetensors keeps its files from everybody else
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{path} could not be written: {error}") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tar_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in an archive, .tar.gz or .tar.xz; nothing is extracted.

    Raises ``ValueError`` at a damage, which may show at the end only: with the checksum.
    """
    try:
        with tarfile.open(path, f"r:{path.suffix[1:]}") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()
            while archive.fileobj.read(2**20):
                pass
    except DAMAGES as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}): put a whole one into its place."
        ) from None


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the right to write to an output. Raises ``ValueError`` if another process has it."""
    # The current folder, `.`, has a name, too; resolve() fails at a loop of links.
    output = Path(os.path.realpath(output))
    path = output.with_name(f".{output.name}.lock")  # deleted at the end: no name of the reader's
    lock = FileLock(path, blocking=False)
    try:
        with lock:
            try:
                yield
            finally:
                with suppress(OSError):  # Windows deletes no file that is open
                    path.unlink()
    except Timeout:
        raise ValueError(
            f"{output}: another process is writing there; wait for it, or choose another output."
        ) from None
