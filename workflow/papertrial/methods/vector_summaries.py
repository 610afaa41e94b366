"""A few weighted rows whose weighted sum is, nearly, the sum of all rows of a matrix M (n, k).

    importance      drawn in proportion to ||M_i||, unbiased
    caratheodory    exact, by k + 1 rows or fewer (any point of a convex hull in k dimensions)
    best_uniform    of many uniform samples, the one whose mean is nearest

Each is a function of M, the number of rows m and a generator and returns rows and weights of total n.

Source: Caratheodory 1907; importance sampling is textbook.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls


class Summary(NamedTuple):
    rows: np.ndarray  # (<= m,) distinct
    weights: np.ndarray  # (<= m,), positive


def merged(rows: np.ndarray, weights: np.ndarray) -> Summary:
    """Repeated rows' weights are added up."""
    distinct, place = np.unique(rows, return_inverse=True)
    return Summary(distinct, np.bincount(place, weights))


def normalised(found: Summary, total: float) -> Summary:
    return Summary(found.rows, found.weights * (total / found.weights.sum()))


def sampled(scores: np.ndarray, m: int, rng: np.random.Generator) -> Summary:
    """m draws with replacement in proportion to scores (n,), weighted so that sums are unbiased."""
    q = scores / scores.sum()
    rows = rng.choice(len(q), size=m, p=q)
    return merged(rows, 1 / (m * q[rows]))


def importance(M: np.ndarray, m: int, rng: np.random.Generator) -> Summary:
    norms = np.linalg.norm(M, axis=1)
    return normalised(sampled(np.maximum(norms, 1e-12 * norms.max() + 1e-300), m, rng), len(M))


CLUSTERS = 4  # times k + 1, in one reduction


def vertex(lifted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """w >= 0 with lifted w = target, as many entries above zero as rows at most.

    By non-negative least squares: the columns that an active-set solver ends with are linearly independent.
    """
    w, _ = nnls(lifted, target, maxiter=30 * lifted.shape[0] + 300)
    return w


def caratheodory_set(M: np.ndarray) -> Summary:
    """Rows and weights >= 0 with sum_i w_i M_i = sum_i M_i and sum_i w_i = n, at most k + 1 of them.

    Rows are put into 4 (k + 1) clusters, of which k + 1 can carry the sum of the clusters' sums; the others' rows go,
    and so on, until every row is a cluster of its own.
    """
    n, k = M.shape
    scale = np.abs(M).max(axis=0)
    lifted = np.vstack([(M / np.where(scale > 0, scale, 1)).T, np.ones(n)])  # (k + 1, n)
    target = lifted.mean(axis=1)
    rows, w = np.arange(n), np.full(n, 1 / n)
    while True:
        size = max(1, -(-len(rows) // (CLUSTERS * (k + 1))))
        starts = np.arange(0, len(rows), size)
        sums = np.add.reduceat(lifted[:, rows] * w, starts, axis=1)  # (k + 1, clusters)
        masses = sums[-1]
        kept = vertex(sums / masses, target) / masses  # (clusters,): what each cluster's weights are multiplied by
        w = w * np.repeat(kept, size)[: len(rows)]
        rows, w = rows[w > 0], w[w > 0]
        if size == 1:
            return Summary(rows, n * w)


def caratheodory(M: np.ndarray, m: int, rng: np.random.Generator) -> Summary:
    """As many Caratheodory sets as m has room for, each of a random group of the rows."""
    n, k = M.shape
    groups = np.array_split(rng.permutation(n), max(1, m // (k + 1)))
    found = [caratheodory_set(M[g]) for g in groups]
    rows = np.concatenate([g[s.rows] for g, s in zip(groups, found, strict=True)])
    return Summary(rows, np.concatenate([s.weights for s in found]))


def uniform(M: np.ndarray, m: int, rng: np.random.Generator) -> Summary:
    return Summary(rng.choice(len(M), size=m, replace=False, shuffle=False), np.full(m, len(M) / m))


def best_uniform(M: np.ndarray, m: int, rng: np.random.Generator, candidates: int = 100) -> Summary:
    """Distances of the means are measured in units of the columns' spread."""
    spread = M.std(axis=0)
    Z = (M - M.mean(axis=0)) / np.where(spread > 0, spread, 1)
    samples = [uniform(M, m, rng) for _ in range(candidates)]
    return min(samples, key=lambda s: np.linalg.norm(Z[s.rows].mean(axis=0)))


SUMMARISERS: dict[str, Callable[[np.ndarray, int, np.random.Generator], Summary]] = {
    "importance": importance,
    "caratheodory": caratheodory,
    "best_uniform": best_uniform,
}
