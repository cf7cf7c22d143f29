"""Peak memory by stage and by choice, measured in fresh processes and predicted by a formula."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from bench_common import in_fresh_process, require, save_figure
from measure_memory import CHOICES, freeze, measure
from tqdm import tqdm

from fine_tuning import RunConfig, fine_tune
from gpt_download import MODEL_CONFIGS, build_decoder
from previous_chapters import GPTConfig, num_parameters
from text_classifier import ClassifierConfig, GPTClassifier

OPTIONS = {
    "choices": (list(CHOICES), "what is trained, and how: " + ", ".join(CHOICES)),
    "batch_sizes": ([1, 8, 32], "messages, at 120 tokens"),
    "lengths": ([30, 240, 480], "tokens, in batches of 8"),
    "num_epochs": (1, "of the chapter's run; its peak hardly depends on it"),
}
STAGES = ("model", "frozen layers", "forward", "backward", "update")
FLOAT = 4  # bytes
ADAM = 2  # numbers that AdamW keeps for each trained parameter


def count_parameters(cfg, choice: str) -> tuple[int, int]:
    """All parameters, and the trained ones."""
    with torch.device("meta"):
        classifier = GPTClassifier(build_decoder(cfg), ClassifierConfig("", ("a", "b"), 1))
        freeze(classifier, choice)
    return num_parameters(classifier), num_parameters(classifier, trainable_only=True)


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


def passing_numbers(cfg: GPTConfig, choice: str, batch_size: int, length: int) -> float:
    """Numbers in the largest moment of a block that keeps nothing, in its feed-forward network: the
    block's input, what attention adds to it, their sum, the norm's output, and 4 D before and after
    the activation: 12 D a token.

    Attention by hand has another one, with two matrices of T x T numbers a head at a time (scores
    and masked scores, say) beside input, norm, queries, keys and values.
    """
    tokens = batch_size * length
    if choice != "inference_by_hand":
        return 12 * cfg.emb_dim * tokens
    in_attention = 2 * cfg.n_heads * batch_size * length**2 + 5 * cfg.emb_dim * tokens
    return max(12 * cfg.emb_dim * tokens, in_attention)


def predict_mb(cfg: GPTConfig, choice: str, batch_size: int, length: int) -> float:
    """Weights, AdamW's state, and the largest of what is kept, of the gradients, and of what is
    passing: while the backward pass makes the gradients, it lets go of what was kept."""
    parameters, trained = count_parameters(cfg, choice)
    kept = kept_numbers_per_token(cfg, choice) * batch_size * length
    passing = passing_numbers(cfg, choice, batch_size, length)
    return FLOAT * (parameters + ADAM * trained + max(kept, trained, passing)) / 1e6


def run(
    model: str,
    device: torch.device,
    choices: list[str],
    batch_sizes: list[int],
    lengths: list[int],
    num_epochs: int,
) -> dict[str, Any]:
    cfg = MODEL_CONFIGS[model]
    if max(lengths) > cfg.context_length:
        raise ValueError(f"--lengths: {model} reads {cfg.context_length} tokens at most.")
    if unknown := sorted(set(choices) - set(CHOICES)):
        raise ValueError(f"--choices: {unknown[0]} is none of {', '.join(CHOICES)}.")
    settings = [(choice, 8, 120) for choice in choices]
    settings += [("all", batch_size, 120) for batch_size in batch_sizes if batch_size != 8]
    settings += [("all", 8, length) for length in lengths if length != 120]
    rows = []
    for choice, batch_size, length in tqdm(settings, "choices"):
        stages = peaks_by_stage(model, choice, batch_size, length, device)
        row = {"trained": choice.replace("_", " "), "messages": batch_size, "tokens each": length}
        row |= {stage: stages.get(stage) for stage in STAGES}
        row["peak"] = max(stages.values())
        if isinstance(cfg, GPTConfig):  # the formula is of its kind of block
            row["predicted"] = predict_mb(cfg, choice, batch_size, length)
        rows.append(row)
    chapter = in_fresh_process(chapter_peak_mb, model, device.type, num_epochs)
    return {"tables": {"peak_mb": rows}, "chapter_peak_mb": chapter}


def peaks_by_stage(
    model: str, choice: str, batch_size: int, length: int, device: torch.device
) -> dict[str, float]:
    """Peaks of a fresh process, in MB above what it held before. Raises ``Unavailable``."""
    if device.type != "cuda":
        require("psutil")
    return in_fresh_process(measure, model, choice, batch_size, length, device)


def chapter_peak_mb(model: str, device: str, num_epochs: int) -> float | None:
    """Peak of this process with all its libraries after the chapter's run."""
    config = RunConfig(
        model=model,
        weights="random",
        protocol="published",
        num_epochs=num_epochs,
        device=device,
        quiet=True,
    )
    return fine_tune(config).metrics["peak_memory_mb"]


def notes(result: dict[str, Any]) -> list[str]:
    peak = result["chapter_peak_mb"]
    whole = f"The chapter's run, with all libraries: {peak:,.0f} MB." if peak else ""
    return [f"MB above a process that has loaded PyTorch, by stage. {whole}"]


def plot(result: dict[str, Any], path: Path) -> None:
    rows = pd.DataFrame(result["tables"]["peak_mb"]).astype({"messages": str, "tokens each": str})
    rows.index = rows["trained"] + ", " + rows["messages"] + " x " + rows["tokens each"]
    size = (8, 0.6 + 0.38 * len(rows))
    ax = rows.filter(["peak", "predicted"]).plot.barh(figsize=size, color=["#e6761b", "#b0b0b0"])
    ax.set_xlabel("peak memory (MB)")
    ax.invert_yaxis()
    save_figure(ax.figure, path)
