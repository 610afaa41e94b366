"""Smooth problems with equality constraints: min f(x) subject to c(x) = 0.

    L(x, lambda) = f + lambda^T c,   G = c'(x) (m, n),   KKT residual w = (grad_x L, c), zero at a solution.

Constrained logistic regression and the control of a semilinear Poisson equation are here; small classics are in
hock_schittkowski. Every problem knows what its evaluations cost, for counts of operations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class First(NamedTuple):
    """Values and first derivatives at a point."""

    f: float
    g: np.ndarray  # (n,)
    c: np.ndarray  # (m,)
    G: np.ndarray  # (m, n)


class Second(NamedTuple):
    """Second derivatives at a point."""

    of_f: np.ndarray  # (n, n)
    of_c: Callable[[np.ndarray], np.ndarray]  # weights (m,) -> (n, n), the sum of weight_i times the Hessian of c_i


@dataclass(frozen=True)
class NLP:
    """A problem, where to start from, and what is known of its solution.

    flops: of one call of ``first`` and of ``second``.
    """

    name: str
    x0: np.ndarray
    m: int
    first: Callable[[np.ndarray], First]
    second: Callable[[np.ndarray], Second]
    flops: tuple[float, float] = (0.0, 0.0)
    f_star: float | None = None
    x_star: np.ndarray | None = None


def residual(at: First, multipliers: np.ndarray) -> np.ndarray:
    """w = (grad_x L, c), (n+m,)."""
    return np.concatenate([at.g + at.G.T @ multipliers, at.c])


def kkt_matrix(H: np.ndarray, G: np.ndarray) -> np.ndarray:
    """[[H, G^T], [G, 0]]."""
    m = len(G)
    return np.block([[H, G.T], [G, np.zeros((m, m))]])


def least_squares_multipliers(at: First) -> np.ndarray:
    """argmin ||g + G^T lambda||."""
    return np.linalg.lstsq(at.G.T, -at.g, rcond=None)[0]


def reduced_curvature(H: np.ndarray, G: np.ndarray) -> float:
    """The least eigenvalue of H on the null space of G; infinite where that's empty."""
    n, m = len(H), len(G)
    if m >= n:
        return np.inf
    Z = np.linalg.qr(G.T, mode="complete")[0][:, m:]  # (n, n-m)
    return float(np.linalg.eigvalsh(Z.T @ H @ Z)[0])


def refined(nlp: NLP) -> tuple[np.ndarray, np.ndarray]:
    """x* and its multipliers to rounding, by exact Newton steps from the known digits."""
    x = nlp.x_star
    lam = least_squares_multipliers(nlp.first(x))
    for _ in range(20):
        at, second = nlp.first(x), nlp.second(x)
        K = kkt_matrix(second.of_f + second.of_c(lam), at.G)
        z = np.linalg.solve(K, -residual(at, lam))
        x, lam = x + z[: len(x)], lam + z[len(x) :]
    return x, lam


# ---- constrained logistic regression


def two_classes(
    x: np.ndarray, y: np.ndarray, labels: list[int], width: int, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Some samples of two classes of a data set: standardised features (samples, width), random ones filling up, and
    labels -1 and 1."""
    chosen = rng.permutation(np.flatnonzero(np.isin(y, labels)))[:samples]
    x = x.reshape(len(x), -1)[chosen].astype(float)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    more = rng.standard_normal((len(x), max(0, width - x.shape[1])))
    return np.hstack([x, more]), np.where(y[chosen] == labels[0], -1.0, 1.0)


def logistic_regression(name: str, features: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> NLP:
    """min mean log(1 + exp(-y a^T x)) subject to A x = b and ||x||^2 = 1.

    Args:
        features: (N, d), rows a.
        label: (N,) of -1 and 1.
        rng: draws A, min(10, d // 3) Gaussian rows; b, so that a random point of the sphere is feasible; and the start.
    """
    N, d = features.shape
    A = rng.standard_normal((min(10, d // 3), d))
    feasible, x0 = (v / np.linalg.norm(v) for v in rng.standard_normal((2, d)))
    b, signed = A @ feasible, features * label[:, None]
    m = len(A) + 1

    def first(x: np.ndarray) -> First:
        margin = signed @ x
        share = np.exp(-np.logaddexp(0, margin)) / N  # (N,), of each sample in the gradient
        c = np.append(A @ x - b, x @ x - 1)
        return First(float(np.logaddexp(0, -margin).mean()), -signed.T @ share, c, np.vstack([A, 2 * x]))

    def second(x: np.ndarray) -> Second:
        margin = signed @ x
        weight = np.exp(-np.logaddexp(0, margin) - np.logaddexp(0, -margin)) / N
        return Second(signed.T @ (signed * weight[:, None]), lambda w: 2 * w[-1] * np.eye(d))

    return NLP(name, x0, m, first, second, flops=(4 * N * d + 2 * m * d, N * d * (d + 3)))


# ---- optimal control


def poisson_control(points: int, rng: np.random.Generator, weight: float = 0.1) -> NLP:
    """min 1/2 ||y - y_d||^2 + weight/2 ||u||^2 subject to -y'' + y^3 = u on (0, 1), y = 0 at both ends.

    x = (y, u) on a uniform grid; second differences; the target y_d is a random sum of three sines.
    """
    p, h = points, 1 / (points + 1)
    t = h * np.arange(1, p + 1)
    target = sum(a * np.sin(j * np.pi * t) for j, a in enumerate(rng.uniform(5, 15, size=3), start=1))
    laplacian = (2 * np.eye(p) - np.eye(p, k=1) - np.eye(p, k=-1)) / h**2
    of_f = np.diag(np.repeat([1.0, weight], p))

    def first(x: np.ndarray) -> First:
        y, u = x[:p], x[p:]
        g = np.concatenate([y - target, weight * u])
        f = 0.5 * ((y - target) @ (y - target) + weight * u @ u)
        return First(float(f), g, laplacian @ y + y**3 - u, np.hstack([laplacian + np.diag(3 * y**2), -np.eye(p)]))

    def second(x: np.ndarray) -> Second:
        return Second(of_f, lambda w: np.diag(np.concatenate([6 * w * x[:p], np.zeros(p)])))

    return NLP(f"poisson-{p}", np.zeros(2 * p), p, first, second, flops=(20.0 * p, 3.0 * p))
