"""STSL: is a second-order surrogate (guidance.py) a better and cheaper pull towards a measurement than DPS's first?

Here is what the paper claims, measured: on mixtures whose posterior is exact (c1), on pictures at a fraction of the
evaluations (c2, restoration.py), cost and scatter of the trace's estimate (c3), and the bound behind it (c4).
Samplers run in VP coordinates on a grid uniform in time; c3 and c4 take alpha = 1. Pictures are pixels: there is no
latent space.

Source: Rout et al. 2023 (arXiv 2312.00852).
"""

from math import log, pi

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.samplers import Counted, Flow
from papertrial.papers.diffusion.stsl_second_order_tweedie.guidance import (
    Guidance,
    descent,
    score,
    trace_by_differences,
)
from papertrial.papers.diffusion.stsl_second_order_tweedie.inverse import Inverse, case, mixture20
from papertrial.papers.diffusion.stsl_second_order_tweedie.restoration import restoration
from papertrial.papers.diffusion.stsl_second_order_tweedie.sampling import SAMPLERS, Stream, best
from papertrial.testbeds.mixtures import Mixture
from papertrial.testbeds.samplequality import SlicedW2


def exact(target: Mixture, inverse: Inverse, how: None, steps: int, stream: Stream) -> tuple[Tensor, int]:
    """Draws of the posterior itself: how small SW2 can be with as many samples."""
    law = target.posterior(inverse.A, inverse.y, inverse.sy)
    seeded = [torch.Generator(stream.device).manual_seed(seed) for seed in stream.seeds]
    return torch.cat([law.sample(stream.n, g) for g in seeded]), 0


