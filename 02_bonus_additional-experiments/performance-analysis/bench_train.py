"""Training: the plain way, each improvement in turn, the floor, and `transformers`' Trainer."""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, get_args

import matplotlib.pyplot as plt
import torch
from bench_common import (
    NotHere,
    Table,
    evenly_spaced,
    interleave,
    machine,
    matrix_rate,
    need_bf16,
    random_classifier,
    reasons,
)
from floors import floor_operations
from hugging_face import TrainerJob, freeze_twin_but_last_block, hugging_face_twin
from matplotlib.ticker import NullFormatter
from training_ways import TrainingJob, Way, ladder

import finetune
from finetune import COUNT
from gpt_download import load_pretrained, load_tokenizer, resolve_model_name
from previous_chapters import MODEL_CONFIGS
from text_classifier import (
    Precision,
    TrainConfig,
    add_classification_head,
    compute_in,
    freeze_all_but,
)
from text_data import SpamDataset, encode_messages, published_splits

# Of finetune.py's run; the n-gram baseline that it also fits is no part of the GPT's training.
COUNTED_STAGES = ("data", "model", "frozen_layers", "training", "evaluation")
HEADLINE = ("plain_seconds", "fast_seconds", "floor_seconds", "speedup", "times_floor")
GROUPED = Way("grouped", pad_to_longest=True, group_by_length=True)
TRAINER = "transformers' Trainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--epochs", type=COUNT, default=5, help="passes over the training messages")
    parser.add_argument(
        "--sample",
        type=COUNT,
        default=3,
        help="batches of each way that are timed, evenly spaced by length",
    )
    parser.add_argument("--repetitions", type=COUNT, default=3, help="rounds; the median counts")
    parser.add_argument(
        "--check-steps", type=COUNT, default=40, help="steps over which losses are compared"
    )


def run(args: argparse.Namespace) -> dict:
    """All figures of the comparison."""
    name = resolve_model_name(args.model)
    parts = read_parts(name)
    with tempfile.TemporaryDirectory() as folder:
        last_block = compare(args, parts, "last_block", folder)
        all_layers = compare(args, parts, "all", folder)
    return {
        "model": name,
        "weights": "random",
        "data": "SMS Spam Collection, published split",
        "epochs": args.epochs,
        "repetitions": args.repetitions,
        "real_tokens": sum(sum(part.lengths) for part in parts),
        **{key: last_block[key] for key in HEADLINE},  # what other pages quote
        "matrix_gflops": last_block["matrix_gflops"],
        "last_block": last_block,
        "all_layers": all_layers,
        "largest_difference_of_losses": {
            precision: {
                trainable: compare_losses(trainable, args.check_steps, precision)
                for trainable in ("last_block", "all")
            }
            for precision in get_args(Precision)
        },
        **machine(args.device),
    }


def read_parts(model_name: str) -> list[SpamDataset]:
    """The published split, as token ids within the model's context."""
    tokenizer, context = load_tokenizer(model_name), MODEL_CONFIGS[model_name].context_length
    return [
        SpamDataset(
            encode_messages(part["text"], tokenizer, context),
            (part["label"] == "spam").astype(int).tolist(),
        )
        for part in published_splits()
    ]


# ---------------------------------------------------------------------------------------------
# Seconds of each way
# ---------------------------------------------------------------------------------------------


