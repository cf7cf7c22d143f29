"""The same logits for less work: frozen layers computed once, and one position in the last block.

Nothing here changes a result beyond rounding; tests compare every path with the plain
`GPTClassifier.forward`.

Shapes in comments: B messages in a batch, T tokens in the longest of them, D embedding
dimensions, C classes.
"""

import functools
import hashlib
from collections.abc import MutableMapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fast_paths import block_at_positions
from previous_chapters import Decoder
from text_classifier import (
    POOLINGS,
    TOKENS_AT_ONCE,
    ClassifierConfig,
    GPTClassifier,
    last_positions,
)
from text_data import SpamDataset, batches_by_length, collate

Precision = Literal["float32", "bfloat16"]


def compute_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products are computed in `precision`.

    Weights, their updates and sensitive sums stay in float32; bfloat16 halves the bytes and is
    faster where the processor multiplies it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _layers_below(decoder: Decoder, num_layers: int) -> list[tuple[str, nn.Parameter]]:
    """The parameters of everything before block `num_layers`: embeddings and earlier blocks."""
    later = tuple(f"trf_blocks.{i}." for i in range(num_layers, len(decoder.trf_blocks)))
    above = (*later, "final_norm.", "out_head.")
    return [(name, p) for name, p in decoder.named_parameters() if not name.startswith(above)]


@torch.no_grad()
def layers_hash(decoder: Decoder, num_layers: int) -> int:
    """A number that tells the first `num_layers` layers' weights from all others.

    Sums of the bit patterns of each row: exact, whatever the number of threads.
    """
    digest = hashlib.blake2b(f"{num_layers} {decoder.cfg}".encode(), digest_size=7)
    for name, parameter in _layers_below(decoder, num_layers):
        rows = parameter.float().contiguous().view(torch.int32).sum(dim=-1, dtype=torch.int64)
        digest.update(name.encode())
        digest.update(rows.cpu().numpy().tobytes())
    return int.from_bytes(digest.digest(), "big")


# Keeps hidden states (T, D) by the layers that made them and the tokens that they are of: a
# dictionary, or whatever takes `key in store`, `store[key]` and `store[key] = states`.
Store = MutableMapping[tuple, Tensor]


class LatestStore(dict):
    """A store in memory. States of other layers than the last are dropped, since all would not
    fit."""

    def __setitem__(self, key: tuple, states: Tensor) -> None:
        if self and next(iter(self))[:2] != key[:2]:
            self.clear()
        super().__setitem__(key, states)


class FeatureDataset(SpamDataset):
    """Messages as hidden states (T, D) after some frozen layers, which are computed once.

    Frozen layers give the same states in every epoch. The data set remembers by their hash which
    weights made it, and a `FastClassifier` with others refuses it.
    """

    def __init__(self, sequences: Sequence[Tensor], labels: Sequence[int], made_by: int):
        super().__init__(sequences)
        self.labels, self.made_by = list(labels), made_by

    @classmethod
    @torch.no_grad()
    def from_classifier(
        cls,
        classifier: GPTClassifier,
        dataset: SpamDataset,
        num_layers: int,
        precision: Precision = "float32",
        progress: bool = False,
        store: Store | None = None,
    ) -> "FeatureDataset":
        """The states of a data set's messages after the first `num_layers` blocks.

        A `store` keeps them for later calls: what it has of these layers and tokens is not
        computed again.
        """
        classifier.eval()
        decoder, device = classifier.decoder, classifier.device
        made_by = layers_hash(decoder, num_layers)
        store = {} if store is None else store
        keys = [(made_by, precision, *ids.tolist()) for ids in dataset.sequences]
        missing = list({key: i for i, key in enumerate(keys) if key not in store}.values())
        batches = batches_by_length(
            [dataset.lengths[i] for i in missing], TOKENS_AT_ONCE[device.type]
        )
        with tqdm(
            total=len(missing), desc="frozen layers", unit="msg", disable=not progress
        ) as bar:
            for batch in batches:
                indices = [missing[i] for i in batch]
                inputs = dataset.collate([dataset[i] for i in indices])
                attention_mask = inputs["attention_mask"].to(device)
                with compute_in(precision, device):
                    x = decoder.embed(inputs["input_ids"].to(device))
                    x = decoder.run_blocks(x, attention_mask, stop=num_layers)  # (B, T, D)
                for i, states in zip(indices, x, strict=True):
                    store[keys[i]] = states[: dataset.lengths[i]].clone()
                bar.update(len(indices))
        return cls([store[key] for key in keys], dataset.labels, made_by)

    def collate(self, items: Sequence[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """A batch: features (B, T, D), attention_mask (B, T), labels (B,), and who made it."""
        batch = collate(items)
        return {
            "features": batch.pop("input_ids").float(),  # a store may keep half of their bits
            **batch,
            "made_by": torch.tensor(self.made_by),
        }


class FastClassifier(nn.Module):
    """A classifier's logits for less work; it shares the classifier's parameters.

    It takes token ids, or the features that the first `num_layers` layers made. Where the class
    is read at the last real token, the last block computes that position only. `precision` is
    that of the matrix products.
    """

    def __init__(
        self, classifier: GPTClassifier, num_layers: int = 0, precision: Precision = "float32"
    ):
        super().__init__()
        self.classifier = classifier
        self.num_layers = num_layers
        self.precision = precision

    def forward(
        self,
        attention_mask: Tensor,
        input_ids: Tensor | None = None,
        features: Tensor | None = None,
        made_by: Tensor | None = None,
    ) -> Tensor:
        """Token ids (B, T), or features (B, T, D), and a mask (B, T) -> logits (B, C).

        Raises ``ValueError`` for features of other layers or weights, or of layers that are
        trained.
        """
        decoder, pooling = self.classifier.decoder, self.config.pooling
        if features is not None:
            self._validate(made_by)
        with compute_in(self.precision, attention_mask.device):
            if features is None:
                x, start = decoder.embed(input_ids), 0
            else:
                x, start = features, self.num_layers
            num_blocks = len(decoder.trf_blocks)
            if pooling == "last" and start < num_blocks:
                x = decoder.run_blocks(x, attention_mask, start, num_blocks - 1)
                last_block, positions = decoder.trf_blocks[-1], last_positions(attention_mask)
                x = block_at_positions(last_block, x, positions, attention_mask)  # (B, 1, D)
                return decoder.out_head(decoder.final_norm(x)).squeeze(1).float()
            x = decoder.run_blocks(x, attention_mask, start)
            logits = decoder.out_head(decoder.final_norm(x))  # (B, T, C)
        return POOLINGS[pooling](logits.float(), attention_mask)

    @property
    def config(self) -> ClassifierConfig:
        return self.classifier.config

    @functools.cached_property
    def made_by(self) -> int:
        """Hash of the layers whose features are taken."""
        return layers_hash(self.classifier.decoder, self.num_layers)

    def _validate(self, made_by: Tensor | None) -> None:
        if made_by is None or int(made_by) != self.made_by:
            raise ValueError(
                f"These features were made by other layers or other weights than the first "
                f"{self.num_layers} layers of this classifier; compute them anew with "
                f"FeatureDataset.from_classifier."
            )
        below = _layers_below(self.classifier.decoder, self.num_layers)
        trained = [name for name, parameter in below if parameter.requires_grad]
        if trained and torch.is_grad_enabled():
            raise ValueError(
                f"Features of the first {self.num_layers} layers cannot train them, but "
                f"{trained[0]} is to be trained: freeze it, or train on token ids."
            )
