"""A spam filter trained on text messages meets e-mail: what breaks, what shows it, what helps.

    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py run
    python 02_bonus_additional-experiments/case-study-domain-shift/domain_shift.py report

`run` measures one seed after the other, goes on where it stopped, and writes one JSON file each;
`report` makes tables and figures from these files. No message is ever shown or stored: the
e-mails are those of real people.
"""

import copy
import math
import startup_errors  # noqa: F401
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from shift_report import CONTINUED, METRICS, RESULTS, add_run_and_report, keep, load, write_report
from shift_signals import nats_per_token, stability_index, tokens_per_word, two_sample_test
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from command_line import make_parser, run_command
from continued_pretraining import (
    CONTINUED_PRETRAINING,
    continue_pretraining,
    encode_for_pretraining,
)
from evaluation import calibration, ngram_baseline, spam_metrics
from features import FastClassifier, FeatureDataset, LatestStore
from files import reading_results, tar_members
from fine_tuning import make_classifier
from gpt_download import DownloadError, cache_folder, load_pretrained, resolve_model_name
from measuring import machine
from message_files import DataError
from previous_chapters import Decoder
from run_config import RunConfig
from text_classifier import ClassifierConfig, pick_device, predict_logits
from text_data import (
    SpamDataset,
    Splits,
    balance_classes,
    clean_messages,
    encode_messages,
    read_sms_spam,
    split_messages,
)
from training import TrainingState, train_epoch

ADDRESS = "https://www2.aueb.gr/users/ion/data/enron-spam/"
NUM_COLLECTED = 33_715  # e-mails of the whole collection
LABELS = ("ham", "spam")
MAX_TOKENS = 128  # of a message; an e-mail is cut there
NUM_EMAILS = 2_000  # half to learn from, half to test on
SIZES = (10, 30, 100, 300, 1000)  # labelled e-mails
STREAM_FRACTIONS = (0, 0.05, 0.1, 0.25, 0.5, 1)  # of e-mails among what arrives
STREAM_SIZE = 200
FEWEST_UPDATES = 200  # of a filter's training, however few its messages are

Filter = Callable[[pd.DataFrame], np.ndarray]  # messages -> probabilities (N, 2)
Trainer = Callable[[pd.DataFrame], Filter]


# --- Data ----------------------------------------------------------------------------------------


@cache
def read_emails() -> pd.DataFrame:
    """The Enron-Spam e-mails (Metsis, Androutsopoulos, Paliouras 2006) in the cache.

    The collection has no licence and real people's names, so it is not fetched: who measures with
    it gets it by hand. Raises ``DownloadError`` where some are missing.
    """
    emails = [
        (label, " ".join(content.decode("latin-1").split()))
        for path in sorted(cache_folder().glob("**/enron*.tar.?z"))
        for name, content in tar_members(path)
        for label in LABELS
        if label in name.split("/")[:-1]  # the e-mail's folder
    ]
    emails = pd.DataFrame(emails, columns=["label", "text"])
    emails = emails[emails["text"] != ""].reset_index(drop=True)
    if len(emails) < NUM_COLLECTED:
        raise DownloadError(
            f"The cache has {len(emails):,} of the {NUM_COLLECTED:,} Enron-Spam e-mails. Download "
            f"the archives enron1.tar.gz to enron6.tar.gz ('preprocessed') from {ADDRESS} and put "
            f"them into {cache_folder() / 'enron-spam'}."
        )
    return emails


def shorten(messages: pd.DataFrame, tokenizer) -> pd.DataFrame:
    """The messages cut to what the GPT reads of them, so that no model sees more than another,
    and without those that are then alike."""
    sequences = encode_messages(messages["text"], tokenizer, MAX_TOKENS)
    texts = [tokenizer.decode(ids.tolist()) for ids in sequences]
    return clean_messages(messages.assign(text=texts))


