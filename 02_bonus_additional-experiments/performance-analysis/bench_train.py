"""Training: the plain way, each improvement, the chapter's run, the lower bound, the Trainer.

Shapes in comments: B messages in a batch, T tokens in the longest of them, D embedding dimensions,
C classes.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import bench_common as bench
import pandas as pd
import torch
import torch.nn.functional as F
from hugging_face import trainer_timing
from lower_bound import achieved_flops, training_operations
from torch import Tensor, nn

from features import FastClassifier, FeatureDataset, Precision
from fine_tuning import RunConfig, fine_tune, make_datasets
from gpt_download import MODEL_CONFIGS, SMS_SPAM_ZIP, fetch, load_pretrained, load_tokenizer
from previous_chapters import TransformerBlock
from run_messages import read_run_messages
from text_classifier import (
    POOLINGS,
    TOKENS_AT_ONCE,
    ClassifierConfig,
    GPTClassifier,
    calc_logits,
    freeze_all_but,
)
from text_data import SpamDataset, batches_by_length, make_loader
from training import TrainConfig, train_step

NUM_TRAIN = 1045  # training messages of the published split
OPTIONS = {
    "num_epochs": (5, "passes over the training messages"),
    "train_size": (NUM_TRAIN, "training messages"),
    "sample": (3, "batches of each way that are timed, evenly spaced by length"),
    "repetitions": (3, "rounds; the median counts"),
    "check_steps": (40, "steps over which losses are compared"),
}
# Of the chapter's run; the n-gram baseline that it also fits is no part of the GPT's training.
STAGES = ["data", "model", "frozen_layers", "training", "evaluation"]
PARTS = {"last_block": "last_block", "all_layers": "all"}  # key in the raw file: what is trained
PLAIN = "plain: pad to 120 tokens, attention by hand, all blocks at every step"
FUSED = "+ fused attention"
TO_LONGEST = "+ pad to the batch's longest message"
GROUPED = "+ messages of similar length in a batch"
FROZEN_ONCE = "+ frozen layers computed once"
LAST_POSITION = "+ only the last position through the last block"
TRAINER = "transformers Trainer, grouped by length"
CHAPTER = {precision: f"the chapter's run, {precision}" for precision in get_args(Precision)}
LOWER_BOUND = "lower bound, float32"
PADDED_LENGTH = 120  # tokens, as in the well-known way of doing it
Batch = dict[str, Tensor]
Batches = dict[str, list[Batch]]  # of all "training" steps, and of all of the "evaluation"


# --- The ways ------------------------------------------------------------------------------------


def block_by_hand(block: TransformerBlock, x: Tensor) -> Tensor:
    """A block whose attention is computed step by step, as chapter 3 teaches it."""
    return block.add_to_stream(x, block.att.by_hand(block.norm1(x))[0])


class EveryPosition(nn.Module):
    """A classifier's logits with all positions taken through all blocks, attention fused or not."""

    def __init__(self, classifier: GPTClassifier, num_frozen: int = 0, fused: bool = True):
        super().__init__()
        self.classifier, self.num_frozen, self.fused = classifier, num_frozen, fused

    def forward(self, attention_mask, input_ids=None, features=None, made_by=None) -> Tensor:
        """Token ids (B, T), or the frozen blocks' features (B, T, D) -> logits (B, C)."""
        decoder, pooling = self.classifier.decoder, self.classifier.config.pooling
        x, start = features, self.num_frozen
        if features is None:
            x, start = decoder.embed(input_ids), 0
        for block in decoder.trf_blocks[start:]:
            x = block(x) if self.fused else block_by_hand(block, x)
        return POOLINGS[pooling](decoder.out_head(decoder.final_norm(x)), attention_mask)


def padded(batch: Batch) -> Batch:
    """A batch with the plain way's padding; a message that is longer is left as it is."""
    missing = max(0, PADDED_LENGTH - batch["input_ids"].shape[1])
    names = ("input_ids", "attention_mask")  # (B, T) each
    return batch | {name: F.pad(batch[name], (0, missing)) for name in names}


def num_positions(batch: Batch) -> int:
    """Tokens, padding too."""
    return batch["attention_mask"].numel()


def make_batches(
    parts: Sequence[SpamDataset], num_epochs: int, max_tokens: int | None = None
) -> Batches:
    """Eight messages a batch as they come; with `max_tokens`, messages of similar length, and in
    the evaluation so many tokens. Training and validation messages are evaluated after every
    epoch, and all three parts at the end."""
    size, grouped, evaluated = TrainConfig.batch_size, max_tokens is not None, []
    for part in parts:
        rows = batches_by_length(part.lengths, max_tokens) if grouped else range(len(part))
        rows = rows if grouped else torch.arange(len(part)).split(size)
        evaluated.append([part.collate([part[i] for i in indices]) for indices in rows])
    train, validation, test = evaluated
    return {
        "training": list(make_loader(parts[0], size, True, grouped)) * num_epochs,
        "evaluation": (train + validation) * (num_epochs + 1) + test,
    }


