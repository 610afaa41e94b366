"""adult-logreg: who earns more than $50,000, by logistic regression on one-hot Adult, in float64.

    f(w) = mean_i log(1 + exp(x_i.w)) - y_i x_i.w  +  l2/2 |w|^2,    w (d,) = (109,)

Columns: six numbers (capital gain and loss as log(1 + $)) standardised on train, 102 categories one-hot, "unknown"
included, and the intercept.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

NUMBERS = 6
GAIN_AND_LOSS = [3, 4]
HALVES = (NUMBERS, NUMBERS + 47)  # columns at which the first and the other four categories begin


def design(dataset: Mapping[str, np.ndarray], part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """X (n, 109) and y (n,) in {0, 1}, float64; part is train or test."""

    def numeric(part: str) -> np.ndarray:
        columns = dataset[f"numeric_{part}"].copy()
        columns[:, GAIN_AND_LOSS] = np.log1p(columns[:, GAIN_AND_LOSS])
        return columns

    reference = numeric("train")
    numbers = (numeric(part) - reference.mean(axis=0)) / reference.std(axis=0)
    codes, known = dataset[f"categorical_{part}"], dataset["categorical_train"].max(axis=0) + 1
    one_hot = [np.eye(k)[column] for k, column in zip(known, codes.T, strict=True)]
    X = np.concatenate([numbers, *one_hot, np.ones((len(codes), 1))], axis=1)
    return X, dataset[f"label_{part}"].astype(float)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)  # nothing overflows, and a fifth of scipy's expit in time


class Logistic:
    """The objective over any number of points at once, w (..., d).

    X is kept as a product A E of sparse matrices: the 32,561 people have only 2,797 different halves of categories,
    which are E's rows, so a person is eight numbers in A instead of 15, or 109.

    Args:
        starts: the columns at which blocks begin whose rows repeat; those before the first are kept as they are.
    """

    def __init__(self, X: np.ndarray, y: np.ndarray, l2: float = 0.0, starts: Sequence[int] = ()) -> None:
        self.A, self.E = factors(X, starts)  # (n, r), (r, d)
        self.AT, self.ET = self.A.T.tocsr(), self.E.T.tocsr()
        self.y, self.l2 = y, l2
        self.n, self.d = X.shape

    def value(self, w: np.ndarray) -> np.ndarray:
        """(..., d) -> (...)"""
        z = self._scores(w)  # (n, points)
        losses = (np.logaddexp(0, z) - self.y[:, None] * z).mean(axis=0)
        return losses.reshape(w.shape[:-1]) + 0.5 * self.l2 * (w * w).sum(axis=-1)

    def grad(self, w: np.ndarray) -> np.ndarray:
        """(..., d) -> (..., d)"""
        residual = sigmoid(self._scores(w)) - self.y[:, None]
        return (self.ET @ (self.AT @ residual)).T.reshape(w.shape) / self.n + self.l2 * w

    def hess(self, w: np.ndarray) -> np.ndarray:
        """(d,) -> (d, d)"""
        p = sigmoid(self._scores(w)[:, 0])
        return self._gram(p * (1 - p)) + self.l2 * np.eye(self.d)

    @property
    def smoothness(self) -> float:
        """Of the gradient: the sigmoid's slope is at most 1/4."""
        return float(np.linalg.eigvalsh(self._gram(np.full(self.n, 0.25)))[-1]) + self.l2

    def _scores(self, w: np.ndarray) -> np.ndarray:
        return self.A @ (self.E @ w.reshape(-1, self.d).T)

    def _gram(self, weight: np.ndarray) -> np.ndarray:
        """mean_i weight_i x_i x_i^T"""
        weighted = self.AT @ self.A.multiply(weight[:, None])
        return (self.ET @ weighted @ self.E).toarray() / self.n


def adult_logreg(dataset: Mapping[str, np.ndarray], l2: float = 1e-4, people: int | None = None) -> Logistic:
    """The workload on the first ``people`` of train, all by default."""
    X, y = design(dataset)
    return Logistic(X[:people], y[:people], l2, HALVES)


def factors(X: np.ndarray, starts: Sequence[int]) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Sparse A, E with X = A E: of each block of columns E holds the different rows, and A says which one it is."""
    blocks = np.split(X, starts, axis=1)
    A, E = [sparse.csr_array(blocks[0])], [sparse.eye_array(blocks[0].shape[1])]
    for block in blocks[1:]:
        rows, place = np.unique(block, axis=0, return_inverse=True)
        chosen = np.ones(len(X)), place.astype(np.int32), np.arange(len(X) + 1, dtype=np.int32)
        A.append(sparse.csr_array(chosen, shape=(len(X), len(rows))))
        E.append(sparse.csr_array(rows))
    return sparse.hstack(A, format="csr"), sparse.block_diag(E, format="csr")


def newton(f: Logistic, tolerance: float = 1e-12, limit: int = 100) -> np.ndarray:
    """The minimiser (d,) of a strongly convex f, to gradient norm ``tolerance``: Newton steps, halved where f rises.

    Raises:
        ArithmeticError: not there within ``limit`` steps.
    """
    w = np.zeros(f.d)
    for _ in range(limit):
        g = f.grad(w)
        if np.linalg.norm(g) <= tolerance:
            return w
        step = np.linalg.solve(f.hess(w), g)
        t = 1.0
        while f.value(w - t * step) > f.value(w) + 1e-14 and t > 1e-10:
            t /= 2
        w = w - t * step
    raise ArithmeticError(f"gradient norm {np.linalg.norm(f.grad(w)):.1e} after {limit} Newton steps")
