"""What the page must reach, on an idle machine with two cores; run with `-m slow`."""

import time
from statistics import median

import pytest

pytest.importorskip("gradio", reason="needs 04_user_interface/requirements-extra.txt")

from gradio_client import Client
from trial_page import ask, ask_together, served


@pytest.mark.slow
def test_the_page_is_fast_enough(folder):
    begin = time.perf_counter()
    with served(folder) as address:
        client = Client(address, verbose=False)
        ask(client, "hello")
        assert time.perf_counter() - begin < 10
        messages = [f"claim your prize {i}" for i in range(50)]
        assert median(ask(client, message)[1] for message in messages[:20]) < 0.3
        assert max(seconds for _, seconds in ask_together(client, messages)) < 5
