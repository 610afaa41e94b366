"""Linear models for coordinate descent: what one pays for a block of coordinates, and bounds on its curvature.

    f(X) = sum_i loss(A X)_i + (rho/2) ||X||^2,        A (n, d), X (d, c), the coordinates are X's entries, row by row

c is 1 but for the softmax. The loss has a Hessian of at most kappa I in A X, so the Hessian of f in a block of
coordinates is at most kappa A_b^T A_b + rho I for every X (no bound couples two classes).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from papertrial.methods.sparse_regression import fista


class Loss(NamedTuple):
    """Of the predictions Z (n, c) and the targets Y (n, c)."""

    value: Callable[[np.ndarray, np.ndarray], float]
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (n, c)
    curvature: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (n, c): the Hessian's diagonal
    kappa: float


LOSSES = {
    "squares": Loss(  # Y real
        lambda Z, Y: 0.5 * float(((Z - Y) ** 2).sum()),
        lambda Z, Y: Z - Y,
        lambda Z, Y: np.ones_like(Z),
        1.0,
    ),
    "logistic": Loss(  # Y = -1 or 1
        lambda Z, Y: float(np.logaddexp(0, -Y * Z).sum()),
        lambda Z, Y: -Y * special.expit(-Y * Z),
        lambda Z, Y: special.expit(Z) * special.expit(-Z),
        0.25,
    ),
    "softmax": Loss(  # Y one-hot
        lambda Z, Y: float((special.logsumexp(Z, axis=1) - (Y * Z).sum(axis=1)).sum()),
        lambda Z, Y: special.softmax(Z, axis=1) - Y,
        lambda Z, Y: special.softmax(Z, axis=1) * (1 - special.softmax(Z, axis=1)),
        0.5,
    ),
}


class LinearModel:
    """f, its gradient and its block Hessians; x is X as a vector (d c,).

    Args:
        A: (n, d) features.
        Y: (n, c) targets as the loss wants them.
        loss: a name among LOSSES.
        ridge: rho over the mean of the coordinates' bounds without it.
    """

    def __init__(self, A: np.ndarray, Y: np.ndarray, loss: str, ridge: float = 0.0) -> None:
        self.A, self.Y, self.loss = np.asfortranarray(A), Y, LOSSES[loss]
        self.c, self.size = Y.shape[1], A.shape[1] * Y.shape[1]
        self.gram = self.loss.kappa * (A.T @ A)  # (d, d)
        self.rho = ridge * float(np.diag(self.gram).mean())
        self.L = np.repeat(np.diag(self.gram), self.c) + self.rho  # (d c,): each coordinate's bound

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.A @ x.reshape(-1, self.c)  # Z (n, c)

    def move(self, Z: np.ndarray, block: np.ndarray, step: np.ndarray) -> None:
        """Update Z in place for a step (tau,) of the coordinates ``block`` (tau,)."""
        features, classes = np.divmod(block, self.c)
        if self.c == 1:
            Z[:, 0] += self.A[:, features] @ step
        else:
            np.add.at(Z.T, classes, (self.A[:, features] * step).T)

    def value(self, x: np.ndarray, Z: np.ndarray) -> float:
        return self.loss.value(Z, self.Y) + self.rho / 2 * float(x @ x)

    def gradient(self, x: np.ndarray, Z: np.ndarray) -> np.ndarray:
        return (self.A.T @ self.loss.slope(Z, self.Y)).ravel() + self.rho * x

    def bounds(self, blocks: np.ndarray) -> np.ndarray:
        """H_b (..., tau, tau) of blocks (..., tau)."""
        features, classes = np.divmod(blocks, self.c)
        H = self.gram[features[..., :, None], features[..., None, :]]
        H = H * (classes[..., :, None] == classes[..., None, :])
        return H + self.rho * np.eye(blocks.shape[-1])

    def hessian(self, Z: np.ndarray, block: np.ndarray) -> np.ndarray:
        """The Hessian in a block, for one class: (tau, tau)."""
        A = self.A[:, block]
        return A.T @ (self.loss.curvature(Z, self.Y) * A) + self.rho * np.eye(len(block))


def minimum(model: LinearModel) -> float:
    """The least value of f, to about 1e-12 of f(0)."""
    if model.loss is LOSSES["squares"] and model.rho == 0:
        x = np.linalg.lstsq(model.A, model.Y, rcond=None)[0].ravel()
        return model.value(x, model.predict(x))

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        Z = model.predict(x)
        return model.value(x, Z), model.gradient(x, Z)

    scale = np.sqrt(model.L)  # one step length for all coordinates
    limits = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 30}

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = f(u / scale)
        return value, slope / scale

    return float(optimize.minimize(scaled, np.zeros(model.size), jac=True, method="L-BFGS-B", options=limits).fun)


# Generated problems.


def features(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """A (n, d) whose columns have very unequal norms: N(0, 1) + 1, columns times 10 N(0, 1), then thinned."""
    A = (rng.standard_normal((n, d)) + 1) * (10 * rng.standard_normal(d))
    return A * (rng.random((n, d)) < 10 * np.log(n) / n)


def flipped_signs(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signs of z, every tenth of them wrong on average."""
    return np.where(rng.random(z.shape) < 0.1, -1.0, 1.0) * np.where(z < 0, -1.0, 1.0)


