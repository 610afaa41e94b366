"""Block coordinate descent on min f(x), or f(x) + lam ||x||_1: choose a block b, then x_b <- x_b + d_b.

Which block (rules that know curvature), which step (scaled gradient or matrix), and which kind of block:

- small blocks, fixed or variable, of linear models (`methods.block_rules`);
- huge blocks whose graph is a forest, solved exactly in linear time (`methods.forest`), for label propagation;
- with the l1 penalty, small variable blocks until the support is found, then one block with all of the support and
  Newton steps there.

Source: Nutini, Laradji, Schmidt, arXiv:1712.08859 (2022).
"""

import math
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
from scipy.sparse.linalg import spsolve

from papertrial.engine.results import Inputs, Results
from papertrial.methods import block_rules as rules
from papertrial.methods import graph_blocks
from papertrial.methods.forest import greedy_forest, solve_forest
from papertrial.methods.l1_blocks import cyclic_path, fista_path, identify, prox_gradient, two_metric
from papertrial.testbeds import coordinate_descent as models
from papertrial.testbeds import label_propagation as graphs
from papertrial.testbeds.coordinate_descent import LinearModel

Settings = dict[str, Any]

# Smooth linear models. Each method: model, tau, seed -> what chooses blocks and steps.


def fixed(rule: Callable, step: Callable) -> Callable[[LinearModel, int, int], rules.Choose]:
    return lambda model, tau, seed: rules.fixed_blocks(model, tau, seed, rule, step)


def variable(score: Callable) -> Callable[[LinearModel, int, int], rules.Choose]:
    return lambda model, tau, seed: rules.variable_blocks(model, tau, score)


SMOOTH = {
    "gs": fixed(rules.gs, rules.gradient_step),
    "gsl": fixed(rules.gsl, rules.gradient_step),
    "gsl_permuted": fixed(rules.gsl_permuted, rules.gradient_step),
    "cyclic": fixed(rules.cyclic, rules.gradient_step),
    "random": fixed(rules.uniform, rules.gradient_step),
    "random_by_L": fixed(rules.proportional, rules.gradient_step),
    "gsq": fixed(rules.gsq, rules.matrix_step),
    "gsq_newton": fixed(rules.gsq, rules.newton_step),
    "variable_gs": variable(rules.variable_gs),
    "variable_gsd": variable(rules.variable_gsd),
}
NO_FULL_GRADIENT = {"cyclic", "random", "random_by_L"}


def descend(model: LinearModel, choose: rules.Choose, low: float, steps: int, least: int, gap: float) -> np.ndarray:
    """(f_k - f*) / (f_0 - f*) for k = 1, 2, ...: ``steps`` of them, or fewer but ``least`` if ``gap`` is reached."""
    x = np.zeros(model.size)
    Z = model.predict(x)
    first = model.value(x, Z) - low
    gaps: list[float] = []
    while len(gaps) < steps and (len(gaps) < least or gaps[-1] > gap):
        block, step = choose(x, Z, model.gradient(x, Z))
        x[block] += step
        model.move(Z, block, step)
        gaps.append((model.value(x, Z) - low) / first)
        if len(gaps) % 100 == 0:
            Z = model.predict(x)  # rounding errors of the updates
    return np.array(gaps)


