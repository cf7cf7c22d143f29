"""The same test messages, altered by rules: what does a spam filter hold on to?

    python 02_bonus_additional-experiments/case-study-domain-shift/altered_messages.py run \
        --models ngrams gpt-mini smollm2-135m
    python 02_bonus_additional-experiments/case-study-domain-shift/altered_messages.py report

`run` trains each model on the clean split of the SMS Spam Collection, classifies its test messages
as they are and altered, and writes one JSON file for each model and seed; it goes on where it
stopped. `report` prints the accuracy lost.
"""

import random
import re
import startup_errors  # noqa: F401
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from shift_report import add_run_and_report, keep, over_seeds

from classifier_folder import classify_texts
from command_line import make_parser, run_command
from evaluation import ngram_baseline
from files import read_json, reading_results
from fine_tuning import fine_tune
from gpt_download import SMS_SPAM_ZIP, fetch, resolve_model_name
from message_files import DataError
from run_config import RunConfig
from run_messages import read_run_messages
from several_seeds import mean_and_interval
from text_data import write_look_alikes

RESULTS = Path(__file__).parent / "results-altered"
NGRAMS, PLAIN = "ngrams", "as they are"

# What a sender writes today, for what one wrote in 2005: patterns, and what takes their place.
TODAY = {
    r"\b(txt|text|sms)\b": "message",
    r"\b(mob|mobile|cell)\b": "phone",
    r"\b(u)\b": "you",
    r"\b(ur)\b": "your",
    r"\b(ringtone|polyphonic|tone)s?\b": "app",
    r"\b(landline|land line)\b": "account",
    r"\b(cd|video|camcorder|dvd)s?\b": "voucher",
    r"£": "$",
    r"\bwww\.": "https://",
    r"\b\d+p\b": "$2",
    r"\b(po box|box)\s*\w+": "the link below",
    r"\bcall(ing)?\b": "tap",
    r"\bper (msg|message|min|minute)\b": "a month",
}


def write_as_today(text: str) -> str:
    """A message with phrases of 2005 replaced by those of today."""
    for pattern, phrase in TODAY.items():
        text = re.sub(pattern, phrase, text, flags=re.IGNORECASE)
    return text


ALTERATIONS: dict[str, Callable[[str, random.Random], str]] = {
    PLAIN: lambda text, rng: text,
    "every digit a 5": lambda text, rng: re.sub(r"\d", "5", text),
    "digits left out": lambda text, rng: re.sub(r"\d", "", text),
    "lower case": lambda text, rng: text.lower(),
    "a third of the letters with a look-alike": (
        lambda text, rng: write_look_alikes(text, rng, 0.33)
    ),
    "first half of the words": lambda text, rng: " ".join(np.array_split(text.split(), 2)[0]),
    "phrases of today": lambda text, rng: write_as_today(text),
}


def measure(model: str, seed: int) -> dict[str, Any]:
    """Accuracy on the test messages of a seed, by alteration.

    Raises ``DownloadError`` where messages or weights cannot be had.
    """
    fetch(SMS_SPAM_ZIP)  # before anything falls back on made-up messages
    config = RunConfig(model=model if model != NGRAMS else "gpt-mini", seed=seed, quiet=True)
    messages = read_run_messages(config, lambda *_: None)
    train, test = messages.splits.train, messages.splits.test
    if model == NGRAMS:
        predict = ngram_baseline().fit(train["text"], train["label"]).predict
    else:
        result = fine_tune(config, messages)

        def predict(texts: Sequence[str]) -> np.ndarray:
            probabilities = classify_texts(result.classifier, result.tokenizer, texts)
            return np.array(messages.label_names)[probabilities.argmax(dim=1)]

    accuracy = {}
    for name, alter in ALTERATIONS.items():
        rng = random.Random(seed)
        predicted = predict([alter(text, rng) for text in test["text"]])
        accuracy[name] = float((predicted == test["label"]).mean())
    return {"model": model, "seed": seed, "num_examples": len(test), "accuracy": accuracy}


def run(models: Sequence[str], seeds: Sequence[int], results: Path) -> None:
    """The models and seeds that have no result yet."""
    names = [model if model == NGRAMS else resolve_model_name(model) for model in models]
    for name, seed in product(names, seeds):
        keep(results / f"{name}-seed-{seed}.json", partial(measure, name, seed))


def make_table(results: Path = RESULTS) -> str:
    """Accuracy on the messages as they are, and points lost by each alteration: mean over seeds
    with the 95% interval of Student's t. Raises ``DataError`` where too little is measured."""
    files = list(map(read_json, sorted(results.glob("*-seed-*.json"))))
    num_seeds = Counter(file["model"] for file in files)
    if not files or min(num_seeds.values()) < 2:
        raise DataError(f"{results} holds less than two seeds of a model; `run` makes them.")
    table = pd.DataFrame([{"model": file["model"], **file["accuracy"]} for file in files])
    table = table.set_index("model")[[*ALTERATIONS]]
    changes = table.sub(table[PLAIN], axis=0).assign(**{PLAIN: table[PLAIN]})

    def cell(values: pd.Series) -> str:
        if values.name == PLAIN:
            return over_seeds(values)
        mean, _, low, high = mean_and_interval(list(100 * values))
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")

    cells = changes.groupby("model").agg(cell).T.rename_axis("the test messages")
    return cells.reset_index().to_markdown(index=False, disable_numparse=True)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("altered_messages.py", __doc__.partition("\n")[0])
    options = add_run_and_report(parser, RESULTS)
    options.add_argument("--models", nargs="+", default=[NGRAMS, "gpt-mini"], help="what learns")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.command == "run":
            run(args.models, args.seeds, args.results)
        else:
            with reading_results(args.results):
                print(make_table(args.results))

    output = args.results if args.command == "run" else None
    return run_command("altered_messages.py", work, "stopped. Repeat it to go on.", output)


if __name__ == "__main__":
    sys.exit(main())
