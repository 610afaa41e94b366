"""Sparse solutions of y = H x + noise: orthogonal matching pursuit, and the lasso by FISTA.

Both take real or complex data.
"""

from collections.abc import Callable

import numpy as np


def omp(H: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """Pick the column that correlates most with the residual, solve least squares on the picked ones; k times.

    Args:
        H: (m, n) with columns of norm one.
        y: (m,).

    Returns:
        x (n,) with k entries.
    """
    picked: list[int] = []
    residual, values = y, np.zeros(0)
    for _ in range(k):
        picked.append(int(np.abs(H.conj().T @ residual).argmax()))
        values = np.linalg.lstsq(H[:, picked], y, rcond=None)[0]
        residual = y - H[:, picked] @ values
    x = np.zeros(H.shape[1], dtype=values.dtype)
    x[picked] = values
    return x


def fista(
    gradient: Callable[[np.ndarray], np.ndarray],
    x0: np.ndarray,
    L: np.ndarray | float,
    threshold: np.ndarray | float,
    iterations: int,
) -> np.ndarray:
    """min f(x) + threshold ||x||_1 by accelerated proximal gradient steps of length 1/L.

    Args:
        gradient: of f.
        x0: any shape; several problems may be stacked if L and threshold broadcast against it.
        L: Lipschitz constant of the gradient.
    """
    x = z = x0
    t = 1.0
    for _ in range(iterations):
        x, previous = shrink(z - gradient(z) / L, threshold / L), x
        t, t_before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        z = x + (t_before - 1) / t * (x - previous)
    return x


def shrink(x: np.ndarray, by: np.ndarray | float) -> np.ndarray:
    """Towards zero by ``by``, phases kept: the proximal map of the l1 norm."""
    size = np.abs(x)
    return x * np.where(size > by, 1 - by / np.where(size > 0, size, 1), 0)
