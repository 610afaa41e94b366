"""learning-to-relax-sor: SOR's steps, Tsallis-INF, ChebCB, and what they are held against."""

import numpy as np
import pandas as pd
import pytest
from numpy.polynomial import chebyshev
from scipy.linalg import solve_triangular

from papertrial.engine import verdicts
from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.methods.tsallis_inf import TsallisINF, draw, tsallis_probabilities
from papertrial.models import sor_costs
from papertrial.papers.convex.learning_to_relax_sor import evidence
from papertrial.papers.convex.learning_to_relax_sor.method import (
    A_END,
    B_END,
    POLICIES,
    Binned,
    ChebCB,
    arms_of,
    described,
    run,
)
from papertrial.testbeds import sor
from papertrial.testbeds.sor import GRID, Costs

SETTINGS = {
    "chebcb": {"m": 6},
    "chebcb-permuted": {"m": 6},
    "binned": {"bins": 5},
    "explore-then-commit": {"pilot": 40},
    **{f"epsilon-greedy-{e}": {"epsilon": float(e)} for e in ("0.01", "0.05", "0.1")},
}
PROBLEM = {"name": "high", "variance": "high", "T": 60, "side": 3}


@pytest.fixture(scope="module")
def inputs():
    parts = {f"high-{seed}": sor_costs.train(f"high-{seed}", PROBLEM, Inputs(), "cpu", None).state for seed in (4, 5)}
    return Inputs(models={"sor-costs": parts})


def dense(c, b, omega, sweep=None):
    """Steps of SOR with dense matrices and the true residual."""
    A = sor.laplacian(round(len(b) ** 0.5)).toarray() + c * np.eye(len(b))
    M = np.diag(np.diag(A)) / omega + np.tril(A, -1)
    x = np.zeros(len(b))
    for k in range(1, 10_001):
        x = x + solve_triangular(M, b - A @ x, lower=True) if sweep is None else sweep(A, b, x)
        if np.linalg.norm(b - A @ x) < 1e-8 * np.linalg.norm(b):
            return k
    return 10_000


# ---- what must hold


def test_omega_one_is_gauss_seidel():
    def gauss_seidel(A, b, x):
        x = x.copy()
        for i in range(len(x)):
            x[i] += (b[i] - A[i] @ x) / A[i, i]
        return x

    c, b = sor.systems("high", 3, 5, 0)
    expected = [dense(c[t], b[t], 1.0, gauss_seidel) for t in range(3)]
    np.testing.assert_array_equal(sor.sor_steps(c, b, np.ones(3)), expected)


def test_contraction_at_the_optimal_omega(monkeypatch):
    _, b = sor.systems("low", 1, 10, 0)
    omega = sor.optimal_omega(np.zeros(1), 10)
    steps = []
    for tolerance in (1e-90, 1e-130):  # the residual's recursion has no floor
        monkeypatch.setattr(sor, "TOLERANCE", tolerance)
        steps.append(int(sor.sor_steps(np.zeros(1), b, omega)[0]))
    assert 1e-40 ** (1 / (steps[1] - steps[0])) == pytest.approx(omega[0] - 1, rel=0.02)
    jacobi = np.eye(100) - sor.laplacian(10).toarray() / 4
    beta = np.abs(np.linalg.eigvalsh(jacobi)).max()
    assert omega[0] == pytest.approx(2 / (1 + np.sqrt(1 - beta**2)), rel=1e-12)


def test_steps_match_a_dense_solver_exactly():
    c, b = sor.systems("high", 20, 6, 1)
    omega = np.random.default_rng(0).uniform(1, 1.95, 20)
    expected = [dense(c[t], b[t], omega[t]) for t in range(20)]
    for together in (3, 20):
        np.testing.assert_array_equal(sor.sor_steps(c, b, omega, together), expected)


