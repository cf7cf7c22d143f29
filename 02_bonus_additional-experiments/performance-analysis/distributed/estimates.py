"""The arithmetic behind README.md's plan for 8 GPUs, 1,000 GPUs and 10^9 messages.

    python estimates.py

prints its tables. Nothing here is measured but what says so; change a constant to yours.
"""

from itertools import product

import pandas as pd

from gpt_download import MODEL_CONFIGS

NUM_MESSAGES = 10**9
# By GPT-2's tokenizer: the mean over the 5,171 different SMS messages (measured).
TOKENS_PER_MESSAGE = 22.36

# An A100 by its vendor's data sheet: 312e12 operations a second in bfloat16, of which 40% are
# assumed to be achieved; bytes a second and direction within a machine of 8, and between machines.
FLOPS = 0.4 * 312e12
NVLINK, NETWORK = 300e9, 25e9

NAMES = ("gpt2-small (124M)", "gpt2-xl (1558M)")
TIMES_SENT = {"ddp": 2, "fsdp": 3}  # gradients all-reduced; weights gathered twice, and gradients


def block_weights(cfg) -> int:
    """Entries of the blocks' matrices: 4 of D x D in attention, 2 of D x 4D behind it."""
    return 12 * cfg.n_layers * cfg.emb_dim**2


def num_weights(cfg) -> int:
    """With embeddings, but without biases and norms, which are 0.1% of them."""
    return block_weights(cfg) + (cfg.vocab_size + cfg.context_length) * cfg.emb_dim


def operations(cfg) -> float:
    """A message's forward pass: a multiplication and an addition for each entry and token.
    Attention's scores are less than 1% of that for messages this short."""
    return 2 * block_weights(cfg) * TOKENS_PER_MESSAGE


def time_row(name: str, job: str, num_passes: int) -> dict[str, str]:
    """Hours of pure computing."""
    total = num_passes * NUM_MESSAGES * operations(MODEL_CONFIGS[name])
    hours = {f"{n:,} GPU": f"{total / n / FLOPS / 3600:,.3g} h" for n in (1, 8, 1000)}
    return {"model": name, "job": job, "operations": f"{total:.2e}", **hours}


def network_row(name: str, num_gpus: int, strategy: str) -> dict[str, str]:
    """What a training step of all layers sends, around a ring, over the slowest link, and how
    large a batch pays for it: computing then takes as long as sending."""
    cfg = MODEL_CONFIGS[name]
    sent = TIMES_SENT[strategy] * 4 * num_weights(cfg) * (num_gpus - 1) / num_gpus
    seconds = sent / (NVLINK if num_gpus <= 8 else NETWORK)
    state = 16 * num_weights(cfg) / (num_gpus if strategy == "fsdp" else 1)
    return {
        "model": name,
        "GPUs": f"{num_gpus:,}",
        "strategy": strategy,
        "state a GPU": f"{state / 1e9:.3g} GB",
        "sent a step": f"{sent / 1e9:.2f} GB",
        "in": f"{1000 * seconds:.1f} ms",
        "global batch": f"{num_gpus * seconds * FLOPS / (3 * operations(cfg)):,.0f}",
    }


def tables() -> list[str]:
    jobs = (("classify", 1), ("train all layers, 1 epoch", 3))  # forward passes' worth of work
    times = [time_row(name, *job) for name, job in product(NAMES, jobs)]
    networks = [network_row(*case) for case in product(NAMES[1:], (8, 1000), TIMES_SENT)]
    return [
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
        for rows in (times, networks)
    ]


if __name__ == "__main__":
    print(*tables(), sep="\n\n")
