"""Move one distribution to another along paths that are as straight as can be: flows learned from pairs of points.

A coupling of starts a and ends b defines points x_t = (1 - t) a + t b on straight lines. The flow whose velocity is
v(x, t) = E[b - a | x_t = x] carries the law of a to that of b; following it from fresh starts gives a new coupling,
whose lines cross less (reflow). Everything here works in either direction of time: with noise at t = 0 and data at
t = 1, as in the first paper, or with noise at t = 1, as in diffusion.

Sources: Liu et al. 2022 (arXiv 2209.03003); Lee et al. 2024 (arXiv 2405.20320).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from math import expm1
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.methods.noise_levels import S_MAX

Velocity = Callable[[Tensor, Any, Tensor | None], Tensor]  # v(x, t, label); t is one time for all, or (n,)
Rule = Callable[[Velocity, Tensor, float, float, Tensor | None], Tensor]

T_MIN = 1e-5  # times are kept this far from the ends


def residual(velocity: Velocity, start: Tensor, end: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
    """(end - start) - v(x_t, t), whose mean square is least for the flow of the coupling; t (n,)."""
    at = t.reshape(-1, *[1] * (start.ndim - 1))
    return (end - start) - velocity(torch.lerp(start, end, at), t, label)


def euler(velocity: Velocity, x: Tensor, t: float, t_next: float, label: Tensor | None) -> Tensor:
    return x + (t_next - t) * velocity(x, t, label)


def heun(velocity: Velocity, x: Tensor, t: float, t_next: float, label: Tensor | None) -> Tensor:
    v, h = velocity(x, t, label), t_next - t
    return x + h / 2 * (v + velocity(x + h * v, t_next, label))


def integrate(
    velocity: Velocity, x: Tensor, times: Sequence[float] | np.ndarray, label: Tensor | None = None, rule: Rule = euler
) -> Tensor:
    """Follow the flow from x at times[0] to times[-1], rising or falling; one step a pair of neighbours."""
    for t, t_next in pairwise(times):
        x = rule(velocity, x, float(t), float(t_next), label)
    return x


def straightness(
    velocity: Velocity, x: Tensor, times: Sequence[float] | np.ndarray, label: Tensor | None = None
) -> tuple[float, Tensor]:
    """S = int E|(Z_1 - Z_0) - v(Z_t, t)|^2 dt / E|Z_1 - Z_0|^2 along Euler's paths, 0 where they are straight.

    Args:
        times: from 0 to 1 or from 1 to 0.

    Returns:
        S, and where the paths end. As Euler's displacement is the mean velocity, the integral is that of |v|^2 less
        |Z_1 - Z_0|^2: one pass, no path is kept.
    """
    start, energy = x, 0.0
    for t, t_next in pairwise(times):
        v = velocity(x, float(t), label)
        energy += abs(float(t_next - t)) * float(v.double().square().sum())
        x = x + float(t_next - t) * v
    length = float((x - start).double().square().sum())
    return energy / length - 1, x


# Time densities: from u (2, n) uniform to t (n,).


def u_shaped(u: Tensor, a: float = 4.0) -> Tensor:
    """t or 1 - t, each with probability 1/2, where t has the density e^{a t} on [0, 1]: mass at both ends."""
    t = torch.log1p(u[0] * expm1(a)) / a
    return torch.where(u[1] < 0.5, t, 1 - t).clamp(T_MIN, 1 - T_MIN)


TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u[0].clamp(T_MIN, 1 - T_MIN),
    "u-shaped": u_shaped,
    "inside-out": lambda u: ((u_shaped(u) + 0.5) % 1).clamp(T_MIN, 1 - T_MIN),  # mass in the middle
    "one": lambda u: torch.ones_like(u[0]),  # t = 1 only: regression of ends on starts
}


# Premetrics m(r) of a residual (n, ...): (n,).


def squared(r: Tensor) -> Tensor:
    return r.flatten(1).square().sum(1)


def pseudo_huber(r: Tensor, c: float | None = None) -> Tensor:
    """sqrt(|r|^2 + c^2) - c with c = .00054 d: nearly the norm, so that outliers weigh less."""
    r = r.flatten(1)
    c = 0.00054 * r.shape[1] if c is None else c
    return (r.square().sum(1) + c * c).sqrt() - c


PREMETRICS: dict[str, Callable[[Tensor], Tensor]] = {"squared": squared, "pseudo-huber": pseudo_huber}


class DenoiserFlow(nn.Module):
    """A denoiser with EDM's preconditioning as the velocity of x_t = (1 - t) x0 + t eps, noise at t = 1.

    With s = t/(1 - t) and x_t/(1 - t) = x0 + s eps, v = eps - x0 = (x_t - D)/t. The factors of D and of t are combined,
    so that nothing is divided by t or 1 - t:

        v = (t - sd^2 (1 - t))/q x_t - sd/sqrt(q) F(x_t/sqrt(q), log(s)/4),   q = t^2 + sd^2 (1 - t)^2.

    Args:
        denoiser: an EDM denoiser with its network ``net`` F(x, c_noise, label) and ``sigma_data``; copied.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.net, self.sigma_data = deepcopy(denoiser.net).requires_grad_(True), denoiser.sigma_data

    def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        """v of x (n, ...); c_noise stays within the levels that the network knows at the noisy end."""
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        s = (t / (1 - t)).clamp(T_MIN, S_MAX)  # t = 1 is beyond all levels
        at, sd = t.reshape(-1, *[1] * (x.ndim - 1)), self.sigma_data
        q = at.square() + sd**2 * (1 - at).square()
        found = self.net(x * q.rsqrt(), s.log() / 4, label)
        return (at - sd**2 * (1 - at)) / q * x - sd * q.rsqrt() * found


def without_gradients(velocity: Velocity, size: int = 250) -> Velocity:
    """A velocity for simulation: at most ``size`` samples at a time, one time for all."""

    def call(x: Tensor, t: float, label: Tensor | None = None) -> Tensor:
        with torch.no_grad():  # what it gives may be trained on
            parts = x.split(size)
            labels = [None] * len(parts) if label is None else label.split(size)
            return torch.cat([velocity(part, t, y) for part, y in zip(parts, labels, strict=True)])

    return call