def test_tsallis_probabilities():
    rng = np.random.default_rng(0)
    for eta in (2.0, 0.3, 0.02):
        for losses in (rng.random(20), 1e4 * rng.random(20), np.repeat([0, 1e6], 10)):
            p = tsallis_probabilities(losses, eta)
            assert p.sum() == pytest.approx(1, abs=1e-10) and (p > 0).all()
            x = losses - 2 / (eta * np.sqrt(p))  # the same x for every arm
            np.testing.assert_allclose(x, x[0], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(tsallis_probabilities(np.full(20, 7.0), eta), 1 / 20, atol=1e-12)
    assert tsallis_probabilities(np.array([0, *[1e5] * 19]), 1.0)[0] > 1 - 1e-6


def test_chebyshev_fit_reproduces_a_polynomial():
    rng = np.random.default_rng(0)
    coefficients = np.array([50, 20, 8, 5, 3, 2.0])
    policy = ChebCB(rng, 6)
    policy.least, policy.K = 1.0, 200.0  # the widest box from the start
    for c in rng.uniform(A_END, B_END, 40):
        policy.choose(c)
        policy.arm, z = 3, 2 * (c - A_END) / (B_END - A_END) - 1
        np.testing.assert_allclose(policy.features, chebyshev.chebvander(np.array([z]), 5)[0])
        policy.update(1 + chebyshev.chebval(z, coefficients))
    np.testing.assert_allclose(policy.theta[3], coefficients, atol=1e-8)
    assert policy.residual.sum() == pytest.approx(0, abs=1e-12)
    assert not policy.theta[[0, 1, 2, 4]].any()  # never pulled


# ---- parts


def test_systems():
    for variance, mean in (("high", 0.25), ("low", 0.25)):
        c, b = sor.systems(variance, 4000, 4, 3)
        assert c.min() > -0.15 and c.max() < 0.45
        assert c.mean() == pytest.approx(-0.15 + 0.6 * mean, abs=0.01)
        assert b.shape == (4000, 16) and (b**2).sum(axis=1).max() <= 16
    high, low = (sor.systems(v, 4000, 2, 3)[0].std() for v in ("high", "low"))
    assert high > 1.5 * low
    A = sor.laplacian(10).toarray()
    assert np.linalg.eigvalsh(A)[0] == pytest.approx(0.162, abs=1e-3)
    assert (np.diag(A) == 4).all() and A[0, 1] == A[0, 10] == -1 and A[9, 10] == 0


def test_the_cap(monkeypatch):
    monkeypatch.setattr(sor, "CAP", 5)
    c, b = sor.systems("high", 4, 6, 0)
    assert (sor.sor_steps(c, b, np.full(4, 1.5)) == 5).all()


def test_tsallis_finds_the_best_arm():
    bandit, means = TsallisINF(3, np.random.default_rng(0)), (300.0, 100.0, 200.0)
    arms = []
    for _ in range(2000):
        arms.append(bandit.choose())
        bandit.update(means[arms[-1]])
    assert np.mean(np.array(arms[-500:]) == 1) > 0.9


def test_draw():
    rng = np.random.default_rng(0)
    p = np.array([0.2, 0, 0.8])
    np.testing.assert_allclose(np.bincount([draw(p, rng) for _ in range(4000)]) / 4000, p, atol=0.03)


def test_chebcb_weighs_inverse_gaps():
    policy = ChebCB(np.random.default_rng(0), 4)
    policy.choose(0.1)
    np.testing.assert_allclose(policy.probabilities(), 1 / 20)
    policy.update(30.0)
    policy.choose(0.2)
    policy.predictions = np.arange(20.0)
    p, eta = policy.probabilities(), policy.eta()
    assert p.sum() == pytest.approx(1) and eta > 0
    np.testing.assert_allclose(p[1:], 1 / (20 + eta * np.arange(1, 20)))


def test_chebcb_keeps_its_box_and_residuals():
    policy, rng = ChebCB(np.random.default_rng(0), 3), np.random.default_rng(1)
    data = []
    for _ in range(30):
        c = rng.uniform(A_END, B_END)
        policy.choose(c)
        policy.arm, cost = 0, float(rng.integers(1, 100))
        data.append((policy.features, cost - 1))
        policy.update(cost)
    features, y = map(np.array, zip(*data, strict=True))
    assert policy.residual[0] == pytest.approx(np.square(features @ policy.theta[0] - y).sum())
    assert policy.theta[0, 0] <= policy.K == y.max() + 1
    assert (np.abs(policy.theta[0, 1:]) <= 2 * (policy.K - policy.least) / np.array([1, 2]) + 1e-8).all()


def test_binned_bandits_are_apart():
    policy = Binned(np.random.default_rng(0), 5)
    for c in (A_END + 0.01, B_END - 0.01, A_END + 0.02):
        policy.choose(c)
        policy.update(10.0)
    assert [b.bandit.t for b in policy.bandits] == [2, 0, 0, 0, 1]


def table(T=400):
    """Costs that fall from 100 to 5 with the arm, whatever the system."""
    grid = np.tile(np.linspace(100, 5, 20), (T, 1))
    return Costs(np.linspace(-0.1, 0.4, T), grid, np.full(T, 4.0))


@pytest.mark.parametrize("method", ["tsallis", "chebcb", "epsilon-greedy-0.05", "explore-then-commit"])
def test_learners_come_to_play_the_cheapest_arm(method):
    arms = arms_of(method, SETTINGS.get(method, {}), table(), 0)
    assert (arms[-50:] >= 17).mean() > 0.8


def test_pilots_try_all_arms_in_turn():
    arms = arms_of("explore-then-commit", {"pilot": 40}, table(), 0)
    np.testing.assert_array_equal(arms[:40], np.tile(np.arange(20), 2))
    assert (arms[40:] == 19).all()
    greedy = arms_of("epsilon-greedy-0.01", {"epsilon": 0.0}, table(), 0)
    np.testing.assert_array_equal(greedy[:20], np.arange(20))


def test_regret_and_its_slope():
    costs = table()
    row = described(costs.grid[:, 0], costs)
    assert row["slope"] == pytest.approx(1) and row["regret"] == pytest.approx(95 * 400)
    assert row["last_fifth"] == row["first_fifth"] == pytest.approx(row["total"] / 5)
    assert described(costs.grid[:, 19], costs)["slope"] == 0
    t = np.arange(1, 401)
    paid = costs.grid[:, 19] + 100 * np.diff(np.sqrt(np.append(0, t)))
    assert described(paid, costs)["slope"] == pytest.approx(0.5, abs=1e-6)


# ---- runs


@pytest.mark.parametrize("method", [*POLICIES, "fixed", "optimal"])
def test_splitting_the_seeds_changes_nothing(method, inputs):
    settings = SETTINGS.get(method, {})
    whole, *parts = (run(PROBLEM, method, settings, seeds, inputs, "cpu") for seeds in ([4, 5], [4], [5]))
    assert whole.rows == parts[0].rows + parts[1].rows
    assert whole.traces == parts[0].traces + parts[1].traces
    assert len(whole.rows) == (40 if method == "fixed" else 2)


def test_the_table_only_saves_time(inputs):
    tabulated, computed = (run(PROBLEM, "tsallis", {}, [4], given, "cpu").rows for given in (inputs, Inputs()))
    assert tabulated == computed


def test_a_base_model_part_is_a_variance_and_a_seed(inputs):
    found = sor_costs.train("low-7", PROBLEM, Inputs(), "cpu", None)
    costs = sor.tabulate("low", 60, 3, 7)
    np.testing.assert_array_equal(found.state["grid"], costs.grid)
    assert found.rows[0]["best_omega"] == GRID[costs.grid.sum(axis=0).argmin()]
    assert found.state["grid"].shape == (60, 20) and found.state["optimal"].shape == (60,)


def test_controls_differ_in_what_they_are_shown():
    costs, T = table(), 400
    assert (arms_of("tsallis-misfed", {}, costs, 0)[-200:] == 19).mean() < 0.5
    slanted = costs._replace(grid=np.where(np.arange(T)[:, None] < T / 2, costs.grid, costs.grid[:, ::-1]))
    order = np.random.default_rng(0).permutation(T)
    mixed = Costs(slanted.c[order], slanted.grid[order], slanted.optimal)  # which arm is cheap depends on c
    told, misled = (mixed.grid[np.arange(T), arms_of(m, {"m": 6}, mixed, 0)] for m in ("chebcb", "chebcb-permuted"))
    assert told[-200:].mean() < 0.6 * misled[-200:].mean()


# ---- judging


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)


