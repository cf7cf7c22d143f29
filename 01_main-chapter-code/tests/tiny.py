"""Models and data so small that a test of training takes a moment."""

from dataclasses import replace

import torch

from gpt_download import build_decoder
from previous_chapters import Decoder, GPTConfig, GPTModel
from smollm2 import LlamaConfig
from text_classifier import ClassifierConfig, GPTClassifier, freeze_all_but
from text_data import SpamDataset

GPT = GPTConfig(vocab_size=100, context_length=16, emb_dim=32, n_heads=4, n_layers=3)
LLAMA = LlamaConfig(100, 16, 32, 4, n_kv_heads=2, n_layers=3, hidden_dim=48, rope_base=100.0)
DECODERS = {"gpt": GPT, "llama": LLAMA}
SHAPE = GPTConfig(vocab_size=50, context_length=40, emb_dim=16, n_heads=2, n_layers=3)


def randomise(module: torch.nn.Module, std: float = 0.1) -> torch.nn.Module:
    """Change every parameter, biases and norms included, which start at zero or one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return module.eval()


def random_decoder(cfg: GPTConfig | LlamaConfig = GPT, seed: int = 0, **changes) -> Decoder:
    torch.manual_seed(seed)
    return randomise(build_decoder(replace(cfg, **changes)))


def tiny_decoder(seed: int = 0, **shape) -> GPTModel:
    return random_decoder(SHAPE, seed, **shape)


def tiny_classifier(
    num_classes: int = 2, trainable="last_block", pooling="last", seed: int = 0, **shape
) -> GPTClassifier:
    names = [f"class {i}" for i in range(num_classes)]
    config = ClassifierConfig("gpt-mini", names, SHAPE.context_length, pooling)
    classifier = GPTClassifier(tiny_decoder(seed, **shape), config).eval()
    freeze_all_but(classifier, trainable)
    return classifier


def tiny_dataset(size: int = 40, num_classes: int = 2, seed: int = 0) -> SpamDataset:
    """Messages whose class shows in how often their first token occurs."""
    rng = torch.Generator().manual_seed(seed)
    sequences, labels = [], []
    for i in range(size):
        label = i % num_classes
        length = int(torch.randint(2, 30, (1,), generator=rng))
        noise = torch.randint(num_classes, SHAPE.vocab_size, (length,), generator=rng)
        noise[torch.rand(length, generator=rng) < 0.5] = label
        sequences.append(noise)
        labels.append(label)
    return SpamDataset(sequences, labels)


def batch_of(dataset: SpamDataset, size: int | None = None) -> dict[str, torch.Tensor]:
    """The first messages of a data set as one batch."""
    return dataset.collate([dataset[i] for i in range(size or len(dataset))])
