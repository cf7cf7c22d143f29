"""The chapter's fine-tuning on several processes: one per GPU, or several on the CPU.

    torchrun --standalone --nproc_per_node 2 train_distributed.py --model gpt-mini

Every process computes its share of each batch's logits and gets those of the others, so that any
number of processes takes the same steps as `finetune.py` on one. Data, model, training, checkpoint
and results are the chapter's own; what is added here is who computes what, and who writes.

Shapes in comments: B messages of a batch, C classes.
"""

import argparse
import ctrl_c  # noqa: F401
import io
import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fine_tuning
from command_line import add_options, config_from, make_parser, run_command
from features import FastClassifier, FeatureDataset
from finetune import results_table
from message_files import DataError
from run_config import RunConfig
from run_folder import CHECKPOINT, RunFolder
from text_classifier import GPTClassifier, pick_device, predict_logits
from text_data import SpamDataset
from training import Checkpoint, TrainingState, train_classifier_simple

PROGRAM = Path(__file__).name
TIMEOUT = timedelta(minutes=10)  # for a process that no longer answers but has not ended either
STOPPED = "a process ended; repeat the command with --resume to go on from the last finished epoch."


# --- Who computes what: every `size`-th message, since neighbours are of similar length ----------


class SharedClassifier(FastClassifier):
    """A FastClassifier of whose every batch each process computes its share, and gets all logits.

    So losses and predictions are those of whole batches, and the chapter's own functions train and
    predict with it, as long as all processes call it with the same batches.
    """

    def __init__(self, model: FastClassifier):
        super().__init__(model.classifier, model.num_layers, model.precision)
        # Gradients lie where they are exchanged, or there would be two of each. In a tuple, so that
        # parameters keep their names.
        self.shared = (DistributedDataParallel(model, gradient_as_bucket_view=True),)

    def forward(self, **batch: Tensor) -> Tensor:
        """The batch's logits (B, C). Where the messages are not enough for all processes, some are
        computed twice, and the second time they count nothing."""
        rank, size, num = dist.get_rank(), dist.get_world_size(), len(batch["attention_mask"])
        rows = torch.arange(rank, math.ceil(num / size) * size, size) % num
        own = self.shared[0](**{n: t[rows] if t.dim() else t for n, t in batch.items()})
        shares = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(shares, own.detach().contiguous())
        shares[rank] = own
        if own.requires_grad:  # the gradients are to be added up; DDP takes their mean
            own.register_hook(lambda gradient: size * gradient)
        return torch.stack(shares, dim=1).flatten(0, 1)[:num]

    def eval(self) -> "SharedClassifier":
        """Every epoch begins with this and one seed for all: dropout is to be unlike on each."""
        rank, size = dist.get_rank(), dist.get_world_size()
        torch.manual_seed((torch.initial_seed() * size + rank) % 2**63)
        return super().eval()


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


class SharedCheckpoint(Checkpoint):
    """The chapter's checkpoint, written by the first process: any number of processes, and
    finetune.py itself, can go on from it."""

    def save(self, state: TrainingState) -> None:
        if dist.get_rank() == 0:
            super().save(state)

    def load(self, state: TrainingState) -> None:
        super().load(state)
        validate_alike({"the checkpoint": state.num_steps_done})


# --- The run -------------------------------------------------------------------------------------


def fine_tune_together(config: RunConfig, device: torch.device) -> None:
    """`fine_tune` on all processes, of which the first one writes `config.output`."""
    is_first, num_processes = dist.get_rank() == 0, dist.get_world_size()
    config = replace(config, quiet=config.quiet or not is_first, device=device.type)
    run = fine_tuning.prepare(config, None, device)
    config, clock = run.config, run.clock
    validate_alike(run.identity)
    checkpoint = SharedCheckpoint(config.output / CHECKPOINT, run.identity)
    resume = config.resume or (num_restarts() > 0 and checkpoint.path.exists())
    to_write = (config.output, run.identity, resume, config.overwrite)
    with RunFolder(*to_write) if is_first else nullcontext() as folder:
        finished = [is_first and folder.is_finished]
        dist.broadcast_object_list(finished, src=0)
        if finished[0]:
            return run.log(f"The run in {config.output} is finished already.")
        fine_tuning.pretrain(run)
        send_from_first(run.decoder)
        how = (run.decoder, run.about, config, run.head)
        classifier, num_frozen = fine_tuning.make_classifier(*how)
        trained = f"training {config.trainable}, {len(run.datasets[0]):,} messages"
        run.log(f"{config.model} on {num_processes} x {device.type}: {trained}.")
        datasets, num_done = fine_tuning.compute_frozen_layers(
            run, classifier, num_frozen, compute_features_together
        )
        model = FastClassifier(classifier, num_done, config.precision)
        with clock.stage("training"):
            shared = SharedClassifier(model)
            how = (config, run.loss_weights(), checkpoint, not config.quiet)
            history = train_classifier_simple(shared, *datasets[:2], *how)
            fine_tuning.raise_if_diverged(history, config)
        with clock.stage("evaluation"):
            if config.precision != "float32":  # a saved classifier computes all blocks in float32
                model.precision, model.num_layers, datasets = "float32", 0, run.datasets
            logits = [predict_logits(shared, dataset) for dataset in datasets]
        if not is_first:
            return None
        metrics = fine_tuning.make_metrics(run, logits, history)
        metrics |= {"num_processes": num_processes}
        rest = (run.tokenizer, config, run.messages, history, metrics)
        fine_tuning.finish(run, folder, fine_tuning.RunResult(classifier, *rest))
    print(results_table(metrics))


@torch.no_grad()
def send_from_first(model: nn.Module) -> None:
    """Give all processes the first one's weights: rounding may have made theirs differ."""
    for parameter in model.parameters():
        dist.broadcast(parameter, src=0)


def own_device(name: str) -> torch.device:
    """The CPU, or the GPU of this process's number on its machine."""
    if name == "mps":
        raise ValueError("--device mps: processes cannot exchange tensors there; choose cpu.")
    if pick_device(name).type != "cuda":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0))
    num_here, num_gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if num_here > num_gpus:
        raise ValueError(f"GPUs here: {num_gpus}. Start torchrun with as many processes.")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def under_torchrun() -> bool:
    return "RANK" in os.environ


def num_restarts() -> int:
    """How often torchrun started all processes again, which its `--max-restarts` allows."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def run(args: argparse.Namespace) -> None:
    """Meet the other processes and work with them."""
    config, device = config_from(args, RunConfig), own_device(args.device)
    # Without torchrun, one process by itself.
    alone = {} if under_torchrun() else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT, **alone)
        fine_tune_together(config, device)
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
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
    parser.set_defaults(output=Path("classifier"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    if os.environ.get("RANK", "0") != "0":  # what goes wrong, the first process says for all
        sys.stderr = io.StringIO()
    if under_torchrun():  # which sends this signal when a process has ended
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    args = parse_args(argv)
    status = run_command(PROGRAM, lambda: run(args), STOPPED)
    if under_torchrun():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
    return status


if __name__ == "__main__":
    matplotlib.use("Agg")  # plots are written to files: no window is needed
    sys.exit(main())
