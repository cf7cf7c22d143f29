"""Pretrain gpt-mini: train the vocabulary, then the model, from a folder of text files.

    python 01_main-chapter-code/gpt-mini/pretrain.py --corpus DIR

DIR holds `train/*.txt` and `valid.txt` in UTF-8, with a line `<|endoftext|>` after each document.
The same command runs on a CPU, in an hour, or on a GPU.
"""

import base64
import math
import startup_errors  # noqa: F401
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tiktoken
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm, trange

from command_line import add_options, config_from, make_parser, run_command
from files import save_tensors, whole_file, write_json, write_text
from gpt_download import GPT_MINI, MODEL_CONFIGS, load_mini_tokenizer
from options import AT_LEAST_1, POSITIVE, SEED, Options, option
from previous_chapters import END_OF_TEXT, GPTModel, generate, gpt2_state_dict, num_parameters
from smollm2 import bytes_of_characters
from text_classifier import pick_device

TOKENS_PER_STEP = 8192
# Most of the training reads short windows, which are cheaper; the last part reads windows of the
# whole context, so that every position is trained.
SHORT_WINDOW, SHORT_FRACTION = 128, 0.75
WARMUP_STEPS = 100
DECAY_FRACTION = 0.4  # the last part of the run, in which the learning rate falls to zero
STEPS_PER_LOSS, STEPS_PER_HELD_OUT_LOSS = 20, 200
SAMPLE_PROMPTS = ("Have you seen", "I am going to the", "Congratulations", "The old man")


@dataclass(frozen=True)
class PretrainingConfig(Options):
    corpus: Path = option(Path("corpus"), "folder with train/*.txt and valid.txt", group="data")
    output: Path = option(
        Path("pretraining"), "where the model goes; a vocabulary that is there is used", group="run"
    )
    num_tokens: int = option(22_000_000, "training tokens in all", AT_LEAST_1)
    learning_rate: float = option(4e-3, "highest learning rate", POSITIVE)
    seed: int = option(123, "initial weights and order of the data", SEED)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where to compute", group="run")
    compile: bool = option(False, "torch.compile (needs a C compiler)", group="run")


# --- Vocabulary and tokens -----------------------------------------------------------------------


