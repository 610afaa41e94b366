"""Races of multi-block bilevel algorithms: iterations to a target, or the hyper-gradient that a budget of samples buys.

Every method chooses its configuration from one grid, on seeds of its own; all configurations run side by side.

Source: Hu, Qiu, Guo, Zhang, Yang, ICML 2023.
"""

import math
from collections.abc import Callable
from itertools import islice, product
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.papers.convex.multi_block_bilevel.algorithms import ALGORITHMS, Path
from papertrial.papers.convex.multi_block_bilevel.families import Digits, Family, Quadratic

Array = np.ndarray
Settings = dict[str, Any]


def family_of(problem: Settings, seeds: list[int], inputs: Inputs) -> Family:
    if problem["family"] == "quadratic":
        return Quadratic(seeds, problem["m"])
    data = inputs.datasets["digits"]
    return Digits(seeds, problem["m"], data["x"], data["y"], problem["train"], problem["validation"])


def norms(family: Family, x: Array) -> Array:
    """||grad F|| (C, S); what has diverged counts as infinite."""
    finite = np.isfinite(x).all(axis=-1) & (np.abs(x) < 1e6).all(axis=-1)
    found = np.linalg.norm(family.gradient(np.where(finite[..., None], x, 0.0)), axis=-1)
    return np.where(finite, found, np.inf)


def iterations(family: Family, path: Path, target: float, every: int, cap: int) -> Array:
    """Iterations until ||grad F|| is the target's share of its initial value, the cap where it isn't: (C, S)."""
    goal = target * norms(family, family.start[None])[0]
    found = None
    for t, x in enumerate(islice(path, cap), 1):
        if t % every == 0:
            reached = norms(family, x) <= goal
            found = np.full(reached.shape, cap) if found is None else found
            found = np.where(reached & (found == cap), t, found)
            if (found < cap).all():
                break
    return found


def final_square(family: Family, path: Path, T: int, looks: int) -> Array:
    """Mean of ||grad F(x_t)||^2 at ``looks`` of the last tenth of T iterations: (C, S)."""
    at = set(np.linspace(math.ceil(0.9 * T), T, looks).astype(int).tolist())
    seen = [norms(family, x) ** 2 for t, x in enumerate(islice(path, T), 1) if t in at]
    return np.mean(seen, axis=0)


def measured(
    problem: Settings, method: str, configs: list[Settings], family: Family, I: int, B: int, cap: int
) -> Array:
    """The problem's measure for all configurations side by side: (C, S)."""
    algorithm, uses = ALGORITHMS[method]
    steps = {k: np.array([c[k] for c in configs])[:, None, None] for k in configs[0]}
    with np.errstate(over="ignore", invalid="ignore"):
        path = algorithm(family, I, B, **steps)
        if problem["measure"] == "iterations":
            return iterations(family, path, problem["target"], problem["every"], cap)
        return final_square(family, path, problem["budget"] // (uses * I * B), problem["looks"])


def tuned(problem: Settings, method: str, inputs: Inputs, I: int, B: int) -> tuple[Settings, list[Settings]]:
    """The configuration that is best on seeds of its own (least mean logarithm), and all trials."""
    grid = problem["grid"]
    configs = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    family = family_of(problem, problem["tuning_seeds"], inputs)
    found = measured(problem, method, configs, family, I, B, problem.get("tuning_cap", 0))
    scores = np.log(np.clip(found, 1e-300, 1e12)).mean(axis=1)
    trials = [{**c, "blocks": I, "batch": B, "score": float(s)} for c, s in zip(configs, scores, strict=True)]
    return configs[int(scores.argmin())], trials


def race(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    """One row a seed and (I, B)."""
    rows, traces = [], []
    family = family_of(problem, seeds, inputs)
    for I, B in problem["sizes"]:
        best, trials = tuned(problem, method, inputs, I, B)
        traces += [{"seed": -1, **t} for t in trials]
        found = measured(problem, method, [best], family, I, B, problem.get("cap", 0))[0]
        for seed, value in zip(seeds, found.tolist(), strict=True):
            row = {"seed": seed, "blocks": I, "batch": B, **best}
            if problem["measure"] == "iterations":
                row |= {"iterations": int(value), "reached": int(value < problem["cap"])}
            else:
                row["log_square"] = math.log10(min(max(value, 1e-300), 1e12))
            rows.append(row)
    return Results(sorted(rows, key=lambda row: row["seed"]), traces)


def gradient_cost(B: int, q: int) -> int:
    """Multiplications of a logistic mini-batch gradient."""
    return 2 * B * q


# Multiplications and stored numbers of one block and iteration, both points of a sample counted.
COSTS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "v1": lambda B, q: (2 * (gradient_cost(B, q) + B * q * q) + 9 * q**3, 2 * q + q * q),
    "v2": lambda B, q: (2 * (gradient_cost(B, q) + 4 * gradient_cost(B, q)), 4 * q),
    "no_second_order": lambda B, q: (2 * gradient_cost(B, q), 2 * q),
}


def arithmetic(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    rows = []
    for seed in seeds:
        for q in problem["dims"]:
            multiplications, stored = COSTS[method](problem["batch"], q)
            rows.append({"seed": seed, "dim": q, "multiplications": multiplications, "stored": stored})
    return Results(rows)


MEASURES = {"iterations": race, "square": race, "arithmetic": arithmetic}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]](problem, method, settings, seeds, inputs)
