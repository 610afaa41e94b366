"""Maximise f(Phi(x)) s.t. c(Phi(x)) <= 0 over a box, Phi a trained network, f smooth, c only evaluated.

An attack A(x; r) looks for d, ||d||_inf <= r, that moves Phi(x + d) along u = grad f(Phi(x)), as adversarial attacks
move a classifier's output. The hybrid tries x + d, x + d/2 and x + d/4; r doubles where one is feasible and better. If
none is, r halves and a step of direct search follows, which needs no gradient and finds a local solution in the end. A
gradient through the network costs as much as three evaluations.

Source: arXiv 2510.01461.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.cma_es import restarted
from papertrial.methods.direct_search import DirectSearch, Meter, Point, directions, in_ball
from papertrial.testbeds.surrogates import SIMULATED, Network, Task, counterfactual_task, simulated_task

Settings = dict[str, Any]
GRADIENT = 3  # evaluations that a gradient costs
SHORTEST = 1e-6  # of an attack's radius
INFEASIBLE = 1e6
Attack = Callable[[Task, Meter, np.ndarray, float, np.random.Generator], np.ndarray]  # -> d (n,)


# ---- attacks


def ascent(task: Task, meter: Meter, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """J^T u at x, the gradient of <u, Phi(x)>."""
    meter.charge(GRADIENT)
    return task.pull_back(x[None], u[None])[0]


def objective_direction(task: Task, x: np.ndarray) -> np.ndarray:
    return np.array(task.f_gradient(task.phi(x[None]))[0])


def fgsm(task: Task, meter: Meter, x: np.ndarray, r: float, rng: np.random.Generator) -> np.ndarray:
    """One step: d = r sign(J^T u), the maximiser of <u, Phi(x + d)> where Phi is linear."""
    d = r * np.sign(ascent(task, meter, x, objective_direction(task, x)))
    return np.clip(x + d, 0, 1) - x


def pgd(task: Task, meter: Meter, x: np.ndarray, r: float, rng: np.random.Generator, steps: int = 10) -> np.ndarray:
    """Steps of r/4, projected to the ball and the box; u stays that of x."""
    u, d = objective_direction(task, x), np.zeros_like(x)
    for _ in range(steps):
        if meter.spent:
            break
        d = np.clip(d + r / 4 * np.sign(ascent(task, meter, x + d, u)), -r, r)
        d = np.clip(x + d, 0, 1) - x
    return d


def blind(task: Task, meter: Meter, x: np.ndarray, r: float, rng: np.random.Generator) -> np.ndarray:
    """The control: random signs, charged like a gradient."""
    meter.charge(GRADIENT)
    return np.clip(x + r * rng.choice([-1.0, 1.0], size=len(x)), 0, 1) - x


ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd, "blind": blind}


def attacked(task: Task, meter: Meter, at: Point, attack: Attack, r: float, rng: np.random.Generator) -> Point | None:
    """The first of x + d, x + d/2 and x + d/4 that is feasible and better."""
    d = attack(task, meter, at.x, r, rng)
    return meter.first_better(at.x + d * np.array([[1], [1 / 2], [1 / 4]]), at.value) if d.any() else None


# ---- methods: the kinds of successful steps, iteration by iteration

Successes = list[str]  # "attack", "search" or "" for none


def hybrid(task: Task, meter: Meter, at: Point, rng: np.random.Generator, attack: str, r: float = 0.1) -> Successes:
    """An attack; where it fails, a step of direct search."""
    search, kinds, signs = DirectSearch(), [], rng.spawn(1)[0]
    while not meter.spent and not search.converged:
        found = attacked(task, meter, at, ATTACKS[attack], r, signs) if r > 0 else None
        if found:
            r, kind = min(2 * r, 1.0), "attack"
        else:
            r = max(r / 2, SHORTEST) if r > 0 else 0.0
            found = search.step(at, meter, rng)
            kind = "search" if found is not at else ""
        at = found
        kinds.append(kind)
    return kinds


def direct_search(task: Task, meter: Meter, at: Point, rng: np.random.Generator) -> Successes:
    return hybrid(task, meter, at, rng, "fgsm", r=0.0)


def attack_only(
    task: Task, meter: Meter, at: Point, rng: np.random.Generator, attack: str, r: float = 0.1
) -> Successes:
    """Restarted from another feasible point where the radius has come down to the shortest."""
    kinds, first, start = [], r, at
    while not meter.spent:
        found = attacked(task, meter, at, ATTACKS[attack], r, rng)
        kinds.append("attack" if found else "")
        at, r = found or at, min(2 * r, 1.0) if found else r / 2
        if r < SHORTEST:
            at, r = elsewhere(meter, start, rng), first
    return kinds


def elsewhere(meter: Meter, start: Point, rng: np.random.Generator, tries: int = 50) -> Point:
    """A feasible point near the start, or else the start."""
    near = np.clip(start.x + 0.3 * rng.standard_normal((tries, len(start.x))), 0, 1)
    return meter.first_better(near, -np.inf) or start


def projected_gradient(task: Task, meter: Meter, at: Point, rng: np.random.Generator) -> Successes:
    """Ascent with a backtracking search that stays feasible; it ends where no step is better."""
    kinds, step = [], 0.5
    while not meter.spent:
        g = ascent(task, meter, at.x, objective_direction(task, at.x))
        lengths = step / max(np.linalg.norm(g), 1e-12) * 2.0 ** -np.arange(20)
        found = meter.first_better(np.clip(at.x + lengths[:, None] * g, 0, 1), at.value)
        kinds.append("attack" if found else "")
        if not found:
            break
        step, at = min(1.0, 2 * float(np.linalg.norm(found.x - at.x))), found
    return kinds


def penalised(meter: Meter) -> Callable[[np.ndarray], np.ndarray]:
    """To be minimised: -f where feasible, else more than any such value, by the violation."""

    def value(points: np.ndarray) -> np.ndarray:
        outside = np.abs(points - np.clip(points, 0, 1)).sum(axis=1)
        f, violation = meter.values(np.clip(points, 0, 1))
        return np.where(violation <= 0, -f, INFEASIBLE + violation) + outside

    return value


def cma_es(task: Task, meter: Meter, at: Point, rng: np.random.Generator, sigma: float) -> Successes:
    restarted(penalised(meter), at.x, sigma, meter.budget - meter.used, rng, 0.0, 1.0)
    return []


def nelder_mead(task: Task, meter: Meter, at: Point, rng: np.random.Generator, size: float) -> Successes:
    """Restarted at its best point with a fresh simplex, rotated, when it has converged."""
    from scipy.optimize import minimize

    value = penalised(meter)
    while not meter.spent:
        x, before = meter.best.x, meter.used
        simplex = np.vstack([x, x + size * directions(len(x), rng)[: len(x)]])
        options = {"maxfev": meter.budget - meter.used, "initial_simplex": simplex, "adaptive": True}
        minimize(lambda v: value(v[None])[0], x, method="Nelder-Mead", options=options | {"xatol": 1e-6, "fatol": 1e-9})
        if meter.used == before:
            break
    return []


def random_search(task: Task, meter: Meter, at: Point, rng: np.random.Generator) -> Successes:
    while not meter.spent:
        meter.values(rng.random((500, len(at.x))))
    return []


def multistart(task: Task, meter: Meter, at: Point, rng: np.random.Generator, starts: int = 50) -> Successes:
    """Gradient steps from many points at once, along f's gradient where feasible and down the violations elsewhere, of
    falling length; direct search from the best of all. Only to know what can be reached."""
    x = np.vstack([at.x[None], task.draw(starts - 1, rng)])
    rounds = int(0.8 * meter.budget) // (starts * (GRADIENT + 1))
    for length in np.geomspace(0.2, 1e-4, rounds):
        Y = task.phi(x)
        feasible = (task.c(Y) <= 0).all(axis=1, keepdims=True)
        g = task.pull_back(x, np.where(feasible, task.f_gradient(Y), -task.c_gradient(Y)))
        meter.charge(GRADIENT * starts)
        x = np.clip(x + length * g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12), 0, 1)
        meter.values(x)
    return direct_search(task, meter, meter.best, rng)


METHODS: dict[str, Callable[..., Successes]] = {
    "hybrid": hybrid,
    "direct search": direct_search,
    "attack only": attack_only,
    "projected gradient": projected_gradient,
    "cma-es": cma_es,
    "nelder-mead": nelder_mead,
    "random search": random_search,
    "multistart": multistart,
}


# ---- runs


def task_of(family: str, seed: int, start: int, inputs: Inputs) -> Task:
    """The seed is the network's."""
    state, rng = inputs.models["surrogates"][str(seed)], np.random.default_rng([seed, start, 0])
    if family in SIMULATED:
        return simulated_task(SIMULATED[family], Network(state, f"{family}/"), rng)
    digits = inputs.datasets["digits"]
    x = np.asarray(digits["x"], dtype=float).reshape(len(digits["y"]), -1)
    return counterfactual_task(Network(state, "digits/"), x / x.max(), digits["y"], rng)


