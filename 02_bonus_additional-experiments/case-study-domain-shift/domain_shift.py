"""A spam filter trained on text messages meets e-mail: what breaks, what shows it, what helps.

    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py run
    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py report

`run` measures one seed after the other, goes on where it stopped, and writes one JSON file each;
`report` makes tables and figures from these files. No message is ever shown or stored: the
e-mails are those of real people.
"""

import argparse
import copy
import gzip
import json
import lzma
import math
import platform
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
from tqdm import tqdm

from evaluation import calibration, ngram_baseline, roc_curve, test_figures
from finetune import LEARNING_RATES, make_datasets
from gpt_download import DownloadError, cache_folder, load_pretrained, resolve_model_name
from message_files import DataError
from previous_chapters import GPTModel
from several_seeds import fill_in, markdown, mean_and_interval
from text_classifier import (
    FURTHER_PRETRAINING,
    TrainConfig,
    Trainer,
    add_classification_head,
    calc_next_token_loss,
    compute_frozen_layers,
    continue_pretraining,
    encode_for_pretraining,
    freeze_all_but,
    pick_device,
    predict_logits,
    write_text,
)
from text_data import (
    SpamDataset,
    Splits,
    balance_classes,
    clean_messages,
    make_loader,
    read_sms_spam,
    split_messages,
)

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
README = FOLDER / "README.md"
FIGURES = FOLDER / "figures"
ADDRESS = "https://www2.aueb.gr/users/ion/data/enron-spam/"
LABELS = ["ham", "spam"]
MAX_TOKENS = 128  # of a message; an e-mail is cut there
NUM_EMAILS = 2_000  # half to learn from, half to test on
SIZES = (10, 30, 100, 300, 1000)  # labelled e-mails
STREAM_SHARES = (0, 0.05, 0.1, 0.25, 0.5, 1)  # of e-mails among what arrives
STREAM_SIZE = 200
FEWEST_UPDATES = 200  # of a filter's training, however few its messages are
NUM_ARCHIVES = 6
# What reading a damaged archive raises.
DAMAGES = (tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


# ---------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------


def read_emails(folder: Path | None = None) -> pd.DataFrame:
    """The Enron-Spam e-mails (Metsis, Androutsopoulos, Paliouras 2006).

    Read from `enron-spam.tar.xz` in the cache folder, or from the authors' six archives
    `enron1.tar.gz` to `enron6.tar.gz` in its sub-folder `enron-spam`. The collection has no
    licence and real people's names, so it is not fetched: who measures with it gets it by hand.
    """
    folder = folder or cache_folder()
    whole = folder / "enron-spam.tar.xz"
    archives = [whole] if whole.exists() else sorted(folder.glob("enron-spam/enron*.tar.gz"))
    if not whole.exists() and len(archives) < NUM_ARCHIVES:
        raise DownloadError(
            f"The Enron-Spam e-mails are not in the cache ({len(archives)} of the six archives "
            f"are). Download the archives "
            f"enron1.tar.gz to enron6.tar.gz ('preprocessed') from {ADDRESS} and put them into "
            f"{folder / 'enron-spam'}."
        )
    rows = []
    for path in archives:
        try:
            rows += read_archive(path)
        except DAMAGES as error:
            raise DataError(
                f"{path} is damaged ({error}): put a whole one into its place."
            ) from None
    emails = pd.DataFrame(rows, columns=["label", "text"])
    return emails[emails["text"] != ""].reset_index(drop=True)


def read_archive(path: Path) -> list[tuple[str, str]]:
    """(label, text) of each e-mail of an archive."""
    rows = []
    with tarfile.open(path) as archive:
        for member in archive:
            label = label_of(member.name)
            if member.isfile() and label:
                text = archive.extractfile(member).read().decode("latin-1")
                rows.append((label, " ".join(text.split())))
        archive.fileobj.read()  # to the end, where the checksum is compared
    return rows


def shorten(messages: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """The messages cut to what the GPT reads of them, so that no model sees more than another,
    and without those that are then alike."""
    beginnings = [text[: 8 * MAX_TOKENS] for text in messages["text"]]
    encoded = tokenizer.encode_ordinary_batch(beginnings)
    texts = [tokenizer.decode(ids[:MAX_TOKENS]) for ids in encoded]
    return clean_messages(messages.assign(text=texts))


def label_of(path: str) -> str | None:
    """The folder `ham` or `spam` on the way to a text file.

    >>> label_of("enron1/ham/0001.1999-12-10.farmer.ham.txt"), label_of("enron1/Summary.txt")
    ('ham', None)
    """
    found = [part for part in path.split("/")[:-1] if part in LABELS]
    return found[0] if found and path.endswith(".txt") else None


class Emails(NamedTuple):
    """E-mails to learn from, labelled or not, and e-mails to test on."""

    pool: pd.DataFrame
    test: pd.DataFrame


def sample_emails(emails: pd.DataFrame, seed: int, size: int = NUM_EMAILS) -> Emails:
    """As many ham as spam, half for each purpose."""
    drawn = emails.groupby("label").sample(size // 2, random_state=seed)
    halves = train_test_split(drawn, test_size=0.5, stratify=drawn["label"], random_state=seed)
    return Emails(*(half.reset_index(drop=True) for half in halves))


def first_of_each(messages: pd.DataFrame, size: int) -> pd.DataFrame:
    """The first messages of each label, `size` in all."""
    return messages.groupby("label").head(size // 2)


# ---------------------------------------------------------------------------------------------
# Figures of a filter
# ---------------------------------------------------------------------------------------------


def figures(probabilities: np.ndarray, truth: pd.Series) -> dict[str, float]:
    """What breaks: decisions, order of the scores, and how far confidence can be trusted."""
    labels = (truth == "spam").to_numpy().astype(int)
    result = test_figures(probabilities, labels)
    (passed, blocked), (missed, caught) = result["confusion_matrix"]
    return {
        "accuracy": result["accuracy"],
        "roc_area": roc_curve(labels == 1, probabilities[:, 1]).area,
        "calibration_error": calibration(probabilities, labels).expected_error,
        "confidence": float(probabilities.max(axis=1).mean()),
        "ham_blocked": blocked / (passed + blocked),
        "spam_caught": caught / (missed + caught),
    }


class GPTFilter:
    """A language model with cached frozen layers, from which filters are trained."""

    def __init__(self, model: GPTModel, tokenizer, learning_rate: float, seed: int):
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.learning_rate = learning_rate
        self.states: dict[str, torch.Tensor] = {}

    def dataset(self, messages: pd.DataFrame) -> SpamDataset:
        """The messages' hidden states below the last block, computed once for each text."""
        num_frozen = len(self.model.trf_blocks) - 1
        new = messages[~messages["text"].isin(self.states)].drop_duplicates("text")
        if len(new):
            raw = make_datasets([new], LABELS, self.tokenizer, MAX_TOKENS)[0]
            hidden = compute_frozen_layers(self.model, raw, num_frozen)
            self.states.update(zip(new["text"], hidden.sequences, strict=True))
        states = [self.states[text] for text in messages["text"]]
        labels = [LABELS.index(label) for label in messages["label"]]
        return SpamDataset(states, labels, num_frozen)

    def train(self, messages: pd.DataFrame) -> GPTModel:
        """A filter whose last block and head have learned from the messages."""
        dataset = self.dataset(messages)
        updates_per_epoch = math.ceil(len(dataset) / TrainConfig.batch_size)
        num_epochs = max(TrainConfig.num_epochs, math.ceil(FEWEST_UPDATES / updates_per_epoch))
        config = TrainConfig(self.learning_rate, num_epochs, seed=self.seed)
        filter_model = copy.deepcopy(self.model)
        torch.manual_seed(self.seed)
        add_classification_head(filter_model, len(LABELS))
        freeze_all_but(filter_model, "last_block")
        Trainer(filter_model, dataset, config).train_all_epochs()
        return filter_model

    def probabilities(self, filter_model: GPTModel, messages: pd.DataFrame) -> np.ndarray:
        return torch.softmax(predict_logits(filter_model, self.dataset(messages)), dim=-1).numpy()


def both_tests(
    predict: Callable[[pd.DataFrame], np.ndarray], sms: Splits, emails: Emails
) -> dict[str, dict[str, float]]:
    """Figures on text messages and on e-mails of a filter that gives probabilities (N, 2)."""
    tests = {"sms": sms.test, "email": emails.test}
    return {name: figures(predict(part), part["label"]) for name, part in tests.items()}


def learn(gpt: GPTFilter, sms: Splits, emails: Emails, bar: tqdm, alone: bool) -> dict:
    """A GPT filter after text messages, and after labelled e-mails with and without them."""
    trainings = training_sets(sms, emails, alone)
    results = {}
    for name, messages in trainings.items():
        filter_model = gpt.train(messages)
        results[name] = both_tests(partial(gpt.probabilities, filter_model), sms, emails)
        bar.update()
    return results


def training_sets(sms: Splits, emails: Emails, alone: bool = True) -> dict[str, pd.DataFrame]:
    """What a filter may learn from: text messages, some e-mails (`alone`), or both."""
    sets = {"sms": sms.train}
    for size in sorted({min(size, len(emails.pool)) for size in SIZES}):
        some = first_of_each(emails.pool, size)
        if alone:
            sets[f"email {size}"] = some
        sets[f"sms and email {size}"] = pd.concat([sms.train, some], ignore_index=True)
    return sets


def learn_ngrams(sms: Splits, emails: Emails) -> dict:
    """The same for n-grams."""
    results = {}
    for name, messages in training_sets(sms, emails).items():
        pipeline = ngram_baseline().fit(messages["text"], messages["label"])
        results[name] = both_tests(
            lambda part, pipeline=pipeline: pipeline.predict_proba(part["text"]), sms, emails
        )
    return results


# ---------------------------------------------------------------------------------------------
# Signals that need no labels
# ---------------------------------------------------------------------------------------------


def stability_index(reference: np.ndarray, arriving: np.ndarray, num_bins: int = 10) -> float:
    """Population stability index of scores: bins that hold equal shares of the reference, and
    the sum of (p - q) log(p / q) over them. Rules of thumb call 0.25 a large shift.

    >>> scores = np.linspace(0, 1, 1001)
    >>> stability_index(scores, scores) < 0.001 < 1 < stability_index(scores, scores**4)
    True
    """
    edges = np.quantile(reference, np.linspace(0, 1, num_bins + 1)[1:-1])
    shares = []
    for scores in (reference, arriving):
        counts = np.bincount(np.searchsorted(edges, scores), minlength=num_bins)
        shares.append((counts + 0.5) / (len(scores) + 0.5 * num_bins))  # no bin is empty
    p, q = shares
    return float(np.sum((q - p) * np.log(q / p)))


def two_sample_test(reference: Sequence[str], arriving: Sequence[str]) -> tuple[float, float]:
    """How well character n-grams tell the two apart on texts held out, and the chance (p) of
    doing so well if they were alike (Lopez-Paz and Oquab 2017, "Revisiting Classifier
    Two-Sample Tests"); both samples must be of one size."""
    texts = [*reference, *arriving]
    origin = np.repeat([0, 1], [len(reference), len(arriving)])
    # Shuffled: a stream is made part by part, and a part in one fold could not be learned.
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guessed = cross_val_predict(ngram_baseline(), texts, origin, cv=folds)
    hits = int((guessed == origin).sum())
    return hits / len(origin), binomtest(hits, len(origin), alternative="greater").pvalue


@torch.no_grad()
def nats_per_token(model: GPTModel, tokenizer, texts: Sequence[str]) -> float:
    """How much the language model wonders at the texts: mean next-token loss."""
    messages = pd.DataFrame({"text": list(texts), "label": "ham"})
    sequences = make_datasets([messages], LABELS, tokenizer, MAX_TOKENS)[0].sequences
    sequences = [ids for ids in sequences if len(ids) > 1]
    dataset = SpamDataset(sequences, [0] * len(sequences))
    total = count = 0.0
    for batch in make_loader(dataset, 32):
        batch = batch.to(model.tok_emb.weight.device)
        num_targets = int(batch.last_positions.sum())
        total += calc_next_token_loss(model, batch).item() * num_targets
        count += num_targets
    return total / count


def tokens_per_word(tokenizer, texts: Sequence[str]) -> float:
    """How finely the tokenizer must cut the texts."""
    encoded = tokenizer.encode_ordinary_batch(list(texts))
    return sum(map(len, encoded)) / sum(len(text.split()) for text in texts)


def watch(gpt: GPTFilter, filter_model: GPTModel, sms: Splits, emails: Emails) -> dict[str, Any]:
    """The signals on text messages and on e-mails, and on streams that hold some e-mails."""
    scores = {
        name: gpt.probabilities(filter_model, part)
        for name, part in (("reference", sms.validation), ("sms", sms.test), ("email", emails.test))
    }
    texts = {"sms": list(sms.test["text"]), "email": list(emails.test["text"])}
    signals: dict[str, Any] = {"sources": {}, "streams": []}
    for name in texts:
        signals["sources"][name] = {
            "confidence_histogram": np.histogram(scores[name].max(axis=1), bins=10, range=(0.5, 1))[
                0
            ].tolist(),
            "spam_share": float((scores[name][:, 1] > 0.5).mean()),
            "tokens_per_word": tokens_per_word(gpt.tokenizer, texts[name]),
            "nats_per_token": nats_per_token(gpt.model, gpt.tokenizer, texts[name][:200]),
        }
    rng = np.random.default_rng(gpt.seed)
    size = min(STREAM_SIZE, len(sms.test), len(emails.test))
    past = rng.choice(list(sms.train["text"]), size, replace=False)
    for share in STREAM_SHARES:
        num_emails = round(share * size)
        rows = rng.permutation(len(texts["email"]))[:num_emails]
        others = rng.permutation(len(texts["sms"]))[: size - num_emails]
        arriving = np.concatenate([scores["email"][rows], scores["sms"][others]])
        arriving_texts = [texts["email"][i] for i in rows] + [texts["sms"][i] for i in others]
        accuracy, p_value = two_sample_test(past, arriving_texts)
        signals["streams"].append(
            {
                "share": share,
                "stability_index": stability_index(scores["reference"][:, 1], arriving[:, 1]),
                "confidence": float(arriving.max(axis=1).mean()),
                "spam_share": float((arriving[:, 1] > 0.5).mean()),
                "two_sample_accuracy": accuracy,
                "two_sample_p": float(p_value),
            }
        )
    return signals


# ---------------------------------------------------------------------------------------------
# One seed
# ---------------------------------------------------------------------------------------------


def measure(name: str, emails: pd.DataFrame, seed: int, quiet: bool = True) -> dict[str, Any]:
    """All figures of one seed: its split of text messages, its sample of e-mails, its head."""
    start = time.process_time()
    model, tokenizer = load_pretrained(name, pick_device())
    clean = shorten(read_sms_spam(), tokenizer)
    sms = split_messages(balance_classes(clean, seed), seed)
    emails = shorten(emails, tokenizer)
    sampled = sample_emails(emails, seed, min(NUM_EMAILS, 2 * emails["label"].value_counts().min()))
    learning_rate = LEARNING_RATES.get(name, 5e-5)
    num_trainings = len(training_sets(sms, sampled)) + len(training_sets(sms, sampled, False))
    with tqdm(total=num_trainings, desc=f"seed {seed}", unit="filter", disable=quiet) as bar:
        gpt = GPTFilter(model, tokenizer, learning_rate, seed)
        signals = watch(gpt, gpt.train(sms.train), sms, sampled)
        learned = {"gpt": learn(gpt, sms, sampled, bar, alone=True)}
        learned["ngrams"] = learn_ngrams(sms, sampled)
        texts = list(sampled.pool["text"])
        sequences = encode_for_pretraining(texts, tokenizer, model.cfg.context_length)
        further = copy.deepcopy(model)
        continue_pretraining(further, sequences, FURTHER_PRETRAINING)
        gpt = GPTFilter(further, tokenizer, learning_rate, seed)
        learned["gpt pretrained further"] = learn(gpt, sms, sampled, bar, alone=False)
    return {
        "model": name,
        "seed": seed,
        "command": f"domain_shift.py run --model {name} --seeds {seed}",
        "different_emails": len(emails),
        "num_emails": len(sampled.pool) + len(sampled.test),
        "num_sms": len(sms.train),
        "max_tokens": MAX_TOKENS,
        "learned": learned,
        "signals": signals,
        "processor_seconds": round(time.process_time() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def run(args: argparse.Namespace) -> None:
    """The seeds that have no result yet."""
    name = resolve_model_name(args.model)
    paths = {seed: args.results / f"seed-{seed}.json" for seed in args.seeds}
    todo = [seed for seed, path in paths.items() if not is_done(path, name)]
    if not todo:
        return
    emails = read_emails()
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in todo:
        result = measure(name, emails, seed, args.quiet)
        write_text(json.dumps(result, indent=1) + "\n", paths[seed])


def is_done(path: Path, name: str) -> bool:
    """Whether the seed's file is there. Raises ``DataError`` if it is another model's."""
    if not path.exists():
        return False
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; delete it, and it is made again.") from None
    if measured != name:
        raise DataError(
            f"{path} was measured with {measured}, not with {name}: give --model {measured!r}, or "
            f"choose another folder with --results."
        )
    return True


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------

METHODS = {  # name in the report: model and training in the result files, by labelled e-mails
    "GPT, e-mails only": ("gpt", "email {}"),
    "GPT, text messages and e-mails": ("gpt", "sms and email {}"),
    "GPT pretrained further, both": ("gpt pretrained further", "sms and email {}"),
    "n-grams, e-mails only": ("ngrams", "email {}"),
    "n-grams, text messages and e-mails": ("ngrams", "sms and email {}"),
}
FIGURE_NAMES = {
    "accuracy": "accuracy",
    "roc_area": "area under the ROC curve",
    "calibration_error": "calibration error",
    "confidence": "mean confidence",
    "ham_blocked": "ham blocked",
    "spam_caught": "spam caught",
}


def load(folder: Path = RESULTS) -> list[dict]:
    """All seeds. Raises ``DataError`` where there are too few for an interval."""
    paths = sorted(folder.glob("seed-*.json"))
    if len(paths) < 2:
        raise DataError(f"{folder} holds {len(paths)} result files; `run` makes them.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def over_seeds(values: Sequence[float], percent: bool = True) -> str:
    """Mean and 95% interval (Student's t)."""
    mean, _, low, high = mean_and_interval(list(values))
    if percent:
        return f"{mean:.1%} ({100 * max(0, low):.1f} to {100 * min(1, high):.1f})"
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def learned(results: list[dict], model: str, training: str, test: str, figure: str) -> list[float]:
    return [result["learned"][model][training][test][figure] for result in results]


def broken_table(results: list[dict]) -> str:
    """Trained on text messages, tested on text messages and on e-mails."""
    columns = [
        (model, test) for model in ("gpt", "gpt pretrained further", "ngrams") for test in TESTS
    ]
    rows = [
        [name, *(over_seeds(learned(results, m, "sms", test, figure)) for m, test in columns)]
        for figure, name in FIGURE_NAMES.items()
    ]
    return markdown(["", *(f"{model} on {TESTS[test]}" for model, test in columns)], rows)


TESTS = {"sms": "SMS", "email": "e-mail"}


def sizes_in(results: list[dict]) -> list[int]:
    names = results[0]["learned"]["ngrams"]
    return [int(name.removeprefix("email ")) for name in names if name.startswith("email ")]


def helped_table(results: list[dict]) -> str:
    """Accuracy on e-mails by the number of labelled e-mails."""
    rows = []
    for size in sizes_in(results):
        cells = [
            over_seeds(learned(results, model, training.format(size), "email", "accuracy"))
            for model, training in METHODS.values()
        ]
        rows.append([str(size), *cells])
    return markdown(["labelled e-mails", *METHODS], rows)


def kept_table(results: list[dict]) -> str:
    """Accuracy on text messages after the same trainings: what was forgotten."""
    rows = [
        [
            str(size),
            *(
                over_seeds(learned(results, model, training.format(size), "sms", "accuracy"))
                for model, training in METHODS.values()
            ),
        ]
        for size in sizes_in(results)
    ]
    return markdown(["labelled e-mails", *METHODS], rows)


def signals_table(results: list[dict]) -> str:
    """Signals without labels by the share of e-mails in what arrives."""
    rows = []
    for i, stream in enumerate(results[0]["signals"]["streams"]):
        streams = [result["signals"]["streams"][i] for result in results]
        noticed = sum(stream["two_sample_p"] < 0.05 for stream in streams)
        rows.append(
            [
                f"{stream['share']:.0%}",
                over_seeds([stream["stability_index"] for stream in streams], percent=False),
                over_seeds([stream["confidence"] for stream in streams]),
                over_seeds([stream["spam_share"] for stream in streams]),
                over_seeds([stream["two_sample_accuracy"] for stream in streams]),
                f"{noticed} of {len(streams)}",
            ]
        )
    header = ["share of e-mails", "stability index", "mean confidence", "called spam"]
    return markdown([*header, "told from text messages", "p < 0.05"], rows)


def language_table(results: list[dict]) -> str:
    """How strange the texts are to tokenizer and language model."""
    rows = []
    for name, title in (("tokens_per_word", "tokens per word"), ("nats_per_token", "nats a token")):
        values = {
            test: [result["signals"]["sources"][test][name] for result in results] for test in TESTS
        }
        rows.append([title, *(over_seeds(values[test], percent=False) for test in TESTS)])
    return markdown(["", *TESTS.values()], rows)


TABLES = {
    "broken": broken_table,
    "signals": signals_table,
    "language": language_table,
    "helped": helped_table,
    "kept": kept_table,
}


def confidence_plot(results: list[dict]) -> Figure:
    """How sure the filter is of text messages and of e-mails."""
    fig, ax = plt.subplots(figsize=(6, 3.6))
    places = np.arange(10)
    for i, (test, name) in enumerate(TESTS.items()):
        counts = sum(
            np.array(result["signals"]["sources"][test]["confidence_histogram"])
            for result in results
        )
        ax.bar(places + 0.4 * i, 100 * counts / counts.sum(), 0.4, align="edge", label=name)
    ax.set_xticks(np.arange(11), [f"{0.5 + 0.05 * i:.2f}" for i in range(11)], fontsize=8)
    ax.set(xlabel="confidence", ylabel="share of messages (%)")
    ax.legend()
    fig.tight_layout()
    return fig


def signals_plot(results: list[dict]) -> Figure:
    """Two signals over the share of e-mails in what arrives, each seed a line."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    for result in results:
        streams = result["signals"]["streams"]
        shares = [100 * stream["share"] for stream in streams]
        left.plot(shares, [stream["stability_index"] for stream in streams], "o-", alpha=0.6)
        accuracies = [100 * stream["two_sample_accuracy"] for stream in streams]
        right.plot(shares, accuracies, "o-", alpha=0.6)
    left.axhline(0.25, ls=":", color="gray", label="rule of thumb: large")
    left.set_ylabel("stability index of the scores")
    left.legend()
    right.axhline(50, ls=":", color="gray", label="guessing")
    right.set_ylabel("told from old text messages (%)")
    right.legend()
    for ax in (left, right):
        ax.set_xlabel("e-mails among what arrives (%)")
        ax.grid(alpha=0.3)
    fig.tight_layout()
    return fig


def helped_plot(results: list[dict]) -> Figure:
    """Accuracy on e-mails over the number of labelled e-mails."""
    sizes = sizes_in(results)
    fig, ax = plt.subplots(figsize=(7, 4.2))
    for (name, (model, training)), style in zip(METHODS.items(), ("o-", "s-", "D-", "^:", "v:")):
        summaries = [
            mean_and_interval(learned(results, model, training.format(size), "email", "accuracy"))
            for size in sizes
        ]
        means, halves = ([100 * s[i] for s in summaries] for i in (0, 3))
        halves = [high - mean for high, mean in zip(halves, means)]
        ax.errorbar(sizes, means, halves, fmt=style, capsize=3, label=name)
    ax.set_xscale("log")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.set(
        xlabel="labelled e-mails", ylabel="accuracy on e-mails (%), 95% interval", ylim=(30, 102)
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    fig.tight_layout()
    return fig


PLOTS = {"confidence": confidence_plot, "signals": signals_plot, "helped": helped_plot}


def make_all(results: list[dict]) -> dict[str, str]:
    return {name: make(results) for name, make in TABLES.items()}


def report(args: argparse.Namespace) -> None:
    results = load(args.results)
    write_text(fill_in(README.read_text(encoding="utf-8"), make_all(results)), README)
    FIGURES.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        figure = plot(results)
        figure.savefig(FIGURES / f"{name}.png", dpi=110)
        plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="domain_shift.py", description="A filter trained on text messages meets e-mail."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("run", help="measure the seeds that have no result yet")
    measuring.add_argument("--model", default="gpt-mini", help="gpt-mini, gpt2-small, ...")
    measuring.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds")
    measuring.add_argument("--quiet", action="store_true", help="no progress bars")
    reporting = commands.add_parser("report", help="make README.md's tables and the figures")
    for command in (measuring, reporting):
        command.add_argument("--results", type=Path, default=RESULTS, help="result files")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        {"run": run, "report": report}[args.command](args)
    except (DataError, ValueError) as error:
        print(f"domain_shift.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"domain_shift.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Repeat the command to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
