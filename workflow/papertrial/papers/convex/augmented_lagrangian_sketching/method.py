"""Solve min f(x) s.t. c(x) = 0 by Newton steps on the KKT system that a randomised solver finds only roughly.

With w = (grad_x L, c), K = [[H, G^T], [G, 0]] and K z = -w, a rough step z for (x, lambda) is judged by the exact
augmented Lagrangian

    Lam(x, lambda) = L + eta1/2 ||c||^2 + eta2/2 ||G grad_x L||^2:

the solver goes on until ||K z + w|| <= delta kappa ||w|| and <grad Lam, z> <= -eta2/2 ||w||^2. Where it is accurate and
yet no descent, eta1, eta2 and delta move and it goes on under the new conditions. An Armijo search on Lam follows.

Source: Hong, Na, Mahoney and Kolar 2023 (arXiv 2305.18379).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.augmented_lagrangian import newton_cg
from papertrial.methods.gmres import gmres
from papertrial.methods.merit_functions import ExactAugmentedLagrangian, ExactPenalty, Merit, PlainLagrangian
from papertrial.methods.sketch_and_project import gaussian_vectors, iterates, kaczmarz
from papertrial.testbeds.hock_schittkowski import HOCK_SCHITTKOWSKI
from papertrial.testbeds.nlp import (
    NLP,
    kkt_matrix,
    least_squares_multipliers,
    logistic_regression,
    poisson_control,
    reduced_curvature,
    refined,
    residual,
    two_classes,
)

Settings = dict[str, Any]
BETA, RHO = 0.3, 0.5  # Armijo's slope, backtracking
SHORTEST = 1e-10  # a search that comes down to this step has failed
CURVATURE = 5e-2  # demanded of H on the null space of G
ROUNDING = 10 * np.finfo(float).eps  # of Lam: how far the search may be misled by it
MOST_TIGHTENED = 100
POWER_STEPS = 20
BLOCK = 128  # projections at a time


# ---- inner solvers: (checkpoints (C, n+m), projections and operations of each)

Checkpoints = Iterator[tuple[np.ndarray, int, float]]


def scaled_rows(K: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same equations, every row of length one."""
    length = np.linalg.norm(K, axis=1)
    return K / length[:, None], w / length


