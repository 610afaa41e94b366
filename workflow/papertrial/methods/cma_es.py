"""Minimise a function from its values by adapting a Gaussian: CMA-ES, restarted with growing populations.

Source: Hansen, The CMA evolution strategy: a tutorial, arXiv 1604.00772 (default constants, positive weights);
restarts as in IPOP-CMA-ES, Auger and Hansen 2005.
"""

from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]  # (n, d) -> (n,)


def cma_es(
    f: Function,
    m: np.ndarray,
    sigma: float,
    budget: int,
    rng: np.random.Generator,
    population: int | None = None,
    tol: float = 1e-10,
) -> tuple[np.ndarray, float, int]:
    """One run.

    Args:
        m: start (d,).
        sigma: initial standard deviation in each coordinate.
        budget: evaluations.
        population: 4 + 3 ln d by default.
        tol: stop when the largest standard deviation is below it, or a generation's values are all the same.

    Returns:
        the best point, its value, and the evaluations used.
    """
    d = len(m)
    lam = population or 4 + int(3 * np.log(d))
    mu = lam // 2
    w = np.log((lam + 1) / 2) - np.log(np.arange(1, mu + 1))
    w /= w.sum()
    mu_eff = 1 / (w**2).sum()
    c_sigma = (mu_eff + 2) / (d + mu_eff + 5)
    damping = 1 + 2 * max(0.0, np.sqrt((mu_eff - 1) / (d + 1)) - 1) + c_sigma
    c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)
    c_1 = 2 / ((d + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((d + 2) ** 2 + mu_eff))
    chi = np.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))  # E||N(0, I)||

    C, p_sigma, p_c = np.eye(d), np.zeros(d), np.zeros(d)
    best, lowest, used, generation = m, np.inf, 0, 0
    while used + lam <= budget:
        eigenvalues, B = np.linalg.eigh(C)
        D = np.sqrt(np.maximum(eigenvalues, 0))
        if sigma * D.max() < tol or D.min() == 0:
            break
        z = rng.standard_normal((lam, d))
        y = (z * D) @ B.T
        values = f(m + sigma * y)
        used, generation = used + lam, generation + 1
        order = np.argsort(values, kind="stable")
        if values[order[0]] < lowest:
            best, lowest = m + sigma * y[order[0]], float(values[order[0]])
        if values[order[0]] == values[order[-1]]:
            break
        chosen, step = y[order[:mu]], w @ y[order[:mu]]
        m = m + sigma * step
        p_sigma = (1 - c_sigma) * p_sigma + np.sqrt(c_sigma * (2 - c_sigma) * mu_eff) * (B @ (B.T @ step / D))
        length = np.linalg.norm(p_sigma)
        moving = length / np.sqrt(1 - (1 - c_sigma) ** (2 * generation)) < (1.4 + 2 / (d + 1)) * chi
        p_c = (1 - c_c) * p_c + moving * np.sqrt(c_c * (2 - c_c) * mu_eff) * step
        stalled = (1 - moving) * c_c * (2 - c_c)
        C = (1 - c_1 - c_mu + c_1 * stalled) * C + c_1 * np.outer(p_c, p_c) + c_mu * (chosen.T * w) @ chosen
        sigma *= float(np.exp(min(1.0, c_sigma / damping * (length / chi - 1))))
    return best, lowest, used


def restarted(
    f: Function, m: np.ndarray, sigma: float, budget: int, rng: np.random.Generator, low: float, high: float
) -> tuple[np.ndarray, float]:
    """Runs until the budget is spent: the first from m, the next from random points of the box, each with twice the
    population."""
    best, lowest, left = m, np.inf, budget
    population = 4 + int(3 * np.log(len(m)))
    while left >= population:
        found, value, used = cma_es(f, m, sigma, left, rng, population)
        if value < lowest:
            best, lowest = found, value
        left -= used
        m, population = rng.uniform(low, high, len(m)), 2 * population
    return best, lowest
