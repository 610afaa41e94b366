"""Twelve equality-constrained problems of Hock and Schittkowski 1981 (Test Examples for Nonlinear Programming Codes).

They are typed in as formulas; first and second derivatives come from forward differentiation (`Jet`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import asin, sqrt

import numpy as np

from papertrial.testbeds.nlp import NLP, First, Second


@dataclass(frozen=True)
class Jet:
    """A function's value, gradient (n,) and Hessian (n, n) at a point."""

    v: float
    g: np.ndarray
    H: np.ndarray

    def chain(self, v: float, first: float, second: float) -> "Jet":
        """phi(self), given phi and its derivatives at the value."""
        return Jet(v, first * self.g, first * self.H + second * np.outer(self.g, self.g))

    def __add__(self, other: "Jet | float") -> "Jet":
        if isinstance(other, Jet):
            return Jet(self.v + other.v, self.g + other.g, self.H + other.H)
        return Jet(self.v + other, self.g, self.H)

    def __mul__(self, other: "Jet | float") -> "Jet":
        if not isinstance(other, Jet):
            return self.chain(self.v * other, other, 0.0)
        cross = np.outer(self.g, other.g)
        H = self.v * other.H + other.v * self.H + cross + cross.T
        return Jet(self.v * other.v, self.v * other.g + other.v * self.g, H)

    def __pow__(self, k: int) -> "Jet":
        """k >= 2."""
        v = self.v
        return self.chain(v**k, k * v ** (k - 1), k * (k - 1) * v ** (k - 2))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> "Jet":
        return self * -1.0

    def __sub__(self, other: "Jet | float") -> "Jet":
        return self + (-other)

    def __rsub__(self, other: float) -> "Jet":
        return -self + other


def sin(x: Jet) -> Jet:
    s, c = np.sin(x.v), np.cos(x.v)
    return x.chain(s, c, -s)


def log(x: Jet) -> Jet:
    return x.chain(np.log(x.v), 1 / x.v, -1 / x.v**2)


def variables(x: np.ndarray) -> list[Jet]:
    n = len(x)
    return [Jet(v, e, np.zeros((n, n))) for v, e in zip(x, np.eye(n), strict=True)]


Formula = Callable[..., Jet]


def problem(
    name: str,
    f: Formula,
    c: Callable[..., list[Jet]],
    x0: list[float],
    x_star: list[float],
    f_star: float,
) -> NLP:
    """x_star: to a few digits, where to refine from."""

    def first(x: np.ndarray) -> First:
        of_f, of_c = f(*variables(x)), c(*variables(x))
        return First(of_f.v, of_f.g, np.array([j.v for j in of_c]), np.stack([j.g for j in of_c]))

    def second(x: np.ndarray) -> Second:
        hessians = np.stack([j.H for j in c(*variables(x))])  # (m, n, n)
        return Second(f(*variables(x)).H, lambda w: np.tensordot(w, hessians, axes=1))

    m = len(c(*variables(np.array(x0, dtype=float))))
    return NLP(name, np.array(x0, dtype=float), m, first, second, f_star=f_star, x_star=np.array(x_star, dtype=float))


A56, B56 = asin(sqrt(1 / 4.2)), asin(sqrt(5 / 7.2))
HOCK_SCHITTKOWSKI = {
    p.name: p
    for p in (
        problem(
            "HS6",
            lambda x, y: (1 - x) ** 2,
            lambda x, y: [10 * (y - x**2)],
            x0=[-1.2, 1],
            x_star=[1, 1],
            f_star=0.0,
        ),
        problem(
            "HS7",
            lambda x, y: log(1 + x**2) - y,
            lambda x, y: [(1 + x**2) ** 2 + y**2 - 4],
            x0=[2, 2],
            x_star=[0, sqrt(3)],
            f_star=-sqrt(3),
        ),
        problem(
            "HS27",
            lambda a, b, c: 0.01 * (a - 1) ** 2 + (b - a**2) ** 2,
            lambda a, b, c: [a + c**2 + 1],
            x0=[2, 2, 2],
            x_star=[-1, 1, 0],
            f_star=0.04,
        ),
        problem(
            "HS39",
            lambda a, b, c, d: -a,
            lambda a, b, c, d: [b - a**3 - c**2, a**2 - b - d**2],
            x0=[2, 2, 2, 2],
            x_star=[1, 1, 0, 0],
            f_star=-1.0,
        ),
        problem(
            "HS40",
            lambda a, b, c, d: -(a * b * c * d),
            lambda a, b, c, d: [a**3 + b**2 - 1, a**2 * d - c, d**2 - b],
            x0=[0.8, 0.8, 0.8, 0.8],
            x_star=[2 ** (-1 / 3), 2 ** (-1 / 2), 2 ** (-11 / 12), 2 ** (-1 / 4)],
            f_star=-0.25,
        ),
        problem(
            "HS42",
            lambda a, b, c, d: (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2,
            lambda a, b, c, d: [a - 2, c**2 + d**2 - 2],
            x0=[1, 1, 1, 1],
            x_star=[2, 2, 0.6 * sqrt(2), 0.8 * sqrt(2)],
            f_star=28 - 10 * sqrt(2),
        ),
        problem(
            "HS46",
            lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
            lambda a, b, c, d, e: [a**2 * d + sin(d - e) - 1, b + c**4 * d**2 - 2],
            x0=[sqrt(2) / 2, 1.75, 0.5, 2, 2],
            x_star=[1, 1, 1, 1, 1],
            f_star=0.0,
        ),
        problem(
            "HS47",
            lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 3 + (c - d) ** 4 + (d - e) ** 4,
            lambda a, b, c, d, e: [a + b**2 + c**3 - 3, b - c**2 + d - 1, a * e - 1],
            x0=[2, sqrt(2), -1, 2 - sqrt(2), 0.5],
            x_star=[1, 1, 1, 1, 1],
            f_star=0.0,
        ),
        problem(
            "HS48",
            lambda a, b, c, d, e: (a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2,
            lambda a, b, c, d, e: [a + b + c + d + e - 5, c - 2 * (d + e) + 3],
            x0=[3, 5, -3, 2, -2],
            x_star=[1, 1, 1, 1, 1],
            f_star=0.0,
        ),
        problem(
            "HS49",
            lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
            lambda a, b, c, d, e: [a + b + c + 4 * d - 7, c + 5 * e - 6],
            x0=[10, 7, 2, -3, 0.8],
            x_star=[1, 1, 1, 1, 1],
            f_star=0.0,
        ),
        problem(
            "HS56",
            lambda a, b, c, *_: -(a * b * c),
            lambda a, b, c, p, q, r, s: [
                a - 4.2 * sin(p) ** 2,
                b - 4.2 * sin(q) ** 2,
                c - 4.2 * sin(r) ** 2,
                a + 2 * b + 2 * c - 7.2 * sin(s) ** 2,
            ],
            x0=[1, 1, 1, A56, A56, A56, B56],
            x_star=[2.4, 1.2, 1.2, asin(sqrt(4 / 7)), asin(sqrt(2 / 7)), asin(sqrt(2 / 7)), asin(1)],
            f_star=-3.456,
        ),
        problem(
            "HS77",
            lambda a, b, c, d, e: (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6,
            lambda a, b, c, d, e: [a**2 * d + sin(d - e) - 2 * sqrt(2), b + c**4 * d**2 - 8 - sqrt(2)],
            x0=[2, 2, 2, 2, 2],
            x_star=[1.166172, 1.182111, 1.380257, 1.506036, 0.6109203],
            f_star=0.24150513,
        ),
    )
}
