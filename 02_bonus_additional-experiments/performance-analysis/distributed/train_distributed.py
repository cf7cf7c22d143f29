"""The chapter's fine-tuning on several processes: one per GPU, or several on the CPU.

    torchrun --standalone --nproc_per_node 2 train_distributed.py --model gpt-mini

Every process works on its share of each batch, and the gradients are summed, so that a run on any
number of processes takes the same steps as `finetune.py` on one. Data, model, losses, checkpoints
and results are the chapter's own; what is added here is who computes what, and who writes.

Shapes in comments: B messages in a batch, T tokens in the longest of them, C classes, D embedding
dimensions, N messages of a data set. A *share* is what one process works on.
"""

import argparse
import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import finetune
from gpt_download import DownloadError
from message_files import DataError
from previous_chapters import GPTModel
from text_classifier import (
    TOKENS_AT_ONCE,
    History,
    Precision,
    Trainer,
    add_classification_head,
    compute_frozen_layers,
    compute_in,
    flatten_optimizer_state,
    learning_rate_at,
    load_checkpoint,
    pick_device,
    read_logits,
    save_tensors,
)
from text_data import Batch, SpamDataset, batch_of, batches_by_length

PROGRAM = Path(__file__).name
TIMEOUT = timedelta(minutes=10)  # for a process that answers no more but has not ended either
LONG_TIMEOUT = timedelta(days=7)  # where all others wait for what the first one does alone


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """finetune.py's options and `--strategy`."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="finetune.py on several processes, to be started by torchrun: the same "
        "options, the same steps, the same files. --batch-size counts the messages of all "
        "processes together.",
        epilog="All other options are those of finetune.py; see finetune.py --help.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--strategy",
        choices=["ddp", "fsdp"],
        default="ddp",
        help="ddp: every process holds the whole model (DistributedDataParallel); fsdp: every "
        "process holds a slice of each layer (FSDP2), for models too large for one GPU. fsdp "
        "recomputes frozen layers at every step; default: ddp",
    )
    own, rest = parser.parse_known_args(argv)
    args = finetune.parse_args(rest)
    args.strategy = own.strategy
    return args


# ---------------------------------------------------------------------------------------------
# Who computes what
# ---------------------------------------------------------------------------------------------


def share_of(items: Sequence, rank: int, num_processes: int) -> Sequence:
    """The items of one process: every `num_processes`-th.

    Neighbours in a batch are of similar length, so that all processes get similar work.

    >>> [share_of([10, 11, 12, 13, 14], rank, 2) for rank in (0, 1)]
    [[10, 12, 14], [11, 13]]
    """
    return items[rank::num_processes]


class CalledThrough(nn.Module):
    """A model with one door: all that is computed with it is computed in this `forward`.

    DDP and FSDP2 act when a module is called, whereas the chapter hands models to functions.
    """

    def __init__(self, gpt: GPTModel):
        super().__init__()
        self.gpt = gpt

    def forward(self, function: Callable[..., Tensor], *arguments, **options) -> Tensor:
        return function(self.gpt, *arguments, **options)


def share_of_batch(batch: Batch, ignore_index: int) -> Batch:
    """This process's messages of a batch.

    A process that gets none takes one without a label that counts, so that it takes part in the
    exchange of weights and gradients for which all others wait.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if rank >= len(batch.labels):
        nobody = torch.full_like(batch.labels[:1], ignore_index)
        return Batch(batch.inputs[:1], batch.last_positions[:1], nobody, *batch[3:])
    return Batch(*(share_of(tensor, rank, size) for tensor in batch[:3]), *batch[3:])


@torch.no_grad()
def pretrain_further_on_first(
    job: finetune.Job, seed: int, device: torch.device, progress: bool
) -> None:
    """`finetune.pretrain_further` on the first process, which sends its weights to all others.

    Tensors travel on `device`, which may be another than the model's. The others wait at a barrier
    of their own, because the exchange of weights would give up after `TIMEOUT`.
    """
    waiting_room = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    if dist.get_rank() == 0:
        with torch.enable_grad():
            finetune.pretrain_further(job, seed, progress)
    dist.barrier(waiting_room)
    for parameter in job.model.parameters():
        shared = parameter.to(device)
        dist.broadcast(shared, src=0)
        parameter.copy_(shared)


