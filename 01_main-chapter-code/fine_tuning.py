"""The main job as one function: from a file of messages to a classifier and its test metrics.

config = RunConfig(model="gpt-mini", trainable="last_block")
result = fine_tune(config)
result.metrics["test"]["accuracy"]
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classifier_folder import open_classifier
from continued_pretraining import (
    CONTINUED_PRETRAINING,
    continue_pretraining,
    encode_for_pretraining,
)
from evaluation import example_messages
from features import FastClassifier, FeatureDataset, Store
from files import file_sha256
from gpt_download import (
    MODEL_CONFIGS,
    build_decoder,
    default_model_name,
    load_pretrained,
    load_tokenizer,
    resolve_model_name,
)
from lora import DoRALinear, LoRALinear, add_lora, merge_lora
from measuring import Clock, evaluate_baseline, machine, measure
from message_files import DataError
from multi_label import LabelByLabel
from previous_chapters import Decoder
from run_config import RunConfig
from run_folder import RunFolder, open_run_folder
from run_messages import MADE_UP_NAME, Messages, read_run_messages
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    freeze_all_but,
    pick_device,
    predict_logits,
)
from text_data import ChunkDataset, SpamDataset, Splits, class_weights, encode_messages
from training import Checkpoint, History, TrainConfig, train_classifier_simple

CORRECTIONS = {"lora": LoRALinear, "dora": DoRALinear}
FROZEN_BYTES_LIMIT = 4 * 1024**3  # hidden states kept in memory; beyond this they are recomputed


@dataclass
class RunResult:
    """What came out of a run."""

    classifier: GPTClassifier
    tokenizer: Any
    config: RunConfig
    messages: Messages
    metrics: dict[str, Any]
    """What metrics.json holds."""


@dataclass
class PreparedRun:
    """What a run trains with: all that is there before the classifier is."""

    config: RunConfig
    """With what `auto` and None became."""
    messages: Messages
    decoder: Decoder
    tokenizer: Any
    about: ClassifierConfig
    datasets: list[ChunkDataset]
    """Training, validation and test messages as the classifier reads them."""
    identity: dict[str, Any]
    """All that shapes the result: whatever must be the same when the run is resumed."""
    clock: Clock
    log: Callable[[str], None]
    head: nn.Module | None = None
    """One that names these labels already, of `start_from`."""

    def loss_weights(self) -> Tensor | None:
        """How much each class counts in the loss (C,), where they count unequally."""
        if self.config.balance != "weights":
            return None
        weights = class_weights(self.datasets[0].labels, len(self.about.label_names))
        return weights.to(self.config.device)


# --- The steps of a run --------------------------------------------------------------------------


def prepare(
    config: RunConfig, messages: Messages | None = None, model_device: torch.device | None = None
) -> PreparedRun:
    """Read the messages and load the model; onto `model_device` if it is to be trained elsewhere
    than where it is loaded."""
    log = (lambda _: None) if config.quiet else print
    clock, device = Clock(), pick_device(config.device)
    with clock.stage("data"):
        messages = messages or read_run_messages(config, log)
    with clock.stage("model"):
        if config.start_from:
            start, tokenizer = open_classifier(config.start_from, model_device or device)
            decoder, name = start.decoder, start.config.model_name
            if config.model not in ("auto", name, name.split(" (")[0]):
                raise DataError(f"--start-from {config.start_from} is a {name}: leave out --model.")
            config = replace(config, pooling=config.pooling or start.config.pooling)
        else:
            decoder, tokenizer, name = load_decoder(config, model_device or device, log)
        config = replace(config.for_model(name), device=device.type)
        context, splits = decoder.cfg.context_length, messages.splits
        max_length = choose_max_length(config, splits, tokenizer, context, log)
        pad_to = {"batch": None, "training": max_length, "context": context}[config.padding]
        reads = (max_length, config.pooling, config.cut, pad_to)
        halves = (0.5,) * len(messages.label_names) if config.multi_label else None
        about = ClassifierConfig(name, messages.label_names, *reads, halves)
        datasets = make_datasets(messages, tokenizer, about)
    unlabelled = hashlib.sha256(json.dumps(messages.unlabelled).encode()).hexdigest()
    hashes = {"data_sha256": fingerprint(splits), "unlabelled_sha256": unlabelled}
    identity = config.identity() | hashes | messages.columns
    head = None
    if config.start_from:
        # It has the weights' checksum.
        identity["start_from_sha256"] = file_sha256(config.start_from / "config.json")
        if start.config.label_names == about.label_names:
            head = decoder.out_head
        log(f"Going on from {config.start_from}, with {'its' if head else 'a new'} head.")
    parts = (config, messages, decoder, tokenizer, about, datasets, identity, clock, log, head)
    return PreparedRun(*parts)


def load_decoder(
    config: RunConfig, device: torch.device, log: Callable = print
) -> tuple[Decoder, Any, str]:
    """The language model of a run, its tokenizer and its name."""
    auto = config.model == "auto"
    name = default_model_name(log) if auto else resolve_model_name(config.model)
    if config.weights == "pretrained":
        decoder, tokenizer = load_pretrained(name, device)
    else:
        torch.manual_seed(config.seed)
        decoder, tokenizer = build_decoder(MODEL_CONFIGS[name]).to(device), load_tokenizer(name)
    if not config.causal:
        pretrained, cfg = decoder, replace(decoder.cfg, causal=False)
        decoder = build_decoder(cfg).to(device)
        decoder.load_state_dict(pretrained.state_dict())
    num_blocks = len(decoder.trf_blocks)
    if isinstance(config.trainable, int) and config.trainable > num_blocks:  # before long work
        raise DataError(
            f"trainable={config.trainable} must be a number of last blocks from 0 to {num_blocks}."
        )
    return decoder, tokenizer, name


def choose_max_length(
    config: RunConfig, splits: Splits, tokenizer, context: int, log: Callable = print
) -> int:
    """The requested one, else that of the longest training message, within the context."""
    requested = config.max_length
    if requested is not None and requested > context:
        raise DataError(
            f"--max-length {requested} must lie between 1 and the model's context of {context}."
        )
    lengths = list(map(len, encode_messages(splits.train["text"], tokenizer, context + 1)))
    chosen = requested or min(max(lengths), context)
    if num_cut := sum(length > chosen for length in lengths):
        log(f"{num_cut} training messages exceed {chosen} tokens; --cut {config.cut} is read.")
    return chosen


def make_datasets(messages: Messages, tokenizer, config: ClassifierConfig) -> list[ChunkDataset]:
    """Training, validation and test messages as the classifier reads them."""
    return [
        ChunkDataset(
            config.chunks(part["text"], tokenizer), list(map(config.label_number, part["label"]))
        )
        for part in messages.splits
    ]


def make_model(run: PreparedRun) -> tuple[GPTClassifier, int]:
    """Continued pretraining on the messages' texts, if the run has any, then `make_classifier`."""
    config, decoder = run.config, run.decoder
    if config.continued_pretraining_epochs:
        texts, context = run.messages.unlabelled, decoder.cfg.context_length
        with run.clock.stage("pretraining"):
            run.log(f"Continued pretraining of {config.model} on {len(texts):,} texts.")
            pretrain_on_texts(decoder, run.tokenizer, texts, context, config)
    trained = f"training {config.trainable}, {len(run.datasets[0]):,} messages"
    run.log(f"{config.model} on {config.device}: {trained}.")
    return make_classifier(decoder, run.about, config, run.head)


