"""The served page without a browser: its API, hostile input, many people at once."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs requirements-extra.txt")

import gradio as gr
import httpx
import numpy as np
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from page import MAX_WAITING, build_page, decide
from trial_page import ask_together, made_up_csv, served, train_small

from gpt_download import load_mini_tokenizer
from previous_chapters import GPTConfig, GPTModel
from text_classifier import (
    Classifier,
    add_classification_head,
    classify_texts,
    open_classifier,
    save_classifier,
)

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("trained")
    return train_small(place / "classifier", made_up_csv(place / "messages.csv"))


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as url:
        yield url


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
    expected = classify_texts(open_classifier(folder), [text])[0].tolist()
    result = client.predict(text, api_name="/classify")
    assert result["label"] == ("ham", "spam")[int(np.argmax(expected))]
    assert list(result["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
    assert list(result["probabilities"]) == ["ham", "spam"]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\0\x07\x1b[31m control",
        "مرحبا \u202eolleh\u202c",
        "👩‍👩‍👧 🇬🇧",
        "a" * 100_000,
        "word and word " * 7_000,
        "<|endoftext|>",
        "{{value}} ${value} %s",
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_any_text_gets_an_answer(client, text):
    result = client.predict(text, api_name="/classify")
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_half_an_emoji_is_no_error(address):
    call = f"{address}gradio_api/call/classify"
    body, kind = b'{"data": ["\\ud83d and more"]}', {"content-type": "application/json"}
    started = httpx.post(call, content=body, headers=kind).json()
    assert "event: complete" in httpx.get(f"{call}/{started['event_id']}", timeout=60).text


@pytest.mark.parametrize(
    ("message", "part"), [("", "no message"), (" \n", "no message"), (5, "text"), ([], "text")]
)
def test_what_is_no_message_is_refused_in_a_sentence(client, message, part):
    with pytest.raises(AppError, match=part):
        client.predict(message, api_name="/classify")
    assert client.predict("hello", api_name="/classify")


def test_a_file_goes_in_and_a_file_comes_out(client, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(
        "text,note\ncash now free urgent 1,=1+1\nhome mum dinner tonight 0,-5\n", encoding="utf-8"
    )
    with open(client.predict(handle_file(path), "text", api_name="/classify_file")) as file:
        rows = list(csv.DictReader(file))
    assert [row["note"] for row in rows] == ["'=1+1", "-5"]
    assert [row["predicted_label"] for row in rows] == ["spam", "ham"]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)


def test_a_file_that_cannot_be_used_is_refused_without_telling_where_it_lies(client, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("text\nhello\n", encoding="utf-8")
    with pytest.raises(AppError, match="no column 'message'") as refused:
        client.predict(handle_file(path), "message", api_name="/classify_file")
    assert str(refused.value).startswith("some.csv: ")
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"ca\xf1on")
    with pytest.raises(AppError, match=r"^lines\.txt: .*UTF-8"):
        client.predict(handle_file(lines), "", api_name="/classify_file")
    lines.write_text(f"hello\n{'x' * 500_001}\n", encoding="utf-8")
    with pytest.raises(AppError, match=r"^lines\.txt: in row 2"):
        client.predict(handle_file(lines), "", api_name="/classify_file")


def test_files_of_the_server_cannot_be_asked_for(client, address):
    with pytest.raises(AppError):
        client.predict(
            {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
            "",
            api_name="/classify_file",
        )
    assert httpx.get(f"{address}gradio_api/file=/etc/passwd").status_code in (403, 404)


@pytest.mark.parametrize(("function", "others"), [("/classify", []), ("/classify_file", [""])])
def test_no_file_is_fetched_from_an_address(client, monkeypatch, function, others):
    fetched = []

    async def fetch(url, cache_dir):
        fetched.append(url)
        raise OSError("no network in a test")

    monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", fetch)
    file = handle_file("https://example.org/messages.csv")
    with pytest.raises(AppError, match="fetches no file from an address"):
        client.predict(file, *others, api_name=function)
    assert fetched == []


def test_markup_in_a_heading_is_no_markup_in_the_complaint(client, tmp_path):
    path = tmp_path / "some.csv"
    path.write_text("<img src=x>,<img src=x>\n1,2\n", encoding="utf-8")
    with pytest.raises(AppError, match="two columns are called '&lt;img src=x&gt;'"):
        client.predict(handle_file(path), "", api_name="/classify_file")


def test_an_upload_of_100_mb_is_refused_and_the_page_answers_afterwards(client, address):
    content = b"text\n" + b"x" * 100_000_000
    reply = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.csv", content)})
    assert reply.status_code == 413
    assert "exceed" in reply.text
    assert client.predict("hello", api_name="/classify")


def test_fifty_people_at_once_get_each_their_own_answer(address, folder):
    messages = [("claim a prize {}", "see you at home {}")[i % 2].format(i) for i in range(50)]
    answers = [answer for answer, _ in ask_together(address, messages)]
    expected = classify_texts(open_classifier(folder), messages)[:, 1].tolist()
    assert len({round(value, 6) for value in expected}) > 40  # a mix-up would be seen
    found = [answer["probabilities"]["spam"] for answer in answers]
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_readmes_example_runs(address, tmp_path):
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(from gradio_client.*?)```", readme, re.DOTALL)[1]
    (tmp_path / "messages.csv").write_text("text\nfree prize now\n", encoding="utf-8")
    code = example.replace("http://127.0.0.1:7860", address)
    assert code != example
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "'probabilities'" in done.stdout
    assert "messages-classified.csv" in done.stdout


def test_the_defaults_are_safe(address):
    config = httpx.get(f"{address}config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("run_history", False)
    assert config["max_file_size"] == 50 * 1024**2
    assert httpx.get(f"{address}monitoring/x").status_code >= 400


def test_with_auth_nobody_gets_in_without_the_password(folder):
    with served(folder, auth=("reader", "secret")) as address:
        assert httpx.get(f"{address}config").status_code == 401
        call = f"{address}gradio_api/call/classify"
        assert httpx.post(call, json={"data": ["hello"]}).status_code == 401
        client = Client(address, auth=("reader", "secret"), verbose=False)
        assert client.predict("hello", api_name="/classify")


def test_the_queue_is_bounded(folder):
    page = build_page(open_classifier(folder), folder)
    assert page._queue.max_size == MAX_WAITING
    assert page._queue.default_concurrency_limit == 2


def three_labels(folder: Path) -> Path:
    """A saved classifier with random weights and three labels, one of them hostile."""
    torch.manual_seed(0)
    tokenizer = load_mini_tokenizer()
    shape = {"vocab_size": tokenizer.n_vocab, "context_length": 32, "emb_dim": 8}
    model = GPTModel(GPTConfig(**shape, num_heads=2, num_layers=1))
    add_classification_head(model, num_classes=3)
    names = ["<img src=x onerror=alert(1)>", "good", "bad"]
    save_classifier(Classifier(model, tokenizer, "gpt-mini", names, 32), folder)
    return folder


def page_texts(page: gr.Blocks) -> str:
    return " ".join(str(block.value) for block in page.blocks.values() if hasattr(block, "value"))


def test_a_folder_with_many_classes_and_no_figures_opens(tmp_path):
    folder = three_labels(tmp_path / "classifier")
    texts = page_texts(build_page(open_classifier(folder), folder))
    assert "no test figures" in texts
    assert "<img" not in texts
    assert "&lt;img" in texts


def test_without_the_predictions_the_figures_stay_and_the_curves_are_missed(folder, tmp_path):
    classifier = open_classifier(folder)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    texts = page_texts(build_page(classifier, tmp_path))
    assert "No curves" in texts
    assert "metrics.json" in texts
    assert f"{classifier.card['test']['accuracy']:.1%}" in texts


def test_test_messages_of_one_class_have_no_curve(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    labels = metrics["test_predictions"]["labels"]
    metrics["test_predictions"]["labels"] = [1] * len(labels)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    texts = page_texts(build_page(open_classifier(tmp_path), tmp_path))
    assert "of one class" in texts
    assert "Expected calibration error" in texts


def test_made_up_data_is_said_to_mean_nothing(folder):
    classifier = open_classifier(folder)
    assert "mean nothing" not in page_texts(build_page(classifier, folder))
    classifier.card["made_up_data"] = True
    assert "mean nothing" in page_texts(build_page(classifier, folder))


@pytest.mark.parametrize(
    ("probabilities", "threshold", "expected"),
    [
        ([0.4, 0.6], 0.5, "spam"),
        ([0.4, 0.6], 0.61, "ham"),
        ([0.8, 0.2], 0.2, "spam"),
    ],
)
def test_the_threshold_decides(probabilities, threshold, expected):
    assert decide(np.array(probabilities), ["ham", "spam"], threshold) == expected