def results(**changed) -> Evidence:
    """A fixed omega costs 100 |omega - 1.8| + 50 a round in all, 1000 rounds; methods as told."""
    methods = {
        "tsallis": {"total": 58e3, "last_fifth": 11e3, "first_fifth": 14e3, "slope": 0.5},
        "chebcb": {"total": 40e3, "last_fifth": 6.6e3, "first_fifth": 8e3, "slope": 0.0},
        "optimal": {"total": 30e3, "last_fifth": 6e3, "first_fifth": 6e3, "slope": 0.0},
        "tsallis-misfed": {"total": 90e3, "last_fifth": 18e3, "first_fifth": 18e3, "slope": 1.0},
        "chebcb-permuted": {"total": 57e3, "last_fifth": 12e3, "first_fifth": 13e3, "slope": 0.3},
        "random-arms": {"total": 90e3, "last_fifth": 18e3, "first_fifth": 18e3, "slope": 1.0},
    }
    for name, change in changed.items():
        methods[name] |= change
    rows = []
    for problem in ("high", "low"):
        for seed in range(5):
            noise = 1 + 0.001 * seed
            for method, numbers in methods.items():
                row = {k: v * (1 if k == "slope" else noise) for k, v in numbers.items()}
                rows.append({"problem": problem, "method": method, "seed": seed} | row)
            for omega in GRID.round(2):
                total = (100 * abs(omega - 1.8) + 50) * 1000 * noise
                row = {"problem": problem, "method": "fixed", "seed": seed, "omega": omega, "total": total}
                rows.append(row | {"last_fifth": total / 5, "first_fifth": total / 5, "slope": 0.0})
    return Evidence(pd.DataFrame(rows))


