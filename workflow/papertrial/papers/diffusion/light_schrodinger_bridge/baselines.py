"""Simple plans that LightSB is held against: Gaussian moments, and Sinkhorn between training draws."""

import numpy as np
import torch
from torch import Tensor

from papertrial.methods.sinkhorn import sinkhorn
from papertrial.testbeds.schrodinger import Linear, Pair, gaussian_bridge


def independent(pair: Pair, how: dict, rng: np.random.Generator) -> Linear:
    """y does not depend on x: the mean and covariance of p1."""
    y = pair.sample1(how["moment_draws"], rng)
    return Linear(y.mean(0), torch.zeros_like(torch.cov(y.T)), torch.cov(y.T))


def linear(pair: Pair, how: dict, rng: np.random.Generator) -> Linear:
    """The bridge between the Gaussians with p0's and p1's moments."""
    x, y = pair.sample0(how["moment_draws"], rng), pair.sample1(how["moment_draws"], rng)
    return gaussian_bridge(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T), pair.eps)


class EntropicMap:
    """Sinkhorn's plan between draws y (m, D) and others, carried on to any x by its formula.

    pi(y_j | x) = softmax_j (g_j - |x - y_j|^2 / 2) / eps with the potential g (m,) at the draws.
    """

    def __init__(self, x: Tensor, y: Tensor, eps: float, tol: float, cap: int) -> None:
        self.y, self.eps = y, eps
        uniform = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        found = sinkhorn(self.cost(x).cpu().numpy(), *uniform, 1 / eps, tol, cap)
        self.g, self.marginal_error = torch.from_numpy(found.y).to(y.device), found.errors[-1]

    def cost(self, x: Tensor) -> Tensor:
        return 0.5 * torch.cdist(x, self.y).square()  # (n, m)

    def weights(self, x: Tensor) -> Tensor:
        return torch.softmax((self.g - self.cost(x)) / self.eps, dim=1)

    def mean(self, x: Tensor) -> Tensor:
        return self.weights(x) @ self.y

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weights(x)
        mean, D = weights @ self.y, self.y.shape[1]
        second = weights @ (self.y[:, :, None] * self.y[:, None]).flatten(1)
        return mean, second.reshape(-1, D, D) - mean[:, :, None] * mean[:, None]


def sinkhorn_map(pair: Pair, how: dict, rng: np.random.Generator) -> EntropicMap:
    x, y = pair.sample0(how["draws"], rng), pair.sample1(how["draws"], rng)
    return EntropicMap(x, y, pair.eps, how["tol"], how["cap"])
