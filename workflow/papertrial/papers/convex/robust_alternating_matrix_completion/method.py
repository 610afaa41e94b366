"""Complete a low-rank matrix by alternating least squares whose updates are only approximately solved.

P_Omega(M), the entries of M (m, n) in the set Omega, is given; M has rank k. One round of alternating minimisation is

    V <- argmin_V ||P_Omega(M - U V^T)||_F, orthonormalised;    U <- argmin_U ||P_Omega(M - U V^T)||_F, likewise:

a small least-squares problem min ||A x - b|| for each of the n + m rows, A the other factor's rows at the |Omega_j|
known places. An exact solve costs |Omega_j| k^2; a sketched and preconditioned one |Omega_j| k log(1/e) and an error.
The analysis says how much of it the alternation bears.

Source: arXiv 2302.11068.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.matrix_completion import Factors, scaled_gd, soft_impute, top
from papertrial.methods.sketched_least_squares import (
    Start,
    conjugate_gradients,
    from_sketch,
    normal_equations,
    sketch_rows,
    srht_stack,
)
from papertrial.methods.sketches import countsketch, power_of_two, srht
from papertrial.testbeds.matrix_completion import (
    LowRank,
    Observed,
    Padded,
    distance,
    haar,
    incoherence,
    low_rank,
    observe,
    relative_error,
)

Settings = dict[str, Any]
Update = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]  # A (B, L, k), b (B, L) -> x (B, k)
MOST_STEPS = 60
DIVERGED = 1e6
BLOCK = 1 << 14  # rows solved at a time


# ---- the update of one factor


def exact(A: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return normal_equations(A, b)


def robust(A: np.ndarray, b: np.ndarray, rng: np.random.Generator, e: float) -> np.ndarray:
    """||A (x - x*)|| <= e ||A x* - b||: relative to the residual, so the error fades as the fit improves."""
    start = from_sketch(srht_stack(np.concatenate([A, b[..., None]], axis=2), sketch_rows(A.shape[2]), rng))
    return conjugate_gradients(A, b, start, normal_equations(A, b), e, MOST_STEPS)[0]


def injected(A: np.ndarray, b: np.ndarray, rng: np.random.Generator, e: float) -> np.ndarray:
    """x* plus a random direction of length e ||x*||: relative to the solution, so the error never fades."""
    x = normal_equations(A, b)
    u = rng.standard_normal(x.shape)
    return x + u * (e * np.linalg.norm(x, axis=1) / np.linalg.norm(u, axis=1))[:, None]


UPDATES: dict[str, Callable[..., np.ndarray]] = {"exact": exact, "robust": robust, "injected": injected}


def solved(known: Padded, other: np.ndarray, update: Update, rng: np.random.Generator) -> np.ndarray:
    """Every row of one factor, given the other one."""
    blocks = range(0, len(known.index), BLOCK)
    parts = [Padded(known.index[i : i + BLOCK], known.value[i : i + BLOCK]) for i in blocks]
    return np.concatenate([update(part.design(other), part.value, rng) for part in parts])


# ---- alternation


def orthonormal(U: np.ndarray, limit: float) -> np.ndarray:
    """QR; rows longer than the limit, which would spoil the incoherence, are set to zero first."""
    Q = np.linalg.qr(U)[0]
    long = np.linalg.norm(Q, axis=1) > limit
    return np.linalg.qr(np.where(long[:, None], 0.0, Q))[0] if long.any() else Q


def limits(M: LowRank) -> tuple[float, float]:
    """2 sqrt(mu k / n) for the rows of each factor."""
    return tuple(2 * math.sqrt(incoherence(X) * X.shape[1] / len(X)) for X in (M.U, M.V))


def alternate(
    parts: list[Observed], k: int, limit: tuple[float, float], rng: np.random.Generator, update: Update
) -> Iterator[Factors]:
    """Rounds without end. Step after step uses the next of the parts: the theory has 2T + 1 of them, practice one."""
    part = itertools.cycle(parts)
    U = orthonormal(top(next(part), k, rng)[0], limit[0])
    while True:
        V = orthonormal(solved(next(part).by_column, U, update, rng), limit[1])  # (n, k)
        U = solved(next(part).by_row, V, update, rng)  # (m, k), carries the singular values
        yield U, V
        U = orthonormal(U, limit[0])


def alternating(update: Callable[..., np.ndarray]) -> Callable[..., Iterator[Factors]]:
    return lambda parts, k, limit, rng, **error: alternate(parts, k, limit, rng, partial(update, **error))


ALGORITHMS: dict[str, Callable[..., Iterator[Factors]]] = {
    "exact": alternating(exact),
    "robust": alternating(robust),
    "injected": alternating(injected),
    "scaled-gd": lambda parts, k, limit, rng, eta: scaled_gd(parts[0], k, rng, eta),
    "soft-impute": lambda parts, k, limit, rng, shrink: soft_impute(parts[0], k, rng, shrink),
}


# ---- tasks: what a seed's rows are


def contraction(errors: list[float]) -> dict[str, float]:
    """Geometric mean of the error's ratios over rounds 5 to 15, as far as it is above 1e-10; if there are any."""
    window = [e for e in errors[4:15] if e > 1e-10]
    return {"contraction": (window[-1] / window[0]) ** (1 / (len(window) - 1))} if len(window) > 1 else {}