def compare(
    args: argparse.Namespace, parts: list[SpamDataset], trainable: str, folder: str
) -> dict:
    """Seconds of the whole training in each way, of `finetune.py` in full, and of the floor.

    All take turns, and so does the measuring of the matrix rate; but where all layers are trained,
    `finetune.py` runs one epoch, once and after the rounds, since that alone takes minutes.
    """
    model = random_classifier(args.model, args.device)
    num_frozen = freeze_all_but(model, trainable)
    job = TrainingJob(model, parts, TrainConfig.batch_size, num_frozen)
    ways = ladder(any_frozen=num_frozen > 0)
    epochs_in_full = args.epochs if trainable == "last_block" else 1
    not_here: dict[str, str] = {}
    precisions = usable_precisions(args.device, not_here)
    full_runs: dict[Precision, list] = {precision: [] for precision in precisions}
    rates, trainer_runs = [], []

    def run_in_full(precision: Precision) -> None:
        full_runs[precision].append(run_chapter(args, trainable, epochs_in_full, precision))

    functions, samples = timed_functions(job, ways, args.sample, args.epochs)
    functions["matrix rate"] = lambda: rates.append(matrix_rate(model.cfg, args.device, 1.0))
    try:
        trainer = make_trainer(args, job, trainable, folder)
        functions[TRAINER] = lambda: trainer_runs.append((trainer.train(), trainer.evaluate()))
    except NotHere as reason:
        not_here[TRAINER] = str(reason)
    in_full = {f"finetune.py in full, {p}": partial(run_in_full, p) for p in precisions}
    if trainable == "last_block":
        functions |= in_full
    rounds = interleave(functions, args.repetitions, args.device, warm_up=False)
    if trainable != "last_block":
        for function in in_full.values():
            function()

    stages = {p: medians(runs, args.epochs / epochs_in_full) for p, runs in full_runs.items()}
    rungs = [estimate(way, rounds, samples, stages["float32"]) for way in ways]
    plain, rate = rungs[0]["seconds"], statistics.median(rates)
    lengths = [part.lengths for part in parts]
    floor = floor_operations(model.cfg, lengths, args.epochs, num_frozen) / rate
    figures = {
        p: {"fast_runs": full_runs[p], **compared(stages[p], plain, floor)} for p in precisions
    }
    return {
        "ways": rungs,
        "batches_timed_in_a_round": samples["step, plain"].num_timed,
        "trainer": trainer_figures(job, trainer_runs, stages["float32"], args),
        "not_here": not_here,
        "plain_seconds": plain,
        "fast_runs_epochs": epochs_in_full,
        "matrix_gflops": rate / 1e9,
        "matrix_gflops_of_rounds": [value / 1e9 for value in rates],
        "floor_seconds": floor,
        **figures["float32"],
        "bfloat16": figures.get("bfloat16"),
        "rounds": rounds,
    }


def usable_precisions(device: torch.device, not_here: dict[str, str]) -> list[Precision]:
    """All that the device has instructions for; `not_here` gets the reason of what is left out."""
    try:
        need_bf16(device)
    except NotHere as reason:
        not_here["finetune.py --precision bfloat16"] = str(reason)
        return ["float32"]
    return ["float32", "bfloat16"]


def medians(runs: list[dict[str, float]], times_training: float) -> dict[str, float]:
    """Seconds of each stage, the training multiplied where only a part of its epochs was run."""
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in runs[0]}
    return stages | {"training": stages["training"] * times_training}


def compared(stages: dict[str, float], plain: float, floor: float) -> dict:
    """What `finetune.py` took, beside the plain way and the floor, both of float32."""
    seconds = sum(stages[stage] for stage in COUNTED_STAGES)
    return {
        "fast_seconds": seconds,
        "fast_seconds_by_stage": stages,
        "speedup": plain / seconds,
        "times_floor": seconds / floor,
    }


class Sample(NamedTuple):
    """Batches that were timed, and all that they stand for. Tokens count padding, too."""

    num_timed: int
    tokens_timed: int
    num: int
    tokens: int


