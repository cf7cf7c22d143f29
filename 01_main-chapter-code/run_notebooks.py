"""Execute notebooks from top to bottom, each in its own folder, and save those that run cleanly.

python 01_main-chapter-code/run_notebooks.py
"""

import os
import re
import startup_errors  # noqa: F401
import sys
from contextlib import suppress
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError

from command_line import make_parser, run_command
from files import locked, write_text
from gpt_download import SMS_SPAM_ZIP, DownloadError, fetch

QUIET = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}

# Somebody's path, but not the part of a web address that looks like one; an object's address.
PRIVATE = re.compile(
    r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|mnt|media|private|Users|var/folders)/[^\s\"'<>]*"
    r"|[A-Za-z]:[\\/]+(?:Users|Windows|Program Files)[^\s\"'<>]*|\bat 0x[0-9a-fA-F]{6,}"
)


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook after a run of all its cells, with only the metadata that a reader needs."""
    notebook, kernel = nbformat.read(path, as_version=4), AsyncKernelManager(kernel_name="python3")
    kernel.kernel_spec.argv[0] = sys.executable  # whatever is installed under that name
    kernel.kernel_spec.argv.append("--IPKernelApp.log_level=ERROR")
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel, resources=folder, timeout=None, coalesce_streams=True)
    client.execute(env=os.environ | QUIET)
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
    return notebook


def find_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What keeps the outputs from being those of one clean run from top to bottom."""
    problems = []
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        where = f"code cell {number} ({cell.source.strip()[:60]!r})"
        if cell.execution_count != number:
            problems.append(f"{where}: its count is {cell.execution_count}")
        for output in cell.outputs:
            parts = [output.get("text"), output.get("evalue"), *output.get("data", {}).values()]
            text = "\n".join(str(part) for part in parts if part)
            complains = output.output_type == "error" or output.get("name") == "stderr"
            if complains or PRIVATE.search(text):
                problems.append(f"{where}: an error, a warning or a private path: {text}")
    return problems


def execute_all(paths: list[Path], output: Path | None) -> None:
    """Execute and save the notebooks. Raises ``ValueError`` for one that does not run cleanly."""
    with suppress(DownloadError):  # now, so that no output shows a download's progress bar
        fetch(SMS_SPAM_ZIP)
    for path in paths:
        print(f"{path}: running", flush=True)
        target = (output or path.parent) / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            try:
                problems = find_problems(notebook := execute(path))
            except (CellControlSignal, DeadKernelError) as error:
                problems = [re.sub(r"\x1b\[[\d;]*m", "", str(error))]  # without its colours
            if problems:
                raise ValueError("\n".join([f"{path} is not saved:", *problems]))
            write_text(nbformat.writes(notebook) + "\n", target)


def main(argv: list[str] | None = None) -> int:
    parser = make_parser("run_notebooks.py", "Execute notebooks and save them with clean outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: the chapter's four")
    parser.add_argument("--output", type=Path, help="folder for the copies; default: in place")
    args = parser.parse_args(argv)
    paths = args.notebooks or sorted(Path(__file__).parent.glob("*.ipynb"))
    return run_command("run_notebooks.py", lambda: execute_all(paths, args.output))


if __name__ == "__main__":
    sys.exit(main())
