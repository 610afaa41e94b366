"""Stochastic Bernoulli bandits whose arms pass by once and must be remembered to be pulled again.

S independent runs (lanes) go through their streams in lockstep: every array has S as its first axis. Each lane
draws from a generator of its own, so how the lanes are grouped changes nothing.
"""

from collections.abc import Iterator, Sequence

import numpy as np


class ForgottenArm(LookupError):
    """An arm was pulled that is neither arriving nor stored."""


class RegretLedger:
    """Counts pulls and pseudo-regret, sum over pulls of (p* - p_pulled), up to the horizon.

    Args:
        p: (S, K) means of the arms.
        horizon: T, the pulls that each lane has; what is charged beyond them is cut.
    """

    def __init__(self, p: np.ndarray, horizon: int) -> None:
        self.horizon = horizon
        self.loss = p.max(axis=1, keepdims=True) - p  # (S, K)
        self.pulls = np.zeros(len(p), dtype=np.int64)
        self.regret = np.zeros(len(p))

    def charge(self, lanes: np.ndarray, arms: np.ndarray, n: int | np.ndarray) -> None:
        """Book n pulls of arms[i] in lane lanes[i]."""
        n = np.minimum(n, self.horizon - self.pulls[lanes])
        self.pulls[lanes] += n
        self.regret[lanes] += n * self.loss[lanes, arms]


class ArmStream:
    """K arms in a fixed order, read once, with a memory of a few slots for arms to come back to.

    A policy says beforehand which batches of pulls it may ask of an arm, b_0, b_1, ...; each is one binomial
    draw and can be read once, so no policy can use old samples as new ones. A batch that the horizon cuts short
    is charged at its cut length; what it returns can't matter any more, since no pull is left.

    Args:
        p: (S, K) means in order of arrival.
        horizon: T, pulls per lane.
        batches: (B,) sizes of the batches of pulls.
        slots: how many arms the memory has room for.
        rngs: S generators, one a lane.
    """

    def __init__(
        self, p: np.ndarray, horizon: int, batches: Sequence[int], slots: int, rngs: Sequence[np.random.Generator]
    ) -> None:
        self.lanes, self.arms = p.shape
        self.batches = np.asarray(batches, dtype=np.int64)
        self.ledger = RegretLedger(p, horizon)
        self.peak = np.zeros(self.lanes, dtype=np.int64)  # most arms stored at a time, the arriving one aside
        self.explored = np.zeros(self.lanes, dtype=np.int64)  # pulls made before the commitment
        self._arriving = -1
        self._held = np.full((self.lanes, slots), -1)
        self._successes = np.empty((self.lanes, len(self.batches), self.arms), dtype=np.int32)
        for successes, rng, means in zip(self._successes, rngs, p, strict=True):
            successes[:] = rng.binomial(self.batches[:, None], means)

    def __iter__(self) -> Iterator[int]:
        """The arms as they arrive; each can be pulled until the next one does."""
        for arm in range(self.arms):
            self._arriving = arm
            yield arm
        self._arriving = -1

    def pull(self, arm: int | np.ndarray, batch: int = 0, where: np.ndarray | None = None) -> np.ndarray:
        """Successes (S,) of one batch of pulls.

        Args:
            arm: one arm for all lanes, or (S,).
            batch: its index in ``batches``.
            where: (S,) bool, the lanes that pull; the others read 0.
        """
        lanes = np.arange(self.lanes) if where is None else np.flatnonzero(where)
        arms = np.broadcast_to(arm, self.lanes)[lanes]
        self._require_reachable(lanes, arms)
        successes = np.zeros(self.lanes, dtype=np.int64)
        successes[lanes] = self._successes[lanes, batch, arms]
        if (successes < 0).any():
            raise ValueError(f"batch {batch} of an arm is read a second time")
        self._successes[lanes, batch, arms] = -1
        self.ledger.charge(lanes, arms, self.batches[batch])
        return successes

    def store(self, slot: int, arm: int | np.ndarray, where: np.ndarray) -> None:
        """Put a reachable arm into a slot, in the lanes ``where`` (S,) is true; what was there is dropped."""
        lanes = np.flatnonzero(where)
        arms = np.broadcast_to(arm, self.lanes)[lanes]
        self._require_reachable(lanes, arms)
        self._held[lanes, slot] = arms
        self.peak = np.maximum(self.peak, (self._held >= 0).sum(axis=1))

    def held(self, slot: int) -> np.ndarray:
        """The arms (S,) in a slot; -1 where it is empty."""
        return self._held[:, slot].copy()

    def drop(self, slot: int) -> None:
        self._held[:, slot] = -1

    def commit(self, arm: np.ndarray) -> None:
        """Pull stored arms (S,) for the rest of the horizon."""
        lanes = np.arange(self.lanes)
        self._require_reachable(lanes, arm)
        self.explored = self.ledger.pulls.copy()
        self.ledger.charge(lanes, arm, self.ledger.horizon - self.ledger.pulls)

    def _require_reachable(self, lanes: np.ndarray, arms: np.ndarray) -> None:
        stored = (self._held[lanes] == arms[:, None]).any(axis=1)
        reachable = (arms >= 0) & (stored | (arms == self._arriving))
        if not reachable.all():
            raise ForgottenArm(f"arm {arms[~reachable][0]} is neither arriving nor stored")


def beta_means(rng: np.random.Generator, arms: int, a: float, b: float) -> np.ndarray:
    """(K,) means drawn from Beta(a, b); Beta(1, 1) is uniform on [0, 1]."""
    return rng.beta(a, b, size=arms)


def needle_means(arms: int, position: int, lead: float) -> np.ndarray:
    """(K,) means, all 1/2 but one at 1/2 + lead: the instances of the lower bound."""
    p = np.full(arms, 0.5)
    p[position] += lead
    return p
