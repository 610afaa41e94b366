"""augmented-lagrangian-sketching: rough Newton steps on equality-constrained problems."""

import itertools

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.gmres import gmres
from papertrial.methods.merit_functions import ExactAugmentedLagrangian, ExactPenalty
from papertrial.methods.sketch_and_project import gaussian_vectors, iterates, kaczmarz
from papertrial.papers.convex.augmented_lagrangian_sketching import evidence
from papertrial.papers.convex.augmented_lagrangian_sketching.method import (
    CURVATURE,
    Budget,
    convexified,
    local_residuals,
    run,
    scaled_rows,
    solve,
    spectral_norm,
)
from papertrial.testbeds.hock_schittkowski import HOCK_SCHITTKOWSKI
from papertrial.testbeds.nlp import (
    kkt_matrix,
    least_squares_multipliers,
    logistic_regression,
    poisson_control,
    reduced_curvature,
    refined,
    residual,
)

EXACT = {"solver": "dense", "merit": "exact augmented Lagrangian"}
RK = {"solver": "rk", "merit": "exact augmented Lagrangian", "most_steps": 1e6}
DEGENERATE = ("HS46", "HS47", "HS49")


def rng(*seed):
    return np.random.default_rng(seed or 0)


def data(n=60, d=6):
    g = rng(1)
    return g.standard_normal((n, d)), np.sign(g.standard_normal(n))


PROBLEMS = [*HOCK_SCHITTKOWSKI.values(), logistic_regression("logistic", *data(), rng(2)), poisson_control(6, rng(3))]


def run_on(nlp, settings, tol=1e-8, **caps):
    return solve(nlp, settings, tol, Budget(**caps), 200, rng(4))


def near(nlp, seed=5):
    """A point off the start, with multipliers."""
    return nlp.x0 + 0.1 * rng(seed).standard_normal(len(nlp.x0)), rng(seed, 1).standard_normal(nlp.m)


