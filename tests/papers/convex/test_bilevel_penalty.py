"""bilevel-penalty: the penalty function, and the algorithms that descend it."""

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.papers.convex.bilevel_penalty import evidence
from papertrial.papers.convex.bilevel_penalty.method import (
    Noise,
    algorithm_2,
    call,
    closeness_at_jump,
    penalty_function,
    plain_single_loop,
    run,
    settle,
    smallest_lower_solution,
)
from papertrial.testbeds.bilevel import (
    Bilevel,
    Objective,
    hyper_objective,
    hypergradient,
    lower_solution,
    many_solutions,
    strongly_convex,
)

SIGMAS = [1e-3, 1e-2, 0.03, 0.1]


def points(k, n=5):
    return np.random.default_rng(1000).standard_normal((k, n))


# ---- what must hold


@pytest.mark.parametrize("family", [strongly_convex, many_solutions])
def test_penalty_function_falls_with_sigma_and_stays_below_the_hyper_objective(family):
    problem, x = family(1000, 6), points(6, 6)
    values = np.stack([penalty_function(problem, x, sigma)[0] for sigma in SIGMAS])
    assert (np.diff(values, axis=0) <= 1e-9).all()
    assert (values <= hyper_objective(problem, x) + 1e-9).all()


@pytest.mark.parametrize("family", [strongly_convex, many_solutions])
def test_gradient_of_the_penalty_function_by_differences(family):
    problem, h = family(1000, 6), 1e-5
    for x in points(3, 6):
        steps = h * np.eye(6)
        up, down = (penalty_function(problem, x + s, 0.05)[0] for s in (steps, -steps))
        assert np.allclose(penalty_function(problem, x, 0.05)[1], (up - down) / (2 * h), atol=1e-5)


def test_closed_form_for_a_quadratic_under_a_linear_function():
    rng = np.random.default_rng(0)
    n = 4
    W, B, a, b = rng.standard_normal((n, n)), rng.standard_normal((n, n)), *rng.standard_normal((2, n))
    Q = np.eye(n) + W @ W.T
    f = Objective(
        lambda x, y: x @ a + y @ b, lambda x, y: a + 0 * x, lambda x, y: b + 0 * y, lambda x, y: np.zeros((n, n))
    )
    g = Objective(
        lambda x, y: 0.5 * ((y - x @ B.T) @ Q * (y - x @ B.T)).sum(-1),
        lambda x, y: -(y - x @ B.T) @ Q @ B,
        lambda x, y: (y - x @ B.T) @ Q,
        lambda x, y: Q,
        lambda x, y: -B.T @ Q,
    )
    problem = Bilevel(f, g, n, n)
    for x in points(3, n):
        for sigma in SIGMAS:
            gap = hyper_objective(problem, x) - penalty_function(problem, x, sigma)[0]
            assert gap == pytest.approx(sigma / 2 * b @ np.linalg.solve(Q, b), rel=1e-8)


def test_small_sigma_gives_the_implicit_gradient():
    problem = strongly_convex(1000)
    for x in points(5, 10):
        implicit = hypergradient(problem, x, lower_solution(problem, x))
        error = np.linalg.norm(penalty_function(problem, x, 1e-4)[1] - implicit)
        assert error <= 1e-3 * np.linalg.norm(implicit)


def test_storm_without_memory_is_the_plain_stochastic_gradient():
    problem, sigma = strongly_convex(1000, 4), np.array([[0.1], [0.2]])
    x = np.ones((1, 3, 2, 4))
    storm = algorithm_2(problem, x, sigma, Noise([0, 1, 2], 2, 4), alpha=0.05, gamma=0.1, eta=1.0)
    plain = plain_single_loop(problem, x, sigma, Noise([0, 1, 2], 2, 4), alpha=0.05, gamma=0.1)
    for _ in range(5):
        assert np.allclose(next(storm), next(plain), rtol=1e-12)


# ---- more mathematics


def test_errors_are_of_first_order_in_sigma_and_not_at_the_jump():
    problem, x = many_solutions(1000, 6), points(4, 6)
    psi = hyper_objective(problem, x)
    errors = [np.abs(penalty_function(problem, x, s)[0] - psi).max() for s in (1e-3, 1e-2)]
    assert np.log10(errors[1] / errors[0]) == pytest.approx(1, abs=0.1)
    # |x| = sigma: y_s = -0.3, z = -1
    assert closeness_at_jump(0.01, 0.01) == pytest.approx((abs(0.25 + 0.7 - 1.44), 70.0))


def test_least_norm_solution_solves_the_lower_level_but_not_the_upper():
    problem, x = many_solutions(1000, 6), points(1, 6)[0]
    y, best = smallest_lower_solution(problem, x), lower_solution(problem, x)
    assert np.abs(problem.lower.grad_y(x, y)).max() < 1e-11
    assert np.linalg.norm(y) <= np.linalg.norm(best) and problem.upper.value(x, y) > problem.upper.value(x, best)


def test_settle_charges_each_lane_for_its_own_evaluations():
    y, evaluations = settle(lambda y: y, np.array([[1.0], [0.5], [0.0]]), 0.5, np.array([0.1, 0.1, 0.1]))
    assert evaluations.tolist() == [5, 4, 1]
    assert y[:, 0].tolist() == [0.0625, 0.0625, 0.0]


def test_noise_does_not_cancel_between_two_points_but_shares_its_draws():
    N = np.random.default_rng(0).standard_normal((2, 100_000))
    a, b = call(0.0, N, 0.3), call(0.0, N, 0.9)
    assert a.std() == pytest.approx(0.05 * np.sqrt(1 + np.sin(0.3) ** 2), rel=0.02)
    assert (a - b).std() == pytest.approx(0.05 * (np.sin(0.9) - np.sin(0.3)), rel=0.02)


