"""Fine-tune a GPT to tell positive film reviews from negative ones.

    python 03_bonus_imdb-classification/train_gpt.py NAME --model gpt-mini --trainable all

The state of a run stands in `runs/NAME`, so that `--resume` goes on after a stop; at its end the
classifier is there too, and the metrics are in `my-results/NAME.json`. The training is the
chapter's own, but for its epochs: they take hours here, so a checkpoint comes after every few
thousand reviews.

Shapes in comments: N reviews.
"""

import shlex
import startup_errors  # noqa: F401
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import imdb_results as report
from classifier_folder import save_classifier
from command_line import add_options, config_from, make_parser, run_command
from download_prepare_dataset import LABELS, PARTS, REVIEWS, read_parts
from feature_store import FeatureStore
from features import FastClassifier, FeatureDataset
from files import write_json
from fine_tuning import (
    fingerprint,
    load_decoder,
    make_classifier,
    pretrain_on_texts,
    raise_if_diverged,
)
from lora import merge_lora
from measuring import Clock, machine
from options import AT_LEAST_0, AT_LEAST_1, FRACTION, option
from previous_chapters import num_parameters
from run_config import OF_DATA, RunConfig
from run_folder import METRICS, open_run_folder
from text_classifier import (
    ClassifierConfig,
    Trainable,
    evaluate_model,
    pick_device,
    predict_logits,
)
from text_data import NO_LIMIT, ChunkDataset, Cut, SpamDataset, cut_tokens, encode_messages
from training import Checkpoint, History, TrainingState, train_epoch

RUNS = Path(__file__).parent / "runs"
ROUND_REVIEWS = 6000  # a checkpoint is saved each time so many reviews were trained on
PROBE_REVIEWS = 500  # classified after each round, to see how it goes
BY_ROUND = ("train_accuracy", "validation_accuracy", "validation_loss")


