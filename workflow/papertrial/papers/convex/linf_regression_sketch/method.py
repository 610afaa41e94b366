"""How far one coordinate of a sketched least-squares solution may be off.

x* = argmin ||A x - b||, x' = (S A)^+ S b with A (n, d) and S (m, n). The l2 error of x' says little about its largest
coordinate error, which a sketch with dense, independent-looking columns keeps sqrt(d) times smaller:

    R = sqrt(d) ||x' - x*||_inf / (||A x* - b|| ||A^+||),

the eps of the guarantee max_j |x'_j - x*_j| <= (eps / sqrt d) ||A x* - b|| ||A^+||.

Source: arXiv 2302.00248.
"""

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.row_scores import leverage_scores
from papertrial.methods.sketches import (
    Sketch,
    countsketch,
    drawn,
    gaussian,
    osnap,
    rademacher,
    row_sample,
    srht,
    tensor_srht,
)
from papertrial.testbeds.tall_matrices import coherent_rows, gaussian_rows, off_range, orthonormal

Settings = dict[str, Any]


class Regression(NamedTuple):
    """Least squares with what R is measured by."""

    A: np.ndarray  # (n, d), full rank
    b: np.ndarray  # (n,)
    x: np.ndarray  # (d,) x*
    unit: float  # ||A x* - b|| ||A^+|| / sqrt d


def regression(A: np.ndarray, b: np.ndarray) -> Regression:
    x, *_, singular_values = np.linalg.lstsq(A, b, rcond=None)
    return Regression(A, b, x, float(np.linalg.norm(A @ x - b) / singular_values.min() / np.sqrt(A.shape[1])))


# ---- instances


def gaussian_instance(n: int, d: int, rng: np.random.Generator) -> Regression:
    A = orthonormal(gaussian_rows(n, d, rng))
    return regression(A, off_range(A, rng.standard_normal(n)))


def coherent_instance(n: int, d: int, rng: np.random.Generator) -> Regression:
    A = coherent_rows(n, d, rng, share=0.1, scale=20.0)
    return regression(A, off_range(A, rng.standard_normal(n)))


def spike_instance(n: int, d: int, rng: np.random.Generator) -> Regression:
    """All of A in its first d rows, all of b in the next d: x* = 0, and an error is a spike that met a column."""
    A, b = np.eye(n, d), np.zeros(n)
    b[d : 2 * d] = d**-0.5
    return regression(A, b)


GENERATED = {"gaussian": gaussian_instance, "coherent": coherent_instance, "spike": spike_instance}


