"""Regret of explore-then-commit policies that read a stream of K Bernoulli arms once and remember few of them.

A policy pulls arriving and stored arms in batches, keeps what it deems best, and commits to it for what is left
of T pulls. Committing to an eps-best arm with eps = (K/T)^(1/3) costs about eps T = K^(1/3) T^(2/3); uniform
exploration pays a factor ln^(1/3) T on top. What is measured is rho = R / (K^(1/3) T^(2/3)) = R / (eps T).

Source: arXiv 2306.02208 (the policies), arXiv 2004.04666 (the tower of levels), arXiv 2106.15247 (one stored arm).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.testbeds.bandits import ArmStream, beta_means, needle_means


@dataclass(frozen=True)
class Policy:
    """What batches of pulls a policy asks of an arm, how many arms it stores, how it finds the one to commit to."""

    batches: list[int]
    slots: int
    explore: Callable[[ArmStream], np.ndarray]  # -> (S,) arms


# ---- uniform exploration: every arm gets the same n pulls, the best empirical mean is kept


def keep_best(stream: ArmStream) -> np.ndarray:
    best = np.full(stream.lanes, -1)  # successes of the stored arm, (S,)
    for arm in stream:
        successes = stream.pull(arm)
        better = successes > best
        stream.store(0, arm, better)
        best = np.maximum(best, successes)
    return stream.held(0)


def uniform_exploration(K: int, T: int, constant: float) -> Policy:
    n = constant * (T / K) ** (2 / 3) * math.log(T) ** (1 / 3)
    return Policy([math.ceil(n)], 1, keep_best)


def naive(K: int, T: int) -> Policy:
    """Enough pulls that the union bound over K arms holds: ln K / eps^2."""
    return Policy([max(1, math.ceil(math.log(K) * per_arm(K, T)))], 1, keep_best)


def const(K: int, T: int) -> Policy:
    """1 / eps^2 pulls, which tell one pair of arms apart, but not K of them."""
    return Policy([math.ceil(per_arm(K, T))], 1, keep_best)


# ---- KING: one stored arm; challengers are pulled in doubling batches and rejected early


def challenge(stream: ArmStream) -> np.ndarray:
    """A challenger whose running mean falls below the king's at any level is out; one that survives is crowned."""
    m_king = np.full(stream.lanes, -1.0)
    pulled = np.cumsum(stream.batches)
    for arm in stream:
        survives = np.ones(stream.lanes, dtype=bool)
        successes = np.zeros(stream.lanes)
        for level, n in enumerate(pulled):
            successes += stream.pull(arm, level, survives)
            survives &= successes / n >= m_king
            if not survives.any():
                break
        stream.store(0, arm, survives)
        m_king = np.where(survives, successes / pulled[-1], m_king)
    return stream.held(0)


def king(K: int, T: int) -> Policy:
    return Policy(king_batches(K, T), 1, challenge)


def king_without_early_rejection(K: int, T: int) -> Policy:
    """The control: a challenger meets the king once, after the pulls of all levels."""
    return Policy([sum(king_batches(K, T))], 1, challenge)


def king_batches(K: int, T: int) -> list[int]:
    """Level l = 0..L adds 2^l / (2 eps^2) pulls; L = ceil(log2 ln K), so all levels together see about ln K / eps^2."""
    L = math.ceil(math.log2(max(1.0, math.log(K))))
    return [math.ceil(0.5 * 2**level * per_arm(K, T)) for level in range(L + 1)]


# ---- TOWER: level r holds the best of the last few arms that entered it


def climb(stream: ArmStream, capacities: list[float]) -> np.ndarray:
    """Every arm enters level 0; after c_r arms the incumbent of level r enters level r + 1 and the level is emptied.

    Which level is full depends on counts alone, so all lanes climb in step.
    """
    R = len(capacities)
    best = np.full((R, stream.lanes), -1)  # successes of each level's incumbent in that level's batch
    entered = [0] * R

    def enter(arm: int | np.ndarray, r: int) -> None:
        successes = stream.pull(arm, r)  # fresh pulls at every level
        better = successes > best[r]
        stream.store(r, arm, better)
        best[r] = np.maximum(best[r], successes)
        entered[r] += 1
        if entered[r] == capacities[r]:
            enter(stream.held(r), r + 1)
            stream.drop(r)
            best[r], entered[r] = -1, 0

    for arm in stream:
        enter(arm, 0)
    incumbents = np.stack([stream.held(r) for r in range(R) if entered[r]])  # (<=R, S)
    final = np.stack([stream.pull(arm, R) for arm in incumbents])  # b_0 fresh pulls each
    return incumbents[final.argmax(axis=0), np.arange(stream.lanes)]


