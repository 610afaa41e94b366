"""LML: bend a diffusion sampler's steps by a damped, low-rank guess of the log density's curvature.

Newton's direction -(Hessian of log p)^{-1} score would be more accurate than the score where a density is narrow one
way and wide another. ``direction`` gives an affordable stand-in for it from the noise predictions that a sampler makes
anyway. Where it goes in:
    DDIM          d replaces eps in "the direction to x_t" alone, x0 keeps eps:   x_t = alpha_t x0 + sigma_t d
    DPM-Solver    the whole increment, what is added to (alpha_t/alpha_s) x, is mapped, with the step before's
                  increment as its memory (VP coordinates)
In the first share ``freeze`` of the steps the correction is left out. No evaluation is added.

Source: 2505.24222.
"""

from collections.abc import Callable
from itertools import product
from time import process_time

from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.multistep import dpm3m
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VP, Flow, Rule, ddim, dpmpp2m
from papertrial.models import edm2d
from papertrial.models.plan_tuning import best_plan
from papertrial.models.plane_lab import PlaneLab
from papertrial.models.sampler_lab import Plan, SamplerLab, on_grid
from papertrial.papers.diffusion.lml_diffusion.direction import GEOMETRY, damped, mix
from papertrial.papers.diffusion.lml_diffusion.langevin import accuracy

Correct = Callable[[Tensor, dict], Tensor]  # (e, a solution's memory) -> d


def correction(m: float, kappa: float, active: bool, method: str = "lml") -> Correct:
    """d from e and the e of the step before; e itself while the correction is frozen."""

    def correct(e: Tensor, memory: dict) -> Tensor:
        before, memory["e"] = memory.get("e"), e
        return damped(e, GEOMETRY[method](mix(e, before, kappa)), m) if active else e

    return correct


def in_ddim(correct: Correct) -> Rule:
    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        x0 = flow.x0(x, lam)
        eps = (x - flow.path.alpha(lam) * x0) / flow.path.sigma(lam)
        return flow.path.alpha(lam_t) * x0 + flow.path.sigma(lam_t) * correct(eps, memory)

    return step


def in_increment(rule: Rule) -> Callable[[Correct], Rule]:
    def corrected(correct: Correct) -> Rule:
        def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
            kept = flow.path.alpha(lam_t) / flow.path.alpha(lam) * x
            return kept + correct(rule(flow, x, lam, lam_t, memory) - kept, memory)

        return step

    return corrected


BASES: dict[str, Rule] = {"ddim": ddim, "dpm3": dpm3m, "dpmpp-2m": dpmpp2m}
PLACES: dict[str, Callable[[Correct], Rule]] = {"ddim": in_ddim, "dpm3": in_increment(dpm3m)}
LABS: dict[str, Callable[[dict, Inputs, str], SamplerLab]] = {
    "fm16": lambda p, inputs, device: SamplerLab(inputs, device),
    "edm2d": lambda p, inputs, device: PlaneLab(
        edm2d.denoiser(inputs.models["edm2d"][p["part"]], device), p["part"], p["n"], p["truth_steps"], device=device
    ),
}
Setting = tuple[float, float, float]  # lambda/|e|^2, kappa, freeze


def corrected(p: dict, setting: Setting, name: str, nfe: int, method: str = "lml") -> Plan:
    """nfe - 1 steps with the correction, of which the first share is frozen; the last evaluation denoises."""
    (m, kappa, freeze), steps = setting, nfe - 1
    place = PLACES[p["base"]]
    rules = [place(correction(m, kappa, i >= freeze * steps, method)) for i in range(steps)]
    return rules, grid(name, steps)


class Chosen:
    """The base's grid and the method's setting, both by the samples of a tuning seed at one NFE, kept for all NFE."""

    def __init__(self, lab: SamplerLab, p: dict, method: str) -> None:
        nfe, judge = p["tuning_nfe"], ([p["tuning_seed"]], p["tuning_n"], p["metric"])
        self.p, self.method, self.base = p, method, BASES[p["base"]]
        plans = {name: on_grid(self.base, name, nfe) for name in p["grids"]}
        self.grid, self.tried = best_plan(lab, plans, *judge, path=VP)
        self.setting: Setting | None = None
        if method in GEOMETRY:  # the control takes the setting of the method that it breaks
            settings = product(p["m"], p["kappa"], p["freeze"])
            plans = {setting: corrected(p, setting, self.grid, nfe) for setting in settings}
            self.setting, tried = best_plan(lab, plans, *judge, path=VP)
            self.tried = self.tried + tried

    def plan(self, nfe: int) -> Plan:
        if self.setting is None:
            return on_grid(self.base, self.grid, nfe)
        return corrected(self.p, self.setting, self.grid, nfe, self.method)

    def told(self) -> dict[str, float]:
        names = ("m", "kappa", "freeze")
        return dict(zip(names, self.setting, strict=True)) if self.setting else {}


def quality(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: FD (SW2 in the plane) and ODE error at each NFE."""
    lab = LABS[p["net"]](p, inputs, device)
    chosen = Chosen(lab, p, method)
    found = Results([], traces=chosen.tried)
    for seed in seeds:
        noise, label, _ = lab.start([seed], p["n"])
        for nfe in p["nfe"]:
            x0, counted = lab.sample(chosen.plan(nfe), noise, label, VP)
            row = {"seed": seed, "nfe": nfe, "evaluations": counted, **chosen.told()}
            found.rows.append({**row, **lab.measure(x0, label, seed)})
    return found


def overhead(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: CPU time of sampling one batch without and with the correction, taking turns; and the evaluations."""
    lab, found, nfe = SamplerLab(inputs, device), Results([]), p["nfe"][0]
    plans = {"base": on_grid(BASES[p["base"]], "log", nfe), "lml": corrected(p, tuple(p["setting"]), "log", nfe)}
    for seed in seeds:
        noise, label, _ = lab.start([seed], p["n"])
        count = {name: lab.sample(plan, noise, label, VP)[1] for name, plan in plans.items()}  # and warms up
        found.rows.append({"seed": seed, "nfe": nfe, "evaluations": count["lml"], "evaluations_base": count["base"]})
        for repetition in range(p["repetitions"]):
            spent = {}
            for name, plan in plans.items():
                begun = process_time()
                lab.sample(plan, noise, label, VP)
                spent[name] = process_time() - begun
            found.timings.append({"seed": seed, "repetition": repetition, **spent})
    return found


MEASURES = {
    "quality": quality,
    "overhead": overhead,
    "langevin": lambda p, method, seeds, inputs, device: accuracy(p, method, seeds, device),
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
