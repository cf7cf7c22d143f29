"""Peak memory by stage and by what is trained, measured and predicted.

It is measured in fresh processes: what was measured before would be counted again. The formula has
B messages in a batch, T tokens each, D embedding dimensions.
"""

import threading
from contextlib import contextmanager
from functools import partial
from typing import Any

import bench_common as bench
import torch
from bench_train import EveryPosition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from features import FastClassifier
from fine_tuning import fine_tune
from gpt_download import MODEL_CONFIGS, SMS_SPAM_ZIP, fetch
from lora import add_lora
from measuring import in_fresh_process
from previous_chapters import GPTConfig, num_parameters
from run_config import RunConfig
from text_classifier import GPTClassifier, calc_logits, calc_loss_batch, freeze_all_but
from text_data import collate

CHOICES = ["inference", "inference_by_hand", "head", "last_block", "all", "lora", "checkpointing"]
OPTIONS = {
    "choices": (CHOICES, "what is trained, and how: " + ", ".join(CHOICES)),
    "batch_sizes": ([1, 8, 32], "messages, at 120 tokens"),
    "lengths": ([30, 240, 480], "tokens, in batches of 8"),
}
STAGES = ("model", "frozen layers", "forward", "backward", "update")
FLOAT = 4  # bytes
ADAM = 2  # numbers that AdamW keeps for each trained parameter


# --- Prediction ----------------------------------------------------------------------------------


def kept_numbers_per_token(cfg: GPTConfig, choice: str) -> float:
    """Numbers that the forward pass keeps of each token for the backward pass.

    A block keeps its input, the first norm's output, queries, keys, values, the context, the sum
    before the second norm and that norm's output (8 D), and the feed-forward network's 4 D before
    and after its activation: 16 D. LoRA adds nothing that counts: R numbers a layer. The last
    block, for one position, keeps its input and the norm's output, 2 D; with LoRA keys and values
    too, 4 D, since its adapted layers are computed for every token. With checkpointing, the other
    blocks keep their input, and one of them at a time all of it.
    """
    others = cfg.n_layers - 1
    kept = {
        "last_block": 2,
        "all": 16 * others + 2,
        "lora": 16 * others + 4,
        "checkpointing": others + 16 + 2,
    }
    return kept.get(choice, 0) * cfg.emb_dim


def predict_mb(
    cfg: GPTConfig, choice: str, num_tokens: int, parameters: int, trained: int
) -> float:
    """Weights, AdamW's state, and the largest of what is kept, of the gradients, and of what is
    passing: while the backward pass makes the gradients, it lets go of what was kept.

    Passing are the numbers in the largest moment of a block that keeps nothing, in its feed-forward
    network: the block's input, what attention adds to it, their sum, the norm's output, and 4 D
    before and after the activation: 12 D a token.
    """
    kept = kept_numbers_per_token(cfg, choice) * num_tokens
    passing = 12 * cfg.emb_dim * num_tokens
    return FLOAT * (parameters + ADAM * trained + max(kept, trained, passing)) / 1e6


# --- Measurement ---------------------------------------------------------------------------------


def used_mb(device: torch.device) -> float:
    """Memory of this process; on a GPU, of its tensors."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() / 1e6
    import psutil

    return psutil.Process().memory_info().rss / 1e6


@contextmanager
def stage(name: str, peaks: dict[str, float], device: torch.device):
    """Watch what happens inside; a stage that comes again keeps the larger peak."""
    finished, seen = threading.Event(), [used_mb(device)]

    def watch() -> None:
        while not finished.wait(0.001):
            seen.append(used_mb(device))

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    watcher.start()
    yield
    finished.set()
    watcher.join()
    if device.type == "cuda":
        seen.append(torch.cuda.max_memory_allocated() / 1e6)
    peaks[name] = max(peaks.get(name, 0), *seen)


def model_for(classifier: GPTClassifier, choice: str) -> nn.Module:
    """What gives the logits; all that the choice does not train is frozen."""
    if choice.startswith("inference"):
        classifier.requires_grad_(False)
        return EveryPosition(classifier, fused=choice == "inference")
    if choice == "lora":
        freeze_all_but(classifier, "head")
        add_lora(classifier.decoder, rank=8, alpha=16)
        return FastClassifier(classifier)
    if choice == "checkpointing":  # blocks keep only their input, and are computed again
        for block in classifier.decoder.trf_blocks[:-1]:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        return FastClassifier(classifier)
    return FastClassifier(classifier, freeze_all_but(classifier, choice))


def random_batch(classifier: GPTClassifier, batch_size: int, length: int) -> dict[str, Tensor]:
    """Messages of random tokens, all of the same length."""
    ids = torch.randint(classifier.decoder.cfg.vocab_size, (batch_size, length))
    batch = collate([(row, 0) for row in ids])
    return {name: tensor.to(classifier.device) for name, tensor in batch.items()}


@torch.no_grad()
def with_features(model: FastClassifier, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch after the frozen blocks."""
    decoder, made_by = model.classifier.decoder, torch.tensor(model.made_by)
    features = decoder.run_blocks(decoder.embed(batch.pop("input_ids")), stop=model.num_layers)
    return {"features": features, "made_by": made_by, **batch}  # (B, T, D)


