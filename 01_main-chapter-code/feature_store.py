"""Hidden states kept on disk, so that a long frozen pass is made once and goes on after a stop."""

import hashlib
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor

from files import save_tensors

SHARD_BYTES = 256 * 1024**2


class FeatureStore:
    """What frozen layers made of texts, (T, D) each, as half-precision numbers in a folder.

    A `store` of `FeatureDataset.from_classifier`: its keys are the layers' hash, the
    precision and the token ids, so that other layers' states are never taken for these. States
    are written in files of a quarter of a gigabyte, each whole or absent, and read where they lie:
    they need not fit in memory. Use it in a `with` statement, whose end writes the rest. Several
    processes may fill one folder, each in files of its own.

    Half precision keeps 11 significant bits. Raises ``ValueError`` for states beyond its
    range, and ``OSError`` for a full disk.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._saved: dict[str, safe_open] = {}
        self._unsaved: dict[str, Tensor] = {}
        self._unsaved_bytes = 0
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *_) -> None:
        self.save()

    def __contains__(self, key: tuple) -> bool:
        name = _name(key)
        return name in self._unsaved or name in self._saved

    def __getitem__(self, key: tuple) -> Tensor:
        name = _name(key)
        return self._unsaved[name] if name in self._unsaved else self._saved[name].get_tensor(name)

    def __setitem__(self, key: tuple, states: Tensor) -> None:
        half = states.detach().to("cpu", torch.float16, copy=True)
        if not half.isfinite().all():
            raise ValueError("These hidden states exceed the range of half precision.")
        self._unsaved[_name(key)] = half
        self._unsaved_bytes += half.nbytes
        if self._unsaved_bytes >= SHARD_BYTES:
            self.save()

    def save(self) -> None:
        """Write what is in memory only."""
        if self._unsaved:
            path = self.folder / f"{uuid4().hex}.safetensors"
            save_tensors(self._unsaved, path, {"format": "pt"})
            self._unsaved, self._unsaved_bytes = {}, 0
            self._open(path)

    def _open(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        self._saved |= dict.fromkeys(file.keys(), file)


def _name(key: tuple) -> str:
    return hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
