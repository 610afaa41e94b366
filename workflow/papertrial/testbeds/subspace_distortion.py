"""How badly a weighted sample of rows keeps the lengths ||A x||_p^p: sup_x | ||S A x||_p^p / ||A x||_p^p - 1 |.

The supremum isn't convex; what is found here is a lower bound, by ascent from many directions: random ones, the
directions in which single rows matter most, and those that the sample stretches and shrinks most in l2.
"""

from typing import NamedTuple

import numpy as np

from papertrial.methods.row_scores import leverage_scores, orthonormal_range, sensitivities


class Subspace(NamedTuple):
    """The range of A (n, d) by its distinct rows, N of them, in coordinates in which A has orthonormal columns."""

    B: np.ndarray  # (N, d) distinct rows
    counts: np.ndarray  # (N,) how often each stands in A
    place: np.ndarray  # (n,) the distinct row that each row of A is
    p: float
    rows: np.ndarray  # (C,) distinct rows of which a maximiser is known: those of most leverage and random ones
    maximisers: np.ndarray  # (C, d) argmax_x |<b_i, x>|^p / ||A x||_p^p


def subspace(A: np.ndarray, p: float, rng: np.random.Generator, candidates: int = 100) -> Subspace:
    """Prepare A for measuring; once for all samples."""
    _, first, place, counts = np.unique(A, axis=0, return_index=True, return_inverse=True, return_counts=True)
    B = orthonormal_range(A)[first]
    by_leverage = np.argsort(-leverage_scores(B))
    others = by_leverage[candidates:]
    rows = np.concatenate([by_leverage[:candidates], rng.permutation(others)[:candidates]])
    Q = orthonormal_range(B)
    x = sensitivities(B, p, rows, counts.astype(float)).x  # in coordinates of Q
    return Subspace(B, counts.astype(float), place, p, rows, x @ np.linalg.lstsq(B, Q, rcond=None)[0].T)


def powers(r: np.ndarray, p: float) -> tuple[np.ndarray, np.ndarray]:
    """|r|^p and sign(r) |r|^(p-1), by squares and roots for the p in use, since general powers are slow."""
    squares, rest = divmod(p - 1, 2)
    size = np.abs(r)
    below = np.sign(r)
    if rest:
        below *= size**rest
    for _ in range(int(squares)):
        below *= size
        below *= size
    return np.multiply(r, below, out=size), below


def distortion(space: Subspace, weights: np.ndarray, rng: np.random.Generator, directions: int = 300) -> float:
    """The largest distortion found, 1 if the sample's rank is too low.

    Args:
        weights: (n,) by which each row's |<a_i, x>|^p is multiplied; 0 for rows that aren't in the sample.
        directions: random ones to start from, beside the maximisers of up to 50 rows in the sample and 50 outside.
    """
    B, counts, p = space.B, space.counts, space.p
    v = np.bincount(space.place, weights, minlength=len(B))  # (N,)
    u = np.bincount(space.place, weights ** (2 / p), minlength=len(B))
    stretch, eigenvectors = np.linalg.eigh(B.T @ (B * u[:, None]))
    if stretch[0] < 1e-9 * stretch[-1]:
        return 1.0
    sampled = v[space.rows] > 0
    known = [np.flatnonzero(sampled)[:50], np.flatnonzero(~sampled)[:50]]
    starts = [rng.standard_normal((directions, B.shape[1])), eigenvectors.T, *(space.maximisers[k] for k in known)]
    return ascend(B, counts, v, np.concatenate(starts).T, p)


CACHED = 1 << 17  # entries of B x that are worked on at a time


def ascend(B: np.ndarray, counts: np.ndarray, v: np.ndarray, x: np.ndarray, p: float, steps: int = 50) -> float:
    """The largest |ratio - 1| on the way of normalised ascent on |log ratio|, ratio = sum v |Bx|^p / sum counts |Bx|^p.

    In single precision. x (d, starts).
    """
    B, counts, v, x = (np.asarray(a, dtype=np.float32) for a in (B, counts, v, x))
    d, width = len(x), max(1, CACHED // len(B))
    sums = np.stack([v, counts])  # (2, N)
    gradients = np.concatenate([B * v[:, None], B * counts[:, None]], axis=1).T.copy()  # (2d, N)
    lengths = np.linspace(0.5, 0, steps, endpoint=False, dtype=np.float32)
    worst = 0.0
    for start in range(0, x.shape[1], width):
        y = x[:, start : start + width]
        for length in (*lengths, 0):
            y = y / np.linalg.norm(y, axis=0)
            size, below = powers(B @ y, p)  # (N, starts) each
            kept, full = sums @ size  # (starts,)
            ratio = kept / full
            worst = max(worst, float(np.abs(ratio - 1).max()))
            if not length:
                break
            g = gradients @ below  # (2d, starts)
            with np.errstate(divide="ignore", invalid="ignore"):  # ratio 0: nowhere to go from there
                g = np.nan_to_num(g[:d] / kept - g[d:] / full) * np.sign(ratio - 1)  # (d, starts), orthogonal to y
            y = y + length * g / np.maximum(np.linalg.norm(g, axis=0), 1e-30)
    return worst
