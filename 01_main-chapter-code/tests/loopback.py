"""A small server on this machine that serves, refuses, lies and falls silent."""

import hashlib
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import torch
from safetensors.torch import save

REVISION = "0123456789abcdef0123456789abcdef01234567"
WHEEL, MEMBER = "tiny_model-1.0-py3-none-any.whl", "tiny_model/weights.bin"


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = b"A file that matters.\n" * 10_000  # 210 kB
WEIGHTS = save({"wte.weight": torch.arange(50_000, dtype=torch.float32)})


def make_wheel(content: bytes) -> bytes:
    """A package with one file of data; its code would raise an exception if it were imported."""
    metadata = "tiny_model-1.0.dist-info"
    files = {
        MEMBER: content,
        "tiny_model/__init__.py": b"raise SystemError('imported')\n",
        f"{metadata}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{metadata}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata}/RECORD": b"",
    }
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


BODIES = {  # everything else is answered with error 404
    **dict.fromkeys(("/good", "/slow", "/halfway", "/endless"), CONTENT),
    "/short": CONTENT[:-1000],
    "/corrupted": b"X" + CONTENT[1:],
    "/index/good/" + WHEEL: make_wheel(CONTENT),
    "/index/altered/" + WHEEL: make_wheel(b"X" + CONTENT[1:]),
}
for how in ("good", "altered"):
    BODIES[f"/index/{how}/tiny-model/"] = f'<a href="/index/{how}/{WHEEL}">{WHEEL}</a>'.encode()
for how, body in (("good", WEIGHTS), ("short", WEIGHTS[:-1000]), ("altered", WEIGHTS[:-1] + b"X")):
    BODIES[f"/hub/somebody/{how}/resolve/{REVISION}/model.safetensors"] = body


class Server(ThreadingHTTPServer):
    """As a context, answers as `BODIES` and its handler say, and notes who asked what."""

    daemon_threads = True

    def __init__(self):
        self.requests: list[tuple[str, str]] = []  # method, path
        self.released = threading.Event()  # set: whoever is kept waiting is let go
        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.released.set()
        self.shutdown()
        self.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        if self.path == "/slow" and self.command == "GET":
            time.sleep(0.5)
        elif self.path == "/silent":
            self.server.released.wait(60)
        body = BODIES.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Type", "text/html")
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body or b"")))
        for name, value in ("ETag", f'"{checksum(WEIGHTS)}"'), ("X-Repo-Commit", REVISION):
            self.send_header(name, value)  # as the Hub does
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            self.end_headers()
            if self.command == "GET" and body:
                half = len(body) // 2
                self.wfile.write(body[:half])
                if self.path == "/halfway":
                    self.server.released.wait(60)
                self.wfile.write(body[half:])
                while self.path == "/endless" and not self.server.released.is_set():
                    self.wfile.write(body)

    def log_message(self, *_):
        pass
