"""One setting of finetune.py over several seeds: mean, spread and interval of its test figures.

    python 01_main-chapter-code/several_seeds.py run default --seeds 1 2 3 4 5 --model gpt-mini
    python 01_main-chapter-code/several_seeds.py table
    python 01_main-chapter-code/several_seeds.py compare 1-default 2-without-further-pretraining

`run NAME` keeps the figures of every seed in `results/NAME.json`; what it does not know itself is
handed to finetune.py. `table` prints the table of the README from those files, `compare` the
difference between two of them, or between one and the n-grams.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib
from scipy import stats
from tqdm import tqdm

import finetune
from gpt_download import DownloadError
from message_files import DataError
from text_classifier import write_text

RESULTS = Path(__file__).parent / "results"
KEPT = ("model", "weights", "data", "seed", "train", "validation", "test", "ngram_baseline")


def mean_and_interval(values: list[float]) -> tuple[float, float, float, float]:
    """Mean, standard deviation and 95% interval of the mean (Student's t) over seeds.

    >>> mean, deviation, low, high = mean_and_interval([0.96, 0.97, 0.98])
    >>> f"{mean:.3f} {deviation:.3f} [{low:.3f}, {high:.3f}]"
    '0.970 0.010 [0.945, 0.995]'
    """
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    half = stats.t.ppf(0.975, len(values) - 1) * deviation / len(values) ** 0.5
    return mean, deviation, mean - half, mean + half


def run_seeds(name: str, seeds: list[int], options: list[str]) -> Iterator[dict]:
    """Fine-tune once a seed; after each, all figures so far."""
    command = shlex.join(["several_seeds.py", "run", name, "--seeds", *map(str, seeds), *options])
    runs = []
    for seed in tqdm(seeds, name):
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*options, "--seed", str(seed), "--output", folder, "--quiet"]
            metrics = finetune.run(finetune.parse_args(arguments))
        kept = {key: metrics[key] for key in KEPT}
        kept["seconds"] = round(sum(metrics["seconds"].values()), 1)
        kept["peak_memory_mb"] = metrics["peak_memory_mb"]
        runs.append(kept)
        yield {"command": command, "versions": metrics["versions"], "runs": runs}


def refuse_output(options: list[str]) -> None:
    """An option that is overridden misleads; it is looked for as finetune.py reads it."""
    if finetune.parse_args(["--output", "-", *options]).output != Path("-"):
        raise DataError(
            "--output is another folder for every seed, and not kept: leave it out; --results is "
            "the folder of the figures."
        )


def prepare_folder(results: Path) -> None:
    """Find out now, not after hours, whether the figures can be written."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=results):
            pass
    except OSError as error:
        raise DataError(
            f"--results {results}: this folder cannot be written ({error.strerror}); choose "
            f"another."
        ) from None


def table_row(result: dict) -> str:
    """`| mean | deviation | interval | every seed | n-gram baseline | command |`"""
    runs = result["runs"]
    accuracies = [run["test"]["accuracy"] for run in runs]
    mean, deviation, low, high = mean_and_interval(accuracies)
    every = " ".join(f"{100 * value:.1f}" for value in accuracies)
    baselines = [run["ngram_baseline"] for run in runs]  # None where the data is too large for it
    baseline = "–"
    if all(baselines):
        baseline = f"{statistics.mean(figures['accuracy'] for figures in baselines):.1%}"
    return (
        f"| {mean:.1%} | {100 * deviation:.1f} | [{low:.1%}, {high:.1%}] | {every} | "
        f"{baseline} | `{result['command']}` |"
    )


def make_table(folder: Path = RESULTS) -> str:
    """The README's table, in Markdown, from the result files in the order of their names."""
    lines = [
        "| test accuracy | deviation | 95% interval of the mean | every seed | n-grams | command |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(folder.glob("*.json")):
        lines.append(table_row(json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(lines)


def paired_difference(first: dict, second: dict | None = None) -> str:
    """Points by which the first result's accuracy exceeds the second's, or that of the n-grams on
    the same messages, paired by seed: the mean, and its 95% interval (Student's t).

    Raises ``DataError`` unless both have the same seeds and data.
    """
    others = second["runs"] if second else [run["ngram_baseline"] for run in first["runs"]]
    if not all(others):
        raise DataError("the n-grams were not measured there, since the data are too large")
    if second and [(r["seed"], r["data"]) for r in first["runs"]] != [
        (r["seed"], r["data"]) for r in others
    ]:
        raise DataError("the two results have other seeds or data, and cannot be paired")
    differences = [
        100 * (run["test"]["accuracy"] - (other["test"] if second else other)["accuracy"])
        for run, other in zip(first["runs"], others, strict=True)
    ]
    mean, _, low, high = mean_and_interval(differences)
    return f"{mean:.1f} points ({low:.1f} to {high:.1f})"


def read_result(name: str, folder: Path = RESULTS) -> dict:
    """What `run NAME` kept; raises ``DataError`` where there is no such file."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such result; `run {name}` makes it.")
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["seed", "accuracy"], [["1", "96.2%"]]))
    | seed | accuracy |
    | --- | --- |
    | 1 | 96.2% |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def fill_in(text: str, tables: Mapping[str, str]) -> str:
    """A document with every table put anew between its marks.

    >>> fill_in("<!-- table a -->\\n<!-- end -->", {"a": "| 1 |"})
    '<!-- table a -->\\n\\n| 1 |\\n\\n<!-- end -->'
    """
    for name, table in tables.items():
        before, mark, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"The text has no marks for the table {name}.")
        text = f"{before}{mark}\n{table}\n\n{end}{after}"
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="several_seeds.py", description="One setting of finetune.py over several seeds."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fine-tune once a seed; further options: finetune.py's")
    run.add_argument("name", help="name of the result file")
    run.add_argument(
        "--seeds", type=finetune.SEED, nargs="+", default=[1, 2, 3, 4, 5], help="at least two"
    )
    run.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    commands.add_parser("table", help="print the table of all result files")
    compare = commands.add_parser("compare", help="print a difference, paired by seed")
    compare.add_argument("first", help="name of a result file")
    compare.add_argument("second", nargs="?", help="of another; default: the n-grams beside it")
    args, options = parser.parse_known_args(argv)
    if args.command != "run" and options:
        parser.error(f"{args.command} takes no options: leave out {' '.join(options)}")
    if args.command == "table":
        print(make_table())
        return 0
    if args.command == "compare":
        try:
            second = read_result(args.second) if args.second else None
            print(paired_difference(read_result(args.first), second))
        except DataError as error:
            print(f"several_seeds.py: {error}", file=sys.stderr)
            return 2
        return 0
    if len(set(args.seeds)) < max(2, len(args.seeds)):
        parser.error("--seeds needs at least two seeds, each once")
    if not args.name or Path(args.name).name != args.name:
        parser.error(f"{args.name!r} cannot name a file; its folder is chosen by --results")
    path = args.results / f"{args.name}.json"
    unfinished = args.results / f"{args.name}.json.unfinished"  # what a stopped command leaves
    try:
        refuse_output(options)
        prepare_folder(args.results)
        for result in run_seeds(args.name, args.seeds, options):
            write_text(json.dumps(result, indent=1) + "\n", unfinished)
        unfinished.replace(path)
    except ValueError as error:
        print(f"several_seeds.py: {error}", file=sys.stderr)
        return 2
    except (DownloadError, OSError) as error:
        print(f"several_seeds.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped; the seeds that are done are kept in {unfinished}.", file=sys.stderr)
        return 130
    print(table_row(result))
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
