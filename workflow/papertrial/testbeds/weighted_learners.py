"""Learning problems that minimise a sum of losses over weighted points,

    L(P, u; q) = sum_i u_i f(p_i, q),        q* = argmin_q L(P, u; q),

f holding its share 1/n of the regularisation, n the total weight. A weighted part of the data with the same total
weight is thus the same kind of problem as the whole, and no constant has to be rescaled.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Points(NamedTuple):
    X: np.ndarray  # (n, d)
    y: np.ndarray  # (n,): -1 and 1, a number, or of no meaning


class Learner(NamedTuple):
    """fit: points, weights u (n,), seed -> q. losses: points, q, total weight -> (n,). score: points, q -> number."""

    fit: Callable[[Points, np.ndarray, int], np.ndarray]
    losses: Callable[[Points, np.ndarray, float], np.ndarray]
    score: Callable[[Points, np.ndarray], float]
    by_class: bool  # whether y has classes that a sample should keep the shares of


def with_ones(X: np.ndarray) -> np.ndarray:
    return np.hstack([X, np.ones((len(X), 1))])


def accuracy(P: Points, q: np.ndarray) -> float:
    return float((np.where(with_ones(P.X) @ q > 0, 1, -1) == P.y).mean())


# ---- logistic regression: 1/2 ||w||^2 + sum_i u_i log(1 + exp(-y_i (x_i w + b))), q = (w, b)


def logistic_losses(P: Points, q: np.ndarray, total: float) -> np.ndarray:
    margin = P.y * (with_ones(P.X) @ q)
    return np.logaddexp(0, -margin) + 0.5 * (q[:-1] @ q[:-1]) / total


def fit_logistic(P: Points, u: np.ndarray, seed: int) -> np.ndarray:
    """Newton's method with halved steps."""
    A, total = with_ones(P.X), u.sum()
    penalty = np.append(np.ones(A.shape[1] - 1), 1e-8)  # on b, for a sample of one class only
    q = np.zeros(A.shape[1])
    loss = u @ logistic_losses(P, q, total)
    for _ in range(50):
        wrong = 1 / (1 + np.exp(np.clip(P.y * (A @ q), -500, 500)))  # (n,): 1 - sigmoid of the margin
        gradient = penalty * q - A.T @ (u * P.y * wrong)
        H = A.T @ (A * (u * wrong * (1 - wrong))[:, None])
        H[np.diag_indices_from(H)] += penalty
        step = np.linalg.solve(H, gradient)
        for _ in range(30):
            new = u @ logistic_losses(P, q - step, total)
            if new <= loss:
                break
            step = step / 2
        else:
            break
        q = q - step
        if loss - new < 1e-12 * abs(loss):
            break
        loss = new
    return q


# ---- linear SVM: 1/2 ||q||^2 + sum_i u_i max(0, 1 - y_i (x_i, 1) q), the intercept penalised like the rest


def hinge_losses(P: Points, q: np.ndarray, total: float) -> np.ndarray:
    return np.maximum(0, 1 - P.y * (with_ones(P.X) @ q)) + 0.5 * (q @ q) / total


def svm(sweeps: int) -> Learner:
    """Dual coordinate descent, stopped after so many sweeps."""

    def fit(P: Points, u: np.ndarray, seed: int) -> np.ndarray:
        from sklearn.svm import LinearSVC

        if len(set(P.y)) < 2:  # one class: the constant classifier has no hinge loss
            return np.append(np.zeros(P.X.shape[1]), P.y[0])
        solver = LinearSVC(C=1.0, loss="hinge", fit_intercept=False, tol=1e-3, max_iter=sweeps, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged: all methods are stopped alike
            return solver.fit(with_ones(P.X), P.y, sample_weight=u).coef_[0]

    return Learner(fit, hinge_losses, accuracy, by_class=True)


# ---- ridge regression: ||w||^2 + sum_i u_i (x_i w + b - y_i)^2, q = (w, b)


def squared_losses(P: Points, q: np.ndarray, total: float) -> np.ndarray:
    return (with_ones(P.X) @ q - P.y) ** 2 + (q[:-1] @ q[:-1]) / total


def fit_ridge(P: Points, u: np.ndarray, seed: int) -> np.ndarray:
    A = with_ones(P.X)
    G = A.T @ (A * u[:, None])
    G[np.diag_indices_from(G)] += np.append(np.ones(A.shape[1] - 1), 1e-8)
    return np.linalg.solve(G, A.T @ (u * P.y))


def r_squared(P: Points, q: np.ndarray) -> float:
    return float(1 - ((with_ones(P.X) @ q - P.y) ** 2).mean() / P.y.var())


# ---- k-means: sum_i u_i min_j ||x_i - c_j||^2, q (k, d) the centres


def square_distances(X: np.ndarray, C: np.ndarray) -> np.ndarray:
    """(n, k)."""
    found = (X**2).sum(axis=1)[:, None] - 2 * X @ C.T + (C**2).sum(axis=1)
    return np.maximum(found, 0)


def nearest_losses(P: Points, q: np.ndarray, total: float) -> np.ndarray:
    return square_distances(P.X, q).min(axis=1)


def k_means(k: int, restarts: int) -> Learner:
    """The best of so many runs of Lloyd's iteration from k-means++."""

    def fit(P: Points, u: np.ndarray, seed: int) -> np.ndarray:
        from sklearn.cluster import KMeans

        return KMeans(k, n_init=restarts, random_state=seed).fit(P.X, sample_weight=u).cluster_centers_

    def score(P: Points, q: np.ndarray) -> float:
        """The share of the variance that the clusters explain."""
        return float(1 - nearest_losses(P, q, 1).sum() / ((P.X - P.X.mean(axis=0)) ** 2).sum())

    return Learner(fit, nearest_losses, score, by_class=False)


LOGISTIC = Learner(fit_logistic, logistic_losses, accuracy, by_class=True)
RIDGE = Learner(fit_ridge, squared_losses, r_squared, by_class=False)
