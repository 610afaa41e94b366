"""Merit functions of equality-constrained problems, which say whether a step z = (dx, dlambda) is progress.

A merit looks at a point (x, lambda), then tells the slope along z and whether that is descent enough; ``tighten`` is
what to do about an accurate step that is not: other penalties, and a smaller ``delta``, the accuracy asked for.
"""

from dataclasses import dataclass

import numpy as np

from papertrial.testbeds.nlp import First, Second, residual

NU = 1.5  # by which penalties adapt


@dataclass
class ExactAugmentedLagrangian:
    eta1: float = 1.0
    eta2: float = 0.1
    delta: float = 0.1

    def look(self, at: First, second: Second, lam: np.ndarray) -> None:
        """Gather grad Lam = base + eta1 u + eta2 v at a new point."""
        n, G = len(at.g), at.G
        self.base = residual(at, lam)
        gL = self.base[:n]
        a = G @ gL  # (m,)
        H = second.of_f + second.of_c(lam)
        self.u = np.concatenate([G.T @ at.c, np.zeros(len(a))])
        self.v = np.concatenate([H @ (G.T @ a) + second.of_c(a) @ gL, G @ (G.T @ a)])

    def value(self, at: First, lam: np.ndarray) -> float:
        a = at.G @ (at.g + at.G.T @ lam)
        return at.f + lam @ at.c + self.eta1 / 2 * at.c @ at.c + self.eta2 / 2 * a @ a

    def slope(self, z: np.ndarray) -> float:
        return float((self.base + self.eta1 * self.u + self.eta2 * self.v) @ z)

    def descends(self, z: np.ndarray) -> bool:
        return self.slope(z) <= -self.eta2 / 2 * self.base @ self.base

    def tighten(self) -> None:
        self.eta1, self.eta2, self.delta = self.eta1 * NU**2, self.eta2 / NU, self.delta / NU**4


@dataclass
class PlainLagrangian(ExactAugmentedLagrangian):
    """The control: no augmentation, hence no descent to ask for."""

    eta1: float = 0.0
    eta2: float = 0.0

    def descends(self, z: np.ndarray) -> bool:
        return True


@dataclass
class ExactPenalty:
    """f + mu ||c||_1, the merit function of sequential quadratic programming; the same adaptation, of mu."""

    mu: float = 10.0
    delta: float = 0.1

    def look(self, at: First, second: Second, lam: np.ndarray) -> None:
        self.at = at

    def value(self, at: First, lam: np.ndarray) -> float:
        return at.f + self.mu * np.abs(at.c).sum()

    def slope(self, z: np.ndarray) -> float:
        at, dx = self.at, z[: len(self.at.g)]
        return float(at.g @ dx - self.mu * (np.abs(at.c).sum() - np.abs(at.c + at.G @ dx).sum()))

    def descends(self, z: np.ndarray) -> bool:
        dx = z[: len(self.at.g)]
        return self.slope(z) <= -1e-6 * dx @ dx

    def tighten(self) -> None:
        self.mu, self.delta = self.mu * NU**2, self.delta / NU**4


Merit = ExactAugmentedLagrangian | ExactPenalty
