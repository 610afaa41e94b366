"""sinkhorn-newton-sparse: Sinkhorn, its accelerations, and Newton's method with a thinned Hessian."""

import numpy as np
import pandas as pd
import pytest

from papertrial.engine import verdicts
from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.methods.sinkhorn import eta_scaling, log_sweep, plan, sinkhorn
from papertrial.papers.convex.sinkhorn_newton_sparse import evidence
from papertrial.papers.convex.sinkhorn_newton_sparse.method import (
    SOLVERS,
    at_random,
    dense_step,
    gradient,
    largest,
    rise,
    run,
    sparse_hessian,
    sparse_step,
    tail_mass,
    two_stages,
)
from papertrial.testbeds.transport import image_pair, lp_ot, make_ot, marginal_error

IMAGES = np.random.default_rng(0).integers(0, 17, (6, 5, 5)).astype(float)
SETTINGS = {
    "sns": {"N1": 20, "N2": 100, "keep": 10},
    "sns_tuned": {"N1": 20, "N2": 100, "keep": 10},
    "sns_random": {"N1": 20, "N2": 5, "keep": 3},
    "newton": {"N1": 20, "N2": 100},
    "overrelaxed": {"omega": 1.7},
    "eta_scaling": {"first": 10},
}
SMALL = {"name": "assignment", "family": "assignment", "n": 20, "eta": 48, "tol": 1e-10, "cap": 5000}
WARM_UP = {"name": "warm-up", "family": "assignment", "n": 20, "etas": [10, 40], "sweeps": [5, 20]}


def f(ot, eta, x, y):
    return -plan(ot.C, x, y, eta).sum() / eta + ot.r @ x + ot.c @ y


def first(P, count):
    """A choice that has nothing to do with the size of the entries."""
    return np.arange(count)


def newton_path(ot, eta, N1, step, steps):
    """The iterates z_0, z_1, ... of the second stage."""
    return [two_stages(ot, eta, 0.0, N1, N2, step)[0] for N2 in range(steps + 1)]


# ---- what must hold


def test_derivatives_against_finite_differences():
    n, eta, h = 4, 5.0, 1e-5
    ot = image_pair(IMAGES[:, :2, :2], 0, 1)
    z = np.random.default_rng(0).normal(scale=0.1, size=2 * n)

    def g(z):
        return gradient(plan(ot.C, z[:n], z[n:], eta), ot.r, ot.c)

    slopes = [(f(ot, eta, *np.split(z + e, 2)) - f(ot, eta, *np.split(z - e, 2))) / (2 * h) for e in h * np.eye(2 * n)]
    np.testing.assert_allclose(g(z), slopes, atol=1e-8)
    hessian = np.array([(g(z + e) - g(z - e)) / (2 * h) for e in h * np.eye(2 * n)])
    M = sparse_hessian(plan(ot.C, z[:n], z[n:], eta), np.arange(n * n), eta).toarray()
    np.testing.assert_allclose(-M, hessian, atol=1e-8)
    np.testing.assert_allclose(M @ np.repeat([1, -1], n), 0, atol=1e-14)


def test_whole_hessian_is_dense_newton_of_order_two():
    ot, eta = make_ot("clouds", 20, 0), 30.0
    whole = newton_path(ot, eta, 3, sparse_step(eta, 20, largest), 5)
    dense = newton_path(ot, eta, 3, dense_step(eta), 5)
    for one, other in zip(whole, dense, strict=True):
        np.testing.assert_allclose(plan(ot.C, one.x, one.y, eta), plan(ot.C, other.x, other.y, eta), atol=1e-10)
    e = np.array([k for k in dense[-1].errors[2:] if k > 1e-11])[-3:]
    assert np.log(e[2] / e[1]) / np.log(e[1] / e[0]) >= 1.8


def test_no_newton_steps_is_sinkhorn_in_the_log_domain():
    ot, eta = make_ot("assignment", 15, 0), 300.0
    x, y = None, np.zeros(15)
    for _ in range(40):
        x, y = log_sweep(*ot, eta, y)
    solved, spent = two_stages(ot, eta, 0.0, 40, 0, dense_step(eta))
    np.testing.assert_allclose([solved.x, solved.y], [x, y], atol=1e-12)
    assert len(solved.errors) == 40 and spent["newton_steps"] == 0
    assert solved.errors[-1] == pytest.approx(marginal_error(plan(ot.C, x, y, eta), ot.r, ot.c), abs=1e-12)


