"""Downloads from a small server on this machine that serves, refuses, lies and falls silent."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest
import torch
from conftest import command_environment, file_size_limit, run_python
from safetensors.torch import save, save_file

import gpt_download
from gpt_download import DownloadError, RemoteFile, cache_folder, fetch, is_intact

CONTENT = b"A file that matters.\n" * 10_000  # 210 kB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SECONDS_TO_NOTICE = 10
REAL_CACHE = cache_folder()  # that of the run, before the tests set up their own


class Server(ThreadingHTTPServer):
    """Answers `/NAME` as the method `serve_NAME` of its handler says, and notes every request."""

    daemon_threads = True

    def __init__(self):
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()  # set: whoever is kept waiting is let go
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def asked(self, name: str, method: str = "GET") -> int:
        return sum(entry == (method, f"/{name}") for entry in self.requests)


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        name = self.path.strip("/").split("/")[0]
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            getattr(self, f"serve_{name}")()

    def answer(self, body: bytes, length: int | None = None, status: int = 200, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            self.wfile.flush()

    def serve_good(self):
        self.answer(CONTENT)

    def serve_slow(self):
        if self.command == "GET":
            time.sleep(0.5)
        self.answer(CONTENT)

    def serve_truncated(self):
        self.answer(CONTENT[:-1000], length=len(CONTENT))

    def serve_short(self):
        self.answer(CONTENT[:-1000])  # and says so: only the checksum tells

    def serve_corrupted(self):
        self.answer(b"X" + CONTENT[1:])

    def serve_empty(self):
        self.answer(b"")

    def serve_404(self):
        self.answer(b"not here", status=404)

    def serve_500(self):
        self.answer(b"out of order", status=500)

    def serve_silent(self):
        self.server.released.wait(60)

    def serve_halfway(self):
        if self.command == "HEAD":
            self.answer(CONTENT)
            return
        self.answer(CONTENT[:50_000], length=len(CONTENT))
        self.server.released.wait(60)

    def log_message(self, *_):
        pass


@contextmanager
def running(server: Server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server():
    with running(Server()) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache, and no proxy between the tests and their server."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CH06_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    return folder


def remote_file(*urls: str, sha256: str = SHA256) -> RemoteFile:
    return RemoteFile("folder/file.bin", urls, sha256)


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
    file = remote_file(server.url("good"))
    path = fetch(file)
    assert path == cache / "folder" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert server.asked("good") == 1
    num_requests = len(server.requests)
    assert fetch(file) == path
    assert len(server.requests) == num_requests


@pytest.mark.parametrize("bad", ["truncated", "short", "corrupted", "empty", "404", "500"])
def test_after_a_bad_answer_the_second_address_is_tried(server, cache, bad):
    file = remote_file(server.url(bad), server.url("good"))
    assert fetch(file).read_bytes() == CONTENT
    assert server.asked(bad, "HEAD") + server.asked(bad) >= 1
    assert server.asked("good") == 1
    assert left_behind(cache) == ["folder/file.bin"]


@pytest.mark.parametrize("bad", ["truncated", "short", "corrupted", "empty", "404", "500"])
def test_a_bad_answer_leaves_nothing_behind(server, cache, bad):
    with pytest.raises(DownloadError):
        fetch(remote_file(server.url(bad)))
    assert left_behind(cache) == []


def test_the_second_address_is_left_alone_if_the_first_serves(server):
    fetch(remote_file(server.url("good"), server.url("slow")))
    assert server.asked("slow", "HEAD") == server.asked("slow") == 0


def test_the_message_names_file_addresses_checksum_place_and_reasons(server, cache):
    file = remote_file(server.url("404"), server.url("corrupted"))
    with pytest.raises(DownloadError) as caught:
        fetch(file)
    message = str(caught.value)
    place = str(cache / "folder" / "file.bin")
    for part in ("folder/file.bin", *file.urls, SHA256, place, "CH06_CACHE", "404", "by hand"):
        assert part in message
    assert message.count("SHA-256:") == 1


def test_an_error_without_a_text_is_reported_like_any_other(server, monkeypatch):
    def fail(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(DownloadError, match="TimeoutError"):
        fetch(remote_file(server.url("good")))


def test_the_project_pins_every_plain_download_and_the_default_weights():
    files = [gpt_download.SMS_SPAM_ZIP, *gpt_download.GPT2_TOKENIZER_FILES]
    files.append(gpt_download.GPT2_WEIGHTS["gpt2-small (124M)"])
    for file in files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert all(url.startswith("https://") for url in file.addresses)
    assert len(gpt_download.SMS_SPAM_ZIP.addresses) >= 2
    for file in gpt_download.GPT2_WEIGHTS.values():
        assert len(bytes.fromhex(file.hub_revision)) == 20
        assert file.hub_revision in file.addresses[0]


# --- what stands in the cache already ----------------------------------------------------------


@pytest.mark.parametrize("altered", [b"", CONTENT[:-1], b"X" + CONTENT[1:], CONTENT + b"X"])
def test_an_altered_file_in_the_cache_is_replaced(server, cache, altered):
    file = remote_file(server.url("good"))
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(altered)
    assert not is_intact(file)
    assert fetch(file).read_bytes() == CONTENT


def test_an_altered_file_is_not_left_in_place_when_there_is_no_network(cache):
    file = remote_file(refused_url())
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(CONTENT[:-1])
    with pytest.raises(DownloadError):
        fetch(file)
    assert left_behind(cache) == []


def test_a_file_put_there_by_hand_is_used_without_a_network(cache):
    file = remote_file(refused_url())
    with pytest.raises(DownloadError):
        fetch(file)
    file.path.write_bytes(CONTENT)  # its folder is there already
    assert fetch(file) == file.path


def test_a_read_only_cache_that_holds_the_file_is_enough(cache):
    file = remote_file(refused_url())
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(CONTENT)
    file.path.chmod(0o444)
    file.path.parent.chmod(0o555)
    before = sorted(cache.rglob("*"))
    try:
        assert fetch(file) == file.path
        assert sorted(cache.rglob("*")) == before  # root may write anywhere: look what was written
    finally:
        file.path.parent.chmod(0o755)


@pytest.mark.parametrize("in_the_way", ["folder", "folder/file.bin/inside"])
def test_something_else_in_the_file_s_place_gives_the_message(server, cache, in_the_way):
    (cache / in_the_way).parent.mkdir(parents=True)
    (cache / in_the_way).write_text("mine", encoding="utf-8")
    with pytest.raises(DownloadError, match="place: "):
        fetch(remote_file(server.url("good")))
    assert (cache / in_the_way).read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_gives_the_message(cache):
    file = remote_file(refused_url())
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(CONTENT)
    file.path.chmod(0)
    file.path.parent.chmod(0o555)
    try:
        with pytest.raises(DownloadError, match="Permission"):
            fetch(file)
    finally:
        file.path.parent.chmod(0o755)


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("CH06_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("CH06_CACHE", "~nobody-of-this-name/somewhere")
    assert cache_folder().name == "somewhere"  # a place like any other, not a crash
    for unset in ("", None):
        monkeypatch.delenv("CH06_CACHE") if unset is None else monkeypatch.setenv("CH06_CACHE", "")
        assert cache_folder() == Path(pooch.os_cache("ch06"))


# --- no network, silence, a full disk ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["refused", "unresolvable", "silent"])
def test_no_network_is_noticed_soon_even_with_two_addresses(server, cache, kind):
    urls = {
        "refused": (refused_url(), refused_url()),
        "unresolvable": ("http://a.invalid/file.bin", "http://b.invalid/file.bin"),
        "silent": (server.url("silent"), server.url("silent")),
    }[kind]
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        fetch(remote_file(*urls))
    assert time.monotonic() - start < SECONDS_TO_NOTICE
    assert all(url in str(caught.value) for url in urls)
    assert left_behind(cache) == []


def test_a_server_that_falls_silent_halfway_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(gpt_download, "SECONDS_TO_ANSWER", 1)
    start = time.monotonic()
    assert fetch(remote_file(server.url("halfway"), server.url("good"))).read_bytes() == CONTENT
    assert time.monotonic() - start < SECONDS_TO_NOTICE
    assert left_behind(cache) == ["folder/file.bin"]


def test_a_full_disk_leaves_nothing_behind(server, cache):
    file = remote_file(server.url("good"))
    with file_size_limit(len(CONTENT) // 2), pytest.raises(DownloadError) as caught:
        fetch(file)
    assert "OSError" in str(caught.value)
    assert left_behind(cache) == []
    assert fetch(file).read_bytes() == CONTENT  # with room again


# --- several at once ---------------------------------------------------------------------------


def test_several_threads_ask_and_one_fetches(server):
    file = remote_file(server.url("slow"))
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: fetch(file), range(6)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server.asked("slow") == 1


FETCH = """
import hashlib, sys
from gpt_download import RemoteFile, fetch
path = fetch(RemoteFile("folder/file.bin", (sys.argv[1],), sys.argv[2]))
print(hashlib.sha256(path.read_bytes()).hexdigest())
"""


def test_several_processes_ask_and_one_fetches(server):
    command = [sys.executable, "-c", FETCH, server.url("slow"), SHA256]
    env = command_environment()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=env, **pipes) for _ in range(3)]
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert stdout.strip() == SHA256
    assert server.asked("slow") == 1


# --- the Hugging Face Hub ----------------------------------------------------------------------

REVISION = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"wte.weight": torch.arange(50_000, dtype=torch.float32)})
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class HubHandler(Handler):
    """`/somebody/MODEL/resolve/REVISION/model.safetensors`: the model's name says how it fails."""

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        model = self.path.split("/")[2] if self.path.count("/") > 1 else ""
        if not self.path.endswith(f"/resolve/{REVISION}/model.safetensors"):
            model = "absent"
        with suppress(BrokenPipeError, ConnectionResetError):
            self.serve_model(model)

    def serve_model(self, model: str):
        if model == "absent":
            self.answer(b"", status=404, X_Error_Code="EntryNotFound")
        elif model == "silent":
            self.server.released.wait(120)
        else:
            body, length = WEIGHTS, len(WEIGHTS)
            if model == "corrupted":
                body = WEIGHTS[:-1] + b"X"
            elif model == "truncated":
                body = WEIGHTS[:-1000]
            elif model == "short":
                body, length = WEIGHTS[:-1000], length - 1000
            elif model == "halfway":
                body = WEIGHTS[:50_000]
                if self.server.asked(self.path.strip("/")) > 1:
                    self.server.released.wait(120)
            etag = f'"{WEIGHTS_SHA256}"'
            self.answer(body, length, ETag=etag, X_Repo_Commit=REVISION)
            if model == "halfway" and self.command == "GET":
                self.server.released.wait(120)


