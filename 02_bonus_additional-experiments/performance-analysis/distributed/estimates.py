"""The arithmetic behind README.md's page on 8 GPUs, 1,000 GPUs and 10^9 messages.

    python estimates.py

prints its tables. Nothing here is measured but what says so; change a constant to yours.
"""

import argparse
from dataclasses import dataclass

from gpt_download import MODEL_CONFIGS
from previous_chapters import GPTConfig

NUM_MESSAGES = 10**9
# Means over the 5,171 different messages of the SMS Spam Collection (measured):
TOKENS_PER_MESSAGE = 22.36  # by GPT-2's tokenizer
BYTES_PER_MESSAGE = 79.46  # in UTF-8

# An A100's figures by its vendor's data sheet; the share of the peak that is reached is assumed.
PEAK_FLOPS = 312e12  # operations a second, bfloat16
UTILISATION = 0.4
NVLINK_BYTES = 300e9  # a second and direction, between the GPUs of one machine
NETWORK_BYTES = 25e9  # a second and GPU, between machines: 200 Gbit/s
GPUS_PER_MACHINE = 8
# 419 unexpected interruptions in 54 days on 16,384 GPUs (Grattafiori et al. 2024, "The Llama 3
# Herd of Models", section 3.3.4).
GPU_HOURS_PER_FAILURE = 54 * 24 * 16384 / 419

SHAPES = ("gpt2-small (124M)", "gpt2-xl (1558M)")


@dataclass(frozen=True)
class Model:
    """What the estimates need of a shape.

    >>> small = Model(MODEL_CONFIGS["gpt2-small (124M)"])
    >>> small.block_weights, small.parameters
    (84934656, 124318464)
    """

    cfg: GPTConfig

    @property
    def block_weights(self) -> int:
        """Entries of the blocks' matrices: 4 of D x D in attention, 2 of D x 4D behind it."""
        return 12 * self.cfg.num_layers * self.cfg.emb_dim**2

    @property
    def parameters(self) -> int:
        """With embeddings, but without biases and norms, which are 0.1% of them."""
        return (
            self.block_weights + (self.cfg.vocab_size + self.cfg.context_length) * self.cfg.emb_dim
        )

    @property
    def flops_per_message(self) -> float:
        """Forward: a multiplication and an addition for each entry and token. Attention's scores,
        4 L D T operations a token, are less than 1% of that for messages this short."""
        return 2 * self.block_weights * TOKENS_PER_MESSAGE


def hours(flops: float, num_gpus: int) -> float:
    """On GPUs that are kept busy.

    >>> round(hours(312e12 * 0.4 * 3600 * 8, num_gpus=8), 6)
    1.0
    """
    return flops / (num_gpus * PEAK_FLOPS * UTILISATION) / 3600


def bytes_sent(num_bytes: float, num_gpus: int, times: int) -> float:
    """By each GPU, in a ring: every collective passes on all shares but its own.

    `times` is 2 for DDP's all-reduce (a reduce-scatter and an all-gather), 3 for FSDP2 (weights
    gathered for the forward and the backward pass, gradients scattered).

    >>> bytes_sent(800, num_gpus=8, times=2)
    1400.0
    """
    return times * num_bytes * (num_gpus - 1) / num_gpus


def seconds_to_send(num_bytes: float, num_gpus: int, times: int) -> float:
    """At the speed of the slowest link of the ring."""
    speed = NVLINK_BYTES if num_gpus <= GPUS_PER_MACHINE else NETWORK_BYTES
    return bytes_sent(num_bytes, num_gpus, times) / speed


def messages_to_hide(model: Model, num_gpus: int, times: int) -> float:
    """Messages a GPU must work on in a step for its computing to take as long as its sending."""
    seconds = seconds_to_send(4 * model.parameters, num_gpus, times)
    return seconds * PEAK_FLOPS * UTILISATION / (3 * model.flops_per_message)


def storage_table() -> str:
    """What 10^9 messages take on disks."""
    small = MODEL_CONFIGS[SHAPES[0]]
    tokens = NUM_MESSAGES * TOKENS_PER_MESSAGE
    rows = [
        ("tokens", "messages x 22.36", f"{tokens / 1e9:.2f} x 10^9"),
        ("text", "messages x 79.46 bytes", f"{NUM_MESSAGES * BYTES_PER_MESSAGE / 1e9:.1f} GB"),
        ("token ids", "tokens x 2 bytes (50,257 < 2^16)", f"{2 * tokens / 1e9:.1f} GB"),
        (
            "answers",
            "messages x (4 + 4) bytes: label, probability",
            f"{8e-9 * NUM_MESSAGES:.1f} GB",
        ),
        (
            "frozen layers' output, small",
            "tokens x 768 x 4 bytes",
            f"{4 * tokens * small.emb_dim / 1e12:.1f} TB",
        ),
    ]
    return table(("what", "how", "size"), rows)


def time_table() -> str:
    """Hours of pure computing."""
    rows = []
    for name in SHAPES:
        model = Model(MODEL_CONFIGS[name])
        forward = NUM_MESSAGES * model.flops_per_message
        for job, flops in (("classify", forward), ("train all layers, 1 epoch", 3 * forward)):
            times = (f"{hours(flops, n):,.3g} h" for n in (1, 8, 1000))
            rows.append((name, job, f"{flops:.2e}", *times))
    return table(("shape", "job", "operations", "1 GPU", "8 GPUs", "1,000 GPUs"), rows)


def network_table() -> str:
    """What a training step of all layers sends, and how large a batch pays for it."""
    rows = []
    for name in SHAPES:
        model = Model(MODEL_CONFIGS[name])
        for num_gpus in (8, 1000):
            for strategy, times in (("ddp", 2), ("fsdp", 3)):
                sent = bytes_sent(4 * model.parameters, num_gpus, times)
                seconds = seconds_to_send(4 * model.parameters, num_gpus, times)
                batch = messages_to_hide(model, num_gpus, times)
                memory = 16 * model.parameters / (num_gpus if strategy == "fsdp" else 1)
                rows.append(
                    (
                        name,
                        f"{num_gpus:,}",
                        strategy,
                        f"{memory / 1e9:.3g} GB",
                        f"{sent / 1e9:.2f} GB",
                        f"{1000 * seconds:.1f} ms",
                        f"{batch:,.0f}",
                        f"{batch * num_gpus:,.0f}",
                    )
                )
    columns = ("shape", "GPUs", "strategy", "state a GPU", "sent a step and GPU", "that takes")
    return table((*columns, "messages a GPU to hide it", "global batch"), rows)


def failure_table() -> str:
    """How often a GPU, its machine or its network fails."""
    rows = [(f"{n:,}", f"{GPU_HOURS_PER_FAILURE / n:,.0f} h") for n in (8, 1000)]
    return table(("GPUs", "mean time between failures"), rows)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="estimates.py", description="Print the tables of estimates of README.md."
    ).parse_args(argv)
    print("\n\n".join(make() for make in (storage_table, time_table, network_table, failure_table)))
    return 0


if __name__ == "__main__":
    main()
