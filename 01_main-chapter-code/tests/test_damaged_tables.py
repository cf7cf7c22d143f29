"""Damaged tables: refused in a sentence, or no more than the damaged rows are lost."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_message_files import ROWS, pairs, write, write_as

from message_files import DataError, read_messages, read_table


def is_usable_or_refused_in_a_sentence(path: Path) -> bool:
    try:
        return len(read_table(path)) >= 1
    except DataError as error:
        return str(path) in str(error)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_whatever_the_bytes_there_is_a_table_or_a_sentence(tmp_path_factory, raw, ending):
    path = write(tmp_path_factory.mktemp("bytes") / f"m.{ending}", raw)
    assert is_usable_or_refused_in_a_sentence(path)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_a_parquet_file_with_a_wrong_byte_gives_a_table_or_a_sentence(tmp_path_factory, data):
    path = write_as(tmp_path_factory.mktemp("parquet") / "m.parquet", ROWS * 10)
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    assert is_usable_or_refused_in_a_sentence(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_damaged_table_is_refused_or_loses_no_more_than_the_damaged_rows(tmp_path, ending):
    """A thousand files, each with one byte removed, added or changed."""
    rows = [
        (f'He said "{i}, perhaps", twice', "ham") if i % 3 else (f"{i}", "spam") for i in range(9)
    ]
    path = write_as(tmp_path / f"m.{ending}", rows)
    raw, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        at, new = rng.randrange(len(raw)), rng.choice(b'",;\t\n\r a1\\{}\xff')
        removed, added = rng.choice([(1, b""), (0, bytes([new])), (1, bytes([new]))])
        path.write_bytes(raw[:at] + added + raw[at + removed :])
        try:
            found = pairs(read_messages(path, "text", "label", log=lambda _: None))
        except DataError:
            refused += 1
        else:
            assert len(set(rows) - set(found)) <= 2, (at, removed, added)
            assert len(found) >= len(rows) - 2
    assert 0 < refused < 1000
