"""make_table.py writes the table and nothing else; the parts fit the chapter's commands."""

from imdb_samples import write_sample_parts

import make_table
from message_files import read_messages


def test_writing_the_table_changes_nothing_else(tmp_path, monkeypatch, capsys):
    before = make_table.README.read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(before.replace("| majority ", "| guessing "), encoding="utf-8")
    monkeypatch.setattr(make_table, "README", copy)
    assert make_table.main(["--write"]) == 0
    assert copy.read_text(encoding="utf-8") == before
    assert make_table.main(["--results", str(tmp_path)]) == 2
    assert "no result files" in capsys.readouterr().err


def test_parts_can_be_handed_to_the_chapter_s_command(tmp_path):
    write_sample_parts(tmp_path)
    messages = read_messages(tmp_path / "train.parquet", "text", "label")
    assert set(messages["label"]) == {"neg", "pos"}
