"""The README's tables, made from the raw files in results/.

    python 02_bonus_additional-experiments/performance-analysis/performance_tables.py

writes them between the marks of the README; a test checks that they are there.
"""

import re
from pathlib import Path

from bench_common import as_markdown, load_result

README = Path(__file__).parent / "README.md"


def updated_readme() -> str:
    """The README with each table as the raw file gives it now."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(?=<!-- end -->)",
        lambda match: match[1] + as_markdown(load_result(match[2])) + "\n",
        README.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    README.write_text(updated_readme(), encoding="utf-8")