def standardised(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant ones are left out."""
    x = x[:, x.std(axis=0) > 0].astype(float)
    return (x - x.mean(axis=0)) / x.std(axis=0)


def full_rank(x: np.ndarray) -> np.ndarray:
    """Its principal columns, those above a millionth of the largest."""
    U, s, _ = np.linalg.svd(x, full_matrices=False)
    kept = s > 1e-6 * s[0]
    return U[:, kept] * s[kept]


def products(x: np.ndarray) -> np.ndarray:
    """The columns of x and their products in pairs."""
    i, j = np.triu_indices(x.shape[1])
    return np.hstack([x, x[:, i] * x[:, j]])


FEATURES = {"digits": lambda x: x.reshape(len(x), -1), "diabetes": lambda x: products(standardised(x))}


def data_instance(name: str, inputs: Inputs) -> Regression:
    data = inputs.datasets[name]
    y = np.asarray(data["y"], dtype=float)
    return regression(full_rank(standardised(FEATURES[name](data["x"]))), (y - y.mean()) / y.std())


def instances(problem: Settings, seed: int, inputs: Inputs) -> list[Regression]:
    """The seed's member of a generated family at each d; or the one that a data set makes."""
    if "family" not in problem:
        return [data_instance(problem["data"], inputs)]
    make = GENERATED[problem["family"]]
    return [make(problem["n"], d, np.random.default_rng([seed, d])) for d in problem["d"]]


# ---- sketch and solve


def solve(SA: np.ndarray, Sb: np.ndarray) -> np.ndarray:
    """(S A)^+ S b, (d,), by QR; the small triangle's pseudo-inverse covers an S A that lost rank."""
    d = SA.shape[1]
    R = np.linalg.qr(np.column_stack([SA, Sb]), mode="r")  # (min(m, d+1), d+1)
    return np.linalg.lstsq(R[:d, :d], R[:d, d], rcond=None)[0]


def errors(r: Regression, sketch: Sketch, m: int, rng: np.random.Generator) -> tuple[float, float]:
    """R and the l2 error ||x' - x*|| of one draw."""
    S_Ab = sketch(np.column_stack([r.A, r.b]), m, rng)  # (m, d+1)
    off = solve(S_Ab[:, :-1], S_Ab[:, -1]) - r.x
    return float(np.abs(off).max() / r.unit), float(np.linalg.norm(off))


def by_scores(tau: np.ndarray) -> Sketch:
    """Rows drawn in proportion to tau (n,)."""

    def sketch(A: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
        rows, scale = row_sample(tau / tau.sum(), m, rng)
        return A[rows] * scale[:, None]

    return sketch


SKETCHES: dict[str, Callable[[Regression], Sketch]] = {
    "srht": lambda r: srht,
    "tensor_srht": lambda r: tensor_srht,
    "gaussian": lambda r: gaussian,
    "rademacher": lambda r: rademacher,
    "countsketch": lambda r: countsketch,
    "osnap2": lambda r: partial(osnap, s=2),
    "osnap4": lambda r: partial(osnap, s=4),
    "osnap8": lambda r: partial(osnap, s=8),
    "uniform": lambda r: drawn,
    "leverage": lambda r: by_scores(leverage_scores(r.A)),
}


def quantiles(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """The 95% quantile of R over ``draws`` sketches of one instance, for every d and m."""
    draws = min(problem["draws"], settings.get("most_draws", problem["draws"]))
    rows = []
    for r in instances(problem, seed, inputs):
        d, sketch = r.A.shape[1], SKETCHES[method](r)
        for ratio in problem["m_over_d"]:
            rngs = [np.random.default_rng([seed, d, ratio, draw]) for draw in range(draws)]
            found = np.array([errors(r, sketch, ratio * d, rng) for rng in rngs])  # (draws, 2)
            row = {"seed": seed, "d": d, "m_over_d": ratio, "q95": float(np.quantile(found[:, 0], 0.95))}
            rows.append(row | {"l2": float(np.median(found[:, 1]))})
    return Results(rows)


def single_draws(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """R and the l2 error of the seed's one sketch, for every d and m; the instance is the same for all seeds."""
    rows = []
    for r in instances(problem, 0, inputs):
        d, sketch = r.A.shape[1], SKETCHES[method](r)
        for ratio in settings.get("m_over_d", problem["m_over_d"]):
            R, l2 = errors(r, sketch, ratio * d, np.random.default_rng([seed, d, ratio]))
            rows.append({"seed": seed, "d": d, "m_over_d": ratio, "R": round(R, 5), "l2": round(l2, 5)})
    return Results(rows)


# ---- what S A costs


def cost(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Operations of S A by the fast transform, and its CPU seconds beside a dense product S @ A, in turn."""
    d, rng = problem["columns"], np.random.default_rng(seed)
    m = problem["m_over_d"] * d
    rows, timings = [], []
    for n in problem["rows"]:
        A, S = gaussian_rows(n, d, rng), rng.standard_normal((m, n))
        counted: list[int] = []
        start = process_time()
        srht(A, m, rng, counted.append)
        fast = process_time()
        S @ A
        done = process_time()
        rows.append({"seed": seed, "n": n, "operations": sum(counted), "dense_operations": 2 * m * n * d})
        timings.append({"seed": seed, "n": n, "fast_s": fast - start, "dense_s": done - fast})
    return Results(rows, timings=timings)


TASKS = {"quantiles": quantiles, "single draws": single_draws, "cost": cost}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        one = TASKS[problem["task"]](problem, method, settings, seed, inputs)
        found.rows += one.rows
        found.timings += one.timings
    return found
