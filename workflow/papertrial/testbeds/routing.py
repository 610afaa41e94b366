"""Routing tokens to the experts of a sparse mixture as optimal transport, and what routers do without it.

The tokens are pictures seen through a random projection that never changes, the experts stand near their k-means
centroids. Every expert gives the same load and has room for k tokens; a token may end with several experts or none.
"""

import numpy as np
from scipy.cluster.vq import kmeans2

from papertrial.testbeds.transport import OT, uniform

FEATURES = 32
NOISE = 0.1  # of the experts' places, in standard deviations of the tokens


def token_batch(images: np.ndarray, tokens: int, experts: int, seed: int) -> OT:
    """The tokens (rows) that the seed draws, against the experts (columns) that all seeds share.

    The costs are 1 - affinity, with the inner products as affinities, scaled to [0, 1].

    Args:
        images: (N, h, w) grey values.
    """
    frozen = np.random.default_rng(0)
    pixels = images.reshape(len(images), -1).astype(float)
    x = (pixels - pixels.mean(axis=0)) @ frozen.standard_normal((pixels.shape[1], FEATURES))
    x /= x.std()
    centroids, _ = kmeans2(x, experts, minit="++", rng=frozen)
    e = centroids + NOISE * frozen.standard_normal(centroids.shape)
    drawn = np.random.default_rng(seed).choice(len(x), tokens, replace=False)
    C = -x[drawn] @ e.T  # (tokens, experts)
    return OT((C - C.min()) / np.ptp(C), uniform(tokens), uniform(experts))


def expert_choice(ot: OT, k: int) -> np.ndarray:
    """Every expert takes the k tokens that suit it best, in equal parts, whoever else takes them."""
    T = np.zeros_like(ot.C)
    np.put_along_axis(T, largest_in_columns(-ot.C, k), ot.c / k, axis=0)
    return T


def keep_largest(T: np.ndarray, k: int) -> np.ndarray:
    """T (m, n) with the k largest entries of each column, scaled to the column's old sum."""
    kept, rows = np.zeros_like(T), largest_in_columns(T, k)
    np.put_along_axis(kept, rows, np.take_along_axis(T, rows, axis=0), axis=0)
    return kept * (T.sum(axis=0) / kept.sum(axis=0))


def largest_in_columns(s: np.ndarray, k: int) -> np.ndarray:
    """Row indices (k, n) of the k largest entries of each column of s (m, n), in no order."""
    return np.argpartition(s, len(s) - k, axis=0)[len(s) - k :]


def unrouted(T: np.ndarray) -> float:
    """Share of the rows (tokens) without any entry."""
    return float((T.max(axis=1) <= 0).mean())
