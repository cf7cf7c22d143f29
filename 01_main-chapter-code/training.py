"""Training a classifier: the loop, its settings, and the checkpoint from which it goes on.

Shapes in comments: B messages in a batch, C classes.
"""

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from files import whole_file
from options import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SEED, Options, option
from text_classifier import calc_loss_batch, evaluate_model, set_dropout, train_mode
from text_data import SpamDataset, make_loader


@dataclass(frozen=True)
class TrainConfig(Options):
    """How a classifier is trained. Raises ``ValueError`` that names every value out of range."""

    learning_rate: float = option(1e-3, "AdamW's step size, at its peak", POSITIVE)
    num_epochs: int = option(5, "passes over the training messages", AT_LEAST_1)
    batch_size: int = option(8, "messages for each update", AT_LEAST_1)
    micro_batch_size: int | None = option(
        None,
        "messages of a batch that go through the model at a time, their gradients added up: less "
        "memory, and with 1 no padding; default: all",
        AT_LEAST_1,
    )
    weight_decay: float = option(0.1, "AdamW's pull of the weights towards zero", AT_LEAST_0)
    dropout: float = option(0.0, "fraction of activations zeroed in the trained layers", FRACTION)
    warmup_ratio: float = option(
        0.1, "fraction of the updates in which the learning rate rises from zero", FRACTION
    )
    schedule: Literal["constant", "cosine"] = option(
        "cosine", "the learning rate after the warm-up"
    )
    max_grad_norm: float | None = option(
        1.0, "length to which longer gradients are clipped", POSITIVE
    )
    patience: int | None = option(
        None,
        "epochs without a smaller validation loss after which training stops and the best epoch's "
        "weights are kept; default: train all epochs, keep the last weights",
        AT_LEAST_1,
    )
    label_smoothing: float = option(
        0.0, "fraction of the target spread evenly over all classes (Szegedy et al. 2016)", FRACTION
    )
    seed: int = option(
        123, "decides the split, the new head, the order of the messages and dropout", SEED
    )


def learning_rate_at(step: int, num_steps: int, config: TrainConfig) -> float:
    """Learning rate of update `step` (from 0): a linear warm-up, then constant or half a cosine."""
    warmup_steps = round(config.warmup_ratio * num_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


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


class TrainingState:
    """A training run between two epochs: all that must be saved to go on with it later."""

    def __init__(self, model: nn.Module, train: SpamDataset, config: TrainConfig):
        set_dropout(model, config.dropout)
        self.model, self.config = model, config
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over each parameter instead of a dozen
        )
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.history = History()
        self.best_weights: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        return self.config.num_epochs * self.steps_per_epoch

    @property
    def num_steps_done(self) -> int:
        return len(self.history.step_losses)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or too many went by without an improvement."""
        done, patience = self.history.num_epochs, self.config.patience
        waited = done - self.history.best_epoch
        return done >= self.config.num_epochs or (patience is not None and waited >= patience)

    def start_epoch(self) -> int:
        """Switch to training; returns the seed of this epoch's order, and sets that of dropout."""
        seed = self.config.seed * 1009 + self.num_steps_done // self.steps_per_epoch
        torch.manual_seed(seed)
        train_mode(self.model)
        return seed

    def set_learning_rate(self) -> None:
        rate = learning_rate_at(self.num_steps_done, self.num_steps, self.config)
        self.optimizer.param_groups[0]["lr"] = rate

    def add_epoch(self, train: tuple[float, float], validation: tuple[float, float]) -> None:
        """Note loss and accuracy on both parts, and keep the best weights where wanted."""
        history = self.history
        history.train_loss.append(train[0])
        history.train_accuracy.append(train[1])
        history.validation_loss.append(validation[0])
        history.validation_accuracy.append(validation[1])
        if validation[0] < min(history.validation_loss[:-1], default=math.inf):
            history.best_epoch = history.num_epochs
            if self.config.patience is not None:
                self.best_weights = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def restore_best_weights(self) -> None:
        for name, best in self.best_weights.items():
            self.parameters[name].copy_(best)


def update(
    optimizer: torch.optim.Optimizer, losses: Iterable[Tensor], max_grad_norm: float | None
) -> float:
    """One step of the optimizer on the added gradients of some losses; returns their sum."""
    optimizer.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm)
    optimizer.step()
    return total


