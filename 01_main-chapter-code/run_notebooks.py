"""Execute notebooks from top to bottom and save them with clean outputs.

    python 01_main-chapter-code/run_notebooks.py

With no options it refreshes the saved outputs of the chapter, of the exercise solutions and of
the fresh start from a saved classifier. Each notebook runs in its own new kernel and in its own
folder. One that fails, warns or names a path of this machine is reported and not saved.
"""

import argparse
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from gpt_download import SMS_SPAM_ZIP, DownloadError, fetch

FOLDER = Path(__file__).parent
CHAPTER_NOTEBOOKS = tuple(
    FOLDER / name
    for name in ("ch06.ipynb", "exercise-solutions.ipynb", "load-finetuned-model.ipynb")
)

# A path of somebody's machine, but not the part of a web address that looks like one.
MACHINE_PATH = re.compile(
    r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|mnt|media|private|Users|var/folders)/[^\s\"'<>]*"
    r"|[A-Za-z]:[\\/]+(?:Users|Windows|Program Files)[^\s\"'<>]*"
)
OBJECT_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
ANSI_CODE = re.compile(r"\x1b\[[0-9;]*m")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_notebooks.py",
        description="Execute notebooks from top to bottom, each in a new kernel and in its own "
        "folder, and save them in place with clean outputs: counts 1 to n, no timing, no warning, "
        "no path of this machine.",
        epilog="Exit status: 0 if all is well, 1 if a notebook failed or is not clean, 2 for a "
        "wrong option. Set CH06_CACHE to a folder that holds the data to run without a network.",
    )
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        metavar="NOTEBOOK",
        help="notebooks to execute; default: "
        + ", ".join(path.name for path in CHAPTER_NOTEBOOKS)
        + " of this folder",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the executed copies there and leave the notebooks as they are",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="execute nothing: only say whether the saved outputs are clean",
    )
    args = parser.parse_args(argv)
    if args.check and args.output:
        parser.error("--check executes nothing, so there is nothing to write: leave out --output")
    args.notebooks = args.notebooks or list(CHAPTER_NOTEBOOKS)
    for path in args.notebooks:
        if path.suffix != ".ipynb":
            parser.error(f"{path} is not a notebook: its name must end in .ipynb")
        if not path.is_file():
            parser.error(f"there is no notebook {path}")
    names = [path.name for path in args.notebooks]
    if args.output and len(set(names)) < len(names):
        parser.error("two notebooks have the same name, so --output cannot hold both")
    return args


# ---------------------------------------------------------------------------------------------
# Executing
# ---------------------------------------------------------------------------------------------


def new_kernel() -> AsyncKernelManager:
    """A kernel of this very Python, whatever kernels are installed under that name."""
    manager = AsyncKernelManager(kernel_name="python3")
    manager.kernel_spec.argv = [
        sys.executable,
        "-Xfrozen_modules=off",  # else the debugger warns
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
        "--HistoryManager.enabled=False",
        "--IPKernelApp.log_level=ERROR",
    ]
    return manager


def kernel_environment() -> dict[str, str]:
    """This process's environment, without a warning that has nothing to do with the notebook."""
    filters = [os.environ.get("PYTHONWARNINGS", ""), "ignore:IProgress not found"]
    return os.environ | {"PYTHONWARNINGS": ",".join(filter(None, filters))}


def execute(notebook: NotebookNode, folder: Path, progress: tqdm | None = None) -> None:
    """Run all cells in place. Raises ``CellExecutionError`` or ``DeadKernelError``."""

    def advance(cell: NotebookNode, cell_index: int) -> None:
        if progress is not None:
            progress.update()

    client = NotebookClient(
        notebook,
        km=new_kernel(),
        resources={"metadata": {"path": str(folder)}},
        timeout=None,
        coalesce_streams=True,
        record_timing=False,
        on_cell_complete=advance,
    )
    client.execute(env=kernel_environment())


