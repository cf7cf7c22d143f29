"""What several test files share: commands as a reader runs them, made-up messages, a full disk."""

import importlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

CHAPTER = Path(__file__).resolve().parent.parent
WORDS = {
    "ham": ["meet", "home", "lunch", "mum", "later", "work", "bus", "dinner", "sorry", "tonight"],
    "spam": ["win", "prize", "cash", "claim", "free", "call", "now", "award", "urgent", "£500"],
}


def command_environment(**variables: str) -> dict[str, str]:
    """This process's environment for a command: few threads, UTF-8, and `variables`."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **variables}


def run_python(*arguments, stdin: str | bytes = b"", timeout: int = 120, **variables: str):
    """`python ARGUMENTS` to its end; stdout and stderr come back as text."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=timeout,
        env=command_environment(**variables),
    )
    done.stdout = done.stdout.decode("utf-8").replace("\r\n", "\n")
    done.stderr = done.stderr.decode("utf-8").replace("\r\n", "\n")
    return done


def run_command(script: str, *arguments, **how):
    """`finetune.py`, `classify.py` or another script of this folder, to its end."""
    return run_python(CHAPTER / script, *arguments, **how)


def _kill_at_a_rename(arguments: list[str], name: str, moment: str, count: int):
    torch.set_num_threads(1)
    replace, seen = Path.replace, []

    def replace_or_die(self, target):
        seen.append(Path(target).name)
        dies = seen[-1] == name and seen.count(name) == count
        if dies and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = replace(self, target)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.replace = replace_or_die
    sys.exit(importlib.import_module("finetune").main(arguments))


def kill_at_a_rename(*arguments, name: str, moment: str, count: int):
    """Run finetune.py in a process of its own that is killed, without a chance to clean up, when
    it gives a whole file its `name` for the `count`-th time."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("no SIGKILL on this system")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune"])  # imported once for all processes
    given = ([*map(str, arguments)], name, moment, count)
    process = context.Process(target=_kill_at_a_rename, args=given)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def succeeds(command: ModuleType, capsys, *arguments) -> str:
    """What a command prints of a run that goes well."""
    assert command.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def fails(command: ModuleType, capsys, *arguments, status: int = 2) -> str:
    """What a command says of a run that fails: one sentence that starts with its name."""
    try:
        got = command.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        got = error.code
    assert got == status
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(rf"{command.__name__}\.py( \w+)?: ", said)
    return said


def made_up_messages(num_per_label: int = 30, seed: int = 0) -> list[tuple[str, str]]:
    """Different (text, label) pairs that a few words tell apart, labels in turn."""
    rng = random.Random(seed)
    return [
        (" ".join(rng.choices(words, k=rng.randint(3, 9))) + f" {i}", label)
        for i in range(num_per_label)
        for label, words in WORDS.items()
    ]


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    """Rows whose cells need no quoting."""
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8")
    return path


@contextmanager
def file_size_limit(num_bytes: int):
    """A disk on which a file cannot grow longer, as when it is full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
