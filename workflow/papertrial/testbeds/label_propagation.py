"""Label propagation on graphs: spread a few labels -1 or 1 over all nodes by

    min 0.5 sum_{ij in E} w_ij (x_i - x_j)^2   over the unlabelled nodes' x,

a quadratic x^T H x / 2 - b^T x + const with a Hessian H as sparse as the graph.
"""

from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve
from scipy.spatial import KDTree


class Propagation(NamedTuple):
    H: sparse.csr_array  # (u, u) over the unlabelled nodes
    b: np.ndarray  # (u,)
    solution: np.ndarray  # (u,)
    nodes: np.ndarray  # (u,) their numbers in the graph


def propagation(W: sparse.csr_array, labelled: np.ndarray, labels: np.ndarray) -> Propagation:
    """Of a graph's symmetric weights W (N, N) and the labels of some of its nodes."""
    nodes = np.setdiff1d(np.arange(W.shape[0]), labelled)
    laplacian = sparse.csr_array(sparse.diags_array(W.sum(axis=1)) - W)
    H = laplacian[nodes][:, nodes]
    b = W[nodes][:, labelled] @ labels
    return Propagation(H, b, spsolve(H.tocsc(), b), nodes)


def lattice(side: int) -> sparse.csr_array:
    """Weights 1 between the neighbours of a square lattice, nodes row by row."""
    line = sparse.diags_array([np.ones(side - 1)] * 2, offsets=[-1, 1])
    one = sparse.eye_array(side)
    return sparse.csr_array(sparse.kron(line, one) + sparse.kron(one, line))


def lattice_labels(side: int, count: int, rng: np.random.Generator) -> Propagation:
    """``count`` random nodes of a lattice have random labels."""
    labelled = rng.choice(side * side, count, replace=False)
    return propagation(lattice(side), labelled, rng.choice([-1.0, 1.0], count))


def moons(points: int, count: int, rng: np.random.Generator, neighbours: int = 10, noise: float = 0.1) -> Propagation:
    """Two half circles; an edge of weight 1 joins each point to its nearest ones, ``count`` points have true labels."""
    angle = np.sort(rng.uniform(0, np.pi, points // 2))
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.concatenate([upper, np.array([1, 0.5]) - upper]) + noise * rng.standard_normal((2 * len(angle), 2))
    nearest = KDTree(x).query(x, neighbours + 1)[1][:, 1:]  # (points, neighbours)
    rows = np.repeat(np.arange(len(x)), neighbours)
    joined = sparse.csr_array((np.ones(rows.size), (rows, nearest.ravel())), shape=(len(x), len(x)))
    W = joined.maximum(joined.T)
    labelled = rng.choice(len(x), count, replace=False)
    return propagation(W, labelled, np.where(labelled < len(angle), -1.0, 1.0))


# Blocks of lattice nodes, as positions among the unlabelled ones.


def among(problem: Propagation, groups: list[np.ndarray]) -> list[np.ndarray]:
    """The unlabelled nodes of each group (numbers in the graph), as positions in x; empty ones are dropped."""
    position = np.full(max(problem.nodes.max(), max(g.max() for g in groups)) + 1, -1)
    position[problem.nodes] = np.arange(len(problem.nodes))
    found = [position[g][position[g] >= 0] for g in groups]
    return [g for g in found if len(g)]


def red_black(side: int) -> list[np.ndarray]:
    """Two blocks without an edge inside."""
    row, column = np.indices((side, side))
    return [np.flatnonzero((row + column).ravel() % 2 == colour) for colour in (0, 1)]


def combs(side: int) -> list[np.ndarray]:
    """Two interlocking trees: a spine down each border, and every other row as its teeth."""
    row, column = np.indices((side, side))
    left = (column == 0) | ((row % 2 == 0) & (column < side - 1))
    return [np.flatnonzero(left.ravel()), np.flatnonzero(~left.ravel())]


def rows_of(size: int, nodes: int) -> list[np.ndarray]:
    """Fixed blocks of ``size`` nodes in a row."""
    return np.split(np.arange(nodes), np.arange(size, nodes, size))
