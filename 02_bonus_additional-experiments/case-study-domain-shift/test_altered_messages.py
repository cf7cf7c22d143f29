"""The altered messages: what the rules change, and the table of what is lost."""

import json
import random
from pathlib import Path

import altered_messages
import pytest
from altered_messages import ALTERATIONS, make_table, write_as_today

SPAM = "WINNER! Call 09061 from ur landline, £2 per msg. PO Box 42 www.win.example"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("every digit a 5", "Call 55555"),
        ("digits left out", "Call  from"),
        ("lower case", "winner! call"),
        ("first half of the words", "from ur landline, £2"),
        ("phrases of today", "tap 09061 from your account, $2 a month. the link below https://"),
    ],
)
def test_a_rule_changes_what_it_names(name, expected):
    assert expected in ALTERATIONS[name](SPAM, random.Random(1))


def test_half_of_the_words_is_at_least_one_and_phrases_inside_words_stay():
    assert ALTERATIONS["first half of the words"]("one", random.Random(1)) == "one"
    assert write_as_today("a context of recalls and tunes") == "a context of recalls and tunes"


def write(folder, model: str, seed: int, plain: float, lower: float) -> None:
    accuracy = dict.fromkeys(ALTERATIONS, plain) | {"lower case": lower}
    content = {"model": model, "seed": seed, "accuracy": accuracy}
    (folder / f"{model}-seed-{seed}.json").write_text(json.dumps(content))


def test_table_holds_the_points_lost_against_the_same_seeds_messages(tmp_path):
    write(tmp_path, "ngrams", 1, 0.98, 0.90)
    write(tmp_path, "ngrams", 2, 0.96, 0.90)
    rows = {row.split("|")[1].strip(): row for row in make_table(tmp_path).splitlines()}
    assert "−7.0 (" in rows["lower case"]
    assert "97.0% (" in rows["as they are"]


def test_table_is_that_of_the_raw_files():
    assert make_table() in Path(altered_messages.__file__).with_name("README.md").read_text("utf-8")


def test_what_is_measured_is_kept_and_too_little_is_said(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        altered_messages, "measure", lambda *run: seen.append(run) or {"seed": run[1]}
    )
    command = ["run", "--models", "ngrams", "--results", str(tmp_path), "--seeds", "1"]
    assert altered_messages.main(command) == altered_messages.main([*command, "2"]) == 0
    assert seen == [("ngrams", 1), ("ngrams", 2)]
    assert altered_messages.main(["report", "--results", str(tmp_path / "nothing")]) == 2
    assert "`run` makes them" in capsys.readouterr().err
