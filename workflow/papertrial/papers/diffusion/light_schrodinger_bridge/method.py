"""LightSB: learn a Schroedinger bridge in minutes on a CPU, as the minimum of one plain expectation.

With the potential v_theta(y) = sum_k a_k N(y | r_k, eps S_k) the plan, its normaliser c_theta(x) and the drift of the
bridge have closed forms (testbeds.schrodinger.Potential), and
    L(theta) = E_{x ~ p0} log c_theta(x) - E_{y ~ p1} log v_theta(y)
is, up to a constant, KL(pi* || pi_theta): no adversary, no simulation, independent draws of p0 and p1 suffice.

Source: Korotin et al. 2023 (arXiv 2310.01174).
"""

from collections.abc import Callable
from math import log, sqrt
from time import process_time

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.sinkhorn import sinkhorn
from papertrial.papers.diffusion.light_schrodinger_bridge.neural import Drift, bridge_matching, path_moments
from papertrial.testbeds.schrodinger import (
    Diagonal,
    Full,
    Linear,
    Pair,
    Plan,
    Potential,
    bw2_squared,
    bw2_uvp,
    cbw2_uvp,
    gaussian_bridge,
    gaussian_pair,
    mixture_pair,
    normal,
    planar_pair,
)

Objective = Callable[[Potential, Tensor, Tensor], Tensor]


def light(v: Potential, x: Tensor, y: Tensor) -> Tensor:
    """L(theta) of draws x (n, D) of p0 and y (m, D) of p1."""
    return v.log_c(x).mean() - v.log_v(y).mean()


def without_x(v: Potential, x: Tensor, y: Tensor) -> Tensor:
    """The control: log c at x = 0 only, which is maximum likelihood of the mixture v for p1."""
    return v.log_c(torch.zeros_like(x[:1])).mean() - v.log_v(y).mean()


OBJECTIVES: dict[str, Objective] = {"lightsb": light, "lightsb-k10": light, "no-x": without_x}
COVARIANCES = {"diagonal": (Diagonal, lambda r: torch.zeros_like(r)), "full": (Full, lambda r: torch.diag_embed(0 * r))}


def stream(seed: int, dim: int, purpose: int) -> np.random.Generator:
    """Random numbers of a seed: 1 for training, 2 for what a plan is tested on."""
    return np.random.default_rng([seed, dim, purpose])


def fit(pair: Pair, how: dict, rng: np.random.Generator, objective: Objective = light) -> Potential:
    """Minimise the objective by Adam over log a (K,), r (K, D) and the logs in S, with fresh draws at every step."""
    r = pair.sample1(how["K"], rng)  # the components start at draws of p1, S_k = I
    shape, start = COVARIANCES[how["covariance"]]
    theta = [torch.full_like(r[:, 0], -log(how["K"])), r, start(r)]
    for part in theta:
        part.requires_grad_()
    v = Potential(theta[0], theta[1], shape(theta[2]), pair.eps)
    adam = torch.optim.Adam(theta, how["lr"], fused=True)
    for step in range(how["steps"]):
        loss = objective(v, pair.sample0(how["batch"], rng), pair.sample1(how["batch"], rng))
        adam.param_groups[0]["lr"] = how["lr"] * min(1.0, (1 - step / how["steps"]) / how["decay"])
        adam.zero_grad()
        loss.backward()
        adam.step()
    log_a, r, raw = (part.detach() for part in theta)
    return Potential(log_a, r, shape(raw), pair.eps)


def drift(v: Potential, x: Tensor, t: float) -> Tensor:
    """g(x, t) (n, D) of the bridge dX = g dt + sqrt(eps) dW from x at time 0 to v's plan at time 1; S diagonal.

    eps grad_x {-|x|^2/(2 eps (1-t)) + log sum_k a_k N(r_k | 0, eps S_k) |A_k|^-1/2 exp(h_k' A_k^-1 h_k / 2)}
    = (E[X_1 | X_t = x] - x) / (1 - t), where component k of X_1 has mean A_k^-1 h_k.
    """
    s = v.eps * v.S.log_s.exp()  # (K, D), eps S_k
    A = t / (v.eps * (1 - t)) + 1 / s
    h = x[:, None] / (v.eps * (1 - t)) + v.r / s  # (n, K, D)
    log_w = v.log_a + 0.5 * (h.square() / A - v.r.square() / s - (s * A).log()).sum(2)
    end = (torch.softmax(log_w, dim=1)[..., None] * h / A).sum(1)
    return (end - x) / (1 - t)


def paths(v: Potential, x: Tensor, steps: int, rng: np.random.Generator) -> Tensor:
    """(steps + 1, n, D): Euler-Maruyama paths of the bridge from x."""
    found = [x]
    for i in range(steps):
        x = x + drift(v, x, i / steps) / steps + sqrt(v.eps / steps) * normal(rng, *x.shape, device=x.device)
        found.append(x)
    return torch.stack(found)


class EntropicMap:
    """The plan of Sinkhorn's potentials between training draws, carried on to new x by its formula.

    x (n, D) and y (m, D): the draws; the plan is discrete, with weights softmax_j (g_j - |x - y_j|^2/2) / eps.
    """

    def __init__(self, x: Tensor, y: Tensor, eps: float, tol: float, cap: int) -> None:
        self.y, self.eps = y, eps
        weight = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
        found = sinkhorn(self.cost(x).cpu().numpy(), *weight, 1 / eps, tol, cap)
        self.g, self.sweeps = torch.from_numpy(found.y).to(y.device), len(found.errors)

    def cost(self, x: Tensor) -> Tensor:
        return 0.5 * torch.cdist(x, self.y).square()  # (n, m)

    def weights(self, x: Tensor) -> Tensor:
        return torch.softmax((self.g - self.cost(x)) / self.eps, dim=1)

    def mean(self, x: Tensor) -> Tensor:
        return self.weights(x) @ self.y

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(x)
        second = self.weights(x) @ (self.y[:, :, None] * self.y[:, None]).flatten(1)
        return mean, second.reshape(len(x), *2 * [x.shape[1]]) - mean[:, :, None] * mean[:, None]


def by_light(pair: Pair, p: dict, method: str, rng: np.random.Generator) -> Plan:
    return fit(pair, p, rng, OBJECTIVES[method])


def by_moments(pair: Pair, p: dict, method: str, rng: np.random.Generator) -> Plan:
    """The bridge between the Gaussians of p0's and p1's moments, or with their independent coupling."""
    x, y = pair.sample0(p["moment_draws"], rng), pair.sample1(p["moment_draws"], rng)
    if method == "independent":
        return Linear(y.mean(0), torch.zeros_like(torch.cov(x.T)), torch.cov(y.T))
    return gaussian_bridge(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T), pair.eps)


def by_sinkhorn(pair: Pair, p: dict, method: str, rng: np.random.Generator) -> Plan:
    return EntropicMap(pair.sample0(p["n"], rng), pair.sample1(p["n"], rng), pair.eps, p["tol"], p["cap"])


SOLVERS: dict[str, Callable[[Pair, dict, str, np.random.Generator], Plan]] = {
    **dict.fromkeys(OBJECTIVES, by_light),
    **dict.fromkeys(("independent", "linear"), by_moments),
    "sinkhorn": by_sinkhorn,
}
FAMILIES = {"mixture": mixture_pair, "gaussian": gaussian_pair}
