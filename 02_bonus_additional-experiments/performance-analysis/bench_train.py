"""Training: the plain way, each improvement, the chapter's run, the lower bound, the Trainer."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import pandas as pd
import torch
from bench_common import (
    Unavailable,
    plot_bars,
    random_classifier,
    require_bf16,
    take_turns,
    unavailable_notes,
)
from hugging_face import TrainerJob, freeze_twin_but_last_block, hugging_face_classifier
from lower_bound import achieved_flops, training_operations
from training_ways import IMPROVEMENTS, TrainingJob, Work, ladder

from features import Precision
from fine_tuning import RunConfig, fine_tune, make_datasets
from gpt_download import MODEL_CONFIGS, load_pretrained, load_tokenizer
from run_messages import read_run_messages
from text_classifier import ClassifierConfig, GPTClassifier, freeze_all_but
from text_data import SpamDataset

NUM_TRAIN = 1045  # training messages of the published split
OPTIONS = {
    "num_epochs": (5, "passes over the training messages"),
    "train_size": (NUM_TRAIN, "training messages"),
    "sample": (3, "batches of each way that are timed, evenly spaced by length"),
    "repetitions": (3, "rounds; the median counts"),
    "check_steps": (40, "steps over which losses are compared"),
}
# Of the chapter's run; the n-gram baseline that it also fits is no part of the GPT's training.
COUNTED_STAGES = ("data", "model", "frozen_layers", "training", "evaluation")
PARTS = {"last_block": "last_block", "all_layers": "all"}  # key in the raw file: what is trained
TRAINER = "transformers Trainer"


def run(
    model: str,
    device: torch.device,
    num_epochs: int,
    train_size: int,
    sample: int,
    repetitions: int,
    check_steps: int,
) -> dict[str, Any]:
    parts = read_parts(model, train_size)
    compared = {
        key: compare(model, device, parts, trainable, num_epochs, sample, repetitions)
        for key, trainable in PARTS.items()
    }
    differences = {
        precision: {
            key: compare_losses(trainable, check_steps, precision)
            for key, trainable in PARTS.items()
        }
        for precision in get_args(Precision)
    }
    return {
        "tables": {"seconds": table(compared)},
        "data": "SMS Spam Collection, published split",
        "real_tokens": sum(sum(part.lengths) for part in parts),
        **compared,
        "largest_difference_of_losses": differences,
    }


def read_parts(model: str, train_size: int = NUM_TRAIN) -> list[SpamDataset]:
    """The messages of the chapter's run, as token ids within the model's context."""
    messages = read_run_messages(RunConfig(protocol="published", train_size=train_size))
    context = MODEL_CONFIGS[model].context_length
    about = ClassifierConfig(model, messages.label_names, context)
    return make_datasets(messages, load_tokenizer(model), about)


def compare(
    model: str,
    device: torch.device,
    parts: list[SpamDataset],
    trainable: str,
    num_epochs: int,
    sample: int,
    repetitions: int,
) -> dict[str, Any]:
    """Seconds of the whole training in each way, of the chapter's run, and of the lower bound.

    All take turns, and so does the measuring of FLOP/s; but where all layers are trained, the
    chapter's run has one epoch, once and after the rounds, since that alone takes minutes.
    """
    classifier = random_classifier(model, device)
    cfg, num_frozen = classifier.decoder.cfg, freeze_all_but(classifier, trainable)
    job = TrainingJob(classifier, parts, num_frozen)
    ways = ladder(any_frozen=num_frozen > 0)
    work = {name: job.work(way, sample, num_epochs) for name, way in ways.items()}
    epochs_run = num_epochs if trainable == "last_block" else 1
    config = RunConfig(
        model=model,
        weights="random",
        protocol="published",
        train_size=len(parts[0]),
        trainable=trainable,
        num_epochs=epochs_run,
        device=device.type,
        quiet=True,
    )
    chapter = partial(run_chapter, config)
    runs, unavailable = {"float32": partial(chapter, "float32")}, {}
    try:
        require_bf16(device)
        runs["bfloat16"] = partial(chapter, "bfloat16")
    except Unavailable as reason:
        unavailable["the chapter's run, bfloat16"] = str(reason)
    try:
        work[TRAINER] = trainer_work(job, trainable, sample, work["group_by_length"])
    except Unavailable as reason:
        unavailable[TRAINER] = str(reason)

    functions = {f"{way}, {kind}": w.run for way, of in work.items() for kind, w in of.items()}
    functions["FLOP/s"] = partial(achieved_flops, cfg, device, 1.0)
    if trainable == "last_block":
        rounds = take_turns(functions | runs, repetitions)
    else:
        rounds = take_turns(functions, repetitions) | take_turns(runs, 1)

    stages = {p: median_stages(rounds[p], num_epochs / epochs_run) for p in runs}
    once = dict.fromkeys(work, stages["float32"]["data"] + stages["float32"]["model"])
    for name, way in ways.items():
        once[name] += stages["float32"]["frozen_layers"] if "compute_frozen_once" in way else 0
    lengths, flops = [part.lengths for part in parts], median(rounds["FLOP/s"])
    operations = training_operations(cfg, lengths, num_epochs, num_frozen)
    return {
        "ways": {name: estimate(name, of, rounds, once[name]) for name, of in work.items()},
        "batches_timed_in_a_round": work["plain"]["step"].num_timed,
        "epochs_run": epochs_run,
        "stage_seconds": stages,
        "achieved_gflops": flops / 1e9,
        "lower_bound_seconds": operations / flops,
        "unavailable": unavailable,
        "rounds": rounds,
    }


def run_chapter(config: RunConfig, precision: Precision) -> dict[str, float]:
    """Seconds of each stage of the chapter's run, from reading the file to the accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, precision=precision, output=Path(folder))
        return fine_tune(config).metrics["seconds"]


