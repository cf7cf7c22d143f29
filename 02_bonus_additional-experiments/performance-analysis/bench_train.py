"""Training: the plain way, each improvement in turn, the floor, and `transformers`' Trainer."""

import argparse
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import format_table, interleave, machine, matrix_rate, random_classifier
from floors import all_layers_operations, floor_operations, lean_tail_operations
from hugging_face import TrainerJob, freeze_twin_but_last_block, hugging_face_twin
from training_ways import PLAIN_BUT_FUSED, TrainingJob, Way, evenly_spaced, ladder

import finetune
from finetune import COUNT
from gpt_download import load_pretrained, load_tokenizer, resolve_model_name
from previous_chapters import MODEL_CONFIGS
from text_classifier import TrainConfig, add_classification_head, freeze_all_but
from text_data import SpamDataset, encode_messages, published_splits

COUNTED_STAGES = ("data", "model", "frozen_layers", "training", "evaluation")
TRAINER = "transformers' Trainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--epochs", type=COUNT, default=5, help="passes over the training messages")
    parser.add_argument(
        "--sample",
        type=COUNT,
        default=4,
        help="batches of each way that are timed, evenly spaced by length; the mean is multiplied",
    )
    parser.add_argument("--repetitions", type=COUNT, default=2, help="rounds; the median counts")
    parser.add_argument(
        "--check-steps", type=COUNT, default=40, help="steps over which losses are compared"
    )


