"""Sparse vectors with Kronecker structure: y = (A_1 x A_2 x A_3) x + noise, x zero outside a product of index sets.

Tensors stand for the vectors, one axis a mode, and several instances are stacked along the first axis:
x (S, N, N, N), y (S, M, M, M), each A_i (S, M, N). The matrix of the whole system is never needed for A x.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class KroneckerInstances:
    A: list[np.ndarray]  # one (S, M, N) a mode
    x: np.ndarray  # (S, N, ..., N)
    y: np.ndarray  # (S, M, ..., M)
    sigma2: np.ndarray  # (S,), the noise variance

    @property
    def support(self) -> np.ndarray:
        return self.x != 0

    def nmse(self, estimate: np.ndarray) -> np.ndarray:
        """||estimate - x||^2 / ||x||^2, (S,)"""
        axes = tuple(range(1, self.x.ndim))
        return (np.abs(estimate - self.x) ** 2).sum(axis=axes) / (np.abs(self.x) ** 2).sum(axis=axes)


def kron_apply(A: Sequence[np.ndarray], X: np.ndarray) -> np.ndarray:
    """(A_1 x ... x A_d) vec X: A_i (S, m_i, n_i), X (S, n_1, ..., n_d) -> (S, m_1, ..., m_d)."""
    S, shape = len(X), [len(X), *(a.shape[1] for a in A)]
    for a in A:  # multiply the first axis and make it the last: after d turns all are in place
        X = (a @ X.reshape(S, a.shape[2], -1)).swapaxes(1, 2)
    return X.reshape(shape)


def outer(factors: Sequence[np.ndarray]) -> np.ndarray:
    """(S, n_i) each -> (S, n_1, ..., n_d)"""
    return reduce(lambda X, f: X[..., None] * f.reshape(len(f), *[1] * (X.ndim - 1), -1), factors)


def dense(A: Sequence[np.ndarray]) -> np.ndarray:
    """The whole matrix of one instance, A_i (m_i, n_i)."""
    return reduce(np.kron, A)


def gaussian_columns(rng: np.random.Generator, M: int, N: int) -> np.ndarray:
    A = rng.standard_normal((M, N))
    return A / np.linalg.norm(A, axis=0)


def steering_vectors(rng: np.random.Generator, M: int, N: int) -> np.ndarray:
    """Responses of M antennas half a wavelength apart, on N angles with evenly spaced sines."""
    sines = -1 + 2 * np.arange(N) / N
    return np.exp(-1j * np.pi * np.outer(np.arange(M), sines)) / np.sqrt(M)


DICTIONARIES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "gaussian": gaussian_columns,
    "steering": steering_vectors,
}


def kronecker_instances(
    seeds: Sequence[int], kind: str, M: int, N: int, K: int, snr: float, modes: int = 3
) -> KroneckerInstances:
    """One instance a seed (and SNR): K of N indices a mode, standard normal values, noise at ``snr`` dB a sample."""
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng([seed, round(10 * snr)])
        A = [DICTIONARIES[kind](rng, M, N) for _ in range(modes)]
        normal = lambda *shape, rng=rng, A=A: _normal(rng, shape, np.iscomplexobj(A[0]))  # noqa: E731
        x = np.zeros([N] * modes, dtype=A[0].dtype)
        x[np.ix_(*(rng.choice(N, K, replace=False) for _ in range(modes)))] = normal(*[K] * modes)
        clean = kron_apply([a[None] for a in A], x[None])[0]
        sigma2 = (np.abs(clean) ** 2).mean() / 10 ** (snr / 10)
        drawn.append((A, x, clean + np.sqrt(sigma2) * normal(*clean.shape), sigma2))
    A, x, y, sigma2 = zip(*drawn, strict=True)
    return KroneckerInstances([np.stack(a) for a in zip(*A, strict=True)], np.stack(x), np.stack(y), np.array(sigma2))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], is_complex: bool) -> np.ndarray:
    """Variance one, in the complex case shared by both parts."""
    if not is_complex:
        return rng.standard_normal(shape)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
