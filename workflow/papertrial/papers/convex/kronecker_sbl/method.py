"""Sparse recovery where the support is a Kronecker product: y = (A_1 x A_2 x A_3) x + noise.

Sparse Bayesian learning puts a prior N(0, gamma_n) on every unknown and fits the variances by EM. KroSBL ties them,
gamma = gamma_1 x gamma_2 x gamma_3, which leaves 3 N parameters for N^3 unknowns, all seen by many equations; and
the E-step needs only the eigenvectors of the small matrices A_i diag(gamma_i) A_i^H. Its M-step fits a rank-one
tensor to D, the posterior second moments d: AM by cyclic exact updates of the surrogate

    Q(gamma) = sum log gamma + sum d / gamma,

SVD by a projection of Q's unconstrained minimiser, which is D itself.

Source: arXiv 2307.14719. The baseline on mode supports is Kronecker-OMP (Caiafa and Cichocki, 2013).
Shapes: S instances, N unknowns and M equations a mode; D, mu (S, N, N, N), y (S, M, M, M), gamma_i (S, N).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.linalg import solve_triangular

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.sparse_regression import fista, omp
from papertrial.testbeds.sparse_recovery import KroneckerInstances, dense, kron_apply, kronecker_instances, outer

FLOOR = 1e-12  # of the variances
Factors = list[np.ndarray]


@dataclass(frozen=True)
class Posterior:
    mu: np.ndarray  # mean, (S, N, ..., N)
    D: np.ndarray  # second moments |mu|^2 + variance, likewise
    cost: np.ndarray  # log det Sigma_y + y^H Sigma_y^-1 y, (S,)
    slope: np.ndarray  # of the cost in log gamma, (S, N, ..., N)


# ---- E-step


def e_step(y: np.ndarray, A: Factors, gamma: Factors, sigma2: np.ndarray) -> Posterior:
    """Sigma_y = sigma^2 I + H diag(gamma) H^H = U (Lambda_1 x Lambda_2 x Lambda_3 + sigma^2 I) U^H.

    U_i Lambda_i U_i^H are the eigendecompositions of A_i diag(gamma_i) A_i^H.
    """
    eigen = [np.linalg.eigh((a * g[:, None]) @ adjoint(a)) for a, g in zip(A, gamma, strict=True)]
    U = [vectors for _, vectors in eigen]
    Lambda = outer([np.maximum(values, 0) for values, _ in eigen])  # (S, M, M, M)
    Lambda = Lambda + sigma2.reshape(-1, *[1] * (Lambda.ndim - 1))
    rotated = kron_apply([adjoint(u) for u in U], y)
    B = [adjoint(a) @ u for a, u in zip(A, U, strict=True)]  # (S, N, M)
    q = kron_apply(B, rotated / Lambda)  # H^H Sigma_y^-1 y
    diagonal = kron_apply([np.abs(b) ** 2 for b in B], 1 / Lambda)  # of H^H Sigma_y^-1 H
    over = tuple(range(1, y.ndim))
    cost = (np.log(Lambda) + np.abs(rotated) ** 2 / Lambda).sum(axis=over)
    return posterior(outer(gamma), q, diagonal, cost)


def dense_e_step(y: np.ndarray, H: np.ndarray, gamma: np.ndarray, sigma2: float) -> Posterior:
    """One instance with any gamma (n,), by a Cholesky factor of Sigma_y: H (m, n), y (m,)."""
    L = np.linalg.cholesky((H * gamma) @ H.conj().T + sigma2 * np.eye(len(y)))
    white = solve_triangular(L, np.column_stack([H, y]), lower=True)
    W, w = white[:, :-1], white[:, -1]
    cost = 2 * np.log(np.diag(L).real).sum() + (np.abs(w) ** 2).sum()
    return posterior(gamma, W.conj().T @ w, (np.abs(W) ** 2).sum(axis=0), cost)


def posterior(gamma: np.ndarray, q: np.ndarray, diagonal: np.ndarray, cost: np.ndarray) -> Posterior:
    mu = gamma * q
    v = gamma - gamma**2 * diagonal
    return Posterior(mu, np.abs(mu) ** 2 + v, cost, gamma * (diagonal - np.abs(q) ** 2))


def adjoint(a: np.ndarray) -> np.ndarray:
    return a.conj().swapaxes(-1, -2)


# ---- M-steps: D and the current factors to new factors


def alternating(D: np.ndarray, gamma: Factors) -> Factors:
    """AM, one sweep: gamma_1[i] = mean over j, k of D[i,j,k] / (gamma_2[j] gamma_3[k]), and so on."""
    gamma = list(gamma)
    for mode in range(len(gamma)):
        others = outer([np.ones_like(g) if m == mode else g for m, g in enumerate(gamma)])
        gamma[mode] = np.maximum(along(D / others, mode, np.mean), FLOOR)
    return balanced(gamma)


def projection(D: np.ndarray, gamma: Factors) -> Factors:
    """SVD: the leading left singular vector of each unfolding, and the scale <D, u_1 o u_2 o u_3>."""
    u = []
    for mode in range(len(gamma)):
        unfolded = np.moveaxis(D, mode + 1, 1).reshape(len(D), D.shape[mode + 1], -1)
        u.append(np.abs(np.linalg.svd(unfolded, full_matrices=False)[0][:, :, 0]))
    scale = (D * outer(u)).sum(axis=tuple(range(1, D.ndim)))
    return balanced([np.maximum(g, FLOOR) for g in [u[0] * scale[:, None], *u[1:]]])


def balanced(gamma: Factors) -> Factors:
    """All but the first factor have maximum one: only the product means anything."""
    tops = [g.max(axis=1, keepdims=True) for g in gamma[1:]]
    first = gamma[0] * np.prod(tops, axis=0) if tops else gamma[0]
    return [np.maximum(g, FLOOR) for g in (first, *(g / top for g, top in zip(gamma[1:], tops, strict=True)))]


def along(X: np.ndarray, mode: int, reduce: Callable) -> np.ndarray:
    """Reduce all axes but the instances' and the mode's."""
    return reduce(X, axis=tuple(a for a in range(1, X.ndim) if a != mode + 1))


# ---- EM


def krosbl(instances: KroneckerInstances, iterations: int, m_step: Callable[..., Factors]) -> Iterator[Posterior]:
    """The posterior at every iteration; gamma_i starts as ones, the noise variance is known."""
    gamma = [np.ones((a.shape[0], a.shape[2])) for a in instances.A]
    for _ in range(iterations):
        found = e_step(instances.y, instances.A, gamma, instances.sigma2)
        yield found
        gamma = m_step(found.D, gamma)


def krosbl_unknown_noise(instances: KroneckerInstances, iterations: int) -> Iterator[Posterior]:
    """SVD, and EM for the noise: sigma^2 = (||y - H mu||^2 + sigma^2 sum(1 - v/gamma)) / M^3, from the power of y."""
    gamma = [np.ones((a.shape[0], a.shape[2])) for a in instances.A]
    over = tuple(range(1, instances.y.ndim))
    sigma2 = (np.abs(instances.y) ** 2).mean(axis=over)
    for _ in range(iterations):
        found = e_step(instances.y, instances.A, gamma, sigma2)
        yield found
        misfit = (np.abs(instances.y - kron_apply(instances.A, found.mu)) ** 2).sum(axis=over)
        explained = (1 - (found.D - np.abs(found.mu) ** 2) / outer(gamma)).sum(axis=over)
        sigma2 = (misfit + sigma2 * explained) / instances.y[0].size
        gamma = projection(found.D, gamma)


def dense_em(
    instances: KroneckerInstances, iterations: int, m_step: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Posterior]:
    """EM with variances of any structure: the M-step takes D to gamma, both (S, N, ..., N)."""
    S, shape = len(instances.x), instances.x.shape
    H = [dense([a[s] for a in instances.A]) for s in range(S)]
    y = instances.y.reshape(S, -1)
    gamma = np.ones(shape)
    for _ in range(iterations):
        each = [dense_e_step(y[s], H[s], gamma[s].ravel(), instances.sigma2[s]) for s in range(S)]
        mu, D, slope = (np.stack([getattr(e, name) for e in each]).reshape(shape) for name in ("mu", "D", "slope"))
        found = Posterior(mu, D, np.array([e.cost for e in each]), slope)
        yield found
        gamma = np.maximum(m_step(found.D), FLOOR)


def scrambled_projection(D: np.ndarray) -> np.ndarray:
    """The control: the rank-one step on unknowns in a random order, the same for all."""
    order = np.random.default_rng(0).permutation(D[0].size)
    shuffled = D.reshape(len(D), -1)[:, order].reshape(D.shape)
    ones = [np.ones((len(D), n)) for n in D.shape[1:]]
    gamma = np.empty_like(D).reshape(len(D), -1)
    gamma[:, order] = outer(projection(shuffled, ones)).reshape(len(D), -1)
    return gamma.reshape(D.shape)


ITERATIVE: dict[str, Callable[[KroneckerInstances, int], Iterator[Posterior]]] = {
    "am": partial(krosbl, m_step=alternating),
    "svd": partial(krosbl, m_step=projection),
    "svd-for-am": partial(krosbl, m_step=projection),
    "svd-noise": krosbl_unknown_noise,
    "csbl": partial(dense_em, m_step=lambda D: D),
    "svd-scrambled": partial(dense_em, m_step=scrambled_projection),
}


# ---- other baselines


def pursuit(instances: KroneckerInstances) -> np.ndarray:
    """OMP that knows how many unknowns are not zero."""
    found = []
    for s, y in enumerate(instances.y):
        H = dense([a[s] for a in instances.A])
        found.append(omp(H, y.ravel(), int(instances.support[s].sum())).reshape(instances.x[s].shape))
    return np.stack(found)


def kronecker_pursuit(instances: KroneckerInstances) -> np.ndarray:
    """OMP on the modes: the best triple of indices extends the modes' sets until each has its true number K."""
    return np.stack([_kronecker_pursuit(instances, s) for s in range(len(instances.x))])


