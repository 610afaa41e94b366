"""Complete a matrix of low rank from some of its entries: two methods without inner solves, as endless iterations.

known has the entries P_Omega(M) of M (m, n) (see testbeds.matrix_completion); every step yields the factors U (m, k)
and V (n, k) of the estimate U V^T.
"""

from collections.abc import Iterator

import numpy as np
from scipy.sparse.linalg import svds

from papertrial.testbeds.matrix_completion import Observed

Factors = tuple[np.ndarray, np.ndarray]


def top(known: Observed, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k leading singular vectors and values of P_Omega(M) / p, an unbiased estimate of M."""
    U, s, Vt = svds(known.filled() / known.share, k=k, v0=rng.standard_normal(min(known.shape)))
    return U[:, ::-1], s[::-1], Vt[::-1].T


def scaled_gd(known: Observed, k: int, rng: np.random.Generator, eta: float) -> Iterator[Factors]:
    """ScaledGD (arXiv 2005.08898): gradient steps on both factors, each scaled by the other's Gram matrix."""
    U, s, V = top(known, k, rng)
    U, V = U * np.sqrt(s), V * np.sqrt(s)
    while True:
        E = known.filled(np.einsum("ok,ok->o", U[known.i], V[known.j]) - known.value) * (eta / known.share)
        U, V = U - (E @ V) @ np.linalg.inv(V.T @ V), V - (E.T @ U) @ np.linalg.inv(U.T @ U)
        yield U, V


def soft_impute(known: Observed, k: int, rng: np.random.Generator, shrink: float) -> Iterator[Factors]:
    """Soft-Impute (Mazumder, Hastie and Tibshirani 2010): fill in, take the SVD, subtract lambda from the singular
    values; lambda falls from step to step. The SVD is of rank 2k, by one power step from the last one."""
    U, s, V = top(known, min(2 * k, min(known.shape) - 1), rng)
    threshold, s = s[0], 0 * s
    while True:
        threshold *= shrink
        E = known.filled(known.value - np.einsum("ok,k,ok->o", U[known.i], s, V[known.j]))
        Q = np.linalg.qr(E @ V + U * s)[0]  # (m, 2k)
        W, d, Zt = np.linalg.svd(E.T @ Q + (V * s) @ (U.T @ Q), full_matrices=False)
        U, V, s = Q @ Zt.T, W, np.maximum(d - threshold, 0)
        yield U * s, V