def pretrain_on_texts(
    decoder: Decoder, tokenizer, texts: Sequence[str], max_length: int, config: RunConfig
) -> list[float]:
    """Continued pretraining on the first `max_length` tokens of each text; returns the losses."""
    sequences = encode_for_pretraining(texts, tokenizer, max_length)
    epochs = config.continued_pretraining_epochs
    settings = replace(CONTINUED_PRETRAINING, num_epochs=epochs, seed=config.seed)
    return continue_pretraining(decoder, sequences, settings, not config.quiet, config.precision)


def make_classifier(
    decoder: Decoder, about: ClassifierConfig, config: RunConfig, head: nn.Module | None = None
) -> tuple[GPTClassifier, int]:
    """The classifier with the given or a new head, what is not trained frozen, and the number of
    frozen blocks whose states can be computed once."""
    torch.manual_seed(config.seed)
    classifier = GPTClassifier(decoder, about)
    if head is not None:
        decoder.out_head = head
    if config.trainable not in CORRECTIONS:
        return classifier, freeze_all_but(classifier, config.trainable)
    freeze_all_but(classifier, "head")
    kind = CORRECTIONS[config.trainable]
    add_lora(decoder, config.lora_rank or 8, config.lora_alpha or 16, kind=kind)
    return classifier, 0


def compute_frozen_layers(
    run: PreparedRun,
    classifier: GPTClassifier,
    num_frozen: int,
    compute: Callable = FeatureDataset.from_classifier,
    **options,
) -> tuple[list[SpamDataset], int]:
    """The data sets as they leave the frozen layers, and how many layers that were: none where
    the hidden states of all messages do not fit in memory."""
    with run.clock.stage("frozen_layers"):
        num_states = sum(sum(dataset.lengths) for dataset in run.datasets)
        fits = num_states * run.decoder.cfg.emb_dim * 4 <= FROZEN_BYTES_LIMIT
        if not num_frozen or not fits:
            return run.datasets, 0
        how = (num_frozen, run.config.precision, not run.config.quiet)
        datasets = [compute(classifier, data, *how, **options) for data in run.datasets]
    return datasets, num_frozen


