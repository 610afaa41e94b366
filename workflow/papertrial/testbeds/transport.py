"""Families of discrete optimal transport problems

    min <C, P>   over P >= 0 with P 1 = r and P^T 1 = c,        C (m, n), r (m,), c (n,) with mass 1,

every cost matrix between 0 and 1, and what solutions are held against: the marginals and the linear program.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse


class OT(NamedTuple):
    C: np.ndarray  # (m, n) costs
    r: np.ndarray  # (m,) row marginal
    c: np.ndarray  # (n,) column marginal


def uniform(n: int) -> np.ndarray:
    return np.full(n, 1 / n)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """||x_i - y_j||^2 of points x (m, d) and y (n, d), free of cancellation: (m, n)."""
    return sum(np.subtract.outer(x[:, k], y[:, k]) ** 2 for k in range(x.shape[1]))


def random_assignment(n: int, seed: int) -> OT:
    """Independent uniform costs, uniform marginals: the optimum is a random permutation."""
    return OT(np.random.default_rng(seed).random((n, n)), uniform(n), uniform(n))


def gaussian_clouds(n: int, seed: int, d: int = 2, shift: float = 1.0) -> OT:
    """Squared Euclidean costs, scaled to 1 at most, between n points of N(0, I_d) and n of N(shift 1, I_d)."""
    x, y = np.random.default_rng(seed).standard_normal((2, n, d))
    C = squared_distances(x, y + shift)
    return OT(C / C.max(), uniform(n), uniform(n))


FAMILIES: dict[str, Callable[..., OT]] = {"assignment": random_assignment, "clouds": gaussian_clouds}


def make_ot(family: str, n: int, seed: int, **shape: float) -> OT:
    """The seed's member of a family of problems with n rows and n columns."""
    return FAMILIES[family](n, seed, **shape)


def image_pair(images: np.ndarray, seed: int, p: int, floor: float = 0.01) -> OT:
    """Transport between two different pictures that the seed draws, pixel by pixel.

    Args:
        images: (N, h, w) grey values from 0 to the array's maximum.
        p: the costs between pixels are the squared Euclidean (2) or the Manhattan (1) distances, scaled to 1 at most.
        floor: added to the intensities in [0, 1] before these are scaled to mass 1, so no pixel is empty.
    """
    h, w = images.shape[1:]
    pair = images[np.random.default_rng(seed).choice(len(images), size=2, replace=False)].reshape(2, h * w)
    mass = pair / images.max() + floor
    r, c = mass / mass.sum(axis=1, keepdims=True)
    pixels = np.indices((h, w)).reshape(2, -1)
    C = sum(np.abs(np.subtract.outer(k, k)).astype(float) ** p for k in pixels)
    return OT(C / C.max(), r, c)


def marginal_error(P: np.ndarray, r: np.ndarray, c: np.ndarray) -> float:
    """||P 1 - r||_1 + ||P^T 1 - c||_1."""
    return float(np.abs(P.sum(axis=1) - r).sum() + np.abs(P.sum(axis=0) - c).sum())


def lp_ot(C: np.ndarray, r: np.ndarray, c: np.ndarray) -> tuple[float, np.ndarray]:
    """Exact value and plan (m, n) of the linear program.

    Uniform marginals of one length make it an assignment problem; other sizes go to a general solver and are
    for hundreds of points.
    """
    m, n = C.shape
    if m == n and np.ptp(r) == np.ptp(c) == 0:
        rows, columns = optimize.linear_sum_assignment(C)
        P = np.zeros((m, n))
        P[rows, columns] = r[0]
    else:
        rows_of = sparse.kron(sparse.eye_array(m), np.ones((1, n)))
        columns_of = sparse.kron(np.ones((1, m)), sparse.eye_array(n))
        found = optimize.linprog(
            C.ravel(), A_eq=sparse.vstack([rows_of, columns_of]), b_eq=np.concatenate([r, c]), method="highs"
        )
        if not found.success:
            raise ValueError(f"the transport problem has no solution: {found.message}")
        P = found.x.reshape(m, n)
    return float((C * P).sum()), P
