"""The messages of a run: what is trained, validated and tested on, and what is said about it."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers import made_up_messages, write_csv

from message_files import DataError
from run_config import SMS_NAME, RunConfig
from run_messages import read_run_messages, sort_labels, take_some


def read(data: Path, **options):
    """The messages of a run with these options."""
    config = RunConfig(data=data, text_column="text", label_column="label", **options)
    return read_run_messages(config, lambda *_: None)


def test_only_training_messages_are_augmented_and_left_out(unbalanced_csv):
    def sizes(**options) -> list[int]:
        return list(map(len, read(unbalanced_csv, **options).splits))

    assert sizes(balance="none") == [63, 9, 18]
    assert sizes(balance="none", augment=2) == [3 * 63, 9, 18]
    assert sizes(balance="none", train_size=20) == [20, 9, 18]
    assert sizes(balance="undersample") == [42, 6, 12]


def test_own_files_to_validate_and_test_on_are_used_and_never_trained_on(tmp_path, capsys):
    rows = made_up_messages(40)
    data, test = write_csv(tmp_path / "m.csv", rows), write_csv(tmp_path / "t.csv", rows[:6])
    fresh = [(f"{text} again", label) for text, label in rows[:8]]
    validation = write_csv(tmp_path / "v.csv", fresh)
    config = RunConfig(data=data, test_data=test, validation_data=validation, balance="none")
    messages = read_run_messages(config)
    assert messages.splits.test["text"].tolist() == [text for text, _ in rows[:6]]
    assert messages.splits.validation["text"].tolist() == [text for text, _ in fresh]
    assert {*messages.splits.train["text"]} == {text for text, _ in rows[6:]}
    assert {*messages.unlabelled} == {text for text, _ in rows[6:]}
    assert "Left out 6 messages" in capsys.readouterr().out
    only_test = read_run_messages(replace(config, validation_data=None), lambda *_: None).splits
    assert {*only_test.train["text"], *only_test.validation["text"]} == {t for t, _ in rows[6:]}
    strange = replace(config, test_data=write_csv(tmp_path / "s.csv", [("a b", "eggs")]))
    with pytest.raises(DataError, match="'eggs' does not occur"):
        read_run_messages(strange)
    contradictory = write_csv(tmp_path / "c.csv", [("a b", "ham"), ("a b", "spam")])
    for part in ("test_data", "validation_data"):
        with pytest.raises(DataError, match="no message is left but"):
            read_run_messages(replace(config, **{part: contradictory}))
    all_spam = write_csv(tmp_path / "a.csv", [row for row in rows if row[1] == "spam"])
    with pytest.raises(DataError, match="repeat all training messages of 'spam'"):
        read_run_messages(replace(config, test_data=all_spam, validation_data=None))


def test_labels_are_sorted_by_number_where_they_are_numbers():
    assert sort_labels({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert sort_labels({"10", "9", "x"}) == ["10", "9", "x"]


def test_some_messages_cannot_be_taken_of_a_label_that_one_carries():
    messages = pd.DataFrame({"text": list("abcdefgh"), "label": ["x"] * 7 + ["y"]})
    with pytest.raises(DataError, match="two training messages of 'y'"):
        take_some(messages, 4, seed=0)


def test_texts_that_differ_in_white_space_or_unicode_form_only_are_one_text(tmp_path, capsys):
    rows = [(f"café  {text}", label) for text, label in made_up_messages(40)]
    again = [
        (f" cafe\u0301 {text.replace(' ', chr(160))}  ", label)
        for text, label in made_up_messages(40)
    ]
    both = [("a  b", "ham"), ("a b ", "spam")]
    data = write_csv(tmp_path / "m.csv", [*rows, *again, *both])
    config = RunConfig(data=data, balance="none")
    splits = read_run_messages(config).splits
    said = capsys.readouterr().out
    assert "81 texts differ from an earlier one in white space or Unicode form only." in said
    assert "162 messages, 80 without duplicates" in said
    assert "Left out 1 texts that carry different labels." in said
    texts = [text for part in splits for text in part["text"]]
    assert sorted(texts) == sorted(text for text, _ in rows)  # as they were first written
    own = write_csv(tmp_path / "t.csv", again[:6])
    messages = read_run_messages(replace(config, test_data=own), lambda *_: None)
    assert messages.splits.test["text"].tolist() == [text for text, _ in again[:6]]
    assert len(messages.splits.train) + len(messages.splits.validation) == 74
    assert len(messages.unlabelled) == len(messages.splits.train)


def test_what_is_left_out_and_why_is_said(tmp_path, capsys):
    rows = [*made_up_messages(40), *made_up_messages(1), ("both", "ham"), ("both", "spam")]
    rows += [(f"more {i}", "ham") for i in range(9)]
    read_run_messages(RunConfig(data=write_csv(tmp_path / "m.csv", rows)))
    said = capsys.readouterr().out
    assert "93 messages, 89 without duplicates: ham 49, spam 40." in said
    assert "Left out 1 texts that carry different labels." in said
    assert "40 messages of each label, 80 of 89." in said


def test_continued_pretraining_reads_nothing_that_is_validated_or_tested_on(unbalanced_csv):
    messages = read(unbalanced_csv)
    assert len(messages.unlabelled) == 42 + 30  # of 60 ham, as many as there are spam were kept
    held_out = {*messages.splits.validation["text"], *messages.splits.test["text"]}
    assert held_out.isdisjoint(messages.unlabelled)


def test_the_protocol_chooses_the_split(sms):
    repeated = {}
    for protocol in ("clean", "published"):
        messages = read_run_messages(RunConfig(protocol=protocol), lambda *_: None)
        assert messages.label_names == ["ham", "spam"]
        assert SMS_NAME in messages.name
        splits = messages.splits
        repeated[protocol] = set(splits.train["text"]) & set(splits.test["text"])
    assert repeated["clean"] == set()
    assert len(repeated["published"]) > 20  # the messages that flatter the published figures


@pytest.mark.parametrize("labels", [("ham", "HAM"), ("1", "1.0")])
@pytest.mark.parametrize("options", [{}, {"multi_label": True, "balance": "none"}], ids=str)
def test_labels_that_are_only_alike_stay_apart_and_are_pointed_out(
    tmp_path, capsys, labels, options
):
    rows = made_up_messages(24)
    named = [
        (text, labels[i // 2 % 2] if label == "ham" else label)
        for i, (text, label) in enumerate(rows)
    ]
    data = write_csv(tmp_path / "m.csv", named)
    assert {*labels} < {*read_run_messages(RunConfig(data=data, **options)).label_names}
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "NOTE" in line]
    assert all(repr(label) in note for label in labels)


def test_a_list_of_labels_is_a_set_of_them_or_refused(tmp_path):
    rows = [
        {"text": text, "labels": [label, "all"] if i % 3 else []}
        for i, (text, label) in enumerate(made_up_messages(30))
    ]
    table, lines = pd.DataFrame(rows), tmp_path / "m.jsonl"
    table.to_json(lines, orient="records", lines=True)
    table.to_parquet(tmp_path / "m.parquet")
    for data in (lines, tmp_path / "m.parquet"):
        config = RunConfig(data=data, multi_label=True, balance="none")
        messages = read_run_messages(config, lambda *_: None)
        assert messages.label_names == ["all", "ham", "spam"]
        assert {*messages.splits.train["label"]} == {"", "all|ham", "all|spam"}
        with pytest.raises(DataError, match=r"'labels' holds lists.*--multi-label"):
            read_run_messages(replace(config, multi_label=False))
