"""Blocks for H x = b on a graph, updated exactly one after the other: small ones, or huge ones that are forests.

Operations are multiplications and divisions, counted as a careful implementation would spend them: only scores whose
gradient has changed are computed again, and taking their maximum is free.

Source: Nutini, Laradji, Schmidt, arXiv:1712.08859, section 5.
"""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import numpy as np

from papertrial.methods.forest import greedy_forest, solve_forest
from papertrial.testbeds.label_propagation import Propagation, among, rows_of


class Update(NamedTuple):
    block: np.ndarray  # (tau,)
    step: np.ndarray  # (tau,): after it g is zero in the block
    solving: int  # operations (multiplications and divisions) for the step
    scoring: int  # operations for the scores that had changed
    scored: int  # how many scores had changed


Choice = Callable[[np.ndarray, np.ndarray], Update]  # g, which entries of it the last step changed


def small_blocks(at: Propagation, side: int) -> Choice:
    """Fixed blocks of five nodes in a row: the best by GSQ, with cached inverses and scores."""
    blocks = rows_of(5, len(at.b))
    block_of = np.repeat(np.arange(len(blocks)), [len(b) for b in blocks])
    inverse = [np.linalg.inv(at.H[b][:, b].toarray()) for b in blocks]
    scores = np.zeros(len(blocks))

    def choose(g: np.ndarray, changed: np.ndarray) -> Update:
        touched = np.unique(block_of[changed]).tolist()
        for j in touched:
            scores[j] = g[blocks[j]] @ inverse[j] @ g[blocks[j]]
        best = int(scores.argmax())
        b, scoring = blocks[best], sum(len(blocks[j]) * (len(blocks[j]) + 1) for j in touched)
        return Update(b, -inverse[best] @ g[b], len(b) ** 2, scoring, len(touched))

    return choose


def in_turn(partition: Callable[[int], list[np.ndarray]]) -> Callable[[Propagation, int], Choice]:
    """The forests of a partition of the lattice, one after the other: nothing is scored."""

    def method(at: Propagation, side: int) -> Choice:
        turn = cycle(among(at, partition(side)))

        def choose(g: np.ndarray, changed: np.ndarray) -> Update:
            b = next(turn)
            return Update(b, *solve_forest(at.H[b][:, b], -g[b]), 0, 0)

        return choose

    return method


def greedy(at: Propagation, side: int) -> Choice:
    """The forest that grows from the largest |g_i| on."""

    def choose(g: np.ndarray, changed: np.ndarray) -> Update:
        b = greedy_forest(at.H, np.abs(g))
        return Update(b, *solve_forest(at.H[b][:, b], -g[b]), len(changed), len(changed))

    return choose
