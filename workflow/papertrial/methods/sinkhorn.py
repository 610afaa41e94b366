"""Sinkhorn's algorithm and its usual accelerations, for entropic optimal transport

    min <C, P> + (1/eta) sum_ij p_ij log p_ij   over P 1 = r and P^T 1 = c,        C (m, n), r (m,), c (n,).

The optimum is P = exp(eta (x 1^T + 1 y^T - C) - 1) with the potentials x (m,), y (n,) that meet both marginals; a
sweep meets the rows' by x, then the columns' by y.

Sources: Cuturi, arXiv:1306.0895; Schmitzer, arXiv:1610.06519 (absorption, eta-scaling); Thibault et al.,
arXiv:1711.01851 (overrelaxation).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp


class Solution(NamedTuple):
    """Where an iteration ended, and the l1 marginal error after each of its iterations."""

    x: np.ndarray
    y: np.ndarray
    errors: list[float]


def plan(C: np.ndarray, x: np.ndarray, y: np.ndarray, eta: float) -> np.ndarray:
    """P (m, n) of the potentials."""
    P = x[:, None] + y
    P -= C
    P *= eta
    P -= 1
    return np.exp(P, out=P)


def log_sweep(C: np.ndarray, r: np.ndarray, c: np.ndarray, eta: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One sweep in the log domain, from any y: slow, but nothing overflows or vanishes."""
    x = (np.log(r) + 1 - logsumexp(eta * (y - C), axis=1)) / eta
    y = (np.log(c) + 1 - logsumexp(eta * (x[:, None] - C), axis=0)) / eta
    return x, y


def sinkhorn(
    C: np.ndarray,
    r: np.ndarray,
    c: np.ndarray,
    eta: float,
    tol: float,
    cap: int,
    *,
    y: np.ndarray | None = None,
    omega: float = 1.0,
    absorb: int = 100,
) -> Solution:
    """Sweeps until the l1 marginal error is at most ``tol``, ``cap`` of them at most (and at least one).

    After a first sweep in the log domain P = diag(u) K diag(v): a sweep is two products with the kernel K, and every
    ``absorb`` sweeps the scalings u and v move into the potentials and so into a new K.

    Args:
        y: (n,) column potential to start from; zero by default.
        omega: exponent of the scalings' updates; 1 is Sinkhorn, up to 2 is overrelaxation.
    """
    x, y = log_sweep(C, r, c, eta, np.zeros(len(c)) if y is None else y)
    K, u, v = plan(C, x, y, eta), np.ones(len(r)), np.ones(len(c))
    Kv = K.sum(axis=1)
    errors = [float(np.abs(Kv - r).sum() + np.abs(K.sum(axis=0) - c).sum())]
    while errors[-1] > tol and len(errors) < cap:
        power = omega if errors[-1] < 1 else 1.0  # from far off, overrelaxed steps can diverge
        u = u * (r / (u * Kv)) ** power
        uK = u @ K
        v = v * (c / (v * uK)) ** power
        columns = v * uK
        # Entries of K that underflowed stay below 1e-200 in P.
        if len(errors) % absorb == 0 or u.max() * v.max() > 1e100:
            x, y = x + np.log(u) / eta, y + np.log(v) / eta
            K, u, v = plan(C, x, y, eta), np.ones(len(r)), np.ones(len(c))
        Kv = K @ v  # of the next sweep; tells the rows' error of this one
        errors.append(float(np.abs(u * Kv - r).sum() + np.abs(columns - c).sum()))
    return Solution(x + np.log(u) / eta, y + np.log(v) / eta, errors)


def eta_scaling(
    C: np.ndarray,
    r: np.ndarray,
    c: np.ndarray,
    eta: float,
    tol: float,
    cap: int,
    *,
    first: float = 10.0,
    stage_tol: float = 1e-2,
) -> Solution:
    """Sinkhorn for eta = ``first``, twice that, ... up to the wanted one, each from the one before.

    Args:
        stage_tol: the marginal error at which a stage ends; the last one ends at ``tol``.
    """
    stage, y, errors = min(first, eta), None, []
    while True:
        last = stage == eta
        found = sinkhorn(C, r, c, stage, tol if last else stage_tol, cap - len(errors), y=y)
        y, errors = found.y, errors + found.errors
        if last or len(errors) >= cap:
            return Solution(found.x, y, errors)
        stage = min(2 * stage, eta)
