"""The served page without a browser: its API, hostile input, many people at once."""

import csv
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs 04_user_interface/requirements-extra.txt")

import numpy as np
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from page import build_page

from classifier_folder import classify_texts, open_classifier, save_classifier

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def client(address) -> Client:
    return Client(address, verbose=False, httpx_kwargs={"timeout": 120})


def test_the_api_has_two_functions_and_says_what_they_do(client):
    described = client.view_api(print_info=False, return_format="dict")["named_endpoints"]
    assert set(described) == {"/classify", "/classify_file"}
    assert "probability of every label" in described["/classify"]["description"]
    assert "predicted_label" in described["/classify_file"]["description"]


def test_a_message_gets_the_answer_that_the_classifier_gives(client, folder):
    text = "claim your free cash prize now"
    expected = classify_texts(*open_classifier(folder), [text])[0].tolist()
    result = client.predict(text, api_name="/classify")
    assert client.predict(f"  {text}\n", api_name="/classify") == result  # as on the page
    assert result["label"] == ("ham", "spam")[int(np.argmax(expected))]
    assert list(result["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    assert list(result["probabilities"]) == ["ham", "spam"]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script> {{value}} ${value} %s \0\x07\x1b[31m مرحبا \u202eolleh 👩‍👩‍👧",
        "a" * 100_000,
        " " * 2_000_000 + "word",
    ],
    ids=len,
)
def test_any_text_gets_an_answer(client, text):
    result = client.predict(text, api_name="/classify")
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("message", ["", " \n"])
def test_an_empty_message_is_refused_in_a_sentence(client, message):
    with pytest.raises(AppError, match="no message"):
        client.predict(message, api_name="/classify")
    assert client.predict("hello", api_name="/classify")


def test_a_file_that_cannot_be_used_is_refused_without_telling_where_it_lies(client, tmp_path):
    for name, content, part in (
        ("some.csv", b"text\nhello\n", "no column 'message'"),
        ("lines.txt", b"ca\xf1on", "UTF-8"),
        ("twice.csv", b"<img src=x>,<img src=x>\n1,2\n", "'&lt;img src=x&gt;'"),  # no markup
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AppError, match=part) as refused:
            client.predict(handle_file(tmp_path / name), "message", api_name="/classify_file")
        assert str(refused.value).startswith(f"{name}: ")


def test_fifty_people_at_once_get_each_their_own_answer(client, folder):
    messages = [("claim a prize {}", "see you at home {}")[i % 2].format(i) for i in range(50)]
    with ThreadPoolExecutor(len(messages)) as pool:
        answers = pool.map(lambda text: client.predict(text, api_name="/classify"), messages)
        found = [answer["probabilities"]["spam"] for answer in answers]
    expected = classify_texts(*open_classifier(folder), messages)[:, 1].tolist()
    assert len({round(value, 6) for value in expected}) > 40  # a mix-up would be seen
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_readmes_example_runs(address, tmp_path):
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(from gradio_client.*?)```", readme, re.DOTALL)[1]
    (tmp_path / "messages.csv").write_text("text\ncash now free urgent 1\n", encoding="utf-8")
    code = example.replace("http://127.0.0.1:7860", address)
    assert code != example
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "'probabilities'" in done.stdout
    written = Path(done.stdout.splitlines()[-1])
    assert written.name == "messages-classified.csv"
    with written.open(encoding="utf-8-sig") as file:
        [row] = csv.DictReader(file)
    assert (row["text"], row["predicted_label"]) == ("cash now free urgent 1", "spam")


def page_texts(folder: Path) -> str:
    blocks = build_page(folder).blocks.values()
    return " ".join(str(block.value) for block in blocks if hasattr(block, "value"))


def test_a_folder_with_many_classes_and_no_metrics_opens(make_tiny, tmp_path):
    classifier = make_tiny(("<img src=x onerror=alert(1)>", "good", "bad"), max_length=32)
    save_classifier(classifier, tmp_path)
    texts = page_texts(tmp_path)
    assert "no metrics.json" in texts
    assert "<img" not in texts
    assert "&lt;img" in texts


def test_metrics_of_another_classifier_are_not_shown(folder, tmp_path):
    assert "right, of 24 test messages" in page_texts(folder)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    assert "no metrics.json" in page_texts(tmp_path)
    (tmp_path / "metrics.json").write_text('{"test": "of another classifier"}', encoding="utf-8")
    assert "no metrics.json" in page_texts(tmp_path)


def test_made_up_data_is_said_to_mean_nothing(folder, make_tiny, tmp_path):
    assert "mean nothing" not in page_texts(folder)
    classifier = make_tiny(("a", "b"), max_length=32)
    classifier.config.card["made_up_data"] = True
    save_classifier(classifier, tmp_path)
    assert "mean nothing" in page_texts(tmp_path)
