"""Block coordinate descent for min f(x) + lam ||x||_1, f a linear model's: find the support, then use it.

Sources: Nutini, Laradji, Schmidt, arXiv:1712.08859, section 6; Gafni and Bertsekas 1984 (two-metric projection).
"""

from collections.abc import Iterator

import numpy as np

from papertrial.methods.block_rules import largest
from papertrial.methods.sparse_regression import shrink
from papertrial.testbeds.coordinate_descent import LinearModel


def identify(model: LinearModel, lam: float, tau: int, budget: int) -> tuple[np.ndarray, int, list[np.ndarray]]:
    """Proximal steps on variable blocks by the GS-q rule: the tau coordinates whose own steps would gain most.

    Returns:
        the first iterate with the final support, the last iteration K at which the support changed, and the iterates
        up to the first.
    """
    x = np.zeros(model.size)
    Z = model.predict(x)
    path, K = [x.copy()], 0
    for k in range(1, budget + 1):
        g = model.gradient(x, Z)
        d = shrink(x - g / model.L, lam / model.L) - x
        gain = -(g * d + model.L / 2 * d**2 + lam * (np.abs(x + d) - np.abs(x)))
        block = largest(gain, tau)
        L = np.linalg.eigvalsh(model.bounds(block))[-1]
        d = shrink(x[block] - g[block] / L, lam / L) - x[block]
        before = x[block] != 0
        x[block] += d
        model.move(Z, block, d)
        if k % 100 == 0:
            Z = model.predict(x)
        if (before != (x[block] != 0)).any():
            K = k
        path.append(x.copy())
    final = x != 0
    first = next(k for k, y in enumerate(path) if ((y != 0) == final).all())
    return path[first], K, path[: first + 1]


def two_metric(model: LinearModel, lam: float, x: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Newton's step where x isn't held at zero, projected on x's orthant, with backtracking."""
    Z = model.predict(x)
    g, size = model.gradient(x, Z), float(lam * np.abs(x).sum())
    p = np.where(x != 0, g + lam * np.sign(x), shrink(g, lam))  # the steepest subgradient
    orthant = np.where(x != 0, np.sign(x), -np.sign(p))
    free = block[orthant[block] != 0]
    d = -np.linalg.solve(model.hessian(Z, free), p[free])
    here = model.value(x, Z) + size
    for alpha in 0.5 ** np.arange(40):
        there = x.copy()
        moved = x[free] + alpha * d
        there[free] = np.where(moved * orthant[free] > 0, moved, 0)
        value = model.value(there, model.predict(there)) + lam * np.abs(there).sum()
        if value <= here + 1e-4 * p @ (there - x) + 1e-15 * here:
            return there
    return x


def prox_gradient(model: LinearModel, lam: float, x: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The control's step on the same block."""
    g, L = model.gradient(x, model.predict(x))[block], np.linalg.eigvalsh(model.bounds(block))[-1]
    there = x.copy()
    there[block] = shrink(x[block] - g / L, lam / L)
    return there


# What it is compared with: iterates x_1, x_2, ... without end.


def fista_path(model: LinearModel, lam: float) -> Iterator[np.ndarray]:
    L = np.linalg.eigvalsh(model.gram)[-1] + model.rho
    x = y = np.zeros(model.size)
    t = 1.0
    while True:
        x, before = shrink(y - model.gradient(y, model.predict(y)) / L, lam / L), x
        t, t_before = (1 + (1 + 4 * t * t) ** 0.5) / 2, t
        y = x + (t_before - 1) / t * (x - before)
        yield x


def cyclic_path(model: LinearModel, lam: float) -> Iterator[np.ndarray]:
    """Sweeps of proximal steps, one coordinate after the other."""
    x = np.zeros(model.size)
    Z = model.predict(x)
    while True:
        for i in range(model.size):
            slope = model.A[:, i] @ model.loss.slope(Z, model.Y)[:, 0] + model.rho * x[i]
            d = shrink(x[i] - slope / model.L[i], lam / model.L[i]) - x[i]
            if d != 0:
                x[i] += d
                Z[:, 0] += model.A[:, i] * d
        Z = model.predict(x)
        yield x.copy()
