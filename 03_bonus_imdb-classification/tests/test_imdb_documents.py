"""The README's table is that of the result files; the parts fit the chapter's commands."""

from pathlib import Path

from imdb_samples import write_sample_parts

import make_table
from message_files import read_messages


def test_the_readme_shows_the_table_of_the_results(tmp_path, capsys):
    readme = Path(make_table.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert make_table.make_table() in readme
    assert make_table.main(["--results", str(tmp_path)]) == 2
    assert "no result files" in capsys.readouterr().err


def test_parts_can_be_handed_to_the_chapter_s_command(tmp_path):
    write_sample_parts(tmp_path)
    messages = read_messages(tmp_path / "train.parquet", "text", "label")
    assert set(messages["label"]) == {"neg", "pos"}
