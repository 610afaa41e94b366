"""Bilevel optimisation with first derivatives only, by the penalty function

    psi_sigma(x) = (l(x, sigma) - l(x, 0)) / sigma,     l(x, sigma) = min_y h_sigma(x, y),  h_sigma = sigma f + g.

If the residual of a gradient step bounds the distance to the minimisers of h_sigma, uniformly in sigma (an error
bound), then psi_sigma and its gradient

    grad psi_sigma = grad_x f(x, y_s) + (grad_x g(x, y_s) - grad_x g(x, z)) / sigma,    y_s, z minimise h_sigma, g,

are within O(sigma) of psi and grad psi, even where the lower level has many solutions. Algorithm 1 solves for y_s and z
before each step in x; Algorithm 2 moves x, y and z at once, along variance-reduced estimates.

Source: Kwon, Kwon, Wright, Nowak, arXiv:2309.01753 (2024).
"""

from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.testbeds.bilevel import (
    Bilevel,
    curved_and_flat,
    hyper_objective,
    hypergradient,
    lower_solution,
    many_solutions,
    minimise,
    penalised,
    strongly_convex,
)

Array = np.ndarray
Settings = dict[str, Any]
BOX = 5.0  # X = [-5, 5]^n

FAMILIES = {"strongly_convex": strongly_convex, "many_solutions": many_solutions}


# ---- the penalty function, its inner problems solved exactly


def penalty_function(problem: Bilevel, x: Array, sigma: float) -> tuple[Array, Array]:
    """psi_sigma and its gradient at x (..., p)."""
    f, g, h = problem.upper, problem.lower, penalised(problem, sigma)
    z = lower_solution(problem, x)
    y = minimise(h, x, z)
    value = (h.value(x, y) - g.value(x, z)) / sigma
    return value, f.grad_x(x, y) + (g.grad_x(x, y) - g.grad_x(x, z)) / sigma


def closeness(problem: Bilevel, x: Array, sigma: float) -> tuple[float, float]:
    """|psi_sigma - psi| and ||grad psi_sigma - grad psi||."""
    value, gradient = penalty_function(problem, x, sigma)
    exact = hypergradient(problem, x, lower_solution(problem, x))
    return float(abs(value - hyper_objective(problem, x))), float(np.linalg.norm(gradient - exact))


def closeness_at_jump(x: float, sigma: float) -> tuple[float, float]:
    """The same for g = x y on y in [-1, 1], f = (y - 0.2)^2: S(x) = {-sign x} jumps at 0, so no error bound holds."""
    z = -np.sign(x)
    y = np.clip(0.2 - x / (2 * sigma), -1, 1)
    value = (y - 0.2) ** 2 + x * (y - z) / sigma
    return float(abs(value - (z - 0.2) ** 2)), float(abs(y - z) / sigma)  # grad psi = 0


