"""Tall matrices A (n, d) that row sampling and sketching find easy or hard."""

import numpy as np


def gaussian_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """No row matters more than another."""
    return rng.standard_normal((n, d))


def coherent_rows(n: int, d: int, rng: np.random.Generator, share: float, scale: float) -> np.ndarray:
    """Gaussian rows, a random share of them scaled up."""
    A = gaussian_rows(n, d, rng)
    A[rng.choice(n, round(share * n), replace=False)] *= scale
    return A


def with_heavy_rows(n: int, d: int, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Gaussian rows but for two, scale n v_1 and scale n v_2 with v random and orthonormal."""
    A = gaussian_rows(n, d, rng)
    A[rng.choice(n, 2, replace=False)] = scale * n * orthonormal(rng.standard_normal((d, 2))).T
    return A


def repeated_identity(n: int, d: int) -> np.ndarray:
    """Row i is e_(i mod d): all scores are equal."""
    return np.eye(d)[np.arange(n) % d]


def spiked_identity(repeats: int, d: int, p: float) -> np.ndarray:
    """Each e_j as often as `repeats`, one of these rows with half of its coordinate's mass ||A e_j||_p^p."""
    A = repeated_identity(repeats * d, d)
    A[:d] *= repeats ** (1 / p)
    return A


def vandermonde(n: int, d: int) -> np.ndarray:
    """Polynomials of degree below d at Chebyshev's points and, an eighth of n, at a cluster; orthonormal columns."""
    cluster = n // 8
    x = np.concatenate(
        [np.cos(np.pi * (np.arange(n - cluster) + 0.5) / (n - cluster)), np.linspace(0.6, 0.61, cluster)]
    )
    return orthonormal(np.polynomial.chebyshev.chebvander(x, d - 1))  # the range of the powers of x, well-conditioned


def orthonormal(A: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the range of A, (n, d)."""
    return np.linalg.qr(A)[0]


def off_range(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The part of b (n,) that is orthogonal to the range of A, scaled to norm 1."""
    Q = orthonormal(A)
    for _ in range(2):  # once more, since the first pass leaves rounding errors of the size of b
        b = b - Q @ (Q.T @ b)
    return b / np.linalg.norm(b)
