"""Fixtures that several test files share: made-up messages, a tiny saved classifier."""

import shutil
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from helpers import made_up_messages, write_csv
from hypothesis import settings
from matplotlib.figure import Figure
from tiny import GPT

from classifier_folder import save_classifier
from gpt_download import DownloadError, load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_classifier import ClassifierConfig, GPTClassifier
from text_data import read_sms_spam

matplotlib.use("Agg")  # as the commands do: no window, wherever the tests run

# A slow machine is no failure.
settings.register_profile("chapter", deadline=None, max_examples=50)
settings.load_profile("chapter")


@pytest.fixture
def messages_csv(tmp_path: Path) -> Path:
    """A CSV file of 60 messages with the columns text and label."""
    return write_csv(tmp_path / "messages.csv", made_up_messages())


@pytest.fixture(scope="session")
def unbalanced_csv(tmp_path_factory) -> Path:
    """90 messages, of which 30 are spam, with another text and another label to choose."""
    rows = made_up_messages(60)
    kept = [row for i, row in enumerate(rows) if row[1] == "ham" or i < 60]
    rows = [
        (text, label, f"{text.split()[0]} {i}", f"{i % 2}") for i, (text, label) in enumerate(kept)
    ]
    path = tmp_path_factory.mktemp("unbalanced") / "messages.csv"
    return write_csv(path, rows, "text,label,subject,parity")


@pytest.fixture(scope="session")
def sms() -> pd.DataFrame:
    """The SMS Spam Collection."""
    try:
        return read_sms_spam()
    except DownloadError as error:
        pytest.skip(f"the SMS Spam Collection cannot be had: {str(error).splitlines()[0]}")


@pytest.fixture(scope="session")
def _saved_tiny_classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    vocab_size = load_mini_tokenizer().n_vocab
    decoder = GPTModel(GPTConfig(vocab_size, context_length=32, emb_dim=16, n_heads=2, n_layers=2))
    training = {"text_column": "short"}
    card = {"trained_on": "nothing", "training": training, "test": {}, "made_up_data": True}
    config = ClassifierConfig("gpt-mini", ("ham", "spam"), 32, card=card)
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    save_classifier(GPTClassifier(decoder, config).eval(), folder)
    return folder


@pytest.fixture
def tiny_classifier_folder(_saved_tiny_classifier: Path, tmp_path: Path) -> Path:
    """A saved classifier with random weights: two labels, gpt-mini's tokenizer. A copy, to be
    altered freely."""
    return Path(shutil.copytree(_saved_tiny_classifier, tmp_path / "classifier"))


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Pictures are empty files: to draw them takes longer than to train on a few messages."""
    monkeypatch.setattr(Figure, "tight_layout", lambda _: None)
    monkeypatch.setattr(Figure, "savefig", lambda _, path, **how: Path(path).touch())


@pytest.fixture
def one_thread():
    """As in the commands that run beside the tests, so that both give the same numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def transformers():
    return pytest.importorskip(
        "transformers", reason="needs 01_main-chapter-code/requirements-extra.txt"
    )


@pytest.fixture
def input_ids() -> torch.Tensor:
    """(3, 12) tokens of the small decoders' vocabulary."""
    return torch.randint(GPT.vocab_size, (3, 12), generator=torch.Generator().manual_seed(1))