def difference(function, x, h=1e-6):
    """Central differences; the last axis is x's."""
    return np.stack([(function(x + h * e) - function(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=-1)


# ---- what must hold


@pytest.mark.parametrize("nlp", PROBLEMS, ids=lambda p: p.name)
def test_an_exact_step_descends_and_the_merits_gradient_is_right(nlp):
    x, lam = near(nlp)
    n = len(x)
    at, second = nlp.first(x), nlp.second(x)
    H = convexified(second.of_f + second.of_c(lam), at.G)
    z = np.linalg.solve(kkt_matrix(H, at.G), -residual(at, lam))
    merit = ExactAugmentedLagrangian(eta1=1e6, eta2=1e-8)
    merit.look(at, second, lam)
    assert merit.slope(z) < 0

    merit = ExactAugmentedLagrangian(eta1=0.7, eta2=0.3)
    merit.look(at, second, lam)
    gradient = difference(lambda v: merit.value(nlp.first(v[:n]), v[n:]), np.concatenate([x, lam]))
    along = np.array([merit.slope(e) for e in np.eye(n + len(lam))])
    np.testing.assert_allclose(along, gradient, atol=1e-5 * max(1, np.abs(gradient).max()))


def test_kaczmarz_contracts_at_least_at_its_rate():
    g = rng(6)
    K, z_star = g.standard_normal((8, 8)), g.standard_normal(8)
    w, steps = -K @ z_star, 24
    start = ((z_star) ** 2).sum()
    ends = [next(iterates(kaczmarz(K, w, rng(7, i)), np.zeros(8), every=1, block=steps)) for i in range(500)]
    errors = ((np.stack(ends) - z_star) ** 2).sum(axis=2)  # (runs, steps)
    rate = 1 - np.linalg.svd(K, compute_uv=False)[-1] ** 2 / (K**2).sum()
    bound = start * rate ** np.arange(1, steps + 1)
    assert (errors.mean(axis=0) <= bound + 3 * errors.std(axis=0) / np.sqrt(500)).all()


def test_the_whole_system_at_once_is_solved_in_one_step():
    """S = I. A run of n projections in block form is Gram's system, and with the full Gram matrix the exact solve."""
    g = rng(8)
    K, w = g.standard_normal((6, 6)), g.standard_normal(6)
    z = g.standard_normal(6)
    z = z - K.T @ np.linalg.pinv(K @ K.T) @ (K @ z + w)
    np.testing.assert_allclose(z, np.linalg.solve(K, -w), atol=1e-10)
    # orthogonal rows: every row once, in any order, is the same
    Q = np.linalg.qr(K)[0]
    swept = next(iterates(lambda B: (Q, w, Q @ Q.T), g.standard_normal(6), every=6, block=6))[-1]
    np.testing.assert_allclose(swept, -Q.T @ w, atol=1e-12)


def test_exact_solves_converge_quadratically_and_a_quadratic_takes_one_unit_step():
    kkt = run_on(HOCK_SCHITTKOWSKI["HS77"], EXACT, tol=1e-13).kkt
    assert kkt[-2] < 1e-4 and kkt[-1] < 100 * kkt[-2] ** 2 + 1e-14
    trail = run_on(HOCK_SCHITTKOWSKI["HS6"], EXACT, tol=1e-12)
    assert trail.kkt[-1] <= 10 * trail.kkt[-2] ** 2 and trail.alpha[-1] == 1
    trail = run_on(HOCK_SCHITTKOWSKI["HS48"], EXACT)
    assert trail.alpha == [1.0] and trail.kkt[-1] < 1e-12


@pytest.mark.parametrize("nlp", HOCK_SCHITTKOWSKI.values(), ids=lambda p: p.name)
def test_the_known_optimum_is_found(nlp):
    trail = run_on(nlp, EXACT, tol=1e-4 if nlp.name in DEGENERATE else 1e-8)
    assert trail.f == pytest.approx(nlp.f_star, abs=1e-5)


@pytest.mark.parametrize("method", ["trust-constr", "SLSQP"])
@pytest.mark.parametrize("name", ["HS40", "HS77"])
def test_scipy_agrees(name, method):
    optimize = pytest.importorskip("scipy.optimize")
    nlp = HOCK_SCHITTKOWSKI[name]
    constraint = {"type": "eq", "fun": lambda x: nlp.first(x).c, "jac": lambda x: nlp.first(x).G}
    peer = optimize.minimize(
        lambda x: nlp.first(x).f, nlp.x0, jac=lambda x: nlp.first(x).g, constraints=[constraint], method=method
    )
    assert peer.fun == pytest.approx(run_on(nlp, EXACT).f, abs=1e-5)


# ---- more mathematics


@pytest.mark.parametrize("nlp", PROBLEMS, ids=lambda p: p.name)
def test_derivatives(nlp):
    x, lam = near(nlp, 9)
    at, second = nlp.first(x), nlp.second(x)
    scale = max(1, np.abs(at.G).max())
    np.testing.assert_allclose(at.g, difference(lambda v: nlp.first(v).f, x), atol=1e-5)
    np.testing.assert_allclose(at.G, difference(lambda v: nlp.first(v).c, x), atol=1e-5 * scale)
    np.testing.assert_allclose(second.of_f, difference(lambda v: nlp.first(v).g, x), atol=1e-4)
    of_c = difference(lambda v: nlp.first(v).G.T @ lam, x)
    np.testing.assert_allclose(second.of_c(lam), of_c, atol=1e-4 * scale)


@pytest.mark.parametrize("nlp", HOCK_SCHITTKOWSKI.values(), ids=lambda p: p.name)
def test_the_known_solution_is_one(nlp):
    lam = least_squares_multipliers(nlp.first(nlp.x_star))
    assert np.linalg.norm(residual(nlp.first(nlp.x_star), lam)) < 1e-4
    assert nlp.first(nlp.x_star).f == pytest.approx(nlp.f_star, abs=1e-6)
    if nlp.name in DEGENERATE:
        second = nlp.second(nlp.x_star)
        assert reduced_curvature(second.of_f + second.of_c(lam), nlp.first(nlp.x_star).G) < 1e-8
    else:
        x, lam = refined(nlp)
        second = nlp.second(x)
        assert np.linalg.norm(residual(nlp.first(x), lam)) < 1e-12
        assert reduced_curvature(second.of_f + second.of_c(lam), nlp.first(x).G) > CURVATURE


def test_blocks_of_projections_are_the_projections_one_by_one():
    g = rng(10)
    K, w = g.standard_normal((7, 7)), g.standard_normal(7)
    for scheme in (kaczmarz, gaussian_vectors):
        A, b, _ = scheme(K, w, rng(11))(12)
        z, path = np.zeros(7), []
        for a, beta in zip(A, b, strict=True):
            z = z - a * (a @ z + beta) / (a @ a)
            path.append(z)
        found = next(iterates(scheme(K, w, rng(11)), np.zeros(7), every=3, block=12))
        np.testing.assert_allclose(found, path[2::3], atol=1e-10)


def test_kaczmarz_draws_rows_by_their_length():
    K = np.diag([1.0, 2.0, 3.0])
    draw = kaczmarz(K, np.zeros(3), rng(12))
    share = np.mean([(draw(100).A != 0).mean(axis=0) for _ in range(300)], axis=0)
    np.testing.assert_allclose(share, np.array([1, 4, 9]) / 14, atol=0.01)


def test_gmres_is_optimal_in_its_krylov_space_and_ends_exact():
    g = rng(13)
    A, b = g.standard_normal((9, 9)), g.standard_normal(9)
    krylov = [b]
    for z in gmres(A, b):
        basis = np.stack(krylov, axis=1)
        best = basis @ np.linalg.lstsq(A @ basis, b, rcond=None)[0]
        assert np.linalg.norm(A @ z - b) <= np.linalg.norm(A @ best - b) + 1e-8
        krylov.append(A @ krylov[-1] / np.linalg.norm(A @ krylov[-1]))
    assert len(krylov) == 10
    np.testing.assert_allclose(A @ z, b, atol=1e-8)
    assert len(list(gmres(np.eye(5), np.ones(5)))) == 1


def test_penalty_slope_is_the_directional_derivative_of_an_exact_step():
    nlp = HOCK_SCHITTKOWSKI["HS40"]
    x, lam = near(nlp)
    at, second = nlp.first(x), nlp.second(x)
    z = np.linalg.solve(kkt_matrix(np.eye(4), at.G), -residual(at, lam))
    merit = ExactPenalty(mu=3.0)
    merit.look(at, second, lam)
    h = 1e-6
    slope = (merit.value(nlp.first(x + h * z[:4]), lam) - merit.value(at, lam)) / h
    assert merit.slope(z) == pytest.approx(slope, abs=1e-4)


def test_curvature_and_norm():
    H, G = np.diag([-3.0, 1, 2]), np.array([[0.0, 0, 1]])
    assert reduced_curvature(H, G) == pytest.approx(-3)
    assert reduced_curvature(convexified(H, G), G) >= CURVATURE
    assert convexified(np.eye(3), G) is not None and (convexified(np.eye(3), G) == np.eye(3)).all()
    assert reduced_curvature(np.eye(2), np.eye(2)) == np.inf
    S = rng(14).standard_normal((12, 12))
    assert spectral_norm(S + S.T) == pytest.approx(np.linalg.norm(S + S.T, 2), rel=0.05)
    scaled, right = scaled_rows(S, S @ np.ones(12))
    np.testing.assert_allclose(np.linalg.solve(scaled, right), 1)


def test_caps_end_a_run():
    nlp, budget = HOCK_SCHITTKOWSKI["HS39"], Budget(most_steps=500)
    trail = solve(nlp, RK, 1e-8, budget, 100, rng())
    assert 500 <= budget.steps < 1000 and trail.kkt[-1] > 1e-8
    budget = Budget(most_flops=1e4)
    assert solve(nlp, EXACT, 1e-8, budget, 100, rng()).kkt[-1] > 1e-8


def test_without_augmentation_the_search_fails():
    trail = run_on(HOCK_SCHITTKOWSKI["HS40"], {"solver": "dense", "merit": "Lagrangian"}, tol=1e-4)
    assert trail.kkt[-1] > 0.1 and len(trail.alpha) < 5


@pytest.mark.parametrize(
    "settings", [{"solver": "gmres", "merit": "l1 penalty", "mu": 1}, {}, {**EXACT, "solver": "gmres"}, RK]
)
def test_all_methods_solve_an_easy_problem(settings):
    for nlp in (HOCK_SCHITTKOWSKI["HS42"], PROBLEMS[-2]):
        assert run_on(nlp, settings, tol=1e-6).kkt[-1] <= 1e-6


def test_ratios_near_the_solution_are_what_is_asked_for():
    for shrink in (1.0, 0.5):
        kkt = np.array(local_residuals(HOCK_SCHITTKOWSKI["HS42"], 0.1, shrink, 1e-10, 40, rng(15)))
        ratio = kkt[2:] / kkt[1:-1]
        assert (ratio <= 0.1 * shrink ** np.arange(1, len(ratio) + 1) + 5 * kkt[1:-1]).all()


# ---- runs


CLASSICS = {"task": "classics", "nlps": ["HS40", "HS48"], "degenerate": [], "loose": 1e-4, "tight": 1e-8, "most": 50}
FLOPS = {"task": "flops", "tol": 1e-4, "most": 50, "most_flops": 1e7, "most_at_once": 1000}
RUNS = [
    ({**CLASSICS, "most_at_once": 1e5}, RK),
    ({**CLASSICS, "most_at_once": 1e4}, {**RK, "solver": "gv"}),
    ({"task": "local", "nlps": ["HS6", "HS40"], "tol": 1e-8, "most": 40}, {"delta": 0.1, "shrink": 0.5}),
    ({**FLOPS, "family": "poisson", "sizes": [{"points": 5}]}, {"solver": "gmres", "merit": "l1 penalty", "mu": 1}),
    ({**FLOPS, "family": "poisson", "sizes": [{"points": 5}]}, {}),
    ({**FLOPS, "family": "logistic", "sizes": [{"data": "t", "labels": [3, 8], "width": 8, "samples": 40}]}, RK),
]


@pytest.mark.parametrize(("problem", "settings"), RUNS)
def test_splitting_the_seeds_changes_nothing(problem, settings):
    g = rng(16)
    inputs = Inputs({"t": {"x": g.standard_normal((90, 6)), "y": g.choice([1, 3, 8], size=90)}}, {})

    def rows(seeds):
        return run({"name": "p", **problem}, "m", settings, seeds, inputs, "cpu").rows

    whole = rows([0, 3])
    assert whole == rows([0]) + rows([3])
    assert all(np.isfinite(v) for row in whole for v in row.values() if not isinstance(v, str))


# ---- judging


def table(rk=1.0, gv=1.0, unit=5, sharp=0.003, rising=False, cheaper=2.0):
    """Handmade results."""
    rows = []

    def add(problem, method, nlp, seed, **values):
        rows.append({"problem": problem, "method": method, "nlp": nlp, "seed": seed, **values})

    for i, (nlp, seed) in enumerate(itertools.product(("HS6", "HS7"), range(5))):
        add("classics", "rk", nlp, seed, reached=int(i < 10 * rk), last_steps=5, unit_steps=unit)
        add("classics", "gv", nlp, seed, reached=int(i < 10 * gv), last_steps=5, unit_steps=5)
        add("local", "rk-fixed", nlp, seed, third_last=0.09, second_last=0.1, last=0.095)
        second = sharp / 2 if rising else 2 * sharp
        add("local", "rk-sharpened", nlp, seed, third_last=4 * sharp, second_last=second, last=sharp)
    for problem, seed in itertools.product(("logistic", "poisson"), range(5)):
        for method, flops in (("rk", 1e6), ("gmres", cheaper * 1e6), ("sqp", 9e6)):
            add(problem, method, f"{problem}-1", seed, flops=flops * (1 + 0.05 * seed * (method == "gmres")))
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("converges_globally", {}, "replicated"),
    ("converges_globally", {"rk": 0.8}, "not replicated"),
    ("converges_globally", {"gv": 0.7}, "not replicated"),
    ("unit_steps", {}, "replicated"),
    ("unit_steps", {"unit": 3}, "not replicated"),
    ("superlinear", {}, "replicated"),
    ("superlinear", {"sharp": 0.02}, "not replicated"),
    ("superlinear", {"rising": True}, "not replicated"),
    ("fewer_flops", {}, "replicated"),
    ("fewer_flops", {"cheaper": 0.5}, "not replicated"),
    ("fewer_flops", {"cheaper": 0.91}, "inconclusive"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 50)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_the_fixed_accuracy_in_the_sharpened_ones_place_is_not_superlinear(monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 20)
    swapped = table().standing_in("rk-fixed", "rk-sharpened")
    assert verdict(evidence.superlinear(swapped)) == "not replicated"
