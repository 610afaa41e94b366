"""What several experts are usually made one by: averages of their weights or of their outputs.

Everything is chosen by the denoising loss on the same held-out pictures that the aggregators are watched on.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from papertrial.models.edm import EDM

WEIGHTS = tuple(k / 10 for k in range(1, 10))


class HeldOut:
    """Pictures that are noised once and for all, and the loss of what a denoiser makes of them.

    Args:
        x, label: (n, 1, size, size), (n,).
        log_mean, log_sd: log s ~ N(log_mean, log_sd^2).
        sigma_data: of the loss's weight.
    """

    def __init__(self, x: Tensor, label: Tensor, log_mean: float, log_sd: float, sigma_data: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x, self.label = x, label
        self.s = (log_mean + log_sd * torch.randn(len(x), generator=generator)).exp().to(x.device)
        eps = torch.randn(x.shape, generator=generator).to(x.device)
        self.noisy = x + self.s.reshape(-1, 1, 1, 1) * eps
        self.weight = (self.s.square() + sigma_data**2) / (self.s * sigma_data).square()  # (n,)

    def denoised(self, model: nn.Module, size: int = 250) -> Tensor:
        """(n, 1, size, size)"""
        with torch.inference_mode():
            parts = zip(*(v.split(size) for v in (self.noisy, self.s, self.label)), strict=True)
            return torch.cat([model(*part) for part in parts])

    def loss(self, D: Tensor) -> float:
        """The mean denoising loss of a denoiser's answers."""
        return float((self.weight * (D - self.x).square().flatten(1).mean(1)).mean())


def weight_average(experts: Sequence[EDM], w: float) -> EDM:
    """One network with weights (1 - w) of the first expert + w of the second."""
    merged = deepcopy(experts[0])
    with torch.no_grad():
        for mine, other in zip(merged.parameters(), experts[1].parameters(), strict=True):
            mine.lerp_(other, w)
    return merged


class OutputAverage(nn.Module):
    """D = (1 - w) D_A + w D_B; w may depend on level and label.

    Args:
        weight: (levels (n,), labels (n,)) -> w, a number or (n, 1, 1, 1).
    """

    def __init__(self, experts: Sequence[EDM], weight: Callable[[Tensor, Tensor], Tensor | float]) -> None:
        super().__init__()
        self.experts, self.weight = nn.ModuleList(experts), weight

    def forward(self, x: Tensor, s: Tensor | float, label: Tensor) -> Tensor:
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        a, b = (expert(x, s, label) for expert in self.experts)
        return a + self.weight(s, label) * (b - a)


class Switch:
    """A table of output weights by label and noise bin, the least-squares solution on training pictures.

    Args:
        data: noisy pictures to fit on.
        bins: equally likely ranges of the level.
        log_mean, log_sd: of the law of log s.
    """

    def __init__(self, experts: Sequence[EDM], data: HeldOut, bins: int, log_mean: float, log_sd: float) -> None:
        inner = torch.arange(1, bins) / bins
        self.edges = (log_mean + log_sd * torch.special.ndtri(inner)).to(data.x.device)
        a, b = (data.denoised(expert) for expert in experts)
        gap, missing = (b - a).flatten(1), (data.x - a).flatten(1)
        cells = experts[0].net.null * bins
        at = data.label * bins + self.bin(data.s)
        zero = torch.zeros(cells, device=data.x.device)
        cross = zero.index_add(0, at, data.weight * (gap * missing).mean(1))
        square = zero.index_add(0, at, data.weight * gap.square().mean(1))
        w = torch.where(square > 0, cross / square.clamp(min=1e-12), 0.5)  # empty cells: the plain average
        self.table = w.clamp(0, 1).reshape(-1, bins)  # (labels, bins)

    def bin(self, s: Tensor) -> Tensor:
        return torch.bucketize(s.log(), self.edges)

    def __call__(self, s: Tensor, label: Tensor) -> Tensor:
        return self.table[label, self.bin(s)].reshape(-1, 1, 1, 1)


def best_weight_average(experts: Sequence[EDM], data: HeldOut) -> tuple[EDM, float, float]:
    """The network, its w and its loss."""
    loss = {w: data.loss(data.denoised(weight_average(experts, w))) for w in WEIGHTS}
    w = min(loss, key=loss.get)
    return weight_average(experts, w), w, loss[w]


def best_output_average(experts: Sequence[EDM], data: HeldOut) -> tuple[OutputAverage, float, float]:
    """The ensemble, its w and its loss."""
    a, b = (data.denoised(expert) for expert in experts)
    loss = {w: data.loss(a + w * (b - a)) for w in WEIGHTS}
    w = min(loss, key=loss.get)
    return OutputAverage(experts, lambda s, label: w), w, loss[w]
