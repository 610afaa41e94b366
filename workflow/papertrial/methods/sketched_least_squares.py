"""Many small least-squares problems min_x ||A x - b|| at once, each in about |A| operations instead of |A| k.

A sketch S A with s of order k log k rows has nearly the same singular directions as A (L, k), so with its QR,
S A = Q R, the matrix A R^{-1} is well conditioned. Conjugate gradients on min_y ||A R^{-1} y - b|| from the sketched
solution then reach any accuracy e in O(log 1/e) steps of O(L k) operations.

    Rokhlin and Tygert 2008 (PNAS 105:13212); Avron, Maymounkov and Toledo 2010 (Blendenpik).

Problems are stacked along the first axis: A (B, L, k), b (B, L); rows of zeros fill up the shorter ones.
"""

import math
from typing import NamedTuple

import numpy as np

from papertrial.methods.sketches import hadamard, power_of_two, signs

ROUNDING = 1e-14  # of ||b||: no error smaller than that is asked for
NO_GRADIENT = 1e-200  # its square; there is nowhere left to go


def sketch_rows(k: int, c: float = 4.0) -> int:
    """s = c k log k, at least k + 1."""
    return max(k + 1, math.ceil(c * k * math.log(k)))


def normal_equations(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The exact solutions (B, k); the shortest one where fewer than k rows leave a choice."""
    k = A.shape[2]
    At = A.transpose(0, 2, 1)
    G = At @ A  # (B, k, k)
    free = A.any(axis=2).sum(axis=1) < k  # (B,)
    G[free] += np.eye(k)
    x = np.linalg.solve(G, At @ b[..., None])[..., 0]
    if free.any():
        x[free] = (np.linalg.pinv(A[free]) @ b[free, :, None])[..., 0]
    return x


def srht_stack(A: np.ndarray, s: int, rng: np.random.Generator) -> np.ndarray:
    """(B, L, c) -> (B, s, c): a subsampled randomised Hadamard transform of its own for every problem."""
    B, L, c = A.shape
    n = power_of_two(L)
    mixed = np.zeros((n, B, c))
    mixed[:L] = (A * signs((B, L), rng)[..., None]).transpose(1, 0, 2)
    mixed = hadamard(mixed.reshape(n, B * c)).reshape(n, B, c)
    drawn = rng.integers(n, size=(B, s))
    return mixed[drawn, np.arange(B)[:, None]] / math.sqrt(s)


class Start(NamedTuple):
    R_inv: np.ndarray  # (B, k, k) upper triangular
    x: np.ndarray  # (B, k)


def from_sketch(SAb: np.ndarray) -> Start:
    """Preconditioner and sketched solution from S [A b], (B, s, k+1).

    A sketch without full rank gives neither: then no preconditioner and x = 0, from where conjugate gradients find the
    shortest solution.
    """
    k = SAb.shape[2] - 1
    R = np.linalg.qr(SAb, mode="r")[:, :k]  # (B, k, k+1): R and Q^T S b
    diagonal = np.abs(np.diagonal(R[..., :k], axis1=1, axis2=2))
    lost = diagonal.min(axis=1) <= 1e-10 * diagonal.max(axis=1)
    R[lost] = np.eye(k, k + 1)
    R_inv = np.linalg.inv(R[..., :k])
    return Start(R_inv, (R_inv @ R[..., k:])[..., 0])


def conjugate_gradients(
    A: np.ndarray, b: np.ndarray, start: Start, x_star: np.ndarray, e: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Solve every problem up to ||A (x - x*)|| <= e ||A x* - b||, or to rounding.

    Args:
        x_star: (B, k) exact solutions, which only the stopping test reads.
        most: steps.

    Returns:
        x (B, k) and the steps taken (B,); a problem that meets its test is left alone from then on.
    """
    x, taken = start.x.copy(), np.zeros(len(A), dtype=int)
    r_star = b - times(A, x_star)  # orthogonal to the range, so r - r* = A (x* - x)
    allowed = np.maximum(e * norm(r_star), ROUNDING * norm(b))
    live, R_inv, x_live = np.arange(len(A)), start.R_inv, x.copy()
    r = b - times(A, x)  # (B, L)
    p = z = times_t(R_inv, times_t(A, r))  # (B, k)
    gamma = (z**2).sum(axis=1)
    for _ in range(most):
        going = (norm(r - r_star) > allowed) & (gamma > NO_GRADIENT)
        if not going.all():
            live, A, R_inv, x_live = live[going], A[going], R_inv[going], x_live[going]
            r, r_star, p, gamma, allowed = r[going], r_star[going], p[going], gamma[going], allowed[going]
        if not len(live):
            break
        d = times(R_inv, p)
        q = times(A, d)
        alpha = gamma / (q**2).sum(axis=1)
        x_live = x_live + alpha[:, None] * d
        r = r - alpha[:, None] * q
        z = times_t(R_inv, times_t(A, r))
        beta, gamma = (z**2).sum(axis=1) / gamma, (z**2).sum(axis=1)
        p = z + beta[:, None] * p
        x[live] = x_live
        taken[live] += 1
    return x, taken


def times(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (A @ x[..., None])[..., 0]


def times_t(A: np.ndarray, r: np.ndarray) -> np.ndarray:
    return (r[:, None] @ A)[:, 0]


def norm(r: np.ndarray) -> np.ndarray:
    return np.sqrt((r**2).sum(axis=1))
