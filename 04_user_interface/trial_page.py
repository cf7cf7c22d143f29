"""A page served by this process, and questions to a page, for the tests and for measuring."""

import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path


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

    page = build_page(folder)
    page.launch(server_port=free_port(), **LAUNCH, **how)
    try:
        yield page.local_url
    finally:
        page.close(verbose=False)


def ask(client, message: str) -> tuple[dict, float]:
    """What `/classify` answers a `gradio_client.Client`, and after how many seconds."""
    begin = time.perf_counter()
    return client.predict(message, api_name="/classify"), time.perf_counter() - begin


def ask_together(client, messages: list[str]) -> list[tuple[dict, float]]:
    """Every message at the same moment, from as many threads."""
    with ThreadPoolExecutor(len(messages)) as pool:
        return list(pool.map(lambda message: ask(client, message), messages))
