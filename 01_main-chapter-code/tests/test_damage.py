"""Damage of any kind to files of any kind: refused in one sentence, or without effect.

A short run of each kind belongs to the suite, the long one is marked slow.
"""

import json
import random
import shutil
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import made_up_messages
from safetensors.torch import load, load_file, save
from test_classifier_folder import vouch_for
from tiny import tiny_classifier, tiny_dataset

from classifier_folder import classify_texts, open_classifier
from files import file_sha256, tar_members
from remote_files import DownloadError, RemoteFile, fetch
from training import Checkpoint, TrainConfig, TrainingState, train_classifier_simple

REFUSALS = (ValueError, FileNotFoundError, DownloadError)


# --- what happens to files ---------------------------------------------------------------------


def damaged_bytes(raw: bytes, rng: random.Random) -> bytes:
    """What disks and transfers do."""
    at, length = rng.randrange(len(raw)), rng.randint(1, 64)
    start, end = raw[:at], raw[at + length :]
    changed = bytes([raw[at] ^ rng.randint(1, 255)]) + raw[at + 1 :]
    others = (end, bytes(length) + end, b"\xff" * length + end, rng.randbytes(length) + raw[at:])
    return rng.choice([start + changed, start, *(start + other for other in others), raw + raw])


def damaged_json(raw: bytes, rng: random.Random) -> bytes:
    """What people and programs do to settings: entries renamed, left out, or others."""
    content = json.loads(raw)
    name = rng.choice(list(content))
    value = content.pop(name)
    other = value[::-1] if isinstance(value, (str, list)) else rng.choice([None, 7, "7", {}])
    content |= rng.choice([{}, {name + "_": value}, {name: other}])
    return json.dumps(content).encode()


def damaged_tensors(raw: bytes, rng: random.Random) -> bytes:
    """What converters do to weights: renamed, left out, rounded, reshaped, not a number."""
    tensors = load(raw)
    about = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    name = rng.choice(list(tensors))
    tensor = tensors.pop(name)
    not_a_number = tensor.float().clone().fill_(rng.choice([np.nan, np.inf]))
    others = [tensor.half(), tensor.double(), tensor.unsqueeze(0), tensor + 1, not_a_number]
    tensors |= rng.choice([{}, {name + "_": tensor}, *({name: other} for other in others)])
    return save(tensors, about)


CONTENT = {".json": damaged_json, ".safetensors": damaged_tensors}


def damage(folder: Path, rng: random.Random) -> None:
    """Damage one of a folder's files, remove it, or put another one beside it."""
    paths = sorted(folder.iterdir())
    path = rng.choice(paths)
    what = rng.choices(["bytes", "content", "missing", "more"], [10, 10, len(paths) - 1, 1])[0]
    if what == "more":
        (folder / "another").write_bytes(rng.randbytes(9))
    elif what == "missing":
        path.unlink()
    else:
        how = CONTENT.get(path.suffix, damaged_bytes) if what == "content" else damaged_bytes
        path.write_bytes(how(path.read_bytes(), rng))


# --- the kinds of files: how one is made in a folder, and what is read from it -------------------


def read_classifier(folder: Path) -> list:
    classifier, tokenizer = open_classifier(folder)
    answers = classify_texts(classifier, tokenizer, ["hello there", "", "win £1000 " * 30])
    return [classifier.config, answers.tolist()]


def write_checkpoint(folder: Path) -> None:
    checkpoint, dataset = Checkpoint(folder / "checkpoint.safetensors", {"data": "a"}), DATASET
    train_classifier_simple(tiny_classifier(), dataset, dataset, CONFIG, checkpoint=checkpoint)


def read_checkpoint(folder: Path) -> list:
    state = TrainingState(tiny_classifier(), DATASET, CONFIG)
    Checkpoint(folder / "checkpoint.safetensors", {"data": "a"}).load(state)
    moments = state.optimizer.state_dict()["state"]
    tensors = [*state.parameters.values(), *(t for m in moments.values() for t in m.values())]
    tensors += state.best_weights.values()
    return [state.history, [tensor.tolist() for tensor in tensors]]