def posterior(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: SW2 of n samples to n draws of the exact posterior, one row an inverse problem."""
    sample = {**SAMPLERS, "exact": exact}[method]

    def distances(name: str, tuning: int, how: Guidance | None, seeds: list[int], n: int) -> tuple[list[float], int]:
        target, inverse = case(name, tuning, device)
        law, d = target.posterior(inverse.A, inverse.y, inverse.sy), target.means.shape[1]
        x, nfe = sample(target, inverse, how, p["steps"], Stream(seeds, n, (d,), target.means.dtype, device))
        truth = [law.sample(n, torch.Generator(device).manual_seed(seed + 10**6)) for seed in seeds]
        both = zip(x.split(n), truth, strict=True)
        return [SlicedW2(t.cpu().numpy())(part.cpu().numpy()) for part, t in both], nfe

    def loss(how: Guidance) -> float:
        seed, n = p["tuning_seed"], p["tuning_n"]
        return float(np.mean([np.log(distances(name, seed, how, [seed], n)[0]) for name in p["tuning_cases"]]))

    how, tried = best(p, loss)
    found = Results([], traces=[{"seed": seed, **row} for seed in seeds[:1] for row in tried])
    for name in p["cases"]:
        sw2, nfe = distances(name, 0, how, seeds, p["n"])
        found.rows += [{"seed": s, "case": name, "sw2": w, "nfe": nfe} for s, w in zip(seeds, sw2, strict=True)]
    target, inverse = case(p["cases"][0], 0, device)
    stream = Stream(seeds[:1], p["shown"], (target.means.shape[1],), target.means.dtype, device)
    samples, _ = sample(target, inverse, how, p["steps"], stream)
    prior = target.sample(p["shown"], torch.Generator(device).manual_seed(0))
    found.state = {"samples": samples.cpu().numpy(), "prior": prior.cpu().numpy()}
    return found


def trace(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: evaluations that the trace adds to a step in d dimensions, and the scatter of its estimate by n probes."""
    found = Results([])
    for seed in seeds:
        for d in p["dims"]:
            spent = []
            for eta_2 in (0.0, 0.1):
                counted = Counted(mixture20(dim=d, device=device))
                x = Stream([seed], 4, (d,), torch.float64, device)()()
                plain = Inverse(torch.eye(d, dtype=x.dtype, device=device), torch.zeros_like(x[0]), 1.0)
                descent(Flow(counted), x, 0.0, plain, Guidance(1.0, eta_2), Stream([seed], 4, (d,), x.dtype, device)())
                spent.append(2 * counted.nfe)  # forward and backward
            found.rows.append({"seed": seed, "d": d, "extra": spent[1] - spent[0]})
        target, lam = mixture20(device=device), -log(p["sigma"])
        stream = Stream([seed], p["n"], (target.means.shape[1],), torch.float64, device)
        noise, probe = stream(), stream(10**6)
        x = target.sample(p["n"], torch.Generator(device).manual_seed(seed)) + p["sigma"] * noise()
        truth = target.hessian(x, 1.0, p["sigma"]).diagonal(dim1=1, dim2=2).sum(1)
        for n in p["probes"]:
            guess = trace_by_differences(Flow(target), x, lam, score(Flow(target), x, lam), n, probe)
            error = (guess / truth - 1).square().mean().sqrt().item()
            found.rows.append({"seed": seed, "n": n, "error": error})
    return found


def log_normal(y: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """log N(y; mean, cov) for y, mean (..., m), cov broadcasting with (..., m, m)."""
    L = torch.linalg.cholesky(cov)
    z = torch.linalg.solve_triangular(L, (y - mean)[..., None], upper=False)[..., 0]
    scale = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * z.square().sum(-1) - scale - 0.5 * y.shape[-1] * log(2 * pi)


def exact_log_likelihood(target: Mixture, x: Tensor, s: Tensor, inverse: Inverse) -> Tensor:
    """(n,): log E N(y; A x0, sy^2 I) over x0 | x0 + s eps = x; y (n, m), s (n,). Given x, x0 is a mixture again."""
    level = s[:, None]
    shrink = target.spectrum / (target.spectrum + level**2)  # (n, d), in the eigenbasis of the shared covariance
    z = (x @ target.basis)[:, None]
    mean = target.centres + shrink[:, None] * (z - target.centres)  # (n, K, d)
    A = inverse.A @ target.basis
    cov = (A * (shrink * level**2)[:, None]) @ A.T + inverse.sy**2 * torch.eye(len(A), dtype=A.dtype, device=A.device)
    component = log_normal(inverse.y[:, None], mean @ A.T, cov[:, None])  # (n, K)
    return torch.logsumexp(target.responsibilities(x, 1.0, s).log() + component, dim=1)


def surrogate(target: Mixture, x: Tensor, s: Tensor, inverse: Inverse) -> tuple[Tensor, Tensor]:
    """(n,): log N(y; A m, sy^2 I) - Tr(Cov) |A|^2 / (2 sy^2), and Tr(Cov), by Tweedie's formulas."""
    m = x + s[:, None] ** 2 * target.score(x, 1.0, s)
    spread = target.covariance(x, 1.0, s).diagonal(dim1=1, dim2=2).sum(1)
    first = log_normal(inverse.y, m @ inverse.A.T, inverse.sy**2 * torch.eye(len(inverse.A)).to(m))
    return first - spread * inverse.norm**2 / (2 * inverse.sy**2), spread


def bound(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4: how often the surrogate exceeds the exact log-likelihood, and whether their gap goes with Tr(Cov)."""
    found = Results([])
    for seed in seeds:
        left, right, spread = [], [], []
        for name in p["cases"]:
            target, inverse = case(name, 0, device)
            rng, n = np.random.default_rng([seed, *name.encode()]), p["draws"]
            x0 = target.sample(n, torch.Generator(device).manual_seed(int(rng.integers(2**31))))
            s = torch.from_numpy(np.exp(rng.uniform(log(p["s_min"]), log(p["s_max"]), n))).to(device)
            eps, noise = (torch.from_numpy(rng.standard_normal((n, k))).to(device) for k in inverse.A.T.shape)
            x = x0 + s[:, None] * eps
            inverse = Inverse(inverse.A, x0 @ inverse.A.T + inverse.sy * noise, inverse.sy)
            low, size = surrogate(target, x, s, inverse)
            left.append(exact_log_likelihood(target, x, s, inverse))
            right.append(low)
            spread.append(size)
        left, right, spread = (torch.cat(z).cpu().numpy() for z in (left, right, spread))
        gap = left - right
        ranks = [z.argsort().argsort() for z in (gap, spread)]
        row = {"holds": float((left >= right - 1e-8 * (1 + np.abs(left))).mean()), "smallest_gap": float(gap.min())}
        row |= {"spearman": float(np.corrcoef(*ranks)[0, 1]), "draws": len(gap)}
        found.rows.append({"seed": seed, **row})
        few = np.random.default_rng(seed).permutation(len(gap))[: p["shown"]]
        found.state |= {f"gap-{seed}": gap[few], f"spread-{seed}": spread[few]}
    return found


MEASURES = {"posterior": posterior, "restoration": restoration, "trace": trace, "bound": bound}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
