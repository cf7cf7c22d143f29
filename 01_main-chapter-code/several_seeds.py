"""One setting of finetune.py over several seeds: mean, spread and interval of its test metrics.

    python 01_main-chapter-code/several_seeds.py run 1-default --seeds 1 2 3 4 5 --model gpt-mini
    python 01_main-chapter-code/several_seeds.py table
    python 01_main-chapter-code/several_seeds.py compare 1-default 2-without-continued-pretraining

`run NAME` keeps the metrics of every seed in `results/NAME.json`; its other options are those of
finetune.py. `table` prints the table of the README from those files, `compare` the difference
between two of them, or between one and the n-grams.
"""

import argparse
import dataclasses
import shlex
import startup_errors  # noqa: F401
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from scipy import stats
from tqdm import tqdm

from command_line import HelpFormatter, add_options, config_from, make_parser, run_command
from features import LatestStore
from files import read_json, reading_results, write_json
from fine_tuning import fine_tune
from message_files import DataError
from run_config import OF_OUTPUT, RunConfig

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


def run_seeds(command: str, seeds: Sequence[int], config: RunConfig) -> Iterator[dict]:
    """Fine-tune once a seed; after each, all metrics so far."""
    runs, store = [], LatestStore()  # of frozen states: many messages are those of the seed before
    for seed in tqdm(seeds):
        one = dataclasses.replace(config, seed=seed, quiet=True)
        metrics = fine_tune(one, store=store).metrics
        kept = {key: metrics[key] for key in KEPT}
        kept["seconds"] = round(sum(metrics["seconds"].values()), 1)
        kept["peak_memory_mb"] = metrics["peak_memory_mb"]
        runs.append(kept)
        yield {"command": command, "versions": metrics["versions"], "runs": runs}


def table_row(result: dict) -> dict[str, str]:
    """One result file in the words of the README's table."""
    runs = result["runs"]
    accuracies = [run["test"]["accuracy"] for run in runs]
    mean, deviation, low, high = mean_and_interval(accuracies)
    baselines = [run["ngram_baseline"] for run in runs]  # None where the data is too large for it
    ngrams = "–"
    if all(baselines):
        ngrams = f"{statistics.mean(metrics['accuracy'] for metrics in baselines):.1%}"
    return {
        "test accuracy": f"{mean:.1%}",
        "deviation": f"{100 * deviation:.1f}",
        "95% interval of the mean": f"[{low:.1%}, {high:.1%}]",
        "every seed": " ".join(f"{100 * value:.1f}" for value in accuracies),
        "n-grams": ngrams,
    }


def make_table(folder: Path = RESULTS) -> str:
    """The table of the README, in Markdown, from the result files in the order of their names."""
    names = sorted(path.stem for path in folder.glob("*.json"))
    if not names:
        raise DataError(f"there are no result files in {folder}.")
    rows = [{"setting": name} | table_row(read_result(name, folder)) for name in names]
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def paired_difference(first: dict, second: dict | None = None) -> str:
    """Points by which the first result's accuracy exceeds the second's, or that of the n-grams on
    the same messages, paired by seed: the mean, and its 95% interval (Student's t).

    Raises ``DataError`` unless both have the same seeds and data.
    """

    def tested_on(result: dict) -> list[tuple]:
        return [(run["seed"], run["data"], run["test"]["num_examples"]) for run in result["runs"]]

    if second is None:
        others = [run["ngram_baseline"] for run in first["runs"]]
        if not all(others):
            raise DataError("the n-grams were not measured there, since the data are too large")
    else:
        others = [run["test"] for run in second["runs"]]
        if tested_on(first) != tested_on(second):
            raise DataError("the two results have other seeds or data, and cannot be paired")
    pairs = zip((run["test"] for run in first["runs"]), others, strict=True)
    differences = [100 * (ours["accuracy"] - other["accuracy"]) for ours, other in pairs]
    mean, _, low, high = mean_and_interval(differences)
    return f"{mean:.1f} points ({low:.1f} to {high:.1f})"


def read_result(name: str, folder: Path = RESULTS) -> dict:
    """What `run NAME` kept; raises ``DataError`` where there is no such file, or a damaged one."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no such result; `run {name}` makes it.")
    return read_json(path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser("several_seeds.py", __doc__.partition("\n")[0])
    folder = {"type": Path, "default": RESULTS, "help": "folder of the result files"}
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="fine-tune once a seed", formatter_class=HelpFormatter)
    run.add_argument("name", help="name of the result file")
    run.add_argument("--seeds", type=int, nargs="+", required=True, help="at least two")
    run.add_argument("--results", **folder)
    add_options(run, RunConfig, leave_out=("seed", *OF_OUTPUT))
    table = commands.add_parser("table", help="print the table of all result files")
    table.add_argument("--results", **folder)
    compare = commands.add_parser("compare", help="FIRST minus SECOND, paired by seed")
    compare.add_argument("first", help="name of a result file")
    compare.add_argument("second", nargs="?", help="another; default: the n-grams of the first")
    compare.add_argument("--results", **folder)
    args = parser.parse_args(argv)
    if args.command == "run":
        if len(set(args.seeds)) < max(2, len(args.seeds)):
            run.error("--seeds needs at least two seeds, each once")
        if Path(args.name).name != args.name:
            run.error(f"{args.name!r} cannot name a file; its folder is chosen by --results")
        options = sys.argv[2:] if argv is None else argv[1:]
        args.spelled = shlex.join(["several_seeds.py", "run", *options])
    return args


def comparison(args: argparse.Namespace) -> str:
    names = [args.first] + ([args.second] if args.second else [])
    difference = paired_difference(*(read_result(name, args.results) for name in names))
    return f"{args.first} minus {args.second or 'n-grams'}: {difference}"


def work(args: argparse.Namespace) -> None:
    if args.command != "run":
        with reading_results(args.results):
            print(make_table(args.results) if args.command == "table" else comparison(args))
        return
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"{args.name}.json"
    if path.exists():
        raise DataError(f"{path} is there already: choose another name, or folder of --results.")
    unfinished = path.with_suffix(".json.unfinished")  # what a stopped command leaves
    for result in run_seeds(args.spelled, args.seeds, config_from(args, RunConfig)):
        write_json(result, unfinished)
    unfinished.replace(path)
    print(pd.DataFrame([table_row(result)]).to_markdown(index=False, disable_numparse=True))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    output = args.results / f"{args.name}.json" if args.command == "run" else None
    return run_command("several_seeds.py", lambda: work(args), output=output)


if __name__ == "__main__":
    sys.exit(main())
