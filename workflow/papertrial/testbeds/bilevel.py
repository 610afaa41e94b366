"""Bilevel problems with derivatives by hand, for many points at once:

    min_x  psi(x) = min { f(x, y) : y in S(x) },     S(x) = argmin_y g(x, y),

x (..., p) and y (..., q); leading axes are lanes that don't see each other. The gradient of psi is

    grad_x f - g_xy g_yy^+ grad_y f    at the point of S(x) that is best for f,

with the pseudo-inverse where S(x) is an affine set rather than a point.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Function = Callable[[Array, Array], Array]


class Objective(NamedTuple):
    """A function of (x, y) and its derivatives."""

    value: Function  # (...,)
    grad_x: Function  # (..., p)
    grad_y: Function  # (..., q)
    hess_yy: Function  # (..., q, q)
    hess_xy: Function | None = None  # (..., p, q)


class Bilevel(NamedTuple):
    upper: Objective  # f
    lower: Objective  # g, convex in y
    p: int
    q: int


def counted(objective: Objective, calls: Counter) -> Objective:
    """The same objective, writing every call into ``calls`` under the derivative's name, one for each lane."""

    def count(name: str) -> Function:
        function = getattr(objective, name)

        def call(x: Array, y: Array) -> Array:
            calls[name] += max(x[..., 0].size, y[..., 0].size)
            return function(x, y)

        return call if function else None

    return Objective(*map(count, Objective._fields))


def penalised(problem: Bilevel, sigma: float | Array) -> Objective:
    """h = sigma f + g; sigma may differ from lane to lane, (...,)."""
    f, g = problem.upper, problem.lower
    by_lane = np.asarray(sigma, dtype=float)
    s, S = by_lane[..., None], by_lane[..., None, None]
    return Objective(
        lambda x, y: by_lane * f.value(x, y) + g.value(x, y),
        lambda x, y: s * f.grad_x(x, y) + g.grad_x(x, y),
        lambda x, y: s * f.grad_y(x, y) + g.grad_y(x, y),
        lambda x, y: S * f.hess_yy(x, y) + g.hess_yy(x, y),
    )


def minimise(h: Objective, x: Array, y: Array, basis: Array | None = None, tol: float = 1e-12, cap: int = 50) -> Array:
    """Newton's method with halved steps for min_y h(x, y), from y, to a gradient of norm tol.

    Args:
        basis: (q, r) orthonormal columns; y moves in their span alone.
        tol: rounding ends the search earlier where it must.
    """
    for _ in range(cap):
        gradient, curvature = h.grad_y(x, y), h.hess_yy(x, y)
        if basis is not None:
            gradient, curvature = gradient @ basis, basis.T @ curvature @ basis  # (..., r), (..., r, r)
        if (np.linalg.norm(gradient, axis=-1) <= tol).all():
            break
        step = -np.linalg.solve(curvature, gradient[..., None])[..., 0]
        slope = (step * gradient).sum(axis=-1)
        if basis is not None:
            step = step @ basis.T
        value = h.value(x, y)
        t = np.ones_like(value)
        for _ in range(30):
            rises = h.value(x, y + t[..., None] * step) > value + 1e-4 * t * slope + 1e-13 * np.abs(value)
            if not rises.any():
                break
            t = np.where(rises, t / 2, t)
        y = y + t[..., None] * step
    return y


def curved_and_flat(problem: Bilevel) -> tuple[Array, Array]:
    """Orthonormal bases (q, r), (q, q - r) of g_yy's range and null space, which must be the same everywhere."""
    values, vectors = np.linalg.eigh(problem.lower.hess_yy(np.zeros(problem.p), np.zeros(problem.q)))
    flat = values <= 1e-10 * values[-1]
    return vectors[:, ~flat], vectors[:, flat]


def lower_solution(problem: Bilevel, x: Array, start: Array | None = None, tol: float = 1e-12) -> Array:
    """The point of S(x) that is best for f; a start close to it saves steps."""
    curved, flat = curved_and_flat(problem)
    start = np.zeros((*x.shape[:-1], problem.q)) if start is None else start
    y = minimise(problem.lower, x, start, curved if flat.size else None, tol)
    return minimise(problem.upper, x, y, flat, tol) if flat.size else y


def hyper_objective(problem: Bilevel, x: Array) -> Array:
    """psi(x)."""
    return problem.upper.value(x, lower_solution(problem, x))


