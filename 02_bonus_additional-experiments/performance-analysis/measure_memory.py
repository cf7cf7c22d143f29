"""Peak memory of one choice of what is trained, stage by stage.

`bench_memory.py` runs `measure` in a fresh process for each choice: what an earlier choice left
behind in a process would be counted again.
"""

import threading
from contextlib import contextmanager
from functools import partial

import torch
from bench_common import random_classifier
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from training_ways import EveryPosition

from features import FastClassifier
from lora import add_lora
from previous_chapters import GPTConfig, GPTModel
from text_classifier import (
    ClassifierConfig,
    GPTClassifier,
    calc_logits,
    calc_loss_batch,
    freeze_all_but,
)
from text_data import collate

CHOICES = ("inference", "inference_by_hand", "head", "last_block", "all", "lora", "checkpointing")
NUM_STEPS = 2  # the optimizer's state appears with the first step, and is there in the second


class PeakMemory:
    """Peaks of the process's memory (on a GPU: of its tensors) by stage, in MB."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        if not self.on_gpu:
            import psutil

            self.process = psutil.Process()
        self.start = self.now()
        self.stages: dict[str, float] = {}

    def now(self) -> float:
        used = torch.cuda.memory_allocated() if self.on_gpu else self.process.memory_info().rss
        return used / 1e6

    @contextmanager
    def stage(self, name: str):
        """Watch what happens inside; a stage that comes again keeps the larger peak."""
        finished, peaks = threading.Event(), [self.now()]

        def watch() -> None:
            while not finished.wait(0.001):
                peaks.append(self.now())

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        yield
        finished.set()
        watcher.join()
        peaks.append(torch.cuda.max_memory_allocated() / 1e6 if self.on_gpu else self.now())
        self.stages[name] = max(self.stages.get(name, 0), max(peaks) - self.start)


def freeze(classifier: GPTClassifier, choice: str) -> int:
    """Freeze what the choice freezes; returns how many blocks can be computed once."""
    if choice == "lora":
        freeze_all_but(classifier, "head")
        add_lora(classifier.decoder, rank=8, alpha=16)
        return 0
    if choice.startswith("inference"):
        classifier.requires_grad_(False)
        return 0
    return freeze_all_but(classifier, choice if choice in ("head", "last_block") else "all")


def model_for(classifier: GPTClassifier, choice: str, num_frozen: int) -> nn.Module:
    """How logits are computed."""
    if choice.startswith("inference"):
        return EveryPosition(classifier, fused=choice == "inference")
    if choice == "checkpointing":  # blocks keep only their input, and are computed again
        for block in classifier.decoder.trf_blocks[:-1]:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return FastClassifier(classifier, num_frozen)


def random_batch(classifier: GPTClassifier, batch_size: int, length: int) -> dict[str, Tensor]:
    """Messages of random tokens, all of the same length."""
    ids = torch.randint(classifier.decoder.cfg.vocab_size, (batch_size, length))
    batch = collate([(row, 0) for row in ids])
    return {name: tensor.to(classifier.device) for name, tensor in batch.items()}


@torch.no_grad()
def with_features(model: FastClassifier, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch after the frozen blocks, which the chapter computes once."""
    decoder, made_by = model.classifier.decoder, torch.tensor(model.made_by)
    features = decoder.run_blocks(decoder.embed(batch["input_ids"]), stop=model.num_layers)
    others = {name: batch[name] for name in ("attention_mask", "labels")}
    return {"features": features, "made_by": made_by, **others}


def measure(
    model_name: str, choice: str, batch_size: int, length: int, device: torch.device
) -> dict[str, float]:
    """Peaks by stage, in MB above what the process held before."""
    warm_up(device)
    memory = PeakMemory(device)
    with memory.stage("model"):
        classifier = random_classifier(model_name, device)
        num_frozen = freeze(classifier, choice)
        model = model_for(classifier, choice, num_frozen)
    batch = random_batch(classifier, batch_size, length)
    if choice.startswith("inference"):
        with memory.stage("forward"), torch.no_grad():
            calc_logits(model, batch)
        return memory.stages
    with memory.stage("frozen layers"):
        batch = with_features(model, batch) if num_frozen else batch
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for _ in range(NUM_STEPS):
        with memory.stage("forward"):
            loss = calc_loss_batch(model, batch)
        with memory.stage("backward"):
            loss.backward()
        with memory.stage("update"):
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()  # the gradients' memory is free for the next forward pass
    return memory.stages


def warm_up(device: torch.device) -> None:
    """Let PyTorch load what a forward and a backward pass need, which is no part of the model."""
    cfg = GPTConfig(vocab_size=64, context_length=32, emb_dim=64, n_heads=2, n_layers=2)
    classifier = GPTClassifier(GPTModel(cfg), ClassifierConfig("tiny", ("a", "b"), 32)).to(device)
    batch = random_batch(classifier, 4, 32)
    for choice in ("all", "inference_by_hand", "checkpointing"):
        calc_loss_batch(model_for(classifier, choice, 0), batch).backward()
    nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
    torch.optim.AdamW(classifier.parameters(), fused=True).step()