def rk(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Checkpoints:
    """Randomised Kaczmarz: a step reads one row, 4 operations an entry; the residual is looked at every n+m steps."""
    N = len(w)
    each = N * (4 * N + 3) + (2 * N * N + 2 * N)
    for Z in iterates(kaczmarz(*scaled_rows(K, w), rng), np.zeros(N), every=N, block=BLOCK):
        yield Z, N, each


def gv(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Checkpoints:
    """Gaussian vectors: a step reads all of K."""
    N = len(w)
    each = N * (2 * N * N + 6 * N) + (2 * N * N + 2 * N)
    for Z in iterates(gaussian_vectors(*scaled_rows(K, w), rng), np.zeros(N), every=N, block=BLOCK):
        yield Z, N, each


def deterministic(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Checkpoints:
    """GMRES on K itself, so that its own recurrence tells the residual; scaling the rows saves it nothing."""
    N = len(w)
    for j, z in enumerate(gmres(K, -w), start=1):
        yield z[None], 1, 2 * N * N + 4 * j * N


def dense(K: np.ndarray, w: np.ndarray, rng: np.random.Generator) -> Checkpoints:
    """Factorisation of the symmetric matrix."""
    N = len(w)
    yield np.linalg.lstsq(K, -w, rcond=None)[0][None], 1, N**3 / 3 + 2 * N**2


# ---- the outer loop


@dataclass
class Budget:
    """What a run has spent, and may spend."""

    most_flops: float = math.inf
    most_steps: float = math.inf  # in all
    most_at_once: float = math.inf  # in one outer iteration
    flops: float = 0.0
    steps: int = 0

    @property
    def spent(self) -> bool:
        return self.flops >= self.most_flops or self.steps >= self.most_steps


@dataclass
class Trail:
    """A run, iterate by iterate."""

    kkt: list[float] = field(default_factory=list)
    alpha: list[float] = field(default_factory=list)
    f: float = math.nan


def rough_step(
    K: np.ndarray,
    w: np.ndarray,
    solver: Callable[..., Checkpoints],
    merit: Merit,
    budget: Budget,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """z with ||K z + w|| <= delta kappa ||w|| along which the merit descends; None if the solver doesn't find one."""
    size, kappa = np.linalg.norm(w), 1 / max(1.0, spectral_norm(K))
    z, steps_before, tightened = np.zeros(len(w)), budget.steps, 0
    for Z, steps, flops in solver(K, w, rng):
        error = np.linalg.norm(Z @ K + w, axis=1)  # (C,); K is symmetric
        i = 0
        while (accurate := np.flatnonzero(error[i:] <= merit.delta * kappa * size)).size and tightened < MOST_TIGHTENED:
            i += int(accurate[0])
            if merit.descends(Z[i]):
                budget.steps, budget.flops = budget.steps + (i + 1) * steps, budget.flops + (i + 1) * flops
                return Z[i]
            merit.tighten()
            tightened += 1
        budget.steps, budget.flops = budget.steps + len(Z) * steps, budget.flops + len(Z) * flops
        z = Z[-1]
        if budget.spent:
            return None
        if budget.steps - steps_before >= budget.most_at_once or tightened == MOST_TIGHTENED:
            break
    return z if np.isfinite(z).all() and merit.descends(z) else None


def spectral_norm(K: np.ndarray, rounds: int = POWER_STEPS) -> float:
    """||K||_2 of a symmetric matrix by power iteration."""
    v = np.random.default_rng(0).standard_normal(len(K))
    for _ in range(rounds):
        v = K @ (v / np.linalg.norm(v))
    return float(np.linalg.norm(v))


def convexified(H: np.ndarray, G: np.ndarray) -> np.ndarray:
    """H plus a multiple of the identity, so that its curvature on the null space of G is no less than CURVATURE."""
    least = reduced_curvature(H, G)
    return H if least >= CURVATURE else H + (CURVATURE + 2 * max(0.0, -least)) * np.eye(len(H))


def minimise(
    nlp: NLP,
    solver: Callable[..., Checkpoints],
    merit: Merit,
    tol: float,
    budget: Budget,
    most: int,
    rng: np.random.Generator,
) -> Trail:
    """Outer iterations until the KKT residual is below tol, the search or the solver fails, or the budget is spent."""
    x, lam, n, trail = nlp.x0, np.zeros(nlp.m), len(nlp.x0), Trail()
    at = nlp.first(x)
    budget.flops += nlp.flops[0]
    for _ in range(most):
        w = residual(at, lam)
        trail.kkt.append(float(np.linalg.norm(w)))
        trail.f = float(at.f)
        if trail.kkt[-1] <= tol or budget.spent or not np.isfinite(trail.kkt[-1]):
            break
        second = nlp.second(x)
        K = kkt_matrix(convexified(second.of_f + second.of_c(lam), at.G), at.G)
        merit.look(at, second, lam)
        budget.flops += nlp.flops[1] + (4 + 2 * POWER_STEPS) * len(w) ** 2  # H, the merit's gradient, the norm of K
        z = rough_step(K, w, solver, merit, budget, rng)
        if z is None:
            break
        value, slope, alpha = merit.value(at, lam), merit.slope(z), 1.0
        while alpha >= SHORTEST:
            after = nlp.first(x + alpha * z[:n])
            budget.flops += nlp.flops[0] + 4 * at.G.size
            bound = value + alpha * BETA * slope + ROUNDING * abs(value)
            if merit.value(after, lam + alpha * z[n:]) <= bound:  # false where it isn't a number
                break
            alpha *= RHO
        else:
            break
        x, lam, at = x + alpha * z[:n], lam + alpha * z[n:], after
        trail.alpha.append(alpha)
    return trail


SOLVERS: dict[str, Callable[..., Checkpoints]] = {"rk": rk, "gv": gv, "gmres": deterministic, "dense": dense}
MERITS: dict[str, Callable[..., Merit]] = {
    "exact augmented Lagrangian": ExactAugmentedLagrangian,
    "Lagrangian": PlainLagrangian,
    "l1 penalty": ExactPenalty,
}


def solve(nlp: NLP, settings: Settings, tol: float, budget: Budget, most: int, rng: np.random.Generator) -> Trail:
    with np.errstate(all="ignore"):  # a trial point may lie anywhere
        if "solver" not in settings:
            return Trail(*newton_cg(nlp, tol, budget, most))
        start = {"mu": settings["mu"]} if "mu" in settings else {}
        merit = MERITS[settings["merit"]](**start)
        return minimise(nlp, SOLVERS[settings["solver"]], merit, tol, budget, most, rng)


# ---- the local phase


def local_residuals(
    nlp: NLP, delta: float, shrink: float, tol: float, most: int, rng: np.random.Generator
) -> list[float]:
    """KKT residuals of unit Kaczmarz steps with ||K z + w|| <= delta shrink^k ||w|| from 0.05 away from x*."""
    u = rng.standard_normal(len(nlp.x0))
    x = refined(nlp)[0] + 0.05 * u / np.linalg.norm(u)
    lam, kkt = least_squares_multipliers(nlp.first(x)), []
    for k in range(most):
        at, second = nlp.first(x), nlp.second(x)
        w = residual(at, lam)
        kkt.append(float(np.linalg.norm(w)))
        if kkt[-1] <= tol:
            break
        K = kkt_matrix(second.of_f + second.of_c(lam), at.G)
        z = first_accurate(K, w, delta * shrink**k * kkt[-1], rng)
        x, lam = x + z[: len(x)], lam + z[len(x) :]
    return kkt


def first_accurate(K: np.ndarray, w: np.ndarray, allowed: float, rng: np.random.Generator) -> np.ndarray:
    """The first Kaczmarz iterate with ||K z + w|| <= allowed, looked for after every row."""
    for Z in iterates(kaczmarz(*scaled_rows(K, w), rng), np.zeros(len(w)), every=1, block=BLOCK):
        good = np.flatnonzero(np.linalg.norm(Z @ K + w, axis=1) <= allowed)
        if good.size:
            return Z[good[0]]
    raise AssertionError("iterates has no end")


# ---- tasks: what a seed's rows are


def generator(nlp: NLP, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, *nlp.name.encode()])


def budget_of(problem: Settings, settings: Settings) -> Budget:
    most_flops, most_steps = problem.get("most_flops", math.inf), settings.get("most_steps", math.inf)
    return Budget(most_flops, most_steps, problem["most_at_once"])


def path(kkt: list[float], **names: Any) -> list[Row]:
    return [names | {"k": k, "kkt": v} for k, v in enumerate(kkt[:100]) if v < 1e12]


def classics(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Hock-Schittkowski problems from their standard starts, down to tol (loose where the solution is degenerate)."""
    found = Results([])
    for name in problem["nlps"]:
        nlp, budget = HOCK_SCHITTKOWSKI[name], budget_of(problem, settings)
        tol = problem["loose"] if name in problem["degenerate"] else problem["tight"]
        trail = solve(nlp, settings, tol, budget, problem["most"], generator(nlp, seed))
        row: Row = {"seed": seed, "nlp": name, "reached": int(min(trail.kkt) <= problem["loose"])}
        if tol == problem["tight"] and trail.kkt[-1] <= tol:
            row |= {"last_steps": len(trail.alpha[-5:]), "unit_steps": sum(a == 1 for a in trail.alpha[-5:])}
        found.rows.append(row | {"iterations": len(trail.alpha), "steps": budget.steps})
        if seed == 0:
            found.traces += path(trail.kkt, seed=seed, nlp=name)
    return found


def local(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """The last three ratios KKT_(k+1) / KKT_k before the residual is below tol."""
    found = Results([])
    for name in problem["nlps"]:
        nlp = HOCK_SCHITTKOWSKI[name]
        kkt = local_residuals(
            nlp, settings["delta"], settings["shrink"], problem["tol"], problem["most"], generator(nlp, seed)
        )
        ratio = np.array(kkt[1:]) / np.array(kkt[:-1])
        last = dict(zip(("third_last", "second_last", "last"), map(float, ratio[-3:]), strict=True))
        found.rows.append({"seed": seed, "nlp": name, **last, "iterations": len(ratio)})
        found.traces += path(kkt, seed=seed, nlp=name)
    return found


def logistic_problem(seed: int, inputs: Inputs, data: str, labels: list[int], width: int, samples: int) -> NLP:
    rng, table = np.random.default_rng([seed, width]), inputs.datasets[data]
    x, y = two_classes(table["x"], table["y"], labels, width, samples, rng)
    return logistic_regression(f"{data}-{x.shape[1]}", x, y, rng)


def poisson_problem(seed: int, inputs: Inputs, points: int) -> NLP:
    return poisson_control(points, np.random.default_rng([seed, points]))


FAMILIES: dict[str, Callable[..., NLP]] = {"logistic": logistic_problem, "poisson": poisson_problem}


def flops(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Operations until the KKT residual is below tol; a run that fails counts as capped."""
    found, most = Results([]), problem["most_flops"]
    for size in problem["sizes"]:
        nlp = FAMILIES[problem["family"]](seed, inputs, **size)
        budget = budget_of(problem, settings)
        trail = solve(nlp, settings, problem["tol"], budget, problem["most"], generator(nlp, seed))
        reached = trail.kkt[-1] <= problem["tol"] and budget.flops <= most
        count = float(budget.flops if reached else most)
        row = {"seed": seed, "nlp": nlp.name, "size": len(nlp.x0) + nlp.m, "reached": int(reached), "flops": count}
        found.rows.append(row | {"log_flops": math.log(count), "iterations": len(trail.alpha), "steps": budget.steps})
    return found


TASKS = {"classics": classics, "local": local, "flops": flops}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        one = TASKS[problem["task"]](problem, settings, seed, inputs)
        found.rows += one.rows
        found.traces += one.traces
    return found
