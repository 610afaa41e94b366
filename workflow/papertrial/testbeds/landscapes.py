"""Functions to be minimised from values alone, with known global minimiser, and a meter for evaluations.

Points are (..., d), values (...): any number of points, for any number of seeds, in one call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Landscape:
    value: Callable[[np.ndarray], np.ndarray]  # (..., d) -> (...)
    gradient: Callable[[np.ndarray], np.ndarray]  # (..., d) -> (..., d), a subgradient at kinks
    minimiser: np.ndarray  # (d,)
    minimum: float
    low: float  # the box [low, high]^d that searches may assume
    high: float

    @property
    def d(self) -> int:
        return len(self.minimiser)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.value(x)


class Counted:
    """A landscape behind a meter: a value costs one evaluation a point, a gradient ``gradient_cost``."""

    def __init__(self, landscape: Landscape, gradient_cost: int = 1) -> None:
        self.landscape, self.gradient_cost, self.evaluations = landscape, gradient_cost, 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        values = self.landscape.value(x)
        self.evaluations += np.size(values)
        return values

    def gradient(self, x: np.ndarray) -> np.ndarray:
        self.evaluations += self.gradient_cost * (x.size // x.shape[-1])
        return self.landscape.gradient(x)


# ---- the canyon: a winding valley with ripples and a wall on one side of a line, in the plane


def canyon() -> Landscape:
    """E(0, 0) = 0 is the minimum; descent from the far end of the valley ends in a ripple near (2.3, 2.5)."""
    return Landscape(_canyon, _canyon_gradient, np.zeros(2), 0.0, -2.0, 8.0)


def _canyon(p: np.ndarray) -> np.ndarray:
    x, y = p[..., 0], p[..., 1]
    v = y - (x - 1) * (x - 4) ** 2 / 8 - 2  # 0 along the valley
    q = -x - 1.6 * y  # the wall stands where q > 0
    valley = 25 * (1 - np.exp(-1.4 * v**2 * np.exp(-0.002 * x**4)))
    bowl = 0.4 * x**2 + 0.2 * y**2
    ripples = 1.1625 * (2 - np.cos(0.75 * np.pi * x) - np.cos(0.75 * np.pi * y))
    wall = 4 * np.exp(1 - 2 * v**4) * np.where(q > 0, 1 - np.exp(-9 * q**2), 0)
    return valley + bowl + ripples + wall


def _canyon_gradient(p: np.ndarray) -> np.ndarray:
    x, y = p[..., 0], p[..., 1]
    v = y - (x - 1) * (x - 4) ** 2 / 8 - 2
    q = -x - 1.6 * y
    w = np.exp(-0.002 * x**4)
    valley = 25 * 1.4 * np.exp(-1.4 * v**2 * w)
    height, inside = 4 * np.exp(1 - 2 * v**4), np.where(q > 0, 1 - np.exp(-9 * q**2), 0)
    by_v = valley * 2 * v * w - 8 * v**3 * height * inside
    by_q = height * np.where(q > 0, 18 * q * np.exp(-9 * q**2), 0)
    v_x = -((x - 4) ** 2 + 2 * (x - 1) * (x - 4)) / 8
    ripple = lambda z: 1.1625 * 0.75 * np.pi * np.sin(0.75 * np.pi * z)  # noqa: E731
    by_x = by_v * v_x - by_q - valley * v**2 * w * 0.008 * x**3 + 0.8 * x + ripple(x)
    by_y = by_v - 1.6 * by_q + 0.4 * y + ripple(y)
    return np.stack([by_x, by_y], axis=-1)


# ---- classics


def rastrigin(d: int) -> Landscape:
    return Landscape(
        lambda x: (x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum(axis=-1),
        lambda x: 2 * x + 20 * np.pi * np.sin(2 * np.pi * x),
        np.zeros(d), 0.0, -5.12, 5.12,
    )  # fmt: skip


def rosenbrock(scale: float = 1.0) -> Landscape:
    """scale ((1 - x)^2 + 100 (y - x^2)^2)"""

    def gradient(p: np.ndarray) -> np.ndarray:
        x, y = p[..., 0], p[..., 1]
        return scale * np.stack([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)], axis=-1)

    return Landscape(
        lambda p: scale * ((1 - p[..., 0]) ** 2 + 100 * (p[..., 1] - p[..., 0] ** 2) ** 2),
        gradient, np.ones(2), 0.0, -1.5, 1.5,
    )  # fmt: skip


def quadratic(H: np.ndarray) -> Landscape:
    """x^T H x / 2"""
    return Landscape(
        lambda x: 0.5 * ((x @ H) * x).sum(axis=-1), lambda x: x @ H, np.zeros(len(H)), 0.0, -5.0, 5.0
    )  # fmt: skip


def kinked(d: int) -> Landscape:
    """sum |x_i| + (1 - cos 5 x_i)/2: not smooth at its minimiser."""
    return Landscape(
        lambda x: (np.abs(x) + 0.5 * (1 - np.cos(5 * x))).sum(axis=-1),
        lambda x: np.sign(x) + 2.5 * np.sin(5 * x),
        np.zeros(d), 0.0, -2.0, 8.0,
    )  # fmt: skip
