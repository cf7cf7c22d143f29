"""A classifier as an ONNX network, in 32 bits or 8, which ONNX Runtime runs on a processor."""

import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifier_folder import FIELDS
from features import FastClassifier
from files import read_json, write_json
from gpt_download import load_tokenizer
from text_classifier import ClassifierConfig, GPTClassifier
from text_data import collate

NETWORK = "classifier.onnx"
INPUTS = ("attention_mask", "input_ids")
WIDEST = 255  # steps of 8 bits: a layer whose inputs reach further would get steps wider than 1


def save_onnx(classifier: GPTClassifier, path: Path) -> None:
    """Write a network from `attention_mask` and `input_ids` (B, T) to logits (B, C), for any
    number and length of messages."""
    batch = collate([(torch.arange(length), 0) for length in (7, 5, 3)])
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        torch.onnx.export(
            FastClassifier(classifier).eval(),
            tuple(batch[name].to(classifier.device) for name in INPUTS),
            path,
            dynamo=True,
            dynamic_shapes=(any_size, any_size),
            input_names=list(INPUTS),
            output_names=["logits"],
            verbose=False,
        )


def save_int8(classifier: GPTClassifier, path: Path, trial: Iterable[Tensor]) -> None:
    """The same with 8 bits for a matrix's weights, and for its inputs while they are multiplied.

    The inputs of a batch share one scale. Some layers of pretrained models get a few inputs a
    thousand times larger than all others (massive activations, Sun et al. 2024), beside which 8
    bits would round those to nothing: layers that get such on the `trial` messages, token ids
    (T,) each, keep 32 bits.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        in_32_bits = Path(folder) / NETWORK
        save_onnx(classifier, in_32_bits)
        kept = _layers_with_outliers(in_32_bits, trial)
        how = {"weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}
        quantize_dynamic(in_32_bits, path, nodes_to_exclude=kept, **how)


def _layers_with_outliers(path: Path, trial: Iterable[Tensor]) -> list[str]:
    """The products with a matrix of weights that get an input above `WIDEST`, by their names."""
    import onnx

    network = onnx.load(path)
    weights = {tensor.name for tensor in network.graph.initializer}
    products = [node for node in network.graph.node if node.op_type == "MatMul"]
    layers = {node.name: node.input[0] for node in products if node.input[1] in weights}
    shown = sorted({*layers.values()})
    network.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, shown))
    onnx.save(network, path.with_name("shown.onnx"), save_as_external_data=True)
    session, reaches = _session(path.with_name("shown.onnx")), dict.fromkeys(shown, 0.0)
    for ids in trial:
        inputs = _arrays(collate([(ids, 0)]))
        for name, values in zip(shown, session.run(shown, inputs), strict=True):
            reaches[name] = max(reaches[name], abs(values).max())
    return [layer for layer, name in layers.items() if reaches[name] > WIDEST]


def _session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options)


def _arrays(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: batch[name].numpy() for name in INPUTS}


class OnnxClassifier(nn.Module):
    """A network that was written here; it gives logits as a `FastClassifier` does."""

    def __init__(self, path: Path, config: ClassifierConfig):
        super().__init__()
        self.session, self.config = _session(path), config
        self.on = nn.Parameter(torch.empty(0), False)  # tells on which device batches are wanted

    def forward(self, **batch: Tensor) -> Tensor:
        """Token ids (B, T) and a mask (B, T) -> logits (B, C)."""
        return torch.from_numpy(self.session.run(None, _arrays(batch))[0])


def write_config(config: ClassifierConfig, folder: Path, **more: Any) -> None:
    """What a classifier is beside its network."""
    content = {"model": config.model_name, **{name: getattr(config, name) for name in FIELDS}}
    write_json(content | more, folder / "config.json")


def open_onnx(folder: Path) -> tuple[OnnxClassifier, Any]:
    """The classifier in a folder that `export.py --format onnx` wrote, and its tokenizer.

    Raises ``ValueError`` for a folder that is damaged.
    """
    if not find_spec("onnxruntime"):
        raise ValueError(f"{folder} needs onnxruntime: python -m pip install onnxruntime")
    content = read_json(folder / "config.json")
    try:
        config = ClassifierConfig(content["model"], **{name: content[name] for name in FIELDS})
        classifier = OnnxClassifier(folder / NETWORK, config)
    except Exception as error:  # onnxruntime's errors share no class
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise ValueError(f"{folder} is damaged or was altered: {reason}") from error
    return classifier, load_tokenizer(config.model_name)
