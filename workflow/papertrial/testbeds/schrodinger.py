"""Schroedinger bridges whose plan is known, and how far a learned plan is from it.

The bridge between p0 and p1 in R^D at noise eps is the coupling pi* of p0 and p1 that is closest to x -> x + sqrt(eps)
noise; its conditionals are pi*(y|x) ~ exp(<x, y>/eps) v*(y). Where v* is a mixture of Gaussians everything has a
closed form (``Potential``); so has the bridge between two Gaussians (``Linear``). A *plan* is anything with

    moments(x) -> mean (n, D) and covariance (n or 1, D, D) of pi(y|x),      sample(x, rng) -> y (n, D).

Draws come from numpy generators on the CPU, so that they are the same on every device; all is float64.
Sources: Korotin et al. 2023 (arXiv 2310.01174); benchmark with a known plan: Gushchin et al. 2023 (arXiv 2306.10161).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, pi
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from papertrial.testbeds.mixtures import DENSITIES


class Plan(Protocol):
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def sample(self, x: Tensor, rng: np.random.Generator) -> Tensor: ...


def normal(rng: np.random.Generator, *shape: int, device: str | torch.device = "cpu") -> Tensor:
    """Standard normal draws."""
    return torch.from_numpy(rng.standard_normal(shape)).to(device)


@dataclass(frozen=True)
class Diagonal:
    """K matrices S_k = diag(exp(log_s_k)), with log_s (K, D)."""

    log_s: Tensor

    def matrices(self) -> Tensor:
        return torch.diag_embed(self.log_s.exp())

    def log_det(self) -> Tensor:
        return self.log_s.sum(1)  # (K,)

    def times(self, x: Tensor) -> Tensor:
        return x[:, None] * self.log_s.exp()  # (n, K, D), S_k x

    def form(self, x: Tensor) -> Tensor:
        return x.square() @ self.log_s.exp().T  # (n, K), x' S_k x

    def inverse_form(self, y: Tensor, r: Tensor) -> Tensor:
        """(n, K): (y - r_k)' S_k^-1 (y - r_k), multiplied out: (n, K, D) would not fit a cache."""
        p = (-self.log_s).exp()
        return y.square() @ p.T - 2 * y @ (p * r).T + (p * r.square()).sum(1)

    def root_times(self, z: Tensor, k: Tensor) -> Tensor:
        return (0.5 * self.log_s).exp()[k] * z  # (n, D), S_k^1/2 z


@dataclass(frozen=True)
class Full:
    """K matrices S_k = L_k L_k'. ``raw`` (K, D, D) holds L_k below the diagonal and the log of its diagonal on it."""

    raw: Tensor

    @property
    def L(self) -> Tensor:
        return self.raw.tril(-1) + torch.diag_embed(self.raw.diagonal(dim1=1, dim2=2).exp())

    def matrices(self) -> Tensor:
        return self.L @ self.L.mT

    def log_det(self) -> Tensor:
        return 2 * self.raw.diagonal(dim1=1, dim2=2).sum(1)

    def times(self, x: Tensor) -> Tensor:
        return torch.einsum("kij,nj->nki", self.matrices(), x)

    def form(self, x: Tensor) -> Tensor:
        return torch.einsum("kij,ni->nkj", self.L, x).square().sum(2)

    def inverse_form(self, y: Tensor, r: Tensor) -> Tensor:
        gap = (y[:, None] - r).permute(1, 2, 0)  # (K, D, n)
        return torch.linalg.solve_triangular(self.L, gap, upper=False).square().sum(1).T

    def root_times(self, z: Tensor, k: Tensor) -> Tensor:
        return (self.L[k] @ z[..., None])[..., 0]


