"""Where time and memory go when a GPT is fine-tuned and used, measured on this very machine.

    python 02_bonus_additional-experiments/performance-analysis/benchmark.py train --plot

Each sub-command prints its tables and writes all that was measured, every round of it, as JSON
into `--output`, with `--plot` also as a picture.
"""

import argparse
import startup_errors  # noqa: F401
import sys
from pathlib import Path

import bench_generate
import bench_infer
import bench_memory
import bench_quantize
import bench_scale
import bench_train
import matplotlib
from bench_common import as_markdown

from command_line import HelpFormatter, make_parser, run_command
from files import write_json
from gpt_download import resolve_model_name
from measuring import machine
from text_classifier import pick_device

# Each module says in its first line what it measures, and has OPTIONS,
# `run(model, device, **options)` and `plot(result, path)`.
MODULES = (bench_train, bench_infer, bench_generate, bench_memory, bench_scale, bench_quantize)
COMMANDS = {module.__name__.removeprefix("bench_"): module for module in MODULES}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("benchmark.py", "Measure the speed and memory of the chapter's code.")
    commands = parser.add_subparsers(dest="command", required=True)
    texts = {name: module.__doc__.partition("\n")[0] for name, module in COMMANDS.items()}
    for name, text in {**texts, "all": "All of them, as the README's tables were made."}.items():
        command = commands.add_parser(
            name, help=text, description=text, formatter_class=HelpFormatter
        )
        command.add_argument("--model", default="gpt2-small", help="shape; the weights are random")
        command.add_argument("--output", type=Path, default="benchmark", help="folder to write")
        command.add_argument("--plot", action="store_true", help="also write pictures")
        devices = ("auto", "cpu", "cuda", "mps")
        command.add_argument("--device", default="auto", choices=devices, help="where to compute")
        options = COMMANDS[name].OPTIONS if name in COMMANDS else {}
        for option, (default, about) in options.items():  # one number or text, or a list of them
            nargs, first = ("+", default[0]) if isinstance(default, list) else (None, default)
            how = {"type": type(first), "nargs": nargs, "default": default, "help": about}
            command.add_argument("--" + option.replace("_", "-"), **how)
    return parser.parse_args(argv)


def measure(argv: list[str]) -> None:
    """Measure, save and show one sub-command."""
    options = vars(parse_args(argv))
    command, output, plot, device = (
        options.pop(n) for n in ("command", "output", "plot", "device")
    )
    module = COMMANDS[command]
    options["model"] = resolve_model_name(options["model"])
    device = pick_device("cpu" if command == "quantize" else device)
    result = module.run(device=device, **options)
    result |= {"command": " ".join(["benchmark.py", *argv]), "options": options, **machine(device)}
    output.mkdir(parents=True, exist_ok=True)
    write_json(result, output / f"{command}.json")
    print(as_markdown(result), flush=True)
    if plot:
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