def compute_frozen_layers_together(
    model: GPTModel,
    dataset: SpamDataset,
    num_frozen: int,
    progress: bool = False,
    precision: Precision = "float32",
) -> SpamDataset:
    """`compute_frozen_layers`: each process computes its share and sends it to all others."""
    if num_frozen == 0:
        return dataset
    rank, size = dist.get_rank(), dist.get_world_size()
    sequences, labels = (share_of(x, rank, size) for x in (dataset.sequences, dataset.labels))
    own = SpamDataset(sequences, labels, reading=dataset.reading)
    own = compute_frozen_layers(model, own, num_frozen, progress, precision)
    num_positions: list[list[int]] = [[] for _ in range(size)]  # kept of each message
    dist.all_gather_object(num_positions, [len(states) for states in own.sequences])
    hidden: list[Tensor | None] = [None] * len(dataset)
    for source in range(min(size, len(dataset))):
        shape = sum(num_positions[source]), model.cfg.emb_dim
        states = torch.empty(shape, device=model.tok_emb.weight.device)
        if source == rank:
            torch.cat(own.sequences, out=states)
        dist.broadcast(states, src=source)
        hidden[source::size] = states.split(num_positions[source])  # (T, D) each
    return SpamDataset(hidden, dataset.labels, num_frozen, dataset.lengths, dataset.reading)


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


class DistributedTrainer(Trainer):
    """The chapter's `Trainer` on several processes.

    It takes over model, optimizer and history of a `plain` trainer, which may have read a
    checkpoint. Under FSDP2 each parameter becomes a `DTensor`, of which a process keeps a slice.
    """

    def __init__(self, plain: Trainer, strategy: str, device: torch.device):
        states = [plain.optimizer.state.get(p, {}) for p in plain.parameters.values()]
        self.device = device
        self.module = distribute(CalledThrough(plain.model), strategy, device)
        super().__init__(plain.model, plain.train, plain.config)
        self.history = plain.history
        for parameter, state in zip(self.parameters.values(), states, strict=True):
            if state:
                self.optimizer.state[parameter] = {
                    key: slice_like(tensor, parameter) for key, tensor in state.items()
                }
        self.best_weights = {
            name: slice_like(tensor, self.parameters[name])
            for name, tensor in plain.best_weights.items()
        }

    def update(self, group: Sequence[Batch]) -> float:
        """As in the chapter, on the same batches, of which each process computes its share.

        Every message weighs the same on whichever process it lands, because a sum over the share
        is divided by what the whole batch counts. A mean of the shares' means would not do that
        where shares are uneven.
        """
        config, step = self.config, len(self.history.step_losses)
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed * 1009 + step * size + rank)  # dropout unlike on all others
        self.optimizer.param_groups[0]["lr"] = learning_rate_at(step, self.num_steps, config)
        self.optimizer.zero_grad()
        options = {"label_smoothing": config.label_smoothing, "ignore_index": config.ignore_index}
        total = torch.zeros((), device=self.device)
        for batch in group:
            divisor = self.sum_of_weights(batch.labels) * len(group)
            if divisor == 0:
                continue  # no label counts: there is no loss
            own = share_of_batch(batch, config.ignore_index).to(self.device)
            with compute_in(config.precision, self.device):
                loss = self.module(self.calc_loss, own, self.weights, reduction="sum", **options)
            loss = loss / divisor
            # DDP and FSDP2 take the mean of the processes' gradients; what is wanted is the sum.
            (loss * size).backward()
            total += loss.detach()
        if config.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
        self.optimizer.step()
        dist.all_reduce(total)
        return total.item()

    def sum_of_weights(self, labels: Tensor) -> float:
        """What the mean loss of a batch with these labels (B,) is divided by."""
        counting = labels[labels != self.config.ignore_index]
        return len(counting) if self.weights is None else self.weights.cpu()[counting].sum().item()

    @torch.no_grad()
    def predict_logits(self, dataset: SpamDataset, precision: Precision = "float32") -> Tensor:
        """Logits (N, C) of all messages, on every process; each row is computed by one of them.

        The processes take one batch each at a time. In the last round, those for which none is
        left repeat the first one's, because FSDP2 needs all of them at every layer.
        """
        self.model.eval()
        rank, size = dist.get_rank(), dist.get_world_size()
        lengths = [max(len(sequence), dataset.reading.width) for sequence in dataset.sequences]
        batches = batches_by_length(lengths, TOKENS_AT_ONCE[self.device.type])
        logits = torch.zeros(len(dataset), self.model.out_head.out_features, device=self.device)
        for start in range(0, len(batches), size):
            has_own = start + rank < len(batches)
            indices = batches[start + rank if has_own else start]
            batch = batch_of(dataset, indices).to(self.device)
            with compute_in(precision, self.device):
                own_logits = self.module(read_logits, batch).float()  # (B, C)
            if has_own:
                logits[indices] = own_logits
        dist.all_reduce(logits)  # all other processes hold zeros in a row, so its sum is the row
        return logits.cpu()

    def evaluate_epoch(self, validation: SpamDataset) -> None:
        """As in the chapter, on logits that all processes computed together."""
        history = self.history
        for name, dataset in (("train", self.train), ("validation", validation)):
            logits = self.predict_logits(dataset, self.config.precision)
            labels = torch.tensor(dataset.labels)
            accuracy = (logits.argmax(dim=-1) == labels).float().mean().item()
            getattr(history, f"{name}_loss").append(F.cross_entropy(logits, labels).item())
            getattr(history, f"{name}_accuracy").append(accuracy)
        if history.validation_loss[-1] < min(history.validation_loss[:-1], default=math.inf):
            history.best_epoch = history.num_epochs
            if self.config.patience is not None:
                self.best_weights = {n: p.detach().clone() for n, p in self.parameters.items()}

    def save_checkpoint(self, path: Path) -> None:
        """The chapter's checkpoint, of whole tensors, written by the first process.

        Any number of processes, either strategy, and finetune.py itself can go on from it.
        """
        tensors = {f"weight.{name}": p for name, p in self.parameters.items()}
        tensors |= {f"best.{name}": p for name, p in self.best_weights.items()}
        tensors |= flatten_optimizer_state(self.optimizer, "optimizer.")
        tensors = gather_on_first(tensors)
        if dist.get_rank() == 0:
            state = {"history": asdict(self.history), "config": asdict(self.config)}
            save_tensors(tensors, path, {"state": json.dumps(state)})

    def whole_model(self) -> GPTModel | None:
        """The trained model in the first process's main memory; None on the others."""
        tensors = gather_on_first(self.model.state_dict())
        if dist.get_rank() != 0:
            return None
        with torch.device("meta"):  # shapes only: the weights are there already
            model = GPTModel(self.model.cfg)
        add_classification_head(model, self.model.out_head.out_features)
        model.load_state_dict(tensors, assign=True)
        return model.eval()


