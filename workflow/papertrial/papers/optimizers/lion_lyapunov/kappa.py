"""Convex functions kappa of Lion-kappa, with a subgradient and the conjugate kappa*(y) = max_m <y, m> - kappa(m).

The momentum moves x by kappa's subgradient; what is minimised is alpha f(x) + (gamma/lambda) kappa*(lambda x).
Every function maps (..., d) to (...), the subgradient to (..., d). Source: arXiv:2310.05898, table 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HUBER = 0.1  # where Huber's function turns from quadratic to linear
ON_THE_BOUNDARY = 1e-9  # relative overshoot that counts as rounding


@dataclass(frozen=True)
class Kappa:
    value: Callable[[np.ndarray], np.ndarray]
    subgradient: Callable[[np.ndarray], np.ndarray]
    conjugate: Callable[[np.ndarray], np.ndarray]


def l1(m: np.ndarray) -> np.ndarray:
    return np.abs(m).sum(axis=-1)


def l2(m: np.ndarray) -> np.ndarray:
    return np.sqrt((m * m).sum(axis=-1))


def half_square(m: np.ndarray) -> np.ndarray:
    return 0.5 * (m * m).sum(axis=-1)


def huber(m: np.ndarray) -> np.ndarray:
    a = np.abs(m)
    return np.where(a <= HUBER, a * a / (2 * HUBER), a - HUBER / 2).sum(axis=-1)


def direction(m: np.ndarray) -> np.ndarray:
    """m / |m|, and 0 at 0."""
    return m / np.maximum(l2(m), np.finfo(float).tiny)[..., None]


def inside(gauge: np.ndarray) -> np.ndarray:
    """The indicator of gauge <= 1: 0 inside, infinite outside."""
    return np.where(gauge <= 1 + ON_THE_BOUNDARY, 0.0, np.inf)


def in_box(y: np.ndarray) -> np.ndarray:
    return inside(np.abs(y).max(axis=-1))


KAPPAS = {
    "l1": Kappa(l1, np.sign, in_box),  # Lion: the box |x| <= 1/lambda
    "l2": Kappa(l2, direction, lambda y: inside(l2(y))),  # the ball |x| <= 1/lambda
    "huber": Kappa(  # a smoothed sign: the box, and an L2 penalty inside it
        huber, lambda m: np.clip(m / HUBER, -1, 1), lambda y: HUBER * half_square(y) + in_box(y)
    ),
    "half-l2-squared": Kappa(half_square, lambda m: m, half_square),  # heavy ball: an L2 penalty
}
