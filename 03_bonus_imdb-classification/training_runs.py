"""What train_gpt.py and train_encoder.py have in common: options, result and exit status."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from command_line import is_out_of_memory
from download_prepare_dataset import REVIEWS
from finetune import COUNT, SEED, Clock
from gpt_download import DownloadError
from imdb_results import (
    RESULTS,
    RUNS,
    figures,
    machine,
    read_result,
    recorded_command,
    result_folder,
    write_result,
)
from message_files import DataError
from text_classifier import Precision

SECONDS = "seconds.json"  # in a run's folder: what was spent so far
STOPPED = "Stopped. Repeat the command with --resume to go on."
Group = argparse._ArgumentGroup  # argparse gives it no public name


def run_name(text: str) -> str:
    """A name that files can have; found wrong now, not when the result is written."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} names files: letters, digits, and . _ - after the first of them"
        )
    return text


def make_parser(
    prog: str, description: str, cuts: Sequence[str], cut_help: str, max_length: int
) -> tuple[argparse.ArgumentParser, Group, Group, Group]:
    """A parser of the options that both commands have, and its groups for data, model, training."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", type=run_name, help="name of the run and of its result file")
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, default=REVIEWS, help="folder of the three parts")
    data.add_argument("--num-train", type=COUNT, help="training reviews used; default: all")
    data.add_argument("--max-length", type=COUNT, default=max_length, help="tokens read at a time")
    data.add_argument("--cut", choices=cuts, default="both", help=cut_help)
    model = parser.add_argument_group("model")
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=COUNT, default=2, help="passes")
    training.add_argument("--batch-size", type=COUNT, default=16, help="reviews for each update")
    training.add_argument("--seed", type=SEED, default=1, help="head, sample, order, dropout")
    run = parser.add_argument_group("run")
    run.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help=" ")
    run.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of matrix products; default: bfloat16 on CUDA, float32 elsewhere",
    )
    run.add_argument(
        "--validation-only",
        action="store_true",
        help="to choose options by: leave the test half unread; the result goes to results/trials, "
        "the state to runs/trials",
    )
    run.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    run.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs' states")
    run.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    run.add_argument("--quiet", action="store_true", help="print the results only")
    return parser, data, model, training


def parse_run(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options, with what follows from them: the command, and the folder of the run's state."""
    args = parser.parse_args(argv)
    args.command = recorded_command(parser.prog, argv)
    # Apart, as the results are: a small run must not take the place of the whole one.
    kind = "trials" if args.validation_only else "curve" if args.num_train is not None else ""
    runs = args.runs / kind
    args.output = runs / args.name  # where the chapter's functions look for the state
    return args


def refuse_others_result(args: argparse.Namespace) -> None:
    """Raise ``DataError`` if another command left a result of this name, which would be lost."""
    folder = result_folder(args.results, args.num_train, args.validation_only)
    if not (folder / f"{args.name}.json").exists():
        return
    script = args.command.split()[0]
    command = read_result(args.name, folder)["command"]
    if command.split()[0] != script:
        raise DataError(f"{args.name}: {command!r} has a result of this name; choose another.")


def write_run(
    args: argparse.Namespace,
    description: dict[str, Any],
    parts: dict[str, pd.DataFrame],
    positive: dict[str, np.ndarray],
    clock: Clock,
    device: torch.device,
) -> dict[str, Any]:
    """Write the result of a run and return it: `description` and what every run reports.

    `positive` has each review's probability of being positive (N,) for each part measured on.
    """
    result = {
        "seed": args.seed,
        "num_train": len(parts["train"]),
        **{part: figures(values, parts[part]) for part, values in positive.items()},
        "seconds": {key: round(value, 1) for key, value in clock.seconds.items()},
        **machine(str(device)),
        "command": args.command,
    }
    result = description | result
    folder = result_folder(args.results, args.num_train, args.validation_only)
    probabilities = positive.get("test") if args.num_train is None else None
    write_result(args.name, result, probabilities, folder)
    return result


def exit_status(prog: str, command: Callable[[], Any], when_stopped: str) -> int:
    """Do `command`; 0 if it went well, else a sentence on the standard error says what to do."""
    try:
        command()
    except (DataError, ValueError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except SafetensorError as error:
        print(f"{prog}: a file could not be read or written: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"{prog}: out of memory; try a smaller --batch-size or --max-length. {error}",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\n{when_stopped}", file=sys.stderr)
        return 130
    return 0