def sample_emails(emails: pd.DataFrame, seed: int, size: int) -> list[pd.DataFrame]:
    """E-mails to learn from, labelled or not, and as many to test on; half of each are spam."""
    drawn = emails.groupby("label").sample(size // 2, random_state=seed)
    return train_test_split(drawn, test_size=0.5, stratify=drawn["label"], random_state=seed)


def training_sets(
    sms: pd.DataFrame, emails: pd.DataFrame, sizes: Sequence[int]
) -> dict[str, pd.DataFrame]:
    """What a filter may learn from: text messages, the first e-mails of each label, or both."""
    sets = {"sms": sms}
    for size in sizes:
        some = sets[f"email {size}"] = emails.groupby("label").head(size // 2)
        sets[f"sms and email {size}"] = pd.concat([sms, some])
    return sets


# --- Filters -------------------------------------------------------------------------------------


def gpt_trainer(name: str, decoder: Decoder, tokenizer, seed: int) -> Trainer:
    """Trains filters from one language model, whose frozen layers are computed once."""
    config = RunConfig(trainable="last_block", seed=seed).for_model(name)
    about, store = ClassifierConfig(name, LABELS, MAX_TOKENS, config.pooling), LatestStore()

    def train(messages: pd.DataFrame) -> Filter:
        classifier, num_frozen = make_classifier(copy.deepcopy(decoder), about, config)

        def features(messages: pd.DataFrame) -> FeatureDataset:
            sequences = about.encode(messages["text"], tokenizer)
            dataset = SpamDataset(sequences, messages["label"] == "spam")
            return FeatureDataset.from_classifier(classifier, dataset, num_frozen, store=store)

        model, dataset = FastClassifier(classifier, num_frozen), features(messages)
        updates_per_epoch = math.ceil(len(dataset) / config.batch_size)
        num_epochs = max(config.num_epochs, math.ceil(FEWEST_UPDATES / updates_per_epoch))
        state = TrainingState(model, dataset, replace(config, num_epochs=num_epochs))
        for _ in range(num_epochs):
            train_epoch(state, dataset)
        return lambda messages: torch.softmax(predict_logits(model, features(messages)), -1).numpy()

    return train


def filter_metrics(probabilities: np.ndarray, truth: pd.Series) -> dict[str, float]:
    """What breaks: decisions, order of the scores, and how far confidence can be trusted."""
    labels = (truth == "spam").to_numpy().astype(int)
    metrics = spam_metrics(probabilities, labels)
    metrics["calibration_error"] = calibration(probabilities, labels).expected_error
    metrics["confidence"] = float(probabilities.max(axis=1).mean())
    return {name: metrics[name] for name in METRICS}


def learn(train: Trainer, sets: dict[str, pd.DataFrame], tests: dict[str, pd.DataFrame]) -> dict:
    """Metrics on text messages and on e-mails after every training."""
    results = {}
    for name, messages in tqdm(sets.items(), "filters", leave=False):
        predict = train(messages)
        results[name] = {t: filter_metrics(predict(m), m["label"]) for t, m in tests.items()}
    return results


def watch(predict: Filter, sms: Splits, emails: pd.DataFrame, seed: int) -> dict[str, Any]:
    """The signals on text messages and on e-mails, and on streams that hold some e-mails.

    A stream is compared with the filter's probabilities on the validation messages, and with as
    many old texts.
    """
    parts = {"email": emails, "sms": sms.test}
    parts = {name: part.assign(spam=predict(part)[:, 1]) for name, part in parts.items()}
    sources, streams = {}, []
    for name, part in parts.items():
        counts, _ = np.histogram(np.maximum(part.spam, 1 - part.spam), 10, (0.5, 1))
        sources[name] = {"confidence_histogram": counts.tolist()}
    reference, rng = predict(sms.validation)[:, 1], np.random.default_rng(seed)
    size = min(STREAM_SIZE, *map(len, parts.values()))
    past = rng.choice(list(sms.train["text"]), size, replace=False)
    for fraction in STREAM_FRACTIONS:
        counts = (round(fraction * size), size - round(fraction * size))
        drawn = zip(parts.values(), counts)
        arriving = pd.concat([part.iloc[rng.permutation(len(part))[:n]] for part, n in drawn])
        accuracy, p_value = two_sample_test(past, arriving["text"])
        streams.append(
            {
                "fraction": fraction,
                "stability_index": stability_index(reference, arriving["spam"]),
                "confidence": float(np.maximum(arriving.spam, 1 - arriving.spam).mean()),
                "spam_fraction": float((arriving.spam > 0.5).mean()),
                "two_sample_accuracy": accuracy,
                "two_sample_p": p_value,
            }
        )
    return {"sources": sources, "streams": streams}


# --- One seed ------------------------------------------------------------------------------------


def measure(name: str, seed: int, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """All metrics of one seed: its split of text messages, its sample of e-mails, its head.

    There is continued pretraining for models that finetune.py gives it, too.
    """
    emails, start = read_emails(), time.process_time()
    decoder, tokenizer = load_pretrained(name, pick_device())
    sms = split_messages(balance_classes(shorten(read_sms_spam(), tokenizer), seed), seed)
    pool, test = sample_emails(shorten(emails, tokenizer), seed, NUM_EMAILS)
    sets, tests = training_sets(sms.train, pool, sizes), {"sms": sms.test, "email": test}
    train_gpt = gpt_trainer(name, decoder, tokenizer, seed)
    signals = watch(train_gpt(sms.train), sms, test, seed)
    for source, part in tests.items():
        signals["sources"][source] |= {
            "tokens_per_word": tokens_per_word(tokenizer, part["text"]),
            "nats_per_token": nats_per_token(decoder, tokenizer, part["text"][:200], MAX_TOKENS),
        }
    trainers = {"gpt": train_gpt}
    if RunConfig().for_model(name).continued_pretraining_epochs:
        continued = copy.deepcopy(decoder)
        texts = encode_for_pretraining(pool["text"], tokenizer, decoder.cfg.context_length)
        continue_pretraining(continued, texts, CONTINUED_PRETRAINING)
        trainers[CONTINUED] = gpt_trainer(name, continued, tokenizer, seed)

    def train_ngrams(messages: pd.DataFrame) -> Filter:
        pipeline = ngram_baseline().fit(messages["text"], messages["label"])
        return lambda messages: pipeline.predict_proba(messages["text"])

    trainers["ngrams"] = train_ngrams
    command = ["domain_shift.py", "run", "--model", name, "--seeds", str(seed)]
    command += ["--sizes", *map(str, sizes)] if sizes != SIZES else []
    return {
        "model": name,
        "seed": seed,
        "command": " ".join(command),
        "learned": {kind: learn(train, sets, tests) for kind, train in trainers.items()},
        "signals": signals,
        "processor_seconds": round(time.process_time() - start, 1),
        **machine(pick_device()),
    }


def run(model: str, seeds: Sequence[int], sizes: Sequence[int], results: Path) -> None:
    """The seeds that have no result yet. Raises ``DataError`` beside results of another model."""
    name = resolve_model_name(model)
    wanted = {"sms", *(f"{kind} {n}" for n in sizes for kind in ("email", "sms and email"))}
    with reading_results(results):
        for found in load(results):
            if found["model"] != name or found["learned"]["gpt"].keys() != wanted:
                raise DataError(
                    f"{results} holds results of {found['model']}, or of other --sizes: name "
                    f"another folder with --results."
                )
    if not all(2 <= size <= NUM_EMAILS // 2 and size % 2 == 0 for size in sizes):
        raise DataError(f"--sizes: even numbers, half of each label, from 2 to {NUM_EMAILS // 2}.")
    for seed in seeds:
        keep(results / f"seed-{seed}.json", partial(measure, name, seed, tuple(sizes)))


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("domain_shift.py", __doc__.partition("\n")[0])
    options = add_run_and_report(parser, RESULTS)
    options.add_argument("--model", default="gpt-mini", help="what is fine-tuned")
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="labelled e-mails")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.command == "run":
            run(args.model, args.seeds, args.sizes, args.results)
        else:
            write_report(args.results)

    return run_command("domain_shift.py", work, "stopped. Repeat it to go on.", args.results)


if __name__ == "__main__":
    matplotlib.use("Agg")
    sys.exit(main())
