"""The tables: paired comparisons computed by hand, and documents in step with the raw files."""

import shlex

import comparisons
import make_tables
import matplotlib.pyplot as plt
import numpy as np
import pytest
import suites
from additional_experiments import pack, parse_args
from comparisons import compare
from experiment_config import ExperimentConfig
from PIL import Image

from command_line import config_from

MEASURED = comparisons.load(list(make_tables.ROWS.values()))


def measured(answers: dict[int, list[int]], crc: int = 0) -> comparisons.Measured:
    """A row whose test messages are all spam; 1 is a right answer."""
    runs = [
        {
            "seed": seed,
            "predictions": {
                "labels": "1" * len(right),
                "spam_probability": pack(np.array([[1 - r, r] for r in right], dtype=float)),
                "test_texts_crc32": crc + seed,
            },
        }
        for seed, right in answers.items()
    ]
    return comparisons.Measured(suites.Row("a row", "", "a row"), runs)


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------


def test_comparison_counts_what_only_one_of_two_got_right():
    ours = measured({1: [1, 1, 1, 0], 2: [1, 1, 0, 0]})
    theirs = measured({1: [1, 0, 0, 1], 2: [1, 1, 0, 0]})
    result = compare(ours, theirs)
    assert (result.gained, result.lost) == (2, 1)
    assert result.difference == pytest.approx(1 / 8)
    assert result.low < 0 < result.difference < result.high
    assert result.p_value == 1  # two-sided, 2 of 3
    swapped = compare(theirs, ours)
    assert swapped.difference == -result.difference
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low), abs=0.02)


def test_equal_answers_differ_by_nothing():
    ours = measured({1: [1, 0, 1], 2: [0, 1, 1]})
    result = compare(ours, ours)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_few_seeds_that_disagree_leave_a_wide_interval():
    ours = measured({1: [1] * 8, 2: [1, 0] * 4, 3: [0, 0, 0, 1] * 2})
    theirs = measured({seed: [0] * 8 for seed in (1, 2, 3)})
    result = compare(ours, theirs)
    fractions = np.array([1, 0.5, 0.25])
    half = 4.303 * fractions.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    expected = (fractions.mean() - half, fractions.mean() + half)
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-3)


def test_seeds_that_agree_by_luck_leave_the_luck_of_the_messages():
    ours = measured({seed: [1, 1, 0, 0] for seed in (1, 2, 3)})
    theirs = measured({seed: [0, 0, 1, 0] for seed in (1, 2, 3)})
    result = compare(ours, theirs)
    assert result.difference == pytest.approx(0.25)
    assert result.low < 0 < 0.5 < result.high


def test_seed_that_is_drawn_twice_draws_its_messages_twice():
    half = {seed: [0, 1] * 200 for seed in range(5)}  # all seeds alike: only messages vary
    none = {seed: [0] * 400 for seed in range(5)}
    comparison = compare(measured(half), measured(none))
    width = 2 * 1.96 * (0.25 / 400 / 5) ** 0.5
    assert comparison.high - comparison.low == pytest.approx(width, rel=0.06)


@pytest.mark.parametrize("other", [measured({1: [1, 0], 2: [1, 0]}, crc=7), measured({1: [1, 0]})])
def test_other_messages_or_seeds_are_not_compared(other):
    with pytest.raises(ValueError, match="cannot be compared"):
        compare(measured({1: [1, 1], 2: [0, 0]}), other)


def test_average_is_that_of_the_probabilities():
    one, other = measured({1: [1, 1, 0, 0]}), measured({1: [0.2, 0.9, 0.9, 0.2]})
    one.runs[0]["predictions"]["labels"] = "1011"
    [run] = comparisons.average(one, other).runs
    spam = comparisons.unpack(run["predictions"]["spam_probability"])
    assert spam == pytest.approx([0.6, 0.95, 0.45, 0.1])
    assert run["test"]["accuracy"] == 1 / 4


def test_row_without_files_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match="last-block needs the files of 5 seeds"):
        make_tables.known_table()


# ---------------------------------------------------------------------------------------------
# The repository's own results
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", make_tables.DOCUMENTS, ids=lambda path: path.name)
def test_tables_are_those_that_the_raw_files_give(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- table") > 1
    assert make_tables.fill_in(text) == text


@pytest.mark.parametrize("name", make_tables.PLOTS)
def test_figures_are_those_that_the_raw_files_give(name, tmp_path):
    figure = make_tables.PLOTS[name]()
    figure.savefig(tmp_path / "new.png", dpi=110)
    plt.close(figure)
    new, saved = (
        np.asarray(Image.open(path).convert("L"), dtype=float)
        for path in (tmp_path / "new.png", make_tables.FIGURES / f"{name}.png")
    )
    assert abs(new.shape[0] - saved.shape[0]) <= 4
    height, width = (min(new.shape[i], saved.shape[i]) for i in (0, 1))
    # Fonts differ among machines; a moved point differs more.
    assert np.abs(new[:height, :width] - saved[:height, :width]).mean() < 4


def test_every_row_is_measured_with_five_seeds():
    rows = [m.row for m in MEASURED]
    assert [row.name for row in suites.SUITES["main"] if row not in rows] == []


@pytest.mark.parametrize("m", MEASURED, ids=lambda m: m.row.name)
def test_files_belong_to_their_rows_and_their_metrics_to_their_predictions(m):
    for run in m.runs:
        script, *arguments = shlex.split(run["command"])
        assert script == "additional_experiments.py"
        config = config_from(parse_args(arguments), ExperimentConfig)
        assert config.command == run["command"]
        assert config.identity() == run["configuration"], run["command"]
        own = [] if m.row.is_classical else ["--model", "gpt-mini"]
        own += ["--seed", str(run["seed"]), *shlex.split(m.row.options)]
        expected = config_from(parse_args(own), ExperimentConfig)
        assert run["configuration"] == expected.identity()
        assert run["test"]["accuracy"] == pytest.approx(comparisons.is_correct(run).mean())
        assert run["test"]["num_examples"] == (3902 if "almeida" in m.row.name else 262)