@pytest.fixture
def hub(tmp_path):
    server = Server()
    server.RequestHandlerClass = HubHandler
    with running(server):
        yield server


HUB_FETCH = """
import json, sys, time
import gpt_download
gpt_download.SECONDS_TO_ANSWER = float(sys.argv[2])
results = []
for job in json.loads(sys.argv[1]):
    name, sha256 = job["model"], job["sha256"]
    file = gpt_download.RemoteFile(
        f"{name}/model.safetensors", sha256=sha256, hub_repo=f"somebody/{name}",
        hub_revision=sys.argv[3],
    )
    if job.get("altered"):
        file.path.write_bytes(file.path.read_bytes()[:-1])
    if job.get("room"):
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["room"], resource.RLIM_INFINITY))
    start = time.monotonic()
    try:
        outcome = {"path": str(gpt_download.fetch(file))}
    except gpt_download.DownloadError as error:
        outcome = {"error": str(error)}
    results.append(outcome | {"seconds": time.monotonic() - start, "exists": file.path.exists()})
print(json.dumps(results))
"""


def fetch_from_hub(endpoint: str, tmp_path: Path, *jobs: dict, patience: float = 4, **variables):
    """Outcomes of several fetches in a process of its own: the Hub's address is read at import."""
    jobs = [{"sha256": WEIGHTS_SHA256, **job} for job in jobs]
    home = str(tmp_path / "hf-home")
    arguments = ("-c", HUB_FETCH, json.dumps(jobs), patience, REVISION)
    done = run_python(*arguments, HF_ENDPOINT=endpoint, HF_HOME=home, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_weights_come_from_the_hub_once_and_an_altered_copy_is_replaced(hub, cache, tmp_path):
    jobs = ({"model": "good"}, {"model": "good"}, {"model": "good", "altered": True})
    unknown = {"model": "unpinned", "sha256": None}
    jobs += (unknown, unknown | {"altered": True}, unknown)
    outcomes = fetch_from_hub(hub.url("").rstrip("/"), tmp_path, *jobs)
    assert all("path" in outcome for outcome in outcomes), outcomes
    for name in ("good", "unpinned"):
        path = cache / name / "model.safetensors"
        assert path.read_bytes() == WEIGHTS
        address = f"somebody/{name}/resolve/{REVISION}/model.safetensors"
        assert hub.asked(address) == 2  # at first, and after it was altered


def test_bad_answers_of_the_hub_are_never_used_nor_left_in_place(hub, cache, tmp_path):
    names = ["corrupted", "truncated", "short", "absent"]
    jobs = [{"model": name} for name in names] + [{"model": "short", "sha256": None}]
    outcomes = fetch_from_hub(hub.url("").rstrip("/"), tmp_path, *jobs, patience=1)
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert "error" in outcome, (job, outcome)
        assert not outcome["exists"]
        for part in (f"{job['model']}/model.safetensors", hub.url("somebody"), "place: "):
            assert part in outcome["error"]
    assert WEIGHTS_SHA256 in outcomes[0]["error"]
    assert "not known" in outcomes[-1]["error"]


def test_a_full_disk_leaves_nothing_of_the_weights_behind(hub, cache, tmp_path):
    pytest.importorskip("resource")
    job = {"model": "good", "room": len(WEIGHTS) // 2}
    outcome = fetch_from_hub(hub.url("").rstrip("/"), tmp_path, job)[0]
    assert "OSError" in outcome["error"]
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1000


@pytest.mark.slow
def test_a_hub_that_falls_silent_halfway_is_given_up(hub, cache, tmp_path):
    outcome = fetch_from_hub(hub.url("").rstrip("/"), tmp_path, {"model": "halfway"}, patience=1)[0]
    assert "error" in outcome
    assert outcome["seconds"] < 60  # six attempts of a second each; longer pauses between them
    assert not outcome["exists"]


def test_a_hub_that_does_not_answer_is_noticed_soon(hub, tmp_path):
    outcome = fetch_from_hub(hub.url("").rstrip("/"), tmp_path, {"model": "silent"})[0]
    assert outcome["seconds"] < SECONDS_TO_NOTICE
    assert "no answer in 4" in outcome["error"] or "Timeout" in outcome["error"]


def test_a_refusing_and_an_unresolvable_hub_are_noticed_soon(tmp_path):
    for endpoint in (refused_url().removesuffix("/file.bin"), "http://hub.invalid"):
        outcome = fetch_from_hub(endpoint, tmp_path, {"model": "good"})[0]
        assert outcome["seconds"] < SECONDS_TO_NOTICE
        assert f"{endpoint}/somebody/good/resolve/{REVISION}" in outcome["error"]


def test_offline_mode_gives_the_message_at_once_and_asks_nobody(hub, server, tmp_path):
    endpoint = hub.url("").rstrip("/")
    outcome = fetch_from_hub(endpoint, tmp_path, {"model": "good"}, HF_HUB_OFFLINE="1")[0]
    assert outcome["seconds"] < 3  # importing takes most of it
    assert "HF_HUB_OFFLINE" in outcome["error"]
    assert hub.requests == []


# --- tokenizers and models ---------------------------------------------------------------------


def test_an_unknown_model_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="no model 'gpt5'") as caught:
        gpt_download.load_pretrained("gpt5")
    assert all(name in str(caught.value) for name in gpt_download.MODEL_CONFIGS)


def test_both_forms_of_a_name_are_the_same_model():
    assert gpt_download.resolve_model_name("gpt2-small") == "gpt2-small (124M)"
    assert gpt_download.resolve_model_name("gpt2-small (124M)") == "gpt2-small (124M)"


def test_gpt_mini_stands_in_loudly_where_gpt2_cannot_be_had(monkeypatch, capsys):
    missing = RemoteFile("gpt2-small/model.safetensors", (refused_url(),), SHA256)
    monkeypatch.setitem(gpt_download.GPT2_WEIGHTS, "gpt2-small (124M)", missing)
    assert gpt_download.default_model_name() == "gpt-mini"
    said = capsys.readouterr().out
    assert "NOTE" in said
    assert str(missing.path) in said
    assert gpt_download.default_model_name(say=lambda _: None) == "gpt-mini"
    assert capsys.readouterr().out == ""


def test_gpt2_is_the_default_where_its_files_are_cached(server, monkeypatch):
    there = remote_file(server.url("good"))
    monkeypatch.setitem(gpt_download.GPT2_WEIGHTS, "gpt2-small (124M)", there)
    monkeypatch.setattr(gpt_download, "GPT2_TOKENIZER_FILES", (there, there))
    assert gpt_download.default_model_name() == "gpt2-small (124M)"


def damaged_mini(tmp_path: Path, monkeypatch) -> Path:
    """A copy of gpt-mini's folder to be damaged, in the place of the real one."""
    folder = tmp_path / "gpt-mini"
    folder.mkdir()
    for name in ("model.safetensors", "vocabulary.tiktoken"):
        (folder / name).write_bytes((gpt_download.MINI_FOLDER / name).read_bytes())
    monkeypatch.setattr(gpt_download, "MINI_FOLDER", folder)
    return folder


@pytest.mark.parametrize("how", ["truncated", "random", "foreign"])
def test_damaged_or_foreign_weights_are_named(tmp_path, monkeypatch, how):
    weights = damaged_mini(tmp_path, monkeypatch) / "model.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "random":
        weights.write_bytes(b"\x93random bytes" * 100)
    else:
        save_file({"conv.weight": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match="damaged or of another model") as caught:
        gpt_download.load_pretrained("gpt-mini")
    assert str(weights) in str(caught.value)


def test_a_damaged_vocabulary_is_named(tmp_path):
    vocabulary = tmp_path / "vocabulary.tiktoken"
    vocabulary.write_text("no base64 at all\n", encoding="ascii")
    with pytest.raises(ValueError, match="damaged") as caught:
        gpt_download.load_mini_tokenizer(tmp_path)
    assert str(vocabulary) in str(caught.value)


@pytest.mark.parametrize("before", [None, "somewhere"])
def test_gpt2_s_tokenizer_comes_from_the_cache(monkeypatch, before):
    monkeypatch.setenv("CH06_CACHE", str(REAL_CACHE))
    if not all(is_intact(file) for file in gpt_download.GPT2_TOKENIZER_FILES):
        pytest.skip(f"GPT-2's tokenizer is not in {REAL_CACHE}")
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    if before:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", before)
    tokenizer = gpt_download.load_tokenizer("gpt2-small")
    assert tokenizer.encode("Hello, I am") == [15496, 11, 314, 716]
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (50257, 50256)
    assert os.environ.get("TIKTOKEN_CACHE_DIR") == before
