"""Damage of any kind to files of any kind: refused in one sentence, or without effect.

A short run of each kind belongs to the suite, the long one is marked slow.
"""

import random
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from helpers import made_up_messages
from test_message_files import pairs, write_as
from tiny import tiny_classifier, tiny_dataset

from classifier_folder import classify_texts, open_classifier
from files import tar_members
from message_files import DataError, read_messages
from training import Checkpoint, TrainConfig, TrainingState, train_classifier_simple

REPEATED = (pytest.mark.slow, pytest.mark.repeated)


def damaged_bytes(raw: bytes, rng: random.Random) -> bytes:
    """What disks and transfers do."""
    at, length = rng.randrange(len(raw)), rng.randint(1, 64)
    start, end = raw[:at], raw[at + length :]
    changed = bytes([raw[at] ^ rng.randint(1, 255)]) + raw[at + 1 :]
    others = (end, bytes(length) + end, b"\xff" * length + end, rng.randbytes(length) + raw[at:])
    return rng.choice([start + changed, start, *(start + other for other in others), raw + raw])


def damage(folder: Path, rng: random.Random) -> None:
    """Damage one of a folder's files, or remove it where it has others beside it."""
    paths = sorted(folder.iterdir())
    path = rng.choice(paths)
    if len(paths) > 1 and rng.random() < 0.1:
        path.unlink()
    else:
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))


def read_classifier(folder: Path) -> list:
    classifier, tokenizer = open_classifier(folder)
    answers = classify_texts(classifier, tokenizer, ["hello there", "", "win £1000 " * 30])
    return [classifier.config, answers.tolist()]


CONFIG = TrainConfig(num_epochs=1, patience=1)
DATASET = tiny_dataset(8)


def write_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder / "checkpoint.pt", {"data": "a"})
    train_classifier_simple(tiny_classifier(), DATASET, DATASET, CONFIG, checkpoint=checkpoint)


def read_checkpoint(folder: Path) -> list:
    state = TrainingState(tiny_classifier(), DATASET, CONFIG)
    Checkpoint(folder / "checkpoint.pt", {"data": "a"}).load(state)
    moments = state.optimizer.state_dict()["state"]
    tensors = [*state.parameters.values(), *(t for m in moments.values() for t in m.values())]
    tensors += state.best_weights.values()
    return [state.history, [tensor.tolist() for tensor in tensors]]


def write_tar(folder: Path, how: str) -> None:
    with tarfile.open(folder / f"archive.tar.{how}", f"w:{how}") as archive:
        for i, (text, _) in enumerate(made_up_messages(20)):
            member = tarfile.TarInfo(f"train/pos/{i}.txt")
            member.size = len(text.encode()) * 20
            archive.addfile(member, BytesIO(text.encode() * 20))


def read_tar(folder: Path) -> list:
    return list(tar_members(next(folder.glob("archive.*"))))


@pytest.fixture
def kinds(tiny_classifier_folder):
    """By name: what writes a file of this kind, and what reads it."""

    def copy_classifier(folder: Path) -> None:
        shutil.copytree(tiny_classifier_folder, folder, dirs_exist_ok=True)

    return {
        "classifier": (copy_classifier, read_classifier),
        "checkpoint": (write_checkpoint, read_checkpoint),
        "tar.gz": (lambda folder: write_tar(folder, "gz"), read_tar),
        "tar.xz": (lambda folder: write_tar(folder, "xz"), read_tar),
    }


@pytest.mark.parametrize("number", [25, pytest.param(400, marks=REPEATED)])
@pytest.mark.parametrize("kind", ["classifier", "checkpoint", "tar.gz", "tar.xz"])
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
        except (ValueError, FileNotFoundError) as error:
            refusals.append(str(error))
    assert len(refusals) > number / 2
    assert not [said for said in refusals if not said or "\n" in said]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_damaged_table_is_refused_or_loses_no_more_than_the_damaged_rows(tmp_path, ending):
    """Hundreds of files, each with one byte removed, added or changed."""
    rows = [
        (f'He said "{i}, perhaps", twice', "ham") if i % 3 else (f"{i}", "spam") for i in range(9)
    ]
    path = write_as(tmp_path / f"m.{ending}", rows)
    raw, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        at, new = rng.randrange(len(raw)), rng.choice(b'",;\t\n\r a1\\{}\xff')
        removed, added = rng.choice([(1, b""), (0, bytes([new])), (1, bytes([new]))])
        path.write_bytes(raw[:at] + added + raw[at + removed :])
        try:
            found = pairs(read_messages(path, "text", "label", log=lambda _: None))
        except DataError:
            refused += 1
        else:
            assert len(set(rows) - set(found)) <= 2, (at, removed, added)
            assert len(found) >= len(rows) - 2
    assert 0 < refused < 500
