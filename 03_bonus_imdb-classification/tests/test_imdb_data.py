"""Reviews: whole or refused, the same bytes on every run, nothing outside the folder."""

import gzip
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pyarrow
import pytest
from imdb_samples import (
    NUM_PER_LABEL,
    archive_members,
    file_size_limit,
    write_archive,
    write_folder,
)

import download_prepare_dataset as prepare
import gpt_download
from gpt_download import DownloadError, RemoteFile, cache_folder, fetch
from message_files import DataError

REAL_CACHE = cache_folder()


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A data set of 80 reviews, an empty cache, no network."""
    monkeypatch.setattr(prepare, "REVIEWS_PER_LABEL", NUM_PER_LABEL)
    monkeypatch.setenv("CH06_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def archive(tmp_path) -> Path:
    return write_archive(tmp_path / "aclImdb_v1.tar.gz", archive_members())


def prepare_data(*arguments) -> int:
    return prepare.main([*map(str, arguments), "--quiet"])


def checksums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# --- what comes out ----------------------------------------------------------------------------


def test_archive_and_folder_give_the_same_bytes_on_every_run(tmp_path, archive):
    folder = write_folder(tmp_path, archive_members())
    for source, output in ((archive, "a"), (archive, "b"), (folder, "c"), (archive, "a")):
        assert prepare_data("--source", source, "--output", tmp_path / output) == 0
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b") == checksums(tmp_path / "c")
    assert sorted(checksums(tmp_path / "a")) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_markup_is_gone_and_the_path_s_facts_are_kept(archive):
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
    rows += [
        ("train/neg/0_1", "text 5", "neg", 1, "tt9"),
        ("train/neg/1_1", "seen", "neg", 1, "tt9"),
    ]
    rows += [("test/neg/0_1", "seen", "neg", 1, "tt8"), ("test/neg/1_1", "seen", "neg", 1, "tt8")]
    reviews = pd.DataFrame(rows, columns=["id", "text", "label", "rating", "film"])
    parts = prepare.split_reviews(reviews)
    assert not set(parts["train"]["film"]) & set(parts["validation"]["film"])
    texts = [set(part["text"]) for part in parts.values()]
    assert not texts[0] & texts[1]
    assert not (texts[0] | texts[1]) & texts[2]
    assert len(parts["test"]) == 2  # as published, repetitions and all
    assert len(parts["train"]) + len(parts["validation"]) == 600
    assert 20 < len(parts["validation"]) < 120


def test_counts_are_printed(archive, tmp_path, capsys):
    members = archive_members()
    members["aclImdb/train/pos/3_9.txt"] = members["aclImdb/test/pos/4_9.txt"]
    write_archive(archive, members)
    assert prepare_data("--source", archive, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "80 reviews, 79 different texts" in printed
    assert "1 texts stand in both halves" in printed
    assert "1 reviews of the training half left out" in printed
    assert checksums(tmp_path / "out")["test.parquet"] in printed


# --- what can go wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_refused(archive, tmp_path, capsys, share):
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    assert prepare_data("--source", archive, "--output", tmp_path / "out") == 2
    assert "truncated or damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_archive_with_a_wrong_sum_is_refused(archive, tmp_path, capsys):
    content = gzip.decompress(archive.read_bytes())
    half = len(content) // 2
    first = bytearray(gzip.compress(content[:half]))
    first[-8] ^= 1  # gzip's CRC-32, compared when the next part is read
    archive.write_bytes(first + gzip.compress(content[half:]))
    assert prepare_data("--source", archive, "--output", tmp_path / "out") == 2
    assert "truncated or damaged" in capsys.readouterr().err


def test_a_missing_source_is_named(tmp_path, capsys):
    assert prepare_data("--source", tmp_path / "nowhere") == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "--source" in message


def test_a_folder_of_an_interrupted_extraction_is_refused(tmp_path, capsys):
    members = archive_members()
    kept = dict(list(members.items())[: len(members) // 2])
    folder = write_folder(tmp_path, kept)
    assert prepare_data("--source", folder, "--output", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "20 of 20 reviews are missing in test/neg" in message
    assert "test/urls_pos.txt is missing" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe broken"])
def test_a_damaged_review_is_named(archive, content, capsys):
    members = archive_members() | {"aclImdb/test/neg/7_2.txt": content}
    write_archive(archive, members)
    assert prepare_data("--source", archive) == 2
    assert "test/neg/7_2" in capsys.readouterr().err


def malicious(kind: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("../escaped.txt" if kind == "above" else "/escaped-by-a-review.txt")
    if kind == "link":
        info = tarfile.TarInfo("aclImdb/train/pos/99_9.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "../../../../../secret"
    elif kind == "device":
        info = tarfile.TarInfo("aclImdb/device")
        info.type = tarfile.CHRTYPE
    elif kind == "huge":
        info = tarfile.TarInfo("aclImdb/train/pos/99_9.txt")
        info.size = prepare.MAX_FILE_BYTES + 1
    else:
        info.size = 5
    return info


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "device", "huge"])
def test_a_malicious_member_is_refused_and_nothing_is_written(tmp_path, kind, capsys):
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    archive = write_archive(folder / "a.tar.gz", archive_members(), malicious(kind))
    before = sorted(tmp_path.rglob("*"))
    status = prepare_data("--source", archive, "--output", folder / "out")
    if kind == "absolute":  # its leading slash counts for nothing: a file that is not needed
        assert status == 0
        assert not Path("/escaped-by-a-review.txt").exists()
        return
    assert status == 2
    assert str(archive) in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_what_was_there(archive, tmp_path, capsys):
    output = tmp_path / "out"
    assert prepare_data("--source", archive, "--output", output) == 0
    before = checksums(output)
    with file_size_limit(1000):
        assert prepare_data("--source", archive, "--output", output) == 1
    assert "download_prepare_dataset.py:" in capsys.readouterr().err
    assert checksums(output) == before


SLOW_ARCHIVE = """
import signal, sys, time, tarfile
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
sys.path.insert(0, sys.argv[1])
import download_prepare_dataset as prepare
prepare.REVIEWS_PER_LABEL = 20
wait = prepare._is_needed
def slowly(*arguments):
    print("reading", flush=True)
    time.sleep(0.2)
    return wait(*arguments)
