"""How fast is the page? Its start, one message, and fifty people at once.

python 04_user_interface/measure.py classifier
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import httpx
import torch
from trial_page import ask, ask_together, free_port

from command_line import make_parser, run_command
from files import write_json

RESULTS = Path(__file__).parent / "results" / "page-speed.json"
NUM_PEOPLE = 50
NUM_SINGLE = 20
MESSAGE = "URGENT! You have won a £900 prize. Call 09061701461 now to claim, number {}."


def start_page(folder: Path, port: int) -> tuple[subprocess.Popen, float]:
    """The page as a process of its own, and the seconds until it answers."""
    command = [sys.executable, Path(__file__).with_name("app.py"), folder, "--port", str(port)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/").raise_for_status()
            return process, time.perf_counter() - begin
        except httpx.HTTPError:  # nobody listens yet, or it is not ready
            time.sleep(0.05)
    raise OSError(f"the page did not start: it ended with exit status {process.returncode}")


def measure(folder: Path) -> dict:
    port = free_port()
    address, messages = f"http://127.0.0.1:{port}/", [MESSAGE.format(i) for i in range(NUM_PEOPLE)]
    process, start_seconds = start_page(folder, port)
    try:
        single = [ask(address, message)[1] for message in messages[:NUM_SINGLE]]
        together = [seconds for _, seconds in ask_together(address, messages)]
    finally:
        process.terminate()
        process.wait()
    return {
        "start_seconds": round(start_seconds, 3),
        "single_seconds": [round(value, 4) for value in single],
        "together_seconds": [round(value, 4) for value in together],
        "model": json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def make_table(result: dict) -> str:
    """The README's table, in Markdown."""
    single, together = result["single_seconds"], result["together_seconds"]
    return f"""\
| {result["model"]}, {result["cores"]} cores | |
| --- | --- |
| from the command to the first answer of the page | {result["start_seconds"]:.1f} s |
| one message, median of {len(single)} | {1000 * median(single):.0f} ms |
| {len(together)} people at once, median | {median(together):.2f} s |
| {len(together)} people at once, the slowest | {max(together):.2f} s |"""


def run(args: argparse.Namespace) -> None:
    result = measure(args.folder)
    write_json(result, args.output)
    print(make_table(result))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("measure.py", "How fast is the page?")
    parser.add_argument("folder", type=Path, help="classifier folder")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the measurements")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("measure.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
