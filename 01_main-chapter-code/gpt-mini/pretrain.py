"""Pretrain gpt-mini: train the vocabulary, then the model, from a folder of text files.

    python 01_main-chapter-code/gpt-mini/pretrain.py --corpus DIR

DIR holds `train/*.txt` and `valid.txt` in UTF-8, with a line `<|endoftext|>` after each document.
The same command runs on a CPU or a GPU. A run that was stopped goes on from its last checkpoint.
"""

import argparse
import base64
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm

from gpt_download import MINI_FOLDER, load_mini_tokenizer
from message_files import DataError
from previous_chapters import (
    END_OF_TEXT,
    MODEL_CONFIGS,
    GPTModel,
    generate,
    gpt2_state_dict,
    load_weights_into_gpt,
    num_parameters,
    text_to_token_ids,
    token_ids_to_text,
)
from text_classifier import (
    file_sha256,
    flatten_optimizer_state,
    load_optimizer_state,
    pick_device,
    save_tensors,
    write_text,
)

TOKENS_PER_STEP = 8192
# Most of the training reads short windows, which are cheaper; the last part reads windows of the
# whole context, so that every position is trained.
SHORT_WINDOW, SHARE_SHORT = 128, 0.75
WARMUP_STEPS = 100
SHARE_DECAY = 0.4  # the last part of the run, in which the learning rate falls to zero
TOKENS_NOTE = "tokens.json"  # in --work: what the kept tokens were made of
STEPS_PER_CHECKPOINT = 200
STEPS_PER_EVALUATION = 200
SAMPLE_PROMPTS = ("Have you seen ", "I am going to the ", "Congratulations", "The old man ")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pretrain.py",
        description="Pretrain gpt-mini from a folder of text files: its vocabulary, then its "
        "weights. A run that was stopped goes on from the checkpoint in --work.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--corpus", type=Path, required=True, help="train/*.txt and valid.txt")
    parser.add_argument("--output", type=Path, default=MINI_FOLDER, help="where the model goes")
    parser.add_argument(
        "--work", type=Path, default=Path("pretraining"), help="checkpoint and token files"
    )
    parser.add_argument("--tokens", type=float, default=22e6, help="training tokens in all")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--seed", type=int, default=123, help="initial weights and data order")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C compiler)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------
# Vocabulary and tokens
# ---------------------------------------------------------------------------------------------


def read_documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]


def train_vocabulary(documents: list[str], vocab_size: int) -> list[bytes]:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) by the `tokenizers` library.

    Returns the tokens in tiktoken's order: the 256 bytes, then the merges as they were learned;
    `<|endoftext|>` is left out and takes the last id.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=alphabet)
    bpe.train_from_iterator(documents, trainer)
    ids_in_order = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    merges = [token for token, _ in ids_in_order if len(token) > 1]
    byte_of = byte_values()
    tokens = [bytes([value]) for value in range(256)]
    return tokens + [bytes(byte_of[character] for character in token) for token in merges]


