"""Choose SOR's omega for one linear system after the other, to spend few steps in all.

Round t brings A_t = A + c_t I and b_t; a policy plays omega from a grid of d = 20 and sees the number of steps it took,
nothing else of the system (Tsallis-INF), or before it plays the shift c_t, too (ChebCB: for each omega a Chebyshev
polynomial in c is fitted to the costs, and the played omega is drawn by inverse gaps).

Source: Khodak, Chow, Balcan, Talwalkar, arXiv:2310.02246 (2024).
"""

from typing import Any

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from scipy import optimize

from papertrial.engine.results import Inputs, Results
from papertrial.methods.tsallis_inf import TsallisINF, draw
from papertrial.testbeds.sor import GRID, LOWEST, Costs, optimal_omega, tabulate

Settings = dict[str, Any]

A_END, B_END = LOWEST, 0.65  # contexts are mapped from here to [-1, 1]
D = len(GRID)


class ChebCB:
    """Contextual bandit for costs that are smooth in a context c: Chebyshev regression and inverse gap weighting.

    Regressions are kept in steps. The paper's losses are (cost - 1) / S with S = K N, K the greatest cost,
    N = 2 + 4 W (1 + log m) / K, W = (b - a) Lip the width of the costs met so far; its box for the coefficients,
    |theta_0| <= 1 / N and |theta_j| <= 2 W / (S j), is K and 2 W / j in steps.

    Args:
        m: features T_0, ..., T_{m-1}.
    """

    def __init__(self, rng: np.random.Generator, m: int) -> None:
        self.rng, self.m, self.t = rng, m, 0
        self.factors = np.zeros((D, m + 1, m + 1))  # R of QR of [features, cost - 1]: an arm's data in short
        self.theta = np.zeros((D, m))
        self.residual = np.zeros(D)  # ||features theta - (cost - 1)||^2
        self.errors = 0.0  # squared, of the predictions so far
        self.least, self.K = np.inf, 0.0

    def eta(self) -> float:
        """In units of 1 / steps, 2 t sqrt(d t / (R + 2 a^2 t)) / S: grows with t and with how well predictions did."""
        if self.t == 1:
            return 0.0  # nothing known: all arms alike
        W, m = self.K - self.least, self.m
        S = 2 * self.K + 4 * W * (1 + np.log(m))
        a = (np.pi + 2 / np.pi * np.log(2 * m + 1)) * W / (2 * S * (m + 1))
        R = max(self.errors - self.residual.sum(), 0) / S**2
        return 2 * self.t * np.sqrt(D * self.t / max(R + 2 * a**2 * self.t, 1e-12)) / S

    def probabilities(self) -> np.ndarray:
        gaps = self.predictions - self.predictions.min()
        p = 1 / (D + self.eta() * gaps)
        best = self.predictions.argmin()
        p[best] = 0
        p[best] = 1 - p.sum()
        return p

    def choose(self, c: float) -> int:
        self.t += 1
        z = 2 * (c - A_END) / (B_END - A_END) - 1
        self.features = chebvander(z, self.m - 1)[0]  # (m,)
        self.predictions = self.theta @ self.features  # (d,)
        self.arm = draw(self.probabilities(), self.rng)
        return self.arm

    def update(self, cost: float) -> None:
        y = cost - 1
        self.errors += (self.predictions[self.arm] - y) ** 2
        new = np.concatenate([self.features, [y]])
        self.factors[self.arm] = np.linalg.qr(np.vstack([self.factors[self.arm], new]), mode="r")
        widened = cost > self.K or cost < self.least
        self.least, self.K = min(self.least, cost), max(self.K, cost)
        for arm in np.flatnonzero(self.factors.any(axis=(1, 2))) if widened else [self.arm]:
            self.fit(arm)

    def fit(self, arm: int) -> None:
        """Least squares in the box."""
        R, q = self.factors[arm][:, :-1], self.factors[arm][:, -1]
        box = np.append(self.K, 2 * (self.K - self.least) / np.arange(1, self.m)) + 1e-9  # not empty
        found = optimize.lsq_linear(R, q, (-box, box), method="bvls")
        self.theta[arm], self.residual[arm] = found.x, 2 * found.cost


# Policies: choose(c) -> arm, update(cost of that arm). Only those that say so look at c.


