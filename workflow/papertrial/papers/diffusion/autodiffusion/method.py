"""AutoDiffusion: which few time steps, and which parts of the network at each, give the best samples of a model.

A list of K time indices costs K evaluations: noise at the largest, DDIM down the list, and at the smallest the output
is x0 = D. Uniform spacing is one such list; evolution finds better ones for a given network, and in a second stage
also decides which residual blocks are skipped at which step, at equal multiply-adds (``evolution``, ``gates``).
Nothing is trained: fitness is the FD of a few hundred samples.

Fitness is taken against training pictures, on noise of seed 100 + k for search seed k; reports use fresh noise and test
pictures.

Source: Li et al. 2023 (arXiv 2309.10438).
"""

from collections.abc import Callable
from functools import cache
from itertools import product

import numpy as np
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import S_MAX, grid
from papertrial.methods.samplers import Rule, ddim, dpmpp2m, solve
from papertrial.models import picture_denoisers
from papertrial.models.sampler_lab import SamplerLab
from papertrial.papers.diffusion.autodiffusion.evolution import (
    Candidate,
    Fitness,
    StepsAndBlocks,
    TimeSteps,
    evolve,
    from_levels,
    uniform,
)
from papertrial.papers.diffusion.autodiffusion.gates import GatedDenoiser
from papertrial.testbeds.samplequality import FrechetDistance, ode_error

RULES: dict[str, Rule] = {"ddim": ddim, "dpmpp2m": dpmpp2m}


class Bench:
    """A network, its judge, and the distance that the search sees."""

    def __init__(self, inputs: Inputs, device: str, base: str, part: str, rule: str) -> None:
        self.lab, self.rule = SamplerLab(inputs, device, base, part), RULES[rule]
        self.net = GatedDenoiser(picture_denoisers.load(inputs.models[base][part], device))
        self.full, self.saved = self.net.costs(self.lab.shape)
        self.distance = FrechetDistance(self.lab.judge.train_features)
        self.truth, self.report, self.fd = cache(self._truth), cache(self._report), cache(self._fd)

    def sample(self, candidate: Candidate, seed: int, n: int) -> tuple[Tensor, Tensor, float]:
        """(n, 1, size, size) pictures from a noise seed, their labels, and multiply-adds in whole evaluations."""
        noise, label, _ = self.lab.start([seed], n)
        levels, self.net.macs = candidate.levels, 0
        x0 = solve(self.net.along(candidate.masks), levels[0] * noise, levels, self.rule, label)
        return x0, label, self.net.macs / (n * self.full)

    def fitness(self, seed: int, n: int) -> Fitness:
        """FD against training pictures on the search noise of a search seed."""

        def value(candidate: Candidate) -> float:
            x0, _, _ = self.sample(candidate, 100 + seed, n)
            return self.distance(self.lab.judge.classify(x0)[0])

        return cache(value)

    def _fd(self, candidate: Candidate, seed: int, n: int) -> float:
        x0, label, _ = self.sample(candidate, seed, n)
        return self.lab.judge(x0, label.cpu())["fd"]

    def _truth(self, seed: int, n: int, steps: int) -> np.ndarray:
        """(n, ...) the ODE's solutions from the first noises of a seed."""
        if str(seed) in self.lab.references:
            return self.lab.references[str(seed)]["ode_x0"][:n]
        noise, label, _ = self.lab.start([seed], n)
        levels = grid("karras", steps)
        return solve(self.lab.denoise, levels[0] * noise, levels, dpmpp2m, label).cpu().numpy()

    def _report(self, candidate: Candidate, seed: int, n: int, truth_n: int, truth_steps: int) -> tuple[Row, Tensor]:
        x0, label, compute = self.sample(candidate, seed, n)
        truth = self.truth(seed, truth_n, truth_steps)
        error = ode_error(x0[: len(truth)].cpu().numpy(), truth)["ode_rms"]
        return {**self.lab.judge(x0, label.cpu()), "ode_rms": error, "compute": compute}, x0[:10]


