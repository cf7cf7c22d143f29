"""How fast is the page? Its start, one message, and fifty people at once.

python 04_user_interface/measure.py run classifier
python 04_user_interface/measure.py table
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
import torch
from trial_page import ask_together, free_port

from text_classifier import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "page-speed.json"
NUM_PEOPLE = 50
NUM_SINGLE = 20
START_LIMIT = 120  # seconds, after which the page is given up
MESSAGE = "URGENT! You have won a £900 prize. Call 09061701461 now to claim, number {}."


def start_page(folder: Path, port: int) -> tuple[subprocess.Popen, float]:
    """The page as a process of its own, and the seconds until it answers."""
    command = [sys.executable, HERE / "app.py", folder, "--port", str(port)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while time.perf_counter() - begin < START_LIMIT and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/").raise_for_status()
            return process, time.perf_counter() - begin
        except httpx.HTTPError:  # nobody listens yet, or it is not ready
            time.sleep(0.05)
    if process.poll() is not None:
        raise OSError(f"the page did not start: it ended with exit status {process.returncode}")
    process.kill()
    raise OSError(f"the page did not start within {START_LIMIT} seconds")


def measure(folder: Path) -> dict:
    port = free_port()
    process, start_seconds = start_page(folder, port)
    try:
        address, messages = (
            f"http://127.0.0.1:{port}",
            [MESSAGE.format(i) for i in range(NUM_PEOPLE)],
        )
        single = [ask_together(address, [message])[0][1] for message in messages[:NUM_SINGLE]]
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


def make_table(path: Path = RESULTS) -> str:
    """The README's table, in Markdown."""
    result = json.loads(path.read_text(encoding="utf-8"))
    single, together = result["single_seconds"], result["together_seconds"]
    rows = {
        "from the command to the first answer of the page": f"{result['start_seconds']:.1f} s",
        f"one message, median of {len(single)}": f"{1000 * statistics.median(single):.0f} ms",
        f"{len(together)} people at once, median": f"{statistics.median(together):.2f} s",
        f"{len(together)} people at once, the slowest": f"{max(together):.2f} s",
    }
    lines = [f"| {result['model']}, {result['cores']} cores | |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="measure.py", description="How fast is the page?")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, keep the figures, print the table")
    run.add_argument("folder", type=Path, help="classifier folder")
    run.add_argument("--output", type=Path, default=RESULTS, help="file of the figures")
    commands.add_parser("table", help="print the table from the kept figures")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.command == "run":
            result = measure(args.folder)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_text(json.dumps(result, indent=1) + "\n", args.output)
            print(make_table(args.output))
        else:
            print(make_table())
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
