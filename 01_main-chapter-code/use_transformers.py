"""Classify texts with the exported classifier beside this file, by the library `transformers`.

python use.py "a text" "another text"
"""

import sys
from functools import cache
from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).parent


@cache
def load():
    """Tokenizer and model."""
    config = transformers.AutoConfig.from_pretrained(FOLDER)
    model = getattr(transformers, config.architectures[0]).from_pretrained(FOLDER)
    return transformers.AutoTokenizer.from_pretrained(FOLDER), model.eval()


@torch.no_grad()
def classify(texts: list[str]) -> torch.Tensor:
    """Each text's probabilities (N, C), in the order of `model.config.id2label`."""
    tokenizer, model = load()
    # No tokens have no answer.
    texts = [t if tokenizer(t)["input_ids"] else tokenizer.eos_token for t in texts]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    logits, mask = model(**batch).logits, batch["attention_mask"].unsqueeze(-1)  # (N, T, 1)
    if logits.dim() == 3 and model.config.pooling == "mean":  # of every token (N, T, C)
        logits = (logits * mask).sum(dim=1) / mask.sum(dim=1)
    elif logits.dim() == 3:
        logits = logits.take_along_dim(mask.sum(dim=1, keepdim=True) - 1, dim=1).squeeze(1)
    several = model.config.problem_type == "multi_label_classification"
    return logits.sigmoid() if several else logits.softmax(dim=-1)


if __name__ == "__main__":
    for text, row in zip(sys.argv[1:], classify(sys.argv[1:])):
        named = zip(load()[1].config.id2label.values(), row)
        print(text, *(f"{label} {probability:.4f}" for label, probability in named), sep="\t")
