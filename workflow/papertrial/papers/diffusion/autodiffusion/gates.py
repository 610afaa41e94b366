"""A denoiser whose residual blocks can be skipped evaluation by evaluation, with its multiply-adds counted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from papertrial.methods.samplers import Denoiser
from papertrial.models.edm import EDM, batched
from papertrial.models.unet import Level

Mask = tuple[bool, ...]  # of every skippable block, whether it's kept; () keeps all


class Gate(nn.Module):
    """A block, or the identity in its place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.open = block, True

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.block(x, embedding) if self.open else x


class GatedDenoiser:
    """A network whose residual blocks of equal input and output shape have gates.

    Args:
        model: is changed in place; a network without such blocks (fm8's) is left as it is.

    Attributes:
        gates: in the order in which they run.
        macs: multiply-adds of all convolutions and linear layers since it was last set to 0, all samples together.
    """

    def __init__(self, model: EDM) -> None:
        self.model, self.gates, self.macs = model, [], 0
        for row in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
            for j, level in enumerate(row):
                if isinstance(level, Level) and isinstance(level.block.skip, nn.Identity):
                    row[j] = Gate(level)
                    self.gates.append(row[j])
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(self._count)
        self.denoise = batched(model)

    def _count(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.macs += output.numel() * module.weight[0].numel()

    def keep(self, mask: Mask) -> None:
        for gate, kept in zip(self.gates, mask or [True] * len(self.gates), strict=True):
            gate.open = kept

    def along(self, masks: Sequence[Mask]) -> Denoiser:
        """A denoiser whose n-th evaluation uses the n-th mask."""
        left = iter(masks)

        def denoise(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
            self.keep(next(left))
            return self.denoise(x, s, label)

        return denoise

    def costs(self, shape: Sequence[int]) -> tuple[int, list[int]]:
        """Multiply-adds of one evaluation of one picture by the whole network, and how many each gate saves."""
        device = next(self.model.parameters()).device
        x, label = torch.zeros(1, *shape, device=device), torch.zeros(1, dtype=torch.long, device=device)
        count = len(self.gates)
        masks = [(), *[tuple(i != j for i in range(count)) for j in range(count)]]
        totals = []
        for mask in masks:
            self.macs = 0
            self.along([mask])(x, 1.0, label)
            totals.append(self.macs)
        return totals[0], [totals[0] - t for t in totals[1:]]