def point_of(problem: Settings, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(problem["n"])


def approximation(problem: Settings, method: str, settings: Settings, seeds: list[int]) -> Results:
    """A seed is a point x of one instance."""
    rows = []
    instance = FAMILIES[problem["family"]](problem["instance"], problem["n"])
    for seed in seeds:
        for sigma in problem["sigmas"]:
            if method == "penalty":
                value, gradient = closeness(instance, point_of(problem, seed), sigma)
            else:  # 15 distances from the jump, on both sides
                value, gradient = closeness_at_jump((-1) ** seed * 10 ** (-3 + seed // 2 % 15 * 3 / 14), sigma)
            rows.append({"seed": seed, "sigma": sigma, "value_error": value, "gradient_error": gradient})
    return Results(rows)


def smallest_lower_solution(problem: Bilevel, x: Array) -> Array:
    """The control's reference: of all lower solutions the one of least norm."""
    return minimise(problem.lower, x, np.zeros(problem.q), curved_and_flat(problem)[0])


LOWER_SOLUTIONS = {"penalty": lower_solution, "least_norm": smallest_lower_solution}


def formula(problem: Settings, method: str, settings: Settings, seeds: list[int]) -> Results:
    """Relative errors of the pseudo-inverse formula and of the penalty's gradient; a seed is a point x."""
    rows = []
    instance = FAMILIES[problem["family"]](problem["instance"], problem["n"])
    h = 1e-5
    for seed in seeds:
        x = point_of(problem, seed)
        steps = h * np.eye(len(x))
        differences = (hyper_objective(instance, x + steps) - hyper_objective(instance, x - steps)) / (2 * h)
        gradient = hypergradient(instance, x, LOWER_SOLUTIONS[method](instance, x))
        _, penalised_gradient = penalty_function(instance, x, problem["sigma"])
        row = {"seed": seed, "formula_error": np.linalg.norm(gradient - differences) / np.linalg.norm(differences)}
        row["penalty_error"] = np.linalg.norm(penalised_gradient - gradient) / np.linalg.norm(gradient)
        rows.append({key: float(value) if key != "seed" else value for key, value in row.items()})
    return Results(rows)


# ---- deterministic: calls until the projected hyper-gradient is eps


def project(x: Array) -> Array:
    return np.clip(x, -BOX, BOX)


def stationarity(problem: Bilevel, x: Array, y: Array) -> Array:
    """||x - proj(x - grad psi(x))|| at the lower solution y."""
    return np.linalg.norm(x - project(x - hypergradient(problem, x, y)), axis=-1)


def settle(gradient: Callable[[Array], Array], y: Array, step: Array, tol: Array) -> tuple[Array, Array]:
    """Gradient steps, each lane to a norm of tol; and the evaluations that a lane has paid for."""
    evaluations, active = np.zeros(len(y)), np.ones(len(y), dtype=bool)
    while active.any():
        slope = gradient(y)
        evaluations += active
        active &= np.linalg.norm(slope, axis=-1) > tol
        y = np.where(active[:, None], y - step * slope, y)
    return y, evaluations


def lower_smoothness(problem: Bilevel) -> float:
    """L of grad_y g, largest at y = 0 in both families."""
    return float(np.linalg.eigvalsh(problem.lower.hess_yy(np.zeros(problem.p), np.zeros(problem.q)))[-1])


Path = Iterator[tuple[Array, Array]]  # x (E, n), and what the iteration cost each lane (E,)


def algorithm_1(problem: Bilevel, x: Array, eps: Array, *, alpha: float, s: float, accuracy: float) -> Path:
    """Double loop; sigma = s eps, and the inner loops end at gradients of norm accuracy * sigma * eps."""
    f, g = problem.upper, problem.lower
    sigma = s * eps
    h, tol, L = penalised(problem, sigma), accuracy * sigma * eps, lower_smoothness(problem)
    y = z = np.zeros_like(x)
    while True:
        y, n_y = settle(lambda y: h.grad_y(x, y), y, 1 / (L + 3 * sigma[:, None]), tol)
        z, n_z = settle(lambda z: g.grad_y(x, z), z, 1 / L, tol)
        x = project(x - alpha * (f.grad_x(x, y) + (g.grad_x(x, y) - g.grad_x(x, z)) / sigma[:, None]))
        yield x, 2 * n_y + n_z + 3


def implicit_gradient(problem: Bilevel, x: Array, eps: Array, *, alpha: float, accuracy: float) -> Path:
    """The reference with second derivatives, whose systems are solved exactly and not charged."""
    g, L = problem.lower, lower_smoothness(problem)
    y = np.zeros_like(x)
    while True:
        y, n_y = settle(lambda y: g.grad_y(x, y), y, 1 / L, accuracy * eps)
        x = project(x - alpha * hypergradient(problem, x, y))
        yield x, n_y + 2


def bome(problem: Bilevel, x: Array, eps: Array, *, alpha: float, T: int, eta: float) -> Path:
    """Descent on f under the barrier of the value gap q = g(x, y) - g(x, z), z by T steps from y."""
    f, g, L = problem.upper, problem.lower, lower_smoothness(problem)
    y = np.zeros_like(x)
    while True:
        z = y
        for _ in range(T):
            z = z - g.grad_y(x, z) / L
        q = np.concatenate([g.grad_x(x, y) - g.grad_x(x, z), g.grad_y(x, y)], axis=-1)  # (E, 2n)
        u = np.concatenate([f.grad_x(x, y), f.grad_y(x, y)], axis=-1)
        square = (q * q).sum(axis=-1, keepdims=True)
        weight = np.maximum(eta - (u * q).sum(axis=-1, keepdims=True) / np.maximum(square, 1e-300), 0)
        dx, dy = np.split(u + weight * q, 2, axis=-1)
        x, y = project(x - alpha * dx), y - alpha * dy
        yield x, np.full(len(x), T + 5.0)


ALGORITHMS = {"penalty": algorithm_1, "implicit": implicit_gradient, "bome": bome}


def calls(problem: Settings, method: str, settings: Settings, seeds: list[int]) -> Results:
    """Calls until every eps is reached, and the least norm that sigma = s eps of the largest eps, kept fixed, comes
    to in as many calls as the smallest eps took."""
    instance = FAMILIES[problem["family"]](problem["instance"], problem["n"])
    eps, cap = np.array(problem["eps"]), problem["cap"]
    rows, traces = [], []
    for seed in seeds:
        start = np.tile(project(np.random.default_rng(seed).standard_normal(problem["n"])), (len(eps), 1))
        spent, first, least = np.zeros(len(eps)), np.full(len(eps), np.inf), np.full(len(eps), np.inf)
        y = lower_solution(instance, start)
        for k, (x, cost) in enumerate(ALGORITHMS[method](instance, start, eps, **settings)):
            spent += cost
            y = lower_solution(instance, x, y, 1e-9)  # what is logged is not charged
            norm = stationarity(instance, x, y)
            least = np.minimum(least, norm)
            first = np.where((norm <= eps) & (first > spent), spent, first)
            if k in KEPT:
                traces += [
                    {"seed": seed, "eps": e, "calls": c, "norm": m} for e, c, m in zip(eps, spent, norm, strict=True)
                ]
            budget = min(first.max(), cap)  # of this start
            if spent[0] >= budget:
                break
        for e, c, m in zip(eps, first, least, strict=True):
            reached = int(c <= cap)
            row = {"seed": seed, "eps": float(e), "calls": float(min(c, cap)), "reached": reached}
            rows.append(row | {"least_norm": float(m)})
    return Results(rows, traces)


KEPT = {int(k) for k in np.geomspace(1, 1e6, 100)}


# ---- stochastic: samples until the hyper-gradient is eps, for lanes (C configurations, S seeds, E accuracies, n)


class Noise:
    """Standard normals of every seed's own generator, (k, 2, S, E, n) at a time, shared by all configurations."""

    def __init__(self, seeds: list[int], E: int, n: int) -> None:
        self.rngs, self.shape = [np.random.default_rng([seed, 1]) for seed in seeds], (E, n)

    def draw(self, k: int) -> Array:
        return np.stack([rng.standard_normal((k, 2, *self.shape)) for rng in self.rngs], axis=2)


def call(gradient: Array, noise: Array, w: Array) -> Array:
    """A stochastic gradient in w: noise that doesn't cancel between two points, since it depends on w."""
    return gradient + 0.05 * (noise[0] + noise[1] * np.sin(w))


def lower_estimates(problem: Bilevel, x: Array, y: Array, z: Array, sigma: Array, N: Array) -> tuple[Array, Array]:
    """grad_y h_sigma(x, y) and grad_y g(x, z); 3 calls."""
    f, g = problem.upper, problem.lower
    h_y = sigma * call(f.grad_y(x, y), N[0], y) + call(g.grad_y(x, y), N[1], y)
    return h_y, call(g.grad_y(x, z), N[2], z)


def upper_estimate(problem: Bilevel, x: Array, y: Array, z: Array, sigma: Array, N: Array) -> Array:
    """grad psi_sigma with y and z for the minimisers; 3 calls."""
    f, g = problem.upper, problem.lower
    difference = call(g.grad_x(x, y), N[1], x) - call(g.grad_x(x, z), N[2], x)
    return call(f.grad_x(x, y), N[0], x) + difference / sigma


def algorithm_2(
    problem: Bilevel, x: Array, sigma: Array, noise: Noise, *, alpha: Array, gamma: Array, eta: Array
) -> Iterator[Array]:
    """Single loop with STORM: v = grad(w; xi) + (1 - eta)(v - grad(w_before; xi)) for y, z and x; 12 calls."""
    y = z = np.zeros_like(x)
    v, before = None, None

    def estimates(x: Array, y: Array, z: Array, N: Array) -> Array:
        lower = lower_estimates(problem, x, y, z, sigma, N[:3])
        return np.stack([*lower, upper_estimate(problem, x, y, z, sigma, N[3:])])  # (3, C, S, E, n)

    while True:
        N = noise.draw(6)
        fresh = estimates(x, y, z, N)
        v = fresh if v is None else fresh + (1 - eta) * (v - estimates(*before, N))
        before = x, y, z
        x, y, z = project(x - alpha * v[2]), y - gamma * v[0], z - gamma * v[1]
        yield x


def plain_single_loop(
    problem: Bilevel, x: Array, sigma: Array, noise: Noise, *, alpha: Array, gamma: Array
) -> Iterator[Array]:
    """F2SA: the same without momentum, so each draw is used at one point; 6 calls."""
    y = z = np.zeros_like(x)
    while True:
        N = noise.draw(6)
        dy, dz = lower_estimates(problem, x, y, z, sigma, N[:3])
        dx = upper_estimate(problem, x, y, z, sigma, N[3:])
        x, y, z = project(x - alpha * dx), y - gamma * dy, z - gamma * dz
        yield x


def stochastic_algorithm_1(
    problem: Bilevel, x: Array, sigma: Array, noise: Noise, *, alpha: Array, gamma: Array, T: int, M: int
) -> Iterator[Array]:
    """Double loop: T steps in y and z, then one in x along the mean of M estimates; 3 T + 3 M calls."""
    y = z = np.zeros_like(x)
    while True:
        for _ in range(T):
            dy, dz = lower_estimates(problem, x, y, z, sigma, noise.draw(3))
            y, z = y - gamma * dy, z - gamma * dz
        N = noise.draw(3) / np.sqrt(M)  # distributed like the mean of M draws
        x = project(x - alpha * upper_estimate(problem, x, y, z, sigma, N))
        yield x


STOCHASTIC: dict[str, tuple[Callable[..., Iterator[Array]], Callable[[Settings], int]]] = {
    "single_loop": (algorithm_2, lambda c: 12),
    "plain_single_loop": (plain_single_loop, lambda c: 6),
    "double_loop": (stochastic_algorithm_1, lambda c: 3 * c["T"] + 3 * c["M"]),
}
LANED = ("alpha", "gamma", "eta")  # settings that may differ between lanes of one loop
LOGGED = 120  # samples between two looks at the exact hyper-gradient


def samples(
    instance: Bilevel, method: str, configs: list[Settings], seeds: list[int], eps: list[float], s: float, cap: int
) -> Array:
    """Samples until ||grad psi|| <= eps, the cap where it isn't reached: (C, S, E)."""
    iterate, price = STOCHASTIC[method]
    n, L = instance.p, lower_smoothness(instance)
    starts = np.stack([2 * np.random.default_rng([seed, 0]).standard_normal(n) for seed in seeds])
    start = np.broadcast_to(project(starts)[:, None, :], (len(configs), len(seeds), len(eps), n))
    lanes = {k: np.array([c[k] for c in configs])[:, None, None, None] for k in LANED if k in configs[0]}
    lanes["gamma"] = lanes["gamma"] / L
    shared = {k: v for k, v in configs[0].items() if k not in LANED}
    cost = price(shared)
    every = -(-LOGGED // cost)
    found = np.full(start.shape[:3], cap)
    sigma = s * np.array(eps)[:, None]
    y = np.zeros_like(start)
    path = iterate(instance, start, sigma, Noise(seeds, len(eps), n), **lanes, **shared)
    for k, x in enumerate(islice(path, cap // cost)):
        if k % every == 0:
            y = lower_solution(instance, x, y, 1e-9)
            norm = np.linalg.norm(hypergradient(instance, x, y), axis=-1)
            found = np.where((found == cap) & (norm <= eps), cost * (k + 1), found)
            if (found < cap).all():
                break
    return found


def trials_of(instance: Bilevel, problem: Settings, method: str, grid: Settings) -> list[Settings]:
    """Every configuration with its samples at every eps (mean logarithm over tuning seeds); configurations that differ
    in step lengths only share a loop."""
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    eps, trials = problem["eps"], []
    for key in dict.fromkeys(tuple((k, p[k]) for k in p if k not in LANED) for p in points):
        group = [p for p in points if all(p[k] == v for k, v in key)]
        used = samples(instance, method, group, problem["tuning_seeds"], eps, problem["s"], problem["tuning_cap"])
        scores = np.log(used).mean(axis=1)  # (C, E)
        trials += [
            {**p, "eps": e, "log_samples": float(score)}
            for p, of_point in zip(group, scores, strict=True)
            for e, score in zip(eps, of_point, strict=True)
        ]
    return trials


def race(problem: Settings, method: str, settings: Settings, seeds: list[int]) -> Results:
    """The best configuration of every eps, raced on the judged seeds."""
    instance = FAMILIES[problem["family"]](problem["instance"], problem["n"])
    trials = trials_of(instance, problem, method, settings["grid"])
    rows = []
    for eps in problem["eps"]:
        best = min((t for t in trials if t["eps"] == eps), key=lambda t: t["log_samples"])
        chosen = {k: best[k] for k in settings["grid"]}
        used = samples(instance, method, [chosen], seeds, [eps], problem["s"], problem["cap"])[0, :, 0]
        rows += [
            {"seed": seed, "eps": eps, "samples": int(n), "reached": int(n < problem["cap"]), **chosen}
            for seed, n in zip(seeds, used, strict=True)
        ]
    return Results(sorted(rows, key=lambda row: row["seed"]), [{"seed": -1, **t} for t in trials])


MEASURES = {"approximation": approximation, "formula": formula, "calls": calls, "race": race}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]](problem, method, settings, seeds)