def chapters(name: str, default: Any) -> Any:
    """An option of finetune.py with another default."""
    return field(default=default, metadata=RunConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class ReviewsConfig(RunConfig):
    """One run: options of finetune.py, but for `left_out`, and some of its own.

    Raises ``ValueError`` that names everything wrong with it.
    """

    left_out: ClassVar[tuple[str, ...]] = (
        *OF_DATA,
        *("name", "protocol", "balance", "augment", "padding", "start_from", "output"),
        *("patience", "keep_examples"),
    )

    name: str = field(kw_only=True)
    """Of the run, and of its files."""
    data: Path = option(REVIEWS, "folder of the three parts", group="data")
    max_length: int = option(512, "tokens read at a time", AT_LEAST_1, "data")
    cut: Cut = chapters("cut", "both")
    validation_size: int | None = option(
        None, "random validation reviews, alike for every seed; default: all", AT_LEAST_1, "data"
    )
    test_size: int | None = option(
        None,
        "random test reviews, alike for every seed, for learning curves; default: all",
        AT_LEAST_1,
        "data",
    )
    model: str = chapters("model", "gpt-mini")
    continued_pretraining_epochs: int = option(
        0,
        "epochs of language modelling on the training reviews, the first --max-length tokens of "
        "each, before the head is put on",
        AT_LEAST_0,
        "model",
    )
    trainable: Trainable | Literal["lora", "dora"] | int = chapters("trainable", "all")
    num_epochs: int = chapters("num_epochs", 2)
    batch_size: int = chapters("batch_size", 16)
    word_dropout: float = option(
        0.0,
        "fraction of a review's tokens left out whenever it is trained on, others each time",
        FRACTION,
    )
    seed: int = chapters("seed", 1)
    validation_only: bool = option(
        False, "to choose options by: leave the test half unread; results go to trials", group="run"
    )
    feature_store: Path | None = option(
        None,
        "folder that keeps what the frozen layers made of each review, for other runs and after a "
        "stop: 2 bytes for each token and embedding dimension",
        group="run",
    )
    runs: Path = option(RUNS, "folder of the runs' states and trained models", group="run")
    results: Path = option(report.MY_RESULTS, "folder of the result files", group="run")

    @property
    def kind(self) -> str:
        """Apart, so that what was not measured on all test reviews is not taken for it."""
        return report.kind_of_run(self.test_size, self.validation_only)

    def problems(self) -> list[str]:
        nothing_to_keep = self.trainable in ("all", "lora", "dora") or self.word_dropout
        sentence = (
            "--feature-store keeps what frozen layers make of whole reviews: choose --trainable "
            "head, last_block, last_two_blocks or a number, and no --word-dropout"
        )
        return super().problems() + [sentence] * bool(self.feature_store and nothing_to_keep)

    def identity(self) -> dict[str, Any]:
        """Everything that shapes the result, as JSON can hold it."""
        beside = ("data", "runs", "results", "feature_store", *self.left_out)
        kept = {name: v for name, v in super().identity().items() if name not in beside}
        return kept | {"kept_states": self.feature_store is not None}  # they are rounded


# --- The model -----------------------------------------------------------------------------------


class GPTLearner:
    """A pretrained model that is to learn from reviews; other kinds override its methods.

    Raises ``DataError`` or ``DownloadError`` where it cannot be had.
    """

    config: ReviewsConfig
    """With what suits the model."""
    script = "train_gpt.py"
    is_marked = False
    """Whether the first and the last token mark a text's ends."""

    def __init__(self, config: ReviewsConfig):
        device = pick_device(config.device)
        self.decoder, self.tokenizer, name = load_decoder(config, device)
        if config.max_length > (context := self.decoder.cfg.context_length):
            raise ValueError(
                f"--max-length {config.max_length} exceeds {name}'s context of {context}."
            )
        self.config = config.for_model(name)
        reads = (config.max_length, self.config.pooling, config.cut)
        self.about = ClassifierConfig(name, LABELS, *reads)

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids (T,) of each text as a whole."""
        return encode_messages(texts, self.tokenizer, NO_LIMIT)

    def make_model(self, texts: Sequence[str], clock: Clock) -> nn.Module:
        """The model with a new head, from token ids and mask to logits (B, 2). `texts` are the
        training reviews."""
        config = self.config
        if config.continued_pretraining_epochs:
            with clock.stage("pretraining"):
                how = (config.max_length, config)
                pretrain_on_texts(self.decoder, self.tokenizer, texts, *how)
        self.classifier, self.num_frozen = make_classifier(self.decoder, self.about, config)
        return FastClassifier(self.classifier, self.num_frozen, config.precision)

    def read(self, dataset: ChunkDataset) -> SpamDataset:
        """What the model takes of a data set: the chunks themselves, or their hidden states."""
        if self.config.feature_store is None:
            return dataset
        how = (self.num_frozen, self.config.precision, not self.config.quiet)
        with FeatureStore(self.config.feature_store) as store:
            return FeatureDataset.from_classifier(self.classifier, dataset, *how, store)

    def save(self, folder: Path, options: dict[str, Any]) -> None:
        """Write what was trained."""
        merge_lora(self.decoder)
        card = {"trained_on": "Large Movie Review Dataset", "training": options}
        self.classifier.config = replace(self.about, card=card)
        save_classifier(self.classifier, folder)


# --- One run -------------------------------------------------------------------------------------


def train(config: ReviewsConfig, load: Callable[[ReviewsConfig], GPTLearner]) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result.

    Raises what `fine_tune` raises.
    """
    parts = read_parts(config.data, PARTS[:2] if config.validation_only else PARTS)
    sizes = {"train": config.train_size, "validation": config.validation_size}
    for part, reviews in parts.items():
        seed = config.seed if part == "train" else 0
        parts[part] = report.draw(reviews, sizes.get(part, config.test_size), seed)
    learner = load(config)
    shown = config.identity() | {"feature_store": config.feature_store}
    words = [learner.script, config.name, *config.words(shown)]
    config, clock = learner.config, Clock()
    options = config.identity() | {"data_sha256": fingerprint(list(parts.values()))}
    folder = config.runs / config.kind / config.name
    with open_run_folder(folder, options, config.resume, config.overwrite) as folder:
        if folder.is_finished:
            return folder.metrics()
        model = learner.make_model(list(parts["train"]["text"]), clock)
        num_trained = num_parameters(model, trainable_only=True)
        if not config.quiet:
            print(f"{config.model}: {len(parts['train']):,} reviews, {num_trained:,} parameters.")
        chunks, datasets, positive = {}, {}, {}
        for part, reviews in parts.items():
            with clock.stage("inference" if part == "test" else "frozen_layers"):
                how = (config.max_length, config.cut, learner.is_marked)
                cut = [cut_tokens(ids, *how) for ids in learner.encode(list(reviews["text"]))]
                chunks[part] = ChunkDataset(cut, report.label_numbers(reviews).tolist())
                if part != "test":  # whose states wait until the training has not diverged
                    datasets[part] = learner.read(chunks[part])
        history = train_in_rounds(model, datasets, config, folder.checkpoint, clock)
        if config.feature_store is None:
            model.precision = "float32"  # as a saved model; kept states stay as they were made
        for part in [part for part in parts if part != "train"]:
            with clock.stage("inference" if part == "test" else "validation"):
                if part == "test":
                    datasets[part] = learner.read(chunks[part])
                logits = predict_logits(model, datasets[part], not config.quiet)
                probabilities = chunks[part].mean(torch.softmax(logits, dim=-1).double())  # (N, 2)
                positive[part] = probabilities[:, 1].numpy()
        learner.save(folder.path, options)
        all_layers = isinstance(config.trainable, str)
        result = {
            "model": options["model"],
            "method": config.trainable if all_layers else f"{config.trainable} last layers",
            "parameters": num_parameters(model),
            "trained_parameters": num_trained,
            "options": options,
            "history": {key: getattr(history, key) for key in BY_ROUND},
            "command": shlex.join(words),
            "seed": config.seed,
            "num_train": len(parts["train"]),
            **{part: report.metrics(values, parts[part]) for part, values in positive.items()},
            "seconds": {key: round(value, 1) for key, value in clock.seconds.items()},
            "resumed": config.resume,  # the seconds are then those after the stop
            **machine(next(model.parameters()).device),
        }
        probabilities = None if config.kind else positive["test"]
        report.write_result(config.name, result, probabilities, config.results / config.kind)
        write_json(result, folder.path / METRICS)
        folder.checkpoint.remove()
    return result


def train_in_rounds(
    model: nn.Module,
    datasets: Mapping[str, SpamDataset],
    config: ReviewsConfig,
    checkpoint: Checkpoint,
    clock: Clock,
) -> History:
    """Train as the chapter does, but in rounds: an epoch takes too long to lose.

    What the chapter's training takes for an epoch is a round here, so its checkpoints and its
    history come after each. Both data sets are probed, since to classify them whole each time
    would take longer than to train.
    """
    rng, data = np.random.default_rng(config.seed), datasets["train"]
    num_rounds = -(-len(data) // ROUND_REVIEWS)
    # All of one size, since schedule and seeds are counted by the updates of a round: where the
    # reviews cannot be divided by their number, a few are in two rounds.
    size = -(-len(data) // num_rounds)
    rounds = np.resize(rng.permutation(len(data)), (num_rounds, size))
    probes = [
        subset(datasets[part], rng.permutation(len(datasets[part]))[:PROBE_REVIEWS])
        for part in ("train", "validation")
    ]
    config = replace(config, num_epochs=config.num_epochs * num_rounds)
    state = TrainingState(model, subset(data, rounds[0]), config)
    checkpoint.load(state)
    checkpoint.save(state)  # from now on there is something to go on with
    bar = tqdm(initial=state.num_steps_done, total=state.num_steps, disable=config.quiet)
    while not state.is_finished:
        with clock.stage("training"):
            num_done = state.history.num_epochs
            learned = subset(data, rounds[num_done % num_rounds])
            learned = drop_tokens(learned, config.word_dropout, config.seed * 1009 + num_done)
            train_epoch(state, learned, bar=bar)
            state.add_epoch(*(evaluate_model(model, probe) for probe in probes))
        checkpoint.save(state)
        bar.set_postfix(validation=f"{state.history.validation_accuracy[-1]:.1%}")
    bar.close()
    raise_if_diverged(state.history, config)
    return state.history


def subset(dataset: SpamDataset, indices: np.ndarray) -> SpamDataset:
    """Some of the items, of a data set of the same kind."""
    some = copy(dataset)
    for name in ("sequences", "labels", "lengths"):
        values = getattr(dataset, name)
        setattr(some, name, [values[i] for i in indices])
    return some


def drop_tokens(dataset: SpamDataset, fraction: float, seed: int) -> SpamDataset:
    """The data set with a random part of every sequence's tokens left out, but never the last.

    No two epochs then show the same review, and shorter ones take less time (Iyyer et al. 2015,
    "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", section 3.1).
    """
    if fraction == 0:
        return dataset
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for ids in dataset.sequences:
        kept = torch.rand(len(ids), generator=generator) >= fraction
        kept[-1] = True
        sequences.append(ids[kept])
    return SpamDataset(sequences, dataset.labels)


def run_training(
    learner: type[GPTLearner], config_class: type[ReviewsConfig], about: str, argv: list[str] | None
) -> int:
    """The command of a kind of model: a training whose accuracies are printed."""
    parser = make_parser(learner.script, about)
    parser.add_argument("name", help="name of the run and of its result file")
    add_options(parser, config_class, leave_out=config_class.left_out)
    args = parser.parse_args(argv)
    return run_command(
        learner.script,
        lambda: print(report.result_lines(train(config_from(args, config_class), learner))),
        "stopped. Repeat the command to go on, with --resume if the training had begun.",
    )


def main(argv: list[str] | None = None) -> int:
    about = "Fine-tune a GPT on the film reviews, and measure it on the official test half."
    return run_training(GPTLearner, ReviewsConfig, about, argv)


if __name__ == "__main__":
    sys.exit(main())