@pytest.mark.parametrize("sweeps", [1, 2, 99, 100, 101, 250])
def test_a_sweep_ends_with_exact_columns(sweeps):
    ot, eta = image_pair(IMAGES, 1, 2), 900.0
    x, y, _ = sinkhorn(*ot, eta, 0.0, sweeps)
    assert np.abs(plan(ot.C, x, y, eta).sum(axis=0) - ot.c).sum() < 1e-12


def test_f_never_falls():
    eta = 100.0
    for ot in (make_ot("assignment", 20, 0), make_ot("clouds", 20, 1), image_pair(IMAGES[:, :4], 0, 1)):
        for step in (sparse_step(eta, 3, largest), sparse_step(eta, 3, first), dense_step(eta)):
            values = [f(ot, eta, solved.x, solved.y) for solved in newton_path(ot, eta, 2, step, 6)]
            assert np.diff(values).min() > -1e-15


def test_sns_ends_where_sinkhorn_does():
    for ot, eta in ((make_ot("assignment", 30, 0), 72.0), (image_pair(IMAGES, 0, 2), 60.0)):
        solved, _ = SOLVERS["sns"](ot, eta, 1e-12, 0, 0, **SETTINGS["sns"])
        reference = sinkhorn(*ot, eta, 1e-12, 50_000)
        P, Q = plan(ot.C, solved.x, solved.y, eta), plan(ot.C, reference.x, reference.y, eta)
        assert len(solved.errors) < len(reference.errors)
        assert reference.errors[-1] <= 1e-12
        assert np.abs(P - Q).sum() < 1e-8
        assert abs(np.vdot(ot.C, P - Q)) < 1e-8


@pytest.mark.parametrize("choose", [largest, at_random(0)])
def test_thinned_hessian_is_dominated_by_exact_sums(choose):
    ot, eta = make_ot("assignment", 12, 0), 60.0
    P = plan(ot.C, *sinkhorn(*ot, eta, 0.0, 3)[:2], eta)
    M = sparse_hessian(P, choose(P, 30), eta).toarray()
    diagonal = np.diag(M)
    np.testing.assert_allclose(diagonal, eta * np.concatenate([P.sum(axis=1), P.sum(axis=0)]), rtol=1e-13)
    assert ((M - np.diag(diagonal)) > 0).sum() == 60
    assert (diagonal >= (M - np.diag(diagonal)).sum(axis=1) - 1e-12).all()
    assert np.linalg.eigvalsh(M).min() > -1e-12


# ---- parts


def test_largest():
    P = np.random.default_rng(0).random((7, 7))
    np.testing.assert_array_equal(np.sort(P.ravel()[largest(P, 10)]), np.sort(P.ravel())[-10:])
    assert set(largest(P, 49)) == set(range(49))


def test_rise_is_the_difference_of_f():
    ot, eta, rng = make_ot("clouds", 10, 0), 20.0, np.random.default_rng(0)
    x, y, dz = rng.normal(scale=0.02, size=10), rng.normal(scale=0.02, size=10), rng.normal(scale=0.05, size=20)
    P = plan(ot.C, x, y, eta)
    expected = f(ot, eta, x + dz[:10], y + dz[10:]) - f(ot, eta, x, y)
    assert rise(P, gradient(P, ot.r, ot.c), dz, eta) == pytest.approx(expected, rel=1e-10)
    assert rise(P, gradient(P, ot.r, ot.c), 1e4 * np.abs(dz), eta) == -np.inf


def test_tail_mass():
    assert tail_mass(np.full((20, 20), 0.1), 60) == pytest.approx(1 - 3 / 20)
    assert tail_mass(np.eye(20), 60) == 0


def test_absorption_changes_nothing():
    ot, eta = make_ot("assignment", 15, 2), 600.0
    often, never = (sinkhorn(*ot, eta, 0.0, 60, absorb=absorb) for absorb in (1, 1000))
    np.testing.assert_allclose([often.x, often.y], [never.x, never.y], atol=1e-12)
    np.testing.assert_allclose(often.errors, never.errors, atol=1e-12)


