"""From a language model to a classifier: the head, pooling, freezing, losses and predictions.

Shapes in comments: B messages in a batch, T tokens in the longest of them, C classes, N messages
of a data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from previous_chapters import Decoder, select_positions
from text_data import (
    NO_LIMIT,
    Cut,
    SpamDataset,
    batches_by_length,
    cut_tokens,
    encode_messages,
    pad_messages,
)

# Tokens in a batch where nothing is trained. On a CPU a few hundred keep its cores busy, and more
# only add padding and leave its caches; a GPU wants many.
TOKENS_AT_ONCE = {"cpu": 512, "mps": 4096, "cuda": 16384}


def pick_device(name: str = "auto") -> torch.device:
    """The named device; `auto` takes a GPU if there is one. Raises ``ValueError`` if absent."""
    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    available = [*(gpu for gpu, is_here in gpus.items() if is_here), "cpu"]
    if name not in ("auto", *available):
        listed = ", ".join(available)
        raise ValueError(f"Device {name!r} is not available here; available: auto, {listed}.")
    return torch.device(available[0] if name == "auto" else name)


# --- Pooling: from logits at every token to logits of the message --------------------------------

Pooling = Literal["last", "mean", "first"]


def last_positions(attention_mask: Tensor) -> Tensor:
    """Index of each message's last real token: (B, T) -> (B,).

    >>> last_positions(torch.tensor([[True, True, True], [True, False, False]]))
    tensor([2, 0])
    """
    return attention_mask.sum(dim=1) - 1


def pool_last(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """At the last real token, which has seen the whole message: (B, T, C) -> (B, C)."""
    return select_positions(logits, last_positions(attention_mask)).squeeze(1)


def pool_mean(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over all real tokens: (B, T, C) -> (B, C).

    The head is linear, so this is also the head's answer to the mean hidden state.
    """
    real = attention_mask.unsqueeze(-1)  # (B, T, 1)
    return (logits * real).sum(dim=1) / real.sum(dim=1)


def pool_first(logits: Tensor, attention_mask: Tensor) -> Tensor:
    """At the first token, as BERT does; under a causal mask it has seen nothing but itself."""
    return logits[:, 0]


POOLINGS = {"last": pool_last, "mean": pool_mean, "first": pool_first}


