"""What several test files share: commands as a reader runs them, tiny data, a tiny classifier."""

import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import settings

from classifier_folder import save_classifier
from gpt_download import load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_classifier import ClassifierConfig, GPTClassifier

matplotlib.use("Agg")  # as the commands do: no window, wherever the tests run

# A slow machine is no failure.
settings.register_profile("chapter", deadline=None, max_examples=50)
settings.load_profile("chapter")

CHAPTER = Path(__file__).resolve().parent.parent
WORDS = {
    "ham": ["meet", "home", "lunch", "mum", "later", "work", "bus", "dinner", "sorry", "tonight"],
    "spam": ["win", "prize", "cash", "claim", "free", "call", "now", "award", "urgent", "£500"],
}


def command_environment(**variables: str) -> dict[str, str]:
    """This process's environment for a command: few threads, UTF-8, and `variables`."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **variables}


def run_python(*arguments, stdin: str | bytes = b"", timeout: int = 120, **variables: str):
    """`python ARGUMENTS` to its end; stdout and stderr come back as text."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=timeout,
        env=command_environment(**variables),
    )
    done.stdout = done.stdout.decode("utf-8").replace("\r\n", "\n")
    done.stderr = done.stderr.decode("utf-8").replace("\r\n", "\n")
    return done


def run_command(script: str, *arguments, **how):
    """`finetune.py`, `classify.py` or another script of this folder, to its end."""
    return run_python(CHAPTER / script, *arguments, **how)


def made_up_messages(num_per_label: int = 30, seed: int = 0) -> list[tuple[str, str]]:
    """Different (text, label) pairs that a few words tell apart, labels in turn."""
    rng = random.Random(seed)
    return [
        (" ".join(rng.choices(words, k=rng.randint(3, 9))) + f" {i}", label)
        for i in range(num_per_label)
        for label, words in WORDS.items()
    ]


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    """Rows whose cells need no quoting."""
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8")
    return path


@contextmanager
def file_size_limit(num_bytes: int):
    """A disk on which a file cannot grow longer, as when it is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def messages_csv(tmp_path: Path) -> Path:
    """A CSV file of 60 messages with the columns text and label."""
    return write_csv(tmp_path / "messages.csv", made_up_messages())


@pytest.fixture(scope="session")
def _saved_tiny_classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    vocab_size = load_mini_tokenizer().n_vocab
    decoder = GPTModel(GPTConfig(vocab_size, context_length=32, emb_dim=16, n_heads=2, n_layers=2))
    card = {"trained_on": "nothing", "training": {}, "test": {}, "made_up_data": True}
    config = ClassifierConfig("gpt-mini", ("ham", "spam"), 32, card=card)
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    save_classifier(GPTClassifier(decoder, config).eval(), folder)
    return folder


@pytest.fixture
def tiny_classifier_folder(_saved_tiny_classifier: Path, tmp_path: Path) -> Path:
    """A saved classifier with random weights: two labels, gpt-mini's tokenizer. A copy, to be
    altered freely."""
    return Path(shutil.copytree(_saved_tiny_classifier, tmp_path / "classifier"))


def edit_json(path: Path, **changes) -> None:
    """Overwrite some fields of a JSON object in a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")