@dataclass(frozen=True)
class Potential:
    """v(y) = sum_k a_k N(y | r_k, eps S_k), and the plan pi(y|x) = exp(<x, y>/eps) v(y) / c(x) that it stands for.

    log_a (K,), r (K, D).
    """

    log_a: Tensor
    r: Tensor
    S: Diagonal | Full
    eps: float

    def log_v(self, y: Tensor) -> Tensor:
        """(n,)"""
        scale = self.r.shape[1] * log(2 * pi * self.eps) + self.S.log_det()
        return torch.logsumexp(self.log_a - 0.5 * (scale + self.S.inverse_form(y, self.r) / self.eps), dim=1)

    def log_weights(self, x: Tensor) -> Tensor:
        """(n, K): log a_k + (x' S_k x + 2 r_k' x) / (2 eps), the components of pi(.|x) before they are scaled to 1."""
        return self.log_a + (self.S.form(x) + 2 * x @ self.r.T) / (2 * self.eps)

    def log_c(self, x: Tensor) -> Tensor:
        """(n,): log of the integral of exp(<x, y>/eps) v(y)."""
        return torch.logsumexp(self.log_weights(x), dim=1)

    def mean(self, x: Tensor) -> Tensor:
        """(n, D): E[y|x]."""
        w = torch.softmax(self.log_weights(x), dim=1)
        return w @ self.r + (w[..., None] * self.S.times(x)).sum(1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = torch.softmax(self.log_weights(x), dim=1)  # (n, K)
        centre = self.r + self.S.times(x)  # (n, K, D)
        mean = (w[..., None] * centre).sum(1)
        spread = (centre - mean[:, None]) * w.sqrt()[..., None]
        return mean, self.eps * torch.einsum("nk,kij->nij", w, self.S.matrices()) + spread.mT @ spread

    def sample(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        chance = torch.softmax(self.log_weights(x), dim=1).cumsum(1)
        u = torch.from_numpy(rng.random((len(x), 1))).to(x.device)
        k = (chance < u).sum(1).clamp(max=len(self.r) - 1)
        noise = self.S.root_times(normal(rng, *x.shape, device=x.device), k)
        return self.r[k] + self.S.times(x)[torch.arange(len(x)), k] + self.eps**0.5 * noise


@dataclass(frozen=True)
class Linear:
    """y | x ~ N(m + B x, C): the bridge between Gaussians; with B = 0 the independent coupling's Gaussian."""

    m: Tensor  # (D,)
    B: Tensor  # (D, D)
    C: Tensor  # (D, D)

    def mean(self, x: Tensor) -> Tensor:
        return self.m + x @ self.B.T

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.C[None]

    def sample(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        return self.mean(x) + normal(rng, *x.shape, device=x.device) @ torch.linalg.cholesky(self.C).T


def root(C: Tensor) -> Tensor:
    """The symmetric square root of a positive definite matrix."""
    value, vector = torch.linalg.eigh(C)
    return (vector * value.clamp(min=0).sqrt()) @ vector.T


def plan_covariance(S0: Tensor, S1: Tensor, eps: float) -> Tensor:
    """Cov(x, y) of the bridge between N(0, S0) and N(m, S1); Janati et al. 2020 (arXiv 2006.02572)."""
    half = root(S0)
    eye = torch.eye(len(S0), dtype=S0.dtype, device=S0.device)
    inner = root(4 * half @ S1 @ half + eps**2 * eye)
    return 0.5 * (half @ torch.linalg.solve(half, inner, left=False) - eps * eye)


def gaussian_bridge(m0: Tensor, S0: Tensor, m1: Tensor, S1: Tensor, eps: float) -> Linear:
    """The bridge between N(m0, S0) and N(m1, S1)."""
    C = plan_covariance(S0, S1, eps)
    B = torch.linalg.solve(S0, C).T  # C' S0^-1
    return Linear(m1 - B @ m0, B, S1 - B @ C)


@dataclass(frozen=True)
class Pair:
    """Two laws that can be drawn from, and the bridge between them where it is known.

    sample0, sample1: (n, rng) -> (n, D).
    variance: of p1, summed over its coordinates.
    """

    dim: int
    eps: float
    sample0: Callable[[int, np.random.Generator], Tensor]
    sample1: Callable[[int, np.random.Generator], Tensor]
    plan: Plan | None = None
    variance: float | None = None


VARIANCE_DRAWS = 20_000


def mixture_pair(
    dim: int, eps: float, seed: int, components: int = 5, radius: float = 5.0, device: str = "cpu"
) -> Pair:
    """p0 = N(0, I), and the p1 that a random potential leads to.

    a_k = 1/components, r_k uniform on the sphere of the radius, S_k diagonal with entries exp(U[log .5, log 2]).
    """
    rng = np.random.default_rng([seed, dim])
    r = normal(rng, components, dim, device=device)
    r = radius * r / r.norm(dim=1, keepdim=True)
    log_s = torch.from_numpy(rng.uniform(log(0.5), log(2), (components, dim))).to(device)
    plan = Potential(torch.full_like(r[:, 0], -log(components)), r, Diagonal(log_s), eps)

    def sample0(n: int, rng: np.random.Generator) -> Tensor:
        return normal(rng, n, dim, device=device)

    def sample1(n: int, rng: np.random.Generator) -> Tensor:
        return plan.sample(sample0(n, rng), rng)

    return Pair(dim, eps, sample0, sample1, plan, sample1(VARIANCE_DRAWS, rng).var(dim=0).sum().item())


def gaussian_pair(dim: int, eps: float, seed: int, device: str = "cpu") -> Pair:
    """N(0, S0) and N(m, S1), S = Q diag(exp(U[log .25, log 4])) Q' with a random rotation Q, m ~ N(0, I)."""
    rng = np.random.default_rng([seed, dim])

    def covariance() -> Tensor:
        Q = torch.linalg.qr(normal(rng, dim, dim, device=device)).Q
        return (Q * torch.from_numpy(np.exp(rng.uniform(log(0.25), log(4), dim))).to(device)) @ Q.T

    S0, S1, m = covariance(), covariance(), normal(rng, dim, device=device)
    L0, L1 = torch.linalg.cholesky(S0), torch.linalg.cholesky(S1)
    return Pair(
        dim,
        eps,
        lambda n, rng: normal(rng, n, dim, device=device) @ L0.T,
        lambda n, rng: m + normal(rng, n, dim, device=device) @ L1.T,
        gaussian_bridge(torch.zeros_like(m), S0, m, S1, eps),
        torch.trace(S1).item(),
    )


def planar_pair(first: str, second: str, eps: float, device: str = "cpu") -> Pair:
    """From one of testbeds.mixtures' densities in the plane to another; the bridge is not known."""

    def sampler(name: str) -> Callable[[int, np.random.Generator], Tensor]:
        means, sd = DENSITIES[name]()

        def sample(n: int, rng: np.random.Generator) -> Tensor:
            chosen = means[rng.integers(len(means), size=n)]
            return torch.from_numpy(chosen + sd * rng.standard_normal((n, 2))).to(device)

        return sample

    return Pair(2, eps, sampler(first), sampler(second))


def bw2_squared(m1: Tensor, C1: Tensor, m2: Tensor, C2: Tensor) -> Tensor:
    """Squared Bures-Wasserstein distance between Gaussians N(m1, C1) and N(m2, C2), batched; C2 positive definite.

    |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C2^1/2 C1 C2^1/2)^1/2, where the last matrix has the eigenvalues of L' C1 L.
    """
    L = torch.linalg.cholesky(C2)
    cross = torch.linalg.eigvalsh(L.mT @ C1 @ L).clamp(min=0).sqrt().sum(-1)
    trace = (C1 + C2).diagonal(dim1=-2, dim2=-1).sum(-1)
    return (m1 - m2).square().sum(-1) + trace - 2 * cross


def cbw2_uvp(found: Plan, truth: Plan, x: Tensor, variance: float) -> float:
    """100 E_x BW2^2(found(.|x), truth(.|x)) / (variance / 2): percent of the variance left unexplained."""
    return 200 / variance * bw2_squared(*found.moments(x), *truth.moments(x)).mean().item()


def marginal_moments(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of y for x as given."""
    mean, cov = plan.moments(x)
    return mean.mean(0), cov.mean(0) + torch.cov(mean.T, correction=0)


def bw2_uvp(found: Plan, truth: Plan, x: Tensor, variance: float) -> float:
    """The same percentage of the y-marginals' Gaussian distance."""
    return 200 / variance * bw2_squared(*marginal_moments(found, x), *marginal_moments(truth, x)).item()
