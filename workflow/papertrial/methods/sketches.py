"""Random matrices S with few rows that shrink a tall A to S A, keeping the length of every vector in its range roughly.

A sketch is a function of A (n, k), the number of rows m and a generator, and returns S A (m, k), E[S^T S] = I. S is
never formed, except by the dense ones; the same generator state gives the same S for any A, but to sketch a matrix
and a right side alike, sketch them side by side.

    srht            m random rows of H D A, H the Hadamard matrix, D random signs     n log n additions a column
    tensor_srht     the same with D = D_1 x D_2 on rows numbered by two indices
    gaussian        independent normal entries                                        m n multiplications a column
    rademacher      independent signs                                                 m n
    countsketch     one random sign a column of S                                     n
    osnap           s of them a column, at independent places                         s n

Sources: Ailon and Chazelle 2006 and Tropp 2011 (arXiv 1011.1595) for srht, Charikar, Chen and Farach-Colton 2002 for
countsketch, Nelson and Nguyen 2013 (arXiv 1211.1002) for osnap.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy import sparse

Sketch = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
Charge = Callable[[int], None]  # told how many scalar additions and multiplications were just done


def free(operations: int) -> None:
    """Nobody counts."""


def signs(size: int | tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Independent fair +1, -1, from one random bit each."""
    n = math.prod(np.atleast_1d(size))
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-n // 8)), dtype=np.uint8), count=n)
    return np.array([-1.0, 1.0])[bits].reshape(size)


# ---- dense and structured


def hadamard(A: np.ndarray, charge: Charge = free) -> np.ndarray:
    """H A for the n x n Hadamard matrix H of entries +1, -1 (Sylvester's), A (n, k), n a power of two."""
    n, k = A.shape
    if n & (n - 1):
        raise ValueError(f"{n} rows, but the Hadamard matrix's order is a power of two")
    x, y = A.astype(float), np.empty((n, k))
    half = 1
    while half < n:
        a, b = (x.reshape(-1, 2, half * k)[:, i] for i in (0, 1))  # pairs of runs, `half` rows apart
        butterfly = y.reshape(-1, 2, half * k)
        np.add(a, b, out=butterfly[:, 0])
        np.subtract(a, b, out=butterfly[:, 1])
        charge(butterfly.size)
        x, y, half = y, x, 2 * half
    return x


def padded(A: np.ndarray, n: int) -> np.ndarray:
    """A with rows of zeros below, n in all."""
    if len(A) == n:
        return A
    out = np.zeros((n, A.shape[1]))
    out[: len(A)] = A
    return out


def mixed(A: np.ndarray, D: np.ndarray, charge: Charge = free) -> np.ndarray:
    """(H / sqrt n) D A, a rotation that spreads every column over all rows: (n, k), n = len(D)."""
    scale = D / math.sqrt(len(D))  # (n,)
    charge(len(D) * A.shape[1])
    return hadamard(padded(A, len(D)) * scale[:, None], charge)


def drawn(A: np.ndarray, m: int, rng: np.random.Generator, charge: Charge = free) -> np.ndarray:
    """m rows of A, uniformly with replacement, scaled by sqrt(n / m)."""
    charge(m * A.shape[1])
    return A[rng.integers(len(A), size=m)] * math.sqrt(len(A) / m)


def power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


def srht(A: np.ndarray, m: int, rng: np.random.Generator, charge: Charge = free) -> np.ndarray:
    """sqrt(n/m) P (H / sqrt n) D A; A is padded to a power of two."""
    D = signs(power_of_two(len(A)), rng)
    return drawn(mixed(A, D, charge), m, rng, charge)


def tensor_srht(A: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """srht with D = D_1 x D_2, so that S (u x v) needs u and v only; here applied to any A (n, k)."""
    log_n = power_of_two(len(A)).bit_length() - 1
    D = np.kron(signs(1 << log_n // 2, rng), signs(1 << (log_n - log_n // 2), rng))
    return drawn(mixed(A, D), m, rng)


BLOCK = 1 << 22  # entries of a dense S that are in memory at a time


def dense(entries: Callable[[tuple[int, int], np.random.Generator], np.ndarray]) -> Sketch:
    """The sketch whose S has these entries over sqrt m."""

    def sketch(A: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
        n = len(A)
        rows = max(1, BLOCK // n)
        parts = [entries((min(rows, m - i), n), rng) @ A for i in range(0, m, rows)]
        return np.concatenate(parts) / math.sqrt(m)

    return sketch


gaussian = dense(lambda shape, rng: rng.standard_normal(shape))
rademacher = dense(signs)


# ---- sparse


def sparse_embedding(n: int, m: int, s: int, rng: np.random.Generator) -> sparse.csc_array:
    """S (m, n): s independent CountSketches over sqrt s. Two entries that meet in one place add up.

    By columns: a product with a dense A then reads every row of A once, in order.
    """
    rows = rng.integers(m, size=(s, n))
    values = signs((s, n), rng) / math.sqrt(s)
    columns = np.broadcast_to(np.arange(n), (s, n))
    return sparse.csc_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(m, n))


def osnap(A: np.ndarray, m: int, rng: np.random.Generator, s: int = 4) -> np.ndarray:
    return sparse_embedding(len(A), m, s, rng) @ A


def countsketch(A: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """Every row of A goes to one of m buckets, with a random sign, and buckets are added up."""
    return osnap(A, m, rng, s=1)


# ---- rows of A itself


def row_sample(q: np.ndarray, m: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """m rows drawn with replacement, row i with probability q_i, and the scales 1/sqrt(m q_i): (m,), (m,)."""
    rows = rng.choice(len(q), size=m, p=q)
    return rows, 1 / np.sqrt(m * q[rows])
