"""Linear systems whose matrix is a forest: solved by message passing in linear time, and blocks that are forests.

Source: Nutini, Laradji, Schmidt, arXiv:1712.08859, section 5; for one tree it is Gaussian belief propagation.
"""

import numpy as np
from scipy import sparse


def solve_forest(H: sparse.csr_array, right: np.ndarray) -> tuple[np.ndarray, int]:
    """Solve H x = right by elimination from the leaves to the roots and substitution back.

    Args:
        H: (m, m) symmetric positive definite, its off-diagonal entries the edges of a forest.
        right: (m,).

    Returns:
        x (m,), and how many multiplications and divisions it took.

    Raises:
        ValueError: the graph of H has a cycle.
    """
    m = len(right)
    order, parent = _from_the_roots(H)
    diagonal = H.diagonal().tolist()
    edge = _edges_to(H, parent)
    r, x, operations = right.tolist(), [0.0] * m, 0
    for v in reversed(order):  # leaves first
        p = parent[v]
        if p >= 0:
            message = edge[v] / diagonal[v]
            diagonal[p] -= message * edge[v]
            r[p] -= message * r[v]
            operations += 3
    for v in order:
        p = parent[v]
        if p >= 0:
            r[v] -= edge[v] * x[p]
            operations += 1
        x[v] = r[v] / diagonal[v]
        operations += 1
    return np.array(x), operations


def _from_the_roots(H: sparse.csr_array) -> tuple[list[int], list[int]]:
    """Nodes with every parent before its children, and the parents (-1 for roots)."""
    start, to = H.indptr.tolist(), H.indices.tolist()
    m = len(start) - 1
    parent, order = [-2] * m, []
    for root in range(m):
        if parent[root] != -2:
            continue
        parent[root] = -1
        order.append(root)
        head = len(order) - 1
        while head < len(order):
            v = order[head]
            head += 1
            for u in to[start[v] : start[v + 1]]:
                if u in (v, parent[v]):
                    continue
                if parent[u] != -2:
                    raise ValueError("the block's graph has a cycle: it is no forest")
                parent[u] = v
                order.append(u)
    return order, parent


def _edges_to(H: sparse.csr_array, parent: list[int]) -> list[float]:
    """H between each node and its parent, 0 for roots."""
    rows = np.repeat(np.arange(H.shape[0]), np.diff(H.indptr))
    to_parent = H.indices == np.array(parent)[rows]
    edge = np.zeros(H.shape[0])
    edge[rows[to_parent]] = H.data[to_parent]
    return edge.tolist()


def greedy_forest(H: sparse.csr_array, priority: np.ndarray, size: int | None = None) -> np.ndarray:
    """Nodes whose induced graph is a forest, taken by falling priority while they close no cycle.

    A node may join if it has at most one neighbour in each tree that is there already (union-find).

    Args:
        size: stop at so many nodes.
    """
    start, to = H.indptr.tolist(), H.indices.tolist()
    tree = [-1] * len(priority)  # -1: not in the block; else a node nearer to the tree's representative

    def representative(v: int) -> int:
        while tree[v] != v:
            tree[v] = tree[tree[v]]
            v = tree[v]
        return v

    block = []
    for v in np.argsort(-priority, kind="stable").tolist():
        met = [representative(u) for u in to[start[v] : start[v + 1]] if u != v and tree[u] >= 0]
        if len(set(met)) < len(met):
            continue
        block.append(v)
        tree[v] = v
        for root in met:
            tree[root] = v
        if len(block) == size:
            break
    return np.array(block)
