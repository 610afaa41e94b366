"""Sequences of linear systems A_t x = b_t for successive over-relaxation (SOR), whose parameter omega one may choose.

A_t = A + c_t I, A the 5-point Laplacian of the interior of a square grid (side^2 unknowns row by row, 4 on the
diagonal), with random shifts c_t and right sides b_t. SOR starts at x = 0 and steps

    x <- x + M^-1 (b - A x),    M = D / omega + L,    A = D + L + L^T,

until the residual has fallen by 1e-8; the number of steps is the system's cost.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse

GRID = np.linspace(1, 1.95, 20)  # the values of omega that learners choose from
SHIFTS = {"high": (0.5, 1.5), "low": (2.0, 6.0)}  # variance of c -> parameters of the Beta distribution
LOWEST, WIDTH = -0.15, 0.6  # c = LOWEST + WIDTH Beta
TOLERANCE = 1e-8
CAP = 10_000


class Costs(NamedTuple):
    """What every choice of omega would have cost, one row a system."""

    c: np.ndarray  # (T,) shifts
    grid: np.ndarray  # (T, 20) steps with each omega of the grid
    optimal: np.ndarray  # (T,) steps with the omega that is asymptotically best for the system


def laplacian(side: int) -> sparse.csr_array:
    line = sparse.diags_array([-np.ones(side - 1), np.full(side, 2.0), -np.ones(side - 1)], offsets=[-1, 0, 1])
    one = sparse.eye_array(side)
    return sparse.csr_array(sparse.kron(line, one) + sparse.kron(one, line))


def systems(variance: str, T: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shifts c (T,) and right sides b (T, side^2): standard normal, drawn again until ||b||^2 <= side^2."""
    rng = np.random.default_rng(seed)
    c = LOWEST + WIDTH * rng.beta(*SHIFTS[variance], T)
    b = np.empty((0, side * side))
    while len(b) < T:
        drawn = rng.standard_normal((T, side * side))
        b = np.concatenate([b, drawn[(drawn**2).sum(axis=1) <= side * side]])
    return c, b[:T]


def optimal_omega(c: np.ndarray, side: int) -> np.ndarray:
    """From the spectral radius beta of Jacobi's iteration matrix I - D^-1 A (Young 1954)."""
    beta = 4 * np.cos(np.pi / (side + 1)) / (4 + c)
    return 1 + (beta / (1 + np.sqrt(1 - beta**2))) ** 2


def tabulate(variance: str, T: int, side: int, seed: int) -> Costs:
    c, b = systems(variance, T, side, seed)
    grid = [sor_steps(c, b, np.full(T, omega)) for omega in GRID]
    return Costs(c, np.stack(grid, axis=1), sor_steps(c, b, optimal_omega(c, side)))


def sor_steps(c: np.ndarray, b: np.ndarray, omega: np.ndarray, together: int = 1000) -> np.ndarray:
    """SOR's steps to the tolerance, at most the cap: (B,) for systems c (B,), b (B, n), omega (B,).

    Args:
        together: how many systems step side by side; they should fit the processor's cache.
    """
    parts = [slice(i, i + together) for i in range(0, len(c), together)]
    return np.concatenate([_steps(c[part], b[part], omega[part]) for part in parts])


def _steps(c: np.ndarray, b: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """The residual r alone is enough: M d = r gives the step d, and then r <- (M - A) d.

    Unknowns are taken by anti-diagonals of the grid: those of one depend on those of the one before only.
    """
    side = round(b.shape[1] ** 0.5)
    row, column = np.indices((side, side)).reshape(2, -1)
    order = np.lexsort((row, row + column))
    ends = np.cumsum(np.bincount(row + column))
    diagonals = [slice(end - size, end) for end, size in zip(ends, np.bincount(row + column), strict=True)]

    edges = [_edges(s, side) for s in range(len(diagonals))]

    r, centre = np.ascontiguousarray(b.T[order]), 4 + c  # (n, B), (B,)
    d, steps, running = np.empty_like(r), np.full(len(c), CAP), np.arange(len(c))
    enough = TOLERANCE**2 * np.einsum("nb,nb->b", r, r)
    for k in range(1, CAP + 1):
        inverse, keep = omega / centre, (1 / omega - 1) * centre
        for s, here in enumerate(diagonals):  # (D / omega + L) d = r, L is -1 to the left and above
            now = d[here]
            now[:] = r[here]
            for target, source in edges[s]:
                now[target] += d[diagonals[s - 1]][source]
            now *= inverse
        np.multiply(d, keep, out=r)  # r = ((1 / omega - 1) D - L^T) d
        for s, here in enumerate(diagonals):
            for target, source in edges[s]:
                r[diagonals[s - 1]][source] += d[here][target]
        done = np.einsum("nb,nb->b", r, r) < enough
        steps[running[done & (steps[running] == CAP)]] = k
        going = steps[running] == CAP
        if not going.any():
            break
        if going.mean() < 0.9:
            running, enough, centre, omega = running[going], enough[going], centre[going], omega[going]
            r, d = np.ascontiguousarray(r[:, going]), np.empty((len(r), len(running)))
    return steps


def _edges(s: int, side: int) -> list[tuple[slice, slice]]:
    """Between the anti-diagonals s and s - 1: pairs of equally long runs, for the edges of each direction."""
    if s == 0:
        return []
    if s < side:
        return [(slice(1, None), slice(None)), (slice(None, -1), slice(None))]
    return [(slice(None), slice(None, -1)), (slice(None), slice(1, None))]
