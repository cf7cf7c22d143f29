"""What the fine-tuned GPT is compared with: classical models, and a frozen one's features."""

from collections.abc import MutableMapping
from typing import Any

import numpy as np
import torch
from experiment_config import ExperimentConfig
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from evaluation import ngram_baseline
from features import FeatureDataset
from fine_tuning import Clock, load_decoder, make_datasets
from run_messages import Messages
from text_classifier import POOLINGS, ClassifierConfig, GPTClassifier, pick_device
from text_data import SpamDataset

BASELINES = {
    "majority": lambda: make_pipeline(CountVectorizer(), DummyClassifier()),
    "naive_bayes": lambda: make_pipeline(CountVectorizer(), MultinomialNB()),
    "word_ngrams": lambda: make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=100, max_iter=1000),
    ),
    "char_ngrams": ngram_baseline,
    "char_svm": lambda: make_pipeline(ngram_baseline()[0], LinearSVC()),
}


def run_classical(
    config: ExperimentConfig, messages: Messages
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, 2) of a classical model, and what is worth knowing about it."""
    splits, clock, pipeline = messages.splits, Clock(), BASELINES[config.classifier]()
    if config.balance == "weights":
        pipeline[-1].set_params(class_weight="balanced")
    with clock.stage("baseline"):
        pipeline.fit(splits.train["text"], splits.train["label"])
        if hasattr(pipeline, "predict_proba"):
            probabilities = pipeline.predict_proba(splits.test["text"])
        else:  # a support vector machine's margins, squashed into (0, 1)
            spam = 1 / (1 + np.exp(-pipeline.decision_function(splits.test["text"])))
            probabilities = np.stack([1 - spam, spam], axis=1)
    about = {"model": config.classifier, "train": {"num_examples": len(splits.train)}}
    return probabilities, about | {"seconds": clock.seconds}


def run_frozen_features(
    config: ExperimentConfig, messages: Messages, store: MutableMapping | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, 2) of a regression on the pooled final states of a pretrained model,
    of which nothing is trained, and what is worth knowing about it."""
    clock, device = Clock(), pick_device(config.device)
    with clock.stage("model"):
        decoder, tokenizer, name = load_decoder(config, device)
        max_length = config.max_length or decoder.cfg.context_length
        about = ClassifierConfig(name, messages.label_names, max_length, config.pooling)
        train, _, test = make_datasets(messages, tokenizer, about)
    with clock.stage("frozen_layers"):
        x_train, x_test = (
            pooled_features(GPTClassifier(decoder, about), dataset, config, store)
            for dataset in (train, test)
        )
    with clock.stage("training"):
        weights = "balanced" if config.balance == "weights" else None
        # C was chosen on validation messages of seeds 101 to 106.
        regression = LogisticRegression(C=0.1, max_iter=1000, class_weight=weights)
        regression.fit(x_train, train.labels)
    metrics = {"model": name, "train": {"num_examples": len(train)}, "seconds": clock.seconds}
    return regression.predict_proba(x_test), metrics


def pooled_features(
    classifier: GPTClassifier,
    dataset: SpamDataset,
    config: ExperimentConfig,
    store: MutableMapping | None,
) -> np.ndarray:
    """Each message's final states, pooled: (N, D)."""
    decoder, pool = classifier.decoder, POOLINGS[config.pooling]
    features = FeatureDataset.from_classifier(
        classifier, dataset, len(decoder.trf_blocks), config.precision, not config.quiet, store
    )
    with torch.no_grad():
        pooled = [
            pool(decoder.final_norm(states).unsqueeze(0), torch.ones(1, len(states), dtype=bool))
            for states in features.sequences
        ]
    return torch.cat(pooled).numpy()