def on_model(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Progress over the first ``horizon`` iterations and, where asked for, how many reach the gap."""
    model, found = linear_model(problem, seed, inputs), Results([])
    low, n = models.minimum(model), len(model.A)
    for tau in settings["taus"]:
        start = process_time()
        steps = problem["cap"] if settings.get("to_gap") else problem["horizon"]
        if method == "accelerated":
            gaps, operations = rules.accelerated(model, low, steps), 2 * n * model.size
        else:
            gaps = descend(model, SMOOTH[method](model, tau, seed), low, steps, problem["horizon"], problem["gap"])
            operations = n * tau + n * (tau if method in NO_FULL_GRADIENT else model.size)
        here = {"seed": seed, "tau": tau}
        logs = np.log10(np.maximum(gaps, 1e-16))
        row = here | {"mean_log_gap": logs[: problem["horizon"]].mean(), "operations": operations * problem["horizon"]}
        if settings.get("to_gap"):
            arrived = np.flatnonzero(gaps <= problem["gap"])
            reached = len(arrived) > 0
            row |= {"iterations": int(arrived[0]) + 1 if reached else problem["cap"], "reached": int(reached)}
        found.rows.append(row)
        found.timings.append(here | {"cpu_s": process_time() - start})
        found.traces += [
            here | {"iteration": k, "log_gap": logs[k - 1], "operations": float(k * operations)}
            for k in _thinned(len(gaps))
        ]
    return found


def linear_model(problem: Settings, seed: int, inputs: Inputs) -> LinearModel:
    if problem["model"] in models.REAL:
        return models.REAL[problem["model"]](inputs.datasets, problem["multiple"])
    return models.GENERATED[problem["model"]](problem["n"], problem["d"], np.random.default_rng(seed))


# The l1 penalty.

MODES = {"two_metric": two_metric, "prox_gradient": prox_gradient}  # on a block with all of the support
PATHS = {"fista": fista_path, "cyclic_prox": cyclic_path}
MEASURED = 1e-7  # ratios of errors are taken from here up
NEAR = 1e-6  # relative error up to which operations are counted


def two_phases(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Small blocks until the support is the final one, then ``steps`` steps on a block with all of it."""
    model, lam, solution = l1_problem(problem, seed)
    start = process_time()
    x, K, path = identify(model, lam, problem["tau"], problem["budget"])
    before = [float(np.linalg.norm(y - solution)) for y in path]
    errors, (n, d) = [before[-1]], model.A.shape
    support = np.count_nonzero(x)
    for _ in range(settings["steps"]):
        violation = np.where(x != 0, np.inf, np.abs(model.gradient(x, model.predict(x))))
        block = rules.largest(violation, min(support + problem["tau"], d))
        x = MODES[method](model, lam, x, block)
        errors.append(float(np.linalg.norm(x - solution)))
    e = np.array(errors)
    measured = np.flatnonzero(e[:-1] >= MEASURED)
    ratios = e[measured + 1] / e[measured] if len(measured) else np.zeros(1)
    arrived = np.flatnonzero(e <= 1e-10)
    row = {"seed": seed, "K": K, "first": len(path) - 1, "support": support, "start_error": e[0]}
    row |= {"first_ratio": ratios[0], "last_ratio": ratios[-1], "ratios": len(measured)}
    row |= {"further_steps": int(arrived[0]) if len(arrived) else settings["steps"], "reached": int(len(arrived) > 0)}
    near = np.concatenate([before, e[1:]]) <= NEAR * np.linalg.norm(solution)
    cost = np.cumsum([n * (d + problem["tau"])] * len(path) + [2 * n * d + n * support**2] * settings["steps"])
    row |= {"operations": float(cost[near.argmax()] if near.any() else cost[-1]), "near": int(near.any())}
    drawn = sorted({int(k) for k in np.linspace(0, len(path) - 1, 60)})
    trace = [{"seed": seed, "iteration": k, "error": before[k], "phase": "small blocks"} for k in drawn]
    trace += [{"seed": seed, "iteration": len(path) - 1 + k, "error": v, "phase": "support"} for k, v in enumerate(e)]
    return Results([row], trace, [{"seed": seed, "cpu_s": process_time() - start}])


def one_phase(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Operations of a method that has no phases."""
    model, lam, solution = l1_problem(problem, seed)
    start = process_time()
    errors: list[float] = []
    for x in PATHS[method](model, lam):
        errors.append(float(np.linalg.norm(x - solution)))
        near = errors[-1] <= NEAR * np.linalg.norm(solution)
        if near or len(errors) == settings["cap"]:
            break
    row = {"seed": seed, "operations": 2.0 * model.A.size * len(errors), "near": int(near)}
    trace = [{"seed": seed, "iteration": k, "error": errors[k - 1], "phase": method} for k in _thinned(len(errors))]
    return Results([row], trace, [{"seed": seed, "cpu_s": process_time() - start}])


def l1_problem(problem: Settings, seed: int) -> tuple[LinearModel, float, np.ndarray]:
    """A model, its penalty and its solution (d,)."""
    rng = np.random.default_rng(seed)
    model = models.sparse_regression(problem["n"], problem["d"], problem["loss"], rng)
    lam = 0.1 * models.largest_penalty(model)
    return model, lam, models.l1_minimum(model, lam)


# Label propagation: H x = b, by exact updates of one block after the other.


CHOICES = {
    "small_blocks": graph_blocks.small_blocks,
    "red_black": graph_blocks.in_turn(graphs.red_black),
    "combs": graph_blocks.in_turn(graphs.combs),
    "greedy_forest": graph_blocks.greedy,
}


def propagate(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Operations until (f - f*) / (f_0 - f*) is at most the gap, from x = 0."""
    rng, start = np.random.default_rng(seed), process_time()
    if problem["graph"] == "lattice":
        at = graphs.lattice_labels(problem["side"], problem["labels"], rng)
    else:
        at = graphs.moons(problem["points"], problem["labels"], rng)
    choose, g, changed = CHOICES[method](at, problem.get("side", 0)), -at.b, np.arange(len(at.b))
    left = first = at.b @ at.solution  # 2 (f - f*): x = 0
    gaps, operations, multiplications, x = [], [], [], np.zeros_like(at.b)
    while left > problem["gap"] * first and len(gaps) < problem["cap"]:
        b, step, solving, scoring, scored = choose(g, changed)
        columns = at.H[b]  # H is symmetric
        changed = np.unique(columns.indices)
        left += step @ g[b]  # an exact step gains -step g_b / 2
        x[b] += step
        g = g + columns.T @ step
        gaps.append(left / first)
        operations.append(solving + len(changed) + scored)
        multiplications.append(solving + columns.nnz + scoring)
    error = np.abs(x - at.solution).max()
    row = {"seed": seed, "iterations": len(gaps), "reached": int(left <= problem["gap"] * first), "error": error}
    spent = np.cumsum(operations)
    row |= {"operations": float(spent[-1]), "multiplications": float(np.sum(multiplications))}
    trace = [
        {"seed": seed, "iteration": k, "operations": float(spent[k - 1]), "log_gap": np.log10(max(gaps[k - 1], 1e-16))}
        for k in _thinned(len(gaps))
    ]
    return Results([row], trace, [{"seed": seed, "cpu_s": process_time() - start}])


def one_forest(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Operations and error of one exact solve on a random forest, in lattices that the forest nearly fills."""
    rng, found = np.random.default_rng(seed), Results([])
    for size in problem["sizes"]:
        side = math.ceil(math.sqrt(2 * size))
        at = graphs.lattice_labels(side, side * side // 25, rng)
        b = greedy_forest(at.H, rng.random(len(at.b)), size)
        H, right = at.H[b][:, b], rng.standard_normal(len(b))
        start = process_time()
        solution, operations = solve_forest(H, right)
        seconds = process_time() - start
        error = float(np.abs(solution - spsolve(H.tocsc(), right)).max())
        found.rows.append({"seed": seed, "size": size, "operations": operations, "error": error})
        found.timings.append({"seed": seed, "size": size, "cpu_s": seconds})
    return found


def _thinned(count: int) -> list[int]:
    """Some of 1, ..., count, evenly on a log scale, and the same ones for every seed."""
    return sorted({int(1.17**i) for i in range(200) if 1.17**i < count + 1})


KINDS = {
    **dict.fromkeys([*SMOOTH, "accelerated"], on_model),
    **dict.fromkeys(MODES, two_phases),
    **dict.fromkeys(PATHS, one_phase),
    **dict.fromkeys(CHOICES, propagate),
    "forest_solve": one_forest,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        one = KINDS[method](problem, method, settings, seed, inputs)
        found.rows += one.rows
        found.traces += one.traces
        found.timings += one.timings
    return found