def least_squares(n: int, d: int, rng: np.random.Generator) -> LinearModel:
    A = features(n, d, rng)
    return LinearModel(A, A @ rng.standard_normal((d, 1)) + rng.standard_normal((n, 1)), "squares")


def logistic(n: int, d: int, rng: np.random.Generator) -> LinearModel:
    A = features(n, d, rng)
    return LinearModel(A, flipped_signs(A @ rng.standard_normal((d, 1)), rng), "logistic", 0.3)


def softmax(n: int, d: int, rng: np.random.Generator, c: int = 10) -> LinearModel:
    """The class is the largest of c linear scores; every tenth on average is drawn anew."""
    A = features(n, d, rng)
    label = (A @ rng.standard_normal((d, c))).argmax(axis=1)
    label = np.where(rng.random(n) < 0.1, rng.integers(0, c, n), label)
    return LinearModel(A, np.eye(c)[label], "softmax", 0.3)


GENERATED = {"least_squares": least_squares, "logistic": logistic, "softmax": softmax}


def sparse_regression(n: int, d: int, loss: str, rng: np.random.Generator, nonzeros: int = 20) -> LinearModel:
    """Targets from a few of d standard normal features, with noise N(0, 1) or flipped signs."""
    A, x = rng.standard_normal((n, d)), np.zeros((d, 1))
    x[rng.choice(d, nonzeros, replace=False), 0] = rng.standard_normal(nonzeros)
    Y = A @ x + rng.standard_normal((n, 1)) if loss == "squares" else flipped_signs(A @ x, rng)
    return LinearModel(A, Y, loss)


# Real data: columns of zeros fill the features up to a multiple of ``multiple``; their coordinates stay at zero.


def padded(A: np.ndarray, multiple: int) -> np.ndarray:
    return np.pad(A.astype(float), ((0, 0), (0, -A.shape[1] % multiple)))


def digits_3_or_8(datasets: Mapping[str, Mapping[str, np.ndarray]], multiple: int) -> LinearModel:
    x, y = datasets["digits"]["x"], datasets["digits"]["y"]
    chosen = np.isin(y, (3, 8))
    return LinearModel(
        padded(x[chosen].reshape(chosen.sum(), -1), multiple),
        np.where(y[chosen, None] == 3, -1.0, 1.0),
        "logistic",
        0.3,
    )


def digits_softmax(datasets: Mapping[str, Mapping[str, np.ndarray]], multiple: int) -> LinearModel:
    x, y = datasets["digits"]["x"], datasets["digits"]["y"]
    return LinearModel(padded(x.reshape(len(x), -1), multiple), np.eye(10)[y], "softmax", 0.3)


def spam(datasets: Mapping[str, Mapping[str, np.ndarray]], multiple: int) -> LinearModel:
    x, y = datasets["spam"]["x"], datasets["spam"]["y"]
    return LinearModel(padded(x, multiple), np.where(y[:, None] == 0, -1.0, 1.0), "logistic", 0.3)


REAL = {"digits_3_or_8": digits_3_or_8, "digits_softmax": digits_softmax, "spam": spam}


# With an l1 penalty lam ||x||_1, for one class.


def largest_penalty(model: LinearModel) -> float:
    """The least lam for which x = 0 is optimal."""
    x = np.zeros(model.size)
    return float(np.abs(model.gradient(x, model.predict(x))).max())


def l1_minimum(model: LinearModel, lam: float) -> np.ndarray:
    """x* to rounding: FISTA until its support and signs satisfy the optimality conditions, then Newton on these."""
    L = np.linalg.eigvalsh(model.gram)[-1] + model.rho

    def gradient(x: np.ndarray) -> np.ndarray:
        return model.gradient(x, model.predict(x))

    x = np.zeros(model.size)
    for _ in range(50):
        x = fista(gradient, x, L, lam, 1000)
        kept = np.flatnonzero(x)
        signs, polished = np.sign(x[kept]), x.copy()
        for _ in range(10):
            Z = model.predict(polished)
            residual = model.gradient(polished, Z)[kept] + lam * signs
            polished[kept] -= np.linalg.solve(model.hessian(Z, kept), residual)
        g = gradient(polished)
        off = np.delete(g, kept)
        if (np.sign(polished[kept]) == signs).all() and np.abs(off).max(initial=0) < lam:
            return polished
    raise ValueError("FISTA did not find the support of the solution")
