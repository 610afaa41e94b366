"""Lion as a solver of min f(x) subject to |x|_inf <= 1/lambda, and the Lyapunov function that says why.

Lion-kappa (g_t the gradient at x_t):
    c = beta1 m_t + (1 - beta1) g_t
    x_{t+1} = x_t - lr (dkappa(c) + lambda x_t),    m_{t+1} = beta2 m_t + (1 - beta2) g_t
and its limit for small steps,
    m' = -alpha grad f(x) - gamma m,    x' = dkappa(m + eps m') - lambda x,                        eps gamma <= 1
minimise alpha f(x) + (gamma/lambda) kappa*(lambda x). Lion is kappa = l1, whose kappa* is the indicator of the box.

Four tasks, one for each claim: box (c1, where does it end?), entry (c2, how does it get in?), ode (c3, what decreases
on the way?), training (c4, does it train networks as AdamW does, in half the memory?).

Source: arXiv:2310.05898.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.optimizers.adamw import AdamW
from papertrial.methods.optimizers.lion import Lion
from papertrial.methods.optimizers.rule import Array, Rule, State
from papertrial.methods.optimizers.sgd import GradientDescent
from papertrial.methods.optimizers.signsgd import SignSGD
from papertrial.papers.optimizers.lion_lyapunov.kappa import KAPPAS, Kappa
from papertrial.papers.optimizers.lion_lyapunov.objectives import (
    FULL,
    STOCHASTIC,
    Full,
    tanh_net,
    tanh_net_start,
    tumours,
)
from papertrial.testbeds.optbench.schedule import hold_cosine

START = 20.0  # c2 starts at 20 / lambda
RELATIVE, ABSOLUTE = 1e-5, 1e-6  # c2: slack of the exponential bound, and of "inside"
ROUNDING = 1e-11  # of a distance, after 10^5 steps in float64


@dataclass(frozen=True)
class Coupled:
    """The control: weight decay enters the gradient, hence the sign, and no longer pulls at x itself."""

    rule: Rule
    weight_decay: float | Array

    def init(self, x: Array) -> State:
        return self.rule.init(x)

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        return self.rule.step(x, g + self.weight_decay * x, state, lr)


@dataclass(frozen=True)
class Projected:
    """A step, then the nearest point of the box |x| <= bound."""

    rule: Rule
    bound: float | Array

    def init(self, x: Array) -> State:
        return self.rule.init(x)

    def step(self, x: Array, g: Array, state: State, lr: float) -> tuple[Array, State]:
        x, state = self.rule.step(x, g, state, lr)
        return np.clip(x, -self.bound, self.bound), state


RULES: dict[str, Callable[[Any], Rule]] = {  # of lambda
    "lion": lambda lam: Lion(weight_decay=lam),
    "coupled-lion": lambda lam: Coupled(Lion(), lam),
    "adamw": lambda lam: AdamW(weight_decay=lam),
    "sign-projected": lambda lam: Projected(SignSGD(), 1 / lam),
    "gradient-projected": lambda lam: Projected(GradientDescent(), 1 / lam),
}


# ---- c1: the limit is the box-constrained optimum


def box(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Start at 0 with the full gradient; how far above f's minimum in the box does it end, and how far out?"""
    rows, traces = [], []
    lams, K = np.array(problem["lambdas"], dtype=float), problem["steps"]
    rule = RULES[method](lams[:, None])
    logged = set(np.geomspace(1, K, 40).astype(int).tolist())
    for seed in seeds:
        f = FULL[problem["objective"]](problem, seed, inputs)
        x = np.zeros((len(lams), f.d))  # (lambda, d)
        f_0, x_free = f.value(x), minimum(f, x[0], np.inf)
        x_box = np.stack([minimum(f, x[0], 1 / lam) for lam in lams])
        f_box = f.value(x_box)

        def gap(x: np.ndarray) -> np.ndarray:
            return (f.value(x) - f_box) / (f_0 - f_box)  # (lambda,)

        def extent(x: np.ndarray) -> np.ndarray:
            return np.abs(x).max(axis=1) * lams

        lr = settings.get("lr", problem["lr"])
        peak = 1 / f.smoothness if lr == "1/L" else lr
        state = rule.init(x)
        for k in range(K):
            x, state = rule.step(x, f.grad(x), state, peak * hold_cosine(k, K))
            if k + 1 in logged:
                series = zip(lams, gap(x), extent(x), strict=True)
                traces += [{"seed": seed, "lambda": a, "step": k + 1, "gap": b, "extent": c} for a, b, c in series]
        clipped = np.clip(x_free, -1 / lams[:, None], 1 / lams[:, None])
        at_bound = (np.abs(x_box) * lams[:, None] >= 1 - 1e-9).mean(axis=1)
        columns = {"gap": gap(x), "clip_gap": gap(clipped), "extent": extent(x), "at_bound": at_bound}
        rows += [{"seed": seed, "lambda": lam, **{c: v[i] for c, v in columns.items()}} for i, lam in enumerate(lams)]
    return Results(rows, traces)


def minimum(f: Full, x_0: np.ndarray, bound: float) -> np.ndarray:
    """argmin of f over |x|_inf <= bound, by L-BFGS-B."""
    from scipy.optimize import minimize

    found = minimize(
        lambda x: (float(f.value(x)), f.grad(x)),
        x_0,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-bound, bound)] * len(x_0),
        options={"maxcor": 50, "ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000, "maxfun": 10000},
    )
    return found.x


# ---- c2: from outside, into the box, exponentially fast


