"""The same training computed in many ways: the plain one, and with one improvement after another.

Shapes in comments: B messages in a batch, T tokens in the longest of them, D embedding dimensions,
C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from bench_common import PADDED_LENGTH
from torch import Tensor, nn

from previous_chapters import GPTModel, TransformerBlock, select_positions
from text_classifier import TOKENS_AT_ONCE, last_token_logits, train_mode
from text_data import Batch, LengthGroupedSampler, SpamDataset, batch_of, batches_by_length

Indices = list[int]


@dataclass(frozen=True)
class Way:
    """A way to compute the training; each field is an improvement over the plain way."""

    name: str
    fused_attention: bool = False
    """PyTorch's kernel, which never holds the T x T attention weights."""
    pad_to_longest: bool = False
    """Pad to the batch's longest message, not to 120 tokens."""
    group_by_length: bool = False
    """Put messages of similar length into a batch."""
    compute_frozen_once: bool = False
    """Take messages through the frozen blocks once, not at every step and evaluation."""
    last_position_only: bool = False
    """Take only the last real token through the last block."""


def ladder(any_frozen: bool) -> list[Way]:
    """The plain way, then each improvement added to those before it."""
    steps = ["fused_attention", "pad_to_longest", "group_by_length"]
    steps += ["compute_frozen_once"] * any_frozen + ["last_position_only"]
    ways = [Way("plain")]
    for step in steps:
        ways.append(replace(ways[-1], name=step, **{step: True}))
    return ways


def block_by_hand(block: TransformerBlock, x: Tensor) -> Tensor:
    """A block whose attention is computed step by step, as chapter 3 teaches it."""
    attended, _weights = block.att(block.norm1(x), return_weights=True)
    x = x + attended
    return x + block.ff(block.norm2(x))


def logits_of(model: GPTModel, batch: Batch, way: Way) -> Tensor:
    """Logits (B, C) at each message's last real token, computed in the given way."""
    if way.last_position_only:
        return last_token_logits(model, batch)
    x = batch.inputs if batch.num_blocks_done else model.embed(batch.inputs)  # (B, T, D)
    for block in model.trf_blocks[batch.num_blocks_done :]:
        x = block(x) if way.fused_attention else block_by_hand(block, x)
    logits = model.out_head(model.final_norm(x))  # (B, T, C)
    return select_positions(logits, batch.last_positions).squeeze(1)


@torch.no_grad()
def after_frozen_blocks(model: GPTModel, batch: Batch, num_frozen: int) -> Batch:
    """The batch with the frozen blocks' output (B, T, D) in place of its token ids (B, T)."""
    x = model.embed(batch.inputs)
    for block in model.trf_blocks[:num_frozen]:
        x = block(x)
    return batch._replace(inputs=x, num_blocks_done=num_frozen)


class TrainingJob:
    """One model, its optimizer and its messages, for all ways of training it."""

    def __init__(
        self, model: GPTModel, parts: Sequence[SpamDataset], batch_size: int, num_frozen: int
    ):
        self.model, self.parts, self.batch_size = model, parts, batch_size
        self.num_frozen = num_frozen
        self.device = model.tok_emb.weight.device
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-6, fused=True)

    def train_batches(self, way: Way) -> list[Indices]:
        """The batches of an epoch."""
        generator = torch.Generator().manual_seed(0)
        train = self.parts[0]
        if way.group_by_length:
            return list(LengthGroupedSampler(train.lengths, self.batch_size, generator))
        order = torch.randperm(len(train), generator=generator)
        return [rows.tolist() for rows in order.split(self.batch_size)]

    def evaluation_batches(self, way: Way, part: int) -> list[Indices]:
        """The batches in which a part of the data is evaluated."""
        dataset = self.parts[part]
        if way.group_by_length:
            return batches_by_length(dataset.lengths, TOKENS_AT_ONCE[self.device.type])
        return [rows.tolist() for rows in torch.arange(len(dataset)).split(self.batch_size)]

    def tokens(self, indices: Indices, way: Way, part: int = 0) -> int:
        """Tokens of a batch of these messages of a part, padding too."""
        longest = max(self.parts[part].lengths[i] for i in indices)
        return len(indices) * (longest if way.pad_to_longest else max(longest, PADDED_LENGTH))

    def make_batch(self, indices: Indices, way: Way) -> Batch:
        """These training messages as the model gets them; counts as no step's time."""
        batch = batch_of(self.parts[0], indices).to(self.device)
        if way.compute_frozen_once:
            return after_frozen_blocks(self.model, batch, self.num_frozen)
        width = batch.inputs.shape[1] if way.pad_to_longest else PADDED_LENGTH
        missing = max(0, width - batch.inputs.shape[1])
        return batch._replace(inputs=F.pad(batch.inputs, (0, missing)))

    def step(self, batch: Batch, way: Way) -> Tensor:
        """One update, and its loss."""
        train_mode(self.model)
        loss = F.cross_entropy(logits_of(self.model, batch, way), batch.labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, batch: Batch, way: Way) -> None:
        self.model.eval()
        logits_of(self.model, batch, way).argmax(dim=-1)