# ---- the runs

P3 = {"name": "p3", "measure": "calls", "family": "strongly_convex", "instance": 1000, "n": 3}
P3 |= {"eps": [0.2, 0.1], "cap": 1500}
NOISY = {**P3, "measure": "race", "s": 1.0, "cap": 1200, "tuning_seeds": [1000], "tuning_cap": 600}
GRIDS = {
    "single_loop": {"alpha": [0.03, 0.1], "gamma": [1.0], "eta": [0.2]},
    "double_loop": {"alpha": [0.03], "gamma": [1.0], "M": [1, 4], "T": [1]},
    "plain_single_loop": {"alpha": [0.03, 0.1], "gamma": [1.0]},
}
SETTINGS = {
    "penalty": {"alpha": 0.1, "s": 0.3, "accuracy": 0.05},
    "implicit": {"alpha": 0.1, "accuracy": 0.05},
    "bome": {"alpha": 0.05, "T": 5, "eta": 0.5},
}


def same(together, apart):
    assert len(together) == len(apart)
    for a, b in zip(together, apart, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("method", [*SETTINGS, *GRIDS])
def test_splitting_the_seeds_changes_nothing(method):
    problem = NOISY if method in GRIDS else P3
    settings = {"grid": GRIDS[method]} if method in GRIDS else SETTINGS[method]
    together = run(problem, method, settings, [3, 4], Inputs(), "cpu").rows
    same(together, [row for seed in (3, 4) for row in run(problem, method, settings, [seed], Inputs(), "cpu").rows])


def test_deterministic_methods_reach_what_they_report():
    for method in ("penalty", "implicit"):
        rows = run({**P3, "cap": 8000}, method, SETTINGS[method], [1000], Inputs(), "cpu").rows
        assert all(row["reached"] and row["least_norm"] <= row["eps"] for row in rows)
        assert rows[0]["calls"] <= rows[1]["calls"]


def test_the_peer_gives_the_same_hypergradient():
    torch = pytest.importorskip("torch")
    torchopt = pytest.importorskip("torchopt")
    n = 4
    rng = np.random.default_rng(1000)
    problem, x = strongly_convex(1000, n), points(1, n)[0]
    rng.standard_normal((2, n))
    B, W = rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal((n, n))
    Q, B = torch.as_tensor(np.eye(n) + W @ W.T / n), torch.as_tensor(B)
    y = lower_solution(problem, x)

    @torchopt.diff.implicit.custom_root(lambda y, x: Q @ (y - B @ x) + 0.1 * y.tanh(), argnums=1)
    def solver(start, x):
        return torch.as_tensor(y)

    t = torch.as_tensor(x).requires_grad_()
    (theirs,) = torch.autograd.grad(solver(torch.zeros(n).double(), t), t, torch.as_tensor(problem.upper.grad_y(x, y)))
    assert np.allclose(hypergradient(problem, x, y), problem.upper.grad_x(x, y) + theirs.numpy(), atol=1e-5)


# ---- judging


def approximation_table(order, formula_error):
    rows = []
    for seed in range(4):
        for problem in ("p1", "p2"):
            for sigma in SIGMAS:
                error = (1 + seed) * sigma**order
                base = {"problem": problem, "method": "penalty", "seed": seed, "sigma": sigma}
                rows.append(base | {"value_error": error, "gradient_error": 2 * error})
        base = {"problem": "formula", "method": "penalty", "seed": seed}
        rows.append(base | {"formula_error": formula_error, "penalty_error": 1e-3})
    return Evidence(pd.DataFrame(rows))


def test_judging_the_penalty_function():
    good, bad = approximation_table(1.0, 1e-9), approximation_table(0.3, 0.1)
    assert verdict(evidence.close_to_the_hyper_objective(good)) == REPLICATED
    assert verdict(evidence.gradient_with_many_solutions(good)) == REPLICATED
    assert verdict(evidence.close_to_the_hyper_objective(bad)) == NOT_REPLICATED
    assert verdict(evidence.gradient_with_many_solutions(bad)) == NOT_REPLICATED
    only_p1 = Evidence(good.rows[good.rows["problem"] == "p1"])
    assert len(evidence.close_to_the_hyper_objective(only_p1)) == 4


def calls_table(exponent, floor, advantage):
    rows = []
    for seed in range(5):
        for eps in (0.1, 0.05, 0.01):
            base = {"seed": seed, "eps": eps}
            row = base | {"problem": "p3", "method": "penalty", "calls": (1 + seed) * eps**-exponent}
            rows.append(row | {"reached": 1, "least_norm": floor})
        for eps in (0.4, 0.1):
            single = (1 + seed) * 100 / eps
            base = {"problem": "p3-noisy", "seed": seed, "eps": eps}
            rows.append(base | {"method": "single_loop", "samples": single})
            rows.append(base | {"method": "double_loop", "samples": single * advantage / eps})
    return Evidence(pd.DataFrame(rows))


def test_judging_the_algorithms():
    good, bad = calls_table(2.0, 0.02, 2.0), calls_table(4.0, 0.001, 0.05)
    assert verdict(evidence.calls_to_stationarity(good)) == REPLICATED
    assert verdict(evidence.single_loop_needs_fewer_samples(good)) == REPLICATED
    assert verdict(evidence.calls_to_stationarity(bad)) == NOT_REPLICATED
    assert verdict(evidence.single_loop_needs_fewer_samples(bad)) == NOT_REPLICATED
