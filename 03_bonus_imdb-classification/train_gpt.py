"""Fine-tune a GPT to tell positive film reviews from negative ones.

    python 03_bonus_imdb-classification/train_gpt.py NAME --model gpt-mini --trainable all

The state of a run stands in `runs/NAME`, so that `--resume` goes on after a stop; at its end the
classifier is there too, and the metrics are in `my-results/NAME.json`.

Shapes in comments: N reviews.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from classifier_folder import save_classifier
from command_line import config_from, run_command
from continued_pretraining import (
    CONTINUED_PRETRAINING,
    continue_pretraining,
    encode_for_pretraining,
)
from download_prepare_dataset import LABELS
from features import FastClassifier, FeatureDataset
from files import save_tensors, write_json
from fine_tuning import (
    Clock,
    fingerprint,
    fit_in_memory,
    load_decoder,
    make_classifier,
    raise_if_diverged,
)
from imdb_results import label_numbers, result_lines
from long_texts import Chunks, encode_chunks
from lora import merge_lora
from options import AT_LEAST_0, FRACTION, option
from previous_chapters import Decoder, num_parameters
from run_folder import METRICS, RunFolder
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    Trainable,
    evaluate_model,
    pick_device,
    predict_logits,
)
from text_data import SpamDataset
from training import Checkpoint, History, TrainingState, train_epoch
from training_runs import (
    PROBE_REVIEWS,
    ROUND_REVIEWS,
    STOPPED,
    ReviewsConfig,
    chapters,
    parse_run,
    read_reviews_of,
    write_run,
)

PRETRAINED = "continued-pretraining.safetensors"  # in a run's folder, until it is finished
BY_ROUND = ("train_accuracy", "validation_accuracy", "validation_loss")


@dataclass(frozen=True)
class GPTRunConfig(ReviewsConfig):
    """One run. Raises ``ValueError`` that names everything wrong with it."""

    model: str = chapters("model", "gpt-mini")
    continued_pretraining_epochs: int = option(
        0,
        "epochs of language modelling on the training reviews, the first --max-length tokens of "
        "each, before the head is put on",
        AT_LEAST_0,
        "model",
    )
    trainable: Trainable | Literal["lora"] | int = chapters("trainable", "all")
    word_dropout: float = option(
        0.0,
        "fraction of a review's tokens left out whenever it is trained on, others each time",
        FRACTION,
        "training",
    )

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.word_dropout and self.trainable not in ("all", "lora"):
            problems.append(
                "--word-dropout changes what frozen blocks see, and they are computed once: leave "
                "it out, or take --trainable all or lora"
            )
        return problems


def pretrain_on_reviews(
    decoder: Decoder, tokenizer, texts: Sequence[str], config: GPTRunConfig, kept: Path
) -> None:
    """Continued pretraining; its weights are kept in a file, which a resumed run takes."""
    if kept.exists():
        decoder.load_state_dict(load_file(kept), strict=False)  # a tied head is not in it
        return
    sequences = encode_for_pretraining(texts, tokenizer, config.max_length)
    epochs = config.continued_pretraining_epochs
    how = replace(CONTINUED_PRETRAINING, num_epochs=epochs, seed=config.seed)
    continue_pretraining(decoder, sequences, how, not config.quiet, config.precision)
    save_tensors(dict(decoder.named_parameters()), kept, {"format": "pt"})


def make_dataset(chunks: Chunks, labels: np.ndarray) -> SpamDataset:
    """Every chunk with the label (N,) of the review that it is of."""
    return SpamDataset(chunks.sequences, labels[chunks.document_ids])


def predict_positive(
    model: nn.Module, dataset: SpamDataset, chunks: Chunks, progress: bool = False
) -> np.ndarray:
    """Each review's probability of being positive (N,)."""
    probabilities = torch.softmax(predict_logits(model, dataset, progress), dim=-1)
    return chunks.mean(probabilities[:, 1].double().numpy())


def subset(dataset: SpamDataset, indices: np.ndarray) -> SpamDataset:
    part = copy.copy(dataset)
    for name in ("sequences", "labels", "lengths"):
        values = getattr(dataset, name)
        setattr(part, name, [values[i] for i in indices])
    return part


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


