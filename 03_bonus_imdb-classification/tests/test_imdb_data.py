"""Reviews: whole or refused, the same bytes on every run, nothing outside the folder."""

import hashlib
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
from imdb_samples import NUM_PER_LABEL, archive_members, write_archive, write_folder

import download_prepare_dataset as prepare
from remote_files import RemoteFile, cache_folder

REAL_CACHE = cache_folder()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A data set of 80 reviews, and an empty cache."""
    monkeypatch.setattr(prepare, "REVIEWS_PER_LABEL", NUM_PER_LABEL)
    monkeypatch.setenv("CH06_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def archive(tmp_path) -> Path:
    (tmp_path / "cache").mkdir()
    folder = write_folder(tmp_path, archive_members())
    return write_archive(tmp_path / "cache" / "aclImdb_labelled.tar.xz", folder)


def checksums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_archive_and_folder_give_the_same_bytes_on_every_run(tmp_path, archive):
    for output in ("a", "b", "a"):
        assert prepare.main([f"--output={tmp_path / output}"]) == 0
    archive.unlink()
    write_folder(tmp_path / "cache", archive_members())
    assert prepare.main([f"--output={tmp_path / 'c'}"]) == 0
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b") == checksums(tmp_path / "c")
    assert {*checksums(tmp_path / "a")} == {f"{part}.parquet" for part in prepare.PARTS}


def test_markup_is_removed_and_facts_of_the_path_are_kept(archive):
    reviews = prepare.read_reviews(archive)
    assert len(reviews) == 4 * NUM_PER_LABEL
    assert not reviews["text"].str.contains("<").any()
    first = reviews.set_index("id").loc["train/pos/3_9"]
    assert first["text"].endswith("\nnumber train pos 3")
    assert (first["label"], first["rating"], first["film"]) == ("pos", 9, "tt0000001")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a<br /><br />b<br>c<BR/>d", "a\nb\nc\nd"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
        ("<i>it</i> <grin>", "it <grin>"),
        ("\x93so\x94 \x96 it\x92s", "“so” – it’s"),
        ("caf\xe9 \x81!", "caf\xe9 !"),
        ("  &#269; &lt; ", "\u010d <"),
    ],
)
def test_remove_markup(raw, clean):
    assert prepare.remove_markup(raw) == clean


def test_whole_films_are_on_one_side_and_no_text_is_on_two():
    rows = [(f"train/pos/{i}_8", f"text {i}", "pos", 8, f"tt{i // 3:07}") for i in range(600)]
    for i, text in enumerate(["text 5", "seen"]):
        rows += [(f"train/neg/{i}_1", text, "neg", 1, "tt9")]
        rows += [(f"test/neg/{i}_1", "seen", "neg", 1, "tt8")]
    reviews = pd.DataFrame(rows, columns=["id", "text", "label", "rating", "film"])
    parts = prepare.split_reviews(reviews)
    assert not set(parts["train"]["film"]) & set(parts["validation"]["film"])
    texts = [set(part["text"]) for part in parts.values()]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    assert len(parts["test"]) == 2  # as published, repetitions and all
    assert len(parts["train"]) + len(parts["validation"]) == 600
    assert 20 < len(parts["validation"]) < 120


def test_interrupted_extraction_is_refused(tmp_path, capsys):
    members = archive_members()
    write_folder(tmp_path / "cache", dict(list(members.items())[: len(members) // 2]))
    assert prepare.main([f"--output={tmp_path / 'out'}"]) == 2
    message = capsys.readouterr().err
    assert "missing in train/pos, test/neg, test/pos" in message
    assert not (tmp_path / "out").exists()


def test_the_published_archive_comes_before_its_other_forms(archive, monkeypatch):
    assert prepare.find_source() == archive
    published = archive.with_name("aclImdb_v1.tar.gz")
    published.write_bytes(archive.read_bytes())
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(prepare, "IMDB_ARCHIVE", RemoteFile(published.name, (), md5=md5))
    assert prepare.find_source() == published


def test_real_reviews_are_all_there(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setenv("CH06_CACHE", str(REAL_CACHE))
    names = ("aclImdb_v1.tar.gz", "aclImdb_labelled.tar.xz", "aclImdb")
    if not any((REAL_CACHE / name).exists() for name in names):
        pytest.skip("the film reviews are not in the cache")
    assert prepare.main([f"--output={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "50,000 reviews" in printed
    assert "123 texts stand in both halves" in printed
    parts = prepare.read_parts(tmp_path)
    assert [len(part) for part in parts.values()] == [22_152, 2_627, 25_000]
    assert (parts["test"]["label"] == "pos").sum() == 12_500
    films = {name: set(part["film"]) for name, part in parts.items()}
    assert not films["train"] & films["validation"]
    assert not films["train"] & films["test"]
    [film] = films["validation"] & films["test"]  # the one that the README mentions
    assert (parts["test"]["film"] == film).sum() == 23
    readme = (Path(prepare.__file__).parent / "README.md").read_text(encoding="utf-8")
    for line in printed.splitlines()[-3:]:
        if pyarrow.__version__ != "26.0.1":  # others may write other bytes for the same table
            line = line.partition(", SHA-256")[0]
        assert " ".join(line.split()) in " ".join(readme.split())