def estimate(way: Way, rounds: dict, samples: dict[str, Sample], stages: dict) -> dict:
    """Seconds of the whole training in this way: reading the data, making the model and, where it
    is done once, the frozen pass as they were in the full runs, and all batches by those timed."""
    step, evaluation = (samples[f"{kind}, {way.name}"] for kind in ("step", "evaluation"))
    step_seconds, evaluation_seconds = (
        statistics.median(rounds[f"{kind}, {way.name}"]) * sample.tokens / sample.tokens_timed
        for kind, sample in (("step", step), ("evaluation", evaluation))
    )
    frozen = stages["frozen_layers"] if way.compute_frozen_once else 0
    return {
        "name": way.name,
        "steps": step.num,
        "step_seconds": step_seconds / step.num,
        "evaluation_batches": evaluation.num,
        "evaluation_batch_seconds": evaluation_seconds / evaluation.num,
        "frozen_pass_seconds": frozen,
        "seconds": stages["data"] + stages["model"] + frozen + step_seconds + evaluation_seconds,
    }


def timed_functions(
    job: TrainingJob, ways: list[Way], num: int, epochs: int
) -> tuple[dict[str, Callable[[], None]], dict[str, Sample]]:
    """For each way a function that takes some steps and one that evaluates some batches, and what
    these stand for. Each function has had its longest batch already when it is returned."""
    functions, samples = {}, {}
    for way in ways:
        steps = job.train_batches(way)
        evaluations = [job.evaluation_batches(way, part) for part in range(3)]
        for kind, function, batches, everything in (
            ("step", job.step, steps, [(0, steps)] * epochs),
            ("evaluation", job.evaluate, evaluations[0], evaluated(evaluations, epochs)),
        ):
            name = f"{kind}, {way.name}"
            chosen = evenly_spaced(batches, num, lambda rows, way=way: job.tokens(rows, way))
            made = [job.make_batch(rows, way) for rows in chosen]
            function(made[-1], way)
            functions[name] = for_all(function, made, way)
            timed = [job.tokens(rows, way) for rows in chosen]
            whole = [
                job.tokens(rows, way, part) for part, all_rows in everything for rows in all_rows
            ]
            samples[name] = Sample(len(timed), sum(timed), len(whole), sum(whole))
    return functions, samples


def for_all(function: Callable, batches: list, way: Way) -> Callable[[], None]:
    """A function that takes all batches, one after the other."""

    def once() -> None:
        for batch in batches:
            function(batch, way)

    return once


def evaluated(of_parts: Sequence, epochs: int) -> list[tuple[int, Any]]:
    """Each part as often as the chapter evaluates it, with what belongs to it: training and
    validation messages after every epoch, and all three parts at the end."""
    return [(part, of_parts[part]) for part in [0, 1] * epochs + [0, 1, 2]]


def run_chapter(
    args: argparse.Namespace, trainable: str, epochs: int, precision: Precision
) -> dict[str, float]:
    """Seconds of each stage of `finetune.py`, from reading the file to the final accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", args.model, "--weights", "random", "--protocol", "published"]
        options += ["--trainable", trainable, "--epochs", str(epochs), "--output", folder]
        options += ["--precision", precision, "--device", args.device.type, "--quiet"]
        return finetune.run(finetune.parse_args(options))["seconds"]


# ---------------------------------------------------------------------------------------------
# The Trainer
# ---------------------------------------------------------------------------------------------


def make_trainer(
    args: argparse.Namespace, job: TrainingJob, trainable: str, folder: str
) -> TrainerJob:
    """`transformers`' Trainer on the steps that the grouped ways are timed on, and on evaluation
    batches of neighbours in length. Raises ``NotHere``."""
    for package in ("transformers", "accelerate"):
        if find_spec(package) is None:
            raise NotHere(f"{package} is not installed")
    twin = hugging_face_twin(random_classifier(args.model, args.device))
    if trainable == "last_block":
        freeze_twin_but_last_block(twin)
    steps, evaluations = (
        evenly_spaced(batches, args.sample, lambda rows: job.tokens(rows, GROUPED))
        for batches in trainer_batches(job)
    )
    train = [i for rows in (steps[:1] + steps) for i in rows]  # the first is not counted
    evaluation = [i for rows in evaluations for i in rows]
    rows = job.parts[0]
    trainer = TrainerJob(
        twin,
        [rows[i] for i in train],
        job.batch_size,
        [rows[i] for i in evaluation],
        trainer_evaluation_size(job),
        folder,
    )
    trainer.evaluate()
    return trainer


def trainer_evaluation_size(job: TrainingJob) -> int:
    """Messages in an evaluation batch: as many as the chapter's hold on average."""
    return round(len(job.parts[0]) / len(job.evaluation_batches(GROUPED, 0)))


