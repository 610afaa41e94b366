"""Halpern's iteration on F(u) = (1/n) sum F_i(u) = 0, with few evaluations of components.

Halpern's steps are anchored at u_0 with a weight lambda_k that fades, which makes the residual ||F(u_k)|| of the last
iterate fall like 1/k. Evaluating F costs n calls; the variance-reduced forms evaluate it now and then and follow it
by differences F_i(u) - F_i(v) on few components in between, so that the calls grow like sqrt(n) instead of n:
directly where F is cocoercive (Algorithm 1), inside approximate resolvents where it is only monotone (Algorithm 2).

A method is a generator of its iterates; what they cost is read off the meter when one comes out.

Source: arXiv 2310.02987; deterministic Halpern and extragradient with anchor, arXiv 2102.07922 and 2206.05248;
variance-reduced extragradient and forward-reflected-backward, arXiv 2102.08352; PAGE, arXiv 2008.10898.
"""

import math
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.testbeds.monotone_operators import Counted, Operator, bilinear, logistic, matrix_game, projections

Iterates = Iterator[np.ndarray]
Weights = Callable[[int], float]


# ---- cocoercive operators


def halpern(F: Counted, u0: np.ndarray, lam: Weights, eta: Weights) -> Iterates:
    """u_{k+1} = lambda_k u_0 + (1 - lambda_k) u_k - eta_k F(u_k)"""
    u = u0
    for k in count():
        yield u
        u = lam(k) * u0 + (1 - lam(k)) * u - eta(k) * F(u)


