"""The same training computed in many ways: the plain one, and with one improvement after another.

Shapes in comments: B messages in a batch, T tokens in the longest of them, D embedding dimensions,
C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from bench_common import evenly_spaced, seconds_of
from torch import Tensor, nn

from features import FastClassifier, FeatureDataset, Precision
from previous_chapters import TransformerBlock
from text_classifier import POOLINGS, TOKENS_AT_ONCE, GPTClassifier, calc_logits
from text_data import LengthGroupedSampler, SpamDataset, batches_by_length, collate
from training import TrainConfig, train_step

PADDED_LENGTH = 120  # tokens, as in the well-known way of doing it
IMPROVEMENTS = {
    "fused_attention": "fused attention",
    "pad_to_longest": "pad to the batch's longest message",
    "group_by_length": "messages of similar length in a batch",
    "compute_frozen_once": "frozen layers computed once",
    "last_position_only": "only the last position through the last block",
}
Way = frozenset[str]  # the improvements over the plain way
Batch = dict[str, Tensor]
Indices = list[int]


def ladder(any_frozen: bool) -> dict[str, Way]:
    """The plain way, then each improvement added to those before it, under the last one's name."""
    steps = [step for step in IMPROVEMENTS if any_frozen or step != "compute_frozen_once"]
    return {name: frozenset(steps[:i]) for i, name in enumerate(["plain", *steps])}


def block_by_hand(block: TransformerBlock, x: Tensor) -> Tensor:
    """A block whose attention is computed step by step, as chapter 3 teaches it."""
    return block.add_to_stream(x, block.att.by_hand(block.norm1(x))[0])


class EveryPosition(nn.Module):
    """A classifier's logits with all positions taken through all blocks, attention fused or not.

    From token ids (B, T), or from the features (B, T, D) of the first `num_frozen` blocks.
    """

    def __init__(self, classifier: GPTClassifier, num_frozen: int = 0, fused: bool = False):
        super().__init__()
        self.classifier, self.num_frozen, self.fused = classifier, num_frozen, fused

    def forward(self, attention_mask, input_ids=None, features=None, made_by=None) -> Tensor:
        """Logits (B, C)."""
        decoder, pooling = self.classifier.decoder, self.classifier.config.pooling
        x, start = features, self.num_frozen
        if features is None:
            x, start = decoder.embed(input_ids), 0
        for block in decoder.trf_blocks[start:]:
            x = block(x) if self.fused else block_by_hand(block, x)
        return POOLINGS[pooling](decoder.out_head(decoder.final_norm(x)), attention_mask)


@dataclass(frozen=True)
class Work:
    """Batches of one kind that are timed, and all that they stand for; tokens count padding too."""

    run: Callable[[], float]
    """Takes the timed batches, and returns the seconds."""
    num_timed: int
    tokens_timed: int
    num: int
    tokens: int


class TrainingJob:
    """One classifier, its optimizer and its messages, for all ways of training it."""

    def __init__(
        self,
        classifier: GPTClassifier,
        parts: Sequence[SpamDataset],
        num_frozen: int,
        learning_rate: float = 1e-6,
        precision: Precision = "float32",
    ):
        self.classifier, self.parts, self.num_frozen = classifier, parts, num_frozen
        self.device, self.config = classifier.device, TrainConfig(learning_rate=learning_rate)
        self.fast = FastClassifier(classifier, num_frozen, precision)
        trained = [p for p in classifier.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=learning_rate, fused=True)

    def model(self, way: Way) -> nn.Module:
        if "last_position_only" in way:
            return self.fast
        return EveryPosition(self.classifier, self.num_frozen, "fused_attention" in way)

    def train_batches(self, way: Way) -> list[Indices]:
        """The batches of an epoch."""
        generator = torch.Generator().manual_seed(0)
        lengths, batch_size = self.parts[0].lengths, self.config.batch_size
        if "group_by_length" in way:
            return list(LengthGroupedSampler(lengths, batch_size, generator))
        order = torch.randperm(len(lengths), generator=generator)
        return [rows.tolist() for rows in order.split(batch_size)]

    def evaluation_batches(self, way: Way, part: int) -> list[Indices]:
        """The batches in which a part of the data is evaluated."""
        lengths = self.parts[part].lengths
        if "group_by_length" in way:
            return batches_by_length(lengths, TOKENS_AT_ONCE[self.device.type])
        return [rows.tolist() for rows in torch.arange(len(lengths)).split(self.config.batch_size)]

    def tokens(self, indices: Indices, way: Way, part: int = 0) -> int:
        """Tokens of a batch of these messages of a part, padding too."""
        longest = max(self.parts[part].lengths[i] for i in indices)
        return len(indices) * (longest if "pad_to_longest" in way else max(longest, PADDED_LENGTH))

    def make_batch(self, indices: Indices, way: Way) -> Batch:
        """These training messages as the model gets them; counts as no step's time."""
        items = [self.parts[0][i] for i in indices]
        if "compute_frozen_once" in way:
            chosen = SpamDataset(*zip(*items, strict=True))
            features = FeatureDataset.from_classifier(self.classifier, chosen, self.num_frozen)
            return features.collate(list(features))
        batch = collate(items)
        missing = PADDED_LENGTH - batch["input_ids"].shape[1]
        if "pad_to_longest" not in way and missing > 0:
            batch |= {n: F.pad(batch[n], (0, missing)) for n in ("input_ids", "attention_mask")}
        return batch

    def step(self, batch: Batch, way: Way) -> float:
        """One update, and its loss."""
        return train_step(self.model(way), batch, self.optimizer, self.config)

    @torch.no_grad()
    def evaluate(self, batch: Batch, way: Way) -> Tensor:
        return calc_logits(self.model(way), batch).argmax(dim=-1).cpu()

    def sample(self, batches: list[Indices], way: Way, num: int) -> list[Indices]:
        return evenly_spaced(batches, num, lambda rows: self.tokens(rows, way))

    def work(self, way: Way, num_timed: int, num_epochs: int) -> dict[str, Work]:
        """Some steps, and some evaluation batches of training messages, for all of the training.

        Training and validation messages are evaluated after every epoch, and all three parts at
        the end. Each function has had its longest batch already when it is returned.
        """
        steps = [(0, rows) for rows in self.train_batches(way)] * num_epochs
        evaluated = [0, 1] * num_epochs + [0, 1, 2]
        evaluations = [(n, rows) for n in evaluated for rows in self.evaluation_batches(way, n)]
        train, evaluation = self.train_batches(way), self.evaluation_batches(way, 0)
        return {
            "step": self._work(self.step, way, self.sample(train, way, num_timed), steps),
            "evaluation": self._work(
                self.evaluate, way, self.sample(evaluation, way, num_timed), evaluations
            ),
        }

    def _work(
        self,
        function: Callable[[Batch, Way], object],
        way: Way,
        timed: list[Indices],
        everything: list[tuple[int, Indices]],
    ) -> Work:
        made = [self.make_batch(rows, way) for rows in timed]
        function(made[-1], way)
        return Work(
            lambda: seconds_of(lambda: [function(batch, way) for batch in made], self.device),
            len(timed),
            sum(self.tokens(rows, way) for rows in timed),
            len(everything),
            sum(self.tokens(rows, way, part) for part, rows in everything),
        )
