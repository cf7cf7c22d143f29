"""The tables of README.md and tables.md, made from the raw files in results/.

    python 02_bonus_additional-experiments/performance-analysis/performance_tables.py

writes them between the marks of these files; a test checks that they are there.
"""

import re
from pathlib import Path

from bench_common import as_markdown, load_result

from files import write_text

DOCUMENTS = [Path(__file__).with_name(name) for name in ("README.md", "tables.md")]


def updated(document: Path) -> str:
    """The document with each table as the raw file gives it now."""
    return re.sub(
        r"(<!-- table: ([\w/]+) -->\n).*?(?=<!-- end -->)",
        lambda match: match[1] + as_markdown(load_result(match[2])) + "\n",
        document.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for path in DOCUMENTS:
        write_text(updated(path), path)
