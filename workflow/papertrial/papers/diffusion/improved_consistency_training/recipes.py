"""Consistency training: a network f(x, s) that maps every noise level to the data, trained without a teacher.

f must give the same answer at neighbouring levels s_i < s_{i+1} of a grid for the same data x and the same noise z:
    L = lam(s_i) d( f_theta(x + s_{i+1} z, s_{i+1}),  stopgrad f_theta'(x + s_i z, s_i) ),
and f(x, s_min) = x holds by construction. The original recipe (CT) and the improved one (iCT) fill in the rest; a
``Recipe`` names what.

Sources: Song et al. 2023 (arXiv 2303.01469) for CT; Song and Dhariwal 2023 (arXiv 2310.14189) for iCT.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import ceil, exp, floor, log, log2, sqrt
from typing import Any

import numpy as np
import torch
from scipy.special import erf
from torch import Tensor, nn

from papertrial.methods.noise_levels import S_MIN, grid
from papertrial.models.edm import Draw
from papertrial.models.training import Loss


class Consistency(nn.Module):
    """f(x, s) = c_skip x + c_out F(c_in x, log(s)/4, label); f(x, s_min) = x.

    Args:
        net: F(x, c_noise, label).
        sigma_data: standard deviation of the data.
        s_min: the lowest level.
    """

    def __init__(self, net: nn.Module, sigma_data: float, s_min: float) -> None:
        super().__init__()
        self.net, self.sigma_data, self.s_min = net, sigma_data, s_min

    def forward(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        """(n, ...) at level s: one for all, or (n,)."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        level = s.reshape(-1, *[1] * (x.ndim - 1))
        above, total = level - self.s_min, level.square() + self.sigma_data**2
        c_skip = self.sigma_data**2 / (above.square() + self.sigma_data**2)
        c_out = self.sigma_data * above * total.rsqrt()
        return c_skip * x + c_out * self.net(x * total.rsqrt(), s.log() / 4, label)


@dataclass(frozen=True)
class Recipe:
    """How f is trained. The defaults are iCT's; ``CT`` is the original.

    s0, s1: the numbers of intervals at the start and at most.
    counts: how N grows: "doubling" (iCT), "square-root" (CT) or "fixed" at s1 + 1.
    index: the law of the level's index, "lognormal" (iCT) or "uniform" (CT).
    weight: lam, "gap" for 1/(s_{i+1} - s_i) (iCT) or "one" (CT).
    metric: d, "huber" (iCT), "squared" or "absolute" (CT).
    mu, mu0: the decay of theta', the average of theta that is the target: mu at all times (iCT: 0, theta itself), or
        CT's schedule from mu0.
    same_noise: one z for both levels.
    lr: Adam's.
    """

    s0: int = 10
    s1: int = 160
    counts: str = "doubling"
    index: str = "lognormal"
    weight: str = "gap"
    metric: str = "huber"
    mu: float = 0.0
    mu0: float | None = None
    same_noise: bool = True
    lr: float = 1e-3

    def count(self, k: int, K: int) -> int:
        """N(k), the number of levels at update k of K."""
        if self.counts == "fixed":
            return self.s1 + 1
        if self.counts == "doubling":
            every = max(1, floor(K / (log2(self.s1 / self.s0) + 1)))  # K'
            return min(self.s0 * 2 ** (k // every), self.s1) + 1
        return ceil(sqrt(k / K * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1

    def decay(self, k: int, K: int) -> float:
        """mu(k) of theta'."""
        return self.mu if self.mu0 is None else exp(self.s0 * log(self.mu0) / self.count(k, K))


CT = Recipe(s0=2, s1=150, counts="square-root", index="uniform", weight="one", metric="squared", mu0=0.9)
MEAN, SD = -1.1, 2.0  # of log s in the lognormal law


def index_probabilities(levels: np.ndarray) -> np.ndarray:
    """(N - 1,) of the pairs (s_i, s_{i+1}) of rising levels: a normal law of log s, cut into the grid's pieces."""
    p = np.diff(erf((np.log(levels) - MEAN) / (sqrt(2) * SD)))
    return p / p.sum()


def distance(a: Tensor, b: Tensor, metric: str) -> Tensor:
    """(n,) d(a, b)."""
    r = (a - b).flatten(1)
    if metric == "squared":
        return r.square().sum(1)
    if metric == "absolute":
        return r.abs().sum(1)
    c = 0.00054 * sqrt(r.shape[1])
    return (r.square().sum(1) + c * c).sqrt() - c


def consistency_training(recipe: Recipe, draw: Draw, batch: int, K: int, s_max: float) -> Loss:
    """The loss of a recipe, for ``training.fit``; it keeps theta' where that isn't theta."""
    teacher: list[Consistency] = []

    def target(model: Consistency, k: int) -> Consistency:
        if recipe.mu0 is None and not recipe.mu:
            return model
        if not teacher:
            teacher.append(deepcopy(model).requires_grad_(False))
        elif mu := recipe.decay(k, K):
            with torch.no_grad():
                torch._foreach_lerp_(list(teacher[0].parameters()), list(model.parameters()), 1 - mu)
        return teacher[0]

    def loss(model: Consistency, average: Consistency, k: int, generator: torch.Generator) -> Tensor:
        levels = grid("karras", recipe.count(k, K) - 1, s_max, model.s_min)[::-1].copy()  # rising
        if recipe.index == "lognormal":
            p = torch.from_numpy(index_probabilities(levels))
            i = torch.multinomial(p, batch, replacement=True, generator=generator)
        else:
            i = torch.randint(len(levels) - 1, (batch,), generator=generator)
        x, label = draw(batch, generator)
        z = torch.randn(x.shape, generator=generator).to(x.device)
        z_low = z if recipe.same_noise else torch.randn(x.shape, generator=generator).to(x.device)
        at = torch.from_numpy(levels).to(x.device, x.dtype)
        low, high = at[i], at[i + 1]  # (n,)
        beside = (-1, *[1] * (x.ndim - 1))
        with torch.no_grad():
            wanted = target(model, k)(x + low.reshape(beside) * z_low, low, label)
        found = model(x + high.reshape(beside) * z, high, label)
        lam = 1 / (high - low) if recipe.weight == "gap" else 1.0
        return (lam * distance(found, wanted, recipe.metric)).mean()

    return loss


def two_steps(
    f: Callable[..., Tensor], x: Tensor, s: float, z: Tensor, label: Tensor | None = None, s_min: float = S_MIN
) -> Tensor:
    """Noise a one-step sample again, up to level s, and map it back once more."""
    return f(x + sqrt(s * s - s_min**2) * z, s, label)
