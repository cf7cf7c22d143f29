"""How fast is the chapter's training, compared with the plain way and with what is possible?

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train

measures, in one process and on the same messages,

- the plain way: every message padded to 120 tokens, all blocks computed at every step and in
  every evaluation;
- the chapter's way: `finetune.py` from reading the file to the accuracies of all three parts;
- the floor: the operations that cannot be avoided, at the rate of the machine's matrix products.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tqdm import tqdm

import finetune
from gpt_download import load_tokenizer, resolve_model_name
from previous_chapters import MODEL_CONFIGS, GPTConfig, GPTModel
from text_classifier import TrainConfig, add_classification_head, freeze_all_but, write_text
from text_data import Splits, encode_messages, published_splits

PADDED_LENGTH = 120  # tokens, as in the well-known way of doing it
COUNTED_STAGES = ("data", "model", "frozen_layers", "training", "evaluation")


def matrix_rate(cfg: GPTConfig, seconds: float = 2.0) -> float:
    """Floating-point operations a second of the model's own largest matrix product."""
    x = torch.randn(2048, cfg.emb_dim)
    weight = torch.randn(4 * cfg.emb_dim, cfg.emb_dim)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return 2 * x.shape[0] * weight.numel() / statistics.median(times)


# ---------------------------------------------------------------------------------------------
# The plain way
# ---------------------------------------------------------------------------------------------


