"""Where time and memory go when a GPT is fine-tuned and used, measured on this very machine.

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train --plot

Each sub-command prints a table and writes its figures as JSON into `--output`, with `--plot` also
as pictures. What is compared takes turns in one process; medians over the rounds count.
"""

import argparse
import sys
from pathlib import Path

import bench_generate
import bench_infer
import bench_memory
import bench_quantize
import bench_scale
import bench_train
import matplotlib
from bench_common import save_result

from gpt_download import DownloadError
from text_classifier import pick_device

COMMANDS = {
    "train": (bench_train, "training: the plain way, each improvement, the floor, the Trainer"),
    "infer": (bench_infer, "classifying: latency of one message, throughput of many"),
    "generate": (bench_generate, "generating text with and without a key-value cache"),
    "memory": (bench_memory, "peak memory by stage and by choice, measured and predicted"),
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
            name,
            help=text,
            description=text,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
        add_common_arguments(command)
    everything = commands.add_parser(
        "all",
        help="all of them, as the README's figures were made",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_common_arguments(everything)
    return parser.parse_args(argv)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for JSON")
    parser.add_argument("--plot", action="store_true", help="also write pictures")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="where to compute"
    )


def run_command(argv: list[str]) -> None:
    args = parse_args(argv)
    module, _ = COMMANDS[args.command]
    args.device = pick_device(args.device)
    result = {"command": " ".join(["benchmark.py", *argv])} | module.run(args)
    save_result(result, args.output, args.command)
    print(module.table(result), flush=True)
    if args.plot:
        module.plot(result, args.output)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    names = COMMANDS if args.command == "all" else [args.command]
    try:
        for name in names:
            run_command([name, *argv[1:]])
    except ValueError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, RuntimeError, OSError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
