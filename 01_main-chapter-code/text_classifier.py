"""From a language model to a classifier: the head, freezing, training, classifying, saving.

Shapes in comments: B messages in a batch, T tokens in the longest of them, D embedding
dimensions, C classes, N messages of a data set.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from tqdm import tqdm

from gpt_download import load_tokenizer, resolve_model_name
from previous_chapters import GPTConfig, GPTModel, select_positions
from text_data import (
    Batch,
    Pooling,
    Reading,
    SpamDataset,
    batch_of,
    batches_by_length,
    class_weights,
    encode_messages,
    make_loader,
)

# Tokens in a batch where nothing is trained. On a CPU a few hundred keep its cores busy, and more
# only add padding and leave its caches; a GPU wants many.
TOKENS_AT_ONCE = {"cpu": 512, "mps": 4096, "cuda": 16384}
Precision = Literal["float32", "bfloat16"]


def pick_device(name: str = "auto") -> torch.device:
    """The named device; `auto` takes a GPU if there is one. Raises ``ValueError`` if absent."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available.get(name, False):
        present = ", ".join(device for device, here in available.items() if here)
        raise ValueError(f"Device {name!r} is not available here; available: auto, {present}.")
    return torch.device(name)


def compute_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which matrix products are computed in `precision`.

    Weights, their updates and sensitive sums stay in float32; bfloat16 halves the bytes and is
    faster where the processor multiplies it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


# ---------------------------------------------------------------------------------------------
# The head, and what is trained
# ---------------------------------------------------------------------------------------------

Trainable = Literal["head", "last_block", "last_two_blocks", "all"]
_TRAINED_BLOCKS = {"head": 0, "last_block": 1, "last_two_blocks": 2}


def add_classification_head(model: GPTModel, num_classes: int) -> None:
    """Replace the head that names the next token by a linear layer that names a class."""
    device = model.tok_emb.weight.device
    model.out_head = nn.Linear(model.cfg.emb_dim, num_classes, device=device)


def freeze_all_but(model: GPTModel, trainable: Trainable | int) -> int:
    """Train only the named part, and return how many blocks, from the first on, are frozen.

    A number stands for that many of the last blocks. The final norm is trained along with the
    last block, the embeddings with `all` only.
    """
    num_layers = len(model.trf_blocks)
    if trainable == "all":
        model.requires_grad_(True)
        return 0
    num_frozen = num_layers - min(_TRAINED_BLOCKS.get(trainable, trainable), num_layers)
    model.requires_grad_(False)
    model.out_head.requires_grad_(True)
    if num_frozen < num_layers:
        model.final_norm.requires_grad_(True)
        model.trf_blocks[num_frozen:].requires_grad_(True)
    return num_frozen


