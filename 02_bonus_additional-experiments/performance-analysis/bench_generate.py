"""Generating text: tokens a second with and without a key-value cache."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import bench_common as bench
import torch
from hugging_face import hugging_face_generator

from gpt_download import MODEL_CONFIGS, build_decoder
from previous_chapters import Decoder, generate

OPTIONS = {
    "prompt": (16, "tokens given"),
    "tokens": ([16, 64, 128], "tokens generated"),
    "repetitions": (3, "rounds; the median counts"),
}


def transformers_generate(decoder: Decoder, prompt: torch.Tensor) -> Callable[[int], torch.Tensor]:
    """Greedy generation by `transformers` on the same weights, never ending early."""
    twin, mask = hugging_face_generator(decoder), torch.ones_like(prompt)
    twin.generation_config.eos_token_id = None
    return lambda n: twin.generate(
        prompt, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False
    )


def num_equal(tokens: torch.Tensor, expected: torch.Tensor) -> int:
    """How many tokens (T,), from the first on, are the expected ones."""
    return int((tokens == expected).cumprod(dim=0).sum())


def run(
    model: str, device: torch.device, prompt: int, tokens: list[int], repetitions: int
) -> dict[str, Any]:
    cfg, most = MODEL_CONFIGS[model], max(tokens)
    torch.manual_seed(0)
    decoder = build_decoder(cfg).to(device).eval()
    given = torch.randint(1, cfg.vocab_size - 1, (1, prompt), device=device)
    makers = {
        "with cache": lambda: partial(generate, decoder, given),
        "without cache": lambda: partial(generate, decoder, given, use_cache=False),
        "transformers, with cache": lambda: transformers_generate(decoder, given),
    }
    ways, made, unavailable = bench.try_each(makers, lambda way: way(most)[0])
    functions = {f"{name}, {n}": partial(way, n) for n in tokens for name, way in ways.items()}
    rounds = bench.time_in_turns(functions, repetitions)
    rows = [
        {
            "tokens a second": way,
            **{f"{n} tokens": n / median(rounds[f"{way}, {n}"]) for n in tokens},
            f"same as with cache, of {most}": num_equal(made[way], made["with cache"]) - prompt,
        }
        for way in ways
    ]
    result = {"tables": {"ways": rows}, "notes": [f"Prompt of {prompt} tokens."]}
    return result | {"unavailable": unavailable, "rounds": rounds}


def plot(result: dict[str, Any], path) -> None:
    bench.plot_bars(result, path, [f"{n} tokens" for n in result["options"]["tokens"]])