def distribute(module: CalledThrough, strategy: str, device: torch.device) -> nn.Module:
    """Make the processes work together whenever the module is called or differentiated."""
    if strategy == "ddp":
        # Gradients lie where they are exchanged, or else there would be two copies of them.
        return DistributedDataParallel(module.to(device), gradient_as_bucket_view=True)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in module.gpt.trf_blocks:  # each block is gathered when its turn comes
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)  # embeddings, final norm and head


def slice_like(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's slice of a tensor of the optimizer, cut as its parameter is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    return tensor


def gather_on_first(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the first process's main memory, nothing on the others.

    All processes must call it. One tensor at a time is whole on a GPU.
    """
    gathered = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            gathered[name] = whole.detach().cpu()
    return gathered


def train(
    trainer: DistributedTrainer, validation: SpamDataset, checkpoint: Path, progress: bool
) -> History:
    """All epochs that are still to be done, with a checkpoint after each."""
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
        trainer.save_checkpoint(checkpoint)
    bar.close()
    trainer.keep_best_weights()
    return trainer.history


# ---------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """finetune.py's run on all processes; returns on the first what metrics.json holds, on the
    others nothing."""
    is_first = dist.get_rank() == 0
    progress = is_first and not args.quiet
    say = print if progress else lambda *_: None
    clock = finetune.Clock()
    # FSDP2 moves one block after the other to a GPU that could not hold the whole model.
    whole_model_device = device if args.strategy == "ddp" else torch.device("cpu")
    job = finetune.prepare(args, whole_model_device, say, clock)
    del job.options["strategy"]  # either can go on with the other's run, and with finetune.py's
    refuse_differences(job.options)
    checkpoint = prepare_folder_once(args, job.options, say)
    if checkpoint is None:
        return finetune.read_json(args.output / "metrics.json") if is_first else {}

    if job.further_epochs:
        with clock.stage("pretraining"):
            texts = f"{len(job.unlabelled):,} texts, without their labels"
            say(f"Pretraining {job.model_name} further on {texts}, on the first process.")
            pretrain_further_on_first(job, args.seed, device, progress)
    num_frozen = finetune.make_classifier(job, args)
    say(
        f"{job.model_name} on {dist.get_world_size()} x {device.type}, {args.strategy}: training "
        f"{args.trainable}, {len(job.splits.train):,} messages."
    )
    with clock.stage("frozen_layers"):
        if args.strategy == "ddp" and finetune.fits_in_memory(job.datasets, job.model, num_frozen):
            job.datasets = [
                compute_frozen_layers_together(
                    job.model, dataset, num_frozen, progress, args.precision
                )
                for dataset in job.datasets
            ]
    with clock.stage("training"):
        plain = Trainer(job.model, job.datasets[0], job.config)
        if checkpoint.exists():
            load_checkpoint(plain, checkpoint)
        trainer = DistributedTrainer(plain, args.strategy, device)
        del plain
        history = train(trainer, job.datasets[1], checkpoint, progress)
    finetune.refuse_divergence(history, job.config)
    with clock.stage("evaluation"):
        figures = finetune.evaluate(trainer.predict_logits, job.datasets)
    job.model = trainer.whole_model()
    if not is_first:
        return {}
    machine = {
        "device": device.type,
        "strategy": args.strategy,
        "num_processes": dist.get_world_size(),
    }
    return finetune.write_results(args, job, figures, history, clock, machine)


def refuse_differences(facts: dict[str, Any]) -> None:
    """Processes on several machines can see different files; together they would learn nonsense."""
    everyone: list[dict | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    differing = [key for key in facts if any(other[key] != facts[key] for other in everyone)]
    if differing:
        raise DataError(
            f"The processes disagree about {', '.join(differing)}: give all machines the same "
            f"options and files, and an --output folder on a disk that all of them see."
        )


def prepare_folder_once(args: argparse.Namespace, options: dict, say: Callable) -> Path | None:
    """`finetune.prepare_folder` on the first process; its answer on all."""
    answer = [finetune.prepare_folder(args, options, say) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    if answer[0] is not None:
        refuse_differences({"the checkpoint": answer[0].exists()})
    return answer[0]


# ---------------------------------------------------------------------------------------------
# Processes: meeting, and ending together
# ---------------------------------------------------------------------------------------------


def meet() -> tuple[dist.Store, int, int]:
    """What torchrun tells: a store of keys that all processes share, this one's rank, and their
    number. Without torchrun, one process by itself."""
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # After a restart, the store still holds the addresses of the processes that ended.
    return dist.PrefixStore(f"attempt {num_restarts()}", store), rank, size


def num_restarts() -> int:
    """How often torchrun started all processes again, which its `--max-restarts` allows."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def own_device(name: str) -> torch.device:
    """The CPU, or the GPU of this process's number on its machine."""
    if name == "mps":
        raise DataError("--device mps: the processes cannot exchange tensors there; choose cpu.")
    device = pick_device(name)
    if device.type != "cuda":
        return torch.device("cpu")
    index, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= num_gpus:
        raise DataError(
            f"There are more processes than GPUs on this machine, which has {num_gpus}: start "
            f"torchrun with --nproc_per_node {num_gpus}, or choose --device cpu."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


class Reporter:
    """Tells the reader why a run ended, in one message however many processes it ended in."""

    def __init__(self, store: dist.Store):
        self.store = store.clone()  # the signal's thread must not wait for the main thread's call
        self.checkpoint: Path | None = None

    def say(self, message: str) -> None:
        try:
            is_first = self.store.add("reported", 1) == 1
        except dist.DistError:  # torchrun itself is gone
            is_first = True
        if is_first:
            print(message, file=sys.stderr, flush=True)

    def say_interrupted(self) -> None:
        hint = "; repeat the command."
        if self.checkpoint is not None and self.checkpoint.exists():
            hint = "; repeat the command with --resume to go on from the last finished epoch."
        self.say(
            f"{PROGRAM}: the run ends, because one of its processes ended or it was told to stop"
            + hint
        )

    def watch_for_the_end(self) -> None:
        """End with a message when torchrun says so, which it does when another process died.

        A thread waits for the signal: the main one may wait in vain for the process that died,
        and a Python signal handler would wait with it.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(writer)

        def wait() -> None:
            while signal.SIGTERM not in os.read(reader, 1):
                pass
            self.say_interrupted()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def lost_contact(error: RuntimeError) -> bool:
    """Whether another process ended, rather than this one having failed."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def main(argv: list[str] | None = None) -> int:
    store, rank, size = meet()
    reporter = Reporter(store)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is said is said once
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            args = parse_args(argv)
    except SystemExit as stop:
        if stop.code:
            reporter.say(complaint.getvalue().rstrip())
        return stop.code
    if "RANK" in os.environ:
        reporter.watch_for_the_end()
    if num_restarts() and (args.output / "run.json").exists():
        args.resume = True  # torchrun's second attempt goes on where the first one ended
    reporter.checkpoint = args.output / finetune.CHECKPOINT
    try:
        device = own_device(args.device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        metrics = run(args, device)
        dist.barrier()  # whoever is done first stays, to tell if another process ends too early
    except (DataError, ValueError) as error:
        reporter.say(f"{PROGRAM}: {error}")
        return 2
    except (DownloadError, OSError) as error:
        reporter.say(f"{PROGRAM}: {error}")
        return 1
    except (MemoryError, torch.OutOfMemoryError) as error:
        remedy = "try more processes, --strategy fsdp, a smaller --batch-size or --max-length"
        reporter.say(f"{PROGRAM}: out of memory; {remedy}. {error}")
        return 1
    except RuntimeError as error:
        if not lost_contact(error):
            raise
        reporter.say_interrupted()
        return 1
    except KeyboardInterrupt:
        reporter.say_interrupted()
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        print(finetune.results_table(metrics))
    return 0


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