CONFIG = TrainConfig(num_epochs=1, patience=1)
DATASET = tiny_dataset(8)
TEXTS = [text.encode() * 20 for text, _ in made_up_messages(20)]


def write_tar(folder: Path, how: str) -> None:
    with tarfile.open(folder / f"archive.tar.{how}", f"w:{how}") as archive:
        for i, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"train/pos/{i}.txt")
            member.size = len(text)
            archive.addfile(member, BytesIO(text))


def read_tar(folder: Path) -> list:
    return list(tar_members(next(folder.glob("archive.*"))))


def write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, text in enumerate(TEXTS):
            archive.writestr(zipfile.ZipInfo(f"{i}.txt"), text)


@pytest.fixture
def kinds(tiny_classifier_folder, tmp_path, monkeypatch):
    """By name: what writes a file of this kind, and what reads it."""
    write_zip(tmp_path)
    pinned = RemoteFile("copy/archive.zip", sha256=file_sha256(tmp_path / "archive.zip"))
    monkeypatch.setenv("CH06_CACHE", str(tmp_path))

    def read_zip(_folder: Path) -> list:
        with zipfile.ZipFile(fetch(pinned)) as archive:
            return [archive.read(name) for name in archive.namelist()]

    def copy_classifier(folder: Path) -> None:
        shutil.copytree(tiny_classifier_folder, folder, dirs_exist_ok=True)

    return {
        "classifier": (copy_classifier, read_classifier),
        "checkpoint": (write_checkpoint, read_checkpoint),
        "tar.gz": (lambda folder: write_tar(folder, "gz"), read_tar),
        "tar.xz": (lambda folder: write_tar(folder, "xz"), read_tar),
        "zip": (write_zip, read_zip),
    }


REPEATED = (pytest.mark.slow, pytest.mark.repeated)


@pytest.mark.parametrize("number", [25, pytest.param(400, marks=REPEATED)])
@pytest.mark.parametrize("kind", ["classifier", "checkpoint", "tar.gz", "tar.xz", "zip"])
def test_damage_is_refused_in_a_sentence_or_changes_nothing(kinds, tmp_path, kind, number):
    write, read = kinds[kind]
    whole, copy, rng, refusals = tmp_path / "whole", tmp_path / "copy", random.Random(0), []
    copy.mkdir()
    write(copy)
    expected = read(copy)
    shutil.copytree(copy, whole)
    for i in range(number):
        shutil.rmtree(copy)
        shutil.copytree(whole, copy)
        damage(copy, rng)
        try:
            assert read(copy) == expected, i
        except REFUSALS as error:
            refusals.append(error)
    assert len(refusals) > number / 2
    for error in refusals:  # what is to be fetched is described in several lines
        assert str(error)
        assert "\n" not in str(error) or isinstance(error, DownloadError)


@pytest.mark.parametrize("number", [10, pytest.param(200, marks=REPEATED)])
def test_weights_that_cannot_be_are_refused_whoever_vouches_for_them(
    tiny_classifier_folder, number
):
    """The checksum is put right: names, shapes, numbers and their precision must be, too."""
    path, rng = tiny_classifier_folder / "model.safetensors", random.Random(0)
    raw, before = path.read_bytes(), load_file(path)
    for _ in range(number):
        path.write_bytes(damaged_tensors(raw, rng))
        vouch_for(tiny_classifier_folder)
        now = load_file(path)
        kept = now.keys() == before.keys() and all(
            t.dtype == torch.float32 and t.shape == before[n].shape and t.isfinite().all()
            for n, t in now.items()
        )
        if not kept:  # else they are another classifier's
            with pytest.raises(ValueError, match="damaged or was altered"):
                open_classifier(tiny_classifier_folder)


def test_a_header_that_announces_too_much_is_not_believed(tmp_path):
    """A small archive of nothing but zeros could fill all memory."""
    header = tarfile.TarInfo("long name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**12
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as archive:
        archive.fileobj.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(10**6))
    with pytest.raises(ValueError, match="would have 1,000,000,000,000 bytes"):
        list(tar_members(tmp_path / "archive.tar.gz"))
