"""Preference games given as a matrix: P[i, j] is the probability that response i is preferred to response j.

P + P.T = 1, so it is a symmetric zero-sum game of value 1/2, and a Nash policy is one that no response beats.
Policies are arrays of shape (..., K), games (..., K, K), float64.
"""

from collections.abc import Callable, Sequence

import numpy as np

PLANES = 3  # in which the cyclic part turns


def make_game(kind: str, K: int, seed: int, **settings: float | Sequence[float] | None) -> np.ndarray:
    """One game of K responses, P of shape (K, K); the seed fixes it.

    Args:
        kind: rps    every response beats the (K-1)/2 after it, in a circle (the opposite one of an even K draws);
                     ``strength`` s gives 1/2 +- s/2 for all pairs, by default each pair's s is uniform on [0, 1];
              blade  a weak Bradley-Terry reward and a strong cyclic part, see ``blade_logits``;
              rand   an independent win rate, uniform on [0, 1], for every pair;
              bt     Bradley-Terry with standard normal rewards: transitive;
              mix    a population of blade groups in shares ``weights``, whose rewards correlate by ``correlation``.
    """
    return KINDS[kind](np.random.default_rng(seed), K, **settings)


def rps(rng: np.random.Generator, K: int, strength: float | None = None) -> np.ndarray:
    ahead = (np.arange(K) - np.arange(K)[:, None]) % K  # ahead[i, j]: steps from i forward to j
    beats = ((ahead > 0) & (2 * ahead < K)).astype(float)
    s = rng.random((K, K)) if strength is None else strength
    return 0.5 + 0.5 * (beats * s - (beats * s).T)


def blade(rng: np.random.Generator, K: int) -> np.ndarray:
    return sigmoid(blade_logits(rng.standard_normal(K), rng.standard_normal((K, PLANES, 2))))


def rand(rng: np.random.Generator, K: int) -> np.ndarray:
    upper = np.triu(rng.uniform(-0.5, 0.5, (K, K)), 1)
    return 0.5 + upper - upper.T


def bt(rng: np.random.Generator, K: int) -> np.ndarray:
    r = rng.standard_normal(K)
    return sigmoid(r[:, None] - r)


def mix(
    rng: np.random.Generator, K: int, weights: Sequence[float] = (0.5, 0.3, 0.2), correlation: float = -0.2
) -> np.ndarray:
    r = correlated(rng, len(weights), K, correlation)
    c = rng.standard_normal((len(weights), K, PLANES, 2))
    return np.tensordot(np.asarray(weights), sigmoid(blade_logits(r, c)), axes=1)


def correlated(rng: np.random.Generator, G: int, K: int, correlation: float) -> np.ndarray:
    """(G, K) standard normal rewards; any two groups' correlate by ``correlation`` >= -1/(G-1)."""
    covariance = np.full((G, G), correlation) + (1 - correlation) * np.eye(G)
    return np.linalg.cholesky(covariance) @ rng.standard_normal((G, K))


KINDS: dict[str, Callable[..., np.ndarray]] = {"rps": rps, "blade": blade, "rand": rand, "bt": bt, "mix": mix}


def blade_logits(r: np.ndarray, c: np.ndarray, reward: float = 0.3, cyclic: float = 1.5) -> np.ndarray:
    """Log-odds reward*(r_i - r_j) + cyclic*sum_k c_ik' J c_jk with J the quarter turn: who is ahead in a plane wins.

    Args:
        r: (..., K) rewards.
        c: (..., K, planes, 2) positions in the planes.
    """
    r, a, b = r[..., None, :], c[..., 0], c[..., 1]  # (..., 1, K) and twice (..., K, planes)
    turn = a @ np.swapaxes(b, -1, -2)
    return reward * (np.swapaxes(r, -1, -2) - r) + cyclic * (turn - np.swapaxes(turn, -1, -2))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * z)  # sigmoid(z) + sigmoid(-z) = 1 without rounding


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def against(P: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """P(y > pi) for every response y, shape (..., K)."""
    return (P @ pi[..., None])[..., 0]


def win_rate(P: np.ndarray, pi: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """P(pi > mu), shape (...)."""
    return (pi * against(P, mu)).sum(-1)


def gap(P: np.ndarray, pi: np.ndarray) -> np.ndarray:
    """Duality gap 2 max_y P(y > pi) - 1 of the policy against itself, shape (...); zero at a Nash policy only.

    Computed as max_y of the margins 2P - 1, which keeps small gaps accurate where 2x - 1 would cancel.
    """
    return against(2 * P - 1, pi).max(-1)


def nash(P: np.ndarray) -> np.ndarray:
    """A Nash policy of one game (K, K), by the linear program: minimise v subject to P(y > pi) <= v for all y."""
    from scipy.optimize import linprog

    K = len(P)
    found = linprog(
        np.append(np.zeros(K), 1.0),
        A_ub=np.column_stack([P, -np.ones(K)]),
        b_ub=np.zeros(K),
        A_eq=np.append(np.ones(K), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * K + [(None, None)],
    )
    pi = np.maximum(found.x[:K], 0)
    return pi / pi.sum()


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats, shape (...); 0 ln 0 = 0, infinite where q misses what p has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0).sum(-1)
