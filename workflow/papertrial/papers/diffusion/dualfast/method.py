"""DualFast: make few-step diffusion samplers better by a correction for what the network gets wrong.

A sampler's error has two parts: the steps are finite (discretization), and the network is not the true score
(approximation), which is the worse the lower the noise. An earlier prediction eps_tau, tau > t, was made at more noise
and is the more trustworthy one, so DualFast moves the present prediction further away from it,
    eps' = (1 + c_t) eps(x_t, t) - c_t eps(x_tau, tau),
and hands eps' to an unchanged solver. c_t rises linearly from 0 in the first step to c in the last; the cache holds raw
predictions, a multistep solver's memory corrected ones. No evaluation is added. The same formula with weights from
the step sizes is Adams-Bashforth, so a gain on a first-order solver alone says nothing about approximation.

Source: 2506.13058.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.multistep import dpmpp3m
from papertrial.methods.samplers import (
    Denoiser,
    Flow,
    Rule,
    ab2,
    ddim,
    dpmpp2m,
    initial_noise,
    solve,
)
from papertrial.models import ddpm2d, edm2d
from papertrial.models.arrays import seeded, to_settings
from papertrial.models.ddpm2d import DDPM_LEVELS
from papertrial.models.plan_tuning import best_plan
from papertrial.models.plane_denoisers import build
from papertrial.models.plane_lab import PlaneLab
from papertrial.models.sampler_lab import SamplerLab, on_grid
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import ode_error

TAU = ("previous", "first")


def dualfast(rule: Rule, c: float, tau: str = "previous") -> Rule:
    """A step of ``rule`` on eps' = (1 + c) eps - c eps_tau, in data prediction x0' = x0 - s c (eps - eps_tau).

    Args:
        c: c_t of this step.
        tau: eps_tau is that of the "previous" or of the "first" step; before there is one, eps' = eps.
    """

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        def corrected(y: Tensor, s: float, label: Tensor | None) -> Tensor:  # of VE coordinates y = x0 + s eps
            x0 = flow.denoise(y, s, label)
            eps = (y - x0) / s
            before = memory.get("eps_tau")
            if before is None or tau == "previous":
                memory["eps_tau"] = eps
            return x0 if before is None else x0 - s * c * (eps - before)

        return rule(replace(flow, denoise=corrected), x, lam, lam_t, memory)

    return step


def ramp(rule: Rule, c: float, tau: str, steps: int) -> list[Rule]:
    """The rules of all steps: c_t = 0, ..., c."""
    return [dualfast(rule, c * i / max(1, steps - 1), tau) for i in range(steps)]


# c1: samplers with and without.


def plane(denoise: Denoiser, p: dict, device: str) -> PlaneLab:
    return PlaneLab(denoise, p["part"], p["n"], p["truth_steps"], p["truth_n"], device)


LABS: dict[str, Callable[[dict, Inputs, str], SamplerLab]] = {
    "fm16": lambda p, inputs, device: SamplerLab(inputs, device),
    "edm2d": lambda p, inputs, device: plane(edm2d.denoiser(inputs.models["edm2d"][p["part"]], device), p, device),
    "exact": lambda p, inputs, device: plane(density(p["part"], torch.float32, device), p, device),
}
BASES = {"ddim": ddim, "dpmpp-2m": dpmpp2m, "ab2": ab2, "dpmpp-3m": dpmpp3m}
SIGN = {"dualfast": 1, "reversed": -1}  # of c; the control makes the correction a step in the wrong direction


def quality(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: FD (SW2 in the plane) and ODE error at each NFE, on the grid that suits the base solver best.

    (c, tau) is chosen for every base and NFE, on tuning seeds.
    """
    lab, rule, n, found = LABS[p["net"]](p, inputs, device), BASES[p["base"]], p["n"], Results([])
    for nfe in p["nfe"]:
        plain = {name: on_grid(rule, name, nfe) for name in p["grids"]}
        name, tried = best_plan(lab, plain, p["grid_seeds"], p["tuning_n"], p["metric"])
        plan, chosen = plain[name], {}
        found.traces += tried
        if method in SIGN:
            levels = plan[1]
            plans = {(c, tau): (ramp(rule, c, tau, nfe - 1), levels) for c in p["c"] for tau in TAU}
            (c, tau), tried = best_plan(lab, plans, p["tuning_seeds"], p["tuning_n"], p["metric"])
            plan = ramp(rule, SIGN[method] * c, tau, nfe - 1), levels
            chosen = {"c": SIGN[method] * c, "tau": TAU.index(tau)}
            found.traces += tried
        for seed in seeds:
            noise, label, _ = lab.start([seed], n)
            x0, counted = lab.sample(plan, noise, label)
            row = {"seed": seed, "nfe": nfe, "evaluations": counted, **chosen, "grid": p["grids"].index(name)}
            found.rows.append({**row, **lab.measure(x0, label, seed)})
    return found


# c2, c3: what the network gets wrong.


def predicting(net: torch.nn.Module) -> Denoiser:
    """A noise predictor as a denoiser of float64 states."""

    def denoise(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            return x - s * net.eps(x.float(), s).double()

    return denoise


def denoiser(p: dict, method: str, inputs: Inputs, device: str) -> Denoiser:
    """ddpm2d as it was learned; the exact answer and the same network before training are controls."""
    state = inputs.models["ddpm2d"][p["part"]]
    makers = {
        "learned": lambda: predicting(ddpm2d.load(state, device)),
        "exact": lambda: density(p["part"], device=device),
        "untrained": lambda: predicting(seeded(lambda: build(to_settings(state["config"])), 1).to(device)),
    }
    return makers[method]()


def decomposition(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: by DDIM from common x_T, A between exact and learned eps with all steps, B(N) between N and all steps.

    N steps visit N evenly spaced indices of the T that the network was trained at; the last one denoises.
    """
    learned, exact, found = denoiser(p, method, inputs, device), density(p["part"], device=device), Results([])
    for seed in seeds:
        noise = initial_noise([seed], p["n"], (2,), torch.float64).to(device)

        def end(denoise: Denoiser, steps: int, noise: Tensor = noise) -> np.ndarray:
            levels = DDPM_LEVELS[np.linspace(len(DDPM_LEVELS) - 1, 0, steps).round().astype(int)]
            return solve(denoise, levels[0] * noise, levels, ddim).cpu().numpy()

        truth = end(learned, p["all"])
        approximation = ode_error(truth, end(exact, p["all"]))["ode_rms"]
        for steps in p["steps"]:
            discretization = ode_error(end(learned, steps), truth)["ode_rms"]
            found.rows.append({"seed": seed, "nfe": steps, "A": approximation, "B": discretization})
    return found


def by_level(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: E |eps_net - eps_exact|^2 at true x_t = x0 + s eps, levels uniform in lam over the network's range."""
    learned, data, found = denoiser(p, method, inputs, device), density(p["part"]), Results([])
    exact = density(p["part"], device=device)
    levels = np.geomspace(DDPM_LEVELS[-1], DDPM_LEVELS[0], p["levels"])
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for i, s in enumerate(levels.tolist()):
            x0 = data.sample(p["n"], generator)
            x = (x0 + s * torch.randn(x0.shape, dtype=x0.dtype, generator=generator)).to(device)
            difference = (learned(x, s, None) - exact(x, s)) / s  # of eps: (n, 2)
            error = difference.square().sum(1).mean().item()
            found.rows.append({"seed": seed, "level": i, "lam": -float(np.log(s)), "error": error})
    return found


MEASURES = {"quality": quality, "decomposition": decomposition, "by-level": by_level}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
