"""The README's tables, made from the raw files in results/.

    python 02_bonus_additional-experiments/performance-analysis/performance_tables.py

writes them between the marks of the README; a test checks that they are there.
"""

import re
from collections.abc import Callable
from pathlib import Path

from bench_common import RESULTS, load_result

README = Path(__file__).parent / "README.md"
WAYS = {
    "plain": "the plain way: pad to 120 tokens, attention by hand, everything at every step",
    "pad_to_longest": "+ pad to the batch's longest message",
    "group_by_length": "+ messages of similar length in a batch",
    "fused_attention": "+ fused attention",
    "compute_frozen_once": "+ frozen layers computed once",
    "last_position_only": "+ only the last position through the last block",
}


def markdown(header: tuple, rows: list[tuple]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def where(result: dict) -> str:
    """Below each table: the command and the machine."""
    return (
        f"\n\n`python {result['command']}` on {result['processor']}, {result['threads']} threads, "
        f"PyTorch {result['versions']['torch']}."
    )


def train_table(result: dict) -> str:
    rows = []
    for part, name in (("last_block", "last block"), ("all_layers", "all layers")):
        plain = result[part]["ways"][0]["seconds"]

        def row(what: str, seconds: float, name=name, plain=plain) -> tuple:
            return name, what, f"{seconds:,.0f}", f"{plain / seconds:.1f}"

        rows += [row(WAYS[way["name"]], way["seconds"]) for way in result[part]["ways"]]
        if part == "last_block":
            rows.append(row("`finetune.py`, measured in full", result["fast_seconds"]))
            rows.append(row("floor", result["floor_seconds"]))
            rows.append(row("floor without keys and values", result["lean_floor_seconds"]))
        else:
            rows.append(row("floor", result[part]["floor_seconds"]))
        if trainer := result[part]["transformers' Trainer"]:
            rows.append(row("`transformers`' Trainer, padded to the longest", trainer["seconds"]))
    return markdown(("trained", "how", "seconds", "times faster than plain"), rows) + where(result)


def infer_table(result: dict) -> str:
    rows = [
        (
            way,
            f"{figures['latency_ms']:.1f}",
            f"{figures['messages_per_second']:.1f}",
            f"{figures['largest_difference_of_probabilities']:.0e}",
        )
        for way, figures in result["ways"].items()
    ]
    rows += [(way, "-", "-", reason) for way, reason in result["not_here"].items()]
    header = ("way", "one message, ms", "messages a second", "largest difference of probabilities")
    return markdown(header, rows) + where(result)


def generate_table(result: dict) -> str:
    speeds = result["tokens_per_second"]
    lengths = list(next(iter(speeds.values())))
    rows = [(way, *(f"{speed:.1f}" for speed in by.values())) for way, by in speeds.items()]
    return markdown(("tokens a second", *(f"{n} tokens" for n in lengths)), rows) + where(result)


def memory_table(result: dict) -> str:
    rows = [
        (
            row["choice"].replace("_", " "),
            row["batch_size"],
            row["length"],
            f"{row['peak_mb']:,.0f}",
            f"{row['predicted_mb']:,.0f}",
        )
        for row in result["choices"]
    ]
    rows.append(("`finetune.py`, whole process", "", "", f"{result['chapter_peak_mb']:,.0f}", ""))
    header = ("trained", "messages in a batch", "tokens each", "peak, MB", "predicted, MB")
    return markdown(header, rows) + where(result)


def scale_table(result: dict) -> str:
    tables = []
    for section in ("length", "batch_size", "model_size", "messages", "thread_counts", "workers"):
        header = tuple(name.replace("_", " ") for name in result[section][0])
        rows = [tuple(map(number, row.values())) for row in result[section]]
        tables.append(markdown(header, rows))
    return "\n\n".join(tables) + where(result)


def number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) or value >= 1000 else f"{value:.3g}"


def quantize_table(result: dict) -> str:
    rows = []
    for way, figures in result["ways"].items():
        low, high = figures["accuracy_interval"]
        rows.append(
            (
                way,
                f"{figures['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
                figures["changed_labels"],
                f"{figures['mini_mb']:.1f}",
                f"{figures['shape_mb']:.0f}",
                f"{figures['messages_per_second']:.1f}",
            )
        )
    header = (
        "weights",
        f"test accuracy, n={result['test_messages']}",
        "changed labels",
        "gpt-mini, MB",
        f"{result['model']}, MB",
        "its messages a second",
    )
    return markdown(header, rows) + where(result)


TABLES: dict[str, Callable[[dict], str]] = {
    "train": train_table,
    "infer": infer_table,
    "generate": generate_table,
    "memory": memory_table,
    "scale": scale_table,
    "quantize": quantize_table,
}


def updated_readme() -> str:
    """The README with each table as the raw file gives it now."""
    text = README.read_text(encoding="utf-8")
    for name, make_table in TABLES.items():
        path = RESULTS / f"{name}.json"
        made = "Not measured yet."
        if path.exists() and "command" in (result := load_result(name)):
            made = make_table(result)
        pattern = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        if not re.search(pattern, text, re.DOTALL):
            raise ValueError(f"{README.name} has no place for the table {name!r}.")
        text = re.sub(pattern, lambda match: match[1] + made + match[2], text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    README.write_text(updated_readme(), encoding="utf-8")
