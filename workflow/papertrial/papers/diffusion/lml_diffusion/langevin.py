"""c3: Langevin steps at one noise level, on a density whose score and Hessian are known.

Source: 2505.24222, section on Levenberg-Marquardt-Langevin dynamics.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Results, Row
from papertrial.papers.diffusion.lml_diffusion.direction import GEOMETRY, damped, mix, norm
from papertrial.testbeds.samplequality import SlicedW2


class Arcs:
    """ring8's centres, each component longer along the ring (sd .4) than across (.05), and noise of level s on top.

    Components have covariances of their own, in the basis of their radius and tangent.
    """

    def __init__(self, s: float, along: float = 0.4, across: float = 0.05, device: str = "cpu") -> None:
        angle = torch.arange(8, dtype=torch.float64, device=device) * torch.pi / 4
        radial = torch.stack([angle.cos(), angle.sin()], dim=1)  # (8, 2)
        tangent = torch.stack([-angle.sin(), angle.cos()], dim=1)
        self.s, self.centres, self.basis = s, 2 * radial, torch.stack([radial, tangent], dim=1)  # (8, 2 axes, 2)
        variance = torch.tensor([across**2 + s**2, along**2 + s**2], dtype=torch.float64, device=device)
        self.spread, self.precision = variance.sqrt(), 1 / variance  # (2,)

    def sample(self, n: int, generator: np.random.Generator) -> Tensor:
        """(n, 2) draws of p_s."""
        k = torch.from_numpy(generator.integers(8, size=n)).to(self.centres.device)
        z = torch.from_numpy(generator.standard_normal((n, 2))).to(self.centres.device) * self.spread
        return self.centres[k] + torch.einsum("na,nai->ni", z, self.basis[k])

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 8) responsibilities and (n, 8, 2) the components' scores."""
        z = torch.einsum("nki,kai->nka", x[:, None] - self.centres, self.basis)  # in every component's own axes
        r = torch.softmax(-0.5 * (z.square() * self.precision).sum(2), dim=1)
        return r, -torch.einsum("nka,kai->nki", z * self.precision, self.basis)

    def eps(self, x: Tensor) -> Tensor:
        """(n, 2) noise prediction -s score."""
        r, score = self.parts(x)
        return -self.s * torch.einsum("nk,nki->ni", r, score)

    def hessian(self, x: Tensor) -> Tensor:
        """(n, 2, 2) of log p_s."""
        r, score = self.parts(x)
        own = torch.einsum("kai,a,kaj->kij", self.basis, self.precision, self.basis)  # -Hessian of a component
        second = torch.einsum("nk,nkij->nij", r, score[..., :, None] * score[..., None, :] - own)
        mean = torch.einsum("nk,nki->ni", r, score)
        return second - mean[:, :, None] * mean[:, None, :]


Direction = Callable[[Arcs, Tensor, Tensor, Tensor | None, dict], Tensor]  # (target, x, e, e_prev, settings) -> d


def first_order(target: Arcs, x: Tensor, e: Tensor, before: Tensor | None, how: dict) -> Tensor:
    return e


def second_order(geometry: Callable[[Tensor], Tensor], rescale: bool = True) -> Direction:
    def direction(target: Arcs, x: Tensor, e: Tensor, before: Tensor | None, how: dict) -> Tensor:
        return damped(e, geometry(mix(e, before, how["kappa"])), how["m"], rescale)

    return direction


def newton(target: Arcs, x: Tensor, e: Tensor, before: Tensor | None, how: dict) -> Tensor:
    """(|-Hessian| + lambda I)^{-1} e at the length of e; |.| of eigenvalues, since between modes they change sign."""
    value, basis = torch.linalg.eigh(-target.hessian(x))
    scale = 1 / (value.abs() + how["m"] / target.s**2)  # (n, 2)
    d = torch.einsum("nij,nj,nkj,nk->ni", basis, scale, basis, e)
    return d * norm(e) / norm(d)


# What a direction is, and which one its settings are chosen for: the control takes those of the method that it breaks.
SECOND = second_order(GEOMETRY["lml"])
DIRECTIONS: dict[str, tuple[Direction, Direction]] = {
    "lml": (SECOND, SECOND),
    "rolled": (second_order(GEOMETRY["rolled"]), SECOND),
    "unscaled": (second_order(GEOMETRY["lml"], rescale=False),) * 2,
    "first-order": (first_order, first_order),
    "newton": (newton, newton),
}


def chains(p: dict, target: Arcs, direction: Direction, how: dict, seed: int) -> dict[int, Tensor]:
    """{K: x_K (n, 2)}: x <- x - (eta/2) d/s + sqrt(eta) noise from N(0, 4 I)."""
    generator, eta, found = np.random.default_rng(seed), how["eta"] * target.s**2, {}

    def normal() -> Tensor:
        return torch.from_numpy(generator.standard_normal((p["n"], 2))).to(target.centres.device)

    x, before = 2 * normal(), None
    for k in range(1, max(p["steps"]) + 1):
        e = target.eps(x)
        d = direction(target, x, e, before, how)
        x, before = x - eta / (2 * target.s) * d + eta**0.5 * normal(), e
        if k in p["steps"]:
            found[k] = x
    return found


def accuracy(p: dict, method: str, seeds: list[int], device: str) -> Results:
    """SW2 to exact draws of p_s after K steps, every setting of the grid tried for each K on a tuning seed."""
    target, found = Arcs(p["s"], device=device), Results([])
    far = SlicedW2(target.sample(p["n"], np.random.default_rng(0)).cpu().numpy())
    direction, tuned_for = DIRECTIONS[method]

    def measured(by: Direction, how: dict, seed: int) -> dict[int, float]:
        ends = chains(p, target, by, how, seed)
        return {k: far(np.nan_to_num(x.cpu().numpy(), nan=1e6).clip(-1e6, 1e6)) for k, x in ends.items()}  # diverged

    grid = [dict(zip(p["grid"], values, strict=True)) for values in product(*p["grid"].values())]
    tried = [measured(tuned_for, how, p["tuning_seed"]) for how in grid]
    for k in p["steps"]:
        best = min(range(len(grid)), key=lambda i, k=k: tried[i][k])
        found.traces += [
            {"seed": p["tuning_seed"], "steps": k, "chosen": int(i == best), **how, "sw2": values[k]}
            for i, (how, values) in enumerate(zip(grid, tried, strict=True))
        ]
        for seed in seeds:
            row: Row = {"seed": seed, "steps": k, "sw2": measured(direction, grid[best], seed)[k]}
            found.rows.append({**row, "eta": grid[best]["eta"]})
    return found
