"""The tables: paired comparisons computed by hand, and documents in step with the raw files."""

import json
import re
import shlex

import additional_experiments as experiments
import make_tables
import matplotlib.pyplot as plt
import numpy as np
import pytest
import suites
from PIL import Image

MEASURED = make_tables.load([*suites.SUITES["main"]])


def measured(name: str, answers: dict[int, list[int]], crc: int = 0) -> make_tables.Measured:
    """A row whose test messages are all spam; 1 is a right answer."""
    runs = [
        {
            "seed": seed,
            "predictions": {
                "labels": "1" * len(right),
                "spam_probability": experiments.pack(
                    np.array([[1 - r, r] for r in right], dtype=float)
                ),
                "test_texts_crc32": crc + seed,
            },
        }
        for seed, right in answers.items()
    ]
    return make_tables.Measured(suites.Row(name, "", name), runs)


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------


def test_a_comparison_counts_what_only_one_of_two_got_right():
    ours = measured("ours", {1: [1, 1, 1, 0], 2: [1, 1, 0, 0]})
    theirs = measured("theirs", {1: [1, 0, 0, 1], 2: [1, 1, 0, 0]})
    result = make_tables.compare(ours, theirs)
    assert (result.gained, result.lost) == (2, 1)
    assert result.difference == pytest.approx(1 / 8)
    assert result.low < 0 < result.difference < result.high
    assert result.p_value == 1  # two-sided, 2 of 3
    swapped = make_tables.compare(theirs, ours)
    assert swapped.difference == -result.difference
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low), abs=0.02)


def test_equal_answers_differ_by_nothing():
    ours = measured("ours", {1: [1, 0, 1], 2: [0, 1, 1]})
    result = make_tables.compare(ours, ours)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_few_seeds_that_disagree_leave_a_wide_interval():
    ours = measured("ours", {1: [1] * 8, 2: [1, 0] * 4, 3: [0, 0, 0, 1] * 2})
    theirs = measured("theirs", {seed: [0] * 8 for seed in (1, 2, 3)})
    result = make_tables.compare(ours, theirs)
    shares = np.array([1, 0.5, 0.25])
    half = 4.303 * shares.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert (result.low, result.high) == pytest.approx(
        (shares.mean() - half, shares.mean() + half), abs=1e-3
    )


def test_seeds_that_agree_by_luck_leave_the_luck_of_the_messages():
    ours = measured("ours", {seed: [1, 1, 0, 0] for seed in (1, 2, 3)})
    theirs = measured("theirs", {seed: [0, 0, 1, 0] for seed in (1, 2, 3)})
    result = make_tables.compare(ours, theirs)
    assert result.difference == pytest.approx(0.25)
    assert result.low < 0 < 0.5 < result.high


def test_a_row_without_files_is_named(tmp_path):
    with pytest.raises(ValueError, match="last-block needs the files of 5 seeds"):
        make_tables.load_one(suites.KNOWN[0], tmp_path)


def test_a_clear_difference_excludes_zero_and_a_small_one_does_not():
    rng = np.random.default_rng(0)
    right = {seed: (rng.random(200) < 0.8).astype(int).tolist() for seed in range(5)}
    worse = {s: [r * int(rng.random() < 0.9) for r in answers] for s, answers in right.items()}
    clear = make_tables.compare(measured("a", right), measured("b", worse))
    assert clear.low > 0
    assert clear.p_value < 1e-6
    slightly = {s: [0, *answers[1:]] for s, answers in right.items()}
    small = make_tables.compare(measured("a", right), measured("b", slightly))
    assert small.low <= 0.001


def test_seeds_that_disagree_widen_the_interval():
    steady = {seed: [0] * 10 + [1] * 90 for seed in range(5)}
    better = {seed: [1] * 10 + [1] * 90 for seed in range(5)}
    uneven = {seed: [int(seed < 2)] * 10 + [1] * 90 for seed in range(5)}
    sure = make_tables.compare(measured("a", better), measured("b", steady))
    unsure = make_tables.compare(measured("a", uneven), measured("b", steady))
    assert unsure.high - unsure.low > sure.high - sure.low


