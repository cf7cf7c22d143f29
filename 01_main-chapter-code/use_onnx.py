"""Classify texts with the exported classifier beside this file, by ONNX Runtime.

python use.py "a text" "another text"
"""

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

FOLDER = Path(__file__).parent


@cache
def load():
    """Configuration, tokenizer, which also cuts and fills up, and network."""
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return config, tokenizer, onnxruntime.InferenceSession(FOLDER / "classifier.onnx")


def classify(texts: list[str]) -> np.ndarray:
    """Each text's probabilities (N, C), in the order of `label_names` in config.json."""
    config, tokenizer, session = load()
    # No tokens have no answer.
    texts = [t if tokenizer.encode(t).ids else config["end_of_text"] for t in texts]
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "attention_mask": np.array([text.attention_mask for text in encoded], dtype=bool),
        "input_ids": np.array([text.ids for text in encoded], dtype=np.int64),
    }
    (logits,) = session.run(None, inputs)
    if config["thresholds"]:  # of a text with several labels, each by itself
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    for text, row in zip(sys.argv[1:], classify(sys.argv[1:])):
        named = zip(load()[0]["label_names"], row)
        print(text, *(f"{label} {probability:.4f}" for label, probability in named), sep="\t")
