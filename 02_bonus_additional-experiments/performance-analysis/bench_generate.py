"""Generating text: tokens a second with and without a key-value cache."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from bench_common import save_figure, time_in_turns, try_each, unavailable_notes
from hugging_face import hugging_face_generator

from gpt_download import MODEL_CONFIGS, build_decoder
from previous_chapters import Decoder, generate

OPTIONS = {
    "prompt": (16, "tokens given"),
    "tokens": ([16, 64, 128], "tokens generated"),
    "repetitions": (3, "rounds; the median counts"),
}


def run(
    model: str, device: torch.device, prompt: int, tokens: list[int], repetitions: int
) -> dict[str, Any]:
    cfg, most = MODEL_CONFIGS[model], max(tokens)
    if prompt + most > cfg.context_length:
        raise ValueError(
            f"--prompt {prompt} and --tokens {most} are more than the context of "
            f"{cfg.context_length} tokens, beyond which no cache helps; choose fewer."
        )
    torch.manual_seed(0)
    decoder = build_decoder(cfg).to(device).eval()
    given = torch.randint(1, cfg.vocab_size - 1, (1, prompt), device=device)
    makers = {
        "with cache": lambda: lambda n: generate(decoder, given, n),
        "without cache": lambda: lambda n: generate(decoder, given, n, use_cache=False),
        "transformers, with cache": lambda: transformers_generate(decoder, given),
    }
    # The first calls say whether the tokens are the same, and are each way's warm-up.
    ways, made, unavailable = try_each(makers, lambda way: way(most)[0])
    functions = {
        f"{way}, {n}": lambda make=make, n=n: make(n) for n in tokens for way, make in ways.items()
    }
    rounds = time_in_turns(functions, repetitions, device, warm_up=False)
    rows = [
        {
            "tokens a second": way,
            **{f"{n} tokens": n / median(rounds[f"{way}, {n}"]) for n in tokens},
            f"same as with cache, of {most}": num_equal(made[way], made["with cache"]) - prompt,
        }
        for way in ways
    ]
    return {"tables": {"ways": rows}, "unavailable": unavailable, "rounds": rounds}


def num_equal(tokens: torch.Tensor, expected: torch.Tensor) -> int:
    """How many tokens (T,), from the first on, are the expected ones.

    >>> num_equal(torch.tensor([5, 6, 7, 8]), torch.tensor([5, 6, 0, 8]))
    2
    """
    return int((tokens == expected).cumprod(dim=0).sum())


def transformers_generate(decoder: Decoder, prompt: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Greedy generation by `transformers` on the same weights, never ending early."""
    twin, mask = hugging_face_generator(decoder), torch.ones_like(prompt)
    twin.generation_config.eos_token_id = None
    return lambda n: twin.generate(
        prompt, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
    )


def notes(result: dict[str, Any]) -> list[str]:
    return [
        f"Prompt of {result['options']['prompt']} tokens.",
        *unavailable_notes(result["unavailable"]),
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    speeds = pd.DataFrame(result["tables"]["ways"]).set_index("tokens a second").iloc[:, :-1].T
    speeds.index = [int(name.split()[0]) for name in speeds.index]
    ax = speeds.plot(style="o-", figsize=(6, 3.8), grid=True, ylim=(0, None))
    ax.set(xlabel="tokens generated", ylabel="tokens a second")
    ax.legend(title=None)
    save_figure(ax.figure, path)
