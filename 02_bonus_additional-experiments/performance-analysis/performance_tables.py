"""The README's tables, made from the raw files in results/.

    python 02_bonus_additional-experiments/performance-analysis/performance_tables.py

writes them between the marks of the README; a test checks that they are there.
"""

from pathlib import Path

from bench_common import RESULTS, as_markdown, load_result
from benchmark import COMMANDS

README = Path(__file__).parent / "README.md"


def markdown(name: str, result: dict) -> str:
    """The tables of one command, and below them the command and the machine."""
    module, _ = COMMANDS[name]
    where = (
        f"`python {result['command']}` on {result['processor']}, {result['threads']} threads, "
        f"PyTorch {result['versions']['torch']}."
    )
    if (load := result["load_average_at_start"]) is not None:
        where += f" Load average before the whole run: {load:.2f}."
    return "\n\n".join([*map(as_markdown, module.tables(result)), where])


def updated_readme() -> str:
    """The README with each table as the raw file gives it now."""
    text = README.read_text(encoding="utf-8")
    for name in COMMANDS:
        path = RESULTS / f"{name}.json"
        made = "Not measured yet."
        if path.exists() and "load_average_at_start" in (result := load_result(name)):
            made = markdown(name, result)
        before, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        if not mark:
            raise ValueError(f"{README.name} has no place for the table {name!r}.")
        text = before + mark + made + rest[rest.index("\n<!-- end -->") :]
    return text


if __name__ == "__main__":
    README.write_text(updated_readme(), encoding="utf-8")
