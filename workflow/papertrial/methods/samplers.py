"""Integrate the probability-flow ODE of a diffusion model from noise to data in few network evaluations.

A *denoiser* is a function ``D(x, s, label)`` for x = x0 + s eps: exact mixtures and trained networks alike. A *rule*
carries x from one level to the next; ``solve`` walks down the levels. A rule is a plain function

    rule(flow, x, lam, lam_t, memory) -> x_t

where ``lam = log(alpha/sigma)`` is where x is, ``lam_t`` where it goes, and ``memory`` a dict that starts empty with
every solution (multistep rules keep past outputs there). So a new solver is a new function, and a method that alters
the update of a solver wraps its rule, one that alters the network's output wraps the denoiser.

Notation: x_t = alpha_t x0 + sigma_t eps; h = lam_t - lam; shapes (n, ...) throughout.
Sources: DDIM arXiv 2010.02502, Heun arXiv 2206.00364, DPM-Solver arXiv 2206.00927, DPM-Solver++ arXiv 2211.01095.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, expm1, log, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papertrial.methods.noise_levels import BETA_MAX, BETA_MIN, vp_level, vp_time

Denoiser = Callable[[Tensor, Any, Tensor | None], Tensor]
Rule = Callable[["Flow", Tensor, float, float, dict], Tensor]


class Counted:
    """A denoiser that counts its evaluations (NFE): one per call, whatever the batch."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise, self.nfe = denoise, 0

    def __call__(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        self.nfe += 1
        return self.denoise(x, s, label)


@dataclass(frozen=True)
class Path:
    """A diffusion's coordinates as functions of lam; ``f`` is d log(alpha) / d lam."""

    alpha: Callable[[float], float]
    sigma: Callable[[float], float]
    f: Callable[[float], float]


VE = Path(alpha=lambda lam: 1.0, sigma=lambda lam: exp(-lam), f=lambda lam: 0.0)
VP = Path(
    alpha=lambda lam: 1 / sqrt(1 + exp(-2 * lam)),
    sigma=lambda lam: 1 / sqrt(1 + exp(2 * lam)),
    f=lambda lam: 1 / (1 + exp(2 * lam)),  # sigma^2
)


@dataclass(frozen=True)
class Flow:
    """The probability-flow ODE dx/dlam = f x - sigma eps(x, lam) of a denoiser on a path."""

    denoise: Denoiser
    label: Tensor | None = None
    path: Path = VE

    def x0(self, x: Tensor, lam: float) -> Tensor:
        return self.denoise(x / self.path.alpha(lam), exp(-lam), self.label)

    def eps(self, x: Tensor, lam: float) -> Tensor:
        return (x - self.path.alpha(lam) * self.x0(x, lam)) / self.path.sigma(lam)

    def drift(self, x: Tensor, lam: float) -> Tensor:
        return self.path.f(lam) * x - self.path.sigma(lam) * self.eps(x, lam)

    def move(self, x: Tensor, lam: float, lam_t: float, eps: Tensor) -> Tensor:
        """The exact solution if eps stayed what it is: (alpha_t/alpha) x - sigma_t (e^h - 1) eps."""
        scale = self.path.alpha(lam_t) / self.path.alpha(lam)
        return scale * x - self.path.sigma(lam_t) * expm1(lam_t - lam) * eps


def solve(
    denoise: Denoiser,
    x: Tensor,
    levels: Sequence[float] | np.ndarray,
    rule: Rule | Sequence[Rule],
    label: Tensor | None = None,
    path: Path = VE,
    final: bool = True,
) -> Tensor:
    """Solve the flow along the levels.

    Args:
        denoise: D(x, s, label), of VE coordinates x = x0 + s eps.
        x: (n, ...) at levels[0], in the path's coordinates; VE: levels[0] * noise.
        levels: N + 1 values of s = sigma/alpha, falling; rising levels invert the flow.
        rule: one for all N steps, or one for each.
        label: (n,) what the network is conditioned on.
        path: the coordinates that the rule works in.
        final: end with one more evaluation, x0 = D at the last level; else x at the last level is returned.
    """
    flow = Flow(denoise, label, path)
    lams = [-log(s) for s in levels]
    rules = [rule] * (len(lams) - 1) if callable(rule) else rule
    memory: dict = {}
    for step, lam, lam_t in zip(rules, lams[:-1], lams[1:], strict=True):
        x = step(flow, x, lam, lam_t, memory)
    return flow.x0(x, lams[-1]) if final else x


def noise_stream(
    seeds: Sequence[int], n: int, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """A function that gives, call by call, n standard normal draws of every seed's own generator.

    Returns:
        () -> (len(seeds) * n, *shape). The first call is the initial noise, later ones feed stochastic samplers.
    """
    generators = [np.random.default_rng(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.from_numpy(np.concatenate([g.standard_normal((n, *shape)) for g in generators])).to(dtype)

    return draw


def initial_noise(seeds: Sequence[int], n: int, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """The first draw of ``noise_stream``; a smaller n gives the first rows of a larger one, seed by seed."""
    return noise_stream(seeds, n, shape, dtype)()


def balanced_labels(seeds: Sequence[int], n: int, classes: int = 10) -> Tensor:
    """Labels 0, 1, ..., 9, 0, 1, ... for the n draws of every seed."""
    return torch.arange(n).remainder(classes).repeat(len(seeds))


# One evaluation a step.


def ddim(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
    """Predict x0 and eps, then put them together at the next level (DDIM, eta = 0)."""
    x0 = flow.x0(x, lam)
    eps = (x - flow.path.alpha(lam) * x0) / flow.path.sigma(lam)
    return flow.path.alpha(lam_t) * x0 + flow.path.sigma(lam_t) * eps


def ancestral(noise: Callable[[], Tensor], eta: float = 1.0) -> Rule:
    """DDPM's sampler: a step of DDIM to a lower level, and fresh noise up to the level asked for.

    Args:
        noise: gives a standard normal draw of x's shape, another one with every call.
        eta: 1 is DDPM with the posterior's variance, 0 is DDIM.
    """

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        x0 = flow.x0(x, lam)
        eps = (x - flow.path.alpha(lam) * x0) / flow.path.sigma(lam)
        fresh = eta * sqrt(-expm1(2 * (lam - lam_t)))  # share of sigma_t: sqrt(1 - s_t^2/s^2)
        mean = flow.path.alpha(lam_t) * x0 + flow.path.sigma(lam_t) * sqrt(1 - fresh**2) * eps
        return mean + flow.path.sigma(lam_t) * fresh * noise()

    return step


def dpmpp2m(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
    """DPM-Solver++(2M): extrapolate x0 linearly in lam from the last two evaluations; the first step is DDIM."""
    h = lam_t - lam
    x0 = flow.x0(x, lam)
    before = memory.get("x0")
    memory["x0"] = (lam, x0)
    if before is not None:
        lam_s, x0_s = before
        x0 = x0 + h / (2 * (lam - lam_s)) * (x0 - x0_s)
    ratio = flow.path.sigma(lam_t) / flow.path.sigma(lam)
    return ratio * x - flow.path.alpha(lam_t) * expm1(-h) * x0


def ab2(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
    """Two-step Adams-Bashforth for dx/ds = eps (in VE coordinates), with variable steps; the first step is DDIM."""
    s, s_t = exp(-lam), exp(-lam_t)
    eps = flow.eps(x, lam)
    before = memory.get("eps")
    memory["eps"] = (s, eps)
    if before is not None:
        s_s, eps_s = before
        eps = eps + (s_t - s) / (2 * (s - s_s)) * (eps - eps_s)
    return flow.move(x, lam, lam_t, eps)


# Two and more evaluations a step.


def heun(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
    """The trapezoidal rule for dx/ds = eps, predicted by DDIM."""
    eps = flow.eps(x, lam)
    there = flow.eps(flow.move(x, lam, lam_t, eps), lam_t)
    return flow.move(x, lam, lam_t, (eps + there) / 2)


def dpm1(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
    """DPM-Solver-1: the exponentially weighted integral of eps to order 1; DDIM written in lam."""
    return flow.move(x, lam, lam_t, flow.eps(x, lam))


def dpm2(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict, r: float = 0.5) -> Tensor:
    """DPM-Solver-2, singlestep: eps and its difference to an intermediate point at lam + r h."""
    h, sigma_t = lam_t - lam, flow.path.sigma(lam_t)
    eps = flow.eps(x, lam)
    u = flow.move(x, lam, lam + r * h, eps)
    eps_u = flow.eps(u, lam + r * h)
    return flow.move(x, lam, lam_t, eps) - sigma_t / (2 * r) * expm1(h) * (eps_u - eps)


def dpm3(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict, r1: float = 1 / 3, r2: float = 2 / 3) -> Tensor:
    """DPM-Solver-3, singlestep: two intermediate points, at lam + r1 h and lam + r2 h."""
    h, sigma_t = lam_t - lam, flow.path.sigma(lam_t)
    lam_1, lam_2 = lam + r1 * h, lam + r2 * h
    eps = flow.eps(x, lam)
    u1 = flow.move(x, lam, lam_1, eps)
    d1 = flow.eps(u1, lam_1) - eps
    u2 = flow.move(x, lam, lam_2, eps) - flow.path.sigma(lam_2) * (r2 / r1) * (expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = flow.eps(u2, lam_2) - eps
    return flow.move(x, lam, lam_t, eps) - sigma_t / r2 * (expm1(h) / h - 1) * d2


DPM = {1: dpm1, 2: dpm2, 3: dpm3}


def fast_orders(evaluations: int) -> list[int]:
    """The orders of DPM-Solver's "fast" rule: as many steps of order 3 as fit, lower orders at the end."""
    m, rest = divmod(evaluations, 3)
    if rest == 0:
        return [3] * (m - 1) + [2, 1] if m else []
    return [3] * m + [rest]


# Black-box Runge-Kutta methods on the same ODE.


@dataclass(frozen=True)
class Clock:
    """The variable u that an ODE is integrated in: lam -> u, u -> lam, and dlam/du at u."""

    u: Callable[[float], float]
    lam: Callable[[float], float]
    rate: Callable[[float], float]


def _vp_rate(t: float) -> float:
    """dlam/dt = (d log alpha / dt) / sigma^2 of VP-linear."""
    s = vp_level(t)
    return float(-0.5 * (BETA_MIN + (BETA_MAX - BETA_MIN) * t) * (1 + s * s) / (s * s))


LAM = Clock(u=lambda lam: lam, lam=lambda u: u, rate=lambda u: 1.0)
TIME = Clock(u=lambda lam: float(vp_time(exp(-lam))), lam=lambda t: -log(vp_level(t)), rate=_vp_rate)

# Explicit tableaus: (node, weights of the earlier slopes) of every stage, and the weights of the step.
MIDPOINT = (((0.0, ()), (1 / 2, (1 / 2,))), (0.0, 1.0))
HEUN3 = (((0.0, ()), (1 / 3, (1 / 3,)), (2 / 3, (0.0, 2 / 3))), (1 / 4, 0.0, 3 / 4))


def runge_kutta(tableau: tuple, clock: Clock) -> Rule:
    """An explicit Runge-Kutta step for the whole right-hand side, linear part included."""
    stages, weights = tableau

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        u, h = clock.u(lam), clock.u(lam_t) - clock.u(lam)
        slopes: list[Tensor] = []
        for node, row in stages:
            at = x + h * sum(a * k for a, k in zip(row, slopes, strict=True)) if row else x
            v = u + node * h
            slopes.append(clock.rate(v) * flow.drift(at, clock.lam(v)))
        return x + h * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)

    return step


RK_LAM = {2: runge_kutta(MIDPOINT, LAM), 3: runge_kutta(HEUN3, LAM)}
RK_TIME = {2: runge_kutta(MIDPOINT, TIME), 3: runge_kutta(HEUN3, TIME)}
