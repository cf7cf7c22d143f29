"""The benchmark in a tiny form: it runs, adds up, and counts operations correctly."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import benchmark

from gpt_download import DownloadError
from previous_chapters import MODEL_CONFIGS, GPTConfig


def test_training_benchmark_writes_what_it_prints(tmp_path, capsys):
    arguments = ["train", "--model", "gpt-mini", "--plain-steps", "2", "--epochs", "1", "--plot"]
    try:
        benchmark.published_splits()
    except DownloadError as error:
        pytest.skip(f"the SMS Spam Collection cannot be had: {str(error).splitlines()[0]}")
    assert benchmark.main([*arguments, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["plain_steps"] == 131  # 1,045 messages in batches of 8
    assert result["plain_evaluations"] == 131 + 19 + 131 + 19 + 38
    assert result["speedup"] == pytest.approx(result["plain_seconds"] / result["fast_seconds"])
    assert result["times_floor"] == pytest.approx(result["fast_seconds"] / result["floor_seconds"])
    assert 0 < result["floor_seconds"] < result["fast_seconds"]
    assert f"{result['speedup']:.1f} times faster" in capsys.readouterr().out
    assert (tmp_path / "train.png").stat().st_size > 1000


def test_floor_counts_the_operations_of_the_frozen_blocks():
    cfg = MODEL_CONFIGS["gpt2-small (124M)"]
    block_weights = 12 * 768**2
    operations = benchmark.floor_operations(cfg, [[30] * 1000, [30] * 100, [30] * 200], 5)
    frozen = 11 * 2 * block_weights * 30 * 1300
    assert frozen < operations < 1.3 * frozen
    one_layer = GPTConfig(num_layers=1)
    assert benchmark.floor_operations(one_layer, [[1], [], []], 0) == 24 * 768**2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "gpt9"], "no model 'gpt9'"), (["--plain-steps", "1"], "at least 2")],
)
def test_wrong_options_are_explained(arguments, message, tmp_path, capsys):
    assert benchmark.main(["train", *arguments, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