def run(args: argparse.Namespace) -> dict:
    """All figures of the comparison."""
    name = resolve_model_name(args.model)
    parts = read_parts(name)
    cfg, lengths = MODEL_CONFIGS[name], [part.lengths for part in parts]
    rates = [matrix_rate(cfg, args.device)]
    last_block = time_ways(args, parts, "last_block")
    full_runs = [run_chapter(name, args) for _ in range(args.repetitions)]
    all_layers = time_ways(args, parts, "all")
    rates.append(matrix_rate(cfg, args.device))

    rate = statistics.mean(rates)
    fast = statistics.median(sum(run[stage] for stage in COUNTED_STAGES) for run in full_runs)
    stages = {s: statistics.median(run[s] for run in full_runs) for s in full_runs[0]}
    floor = floor_operations(cfg, lengths, args.epochs) / rate
    lean_floor = floor_operations(cfg, lengths, args.epochs, lean_tail_operations) / rate
    # The frozen blocks' pass is timed in the full runs; the ways that need it add it here.
    for way in last_block["ways"]:
        if way["frozen_once"]:
            way["seconds"] += stages["frozen_layers"] + stages["model"] + stages["data"]
    plain = last_block["ways"][0]["seconds"]
    return {
        "model": name,
        "weights": "random",
        "data": "SMS Spam Collection, published split",
        "epochs": args.epochs,
        "real_tokens": sum(map(sum, lengths)),
        "plain_seconds": plain,
        "plain_steps_timed": len(last_block["step_samples"]) * args.repetitions,
        "plain_steps": last_block["num_steps"],
        "fast_seconds": fast,
        "fast_seconds_of_runs": [sum(run[s] for s in COUNTED_STAGES) for run in full_runs],
        "fast_seconds_by_stage": stages,
        "floor_seconds": floor,
        "lean_floor_seconds": lean_floor,
        "matrix_gflops": rate / 1e9,
        "speedup": plain / fast,
        "speedup_over_plain_with_fused_attention": last_block["plain_but_fused"] / fast,
        "times_floor": fast / floor,
        "times_lean_floor": fast / lean_floor,
        "last_block": last_block,
        "all_layers": all_layers
        | {
            "speedup": all_layers["ways"][0]["seconds"] / all_layers["ways"][-1]["seconds"],
            "speedup_over_plain_with_fused_attention": all_layers["plain_but_fused"]
            / all_layers["ways"][-1]["seconds"],
            "floor_seconds": all_layers_operations(cfg, lengths, args.epochs) / rate,
        },
        "largest_difference_of_losses": {
            trainable: compare_losses(trainable, args.check_steps)
            for trainable in ("last_block", "all")
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


def time_ways(args: argparse.Namespace, parts: list[SpamDataset], trainable: str) -> dict:
    """Estimated seconds of each way's whole training, from batches that stand for all."""
    model = random_classifier(args.model, args.device)
    num_frozen = freeze_all_but(model, trainable)
    job = TrainingJob(model, parts, TrainConfig.batch_size)
    ways = [*ladder(any_frozen=num_frozen > 0), PLAIN_BUT_FUSED]
    steps, evaluations, counts = {}, {}, {}
    for way in ways:
        train, evaluation = job.train_batches(way), job.evaluation_batches(way, 0)
        steps[way.name] = sample(job, train, way, num_frozen, args.sample)
        evaluations[way.name] = sample(job, evaluation, way, num_frozen, args.sample)
        counts[way.name] = num_batches(job, way, args.epochs)

    functions = {}
    for way in ways:
        functions[f"step, {way.name}"] = repeat(job.step, steps[way.name], way)
        functions[f"evaluation, {way.name}"] = repeat(job.evaluate, evaluations[way.name], way)
    seconds = interleave(functions, args.repetitions, args.device)

    results = []
    for way in ways:
        step = statistics.median(seconds[f"step, {way.name}"]) / len(steps[way.name])
        evaluation = statistics.median(seconds[f"evaluation, {way.name}"])
        evaluation /= len(evaluations[way.name])
        num_steps, num_evaluations = counts[way.name]
        results.append(
            {
                "name": way.name,
                "frozen_once": way.compute_frozen_once,
                "step_seconds": step,
                "evaluation_batch_seconds": evaluation,
                "evaluation_batches": num_evaluations,
                "seconds": step * num_steps + evaluation * num_evaluations,
            }
        )
    plain_but_fused = results.pop()["seconds"]
    return {
        "ways": results,
        "plain_but_fused": plain_but_fused,
        "num_steps": counts["plain"][0],
        "step_samples": [max(job.parts[0].lengths[i] for i in b) for b in sampled(job, args)],
        TRAINER: time_trainer(args, job, trainable),
    }


def sampled(job: TrainingJob, args: argparse.Namespace) -> list[list[int]]:
    way = Way("grouped", group_by_length=True)
    return evenly_spaced(job.train_batches(way), job.parts[0].lengths, args.sample)


def sample(job: TrainingJob, batches: list, way: Way, num_frozen: int, num: int) -> list:
    chosen = evenly_spaced(batches, job.parts[0].lengths, num)
    return [job.make_batch(indices, way, num_frozen) for indices in chosen]


def repeat(function, batches: list, way: Way):
    """A function of the round's number which takes all batches, one after the other."""

    def once(_round: int) -> None:
        for batch in batches:
            function(batch, way)

    return once


def num_batches(job: TrainingJob, way: Way, epochs: int) -> tuple[int, int]:
    """Steps and evaluation batches of the whole training: as in the chapter, training and
    validation messages are evaluated after every epoch and all three parts at the end."""
    train, validation, test = (len(job.evaluation_batches(way, part)) for part in range(3))
    evaluations = epochs * (train + validation) + train + validation + test
    return epochs * len(job.train_batches(way)), evaluations


def time_trainer(args: argparse.Namespace, job: TrainingJob, trainable: str) -> dict | None:
    """The same estimate for `transformers`, on the same grouped batches; None where it is not."""
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        return None
    twin = hugging_face_twin(random_classifier(args.model, args.device))
    if trainable == "last_block":
        freeze_twin_but_last_block(twin)
    way = Way("grouped", group_by_length=True)
    chosen = sampled(job, args)
    rows = [job.parts[0][i] for batch in (chosen[:1] + chosen) for i in batch]
    with tempfile.TemporaryDirectory() as folder:
        trainer = TrainerJob(twin, rows, job.batch_size, folder)
        steps, evaluations = [], []
        for _ in range(args.repetitions):
            steps.append(trainer.train())
            evaluations.append(trainer.evaluate())
    num_steps = args.epochs * len(job.train_batches(way))
    sizes = [-(-len(part) // job.batch_size) for part in job.parts]
    num_evaluations = args.epochs * (sizes[0] + sizes[1]) + sum(sizes)
    step, evaluation = statistics.median(steps), statistics.median(evaluations)
    return {
        "step_seconds": step,
        "evaluation_batch_seconds": evaluation,
        "seconds": step * num_steps + evaluation * num_evaluations,
    }


def run_chapter(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each stage of `finetune.py`, from reading the file to the final accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", name, "--weights", "random", "--protocol", "published", "--quiet"]
        arguments += ["--device", args.device.type]
        arguments += ["--epochs", str(args.epochs), "--output", folder]
        return finetune.run(finetune.parse_args(arguments))["seconds"]


# ---------------------------------------------------------------------------------------------
# The same results
# ---------------------------------------------------------------------------------------------


def compare_losses(trainable: str, num_steps: int) -> float:
    """Largest difference between the losses of the plain way and of all improvements, over the
    same batches in the same order, on the pretrained gpt-mini.

    (Grouping by length changes which messages share a batch, and so the course of the training,
    though not what is computed of a batch: both ways get the grouped batches here.)
    """
    parts, losses = read_parts("gpt-mini"), []
    fast = ladder(any_frozen=trainable != "all")[-1]
    for way in (Way("plain"), fast):
        model, _ = load_pretrained("gpt-mini")
        torch.manual_seed(0)
        add_classification_head(model, 2)
        num_frozen = freeze_all_but(model, trainable)
        job = TrainingJob(model, parts, TrainConfig.batch_size)
        job.optimizer.param_groups[0]["lr"] = 5e-4
        batches = job.train_batches(fast)[:num_steps]
        losses.append(
            [job.step(job.make_batch(indices, way, num_frozen), way).item() for indices in batches]
        )
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


# ---------------------------------------------------------------------------------------------
# What is shown
# ---------------------------------------------------------------------------------------------


def rows_of(result: dict) -> list[tuple[str, float, float]]:
    """(name, seconds, times faster than plain) of all that was compared."""
    rows = []
    for part in ("last_block", "all_layers"):
        ways = result[part]["ways"]
        seconds = {f"{part}: {ways[0]['name']}": ways[0]["seconds"]}
        seconds |= {f"{part}: + {way['name']}": way["seconds"] for way in ways[1:]}
        if part == "last_block":
            seconds["last_block: finetune.py in full"] = result["fast_seconds"]
            seconds["last_block: floor"] = result["floor_seconds"]
            seconds["last_block: floor without keys and values"] = result["lean_floor_seconds"]
        else:
            seconds["all_layers: floor"] = result[part]["floor_seconds"]
        if result[part][TRAINER]:
            seconds[f"{part}: {TRAINER}"] = result[part][TRAINER]["seconds"]
        rows += [(name, value, ways[0]["seconds"] / value) for name, value in seconds.items()]
    return rows


def table(result: dict) -> str:
    rows = [(name, f"{s:,.1f}", f"{times:.2f}") for name, s, times in rows_of(result)]
    differences = result["largest_difference_of_losses"]
    return "\n".join(
        [
            f"{result['model']}, {result['threads']} threads, {result['real_tokens']:,} tokens, "
            f"{result['matrix_gflops']:.0f} GFLOP/s; ways are estimated from "
            f"{result['plain_steps_timed']} of {result['plain_steps']} steps",
            format_table(rows, ("", "seconds", "times faster")),
            f"{result['speedup']:.1f} times faster, {result['times_floor']:.2f} times floor "
            f"({result['times_lean_floor']:.2f} times the floor without keys and values)",
            "largest difference of losses: "
            + ", ".join(f"{name} {value:.0e}" for name, value in differences.items()),
        ]
    )


def plot(result: dict, folder: Path) -> None:
    rows = rows_of(result)
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.8))
    for ax, part in zip(axes, ("last_block", "all_layers"), strict=True):
        bars = [(name.split(": ")[1], s) for name, s, _ in rows if name.startswith(part)]
        names, seconds = zip(*bars, strict=True)
        colors = ["#4c72b0" if "floor" in n else "#e6761b" for n in names]
        colors = ["#b0b0b0" if n in ("plain", TRAINER) else c for n, c in zip(names, colors)]
        drawn = ax.barh([n.replace("_", " ") for n in names], seconds, color=colors)
        ax.bar_label(drawn, fmt="%.0f", padding=3)
        ax.set_xscale("log")
        ax.set_xlim(right=max(seconds) * 3)
        ax.set_xlabel("seconds (logarithmic)")
        ax.set_title(part.replace("_", " "))
        ax.invert_yaxis()
    fig.tight_layout()
    fig.savefig(folder / "train.png", dpi=120)
    plt.close(fig)
