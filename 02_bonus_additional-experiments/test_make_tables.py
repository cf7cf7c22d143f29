"""The tables: paired comparisons computed by hand, and documents in step with the raw files."""

import shlex

import make_tables
import numpy as np
import pytest
from additional_experiments import make_options, row_config, runs_of
from comparisons import Runs, average, compare, load
from experiment_config import ROWS, ExperimentConfig

MEASURED = load()


def answers(by_seed: dict[int, list[float]], messages: int = 0, are_shared: bool = False) -> Runs:
    """A row whose test messages are all spam; 1 is a right answer."""
    spam = np.array(list(by_seed.values()), dtype=float)
    texts = [(seed, messages + seed * (not are_shared)) for seed in by_seed]
    labels = np.ones(spam.shape, dtype=int)
    return Runs("a row", "none", spam, labels, spam > 0.5, texts, [{}] * len(spam))


# --- Comparing -----------------------------------------------------------------------------------


def test_comparison_counts_what_only_one_of_two_got_right():
    ours = answers({1: [1, 1, 1, 0], 2: [1, 1, 0, 0]})
    theirs = answers({1: [1, 0, 0, 1], 2: [1, 1, 0, 0]})
    result = compare(ours, theirs)
    assert (result.gained, result.lost) == (2, 1)
    assert result.difference == pytest.approx(1 / 8)
    assert result.low < 0 < result.difference < result.high
    assert result.p_value == 1  # two-sided, 2 of 3
    swapped = compare(theirs, ours)
    assert swapped.difference == -result.difference
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low), abs=0.02)
    assert compare(ours, ours) == (0, 0, 0, 0, 0, 1)


def test_few_seeds_that_disagree_leave_a_wide_interval():
    ours = answers({1: [1] * 8, 2: [1, 0] * 4, 3: [0, 0, 0, 1] * 2})
    result = compare(ours, answers({seed: [0] * 8 for seed in (1, 2, 3)}))
    fractions = np.array([1, 0.5, 0.25])
    half = 4.303 * fractions.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    expected = (fractions.mean() - half, fractions.mean() + half)
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-3)


def test_seeds_that_agree_by_luck_leave_the_luck_of_the_messages():
    ours = answers({seed: [1, 1, 0, 0] for seed in (1, 2, 3)})
    result = compare(ours, answers({seed: [0, 0, 1, 0] for seed in (1, 2, 3)}))
    assert result.difference == pytest.approx(0.25)
    assert result.low < 0 < 0.5 < result.high


@pytest.mark.parametrize(("are_shared", "num_draws"), [(False, 5), (True, 1)])
def test_messages_are_drawn_for_each_seed_or_once_for_all_that_share_them(are_shared, num_draws):
    half = answers({seed: [0, 1] * 200 for seed in range(5)}, 0, are_shared)  # all seeds alike
    comparison = compare(half, answers({seed: [0] * 400 for seed in range(5)}, 0, are_shared))
    width = 2 * 1.96 * (0.25 / 400 / num_draws) ** 0.5
    assert comparison.high - comparison.low == pytest.approx(width, rel=0.06)


@pytest.mark.parametrize("other", [answers({1: [1, 0], 2: [1, 0]}, 7), answers({1: [1, 0]})])
def test_other_messages_or_seeds_are_not_compared(other):
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(answers({1: [1, 1], 2: [0, 0]}), other)


def test_average_is_that_of_the_probabilities():
    both = average(answers({1: [1, 1, 0, 0]}), answers({1: [0.2, 0.9, 0.9, 0.2]}))
    assert both.spam[0] == pytest.approx([0.6, 0.95, 0.45, 0.1])
    assert both.accuracies == [1 / 2]


# --- The repository's own results ----------------------------------------------------------------


@pytest.mark.parametrize("path", make_tables.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_that_the_raw_files_give(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- table" in text
    assert make_tables.fill_in(text, MEASURED) == text


@pytest.mark.parametrize("row", ROWS.index)
def test_files_belong_to_their_rows_and_their_metrics_to_their_predictions(row):
    base = ExperimentConfig(model="gpt-mini")
    assert row_config(row, 3, base).path.parts[-2:] == (row, "seed-3.json")
    for file in MEASURED[row].files if row in MEASURED else ():
        expected = row_config(row, file["seed"], base)
        assert expected.made(file)
        for command in (file["command"], expected.command):
            [config] = runs_of(make_options().parse_args(shlex.split(command)[1:]))
            assert (config.identity(), config.row) == (expected.identity(), row)
    if row in MEASURED:
        stored = [file["test"]["accuracy"] for file in MEASURED[row].files]
        assert MEASURED[row].accuracies == pytest.approx(stored)


def test_other_results_leave_the_documents_alone(tmp_path, monkeypatch, capsys):
    assert make_tables.main(["--results", str(tmp_path)]) == 2
    assert "--suite main" in capsys.readouterr().err
    monkeypatch.setattr(make_tables, "load", lambda results: MEASURED)
    monkeypatch.setattr(make_tables, "PLOTS", {"blocks": make_tables.blocks_plot})
    assert make_tables.main(["--results", str(tmp_path)]) == 0
    written = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert written == make_tables.DOCUMENTS[1].read_text(encoding="utf-8")
    assert not (tmp_path / "README.md").exists()
    assert (tmp_path / "figures" / "blocks.png").exists()
