"""Two processes on one output: one whole right result, one refusal in a sentence."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import CHAPTER, command_environment, fails, made_up_messages, write_csv

from files import locked
from gpt_download import SMS_SPAM_ZIP, is_intact

TOP = CHAPTER.parent
# By command: its arguments, and the output that it holds while it runs, both in a folder of ours.
HOLDING = {
    "several_seeds": (["run", "name", "--seeds", "1", "2", "--results", "{}"], "name.json"),
    "additional_experiments": (["--suite", "main", "--results", "{}"], "main"),
    "make_tables": (["--results", "{}/results"], "results"),
    "domain_shift": (["run", "--results", "{}/results"], "results"),
    "benchmark": (["infer", "--output", "{}/benchmark"], "benchmark"),
    "classify_with_api": (["--model", "any", "--output", "{}/answers"], "answers"),
    "download_prepare_dataset": (["--output", "{}/reviews"], "reviews"),
    "train_linear": (["--results", "{}"], "linear"),
    "compare_cuts": (["name", "--results", "{}"], "cuts/name.json"),
    "pretrain": (["--output", "{}/mini"], "mini"),
}
# The commands whose folder is checked by `RunFolder` or `GrowingFile` have tests beside these.


@pytest.mark.parametrize("script", HOLDING)
def test_a_second_process_is_refused_and_writes_nothing(script, tmp_path, monkeypatch, capsys):
    arguments, output = HOLDING[script]
    path = next(TOP.glob(f"0*/**/{script}.py"))
    monkeypatch.syspath_prepend(path.parent)
    command = pytest.importorskip(script, reason="needs its folder's requirements-extra.txt")
    (tmp_path / output).parent.mkdir(exist_ok=True)
    with locked(tmp_path / output):
        before = sorted(tmp_path.rglob("*"))
        said = fails(command, capsys, *(argument.format(tmp_path) for argument in arguments))
        assert "another process is writing there" in said
        assert sorted(tmp_path.rglob("*")) == before


def without_times(content):
    """JSON without what differs from run to run, and the command, which names the output."""
    if isinstance(content, list):
        return [without_times(item) for item in content]
    if isinstance(content, dict):
        varying = ("seconds", "processor_seconds", "peak_memory_mb", "command")
        return {k: without_times(v) for k, v in content.items() if k not in varying}
    return content


def contents(folder: Path) -> dict:
    """What the files of a folder hold, but for times."""
    return {
        path.relative_to(folder): without_times(json.loads(path.read_text(encoding="utf-8")))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }


TINY = ("--train-size", "20", "--num-epochs", "1", "--continued-pretraining-epochs", "0")
TINY += ("--model", "gpt-mini", "--trainable", "head")
WRITING = {
    "finetune": ["--data", "{data}", "--output", "{out}/classifier", *TINY],
    "classify": ["{classifier}", "--file", "{data}", "--output", "{out}/classified.csv"],
    "several_seeds": [
        *("run", "two", "--seeds", "1", "2", "--data", "{data}", "--results", "{out}", *TINY)
    ],
    "additional_experiments": [*("--row", "tiny", "--results", "{out}", *TINY)],
    "export": ["{classifier}", "--format", "transformers", "--output", "{out}/exported"],
}


@pytest.mark.slow
@pytest.mark.repeated
@pytest.mark.skipif(not is_intact(SMS_SPAM_ZIP), reason="the experiments need the SMS messages")
@pytest.mark.parametrize("script", WRITING)
def test_of_two_processes_started_at_random_moments_one_writes(
    script, tmp_path, tiny_classifier_folder
):
    data = write_csv(tmp_path / "data.csv", made_up_messages(200))
    path = next(TOP.glob(f"0*/**/{script}.py"))
    names = {"data": data, "classifier": tiny_classifier_folder}
    rng, num_refused = random.Random(0), 0

    def start(out: Path) -> subprocess.Popen:
        arguments = [text.format(out=out, **names) for text in WRITING[script]]
        return subprocess.Popen(
            [sys.executable, str(path), *arguments],
            env=command_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    _, said = (alone := start(undisturbed)).communicate()
    assert alone.returncode == 0, said
    expected = contents(undisturbed)
    for i in range(20):
        out = tmp_path / str(i)
        out.mkdir()
        first = start(out)
        time.sleep(rng.uniform(0, 2))
        second = start(out)
        said = [process.communicate()[1] for process in (first, second)]
        statuses = [first.returncode, second.returncode]
        assert 0 in statuses, said
        for status, text in zip(statuses, said):
            assert status in (0, 2), text  # 0 twice, where the first was done before
            assert "Traceback" not in text
            num_refused += status == 2
        assert contents(out) == expected
    assert num_refused
