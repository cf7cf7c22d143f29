"""Ray hands out parts: each row is there once, though a worker is killed and a run is repeated."""

import os
import signal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

ray = pytest.importorskip("ray", reason="needs distributed/requirements-extra.txt")

from classify_with_ray import PartClassifier, list_parts, main, start_ray  # noqa: E402

from classifier_folder import classify_texts, open_classifier, save_classifier  # noqa: E402
from message_files import DataError  # noqa: E402
from previous_chapters import GPTConfig, GPTModel  # noqa: E402
from text_classifier import ClassifierConfig, GPTClassifier  # noqa: E402

ROWS_IN_A_PART = 5


class DiesOnce(PartClassifier):
    def __call__(self, part: dict) -> dict:
        has_died = Path(part["output"]).with_name("died")
        if part["row_group"] == 1 and not has_died.exists():
            has_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(part)


@pytest.fixture
def started(monkeypatch):
    here = str(Path(__file__).parent)  # where workers find this module
    monkeypatch.setenv("PYTHONPATH", here, prepend=os.pathsep)
    try:
        start_ray(workers=2)
    except Exception as error:
        pytest.skip(f"Ray gives itself half a minute to start: {error}")
    yield
    ray.shutdown()


@pytest.fixture
def classifier(tmp_path) -> Path:
    torch.manual_seed(0)
    shape = GPTConfig(vocab_size=4096, context_length=32, emb_dim=16, n_heads=2, n_layers=2)
    about = ClassifierConfig("gpt-mini", ("ham", "spam"), max_length=32)
    save_classifier(GPTClassifier(GPTModel(shape), about), tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def messages(tmp_path) -> Path:
    """Two files of 12 and 7 rows: parts of 5, 5, 2, 5 and 2."""
    folder = tmp_path / "messages"
    folder.mkdir()
    for name, ids in (("a", range(12)), ("b", range(12, 19))):
        table = pd.DataFrame({"id": ids, "text": [f"message {i}" for i in ids]})
        table.to_parquet(folder / f"{name}.parquet", row_group_size=ROWS_IN_A_PART, index=False)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("started")
def test_a_killed_worker_costs_no_row_and_what_is_done_is_not_done_again(
    tmp_path, classifier, messages, monkeypatch, capsys
):
    output = tmp_path / "output"
    arguments = [str(classifier), str(messages), str(output)]
    monkeypatch.setattr("classify_with_ray.PartClassifier", DiesOnce)
    assert main(arguments) == 0
    assert (output / "died").exists()
    assert "19 rows in " in capsys.readouterr().out  # Ray reports the death above it
    files = sorted(output.glob("*.parquet"))
    assert len(files) == 5
    table = pd.concat(map(pd.read_parquet, files), ignore_index=True)
    assert table["id"].tolist() == list(range(19))
    expected = classify_texts(*open_classifier(classifier), list(table["text"])).amax(dim=1)
    assert table["probability"].tolist() == pytest.approx(expected.tolist(), abs=1e-4)

    files[3].unlink()  # as if the run had been stopped before it
    times = [file.stat().st_mtime_ns for file in files[:3]]
    assert main(arguments) == 0
    assert pd.read_parquet(files[3])["id"].tolist() == list(range(12, 17))
    assert [file.stat().st_mtime_ns for file in files[:3]] == times


def test_a_part_keeps_its_columns_and_their_types(tmp_path, classifier):
    table = pa.table({"id": pa.array([2**53 + 1, None]), "text": ["see you", "win"]})
    pq.write_table(table, tmp_path / "in.parquet")
    [part] = list_parts([tmp_path / "in.parquet"], "text", tmp_path)
    assert PartClassifier(classifier, "text")(part) == {"rows": 2}
    written = pq.read_table(part["output"])
    assert written.select(["id", "text"]).equals(table)
    assert set(written["predicted_label"].to_pylist()) <= {"ham", "spam"}


def test_a_file_without_rows_has_no_parts_and_taken_names_are_refused(tmp_path):
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(tmp_path / "empty.parquet")
    assert list_parts([tmp_path / "empty.parquet"], "text", tmp_path) == []
    pd.DataFrame({"text": ["a"], "probability": [1]}).to_parquet(tmp_path / "taken.parquet")
    with pytest.raises(DataError, match="'probability'"):
        list_parts([tmp_path / "taken.parquet"], "text", tmp_path)


def test_other_input_or_columns_are_refused(tmp_path, classifier, messages, capsys):
    output = tmp_path / "output"
    arguments = [str(classifier), str(messages), str(output)]
    output.mkdir()
    (output / "run.json").write_text('{"of": "another run"}')
    assert main(arguments) == 2
    assert "name another folder" in capsys.readouterr().err
    assert main([*arguments, "--text-column", "x"]) == 2
    assert "no column 'x'" in capsys.readouterr().err
