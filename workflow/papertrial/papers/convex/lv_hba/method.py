"""LV-HBA: constrained bilevel optimisation in a single loop with first derivatives only.

The lower level's optimality is one smooth inequality f(x, y) <= v(x, y, z) with the proximal Lagrangian value function

    v(x, y, z) = min_theta max_lambda f(x, theta) + lambda^T g(x, theta)
                 + ||theta - y||^2 / (2 gamma) - ||lambda - z||^2 / (2 gamma),

whose gradient needs its saddle point (theta, lambda) alone. An iteration takes one step towards the saddle point, then
one projected step on F / c_k + f - v with a penalty c_k = c (k + 1)^p.

Source: Yao, Yu, Zeng, Zhang, arXiv:2401.16164 (2024).
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.papers.convex.lv_hba.problems import (
    Constrained,
    Split,
    hinge_fit,
    in_X,
    llc,
    llsc,
    svm,
    unseen,
    validation_gradient,
    validation_loss,
)

Array = np.ndarray
Settings = dict[str, Any]


class State(NamedTuple):
    x: Array
    y: Array
    z: Array  # (m,)
    theta: Array  # like y
    lam: Array  # (m,)


def lv_hba(
    problem: Constrained, *, alpha: float, beta: float, eta: float, gamma: float, c: float, p: float
) -> Iterator[State]:
    """Iterates of the method; steps alpha in (x, y), beta in z, eta in (theta, lambda)."""
    F, f, g = problem.upper, problem.lower, problem.constraint
    equality = g.Z[0] < 0
    x, y = problem.start
    z = lam = np.zeros(len(g.b))
    theta, k = y, 0
    while True:
        d_theta = f.grad_y(x, theta) + lam @ g.J_y + (theta - y) / gamma
        d_lam = -g.value(x, theta) + (lam - z) / gamma
        theta, lam = theta - eta * d_theta, lam - eta * d_lam
        if not equality:
            lam = np.maximum(lam, 0)
        c_k = c * (k + 1) ** p
        d_x = F.grad_x(x, y) / c_k + f.grad_x(x, y) - f.grad_x(x, theta) - lam @ g.J_x
        d_y = F.grad_y(x, y) / c_k + f.grad_y(x, y) - (y - theta) / gamma
        d_z = -(lam - z) / gamma
        x, y = g.project(x - alpha * d_x, y - alpha * d_y)
        z, k = np.clip(z - beta * d_z, *g.Z), k + 1
        yield State(x, y, z, theta, lam)


LV_HBA_WORK = 6  # gradient calls: grad_y f at theta, grad F, grad f at y, grad_x f at theta


# ---- what it is compared with on the toys: projected implicit gradients


def solution_slope(problem: Constrained) -> Array:
    """dy*/dx (q, p) by the pseudo-inverse of the KKT matrix, constant where f is quadratic."""
    f, g = problem.lower, problem.constraint
    m = len(g.b)
    K = np.block([[f.hess_yy(*problem.start), g.J_y.T], [g.J_y, np.zeros((m, m))]])
    right = np.concatenate([f.hess_xy(*problem.start).T, g.J_x])
    return -(np.linalg.pinv(K, rcond=1e-10, hermitian=True) @ right)[: len(problem.start[1])]


def aipod(problem: Constrained, *, outer: float, inner: float, T: int, S: int) -> Iterator[tuple[Array, Array, int]]:
    """x, y and the gradient calls of an iteration: at most T projected gradient steps in y (less once they are shorter
    than 1e-8), an implicit gradient step in x, and every S iterations the projection on X (S > 1: E-AiPOD).

    The implicit gradient costs two gradients of F, and a Hessian- and a Jacobian-vector product at two calls each.
    """
    F, f, g = problem.upper, problem.lower, problem.constraint
    slope, P = solution_slope(problem), in_X(problem)
    back = np.linalg.pinv(g.J_y)  # (q, m)
    x, y = problem.start
    k = 0
    while True:
        t, short = 0, False
        while t < T and not short:
            t += 1
            ahead = y - inner * f.grad_y(x, y)
            ahead = ahead - back @ g.value(x, ahead)
            y, short = ahead, np.linalg.norm(ahead - y) <= 1e-8
        x = x - outer * (F.grad_x(x, y) + F.grad_y(x, y) @ slope)
        k += 1
        if k % S == 0:
            x = P @ x
        yield x, y, t + 6


# ---- the toys

PROBLEMS: dict[str, Callable[[int, int], Constrained]] = {"llc": llc, "llsc": llsc}


def same_steps(step: float, **rest: float) -> Settings:
    return {"alpha": step, "eta": step, **rest}


def toy_iterates(problem: Constrained, method: str, settings: Settings) -> Iterator[tuple[Array, Array, int]]:
    """x, y and the work of every iteration."""
    if method in ("aipod", "e_aipod"):
        return aipod(problem, **settings)
    seen = unseen(problem) if method == "no_multipliers" else problem
    return ((s.x, s.y, LV_HBA_WORK) for s in lv_hba(seen, **same_steps(**settings)))


def known_optimum(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    """LLC: relative error of x."""
    rows, traces = [], []
    for n in problem["sizes"]:
        best = np.full(n, -0.3)
        marks = {int(k) for k in np.geomspace(1, problem["iterations"], 40)}
        for seed in seeds:
            path = islice(toy_iterates(llc(n, seed), method, settings), problem["iterations"])
            for k, (x, _, _) in enumerate(path, 1):
                if not np.isfinite(x).all() or np.abs(x).max() > 1e6:
                    x = np.full(n, 1e6)  # diverged
                    break
                if k in marks:
                    traces.append({"seed": seed, "n": n, "iteration": k, "error": relative(x, best)})
            rows.append({"seed": seed, "n": n, "error": relative(x, best)})
    rows.sort(key=lambda row: row["seed"])
    return Results(rows, traces)


def relative(x: Array, best: Array) -> float:
    return float(np.linalg.norm(x - best) / np.linalg.norm(best))


def hyper_values(problem: Constrained) -> Callable[[Array], float]:
    """x -> F(x, y*(x)) at the nearest x in X, for LLSC, whose y*(x) is linear."""
    slope, P = solution_slope(problem), in_X(problem)

    def value(x: Array) -> float:
        x = P @ x
        return float(problem.upper.value(x, slope @ x))

    return value


def hyper_objective(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    """LLSC: the least F(x, y*(x)) so far, against work; every drop of it by 1/500 of all drops is kept."""
    rows, traces = [], []
    for seed in seeds:
        instance = llsc(problem["n"], seed)
        value = hyper_values(instance)
        least = initial = kept = value(instance.start[0])
        work, levels = 0, []
        for x, _, calls in toy_iterates(instance, method, settings):
            work += calls
            now = value(x)
            least = min(least, now) if np.isfinite(now) else least
            levels.append(least)
            if least < kept and kept - least >= 2e-3 * (initial - least):
                kept = least
                traces.append({"seed": seed, "work": work, "least": least})
            if work >= problem["budget"]:
                break
        marks = np.unique(np.geomspace(1, len(levels), 50).astype(int)) - 1
        row = {"seed": seed, "initial": initial, "least": least, "work": work}
        rows.append(row | {"mean_least": float(np.mean(np.array(levels)[marks]))})
        traces.append({"seed": seed, "work": work, "least": least})
    return Results(rows, traces)


def value_function(problem: Constrained, gamma: float) -> Callable[[Array, Array, Array], float]:
    """v(x, y, z) of LLSC: its saddle point solves a linear system."""
    f, g = problem.lower, problem.constraint
    a = 1 + 1 / gamma
    inverse = np.linalg.inv(g.J_y @ g.J_y.T / a + np.eye(len(g.b)) / gamma)

    def v(x: Array, y: Array, z: Array) -> float:
        free = (x + y / gamma) / a  # theta without constraint
        lam = inverse @ (g.value(x, free) + z / gamma)
        theta = free - lam @ g.J_y / a
        proximal = (((theta - y) ** 2).sum() - ((lam - z) ** 2).sum()) / (2 * gamma)
        return float(f.value(x, theta) + lam @ g.value(x, theta) + proximal)

    return v


RATES = {"lv_hba": lambda p: p, "constant_penalty": lambda p: 0.0}


def value_gap(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    """LLSC: slope of the least f - v so far in k, for several growth rates p of the penalty."""
    rows, traces = [], []
    first, last = problem["window"]
    marks = np.unique(np.geomspace(first, last, 100).astype(int))
    for seed in seeds:
        instance = llsc(problem["n"], seed)
        v = value_function(instance, settings["gamma"])
        for p in problem["rates"]:
            path = lv_hba(instance, **same_steps(**settings), p=RATES[method](p))
            gaps = [instance.lower.value(s.x, s.y) - v(s.x, s.y, s.z) for s in islice(path, last)]
            least = np.maximum(np.minimum.accumulate(gaps), 1e-12)[marks - 1]
            slope = np.polyfit(np.log(marks), np.log(least), 1)[0]
            rows.append({"seed": seed, "p": p, "slope": float(slope), "final_gap": float(least[-1])})
            traces += [
                {"seed": seed, "p": p, "iteration": int(k), "gap": float(e)}
                for k, e in zip(marks[::4], least[::4], strict=True)
            ]
    return Results(rows, traces)


# ---- SVM


def split_of(data: dict[str, Array], sizes: list[int], seed: int) -> Split:
    """Standardised by the training set; labels -1 and 1 multiplied into the rows; the rest is for testing."""
    order = np.random.default_rng(seed).permutation(len(data["y"]))
    train, validation = sizes
    z = data["x"].astype(float)
    mean, scale = z[order[:train]].mean(axis=0), z[order[:train]].std(axis=0)
    z = (z - mean) / np.where(scale > 0, scale, 1)
    rows = np.column_stack([z, np.ones(len(z))]) * np.where(data["y"] > 0, 1, -1)[:, None]
    return Split(rows[order[:train]], rows[order[train : train + validation]], rows[order[train + validation :]])


def fit(split: Split, C: Array) -> Array:
    """The lower level at C: u = (w, b)."""
    return hinge_fit(split.M, np.exp(C), np.zeros(split.M.shape[1]), np.ones(len(C)))[0]


def weights_by_lv_hba(split: Split, bound: float, iterations: int, **steps: float) -> Array:
    *_, last = islice(lv_hba(svm(split, bound), **steps), iterations)
    return last.x


def weights_by_gam(split: Split, bound: float, iterations: int, *, alpha: float, start: float) -> Array:
    """Gradient descent on the validation loss of the exact lower solution, differentiated on its active constraints."""
    M = split.M
    C = np.full(len(M), start)
    ridge = np.append(np.ones(M.shape[1] - 1), 1e-12)
    for _ in range(iterations):
        u = fit(split, C)
        r = np.maximum(1 - M @ u, 0)
        active = r > 0
        H = np.diag(ridge) + (M[active] * np.exp(C[active])[:, None]).T @ M[active]
        adjoint = np.linalg.solve(H, validation_gradient(split.validation, u))
        C = np.clip(C - alpha * np.exp(C) * r * (M @ adjoint), -bound, bound)
    return C


def weights_by_grid(split: Split, bound: float, iterations: int) -> Array:
    """One C for all examples, of 2^-6 .. 2^6, by the errors on the validation set; the smaller of equals."""
    choices = [np.full(len(split.M), k * np.log(2)) for k in range(-6, 7)]
    errors = [(split.validation @ fit(split, C) <= 0).sum() for C in choices]
    return choices[int(np.argmin(errors))]


WEIGHTS = {"lv_hba": weights_by_lv_hba, "gam": weights_by_gam, "grid_search": weights_by_grid}


def svm_weights(problem: Settings, method: str, settings: Settings, seeds: list[int], inputs: Inputs) -> Results:
    rows = []
    for seed in seeds:
        split = split_of(inputs.datasets[problem["data"]], problem["split"], seed)
        C = WEIGHTS[method](split, problem["bound"], problem["iterations"], **settings)
        u = fit(split, C)
        row = {"seed": seed, "accuracy": float((split.test @ u > 0).mean())}
        row |= {"validation_accuracy": float((split.validation @ u > 0).mean()), "spread": float(C.std())}
        rows.append(row | {"validation_loss": validation_loss(split.validation, u)})
    return Results(rows)


MEASURES = {"error": known_optimum, "work": hyper_objective, "gap": value_gap, "svm": svm_weights}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return MEASURES[problem["measure"]](problem, method, settings, seeds, inputs)
