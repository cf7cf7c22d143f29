"""Continued pretraining: language modelling on texts like those to classify, without labels.

Gururangan et al. 2020, "Don't Stop Pretraining: Adapt Language Models to Domains and Tasks". It
comes before the head is replaced.

Shapes in comments: B texts in a batch, T tokens in the longest of them.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from features import Precision, compute_in
from previous_chapters import Decoder
from text_classifier import TOKENS_AT_ONCE
from text_data import SpamDataset, batches_by_length, collate, encode_messages, make_loader
from training import TrainConfig, TrainingState, update

CONTINUED_PRETRAINING = TrainConfig(learning_rate=5e-4, num_epochs=2, batch_size=16)


def encode_for_pretraining(texts: Sequence[str], tokenizer, context_length: int) -> list[Tensor]:
    """Token ids (T,) of each text between two `<|endoftext|>`, cut at the context's length."""
    end = torch.tensor([tokenizer.eot_token])
    encoded = encode_messages(texts, tokenizer, context_length)
    return [torch.cat([end, ids, end])[:context_length] for ids in encoded]


def calc_next_token_loss(decoder: Decoder, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, of every real token but the first, given those before it."""
    input_ids = batch["input_ids"].to(decoder.device)
    attention_mask = batch["attention_mask"].to(decoder.device)
    x = decoder.run_blocks(decoder.embed(input_ids[:, :-1]), attention_mask[:, :-1])
    predicted = attention_mask[:, 1:]  # (B, T - 1)
    logits = decoder.out_head(decoder.final_norm(x[predicted]))  # (real tokens, V)
    return F.cross_entropy(logits, input_ids[:, 1:][predicted])


def _pieces(batch: Mapping[str, Tensor], max_tokens: int) -> Iterator[tuple[dict, float]]:
    """A batch in pieces that fit in memory, each with its fraction of the predicted tokens."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    for rows in batches_by_length(lengths, max_tokens):
        items = [(batch["input_ids"][row, : lengths[row]], 0) for row in rows]
        num_predicted = sum(lengths[row] - 1 for row in rows)
        yield collate(items), num_predicted / (sum(lengths) - len(lengths))


def continue_pretraining(
    decoder: Decoder,
    sequences: Sequence[Tensor],
    config: TrainConfig,
    progress: bool = False,
    precision: Precision = "float32",
) -> list[float]:
    """Train a language model on token ids (T,) of at least two tokens each; returns the losses."""
    decoder.requires_grad_(True)
    texts = SpamDataset(sequences)
    state = TrainingState(decoder, texts, config)
    max_tokens = 2 * TOKENS_AT_ONCE[decoder.device.type]

    def losses(batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for piece, fraction in _pieces(batch, max_tokens):
            with compute_in(precision, decoder.device):
                loss = calc_next_token_loss(decoder, piece)
            yield fraction * loss

    what = "continued pretraining"
    bar = tqdm(total=state.num_steps, desc=what, unit="step", disable=not progress)
    for _ in range(config.num_epochs):
        for batch in make_loader(texts, config.batch_size, True, True, state.start_epoch()):
            state.set_learning_rate()
            loss = update(state.optimizer, losses(batch), config.max_grad_norm)
            state.history.step_losses.append(loss)
            bar.update()
    bar.close()
    decoder.eval()
    return state.history.step_losses