class Blind:
    """Tsallis-INF, which never looks at c; its loss is cost - 1."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.bandit = TsallisINF(D, rng)

    def choose(self, c: float) -> int:
        return self.bandit.choose()

    def update(self, cost: float) -> None:
        self.bandit.update(cost - 1)


class Binned:
    """One Tsallis-INF for each of a few intervals of c."""

    def __init__(self, rng: np.random.Generator, bins: int) -> None:
        self.ends = np.linspace(A_END, B_END, bins + 1)[1:-1]
        self.bandits = [Blind(rng) for _ in range(bins)]

    def choose(self, c: float) -> int:
        self.at = self.bandits[int(np.searchsorted(self.ends, c))]
        return self.at.choose(c)

    def update(self, cost: float) -> None:
        self.at.update(cost)


class EpsilonGreedy:
    """The least mean cost so far, or with probability epsilon any arm."""

    def __init__(self, rng: np.random.Generator, epsilon: float) -> None:
        self.rng, self.epsilon, self.sums, self.pulls = rng, epsilon, np.zeros(D), np.zeros(D)

    def choose(self, c: float) -> int:
        means = np.where(self.pulls > 0, self.sums / np.maximum(self.pulls, 1), -np.inf)  # every arm once at first
        explore = self.rng.random() < self.epsilon
        self.arm = int(self.rng.integers(D)) if explore else int(means.argmin())
        return self.arm

    def update(self, cost: float) -> None:
        self.sums[self.arm] += cost
        self.pulls[self.arm] += 1


class ExploreThenCommit(EpsilonGreedy):
    """All arms in turn for a pilot of some rounds, then the best of it."""

    def __init__(self, rng: np.random.Generator, pilot: int) -> None:
        super().__init__(rng, 0.0)
        self.pilot = pilot

    def choose(self, c: float) -> int:
        played = int(self.pulls.sum())
        if played == self.pilot:
            self.committed = int((self.sums / np.maximum(self.pulls, 1e-12)).argmin())
        self.arm = played % D if played < self.pilot else self.committed
        return self.arm


class Uniform:
    """The control that learns nothing."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def choose(self, c: float) -> int:
        return int(self.rng.integers(D))

    def update(self, cost: float) -> None:
        pass


POLICIES = {
    "tsallis": Blind,
    "tsallis-misfed": Blind,
    "chebcb": ChebCB,
    "chebcb-permuted": ChebCB,
    "binned": Binned,
    "epsilon-greedy-0.01": EpsilonGreedy,
    "epsilon-greedy-0.05": EpsilonGreedy,
    "epsilon-greedy-0.1": EpsilonGreedy,
    "explore-then-commit": ExploreThenCommit,
    "random-arms": Uniform,
}


def arms_of(method: str, settings: Settings, costs: Costs, seed: int) -> np.ndarray:
    """What the policy plays (T,). It meets one entry of the table a round."""
    ours, theirs = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    policy = POLICIES[method](ours, **settings)
    contexts = theirs.permutation(costs.c) if method == "chebcb-permuted" else costs.c
    arms = []
    for t, c in enumerate(contexts.tolist()):
        arms.append(policy.choose(c))
        fed = (arms[-1] + theirs.integers(1, D)) % D if method == "tsallis-misfed" else arms[-1]  # another arm's cost
        policy.update(float(costs.grid[t, fed]))
    return np.array(arms)


def described(paid: np.ndarray, costs: Costs) -> Settings:
    """Sums of what was paid, and how the regret against the best omega of the grid in hindsight grows."""
    T, fifth = len(paid), len(paid) // 5
    regret = np.cumsum(paid - costs.grid[:, costs.grid.sum(axis=0).argmin()])
    t = np.arange(T // 10, T + 1)
    slope = np.polyfit(np.log(t), np.log(np.maximum(regret[t - 1], 1)), 1)[0]
    sums = {"total": paid.sum(), "first_fifth": paid[:fifth].sum(), "last_fifth": paid[-fifth:].sum()}
    return {name: float(v) for name, v in {**sums, "regret": regret[-1], "slope": slope}.items()}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        costs = costs_of(problem, seed, inputs)
        T, here = len(costs.c), {"seed": seed}
        if method == "fixed":
            paths = {round(omega, 2): paid for omega, paid in zip(GRID.tolist(), costs.grid.T, strict=True)}
        elif method == "optimal":
            paths = {None: costs.optimal}
        else:
            arms = arms_of(method, settings, costs, seed)
            paths = {None: costs.grid[np.arange(T), arms]}
            c, late = costs.c[-200:], {"played": GRID[arms[-200:]]}
            late |= {"c": c, "optimum": optimal_omega(c, problem["side"])}
            found.traces += [here | {name: float(v[i]) for name, v in late.items()} for i in range(len(c))]
        for omega, paid in paths.items():
            named = here if omega is None else here | {"omega": omega}
            found.rows.append(named | described(paid, costs))
            if omega is None:
                parts = np.array_split(np.arange(T), 25)
                found.traces += [here | {"round": int(p[-1]) + 1, "steps": float(paid[p].mean())} for p in parts]
    return found


def costs_of(problem: Settings, seed: int, inputs: Inputs) -> Costs:
    """From the shared table, or for a seed that it lacks computed here."""
    tables, part = inputs.models.get("sor-costs", {}), f"{problem['variance']}-{seed}"
    if part in tables:
        return Costs(**{name: np.asarray(tables[part][name]) for name in Costs._fields})
    return tabulate(problem["variance"], problem["T"], problem["side"], seed)
