"""Random quadratics with known spectrum and exact optimum.

    f(x) = (x - x*)^T A (x - x*) / 2,    A = Q diag(eigenvalues) Q^T,    Q a uniformly random rotation

A (..., d, d), x* (..., d), points (..., d): leading axes broadcast, so one quadratic takes many points (points, d),
and stacked ones (seeds, d, d) a point each (seeds, d).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quadratic:
    A: np.ndarray
    optimum: np.ndarray
    smoothness: float = 1.0  # the largest eigenvalue

    @property
    def d(self) -> int:
        return self.optimum.shape[-1]

    def value(self, x: np.ndarray) -> np.ndarray:
        """(..., d) -> (...)"""
        return 0.5 * ((x - self.optimum) * self.grad(x)).sum(axis=-1)

    def grad(self, x: np.ndarray) -> np.ndarray:
        """(..., d) -> (..., d)"""
        return (self.A @ (x - self.optimum)[..., None])[..., 0]


def log_uniform(rng: np.random.Generator, d: int, condition: float) -> np.ndarray:
    """d eigenvalues in [1/condition, 1], log-uniform but for the two ends, which are always there."""
    inner = np.exp(rng.uniform(-np.log(condition), 0.0, d - 2))
    return np.array([1 / condition, *np.sort(inner), 1.0])


def rotation(rng: np.random.Generator, d: int) -> np.ndarray:
    """A uniformly random orthogonal matrix: QR of a Gaussian one, the signs settled by R's diagonal."""
    Q, R = np.linalg.qr(rng.standard_normal((d, d)))
    return Q * np.sign(np.diag(R))


def random_quadratic(rng: np.random.Generator, d: int, condition: float, spread: float) -> Quadratic:
    """Log-uniform spectrum in [1/condition, 1]; the optimum's coordinates are N(0, spread^2)."""
    Q = rotation(rng, d)
    A = (Q * log_uniform(rng, d, condition)) @ Q.T
    return Quadratic(A, spread * rng.standard_normal(d))


def stack(quadratics: Iterable[Quadratic]) -> Quadratic:
    """One a seed: A (S, d, d), x* (S, d)."""
    quadratics = list(quadratics)
    return Quadratic(np.stack([q.A for q in quadratics]), np.stack([q.optimum for q in quadratics]))
