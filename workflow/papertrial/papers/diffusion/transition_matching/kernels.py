"""Difference transition matching without a network: for a Gaussian mixture, p(X_T | X_t) is a mixture again.

With u = t/T and X_t = (1 - u) X_0 + u X_T, Y = X_T - X_0 = (X_T - X_t)/(1 - u); so drawing X_T from its posterior
draws Y, and its mean is the velocity of flow matching.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from papertrial.testbeds.mixtures import Mixture

Difference = Callable[[Tensor, float, torch.Generator], Tensor]


def exact_difference(data: Mixture) -> Difference:
    """(x, u, generator) -> Y ~ p(. | X_t = x), for (n, d) points and an isotropic mixture."""
    variance = data.cov[0, 0]

    def draw(x: Tensor, u: float, generator: torch.Generator) -> Tensor:
        edges = data.responsibilities(x, u, 1 - u).cumsum(1)  # (n, K)
        uniform = torch.rand(len(x), 1, generator=generator, dtype=x.dtype)
        k = torch.searchsorted(edges, uniform * edges[:, -1:]).clamp(max=len(data.means) - 1)[:, 0]
        total = u * u * variance + (1 - u) ** 2
        mean = data.means[k] + u * variance / total * (x - u * data.means[k])
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return (mean + (variance / total).sqrt() * (1 - u) * z - x) / (1 - u)

    return draw


def velocity(data: Mixture, x: Tensor, u: float) -> Tensor:
    """(n, d) E[Y | X_t = x], what flow matching learns."""
    return (data.x0(x, u, 1 - u) - x) / (1 - u)


def transitions(difference: Difference, x: Tensor, T: int, generator: torch.Generator) -> Tensor:
    """X_T from X_0 = x by X_{t+1} = X_t + Y/T, Y drawn anew at every transition."""
    for t in range(T):
        x = x + difference(x, t / T, generator) / T
    return x


def kept(difference: Difference, x: Tensor, T: int, generator: torch.Generator) -> Tensor:
    """The control: Y is drawn at t = 0 and kept for all T transitions."""
    return x + T * (difference(x, 0.0, generator) / T)


def flow(data: Mixture, x: Tensor, steps: int) -> Tensor:
    """The end of flow matching's path from x, by the midpoint rule."""
    for k in range(steps):
        half = x + velocity(data, x, k / steps) / (2 * steps)
        x = x + velocity(data, half, (k + 0.5) / steps) / steps
    return x
