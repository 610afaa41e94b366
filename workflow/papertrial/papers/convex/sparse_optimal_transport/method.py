"""Optimal transport with at most k nonzeros in every column of the plan,

    min <T, C> + (gamma/2) ||T||^2   over T >= 0 with T 1 = a, T^T 1 = b, ||t_j||_0 <= k,      T, C (m, n),

through its dual and its semi-dual (concave, whatever k), with c_j and t_j the columns:

    dual        max over alpha, beta   <alpha, a> + <beta, b> - sum_j h*(alpha + beta_j 1 - c_j)
    semi-dual   max over alpha         <alpha, a> - sum_j h*_{b_j}(alpha - c_j)

    h*(s)   = max <s, t> - (gamma/2) ||t||^2   over t >= 0                     with ||t||_0 <= k
    h*_b(s) = the same                         over t >= 0 with sum(t) = b     with ||t||_0 <= k

Both are reached on the k largest entries of s: by [s]_+ / gamma, and by the projection of s / gamma on the simplex of
mass b. The t_j where they are reached are the plan, and a - sum_j t_j is a supergradient in alpha.

Source: Liu, Puigcerver, Blondel, arXiv:2209.15466 (2023).
"""

from functools import cache
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.dual_ascent import Climb, Concave, adam, lbfgs
from papertrial.methods.sinkhorn import plan, sinkhorn
from papertrial.testbeds.palettes import palette_pair
from papertrial.testbeds.routing import expert_choice, keep_largest, largest_in_columns, token_batch, unrouted
from papertrial.testbeds.transport import OT, lp_ot, make_ot

Settings = dict[str, Any]
NEAR = 1e-4  # relative suboptimality at which the dual counts as solved


class Outcome(NamedTuple):
    T: np.ndarray  # (m, n)
    told: Settings  # more numbers for the row
    gaps: np.ndarray = np.empty(0)  # relative suboptimality so far, after every evaluation


# h* and h*_b, on all columns at once: s (m, n), b (n,) -> values (n,), where they are reached T (m, n).