def median_stages(runs: list[dict[str, float]], times_training: float) -> dict[str, float]:
    """Seconds of each stage, the training multiplied where only a part of its epochs was run."""
    stages = {stage: median(run[stage] for run in runs) for stage in runs[0]}
    return stages | {"training": stages["training"] * times_training}


def estimate(name: str, work: dict[str, Work], rounds: dict, once: float) -> dict[str, float]:
    """Seconds of the whole training in a way: what is done once, and all batches by the tokens of
    those timed."""
    step, evaluation = work["step"], work["evaluation"]
    steps, evaluations = (
        median(rounds[f"{name}, {kind}"]) * w.tokens / w.tokens_timed for kind, w in work.items()
    )
    return {
        "steps": step.num,
        "step_seconds": steps / step.num,
        "evaluation_batches": evaluation.num,
        "evaluation_batch_seconds": evaluations / evaluation.num,
        "once_seconds": once,
        "seconds": once + steps + evaluations,
    }


def trainer_work(
    job: TrainingJob, trainable: str, num_timed: int, grouped: dict[str, Work]
) -> dict[str, Work]:
    """`transformers`' Trainer on the very batches that the grouped way is timed on. Raises
    ``Unavailable``."""
    twin = hugging_face_classifier(random_classifier(job.classifier.config.model_name, job.device))
    if trainable == "last_block":
        freeze_twin_but_last_block(twin)
    way = ladder(any_frozen=False)["group_by_length"]
    steps = job.sample(job.train_batches(way), way, num_timed)
    evaluations = job.sample(job.evaluation_batches(way, 0), way, num_timed)
    trainer = TrainerJob(twin, job.parts[0], steps, evaluations)
    return {
        "step": replace(grouped["step"], run=trainer.train),
        "evaluation": replace(grouped["evaluation"], run=trainer.evaluate),
    }


def compare_losses(trainable: str, num_steps: int, precision: Precision) -> float:
    """Largest difference between the losses of the plain way and of all improvements, over the
    same batches in the same order, on the pretrained gpt-mini. The plain way is float32.

    (Grouping by length changes which messages share a batch, and so the course of the training,
    though not what is computed of a batch: both ways get the grouped batches here.)
    """
    parts, losses = read_parts("gpt-mini"), []
    *_, fast = ladder(any_frozen=trainable != "all").values()
    for way in (frozenset(), fast):
        decoder, _ = load_pretrained("gpt-mini")
        torch.manual_seed(0)
        about = ClassifierConfig("gpt-mini", ("ham", "spam"), decoder.cfg.context_length)
        classifier = GPTClassifier(decoder, about)
        job = TrainingJob(classifier, parts, freeze_all_but(classifier, trainable), 5e-4, precision)
        batches = job.train_batches(fast)[:num_steps]
        losses.append([job.step(job.make_batch(rows, way), way) for rows in batches])
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


def seconds_by_name(part: dict[str, Any]) -> dict[str, float]:
    """Seconds of all that was compared, the plain way first and the lower bound last."""
    names = {"plain": "plain: pad to 120 tokens, attention by hand, all blocks at every step"}
    names |= {key: f"+ {text}" for key, text in IMPROVEMENTS.items()}
    names[TRAINER] = f"{TRAINER}, grouped by length"
    seconds = {names[way]: metrics["seconds"] for way, metrics in part["ways"].items()}
    for precision, stages in part["stage_seconds"].items():
        seconds[f"the chapter's run, {precision}"] = sum(stages[s] for s in COUNTED_STAGES)
    return seconds | {"lower bound, float32": part["lower_bound_seconds"]}


def table(compared: dict[str, dict]) -> list[dict[str, Any]]:
    by_part = {key.replace("_", " "): seconds_by_name(part) for key, part in compared.items()}
    rows: list[dict[str, Any]] = [{"how": name} for name in by_part["last block"]]
    for part, seconds in by_part.items():
        plain, *_, lower_bound = seconds.values()
        for row in rows:
            value = seconds.get(row["how"])
            row[f"{part}, seconds"] = value
            row[f"{part}, speedup"] = plain / value if value else None
            row[f"{part}, times the bound"] = value / lower_bound if value else None
    return rows


def notes(result: dict[str, Any]) -> list[str]:
    part, plain = result["last_block"], result["last_block"]["ways"]["plain"]
    flops = " and ".join(f"{result[key]['achieved_gflops']:.0f}" for key in PARTS)
    differences = ", ".join(
        f"{difference:.0e} ({key.replace('_', ' ')}, {precision})"
        for precision, by_part in result["largest_difference_of_losses"].items()
        for key, difference in by_part.items()
    )
    return [
        f"{result['data']}. Ways and Trainer are estimates: {part['batches_timed_in_a_round']} "
        f"steps and evaluation batches are timed, of {plain['steps']:,} and "
        f"{plain['evaluation_batches']:,} of the plain way. The chapter's run with all layers is "
        f"one epoch, once, its training times {result['options']['num_epochs']}. The lower bound "
        f"is at {flops} GFLOP/s.",
        *unavailable_notes(part["unavailable"]),
        f"Largest difference from the plain way's losses on gpt-mini: {differences}.",
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    seconds = pd.DataFrame(result["tables"]["seconds"]).set_index("how")
    plot_bars(seconds[["last block, seconds", "all layers, seconds"]], path)