def measure(
    model_name: str, choice: str, batch_size: int, length: int, device: torch.device
) -> dict[str, float]:
    """Peaks by stage, in MB above what the process held before, and numbers of parameters."""
    if model_name != "tiny":  # PyTorch loads what it needs, which is no part of the model
        measure("tiny", choice, 4, 32, device)
    before, peaks = used_mb(device), {}
    with stage("model", peaks, device):
        classifier = bench.random_classifier(model_name, device)
        model = model_for(classifier, choice)
    batch = random_batch(classifier, batch_size, length)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        with stage("forward", peaks, device), torch.no_grad():
            calc_logits(model, batch)
    else:
        with stage("frozen layers", peaks, device):
            batch = with_features(model, batch) if model.num_layers else batch
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        for _ in range(2):  # the optimizer's state appears with the first step, and stays
            with stage("forward", peaks, device):
                loss = calc_loss_batch(model, batch)
            with stage("backward", peaks, device):
                loss.backward()
            with stage("update", peaks, device):
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()  # the gradients' memory is free for the next forward pass
    counts = {"parameters": num_parameters(model), "trained": num_parameters(model, True)}
    return {name: peak - before for name, peak in peaks.items()} | counts


def chapter_peak_mb(model: str, device: str) -> float | None:
    """Peak of this process with all its libraries after an epoch of the chapter's run."""
    fetch(SMS_SPAM_ZIP)  # before anything falls back on made-up messages
    how = {"weights": "random", "pooling": "last", "protocol": "published"}
    how |= {"num_epochs": 1, "quiet": True}
    return fine_tune(RunConfig(model=model, device=device, **how)).metrics["peak_memory_mb"]


def run(
    model: str, device: torch.device, choices: list[str], batch_sizes: list[int], lengths: list[int]
) -> dict[str, Any]:
    cfg, rows = MODEL_CONFIGS[model], []
    settings = [(choice, 8, 120) for choice in choices]
    settings += [("all", batch_size, 120) for batch_size in batch_sizes if batch_size != 8]
    settings += [("all", 8, length) for length in lengths if length != 120]
    for choice, batch_size, length in tqdm(settings, "choices"):
        measured = in_fresh_process(measure, model, choice, batch_size, length, device)
        counts = measured.pop("parameters"), measured.pop("trained")
        row = {"trained": choice.replace("_", " "), "messages": batch_size, "tokens each": length}
        row |= dict.fromkeys(STAGES) | measured | {"peak": max(measured.values())}
        if isinstance(cfg, GPTConfig):  # the formula is of its kind of block
            row["predicted"] = predict_mb(cfg, choice, batch_size * length, *counts)
        rows.append(row)
    chapter = in_fresh_process(chapter_peak_mb, model, device.type)
    whole = f" The chapter's run, with all libraries: {chapter:,.0f} MB." if chapter else ""
    return {
        "tables": {"peak_mb": rows},
        "notes": ["MB above a process that has loaded PyTorch, by stage." + whole],
        "chapter_peak_mb": chapter,
    }


plot = partial(bench.plot_bars, columns=["peak", "predicted"], num_names=3)