def entry(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """From 20/lambda in every coordinate: dist_t = |lambda x_t - box|_2 against (1 - lr lambda)^(t-s) dist_s."""
    rows, traces = [], []
    d, gradients = STOCHASTIC[problem["objective"]](problem, seeds, inputs)
    signs = np.stack([np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=d) for seed in seeds])  # (S, d)
    for lam, lr in product(problem["lambdas"], problem["lrs"]):
        steps = round(problem["horizon"] / (lr * lam))  # after that the bound is exp(-horizon) of the start
        every = max(1, steps // problem["logs"])
        rule = RULES[method](lam)
        x, t, outside = START / lam * signs, [0], [overshoot(lam * signs * START / lam)]
        state = rule.init(x)
        for k, gradient in enumerate(gradients(steps), start=1):
            x, state = rule.step(x, gradient(x), state, lr)
            if k % every == 0:
                t.append(k)
                outside.append(overshoot(lam * x))
        over = np.stack(outside)  # (T, S, d)
        dist, inside = np.sqrt((over**2).sum(axis=2)), over.max(axis=2) <= ABSOLUTE  # (T, S)
        bound = tightest_bound(dist, (1 - lr * lam) ** np.array(t, dtype=float))
        broken = dist[1:] > (1 + RELATIVE) * bound[1:] + ROUNDING
        exits = np.maximum.accumulate(inside, axis=0) & ~inside
        for i, seed in enumerate(seeds):
            cell = {"seed": seed, "lambda": lam, "lr": lr}
            counts = {"violations": broken[:, i].sum(), "exits": exits[:, i].sum(), "entered": int(inside[:, i].any())}
            rows.append({**cell, **{name: int(n) for name, n in counts.items()}})
            shown = range(0, len(t), max(1, len(t) // 60))
            traces += [{**cell, "step": t[j], "time": t[j] * lr * lam, "dist": dist[j, i]} for j in shown]
    return Results(rows, traces)


def overshoot(y: np.ndarray) -> np.ndarray:
    """What each coordinate of y has beyond [-1, 1]."""
    return np.maximum(np.abs(y) - 1, 0)


def tightest_bound(dist: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """min over earlier s of dist_s decay_t / decay_s, which answers for every pair (s, t): (T, S); inf at t = 0."""
    earlier = np.minimum.accumulate(dist / decay[:, None], axis=0)
    return decay[:, None] * np.concatenate([np.full_like(earlier[:1], np.inf), earlier[:-1]])


# ---- c3: along Lion-kappa's dynamics H decreases


def lyapunov(kappa: Kappa, f: np.ndarray, x: np.ndarray, m: np.ndarray, p: dict) -> np.ndarray:
    """H(x, m) of (S,) losses f and (S, d) points; the last bracket is Fenchel-Young's gap, hence >= 0."""
    conjugate = kappa.conjugate(p["lambda"] * x)
    fenchel_young = conjugate + kappa.value(m) - p["lambda"] * (m * x).sum(axis=-1)
    weight = (1 - p["eps"] * p["gamma"]) / (1 + p["eps"] * p["lambda"])
    return p["alpha"] * f + p["gamma"] / p["lambda"] * conjugate + weight * fenchel_young


def ode(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Explicit Euler from a point inside every kappa's feasible set, with m_0 = 0."""
    rows, traces, p = [], [], problem
    X, y = tumours(inputs)
    A, t = np.broadcast_to(X, (len(seeds), *X.shape)), np.broadcast_to(y, (len(seeds), len(y)))
    x_0 = np.stack([tanh_net_start(np.random.default_rng(seed), X.shape[1]) for seed in seeds])  # (S, d)
    x_0 *= 0.9 / (p["lambda"] * np.sqrt((x_0**2).sum(axis=1, keepdims=True)))  # in the ball, hence in the box
    for name, kappa in KAPPAS.items():
        x, m, H, f = x_0, np.zeros_like(x_0), [], []
        for _ in range(p["steps"] + 1):
            loss, g = tanh_net(x, A, t)
            H.append(lyapunov(kappa, loss, x, m, p))
            f.append(loss)
            dm = -p["alpha"] * g - p["gamma"] * m
            dx = kappa.subgradient(m + p["eps"] * dm) - p["lambda"] * x
            x, m = x + p["h"] * dx, m + p["h"] * dm
        H, f = np.stack(H), np.stack(f)  # (steps + 1, S)
        decrease = H[0] - H[-1]
        largest = {"H_rise": np.diff(H, axis=0).max(axis=0) / decrease, "f_rise": np.diff(f, axis=0).max(axis=0)}
        for i, seed in enumerate(seeds):
            row: Row = {"seed": seed, "kappa": name, "H_decrease": decrease[i], "f_end": f[-1, i]}
            rows.append(row | {column: v[i] for column, v in largest.items()})
            shown = range(0, len(H), max(1, len(H) // 100))
            series = [{"step": k, "time": k * p["h"], "H": H[k, i], "f": f[k, i]} for k in shown]
            traces += [{"seed": seed, "kappa": name, **point} for point in series]
    return Results(rows, traces)


# ---- c4: networks; AdamW's runs are the shared baseline's


def training(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    from papertrial.testbeds.optbench.training import measured_run, train  # torch, which only this task needs
    from papertrial.testbeds.optbench.workloads import workload

    rows, traces = [], []
    work = workload(problem["name"], inputs.datasets, device)
    for seed in seeds:
        trained = train(work, Lion(), settings["lr"], seed, problem.get("steps"))
        row, curve = measured_run(work, trained, seed, settings["lr"])
        rows.append(row)
        traces += curve
    return Results(rows, traces)


TASKS = {"box": box, "entry": entry, "ode": ode, "training": training}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    return TASKS[problem["task"]](problem, method, settings, seeds, inputs, device)