def byte_values() -> dict[str, int]:
    """The printable characters that stand for the 256 bytes in GPT-2's vocabulary files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    table = {chr(value): value for value in printable}
    return table | {chr(256 + i): value for i, value in enumerate(others)}


def write_tiktoken_file(tokens: list[bytes], path: Path) -> None:
    """One line a token: its bytes in base64, a space, its rank."""
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    write_text("".join(lines), path)


def encode_documents(documents: list[str], tokenizer: tiktoken.Encoding) -> np.ndarray:
    """All documents as one array of token ids, each ended by `<|endoftext|>`."""
    ids = tokenizer.encode_ordinary_batch(documents, num_threads=os.cpu_count() or 1)
    return np.concatenate([np.array([*doc, tokenizer.eot_token], np.uint16) for doc in ids])


def mixed_documents(paths: list[Path], seed: int) -> list[str]:
    """Documents of all sources in random order: every part of an epoch resembles the whole."""
    documents = [document for path in tqdm(paths, "reading") for document in read_documents(path)]
    order = np.random.default_rng(seed).permutation(len(documents))
    return [documents[i] for i in order]


def load_tokens(args: argparse.Namespace) -> tuple[tiktoken.Encoding, Tensor, Tensor]:
    """The tokenizer (trained if there is none yet), training tokens and held-out tokens.

    The tokens are kept in `--work`, with a note of what they were made of.
    """
    paths, valid_text = sorted((args.corpus / "train").glob("*.txt")), args.corpus / "valid.txt"
    if not paths or not valid_text.exists():
        raise DataError(f"--corpus {args.corpus} must hold train/*.txt and valid.txt.")
    vocabulary = args.output / "vocabulary.tiktoken"
    if not vocabulary.exists():
        documents = mixed_documents(paths, args.seed)
        tokens = train_vocabulary(documents, MODEL_CONFIGS["gpt-mini"].vocab_size)
        write_tiktoken_file(tokens, vocabulary)
    tokenizer = load_mini_tokenizer(args.output)
    train_file, valid_file = args.work / "train.npy", args.work / "valid.npy"
    made_of = {path.name: file_sha256(path) for path in (*paths, valid_text, vocabulary)}
    text = json.dumps(made_of | {"seed": args.seed}, indent=1)
    note = args.work / TOKENS_NOTE
    if not note.exists() or note.read_text(encoding="utf-8") != text:
        note.unlink(missing_ok=True)
        np.save(train_file, encode_documents(mixed_documents(paths, args.seed), tokenizer))
        np.save(valid_file, encode_documents(read_documents(valid_text), tokenizer))
        write_text(text, note)
    train, valid = (torch.from_numpy(np.load(f).astype(np.int64)) for f in (train_file, valid_file))
    return tokenizer, train, valid


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def window_length(step: int, num_steps: int, context_length: int) -> int:
    return SHORT_WINDOW if step < SHARE_SHORT * num_steps else context_length


def batches(tokens: Tensor, length: int, seed: int, first: int) -> Iterator[Tensor]:
    """Endless batches (B, length + 1) of windows in random order, from batch number `first` on.

    Each epoch shifts the grid of windows by a random amount, so that no epoch repeats another's.
    """
    batch_size = TOKENS_PER_STEP // length
    per_epoch = (len(tokens) - length - 1) // length // batch_size
    if per_epoch < 1:
        raise ValueError(f"--corpus: {len(tokens):,} tokens are fewer than one step takes.")
    epoch, index = divmod(first, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch * 1009 + length)
        shift = torch.randint(length, (1,), generator=generator).item()
        starts = torch.randperm(per_epoch * batch_size, generator=generator) * length + shift
        for batch in starts.view(per_epoch, batch_size)[index:]:
            yield torch.stack([tokens[start : start + length + 1] for start in batch.tolist()])
        epoch, index = epoch + 1, 0


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Warm-up, a constant part, then a linear fall to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return min(warmup, (num_steps - step) / (SHARE_DECAY * num_steps))


def make_optimizers(model: GPTModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def batch_loss(model: GPTModel, windows: Tensor) -> Tensor:
    with torch.autocast(windows.device.type, torch.bfloat16):
        logits = model(windows[:, :-1])  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: GPTModel, tokens: Tensor, length: int, device: torch.device) -> float:
    """Mean loss per token over the held-out text, in windows of `length` tokens."""
    windows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
    losses = [batch_loss(model, window.to(device)).item() for window in windows.split(1)]
    return float(np.mean(losses))


def refuse_small_corpus(train: Tensor, valid: Tensor, context_length: int) -> None:
    """Raise ``DataError`` unless there is a batch of every length, and a window to measure on."""
    least = {"train/*.txt": TOKENS_PER_STEP + context_length + 1, "valid.txt": context_length + 1}
    for name, tokens in zip(least, (train, valid), strict=True):
        if len(tokens) < least[name]:
            raise DataError(
                f"{name} holds {len(tokens):,} tokens, and at least {least[name]:,} are needed; "
                f"add text, and take new folders for --output and --work, which keep vocabulary "
                f"and tokens."
            )


def pretrain(args: argparse.Namespace) -> None:
    """Everything from the text files to the model, its samples and its curve."""
    device = pick_device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer, train_tokens, valid_tokens = load_tokens(args)
    cfg = MODEL_CONFIGS["gpt-mini"]
    refuse_small_corpus(train_tokens, valid_tokens, cfg.context_length)
    num_steps = max(1, int(args.tokens) // TOKENS_PER_STEP)
    run = {  # what must be the same when it is gone on with
        "--tokens": num_steps * TOKENS_PER_STEP,
        "--learning-rate": args.learning_rate,
        "--seed": args.seed,
        "corpus or vocabulary": file_sha256(args.work / TOKENS_NOTE),
    }

    torch.manual_seed(args.seed)
    model = GPTModel(cfg).to(device)
    optimizers = make_optimizers(model, args.learning_rate)
    checkpoint = args.work / "checkpoint.safetensors"
    log = {"steps": [], "train_loss": [], "held_out_steps": [], "held_out_loss": []}
    first_step, seconds = 0, 0.0
    if checkpoint.exists():
        first_step, seconds, log = load_checkpoint(checkpoint, model, optimizers, run)
        print(f"Going on from step {first_step} of {num_steps}.")
    loss_function = torch.compile(batch_loss) if args.compile else batch_loss

    print(
        f"{num_parameters(model):,} parameters, {len(train_tokens):,} training tokens, "
        f"{num_steps} steps of {TOKENS_PER_STEP:,} tokens on {device}."
    )
    start, windows, length = time.perf_counter() - seconds, None, None
    for step in tqdm(range(first_step, num_steps), initial=first_step, total=num_steps):
        if length != (length := window_length(step, num_steps, cfg.context_length)):
            windows = batches(train_tokens, length, args.seed, first=step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * learning_rate_factor(step, num_steps)
        loss = loss_function(model, next(windows).to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            log["steps"].append(step + 1)
            log["train_loss"].append(round(loss.item(), 4))
        if (step + 1) % STEPS_PER_EVALUATION == 0 or step + 1 == num_steps:
            log["held_out_steps"].append(step + 1)
            held_out = held_out_loss(model, valid_tokens, length, device)
            log["held_out_loss"].append(round(held_out, 4))
            tqdm.write(f"step {step + 1}: held-out loss {log['held_out_loss'][-1]:.3f}")
        if (step + 1) % STEPS_PER_CHECKPOINT == 0 or step + 1 == num_steps:
            seconds = time.perf_counter() - start
            save_checkpoint(checkpoint, model, optimizers, step + 1, seconds, log, run)
    write_results(args, device, model, tokenizer, num_steps, seconds, log)


def save_checkpoint(
    path: Path, model, optimizers, step: int, seconds: float, log: dict, run: dict
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in gpt2_state_dict(model).items()}
    for i, optimizer in enumerate(optimizers):
        tensors |= flatten_optimizer_state(optimizer, f"optimizer{i}.")
    progress = json.dumps({"step": step, "seconds": seconds, "log": log, "run": run})
    save_tensors(tensors, path, {"progress": progress})


def load_checkpoint(path: Path, model, optimizers, run: dict) -> tuple[int, float, dict]:
    """Go on from a checkpoint. Raises ``DataError`` if it belongs to another run."""
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    then = progress.get("run", {})
    if changed := [name for name, value in run.items() if then.get(name) != value]:
        raise DataError(
            f"{path} is of a run with another {' and another '.join(changed)}; repeat that run's "
            f"options, or take a new folder for --work."
        )
    tensors = load_file(path)
    names = [name for name in tensors if name.startswith("model.")]
    load_weights_into_gpt(model, {name.removeprefix("model."): tensors[name] for name in names})
    for i, optimizer in enumerate(optimizers):
        load_optimizer_state(optimizer, tensors, f"optimizer{i}.")
    return progress["step"], progress["seconds"], progress["log"]


def write_results(
    args, device, model: GPTModel, tokenizer, num_steps: int, seconds: float, log
) -> None:
    """The model in fp16 under GPT-2's tensor names, and what the model card quotes."""
    tensors = {name: tensor.half().cpu() for name, tensor in gpt2_state_dict(model).items()}
    save_tensors(tensors, args.output / "model.safetensors", {"format": "pt"})
    model = model.float().cpu()
    samples = []
    for prompt in SAMPLE_PROMPTS:
        generator = torch.Generator().manual_seed(args.seed)
        ids = text_to_token_ids(prompt.strip(), tokenizer)
        ids = generate(model, ids, 40, 0.8, 40, tokenizer.eot_token, generator)
        samples.append(token_ids_to_text(ids, tokenizer))
    results = {
        "parameters": num_parameters(model),
        "vocabulary": tokenizer.n_vocab,
        "tokens_seen": num_steps * TOKENS_PER_STEP,
        "seconds": round(seconds),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out_loss": log["held_out_loss"][-1],
        "held_out_perplexity": round(math.exp(log["held_out_loss"][-1]), 2),
        "samples": samples,
        "log": log,
    }
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_text(text, args.output / "pretraining.json")
    plot_loss_curve(log, args.output / "loss-curve.png")


def plot_loss_curve(log: dict, path: Path) -> None:
    fig, ax = plt.subplots(figsize=(7, 4))
    millions = TOKENS_PER_STEP / 1e6
    ax.plot([s * millions for s in log["steps"]], log["train_loss"], lw=0.8, label="training")
    ax.plot(
        [s * millions for s in log["held_out_steps"]], log["held_out_loss"], "o-", label="held out"
    )
    ax.set_xlabel("tokens seen (millions)")
    ax.set_ylabel("cross-entropy (nats per token)")
    ax.set_ylim(top=7)
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        pretrain(args)
    except ValueError as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
