"""Linear inverse problems y = A x0 + sy noise: on mixtures with an exact posterior, and on pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from papertrial.testbeds.mixtures import Mixture, density


@dataclass(frozen=True)
class Inverse:
    """A (m, d), y (m,) or, one a sample, (n, m), noise sd sy."""

    A: Tensor
    y: Tensor
    sy: float

    @property
    def norm(self) -> float:
        """The spectral norm of A."""
        return torch.linalg.matrix_norm(self.A.double(), 2).item()

    def residual(self, x0: Tensor) -> Tensor:
        """(n, m): y - A x0."""
        return self.y - x0.flatten(1) @ self.A.T


def mixture20(dim: int = 20, components: int = 8, device: str = "cpu") -> Mixture:
    """Means N(0, 4), sd .3, equal weights."""
    return Mixture(2 * np.random.default_rng([dim, components]).standard_normal((components, dim)), 0.09, device=device)


def prior(name: str, device: str) -> Mixture:
    return mixture20(device=device) if name == "mixture20" else density(name, device=device)


def case(name: str, stream: int, device: str) -> tuple[Mixture, Inverse]:
    """What a name like ``ring8-1x2-0.3`` says: the prior, A's shape, sy.

    A has N(0, 1) entries over its spectral norm; y comes from a draw of the prior. ``stream`` numbers the draws of A
    and y.
    """
    which, shape, sy = name.split("-")
    target, (m, d) = prior(which, device), (int(k) for k in shape.split("x"))
    rng = np.random.default_rng([stream, *name.encode()])
    A = rng.standard_normal((m, d))
    A = torch.from_numpy(A / np.linalg.norm(A, 2)).to(device)
    truth = target.sample(1, torch.Generator(device).manual_seed(int(rng.integers(2**31))))[0]
    y = A @ truth + float(sy) * torch.from_numpy(rng.standard_normal(m)).to(device)
    return target, Inverse(A, y, float(sy))


def _rows(keep: np.ndarray) -> np.ndarray:
    return np.eye(keep.size)[keep.ravel()]


def random_mask(size: int, rng: np.random.Generator) -> np.ndarray:
    """30% of the pixels, at random."""
    keep = np.zeros(size**2, bool)
    keep[rng.permutation(size**2)[: round(0.3 * size**2)]] = True
    return _rows(keep)


def box(size: int, rng: np.random.Generator) -> np.ndarray:
    """All but a square of half the side, in the middle."""
    keep = np.ones((size, size), bool)
    keep[size // 4 : -size // 4, size // 4 : -size // 4] = False
    return _rows(keep)


def pooling(size: int, rng: np.random.Generator) -> np.ndarray:
    """Means over squares of 4 x 4 pixels."""
    one = np.kron(np.eye(size // 4), np.full((1, 4), 0.25))  # (size/4, size)
    return np.kron(one, one)


TASKS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "random-mask": random_mask,
    "box": box,
    "pooling": pooling,
}
