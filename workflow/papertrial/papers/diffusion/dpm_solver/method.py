"""DPM-Solver: sample a diffusion model in 10 to 20 evaluations by integrating exactly what is known of its ODE.

With lam = log(alpha/sigma) the probability-flow ODE has the solution
    x_t = (alpha_t/alpha_s) x_s - alpha_t Int_{lam_s}^{lam_t} e^{-lam} eps(x_lam, lam) dlam:
the linear part and the exponential weight are integrated exactly, and only eps is expanded in lam, to order
k = 1, 2, 3 with one evaluation each. These steps are ``dpm1``, ``dpm2``, ``dpm3`` in methods.samplers, where other
papers find them too; here is what the paper claims about them, measured. Steps are uniform in lam.

Source: Lu et al. 2022 (arXiv 2206.00927).
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import S_MAX, grid
from papertrial.methods.samplers import (
    DPM,
    RK_LAM,
    RK_TIME,
    VE,
    VP,
    Counted,
    Flow,
    Path,
    Rule,
    ancestral,
    ddim,
    dpmpp2m,
    fast_orders,
    initial_noise,
    solve,
)
from papertrial.models.sampler_lab import Plan, SamplerLab, on_grid
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import ode_error


class FirstEps:
    """A flow during one step whose evaluations all count, but return the first one's eps."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.path, self.move, self.first = flow, flow.path, flow.move, None

    def eps(self, x: Tensor, lam: float) -> Tensor:
        if self.first is None:
            self.first = self.flow.eps(x, lam)
        else:
            self.flow.denoise.nfe += 1
        return self.first


def zeroed(rule: Rule) -> Rule:
    """The control: eps_u, eps_u1, eps_u2 replaced by eps_s, so that every difference term is zero."""

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        return rule(FirstEps(flow), x, lam, lam_t, memory)

    return step


STEPS: dict[str, Mapping[int, Rule]] = {"dpm-solver": DPM, "zeroed": {k: zeroed(rule) for k, rule in DPM.items()}}


def fast(nfe: int, rules: Mapping[int, Rule]) -> Plan:
    """Rule "fast": K = nfe - 1 evaluations in steps of order 3 and lower orders at the end; one more denoises."""
    orders = fast_orders(nfe - 1)
    return [rules[k] for k in orders], grid("log", len(orders))