def test_a_seed_that_is_drawn_twice_draws_its_messages_twice():
    half = {seed: [0, 1] * 200 for seed in range(5)}  # all seeds alike: only messages vary
    none = {seed: [0] * 400 for seed in range(5)}
    comparison = make_tables.compare(measured("a", half), measured("b", none))
    width = 2 * 1.96 * (0.25 / 400 / 5) ** 0.5
    assert comparison.high - comparison.low == pytest.approx(width, rel=0.06)


def test_only_common_seeds_are_compared_and_only_the_same_messages():
    ours, theirs = measured("a", {1: [1, 1], 2: [0, 0]}), measured("b", {1: [1, 0]})
    assert make_tables.compare(ours, theirs).difference == 0.5
    with pytest.raises(ValueError, match="different messages"):
        make_tables.compare(ours, measured("b", {1: [1, 0]}, crc=7))


# ---------------------------------------------------------------------------------------------
# The repository's own results
# ---------------------------------------------------------------------------------------------


def test_tables_of_the_readme_are_those_that_the_raw_files_give():
    text = make_tables.README.read_text(encoding="utf-8")
    assert make_tables.fill_in(text, make_tables.make_all()) == text
    assert make_tables.main(["--check"]) == 0


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


def test_every_measured_row_has_five_seeds_on_real_messages():
    assert MEASURED, "there are no results"
    for m in MEASURED:
        assert len(m.runs) >= 5, m.row.name
        assert {run["model"] for run in m.runs} <= {"gpt-mini", *experiments.BASELINES}
        for run in m.runs:
            published = 3902 if "almeida" in m.row.name else 262
            assert run["test"]["num_examples"] == published


def test_files_belong_to_their_rows_and_their_figures_to_their_predictions():
    for m in MEASURED:
        for run in m.runs:
            script, *arguments = shlex.split(run["command"])
            args = experiments.parse_args(arguments)
            assert script == "additional_experiments.py"
            assert experiments.configuration(args) == run["configuration"], run["command"]
            own = ["--seed", str(run["seed"]), *shlex.split(m.row.options)]
            if not m.row.is_classical:
                own += ["--model", "gpt-mini"]
            expected = experiments.configuration(experiments.parse_args(own))
            assert run["configuration"] == expected, m.row.name
            right = make_tables.is_correct(run).mean()
            assert run["test"]["accuracy"] == pytest.approx(right, abs=1e-9)


def test_results_are_small():
    paths = [path for path in make_tables.RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) < 5_000_000


def test_every_command_of_the_readme_is_understood():
    text = make_tables.README.read_text(encoding="utf-8")
    commands = re.findall(r"additional_experiments\.py (--[^\n`]*)", text)
    options = re.findall(r"\| `(--[^`]*)` \|", text)
    assert len(options) > 20
    for arguments in (*commands, *options):
        experiments.parse_args(shlex.split(arguments, comments=True))


def test_known_table_has_all_rows_and_marks_what_is_not_measured():
    text = make_tables.known_table()
    for options, _, published in make_tables.NOT_MEASURED:
        line = next(line for line in text.splitlines() if f"`{options}`" in line)
        assert "not measured here" in line
        assert f"{published:.1f}%" in line


def test_a_table_that_is_outdated_is_noticed(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    text = make_tables.README.read_text(encoding="utf-8")
    readme.write_text(text.replace("not measured here", "90.0%"), encoding="utf-8")
    monkeypatch.setattr(make_tables, "README", readme)
    assert make_tables.main(["--check"]) == 1


def test_raw_files_are_plain_json_without_paths_of_a_machine():
    for path in make_tables.RESULTS.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        json.loads(text)
        assert not re.search(r"/(home|tmp|root|work)/", text), path
