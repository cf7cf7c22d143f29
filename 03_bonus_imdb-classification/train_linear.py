"""Linear models on word counts: the rivals that a GPT has to beat on film reviews.

    python 03_bonus_imdb-classification/train_linear.py

measures a majority vote, two TF-IDF regressions and an NB-SVM (Wang and Manning 2012) on the
official test half, and writes a result file for each. They learn from the training and the
validation part together; their strength of regularisation was chosen with `--choose`, which learns
from the one and measures on the other.

Shapes in comments: N reviews, V n-grams.
"""

import argparse
import re
import startup_errors  # noqa: F401
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

import imdb_results as report
from command_line import make_parser, run_command
from download_prepare_dataset import PARTS, REVIEWS, read_parts
from measuring import Clock, in_fresh_process, machine

# Words, and signs one by one: what reviewers mean by "!", "?" or "10" is worth counting.
TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s]")
BETA = 0.25  # of the NB-SVM, as in the paper
SEED = 1  # of the reviews drawn, and of the SVM


def words(text: str) -> list[str]:
    """Lower-case words and single signs.

    >>> words("Don't miss it!!")
    ["don't", 'miss', 'it', '!', '!']
    """
    return TOKEN.findall(text.lower())


class NBSVM(ClassifierMixin, BaseEstimator):
    """A linear SVM whose inputs are weighed as a naive Bayes classifier would weigh them.

    Wang and Manning (2012), "Baselines and Bigrams: Simple, Good Sentiment and Topic
    Classification", section 2.3: each n-gram's presence is multiplied by the logarithm of the
    ratio of its shares in both classes, and the SVM's weights w are drawn towards their mean
    magnitude, w' = (1 - beta) mean|w| + beta w: towards naive Bayes where the SVM is unsure.
    Takes presences (N, V) of 0 and 1, and labels (N,) of 0 and 1.
    """

    def __init__(self, C: float = 0.1, beta: float = BETA):
        self.C, self.beta = C, beta

    def fit(self, x: csr_matrix, y: np.ndarray) -> "NBSVM":
        self.classes_ = np.unique(y)
        positive, negative = (1 + np.asarray(x[y == label].sum(axis=0)).ravel() for label in (1, 0))
        self.log_ratio_ = np.log(positive / positive.sum() / (negative / negative.sum()))  # (V,)
        svm = LinearSVC(C=self.C, random_state=SEED)
        svm.fit(x.multiply(self.log_ratio_).tocsr(), y)
        weights = svm.coef_.ravel()
        mean = np.abs(weights).mean()
        self.coef_ = self.log_ratio_ * ((1 - self.beta) * mean + self.beta * weights)
        self.intercept_ = self.beta * svm.intercept_[0]
        return self

    def predict_proba(self, x: csr_matrix) -> np.ndarray:
        """(N, 2): scores squeezed between 0 and 1, which makes no probabilities of them."""
        scores = x @ self.coef_ + self.intercept_
        return expit(np.stack([-scores, scores], axis=1))

    def predict(self, x: csr_matrix) -> np.ndarray:
        return self.predict_proba(x).argmax(axis=1)


def counting(kind: type, ngrams: int, **options) -> CountVectorizer:
    """A vectorizer of `words` and of their n-grams up to `ngrams`, those in two reviews or more."""
    return kind(
        tokenizer=words,
        token_pattern=None,  # void beside a tokenizer, which scikit-learn wants said
        lowercase=False,
        ngram_range=(1, ngrams),
        min_df=2,
        dtype=np.float32,
        **options,
    )


# C is the strength that `--choose` found best of those tried.


def majority() -> Pipeline:
    return make_pipeline(DummyClassifier(strategy="most_frequent"))


def tfidf_words(C: float = 3.0, ngrams: int = 1) -> Pipeline:
    vectorizer = counting(TfidfVectorizer, ngrams, sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=C, max_iter=1000))


def tfidf_bigrams(C: float = 10.0) -> Pipeline:
    return tfidf_words(C, ngrams=2)