def train_vocabulary(documents: list[str], vocab_size: int) -> str:
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) by the `tokenizers` library.

    Returns a file in tiktoken's format, a token a line: its bytes in base64, a space, its rank.
    The 256 bytes come first, then the merges as they were learned; `<|endoftext|>` is left out
    and takes the last id.
    """
    byte_of = bytes_of_characters()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=sorted(byte_of))
    bpe.train_from_iterator(documents, trainer)
    vocabulary = bpe.get_vocab()
    merges = [token for token in sorted(vocabulary, key=vocabulary.get) if len(token) > 1]
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes(byte_of[sign] for sign in token) for token in merges]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    return "".join(lines)


def read_documents(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [document.strip() for document in text.split(END_OF_TEXT) if document.strip()]


def encode_documents(documents: list[str], tokenizer: tiktoken.Encoding) -> Tensor:
    """All documents as one row of token ids, each ended by `<|endoftext|>`."""
    encoded = tokenizer.encode_ordinary_batch(documents)
    return torch.from_numpy(np.concatenate([[*ids, tokenizer.eot_token] for ids in encoded]))


def load_tokens(config: PretrainingConfig) -> tuple[tiktoken.Encoding, Tensor, Tensor]:
    """The tokenizer (trained if there is none yet), training tokens and held-out tokens.

    The documents of all sources are mixed: every part of an epoch resembles the whole. Raises
    ``ValueError`` unless there are a whole vocabulary, a batch of every length and a window to
    measure on.
    """
    paths, held_out = sorted((config.corpus / "train").glob("*.txt")), config.corpus / "valid.txt"
    if not paths or not held_out.exists():
        raise ValueError(f"--corpus {config.corpus} must hold train/*.txt and valid.txt.")
    documents = [document for path in paths for document in read_documents(path)]
    order = np.random.default_rng(config.seed).permutation(len(documents))
    documents = [documents[i] for i in order]
    cfg, vocabulary = MODEL_CONFIGS[GPT_MINI], config.output / "vocabulary.tiktoken"
    if not vocabulary.exists():
        write_text(train_vocabulary(documents, cfg.vocab_size), vocabulary)
    tokenizer = load_mini_tokenizer(config.output)
    train = encode_documents(documents, tokenizer)
    valid = encode_documents(read_documents(held_out), tokenizer)
    window = cfg.context_length + 1
    enough = len(train) >= TOKENS_PER_STEP + window and len(valid) >= window
    if not enough or tokenizer.n_vocab < cfg.vocab_size:
        raise ValueError(
            f"--corpus {config.corpus} is too small for {cfg.vocab_size:,} different tokens or for "
            f"a step; add text, and name a new --output, since the vocabulary is kept there."
        )
    return tokenizer, train, valid


def batches(tokens: Tensor, length: int, seed: int, first: int) -> Iterator[Tensor]:
    """Endless batches (B, length + 1) of windows in random order, from batch number `first` on.

    Each epoch shifts the grid of windows by a random amount, so that no epoch repeats another's.
    """
    batch_size = TOKENS_PER_STEP // length
    per_epoch = (len(tokens) - length - 1) // length // batch_size
    epoch, index = divmod(first, per_epoch)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch * 1009 + length)
        shift = torch.randint(length, (1,), generator=generator).item()
        starts = torch.randperm(per_epoch * batch_size, generator=generator) * length + shift
        for batch in starts.view(per_epoch, batch_size)[index:]:
            yield torch.stack([tokens[start : start + length + 1] for start in batch.tolist()])
        epoch, index = epoch + 1, 0


# --- Training ------------------------------------------------------------------------------------


def make_optimizers(model: GPTModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for everything else."""
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    return [
        torch.optim.Muon(matrices, learning_rate, **muon),
        torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, num_steps: int) -> float:
    """Warm-up, a constant part, then a linear fall to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return min(warmup, (num_steps - step) / (DECAY_FRACTION * num_steps))


def batch_loss(model: GPTModel, windows: Tensor) -> Tensor:
    """Mean cross-entropy of windows (B, T + 1) of token ids, in nats per token."""
    with torch.autocast(windows.device.type, torch.bfloat16):
        logits = model(windows[:, :-1])  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: GPTModel, tokens: Tensor, length: int) -> float:
    """Mean loss per token over the held-out text, in windows of `length` tokens."""
    windows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
    return float(np.mean([batch_loss(model, w.to(model.device)).item() for w in windows.split(1)]))


def pretrain(config: PretrainingConfig) -> None:
    """Everything from the text files to the model, its samples and its curve."""
    device = pick_device(config.device)
    if (config.output / "model.safetensors").exists():
        raise ValueError(f"{config.output} holds a model already: name another --output.")
    config.output.mkdir(parents=True, exist_ok=True)
    tokenizer, train, valid = load_tokens(config)
    torch.manual_seed(config.seed)
    model = GPTModel(MODEL_CONFIGS[GPT_MINI]).to(device)
    losses = {"steps": [], "train_loss": [], "held_out_steps": [], "held_out_loss": []}
    optimizers = make_optimizers(model, config.learning_rate)
    print(f"{num_parameters(model):,} parameters, {len(train):,} tokens, on {device}.")
    calc_loss = torch.compile(batch_loss) if config.compile else batch_loss
    num_steps = max(1, config.num_tokens // TOKENS_PER_STEP)
    start, windows, length = time.perf_counter(), None, None
    for step in trange(num_steps):
        is_short = step < SHORT_FRACTION * num_steps
        if length != (length := SHORT_WINDOW if is_short else model.cfg.context_length):
            windows = batches(train, length, config.seed, first=step)
        loss = calc_loss(model, next(windows).to(device))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            rate = config.learning_rate * learning_rate_factor(step, num_steps)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        num_done = step + 1
        if num_done % STEPS_PER_LOSS == 0:
            losses["steps"].append(num_done)
            losses["train_loss"].append(round(loss.item(), 4))
        if num_done % STEPS_PER_HELD_OUT_LOSS == 0 or num_done == num_steps:
            losses["held_out_steps"].append(num_done)
            losses["held_out_loss"].append(round(held_out_loss(model, valid, length), 4))
            tqdm.write(f"step {num_done}: held-out loss {losses['held_out_loss'][-1]:.3f}")
    seconds = round(time.perf_counter() - start)
    write_results(config, model, tokenizer, losses, num_steps * TOKENS_PER_STEP, seconds)


def write_results(
    config: PretrainingConfig,
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    losses: dict[str, list],
    num_tokens: int,
    seconds: int,
) -> None:
    """The model in fp16 under GPT-2's tensor names, and what the model card quotes."""
    tensors = {name: tensor.half() for name, tensor in gpt2_state_dict(model).items()}
    save_tensors(tensors, config.output / "model.safetensors", {"format": "pt"})
    device, samples = str(model.device), []
    model.cpu()
    for prompt in SAMPLE_PROMPTS:
        generator = torch.Generator().manual_seed(config.seed)
        ids = torch.tensor([tokenizer.encode(prompt)])
        ids = generate(model, ids, 40, 0.8, 40, tokenizer.eot_token, generator)
        samples.append(tokenizer.decode(ids[0].tolist()))
    results = {
        "parameters": num_parameters(model),
        "vocabulary": tokenizer.n_vocab,
        "tokens_seen": num_tokens,
        "seconds": seconds,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out_loss": losses["held_out_loss"][-1],
        "held_out_perplexity": round(math.exp(losses["held_out_loss"][-1]), 2),
        "samples": samples,
        "log": losses,
    }
    write_json(results, config.output / "pretraining.json")
    plot_loss_curve(losses, config.output / "loss-curve.png")


def plot_loss_curve(losses: dict[str, list], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="tight")
    ax, millions = figure.add_subplot(), TOKENS_PER_STEP / 1e6
    train, held_out = (np.multiply(losses[n], millions) for n in ("steps", "held_out_steps"))
    ax.plot(train, losses["train_loss"], lw=0.8, label="training")
    ax.plot(held_out, losses["held_out_loss"], "o-", label="held out")
    ax.set(xlabel="tokens seen (millions)", ylabel="cross-entropy (nats per token)")
    ax.set_ylim(top=7)
    ax.grid(alpha=0.3)
    ax.legend()
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(
        "pretrain.py", "Pretrain gpt-mini from a folder of text files: its vocabulary, its weights."
    )
    add_options(parser, PretrainingConfig)
    args = parser.parse_args(argv)
    return run_command(
        parser.prog, lambda: pretrain(config_from(args, PretrainingConfig)), output=args.output
    )


if __name__ == "__main__":
    sys.exit(main())