def tidy(notebook: NotebookNode) -> None:
    """Leave in place only what a reader needs, so that versions differ where results differ."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})


def fetch_data() -> None:
    """Fetch the chapter's data beforehand, so that no notebook shows a download's progress bar."""
    with suppress(DownloadError):  # a notebook says itself what it does without
        fetch(SMS_SPAM_ZIP)


# ---------------------------------------------------------------------------------------------
# Checking
# ---------------------------------------------------------------------------------------------


def output_text(output: NotebookNode) -> str:
    """All that an output says in words; pictures say nothing here."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    parts = output.get("data", {})
    return "\n".join(str(part) for kind, part in parts.items() if not kind.startswith("image/"))


def find_problems(notebook: NotebookNode) -> list[str]:
    """What keeps the saved outputs from being those of one clean run from top to bottom."""
    problems = []
    code_cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    for number, cell in enumerate(code_cells, start=1):
        where = f"code cell {number} ({first_line(cell.source)})"
        if cell.execution_count != number:
            problems.append(f"{where}: its count is {cell.execution_count}, not {number}")
        if set(cell.metadata) - {"tags"}:
            problems.append(f"{where}: it carries metadata: {', '.join(cell.metadata)}")
        for output in cell.outputs:
            text = output_text(output)
            if output.output_type == "error":
                problems.append(f"{where}: an error: {text}")
            if output.output_type == "stream" and output.name == "stderr":
                problems.append(f"{where}: a warning or a progress bar: {shorten(text)}")
            if found := MACHINE_PATH.search(text):
                problems.append(f"{where}: a path of this machine: {found.group()}")
            if found := OBJECT_ADDRESS.search(text):
                problems.append(f"{where}: an address that changes: {found.group()}")
    return problems


def first_line(source: str) -> str:
    return shorten(source.strip().partition("\n")[0], 60)


def shorten(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


# ---------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------


def read_notebook(path: Path) -> NotebookNode:
    """The notebook at `path`. Raises ``ValueError`` if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        raise ValueError(f"{path} is not a notebook: {shorten(str(error))}") from error


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    """A file that is either whole or not there: it is renamed when complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def refresh(path: Path, target: Path, progress: tqdm) -> list[str]:
    """Execute one notebook and save it as `target`; returns what was wrong with it."""
    notebook = read_notebook(path)
    try:
        execute(notebook, path.parent, progress)
    except CellExecutionError:
        cell = next(c for c in notebook.cells if any_error(c))
        error = next(o for o in cell.outputs if o.output_type == "error")
        traceback = ANSI_CODE.sub("", "\n".join(error.traceback))
        return [f"this cell failed:\n{cell.source}\n\n{traceback}"]
    except (DeadKernelError, CellControlSignal) as error:
        return [f"the kernel died: {error}"]
    tidy(notebook)
    problems = find_problems(notebook)
    if not problems:
        write_notebook(notebook, target)
    return problems


def any_error(cell: NotebookNode) -> bool:
    return any(output.output_type == "error" for output in cell.get("outputs", []))


def run(args: argparse.Namespace) -> int:
    """How many notebooks failed; says what was wrong with each."""
    if args.check:
        found = {path: find_problems(read_notebook(path)) for path in args.notebooks}
    else:
        found = {}
        fetch_data()
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
        num_cells = sum(len(read_notebook(path).cells) for path in args.notebooks)
        with tqdm(total=num_cells, unit="cell", miniters=1) as progress:
            done = 0
            for path in args.notebooks:
                progress.set_description(path.name)
                target = args.output / path.name if args.output else path
                found[path] = refresh(path, target, progress)
                done += len(read_notebook(path).cells)
                progress.update(done - progress.n)  # cells that were not reached
    for path, problems in found.items():
        for problem in problems:
            print(f"{path.name}: {problem}", file=sys.stderr)
        unclean = "not clean" if args.check else "failed, not saved"
        print(f"{path.name}: {unclean if problems else 'clean'}")
    return sum(bool(problems) for problems in found.values())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        return 1 if run(args) else 0
    except (ValueError, OSError) as error:
        print(f"run_notebooks.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped; a notebook that was not finished is as it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
