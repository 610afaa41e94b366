"""Gaussian mixtures whose score is known at every noise level: diffusion without approximation error.

For x = a x0 + s eps with x0 from a mixture of K Gaussians that share a covariance C, everything that a network would
have to learn has a closed form, and so has the posterior under a linear Gaussian measurement (again a mixture).
``density(name)`` gives the four densities in the plane; a ``Mixture`` itself is a denoiser D(x, s, label).
"""

from collections.abc import Callable
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Mixture:
    """sum_k w_k N(m_k, C).

    Args:
        means: (K, d).
        cov: the shared covariance: a number for c I, or (d, d).
        weights: (K,), positive; equal by default.
        dtype, device: of all results; arguments are expected to have them.
    """

    def __init__(
        self,
        means: Any,
        cov: Any,
        weights: Any = None,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        kind = {"dtype": dtype, "device": device}
        self.means = torch.as_tensor(means, **kind)
        k, d = self.means.shape
        w = torch.ones(k, **kind) if weights is None else torch.as_tensor(weights, **kind)
        self.log_weights = torch.log(w / w.sum())
        cov = torch.as_tensor(cov, **kind)
        isotropic = cov.ndim == 0
        self.cov = cov * torch.eye(d, **kind) if isotropic else cov
        # In the eigenbasis of C every coordinate is diffused by itself.
        self.spectrum, self.basis = (cov.expand(d), torch.eye(d, **kind)) if isotropic else torch.linalg.eigh(cov)
        self.centres = self.means @ self.basis  # (K, d)

    @property
    def weights(self) -> Tensor:
        return self.log_weights.exp()

    def __call__(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        """The denoiser D(x, s) = E[x0 | x0 + s eps = x]; a density in the plane has no labels."""
        return self.x0(x, 1.0, s)

    def sample_labelled(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) draws and (n,) the components they come from."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, device=self.means.device, generator=generator)
        return (self.centres[k] + self.spectrum.sqrt() * z) @ self.basis.T, k

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.sample_labelled(n, generator)[0]

    def _at(self, x: Tensor, a: Any, s: Any) -> tuple[Tensor, Any, Tensor, Tensor]:
        """In the eigenbasis of C: x (n, d), the components' variances (n or 1, d); and log w_k + log N_k(x) (n, K)."""
        a, s = _lift(a, 1), _lift(s, 1)
        z = x @ self.basis
        variance = (a * a * self.spectrum + s * s).reshape(-1, z.shape[1])
        log_joint = self.log_weights - 0.5 * torch.log(2 * pi * variance).sum(1, keepdim=True)
        for j in range(z.shape[1]):  # coordinate by coordinate: (n, K, d) would not fit a cache
            log_joint = log_joint - (z[:, j : j + 1] - a * self.centres[:, j]).square() / (2 * variance[:, j : j + 1])
        return z, a, variance, log_joint

    def logpdf(self, x: Tensor, a: Any = 1.0, s: Any = 0.0) -> Tensor:
        """(n,) log density of a x0 + s eps."""
        return torch.logsumexp(self._at(x, a, s)[3], dim=1)

    def responsibilities(self, x: Tensor, a: Any = 1.0, s: Any = 0.0) -> Tensor:
        """(n, K) probability of every component, given x."""
        return torch.softmax(self._at(x, a, s)[3], dim=1)

    def x0(self, x: Tensor, a: Any, s: Any) -> Tensor:
        """(n, d) E[x0 | x]."""
        z, a, variance, log_joint = self._at(x, a, s)
        centre = torch.softmax(log_joint, dim=1) @ self.centres
        return (centre + a * self.spectrum / variance * (z - a * centre)) @ self.basis.T

    def score(self, x: Tensor, a: Any, s: Any) -> Tensor:
        """(n, d) gradient of the log density of a x0 + s eps."""
        z, a, variance, log_joint = self._at(x, a, s)
        centre = torch.softmax(log_joint, dim=1) @ self.centres
        return ((a * centre - z) / variance) @ self.basis.T

    def eps(self, x: Tensor, a: Any, s: Any) -> Tensor:
        """(n, d) E[eps | x] = -s score."""
        return -_lift(s, 1) * self.score(x, a, s)

    def hessian(self, x: Tensor, a: Any, s: Any) -> Tensor:
        """(n, d, d) second derivative of the log density."""
        _, a, variance, log_joint = self._at(x, a, s)
        r = torch.softmax(log_joint, dim=1)
        centre = r @ self.centres
        spread = torch.einsum("nk,ki,kj->nij", r, self.centres, self.centres) - centre[:, :, None] * centre[:, None, :]
        pull = a / variance  # (n or 1, d)
        h = pull[:, :, None] * spread * pull[:, None, :] - torch.diag_embed(1 / variance)
        return self.basis @ h @ self.basis.T

    def covariance(self, x: Tensor, a: Any, s: Any) -> Tensor:
        """(n, d, d) Cov(x0 | x) = (s/a)^2 (I + s^2 Hessian)."""
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return (_lift(s, 2) / _lift(a, 2)) ** 2 * (eye + _lift(s, 2) ** 2 * self.hessian(x, a, s))

    def posterior(self, A: Tensor, y: Tensor, sy: float) -> "Mixture":
        """The law of x0 given A x0 + sy noise = y, for A (m, d), y (m,)."""
        gram = A @ self.cov @ A.T + sy**2 * torch.eye(len(y), dtype=A.dtype, device=A.device)  # (m, m)
        gain = torch.linalg.solve(gram, A @ self.cov).T  # (d, m)
        surprise = y - self.means @ A.T  # (K, m)
        log_weights = self.log_weights - 0.5 * (surprise * torch.linalg.solve(gram, surprise.T).T).sum(1)
        return Mixture(
            self.means + surprise @ gain.T,
            self.cov - gain @ A @ self.cov,
            torch.softmax(log_weights, 0),
            self.means.dtype,
            str(self.means.device),
        )


def _lift(v: Any, axes: int) -> Any:
    """A level: a number for all points, or (n,) with axes appended to stand beside (n, d) or (n, d, d)."""
    return v.reshape(-1, *[1] * axes) if isinstance(v, Tensor) and v.ndim == 1 else v


def _ring8() -> tuple[np.ndarray, float]:
    angle = np.arange(8) * np.pi / 4
    return 2 * np.stack([np.cos(angle), np.sin(angle)], 1), 0.15


def _grid25() -> tuple[np.ndarray, float]:
    side = np.linspace(-2, 2, 5)
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2), 0.1


def _spiral() -> tuple[np.ndarray, float]:
    t = np.linspace(0.35, 1, 50) * 3 * np.pi
    arm = (2.5 * t / (3 * np.pi))[:, None] * np.stack([np.cos(t), np.sin(t)], 1)
    return np.concatenate([arm, -arm]), 0.08


def _checker() -> tuple[np.ndarray, float]:
    centre = -2 + (np.arange(32) + 0.5) / 8
    x, y = np.meshgrid(centre, centre, indexing="ij")
    dark = (np.floor(x + 2) + np.floor(y + 2)) % 2 == 0
    return np.stack([x[dark], y[dark]], 1), 0.06


DENSITIES: dict[str, Callable[[], tuple[np.ndarray, float]]] = {
    "ring8": _ring8,
    "grid25": _grid25,
    "spiral": _spiral,
    "checker": _checker,
}


def density(name: str, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Mixture:
    """One of the densities in the plane: ``ring8``, ``grid25``, ``spiral``, ``checker``; equal weights."""
    means, sd = DENSITIES[name]()
    return Mixture(means, sd**2, dtype=dtype, device=device)
