"""A network as a denoiser D(x, s, label) at all noise levels, and the loss that trains it.

Preconditioning, loss and level distribution of EDM: D = c_skip x + c_out F(c_in x, log(s)/4, label), such that F's
input and target have unit variance and every level the same weight at the start.

Source: Karras et al. 2022 (arXiv 2206.00364), table 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from papertrial.models.training import Loss

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


class EDM(nn.Module):
    """A network behind the denoiser interface.

    Args:
        net: F(x, c_noise, label) with x (n, ...), c_noise (n,).
        sigma_data: standard deviation of the data.
    """

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        """D of x = x0 + s eps; s is one level for all, or (n,)."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        level = s.reshape(-1, *[1] * (x.ndim - 1))
        total = level.square() + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, level * self.sigma_data * total.rsqrt()
        return c_skip * x + c_out * self.net(x * total.rsqrt(), s.log() / 4, label)

    def loss(self, x0: Tensor, s: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """(n,) squared error of D per coordinate, weighted by 1/c_out^2."""
        error = (self(x0 + s.reshape(-1, *[1] * (x0.ndim - 1)) * eps, s, label) - x0).square().flatten(1).mean(1)
        return error * (s.square() + self.sigma_data**2) / (s * self.sigma_data).square()


def denoising(draw: Draw, batch: int, log_mean: float, log_sd: float, drop_label: float = 0.0, null: int = 0) -> Loss:
    """The mean of ``EDM.loss`` over a batch, for ``training.fit``.

    Args:
        draw: (n, generator) -> data (n, ...) and labels (n,) or None, on the model's device.
        log_mean, log_sd: log s ~ N(log_mean, log_sd^2).
        drop_label: share of samples that are shown ``null``, the label that stands for none.
    """

    def loss(model: EDM, average: EDM, step: int, generator: torch.Generator) -> Tensor:
        x0, label = draw(batch, generator)
        s = (log_mean + log_sd * torch.randn(batch, generator=generator)).exp().to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        if label is not None:
            dropped = (torch.rand(batch, generator=generator) < drop_label).to(x0.device)
            label = torch.where(dropped, null, label)
        return model.loss(x0, s, eps, label).mean()

    return loss


def batched(denoise: Callable[..., Tensor], size: int = 250) -> Callable[..., Tensor]:
    """A denoiser for sampling: no gradients, and at most ``size`` samples at a time (one level for all)."""

    def call(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            parts = x.split(size)
            labels = [None] * len(parts) if label is None else label.split(size)
            return torch.cat([denoise(part, s, y) for part, y in zip(parts, labels, strict=True)])

    return call
