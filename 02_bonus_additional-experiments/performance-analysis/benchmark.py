"""Where time and memory go when a GPT is fine-tuned and used, measured on this very machine.

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train --plot

Each sub-command prints its tables and writes its figures, those of every round too, as JSON into
`--output`, with `--plot` also as pictures. README.md says which figures took turns in one process.
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
from bench_common import NotHere, as_text, load_average, save_result

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


def run_command(argv: list[str], load: float | None) -> None:
    """Measure, save and show one sub-command; `load` is what other programs took before."""
    args = parse_args(argv)
    module, _ = COMMANDS[args.command]
    args.device = pick_device(args.device)
    start = {"command": " ".join(["benchmark.py", *argv]), "load_average_at_start": load}
    result = start | module.run(args)
    save_result(result, args.output, args.command)
    print("\n\n".join(map(as_text, module.tables(result))), flush=True)
    if args.plot:
        module.plot(result, args.output)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    load = load_average()  # once: later, what was measured before would be counted
    try:
        for name in COMMANDS if args.command == "all" else [args.command]:
            try:
                run_command([name, *argv[1:]], load)
            except NotHere as reason:
                print(f"benchmark.py {name}: not here, {reason}", file=sys.stderr)
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
