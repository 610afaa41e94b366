"""GMRES (Saad and Schultz 1986), one iterate at a time, so that the caller decides when to stop."""

from collections.abc import Iterator

import numpy as np
from scipy.linalg import solve_triangular


def gmres(A: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """The minimiser of ||A z - b|| over the Krylov spaces of growing dimension, from z = 0, without restarts.

    Ends where the space stops growing, with n dimensions at the latest.
    """
    n, beta = len(b), np.linalg.norm(b)
    V, R = np.zeros((n + 1, n)), np.zeros((n, n))  # rows of V are the basis; R is triangular
    V[0] = b / beta
    rotations: list[tuple[float, float]] = []
    right = [beta]  # the rotated beta e_1
    for j in range(n):
        v = A @ V[j]
        h = V[: j + 1] @ v
        v = v - h @ V[: j + 1]
        again = V[: j + 1] @ v  # orthogonalise twice
        v, h = v - again @ V[: j + 1], h + again
        length = np.linalg.norm(v)
        for i, (cosine, sine) in enumerate(rotations):
            h[i], h[i + 1] = cosine * h[i] + sine * h[i + 1], cosine * h[i + 1] - sine * h[i]
        r = np.hypot(h[j], length)
        if r == 0:
            return
        rotations.append((h[j] / r, length / r))
        h[j] = r
        right[j:] = [rotations[j][0] * right[j], -rotations[j][1] * right[j]]
        R[: j + 1, j] = h
        yield solve_triangular(R[: j + 1, : j + 1], right[: j + 1], check_finite=False) @ V[: j + 1]
        if length <= 1e-14 * r:
            return
        V[j + 1] = v / length
