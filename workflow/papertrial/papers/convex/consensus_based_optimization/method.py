"""Minimisation from function values by a cloud of particles that looks like gradient descent from afar.

Consensus-based optimization (CBO) pulls particles towards their weighted mean

    x_a = sum_i X_i w_i / sum_i w_i,    w_i = exp(-alpha E(X_i)),

with noise that grows with the distance to it. Consensus hopping (CH) is its idealisation: x_k is the weighted mean of
a cloud N(x_{k-1}, sigma^2 I). For a quadratic E that is exactly an implicit gradient step of length tau = alpha
sigma^2, and for smooth E an explicit one up to higher order and sampling:

    x_k = x_{k-1} - tau grad E(x_{k-1}) + g_k.

So a method that never sees gradients follows them on the scale of the cloud, and steps over what is narrower.

Source: arXiv 2306.09778. Shapes: S seeds in lockstep, N particles, points (S, d), clouds (S, N, d).
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.cma_es import restarted
from papertrial.testbeds.landscapes import Counted, Landscape, canyon, kinked, rastrigin, rosenbrock

Path = Iterator[np.ndarray]  # the current point of every seed, (S, d), or (steps, S, d) for a grid of steps


class Normals:
    """Standard normal draws, each seed's from a generator of its own."""

    def __init__(self, seeds: list[int], use: int) -> None:
        self.rngs = [np.random.default_rng([seed, use]) for seed in seeds]

    def __call__(self, *shape: int) -> np.ndarray:
        return np.stack([rng.standard_normal(shape) for rng in self.rngs])


# ---- consensus


def consensus(X: np.ndarray, E: np.ndarray, alpha: float) -> np.ndarray:
    """The weighted mean of X (..., N, d) with values E (..., N); weights relative to the best, so none overflows."""
    w = np.exp(-alpha * (E - E.min(axis=-1, keepdims=True)))
    return np.einsum("...n,...nd->...d", w, X) / w.sum(axis=-1)[..., None]


def consensus_integral(E: Callable[[np.ndarray], np.ndarray], x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """x_a of infinitely many particles N(x, sigma^2 I) in the plane: 200 x 200 points within 8 sigma. x (2,)."""
    z = np.linspace(-8, 8, 200)
    offsets = np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1).reshape(-1, 2)
    log_w = -alpha * E(x + sigma * offsets) - 0.5 * (offsets**2).sum(axis=-1)
    w = np.exp(log_w - log_w.max())
    return x + sigma * (w @ offsets) / w.sum()


def consensus_hopping(E: Counted, x: np.ndarray, normals: Normals, problem: dict, alpha: float, sigma: float) -> Path:
    for _ in range(problem["hops"]):
        cloud = x[:, None] + sigma * normals(problem["particles"], x.shape[-1])
        x = consensus(cloud, E(cloud), alpha)
        yield x


def isotropic(z: np.ndarray) -> np.ndarray:
    return np.linalg.norm(z, axis=-1, keepdims=True)


def anisotropic(z: np.ndarray) -> np.ndarray:
    return z


def cbo(
    E: Counted,
    x: np.ndarray,
    normals: Normals,
    problem: dict,
    alpha: float,
    sigma: float,
    lam: float,
    dt: float,
    D: Callable[[np.ndarray], np.ndarray] = isotropic,
) -> Path:
    """Euler-Maruyama: X_i <- X_i - dt lambda (X_i - x_a) + sigma sqrt(dt) D(X_i - x_a) B_i; what comes out is x_a.

    The particles start around the common start, each with noise of its own.
    """
    X = problem["start"] + problem["spread"] * normals(problem["particles"], x.shape[-1])
    for _ in range(problem["steps"]):
        x_a = consensus(X, E(X), alpha)
        yield x_a
        off = X - x_a[:, None]
        X = X - dt * lam * off + sigma * np.sqrt(dt) * D(off) * normals(*X.shape[1:])
    yield consensus(X, E(X), alpha)


# ---- baselines


def gradient_descent(E: Counted, x: np.ndarray, normals: Normals, problem: dict, steps: list[float]) -> Path:
    """With every step of a grid at once."""
    tau = np.reshape(steps, (-1, 1, 1))
    x = np.broadcast_to(x, (len(steps), *x.shape))
    for _ in range(problem["descents"]):
        x = x - tau * E.gradient(x)
        yield x


def annealed_langevin(E: Counted, x: np.ndarray, normals: Normals, problem: dict, tau: float, sigma: float) -> Path:
    """Gradient steps at the temperature sigma / log(k + 2), as many as CH makes evaluations."""
    for k in range(budget(problem)):
        heat = np.sqrt(2 * tau * sigma / np.log(k + 2))
        x = x - tau * E.gradient(x) + heat * normals(x.shape[-1])
        yield x


def random_search(E: Counted, x: np.ndarray, normals: Normals, problem: dict) -> Path:
    """The best of uniform points of the box, as many as CH makes evaluations."""
    low, high = problem["box"]
    X = np.stack([rng.uniform(low, high, (budget(problem), x.shape[-1])) for rng in normals.rngs])
    yield X[np.arange(len(x)), E(X).argmin(axis=1)]


