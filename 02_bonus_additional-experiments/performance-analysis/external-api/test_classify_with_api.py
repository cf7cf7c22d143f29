"""Against a server on the loopback address that answers well, wrongly, and not at all."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fine_tuning import RunConfig, fine_tune
from message_files import DataError

pytest.importorskip("openai", reason="needs external-api/requirements-extra.txt")
import classify_with_api

SECRET = "sk-not-to-be-shown"


def completion(content, finish_reason="stop") -> dict:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return body | {"usage": {"prompt_tokens": 50, "completion_tokens": 1}}


class Handler(BaseHTTPRequestHandler):
    """Answers by the rule `spam if "prize"`, unless a reply for the n-th request is set."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = len(self.server.requests)
        self.server.requests.append(body)
        usual = completion("spam" if "prize" in body["messages"][-1]["content"] else "ham")
        reply = self.server.replies.get(number, usual)
        status, content = reply if isinstance(reply, tuple) else (200, reply)
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def asked(server) -> list[str]:
    """The messages in the requests."""
    return [json.loads(r["messages"][-1]["content"])["message"] for r in server.requests]


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.replies = [], {}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:word@127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.01)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of 60 messages, of which 12 are for testing; its training messages have altered
    copies."""
    folder = tmp_path_factory.mktemp("trained")
    rows = [f"win a prize {i} now,spam\nsee you at home {i},ham" for i in range(30)]
    csv = folder / "messages.csv"
    csv.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    config = {"data": csv, "model": "gpt-mini", "trainable": "head", "augment": 1, "seed": 7}
    config |= {"num_epochs": 1, "continued_pretraining_epochs": 0, "max_length": 9}
    return fine_tune(RunConfig(output=folder / "classifier", quiet=True, **config))


@pytest.fixture
def ask(server, trained, tmp_path, capsys):
    """Run the command; returns its status, what it printed, and the answers on the disk."""

    def ask(*options, data=trained.config.data):
        output = tmp_path / "answers.jsonl"
        arguments = ["--model", "m", "--classifier", trained.config.output, "--output", output]
        status = classify_with_api.main([str(a) for a in (*arguments, "--data", data, *options)])
        text = output.read_text("utf-8") if output.exists() else ""
        printed = "".join(capsys.readouterr())
        for word in (SECRET, "me:word", "Traceback"):
            assert word not in printed + text
        return status, printed, [json.loads(line) for line in text.splitlines()[1:]]

    return ask


def test_every_test_message_is_asked_about_once_and_both_are_judged(ask, server, trained, tmp_path):
    server.replies[0] = completion("unsure")
    status, printed, answers = ask("--input-price", 10, "--output-price", 20)
    assert (status, len(answers)) == (0, 12)
    assert asked(server) == list(trained.messages.splits.test["text"])
    metrics = json.loads((tmp_path / "answers.metrics.json").read_text("utf-8"))
    assert metrics["api"]["accuracy"] == pytest.approx(11 / 12)
    assert (metrics["num_unparsed"], metrics["tokens"]) == (1, [600, 12])
    assert metrics["cost"] == pytest.approx((600 * 10 + 12 * 20) / 1e6)
    assert metrics["classifier"] == trained.metrics["test"]
    assert "McNemar" in printed
    assert "12 messages" in printed
    assert "go to 127.0.0.1" in printed


def test_options_reach_the_server(ask, server):
    options = ["--temperature", 0.5, "--max-answer-tokens", 3, "--length-field", "max_tokens"]
    ask(*options, "--task", "Is it about winning?", "--num-messages", 1)
    [request] = server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.5, 3)
    assert "max_completion_tokens" not in request
    assert "Is it about winning?" in request["messages"][0]["content"]


def test_examples_come_from_the_training_part_only(ask, server, trained):
    ask("--shots", 3, "--num-messages", 1)
    turns = server.requests[0]["messages"][1:-1]
    train, _, test = trained.messages.splits
    label_of = dict(zip(train["text"], train["label"]))
    shown = [json.loads(turn["content"])["message"] for turn in turns[::2]]
    assert [turn["content"] for turn in turns[1::2]] == [label_of[text] for text in shown]
    assert sorted(label_of[text] for text in shown) == ["ham"] * 3 + ["spam"] * 3
    assert not set(shown) & set(test["text"])
    assert ask("--shots", 99)[0] == 2


def test_wrong_answers_are_counted_and_never_guessed(ask, server):
    words = ["Spam", "spam.", "spam ham", "", None, '{"label": "spam"}']
    odd = [completion("spam", "length"), {"choices": []}, {"choices": [{"message": "spam"}]}, [1]]
    odd.append((400, {"error": {"message": "filtered"}}))
    made = [*map(completion, words), *odd]
    server.replies = dict(enumerate(made, start=1))
    status, printed, answers = ask()
    assert (status, len(server.requests)) == (0, 12)
    assert [line["answer"] for line in answers[1:7]] == words
    assert all(line["problem"] for line in answers[7:])
    assert "filtered" in answers[11]["problem"]
    assert "11 answers were not a label" in printed


@pytest.mark.parametrize("trouble", [401, 500])
def test_trouble_that_stays_ends_the_run_and_the_same_command_asks_the_rest(
    ask, server, tmp_path, trouble
):
    server.replies = dict.fromkeys(range(4, 7), (trouble, {}))  # the library tries three times
    status, printed, answers = ask()
    assert (status, len(answers)) == (1, 4)
    assert "got no answer" in printed
    with (tmp_path / "answers.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"answer": "sp')  # as a full disk cuts it off
    server.replies, server.requests = {}, []
    status, _, finished = ask()
    assert (status, len(finished), len(server.requests)) == (0, 12, 8)
    assert finished[:4] == answers
    assert ask()[0] == 0  # judged again, nothing asked
    assert len(server.requests) == 8


def test_a_server_that_refuses_the_first_message_is_asked_no_more(ask, server):
    server.replies[0] = (400, {"error": {"message": "no such parameter"}})
    status, printed, answers = ask()
    assert (status, answers, len(server.requests)) == (1, [], 1)
    assert "no such parameter" in printed


def test_answers_to_another_question_are_not_mixed_in(ask, server, tmp_path):
    ask("--num-messages", 2)
    for other in (["--temperature", 1], ["--shots", 1], ["--task", "Guess."]):
        status, printed, answers = ask(*other)
        assert (status, len(answers), len(server.requests)) == (2, 2, 2)
        assert "answers to another question" in printed
    path = tmp_path / "answers.jsonl"
    path.write_text("notes of mine", encoding="utf-8")
    assert ask()[0] == 2
    assert path.read_text(encoding="utf-8") == "notes of mine"


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_API_KEY"])
def test_address_and_key_must_be_given(ask, server, monkeypatch, name):
    monkeypatch.setenv(name, "")
    status, printed, _ = ask()
    assert (status, name in printed, server.requests) == (2, True, [])


def test_other_messages_than_those_of_the_training_are_refused(ask, server, tmp_path):
    own = tmp_path / "own.csv"
    rows = [f"win a prize {i},spam\nsee you {i},ham" for i in range(9)]
    own.write_text("\n".join(["text,label", *rows, ""]), encoding="utf-8")
    status, printed, _ = ask(data=own)
    assert (status, "messages.csv" in printed, server.requests) == (2, True, [])


def test_a_classifier_that_does_not_name_its_training_is_refused(trained):
    about = trained.classifier.config
    for other in (replace(about, card={}), replace(about, thresholds=(0.5, 0.5))):
        with pytest.raises(DataError, match=r"by finetune\.py"):
            classify_with_api.read_messages(other, trained.config.data)


def test_comparison_counts_the_messages_on_which_they_differ():
    ours, theirs = np.array([True] * 8 + [False, True]), np.array([False] * 8 + [True, True])
    found = classify_with_api.compare(ours, theirs)
    assert (found["only_api_right"], found["only_classifier_right"]) == (8, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert classify_with_api.compare(ours, ours)["p_value"] == 1