def train_in_rounds(
    model: nn.Module,
    train: SpamDataset,
    validation: SpamDataset,
    config: GPTRunConfig,
    checkpoint: Checkpoint,
    clock: Clock,
    progress: bool = False,
) -> History:
    """Train as the chapter does, but in rounds: an epoch takes too long to lose.

    What the chapter's training takes for an epoch is a round here, so its checkpoints and its
    history come after each. Both data sets are probed, since to classify them whole each time
    would take longer than to train.
    """
    rng = np.random.default_rng(config.seed)
    num_rounds = -(-len(train) // ROUND_REVIEWS)
    # All of one size, since schedule and seeds are counted by the updates of a round: where the
    # reviews cannot be divided by their number, a few are in two rounds.
    size = -(-len(train) // num_rounds)
    rounds = np.resize(rng.permutation(len(train)), (num_rounds, size))
    probes = [
        subset(data, rng.permutation(len(data))[:PROBE_REVIEWS]) for data in (train, validation)
    ]
    config = replace(config, num_epochs=config.num_epochs * num_rounds)
    state = TrainingState(model, subset(train, rounds[0]), config)
    if checkpoint.path.exists():
        checkpoint.load(state)
    else:
        checkpoint.save(state)  # from now on there is something to go on with
    done, total = state.num_steps_done, state.num_steps
    with tqdm(total=total, initial=done, desc="training", unit="step", disable=not progress) as bar:
        while not state.is_finished:
            with clock.stage("training"):
                num_done = state.history.num_epochs
                learned = subset(train, rounds[num_done % num_rounds])
                learned = drop_tokens(learned, config.word_dropout, config.seed * 1009 + num_done)
                train_epoch(state, learned, bar=bar)
                state.add_epoch(*(evaluate_model(model, probe) for probe in probes))
            checkpoint.save(state)
            bar.set_postfix(validation=f"{state.history.validation_accuracy[-1]:.1%}")
    return state.history


def train_and_classify(
    classifier: GPTClassifier,
    num_frozen: int,
    tokenizer,
    parts: Mapping[str, pd.DataFrame],
    config: GPTRunConfig,
    checkpoint: Checkpoint,
    clock: Clock,
) -> tuple[History, dict[str, np.ndarray]]:
    """What happened in training, and each review's probability of being positive (N,) by part."""
    progress, chunks, datasets = not config.quiet, {}, {}
    for part, reviews in parts.items():
        with clock.stage("inference" if part == "test" else "preparation"):
            texts = reviews["text"]
            chunks[part] = encode_chunks(texts, tokenizer, config.max_length, config.cut)
            datasets[part] = make_dataset(chunks[part], label_numbers(reviews))
    learned = [datasets["train"], datasets["validation"]]
    cached = num_frozen if fit_in_memory(learned, classifier.decoder) else 0
    if cached:
        with clock.stage("training"):
            for part in ("train", "validation"):
                datasets[part] = FeatureDataset.from_classifier(
                    classifier, datasets[part], cached, config.precision, progress
                )
    model = FastClassifier(classifier, cached, config.precision)
    learned = [datasets["train"], datasets["validation"]]
    history = train_in_rounds(model, *learned, config, checkpoint, clock, progress)
    raise_if_diverged(history, config)
    positive = {}
    for part in [part for part in parts if part != "train"]:
        with clock.stage("inference" if part == "test" else "validation"):
            positive[part] = predict_positive(model, datasets[part], chunks[part], progress)
    return history, positive


def train(config: GPTRunConfig) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result.

    Raises what `fine_tune` raises.
    """
    log: Callable = (lambda *_: None) if config.quiet else print
    device, parts = pick_device(config.device), read_reviews_of(config)
    decoder, tokenizer, name = load_decoder(config, device, log)
    if config.max_length > (context := decoder.cfg.context_length):
        raise ValueError(f"--max-length {config.max_length} exceeds {name}'s context of {context}.")
    command, config = config.command("train_gpt.py", config.name), config.for_model(name)
    options = config.identity() | {"data_sha256": fingerprint(list(parts.values()))}
    with RunFolder(config.folder, options, config.resume, config.overwrite) as folder:
        if folder.is_finished:
            return folder.metrics()
        clock, pretrained = Clock(), folder.path / PRETRAINED
        if not config.resume:
            pretrained.unlink(missing_ok=True)
        if config.continued_pretraining_epochs:
            with clock.stage("pretraining"):
                pretrain_on_reviews(decoder, tokenizer, parts["train"]["text"], config, pretrained)
        about = ClassifierConfig(name, LABELS, config.max_length, config.pooling)
        classifier, num_frozen = make_classifier(decoder, about, config)
        num_trained = num_parameters(classifier, trainable_only=True)
        log(f"{name} on {device}: {len(parts['train']):,} reviews, {num_trained:,} parameters.")
        history, positive = train_and_classify(
            classifier, num_frozen, tokenizer, parts, config, folder.checkpoint, clock
        )
        merge_lora(decoder)
        description = {
            "model": name,
            "method": str(config.trainable),
            "parameters": num_parameters(classifier),
            "trained_parameters": num_trained,
            "options": options,
            "history": {key: getattr(history, key) for key in BY_ROUND},
            "command": command,
        }
        result = write_run(config, description, parts, positive, clock, str(device))
        # No metrics: they are those of --cut, but whoever opens a classifier reads the head.
        card = {"trained_on": "Large Movie Review Dataset", "training": options}
        classifier.config = replace(about, card=card)
        write_json(result, folder.path / METRICS)
        save_classifier(classifier, folder.path)
        folder.checkpoint.remove()
        pretrained.unlink(missing_ok=True)
    return result


def main(argv: list[str] | None = None) -> int:
    about = "Fine-tune a GPT on the film reviews, and measure it on the official test half."
    args = parse_run("train_gpt.py", about, GPTRunConfig, argv)
    return run_command(
        "train_gpt.py",
        lambda: print(result_lines(train(config_from(args, GPTRunConfig)))),
        STOPPED,
    )


if __name__ == "__main__":
    sys.exit(main())
