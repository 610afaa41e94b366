"""A low-rank matrix of which some entries are known: which one is it?

M (m, n) = U* diag(s) V*^T of rank k, and a random set Omega of places at which it is known. Nothing here is ever
(m, n): M is kept as its factors and the entries of Omega as lists.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import sparse


class LowRank(NamedTuple):
    """M = U diag(s) V^T."""

    U: np.ndarray  # (m, k) orthonormal
    s: np.ndarray  # (k,)
    V: np.ndarray  # (n, k) orthonormal

    def at(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The entries (i, j)."""
        return np.einsum("ok,k,ok->o", self.U[i], self.s, self.V[j])


def haar(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """(n, k) uniformly random orthonormal columns."""
    Q, R = np.linalg.qr(rng.standard_normal((n, k)))
    return Q * np.sign(np.diagonal(R))


def low_rank(m: int, n: int, k: int, condition: float, rng: np.random.Generator) -> LowRank:
    """Haar factors, singular values from 1 down to 1/condition in equal ratios."""
    return LowRank(haar(m, k, rng), np.geomspace(1, 1 / condition, k), haar(n, k, rng))


def incoherence(U: np.ndarray) -> float:
    """mu = (n/k) max_i ||U_i||^2 of orthonormal columns (n, k): 1 where no row stands out, n/k at most."""
    n, k = U.shape
    return float(n / k * (U**2).sum(axis=1).max())


class Padded(NamedTuple):
    """For every row, the columns known in it: as many places as the fullest row has, the rest empty."""

    index: np.ndarray  # (rows, L), `columns` where empty
    value: np.ndarray  # (rows, L), 0 where empty

    def design(self, V: np.ndarray) -> np.ndarray:
        """V (columns, k) at each row's known columns: (rows, L, k), zeros where empty."""
        return np.vstack([V, np.zeros(V.shape[1])])[self.index]


@dataclass(frozen=True)
class Observed:
    """Known entries: places i, j (N,) and values (N,) of an (m, n) matrix."""

    shape: tuple[int, int]
    i: np.ndarray
    j: np.ndarray
    value: np.ndarray

    @property
    def share(self) -> float:
        """p = |Omega| / (m n)."""
        return len(self.value) / (self.shape[0] * self.shape[1])

    @cached_property
    def by_row(self) -> Padded:
        return padded(self.i, self.j, self.value, *self.shape)

    @cached_property
    def by_column(self) -> Padded:
        return padded(self.j, self.i, self.value, *self.shape[::-1])

    def filled(self, values: np.ndarray | None = None) -> sparse.csr_array:
        """P_Omega of the matrix (or of other values at the known places), zero elsewhere."""
        return sparse.csr_array((self.value if values is None else values, (self.i, self.j)), shape=self.shape)

    def split(self, parts: int, rng: np.random.Generator) -> "list[Observed]":
        """Every entry goes to one of the parts at random."""
        label = rng.integers(parts, size=len(self.value))
        chosen = [label == part for part in range(parts)]
        return [Observed(self.shape, self.i[c], self.j[c], self.value[c]) for c in chosen]


def padded(i: np.ndarray, j: np.ndarray, value: np.ndarray, rows: int, columns: int) -> Padded:
    order = np.argsort(i, kind="stable")
    i, j, value = i[order], j[order], value[order]
    count = np.bincount(i, minlength=rows)
    place = np.arange(len(i)) - (np.cumsum(count) - count)[i]
    index = np.full((rows, max(1, count.max())), columns)
    known = np.zeros(index.shape)
    index[i, place], known[i, place] = j, value
    return Padded(index, known)


def observe(M: LowRank, p: float, rng: np.random.Generator) -> Observed:
    """Every entry of M is known with probability p, independently."""
    m, n = len(M.U), len(M.V)
    places = np.sort(rng.choice(m * n, size=rng.binomial(m * n, p), replace=False, shuffle=False))
    i, j = np.divmod(places, n)
    return Observed((m, n), i, j, M.at(i, j))


def relative_error(U: np.ndarray, V: np.ndarray, M: LowRank) -> float:
    """||U V^T - M||_F / ||M||_F, by QR of the joined factors: the small difference of large matrices isn't formed."""
    left = np.linalg.qr(np.hstack([U, M.U * M.s]), mode="r")  # (2k, 2k)
    right = np.linalg.qr(np.hstack([V, -M.V]), mode="r")
    return float(np.linalg.norm(left @ right.T) / np.linalg.norm(M.s))


def distance(U: np.ndarray, of: np.ndarray) -> float:
    """||(I - U U^T) U*||_2, the sine of the largest angle between the spans of two orthonormal (n, k)."""
    return float(np.linalg.norm(of - U @ (U.T @ of), ord=2))
