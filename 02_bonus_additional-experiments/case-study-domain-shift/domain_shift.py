"""A spam filter trained on text messages meets e-mail: what breaks, what shows it, what helps.

    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py run
    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py report

`run` measures one seed after the other, goes on where it stopped, and writes one JSON file each;
`report` makes tables and figures from these files. No message is ever shown or stored: the
e-mails are those of real people.
"""

import argparse
import copy
import json
import lzma
import math
import platform
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import torch
from shift_report import FILTERS, RESULTS, load, write_report
from shift_signals import describe_source, nats_per_token, tokens_per_word, watch_stream
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from command_line import HelpFormatter, make_parser, run_command
from continued_pretraining import (
    CONTINUED_PRETRAINING,
    continue_pretraining,
    encode_for_pretraining,
)
from evaluation import calibration, ngram_baseline, roc_curve, test_metrics
from features import FastClassifier, FeatureDataset
from files import write_json
from gpt_download import DownloadError, cache_folder, load_pretrained, resolve_model_name
from message_files import DataError
from previous_chapters import Decoder
from run_config import RunConfig
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    freeze_all_but,
    pick_device,
    predict_logits,
)
from text_data import (
    SpamDataset,
    Splits,
    balance_classes,
    clean_messages,
    encode_messages,
    read_sms_spam,
    split_messages,
)
from training import TrainConfig, TrainingState, train_epoch

ADDRESS = "https://www2.aueb.gr/users/ion/data/enron-spam/"
LABELS = ("ham", "spam")
MAX_TOKENS = 128  # of a message; an e-mail is cut there
NUM_EMAILS = 2_000  # half to learn from, half to test on
SIZES = (10, 30, 100, 300, 1000)  # labelled e-mails
STREAM_FRACTIONS = (0, 0.05, 0.1, 0.25, 0.5, 1)  # of e-mails among what arrives
STREAM_SIZE = 200
FEWEST_UPDATES = 200  # of a filter's training, however few its messages are

Filter = Callable[[pd.DataFrame], np.ndarray]  # messages -> probabilities (N, 2)


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
    theirs = sorted(folder.glob("enron-spam/enron[1-6].tar.gz"))
    archives = [*folder.glob("enron-spam.tar.xz")] or theirs
    if archives == theirs and len(theirs) < 6:
        raise DownloadError(
            f"The Enron-Spam e-mails are not in the cache ({len(theirs)} of the six archives "
            f"are). Download the archives enron1.tar.gz to enron6.tar.gz ('preprocessed') from "
            f"{ADDRESS} and put them into {folder / 'enron-spam'}."
        )
    rows = [row for path in archives for row in read_archive(path)]
    emails = pd.DataFrame(rows, columns=["label", "text"])
    return emails[emails["text"] != ""].reset_index(drop=True)


def read_archive(path: Path) -> list[tuple[str, str]]:
    """(label, text) of each e-mail of an archive. Raises ``DataError`` if it is damaged."""
    rows = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                label = label_of(member.name)
                if member.isfile() and label:
                    text = archive.extractfile(member).read().decode("latin-1")
                    rows.append((label, " ".join(text.split())))
            archive.fileobj.read()  # to the end, where the checksum is compared
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): put a whole one into its place.") from None
    return rows


def label_of(path: str) -> str | None:
    """The folder `ham` or `spam` on the way to a text file.

    >>> label_of("enron1/ham/0001.1999-12-10.farmer.ham.txt"), label_of("enron1/Summary.txt")
    ('ham', None)
    """
    found = [part for part in path.split("/")[:-1] if part in LABELS]
    return found[0] if found and path.endswith(".txt") else None


