"""Generating text: tokens a second with and without a key-value cache."""

import argparse
import statistics
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from bench_common import format_table, interleave, machine

from finetune import COUNT
from gpt_download import resolve_model_name
from previous_chapters import MODEL_CONFIGS, GPTModel, generate, gpt2_state_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
    parser.add_argument("--prompt", type=COUNT, default=16, help="tokens given")
    parser.add_argument(
        "--tokens", type=COUNT, nargs="+", default=[16, 64, 128], help="tokens generated"
    )
    parser.add_argument("--repetitions", type=COUNT, default=2, help="rounds; the median counts")


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
    ways = {
        "with cache": lambda n: generate(model, prompt, n),
        "without cache": lambda n: generate(model, prompt, n, use_cache=False),
    }
    if find_spec("transformers"):
        ways["transformers, with cache"] = transformers_generate(model, prompt)
    same = {n: torch.equal(ways["with cache"](n), ways["without cache"](n)) for n in args.tokens}
    functions = {
        f"{way}, {n}": lambda _, make=make, n=n: make(n)
        for n in args.tokens
        for way, make in ways.items()
    }
    seconds = interleave(functions, args.repetitions, args.device)
    return {
        "model": name,
        "weights": "random",
        "prompt_tokens": args.prompt,
        "tokens_per_second": {
            way: {str(n): n / statistics.median(seconds[f"{way}, {n}"]) for n in args.tokens}
            for way in ways
        },
        "same_tokens_with_and_without_cache": all(same.values()),
        "repetitions": args.repetitions,
        **machine(args.device),
    }


def transformers_generate(model: GPTModel, prompt: torch.Tensor):
    """Greedy generation by `transformers` on the same weights, never ending early."""
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = model.cfg
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=cfg.vocab_size,
            n_positions=cfg.context_length,
            n_embd=cfg.emb_dim,
            n_layer=cfg.num_layers,
            n_head=cfg.num_heads,
            bos_token_id=cfg.vocab_size - 1,
            eos_token_id=cfg.vocab_size - 1,
        )
    ).to(prompt.device)
    twin.transformer.load_state_dict(gpt2_state_dict(model), strict=False)
    twin.tie_weights()
    twin.eval()
    mask = torch.ones_like(prompt)
    return lambda n: twin.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        pad_token_id=cfg.vocab_size - 1,
    )


def table(result: dict) -> str:
    speeds = result["tokens_per_second"]
    lengths = list(next(iter(speeds.values())))
    rows = [(way, *(f"{speed:.1f}" for speed in by.values())) for way, by in speeds.items()]
    same = "the same" if result["same_tokens_with_and_without_cache"] else "DIFFERENT"
    return "\n".join(
        [
            f"{result['model']}, {result['threads']} threads, prompt of "
            f"{result['prompt_tokens']} tokens; tokens with and without cache are {same}",
            format_table(rows, ("tokens a second", *(f"{n} tokens" for n in lengths))),
        ]
    )


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