def hypergradient(problem: Bilevel, x: Array, y: Array) -> Array:
    """The implicit gradient at a lower solution y, with the pseudo-inverse of g_yy."""
    f, g = problem.upper, problem.lower
    v = np.linalg.pinv(g.hess_yy(x, y), rcond=1e-10, hermitian=True) @ f.grad_y(x, y)[..., None]  # (..., q, 1)
    return f.grad_x(x, y) - (g.hess_xy(x, y) @ v)[..., 0]


# ---- families


def outer(a: Array, b: Array) -> Array:
    return a[..., :, None] * b[..., None, :]


def waves(c: Array, d: Array) -> Objective:
    """f = sin(c^T x + d^T y) + log(1 + ||x + y||^2); x and y of one length."""

    def parts(x: Array, y: Array) -> tuple[Array, Array, Array]:
        u, s = x @ c + y @ d, x + y
        return u[..., None], s, 1 + (s * s).sum(axis=-1, keepdims=True)

    def value(x: Array, y: Array) -> Array:
        u, _, r = parts(x, y)
        return (np.sin(u) + np.log(r))[..., 0]

    def gradient(x: Array, y: Array, a: Array) -> Array:
        u, s, r = parts(x, y)
        return np.cos(u) * a + 2 * s / r

    def hess_yy(x: Array, y: Array) -> Array:
        u, s, r = parts(x, y)
        return -np.sin(u)[..., None] * outer(d, d) + 2 * np.eye(len(d)) / r[..., None] - 4 * outer(s / r, s / r)

    return Objective(value, lambda x, y: gradient(x, y, c), lambda x, y: gradient(x, y, d), hess_yy)


def strongly_convex(seed: int, n: int = 10) -> Bilevel:
    """g = 1/2 ||y - B x||_Q^2 + 0.1 sum log cosh y under ``waves``; Q = I + W W^T/n, all else N(0, 1)/sqrt n."""
    rng = np.random.default_rng(seed)
    c, d = rng.standard_normal((2, n)) / np.sqrt(n)
    B, W = rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal((n, n))
    Q = np.eye(n) + W @ W.T / n

    def value(x: Array, y: Array) -> Array:
        e, size = y - x @ B.T, np.abs(y)
        return 0.5 * (e @ Q * e).sum(axis=-1) + 0.1 * (size + np.log1p(np.exp(-2 * size)) - np.log(2)).sum(axis=-1)

    g = Objective(
        value,
        lambda x, y: -(y - x @ B.T) @ Q @ B,
        lambda x, y: (y - x @ B.T) @ Q + 0.1 * np.tanh(y),
        lambda x, y: Q + 0.1 * (1 - np.tanh(y)[..., None] ** 2) * np.eye(n),
        lambda x, y: -B.T @ Q,
    )
    return Bilevel(waves(c, d), g, n, n)


def many_solutions(seed: int, n: int = 10) -> Bilevel:
    """g = 1/2 ||A y - B x||^2, A (n/2, n) with singular values evenly in [1, 2], under
    f = 1/2 ||y - r||^2 + sin(c^T x + d^T y) + 0.05 ||x||^2, strongly convex in y by ||d||^2 = 1/2."""
    rng = np.random.default_rng(seed)
    m = n // 2
    c, d, r = rng.standard_normal((3, n)) / np.sqrt(n)
    d *= np.sqrt(0.5) / np.linalg.norm(d)
    U, V = (np.linalg.qr(rng.standard_normal((k, m)))[0] for k in (m, n))
    A, B = U * np.linspace(1, 2, m) @ V.T, rng.standard_normal((m, n)) / np.sqrt(n)

    def wave(x: Array, y: Array) -> Array:
        return (x @ c + y @ d)[..., None]

    f = Objective(
        lambda x, y: 0.5 * ((y - r) ** 2).sum(-1) + np.sin(wave(x, y))[..., 0] + 0.05 * (x**2).sum(-1),
        lambda x, y: np.cos(wave(x, y)) * c + 0.1 * x,
        lambda x, y: y - r + np.cos(wave(x, y)) * d,
        lambda x, y: np.eye(n) - np.sin(wave(x, y))[..., None] * outer(d, d),
    )
    g = Objective(
        lambda x, y: 0.5 * ((y @ A.T - x @ B.T) ** 2).sum(axis=-1),
        lambda x, y: -(y @ A.T - x @ B.T) @ B,
        lambda x, y: (y @ A.T - x @ B.T) @ A,
        lambda x, y: np.broadcast_to(A.T @ A, (*np.broadcast_shapes(x.shape, y.shape)[:-1], n, n)),
        lambda x, y: -B.T @ A,
    )
    return Bilevel(f, g, n, n)
