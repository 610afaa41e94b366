"""PFGM++: embed N-dimensional data in N + D dimensions and follow an electric field; D -> infinity is diffusion.

By symmetry the D extra coordinates count only through their norm r. Data x is perturbed by the kernel
    p_r(y|x)  proportional to  (|y - x|^2 + r^2)^{-(N+D)/2},
and with the alignment r = s sqrt(D) everything else of a diffusion model is kept: the law of the levels s, the
preconditioning, the weights, the sampler (dy/ds = (y - D(y, s))/s) and its grid. The kernel is a multivariate t,
    y = x + s g sqrt(D/chi2_D),
with g normal and chi2_D one chi-squared number of the sample: so all D share g, and small D has heavy tails. D = inf
leaves y = x + s g.

Source: Xu et al. 2023 (arXiv 2302.04265).
"""

from collections.abc import Callable
from copy import deepcopy
from itertools import product
from math import inf, log, sqrt

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import S_MAX, S_MIN, grid
from papertrial.methods.samplers import balanced_labels, heun, noise_stream, solve
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import EDM, batched
from papertrial.models.picture_denoisers import build, training_pictures
from papertrial.models.training import Loss, Training, fit
from papertrial.testbeds.fashion import pictures

Tail = Callable[[np.random.Generator, int], np.ndarray]  # (rng, n) -> n factors of a kernel's normal noise


def tail(D: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) factors sqrt(D/chi2_D): heavy-tailed for small D, 1 for D = inf."""
    return np.ones(n) if inf == D else np.sqrt(D / rng.chisquare(D, n))


def light(D: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """The control: the variance of the kernel, D/(D - 2), without its tail."""
    return np.full(n, sqrt(D / (D - 2)))


def unaligned(D: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """r = s instead of s sqrt(D)."""
    return tail(D, n, rng) / sqrt(D)


KERNELS = {
    "pfgm-plus-plus": tail,
    "retuned": tail,
    "diffusion": tail,
    "light-tail": light,
    "unaligned": unaligned,
}


def loss_of(kernel: Tail, draw: Callable, how: dict, seed: int, null: int) -> Loss:
    """EDM's loss on y = x + s g factor; data, levels and directions g are the same for every kernel."""
    rng = np.random.default_rng([seed, 1])

    def loss(model: EDM, average: EDM, step: int, generator: torch.Generator) -> Tensor:
        x, label = draw(how["batch"], generator)
        s = (how["log_mean"] + how["log_sd"] * torch.randn(len(x), generator=generator)).exp().to(x.device)
        g = torch.randn(x.shape, generator=generator)
        label = torch.where(torch.rand(len(x), generator=generator).to(x.device) < how["drop_label"], null, label)
        factor = torch.from_numpy(kernel(rng, len(x))).float().reshape(-1, *[1] * (x.ndim - 1))
        return model.loss(x, s, (g * factor).to(x.device), label).mean()

    return loss


def train(kernel: Tail, p: dict, seed: int, inputs: Inputs, device: str) -> EDM:
    """A network trained from scratch; equal seeds give equal initial weights and data order."""
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], p["size"], p["images"], device)
    model = seeded(lambda: build(p["network"], p["sigma_data"]), seed).to(device)
    return fit(model, loss_of(kernel, draw, p, seed, model.net.null), Training.of(p), seed)[0]


