"""Maximise a concave function that may have kinks, such as a Lagrange dual: L-BFGS, and Adam where it gets stuck."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

Concave = Callable[[np.ndarray], tuple[float, np.ndarray]]  # x -> value and a supergradient


class Climb(NamedTuple):
    x: np.ndarray  # the best point seen
    value: float  # there
    values: np.ndarray  # at every evaluation
    success: bool  # what L-BFGS says of itself


def lbfgs(f: Concave, x: np.ndarray, evaluations: int) -> Climb:
    """L-BFGS until it can't go on, or for so many evaluations: at a kink it may stop early."""
    best, values = [-np.inf, x], []

    def descent(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = f(x)
        values.append(value)
        if value > best[0]:
            best[:] = value, x.copy()
        return -value, -slope

    limits = {"maxfun": evaluations, "maxiter": evaluations, "ftol": 0.0, "gtol": 1e-12}
    found = optimize.minimize(descent, x, jac=True, method="L-BFGS-B", options=limits)
    return Climb(best[1], best[0], np.array(values), bool(found.success))


def adam(f: Concave, start: Climb, steps: int, first: float = 1e-2, last: float = 1e-6) -> Climb:
    """Adam with a step that falls geometrically from ``first`` to ``last``: it gets off the kinks L-BFGS ends at."""
    (x, best, values, success), at = start, start.x
    m, v = np.zeros_like(x), np.zeros_like(x)
    for i in range(1, steps + 1):
        value, g = f(x)
        if value > best:
            best, at = value, x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = first * (last / first) ** (i / steps)
        x = x + step * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-12)
    return Climb(at, best, values, success)
