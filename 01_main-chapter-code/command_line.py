"""What all commands share: options from a dataclass, standard output, and the exit status."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError

from files import locked
from options import Options, parts_of
from remote_files import DownloadError

GROUPS = ("what is measured", "data", "model", "training", "run")  # in the order of the help


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows an option's default where there is one to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        spoken_of = action.default is not None and action.nargs != 0  # 0: a switch
        return super()._get_help_string(action) if spoken_of else action.help


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )


def add_options(
    parser: argparse.ArgumentParser, config_class: type[Options], leave_out: Sequence[str] = ()
) -> None:
    """One option for each field of a dataclass, under its name with dashes."""
    annotations = get_type_hints(config_class)
    entries = [entry for entry in dataclasses.fields(config_class) if entry.name not in leave_out]
    titles = {entry.metadata["group"] for entry in entries}
    groups = {title: parser.add_argument_group(title) for title in GROUPS if title in titles}
    for entry in entries:
        _add_option(groups[entry.metadata["group"]], entry, annotations[entry.name])


def _add_option(group, entry: dataclasses.Field, annotation: Any) -> None:
    name, (choices, kinds) = "--" + entry.name.replace("_", "-"), parts_of(annotation)
    common = {"help": entry.metadata["help"], "default": entry.default}
    kinds = [kind for kind in kinds if kind is not type(None)]
    if kinds == [bool]:
        action = "store_false" if entry.default else "store_true"
        name = "--no-" + name[2:] if entry.default else name
        group.add_argument(name, dest=entry.name, action=action, **common)
    elif not kinds:
        group.add_argument(name, choices=choices, **common)
    else:

        def read(text: str) -> Any:
            return text if text in choices else kinds[0](text)

        read.__name__ = {int: "whole number", float: "number"}.get(kinds[0], "value")
        metavar = "{" + ",".join([*choices, "N"]) + "}" if choices else None
        group.add_argument(name, type=read, metavar=metavar, **common)


def config_from(args: argparse.Namespace, config_class: type[Options]) -> Any:
    """The dataclass that the options describe. Raises ``ValueError`` if they contradict."""
    names = [entry.name for entry in dataclasses.fields(config_class)]
    return config_class(**{name: getattr(args, name) for name in names if hasattr(args, name)})


@contextmanager
def standard_output():
    """Standard output for a command to print to. Raises ``OSError`` where it cannot be written.

    A character that the terminal cannot show is spelled out, not an error.
    """
    if sys.stdout is None:
        raise OSError("standard output is closed; leave it open, or send it to a file.")
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()  # now, while it can still be said that the disk is full
        except OSError:
            # Python would try once more when it ends, and complain in its own words.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise


def printable(text: str) -> str:
    """Text that stays on its line and does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run_command(
    prog: str,
    command: Callable[[], Any],
    when_stopped: str = "Stopped.",
    output: Path | None = None,
) -> int:
    """Do `command`; 0 if it went well, else one sentence on standard error.

    2: wrong data, a wrong option or a file that is not there; 1: a failure; 130: interrupted. A
    second process with the same `output` is refused.
    """
    try:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        with standard_output(), locked(output) if output is not None else nullcontext():
            command()
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        return 0
    except (ValueError, FileNotFoundError) as error:
        return _complain(prog, error, 2)
    except (DownloadError, OSError, SafetensorError) as error:
        return _complain(prog, error, 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _complain(prog, f"out of memory; try a smaller batch or length. {error}", 1)
    except KeyboardInterrupt:
        return _complain(prog, when_stopped, 130)
    return 0


def _complain(prog: str, error: Exception | str, status: int) -> int:
    lines = map(printable, str(error).split("\n"))
    print(f"{prog}:", "\n".join(lines), file=sys.stderr)
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on a CPU and on MPS, PyTorch says so by a plain ``RuntimeError``.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes do not match"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    signs = ("DefaultCPUAllocator", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return f'"{path}"' if " " in str(path) else str(path)