# How a method arrives at a candidate of k evaluations: (bench, p, k, fitness, rng) -> {candidate: fitness}.
Choice = Callable[[Bench, dict, int, Fitness, np.random.Generator], dict[Candidate, float]]


def time_steps(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    """The first stage alone."""
    return evolve(TimeSteps(k), fitness, p["generations"], p["population"], rng, first=[uniform(k)])


def uninformed(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    """The control: selection without information, every fitness being drawn at random."""
    return time_steps(bench, p, k, lambda candidate: rng.random(), rng)


def at_random(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    """As many evaluations without evolution."""
    count = p["generations"] * p["population"]
    return evolve(TimeSteps(k), fitness, 1, count, rng, first=[uniform(k)])


def jointly(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    """Both stages, within the multiply-adds of k whole evaluations and as many generations as the first stage alone."""
    tried = evolve(TimeSteps(k), fitness, p["first_stage"], p["population"], rng, first=[uniform(k)])
    genes = StepsAndBlocks(k * bench.full, bench.full, tuple(bench.saved), k)
    return evolve(genes, fitness, p["generations"] - p["first_stage"], p["population"], rng, tried=tried)


def evenly(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    return {uniform(k): 0.0}


def by_hand(bench: Bench, p: dict, k: int, fitness: Fitness, rng: np.random.Generator) -> dict[Candidate, float]:
    """Standard grids, which may stop early as the searched lists may."""
    made = {from_levels(grid(name, k - 1, S_MAX, end)) for name, end in product(p["grids"], p["ends"])}
    return {c: fitness(c) for c in sorted(made, key=lambda c: c.indices)}


CHOICES: dict[str, Choice] = {
    "autodiffusion": time_steps,
    "joint": jointly,
    "uniform": evenly,
    "handmade": by_hand,
    "random": at_random,
    "uninformed": uninformed,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem: rows are (search seed, evaluations, noise seed)."""
    p = {**problem, **settings}
    bench = Bench(inputs, device, p["base"], p["part"], p["rule"])
    if method == "real":
        cells, floor = product(seeds, p["noise"]), cache(bench.lab.judge.floor)
        return Results([{"seed": s, "nfe": 0, "noise": noise, "fd": floor(noise, p["n"])} for s, noise in cells])
    other = Bench(inputs, device, p["base"], p["transfer"], p["rule"]) if "transfer" in p else None
    sizes, found = (p["n"], p["truth_n"], p["truth_steps"]), Results([])
    for seed, k in product(seeds, p["nfe"]):
        rng, fitness = np.random.default_rng([seed, k]), bench.fitness(seed, p["search_n"])
        tried = CHOICES[method](bench, p, k, fitness, rng)
        chosen = min(tried, key=tried.get)
        found.traces += told(tried, seed, k, p["population"])
        for noise in p["noise"]:
            row, x0 = bench.report(chosen, noise, *sizes)
            row = {"seed": seed, "nfe": k, "noise": noise, "steps": len(chosen.steps), **row}
            if other:  # the same list on a network that the search has not seen
                row["fd_transfer"] = other.fd(chosen, noise, p["n"])
            found.rows.append(row)
            found.state.setdefault(f"samples-{k}-{seed}", x0[:, 0].cpu().numpy())
    return found


def told(tried: dict[Candidate, float], seed: int, k: int, population: int) -> list[Row]:
    """The best fitness after every generation, and the steps of the best candidate."""
    values = list(tried.values())
    common = {"seed": seed, "nfe": k}
    ends = range(population, len(values) + 1, population)
    rows = [{**common, "kind": "fitness", "evaluated": m, "fd": min(values[:m])} for m in ends]
    best = min(tried, key=tried.get)
    for step, level in zip(best.steps, best.levels, strict=True):
        skipped = sum(not kept for kept in step.mask)
        rows.append({**common, "kind": "step", "index": step.index, "level": float(level), "skipped": skipped})
    return rows
