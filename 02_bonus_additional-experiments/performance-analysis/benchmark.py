"""Where time and memory go when a GPT is fine-tuned and used, measured on this very machine.

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train --plot

Each sub-command prints its tables and writes all that was measured, every round of it, as JSON
into `--output`, with `--plot` also as a picture.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import bench_generate
import bench_infer
import bench_memory
import bench_quantize
import bench_scale
import bench_train
import matplotlib
from bench_common import Unavailable, machine, tables_as_text

from command_line import HelpFormatter, run_command
from files import write_json
from gpt_download import resolve_model_name
from text_classifier import pick_device

COMMANDS = {
    "train": (bench_train, "training: the plain way, each improvement, the lower bound, a rival"),
    "infer": (bench_infer, "classifying: latency of one message, throughput of many"),
    "generate": (bench_generate, "generating text with and without a key-value cache"),
    "memory": (bench_memory, "peak memory by stage and by what is trained, and predicted"),
    "scale": (bench_scale, "time and memory against length, batch, model, messages, threads"),
    "quantize": (bench_quantize, "fewer bits a weight: size, speed, accuracy"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description="Measure the speed and memory of the chapter's code."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=HelpFormatter
        )
        command.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
        for option, (default, about) in module.OPTIONS.items():
            add_option(command, option, default, about)
        add_common_arguments(command)
    text = "all of them, as the README's tables were made"
    add_common_arguments(commands.add_parser("all", help=text, description=text))
    return parser.parse_args(argv)


def add_option(parser: argparse.ArgumentParser, name: str, default: Any, about: str) -> None:
    """One number or text, or several where the default is a list."""
    several = isinstance(default, list)
    first = default[0] if several else default

    def number(text: str) -> int:
        if int(text) < min(1, first):
            raise argparse.ArgumentTypeError(f"{text} must be at least {min(1, first)}")
        return int(text)

    kind = number if isinstance(first, int) else str
    flag, nargs = "--" + name.replace("_", "-"), "+" if several else None
    parser.add_argument(flag, type=kind, nargs=nargs, default=default, help=about)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for JSON")
    parser.add_argument("--plot", action="store_true", help="also write pictures")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute"
    )


def measure(argv: list[str]) -> None:
    """Measure, save and show one sub-command."""
    options = vars(parse_args(argv))
    command, output, plot = (options.pop(name) for name in ("command", "output", "plot"))
    module, _ = COMMANDS[command]
    options["model"] = resolve_model_name(options["model"])
    device = pick_device(options.pop("device"))
    result = {"command": " ".join(["benchmark.py", *argv]), "options": options}
    result |= machine(device)
    try:
        result |= module.run(device=device, **options)
    except Unavailable as reason:
        print(f"benchmark.py {command}: unavailable, {reason}", file=sys.stderr)
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(result, output / f"{command}.json")
    print(tables_as_text(result, module.notes(result)), flush=True)
    if plot:
        module.plot(result, output / f"{command}.png")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = parse_args(argv).command

    def measure_all() -> None:
        for name in COMMANDS if command == "all" else [command]:
            measure([name, *argv[1:]])

    return run_command("benchmark.py", measure_all)


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
