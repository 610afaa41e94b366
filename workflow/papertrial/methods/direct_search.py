"""Maximise a function from its values alone within [0, 1]^n: direct search with covering steps (cDSM).

An iteration tries one point of a ball around the incumbent, far from what was tried before (covering: over time the
points fill the ball), and if that is no better polls 2n directions, a random rotation of the axes and their negatives,
at distance delta. The first better point is taken and delta doubles; else delta halves.

A meter stands between search and function: it charges evaluations and keeps the best point of all.

Source: Audet, Bouchet and Bourdin 2024 for the covering step; Kolda, Lewis and Torczon 2003 for direct search.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Point(NamedTuple):
    x: np.ndarray  # (n,)
    value: float


class Meter:
    """A budget of evaluations and what came of it; infeasible points count as minus infinity.

    Args:
        values: (B, n) -> f (B,) and the largest violation (B,), feasible where it's <= 0.
        budget: evaluations in all.
    """

    def __init__(self, values: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], budget: int) -> None:
        self.evaluate, self.budget, self.used = values, budget, 0
        self.best = Point(np.zeros(0), -np.inf)
        self.history: list[tuple[int, float]] = []  # evaluations used, best value so far

    @property
    def spent(self) -> bool:
        return self.used >= self.budget

    def charge(self, evaluations: int) -> None:
        self.used += evaluations

    def values(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f and violations of all points; those beyond the budget don't count, and are worse than anything."""
        f, violation = self.evaluate(points)
        inside = np.arange(len(points)) < self.budget - self.used
        self._keep(points, np.where(inside & (violation <= 0), f, -np.inf))
        self.used += int(inside.sum())
        return np.where(inside, f, -np.inf), np.where(inside, violation, np.inf)

    def first_better(self, points: np.ndarray, than: float) -> Point | None:
        """Points in turn, until one is feasible and better; only those are charged."""
        points = points[: max(0, self.budget - self.used)]
        if not len(points):
            return None
        f, violation = self.evaluate(points)
        barred = np.where(violation <= 0, f, -np.inf)
        better = np.flatnonzero(barred > than)
        looked_at = int(better[0]) + 1 if better.size else len(points)
        self._keep(points[:looked_at], barred[:looked_at])
        self.used += looked_at
        return Point(points[looked_at - 1], float(barred[looked_at - 1])) if better.size else None

    def _keep(self, points: np.ndarray, barred: np.ndarray) -> None:
        for i in np.flatnonzero(barred > self.best.value):
            if barred[i] > self.best.value:
                self.best = Point(points[i], float(barred[i]))
                self.history.append((self.used + int(i) + 1, self.best.value))

    def after(self, evaluations: int) -> float:
        """The best value when so many were used; the first one found if that was later."""
        return max([value for used, value in self.history if used <= evaluations] or [self.history[0][1]])


@dataclass
class DirectSearch:
    """State of a search; ``step`` is one iteration."""

    delta: float = 0.1
    largest: float = 0.5
    smallest: float = 1e-6
    radius: float = 0.25  # of the covering ball
    remembered: int = 300  # covering points to keep away from
    tried: list[np.ndarray] = field(default_factory=list)

    @property
    def converged(self) -> bool:
        return self.delta < self.smallest

    def step(self, at: Point, meter: Meter, rng: np.random.Generator) -> Point:
        """The next incumbent, the same one where nothing better was found."""
        covering = np.clip(self.cover(at.x, rng), 0, 1)
        poll = np.clip(at.x + self.delta * directions(len(at.x), rng), 0, 1)
        self.tried = [*self.tried, covering][-self.remembered :]
        found = meter.first_better(np.vstack([covering[None], poll]), at.value)
        self.delta = min(2 * self.delta, self.largest) if found else self.delta / 2
        return found or at

    def cover(self, x: np.ndarray, rng: np.random.Generator, candidates: int = 20) -> np.ndarray:
        """Of some random points of the ball, the one farthest from what was tried."""
        points = x + self.radius * in_ball(candidates, len(x), rng)
        if not self.tried:
            return points[0]
        tried = np.stack(self.tried)
        apart = (points**2).sum(axis=1)[:, None] - 2 * points @ tried.T + (tried**2).sum(axis=1)
        return points[apart.min(axis=1).argmax()]


def directions(n: int, rng: np.random.Generator) -> np.ndarray:
    """(2n, n): a random rotation of the axes and their negatives, in random order; they positively span the space."""
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    return rng.permutation(np.vstack([Q, -Q]))


def in_ball(k: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """(k, n) uniform in the unit ball."""
    u = rng.standard_normal((k, n))
    return u / np.linalg.norm(u, axis=1, keepdims=True) * rng.random((k, 1)) ** (1 / n)
