"""What several test files share: a small trained classifier, its page, and tiny untrained ones."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings

from fine_tuning import RunConfig, fine_tune
from gpt_download import load_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_classifier import ClassifierConfig, GPTClassifier

matplotlib.use("Agg")  # as app.py does: no window, wherever the tests run
settings.register_profile("chapter", deadline=None, max_examples=50)  # a slow machine is no failure
settings.load_profile("chapter")

WORDS = {
    "ham": ["meet", "home", "lunch", "mum", "later", "work", "bus", "dinner", "sorry", "tonight"],
    "spam": ["win", "prize", "cash", "claim", "free", "call", "now", "award", "urgent", "£500"],
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """gpt-mini, fine-tuned for a moment on made-up messages that a few words tell apart."""
    place = tmp_path_factory.mktemp("trained")
    rows = ["text,label"]
    for i in range(120):
        label = ("ham", "spam")[i % 2]
        words = [WORDS[label][(i * step + step) % 10] for step in (1, 3, 7, 9)]
        rows.append(f"{' '.join(words)} {i},{label}")
    data = place / "messages.csv"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    how = {"model": "gpt-mini", "num_epochs": 3, "max_length": 64, "quiet": True}
    fine_tune(RunConfig(data=data, output=place / "classifier", **how))
    return place / "classifier"


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Serves the page of a classifier's folder and gives its address; `how` is for `launch`."""
    pytest.importorskip("gradio", reason="needs 04_user_interface/requirements-extra.txt")
    from page import LAUNCH, build_page

    pages = []

    def serve(folder: Path, **how) -> str:
        pages.append(build_page(folder))
        pages[-1].launch(**LAUNCH, **how)
        return pages[-1].local_url

    yield serve
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="session")
def address(folder, serve) -> str:
    """The address of that classifier's page."""
    return serve(folder)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("gpt-mini")


@pytest.fixture(scope="session")
def make_tiny(tokenizer) -> Callable[..., GPTClassifier]:
    """Tiny classifiers with random weights."""

    def make(label_names: tuple[str, ...], max_length: int, emb_dim: int = 8) -> GPTClassifier:
        torch.manual_seed(0)
        shape = {"vocab_size": tokenizer.n_vocab, "context_length": max_length, "emb_dim": emb_dim}
        decoder = GPTModel(GPTConfig(**shape, n_heads=2, n_layers=1))
        return GPTClassifier(decoder, ClassifierConfig("gpt-mini", label_names, max_length)).eval()

    return make
