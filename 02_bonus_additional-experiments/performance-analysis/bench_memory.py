"""Peak memory by stage and by choice, measured in fresh processes and predicted by a formula."""

import argparse
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import NotHere, Table, machine, run_fresh
from measure_memory import CHOICES
from tqdm import tqdm

from finetune import COUNT
from gpt_download import resolve_model_name
from lora import add_lora
from previous_chapters import MODEL_CONFIGS, GPTConfig, GPTModel, num_parameters
from text_classifier import add_classification_head, freeze_all_but

FLOAT = 4  # bytes
ADAM = 2  # numbers that AdamW keeps for each trained parameter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument(
        "--choices",
        nargs="+",
        choices=CHOICES,
        default=list(CHOICES),
        help="what is trained, and how",
    )
    parser.add_argument(
        "--batch-sizes", type=COUNT, nargs="+", default=[1, 8, 32], help="messages, at 120 tokens"
    )
    parser.add_argument(
        "--lengths", type=COUNT, nargs="+", default=[30, 240, 480], help="tokens, in batches of 8"
    )
    parser.add_argument(
        "--epochs",
        type=COUNT,
        default=1,
        help="of the chapter's run; its peak hardly depends on it",
    )


# ---------------------------------------------------------------------------------------------
# The formula
# ---------------------------------------------------------------------------------------------


def count_parameters(cfg: GPTConfig, choice: str) -> tuple[int, int]:
    """All parameters, and the trained ones."""
    with torch.device("meta"):
        model = GPTModel(cfg)
    add_classification_head(model, 2)
    if choice.startswith("inference"):
        model.requires_grad_(False)
    elif choice == "lora":
        freeze_all_but(model, "head")
        add_lora(model, rank=8, alpha=16)
    else:
        freeze_all_but(model, choice if choice in ("head", "last_block") else "all")
    return num_parameters(model), num_parameters(model, trainable_only=True)


def kept_numbers_per_token(cfg: GPTConfig, choice: str) -> float:
    """Numbers that the forward pass keeps of each token for the backward pass.

    A block keeps its input, the first norm's output, queries, keys, values, the context, the sum
    before the second norm and that norm's output (8 D), and the feed-forward network's 4 D before
    and after its activation: 16 D. LoRA adds nothing that counts: R numbers a layer. The last
    block, for one position, keeps its input and the norm's output, 2 D; with LoRA keys and values
    too, 4 D, since its adapted layers are computed for every token.
    """
    others = cfg.num_layers - 1
    blocks_of_16 = {"all": others, "lora": others, "checkpointing": 1}.get(choice, 0)
    in_last_block = {"last_block": 2, "all": 2, "lora": 4}.get(choice, 0)
    kept = (16 * blocks_of_16 + in_last_block) * cfg.emb_dim
    if choice == "checkpointing":
        kept += cfg.num_layers * cfg.emb_dim  # each block's input
    return kept


def predict_mb(cfg: GPTConfig, choice: str, batch_size: int, length: int) -> float:
    """Weights, AdamW's state, and the larger of what is kept and of the gradients: while the
    backward pass makes the gradients, it lets go of what was kept.

    Blocks without a backward pass keep nothing, and their largest moment is in a feed-forward
    network: the block's input, what attention adds to it, their sum, the norm's output, and 4 D
    before and after the activation: 12 D. Attention by hand has another one, with two matrices of
    T x T numbers a head at a time (scores and masked scores, say) beside input, norm, queries, keys
    and values.
    """
    parameters, trained = count_parameters(cfg, choice)
    tokens = batch_size * length
    passing = 12 * cfg.emb_dim * tokens
    if choice == "inference_by_hand":
        in_attention = 2 * cfg.num_heads * batch_size * length**2 + 5 * cfg.emb_dim * tokens
        passing = max(passing, in_attention)
    kept = kept_numbers_per_token(cfg, choice) * tokens
    return FLOAT * (parameters + ADAM * trained + max(kept, trained, passing)) / 1e6