# --- The classifier ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is beside its weights. Raises ``ValueError`` for what cannot be."""

    model_name: str
    """The pretrained model it was made from, which decides the tokenizer."""
    label_names: tuple[str, ...]
    """In the order of the logits."""
    max_length: int
    """Tokens of a message that are read at a time."""
    pooling: Pooling = "last"
    """Which tokens' logits make those of the message."""
    cut: Cut = "head"
    """What is read of a longer message; `windows` read all of it, and their mean counts."""
    pad_to: int | None = None
    """Tokens to which a message is filled up with `<|endoftext|>`, as if that were text: the last
    position is then padding. None fills up nothing."""
    thresholds: tuple[float, ...] | None = None
    """Where a message may carry several labels: the probability from which on it carries each."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """What it was trained on and with, and its test metrics."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label_names", tuple(self.label_names))
        names, length = self.label_names, self.max_length
        if not all(isinstance(name, str) for name in names) or not 2 <= len(names) == len({*names}):
            raise ValueError("label_names must be at least two different texts.")
        if type(length) is not int or length < 1:
            raise ValueError(f"max_length={length!r} must be a whole number of at least 1.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} must be one of {', '.join(POOLINGS)}.")
        if self.cut not in get_args(Cut):
            raise ValueError(f"cut={self.cut!r} must be one of {', '.join(get_args(Cut))}.")
        if self.thresholds is not None and len(self.thresholds) != len(names):
            raise ValueError(f"thresholds={self.thresholds!r} must be one for each label.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class (N, C) -> (N, C): they add up to 1, unless a message may carry several."""
        return torch.softmax(logits, dim=-1) if self.thresholds is None else torch.sigmoid(logits)

    def label_number(self, label: str) -> int | list[int]:
        """A message's label as a number; of "a|b", where it may carry several, 1 or 0 for each."""
        if self.thresholds is None:
            return self.label_names.index(label)
        return [int(name in label.split("|")) for name in self.label_names]

    def named(self, probabilities: Tensor) -> list[int]:
        """The likeliest class of a message (C,); or all that it carries."""
        if self.thresholds is None:
            return [int(probabilities.argmax())]
        each = zip(probabilities.tolist(), self.thresholds, strict=True)
        return [i for i, (value, threshold) in enumerate(each) if value >= threshold]

    def answer(self, probabilities: Tensor) -> str:
        """The name of the likeliest class; or those of all that a message carries, as "a|b"."""
        return "|".join(self.label_names[i] for i in self.named(probabilities))

    def answer_probability(self, probabilities: Tensor) -> float:
        """The lowest of those that the answer names; where it names none, the highest of all."""
        named = self.named(probabilities)
        return float(probabilities[named].min() if named else probabilities.max())

    def chunks(self, texts: Sequence[str], tokenizer) -> list[list[Tensor]]:
        """Token ids (T,) of each text as this classifier reads them: of one chunk or several."""
        limit = self.max_length if self.cut == "head" else NO_LIMIT
        return [
            pad_messages(
                cut_tokens(ids, self.max_length, self.cut), self.pad_to or 0, tokenizer.eot_token
            )
            for ids in encode_messages(texts, tokenizer, limit)
        ]

    def encode(self, texts: Sequence[str], tokenizer) -> list[Tensor]:
        """Token ids (T,) of each text's only chunk, or of its first window."""
        return [chunks[0] for chunks in self.chunks(texts, tokenizer)]


class GPTClassifier(nn.Module):
    """A decoder whose LM head is replaced by a linear layer that names a class.

    It takes the decoder over: the decoder's own `out_head` is gone afterwards.
    """

    def __init__(self, decoder: Decoder, config: ClassifierConfig):
        super().__init__()
        if config.max_length > decoder.cfg.context_length:
            raise ValueError(
                f"max_length={config.max_length} exceeds the model's context of "
                f"{decoder.cfg.context_length} tokens."
            )
        self.decoder = decoder
        self.config = config
        num_classes = len(config.label_names)
        decoder.out_head = nn.Linear(decoder.cfg.emb_dim, num_classes, device=decoder.device)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids (B, T) and a mask (B, T), True at real tokens -> logits (B, C).

        Padding stands on the right.
        """
        logits = self.decoder(input_ids, attention_mask)  # (B, T, C)
        return POOLINGS[self.config.pooling](logits, attention_mask)  # (B, C)

    @property
    def device(self) -> torch.device:
        return self.decoder.device


# --- What is trained -----------------------------------------------------------------------------

Trainable = Literal["head", "last_block", "last_two_blocks", "all"]
_TRAINED_BLOCKS = {"head": 0, "last_block": 1, "last_two_blocks": 2}


def freeze_all_but(classifier: GPTClassifier, trainable: Trainable | int) -> int:
    """Train only the named part, and return how many blocks, from the first on, are frozen.

    A number stands for that many of the last blocks. The final norm is trained along with the
    last block, the embeddings with `all` only. Raises ``ValueError`` for any other part.
    """
    decoder = classifier.decoder
    num_layers = len(decoder.trf_blocks)
    if trainable == "all":
        classifier.requires_grad_(True)
        return 0
    num_trained = _TRAINED_BLOCKS.get(trainable, trainable)
    if type(num_trained) is not int or not 0 <= num_trained <= num_layers:
        raise ValueError(
            f"trainable={trainable!r} must be one of {', '.join(get_args(Trainable))}, or a number "
            f"of last blocks from 0 to {num_layers}."
        )
    num_frozen = num_layers - num_trained
    classifier.requires_grad_(False)
    decoder.out_head.requires_grad_(True)
    if num_trained:
        decoder.final_norm.requires_grad_(True)
        decoder.trf_blocks[num_frozen:].requires_grad_(True)
    return num_frozen


def set_dropout(model: nn.Module, rate: float) -> None:
    """Set the fraction of activations that every dropout layer zeroes in training."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def train_mode(model: nn.Module) -> None:
    """Switch dropout on in the parts that are trained whole; the others stay in evaluation mode."""
    model.eval()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            module.train()


# --- Losses, accuracies, predictions. `model` is a GPTClassifier, or a FastClassifier around one.


def calc_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (B, C) of a batch, computed where the model is."""
    device = next(model.parameters()).device
    return model(**{name: t.to(device) for name, t in batch.items() if name != "labels"})


def calc_loss_batch(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of a batch, in nats; `class_weights` (C,) make classes count unequally."""
    logits = calc_logits(model, batch)
    return F.cross_entropy(
        logits,
        batch["labels"].to(logits.device),
        weight=class_weights,
        label_smoothing=label_smoothing,
    )


@torch.no_grad()
def calc_loss_loader(model: nn.Module, loader: DataLoader) -> float:
    """Mean cross-entropy per message over a loader."""
    model.eval()
    total = sum(calc_loss_batch(model, batch).item() * len(batch["labels"]) for batch in loader)
    return total / len(loader.dataset)


@torch.no_grad()
def calc_accuracy_loader(model: nn.Module, loader: DataLoader) -> float:
    """Fraction of a loader's messages whose class gets the largest logit."""
    model.eval()
    correct = 0
    for batch in loader:
        predicted = calc_logits(model, batch).argmax(dim=-1)
        correct += (predicted.cpu() == batch["labels"]).sum().item()
    return correct / len(loader.dataset)


@torch.no_grad()
def predict_logits(model: nn.Module, dataset: SpamDataset, progress: bool = False) -> Tensor:
    """Logits (K, C) of all items, in their order; batches hold items of similar length."""
    model.eval()
    device = next(model.parameters()).device
    logits: list[Tensor] = [torch.empty(0)] * len(dataset)
    batches = batches_by_length(dataset.lengths, TOKENS_AT_ONCE[device.type])
    with tqdm(total=len(dataset), desc="classifying", unit="msg", disable=not progress) as bar:
        for indices in batches:
            batch = dataset.collate([dataset[i] for i in indices])
            for i, row in zip(indices, calc_logits(model, batch).float().cpu(), strict=True):
                logits[i] = row
            bar.update(len(indices))
    return torch.stack(logits)


def evaluate_model(model: nn.Module, dataset: SpamDataset) -> tuple[float, float]:
    """Mean loss and accuracy over a data set."""
    logits = predict_logits(model, dataset)
    labels = torch.tensor(dataset.labels)
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(dim=1) == labels).float().mean().item()
