"""Where time and memory go when a GPT is fine-tuned and used, measured on this very machine.

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train --plot

Each sub-command prints its tables and writes all that was measured, every round of it, as JSON
into `--output`.
"""

import argparse
import ctrl_c  # noqa: F401
import inspect
import sys
from pathlib import Path

import bench_generate
import bench_infer
import bench_memory
import bench_quantize
import bench_scale
import bench_train
import matplotlib
from bench_common import as_markdown, machine

from command_line import HelpFormatter, make_parser, run_command
from files import write_json
from gpt_download import resolve_model_name
from text_classifier import pick_device

# Each module has `run(model, device, **options)`, whose parameters are the command's options.
COMMANDS = {
    "train": (bench_train, "training: the plain way, each improvement, the lower bound, a rival"),
    "infer": (bench_infer, "classifying: latency of one message, throughput of many"),
    "generate": (bench_generate, "generating text with and without a key-value cache"),
    "memory": (bench_memory, "peak memory by stage and by what is trained, and predicted"),
    "scale": (bench_scale, "time and memory against length, batch, model, messages, threads"),
    "quantize": (bench_quantize, "fewer bits a weight, on the processor: size, speed, accuracy"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("benchmark.py", "Measure the speed and memory of the chapter's code.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {name: text for name, (_, text) in COMMANDS.items()}
    for name, text in {**texts, "all": "all of them, as the README's tables were made"}.items():
        run = COMMANDS[name][0].run if name in COMMANDS else lambda: None
        command = commands.add_parser(
            name, help=text, description=inspect.getdoc(run) or text, formatter_class=HelpFormatter
        )
        command.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
        command.add_argument("--output", type=Path, default="benchmark", help="folder to write")
        command.add_argument("--plot", action="store_true", help="also write a picture (of scale)")
        devices = ("auto", "cpu", "cuda", "mps")
        command.add_argument("--device", default="auto", choices=devices, help="where to compute")
        for option in inspect.signature(run).parameters.values():
            if (default := option.default) is not option.empty:
                name = "--" + option.name.replace("_", "-")
                command.add_argument(name, type=int, default=default, help="see above")
    return parser.parse_args(argv)


def measure(argv: list[str]) -> None:
    """Measure, save and show one sub-command."""
    options = vars(parse_args(argv))
    command, output, plot, device = (
        options.pop(n) for n in ("command", "output", "plot", "device")
    )
    module, _ = COMMANDS[command]
    options["model"] = resolve_model_name(options["model"])
    device = pick_device("cpu" if command == "quantize" else device)
    result = {"command": " ".join(["benchmark.py", *argv]), "options": options, **machine(device)}
    try:
        result |= module.run(device=device, **options)
    except ImportError as error:
        print(f"benchmark.py {command}: {error}; see requirements-extra.txt", file=sys.stderr)
        return
    output.mkdir(parents=True, exist_ok=True)
    write_json(result, output / f"{command}.json")
    print(as_markdown(result), flush=True)
    if plot and command == "scale":
        module.plot(result, output / f"{command}.png")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)

    def measure_all() -> None:
        for name in COMMANDS if args.command == "all" else [args.command]:
            measure([name, *argv[1:]])

    return run_command("benchmark.py", measure_all, output=args.output)


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
