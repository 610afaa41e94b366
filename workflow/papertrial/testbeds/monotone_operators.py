"""Finite-sum monotone operators: find u with F(u) = 0, F = (1/n) sum_i F_i, paying for every F_i that is evaluated.

A family offers the full operator ``F(u)``, ``F.batch(i, u)`` (the mean of the F_i with indices i), its constants

    L     on average:  cocoercive families  (1/n) sum ||F_i(u) - F_i(v)||^2 <= L <F(u) - F(v), u - v>,
          monotone ones                     (1/n) sum ||F_i(u) - F_i(v)||^2 <= L^2 ||u - v||^2,
    L_F   of the full operator alone, which deterministic methods live on,

a start ``u0`` and ``project``, the projection onto the set that u is confined to (the whole space if nothing is
said; then F(u) = 0 becomes 0 in F(u) + N(u), and ``residual`` is that of the projected step).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Operator:
    n: int
    u0: np.ndarray  # (d,)
    full: Callable[[np.ndarray], np.ndarray]
    batch: Callable[[np.ndarray, np.ndarray], np.ndarray]
    L: float
    L_F: float
    project: Callable[[np.ndarray], np.ndarray] = field(default=lambda u: u)

    def __call__(self, u: np.ndarray) -> np.ndarray:
        return self.full(u)

    def residual(self, u: np.ndarray) -> float:
        """||F(u)||, or ||u - project(u - F(u))|| where u is confined."""
        step = u - self.project(u - self.full(u))
        return float(np.sqrt(step @ step))


class Counted:
    """An operator behind a meter: a full evaluation costs n component calls, a batch its length."""

    def __init__(self, operator: Operator) -> None:
        self.operator, self.calls = operator, 0
        self.n, self.L, self.L_F, self.project = operator.n, operator.L, operator.L_F, operator.project

    def __call__(self, u: np.ndarray) -> np.ndarray:
        self.calls += self.n
        return self.operator.full(u)

    def batch(self, i: np.ndarray, u: np.ndarray) -> np.ndarray:
        """i: (b,) indices."""
        self.calls += len(i)
        return self.operator.batch(i, u)


def projections(rng: np.random.Generator, n: int, d: int, spread: float = 0.3, start: float = 3.0) -> Operator:
    """Cocoercive with L = 1 exactly: F_i(u) = H_i (u - q_i), H_i = I - a_i a_i^T a projection, L_F close to 1 - 1/d."""
    a = rng.standard_normal((n, d))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    q = spread * rng.standard_normal((n, d))
    H = np.eye(d) - a.T @ a / n
    Hq = (q - a * (a * q).sum(axis=1, keepdims=True)).mean(axis=0)

    def batch(i: np.ndarray, u: np.ndarray) -> np.ndarray:
        a_i, off = a[i], u - q[i]  # (b, d)
        along = np.einsum("bd,bd->b", a_i, off)
        return (off.sum(axis=0) - along @ a_i) / len(i)

    return Operator(n, np.full(d, start), lambda u: H @ u - Hq, batch, L=1.0, L_F=float(np.linalg.norm(H, 2)))


def bilinear(rng: np.random.Generator, n: int, d: int, spread: float = 0.3, start: float = 3.0) -> Operator:
    """The game min_x max_y of the mean of x^T A_i y + c_i^T x + e_i^T y: F_i(x, y) = (A_i y + c_i, -A_i^T x - e_i).

    A_i = A_0 + G_i / (2 sqrt d), A_0 with singular values log-spaced in [0.03, 1]; monotone, nowhere cocoercive.
    """
    U, _ = np.linalg.qr(rng.standard_normal((d, d)))
    V, _ = np.linalg.qr(rng.standard_normal((d, d)))
    A = (U * np.geomspace(0.03, 1, d)) @ V + 0.5 / np.sqrt(d) * rng.standard_normal((n, d, d))
    c, e = spread * rng.standard_normal((2, n, d))
    mean_A, mean_c, mean_e = A.mean(axis=0), c.mean(axis=0), e.mean(axis=0)

    def full(u: np.ndarray) -> np.ndarray:
        return np.concatenate([mean_A @ u[d:] + mean_c, -u[:d] @ mean_A - mean_e])

    def batch(i: np.ndarray, u: np.ndarray) -> np.ndarray:
        if len(i) == 1:  # the common case, without copies
            i = int(i[0])
            return np.concatenate([A[i] @ u[d:] + c[i], -u[:d] @ A[i] - e[i]])
        A_i = A[i].mean(axis=0)
        return np.concatenate([A_i @ u[d:] + c[i].mean(axis=0), -u[:d] @ A_i - e[i].mean(axis=0)])

    rows, columns = A.reshape(n * d, d), A.transpose(0, 2, 1).reshape(n * d, d)
    L = max(np.linalg.norm(B.T @ B / n, 2) for B in (rows, columns)) ** 0.5
    return Operator(n, np.full(2 * d, start), full, batch, L=float(L), L_F=float(np.linalg.norm(mean_A, 2)))


def logistic(x: np.ndarray, y: np.ndarray) -> Operator:
    """Gradient of the mean logistic loss, x (n, d) with rows of norm 1, y (n,) in {-1, 1}: cocoercive with L = 1/4."""
    yx = y[:, None] * x
    n, d = x.shape

    def batch(i: np.ndarray | slice, u: np.ndarray) -> np.ndarray:
        z = yx[i]
        return -(0.5 - 0.5 * np.tanh(z @ u / 2)) @ z / len(z)  # -sigmoid(-z.u) z

    L_F = np.linalg.norm(x.T @ x / n, 2) / 4
    return Operator(n, np.zeros(d), lambda u: batch(slice(None), u), batch, L=0.25, L_F=float(L_F))


def matrix_game(rng: np.random.Generator, n: int) -> Operator:
    """min_x max_y x^T A y on two simplices, A (n, n) uniform in [-1, 1]; F_i sees column i for x and row i for y:

    F_i(x, y) = n (A[:, i] y_i, -A[i, :] x_i), so that L is about sqrt(n)/2 times L_F.
    """
    A = rng.uniform(-1, 1, (n, n))

    def full(u: np.ndarray) -> np.ndarray:
        return np.concatenate([A @ u[n:], -u[:n] @ A])

    def batch(i: np.ndarray, u: np.ndarray) -> np.ndarray:
        return n / len(i) * np.concatenate([A[:, i] @ u[n:][i], -u[:n][i] @ A[i]])

    L = np.sqrt(n * max((A**2).sum(axis=0).max(), (A**2).sum(axis=1).max()))
    project = lambda u: simplex(u.reshape(2, n)).ravel()  # noqa: E731
    return Operator(n, np.full(2 * n, 1 / n), full, batch, L=float(L), L_F=float(np.linalg.norm(A, 2)), project=project)


def simplex(v: np.ndarray) -> np.ndarray:
    """Euclidean projection of each row of v (m, n) onto the probability simplex: max(v - theta, 0), summing to 1."""
    m, n = v.shape
    descending = -np.sort(-v, axis=1)
    theta = (np.cumsum(descending, axis=1) - 1) / np.arange(1, n + 1)
    last = (descending > theta).sum(axis=1) - 1
    return np.maximum(v - theta[np.arange(m), last][:, None], 0)
