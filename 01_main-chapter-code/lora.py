"""LoRA by hand: train a low-rank correction of frozen linear layers (Hu et al. 2021, "LoRA:
Low-Rank Adaptation of Large Language Models"), and DoRA, which trains their size apart from their
direction (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation").

    freeze_all_but(classifier, "head")
    add_lora(classifier.decoder, rank=8, alpha=16)  # the corrections and the head are trained
    ...
    merge_lora(classifier.decoder)  # an ordinary decoder again, with the same outputs

Shapes: R is the rank, a few; a linear layer's weight is (outputs, inputs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from previous_chapters import Decoder


class LoRALinear(nn.Module):
    """A frozen linear layer plus (alpha / R) B A x; B starts at zero, so nothing changes at first.

    A is (R, inputs) and B is (outputs, R): R (inputs + outputs) numbers are trained instead of
    inputs * outputs.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        if not 1 <= rank <= min(linear.weight.shape):
            raise ValueError(f"rank={rank} must lie between 1 and {min(linear.weight.shape)}.")
        self.linear = linear.requires_grad_(False)
        device = linear.weight.device
        start = torch.randn(rank, linear.in_features, device=device)
        self.A = nn.Parameter(start / linear.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.A.T) @ self.B.T

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer with the correction added to its weight."""
        self.linear.weight += self.scale * self.B @ self.A
        return self.linear


class DoRALinear(LoRALinear):
    """A frozen linear layer with LoRA's correction, whose weight then gets trained row norms.

    W' = m (W + (alpha / R) B A) / norm, where norm (outputs,) holds the length of each row of the
    corrected weight and m (outputs,) begins as that of W. As in the paper's section 4.3, norm is
    taken for a constant when the gradients are computed, which saves memory.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear, rank, alpha)
        self.magnitude = nn.Parameter(linear.weight.norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(), self.linear.bias)

    def _weight(self) -> Tensor:
        weight = self.linear.weight + self.scale * self.B @ self.A
        return (self.magnitude / weight.norm(dim=1).detach()).unsqueeze(1) * weight

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The linear layer with the weight that was trained."""
        self.linear.weight.copy_(self._weight())
        return self.linear


def add_lora(
    decoder: Decoder, rank: int, alpha: float, kind: type[LoRALinear] = LoRALinear
) -> None:
    """Give all linear layers of every block a correction to train.

    What else is trained stays as it was, so freeze the model first. Raises ``ValueError`` if the
    rank does not fit a layer, or if the model has corrections already.
    """
    if any(isinstance(module, LoRALinear) for module in decoder.modules()):
        raise ValueError("The model has corrections already: merge them first, or load it anew.")
    for block in decoder.trf_blocks:
        linears = [name for name, m in block.named_modules() if isinstance(m, nn.Linear)]
        for name in linears:
            block.set_submodule(name, kind(block.get_submodule(name), rank, alpha))


def merge_lora(decoder: Decoder) -> None:
    """Add every correction to its layer: the same outputs, from an ordinary decoder.

    The merged layers stay frozen.
    """
    for block in decoder.trf_blocks:
        corrected = [name for name, m in block.named_modules() if isinstance(m, LoRALinear)]
        for name in corrected:
            block.set_submodule(name, block.get_submodule(name).merged())
