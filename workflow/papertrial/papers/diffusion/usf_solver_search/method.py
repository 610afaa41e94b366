"""USF: find, for a network and a small number of evaluations, a solver that changes from step to step.

Sampling solves an ODE whose exact solution over a step is a mean of the network's outputs. Every training-free solver
is a choice of how that mean is approximated, made once for all steps. Here the choice is free at every step
(``schedules``), and a search with a learned predictor finds good ones (``search``). What is measured: FD of the
schedules found against the best fixed solvers (c1), what per-step freedom is worth without approximation error of a
network (c2), what the predictor is worth (c3), and how many evaluations are saved (c4).

Fitness is always taken on noise, and against real pictures, that the reported numbers never see: a search seed k has
its noise from seed 100 + k and the first half of the test pictures; reports use fresh noise and the second half.

Source: Liu et al. 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models".
"""

from collections.abc import Callable
from functools import cache
from itertools import product
from math import exp

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import S_MAX, grid
from papertrial.methods.samplers import DPM, Counted, dpmpp2m, initial_noise, solve
from papertrial.models.sampler_lab import SamplerLab
from papertrial.papers.diffusion.usf_solver_search.schedules import (
    Decision,
    Schedule,
    Space,
    constants,
    fixed,
    jitter,
    redraw,
    shift_order,
    swap_type,
    toggle_corrector,
)
from papertrial.papers.diffusion.usf_solver_search.search import (
    Fitness,
    Proposal,
    at_random,
    best,
    climb,
    predicted,
    search,
)
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import FrechetDistance, ode_error

TWO_M = Decision(order=2, midpoint=True)
EVERYWHERE = (swap_type, shift_order, toggle_corrector, redraw)  # what moves where the levels stay


def search_noise(seed: int) -> int:
    return 100 + seed


class Bench:
    """The network fm8; FD against the first half of the test pictures for searching, the second for reporting."""

    def __init__(self, inputs: Inputs, device: str) -> None:
        self.lab = SamplerLab(inputs, device, "fm8", "256-0")
        real = self.lab.judge.test_features
        half = len(real) // 2
        self.search_distance, self.report_distance = FrechetDistance(real[:half]), FrechetDistance(real[half:])
        self.truth = cache(self._truth)

    def sample(self, schedule: Schedule, seed: int, n: int) -> tuple[Tensor, Tensor]:
        """(n, 1, 8, 8) pictures from a noise seed, and the labels they were asked for."""
        noise, label, _ = self.lab.start([seed], n)
        x0, nfe = self.lab.sample(schedule.plan, noise, label)
        assert nfe == schedule.nfe, f"{nfe} evaluations were counted, {schedule.nfe} declared"
        return x0, label

    def _truth(self, seed: int, n: int, steps: int) -> np.ndarray:
        noise, label, _ = self.lab.start([seed], n)
        return self.lab.sample((dpmpp2m, grid("karras", steps)), noise, label)[0].cpu().numpy()

    def search_fd(self, p: dict, seed: int) -> Fitness:
        """FD on the search noise of a search seed."""

        def fitness(schedule: Schedule) -> float:
            x0, _ = self.sample(schedule, search_noise(seed), p["search_n"])
            return self.search_distance(self.lab.judge.classify(x0)[0])

        return fitness

    def report(self, x0: Tensor, label: Tensor) -> Row:
        """What is reported of samples."""
        features, probability = self.lab.judge.classify(x0)
        agreed = probability.argmax(1) == label.cpu().numpy()
        return {"fd": self.report_distance(features), "accuracy": float(agreed.mean())}

    def floor(self, seed: int, n: int) -> float:
        """The FD of n real training pictures."""
        real = self.lab.judge.train_features
        return self.report_distance(real[np.random.default_rng(seed).permutation(len(real))[:n]])

    def ode_rms(self, schedule: Schedule, seed: int, p: dict) -> float:
        """Distance to the solution of the ODE from the first noises of a seed."""
        truth = self.truth(seed, p["truth_n"], p["truth_steps"])
        x0, _ = self.sample(schedule, seed, p["truth_n"])
        return ode_error(x0.cpu().numpy(), truth)["ode_rms"]