def set_dropout(model: GPTModel, rate: float) -> None:
    """Set the share of activations that every dropout layer zeroes in training."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate


def train_mode(model: GPTModel) -> None:
    """Switch dropout on in the parts that are trained whole; the others stay in evaluation mode."""
    model.eval()
    for part in (*model.trf_blocks, model.final_norm, model.out_head):
        part.train(all(p.requires_grad for p in part.parameters()))
    model.drop_emb.train(model.tok_emb.weight.requires_grad)


# ---------------------------------------------------------------------------------------------
# Logits at the last real token
# ---------------------------------------------------------------------------------------------


def last_token_logits(model: GPTModel, batch: Batch) -> Tensor:
    """Logits (B, C) at each message's last real token.

    Equal to `model(input_ids)` read at `last_positions`, but the last block computes nothing
    else: one position looks back at all the others, which need no output of their own.
    """
    x = batch.inputs if batch.num_blocks_done else model.embed(batch.inputs)  # (B, T, D)
    remaining = model.trf_blocks[batch.num_blocks_done :]
    for block in remaining[:-1]:
        x = block(x)
    if len(remaining):
        x = remaining[-1](x, batch.last_positions)  # (B, 1, D)
    else:
        x = select_positions(x, batch.last_positions)
    return model.out_head(model.final_norm(x)).squeeze(1)  # (B, C)


def read_logits(model: GPTModel, batch: Batch) -> Tensor:
    """Logits (B, C) of each message, read where `batch.reading` says.

    The chapter reads the last real token, which spares the last block all other positions.
    """
    position, causal, _ = batch.reading
    if causal and position == "last_real":
        return last_token_logits(model, batch)
    x = batch.inputs if batch.num_blocks_done else model.embed(batch.inputs)  # (B, T, D)
    for block in model.trf_blocks[batch.num_blocks_done :]:
        x = block(x, visible=None if causal else batch.real)
    logits = model.out_head(model.final_norm(x))  # (B, T, C)
    if position == "mean":  # the head is linear: the mean's logits are the logits' mean
        real = batch.real.unsqueeze(-1)
        return (logits * real).sum(dim=1) / real.sum(dim=1)
    if position == "first":
        return logits[:, 0]
    return select_positions(logits, batch.last_positions).squeeze(1)


@torch.no_grad()
def compute_frozen_layers(
    model: GPTModel,
    dataset: SpamDataset,
    num_frozen: int,
    progress: bool = False,
    precision: Precision = "float32",
) -> SpamDataset:
    """The data set with the frozen blocks' output in place of the token ids.

    Frozen layers give the same hidden states in every epoch, so they are computed once. Where
    only the head is trained, and reads the last real token, that one's state is all that is kept.
    """
    if num_frozen == 0:
        return dataset
    model.eval()
    device = model.tok_emb.weight.device
    hidden: list[Tensor | None] = [None] * len(dataset)
    last_only = num_frozen == len(model.trf_blocks) and dataset.reading.position == "last_real"
    bar = tqdm(total=len(dataset), desc="frozen layers", unit="msg", disable=not progress)
    for indices, batch in _evaluation_batches(dataset, device):
        x = model.embed(batch.inputs)
        with compute_in(precision, device):
            for block in model.trf_blocks[:num_frozen]:
                x = block(x, visible=None if dataset.reading.causal else batch.real)
        for i, states, last in zip(indices, x, batch.last_positions.tolist(), strict=True):
            hidden[i] = (states[last : last + 1] if last_only else states[: last + 1]).clone()
        bar.update(len(indices))
    bar.close()
    return SpamDataset(hidden, dataset.labels, num_frozen, dataset.lengths, dataset.reading)


def _evaluation_batches(
    dataset: SpamDataset, device: torch.device
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of messages of similar length, each with its messages' indices."""
    lengths = [max(len(sequence), dataset.reading.width) for sequence in dataset.sequences]
    for indices in batches_by_length(lengths, TOKENS_AT_ONCE[device.type]):
        yield indices, batch_of(dataset, indices).to(device)


@torch.no_grad()
def predict_logits(
    model: GPTModel,
    dataset: SpamDataset,
    progress: bool = False,
    precision: Precision = "float32",
) -> Tensor:
    """Logits (N, C) of all messages, in their order; batches are formed by length."""
    model.eval()
    device = model.tok_emb.weight.device
    logits = torch.empty(len(dataset), model.out_head.out_features)
    bar = tqdm(total=len(dataset), desc="classifying", unit="msg", disable=not progress)
    for indices, batch in _evaluation_batches(dataset, device):
        with compute_in(precision, device):
            logits[indices] = read_logits(model, batch).float().cpu()
        bar.update(len(indices))
    bar.close()
    return logits


# ---------------------------------------------------------------------------------------------
# Losses and accuracies
# ---------------------------------------------------------------------------------------------


def calc_loss_batch(
    model: GPTModel, batch: Batch, weights: Tensor | None = None, **options
) -> Tensor:
    """Mean cross-entropy of a batch, in nats; `weights` (C,) make classes count differently.

    Further `options` are those of PyTorch's `cross_entropy`.
    """
    return F.cross_entropy(read_logits(model, batch), batch.labels, weight=weights, **options)


