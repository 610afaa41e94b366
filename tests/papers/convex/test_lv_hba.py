"""lv-hba: the proximal Lagrangian value function and the single loop that descends it."""

from itertools import islice

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.papers.convex.lv_hba import evidence
from papertrial.papers.convex.lv_hba.method import (
    aipod,
    fit,
    lv_hba,
    run,
    solution_slope,
    split_of,
    value_function,
    weights_by_gam,
)
from papertrial.papers.convex.lv_hba.problems import (
    hinge_fit,
    in_X,
    llc,
    llsc,
    svm,
    unseen,
    validation_gradient,
    validation_loss,
)
from papertrial.testbeds.bilevel import hypergradient

STEPS = {"alpha": 0.1, "beta": 1.0, "eta": 0.1, "gamma": 10.0, "c": 1.0, "p": 0.3}


def toy_data(n=120, d=4):
    rng = np.random.default_rng(1000)
    x = rng.standard_normal((n, d))
    return {"x": x, "y": (x @ np.arange(1.0, d + 1) + rng.standard_normal(n) > 0).astype(int)}


# ---- what must hold


def test_value_function_is_below_f_and_has_the_gradient_of_its_saddle_point():
    problem, gamma = llsc(10, 1000), 3.0
    f, g = problem.lower, problem.constraint
    v = value_function(problem, gamma)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, y = g.project(*rng.standard_normal((2, 10)))
        z = rng.random(len(g.b))
        assert v(x, y, z) <= f.value(x, y) + 1e-12
    # the saddle point, by the method's own iteration to convergence
    theta, lam = y, z
    for _ in range(3000):
        d = f.grad_y(x, theta) + lam @ g.J_y + (theta - y) / gamma
        theta, lam = theta - 0.3 * d, lam + 0.3 * (g.value(x, theta) - (lam - z) / gamma)
    analytic = [f.grad_x(x, theta) + lam @ g.J_x, (y - theta) / gamma, (lam - z) / gamma]
    for i, at in enumerate((x, y, z)):
        h = 1e-5 * np.eye(len(at))
        arguments = lambda e: [a + e if j == i else a for j, a in enumerate((x, y, z))]  # noqa: E731
        differences = np.array([(v(*arguments(e)) - v(*arguments(-e))) / 2e-5 for e in h])
        assert np.allclose(analytic[i], differences, atol=1e-5)


def test_optimum_of_llc_is_a_rest_point():
    n = 7
    problem = llc(n, 1000)
    f, g, F = problem.lower, problem.constraint, problem.upper
    x, y = np.full(n, -0.3), np.repeat([0.7, -0.4], n)
    lam = z = np.array([-np.sqrt(3 * n)])
    theta = y
    assert np.allclose(f.grad_y(x, theta) + lam @ g.J_y + (theta - y) / 10, 0)
    assert np.allclose(-g.value(x, theta) + (lam - z) / 10, 0)
    d_x = f.grad_x(x, y) - f.grad_x(x, theta) - lam @ g.J_x
    d_y = f.grad_y(x, y) - (y - theta) / 10
    d = np.concatenate([d_x, d_y])
    assert np.allclose(d, d[0]) and abs(d[0]) > 0.1
    assert np.allclose(np.concatenate(g.project(x - d_x, y - d_y)), np.concatenate([x, y]))
    # and F prefers no other feasible point of the same kind: its gradient is a multiple of grad_x psi = 0
    reduced = F.grad_x(x, y) + F.grad_y(x, y)[:n] - 2 * F.grad_y(x, y)[n:]  # y1 = x + 1, y2 = -2 x - 1
    assert np.allclose(reduced, 0)


def test_without_constraints_it_is_the_moreau_envelope_method():
    problem = unseen(llsc(6, 1000))
    problem = problem._replace(constraint=problem.constraint._replace(project=lambda x, y: (x, y)))
    F, f = problem.upper, problem.lower
    x, y = problem.start
    theta = y
    for k, state in enumerate(islice(lv_hba(problem, **STEPS), 30)):
        theta = theta - 0.1 * (f.grad_y(x, theta) + (theta - y) / 10)
        c_k = (k + 1) ** 0.3
        d_x = F.grad_x(x, y) / c_k + f.grad_x(x, y) - f.grad_x(x, theta)
        d_y = F.grad_y(x, y) / c_k + f.grad_y(x, y) - (y - theta) / 10
        x, y = x - 0.1 * d_x, y - 0.1 * d_y
        assert np.allclose(state.x, x) and np.allclose(state.y, y) and np.allclose(state.theta, theta)