def cma(E: Counted, x: np.ndarray, normals: Normals, problem: dict) -> Path:
    """CMA-ES, restarted until it has made as many evaluations as CH; a quarter of the box wide at first."""
    low, high = problem["box"]
    runs = zip(x, normals.rngs, strict=True)
    yield np.stack([restarted(E, m, (high - low) / 4, budget(problem), rng, low, high)[0] for m, rng in runs])


def budget(problem: dict) -> int:
    return problem["hops"] * problem["particles"]


METHODS: dict[str, Callable[..., Path]] = {
    "ch": consensus_hopping,
    "ch-mean": consensus_hopping,
    "cbo": cbo,
    "cbo-mean": cbo,
    "cbo-anisotropic": partial(cbo, D=anisotropic),
    "gd": gradient_descent,
    "langevin": annealed_langevin,
    "random-search": random_search,
    "cma-es": cma,
}


# ---- c1: is the global minimiser found?

LANDSCAPES: dict[str, Callable[[], Landscape]] = {
    "canyon": canyon,
    "rastrigin": partial(rastrigin, 4),
    "kinked": partial(kinked, 2),
}


def search(problem: dict, method: str, settings: dict, seeds: list[int]) -> Results:
    """One row a seed (and step of the grid) for the last point x: success is E(x) - E* < 1, ||x - x*||_inf < 1/2."""
    f = LANDSCAPES[problem["landscape"]]()
    E = Counted(f)
    x = problem["start"] + problem["spread"] * Normals(seeds, 0)(f.d)
    kept = [x]
    path = METHODS[method](E, x, Normals(seeds, 1), problem | {"box": (f.low, f.high)}, **settings)
    for k, x in enumerate(path, 1):
        if k >= 1.1 ** len(kept):  # for the figures, fewer and fewer
            kept.append(x)
    cells = [{"step": step} for step in settings["steps"]] if "steps" in settings else [{}]
    last = x.reshape(len(cells), len(seeds), f.d)
    gap, distance = f(last) - f.minimum, np.abs(last - f.minimiser).max(axis=-1)
    cost = E.evaluations // (len(seeds) * len(cells))
    rows = [
        {"seed": seed, **cell, **outcome(gap[c, s], distance[c, s]), "evaluations": cost}
        for c, cell in enumerate(cells)
        for s, seed in enumerate(seeds)
    ]
    traces = [
        {"seed": seed, "k": k, "x": float(points[s, 0]), "y": float(points[s, 1])}
        for k, points in enumerate([p.reshape(-1, len(seeds), f.d)[-1] for p in [*kept, x]])
        for s, seed in enumerate(seeds)
    ]
    return Results(rows, traces)


def outcome(gap: float, distance: float) -> Row:
    return {"success": int(gap < 1 and distance < 0.5), "gap": float(gap), "distance": float(distance)}


# ---- c2, c3: one hop against one gradient step; a seed is a point


def point_of(f: Landscape, seed: int) -> np.ndarray:
    """A random point of the box where 0.1 <= ||grad f|| <= 5."""
    rng = np.random.default_rng(seed)
    while True:
        x = rng.uniform(f.low, f.high, f.d)
        if 0.1 <= np.linalg.norm(f.gradient(x)) <= 5:
            return x


def remainder(problem: dict, method: str, settings: dict, seeds: list[int]) -> Results:
    """e = ||x_CH - x + step grad E(x)|| / (step ||grad E(x)||) with step = tau = alpha sigma^2, or a share of it."""
    f, alpha = rosenbrock(0.01), problem["alpha"]
    rows = []
    for seed in seeds:
        x = point_of(f, seed)
        slope = f.gradient(x)
        for sigma in problem["sigmas"]:
            tau = alpha * sigma**2
            step = settings.get("share", 1) * tau
            g = consensus_integral(f, x, alpha, sigma) - x + step * slope
            e = np.linalg.norm(g) / (step * np.linalg.norm(slope))
            rows.append({"seed": seed, "sigma": sigma, "tau": tau, "remainder": float(e)})
    return Results(rows)


def sampling(problem: dict, method: str, settings: dict, seeds: list[int]) -> Results:
    """RMS distance of x_CH with N particles from the integral, and the share of N that the weights leave effective."""
    f, alpha, sigma = rosenbrock(0.01), problem["alpha"], problem["sigma"]
    rows = []
    for seed in seeds:
        x, rng = point_of(f, seed), np.random.default_rng([seed, 1])
        limit = consensus_integral(f, x, alpha, sigma)
        for N in problem["sizes"]:
            squares, effective = [], []
            for _ in range(problem["draws"]):
                X = x + sigma * rng.standard_normal((N, 2))
                E = f(X)
                squares.append(((consensus(X, E, alpha) - limit) ** 2).sum())
                w = np.exp(-alpha * (E - E.min()))
                effective.append(w.sum() ** 2 / (w**2).sum() / N)
            rms = float(np.sqrt(np.mean(squares)))
            rows.append({"seed": seed, "N": N, "rms": rms, "effective": float(np.mean(effective))})
    return Results(rows)


MEASURES: dict[str, Callable[..., Results]] = {"search": search, "remainder": remainder, "sampling": sampling}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]](problem, method, settings, seeds)
