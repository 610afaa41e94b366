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
    """f(x, u): (n, D), (n, 1) -> (n, D), two hidden layers."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim)
        )

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.net(torch.cat([x, u.expand(len(x), 1)], dim=1))


def simulate(drift: Drift, x: Tensor, eps: float, steps: int, rng: np.random.Generator) -> Tensor:
    """Where paths from x (n, D) end, by Euler-Maruyama steps."""
    with torch.inference_mode():
        for i in range(steps):
            noise = normal(rng, *x.shape, device=x.device).to(x.dtype)
            x = x + drift(x, x.new_full((1, 1), i / steps)) / steps + sqrt(eps / steps) * noise
    return x


def match(drift: Drift, ends: tuple[Tensor, Tensor], eps: float, how: dict, seed: int) -> Drift:
    """Train the drift further, on Brownian bridges between pairs of ends (n, D); its averaged weights come back.

    The target (end - X_u)/(1 - u) has a variance that grows like 1/(1 - u), hence the weight (1 - u)^2.
    """
    start, end = ends

    def loss(drift: Drift, average: Drift, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(start), (how["batch"],), generator=generator).to(start.device)
        u = torch.rand(len(rows), 1, generator=generator).to(start.device)
        noise = torch.randn(len(rows), start.shape[1], generator=generator).to(start.device)
        x = (1 - u) * start[rows] + u * end[rows] + (eps * u * (1 - u)).sqrt() * noise
        return ((1 - u) * drift(x, u) - (end[rows] - x)).square().sum(1).mean()

    return fit(drift, loss, Training.of({**how, "steps": how["inner_steps"]}), seed)[0]


def bridge_matching(
    pair: Pair, how: dict, seed: int, rng: np.random.Generator, watch: Callable[[int, Drift], None]
) -> Drift:
    """The forward drift after how["outer"] rounds of a backward and a forward fit; ``watch`` sees it after each."""
    n = how["ends"]
    first, last = pair.sample0(n, rng).float(), pair.sample1(n, rng).float()
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


def moments_of_draws(draw: Callable[[Tensor], Tensor], x: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Mean (m, D) and covariance (m, D, D) of n draws y | x for every x (m, D)."""
    y = torch.stack([draw(one.expand(n, -1)) for one in x.split(1)])  # (m, n, D)
    gap = y - y.mean(1, keepdim=True)
    return y.mean(1), gap.mT @ gap / (n - 1)
