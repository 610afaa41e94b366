"""Sinkhorn-Newton-Sparse (SNS) for entropic optimal transport,

    min <C, P> + (1/eta) sum_ij p_ij log p_ij   over P 1 = r and P^T 1 = c,        P (n, n).

The concave dual has the potentials x, y (n,), together z (2n,):

    f(z)     = -(1/eta) sum_ij P_ij + <r, x> + <c, y>,       P = exp(eta (x 1^T + 1 y^T - C) - 1)
    grad f   = (r - P 1, c - P^T 1)
    -hess f  = eta [[diag(P 1), P], [P^T, diag(P^T 1)]]      positive semidefinite, null vector (1, -1)

When eta is large, few entries of P and so of the Hessian soon matter. SNS sweeps N1 times, then takes Newton steps
by conjugate gradients that meet only the largest entries of P.

Source: Tang, Shavlovsky, Rahmanian, Tardini, Thekumparampil, Xiao, Ying, arXiv:2401.12253 (2024).
"""

from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import cg

from papertrial.engine.results import Inputs, Results
from papertrial.methods.sinkhorn import Solution, eta_scaling, log_sweep, plan, sinkhorn
from papertrial.testbeds.transport import OT, image_pair, make_ot, marginal_error

Settings = dict[str, Any]
Outcome = tuple[Solution, dict[str, int]]  # and what the Newton steps took
Choice = Callable[[np.ndarray, int], np.ndarray]  # P (n, n), count -> flat indices (count,)
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, int]]  # P (n, n), g (2n,) -> dz (2n,), CG iterations

RIDGE = 1e-14  # times eta, against the null vector
ARMIJO = 1e-4
HALVINGS = 30


