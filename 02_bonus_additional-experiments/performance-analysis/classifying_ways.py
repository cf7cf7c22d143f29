"""Ways to classify messages with the same weights: plain loops, batches, compilers, fewer bits.

Each way is a function from a data set to logits (N, C), in the order of its messages.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from bench_common import Unavailable, require, require_bf16
from hugging_face import hugging_face_classifier, hugging_face_inputs
from torch import Tensor, nn

from features import FastClassifier
from text_classifier import TOKENS_AT_ONCE, GPTClassifier, calc_logits
from text_data import SpamDataset, batches_by_length

BATCH_SIZE = 16
Batches = list[list[int]]
CalcLogits = Callable[[dict[str, Tensor]], Tensor]
Classify = Callable[[SpamDataset], Tensor]


def one_by_one(dataset: SpamDataset) -> Batches:
    return [[i] for i in range(len(dataset))]


def as_they_come(dataset: SpamDataset) -> Batches:
    return [rows.tolist() for rows in torch.arange(len(dataset)).split(BATCH_SIZE)]


def by_length(dataset: SpamDataset, device: torch.device) -> Batches:
    """As many tokens at once as `classify.py` takes on this device."""
    return batches_by_length(dataset.lengths, TOKENS_AT_ONCE[device.type])


@torch.inference_mode()
def in_batches(
    logits_of: CalcLogits, batches_of: Callable[[SpamDataset], Batches], dataset: SpamDataset
) -> Tensor:
    """Logits (N, C), computed in the given batches."""
    batches = batches_of(dataset)
    logits = [logits_of(dataset.collate([dataset[i] for i in rows])) for rows in batches]
    order = torch.tensor([i for rows in batches for i in rows])
    return torch.cat(logits).float().cpu()[order.argsort()]


def from_scratch(classifier: GPTClassifier) -> CalcLogits:
    return partial(calc_logits, FastClassifier(classifier))


def compiled(classifier: GPTClassifier) -> CalcLogits:
    """`torch.compile` of the blocks: they share one compilation, for any shape."""
    changed = copy.deepcopy(classifier)
    for block in changed.decoder.trf_blocks:
        block.compile(dynamic=True)
    return from_scratch(changed)


def bfloat16(classifier: GPTClassifier) -> GPTClassifier:
    """All weights, embeddings too, and activations: 8 bits of precision, half the memory."""
    require_bf16(classifier.device)
    return copy.deepcopy(classifier).to(torch.bfloat16)


def int8_by_pytorch(classifier: GPTClassifier) -> GPTClassifier:
    """PyTorch's own dynamic quantisation, for processors: matrices in 8 bits, activations too
    while they are multiplied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they point to torchao, which is measured too
        changed = copy.deepcopy(classifier)
        return torch.ao.quantization.quantize_dynamic(changed, {nn.Linear}, torch.qint8)


def by_torchao(make_config: Callable[[Any], Any], classifier: GPTClassifier) -> GPTClassifier:
    """The blocks' matrices in one of torchao's formats, not the small head."""
    require("torchao")
    from torchao import quantization

    changed = copy.deepcopy(classifier)
    quantization.quantize_(changed.decoder.trf_blocks, make_config(quantization))
    return changed


int8_by_torchao = partial(by_torchao, lambda q: q.Int8DynamicActivationInt8WeightConfig())
int8_weights = partial(by_torchao, lambda q: q.Int8WeightOnlyConfig())
# One scale for each 32 weights. torchao keeps 4 bits in a byte on a processor, so that neither size
# nor speed gains, but the rounding is that of 4 bits.
int4_weights = partial(
    by_torchao,
    lambda q: q.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=q.PerGroup(32)),
)


def in_onnx_runtime(classifier: GPTClassifier) -> CalcLogits:
    """Exported to ONNX, with batch and length left open, and run by ONNX Runtime."""
    require("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    on_gpu = classifier.device.type == "cuda"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Unavailable(f"onnxruntime has no {provider}; see requirements-extra.txt")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.onnx"
        export_onnx(copy.deepcopy(classifier).cpu(), path)
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    names = [entry.name for entry in session.get_inputs()]
    return lambda batch: torch.from_numpy(
        session.run(None, {name: batch[name].numpy() for name in names})[0]
    )


def export_onnx(classifier: GPTClassifier, path: Path) -> None:
    dataset = SpamDataset([torch.arange(7), torch.arange(5), torch.arange(3)])
    batch = dataset.collate(list(dataset))
    names = ["attention_mask", "input_ids"]
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        torch.onnx.export(
            FastClassifier(classifier).eval(),
            tuple(batch[name] for name in names),
            path,
            dynamo=True,
            dynamic_shapes=(any_size, any_size),
            input_names=names,
            output_names=["logits"],
            verbose=False,
        )


def in_transformers(classifier: GPTClassifier) -> CalcLogits:
    twin = hugging_face_classifier(classifier)
    twin.config.use_cache = False  # keys and values that nobody would read again
    return lambda batch: twin(**hugging_face_inputs(batch, twin)).logits


def makers_of_ways(classifier: GPTClassifier) -> dict[str, Callable[[], Classify]]:
    """What makes each way. Making or calling one may fail, with ``Unavailable`` or with an error
    of a library's."""
    grouped, ours = partial(by_length, device=classifier.device), from_scratch(classifier)
    theirs = cache(lambda: in_transformers(classifier))  # one copy of the weights for three ways
    int8 = int8_by_pytorch if classifier.device.type == "cpu" else int8_by_torchao
    makers = {
        "plain loop": (lambda: ours, one_by_one),
        "batches of 16": (lambda: ours, as_they_come),
        "grouped by length (classify.py)": (lambda: ours, grouped),
        # Early: an export forgets what was compiled before it.
        "ONNX Runtime, grouped": (lambda: in_onnx_runtime(classifier), grouped),
        "torch.compile, grouped": (lambda: compiled(classifier), grouped),
        "bf16, grouped": (lambda: from_scratch(bfloat16(classifier)), grouped),
        "int8, grouped": (lambda: from_scratch(int8(classifier)), grouped),
        "transformers, loop": (theirs, one_by_one),
        "transformers, batches of 16": (theirs, as_they_come),
        "transformers, grouped": (theirs, grouped),
    }
    return {
        way: lambda make=make, batches=batches: partial(in_batches, make(), batches)
        for way, (make, batches) in makers.items()
    }
