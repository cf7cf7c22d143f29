"""Ways to classify messages with the same weights: plain loops, batches, compilers, fewer bits.

Each way is a function from token-id sequences to logits (N, C), in the order of the messages.
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from bench_common import NotHere, need_bf16
from hugging_face import hugging_face_inputs, hugging_face_twin
from torch import Tensor, nn

from previous_chapters import GPTModel
from text_classifier import TOKENS_AT_ONCE, last_token_logits, predict_logits
from text_data import Batch, SpamDataset, batches_by_length, pad_batch

BATCH_SIZE = 16
Classify = Callable[[Sequence[Tensor]], Tensor]
Batches = Callable[[Sequence[Tensor]], list[list[int]]]


def one_by_one(sequences: Sequence[Tensor]) -> list[list[int]]:
    return [[i] for i in range(len(sequences))]


def as_they_come(sequences: Sequence[Tensor]) -> list[list[int]]:
    return [
        list(range(start, min(start + BATCH_SIZE, len(sequences))))
        for start in range(0, len(sequences), BATCH_SIZE)
    ]


def grouped(device: torch.device) -> Batches:
    """By length, and as many tokens at once as `classify.py` takes on this device."""
    return lambda sequences: batches_by_length(
        [len(s) for s in sequences], TOKENS_AT_ONCE[device.type]
    )


@dataclass
class InBatches:
    """A way to get logits: what a batch goes through, and how batches are formed."""

    logits_of_batch: Classify
    batches: Batches

    @torch.inference_mode()
    def __call__(self, sequences: Sequence[Tensor]) -> Tensor:
        parts, order = [], []
        for indices in self.batches(sequences):
            parts.append(self.logits_of_batch([sequences[i] for i in indices]).float().cpu())
            order += indices
        return torch.cat(parts)[torch.tensor(order).argsort()]


def from_scratch(model: GPTModel) -> Classify:
    device = model.tok_emb.weight.device

    def logits_of_batch(sequences: Sequence[Tensor]) -> Tensor:
        return last_token_logits(model, as_batch(sequences, device))

    return logits_of_batch


def as_batch(sequences: Sequence[Tensor], device: torch.device) -> Batch:
    return pad_batch([(sequence, 0) for sequence in sequences]).to(device)


def chapter(model: GPTModel) -> Classify:
    """What `classify.py` does."""
    return lambda sequences: predict_logits(model, SpamDataset(sequences, [0] * len(sequences)))


def compiled(model: GPTModel) -> Classify:
    """`torch.compile` of the blocks: all but the last share one compilation, for any shape."""
    changed = copy.deepcopy(model)
    for block in changed.trf_blocks:
        block.compile(dynamic=True)
    return from_scratch(changed)


def in_bf16(model: GPTModel) -> Classify:
    """All weights, embeddings too, and activations in bfloat16: 8 bits of precision, half the
    memory."""
    need_bf16(model.tok_emb.weight.device)
    return from_scratch(copy.deepcopy(model).to(torch.bfloat16))


def in_int8(model: GPTModel) -> Classify:
    """Matrices in 8 bits, activations too while they are multiplied."""
    if model.tok_emb.weight.device.type == "cpu":
        return from_scratch(torch_dynamic_int8(model))
    return from_scratch(torchao_int8(model))


def torch_dynamic_int8(model: GPTModel) -> GPTModel:
    """PyTorch's own dynamic quantisation, for processors."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they point to torchao, which is measured too
        changed = copy.deepcopy(model)
        return torch.ao.quantization.quantize_dynamic(changed, {nn.Linear}, torch.qint8)


def torchao_int8(model: GPTModel) -> GPTModel:
    if find_spec("torchao") is None:
        raise NotHere("torchao is not installed")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    changed = copy.deepcopy(model)
    quantize_(changed, Int8DynamicActivationInt8WeightConfig(), filter_fn=is_block_linear)
    return changed


def is_block_linear(module: nn.Module, name: str) -> bool:
    """The blocks' matrices, not the small head."""
    return isinstance(module, nn.Linear) and name.startswith("trf_blocks")


class LastTokenLogits(nn.Module):
    """`last_token_logits` as a module of two tensors, which is what an export wants."""

    def __init__(self, model: GPTModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, last_positions: Tensor) -> Tensor:
        return last_token_logits(self.model, Batch(input_ids, last_positions, last_positions))


def in_onnx_runtime(model: GPTModel) -> Classify:
    """Exported to ONNX, with batch and length left open, and run by ONNX Runtime."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(package) is None:
            raise NotHere(f"{package} is not installed")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    on_gpu = model.tok_emb.weight.device.type == "cuda"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotHere(f"onnxruntime has no {provider}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.onnx"
        export_onnx(copy.deepcopy(model).cpu(), path)
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])

    def logits_of_batch(sequences: Sequence[Tensor]) -> Tensor:
        batch = as_batch(sequences, torch.device("cpu"))
        inputs = {
            "input_ids": batch.inputs.numpy(),
            "last_positions": batch.last_positions.numpy(),
        }
        return torch.from_numpy(session.run(None, inputs)[0])

    return logits_of_batch


def export_onnx(model: GPTModel, path: Path) -> None:
    batch = as_batch([torch.arange(7), torch.arange(5), torch.arange(3)], torch.device("cpu"))
    any_number = torch.export.Dim.DYNAMIC
    with torch.no_grad():
        torch.onnx.export(
            LastTokenLogits(model).eval(),
            (batch.inputs, batch.last_positions),
            path,
            dynamo=True,
            dynamic_shapes=({0: any_number, 1: any_number}, {0: any_number}),
            input_names=["input_ids", "last_positions"],
            output_names=["logits"],
            verbose=False,
        )


def in_transformers(model: GPTModel) -> Classify:
    if find_spec("transformers") is None:
        raise NotHere("transformers is not installed")
    theirs = hugging_face_twin(model)
    theirs.config.use_cache = False  # keys and values that nobody would read again

    def logits_of_batch(sequences: Sequence[Tensor]) -> Tensor:
        inputs = hugging_face_inputs(sequences, theirs.config.pad_token_id)
        return theirs(**{k: v.to(theirs.device) for k, v in inputs.items()}).logits

    return logits_of_batch


def own_ways(model: GPTModel) -> dict[str, Classify]:
    """The chapter's code, with batches formed in three ways."""
    return {
        "plain loop": InBatches(from_scratch(model), one_by_one),
        "batches of 16": InBatches(from_scratch(model), as_they_come),
        "grouped by length (classify.py)": chapter(model),
    }


def other_ways(model: GPTModel) -> dict[str, Callable[[], Classify]]:
    """What makes each of the ways that need a library, a compiler or a processor's instructions.

    Making or calling one may fail, with ``NotHere`` or with an error of the library's.
    """
    by_length = grouped(model.tok_emb.weight.device)
    makers = {
        "ONNX Runtime": in_onnx_runtime,  # first: an export forgets what was compiled before it
        "torch.compile": compiled,
        "bf16": in_bf16,
        "int8": in_int8,
    }
    theirs = cache(lambda: in_transformers(model))  # one copy of the weights for three ways
    ways = {"loop": one_by_one, "batches of 16": as_they_come, "grouped": by_length}
    return {
        f"{name}, grouped": lambda make=make: InBatches(make(model), by_length)
        for name, make in makers.items()
    } | {
        f"transformers, {name}": lambda batches=batches: InBatches(theirs(), batches)
        for name, batches in ways.items()
    }
