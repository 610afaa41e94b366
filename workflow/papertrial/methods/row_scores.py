"""How much each row a_i of a tall matrix A (n, d) can matter to the lengths ||A x||_p: what rows are sampled by.

    leverage     tau_i = max_x <a_i, x>^2 / ||A x||_2^2
    Lewis        w_i = leverage of row i after the rows are rescaled by w^(1/2 - 1/p): l2 scores that fit l_p
    sensitivity  sigma_i = max_x |<a_i, x>|^p / ||A x||_p^p, one convex problem a row

All three are unchanged by A -> A R with R invertible, and agree at p = 2.

Sources: Cohen and Peng 2015 (arXiv 1412.0588) for Lewis weights; the sensitivities are solved here by iteratively
reweighted least squares.
"""

from typing import NamedTuple

import numpy as np


def orthonormal_range(A: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the range of A, (n, rank)."""
    U, s, _ = np.linalg.svd(A, full_matrices=False)
    return U[:, s > s[0] * max(A.shape) * np.finfo(float).eps]


def leverage_scores(A: np.ndarray) -> np.ndarray:
    """(n,), between 0 and 1 and adding up to the rank of A."""
    return (orthonormal_range(A) ** 2).sum(axis=1)


def lewis_weights(A: np.ndarray, p: float, iterations: int = 50) -> np.ndarray:
    """(n,), adding up to the rank of A.

    The fixed point w_i = (a_i^T (A^T W^(1-2/p) A)^-1 a_i)^(p/2); for p > 2 in geometric means with the last w, without
    which the iteration oscillates from p = 4 on.
    """
    Q = orthonormal_range(A)
    damping = 1.0 if p <= 2 else 2 / p
    w = np.full(len(Q), Q.shape[1] / len(Q))
    for _ in range(iterations):
        M = Q.T @ (Q * w[:, None] ** (1 - 2 / p))
        tau = np.einsum("ij,ij->i", Q @ np.linalg.inv(M), Q)
        w = w ** (1 - damping) * np.maximum(tau, 1e-300) ** (damping * p / 2)
    return w


# ---- sensitivities


class Sensitivities(NamedTuple):
    sigma: np.ndarray  # (rows,)
    x: np.ndarray  # (rows, rank), what attains them, in coordinates of orthonormal_range(A)


BLOCK = 256  # rows solved at a time
TINY = 1e-7  # residuals are smoothed below this part of their mean, after halvings from 1
TOLERANCE = 1e-5  # a row is done when a step gains less
SETTLED = 7  # steps before that is asked


def sensitivities(
    A: np.ndarray, p: float, rows: np.ndarray | None = None, counts: np.ndarray | None = None, iterations: int = 60
) -> Sensitivities:
    """1/sigma_i = min ||A x||_p^p over <a_i, x> = 1, for all rows at once (or the given ones).

    Weighted least squares with weights |<a_j, x>|^(p-2), each row with weights of its own. Steps are shortened to
    1/(p-1) for p > 2, which makes them Newton's. The best x met is kept, so sigma errs to the low side only.

    Args:
        counts: (n,) how many times each row stands in the matrix; once by default. (Equal rows are best merged.)
    """
    Q = orthonormal_range(A)
    d = Q.shape[1]
    counts = np.ones(len(Q)) if counts is None else counts
    targets = Q if rows is None else Q[rows]
    i, j = np.triu_indices(d)
    outer = Q[:, i] * Q[:, j]  # (n, d(d+1)/2)
    parts = [_solve(Q, outer, counts, targets[k : k + BLOCK], p, iterations) for k in range(0, len(targets), BLOCK)]
    return Sensitivities(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _solve(Q: np.ndarray, outer: np.ndarray, counts: np.ndarray, a: np.ndarray, p: float, iterations: int) -> tuple:
    d = Q.shape[1]
    i, j = np.triu_indices(d)
    step = 1.0 if p <= 2 else 1 / (p - 1)
    best, best_x = np.full(len(a), np.inf), np.zeros_like(a)
    active, x = np.arange(len(a)), best_x  # rows that still get better, and where they are
    weights = np.broadcast_to(counts, (len(a), len(Q)))
    for k in range(iterations):
        G = np.empty((len(active), d, d))
        G[:, i, j] = G[:, j, i] = weights @ outer
        y = np.linalg.solve(G, a[active, :, None])[:, :, 0]
        y /= np.einsum("id,id->i", a[active], y)[:, None]  # <a_i, y> = 1
        x = y if k == 0 else x + step * (y - x)
        r = np.abs(x @ Q.T)  # (active, n)
        norm = (r**p) @ counts
        better = norm < best[active] * (1 - TOLERANCE)
        best[active[better]], best_x[active[better]] = norm[better], x[better]
        if k >= SETTLED:
            active, x, r = active[better], x[better], r[better]
            if not len(active):
                break
        smallest = max(0.5**k, TINY) * r.mean(axis=1, keepdims=True)
        weights = counts * np.maximum(r, smallest) ** (p - 2)
    return 1 / best, best_x


def row_sensitivities(A: np.ndarray, p: float) -> np.ndarray:
    """sigma (n,) of all rows; equal ones are solved once."""
    distinct, place, counts = np.unique(A, axis=0, return_inverse=True, return_counts=True)
    shared = sensitivities(distinct, p, counts=counts.astype(float)).sigma
    return shared[place]


def inclusion_probabilities(scores: np.ndarray, m: float) -> np.ndarray:
    """q_i = min(1, alpha scores_i), (n,), with alpha such that they add up to m, the sample's expected size."""
    if m >= np.count_nonzero(scores):
        return (scores > 0).astype(float)
    descending = np.sort(scores[scores > 0])[::-1]
    rest = np.cumsum(descending[::-1])[::-1]  # (N,): what is left from k on
    alpha = (m - np.arange(len(rest))) / rest  # if k rows are certain
    certain = int(np.argmax(alpha * descending <= 1))  # the first k that makes no further row certain
    return np.minimum(1, alpha[certain] * scores)
