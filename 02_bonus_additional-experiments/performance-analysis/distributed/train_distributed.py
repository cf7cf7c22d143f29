"""The chapter's fine-tuning on several processes: one per GPU, or several on the CPU.

    torchrun --standalone --nproc_per_node 2 train_distributed.py --model gpt-mini

Every process computes its share of each batch's logits and gets those of the others, so that any
number of processes takes the same steps as `finetune.py` on one. Data, model, training, checkpoint
and results are the chapter's own; what is added here is who computes what, and who writes.

Shapes in comments: B messages of a batch, C classes.
"""

import argparse
import io
import math
import os
import signal
import startup_errors  # noqa: F401
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import fine_tuning
from command_line import add_options, config_from, make_parser, run_command
from features import FastClassifier, FeatureDataset
from finetune import results_table
from gpt_download import build_decoder
from message_files import DataError
from run_config import RunConfig
from run_folder import CHECKPOINT, open_run_folder
from text_classifier import GPTClassifier, pick_device
from text_data import SpamDataset
from training import Checkpoint, History, TrainingState

PROGRAM = Path(__file__).name
TIMEOUT = timedelta(minutes=10)  # for a process that no longer answers but has not ended either
STOPPED = "a process ended; repeat the command with --resume to go on from the last finished epoch."


# --- Who computes what: every `size`-th message, since neighbours are of similar length ----------


class SharedClassifier(FastClassifier):
    """A FastClassifier of whose every batch each process computes its share, and gets all logits.

    So losses and predictions are those of whole batches, and the chapter's own functions train and
    predict with it, as long as all processes call it with the same batches. `wrapped` is the module
    whose processes exchange their gradients.
    """

    def __init__(self, model: FastClassifier, wrapped: nn.Module):
        super().__init__(model.classifier, model.num_layers, model.precision)
        self.wrapped = (wrapped,)  # in a tuple, so that parameters keep their names

    def forward(self, **batch: Tensor) -> Tensor:
        """The batch's logits (B, C). Where the messages are not enough for all processes, some are
        computed twice, and the second time they count nothing."""
        rank, size, num = dist.get_rank(), dist.get_world_size(), len(batch["attention_mask"])
        rows = torch.arange(rank, math.ceil(num / size) * size, size) % num
        own = self.wrapped[0](**{n: t[rows] if t.dim() else t for n, t in batch.items()})
        shares = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(shares, own.detach().contiguous())
        shares[rank] = own
        if own.requires_grad:  # the gradients are to be added up; DDP and FSDP take their mean
            own.register_hook(lambda gradient: size * gradient)
        return torch.stack(shares, dim=1).flatten(0, 1)[:num]

    def eval(self) -> "SharedClassifier":
        """Every epoch begins with this and one seed for all: dropout is to be unlike on each."""
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed((torch.initial_seed() * size + rank) % 2**63)
        return super().eval()


def share(model: FastClassifier, strategy: str, device: torch.device) -> SharedClassifier:
    """The model, to be trained by all processes. With "fsdp", each then holds a slice of every
    parameter, a `DTensor`, on its device."""
    if strategy == "ddp":  # gradients lie where they are exchanged, or there would be two of each
        return SharedClassifier(model, DistributedDataParallel(model, gradient_as_bucket_view=True))
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # FastClassifier's output is a view, and nobody changes it in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    # Each block is gathered when its turn comes. The last one, which FastClassifier does not call
    # as a whole, is gathered along with embeddings, final norm and head.
    for block in model.classifier.decoder.trf_blocks[:-1]:
        fully_shard(block, mesh=mesh)
    # As slices again after each pass: best weights that are restored are then those that are used.
    return SharedClassifier(model, fully_shard(model, mesh=mesh, reshard_after_forward=True))


def compute_features_together(
    classifier: GPTClassifier, dataset: SpamDataset, num_layers: int, *how
) -> FeatureDataset:
    """`FeatureDataset.from_classifier`: each process computes its share and sends it to all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    own = SpamDataset(dataset.sequences[rank::size], dataset.labels[rank::size])
    own = FeatureDataset.from_classifier(classifier, own, num_layers, *how)
    shares: list[Any] = [None] * size
    dist.all_gather_object(shares, [states.cpu() for states in own.sequences])
    features: list[Any] = [None] * len(dataset)
    for source, share in enumerate(shares):
        features[source::size] = [states.to(classifier.device) for states in share]
    return FeatureDataset(features, dataset.labels, own.made_by)


def validate_alike(facts: Mapping[str, Any]) -> None:
    """Processes on several machines can see different files; together they would learn nonsense."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    differing = [key for key in facts if any(other[key] != facts[key] for other in everyone)]
    if differing:
        raise DataError(
            f"The processes disagree about {', '.join(differing)}: give all machines the same "
            f"options and files, and an --output folder on a disk that all of them see."
        )


# --- One checkpoint, of whole tensors -------------------------------------------------------------


def slice_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This process's slice of a tensor, cut as a parameter is; a step count stays whole."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    how = (parameter.device_mesh, parameter.placements)
    return distribute_tensor(tensor, *how, src_data_rank=None)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the first process's main memory, nothing on the others.

    All processes must call it. One tensor at a time is whole on a GPU.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if dist.get_rank() == 0:
            gathered[name] = full.detach().cpu()
    return gathered