def s3(
    p: dict,
    space: Space,
    fitness: Fitness,
    leader: Schedule,
    rng: np.random.Generator,
    propose: Proposal | None = None,
) -> dict[Schedule, float]:
    """{schedule: fitness}: a pool of the leader and random schedules, then rounds of proposals (by default S^3's)."""
    pool = [leader, *at_random(space, {leader}, p["pool"] - 1, rng)]
    return search(space, fitness, pool, propose or predicted(p["candidates"]), [p["per_round"]] * p["rounds"], rng)


def best_fixed(nfe: int, fitness: Fitness) -> Schedule:
    return min(fixed(nfe), key=fitness)


# How a method arrives at its schedule: (p, nfe, fitness, rng) -> schedule.


def searched(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    return best(s3(p, Space(nfe), fitness, best_fixed(nfe, fitness), rng))


def fixed_solver(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    return best_fixed(nfe, fitness)


def levels_only(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    """The same search over time points, the solver being 2M."""
    leader = min((s for s, name in fixed(nfe).items() if name.startswith("2M")), key=fitness)
    return best(s3(p, Space(nfe, (jitter,), TWO_M), fitness, leader, rng))


def uninformed(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    """The control: fitness is permuted among the evaluated schedules before every selection.

    Nothing of it is left then, so it need not be measured: any distinct values do.
    """
    space, seen = Space(nfe), rng.permutation
    propose = predicted(p["candidates"], seen=seen)
    first, *_ = at_random(space, {}, 1, rng)
    return best(s3(p, space, lambda schedule: rng.random(), first, rng, propose), seen)


CHOICES = {"usf": searched, "fixed": fixed_solver, "levels-only": levels_only, "permuted": uninformed}


def quality(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: FD of the chosen schedule, on fresh noise and other real pictures."""
    bench, found = Bench(inputs, device), Results([])
    for seed, nfe in product(seeds, p["nfe"]):
        fitness = cache(bench.search_fd(p, seed))
        schedule = CHOICES[method](p, nfe, fitness, np.random.default_rng([seed, nfe]))
        found.traces += described(schedule, seed)
        for noise in p["noise"]:
            x0, label = bench.sample(schedule, noise, p["n"])
            row = {"seed": seed, "nfe": nfe, "noise": noise, "ode_rms": bench.ode_rms(schedule, noise, p)}
            found.rows.append(row | bench.report(x0, label))
            found.state.setdefault(f"samples-{nfe}-{seed}", x0[:10, 0].cpu().numpy())
    return found


def real(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The FD of as many real pictures."""
    bench = Bench(inputs, device)
    cells = product(seeds, p["noise"])
    return Results([{"seed": s, "nfe": 0, "noise": k, "fd": bench.floor(k, p["n"])} for s, k in cells])


def described(schedule: Schedule, seed: int) -> list[Row]:
    """A row for each step."""
    return [
        {
            "seed": seed,
            "nfe": schedule.nfe,
            "step": i,
            "level": exp(-lam),
            "output": "data" if d.data else "noise",
            "order": d.order,
            "inner": int(d.inner),
            "skip": d.skip,
            "midpoint": int(d.midpoint),
            "corrected": int(d.correct),
        }
        for i, (d, lam) in enumerate(zip(schedule.steps, schedule.lams, strict=False))
    ]


# What is evaluated next: (p, rng of the control) -> proposal.
PROPOSALS: dict[str, Callable] = {
    "usf": lambda p, rng: predicted(p["candidates"]),
    "random": lambda p, rng: at_random,
    "misled": lambda p, rng: predicted(p["candidates"], taught=rng.permutation),
}


def efficiency(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: the best search FD after a number of true evaluations; all methods start from the same pool."""
    bench, found = Bench(inputs, device), Results([])
    for seed, nfe in product(seeds, p["nfe"]):
        fitness, rng = cache(bench.search_fd(p, seed)), np.random.default_rng([seed, nfe])
        propose = PROPOSALS[method](p, np.random.default_rng([seed, nfe, 1]))
        values = list(s3(p, Space(nfe), fitness, best_fixed(nfe, fitness), rng, propose).values())
        so_far = [{"seed": seed, "nfe": nfe, "evaluated": m, "fd": min(values[:m])} for m in range(1, len(values) + 1)]
        found.rows += [so_far[m - 1] for m in p["evaluated"]]
        found.traces += so_far[p["pool"] - 1 :: 5]
    return found


def speed(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4: how many evaluations the best fixed solver needs for the ODE error of a searched schedule."""
    bench, found = Bench(inputs, device), Results([])

    def fresh_error(schedule: Schedule) -> float:
        return float(np.sqrt(np.mean([bench.ode_rms(schedule, noise, p) ** 2 for noise in p["noise"]])))

    for seed in seeds:
        fitness, error = cache(lambda s, seed=seed: bench.ode_rms(s, search_noise(seed), p)), {}
        for nfe in p["nfe"]:
            error[nfe] = fresh_error(searched(p, nfe, fitness, np.random.default_rng([seed, nfe])))
            found.traces.append({"seed": seed, "nfe": nfe, "solver": "searched", "ode_rms": error[nfe]})
        needed = dict.fromkeys(error, p["most"])  # where the fixed solvers never get there
        for nfe in range(min(p["nfe"]), p["most"] + 1):
            rival = best_fixed(nfe, fitness)
            its = fresh_error(rival)
            found.traces.append({"seed": seed, "nfe": nfe, "solver": fixed(nfe)[rival], "ode_rms": its})
            needed = {k: min(needed[k], nfe) if its <= e else needed[k] for k, e in error.items()}
            if all(needed[k] <= nfe for k in error):
                break
        found.rows += [{"seed": seed, "nfe": k, "ode_rms": error[k], "needed": needed[k]} for k in error]
    return found


def truncation(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: median ODE error with an exact score, of per-step decisions and of constant ones; levels uniform in lam."""
    exact, found = Counted(density(p["density"], device=device)), Results([])

    def start(seed: int, n: int) -> tuple[Tensor, np.ndarray]:
        x = S_MAX * initial_noise([seed], n, (2,), torch.float64).to(device)
        return x, solve(exact, x, grid("log", p["reference_steps"]), DPM[3]).cpu().numpy()

    def error(schedule: Schedule, x: Tensor, truth: np.ndarray) -> float:
        rules, levels = schedule.plan
        return ode_error(solve(exact, x, levels, rules).cpu().numpy(), truth)["ode_median"]

    for seed in seeds:
        known, fresh = start(search_noise(seed), p["search_n"]), start(seed, p["n"])
        for nfe in p["nfe"]:
            fitness, rng = cache(lambda s, known=known: error(s, *known)), np.random.default_rng([seed, nfe])
            chosen = STRATEGIES[method](p, nfe, fitness, rng)
            row = {"seed": seed, "nfe": nfe, "ode_median": error(chosen, *fresh)}
            found.rows.append(row | {"search_error": fitness(chosen)})
            found.traces += described(chosen, seed)
    return found


def free(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    return best(climb(Space(nfe, EVERYWHERE, uniform=True), fitness, p["draws"], p["mutants"], rng))


def best_constant(p: dict, nfe: int, fitness: Fitness, rng: np.random.Generator) -> Schedule:
    return min(constants(nfe, "log"), key=fitness)


STRATEGIES = {"usf": free, "constant": best_constant}
MEASURES = {"quality": quality, "floor": real, "efficiency": efficiency, "speed": speed, "truncation": truncation}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; the setting ``measure`` says which of the claims' quantities is measured."""
    p = {**problem, **settings}
    return MEASURES[p["measure"]](p, method, seeds, inputs, device)