@torch.no_grad()
def calc_loss_loader(model: GPTModel, loader: DataLoader) -> float:
    """Mean cross-entropy per message over a loader."""
    model.eval()
    device = model.tok_emb.weight.device
    total = sum(
        calc_loss_batch(model, batch.to(device)).item() * len(batch.labels) for batch in loader
    )
    return total / len(loader.dataset)


@torch.no_grad()
def calc_accuracy_loader(model: GPTModel, loader: DataLoader) -> float:
    """Share of a loader's messages whose class gets the largest logit."""
    model.eval()
    device = model.tok_emb.weight.device
    correct = 0
    for batch in loader:
        predicted = read_logits(model, batch.to(device)).argmax(dim=-1)
        correct += (predicted.cpu() == batch.labels).sum().item()
    return correct / len(loader.dataset)


def evaluate_model(
    model: GPTModel, dataset: SpamDataset, precision: Precision = "float32"
) -> tuple[float, float]:
    """Mean loss and accuracy over a data set."""
    logits = predict_logits(model, dataset, precision=precision)
    labels = torch.tensor(dataset.labels)
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(dim=-1) == labels).float().mean().item()


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainConfig:
    """How a classifier is trained. Raises ``ValueError`` naming every value out of range."""

    learning_rate: float = 1e-3
    """AdamW's step size, at its peak. The default suits gpt-mini; larger models want less."""
    num_epochs: int = 5
    """Passes over the training messages."""
    batch_size: int = 8
    """Messages taken through the model at a time."""
    accumulation_steps: int = 1
    """Batches whose gradients are averaged for each update."""
    weight_decay: float = 0.1
    """AdamW's pull of the weights towards zero."""
    dropout: float = 0.0
    """Share of activations zeroed in the trained layers."""
    warmup_share: float = 0.1
    """Share of all updates in which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up."""
    max_grad_norm: float | None = 1.0
    """Longest gradient; a longer one is clipped. None clips nothing."""
    patience: int | None = None
    """Epochs without a smaller validation loss after which training stops; the best epoch's
    weights are kept. None trains all epochs and keeps the last weights."""
    use_class_weights: bool = False
    """Whether every class counts alike in the loss, however rare it is. The weights act within a
    batch: PyTorch's weighted mean divides by the sum of the batch's weights, so that in a batch
    of one they cancel."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes (Szegedy et al. 2016)."""
    ignore_index: int = -100
    """Messages with this label do not count in the loss."""
    seed: int = 123
    """Order of the messages and dropout."""
    precision: Precision = "float32"
    """Of matrix products in training and evaluation; the weights are kept in float32."""

    def __post_init__(self) -> None:
        checks = {
            "learning_rate": self.learning_rate > 0,
            "num_epochs": self.num_epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "accumulation_steps": self.accumulation_steps >= 1,
            "weight_decay": self.weight_decay >= 0,
            "dropout": 0 <= self.dropout < 1,
            "warmup_share": 0 <= self.warmup_share < 1,
            "schedule": self.schedule in ("constant", "cosine"),
            "max_grad_norm": self.max_grad_norm is None or self.max_grad_norm > 0,
            "patience": self.patience is None or self.patience >= 1,
            "label_smoothing": 0 <= self.label_smoothing <= 1,
            "precision": self.precision in get_args(Precision),
        }
        wrong = [f"{name}={getattr(self, name)!r}" for name, holds in checks.items() if not holds]
        if wrong:
            raise ValueError(f"Out of range: {', '.join(wrong)}.")


@dataclass
class History:
    """What happened in training: one loss an update, the rest one value an epoch."""

    step_losses: list[float] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0
    """Epoch, counted from 1, with the smallest validation loss."""

    @property
    def num_epochs(self) -> int:
        return len(self.validation_loss)


