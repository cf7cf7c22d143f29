"""Generating text: tokens a second with and without a key-value cache."""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import Table, interleave, machine, reasons, try_each
from hugging_face import hugging_face_generator

from finetune import COUNT
from gpt_download import resolve_model_name
from previous_chapters import MODEL_CONFIGS, GPTModel, generate

Generate = Callable[[int], torch.Tensor]  # number of new tokens -> token ids, the prompt's too


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--prompt", type=COUNT, default=16, help="tokens given")
    parser.add_argument(
        "--tokens", type=COUNT, nargs="+", default=[16, 64, 128], help="tokens generated"
    )
    parser.add_argument("--repetitions", type=COUNT, default=3, help="rounds; the median counts")


def run(args: argparse.Namespace) -> dict:
    name = resolve_model_name(args.model)
    cfg = MODEL_CONFIGS[name]
    if args.prompt + max(args.tokens) > cfg.context_length:
        raise ValueError(
            f"--prompt {args.prompt} and --tokens {max(args.tokens)} are more than the context of "
            f"{cfg.context_length} tokens, beyond which no cache helps; choose fewer."
        )
    torch.manual_seed(0)
    model = GPTModel(cfg).to(args.device).eval()
    prompt = torch.randint(cfg.vocab_size - 1, (1, args.prompt), device=args.device)
    makers = {
        "with cache": lambda: lambda n: generate(model, prompt, n),
        "without cache": lambda: lambda n: generate(model, prompt, n, use_cache=False),
        "transformers, with cache": lambda: transformers_generate(model, prompt),
    }
    # The first calls say whether the tokens are the same, and are each way's warm-up.
    ways, made, not_here = try_each(makers, lambda way: way(max(args.tokens))[0])
    functions = {
        f"{way}, {n}": lambda make=make, n=n: make(n)
        for n in args.tokens
        for way, make in ways.items()
    }
    rounds = interleave(functions, args.repetitions, args.device, warm_up=False)
    return {
        "model": name,
        "weights": "random",
        "prompt_tokens": args.prompt,
        "tokens_per_second": {
            way: {str(n): n / statistics.median(rounds[f"{way}, {n}"]) for n in args.tokens}
            for way in ways
        },
        "tokens_compared": max(args.tokens),
        "tokens_as_with_cache": {
            way: num_equal(tokens, made["with cache"]) - args.prompt for way, tokens in made.items()
        },
        "repetitions": args.repetitions,
        "not_here": not_here,
        "rounds": rounds,
        **machine(args.device),
    }


def num_equal(tokens: torch.Tensor, expected: torch.Tensor) -> int:
    """How many tokens (T,), from the first on, are the expected ones.

    >>> num_equal(torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6, 0, 8]))
    2
    """
    return int((tokens == expected).cumprod(dim=0).sum())


def transformers_generate(model: GPTModel, prompt: torch.Tensor) -> Generate:
    """Greedy generation by `transformers` on the same weights, never ending early."""
    twin, mask = hugging_face_generator(model), torch.ones_like(prompt)
    return lambda n: twin.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        pad_token_id=twin.config.pad_token_id,
    )


def tables(result: dict) -> list[Table]:
    speeds = result["tokens_per_second"]
    lengths = list(next(iter(speeds.values())))
    num = result["tokens_compared"]
    rows = [
        (way, *(f"{speed:.1f}" for speed in by.values()), result["tokens_as_with_cache"][way])
        for way, by in speeds.items()
    ]
    header = ("tokens a second", *(f"{n} tokens" for n in lengths), f"same as with cache, of {num}")
    note = (
        f"Shape: {result['model']}, prompt of {result['prompt_tokens']} tokens; median of "
        f"{result['repetitions']} rounds. Last column: how many of the tokens, from the first on, "
        f"are those that are generated with a cache."
    )
    return [Table(header, rows, [note, *reasons(result["not_here"])])]


def plot(result: dict, folder: Path) -> None:
    fig, ax = plt.subplots(figsize=(6, 3.8))
    for way, speeds in result["tokens_per_second"].items():
        ax.plot([int(n) for n in speeds], list(speeds.values()), "o-", label=way)
    ax.set(xlabel="tokens generated", ylabel="tokens a second", ylim=(0, None))
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    fig.savefig(folder / "generate.png", dpi=120)
    plt.close(fig)