# ---------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    cfg = MODEL_CONFIGS[name]
    if max(*args.lengths, 120) > cfg.context_length:
        raise ValueError(f"--lengths: {name} reads {cfg.context_length} tokens at most.")
    settings = [(choice, 8, 120) for choice in args.choices]
    settings += [("all", batch_size, 120) for batch_size in args.batch_sizes if batch_size != 8]
    settings += [("all", 8, length) for length in args.lengths if length != 120]
    rows = []
    for choice, batch_size, length in tqdm(settings, "choices"):
        stages = peaks_by_stage(name, choice, batch_size, length, args.device)
        rows.append(
            {
                "choice": choice,
                "batch_size": batch_size,
                "length": length,
                "stages_mb": stages,
                "peak_mb": max(stages.values()),
                "predicted_mb": predict_mb(cfg, choice, batch_size, length),
            }
        )
    return {
        "model": name,
        "weights": "random",
        "choices": rows,
        "chapter_peak_mb": chapter_peak_mb(name, args),
        **machine(args.device),
    }


def peaks_by_stage(
    model_name: str, choice: str, batch_size: int, length: int, device: torch.device
) -> dict[str, float]:
    """Peaks of a fresh process, in MB above what it held before the model. Raises ``NotHere``."""
    if device.type != "cuda" and find_spec("psutil") is None:
        raise NotHere("psutil is not installed")
    options = ["--batch-size", str(batch_size), "--length", str(length), "--device", device.type]
    return json.loads(run_fresh("measure_memory.py", model_name, choice, *options))


def chapter_peak_mb(name: str, args: argparse.Namespace) -> float | None:
    """Peak of `finetune.py` on the published split, as a whole process with all its libraries."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--model", name, "--weights", "random", "--protocol", "published", "--quiet"]
        arguments += ["--epochs", str(args.epochs), "--output", folder]
        arguments += ["--device", args.device.type]
        run_fresh("../../01_main-chapter-code/finetune.py", *arguments)
        return json.loads((Path(folder) / "metrics.json").read_text())["peak_memory_mb"]


STAGES = ("model", "frozen layers", "forward", "backward", "update")


def tables(result: dict) -> list[Table]:
    rows = []
    for row in result["choices"]:
        stages = row["stages_mb"]
        rows.append(
            (
                row["choice"].replace("_", " "),
                row["batch_size"],
                row["length"],
                *(f"{stages[stage]:,.0f}" if stage in stages else "-" for stage in STAGES),
                f"{row['peak_mb']:,.0f}",
                f"{row['predicted_mb']:,.0f}",
            )
        )
    header = ("trained", "messages", "tokens each", *STAGES, "peak", "predicted")
    notes = [f"Shape: {result['model']}. MB above a process that has loaded PyTorch, by stage."]
    if chapter := result["chapter_peak_mb"]:
        notes.append(
            f"`finetune.py` takes {chapter:,.0f} MB, the whole process with its libraries."
        )
    return [Table(header, rows, notes)]


def plot(result: dict, folder: Path) -> None:
    rows = result["choices"]
    names = [f"{row['choice']}, {row['batch_size']} x {row['length']}" for row in rows]
    places = range(len(rows))
    fig, ax = plt.subplots(figsize=(8, 0.6 + 0.38 * len(rows)))
    ax.barh([i - 0.2 for i in places], [row["peak_mb"] for row in rows], 0.4, label="measured")
    predicted = [row["predicted_mb"] for row in rows]
    ax.barh([i + 0.2 for i in places], predicted, 0.4, label="predicted", color="#b0b0b0")
    ax.set_yticks(list(places), names)
    ax.set_xlabel("peak memory (MB)")
    ax.invert_yaxis()
    ax.legend()
    fig.tight_layout()
    fig.savefig(folder / "memory.png", dpi=120)
    plt.close(fig)
