"""How many rows of A (n, d), sampled by a score and reweighted, keep ||A x||_p for all x.

Row i is kept with probability q_i = min(1, alpha s_i), by itself, and scaled by q_i^(-1/p). With s the sensitivities
sigma_i = max_x |<a_i, x>|^p / ||A x||_p^p and S their sum, about S^(2/p) rows do for 1 <= p < 2 and S^(2 - 2/p) for
p > 2, instead of S d; with s = tau^(p/2), tau the leverage scores, about d for p < 2.

Source: arXiv 2306.00732.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.row_scores import (
    inclusion_probabilities,
    leverage_scores,
    lewis_weights,
    row_sensitivities,
)
from papertrial.testbeds.subspace_distortion import distortion, subspace
from papertrial.testbeds.tall_matrices import (
    coherent_rows,
    gaussian_rows,
    repeated_identity,
    spiked_identity,
    vandermonde,
    with_heavy_rows,
)

Settings = dict[str, Any]
GROWTH = 1.5  # from one sample size to the next


# ---- scores (n,) of A's rows


class Rows:
    """A and p, with what is computed from them at most once."""

    def __init__(self, A: np.ndarray, p: float) -> None:
        self.A, self.p = A, p

    @cached_property
    def sigma(self) -> np.ndarray:
        return row_sensitivities(self.A, self.p)

    @cached_property
    def tau(self) -> np.ndarray:
        return leverage_scores(self.A)


SCORES: dict[str, Callable[[Rows], np.ndarray]] = {
    "sensitivity": lambda rows: rows.sigma,
    "permuted": lambda rows: np.random.default_rng(len(rows.A)).permutation(rows.sigma),  # the control: of other rows
    "uniform": lambda rows: np.ones(len(rows.A)),
    "leverage": lambda rows: rows.tau,
    "root_leverage": lambda rows: rows.tau ** (rows.p / 2),
    "lewis": lambda rows: lewis_weights(rows.A, rows.p),
    "both": lambda rows: np.maximum(rows.sigma, rows.tau),
}


def sample(scores: np.ndarray, m: float, rng: np.random.Generator) -> np.ndarray:
    """What |<a_i, x>|^p is multiplied by: 1/q_i for the rows kept, 0 for the others; m is the expected number kept."""
    q = inclusion_probabilities(scores, m)
    kept = rng.random(len(q)) < q
    return np.divide(1.0, q, out=np.zeros(len(q)), where=kept)


# ---- matrices


FAMILIES: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "gaussian": gaussian_rows,
    "heavy": lambda n, d, rng: with_heavy_rows(n, d, rng, scale=2.4),
    "coherent": lambda n, d, rng: coherent_rows(n, d, rng, share=0.05, scale=20.0),
    "identity": lambda n, d, rng: repeated_identity(n, d),
    "vandermonde": lambda n, d, rng: vandermonde(n, d),
}


def principal_columns(x: np.ndarray, d: int) -> np.ndarray:
    """The first d principal columns of x with its columns standardised: (n, d)."""
    z = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    U, s, _ = np.linalg.svd(z, full_matrices=False)
    return U[:, :d] * s[:d]


def instance(problem: Settings, d: int, inputs: Inputs) -> np.ndarray:
    """The one matrix of a family and a width; seeds are samples of its rows."""
    if "data" in problem:
        return principal_columns(inputs.datasets[problem["data"]]["x"][: problem.get("rows")], d)
    return FAMILIES[problem["family"]](problem["n"], d, np.random.default_rng([problem["instance"], d]))


# ---- what is measured


def sizes(d: int, n: int) -> list[float]:
    """d, 1.5 d, 1.5^2 d ... up to the first that is a quarter of n or more."""
    steps = math.ceil(math.log(n / 4 / d, GROWTH))
    return [d * GROWTH**k for k in range(steps + 1)]


def over_sizes(problem: Settings, method: str, seeds: list[int], inputs: Inputs) -> Results:
    """The distortion at every sample size, one column each, for every d."""
    p, rows = problem["p"], []
    for d in problem["d"]:
        A = instance(problem, d, inputs)
        space = subspace(A, p, np.random.default_rng([problem["instance"], d]))
        scores = SCORES[method](Rows(A, p))
        total = {"S": round(float(scores.sum()), 4)} if method == "sensitivity" else {}
        for seed in seeds:
            row = {"seed": seed, "d": d, "n": len(A), **total}
            for k, m in enumerate(sizes(d, len(A))):
                rng = np.random.default_rng([seed, d, k])
                row[f"step_{k}"] = round(distortion(space, sample(scores, m, rng), rng), 4)
            rows.append(row)
    return Results(rows)


def at_ratio(problem: Settings, method: str, seeds: list[int], inputs: Inputs) -> Results:
    """The distortion of samples of m = ratio d rows."""
    p, rows = problem["p"], []
    for d in problem["d"]:
        A = instance(problem, d, inputs)
        space = subspace(A, p, np.random.default_rng([problem["instance"], d]))
        scores = SCORES[method](Rows(A, p))
        for seed in seeds:
            rng = np.random.default_rng([seed, d])
            weights = sample(scores, problem["ratio"] * d, rng)
            rows.append({"seed": seed, "d": d, "distortion": round(distortion(space, weights, rng), 5)})
    return Results(rows)


def exponent(p: float) -> float:
    """e in m = C S^e."""
    return 2 / p if p < 2 else 2 - 2 / p


def by_theorem(problem: Settings, method: str, seeds: list[int], inputs: Inputs) -> Results:
    """The distortion at m = C S^e ln(10 d), at most half of the rows, for every p."""
    d, rows = problem["width"], []
    A = instance(problem, d, inputs)
    for p in problem["powers"]:
        space = subspace(A, p, np.random.default_rng([problem["instance"], d]))
        of_A = Rows(A, p)
        S, scores = float(of_A.sigma.sum()), SCORES[method](of_A)
        asked = problem["C"] * S ** exponent(p) * math.log(10 * d)
        m = min(asked, len(A) / 2)
        for seed in seeds:
            rng = np.random.default_rng([seed, d, round(10 * p)])
            found = round(distortion(space, sample(scores, m, rng), rng), 5)
            row = {"seed": seed, "p": p, "S": round(S, 3), "m": round(m, 1), "capped": int(asked > m)}
            rows.append(row | {"distortion": found})
    return Results(rows)


def on_spikes(problem: Settings, method: str, seeds: list[int], inputs: Inputs) -> Results:
    """Spiked identity, where the distortion is exact: the worst coordinate's share of its mass kept, off by."""
    p, rows = problem["p"], []
    for d in problem["d"]:
        A = spiked_identity(problem["repeats"], d, p)
        m = problem["C"] * d ** exponent(p)  # S = d
        scores = SCORES[method](Rows(A, p))
        masses = A**p  # (n, d), one entry a row
        for seed in seeds:
            kept = sample(scores, m, np.random.default_rng([seed, d])) @ masses  # (d,)
            worst = float(np.abs(kept / masses.sum(axis=0) - 1).max())
            rows.append({"seed": seed, "d": d, "distortion": round(worst, 5)})
    return Results(rows)


TASKS = {"over sizes": over_sizes, "at ratio": at_ratio, "by theorem": by_theorem, "on spikes": on_spikes}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return TASKS[problem["task"]](problem, method, seeds, inputs)