class SharedCheckpoint(Checkpoint):
    """The chapter's checkpoint, written by the first process: any number of processes, either
    strategy, and finetune.py itself can go on from it."""

    def save(self, state: TrainingState) -> None:
        moments = {i: whole(t) for i, t in state.optimizer.state_dict()["state"].items()}
        gathered = SimpleNamespace(
            parameters=whole(state.parameters),
            best_weights=whole(state.best_weights),
            optimizer=SimpleNamespace(state_dict=lambda: {"state": moments}),
            history=state.history,
        )
        if dist.get_rank() == 0:
            super().save(gathered)

    @torch.no_grad()
    def load(self, state: TrainingState) -> None:
        if self.path.exists():
            saved = self.read()
            for i, (name, parameter) in enumerate(state.parameters.items()):
                parameter.copy_(slice_like(saved["parameters"][name], parameter))
                moments = saved["optimizer"][i].items()
                state.optimizer.state[parameter] = {n: slice_like(t, parameter) for n, t in moments}
            best = saved["best_weights"].items()
            state.best_weights = {n: slice_like(t, state.parameters[n]) for n, t in best}
            state.history = History(**saved["history"])
        validate_alike({"the checkpoint": state.num_steps_done})


# --- The run -------------------------------------------------------------------------------------


def fine_tune_together(config: RunConfig, strategy: str, device: torch.device) -> None:
    """`fine_tune` on all processes, of which the first one writes `config.output`."""
    is_first, num_processes = dist.get_rank() == 0, dist.get_world_size()
    config = replace(config, quiet=config.quiet or not is_first, device=device.type)
    # FSDP2 moves one block after the other to a GPU that could not hold the whole model.
    run = fine_tuning.prepare(config, None, device if strategy == "ddp" else torch.device("cpu"))
    config = run.config
    validate_alike(run.identity)
    checkpoint = SharedCheckpoint(config.output / CHECKPOINT, run.identity)
    resume = config.resume or (num_restarts() > 0 and checkpoint.path.exists())
    to_write = (config.output, run.identity, resume, config.overwrite)
    with open_run_folder(*to_write) if is_first else nullcontext() as folder:
        finished = [is_first and folder.is_finished]
        dist.broadcast_object_list(finished, src=0)
        if finished[0]:
            return run.log(f"The run in {config.output} is finished already.")
        run.log(f"{num_processes} processes, {strategy}.")
        classifier, num_frozen = fine_tuning.make_model(run)
        send_from_first(classifier, device)
        datasets, num_done = fine_tuning.compute_frozen_layers(
            run, classifier, num_frozen if strategy == "ddp" else 0, compute_features_together
        )
        model = FastClassifier(classifier, num_done, config.precision)
        shared = share(model, strategy, device)
        trained = fine_tuning.train_and_predict(run, model, datasets, checkpoint, shared)
        tensors = whole(classifier.state_dict())
        if not is_first:
            return None
        with torch.device("meta"):  # shapes only: the weights are there already
            decoder = build_decoder(run.decoder.cfg)
            classifier, _ = fine_tuning.make_classifier(decoder, run.about, config)
        classifier.load_state_dict(tensors, assign=True)
        metrics = fine_tuning.make_metrics(run, *trained)
        metrics |= {"strategy": strategy, "num_processes": num_processes}
        fine_tuning.finish(run, folder, classifier, metrics)
    print(results_table(metrics))


@torch.no_grad()
def send_from_first(model: nn.Module, device: torch.device) -> None:
    """Give all processes the first one's weights: rounding may have made theirs differ."""
    for parameter in model.parameters():
        shared = parameter.to(device)
        dist.broadcast(shared, src=0)
        parameter.copy_(shared)


def own_device(name: str) -> torch.device:
    """The CPU, or the GPU of this process's number on its machine."""
    if name == "mps":
        raise ValueError("--device mps: processes cannot exchange tensors there; choose cpu.")
    if pick_device(name).type != "cuda":
        return torch.device("cpu")
    index, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if index >= num_gpus:
        raise ValueError(f"GPUs here: {num_gpus}. Start torchrun with as many processes.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


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


def run(args: argparse.Namespace) -> None:
    """Meet the other processes and work with them. Of those that fail, one says why."""
    store, rank, size = meet()
    try:
        config, device = config_from(args, RunConfig), own_device(args.device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        fine_tune_together(config, args.strategy, device)
    except BaseException as error:
        with suppress(dist.DistError):  # torchrun itself is gone
            if store.add("failed", 1) > 1:
                sys.stderr = io.StringIO()
        is_of_gloo = type(error) is RuntimeError and "gloo" in str(error)
        if isinstance(error, dist.DistError) or is_of_gloo:  # another process is gone
            raise OSError(STOPPED) from None
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(
        PROGRAM,
        "finetune.py on several processes, to be started by torchrun: the same options, the same "
        "steps, the same files. --batch-size counts the messages of all processes together.",
    )
    add_options(parser, RunConfig, leave_out=["multi_label"])
    parser.add_argument(
        "--strategy",
        choices=["ddp", "fsdp"],
        default="ddp",
        help="every process holds the whole model (DistributedDataParallel), or a slice of each "
        "layer (FSDP2), for models too large for one GPU",
    )
    parser.set_defaults(output=Path("classifier"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    if under_torchrun := "RANK" in os.environ:  # which sends this signal when a process has ended
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_first = os.environ.get("RANK", "0") == "0"
    with redirect_stderr(sys.stderr if is_first else io.StringIO()):  # once is enough
        args = parse_args(argv)
    status = run_command(PROGRAM, lambda: run(args), STOPPED)
    if under_torchrun:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
    return status


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
