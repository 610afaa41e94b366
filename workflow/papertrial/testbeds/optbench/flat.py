"""A network as one vector of parameters and one of gradients, of which its tensors are views.

An elementwise optimizer then takes a step in a handful of operations, whatever the number of layers.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Flat:
    """``x`` and ``g`` (parameters,): writing to x moves the network, backward() adds to g."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.x = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        self.g = torch.zeros_like(self.x)
        for p, x, g in zip(net.parameters(), self._views(self.x), self._views(self.g), strict=True):
            p.data, p.grad = x, g

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: (x, g)} in the layers' shapes, for rules that need them."""
        return {name: (p.data, p.grad) for name, p in self.net.named_parameters()}

    def _views(self, vector: Tensor) -> Iterator[Tensor]:
        start = 0
        for p in self.net.parameters():
            yield vector[start : start + p.numel()].view(p.shape)
            start += p.numel()