def test_costs_of_any_size_do_not_vanish():
    """exp(-eta C) is zero everywhere here; shifting rows and columns of C leaves the plan as it was."""
    ot, eta = make_ot("assignment", 15, 1), 1200.0
    rows, columns = np.linspace(2, 5, 15), np.linspace(3, 1, 15)
    far = ot._replace(C=ot.C + rows[:, None] + columns)
    near, away = sinkhorn(*ot, eta, 0.0, 300), sinkhorn(*far, eta, 0.0, 300, y=columns)
    np.testing.assert_allclose(plan(far.C, away.x, away.y, eta), plan(ot.C, near.x, near.y, eta), atol=1e-10)


def test_accelerations_find_the_same_plan_sooner():
    ot, eta = make_ot("clouds", 30, 0), 100.0
    plain = sinkhorn(*ot, eta, 1e-11, 20_000)
    for solved in (sinkhorn(*ot, eta, 1e-11, 20_000, omega=1.5), eta_scaling(*ot, eta, 1e-11, 20_000)):
        assert solved.errors[-1] <= 1e-11
        assert len(solved.errors) < len(plain.errors)
        np.testing.assert_allclose(plan(ot.C, solved.x, solved.y, eta), plan(ot.C, plain.x, plain.y, eta), atol=1e-10)


def test_cost_tends_to_the_linear_program():
    ot = make_ot("assignment", 15, 0)
    value, _ = lp_ot(*ot)
    for eta in (30.0, 100.0, 300.0):
        solved, _ = SOLVERS["sns"](ot, eta, 1e-11, 0, 0, **SETTINGS["sns"])
        gap = np.vdot(ot.C, plan(ot.C, solved.x, solved.y, eta)) - value
        assert 0 <= gap <= np.log(15) / eta  # entropies of plans with uniform marginals lie between log n and 2 log n


def test_pot_finds_the_same_plan(monkeypatch):
    monkeypatch.setenv("POT_BACKEND_DISABLE_PYTORCH", "1")  # quick to import
    ot = pytest.importorskip("ot")
    for (C, r, c), eta in ((make_ot("assignment", 20, 0), 48.0), (image_pair(IMAGES, 0, 2), 60.0)):
        solved, _ = SOLVERS["sns"]((C, r, c), eta, 1e-12, 0, 0, **SETTINGS["sns"])
        peer = ot.sinkhorn(r, c, C, reg=1 / eta, method="sinkhorn_log", stopThr=1e-12, numItermax=20_000)
        np.testing.assert_allclose(plan(C, solved.x, solved.y, eta), peer, atol=1e-9)
    solved, _ = SOLVERS["sns"]((C, r, c), 2000.0, 1e-11, 0, 0, N1=200, N2=200, keep=25)
    assert np.vdot(C, plan(C, solved.x, solved.y, 2000.0)) == pytest.approx(ot.emd2(r, c, C), abs=2e-3)


# ---- runs


@pytest.mark.parametrize("method", SOLVERS)
def test_runs_reach_the_tolerance_or_count_as_the_cap(method):
    found = run(SMALL, method, SETTINGS.get(method, {}), [0, 1], Inputs(), "cpu")
    assert [row["seed"] for row in found.rows] == [0, 1] == [row["seed"] for row in found.timings]
    for row in found.rows:
        assert row["reached"] == (row["marginal_error"] <= 1e-10)
        assert (row["iterations"] == 5000) != row["reached"]
        trace = [t for t in found.traces if t["seed"] == row["seed"]]
        assert trace[-1]["error"] == row["marginal_error"]
        assert trace[0]["iteration"] == 1
    assert all(row["reached"] for row in found.rows) == (method != "sns_random")


def test_images_come_from_the_inputs():
    problem = {**SMALL, "images": "digits", "p": 1}
    (row,) = run(problem, "sns", SETTINGS["sns"], [3], Inputs({"digits": {"x": IMAGES}}), "cpu").rows
    ot = image_pair(IMAGES, 3, 1)
    solved = sinkhorn(*ot, 48, 1e-10, 5000)
    assert row["cost"] == pytest.approx(np.vdot(ot.C, plan(ot.C, solved.x, solved.y, 48)), abs=1e-9)