def local_gain(task: Task, best: Point, rng: np.random.Generator, radius: float = 1e-2, points: int = 200) -> float:
    """How much better the best of 200 random feasible points within the radius is; 0 if none is better."""
    near = np.clip(best.x + radius * in_ball(50 * points, len(best.x), rng), 0, 1)
    f, violation = task.values(near)
    return float(max(0.0, (f[violation <= 0][:points] - best.value).max(initial=0.0)))


def quarter_counts(kinds: Successes) -> Row:
    """Attacks among the successful steps of the first and of the last quarter of the iterations."""
    quarter = math.ceil(len(kinds) / 4)
    found: Row = {}
    for name, part in (("first", kinds[:quarter]), ("last", kinds[-quarter:] if quarter else [])):
        found |= {f"{name}_attacks": part.count("attack"), f"{name}_successes": sum(kind != "" for kind in part)}
    return found


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One row a network and a start: values after shares of the budget (in percent), and at the end."""
    options = {name: value for name, value in settings.items() if name not in ("algorithm", "times")}
    budget = problem["budget"] * settings.get("times", 1)
    found = Results([])
    for seed, start in itertools.product(seeds, range(problem["starts"])):
        task = task_of(problem["family"], seed, start, inputs)
        meter = Meter(task.values, budget)
        at = meter.first_better(task.start[None], -math.inf)
        rng = np.random.default_rng([seed, start, 1])
        kinds = METHODS[settings["algorithm"]](task, meter, at, rng, **options)
        after = {f"after_{percent}": meter.after(problem["budget"] * percent // 100) for percent in (5, 10, 25, 100)}
        truth, violation = task.truth(meter.best.x[None])
        row = {"seed": seed, "start": start, "before": at.value, **after, "value": meter.best.value}
        row |= {"local_gain": local_gain(task, meter.best, np.random.default_rng([seed, start, 2]))}
        row |= {"truth": float(truth[0]), "truly_feasible": int(violation[0] <= 1e-9), **quarter_counts(kinds)}
        row |= {"score": -(meter.after(problem["budget"]) - at.value)}
        found.rows.append(row)
        counts = np.unique(np.geomspace(1, problem["budget"], 25).astype(int))
        found.traces += [{"seed": seed, "start": start, "used": int(k), "value": meter.after(k)} for k in counts]
    return found
