"""How good are samples: distances to data (FD, sliced W2, mode weights) and to the ODE's solution."""

from collections.abc import Mapping

import numpy as np


class FrechetDistance:
    """Distance between Gaussians fitted to features of samples and of real data (FID with any features).

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2; the roots by symmetric eigendecomposition, clipped at 0.
    Biased upwards in 1/n: compare only at equal n, and read it beside the distance of as many real samples.

    Args:
        real: (N, d) features of the data that samples are compared with.
    """

    def __init__(self, real: np.ndarray) -> None:
        self.mean, cov = _moments(real)
        value, vector = np.linalg.eigh(cov)
        self.trace = np.trace(cov)
        self.root = (vector * np.sqrt(value.clip(0))) @ vector.T

    def __call__(self, features: np.ndarray) -> float:
        """Of (n, d) features."""
        mean, cov = _moments(features)
        cross = np.sqrt(np.linalg.eigvalsh(self.root @ cov @ self.root).clip(0)).sum()
        return float(np.square(mean - self.mean).sum() + self.trace + np.trace(cov) - 2 * cross)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x, np.float64)
    return x.mean(0), np.cov(x, rowvar=False)


class SlicedW2:
    """2-Wasserstein distance over fixed random directions, the root of the mean square.

    Args:
        reference: (n, d) one fixed draw of the true law.
        directions: how many.
    """

    def __init__(self, reference: np.ndarray, directions: int = 256) -> None:
        v = np.random.default_rng(0).standard_normal((reference.shape[1], directions))
        self.directions = v / np.linalg.norm(v, axis=0)
        self.reference = np.sort(reference @ self.directions, axis=0)

    def __call__(self, samples: np.ndarray) -> float:
        """Of (m, d) samples; if m isn't the reference's n, of the quantile functions on the finer of the two grids."""
        found, real = np.sort(samples @ self.directions, axis=0), self.reference
        if len(found) != len(real):
            at = (np.arange(max(len(found), len(real))) + 0.5) / max(len(found), len(real))
            found, real = (a[(at * len(a)).astype(int)] for a in (found, real))
        return float(np.sqrt(np.square(found - real).mean()))


def mode_tv(samples: np.ndarray, modes: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Total variation between the true weights of modes (K, d) and how often each is the nearest to a sample."""
    distance = ((samples[:, None, :] - modes) ** 2).sum(-1)
    share = np.bincount(distance.argmin(1), minlength=len(modes)) / len(samples)
    return float(0.5 * np.abs(share - (1 / len(modes) if weights is None else weights)).sum())


def distances(x: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) per-sample ODE error: Euclidean for points (n, d), root mean square over pixels for pictures (n, ...)."""
    square = np.square(np.asarray(x, np.float64) - np.asarray(reference, np.float64)).reshape(len(x), -1)
    return np.sqrt(square.sum(1) if np.ndim(x) == 2 else square.mean(1))


def ode_error(x: np.ndarray, reference: np.ndarray) -> Mapping[str, float]:
    """Median and root mean square of ``distances``: near ridges of the density a few points rule the latter."""
    e = distances(x, reference)
    return {"ode_median": float(np.median(e)), "ode_rms": float(np.sqrt(np.square(e).mean()))}
