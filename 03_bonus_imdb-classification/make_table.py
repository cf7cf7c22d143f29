"""The README's table, in Markdown, from the raw result files.

    python 03_bonus_imdb-classification/make_table.py --write

puts it in the place of the old one.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from imdb_results import RESULTS
from text_classifier import write_text

README = Path(__file__).parent / "README.md"

HEADER = (
    "| model | trained layers, or C | test accuracy | 95% interval | parameters | training, s "
    "| test, s | memory, MB | device | command |"
)
# Test accuracies on these reviews that others published. Their parts, cuts and machines differ.
PUBLISHED = (
    ("logistic regression", "88.85% ¹"),
    ("NB-SVM on bigrams (Wang and Manning 2012)", "91.22%"),
    ("GPT-2 124M", "91.88% ¹"),
    ("BERT base", "90.89% ¹"),
    ("DistilBERT", "91.40% ¹"),
    ("RoBERTa large", "92.95% or 94.69% ¹ ²"),
    ("DeBERTa-v3", "94.69% or 92.95% ¹ ²"),
    ("ModernBERT base", "93.79% ¹"),
    ("ModernBERT large", "95.07% ¹"),
)
FOOTNOTE = (
    "¹ From the bonus material to chapter 6 of "
    "[LLMs-from-scratch](https://github.com/rasbt/LLMs-from-scratch), measured on 10,000 reviews "
    "drawn at random from all 50,000 after 35,000 to train and 5,000 to validate: not the official "
    "halves, and reviews of one film may be on both sides.\n\n"
    "² Its table and its logs disagree on which of the two has which; of RoBERTa, only the last "
    "block and the head were trained."
)


def table_row(result: dict[str, Any]) -> str:
    test, seconds = result["test"], result["seconds"]
    low, high = test["accuracy_interval"]
    memory = result["peak_memory_mb"]
    memory = "-" if memory is None else f"{memory:,.0f}"  # Windows does not tell
    learning = seconds["training"] + seconds.get("pretraining", 0)
    method = result["method"] or "-"
    if "pretraining" in seconds:
        method += ", pretrained further"
    options = result.get("options", {})
    if options.get("pooling") == "mean":
        method += ", mean over tokens"
    if share := options.get("word_dropout"):
        method += f", word dropout {share:.0%}"
    return (
        f"| {result['model']} | {method} | {test['accuracy']:.2%} "
        f"| [{low:.2%}, {high:.2%}] | {result['parameters']:,} | {learning:,.0f} "
        f"| {seconds['inference']:,.0f} | {memory} | {result['device']} | `{result['command']}` |"
    )


def make_table(folder: Path = RESULTS) -> str:
    """Measured models by test accuracy, the weakest first, then what others published."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    results.sort(key=lambda result: result["test"]["accuracy"])
    rows = [table_row(result) for result in results]
    rows += [
        f"| {name}, *published by others* | | {accuracy} | | | | | | | |"
        for name, accuracy in PUBLISHED
    ]
    return "\n".join([HEADER, "| --- " * 10 + "|", *rows, "", FOOTNOTE])


def replace_table(text: str, table: str) -> str:
    """A README's text with another table: from its header to its footnote."""
    start, end = text.index(HEADER), text.index(FOOTNOTE) + len(FOOTNOTE)
    return text[:start] + table + text[end:]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make_table.py", description="Print the README's table from the raw result files."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--write", action="store_true", help="put it into the README")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not list(args.results.glob("*.json")):
        print(f"make_table.py: there are no result files in {args.results}.", file=sys.stderr)
        return 2
    table = make_table(args.results)
    if args.write:
        write_text(replace_table(README.read_text(encoding="utf-8"), table), README)
    else:
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
