"""Peak memory of one choice, stage by stage, in this fresh process; prints JSON.

    python measure_memory.py gpt2-small last_block --batch-size 8 --length 120

`benchmark.py memory` runs it once for each choice: what an earlier choice left behind in a process
would be counted again.
"""

import argparse
import json
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from bench_common import random_classifier
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_ways import Way, after_frozen_blocks, logits_of

from lora import add_lora
from previous_chapters import GPTConfig, GPTModel
from text_classifier import (
    add_classification_head,
    freeze_all_but,
    last_token_logits,
    pick_device,
    train_mode,
)
from text_data import Batch

CHOICES = ("inference", "inference_by_hand", "head", "last_block", "all", "lora", "checkpointing")
NUM_STEPS = 2  # the optimizer's state appears with the first step, and is there in the second


class PeakMemory:
    """Peaks of the process's memory (on a GPU: of its tensors) by stage, in MB."""

    def __init__(self, device: torch.device):
        self.device = device
        if device.type != "cuda":
            import psutil

            self.process = psutil.Process()
        self.start = self.now()
        self.stages: dict[str, float] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated() / 1e6
        return self.process.memory_info().rss / 1e6

    @contextmanager
    def stage(self, name: str):
        """Watch what happens inside; a stage that comes again keeps the larger peak."""
        finished = threading.Event()
        peaks = [self.now()]

        def watch() -> None:
            while not finished.wait(0.001):
                peaks.append(self.now())

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        finished.set()
        watcher.join()
        peaks.append(self.now())
        if self.device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated() / 1e6)
        self.stages[name] = max(self.stages.get(name, 0), max(peaks) - self.start)


def prepare(model: GPTModel, choice: str) -> Callable[[GPTModel, Batch], Tensor]:
    """Freeze what the choice freezes; returns how logits are computed."""
    freeze_all_but(model, choice if choice in ("head", "last_block") else "all")
    if choice == "lora":
        freeze_all_but(model, "head")
        add_lora(model, rank=8, alpha=16)
    return checkpointed_logits if choice == "checkpointing" else last_token_logits


def checkpointed_logits(model: GPTModel, batch: Batch) -> Tensor:
    """Each block keeps only its input, and is computed again when its gradient is wanted."""
    x = model.embed(batch.inputs)
    for block in model.trf_blocks[:-1]:
        x = checkpoint(block, x, use_reentrant=False)
    x = checkpoint(model.trf_blocks[-1], x, batch.last_positions, use_reentrant=False)
    return model.out_head(model.final_norm(x)).squeeze(1)


def frozen_part(model: GPTModel, batch: Batch, choice: str) -> Batch:
    """The batch after the frozen blocks, which the chapter computes once."""
    if choice not in ("head", "last_block"):
        return batch
    return after_frozen_blocks(model, batch, len(model.trf_blocks) - (choice == "last_block"))


def random_batch(model: GPTModel, batch_size: int, length: int) -> Batch:
    """Messages of random tokens, all of the same length."""
    ids = torch.randint(model.cfg.vocab_size, (batch_size, length))
    last = torch.full((batch_size,), length - 1)
    labels = torch.zeros(batch_size, dtype=torch.long)
    return Batch(ids, last, labels).to(model.tok_emb.weight.device)


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Peaks by stage, in MB."""
    device = pick_device(args.device)
    warm_up(device)
    memory = PeakMemory(device)
    with memory.stage("model"):
        model = random_classifier(args.model, device)
        get_logits = prepare(model, args.choice)
    batch = random_batch(model, args.batch_size, args.length)
    if args.choice.startswith("inference"):
        way = Way("", fused_attention=args.choice == "inference")
        with memory.stage("forward"), torch.no_grad():
            logits_of(model.eval(), batch, way)
        return memory.stages
    with memory.stage("frozen layers"):
        batch = frozen_part(model, batch, args.choice)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    train_mode(model)
    for _ in range(NUM_STEPS):
        with memory.stage("forward"):
            loss = F.cross_entropy(get_logits(model, batch), batch.labels)
        with memory.stage("backward"):
            loss.backward()
        with memory.stage("update"):
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()  # the gradients' memory is free for the next forward pass
    return memory.stages


def warm_up(device: torch.device) -> None:
    """Let PyTorch load what a forward and a backward pass need, which is no part of the model."""
    shape = {"vocab_size": 64, "context_length": 32, "emb_dim": 64, "num_heads": 2}
    model = GPTModel(GPTConfig(**shape, num_layers=2)).to(device)
    add_classification_head(model, 2)
    batch = random_batch(model, 4, 32)
    for get_logits in (last_token_logits, checkpointed_logits):
        F.cross_entropy(get_logits(model, batch), batch.labels).backward()
    with torch.no_grad():
        logits_of(model, batch, Way("by hand"))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), fused=True).step()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory of one choice, stage by stage.")
    parser.add_argument("model", help="shape; the weights are random")
    parser.add_argument("choice", choices=CHOICES, help="what is trained, and how")
    parser.add_argument("--batch-size", type=int, default=8, help="messages")
    parser.add_argument("--length", type=int, default=120, help="tokens of each message")
    parser.add_argument("--device", default="cpu", help="where to compute")
    return parser.parse_args(argv)


if __name__ == "__main__":
    print(json.dumps(measure(parse_args())))
    sys.exit(0)