@pytest.mark.parametrize("family", [llc, llsc])
def test_projection_on_the_affine_set_is_idempotent_and_feasible(family):
    problem = family(10, 1000)
    g = problem.constraint
    v = np.random.default_rng(3).standard_normal(len(problem.start[0]) + len(problem.start[1]))
    once = g.project(v[:10], v[10:])
    twice = g.project(*once)
    assert np.abs(np.concatenate(once) - np.concatenate(twice)).max() < 1e-10
    assert np.abs(g.value(*once)).max() < 1e-10


# ---- more mathematics


def test_slope_of_the_lower_solution_is_linear_and_gives_the_hypergradient():
    problem = llsc(10, 1000)
    f, g, slope = problem.lower, problem.constraint, solution_slope(problem)
    x = in_X(problem) @ np.random.default_rng(0).standard_normal(10)
    y = slope @ x
    assert np.abs(g.value(x, y)).max() < 1e-10
    null = np.linalg.svd(g.J_y)[2][9:]
    assert np.abs(null @ f.grad_y(x, y)).max() < 1e-10
    # without constraints it is the implicit gradient
    free = unseen(problem)
    both = hypergradient(free, x, y), free.upper.grad_x(x, y) + free.upper.grad_y(x, y) @ solution_slope(free)
    assert np.allclose(*both)


def test_x_that_the_constraints_allow():
    problem = llsc(20, 1000)
    P = in_X(problem)
    assert np.allclose(P @ P, P) and round(np.trace(P)) == 20 - 9
    assert np.allclose(in_X(llc(5, 0)), np.eye(5))


def test_aipod_descends_the_hyper_objective_and_stays_feasible():
    problem = llsc(10, 1000)
    slope, P = solution_slope(problem), in_X(problem)
    value = lambda x: problem.upper.value(P @ x, slope @ P @ x)  # noqa: E731
    x, _, calls = list(islice(aipod(problem, outer=0.003, inner=1.0, T=1, S=1), 300))[-1]
    assert value(x) < value(problem.start[0]) and np.allclose(P @ x, x) and calls == 7


def test_lv_hba_solves_the_small_toy_and_fails_without_multipliers():
    steps = {**STEPS, "alpha": 0.3, "eta": 0.3, "c": 3.0, "p": 0.45}
    errors = []
    for problem in (llc(4, 1000), unseen(llc(4, 1000))):
        state = list(islice(lv_hba(problem, **steps), 2000))[-1]
        errors.append(np.linalg.norm(state.x + 0.3) / np.linalg.norm(np.full(4, 0.3)))
    assert errors[0] < 0.01 and errors[1] > 0.5


def test_hinge_fit_is_stationary_and_its_gradient_right():
    split = split_of(toy_data(), [60, 40], 0)
    M, weights = split.M, np.exp(np.random.default_rng(0).standard_normal(60))
    u, r = hinge_fit(M, weights, np.zeros(5), np.ones(60))
    assert np.abs(np.append(u[:-1], 0) - (weights * r) @ M).max() < 1e-7
    h = 1e-6 * np.eye(5)
    v = u + 0.1
    loss = lambda u: validation_loss(split.validation, u)  # noqa: E731
    differences = [(loss(v + e) - loss(v - e)) / 2e-6 for e in h]
    assert np.allclose(validation_gradient(split.validation, v), differences, atol=1e-5)


def test_projection_on_the_svm_constraints_is_the_nearest_feasible_point():
    split = split_of(toy_data(), [30, 40], 0)
    problem = svm(split, 2.0)
    rng = np.random.default_rng(0)
    C, y = 3 * rng.standard_normal(30), rng.standard_normal(35)
    pC, py = problem.constraint.project(C, y)
    assert (problem.constraint.value(pC, py) <= 1e-9).all() and np.abs(pC).max() <= 2
    assert np.allclose(problem.constraint.project(pC, py)[1], py, atol=1e-7)
    for _ in range(20):  # variational inequality against other feasible points
        u = rng.standard_normal(5)
        other = np.concatenate([u, np.maximum(1 - split.M @ u, rng.standard_normal(30))])
        assert (y - py) @ (other - py) <= 1e-7


def test_gam_lowers_the_validation_loss():
    split = split_of(toy_data(), [60, 40], 0)
    before = validation_loss(split.validation, fit(split, np.zeros(60)))
    after = validation_loss(split.validation, fit(split, weights_by_gam(split, 4.0, 20, alpha=0.3, start=0.0)))
    assert after < before