def recovery(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Errors round by round on generated matrices; one row a (k, condition, oversampling p n / k)."""
    n, found = problem["n"], Results([])
    rounds = settings.get("rounds", problem["rounds"])
    options = {name: settings[name] for name in ("e", "eta", "shrink") if name in settings}
    for k, condition, oversampling in itertools.product(problem["k"], problem["condition"], problem["oversampling"]):
        name = [seed, k, condition, round(100 * oversampling)]
        M = low_rank(n, n, k, condition, np.random.default_rng([*name, 0]))
        known = observe(M, min(1.0, oversampling * k / n), np.random.default_rng([*name, 1]))
        parts = known.split(problem["parts"], np.random.default_rng([*name, 2]))
        rng = np.random.default_rng([*name, 3])
        iterates = ALGORITHMS[settings["algorithm"]](parts, k, limits(M), rng, **options)
        cell = {"seed": seed, "k": k, "condition": condition, "oversampling": oversampling}
        errors = []
        for U, V in itertools.islice(iterates, rounds):
            errors.append(relative_error(U, V, M))
            if len(errors) % math.ceil(rounds / 50) == 0:
                angle = distance(np.linalg.qr(U)[0], M.U)
                found.traces.append(cell | {"round": len(errors), "error": errors[-1], "distance": angle})
            if not problem["until"] < errors[-1] < DIVERGED:
                break
        row = cell | {"e": settings.get("e", 0.0), "error": min(errors[-1], DIVERGED), "rounds": len(errors)}
        found.rows.append(row | contraction(errors))
    return found


def cost(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Multiplications a sample of one regression with L = 4 k^2 rows, b = A x + N(0, I); one row a k."""
    rows = []
    for k in problem["k"]:
        rng, L = np.random.default_rng([seed, k]), 4 * k**2
        A = haar(L, k, rng) * np.geomspace(1, 1 / settings.get("condition", 1), k) @ haar(k, k, rng)
        b = A @ rng.standard_normal(k) + rng.standard_normal(L)
        count, steps = COUNTED[settings["algorithm"]](A, b, settings.get("e", 0), problem["most_steps"], rng)
        rows.append({"seed": seed, "k": k, "multiplications": count / L, "steps": steps})
    return Results(rows)


def count_exact(A: np.ndarray, b: np.ndarray, e: float, most: int, rng: np.random.Generator) -> tuple[float, int]:
    """Symmetric normal equations and Cholesky's factorisation: L k (k+1) / 2 + k^3 / 6."""
    L, k = A.shape
    return L * k * (k + 1) / 2 + k**3 / 6, 0


def count_sketched(A: np.ndarray, b: np.ndarray, e: float, most: int, rng: np.random.Generator) -> tuple[float, int]:
    """CountSketch to about k^2 rows, SRHT to c k log k, QR, conjugate gradients. An addition of the sketches counts
    like a multiplication."""
    L, k = A.shape
    buckets, s = power_of_two(k**2), sketch_rows(k)
    counted = [L * (k + 1)]  # CountSketch
    sketch = srht(countsketch(np.column_stack([A, b]), buckets, rng), s, rng, counted.append)  # (s, k+1)
    counted.append(s * (k + 1) ** 2 - (k + 1) ** 3 / 3)  # Householder's QR
    counted.append(k * (k + 1) * (k + 2) / 6 + k * (k + 1) / 2)  # R^{-1}, and the sketched solution
    x_star = normal_equations(A[None], b[None])
    _, (steps,) = conjugate_gradients(A[None], b[None], from_sketch(sketch[None]), x_star, e, most)
    counted.append(count_steps(L, k, steps) + steps * k * (k + 1) + k * (k + 1) / 2)  # with R^{-1} and R^{-T}
    return float(sum(counted)), int(steps)


def count_plain(A: np.ndarray, b: np.ndarray, e: float, most: int, rng: np.random.Generator) -> tuple[float, int]:
    """Conjugate gradients on A itself, from x = 0."""
    L, k = A.shape
    start = Start(np.eye(k)[None], np.zeros((1, k)))
    _, (steps,) = conjugate_gradients(A[None], b[None], start, normal_equations(A[None], b[None]), e, most)
    return float(count_steps(L, k, steps)), int(steps)


def count_steps(L: int, k: int, steps: int) -> int:
    """First residual and gradient, then a step: A and A^T applied, ||q||^2, r, x, p and ||z||^2 updated."""
    return 2 * L * k + k + steps * (2 * L * k + 2 * L + 3 * k)


COUNTED = {"exact": count_exact, "robust": count_sketched, "cg": count_plain}


def ratings(problem: Settings, settings: Settings, seed: int, inputs: Inputs) -> Results:
    """Root mean squared error on a fifth of the ratings, held out; only viewers and films with enough of them."""
    data, rng = inputs.datasets["movielens"], np.random.default_rng(seed)
    user, film, rating = dense_core(data["user"], data["film"], data["rating"], problem["at_least"])
    held = rng.random(len(rating)) < 0.2
    mean = rating[~held].mean()
    known = Observed((user.max() + 1, film.max() + 1), user[~held], film[~held], rating[~held] - mean)
    options = {name: settings[name] for name in ("e",) if name in settings}
    iterates = ALGORITHMS[settings["algorithm"]]([known], problem["rank"], (math.inf, math.inf), rng, **options)
    U, V = next(itertools.islice(iterates, problem["rounds"] - 1, None))
    guess = np.clip(mean + np.einsum("ok,ok->o", U[user[held]], V[film[held]]), 0.5, 5)
    rmse = float(np.sqrt(((guess - rating[held]) ** 2).mean()))
    return Results([{"seed": seed, "k": problem["rank"], "rmse": rmse}])


def dense_core(user: np.ndarray, film: np.ndarray, rating: np.ndarray, at_least: int) -> tuple[np.ndarray, ...]:
    """Ratings of viewers and films that have so many among themselves, numbered anew."""
    while True:
        kept = (np.bincount(user)[user] >= at_least) & (np.bincount(film)[film] >= at_least)
        if kept.all():
            return user, film, rating
        user, film = (np.unique(x[kept], return_inverse=True)[1] for x in (user, film))
        rating = rating[kept]


TASKS = {"recovery": recovery, "cost": cost, "ratings": ratings}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        one = TASKS[problem["task"]](problem, settings, seed, inputs)
        found.rows += one.rows
        found.traces += one.traces
    return found