def make_ways(
    classifier: GPTClassifier,
    parts: Sequence[SpamDataset],
    num_frozen: int,
    num_epochs: int = 1,
    precision: Precision = "float32",
) -> dict[str, tuple[nn.Module, Batches]]:
    """What gives the logits in each way, and the batches that it takes. Each way has the
    improvements of those before it."""
    max_tokens, fused = TOKENS_AT_ONCE[classifier.device.type], EveryPosition(classifier)
    as_they_come = make_batches(parts, num_epochs)
    grouped = make_batches(parts, num_epochs, max_tokens)
    to_120 = {stage: list(map(padded, batches)) for stage, batches in as_they_come.items()}
    ways = {
        PLAIN: (EveryPosition(classifier, fused=False), to_120),
        FUSED: (fused, to_120),
        TO_LONGEST: (fused, as_they_come),
        GROUPED: (fused, grouped),
    }
    if num_frozen:
        features = [FeatureDataset.from_classifier(classifier, p, num_frozen) for p in parts]
        grouped = make_batches(features, num_epochs, max_tokens)
        ways[FROZEN_ONCE] = (EveryPosition(classifier, num_frozen), grouped)
    return ways | {LAST_POSITION: (FastClassifier(classifier, num_frozen, precision), grouped)}


def make_step(classifier: GPTClassifier, learning_rate: float) -> Callable[..., float]:
    """A function that updates the trained parameters with a batch, and returns its loss."""
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, learning_rate, fused=True)
    return lambda model, batch: train_step(model, batch, optimizer, TrainConfig())


@torch.no_grad()
def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Classes (B,)."""
    return calc_logits(model, batch).argmax(dim=-1).cpu()


# --- Timing --------------------------------------------------------------------------------------


def sample_of(batches: Batches, num: int) -> Batches:
    """Some batches of each stage, which stand for all."""
    return {stage: bench.evenly_spaced(b, num, num_positions) for stage, b in batches.items()}


def timing(functions: dict[str, Callable], batches: Batches) -> Callable[[], dict[str, float]]:
    """A function that calls each stage's function with its batches, and returns the seconds."""

    def seconds_of(stage: str) -> float:
        return bench.seconds_of(lambda: [functions[stage](batch) for batch in batches[stage]])

    for stage, function in functions.items():
        function(batches[stage][-1])  # the longest, which allocates
    return lambda: {stage: seconds_of(stage) for stage in functions}


