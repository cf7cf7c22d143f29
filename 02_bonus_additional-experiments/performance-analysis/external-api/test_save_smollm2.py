"""The folder for servers holds the model that we have."""

import pytest
import save_smollm2
import torch

from gpt_download import SMOLLM2, SMOLLM2_WEIGHTS, is_intact, load_pretrained

transformers = pytest.importorskip("transformers", reason="needs transformers[serving]")


@pytest.mark.skipif(not is_intact(SMOLLM2_WEIGHTS), reason="needs gpt_download.py smollm2-135m")
def test_a_chat_has_the_same_tokens_and_logits(tmp_path):
    assert save_smollm2.main([str(tmp_path / "smollm2")]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    turns = [{"role": "system", "content": "Spam or ham?"}, {"role": "user", "content": "Win!"}]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    decoder, ours = load_pretrained(SMOLLM2)
    ids = ours.encode(asked, allowed_special="all")
    assert tokenizer(asked).input_ids == ids
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits
        torch.testing.assert_close(logits, decoder(torch.tensor([ids])), rtol=0, atol=1e-3)