def trainer_batches(job: TrainingJob) -> tuple[list[list[int]], list[list[int]]]:
    """Its steps, and evaluation batches of training messages sorted by length; full ones only,
    since the Trainer cuts its rows into batches of equal size."""
    steps = [rows for rows in job.train_batches(GROUPED) if len(rows) == job.batch_size]
    size = trainer_evaluation_size(job)
    order = sorted(range(len(job.parts[0])), key=lambda i: job.parts[0].lengths[i])
    return steps, [order[i : i + size] for i in range(0, len(order) - size + 1, size)]


def mean_tokens(job: TrainingJob, batches: list[list[int]], num: int) -> float:
    """Tokens of a batch, padding too, over `num` evenly spaced batches of all."""
    tokens = [job.tokens(rows, GROUPED) for rows in batches]
    return statistics.mean(evenly_spaced(tokens, num, float))


def trainer_figures(
    job: TrainingJob, runs: list[tuple[float, float]], stages: dict, args: argparse.Namespace
) -> dict | None:
    """The estimate for the whole training, as for the other ways; None without a run."""
    if not runs:
        return None
    step, evaluation = (
        statistics.median(seconds)
        * mean_tokens(job, batches, len(batches))
        / mean_tokens(job, batches, args.sample)
        for seconds, batches in zip(zip(*runs, strict=True), trainer_batches(job), strict=True)
    )
    size = trainer_evaluation_size(job)
    num_steps = args.epochs * len(job.train_batches(GROUPED))
    num_evaluations = sum(-(-len(part) // size) for _, part in evaluated(job.parts, args.epochs))
    batches = step * num_steps + evaluation * num_evaluations
    return {
        "step_seconds": step,
        "evaluation_batch_seconds": evaluation,
        "evaluation_batch_size": size,
        "rounds": [{"step_seconds": s, "evaluation_batch_seconds": e} for s, e in runs],
        "seconds": stages["data"] + stages["model"] + batches,
    }


# ---------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------


def compare_losses(trainable: str, num_steps: int, precision: Precision) -> float:
    """Largest difference between the losses of the plain way and of all improvements, over the
    same batches in the same order, on the pretrained gpt-mini. The plain way is float32.

    (Grouping by length changes which messages share a batch, and so the course of the training,
    though not what is computed of a batch: both ways get the grouped batches here.)
    """
    parts, losses = read_parts("gpt-mini"), []
    fast = ladder(any_frozen=trainable != "all")[-1]
    for way, its_precision in ((Way("plain"), "float32"), (fast, precision)):
        model, _ = load_pretrained("gpt-mini")
        torch.manual_seed(0)
        add_classification_head(model, 2)
        job = TrainingJob(model, parts, TrainConfig.batch_size, freeze_all_but(model, trainable))
        job.optimizer.param_groups[0]["lr"] = 5e-4
        batches = job.train_batches(fast)[:num_steps]
        losses.append([])
        for rows in batches:
            with compute_in(its_precision, job.device):  # anew: it keeps the weights that it rounds
                losses[-1].append(job.step(job.make_batch(rows, way), way).item())
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


# ---------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------

FLOOR = "floor, in float32"
TRAINED = {"last_block": "last block", "all_layers": "all layers"}
RUNGS = {
    "plain": "plain: pad to 120 tokens, attention by hand, all blocks at every step",
    "fused_attention": "+ fused attention",
    "pad_to_longest": "+ pad to the batch's longest message",
    "group_by_length": "+ messages of similar length in a batch",
    "compute_frozen_once": "+ frozen layers computed once",
    "last_position_only": "+ only the last position through the last block",
}


def seconds_by_name(part: dict) -> dict[str, float]:
    """Seconds of all that was compared."""
    seconds = {RUNGS[way["name"]]: way["seconds"] for way in part["ways"]}
    seconds["`finetune.py`"] = part["fast_seconds"]
    if part["bfloat16"]:
        seconds["`finetune.py --precision bfloat16`"] = part["bfloat16"]["fast_seconds"]
    seconds[FLOOR] = part["floor_seconds"]
    if part["trainer"]:
        seconds["`transformers`' Trainer, grouped by length"] = part["trainer"]["seconds"]
    return seconds


def tables(result: dict) -> list[Table]:
    rows = [
        (trained, name, f"{seconds:,.0f}", f"{result[key]['plain_seconds'] / seconds:.1f}")
        for key, trained in TRAINED.items()
        for name, seconds in seconds_by_name(result[key]).items()
    ]
    header = ("trained", "how", "seconds", "times faster than plain")
    return [Table(header, rows, notes(result))]


def notes(result: dict) -> list[str]:
    num_timed, way = result["last_block"]["batches_timed_in_a_round"], result["last_block"]["ways"]
    lines = [
        f"Shape: {result['model']}. Each row of a way is an estimate: the "
        f"median of {result['repetitions']} rounds of {num_timed} of the {way[0]['steps']:,} steps "
        f"and of {num_timed} of the {way[0]['evaluation_batches']:,} evaluation batches of the "
        f"plain way (fewer, larger ones where messages are grouped)."
    ]
    for key, trained in TRAINED.items():
        part = result[key]
        rounded = part["bfloat16"]
        lines.append(
            f"{trained.capitalize()}: `finetune.py` is {part['speedup']:.1f} times faster than the "
            f"plain way and takes {part['times_floor']:.2f} times the floor at "
            f"{part['matrix_gflops']:.0f} GFLOP/s"
            + (
                f"; with `--precision bfloat16` it is {rounded['speedup']:.1f} times faster and "
                f"takes {rounded['times_floor']:.2f} times that floor"
                if rounded
                else ""
            )
            + f"; {runs_in_words(part, result['epochs'])}."
        )
        lines += reasons(part["not_here"])
    differences = [
        f"{'last block' if trainable == 'last_block' else 'all layers'} {value:.0e} in {precision}"
        for precision, values in result["largest_difference_of_losses"].items()
        for trainable, value in values.items()
    ]
    lines.append(
        "Largest difference between the losses of the plain way (float32) and of all "
        f"improvements, on the pretrained gpt-mini: {', '.join(differences)}."
    )
    return lines


def runs_in_words(part: dict, epochs: int) -> str:
    if part["fast_runs_epochs"] == epochs:
        return f"each stage is the median of {len(part['fast_runs'])} full runs"
    return f"one run of one epoch, its training multiplied by {epochs}"


def plot(result: dict, folder: Path) -> None:
    fig, axes = plt.subplots(1, 2, figsize=(13, 3.8))
    for ax, (key, trained) in zip(axes, TRAINED.items(), strict=True):
        seconds = seconds_by_name(result[key])
        names = [name.replace("`", "").partition(":")[0] for name in seconds]
        colors = ["#b0b0b0" if n.startswith(("plain", "transf")) else "#e6761b" for n in names]
        colors = ["#4c72b0" if n == FLOOR else c for n, c in zip(names, colors, strict=True)]
        drawn = ax.barh(names, list(seconds.values()), color=colors)
        ax.bar_label(drawn, fmt="%.0f", padding=3)
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(min(seconds.values()) / 2, max(seconds.values()) * 3)
        ax.set_xlabel("seconds (logarithmic)")
        ax.set_title(trained)
        ax.invert_yaxis()
    fig.tight_layout()
    fig.savefig(folder / "train.png", dpi=120)
    plt.close(fig)
