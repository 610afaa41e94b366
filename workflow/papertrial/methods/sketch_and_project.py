"""Solve K z = -w by projecting z, step after step, onto the solutions of one random combination of the equations.

    z <- z - K^T s (s^T K K^T s)^+ s^T (K z + w),   s = e_i (Kaczmarz) or Gaussian         arXiv 1506.03296

A run of steps from z with rows A_1, ..., A_B of s^T K and right sides b is one triangular solve, since
z_j = z - sum_(i<=j) y_i A_i with tril(A A^T) y = A z + b: the same iterates as one by one, in a few calls.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dtrtrs


class Sketched(NamedTuple):
    A: np.ndarray  # (B, N) rows s^T K
    b: np.ndarray  # (B,) s^T w
    gram: np.ndarray  # (B, B) A A^T


Draw = Callable[[int], Sketched]


def kaczmarz(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Draw:
    """Row i with probability ||K_i||^2 / ||K||_F^2."""
    gram = K @ K.T
    places = np.cumsum(np.diagonal(gram)) / np.trace(gram)

    def draw(B: int) -> Sketched:
        i = np.minimum(np.searchsorted(places, rng.random(B)), len(K) - 1)
        return Sketched(K[i], w[i], gram[i[:, None], i])

    return draw


def gaussian_vectors(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Draw:
    def draw(B: int) -> Sketched:
        S = rng.standard_normal((B, len(K)))
        A = S @ K
        return Sketched(A, S @ w, A @ A.T)

    return draw


def iterates(draw: Draw, z: np.ndarray, every: int, block: int) -> Iterator[np.ndarray]:
    """Without end: z after each ``every`` steps, as many of these (C, N) at a time as the block of steps holds."""
    count = max(1, block // every)
    while True:
        A, b, gram = draw(count * every)
        y, _ = dtrtrs(gram, A @ z + b, lower=1)
        moves = y.reshape(count, 1, every) @ A.reshape(count, every, -1)  # (C, 1, N)
        path = z - np.cumsum(moves[:, 0], axis=0)
        z = path[-1]
        yield path
