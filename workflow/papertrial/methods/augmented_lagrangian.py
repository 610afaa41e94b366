"""The classical augmented Lagrangian method for min f(x) s.t. c(x) = 0, with Newton-CG inside.

    minimise L_A(x) = f + lambda^T c + rho/2 ||c||^2 roughly, then lambda <- lambda + rho c;
    rho grows tenfold where ||c|| has not come down to a quarter.

Nocedal and Wright 2006, chapters 17.3 and 7.1.
"""

from typing import Protocol

import numpy as np

from papertrial.testbeds.nlp import NLP, First, residual


class Charged(Protocol):
    flops: float

    @property
    def spent(self) -> bool: ...


def newton_cg(nlp: NLP, tol: float, budget: Charged, most: int) -> tuple[list[float], list[float], float]:
    """KKT residuals by Newton step, their lengths alpha, and f at the end."""
    x, lam, rho, at = nlp.x0, np.zeros(nlp.m), 10.0, nlp.first(nlp.x0)
    kkt, alphas, before, omega = [], [], np.inf, 0.1
    for _ in range(most):
        g = at.g + at.G.T @ (lam + rho * at.c)
        if np.linalg.norm(g) <= omega:  # the inner problem is solved well enough
            violation = np.linalg.norm(at.c)
            lam = lam + rho * at.c
            rho, before = (10 * rho if violation > before / 4 else rho), violation
            omega = max(omega / 10, tol / 10)
            g = at.g + at.G.T @ (lam + rho * at.c)
        kkt.append(float(np.linalg.norm(residual(at, lam))))
        if kkt[-1] <= tol or budget.spent or not np.isfinite(kkt[-1]):
            break
        second = nlp.second(x)
        H = second.of_f + second.of_c(lam + rho * at.c) + rho * at.G.T @ at.G
        budget.flops += nlp.flops[1] + len(x) * (len(x) + 1) * len(at.c)  # H, with G^T G
        d = conjugate_gradients(H, g, min(0.5, np.sqrt(np.linalg.norm(g))), budget)
        alpha, value = 1.0, penalised(at, lam, rho)
        while alpha >= 1e-10:
            after = nlp.first(x + alpha * d)
            budget.flops += nlp.flops[0]
            if penalised(after, lam, rho) <= value + 1e-4 * alpha * g @ d + 1e-14 * abs(value):
                break
            alpha /= 2
        else:
            break
        x, at = x + alpha * d, after
        alphas.append(alpha)
    return kkt, alphas, float(at.f)


def penalised(at: First, lam: np.ndarray, rho: float) -> float:
    return at.f + lam @ at.c + rho / 2 * at.c @ at.c


def conjugate_gradients(H: np.ndarray, g: np.ndarray, forcing: float, budget: Charged) -> np.ndarray:
    """H d = -g up to ||H d + g|| <= forcing ||g||; stops before a direction of negative curvature."""
    d, r, p = np.zeros(len(g)), -g, -g
    for _ in range(2 * len(g)):
        Hp = H @ p
        budget.flops += 2 * H.size + 10 * len(g)
        curvature = p @ Hp
        if curvature <= 1e-12 * (p @ p):
            return d if d.any() else -g
        alpha = r @ r / curvature
        d, r_after = d + alpha * p, r - alpha * Hp
        if np.linalg.norm(r_after) <= forcing * np.linalg.norm(g):
            break
        p, r = r_after + (r_after @ r_after) / (r @ r) * p, r_after
    return d