def largest(s: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and values, (k, n) each, of the k largest entries of every column, in descending order."""
    rows = largest_in_columns(s, k)
    values = np.take_along_axis(s, rows, axis=0)
    order = np.argsort(-values, axis=0)
    return np.take_along_axis(rows, order, axis=0), np.take_along_axis(values, order, axis=0)


def onto_simplices(v: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Project each descending column of v (k, n) on {t >= 0, sum(t) = b_j}, b_j > 0."""
    sizes = np.arange(1, len(v) + 1)[:, None]
    thresholds = (np.cumsum(v, axis=0) - b) / sizes  # (k, n): if the first 1, 2, ... entries stay positive
    support = (v > thresholds).sum(axis=0)
    return np.maximum(v - np.take_along_axis(thresholds, support[None] - 1, axis=0), 0)


def spread(rows: np.ndarray, t: np.ndarray, m: int) -> np.ndarray:
    T = np.zeros((m, t.shape[1]))
    np.put_along_axis(T, rows, t, axis=0)
    return T


def h_star(s: np.ndarray, k: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    rows, top = largest(s, k)
    t = np.maximum(top, 0) / gamma
    return gamma / 2 * (t**2).sum(axis=0), spread(rows, t, len(s))


def h_star_b(s: np.ndarray, b: np.ndarray, k: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    rows, top = largest(s, k)
    t = onto_simplices(top / gamma, b)
    return (top * t - gamma / 2 * t**2).sum(axis=0), spread(rows, t, len(s))


def dual(ot: OT, k: int, gamma: float) -> Concave:
    """Of (alpha, beta) (m + n,)."""
    C, a, b = ot

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        alpha, beta = x[: len(a)], x[len(a) :]
        h, T = h_star(alpha[:, None] + beta - C, k, gamma)
        return alpha @ a + beta @ b - h.sum(), np.concatenate([a - T.sum(axis=1), b - T.sum(axis=0)])

    return value


def semi_dual(ot: OT, k: int, gamma: float) -> Concave:
    """Of alpha (m,)."""
    C, a, b = ot

    def value(alpha: np.ndarray) -> tuple[float, np.ndarray]:
        h, T = h_star_b(alpha[:, None] - C, b, k, gamma)
        return alpha @ a - h.sum(), a - T.sum(axis=1)

    return value


def semi_dual_plan(ot: OT, k: int, gamma: float, do: Settings) -> tuple[np.ndarray, Climb]:
    """T at the best point that L-BFGS from alpha = 0 and then Adam see; 20 times longer than what is judged."""
    f = semi_dual(ot, k, gamma)
    found = adam(f, lbfgs(f, np.zeros(len(ot.r)), 20 * do["cap"]), do["polish"])
    return h_star_b(found.x[:, None] - ot.C, ot.c, k, gamma)[1], found


# The methods: T (m, n) by the problem, k, gamma and further settings.


def sparse(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    """The semi-dual's plan; and after how many evaluations L-BFGS was near the best value known."""
    T, found = semi_dual_plan(ot, k, gamma, do)
    gaps = np.minimum.accumulate(found.value - found.values) / abs(found.value)
    evaluations = int((gaps > NEAR).sum()) + 1
    reached = evaluations <= min(len(gaps), do["cap"])
    told = {
        "evaluations": evaluations if reached else do["cap"],
        "reached": int(reached),
        "success": int(found.success),
        "lbfgs_gap": gaps[-1],
        "value": found.value,
    }
    return Outcome(T, told, gaps)


def quadratic(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    """Quadratically regularised transport, by its own dual."""
    m, n = ot.C.shape
    found = lbfgs(dual(ot, m, gamma), np.zeros(m + n), 20 * do["cap"])
    T = h_star(found.x[:m, None] + found.x[m:] - ot.C, m, gamma)[1]
    return Outcome(T, {"value": found.value, "success": int(found.success)})


def truncated(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    """The quadratic plan's k largest entries a column, renormalised."""
    return Outcome(keep_largest(semi_dual_plan(ot, len(ot.r), gamma, do)[0], k), {})


def sinkhorn_truncated(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    """The entropic plan's k largest entries a column, at the epsilon that leaves fewest rows empty."""
    plans = {}
    for epsilon in do["epsilons"]:
        found = sinkhorn(*ot, 1 / epsilon, 1e-6, do["sweeps"])
        plans[epsilon] = keep_largest(plan(ot.C, found.x, found.y, 1 / epsilon), k)
    best = min(plans, key=lambda epsilon: (unrouted(plans[epsilon]), np.vdot(ot.C, plans[epsilon])))
    return Outcome(plans[best], {"epsilon": best})


def greedy(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    return Outcome(expert_choice(ot, k), {})


def linear(ot: OT, k: int, gamma: float, do: Settings) -> Outcome:
    value, T = lp_ot(*ot)
    return Outcome(T, {"value": value})


METHODS = {
    "sparse": sparse,
    "k_ignored": sparse,
    "quadratic": quadratic,
    "truncated": truncated,
    "truncated_control": truncated,
    "sinkhorn_truncated": sinkhorn_truncated,
    "greedy": greedy,
    "greedy_control": greedy,
    "linear": linear,
}
K_IS_M = {"k_ignored", "quadratic", "linear"}  # whatever k is asked for


def described(T: np.ndarray, ot: OT) -> Settings:
    nonzeros = (T > 0).sum(axis=0)
    return {
        "r": float(np.abs(T.sum(axis=1) - ot.r).sum()),
        "column_error": float(np.abs(T.sum(axis=0) - ot.c).sum()),
        "cost": float(np.vdot(T, ot.C)),
        "unrouted": unrouted(T),
        "nonzeros_max": int(nonzeros.max()),
        "nonzeros_mean": float(nonzeros.mean()),
    }


def measure(ot: OT, method: str, do: Settings, seed: int, found: Results) -> dict[int, np.ndarray]:
    """Add a row for every (gamma, k) asked for; return the plans by k."""
    m, plans = len(ot.r), {}

    @cache
    def solved(k: int, gamma: float) -> tuple[Outcome, float]:
        start = process_time()
        return METHODS[method](ot, k, gamma, do), process_time() - start

    for gamma, ks in do["plans"]:
        for k in sorted({min(k, m) for k in ks}):
            (T, told, gaps), seconds = solved(m if method in K_IS_M else k, gamma)
            here = {"seed": seed, "gamma": gamma, "k": k}
            found.rows.append(here | told | described(T, ot))
            found.timings.append(here | {"cpu_s": seconds})
            drawn = sorted({int(i) for i in np.geomspace(1, len(gaps), 30)}) if len(gaps) else []
            found.traces += [here | {"evaluation": i, "gap": gaps[i - 1]} for i in drawn]
            plans[k] = T
    return plans


def recoloured(plans: dict[int, np.ndarray], x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Each source colour x (m, 3) moves to the mean of the target colours y (n, 3) it is matched with; -1 if none."""
    found = {f"{seed}/source": x, f"{seed}/target": y}
    for k, T in plans.items():
        mass = T.sum(axis=1, keepdims=True)
        found[f"{seed}/k={k}"] = np.where(mass > 0, T @ y / np.where(mass > 0, mass, 1), -1.0)
    return found


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    do, found = problem | settings, Results([])
    for seed in seeds:
        if do["family"] == "palettes":
            photographs = (inputs.datasets["photographs"][name] for name in ("astronaut", "coffee"))
            ot, colours = palette_pair(*photographs, do["n"], seed)
            found.state |= recoloured(measure(ot, method, do, seed, found), *colours, seed)
        else:
            measure(instance(do, seed, inputs), method, do, seed, found)
    return found


def instance(do: Settings, seed: int, inputs: Inputs) -> OT:
    if do["family"] == "router":
        return token_batch(inputs.datasets["digits"]["x"], do["tokens"], do["experts"], seed)
    return make_ot(do["family"], do["n"], seed, d=do["d"], shift=do["shift"])
