"""The README's tables, made from the raw files in results/.

    python 02_bonus_additional-experiments/performance-analysis/performance_tables.py

writes them between the marks of the README; a test checks that they are there.
"""

import re
from pathlib import Path

from bench_common import load_result, tables_as_markdown
from benchmark import COMMANDS

README = Path(__file__).parent / "README.md"


def markdown(name: str) -> str:
    """The tables of one command, and below them the command and the machine."""
    result, (module, _) = load_result(name), COMMANDS[name]
    rounds = result["options"].get("repetitions")
    where = (
        f"`python {result['command']}`, {result['options']['model']}, {result['processor']}, "
        f"{result['threads']} threads, PyTorch {result['versions']['torch']}"
        + (f", median of {rounds} rounds." if rounds else ".")
    )
    return tables_as_markdown(result, [*module.notes(result), where])


def updated_readme() -> str:
    """The README with each table as the raw file gives it now."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)",
        lambda match: match[1] + markdown(match[2]) + "\n",
        README.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(updated_readme(), encoding="utf-8")