def test_c1():
    judge = evidence.close_to_the_best_fixed_omega
    found = judge(results())
    assert verdicts.verdict(found) == "replicated"
    assert found[0].estimate == pytest.approx(1.1) and found[1].estimate == 4
    assert verdicts.verdict(judge(results().standing_in("tsallis-misfed", "tsallis"))) == "not replicated"
    assert [c.passed for c in judge(results(tsallis={"last_fifth": 12e3}))] == [False, True] * 2
    assert [c.passed for c in judge(results(tsallis={"total": 71e3}))] == [True, False] * 2


def test_c2():
    judge = evidence.the_shift_as_context_helps
    assert verdicts.verdict(judge(results())) == "replicated"
    assert [c.passed for c in judge(results().standing_in("chebcb-permuted", "chebcb"))] == [True, False]
    assert [c.passed for c in judge(results(tsallis={"total": 39e3}))] == [False, True]


def test_c3():
    judge = evidence.approaches_the_optimal_policy
    assert verdicts.verdict(judge(results())) == "replicated"
    assert [c.passed for c in judge(results().standing_in("chebcb-permuted", "chebcb"))] == [False, True]
    assert [c.passed for c in judge(results(chebcb={"first_fifth": 6.5e3}))] == [True, False]


def test_c4():
    judge = evidence.regret_grows_sublinearly
    assert verdicts.verdict(judge(results())) == "replicated"
    assert verdicts.verdict(judge(results().standing_in("random-arms", "tsallis"))) == "not replicated"
    assert verdicts.verdict(judge(results(tsallis={"slope": 0.76}))) == "not replicated"
