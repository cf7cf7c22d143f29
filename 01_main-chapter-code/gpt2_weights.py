"""GPT-2's tensors into a `GPTModel`, and back.

GPT-2 keeps queries, keys and values in one matrix, `c_attn`, and stores the weights of its linear
layers as (inputs, outputs), where `torch.nn.Linear` wants (outputs, inputs).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # previous_chapters.py imports this module
    from previous_chapters import Decoder, GPTModel


def _layout(gpt: "GPTModel") -> dict[str, list[Tensor]]:
    """GPT-2's tensors by name: each the list of the model's parameters that it is made of."""
    layout = {"wte.weight": [gpt.tok_emb.weight], "wpe.weight": [gpt.pos_emb.weight]}
    for i, block in enumerate(gpt.trf_blocks):
        att, ff = block.att, block.ff.layers
        qkv = (att.W_query, att.W_key, att.W_value)
        layers = {"attn.c_attn": qkv, "attn.c_proj": [att.out_proj]}
        layers |= {"mlp.c_fc": [ff[0]], "mlp.c_proj": [ff[2]]}
        for name, parts in layers.items():
            layout[f"h.{i}.{name}.weight"] = [layer.weight for layer in parts]
            if parts[0].bias is not None:
                layout[f"h.{i}.{name}.bias"] = [layer.bias for layer in parts]
        for name, norm in (("ln_1", block.norm1), ("ln_2", block.norm2)):
            layout[f"h.{i}.{name}.weight"] = [norm.scale]
            layout[f"h.{i}.{name}.bias"] = [norm.shift]
    layout["ln_f.weight"] = [gpt.final_norm.scale]
    layout["ln_f.bias"] = [gpt.final_norm.shift]
    if not gpt.cfg.tied_head:
        layout["lm_head.weight"] = [gpt.out_head.weight]
    return layout


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Linear layers transposed, (outputs, inputs) <-> (inputs, outputs); others as they are."""
    return tensor.T if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else tensor


def gpt2_state_dict(gpt: "GPTModel") -> dict[str, Tensor]:
    """The model's weights under GPT-2's tensor names and in GPT-2's shapes; no head if it is tied
    to the token embedding."""
    return {
        name: _turned(name, torch.cat([part.detach() for part in parts])).contiguous()
        for name, parts in _layout(gpt).items()
    }


@torch.no_grad()
def load_weights_into_gpt(gpt: "GPTModel", params: Mapping) -> None:
    """Copy GPT-2's tensors into `gpt`.

    `params` holds tensors under GPT-2's names (`h.0.attn.c_attn.weight`), with or without the
    prefix `transformer.`, or is a nested dictionary of arrays
    (`params["blocks"][0]["attn"]["c_attn"]["w"]`). Causal-mask buffers are ignored. A missing
    `lm_head.weight` is the token embedding; a tied model takes no other. Any dtype is converted
    to the model's. Raises ``ValueError`` naming every missing, unexpected and misshapen tensor at
    once; the model is then unchanged.
    """
    given = dict(_flat_names(params) if "blocks" in params else _short_names(params))
    if "wte.weight" in given:
        head = given.setdefault("lm_head.weight", given["wte.weight"])
        if gpt.cfg.tied_head and torch.equal(head, given["wte.weight"]):
            del given["lm_head.weight"]

    expected = {name: tuple(tensor.shape) for name, tensor in gpt2_state_dict(gpt).items()}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    problems = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
        for name in expected | found
        if found.get(name) != expected.get(name)
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"These weights do not fit the model ({len(problems)} problems):\n  {listed}"
        )
    for name, parts in _layout(gpt).items():
        for part, tensor in zip(parts, _turned(name, given[name]).chunk(len(parts)), strict=True):
            part.copy_(tensor)


def _short_names(params: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in params.items():
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask
            yield name.removeprefix("transformer."), tensor


def _flat_names(params: Mapping, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The nested dictionary's arrays under GPT-2's names."""
    leaves = {"g": "weight", "b": "bias", "w": "weight"}
    for name, value in params.items():
        if name == "blocks":
            for i, block in enumerate(value):
                yield from _flat_names(block, f"h.{i}.")
        elif isinstance(value, Mapping):
            yield from _flat_names(value, f"{prefix}{name}.")
        elif name in ("wte", "wpe"):
            yield f"{name}.weight", torch.as_tensor(value)
        else:
            yield f"{prefix or 'ln_f.'}{leaves.get(name, name)}", torch.as_tensor(value)


def check_state_dict(decoder: "Decoder", state_dict: dict, prefix: str, *_) -> None:
    """What `decoder.load_state_dict` does first.

    Drops the mask buffers that other implementations save. Raises ``ValueError`` where a tied
    head would silently take the place of another one.
    """
    for name in [name for name in state_dict if name.endswith(".att.mask")]:
        del state_dict[name]
    embedding, head = (state_dict.get(f"{prefix}{x}.weight") for x in ("tok_emb", "out_head"))
    is_tied = decoder.out_head.weight is decoder.tok_emb.weight
    both = head is not None and embedding is not None
    if is_tied and both and not torch.equal(head, embedding):
        raise ValueError(
            "These weights have an output head of their own, while the model's is tied to its "
            "token embedding: make the model with tied_head=False."
        )
