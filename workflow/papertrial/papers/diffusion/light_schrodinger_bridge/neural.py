"""The neural baseline: a Schroedinger bridge by iterative Markovian fitting with two drift networks.

The process dX = f(X, t) dt + sqrt(eps) dW from p0 and its time reversal from p1 take turns: each is fitted by bridge
matching to the pairs of ends that the other one makes, starting from independent ends. No adversary is needed.
Time u runs from 0 at a process's own start to 1 at its end, so one code serves both directions.

Source: Shi et al. 2023 (arXiv 2303.16852).
"""

from collections.abc import Callable
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.models.arrays import seeded
from papertrial.models.training import Training, fit
from papertrial.testbeds.schrodinger import Pair, normal


class Drift(nn.Module):
    """f(x, u) = (E[end | X_u = x] - x) / (1 - u), the expectation by a network with two hidden layers."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim)
        )

    def end(self, x: Tensor, u: Tensor) -> Tensor:
        return self.net(torch.cat([x, u.expand(len(x), 1)], dim=1))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return (self.end(x, u) - x) / (1 - u)


def simulate(drift: Drift, x: Tensor, eps: float, steps: int, rng: np.random.Generator) -> Tensor:
    """Where paths from x (n, D) end, by Euler-Maruyama steps."""
    with torch.inference_mode():
        for i in range(steps):
            noise = normal(rng, *x.shape, device=x.device).to(x.dtype)
            x = x + drift(x, torch.full((1, 1), i / steps, device=x.device)) / steps + sqrt(eps / steps) * noise
    return x


def match(drift: Drift, ends: tuple[Tensor, Tensor], eps: float, how: dict, seed: int) -> Drift:
    """Train the drift further, on Brownian bridges between pairs of ends (n, D); its averaged weights come back."""
    start, end = ends

    def loss(drift: Drift, average: Drift, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(start), (how["batch"],), generator=generator)
        u, noise = torch.rand(len(rows), 1, generator=generator), torch.randn(len(rows), start.shape[1], generator=generator)
        rows, u, noise = (part.to(start.device) for part in (rows, u, noise))
        x = (1 - u) * start[rows] + u * end[rows] + (eps * u * (1 - u)).sqrt() * noise
        return (drift.end(x, u) - end[rows]).square().sum(1).mean()

    return fit(drift, loss, Training.of(how), seed)[0]


def bridge_matching(
    pair: Pair, how: dict, seed: int, rng: np.random.Generator, watch: Callable[[int, Drift], None]
) -> Drift:
    """The forward drift after how["outer"] rounds of a backward and a forward fit; ``watch`` sees it after each."""
    n, first = how["ends"], pair.sample0(how["ends"], rng).float()
    last = pair.sample1(n, rng).float()
    there, back = (seeded(lambda: Drift(pair.dim, how["width"]), seed + i).to(first.device) for i in (0, 1))
    for outer in range(how["outer"]):
        backward = match(back, (last, first), pair.eps, how, seed + 2 * outer)
        last = pair.sample1(n, rng).float()
        first = simulate(backward, last, pair.eps, how["path_steps"], rng)
        forward = match(there, (first, last), pair.eps, how, seed + 2 * outer + 1)
        first = pair.sample0(n, rng).float()
        last = simulate(forward, first, pair.eps, how["path_steps"], rng)
        watch(outer + 1, forward)
    return forward


def path_moments(drift: Drift, x: Tensor, eps: float, paths: int, steps: int, rng: np.random.Generator) -> tuple:
    """Mean (n, D) and covariance (n, D, D) of the ends of ``paths`` paths from every x (n, D)."""
    ends = [simulate(drift, one.float().expand(paths, -1), eps, steps, rng).double() for one in x.split(1)]
    y = torch.stack(ends)  # (n, paths, D)
    gap = y - y.mean(1, keepdim=True)
    return y.mean(1), gap.mT @ gap / (paths - 1)