def test_peer_gives_the_same_value_and_projection():
    cp = pytest.importorskip("cvxpy")
    split = split_of(toy_data(), [20, 40], 0)
    rng = np.random.default_rng(0)
    y = rng.standard_normal(25)
    _, mine = svm(split, 2.0).constraint.project(np.zeros(20), y)
    theirs = cp.Variable(25)
    cp.Problem(cp.Minimize(cp.sum_squares(theirs - y)), [split.M @ theirs[:5] + theirs[5:] >= 1]).solve()
    assert np.allclose(mine, theirs.value, atol=1e-4)
    problem = llsc(10, 1000)
    (x, y), g = problem.start, problem.constraint
    z, gamma = rng.standard_normal(len(g.b)), 3.0
    theta = cp.Variable(10)
    residual = g.J_x @ x + g.J_y @ theta  # maximised over lambda in closed form
    inner = z @ residual + gamma / 2 * cp.sum_squares(residual)
    value = cp.sum_squares(x - theta) / 2 + cp.sum_squares(theta - y) / (2 * gamma) + inner
    assert cp.Problem(cp.Minimize(value)).solve() == pytest.approx(value_function(problem, gamma)(x, y, z), abs=1e-5)


# ---- the runs

TOY_STEPS = {"step": 0.1, "beta": 1, "gamma": 10, "c": 1}
RUNS = [
    ({"measure": "error", "sizes": [5], "iterations": 20}, "lv_hba", {**TOY_STEPS, "p": 0.3}),
    ({"measure": "error", "sizes": [5], "iterations": 20}, "e_aipod", {"outer": 0.01, "inner": 1, "T": 50, "S": 1}),
    ({"measure": "work", "n": 10, "budget": 200}, "aipod", {"outer": 0.01, "inner": 1, "T": 1, "S": 1}),
    ({"measure": "gap", "n": 10, "window": [5, 50], "rates": [0.2, 0.4]}, "lv_hba", TOY_STEPS),
    ({"measure": "svm", "data": "toy", "split": [40, 40], "bound": 4, "iterations": 5}, "lv_hba", STEPS),
    ({"measure": "svm", "data": "toy", "split": [40, 40], "bound": 4, "iterations": 5}, "grid_search", {}),
]


@pytest.mark.parametrize(("problem", "method", "settings"), RUNS)
def test_splitting_the_seeds_changes_nothing(problem, method, settings):
    inputs = Inputs({"toy": toy_data()})
    together = run(problem, method, settings, [3, 4], inputs, "cpu").rows
    assert together == [row for seed in (3, 4) for row in run(problem, method, settings, [seed], inputs, "cpu").rows]


# ---- judging


def table(good):
    rows, traces = [], []
    rng = np.random.default_rng(0)
    for seed in range(6):
        for n in (20, 100):
            base = {"problem": "llc", "seed": seed, "n": n}
            rows.append(base | {"method": "lv_hba", "error": 0.01 if good else 0.5})
            rows.append(base | {"method": "e_aipod", "error": 4.0})
        for method, work in (("lv_hba", 100 if good else 2000), ("aipod", 300 + seed), ("e_aipod", 900)):
            rows.append({"problem": "llsc", "method": method, "seed": seed, "initial": 4.0, "least": -0.1})
            for at, least in ((10, 2.0), (work, -0.1)):
                traces.append({"problem": "llsc", "method": method, "seed": seed, "work": at, "least": least})
        for problem in evidence.SVM:
            for method, accuracy in (("lv_hba", 0.9 if good else 0.8), ("gam", 0.88), ("grid_search", 0.9)):
                noise = 0.001 * rng.standard_normal()
                rows.append({"problem": problem, "method": method, "seed": seed, "accuracy": accuracy + noise})
        for p in (0.2, 0.4):
            slope = -p if good else -p + 0.2
            rows.append({"problem": "llsc-gap", "method": "lv_hba", "seed": seed, "p": p, "slope": slope})
    return Evidence(pd.DataFrame(rows), traces=pd.DataFrame(traces))


JUDGES = [
    evidence.convex_lower_level,
    evidence.first_order_calls_suffice,
    evidence.accuracy_of_svm_weights,
    evidence.rate_of_the_value_gap,
]


@pytest.mark.parametrize("judge", JUDGES)
def test_judging(judge):
    assert verdict(judge(table(True))) == REPLICATED
    assert verdict(judge(table(False))) == NOT_REPLICATED


def test_a_method_that_never_gets_there_is_charged_all_it_spent():
    rows = [{"problem": "llsc", "method": m, "seed": 0, "initial": 4.0, "least": 0.0} for m in ("lv_hba", "aipod")]
    traces = [
        {"problem": "llsc", "method": m, "seed": 0, "work": w, "least": least}
        for m, w, least in (("lv_hba", 50, 0.03), ("lv_hba", 90, 0.0), ("aipod", 10, 1.0), ("aipod", 500, 0.9))
    ]
    work = evidence.work_to_near_best(Evidence(pd.DataFrame(rows), traces=pd.DataFrame(traces)))
    assert work.loc[0].to_dict() == {"lv_hba": 50, "aipod": 500}