def deterministic_halpern(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """The anchored step of I - (step/L_F) F, which is nonexpansive up to step 2; lambda_k = 1/(k+2)."""
    lam = lambda k: 1 / (k + 2)  # noqa: E731
    return halpern(F, u0, lam, lambda k: (1 - lam(k)) * step / F.L_F)


def anchor(k: int) -> float:
    """lambda_k of Algorithm 1."""
    return 2 / (k + 4)


def refresh(n: int) -> Weights:
    """p_k of Algorithm 1: frequent full evaluations at first, one in sqrt(n)/4 steps later."""
    return lambda k: min(1.0, 4 / (min(k, math.sqrt(n)) + 5))


def vr_halpern(F: Counted, u0: np.ndarray, rng: np.random.Generator, p: Weights | None = None) -> Iterates:
    """Algorithm 1: Ft_k follows F(u_k) by PAGE."""
    p = p or refresh(F.n)
    eta, b = 1 / (4 * F.L), math.ceil(math.sqrt(F.n))
    u, Ft = u0, F(u0)
    yield u
    for k in count():
        previous, u = u, anchor(k) * u0 + (1 - anchor(k)) * u - eta * Ft
        yield u
        if rng.random() < p(k + 1):
            Ft = F(u)
        else:
            S = rng.integers(F.n, size=b)
            Ft = Ft + F.batch(S, u) - F.batch(S, previous)


def every_value_full(F: Counted, u0: np.ndarray, rng: np.random.Generator) -> Iterates:
    """The control of c1: Algorithm 1 with p_k = 1."""
    return vr_halpern(F, u0, rng, p=lambda k: 1.0)


def sampled_halpern(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float, size: Weights) -> Iterates:
    """Halpern on batches drawn afresh, size(k) components at step k: no differences, the noise stays."""
    u = u0
    for k in count():
        yield u
        b = size(k)
        value = F(u) if b >= F.n else F.batch(rng.integers(F.n, size=b), u)
        u = anchor(k) * u0 + (1 - anchor(k)) * u - step / (4 * F.L) * value


def growing_batches(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """Batches of (k+1)^2, whose noise falls like the residual that is asked for."""
    return sampled_halpern(F, u0, rng, step, lambda k: (k + 1) ** 2)


def constant_batches(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """Batches of sqrt(n) all along."""
    return sampled_halpern(F, u0, rng, step, lambda k: math.ceil(math.sqrt(F.n)))


# ---- monotone operators


def resolvent(F: Counted, u: np.ndarray, rng: np.random.Generator, eta: float, c: float, budget: float) -> np.ndarray:
    """J~(u): the zero of v - u + eta F(v) by variance-reduced forward-reflected-backward, from v = u.

    F is known in full at w, which is renewed with probability p = 1/n; the part v - u enters by its proximal map.
    The budget is in units of n calls: n/3 steps, two calls for the difference and p n = 1 for the renewal.
    """
    p = 1 / F.n
    a, tau = 1 - p, c * math.sqrt(p) / (1 + eta * F.L)
    steps = math.ceil(budget * F.n / 3)
    draws, renewals = rng.integers(F.n, size=(steps, 1)), rng.random(steps) < p
    z = w = w_before = u
    F_w = F(w)
    for i, renew in zip(draws, renewals, strict=True):
        value = F_w + F.batch(i, z) - F.batch(i, w_before)
        z = F.project((a * z + (1 - a) * w - tau * eta * value + tau * u) / (1 + tau))
        w_before = w
        if renew:
            w, F_w = z, F(z)
    return z


def resolvent_by_full_values(
    F: Counted, u: np.ndarray, rng: np.random.Generator, eta: float, c: float, budget: float
) -> np.ndarray:
    """The same with p = 1 and F in place of F_i; sqrt(n)/3 steps of the larger tau contract as much as n/3 above."""
    tau = c / (1 + eta * F.L)
    z = u
    F_z = F_before = F(z)
    for _ in range(math.ceil(budget * math.sqrt(F.n) / 3)):
        z = F.project((z - tau * eta * (2 * F_z - F_before) + tau * u) / (1 + tau))
        F_before, F_z = F_z, F(z)
    return z


def inexact_halpern(
    F: Counted, u0: np.ndarray, rng: np.random.Generator, c: float, budget: float, J: Callable = resolvent
) -> Iterates:
    """Algorithm 2: u_{k+1} = lambda_k u_0 + (1 - lambda_k) J~(u_k), J~ of eta F, lambda_k = 1/(k+2), eta = sqrt(n)/L.

    What comes out are the J~(u_k): there ||F|| = ||u_k - J(u_k)|| / eta, while at u_k itself the pull of the anchor
    would cost the factor eta L that the long step gains.
    """
    eta = math.sqrt(F.n) / F.L
    yield u0
    u = u0
    for k in count():
        v = J(F, u, rng, eta, c, budget * math.log(k + 2))
        yield v
        u = u0 / (k + 2) + (k + 1) / (k + 2) * v


def inner_values_full(F: Counted, u0: np.ndarray, rng: np.random.Generator, c: float, budget: float) -> Iterates:
    """The control of c4: the resolvents are solved with full evaluations."""
    return inexact_halpern(F, u0, rng, c, budget, resolvent_by_full_values)


def eag(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """Extragradient, both half-steps anchored with weight 1/(k+2)."""
    eta, u = step / F.L_F, u0
    for k in count():
        yield u
        pull = (u0 - u) / (k + 2)
        half = F.project(u + pull - eta * F(u))
        u = F.project(u + pull - eta * F(half))


def extragradient(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    eta, u = step / F.L_F, u0
    while True:
        yield u
        u = F.project(u - eta * F(F.project(u - eta * F(u))))


def vr_extragradient(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """Loopless: F is known in full at w, the second half-step corrects it by a batch of sqrt(n) differences."""
    b = math.ceil(math.sqrt(F.n))
    p = 1 / b
    tau = step * math.sqrt(p) / F.L
    z = w = u0
    yield z
    F_w = F(w)
    while True:
        middle = (1 - p) * z + p * w
        half = F.project(middle - tau * F_w)
        S = rng.integers(F.n, size=b)
        z = F.project(middle - tau * (F_w + F.batch(S, half) - F.batch(S, w)))
        yield z
        if rng.random() < p:
            w, F_w = z, F(z)


def vr_extragradient_average(F: Counted, u0: np.ndarray, rng: np.random.Generator, step: float) -> Iterates:
    """The mean of all iterates so far."""
    mean = np.zeros_like(u0)
    for k, z in enumerate(vr_extragradient(F, u0, rng, step)):
        mean = mean + (z - mean) / (k + 1)
        yield mean


METHODS: dict[str, Callable[..., Iterates]] = {
    "vr-halpern": vr_halpern,
    "vr-halpern-full": every_value_full,
    "halpern": deterministic_halpern,
    "halpern-2": deterministic_halpern,
    "growing-batches": growing_batches,
    "sqrt-batches": constant_batches,
    "vr-resolvent": inexact_halpern,
    "vr-resolvent-full": inner_values_full,
    "eag": eag,
    "extragradient": extragradient,
    "vr-extragradient": vr_extragradient,
    "vr-extragradient-average": vr_extragradient_average,
}


# ---- problems and runs


def cancer(rng: np.random.Generator, n: int, inputs: Inputs) -> Operator:
    """Benign or malignant: standardised measurements with a constant, each row scaled to norm 1 (n is the data's)."""
    x, y = inputs.datasets["breast_cancer"]["x"], inputs.datasets["breast_cancer"]["y"]
    x = np.column_stack([(x - x.mean(axis=0)) / x.std(axis=0), np.ones(len(x))])
    return logistic(x / np.linalg.norm(x, axis=1, keepdims=True), 2.0 * y - 1)


FAMILIES: dict[str, Callable[..., Operator]] = {
    "projections": lambda rng, n, inputs: projections(rng, n, d=10),
    "bilinear": lambda rng, n, inputs: bilinear(rng, n, d=20),
    "logistic": cancer,
    "matrix-game": lambda rng, n, inputs: matrix_game(rng, n),
}


def until(F: Operator, iterates: Iterates, meter: Counted, problem: dict) -> tuple[Row, list[Row]]:
    """Calls until ||F|| <= eps, or <= reduction ||F(u_0)||; where that takes more than cap n calls, cap n."""
    cap = problem["cap"] * F.n
    start = F.residual(F.u0)
    tol = problem["eps"] if "eps" in problem else problem["reduction"] * start
    curve, due = [], 0.0
    for k, u in enumerate(iterates):
        residual = F.residual(u)
        if k >= due:  # a few points a decade
            curve.append({"k": k, "calls": meter.calls, "residual": residual})
            due = 1.2 * k
        if residual <= tol or meter.calls > cap or not residual < 1e6 * start:
            break
    reached = residual <= tol and meter.calls <= cap
    calls = meter.calls if reached else cap
    curve.append({"k": k, "calls": calls, "residual": residual})
    row = {"calls": calls, "log_calls": math.log(calls), "reached": int(reached), "ratio_L": F.L / F.L_F}
    return row, [point for point in curve if math.isfinite(point["residual"])]


def along(F: Operator, iterates: Iterates, meter: Counted, problem: dict) -> tuple[Row, list[Row]]:
    """How ||F(u_k)|| decays: its slope in log k over [first, last], and the largest k ||F(u_k)|| / (L ||u_0 - u*||)."""
    first, last = problem["window"]
    residuals = np.array([F.residual(u) for u, _ in zip(iterates, range(last + 1), strict=False)])
    k = np.arange(1, last + 1)
    slope = np.polyfit(np.log(k[first - 1 :]), np.log(residuals[first:]), 1)[0]
    scaled = k * residuals[1:] / (F.L * np.linalg.norm(F.u0 - zero_of(F)))
    thinned = np.unique(np.geomspace(1, last, 60).astype(int))
    curve = [{"k": int(j), "calls": 0, "residual": residuals[j]} for j in thinned]
    return {"slope": float(slope), "largest": float(scaled.max())}, curve


def zero_of(F: Operator) -> np.ndarray:
    """u* of an affine F."""
    d = len(F.u0)
    offset = F(np.zeros(d))
    matrix = np.stack([F(e) - offset for e in np.eye(d)], axis=1)
    return np.linalg.solve(matrix, -offset)


MEASURES = {"calls": until, "decay": along}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One row a seed and a size n; curves of the residual at the largest n."""
    rows, traces = [], []
    for n in problem["sizes"]:
        for seed in seeds:
            F = FAMILIES[problem["family"]](np.random.default_rng([seed, n]), n, inputs)
            meter = Counted(F)
            iterates = METHODS[method](meter, F.u0, np.random.default_rng([seed, n, 1]), **settings)
            row, curve = MEASURES[problem["measure"]](F, iterates, meter, problem)
            rows.append({"seed": seed, "n": F.n, **row})
            if n == problem["sizes"][-1]:
                traces += [{"seed": seed, "n": F.n, **point} for point in curve]
    return Results(rows, traces)