prepare._is_needed = slowly
sys.exit(prepare.main(["--source", sys.argv[2], "--output", sys.argv[3], "--quiet"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_run_leaves_nothing_and_the_next_one_succeeds(archive, tmp_path):
    output = tmp_path / "out"
    folder = Path(prepare.__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_ARCHIVE, str(folder), str(archive), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Run it again" in error
    assert not output.exists()
    assert prepare_data("--source", archive, "--output", output) == 0


def test_parts_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(DataError, match=r"train\.parquet is missing; run download_prepare"):
        prepare.read_parts(tmp_path)
    for name in prepare.PARTS:
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"train\.parquet is damaged"):
        prepare.read_parts(tmp_path)


# --- the cache, and the download ---------------------------------------------------------------


def test_the_cache_s_archive_comes_first_then_its_other_forms(tmp_path, monkeypatch, archive):
    cache = tmp_path / "cache"
    folder = write_folder(cache, archive_members())
    assert prepare.find_source() == folder
    labelled = cache / "aclImdb_labelled.tar.xz"
    labelled.write_bytes(b"")
    assert prepare.find_source() == labelled
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    whole = RemoteFile(archive.name, (), md5=md5)
    monkeypatch.setattr(prepare, "IMDB_ARCHIVE", whole)
    (cache / archive.name).write_bytes(archive.read_bytes())
    assert prepare.find_source() == cache / archive.name


class Handler(BaseHTTPRequestHandler):
    """Serves `content`; breaks off after half of it the first time."""

    content = bytes(range(256)) * 2000
    ranges: list[str | None] = []  # noqa: RUF012
    knows_ranges = True

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        asked = self.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.knows_ranges else 0
        self.send_response(206 if start else 200)
        body = self.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if len(self.ranges) == 1 else body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path, monkeypatch, knows_ranges):
    monkeypatch.setattr(Handler, "ranges", [])
    monkeypatch.setattr(Handler, "knows_ranges", knows_ranges)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file.bin"
    md5 = hashlib.md5(Handler.content).hexdigest()
    file = RemoteFile("file.bin", (url,), md5=md5, resumable=True)
    try:
        with pytest.raises(DownloadError, match="MD5"):
            fetch(file)
        half = (tmp_path / "cache" / "file.bin.partial").stat().st_size
        assert 0 < half < len(Handler.content)
        assert fetch(file).read_bytes() == Handler.content
    finally:
        server.shutdown()
        server.server_close()
    assert Handler.ranges == ["bytes=0-", f"bytes={half}-"]
    assert not (tmp_path / "cache" / "file.bin.partial").exists()


def test_a_forged_download_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "ranges", ["a request before"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/file.bin"
    try:
        with pytest.raises(DownloadError, match="MD5"):
            fetch(RemoteFile("file.bin", (url,), md5="0" * 32, resumable=True))
    finally:
        server.shutdown()
        server.server_close()
    left = [p.name for p in (tmp_path / "cache").iterdir() if p.stat().st_size]
    assert left == []


def test_without_data_and_network_the_message_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(gpt_download, "SECONDS_TO_ANSWER", 1)
    nowhere = RemoteFile("aclImdb_v1.tar.gz", ("http://a.invalid/x",), md5="0" * 32)
    monkeypatch.setattr(prepare, "IMDB_ARCHIVE", nowhere)
    assert prepare_data() == 1
    message = capsys.readouterr().err
    for part in ("aclImdb_v1.tar.gz", "http://a.invalid/x", "MD5", "CH06_CACHE", "by hand"):
        assert part in message


# --- the real reviews --------------------------------------------------------------------------


def test_the_real_reviews_are_all_there(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setenv("CH06_CACHE", str(REAL_CACHE))
    names = ("aclImdb_v1.tar.gz", "aclImdb_labelled.tar.xz", "aclImdb")
    if not any((REAL_CACHE / name).exists() for name in names):
        pytest.skip("the film reviews are not in the cache")
    assert prepare_data("--output", tmp_path) == 0
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
