"""The damped direction of Levenberg-Marquardt-Langevin: second-order geometry without a Hessian.

The Hessian of -log p is replaced by lambda I + v v^T with v a smoothed noise prediction; by Sherman-Morrison
    (lambda I + v v^T)^{-1} e = (e - v <v, e> / (lambda + |v|^2)) / lambda,
whose length is then set to that of e. Norms and products are those of a whole sample.

Source: 2505.24222, as its authors coded it.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """(n, 1, ...) <a, b> of every sample."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def norm(a: Tensor) -> Tensor:
    return product(a, a).sqrt().clamp_min(torch.finfo(a.dtype).tiny)


def mix(e: Tensor, before: Tensor | None, kappa: float) -> Tensor:
    """v: kappa times the step before's e, and the rest of it this one's; in the first step e itself."""
    return e if before is None else kappa * before + (1 - kappa) * e


def damped(e: Tensor, v: Tensor, m: float, rescale: bool = True) -> Tensor:
    """d for lambda = m |e|^2: in units that don't depend on the dimension."""
    d = e - v * (product(e, v) / (m * product(e, e) + product(v, v)).clamp_min(torch.finfo(e.dtype).tiny))
    return d * (norm(e) / norm(d)) if rescale else d


# What becomes of v. The control takes another sample's: the same arithmetic, but not this sample's geometry.
GEOMETRY: dict[str, Callable[[Tensor], Tensor]] = {"lml": lambda v: v, "rolled": lambda v: v.roll(1, 0)}