def nb_svm(C: float = 0.01) -> Pipeline:
    return make_pipeline(counting(CountVectorizer, 2, binary=True), NBSVM(C))


METHODS = {
    "majority": majority,
    "tfidf-words": tfidf_words,
    "tfidf-bigrams": tfidf_bigrams,
    "nb-svm": nb_svm,
}
TRIED = {
    "tfidf-words": (1.0, 3.0, 10.0),
    "tfidf-bigrams": (3.0, 10.0, 30.0),
    "nb-svm": (0.001, 0.01, 0.1, 1.0),
}


def measure(
    name: str, train: pd.DataFrame, test: pd.DataFrame
) -> tuple[dict[str, Any], np.ndarray]:
    """The result of one model, and the test reviews' probabilities of being positive (N,)."""
    model, clock = METHODS[name](), Clock()
    with clock.stage("training"):
        model.fit(train["text"], report.label_numbers(train))
    with clock.stage("inference"):
        positive = model.predict_proba(test["text"])[:, 1]
    result = {
        "method": f"C={model[-1].C:g}" if name in TRIED else "",
        "test": report.metrics(positive, test),
        "parameters": np.size(getattr(model[-1], "coef_", [])),
        "seconds": {key: round(value, 1) for key, value in clock.seconds.items()},
    }
    return result | machine(), positive


def choose(name: str, train: pd.DataFrame, validation: pd.DataFrame) -> tuple[dict[str, Any], None]:
    """Validation accuracy by strength of regularisation; n-grams are counted only once."""
    vectorizer, classifier = METHODS[name]()
    x, labels = vectorizer.fit_transform(train["text"]), report.label_numbers(train)
    other = vectorizer.transform(validation["text"]), report.label_numbers(validation)
    scores = {C: classifier.set_params(C=C).fit(x, labels).score(*other) for C in TRIED[name]}
    by_c = {f"{C:g}": score for C, score in scores.items()}
    return {"accuracy_by_C": by_c, **machine()}, None


def run(args: argparse.Namespace) -> None:
    """Measure the models one after another, each in a process whose memory is its own."""
    if unknown := set(args.methods) - set(METHODS):
        raise ValueError(f"there is no {', '.join(unknown)}; choose of {', '.join(METHODS)}.")
    parts = read_parts(args.data, PARTS[:2] if args.choose else PARTS)
    if args.choose:
        task, train, measured = choose, parts["train"], parts["validation"]
        names = [name for name in args.methods if name in TRIED]
    else:
        train = pd.concat([parts["train"], parts["validation"]], ignore_index=True)
        task, names, measured = measure, args.methods, parts["test"]
    train = report.draw(train, args.train_size, SEED)
    folder = args.results / report.kind_of_run(args.train_size, args.choose)
    suffix, options = "", "--choose" if args.choose else ""
    if args.train_size:
        suffix, options = f"-{args.train_size}", f"--train-size {args.train_size} {options}"
    for name in names:
        result, positive = in_fresh_process(task, name, train, measured)
        about = {"model": name, "seed": SEED, "num_train": len(train)}
        result = about | result | {"command": f"train_linear.py {name} {options}".strip()}
        report.write_result(name + suffix, result, None if args.train_size else positive, folder)
        print(f"{name:<14}{result.get('accuracy_by_C') or report.result_lines(result)}")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("train_linear.py", __doc__.partition("\n")[0])
    parser.add_argument("methods", nargs="*", default=[*METHODS], help="what is measured")
    parser.add_argument("--train-size", type=int, help="reviews learned from; default: all")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="try strengths of regularisation on the validation part; the test half is not read",
    )
    parser.add_argument("--data", type=Path, default=REVIEWS, help="folder of the three parts")
    parser.add_argument("--results", type=Path, default=report.MY_RESULTS, help="folder to write")
    args = parser.parse_args(argv)
    when_stopped, output = "stopped; the models that were done are kept.", args.results / "linear"
    return run_command("train_linear.py", lambda: run(args), when_stopped, output)


if __name__ == "__main__":
    sys.exit(main())