def convergence(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: ODE error at s_min of N steps of order k with an exact score, in float64, without final denoising."""
    exact, found = Counted(density(p["density"], device=device)), Results([])

    def end(noise: Tensor, rule: Rule, steps: int) -> np.ndarray:
        exact.nfe = 0
        return solve(exact, S_MAX * noise, grid("log", steps), rule, final=False).cpu().numpy()

    for seed in seeds:
        noise = initial_noise([seed], p["n"], (2,), torch.float64).to(device)
        truth = end(noise, DPM[3], p["reference_steps"])
        judged = [(k, steps) for k in p["orders"] for steps in p["steps"]]
        printed = [(k, nfe // k) for k in p["orders"] for nfe in p["few_nfe"]]  # too few steps for an order to show
        for table, cells in ((found.rows, judged), (found.traces, printed)):
            for k, steps in cells:
                error = ode_error(end(noise, STEPS[method][k], steps), truth)
                table.append({"seed": seed, "order": k, "nfe": exact.nfe, **error})
    return found


# How a method spends nfe evaluations, the last of which denoises: (nfe, grid, source of further noise) -> plan.
PLANS: dict[str, Callable[[int, str, Callable[[], Tensor]], Plan]] = {
    "dpm-solver": lambda nfe, name, draw: fast(nfe, STEPS["dpm-solver"]),
    "zeroed": lambda nfe, name, draw: fast(nfe, STEPS["zeroed"]),
    "ddim": lambda nfe, name, draw: on_grid(ddim, name, nfe),
    "ancestral": lambda nfe, name, draw: on_grid(ancestral(draw), name, nfe),
    "dpmpp-2m": lambda nfe, name, draw: on_grid(dpmpp2m, name, nfe),
}
ORDER = {"dpm-solver": 3, "zeroed": 3, "ddim": 1, "ancestral": 1, "dpmpp-2m": 2}  # the highest of a method's steps
# What needs no sampling: the network's FD with evaluations to spare, and that of as many real pictures.
GIVEN: dict[str, Callable[[SamplerLab, int, int], Row]] = {
    "reference": lambda lab, seed, n: {"order": 2, **lab.reference(seed, n)},
    "real": lambda lab, seed, n: {"order": 0, "nfe": 0, "fd": lab.judge.floor(seed, n)},
}


def grid_for(lab: SamplerLab, p: dict, nfe: int) -> tuple[str, list[Row]]:
    """The method's grid; where the card gives a choice (DDIM), the best one at this NFE on the tuning seed."""
    grids = p["grids"]
    return (grids[0], []) if len(grids) == 1 else lab.best_grid(ddim, nfe, grids, p["tuning_seed"], p["tuning_n"])


def quality(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: FD of n samples at each NFE."""
    lab, n = SamplerLab(inputs, device), p["n"]
    if method in GIVEN:
        return Results([{"seed": seed, **GIVEN[method](lab, seed, n)} for seed in seeds])
    found = Results([])
    for asked in p["nfe"]:
        noise, label, draw = lab.start(seeds, n)
        name, tried = grid_for(lab, p, asked)
        x0, nfe = lab.sample(PLANS[method](asked, name, draw), noise, label)
        found.traces += tried
        for seed, x, y in zip(seeds, x0.split(n), label.split(n), strict=True):
            found.rows.append({"seed": seed, "order": ORDER[method], "nfe": nfe, **lab.measure(x, y, seed)})
    return found


def budget(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: from which NFE on the FD (and, printed, the ODE error) stays within a bound.

    The list is scanned downwards until both bounds have failed. ``within`` is 1 at an NFE if the bound holds there
    and at all larger ones, so below a failure it is known to be 0.
    """
    lab, n, found = SamplerLab(inputs, device), p["n"], Results([])
    name, _ = grid_for(lab, p, p["grid_nfe"])
    for seed in seeds:
        noise, label, draw = lab.start([seed], n)
        bound = lab.reference(seed, n)["fd"] + p["margin"]
        within = within_ode = True
        for nfe in sorted(p["nfe"], reverse=True):
            if within or within_ode:
                x0, nfe = lab.sample(PLANS[method](nfe, name, draw), noise, label)
                at = lab.measure(x0, label, seed)
                within &= at["fd"] <= bound
                within_ode &= at["ode_rms"] <= p["ode_bound"]
                found.traces.append({"seed": seed, "order": ORDER[method], "nfe": nfe, "bound": bound, **at})
            both = {"within": int(within), "within_ode": int(within_ode)}
            found.rows.append({"seed": seed, "order": ORDER[method], "nfe": nfe, **both})
    return found


# Solvers of order k with N equal steps; RK integrates the whole VP ODE, in lam or in t.
VARIANTS: dict[str, list[Callable[[int, int], tuple[Plan, Path]]]] = {
    "dpm-solver": [lambda k, steps: ((DPM[k], grid("log", steps)), VE)],
    "rk": [
        lambda k, steps: ((RK_LAM[k], grid("log", steps)), VP),
        lambda k, steps: ((RK_TIME[k], grid("time", steps)), VP),
    ],
}


def variant_for(lab: SamplerLab, p: dict, method: str) -> Callable[[int, int], int]:
    """Which variant is best for (order, steps): the one with the smaller ODE error on the tuning seed."""
    variants = VARIANTS[method]
    if len(variants) == 1:
        return lambda k, steps: 0
    noise, label, _ = lab.start([p["tuning_seed"]], p["n"])
    truth, _ = lab.sample((dpmpp2m, grid("karras", p["truth_steps"])), noise, label, final=False)

    def error(variant: int, k: int, steps: int) -> float:
        plan, path = variants[variant](k, steps)
        x, _ = lab.sample(plan, noise, label, path, final=False)
        return ode_error(x.cpu().numpy(), truth.cpu().numpy())["ode_rms"]

    return lambda k, steps: min(range(len(variants)), key=lambda v: error(v, k, steps))


def black_box(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4: ODE error at s_min, without final denoising, of nfe/k equal steps of order k."""
    lab, n, found = SamplerLab(inputs, device), p["n"], Results([])
    noise, label, _ = lab.start(seeds, n)
    choose = variant_for(lab, p, method)
    for k, steps in [(k, nfe // k) for k in p["orders"] for nfe in p["nfe"]]:
        variant = choose(k, steps)
        plan, path = VARIANTS[method][variant](k, steps)
        x, nfe = lab.sample(plan, noise, label, path, final=False)
        for seed, part in zip(seeds, x.split(n), strict=True):
            reference = lab.references[str(seed)]
            error = ode_error(part.cpu().numpy(), reference["ode_x"][:n])
            printed = {"variant": variant, "reference_gap": reference["gap"].item()}
            found.rows.append({"seed": seed, "order": k, "nfe": nfe, **error, **printed})
    return found


MEASURES = {"order": convergence, "quality": quality, "budget": budget, "error": black_box}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