def tower_of(capacities: list[float], K: int, T: int) -> Policy:
    """Level r gives b_r = ceil(1.2^r / eps^2) pulls; the last level is never full."""
    R = len(capacities)
    b = [math.ceil(1.2**r * per_arm(K, T)) for r in range(R)]
    return Policy([*b, b[0]], R, lambda stream: climb(stream, [*capacities[:-1], math.inf]))


def tower(K: int, T: int, capacity: int) -> Policy:
    """Capacities grow like a tower of powers, c_(r+1) = 2^c_r, until they hold all K arms: log*(K) + O(1) levels."""
    capacities = [capacity]
    while math.prod(capacities) < K:
        capacities.append(2 ** capacities[-1])
    return tower_of(capacities, K, T)


def tower_log(K: int, T: int, capacity: int) -> Policy:
    """Equal capacities, floor(ln K) levels."""
    return tower_of([capacity] * max(1, math.floor(math.log(K))), K, T)


def per_arm(K: int, T: int) -> float:
    """1 / eps^2 with eps = (K/T)^(1/3)."""
    return (T / K) ** (2 / 3)


POLICIES: dict[str, Callable[..., Policy]] = {
    "ue": uniform_exploration,
    "ue-tuned": uniform_exploration,
    "naive": naive,
    "const": const,
    "king": king,
    "king-late": king_without_early_rejection,
    "tower": tower,
    "tower-log": tower_log,
}


# ---- instances and runs


def drawn(rng: np.random.Generator, K: int, eps: float, a: float, b: float) -> dict[str, np.ndarray]:
    return {"rho": beta_means(rng, K, a, b)}


def hard(rng: np.random.Generator, K: int, eps: float, gaps: list[float]) -> dict[str, np.ndarray]:
    """One instance a gap Delta (in units of eps), the best arm in the same random position in all of them."""
    position = int(rng.integers(K))
    return {f"rho_{gap:g}eps": needle_means(K, position, gap * eps) for gap in gaps}


FAMILIES: dict[str, Callable[..., dict[str, np.ndarray]]] = {"drawn": drawn, "hard": hard}


def play(policy: Policy, p: np.ndarray, T: int, rngs: list[np.random.Generator]) -> ArmStream:
    """Explore, then commit. p: (S, K) means; returns the stream with its ledger."""
    stream = ArmStream(p, T, policy.batches, policy.slots, rngs)
    stream.commit(policy.explore(stream))
    return stream


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One row a seed and a size (K, T): rho (one a gap on the hard family), the largest share of T spent
    exploring and the most arms stored, over the row's instances."""
    rows = []
    for K, T in problem["sizes"]:
        eps = (K / T) ** (1 / 3)
        # a seed's means are the same at every T; its rewards are fresh at each
        instances = [
            FAMILIES[problem["family"]](np.random.default_rng([seed, K]), K, eps, **problem["means"]) for seed in seeds
        ]
        names = list(instances[0])
        p = np.concatenate([np.stack([i[name] for i in instances]) for name in names])  # (instances * seeds, K)
        rngs = [np.random.default_rng([seed, K, T, i]) for i in range(len(names)) for seed in seeds]
        stream = play(POLICIES[method](K, T, **settings), p, T, rngs)
        by_instance = (len(names), len(seeds))
        rho = stream.ledger.regret.reshape(by_instance) / (eps * T)
        explored = stream.explored.reshape(by_instance).max(axis=0) / T
        stored = stream.peak.reshape(by_instance).max(axis=0)
        for s, seed in enumerate(seeds):
            row = {"seed": seed, "arms": K, "horizon": T, "explored": float(explored[s]), "stored": int(stored[s])}
            rows.append(row | {name: float(rho[i, s]) for i, name in enumerate(names)})
    return Results(rows)