class PlainTraining:
    """Pads everything to the same length and computes everything anew."""

    def __init__(self, cfg: GPTConfig, splits: Splits, tokenizer, config: TrainConfig):
        torch.manual_seed(config.seed)
        self.model = GPTModel(cfg)
        add_classification_head(self.model, 2)
        freeze_all_but(self.model, "last_block")
        self.batch_size = config.batch_size
        self.optimizer = torch.optim.AdamW(
            (p for p in self.model.parameters() if p.requires_grad), lr=config.learning_rate
        )
        length = min(PADDED_LENGTH, cfg.context_length)
        self.input_ids = torch.full((len(splits.train), length), tokenizer.eot_token)
        sequences = encode_messages(splits.train["text"], tokenizer, length)
        for row, ids in zip(self.input_ids, sequences, strict=True):
            row[: len(ids)] = ids
        self.last = torch.tensor([len(ids) - 1 for ids in sequences])
        self.labels = torch.tensor((splits.train["label"] == "spam").to_numpy(dtype=int))

        num_batches = [-(-len(part) // config.batch_size) for part in splits]
        self.num_steps = config.num_epochs * num_batches[0]
        # As in the chapter: training and validation after every epoch, all three at the end.
        self.num_evaluations = config.num_epochs * sum(num_batches[:2]) + sum(num_batches)

    def _logits(self, i: int) -> tuple[torch.Tensor, slice]:
        start = i * self.batch_size % (len(self.labels) - self.batch_size)
        rows = slice(start, start + self.batch_size)
        logits = self.model(self.input_ids[rows])
        return logits[torch.arange(self.batch_size), self.last[rows]], rows

    def step(self, i: int) -> None:
        self.model.train()
        logits, rows = self._logits(i)
        self.optimizer.zero_grad()
        F.cross_entropy(logits, self.labels[rows]).backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, i: int) -> None:
        self.model.eval()
        self._logits(i)[0].argmax(dim=-1)


def timed(function, indices, description: str) -> list[float]:
    seconds = []
    for i in tqdm(indices, description):
        start = time.perf_counter()
        function(i)
        seconds.append(time.perf_counter() - start)
    return seconds


# ---------------------------------------------------------------------------------------------
# The floor
# ---------------------------------------------------------------------------------------------


def floor_operations(cfg: GPTConfig, lengths: list[list[int]], num_epochs: int) -> float:
    """Floating-point operations that the chapter's training cannot do without.

    `lengths` holds the tokens of each message of the three parts. A block's matrices have 12 D^2
    weights, 2 operations each for a token: 2 D^2 of them make keys and values, and in the last
    block only these are needed for every token, the other 10 D^2 for one token a message. The
    attention scores and sums take 2 T D more for a token that looks back at T/2 others on
    average. Training counts three times a forward pass.
    """
    weights = cfg.emb_dim**2
    tokens = [sum(part) for part in lengths]
    scores = 2 * cfg.emb_dim * sum(n * n for part in lengths for n in part)
    frozen = (cfg.num_layers - 1) * (24 * weights * sum(tokens) + scores)
    tail = [4 * weights * t + 20 * weights * len(part) for t, part in zip(tokens, lengths)]
    evaluations = num_epochs * (tail[0] + tail[1]) + sum(tail)
    return frozen + 3 * num_epochs * tail[0] + evaluations


# ---------------------------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------------------------


def benchmark_training(model_name: str, num_plain: int | None, num_epochs: int) -> dict:
    """Seconds of the plain way, of the chapter's way and of the floor.

    With `num_plain`, so many steps and evaluations of the plain way are timed, half before and
    half after the chapter's run, and their medians multiplied; with None it runs in full.
    """
    cfg = MODEL_CONFIGS[model_name]
    tokenizer, splits = load_tokenizer(model_name), published_splits()
    config = TrainConfig(num_epochs=num_epochs)
    plain = PlainTraining(cfg, splits, tokenizer, config)
    rates = [matrix_rate(cfg)]

    steps = list(range(num_plain or plain.num_steps))
    evaluations = list(range(num_plain or plain.num_evaluations))
    half = len(steps) // 2 if num_plain else len(steps)
    plain.step(0)  # warm-up, not counted
    step_seconds = timed(plain.step, steps[:half], "plain steps")
    evaluation_seconds = timed(plain.evaluate, evaluations[:half], "plain evaluations")

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", model_name, "--weights", "random", "--protocol", "published"]
        arguments += ["--epochs", str(num_epochs), "--output", folder, "--quiet"]
        metrics = finetune.run(finetune.parse_args(arguments))
    fast_seconds = sum(metrics["seconds"][stage] for stage in COUNTED_STAGES)

    rates.append(matrix_rate(cfg))
    step_seconds += timed(plain.step, steps[half:], "plain steps")
    evaluation_seconds += timed(plain.evaluate, evaluations[half:], "plain evaluations")
    plain_seconds = (
        statistics.median(step_seconds) * plain.num_steps
        + statistics.median(evaluation_seconds) * plain.num_evaluations
        if num_plain
        else sum(step_seconds) + sum(evaluation_seconds)
    )

    rate = statistics.mean(rates)
    lengths = [
        [len(ids) for ids in encode_messages(part["text"], tokenizer, cfg.context_length)]
        for part in splits
    ]
    floor_seconds = floor_operations(cfg, lengths, num_epochs) / rate
    return {
        "model": model_name,
        "weights": "random",
        "data": metrics["data"],
        "real_tokens": sum(map(sum, lengths)),
        "plain_seconds": plain_seconds,
        "plain_step_seconds": statistics.median(step_seconds),
        "plain_evaluation_seconds": statistics.median(evaluation_seconds),
        "plain_steps_timed": len(step_seconds),
        "plain_steps": plain.num_steps,
        "plain_evaluations": plain.num_evaluations,
        "fast_seconds": fast_seconds,
        "fast_seconds_by_stage": metrics["seconds"],
        "floor_seconds": floor_seconds,
        "matrix_gflops": rate / 1e9,
        "speedup": plain_seconds / fast_seconds,
        "times_floor": fast_seconds / floor_seconds,
        "peak_memory_mb": metrics["peak_memory_mb"],
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def table(result: dict) -> str:
    timed_steps, steps = result["plain_steps_timed"], result["plain_steps"]
    how = "in full" if timed_steps >= steps else f"from {timed_steps} of {steps} steps"
    rows = [
        (f"plain way ({how})", result["plain_seconds"]),
        ("chapter's way", result["fast_seconds"]),
        (f"floor at {result['matrix_gflops']:.0f} GFLOP/s", result["floor_seconds"]),
    ]
    lines = [f"{result['model']}, {result['threads']} threads, {result['real_tokens']:,} tokens"]
    lines += [f"{name:<42}{seconds:>10.1f} s" for name, seconds in rows]
    lines.append(f"{result['speedup']:.1f} times faster, {result['times_floor']:.2f} times floor")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    names = ["plain way", "chapter's way", "floor"]
    seconds = [result[f"{key}_seconds"] for key in ("plain", "fast", "floor")]
    fig, ax = plt.subplots(figsize=(7, 2.4))
    bars = ax.barh(names, seconds, color=["#b0b0b0", "#e6761b", "#4c72b0"])
    ax.bar_label(bars, fmt="%.0f s", padding=4)
    ax.set_xscale("log")
    ax.set_xlim(right=max(seconds) * 2)
    ax.set_xlabel("seconds (logarithmic)")
    ax.invert_yaxis()
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description="Measure the speed of the chapter's code."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser(
        "train",
        help="training: the plain way, the chapter's way, and the floor",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    train.add_argument(
        "--plain-steps", type=int, default=12, help="steps of the plain way to time; 0: all"
    )
    train.add_argument("--epochs", type=int, default=5, help="passes over the training messages")
    train.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for JSON")
    train.add_argument("--plot", action="store_true", help="also write a PNG")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.plain_steps < 0 or args.plain_steps == 1:
        print("benchmark.py: --plain-steps must be 0 (all) or at least 2.", file=sys.stderr)
        return 2
    try:
        model_name = resolve_model_name(args.model)
        result = benchmark_training(model_name, args.plain_steps or None, args.epochs)
        args.output.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(result, indent=2) + "\n", args.output / "train.json")
    except ValueError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    print(table(result))
    if args.plot:
        plot(result, args.output / "train.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
