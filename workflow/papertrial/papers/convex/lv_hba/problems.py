"""Bilevel problems whose lower level is constrained:

    min_{x in X, y} F(x, y)   s.t.   y in argmin_y { f(x, y) : g(x, y) <= 0 (or = 0) }.

Two toys with linear equations, and the choice of one SVM weight for every training example.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from papertrial.testbeds.bilevel import Objective, waves

Array = np.ndarray


class Linear(NamedTuple):
    """g(x, y) = J_x x + J_y y - b, with Z, where its multipliers live, and the projection on C."""

    J_x: Array  # (m, p)
    J_y: Array  # (m, q)
    b: Array  # (m,)
    Z: tuple[float, float]
    project: Callable[[Array, Array], tuple[Array, Array]]  # (x, y) -> the nearest with x in X, g <= 0 (or = 0)

    def value(self, x: Array, y: Array) -> Array:
        return self.J_x @ x + self.J_y @ y - self.b


class Constrained(NamedTuple):
    upper: Objective  # F
    lower: Objective  # f
    constraint: Linear  # g
    start: tuple[Array, Array]


def unseen(problem: Constrained) -> Constrained:
    """The same with a lower level that doesn't know its constraint: C is kept, no equation has a multiplier."""
    g = problem.constraint
    none = Linear(g.J_x[:0], g.J_y[:0], g.b[:0], g.Z, g.project)
    return problem._replace(constraint=none)


def onto(M: Array) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Projection of (x, y) on the null space of M (rows, p + q)."""
    _, s, Vt = np.linalg.svd(M, full_matrices=False)
    N = Vt[s > 1e-10 * s[0]]

    def project(x: Array, y: Array) -> tuple[Array, Array]:
        v = np.concatenate([x, y])
        v = v - (N @ v) @ N
        return v[: len(x)], v[len(x) :]

    return project


# ---- LLC: the lower level is merely convex


def llc(n: int, seed: int) -> Constrained:
    """F = 1/2 ||x - y2||^2 + 1/2 ||y1 - 1||^2, f = 1/2 ||y1||^2 - x^T y1 + 1^T y2, the sum of all variables 0.

    f fixes the sum of y2 alone. Optimum: x = -0.3, y1 = 0.7, y2 = -0.4 in every coordinate.
    """
    ones = np.ones(n)
    F = Objective(
        lambda x, y: 0.5 * ((x - y[n:]) ** 2).sum() + 0.5 * ((y[:n] - 1) ** 2).sum(),
        lambda x, y: x - y[n:],
        lambda x, y: np.concatenate([y[:n] - 1, y[n:] - x]),
        lambda x, y: np.eye(2 * n),
    )
    f = Objective(
        lambda x, y: 0.5 * (y[:n] ** 2).sum() - x @ y[:n] + y[n:].sum(),
        lambda x, y: -y[:n],
        lambda x, y: np.concatenate([y[:n] - x, ones]),
        lambda x, y: np.diag(np.repeat([1.0, 0.0], n)),
        lambda x, y: np.concatenate([-np.eye(n), np.zeros((n, n))], axis=1),
    )
    normal = np.full((1, 3 * n), 1 / np.sqrt(3 * n))
    project = onto(normal)
    start = 3 * np.random.default_rng(seed).standard_normal(3 * n)
    g = Linear(normal[:, :n], normal[:, n:], np.zeros(1), (-100.0, 100.0), project)
    return Constrained(F, f, g, project(start[:n], start[n:]))


# ---- LLSC: the lower level is strongly convex


def llsc(n: int, seed: int) -> Constrained:
    """F = sin(c^T x + d^T y) + log(1 + ||x + y||^2), f = 1/2 ||x - y||^2, A y + H x = 0, B x = 0.

    A and H have 0.9 n rows, B has 0.45 n; [H A] is scaled to norm 1, which changes no solution.
    """
    rng = np.random.default_rng(seed)
    m = round(0.9 * n)
    A, H = rng.uniform(-1, 1, (2, m, n))
    B = rng.uniform(-1, 1, (round(0.45 * n), n))
    c, d = rng.standard_normal((2, n)) / np.sqrt(n)
    size = np.linalg.norm(np.concatenate([H, A], axis=1), 2)
    A, H = A / size, H / size
    f = Objective(
        lambda x, y: 0.5 * ((x - y) ** 2).sum(),
        lambda x, y: x - y,
        lambda x, y: y - x,
        lambda x, y: np.eye(n),
        lambda x, y: -np.eye(n),
    )
    project = onto(np.block([[H, A], [B, np.zeros_like(B)]]))
    g = Linear(H, A, np.zeros(m), (-100.0, 100.0), project)
    return Constrained(waves(c, d), f, g, project(*rng.standard_normal((2, n))))


def in_X(problem: Constrained) -> Array:
    """(p, p): for the toys, the projection on the x that C allows, X = {x : (x, y) in C for some y}."""
    p, q = len(problem.start[0]), len(problem.start[1])
    e = np.eye(p + q)
    P = np.stack([np.concatenate(problem.constraint.project(v[:p], v[p:])) for v in e])  # on C
    U, s, _ = np.linalg.svd(P[:p], full_matrices=False)
    U = U[:, s > 1e-8]
    return U @ U.T


# ---- SVM: one weight an example


class Split(NamedTuple):
    M: Array  # (N, d + 1) rows y_i (z_i, 1)
    validation: Array  # likewise
    test: Array


def margins(rows: Array, u: Array) -> Array:
    """y_i (w^T z_i + b) / ||w|| for u = (w, b)."""
    return rows @ u / max(np.linalg.norm(u[:-1]), 1e-12)


def validation_loss(rows: Array, u: Array) -> float:
    """Sum of max(0, 2 sigmoid(-5 margin) - 1): what is on the wrong side, and how far."""
    return float(np.maximum(-np.tanh(2.5 * margins(rows, u)), 0).sum())


def validation_gradient(rows: Array, u: Array) -> Array:
    size, r = max(np.linalg.norm(u[:-1]), 1e-12), margins(rows, u)
    slope = np.where(r < 0, -2.5 / np.cosh(2.5 * r) ** 2, 0.0) / size
    radial = np.append(u[:-1], 0.0) / size
    return slope @ rows - (slope @ r) * radial


def hinge_fit(M: Array, weights: Array, centre: Array, slack: Array, bias: float = 0.0) -> tuple[Array, Array]:
    """min over u = (w, b) of 1/2 ||w - w0||^2 + bias/2 (b - b0)^2 + 1/2 sum_i weights_i ((slack_i - (M u)_i)_+)^2, by
    Newton's method with halved steps; and the residuals (slack - M u)_+."""
    u = centre.copy()
    ridge = np.append(np.ones(len(u) - 1), bias)

    def value(u: Array) -> float:
        return 0.5 * (ridge * (u - centre) ** 2).sum() + 0.5 * (weights * np.maximum(slack - M @ u, 0) ** 2).sum()

    for _ in range(100):
        r = np.maximum(slack - M @ u, 0)
        gradient = ridge * (u - centre) - (weights * r) @ M
        if np.linalg.norm(gradient) <= 1e-10 * (1 + np.abs(weights * r).sum()):
            break
        active = M[r > 0] * np.sqrt(weights[r > 0])[:, None]
        step = -np.linalg.solve(np.diag(ridge + 1e-12) + active.T @ active, gradient)
        t, before = 1.0, value(u)
        while value(u + t * step) > before + 1e-4 * t * (gradient @ step) and t > 1e-8:
            t /= 2
        u = u + t * step
    return u, np.maximum(slack - M @ u, 0)


