"""Which block of coordinates to update, and by how much: d_b from the gradient g and bounds H_b of the Hessian.

    fixed partition      GS    argmax ||g_b||^2               variable blocks of size tau
                         GSL   argmax ||g_b||^2 / L_b             GS   the tau largest |g_i|
                         GSQ   argmax g_b^T H_b^-1 g_b            GSD  the tau largest |g_i| / sqrt(L_i)

    step                 gradient  -g_b / L_b,   matrix  -H_b^-1 g_b,   Newton  -(hess_bb f)^-1 g_b with backtracking

L_b is the largest eigenvalue of H_b, L_i the bound of one coordinate.

Source: Nutini, Laradji, Schmidt, arXiv:1712.08859, sections 2 and 3.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from papertrial.testbeds.coordinate_descent import LinearModel

Choose = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # x, Z, g -> block, step (tau,)


class Partition(NamedTuple):
    blocks: np.ndarray  # (B, tau)
    H: np.ndarray  # (B, tau, tau)
    L: np.ndarray  # (B,)
    inverse: np.ndarray  # (B, tau, tau)


def sorted_partition(model: LinearModel, tau: int) -> Partition:
    """Coordinates with similar bounds share a block, the largest first."""
    blocks = np.argsort(-model.L, kind="stable").reshape(-1, tau)
    H = model.bounds(blocks)
    return Partition(blocks, H, np.linalg.eigvalsh(H)[:, -1], np.linalg.inv(H))


# Rules for a partition: g_b of all blocks (B, tau) -> the index of one.

Rule = Callable[[np.ndarray], int]


def gs(at: Partition, rng: np.random.Generator) -> Rule:
    return lambda g: int((g**2).sum(axis=1).argmax())


def gsl(at: Partition, rng: np.random.Generator) -> Rule:
    return lambda g: int(((g**2).sum(axis=1) / at.L).argmax())


def gsl_permuted(at: Partition, rng: np.random.Generator) -> Rule:
    """A control: the L_b belong to other blocks, in the rule only."""
    L = rng.permutation(at.L)
    return lambda g: int(((g**2).sum(axis=1) / L).argmax())


def gsq(at: Partition, rng: np.random.Generator) -> Rule:
    return lambda g: int(np.einsum("bi,bij,bj->b", g, at.inverse, g, optimize=True).argmax())


def cyclic(at: Partition, rng: np.random.Generator) -> Rule:
    """One random order of the blocks, over and over."""

    def turns() -> Iterator[int]:
        order = rng.permutation(len(at.L)).tolist()
        while True:
            yield from order

    turn = turns()
    return lambda g: next(turn)


def uniform(at: Partition, rng: np.random.Generator) -> Rule:
    return lambda g: int(rng.integers(len(at.L)))


def proportional(at: Partition, rng: np.random.Generator) -> Rule:
    """At random, in proportion to L_b."""
    share = np.cumsum(at.L) / at.L.sum()
    return lambda g: int(np.searchsorted(share, rng.random()))


# Steps of the block b of a partition.

Step = Callable[[LinearModel, Partition, int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def gradient_step(model: LinearModel, at: Partition, b: int, x: np.ndarray, Z: np.ndarray, g: np.ndarray) -> np.ndarray:
    return -g / at.L[b]


def matrix_step(model: LinearModel, at: Partition, b: int, x: np.ndarray, Z: np.ndarray, g: np.ndarray) -> np.ndarray:
    return -at.inverse[b] @ g


def newton_step(model: LinearModel, at: Partition, b: int, x: np.ndarray, Z: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The first of 1, 1/2, 1/4, ... of Newton's step by which f falls enough (Armijo); one class only."""
    block = at.blocks[b]
    d = -np.linalg.solve(model.hessian(Z, block), g)
    here, move = model.value(x, Z), model.A[:, block] @ d
    for alpha in 0.5 ** np.arange(40):
        there = x.copy()
        there[block] += alpha * d
        if model.value(there, Z + alpha * move[:, None]) <= here + 1e-4 * alpha * (g @ d) + 1e-15 * abs(here):
            return alpha * d
    return np.zeros_like(d)


def fixed_blocks(model: LinearModel, tau: int, seed: int, rule: Callable[..., Rule], step: Step) -> Choose:
    at = sorted_partition(model, tau)
    pick = rule(at, np.random.default_rng([seed, 1]))

    def choose(x: np.ndarray, Z: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        b = pick(g[at.blocks])
        return at.blocks[b], step(model, at, b, x, Z, g[at.blocks[b]])

    return choose


# Variable blocks: the coordinates' scores (d,).


def largest(scores: np.ndarray, tau: int) -> np.ndarray:
    return np.argpartition(scores, len(scores) - tau)[len(scores) - tau :]


def variable_blocks(model: LinearModel, tau: int, score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Choose:
    """With gradient steps; score(g, L) (d,)."""

    def choose(x: np.ndarray, Z: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block = largest(score(g, model.L), tau)
        return block, -g[block] / np.linalg.eigvalsh(model.bounds(block))[-1]

    return choose


def variable_gs(g: np.ndarray, L: np.ndarray) -> np.ndarray:
    return np.abs(g)


def variable_gsd(g: np.ndarray, L: np.ndarray) -> np.ndarray:
    return g**2 / L


# What they are compared with.


def accelerated(model: LinearModel, low: float, steps: int) -> np.ndarray:
    """(f_k - f*) / (f_0 - f*), k = 1 to ``steps``, of Nesterov's method; its step goes by the whole Hessian's bound."""
    L = np.linalg.eigvalsh(model.gram)[-1] + model.rho
    x = y = np.zeros(model.size)
    first, gaps = model.value(x, model.predict(x)) - low, []
    for k in range(1, steps + 1):
        x, before = y - model.gradient(y, model.predict(y)) / L, x
        y = x + (k - 1) / (k + 2) * (x - before)
        gaps.append((model.value(x, model.predict(x)) - low) / first)
    return np.array(gaps)