def micro_batches(
    batch: Mapping[str, Tensor], size: int | None, class_weights: Tensor | None = None
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """A batch in parts of `size` messages, each cut to its longest message, with its fraction of
    the batch's messages, weighed as their classes are."""
    num_messages = len(batch["labels"])
    if size is None or size >= num_messages:
        yield dict(batch), 1.0
        return
    counts = torch.ones(num_messages)
    if class_weights is not None:
        counts = class_weights.cpu()[batch["labels"]]
    for start in range(0, num_messages, size):
        rows = slice(start, start + size)
        longest = int(batch["attention_mask"][rows].sum(dim=1).max())
        part = {name: t[rows] if t.dim() else t for name, t in batch.items()}
        part = {n: t[:, :longest] if t.dim() > 1 and n != "labels" else t for n, t in part.items()}
        yield part, (counts[rows].sum() / counts.sum()).item()


def train_step(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    class_weights: Tensor | None = None,
) -> float:
    """One update of the trained parameters; returns the batch's loss."""
    losses = (
        fraction * calc_loss_batch(model, part, class_weights, config.label_smoothing)
        for part, fraction in micro_batches(batch, config.micro_batch_size, class_weights)
    )
    return update(optimizer, losses, config.max_grad_norm)


def train_epoch(
    state: TrainingState,
    train: SpamDataset,
    class_weights: Tensor | None = None,
    bar: tqdm | None = None,
) -> None:
    """One pass over the training messages, in an order that seed and epoch decide."""
    config, seed = state.config, state.start_epoch()
    for batch in make_loader(
        train, config.batch_size, shuffle=True, group_by_length=True, seed=seed
    ):
        state.set_learning_rate()
        loss = train_step(state.model, batch, state.optimizer, config, class_weights)
        state.history.step_losses.append(loss)
        if bar is not None:
            bar.update()


def train_classifier_simple(
    model: nn.Module,
    train: SpamDataset,
    validation: SpamDataset,
    config: TrainConfig,
    class_weights: Tensor | None = None,
    checkpoint: "Checkpoint | None" = None,
    progress: bool = False,
) -> History:
    """Train what is not frozen of a GPTClassifier, or of a FastClassifier around one.

    `class_weights` (C,) make classes count unequally in the loss. With a `checkpoint`, the state
    is saved after each epoch, and a run that was stopped goes on from it to the same result.
    """
    state = TrainingState(model, train, config)
    if checkpoint is not None:
        checkpoint.load(state)
    done, total = state.num_steps_done, state.num_steps
    with tqdm(total=total, initial=done, desc="training", unit="step", disable=not progress) as bar:
        while not state.is_finished:
            train_epoch(state, train, class_weights, bar)
            state.add_epoch(evaluate_model(model, train), evaluate_model(model, validation))
            bar.set_postfix(validation_loss=f"{state.history.validation_loss[-1]:.3f}")
            if checkpoint is not None:
                checkpoint.save(state)
    state.restore_best_weights()
    model.eval()
    return state.history


# --- Going on after a stop -----------------------------------------------------------------------


class Checkpoint:
    """The file from which a training that was stopped goes on to the same result.

    `identity` is whatever must be the same then: options, and a fingerprint of the data. A
    checkpoint of another run, or a damaged one, is refused with a ``ValueError``. Instead of a
    `TrainingState` it takes anything with its `parameters`, `best_weights`, `optimizer` and
    `history`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]):
        self.path, self.identity = path, json.loads(json.dumps(identity))

    def save(self, state: TrainingState) -> None:
        content = {
            "run": self.identity,
            "history": asdict(state.history),
            "parameters": {name: p.detach() for name, p in state.parameters.items()},
            "best_weights": state.best_weights,
            "optimizer": state.optimizer.state_dict()["state"],
        }
        with whole_file(self.path) as partial, partial.open("wb") as file:
            torch.save(content, file)

    @torch.no_grad()
    def load(self, state: TrainingState) -> None:
        """Put `state` where the saved one was; without a file it stays at its beginning."""
        if not self.path.exists():
            return
        saved = self.read()
        for name, parameter in state.parameters.items():
            parameter.copy_(saved["parameters"][name])
        state.best_weights = saved["best_weights"]
        moments = {"state": saved["optimizer"]}
        state.optimizer.load_state_dict(state.optimizer.state_dict() | moments)
        state.history = History(**saved["history"])

    def read(self) -> dict[str, Any]:
        """What was saved, in main memory."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                if damaged := archive.testzip():  # torch.load checks no checksums
                    raise ValueError(f"the checksum of {damaged} is another")
            saved = torch.load(self.path, "cpu", weights_only=True)
            then = saved["run"]
        except Exception as error:  # those of zipfile, pickle and PyTorch share no class
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{self.path} is damaged ({reason}); start anew.") from None
        changed = [
            f"{name}: {then.get(name)} then, {self.identity.get(name)} now"
            for name in self.identity | then
            if then.get(name) != self.identity.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.path} belongs to another run ({'; '.join(changed)}): repeat its options, "
                f"or start anew in another folder."
            )
        return saved

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
