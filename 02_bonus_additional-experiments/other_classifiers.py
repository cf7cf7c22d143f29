"""What the fine-tuned GPT is compared with: classical models, and a frozen one's features."""

from typing import Any

import numpy as np
from experiment_config import ExperimentConfig
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from torch import nn

from evaluation import ngram_baseline
from features import FastClassifier, FeatureDataset, Store
from fine_tuning import load_decoder, make_datasets
from measuring import Clock
from run_messages import Messages
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    freeze_all_but,
    pick_device,
    predict_logits,
)

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


def probabilities_of(model, x, num_labels: int) -> np.ndarray:
    """Probabilities (N, C) by a model that has learned the labels' numbers; 0 for a label that no
    training message carries."""
    probabilities = np.zeros((len(x), num_labels))
    probabilities[:, model.classes_] = model.predict_proba(x)
    return probabilities


def run_classical(
    config: ExperimentConfig, messages: Messages, store: Store | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, C) of a classical model, and what is worth knowing about it."""
    splits, clock, pipeline = messages.splits, Clock(), BASELINES[config.classifier]()
    if config.balance == "weights":
        pipeline[-1].set_params(class_weight="balanced")
    names = messages.label_names
    with clock.stage("baseline"):
        pipeline.fit(splits.train["text"], splits.train["label"].map(names.index))
        if hasattr(pipeline, "predict_proba"):
            probabilities = probabilities_of(pipeline, splits.test["text"], len(names))
        else:  # a support vector machine's margins, squashed into (0, 1)
            spam = 1 / (1 + np.exp(-pipeline.decision_function(splits.test["text"])))
            probabilities = np.stack([1 - spam, spam], axis=1)
    about = {"model": config.classifier, "train": {"num_examples": len(splits.train)}}
    return probabilities, about | {"seconds": clock.seconds}


def run_frozen_features(
    config: ExperimentConfig, messages: Messages, store: Store | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Test probabilities (N, C) of a regression on the pooled final states of a pretrained model,
    of which nothing is trained, and what is worth knowing about it."""
    clock, device = Clock(), pick_device(config.device)
    with clock.stage("model"):
        decoder, tokenizer, name = load_decoder(config, device)
        max_length = config.max_length or decoder.cfg.context_length
        about = ClassifierConfig(name, messages.label_names, max_length, config.pooling)
        train, _, test = make_datasets(messages, tokenizer, about)
        classifier = GPTClassifier(decoder, about)
        num_layers = freeze_all_but(classifier, "head")
        decoder.out_head = nn.Identity()  # the "logits" are then the pooled final states
    with clock.stage("frozen_layers"):
        fast = FastClassifier(classifier, num_layers, config.precision)
        x_train, x_test = (
            predict_logits(
                fast,
                FeatureDataset.from_classifier(
                    classifier, dataset, num_layers, config.precision, store=store
                ),
            ).numpy()
            for dataset in (train, test)
        )
    with clock.stage("training"):
        weights = "balanced" if config.balance == "weights" else None
        # C was chosen on validation messages of seeds 101 to 106.
        regression = LogisticRegression(C=0.1, max_iter=1000, class_weight=weights)
        regression.fit(x_train, train.labels)
    metrics = {"model": name, "train": {"num_examples": len(train)}, "seconds": clock.seconds}
    return probabilities_of(regression, x_test, len(messages.label_names)), metrics
