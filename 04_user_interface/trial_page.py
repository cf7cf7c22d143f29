"""A page with a small classifier, for the tests and for measuring."""

import asyncio
import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import finetune
from text_classifier import open_classifier

WORDS = {
    "ham": ["meet", "home", "lunch", "mum", "later", "work", "bus", "dinner", "sorry", "tonight"],
    "spam": ["win", "prize", "cash", "claim", "free", "call", "now", "award", "urgent", "£500"],
}


def made_up_csv(path: Path, num_messages: int = 120) -> Path:
    """A CSV file of different messages that a few words tell apart, labels in turn."""
    rows = ["text,label"]
    for i in range(num_messages):
        label = ("ham", "spam")[i % 2]
        words = [WORDS[label][(i * step + step) % 10] for step in (1, 3, 7, 9)]
        rows.append(f"{' '.join(words)} {i},{label}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def train_small(folder: Path, csv: Path) -> Path:
    """gpt-mini, fine-tuned for a moment; the folder is one that finetune.py wrote."""
    options = ["--data", str(csv), "--model", "gpt-mini", "--output", str(folder), "--quiet"]
    if finetune.main([*options, "--epochs", "3", "--max-length", "64"]) != 0:
        raise RuntimeError("finetune.py failed")
    return folder


def find_chromium() -> str | None:
    """The browser that is installed here, whatever its command is called."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def served(folder: Path, **how) -> Iterator[str]:
    """The address of a page that this process serves; `how` is for Gradio's `launch`."""
    from page import LAUNCH, build_page

    page = build_page(open_classifier(folder), folder)
    page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **LAUNCH, **how)
    try:
        yield page.local_url
    finally:
        page.close(verbose=False)


def ask_together(address: str, messages: list[str]) -> list[tuple[dict, float]]:
    """`/classify` for all messages at the same moment: each one's answer and its seconds."""

    async def ask(client: httpx.AsyncClient, message: str) -> tuple[dict, float]:
        begin = time.perf_counter()
        call = "/gradio_api/call/classify"
        started = (await client.post(call, json={"data": [message]})).raise_for_status().json()
        events = (await client.get(f"{call}/{started['event_id']}")).raise_for_status().text
        kind, _, data = events.strip().split("\n\n")[-1].partition("\n")
        if kind != "event: complete":
            raise RuntimeError(f"{message}: {events}")
        return json.loads(data.removeprefix("data: "))[0], time.perf_counter() - begin

    async def ask_all() -> list[tuple[dict, float]]:
        async with httpx.AsyncClient(
            base_url=address, timeout=120, limits=httpx.Limits(max_connections=len(messages))
        ) as client:
            return await asyncio.gather(*(ask(client, message) for message in messages))

    return asyncio.run(ask_all())