def injecting(alpha: float, noise: Callable[[], Tensor], last: float) -> Callable:
    """Heun's step, and after each but the last alpha s eps on top, s the level reached."""

    def step(flow: object, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        x = heun(flow, x, lam, lam_t, memory)
        return x if lam_t >= last else x + alpha * float(np.exp(-lam_t)) * noise()

    return step


def quantised(model: EDM, bits: int) -> EDM:
    """A copy whose weights are rounded, each tensor symmetrically to 2^bits - 1 values."""
    copy = deepcopy(model)
    with torch.no_grad():
        for w in copy.parameters():
            unit = w.abs().max().double() / (2 ** (bits - 1) - 1)
            if unit > 0:
                w.copy_((w.double() / unit).round() * unit)
    return copy


def sample(model: EDM, kernel: Tail, p: dict, seed: int, n: int, alpha: float = 0.0) -> tuple[Tensor, Tensor]:
    """n pictures and their labels: Heun's rule from the kernel around 0 at s_max, the last evaluation denoising."""
    device = next(model.parameters()).device
    s_max = p.get("s_max", S_MAX)
    levels, draw = grid("karras", p["sampling_steps"], s_max), noise_stream([seed], n, (1, p["size"], p["size"]))
    factor = torch.from_numpy(kernel(np.random.default_rng([seed, 2]), n)).float()[:, None, None, None]
    x, label = (s_max * factor * draw()).to(device), balanced_labels([seed], n).to(device)
    rule = injecting(alpha, lambda: draw().to(device), -log(S_MIN)) if alpha else heun
    return solve(batched(model, 1000), x, levels, rule, label), label


def frechet(judge: SampleJudge, model: EDM, kernel: Tail, p: dict, seed: int, n: int, alpha: float = 0.0) -> float:
    x, label = sample(model, kernel, p, seed, n, alpha)
    return judge(x, label.cpu())["fd"]


def kernel_of(method: str, D: float) -> Tail:
    return lambda rng, n: KERNELS[method](D, n, rng)


def robust(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: FD, clean and under six perturbations, for each D and noise seed; ``log_r`` is the mean log ratio."""
    judge, found, n = SampleJudge(inputs.models["clf8"]["0"], device), Results([]), p["n"]
    for seed, D in product(seeds, p["dimensions"]):
        kernel = kernel_of(method, float(D))
        model = train(kernel, p, seed, inputs, device)
        coarse = {bits: quantised(model, bits) for bits in p["bits"]}
        for noise in p["noise_seeds"]:
            clean = frechet(judge, model, kernel, p, noise, n)
            at = {f"fd_noise_{a}": frechet(judge, model, kernel, p, noise, n, a) for a in p["alphas"]}
            at |= {f"fd_bits_{b}": frechet(judge, q, kernel, p, noise, n) for b, q in coarse.items()}
            log_r = float(np.log(np.array(list(at.values())) / clean).mean())
            found.rows.append({"seed": seed, **cell(D, noise), "fd": clean, **at, "log_r": log_r})
        if seed == seeds[0]:
            x, _ = sample(model, kernel, p, p["noise_seeds"][0], 40)
            found.state[f"samples_{D}"] = x.cpu().numpy().astype(np.float16)
    return found


def clean(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: FD without perturbation, of the D that is best on tuning seeds, or of D = inf."""
    judge, found = SampleJudge(inputs.models["clf8"]["0"], device), Results([])

    def quality(D: float, seed: int) -> float:
        kernel = kernel_of(method, D)
        return frechet(judge, train(kernel, p, seed, inputs, device), kernel, p, seed, p["n"])

    offered = [inf] if method == "diffusion" else [float(D) for D in p["offered"]]
    tried = {D: quality(D, p["tuning_seed"]) for D in offered} if len(offered) > 1 else {offered[0]: 0.0}
    best = min(tried, key=tried.get)
    found.traces += [{"seed": p["tuning_seed"], "tried_D": D, "fd": fd} for D, fd in tried.items() if len(tried) > 1]
    chosen = 0.0 if best == inf else best  # rows are finite: 0 stands for the limit
    found.rows += [{"seed": s, **cell("best"), "chosen": chosen, "fd": quality(best, s)} for s in seeds]
    return found


def transfer(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4: FD for shifts of the levels' mean and factors of s_max; (0, 1) is what diffusion uses."""
    judge, found = SampleJudge(inputs.models["clf8"]["0"], device), Results([])
    kernel = kernel_of(method, float(p["dimension"]))
    for seed in seeds:
        trained: dict[float, EDM] = {}
        for shift, factor in p["settings"]:
            if shift not in trained:
                trained[shift] = train(kernel, {**p, "log_mean": p["log_mean"] + shift}, seed, inputs, device)
            fd = frechet(judge, trained[shift], kernel, {**p, "s_max": factor * S_MAX}, seed, p["n"])
            found.rows.append({"seed": seed, **cell(p["dimension"], setting=f"{shift:+g} x{factor:g}"), "fd": fd})
    return found


def exact_denoiser(y: Tensor, data: Tensor, s: float, D: float) -> Tensor:
    """(n, N) E[x | y] for the empirical law of data (m, N), kernel r = s sqrt(D)."""
    square = torch.cdist(y, data).square()
    N = data.shape[1]
    log_weight = -square / (2 * s * s) if inf == D else -(N + D) / 2 * torch.log1p(square / (s * s * D))
    return torch.softmax(log_weight, 1) @ data


def limit(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: rms difference of the exact denoisers for D and for D = inf, at points around the data."""
    found = Results([])
    x = pictures(inputs.datasets["fashion_mnist"]["x_train"][: p["images"]], p["size"])
    data = torch.from_numpy(x).double().flatten(1).to(device)
    for seed in seeds:
        eps = torch.from_numpy(np.random.default_rng(seed).standard_normal(data.shape)).to(device)
        for s, D in product(p["levels"], p["dimensions"]):
            y = data + s * eps
            gap = exact_denoiser(y, data, s, float(D)) - exact_denoiser(y, data, s, inf)
            row = {"seed": seed, **cell(D), "s": float(s), "difference": float(gap.square().mean().sqrt())}
            found.rows.append(row)
    return found


def cell(D: float | str, noise: int = 0, setting: str = "", s: float = 0.0) -> Row:
    """What tells rows apart: dimension, noise seed, setting, level."""
    return {"D": str(D), "noise": noise, "setting": setting, "s": s}


MEASURES = {"robust": robust, "clean": clean, "transfer": transfer, "limit": limit}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