def train_and_predict(
    run: PreparedRun,
    model: FastClassifier,
    datasets: list[SpamDataset],
    checkpoint: Checkpoint | None,
    shared: FastClassifier | None = None,
) -> tuple[History, list[Tensor]]:
    """Train the model on the data sets that `compute_frozen_layers` gave; returns the logits (K, C)
    of all parts' chunks, too. What several processes have of the model is `shared`."""
    config, computing = run.config, shared or model
    with run.clock.stage("training"):
        trained = LabelByLabel(computing) if config.multi_label else computing
        how = (config, run.loss_weights(), checkpoint, not config.quiet)
        history = train_classifier_simple(trained, *datasets[:2], *how)
        raise_if_diverged(history, config)
    with run.clock.stage("evaluation"):
        if config.precision != "float32":  # a saved classifier computes all blocks in float32
            model.precision, model.num_layers, datasets = "float32", 0, run.datasets
        logits = [predict_logits(computing, dataset) for dataset in datasets]
    return history, logits


def make_metrics(run: PreparedRun, history: History, logits: list[Tensor]) -> dict[str, Any]:
    """What metrics.json holds; takes the logits (K, C) of the parts' chunks."""
    config, messages, label_names = run.config, run.messages, run.about.label_names
    measured = measure(logits, run.datasets, run.about)
    if config.keep_examples:
        texts = messages.splits.test["text"].tolist()
        predictions = map(np.array, measured["test_predictions"].values())
        measured["examples"] = example_messages(texts, label_names, *predictions)
    with run.clock.stage("baseline"):
        baseline = evaluate_baseline(messages.splits, run.datasets, config.multi_label)
    return {
        "model": config.model,
        "weights": config.weights,
        "data": messages.name,
        "num_labels": len(label_names),
        "labels": list(label_names),
        "seed": config.seed,
        **measured,
        "ngram_baseline": baseline,
        "seconds": {stage: round(value, 3) for stage, value in run.clock.seconds.items()},
        "max_length": run.about.max_length,
        "options": run.identity,
        "history": asdict(history),
        **machine(config.device),
    }


def finish(
    run: PreparedRun, folder: RunFolder, classifier: GPTClassifier, metrics: dict[str, Any]
) -> None:
    """Merge LoRA's corrections, note what the classifier was trained on, and write everything."""
    merge_lora(classifier.decoder)
    card = {
        "trained_on": run.messages.name,
        "training": run.identity,
        "test": metrics["test"],
        "made_up_data": run.messages.name == MADE_UP_NAME,
    }
    classifier.config = replace(run.about, card=card, thresholds=metrics.get("thresholds"))
    folder.write(classifier, metrics)


# --- The run -------------------------------------------------------------------------------------


def fine_tune(
    config: RunConfig, messages: Messages | None = None, store: Store | None = None
) -> RunResult:
    """Fine-tune and measure a classifier; writes `config.output` if that is given.

    `messages` take the place of those that the options name. A `store` keeps the frozen layers'
    states for other runs. Raises ``ValueError``, ``DataError`` among them, for wrong options and
    data, ``DownloadError`` for what cannot be had, ``OSError`` for what cannot be written.
    """
    run = prepare(config, messages)
    config = run.config
    with open_run_folder(config.output, run.identity, config.resume, config.overwrite) as folder:
        if folder.is_finished:
            run.log(f"The run in {config.output} is finished already.")
            opened = open_classifier(config.output, run.decoder.device)
            return RunResult(*opened, config, run.messages, folder.metrics())
        classifier, num_frozen = make_model(run)
        datasets, num_done = compute_frozen_layers(run, classifier, num_frozen, store=store)
        model = FastClassifier(classifier, num_done, config.precision)
        metrics = make_metrics(run, *train_and_predict(run, model, datasets, folder.checkpoint))
        finish(run, folder, classifier, metrics)
    return RunResult(classifier, run.tokenizer, config, run.messages, metrics)


def raise_if_diverged(history: History, config: TrainConfig) -> None:
    losses = [*history.step_losses, *history.train_loss, *history.validation_loss]
    if not all(map(math.isfinite, losses)):  # the steps' own do not tell what the last step did
        raise DataError(
            f"The loss is no longer a number: the training diverged with --learning-rate "
            f"{config.learning_rate}; choose a smaller one."
        )


def read_again(
    training: Mapping[str, Any], data: Path | None, log: Callable = print
) -> Messages | None:
    """The messages of a finished run, whose classifier's card holds its options as `training`: from
    the reader's own `data`, or the SMS collection. None if they are others now."""
    names = [entry.name for entry in fields(RunConfig) if entry.name in training]
    options = {name: training[name] for name in names} | {"data": data, "start_from": None}
    messages = read_run_messages(RunConfig(**options), log)
    return messages if fingerprint(messages.splits) == training["data_sha256"] else None


def fingerprint(splits: Splits) -> str:
    """SHA-256 of all messages in their order: whether a resumed run sees the same data."""
    digest = hashlib.sha256()
    for part in splits:
        digest.update(json.dumps(part[["text", "label"]].values.tolist()).encode())
    return digest.hexdigest()
