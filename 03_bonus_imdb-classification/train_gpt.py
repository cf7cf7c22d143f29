"""Fine-tune a GPT to tell positive film reviews from negative ones.

    python 03_bonus_imdb-classification/train_gpt.py NAME --model gpt-mini --trainable all

The state of a run stands in `runs/NAME`, so that `--resume` goes on after a stop; at its end the
classifier is there too, and the figures are in `results/NAME.json`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tqdm import tqdm

from download_prepare_dataset import LABELS, REVIEWS, read_parts
from finetune import (
    COUNT,
    GPT2_LEARNING_RATE,
    POSITIVE,
    SEED,
    SHARE,
    Clock,
    fingerprint,
    fits_in_memory,
    prepare_folder,
    read_json,
)
from gpt_download import MODEL_CONFIGS, DownloadError, load_pretrained, resolve_model_name
from imdb_results import (
    RESULTS,
    choose_train,
    figures,
    label_numbers,
    machine,
    recorded_command,
    result_folder,
    result_lines,
    write_result,
)
from long_texts import Cut, Pieces, encode_pieces
from lora import add_lora, merge_lora
from message_files import DataError
from previous_chapters import GPTModel
from text_classifier import (
    Classifier,
    Precision,
    TrainConfig,
    Trainer,
    add_classification_head,
    compute_frozen_layers,
    freeze_all_but,
    load_checkpoint,
    pick_device,
    predict_logits,
    save_checkpoint,
    save_classifier,
    write_text,
)
from text_data import SpamDataset, Splits

RUNS = Path(__file__).parent / "runs"
ROUND_REVIEWS = 6000  # a checkpoint is saved after each round of at most so many reviews
PROBE_REVIEWS = 500  # of training and of validation, to see after each round how it goes
LORA_RANK, LORA_ALPHA = 8, 16
# For gpt-mini chosen on validation reviews; for GPT-2 the customary value, not measured here.
LEARNING_RATES = {"gpt-mini": 1e-3}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train_gpt.py",
        description="Fine-tune a GPT on the film reviews that download_prepare_dataset.py wrote, "
        "and measure it on the official test half.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", help="name of the run and of its result file")
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, default=REVIEWS, help="folder of the three parts")
    data.add_argument("--num-train", type=COUNT, help="training reviews used; default: all")
    data.add_argument(
        "--num-test",
        type=COUNT,
        help="for learning curves: random test reviews measured on; default: all",
    )
    data.add_argument("--max-length", type=COUNT, default=512, help="tokens of a piece")
    data.add_argument(
        "--cut",
        choices=get_args(Cut),
        default="both",
        help="what is read of a longer review: its head, its tail, both (a quarter from the head), "
        "or all of it in overlapping windows, whose probabilities are averaged",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        default="gpt-mini",
        help="one of: " + ", ".join(name.split(" (")[0] for name in MODEL_CONFIGS),
    )
    model.add_argument(
        "--trainable",
        choices=["last_block", "all", "lora"],
        default="all",
        help="what is trained besides the head; lora: low-rank corrections of all linear layers",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=COUNT, default=2, help="passes")
    training.add_argument("--batch-size", type=COUNT, default=16, help="reviews for each update")
    training.add_argument(
        "--learning-rate",
        type=POSITIVE,
        help=f"at its peak; default: {LEARNING_RATES['gpt-mini']} for gpt-mini, "
        f"{GPT2_LEARNING_RATE} for GPT-2",
    )
    training.add_argument("--dropout", type=SHARE, default=0.0, help="in the trained layers")
    training.add_argument("--seed", type=SEED, default=1, help="head, sample, order, dropout")
    run = parser.add_argument_group("run")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=" ")
    run.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of matrix products; default: bfloat16 on CUDA, float32 elsewhere",
    )
    run.add_argument(
        "--validation-only",
        action="store_true",
        help="to choose options by: leave the test half unread; the result goes to results/trials",
    )
    run.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    run.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs' states")
    run.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    run.add_argument("--quiet", action="store_true", help="print the results only")
    args = parser.parse_args(argv)
    args.command = recorded_command("train_gpt.py", argv)
    args.output = args.runs / args.name  # where the chapter's functions look for the state
    return args


# ---------------------------------------------------------------------------------------------
# Model and training
# ---------------------------------------------------------------------------------------------


def prepare_model(
    name: str, trainable: str, seed: int, device: torch.device
) -> tuple[GPTModel, Any, int]:
    """A pretrained model with a new head, its tokenizer, and how many blocks are frozen."""
    model, tokenizer = load_pretrained(name, device)
    torch.manual_seed(seed)
    add_classification_head(model, len(LABELS))
    if trainable != "lora":
        return model, tokenizer, freeze_all_but(model, trainable)
    freeze_all_but(model, "head")
    add_lora(model, LORA_RANK, LORA_ALPHA)
    return model, tokenizer, 0


def make_dataset(pieces: Pieces, labels: np.ndarray) -> SpamDataset:
    """Every piece with the label (N,) of the review that it is of."""
    return SpamDataset(pieces.sequences, labels[pieces.owners])


def subset(dataset: SpamDataset, indices: np.ndarray) -> SpamDataset:
    return SpamDataset(
        [dataset.sequences[i] for i in indices],
        [dataset.labels[i] for i in indices],
        dataset.num_blocks_done,
        [dataset.lengths[i] for i in indices],
    )


def train_in_rounds(
    model: GPTModel,
    train: SpamDataset,
    validation: SpamDataset,
    config: TrainConfig,
    checkpoint: Path,
    clock: Clock,
    progress: bool = False,
) -> Trainer:
    """Train as the chapter does, but in rounds: an epoch takes too long to lose.

    The training set is divided at random into equal rounds. What the chapter's trainer takes for
    an epoch is a round here, so its checkpoints and its history come after each. Both data sets
    are probed, since to classify them whole each time would take longer than to train.
    """
    rng = np.random.default_rng(config.seed)
    num_rounds = -(-len(train) // ROUND_REVIEWS)
    rounds = np.array_split(rng.permutation(len(train)), num_rounds)
    rounds = [subset(train, indices) for indices in rounds]
    probes = [
        subset(dataset, rng.permutation(len(dataset))[:PROBE_REVIEWS])
        for dataset in (train, validation)
    ]
    num_epochs = config.num_epochs * num_rounds
    trainer = Trainer(model, rounds[0], TrainConfig(**vars(config) | {"num_epochs": num_epochs}))
    seconds_file = checkpoint.with_name("seconds.json")
    if checkpoint.exists():
        load_checkpoint(trainer, checkpoint)
        clock.seconds = read_json(seconds_file)
    done = len(trainer.history.step_losses)
    bar = tqdm(total=trainer.num_steps, initial=done, unit="step", disable=not progress)
    while not trainer.finished:
        with clock.stage("training"):
            trainer.train = rounds[trainer.history.num_epochs % num_rounds]
            trainer.train_epoch(bar)
            trainer.train = probes[0]
            trainer.evaluate_epoch(probes[1])
        save_checkpoint(trainer, checkpoint)
        write_text(json.dumps(clock.seconds), seconds_file)
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


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything from reading the reviews to writing the result; returns the result."""
    say: Callable = (lambda *_: None) if args.quiet else print
    device = pick_device(args.device)
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    name = resolve_model_name(args.model)
    context = MODEL_CONFIGS[name].context_length
    if args.max_length > context:
        raise DataError(
            f"--max-length {args.max_length} exceeds the context of {name}, {context} tokens."
        )
    parts = choose_train(read_parts(args.data), args.num_train, args.seed)
    if args.num_test:
        if args.num_train is None:
            raise DataError("--num-test is for learning curves: give --num-train too.")
        num_test = min(args.num_test, len(parts["test"]))
        parts["test"] = parts["test"].sample(num_test, random_state=0)  # alike for every seed
    learning_rate = args.learning_rate or LEARNING_RATES.get(name, GPT2_LEARNING_RATE)
    config = TrainConfig(
        learning_rate=learning_rate,
        num_epochs=args.epochs,
        batch_size=args.batch_size,
        dropout=args.dropout,
        seed=args.seed,
        precision=precision,
    )
    ways = (
        "num_test",
        "trainable",
        "cut",
        "max_length",
        "num_train",
        "epochs",
        "batch_size",
        "dropout",
        "seed",
    )
    options = {key: getattr(args, key) for key in ways}
    options |= {"model": name, "learning_rate": learning_rate, "precision": precision}
    options["data_sha256"] = fingerprint(Splits(*parts.values()))
    checkpoint = prepare_folder(args, options, say)
    if checkpoint is None:
        return read_json(args.output / "metrics.json")

    clock = Clock()
    model, tokenizer, num_frozen = prepare_model(name, args.trainable, args.seed, device)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    datasets, pieces = {}, {}
    for part in ("train", "validation") if args.validation_only else parts:
        with clock.stage("inference" if part == "test" else "preparation"):
            texts = parts[part]["text"].tolist()
            pieces[part] = encode_pieces(
                texts, tokenizer, args.max_length, args.cut, progress=not args.quiet
            )
            datasets[part] = make_dataset(pieces[part], label_numbers(parts[part]))
    learned = [datasets["train"], datasets["validation"]]
    if fits_in_memory(learned, model.cfg.emb_dim):
        with clock.stage("training"):
            learned = [compute_frozen_layers(model, data, num_frozen) for data in learned]
    say(f"{name} on {device}: {len(parts['train']):,} reviews, {num_trained:,} parameters trained.")
    trainer = train_in_rounds(model, *learned, config, checkpoint, clock, not args.quiet)
    history = trainer.history
    if not all(map(math.isfinite, history.step_losses)):
        raise DataError(
            f"The loss is no longer a number: training diverged with --learning-rate "
            f"{learning_rate}; choose a smaller one."
        )
    if args.trainable == "lora":
        merge_lora(model)
    positive = {}
    for part in [part for part in datasets if part != "train"]:
        with clock.stage("inference" if part == "test" else "validation"):
            positive[part] = predict_positive(
                model, datasets[part], pieces[part], precision, not args.quiet
            )
    result = {
        "model": name,
        "method": args.trainable,
        "seed": args.seed,
        "num_train": len(parts["train"]),
        **{part: figures(values, parts[part]) for part, values in positive.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": num_trained,
        "seconds": {key: round(value, 1) for key, value in clock.seconds.items()},
        **machine(str(device)),
        "options": options,
        "history": {
            "train_accuracy": history.train_accuracy,
            "validation_accuracy": history.validation_accuracy,
            "validation_loss": history.validation_loss,
        },
        "command": args.command,
    }
    folder = result_folder(args.results, args.num_train, args.validation_only)
    probabilities = positive.get("test") if args.num_train is None else None
    write_result(args.name, result, probabilities, folder)
    if not args.validation_only:
        card = {
            "trained_on": "Large Movie Review Dataset",
            "training": options,
            "test": result["test"],
            "made_up_data": False,
        }
        classifier = Classifier(model, tokenizer, name, list(LABELS), args.max_length, card)
        save_classifier(classifier, args.output)
    write_text(json.dumps(result, indent=1) + "\n", args.output / "metrics.json")
    checkpoint.unlink(missing_ok=True)
    return result


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        result = run(args)
    except (DataError, ValueError) as error:
        print(f"train_gpt.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"train_gpt.py: {error}", file=sys.stderr)
        return 1
    except (MemoryError, torch.OutOfMemoryError) as error:
        print(
            f"train_gpt.py: out of memory; try a smaller --batch-size or --max-length. {error}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Repeat the command with --resume to go on.", file=sys.stderr)
        return 130
    print(result_lines(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