def learning_rate_at(step: int, num_steps: int, config: TrainConfig) -> float:
    """Learning rate of update `step` (from 0): a linear warm-up, then constant or half a cosine."""
    warmup_steps = round(config.warmup_share * num_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """The state of a training run: everything that must be saved to go on with it later."""

    def __init__(
        self,
        model: GPTModel,
        train: SpamDataset,
        config: TrainConfig,
        calc_loss: Callable[..., Tensor] = calc_loss_batch,
    ):
        set_dropout(model, config.dropout)
        self.model, self.train, self.config = model, train, config
        self.calc_loss = calc_loss
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over each parameter instead of a dozen
        )
        self.history = History()
        self.best_weights: dict[str, Tensor] = {}
        self.weights = None
        if config.use_class_weights:
            device = model.tok_emb.weight.device
            self.weights = class_weights(train.labels, model.out_head.out_features).to(device)
        num_batches = -(-len(train) // config.batch_size)
        self.steps_per_epoch = -(-num_batches // config.accumulation_steps)

    @property
    def num_steps(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or too many went by without an improvement."""
        done, patience = self.history.num_epochs, self.config.patience
        waited = done - self.history.best_epoch
        return done >= self.config.num_epochs or (patience is not None and waited >= patience)

    def train_epoch(self, progress: tqdm | None = None) -> None:
        """One pass over the training messages in an order that depends on seed and epoch only."""
        config = self.config
        num_epochs_done = len(self.history.step_losses) // self.steps_per_epoch
        epoch_seed = config.seed * 1009 + num_epochs_done
        torch.manual_seed(epoch_seed)  # for dropout
        loader = make_loader(
            self.train,
            config.batch_size,
            shuffle=True,
            group_by_length=True,
            generator=torch.Generator().manual_seed(epoch_seed),
        )
        train_mode(self.model)
        batches = iter(loader)
        while group := list(islice(batches, config.accumulation_steps)):
            self.history.step_losses.append(self.update(group))
            if progress is not None:
                progress.update()

    def train_all_epochs(self, progress: bool = False) -> None:
        """Train without a look at losses and accuracies between the epochs, which takes time."""
        with tqdm(total=self.num_steps, desc="training", unit="step", disable=not progress) as bar:
            for _ in range(self.config.num_epochs):
                self.train_epoch(bar)
        self.model.eval()

    def update(self, group: Sequence[Batch]) -> float:
        """One step of the optimizer on the mean gradient of some batches; returns their loss."""
        config, step = self.config, len(self.history.step_losses)
        self.optimizer.param_groups[0]["lr"] = learning_rate_at(step, self.num_steps, config)
        self.optimizer.zero_grad()
        device = self.model.tok_emb.weight.device
        options = {"label_smoothing": config.label_smoothing, "ignore_index": config.ignore_index}
        total = 0.0
        for batch in group:
            if (batch.labels == config.ignore_index).all():
                continue  # no label counts: there is no loss
            batch = batch.to(device)
            # A new context each time: it keeps weights cast to bfloat16, which updates outdate.
            with compute_in(config.precision, device):
                loss = self.calc_loss(self.model, batch, self.weights, **options) / len(group)
            loss.backward()
            total += loss.item()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
        self.optimizer.step()
        return total

    def evaluate_epoch(self, validation: SpamDataset) -> None:
        """Losses and accuracies on both data sets, and the best weights where they are wanted."""
        history = self.history
        for name, dataset in (("train", self.train), ("validation", validation)):
            loss, accuracy = evaluate_model(self.model, dataset, self.config.precision)
            getattr(history, f"{name}_loss").append(loss)
            getattr(history, f"{name}_accuracy").append(accuracy)
        if history.validation_loss[-1] < min(history.validation_loss[:-1], default=math.inf):
            history.best_epoch = history.num_epochs
            if self.config.patience is not None:
                self.best_weights = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def keep_best_weights(self) -> None:
        for name, best in self.best_weights.items():
            self.parameters[name].copy_(best)


def train_classifier_simple(
    model: GPTModel,
    train: SpamDataset,
    validation: SpamDataset,
    config: TrainConfig,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> History:
    """Train the unfrozen part of `model` and return what happened.

    Both data sets may hold token ids or hidden states from `compute_frozen_layers`. With
    `checkpoint`, the state is saved there after each epoch, and a run that was stopped goes on
    from it to the same result.
    """
    trainer = Trainer(model, train, config)
    if checkpoint is not None and checkpoint.exists():
        load_checkpoint(trainer, checkpoint)
    done = len(trainer.history.step_losses)
    bar = tqdm(
        total=trainer.num_steps, initial=done, desc="training", unit="step", disable=not progress
    )
    while not trainer.finished:
        trainer.train_epoch(bar)
        trainer.evaluate_epoch(validation)
        bar.set_postfix(
            validation_loss=f"{trainer.history.validation_loss[-1]:.3f}",
            validation_accuracy=f"{trainer.history.validation_accuracy[-1]:.1%}",
        )
        if checkpoint is not None:
            save_checkpoint(trainer, checkpoint)
    bar.close()
    trainer.keep_best_weights()
    model.eval()
    return trainer.history


def calc_next_token_loss(
    model: GPTModel, batch: Batch, weights: Tensor | None = None, **options
) -> Tensor:
    """Mean cross-entropy of every real token but the first, given those before it, in nats.

    A batch of many tokens is taken through the model in pieces, each computed anew for the backward
    pass: the activations of one piece are held at a time, for a third more work (Chen et al. 2016).
    """

    def summed_loss(rows: list[int]) -> Tensor:
        longest = int(batch.last_positions[rows].max()) + 1
        ids, real = batch.inputs[rows, :longest], batch.real[rows, 1:longest]
        x = model.embed(ids[:, :-1])  # (B, T - 1, D)
        for block in model.trf_blocks:
            x = block(x)
        logits = model.out_head(model.final_norm(x[real]))  # (real tokens, V)
        return F.cross_entropy(logits, ids[:, 1:][real], weights, reduction="sum", **options)

    lengths = (batch.last_positions + 1).tolist()
    pieces = batches_by_length(lengths, 2 * TOKENS_AT_ONCE[batch.inputs.device.type])
    if len(pieces) == 1:
        total = summed_loss(pieces[0])
    else:
        total = sum(checkpoint(summed_loss, rows, use_reentrant=False) for rows in pieces)
    return total / batch.real[:, 1:].sum()


FURTHER_PRETRAINING = TrainConfig(learning_rate=5e-4, num_epochs=2, batch_size=16)


def encode_for_pretraining(texts: Sequence[str], tokenizer, context_length: int) -> list[Tensor]:
    """Token ids (T,) of each text between two `<|endoftext|>`, cut at the context's length."""
    end = torch.tensor([tokenizer.eot_token])
    encoded = encode_messages(texts, tokenizer, context_length)
    return [torch.cat([end, ids, end])[:context_length] for ids in encoded]


def continue_pretraining(
    model: GPTModel, sequences: Sequence[Tensor], config: TrainConfig, progress: bool = False
) -> list[float]:
    """Train a language model on texts like those it will classify; returns the steps' losses.

    Takes token ids (T,) of at least two tokens each and needs no labels; it comes before the
    head is replaced (Gururangan et al. 2020, "Don't Stop Pretraining").
    """
    model.requires_grad_(True)
    texts = SpamDataset(sequences, [0] * len(sequences))
    trainer = Trainer(model, texts, config, calc_next_token_loss)
    trainer.train_all_epochs(progress)
    return trainer.history.step_losses


# ---------------------------------------------------------------------------------------------
# Checkpoints of a training run
# ---------------------------------------------------------------------------------------------


def flatten_optimizer_state(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's tensors under names, so that they fit in a safetensors file."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{i}.{key}": t for i, tensors in state.items() for key, t in tensors.items()}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str
) -> None:
    """The reverse of `flatten_optimizer_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file that is either whole or not there: it is moved here when complete."""
    # safetensors begins each file under a random name. In a folder of our own, what a killed run
    # left of it is found again and removed.
    partial = path.with_name(path.name + ".partial")
    if partial.is_file():  # from before it was a folder
        partial.unlink()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        whole = partial / path.name
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, whole, metadata)
        whole.chmod(0o644)  # safetensors keeps its files from everybody else
        whole.replace(path)
    except SafetensorError as error:  # a full disk, among others
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    """A text file that is either whole or not there: it is renamed when complete."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except (OSError, UnicodeEncodeError):
        partial.unlink(missing_ok=True)
        raise


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    tensors = {f"weight.{name}": p for name, p in trainer.parameters.items()}
    tensors |= {f"best.{name}": p for name, p in trainer.best_weights.items()}
    tensors |= flatten_optimizer_state(trainer.optimizer, "optimizer.")
    state = {"history": asdict(trainer.history), "config": asdict(trainer.config)}
    save_tensors(tensors, path, {"state": json.dumps(state)})


@torch.no_grad()
def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer into the saved state. Raises ``ValueError`` if it belongs to another run."""
    try:
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["state"])
        # In memory of their own: Windows would not replace a file that tensors are mapped on.
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and start anew.") from error
    now = asdict(trainer.config)
    changed = [
        f"{k}: {state['config'].get(k)} then, {v} now"
        for k, v in now.items()
        if state["config"].get(k) != v
    ]
    saved = {name: t.shape for name, t in tensors.items() if name.startswith("weight.")}
    if saved != {f"weight.{name}": p.shape for name, p in trainer.parameters.items()}:
        changed.append("other layers were trained, or of another size")
    if changed:
        raise ValueError(
            f"{path} belongs to a run with other options ({'; '.join(changed)}); repeat those "
            f"options, or start anew without --resume."
        )
    for name, parameter in trainer.parameters.items():
        parameter.copy_(tensors[f"weight.{name}"])
    trainer.best_weights = {
        name.removeprefix("best."): tensor.to(trainer.model.tok_emb.weight.device)
        for name, tensor in tensors.items()
        if name.startswith("best.")
    }
    load_optimizer_state(trainer.optimizer, tensors, "optimizer.")
    trainer.history = History(**state["history"])


# ---------------------------------------------------------------------------------------------
# Classifying, saving and opening a classifier
# ---------------------------------------------------------------------------------------------


@dataclass
class Classifier:
    """A fine-tuned model with all that is needed to use it."""

    model: GPTModel
    tokenizer: Any
    model_name: str
    label_names: list[str]
    """In the order of the logits."""
    max_length: int
    """Tokens of a message that are read; the rest is cut off."""
    card: dict[str, Any] = field(default_factory=dict)
    """What it was trained on and with, and its test figures."""
    pooling: Pooling = "last_real"
    """Where a message's class is read."""

    def encode(self, texts: Sequence[str]) -> SpamDataset:
        """Texts as this classifier reads them; their labels, unknown, are 0."""
        sequences = encode_messages(texts, self.tokenizer, self.max_length)
        return SpamDataset(sequences, [0] * len(sequences), reading=Reading(self.pooling))


class Prediction(NamedTuple):
    label: str
    probability: float


def classify_texts(classifier: Classifier, texts: Sequence[str], progress: bool = False) -> Tensor:
    """Probabilities (N, C) of each text's classes, in the order of `label_names`."""
    logits = predict_logits(classifier.model, classifier.encode(texts), progress)
    return torch.softmax(logits, dim=-1)


def classify_review(text: str, classifier: Classifier) -> Prediction:
    """The likeliest class of one text, and its probability."""
    probabilities = classify_texts(classifier, [text])[0]  # (C,)
    best = int(probabilities.argmax())
    return Prediction(classifier.label_names[best], probabilities[best].item())


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`; whoever is stopped midway leaves no half.

    The configuration is removed first and written last, and it carries the checksum of the
    weights: a folder that has one is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    weights = folder / "model.safetensors"
    architecture = asdict(classifier.model.cfg)
    # One entry only: several are written in an order that changes, and the checksum with it.
    metadata = {"architecture": json.dumps(architecture)}
    save_tensors(classifier.model.state_dict(), weights, metadata)
    config = {
        "format": "gpt-classifier-1",
        "model": classifier.model_name,
        "architecture": architecture,
        "label_names": classifier.label_names,
        "max_length": classifier.max_length,
        "pooling": classifier.pooling,
        "weights_sha256": file_sha256(weights),
        **classifier.card,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_text(text, folder / "config.json")


def open_classifier(folder: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """The classifier in a folder, in evaluation mode.

    Raises ``ValueError``, or ``FileNotFoundError`` where a file is absent, with a sentence that
    says what is wrong with the folder; nothing is ever unpickled.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is not a classifier folder: {name} is missing; finetune.py makes one."
            )
    config = _read_config(folder / "config.json")
    weights = folder / "model.safetensors"
    if config["weights_sha256"] != file_sha256(weights):
        raise ValueError(
            f"{weights} is damaged or belongs to another classifier: its checksum is not the one "
            f"in config.json."
        )
    try:
        _compare_with_header(config["architecture"], weights)
        with torch.device("meta"):  # shapes only: the weights bring their own memory
            model = GPTModel(config["architecture"])
        add_classification_head(model, len(config["label_names"]))
        model.load_state_dict(load_file(weights), assign=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights} does not fit its config.json: {reason}") from error
    tokenizer = load_tokenizer(config["model"])
    if tokenizer.n_vocab != model.cfg.vocab_size:
        raise ValueError(
            f"{folder / 'config.json'}: vocab_size={model.cfg.vocab_size}, but the tokenizer of "
            f"{config['model']!r} has {tokenizer.n_vocab} tokens."
        )
    fields = ("format", "model", "architecture", "label_names", "max_length", "pooling")
    known = (*fields, "weights_sha256")
    return Classifier(
        model.to(device).eval(),
        tokenizer,
        config["model"],
        config["label_names"],
        config["max_length"],
        {key: value for key, value in config.items() if key not in known},
        config["pooling"],
    )


def _compare_with_header(cfg: GPTConfig, weights: Path) -> None:
    """Raise ``ValueError`` unless the header of the weights bears out the configuration.

    A size that lies would take all memory for the model; a number of heads that lies would fit
    the weights, and classify wrongly. Folders from before it was kept have no such number.
    """
    with safe_open(weights, "pt") as file:
        names = file.keys()
        num_blocks = len({name.split(".")[1] for name in names if name.startswith("trf_blocks.")})
        saved = json.loads((file.metadata() or {}).get("architecture", "{}"))
        facts = [
            (("vocab_size", "emb_dim"), file.get_slice("tok_emb.weight").get_shape()),
            (("context_length", "emb_dim"), file.get_slice("pos_emb.weight").get_shape()),
            (("num_layers",), [num_blocks]),
        ]
    if not isinstance(saved, dict):
        raise ValueError("its architecture is no JSON object")
    claimed = asdict(cfg)
    for fields, found in [*facts, *(((name,), [value]) for name, value in saved.items())]:
        if [claimed.get(name) for name in fields] != found:
            said = ", ".join(f"{name}={claimed.get(name)}" for name in fields)
            raise ValueError(f"{said} there, {', '.join(map(str, found))} in the weights")


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a classifier folder, checked field by field."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != "gpt-classifier-1":
        raise ValueError(f"{path} does not describe a classifier of this project.")
    try:
        config["architecture"] = GPTConfig(**config["architecture"])
        labels = config["label_names"]
        if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
            raise ValueError("label_names must be a list of texts")
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError("label_names must be at least two different texts")
        context = config["architecture"].context_length
        length = config["max_length"]
        if not (type(length) is int and 1 <= length <= context):
            raise ValueError(f"max_length={length!r} must lie between 1 and {context}")
        # Folders from before there was a choice read the last real token.
        if config.setdefault("pooling", "last_real") not in get_args(Pooling):
            raise ValueError(
                f"pooling={config['pooling']!r} must be one of {', '.join(get_args(Pooling))}"
            )
        if not all(isinstance(config[key], str) for key in ("model", "weights_sha256")):
            raise ValueError("model and weights_sha256 must be texts")
        resolve_model_name(config["model"])
    except KeyError as error:
        raise ValueError(f"{path}: the field {error} is missing.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
