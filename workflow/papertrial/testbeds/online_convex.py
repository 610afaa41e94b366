"""Streams of random convex losses between stochastic and adversarial, and the regret against the best fixed point.

In round t nature fixes a distribution, the player plays x_t in a ball, f_t is drawn. F_t = E f_t measures:

    Reg_t = sum_{s<=t} F_s(x_s) - min_u sum_{s<=t} F_s(u),
    sigma^2_{1:T} = sum_t max_x E||grad f_t(x) - grad F_t(x)||^2,
    Sigma^2_{1:T} = sum_{t>1} sup_x ||grad F_t(x) - grad F_{t-1}(x)||^2.

Many games are played in lockstep: ``lanes`` is their shape, a seed's games on its last axis; points are (..., *lanes,
d), where leading axes (say, of step sizes) meet the same losses. The noise of a seed depends on nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Stream(Protocol):
    """What a game needs. Rounds count from 1."""

    T: int
    lanes: tuple[int, ...]
    d: int
    radius: float  # of the ball that the points lie in; D = 2 radius
    G: float  # bound on ||grad F_t||
    L: float  # smoothness of F_t

    def gradient(self, t: int, x: np.ndarray) -> np.ndarray: ...  # of f_t, (..., *lanes, d)

    def value(self, t: int, x: np.ndarray) -> np.ndarray: ...  # F_t(x), (..., *lanes)

    def best(self, t: int) -> np.ndarray: ...  # min_u sum_{s<=t} F_s(u), (*lanes)


def ball(x: np.ndarray, radius: float) -> np.ndarray:
    """Euclidean projection of the last axis."""
    norm = np.sqrt(np.einsum("...d,...d->...", x, x))
    return x * (radius / np.maximum(norm, radius))[..., None]


@dataclass(frozen=True)
class Linear:
    """F_t(x) = <mu_t, x>, f_t with a noisy mean: lanes (..., seeds)."""

    means: np.ndarray  # (T, ..., 1, d)
    noise: np.ndarray  # (T, seeds, d), of total variance one
    scale: np.ndarray  # (T, ..., 1, 1), the noise's standard deviation
    G: float = 1.0
    L: float = 0.0
    radius: float = 1.0

    @property
    def T(self) -> int:
        return len(self.means)

    @property
    def d(self) -> int:
        return self.means.shape[-1]

    @property
    def lanes(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.means.shape[1:], self.noise.shape[1:], self.scale.shape[1:])[:-1]

    def gradient(self, t: int, x: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.means[t - 1] + self.scale[t - 1] * self.noise[t - 1], x.shape)

    def value(self, t: int, x: np.ndarray) -> np.ndarray:
        return np.einsum("...d,...d->...", np.broadcast_to(self.means[t - 1], x.shape), x)

    def best(self, t: int) -> np.ndarray:
        sums = np.broadcast_to(self.means[:t].sum(axis=0), (*self.lanes, self.d))
        return -self.radius * np.linalg.norm(sums, axis=-1)

    def variation(self) -> tuple[np.ndarray, np.ndarray]:
        """sigma^2_{1:T} and Sigma^2_{1:T}, each (*lanes)."""
        sigma2 = (self.scale[..., 0] ** 2).sum(axis=0)
        Sigma2 = ((self.means[1:] - self.means[:-1]) ** 2).sum(axis=(0, -1))
        return np.broadcast_to(sigma2, self.lanes), np.broadcast_to(Sigma2, self.lanes)


def rotating(seeds: Sequence[int], T: int, periods: Sequence[float], sigmas: Sequence[float]) -> Linear:
    """mu_t = (cos 2 pi t/P, sin 2 pi t/P) + (1, 0)/sqrt(T) on the unit disc; lanes (periods, sigmas, seeds).

    The drift is what staying at 0 pays for; Sigma_t = 2 sin(pi/P).
    """
    angle = 2 * np.pi * np.arange(1, T + 1)[:, None] / np.asarray(periods, dtype=float)
    means = np.stack([np.cos(angle) + T**-0.5, np.sin(angle)], axis=-1)[:, :, None, None]  # (T, P, 1, 1, 2)
    scale = np.broadcast_to(np.asarray(sigmas, dtype=float)[:, None, None], (T, 1, len(sigmas), 1, 1))
    return Linear(means, unit_noise(seeds, T, 2), scale)


def fading_noise(seeds: Sequence[int], T: int, power: float) -> Linear:
    """F(x) = x_1 / sqrt(T), the same in all rounds, with noise of variance t^power."""
    means = np.broadcast_to(np.array([T**-0.5, 0.0]), (T, 1, 2))
    scale = np.arange(1, T + 1)[:, None, None] ** (power / 2)
    return Linear(means, unit_noise(seeds, T, 2), scale, G=T**-0.5)


def unit_noise(seeds: Sequence[int], T: int, d: int) -> np.ndarray:
    """(T, seeds, d), Gaussian, E||.||^2 = 1."""
    draws = [np.random.default_rng([seed, T]).standard_normal((T, d)) / np.sqrt(d) for seed in seeds]
    return np.stack(draws, axis=1)


class IndefiniteQuadratics:
    """f_t(x) = x^T (A + E_t) x / 2 + <e_1/sqrt(T) + n_t, x>: convex in the mean only; lanes (scales, seeds).

    A = diag(0, 1/4, 1/2, 3/4, 1); E_t symmetric and n_t have Gaussian entries of s.d. s.
    """

    d, radius, L = 5, 1.0, 1.0

    def __init__(self, seeds: Sequence[int], T: int, scales: Sequence[float]) -> None:
        self.T, self.lanes = T, (len(scales), len(seeds))
        self.s = np.asarray(scales, dtype=float)[:, None]
        self.A = np.diag(np.linspace(0, 1, 5))
        self.drift = np.eye(5)[0] / np.sqrt(T)
        self.G = np.sqrt(1 + 1 / T)  # at x = e_5
        drawn = np.stack([np.random.default_rng([seed, T]).standard_normal((T, 5, 6)) for seed in seeds], axis=1)
        upper = np.triu(drawn[..., :5])
        self.E = upper + np.triu(drawn[..., :5], 1).swapaxes(-1, -2)  # (T, seeds, 5, 5), to be scaled by s
        self.n = drawn[..., 5]  # (T, seeds, 5)

    def gradient(self, t: int, x: np.ndarray) -> np.ndarray:
        noise = (self.E[t - 1] @ x[..., None])[..., 0] + self.n[t - 1]
        return x @ self.A + self.drift + self.s[..., None] * noise

    def value(self, t: int, x: np.ndarray) -> np.ndarray:
        return 0.5 * (x**2) @ np.diag(self.A) + x @ self.drift

    def best(self, t: int) -> np.ndarray:
        return np.full(self.lanes, -t / np.sqrt(self.T))  # at -e_1, where A does not reach

    def variation(self) -> tuple[np.ndarray, np.ndarray]:
        """E||E_t x||^2 = 5 s^2 ||x||^2, and as much from n_t; F_t never moves."""
        return np.broadcast_to(self.T * 10 * self.s**2, self.lanes), np.zeros(self.lanes)

    def indefinite(self) -> np.ndarray:
        """Share of rounds in which f_t is not convex, (*lanes)."""
        least = [np.linalg.eigvalsh(self.A + s * self.E)[..., 0] for s in self.s[:, 0]]
        return np.mean(np.array(least) < 0, axis=1)


class NoisyTarget:
    """f_t(x) = ||x - z_t||^2 / 2 on the unit disc, z_t = (0.3, -0.2) + scale_t n_t; lanes (seeds)."""

    d, radius, L = 2, 1.0, 1.0
    strong = 1.0  # convexity

    def __init__(self, seeds: Sequence[int], scale: np.ndarray) -> None:
        self.T, self.lanes = len(scale), (len(seeds),)
        self.z = np.array([0.3, -0.2])
        self.G = 1 + float(np.linalg.norm(self.z))
        draws = [np.random.default_rng([seed, self.T]).standard_normal((self.T, 2)) for seed in seeds]
        self.targets = self.z + scale[:, None, None] * np.stack(draws, axis=1)  # (T, seeds, 2)

    def gradient(self, t: int, x: np.ndarray) -> np.ndarray:
        return x - self.targets[t - 1]

    def value(self, t: int, x: np.ndarray) -> np.ndarray:
        return 0.5 * ((x - self.z) ** 2).sum(axis=-1)  # up to the noise's variance, the same for every x

    def best(self, t: int) -> np.ndarray:
        return np.zeros(self.lanes)


def burst(seeds: Sequence[int], T: int, sd: float) -> NoisyTarget:
    """Noise of that s.d. in each coordinate in the 20 rounds from T/20 on, none else."""
    t = np.arange(1, T + 1)
    return NoisyTarget(seeds, np.where((t >= T // 20) & (t < T // 20 + 20), sd, 0.0))


def stationary(seeds: Sequence[int], T: int, sd: float) -> NoisyTarget:
    return NoisyTarget(seeds, np.full(T, sd))


class Classification:
    """Logistic losses of examples that come one a round, F_t = f_t; lanes (seeds).

    ``order`` (seeds, T) indexes the rows of x, which have norm at most one; y is in {-1, 1}.
    """

    G, L = 1.0, 0.25

    def __init__(self, x: np.ndarray, y: np.ndarray, order: np.ndarray, radius: float) -> None:
        self.yx = (y[:, None] * x)[order].swapaxes(0, 1)  # (T, seeds, d)
        self.T, self.lanes, self.d, self.radius = order.shape[1], (len(order),), x.shape[1], radius

    def gradient(self, t: int, x: np.ndarray) -> np.ndarray:
        z = self.yx[t - 1]
        return -(0.5 - 0.5 * np.tanh((z * x).sum(axis=-1) / 2))[..., None] * z

    def value(self, t: int, x: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, -(self.yx[t - 1] * x).sum(axis=-1))

    def best(self, t: int) -> np.ndarray:
        """By accelerated projected gradient, all seeds together."""
        seen = self.yx[:t].swapaxes(0, 1)  # (seeds, t, d)
        u = v = np.zeros((*self.lanes, self.d))
        step = 1 / (self.L * np.linalg.norm(seen, 2, axis=(1, 2)) ** 2)[:, None]
        for k in range(3000):
            margin = np.einsum("std,sd->st", seen, v)
            slope = -np.einsum("st,std->sd", 0.5 - 0.5 * np.tanh(margin / 2), seen)
            u, before = ball(v - step * slope, self.radius), u
            v = u + k / (k + 3) * (u - before)
        return np.logaddexp(0, -np.einsum("std,sd->st", seen, u)).sum(axis=1)