def run_chapter(config: RunConfig, precision: Precision) -> dict[str, float]:
    """Seconds of each stage of the chapter's run, from reading the file to the accuracies."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, precision=precision, output=Path(folder))
        return fine_tune(config).metrics["seconds"]


def read_parts(model: str, train_size: int = NUM_TRAIN) -> list[SpamDataset]:
    """The messages of the chapter's run, as token ids within the model's context."""
    fetch(SMS_SPAM_ZIP)  # before anything falls back on made-up messages
    messages = read_run_messages(RunConfig(protocol="published", train_size=train_size))
    about = ClassifierConfig(model, messages.label_names, MODEL_CONFIGS[model].context_length)
    return make_datasets(messages, load_tokenizer(model), about)


def compare(
    model: str, device: torch.device, trainable: str, parts: list[SpamDataset], options: dict
) -> dict[str, Any]:
    """Seconds of the whole training in each way, of the chapter's run, and of the lower bound.

    All take turns, and so does the measuring of FLOP/s; but where all layers are trained, the
    chapter's run has one epoch, once and after the rounds, since that alone takes minutes.
    """
    num_epochs, repetitions = options["num_epochs"], options["repetitions"]
    cfg, classifier = MODEL_CONFIGS[model], bench.random_classifier(model, device)
    num_frozen = freeze_all_but(classifier, trainable)
    step, samples = make_step(classifier, learning_rate=1e-6), {}
    ways = make_ways(classifier, parts, num_frozen, num_epochs)
    batches = {name: way_batches for name, (_, way_batches) in ways.items()}
    sampled = {name: sample_of(b, options["sample"]) for name, b in batches.items()}
    for name, (way, _) in ways.items():
        functions = {"training": partial(step, way), "evaluation": partial(predict, way)}
        samples[name] = timing(functions, sampled[name])
    batches[TRAINER], sampled[TRAINER] = batches[GROUPED], sampled[GROUPED]
    epochs_run = num_epochs if num_frozen else 1
    how = {"model": model, "weights": "random", "pooling": "last"}
    how |= {"trainable": trainable, "num_epochs": epochs_run}
    data = {"protocol": "published", "train_size": len(parts[0])}
    config = RunConfig(**how, **data, device=device.type, quiet=True)
    runs = {name: partial(run_chapter, config, precision) for precision, name in CHAPTER.items()}
    optional = {
        CHAPTER["bfloat16"]: lambda: bench.require_bf16(device),
        TRAINER: lambda: trainer_timing(classifier, sampled[GROUPED]),
    }
    made, _, unavailable = bench.try_each(optional, lambda made: None)
    samples |= {name: function for name, function in made.items() if function}
    runs = {name: function for name, function in runs.items() if name not in unavailable}

    functions = samples | {"FLOP/s": partial(achieved_flops, cfg, device, 1.0)}
    if num_frozen:
        rounds = bench.take_turns(functions | runs, repetitions)
    else:
        rounds = bench.take_turns(functions, repetitions) | bench.take_turns(runs, 1)

    stages = {n: pd.DataFrame(rounds[n]).median().to_dict() for n in (*samples, *runs)}
    for name in runs:
        stages[name]["training"] *= num_epochs / epochs_run
    once = {stage: stages[CHAPTER["float32"]][stage] for stage in STAGES[:3]}
    for name in samples:
        for stage, part in sampled[name].items():
            positions = [sum(map(num_positions, b)) for b in (batches[name][stage], part)]
            stages[name][stage] *= positions[0] / positions[1]
        cached = name in (FROZEN_ONCE, LAST_POSITION)
        stages[name] = once | ({} if cached else {"frozen_layers": 0.0}) | stages[name]
    flops, lengths = median(rounds["FLOP/s"]), [part.lengths for part in parts]
    return {
        "stages": stages,
        "batches": {n: {stage: len(b) for stage, b in batches[n].items()} for n in samples},
        "batches_timed_in_a_round": len(sampled[PLAIN]["training"]),
        "achieved_gflops": flops / 1e9,
        "lower_bound": training_operations(cfg, lengths, num_epochs, num_frozen) / flops,
        "unavailable": unavailable,
        "rounds": rounds,
    }


def compare_losses(trainable: str, num_steps: int, precision: Precision) -> float:
    """Largest difference between the losses of the plain way and of all improvements, over the
    same batches in the same order, on the pretrained gpt-mini. The plain way is float32.

    (Grouping by length changes which messages share a batch, and so the course of the training,
    though not what is computed of a batch: both ways get the grouped batches here.)
    """
    parts, losses = read_parts("gpt-mini"), []
    for name in (PLAIN, LAST_POSITION):
        decoder, _ = load_pretrained("gpt-mini")
        torch.manual_seed(0)
        about = ClassifierConfig("gpt-mini", ("ham", "spam"), decoder.cfg.context_length)
        classifier = GPTClassifier(decoder, about)
        num_frozen = freeze_all_but(classifier, trainable)
        ways = make_ways(classifier, parts, num_frozen, precision=precision)
        model, step = ways[name][0], make_step(classifier, learning_rate=5e-4)
        _, batches = ways[GROUPED if name == PLAIN else name]
        change = padded if name == PLAIN else dict
        losses.append([step(model, change(b)) for b in batches["training"][:num_steps]])
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


def table(compared: dict[str, dict]) -> list[dict[str, Any]]:
    """Seconds of all ways, beside those of the plain way and of the lower bound."""
    parts = []
    for key, part in compared.items():
        seconds = pd.DataFrame(part["stages"]).T[STAGES].sum(axis=1)
        seconds[LOWER_BOUND] = part["lower_bound"]
        columns = {"seconds": seconds, "speedup": seconds[PLAIN] / seconds}
        columns["times the bound"] = seconds / seconds[LOWER_BOUND]
        parts.append(pd.DataFrame(columns).add_prefix(key.replace("_", " ") + ", "))
    rows = pd.concat(parts, axis=1).rename_axis("how").reset_index().astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def run(model: str, device: torch.device, **options: int) -> dict[str, Any]:
    parts = read_parts(model, options["train_size"])
    compared = {key: compare(model, device, of, parts, options) for key, of in PARTS.items()}
    differences = {
        precision: {
            key: compare_losses(of, options["check_steps"], precision) for key, of in PARTS.items()
        }
        for precision in CHAPTER
    }
    part, data = compared["last_block"], "SMS Spam Collection, published split"
    plain, flops = part["batches"][PLAIN], [p["achieved_gflops"] for p in compared.values()]
    moved = ", ".join(
        f"{difference:.0e} ({key.replace('_', ' ')}, {precision})"
        for precision, by_part in differences.items()
        for key, difference in by_part.items()
    )
    notes = [
        f"{data}. Ways and Trainer are estimates: {part['batches_timed_in_a_round']} steps and "
        f"evaluation batches are timed, of {plain['training']:,} and {plain['evaluation']:,} "
        f"of the plain way. The chapter's run with all layers is one epoch, once, its training "
        f"times {options['num_epochs']}. The lower bound is at {flops[0]:.0f} and {flops[1]:.0f} "
        f"GFLOP/s.",
        f"Largest difference from the plain way's losses on gpt-mini: {moved}.",
    ]
    return {
        "tables": {"seconds": table(compared)},
        "notes": notes,
        "unavailable": compared["all_layers"]["unavailable"] | part["unavailable"],
        **compared,
        "largest_difference_of_losses": differences,
    }


plot = partial(bench.plot_bars, columns=["last block, seconds", "all layers, seconds"])