def svm(split: Split, bound: float) -> Constrained:
    """x = C (N,), y = (w, b, xi): f = 1/2 ||w||^2 + 1/2 sum e^{C_i} xi_i^2 over M (w, b) >= 1 - xi; |C_i| <= bound."""
    N, k = split.M.shape
    F = Objective(
        lambda C, y: np.float64(validation_loss(split.validation, y[:k])),
        lambda C, y: np.zeros(N),
        lambda C, y: np.concatenate([validation_gradient(split.validation, y[:k]), np.zeros(N)]),
        lambda C, y: np.zeros((k + N, k + N)),
    )
    w = np.append(np.ones(k - 1), 0.0)
    f = Objective(
        lambda C, y: 0.5 * (w * y[:k] ** 2).sum() + 0.5 * (np.exp(C) * y[k:] ** 2).sum(),
        lambda C, y: 0.5 * np.exp(C) * y[k:] ** 2,
        lambda C, y: np.concatenate([w * y[:k], np.exp(C) * y[k:]]),
        lambda C, y: np.diag(np.concatenate([w, np.exp(C)])),
    )

    def project(C: Array, y: Array) -> tuple[Array, Array]:
        """xi = max(xi, 1 - M u) leaves a smooth problem in u."""
        u, missing = hinge_fit(split.M, np.ones(N), y[:k], 1 - y[k:], bias=1.0)
        return np.clip(C, -bound, bound), np.concatenate([u, y[k:] + missing])

    g = Linear(np.zeros((N, N)), -np.concatenate([split.M, np.eye(N)], axis=1), -np.ones(N), (0.0, 100.0), project)
    C = np.zeros(N)
    return Constrained(F, f, g, (C, np.concatenate(hinge_fit(split.M, np.exp(C), np.zeros(k), np.ones(N)))))