@pytest.mark.parametrize("method", ["sns", "sns_random", "sinkhorn", "warm_up"])
def test_splitting_the_seeds_changes_nothing(method):
    problem, settings = (WARM_UP if method == "warm_up" else SMALL), SETTINGS.get(method, {})
    whole = run(problem, method, settings, [0, 1], Inputs(), "cpu")
    parts = [run(problem, method, settings, [seed], Inputs(), "cpu") for seed in (0, 1)]
    assert whole.rows == parts[0].rows + parts[1].rows
    assert whole.traces == parts[0].traces + parts[1].traces


def test_warm_up_and_its_control():
    tails = {m: pd.DataFrame(run(WARM_UP, m, {}, [0], Inputs(), "cpu").rows) for m in ("warm_up", "constant_costs")}
    np.testing.assert_allclose(tails["constant_costs"]["s"], 1 - 3 / 20)
    s = tails["warm_up"].pivot(index="eta", columns="t", values="s")
    assert (s.loc[40] < s.loc[10]).all()


# ---- judging


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)


def results(sns: dict, random: dict | None = None) -> Evidence:
    """Sinkhorn at 1000 iterations and 1 s; SNS as told, {problem: (iterations, seconds)}, for five seeds."""
    rows, timings = [], []
    runs = {(p, "sinkhorn"): (1000, 1.0) for p in sns} | {(p, "sns"): v for p, v in sns.items()}
    runs |= {(p, "sns_random"): v for p, v in (random or {}).items()}
    for (problem, method), (iterations, seconds) in runs.items():
        for seed in range(5):
            here = {"problem": problem, "method": method, "seed": seed}
            rows.append({**here, "iterations": iterations - seed * (method != "sinkhorn"), "reached": 1})
            timings.append({**here, "cpu_s": seconds * (1 + 0.1 * seed)})
        timings.append({"problem": problem, "method": method, "seed": -1, "run_cpu_s": 9.0})
    return Evidence(pd.DataFrame(rows), timings=pd.DataFrame(timings))


def test_c1():
    judge = evidence.orders_of_magnitude_fewer_iterations
    found = results({"assignment": (10, 1)}, random={"assignment": (800, 1)})
    assert verdicts.verdict(judge(found)) == "replicated"
    assert verdicts.verdict(judge(found.standing_in("sns_random", "sns"))) == "not replicated"
    assert verdicts.verdict(judge(results({"assignment": (20, 1)}))) == "not replicated"
    found.rows.loc[(found.rows["method"] == "sns") & (found.rows["seed"] == 2), "iterations"] = 40
    assert [c.passed for c in judge(found)] == [True, False]


def test_c2():
    judge = evidence.fewer_iterations_between_images
    assert verdicts.verdict(judge(results({"l2": (100, 1), "l1": (500, 1)}))) == "replicated"
    assert [c.passed for c in judge(results({"l2": (110, 1), "l1": (500, 1)}))] == [False, True]
    assert [c.passed for c in judge(results({"l2": (100, 1), "l1": (510, 1)}))] == [True, False]


def test_c3():
    judge = evidence.faster
    assert verdicts.verdict(judge(results({"assignment": (10, 0.5)}))) == "replicated"
    assert verdicts.verdict(judge(results({"assignment": (10, 1.5)}))) == "not replicated"
    found = results({"assignment": (10, 0.5)})
    found.rows.loc[found.rows["method"] == "sns", "reached"] = 0  # stopped early: no time at all
    assert verdicts.verdict(judge(found)) == "not replicated"


def tails(s) -> Evidence:
    return Evidence(
        pd.DataFrame(
            {"problem": "warm-up", "method": "warm_up", "seed": seed, "eta": eta, "t": t, "s": s(eta, t)}
            for seed in range(3)
            for eta in (150, 300, 600, 1200)
            for t in (5, 20, 80)
        )
    )


def test_c4():
    judge = evidence.nearly_sparse_after_the_warm_up
    assert verdicts.verdict(judge(tails(lambda eta, t: 1 / eta + 1e-5 * t))) == "replicated"
    for s, passed in (
        (lambda eta, t: 60 / eta, [True, True, True]),
        (lambda eta, t: 61 / eta, [False, True, True]),
        (lambda eta, t: 0.01 * (eta == 600 and t == 5), [True, False, True]),
        (lambda eta, t: 0.001 * t, [True, True, False]),
    ):
        assert [c.passed for c in judge(tails(s))] == passed
