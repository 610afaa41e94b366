"""Tsallis-INF: an adversarial bandit, mirror descent with the Tsallis entropy of power 1/2.

Source: Zimmert and Seldin, arXiv:1807.07623 (2019).
"""

import numpy as np


def tsallis_probabilities(losses: np.ndarray, eta: float) -> np.ndarray:
    """p_i = 4 / (eta (losses_i - x))^2 with the x < min(losses) that makes them sum to 1.

    Newton's method in x starts where the sum is at least 1 and falls to it monotonically; further left it could
    overshoot the pole at min(losses).

    Args:
        losses: (d,) estimated cumulative losses.
    """
    x = losses.min() - 2 / eta
    for _ in range(100):
        p = 4 / (eta * (losses - x)) ** 2
        excess = p.sum() - 1
        if excess <= 1e-14:
            break
        x -= excess / (eta * (p**1.5).sum())
    return p / p.sum()


class TsallisINF:
    """Chooses among d arms by their importance-weighted losses, with eta_t = 2 / sqrt(t).

    Losses may have any size: they are measured in units of their running mean.
    """

    def __init__(self, d: int, rng: np.random.Generator) -> None:
        self.losses, self.rng, self.t, self.total = np.zeros(d), rng, 0, 0.0

    def choose(self) -> int:
        scale = self.total / self.t if self.total > 0 else 1.0
        self.t += 1
        self.p = tsallis_probabilities(self.losses / scale, 2 / self.t**0.5)
        self.arm = draw(self.p, self.rng)
        return self.arm

    def update(self, loss: float) -> None:
        """The loss (at least 0) of the arm that was chosen last."""
        self.losses[self.arm] += loss / self.p[self.arm]
        self.total += loss


def draw(p: np.ndarray, rng: np.random.Generator) -> int:
    """An index by its probability p (d,)."""
    return min(int(np.searchsorted(np.cumsum(p), rng.random(), side="right")), len(p) - 1)