def gradient(P: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.concatenate([r - P.sum(axis=1), c - P.sum(axis=0)])  # (2n,)


# Newton's step, three times: M dz = g with M = -hess f, or what is kept of it.


def largest(P: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(P, P.size - count, axis=None)[P.size - count :]


def at_random(seed: int) -> Choice:
    """The control's choice: as many entries, but any."""
    rng = np.random.default_rng(seed)
    return lambda P, count: rng.choice(P.size, count, replace=False)


def sparse_hessian(P: np.ndarray, kept: np.ndarray, eta: float) -> sparse.csr_array:
    """M (2n, 2n) with P zeroed off the diagonal blocks except at the flat indices ``kept``.

    The diagonal holds the sums over all of P, so M is diagonally dominant: positive semidefinite.
    """
    i, j = np.unravel_index(kept, P.shape)
    S = sparse.csr_array((P[i, j], (i, j)), shape=P.shape)
    rows, columns = sparse.diags_array(P.sum(axis=1)), sparse.diags_array(P.sum(axis=0))
    return eta * sparse.block_array([[rows, S], [S.T, columns]], format="csr")


def sparse_step(eta: float, keep: int, choose: Choice) -> Step:
    """Jacobi-preconditioned CG on M with ``keep`` n entries of P."""

    def step(P: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, int]:
        kept = choose(P, min(keep * len(P), P.size))
        M = sparse_hessian(P, kept, eta) + RIDGE * eta * sparse.eye_array(len(g))
        inner = []
        dz, _ = cg(M, g, rtol=1e-10, maxiter=400, M=sparse.diags_array(1 / M.diagonal()), callback=inner.append)
        return dz, len(inner)

    return step


def dense_step(eta: float) -> Step:
    """Cholesky of the whole M, with the last potential held fixed against the null vector."""

    def step(P: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, int]:
        M = eta * np.block([[np.diag(P.sum(axis=1)), P], [P.T, np.diag(P.sum(axis=0))]])
        M[np.diag_indices_from(M)] += RIDGE * eta
        try:
            return np.append(linalg.cho_solve(linalg.cho_factor(M[:-1, :-1]), g[:-1]), 0.0), 0
        except linalg.LinAlgError:
            return np.zeros_like(g), 0

    return step


# The ascent.


def rise(P: np.ndarray, g: np.ndarray, dz: np.ndarray, eta: float) -> float:
    """f(z + dz) - f(z) without the cancellation of subtracting them; -inf where f overflows."""
    n = len(P)
    delta = eta * (dz[:n, None] + dz[n:])  # (n, n): the change of log P
    with np.errstate(over="ignore", invalid="ignore"):
        gain = g @ dz - np.vdot(P, np.expm1(delta) - delta) / eta
    return gain if np.isfinite(gain) else -np.inf


def backtrack(P: np.ndarray, g: np.ndarray, dz: np.ndarray, eta: float) -> float:
    """The first of 1, 1/2, 1/4, ... by which f rises enough (Armijo), or 0."""
    slope = g @ dz
    if slope <= 0:
        return 0.0
    steps = (0.5**k for k in range(HALVINGS))
    return next((alpha for alpha in steps if rise(P, g, alpha * dz, eta) >= ARMIJO * alpha * slope), 0.0)


def two_stages(ot: OT, eta: float, tol: float, N1: int, N2: int, step: Step) -> Outcome:
    """N1 sweeps, then N2 Newton steps at most; a sweep in place of a step that finds no ascent."""
    C, r, c = ot
    n = len(r)
    x, y, errors = sinkhorn(C, r, c, eta, tol, N1)
    newton_steps = cg_iterations = 0
    P = plan(C, x, y, eta)
    for _ in range(N2):
        if errors[-1] <= tol:
            break
        g = gradient(P, r, c)
        dz, inner = step(P, g)
        alpha = backtrack(P, g, dz, eta)
        if alpha > 0:
            x, y = x + alpha * dz[:n], y + alpha * dz[n:]
        else:
            x, y = log_sweep(C, r, c, eta, y)
        P = plan(C, x, y, eta)
        errors.append(marginal_error(P, r, c))
        newton_steps += int(alpha > 0)
        cg_iterations += inner
    return Solution(x, y, errors), {"newton_steps": newton_steps, "cg_iterations": cg_iterations}


# The methods.


def sns(ot: OT, eta: float, tol: float, cap: int, seed: int, *, N1: int, N2: int, keep: int) -> Outcome:
    return two_stages(ot, eta, tol, N1, N2, sparse_step(eta, keep, largest))


def sns_random(ot: OT, eta: float, tol: float, cap: int, seed: int, *, N1: int, N2: int, keep: int) -> Outcome:
    return two_stages(ot, eta, tol, N1, N2, sparse_step(eta, keep, at_random(seed)))


def newton(ot: OT, eta: float, tol: float, cap: int, seed: int, *, N1: int, N2: int) -> Outcome:
    return two_stages(ot, eta, tol, N1, N2, dense_step(eta))


def sweeps(ot: OT, eta: float, tol: float, cap: int, seed: int, *, omega: float = 1.0) -> Outcome:
    return sinkhorn(*ot, eta, tol, cap, omega=omega), {}


def scaled_sweeps(ot: OT, eta: float, tol: float, cap: int, seed: int, *, first: float) -> Outcome:
    return eta_scaling(*ot, eta, tol, cap, first=first), {}


SOLVERS = {
    "sns": sns,
    "sns_tuned": sns,
    "sns_random": sns_random,
    "newton": newton,
    "sinkhorn": sweeps,
    "overrelaxed": sweeps,
    "eta_scaling": scaled_sweeps,
}
WARM_UPS = {
    "warm_up": lambda C: C,
    "constant_costs": lambda C: np.full_like(C, C.mean()),  # the control: nothing to choose between
}


def converge(ot: OT, problem: Settings, method: str, settings: Settings, seed: int) -> Results:
    """Iterations until the marginal error is ``tol``; without reaching it they count as the cap."""
    eta, tol, cap = problem["eta"], problem["tol"], problem["cap"]
    start = process_time()
    (x, y, errors), spent = SOLVERS[method](ot, eta, tol, cap, seed, **settings)
    seconds = process_time() - start
    reached, done = errors[-1] <= tol, len(errors)
    row = {"seed": seed, "iterations": done if reached else cap, "reached": int(reached), "marginal_error": errors[-1]}
    row |= {"cost": float(np.vdot(ot.C, plan(ot.C, x, y, eta))), **spent}
    if "keep" in settings:
        row["kept_entries"] = min(settings["keep"] * len(ot.r), ot.C.size)
    drawn = {int(k) for k in np.geomspace(1, done, 40)} | set(range(max(1, done - 30), done + 1))
    trace = [{"seed": seed, "iteration": k, "error": errors[k - 1]} for k in sorted(drawn)]
    return Results([row], trace, [{"seed": seed, "cpu_s": seconds}])


def tail_mass(P: np.ndarray, count: int) -> float:
    """The share of P outside its ``count`` largest entries."""
    return float(1 - P.flat[largest(P, count)].sum() / P.sum())


def watch(ot: OT, problem: Settings, method: str, settings: Settings, seed: int) -> Results:
    """The share s of P outside its 3n largest entries after t sweeps, for several eta."""
    C, r, c = WARM_UPS[method](ot.C), ot.r, ot.c
    rows = []
    for eta in problem["etas"]:
        y, done = None, 0
        for t in problem["sweeps"]:
            x, y, _ = sinkhorn(C, r, c, eta, 0.0, t - done, y=y)
            done = t
            rows.append({"seed": seed, "eta": eta, "t": t, "s": tail_mass(plan(C, x, y, eta), 3 * len(r))})
    return Results(rows)


def instance(problem: Settings, seed: int, inputs: Inputs) -> OT:
    if "images" in problem:
        return image_pair(inputs.datasets[problem["images"]]["x"], seed, problem["p"])
    return make_ot(problem["family"], problem["n"], seed)


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    measure = watch if method in WARM_UPS else converge
    found = Results([])
    for seed in seeds:
        one = measure(instance(problem, seed, inputs), problem, method, settings, seed)
        found.rows += one.rows
        found.traces += one.traces
        found.timings += one.timings
    return found