def _kronecker_pursuit(instances: KroneckerInstances, s: int) -> np.ndarray:
    A, y = [a[s] for a in instances.A], instances.y[s]
    modes = range(y.ndim)
    K = [int(along(instances.support[s][None], mode, np.any).sum()) for mode in modes]
    chosen: list[list[int]] = [[] for _ in modes]
    x, residual = np.zeros_like(instances.x[s]), y
    while any(len(c) < k for c, k in zip(chosen, K, strict=True)):
        match = np.abs(kron_apply([adjoint(a)[None] for a in A], residual[None])[0])
        for mode in modes:  # a full mode takes no further index; the triple must add something
            closed = np.setdiff1d(np.arange(A[mode].shape[1]), chosen[mode]) if len(chosen[mode]) == K[mode] else []
            match[(slice(None),) * mode + (closed,)] = -1
        if all(chosen):
            match[np.ix_(*chosen)] = -1
        for mode, i in enumerate(np.unravel_index(match.argmax(), match.shape)):
            chosen[mode] += [int(i)] if int(i) not in chosen[mode] else []
        x, residual = fitted([a[:, c] for a, c in zip(A, chosen, strict=True)], chosen, y, instances.x[s])
    return x


def fitted(A: Factors, chosen: list[list[int]], y: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares on a product of index sets: x and the residual."""
    x = np.zeros_like(like)
    values = kron_apply([np.linalg.pinv(a)[None] for a in A], y[None])
    x[np.ix_(*chosen)] = values[0]
    return x, y - kron_apply([a[None] for a in A], values)[0]


def oracle(instances: KroneckerInstances) -> np.ndarray:
    """Least squares on the true support."""
    found = []
    for s, y in enumerate(instances.y):
        support = instances.support[s][None]
        chosen = [np.flatnonzero(along(support, mode, np.any)[0]).tolist() for mode in range(y.ndim)]
        A = [a[s][:, c] for a, c in zip(instances.A, chosen, strict=True)]
        found.append(fitted(A, chosen, y, instances.x[s])[0])
    return np.stack(found)


def lasso(instances: KroneckerInstances, weight: float, iterations: int = 500) -> np.ndarray:
    """min ||y - H x||^2 / 2 + lambda ||x||_1, lambda the given share of the value from which on x = 0."""
    A_H = [adjoint(a) for a in instances.A]
    stacked = (-1, *[1] * (instances.x.ndim - 1))
    largest = np.abs(kron_apply(A_H, instances.y)).reshape(len(instances.x), -1).max(axis=1).reshape(stacked)
    L = np.prod([np.linalg.norm(a, 2, axis=(1, 2)) ** 2 for a in instances.A], axis=0).reshape(stacked)
    gradient = lambda x: kron_apply(A_H, kron_apply(instances.A, x) - instances.y)  # noqa: E731
    return fista(gradient, np.zeros_like(instances.x), L, weight * largest, iterations)


DIRECT: dict[str, Callable[..., np.ndarray]] = {
    "omp": pursuit,
    "kronecker-omp": kronecker_pursuit,
    "oracle": oracle,
    "lasso": lasso,
}


# ---- runs


def follow(instances: KroneckerInstances, posteriors: Iterator[Posterior], seeds: list[int]) -> Results:
    """NMSE, cost and its gradient over the iterations.

    settled   the first iteration (from 1) whose NMSE is within 10% of the last one's
    rise      the largest relative rise of the cost, (C_{t+1} - C_t) / (1 + |C_t|)
    gradient  norm of the cost's gradient in the logs of all factors' entries, the last one's over the first one's
    """
    nmse, costs, gradients = [], [], []
    for found in posteriors:
        nmse.append(instances.nmse(found.mu))
        costs.append(found.cost)
        by_factor = [along(found.slope, mode, np.sum) for mode in range(found.mu.ndim - 1)]
        gradients.append(np.linalg.norm(np.concatenate(by_factor, axis=1), axis=1))
    error, C = np.array(nmse), np.array(costs)  # (T, S)
    settled = 1 + (np.abs(error - error[-1]) <= 0.1 * error[-1]).argmax(axis=0)
    rise = ((C[1:] - C[:-1]) / (1 + np.abs(C[:-1]))).max(axis=0)
    rows = [
        {
            "seed": seed,
            **accuracy(error[-1, s]),
            "settled": int(settled[s]),
            "rise": float(rise[s]),
            "gradient": float(gradients[-1][s] / gradients[0][s]),
        }
        for s, seed in enumerate(seeds)
    ]
    shown = np.unique(np.geomspace(1, len(error), 50).astype(int))
    traces = [
        {"seed": seed, "iteration": int(t), "log_nmse": float(np.log10(error[t - 1, s])), "cost": float(C[t - 1, s])}
        for s, seed in enumerate(seeds)
        for t in shown
    ]
    return Results(rows, traces)


def accuracy(nmse: float) -> Row:
    return {"nmse": float(nmse), "log_nmse": float(np.log10(nmse))}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One row a seed, that is an instance."""
    instances = kronecker_instances(seeds, problem["kind"], problem["M"], problem["N"], problem["K"], problem["snr"])
    if method in ITERATIVE:
        return follow(instances, ITERATIVE[method](instances, problem["iterations"][method]), seeds)
    errors = instances.nmse(DIRECT[method](instances, **settings))
    return Results([{"seed": seed, **accuracy(e)} for seed, e in zip(seeds, errors, strict=True)])