def shorten(messages: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """The messages cut to what the GPT reads of them, so that no model sees more than another,
    and without those that are then alike."""
    sequences = encode_messages(messages["text"], tokenizer, MAX_TOKENS)
    texts = [tokenizer.decode(ids.tolist()) for ids in sequences]
    return clean_messages(messages.assign(text=texts))


class Emails(NamedTuple):
    """E-mails to learn from, labelled or not, and e-mails to test on."""

    pool: pd.DataFrame
    test: pd.DataFrame


def sample_emails(emails: pd.DataFrame, seed: int, size: int) -> Emails:
    """As many ham as spam, half for each purpose."""
    drawn = emails.groupby("label").sample(size // 2, random_state=seed)
    halves = train_test_split(drawn, test_size=0.5, stratify=drawn["label"], random_state=seed)
    return Emails(*(half.reset_index(drop=True) for half in halves))


def training_sets(sms: Splits, emails: Emails) -> dict[str, pd.DataFrame]:
    """What a filter may learn from: text messages, the first e-mails of each label, or both."""
    sets = {"sms": sms.train}
    for size in SIZES:
        some = emails.pool.groupby("label").head(size // 2)
        sets[f"email {size}"] = some
        sets[f"sms and email {size}"] = pd.concat([sms.train, some], ignore_index=True)
    return sets


# ---------------------------------------------------------------------------------------------
# Filters
# ---------------------------------------------------------------------------------------------


@dataclass
class GPTTrainer:
    """Trains filters from one language model, whose frozen layers are computed once."""

    name: str
    decoder: Decoder
    tokenizer: Any
    seed: int
    store: MutableMapping[tuple, torch.Tensor] = field(default_factory=dict)

    def train(self, messages: pd.DataFrame) -> Filter:
        """A filter whose last block and head have learned from the messages."""
        torch.manual_seed(self.seed)
        about = ClassifierConfig(self.name, LABELS, MAX_TOKENS)
        classifier = GPTClassifier(copy.deepcopy(self.decoder), about)
        num_frozen = freeze_all_but(classifier, "last_block")

        def features(messages: pd.DataFrame) -> FeatureDataset:
            sequences = about.encode(messages["text"], self.tokenizer)
            dataset = SpamDataset(sequences, [LABELS.index(label) for label in messages["label"]])
            return FeatureDataset.from_classifier(classifier, dataset, num_frozen, store=self.store)

        model, dataset = FastClassifier(classifier, num_frozen), features(messages)
        updates_per_epoch = math.ceil(len(dataset) / TrainConfig.batch_size)
        state = TrainingState(
            model,
            dataset,
            TrainConfig(
                learning_rate=RunConfig().for_model(self.name).learning_rate,
                num_epochs=max(
                    TrainConfig.num_epochs, math.ceil(FEWEST_UPDATES / updates_per_epoch)
                ),
                seed=self.seed,
            ),
        )
        for _ in range(state.config.num_epochs):
            train_epoch(state, dataset)
        return lambda messages: torch.softmax(predict_logits(model, features(messages)), -1).numpy()


def train_ngrams(messages: pd.DataFrame) -> Filter:
    pipeline = ngram_baseline().fit(messages["text"], messages["label"])
    return lambda messages: pipeline.predict_proba(messages["text"])


def filter_metrics(probabilities: np.ndarray, truth: pd.Series) -> dict[str, float]:
    """What breaks: decisions, order of the scores, and how far confidence can be trusted."""
    labels = (truth == "spam").to_numpy().astype(int)
    metrics = test_metrics(probabilities, labels)
    (passed, blocked), (missed, caught) = metrics["confusion_matrix"]
    return {
        "accuracy": metrics["accuracy"],
        "roc_area": roc_curve(labels == 1, probabilities[:, 1]).area,
        "calibration_error": calibration(probabilities, labels).expected_error,
        "confidence": float(probabilities.max(axis=1).mean()),
        "ham_blocked": blocked / (passed + blocked),
        "spam_caught": caught / (missed + caught),
    }


def learn(train: Callable[[pd.DataFrame], Filter], sms: Splits, emails: Emails) -> dict:
    """Metrics on text messages and on e-mails after every training."""
    tests = {"sms": sms.test, "email": emails.test}
    results = {}
    for name, messages in tqdm(training_sets(sms, emails).items(), "filters", leave=False):
        predict = train(messages)
        results[name] = {
            t: filter_metrics(predict(part), part["label"]) for t, part in tests.items()
        }
    return results


def watch(predict: Filter, gpt: GPTTrainer, sms: Splits, emails: Emails) -> dict[str, Any]:
    """The signals on text messages and on e-mails, and on streams that hold some e-mails."""
    parts = {"email": emails.test, "sms": sms.test}
    texts = {name: list(part["text"]) for name, part in parts.items()}
    scores = {name: predict(part) for name, part in parts.items()}
    sources = {
        name: describe_source(scores[name])
        | {
            "tokens_per_word": tokens_per_word(gpt.tokenizer, some),
            "nats_per_token": nats_per_token(gpt.decoder, gpt.tokenizer, some[:200], MAX_TOKENS),
        }
        for name, some in texts.items()
    }
    reference, rng, streams = predict(sms.validation), np.random.default_rng(gpt.seed), []
    size = min(STREAM_SIZE, len(sms.test), len(emails.test))
    past = rng.choice(list(sms.train["text"]), size, replace=False)
    for fraction in STREAM_FRACTIONS:
        counts = {"email": round(fraction * size), "sms": size - round(fraction * size)}
        drawn = {name: rng.permutation(len(texts[name]))[:count] for name, count in counts.items()}
        arriving = np.concatenate([scores[name][rows] for name, rows in drawn.items()])
        arriving_texts = [texts[name][i] for name, rows in drawn.items() for i in rows]
        signals = watch_stream(reference, past, arriving, arriving_texts)
        streams.append({"fraction": fraction, **signals})
    return {"sources": sources, "streams": streams}


# ---------------------------------------------------------------------------------------------
# One seed
# ---------------------------------------------------------------------------------------------


def measure(name: str, emails: pd.DataFrame, seed: int) -> dict[str, Any]:
    """All metrics of one seed: its split of text messages, its sample of e-mails, its head."""
    start = time.process_time()
    decoder, tokenizer = load_pretrained(name, pick_device())
    sms = split_messages(balance_classes(shorten(read_sms_spam(), tokenizer), seed), seed)
    emails = shorten(emails, tokenizer)
    sampled = sample_emails(emails, seed, NUM_EMAILS)
    gpt = GPTTrainer(name, decoder, tokenizer, seed)
    signals = watch(gpt.train(sms.train), gpt, sms, sampled)
    continued = GPTTrainer(name, copy.deepcopy(decoder), tokenizer, seed)
    texts = encode_for_pretraining(sampled.pool["text"], tokenizer, decoder.cfg.context_length)
    continue_pretraining(continued.decoder, texts, CONTINUED_PRETRAINING)
    trainers = dict(zip(FILTERS, (gpt.train, continued.train, train_ngrams), strict=True))
    return {
        "model": name,
        "seed": seed,
        "command": f"domain_shift.py run --model {name} --seeds {seed}",
        "different_emails": len(emails),
        "num_emails": len(sampled.pool) + len(sampled.test),
        "num_sms": len(sms.train),
        "max_tokens": MAX_TOKENS,
        "learned": {kind: learn(train, sms, sampled) for kind, train in trainers.items()},
        "signals": signals,
        "processor_seconds": round(time.process_time() - start, 1),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def is_done(path: Path, name: str) -> bool:
    """Whether the seed's file is there. Raises ``DataError`` if it is another model's."""
    if not path.exists():
        return False
    measured = json.loads(path.read_text(encoding="utf-8"))["model"]
    if measured != name:
        raise DataError(
            f"{path} was measured with {measured}, not with {name}: give --model {measured!r}, or "
            f"choose another folder with --results."
        )
    return True


def run(args: argparse.Namespace) -> None:
    """The seeds that have no result yet."""
    name = resolve_model_name(args.model)
    paths = {seed: args.results / f"seed-{seed}.json" for seed in args.seeds}
    todo = {seed: path for seed, path in paths.items() if not is_done(path, name)}
    if not todo:
        print(
            f"The results of these seeds are in {args.results} already, and nothing was measured. "
            f"To measure anew, name another folder with --results."
        )
        return
    emails = read_emails()
    args.results.mkdir(parents=True, exist_ok=True)
    for seed, path in todo.items():
        write_json(measure(name, emails, seed), path)
        print(f"seed {seed} is in {path}.")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("domain_shift.py", __doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser(
        "run", help="measure the seeds that have no result yet", formatter_class=HelpFormatter
    )
    measuring.add_argument("--model", default="gpt-mini", help="gpt-mini, gpt2-small, ...")
    measuring.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds")
    reporting = commands.add_parser("report", help="make tables.md and the figures")
    for command in (measuring, reporting):
        command.add_argument("--results", type=Path, default=RESULTS, help="result files")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    commands = {"run": run, "report": lambda args: write_report(load(args.results))}
    return run_command(
        "domain_shift.py",
        lambda: commands[args.command](args),
        "stopped. Repeat the command to go on.",
    )


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
