"""Fine-tune a GPT to tell positive film reviews from negative ones.

    python 03_bonus_imdb-classification/train_gpt.py NAME --model gpt-mini --trainable all

The state of a run stands in `runs/NAME`, so that `--resume` goes on after a stop; at its end the
classifier is there too, and the figures are in `results/NAME.json`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from download_prepare_dataset import LABELS, read_parts
from finetune import (
    COUNT,
    COUNT_OR_NONE,
    GPT2_LEARNING_RATE,
    POSITIVE,
    SHARE,
    Clock,
    fingerprint,
    fits_in_memory,
    prepare_folder,
    read_json,
    refuse_divergence,
)
from gpt_download import MODEL_CONFIGS, load_pretrained, resolve_model_name
from imdb_results import choose_train, label_numbers, result_lines
from long_texts import Cut, Pieces, encode_pieces
from lora import add_lora, merge_lora
from message_files import DataError
from previous_chapters import GPTModel
from text_classifier import (
    FURTHER_PRETRAINING,
    TOKENS_AT_ONCE,
    Classifier,
    Precision,
    TrainConfig,
    Trainer,
    add_classification_head,
    compute_frozen_layers,
    continue_pretraining,
    encode_for_pretraining,
    freeze_all_but,
    load_checkpoint,
    pick_device,
    predict_logits,
    save_checkpoint,
    save_classifier,
    save_tensors,
    write_text,
)
from text_data import Pooling, Reading, SpamDataset, Splits
from training_runs import (
    SECONDS,
    STOPPED,
    exit_status,
    make_parser,
    parse_run,
    refuse_others_result,
    write_run,
)

FURTHER_WEIGHTS = "pretrained-further.safetensors"  # in a run's folder, until it is finished
ROUND_REVIEWS = 6000  # a checkpoint is saved after each round of at most so many reviews
PROBE_REVIEWS = 500  # of training and of validation, to see after each round how it goes
LORA_RANK, LORA_ALPHA = 8, 16
# For gpt-mini chosen on validation reviews; for GPT-2 the customary value, not measured here.
LEARNING_RATES = {"gpt-mini": 1e-3}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser, data, model, training = make_parser(
        "train_gpt.py",
        "Fine-tune a GPT on the film reviews that download_prepare_dataset.py wrote, and measure "
        "it on the official test half.",
        get_args(Cut),
        "what is read of a longer review: its head, its tail, both (a quarter from the head), or "
        "all of it in overlapping windows, whose probabilities are averaged",
        max_length=512,
    )
    data.add_argument(
        "--num-test",
        type=COUNT,
        help="for learning curves: random test reviews measured on; default: all",
    )
    model.add_argument(
        "--model",
        default="gpt-mini",
        help="one of: " + ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS),
    )
    model.add_argument(
        "--pretrain-further",
        type=COUNT_OR_NONE,
        metavar="EPOCHS",
        default=0,
        help="epochs of language modelling on the training reviews, the first --max-length tokens "
        "of each, before the head is put on",
    )
    model.add_argument(
        "--trainable",
        choices=["last_block", "all", "lora"],
        default="all",
        help="what is trained besides the head; lora: low-rank corrections of all linear layers",
    )
    model.add_argument(
        "--pooling",
        choices=get_args(Pooling),
        default="last_real",
        help="where a review's class is read: at its last token, or on average over all",
    )
    training.add_argument(
        "--learning-rate",
        type=POSITIVE,
        help=f"at its peak; default: {LEARNING_RATES['gpt-mini']} for gpt-mini, "
        f"{GPT2_LEARNING_RATE} for GPT-2",
    )
    training.add_argument(
        "--dropout", type=SHARE, default=0.0, help="in the trained layers; not with lora"
    )
    training.add_argument(
        "--word-dropout",
        type=SHARE,
        default=0.0,
        help="share of a review's tokens left out whenever it is trained on, others each time; "
        "not with last_block, whose frozen layers are computed once",
    )
    return parse_run(parser, argv)


# ---------------------------------------------------------------------------------------------
# Model and training
# ---------------------------------------------------------------------------------------------


def pretrain_further(
    model: GPTModel, tokenizer, texts: list[str], args: argparse.Namespace, precision: Precision
) -> None:
    """Go on with language modelling on the reviews; a resumed run takes what was saved then."""
    weights = args.output / FURTHER_WEIGHTS
    if weights.exists():
        model.load_state_dict(load_file(weights), strict=False)  # the tied head is not in it
        return
    sequences = encode_for_pretraining(texts, tokenizer, args.max_length)
    at_once = reviews_at_once(args.max_length, model.tok_emb.weight.device)
    config = replace(
        FURTHER_PRETRAINING,
        num_epochs=args.pretrain_further,
        batch_size=at_once,
        accumulation_steps=FURTHER_PRETRAINING.batch_size // at_once,
        seed=args.seed,
        precision=precision,
    )
    continue_pretraining(model, sequences, config, not args.quiet)
    save_tensors(dict(model.named_parameters()), weights, {"format": "pt"})


def reviews_at_once(max_length: int, device: torch.device) -> int:
    """How many reviews fit in one piece of `calc_next_token_loss`, which computes larger batches
    twice; a divisor of the batch, whose gradients are then added up.

    >>> reviews_at_once(256, torch.device("cpu")), reviews_at_once(300, torch.device("cpu"))
    (4, 2)
    """
    batch_size = FURTHER_PRETRAINING.batch_size
    fitting = max(1, 2 * TOKENS_AT_ONCE[device.type] // max_length)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and n <= fitting)


def put_head_on(model: GPTModel, trainable: str, seed: int) -> int:
    """Give the model a new head, and freeze what is not trained; returns how many blocks."""
    torch.manual_seed(seed)
    add_classification_head(model, len(LABELS))
    if trainable != "lora":
        return freeze_all_but(model, trainable)
    freeze_all_but(model, "head")
    add_lora(model, LORA_RANK, LORA_ALPHA)
    return 0


def make_dataset(pieces: Pieces, labels: np.ndarray, pooling: Pooling) -> SpamDataset:
    """Every piece with the label (N,) of the review that it is of."""
    return SpamDataset(pieces.sequences, labels[pieces.owners], reading=Reading(pooling))


def subset(dataset: SpamDataset, indices: np.ndarray) -> SpamDataset:
    return SpamDataset(
        [dataset.sequences[i] for i in indices],
        [dataset.labels[i] for i in indices],
        dataset.num_blocks_done,
        [dataset.lengths[i] for i in indices],
        dataset.reading,
    )


def drop_tokens(dataset: SpamDataset, share: float, seed: int) -> SpamDataset:
    """The data set with a random share of every sequence's tokens left out, but never the last.

    No two epochs then show the same review, and shorter ones take less time (Iyyer et al. 2015,
    "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", section 3.1).
    """
    if share == 0:
        return dataset
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for ids in dataset.sequences:
        kept = torch.rand(len(ids), generator=generator) >= share
        kept[-1] = True
        sequences.append(ids[kept])
    return SpamDataset(sequences, dataset.labels, reading=dataset.reading)


def divide_into_rounds(num_reviews: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of reviews in random order, in equal rounds of at most `ROUND_REVIEWS`: (R, N).

    Schedule and seeds are counted by the updates of a round, so all rounds are of one size: where
    the reviews cannot be divided by R, fewer than R of them are in two rounds.

    >>> divide_into_rounds(22152, np.random.default_rng(1)).shape
    (4, 5538)
    >>> divide_into_rounds(7001, np.random.default_rng(1)).shape
    (2, 3501)
    """
    num_rounds = -(-num_reviews // ROUND_REVIEWS)
    size = -(-num_reviews // num_rounds)
    return np.resize(rng.permutation(num_reviews), (num_rounds, size))


def train_in_rounds(
    model: GPTModel,
    train: SpamDataset,
    validation: SpamDataset,
    config: TrainConfig,
    checkpoint: Path,
    clock: Clock,
    word_dropout: float = 0.0,
    progress: bool = False,
) -> Trainer:
    """Train as the chapter does, but in rounds: an epoch takes too long to lose.

    The training set is divided at random into equal rounds. What the chapter's trainer takes for
    an epoch is a round here, so its checkpoints and its history come after each. Both data sets
    are probed, since to classify them whole each time would take longer than to train.
    """
    rng = np.random.default_rng(config.seed)
    rounds = [subset(train, indices) for indices in divide_into_rounds(len(train), rng)]
    num_rounds = len(rounds)
    probes = [
        subset(dataset, rng.permutation(len(dataset))[:PROBE_REVIEWS])
        for dataset in (train, validation)
    ]
    config = replace(config, num_epochs=config.num_epochs * num_rounds)
    trainer = Trainer(model, rounds[0], config)
    if checkpoint.exists():
        load_checkpoint(trainer, checkpoint)
    done = len(trainer.history.step_losses)
    bar = tqdm(total=trainer.num_steps, initial=done, unit="step", disable=not progress)
    while not trainer.finished:
        with clock.stage("training"):
            num_done = trainer.history.num_epochs
            learned = rounds[num_done % num_rounds]
            trainer.train = drop_tokens(learned, word_dropout, config.seed * 1009 + num_done)
            trainer.train_epoch(bar)
            trainer.train = probes[0]
            trainer.evaluate_epoch(probes[1])
        save_checkpoint(trainer, checkpoint)
        write_text(json.dumps(clock.seconds), checkpoint.with_name(SECONDS))
        bar.set_postfix(validation=f"{trainer.history.validation_accuracy[-1]:.1%}")
    bar.close()
    return trainer


def predict_positive(
    model: GPTModel, dataset: SpamDataset, pieces: Pieces, precision: Precision, progress: bool
) -> np.ndarray:
    """Each review's probability of being positive (N,)."""
    logits = predict_logits(model, dataset, progress, precision)
    return pieces.mean(torch.softmax(logits, dim=-1)[:, 1].double().numpy())


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


def choose_parts(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """The reviews that this run learns from and is measured on. Raises ``DataError``."""
    parts = choose_train(read_parts(args.data), args.num_train, args.seed)
    if args.num_test:
        if args.num_train is None or args.validation_only:
            raise DataError("--num-test is for learning curves: with --num-train, and with a test.")
        if args.num_test > len(parts["test"]):
            raise DataError(f"--num-test {args.num_test}: there are {len(parts['test'])} reviews.")
        parts["test"] = parts["test"].sample(args.num_test, random_state=0)  # alike for every seed
    return parts


def run_options(
    args: argparse.Namespace, name: str, config: TrainConfig, parts: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """What must be the same when the run is resumed."""
    ways = ("num_test", "trainable", "cut", "max_length", "num_train", "epochs", "batch_size")
    options = {key: getattr(args, key) for key in (*ways, "dropout", "seed")}
    options |= {"model": name, "learning_rate": config.learning_rate}
    options |= {"precision": config.precision, "data_sha256": fingerprint(Splits(*parts.values()))}
    # None where it is what runs did that do not know the option.
    pooling = None if args.pooling == "last_real" else args.pooling
    options |= {"word_dropout": args.word_dropout or None, "pooling": pooling}
    return options | {"pretrain_further": args.pretrain_further or None}


def check_options(args: argparse.Namespace, name: str) -> None:
    """Raise ``DataError`` for what cannot be, or would be ignored."""
    context = MODEL_CONFIGS[name].context_length
    if args.max_length > context:
        raise DataError(
            f"--max-length {args.max_length} exceeds the context of {name}, {context} tokens."
        )
    if args.dropout and args.trainable == "lora":
        raise DataError("--dropout does nothing with --trainable lora: leave one out.")
    if args.word_dropout and args.trainable == "last_block":
        raise DataError(
            "--word-dropout changes what frozen layers see, and they are computed once: leave it "
            "out, or take --trainable all or lora."
        )
    refuse_others_result(args)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result."""
    say: Callable = (lambda *_: None) if args.quiet else print
    device = pick_device(args.device)
    name = resolve_model_name(args.model)
    check_options(args, name)
    parts = choose_parts(args)
    config = TrainConfig(
        learning_rate=args.learning_rate or LEARNING_RATES.get(name, GPT2_LEARNING_RATE),
        num_epochs=args.epochs,
        batch_size=args.batch_size,
        dropout=args.dropout,
        seed=args.seed,
        precision=args.precision or ("bfloat16" if device.type == "cuda" else "float32"),
    )
    options = run_options(args, name, config, parts)
    checkpoint = prepare_folder(args, options, say)
    if checkpoint is None:
        return read_json(args.output / "metrics.json")
    further_weights, seconds = args.output / FURTHER_WEIGHTS, args.output / SECONDS
    if not args.resume:
        for file in (further_weights, seconds):
            file.unlink(missing_ok=True)

    clock = Clock(read_json(seconds) if seconds.exists() else {})  # a kill may come before it
    model, tokenizer = load_pretrained(name, device)
    if args.pretrain_further:
        with clock.stage("pretraining"):
            texts = parts["train"]["text"].tolist()
            pretrain_further(model, tokenizer, texts, args, config.precision)
        write_text(json.dumps(clock.seconds), seconds)
    num_frozen = put_head_on(model, args.trainable, args.seed)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    datasets, pieces = {}, {}
    for part in ("train", "validation") if args.validation_only else parts:
        with clock.stage("inference" if part == "test" else "preparation"):
            texts = parts[part]["text"].tolist()
            pieces[part] = encode_pieces(
                texts, tokenizer, args.max_length, args.cut, progress=not args.quiet
            )
            datasets[part] = make_dataset(pieces[part], label_numbers(parts[part]), args.pooling)
    learned = [datasets["train"], datasets["validation"]]
    if fits_in_memory(learned, model, num_frozen):
        with clock.stage("training"):
            learned = [
                compute_frozen_layers(model, data, num_frozen, precision=config.precision)
                for data in learned
            ]
    say(f"{name} on {device}: {len(parts['train']):,} reviews, {num_trained:,} parameters trained.")
    trainer = train_in_rounds(
        model, *learned, config, checkpoint, clock, args.word_dropout, not args.quiet
    )
    history = trainer.history
    refuse_divergence(history, config)
    if args.trainable == "lora":
        merge_lora(model)
    positive = {}
    for part in [part for part in datasets if part != "train"]:
        with clock.stage("inference" if part == "test" else "validation"):
            positive[part] = predict_positive(
                model, datasets[part], pieces[part], config.precision, not args.quiet
            )
    by_round = ("train_accuracy", "validation_accuracy", "validation_loss")
    description = {
        "model": name,
        "method": args.trainable,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": num_trained,
        "options": options,
        "history": {key: getattr(history, key) for key in by_round},
    }
    result = write_run(args, description, parts, positive, clock, device)
    if not args.validation_only:
        # No figures: they are those of --cut, but whoever opens a classifier reads the head.
        card = {"trained_on": "Large Movie Review Dataset", "training": options}
        classifier = Classifier(
            model, tokenizer, name, list(LABELS), args.max_length, card, args.pooling
        )
        save_classifier(classifier, args.output)
    write_text(json.dumps(result, indent=1) + "\n", args.output / "metrics.json")
    for file in (checkpoint, further_weights):
        file.unlink(missing_ok=True)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return exit_status("train_gpt.py", lambda: print(result_lines(run(args))), STOPPED)


if __name__ == "__main__":
    sys.exit(main())
