"""Saving, opening and using a classifier folder."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_classifier

import classifier_folder
from classifier_folder import (
    classify_review,
    classify_texts,
    import_book_classifier,
    open_classifier,
    save_classifier,
)
from gpt_download import load_pretrained
from text_classifier import ClassifierConfig, GPTClassifier

ABOUT = ClassifierConfig("gpt-mini", ("no", "perhaps", "oui — 是"), 60, card={"trained_on": "none"})
TEXTS = ["hello", "", "you have won " * 100, "<|endoftext|>", "是"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_pretrained("gpt-mini")[1]


@pytest.fixture
def classifier() -> GPTClassifier:
    torch.manual_seed(0)
    classifier = GPTClassifier(load_pretrained("gpt-mini")[0], ABOUT).eval()
    torch.nn.init.normal_(classifier.decoder.out_head.weight)
    return classifier


@pytest.mark.parametrize("change", [{}, {"pooling": "mean"}, {"pad_to": 50}])
def test_a_saved_classifier_gives_the_same_answers(tmp_path, classifier, tokenizer, change):
    plain = classify_texts(classifier, tokenizer, TEXTS)
    classifier.config = dataclasses.replace(ABOUT, **change)
    expected = classify_texts(classifier, tokenizer, TEXTS)
    assert torch.equal(plain, expected) == (not change)
    folder = tmp_path / "new" / "folder"
    save_classifier(classifier, folder)
    opened, its_tokenizer = open_classifier(folder)
    assert torch.equal(classify_texts(opened, its_tokenizer, TEXTS), expected)
    assert opened.config == classifier.config
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_classify_review_names_the_likeliest_class(classifier, tokenizer):
    probabilities = classify_texts(classifier, tokenizer, ["see you at noon"])[0]
    prediction = classify_review("see you at noon", classifier, tokenizer)
    assert prediction.label == ABOUT.label_names[probabilities.argmax()]
    assert prediction.probability == pytest.approx(probabilities.max().item())
    assert probabilities.sum().item() == pytest.approx(1)


def test_interrupted_saving_never_pairs_old_and_new(tmp_path, classifier, monkeypatch):
    save_classifier(classifier, tmp_path)

    def fails(*_):
        raise OSError("no room")

    monkeypatch.setattr(classifier_folder, "write_json", fails)
    with pytest.raises(OSError, match="no room"):
        save_classifier(classifier, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        open_classifier(tmp_path)


def vouch_for(folder, **changes) -> None:
    """Alter config.json and put its checksum right, as somebody might who writes a folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    config.pop("checksum")
    config["checksum"] = classifier_folder.checksum(config, folder / "model.safetensors")
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something else"}, "does not describe a classifier"),
        ({"label_names": ["a", "b", "c"]}, "size mismatch"),
        ({"model": "gpt2-tiny"}, "no model 'gpt2-tiny'"),
        ({"architecture": {"kind": "gpt2", "surprise": 1}}, "surprise"),
        ({"architecture": {"kind": "rnn"}}, "rnn"),
    ],
)
def test_a_config_that_cannot_be_is_named(tiny_classifier_folder, changes, message):
    vouch_for(tiny_classifier_folder, **changes)
    with pytest.raises(ValueError, match=message):
        open_classifier(tiny_classifier_folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"name": t},
        lambda t: {},
        *(lambda t: {"bias": t.half()}, lambda t: {"bias": t.double()}),
        *(lambda t: {"bias": t.unsqueeze(0)}, lambda t: {"bias": t * torch.nan}),
    ],
    ids=["renamed", "left out", "rounded", "doubled", "reshaped", "not a number"],
)
def test_weights_that_cannot_be_are_refused_whoever_vouches_for_them(
    tiny_classifier_folder, change
):
    path = tiny_classifier_folder / "model.safetensors"
    tensors = load_file(path)
    changed = change(tensors.pop("decoder.out_head.bias")).items()
    tensors |= {f"decoder.out_head.{name}": tensor.clone() for name, tensor in changed}
    save_file(tensors, path)
    vouch_for(tiny_classifier_folder)
    with pytest.raises(ValueError, match="damaged or was altered"):
        open_classifier(tiny_classifier_folder)


@pytest.mark.parametrize("content", ["", "[]", "null", "[" * 100_000], ids=len)
def test_a_config_that_is_no_json_object_is_named(tiny_classifier_folder, content):
    (tiny_classifier_folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="damaged or was altered"):
        open_classifier(tiny_classifier_folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_none_is_named(tiny_classifier_folder, missing):
    (tiny_classifier_folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing; finetune.py makes one"):
        open_classifier(tiny_classifier_folder)


def test_a_classifier_of_the_book_is_imported(tmp_path):
    """Its file holds the causal masks as buffers, which this project makes as needed."""
    decoder, path = tiny_classifier(tied_head=False).decoder, tmp_path / "review_classifier.pth"
    mask = torch.triu(torch.ones(40, 40), diagonal=1)
    masks = {f"trf_blocks.{i}.att.mask": mask for i in range(3)}
    torch.save(decoder.state_dict() | masks, path)
    book = {"vocab_size": 50, "context_length": 40, "emb_dim": 16, "n_heads": 2, "n_layers": 3}
    book |= {"drop_rate": 0.1, "qkv_bias": True}
    imported = import_book_classifier(path, ["ham", "spam"], 30, architecture=book)
    ids = torch.randint(50, (4, 30))
    torch.testing.assert_close(imported.decoder(ids), decoder(ids))
    assert imported.config.pad_to == 30
    with pytest.raises(ValueError, match="does not fit"):
        import_book_classifier(path, ["a", "b", "c"], 30, architecture=book)
