"""sparse-optimal-transport: duals with at most k nonzeros a column, against brute force, limits and a peer."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from papertrial.engine import verdicts
from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.methods.dual_ascent import adam, lbfgs
from papertrial.papers.convex.sparse_optimal_transport import evidence
from papertrial.papers.convex.sparse_optimal_transport.method import (
    METHODS,
    dual,
    h_star,
    h_star_b,
    onto_simplices,
    run,
    semi_dual,
    semi_dual_plan,
)
from papertrial.testbeds.palettes import palette, palette_pair
from papertrial.testbeds.routing import expert_choice, keep_largest, token_batch, unrouted
from papertrial.testbeds.transport import OT, lp_ot, make_ot, uniform

DO = {"cap": 200, "polish": 500}
CLOUDS = {"name": "clouds-2", "family": "clouds", "n": 12, "d": 2, "shift": 1.0, "cap": 50, "polish": 100}
ROUTER = {"name": "router", "family": "router", "tokens": 24, "experts": 3, "cap": 50, "polish": 100}
SETTINGS = {"plans": [[10.0, [1, 2, 64]], [0.001, [1]]], "epsilons": [0.1, 1], "sweeps": 100}
IMAGES = np.random.default_rng(0).integers(0, 17, (40, 4, 4)).astype(np.uint8)


def uneven(m=8, n=6, seed=0) -> OT:
    rng = np.random.default_rng(seed)
    return OT(rng.random((m, n)), rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n)))


# ---- what must hold


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_projection_against_all_supports(k):
    rng, gamma = np.random.default_rng(k), 2.0
    s, b = rng.normal(size=(8, 5)), rng.uniform(0.1, 2, 5)
    h, T = h_star_b(s, b, k, gamma)
    for j in range(5):
        best = -np.inf
        for support in map(list, combinations(range(8), k)):
            v = np.sort(s[support, j])[::-1]
            t = onto_simplices(v[:, None] / gamma, b[j : j + 1])[:, 0]
            best = max(best, v @ t - gamma / 2 * t @ t)
        assert h[j] == pytest.approx(best, abs=1e-10)
        assert T[:, j] @ s[:, j] - gamma / 2 * T[:, j] @ T[:, j] == pytest.approx(best, abs=1e-10)


def test_simplex_projection_meets_its_optimality_conditions():
    v, b = -np.sort(-np.random.default_rng(1).normal(size=(7, 30)), axis=0), np.linspace(0.1, 5, 30)
    t = onto_simplices(v, b)
    np.testing.assert_allclose(t.sum(axis=0), b, atol=1e-13)
    for j in range(30):  # v - t is one number on the support and less elsewhere
        on = t[:, j] > 0
        assert np.ptp((v - t)[on, j]) < 1e-12
        assert (v[~on, j] <= (v - t)[on, j].max() + 1e-12).all()


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_gradients_against_finite_differences(k):
    ot, gamma, rng, e = uneven(), 0.5, np.random.default_rng(3), 1e-6
    for f, x in ((dual(ot, k, gamma), rng.normal(size=14)), (semi_dual(ot, k, gamma), rng.normal(size=8))):
        slopes = [(f(x + e * d)[0] - f(x - e * d)[0]) / (2 * e) for d in np.eye(len(x))]
        np.testing.assert_allclose(f(x)[1], slopes, atol=1e-7)
    s = rng.normal(size=(8, 1))
    for h in (lambda s: h_star(s, k, gamma), lambda s: h_star_b(s, np.array([0.7]), k, gamma)):
        slopes = [(h(s + e * d[:, None])[0] - h(s - e * d[:, None])[0]) / (2 * e) for d in np.eye(8)]
        np.testing.assert_allclose(h(s)[1], slopes, atol=1e-7)


def test_dual_falls_with_k_and_bounds_feasible_plans():
    ot, gamma, n = make_ot("clouds", 10, 0), 10.0, 10
    values = [semi_dual_plan(ot, k, gamma, DO)[1].value for k in (1, 2, 3, 5, 10)]
    assert (np.diff(values) <= 1e-9).all()
    permutations = (np.eye(n)[np.random.default_rng(seed).permutation(n)] / n for seed in range(50))
    worst = min(np.vdot(T, ot.C) + gamma / 2 * np.vdot(T, T) for T in permutations)  # feasible for every k
    assert max(values) <= worst
    alpha = np.random.default_rng(0).normal(size=n)
    falls = [semi_dual(ot, k, gamma)(alpha)[0] for k in range(1, n + 1)]
    assert (np.diff(falls) <= 1e-12).all()


@pytest.mark.parametrize("gamma", [1e-3, 10.0])
@pytest.mark.parametrize("ot", [make_ot("clouds", 8, 0), uneven()], ids=["clouds", "uneven"])
def test_one_nonzero_has_the_value_of_the_linear_program(ot, gamma):
    _, found = semi_dual_plan(ot, 1, gamma, DO | {"polish": 3000})
    assert found.value == pytest.approx(lp_ot(*ot)[0] + gamma / 2 * ot.c @ ot.c, abs=1e-6)


def test_k_of_m_is_quadratic_transport_and_columns_are_exact():
    for ot in (make_ot("clouds", 12, 1), uneven()):
        T, found = semi_dual_plan(ot, len(ot.r), 1.0, DO)
        Q, told, _ = METHODS["quadratic"](ot, 0, 1.0, DO)
        assert found.value == pytest.approx(told["value"], rel=1e-9)
        assert found.value == pytest.approx(np.vdot(T, ot.C) + 0.5 * np.vdot(T, T), rel=1e-8)  # no duality gap
        np.testing.assert_allclose(T, Q, atol=1e-6)
    for k in (1, 2, 5, 8):
        T, _ = semi_dual_plan(uneven(), k, 1.0, DO | {"polish": 10})
        np.testing.assert_allclose(T.sum(axis=0), uneven().c, atol=1e-12)
        assert (T > 0).sum(axis=0).max() <= k


def test_strong_regularisation_gives_the_least_norm_coupling():
    C, a, b = make_ot("assignment", 6, 0)[0], np.linspace(0.9, 1.1, 6) / 6, uniform(6)
    T, _ = semi_dual_plan(OT(C, a, b), 6, 1e7, DO)
    np.testing.assert_allclose(T, a[:, None] / 6 + b / 6 - 1 / 36, atol=1e-6)


def test_pot_finds_the_same_value(monkeypatch):
    monkeypatch.setenv("POT_BACKEND_DISABLE_PYTORCH", "1")  # quick to import
    pytest.importorskip("ot")
    from ot.smooth import smooth_ot_semi_dual

    ot, gamma = make_ot("clouds", 12, 0), 10.0
    for k in (2, 4, 12):
        _, log = smooth_ot_semi_dual(
            *(ot.r, ot.c, ot.C), reg=gamma, reg_type="sparsity_constrained", max_nz=k, numItermax=5000, log=True
        )
        peer = semi_dual(ot, k, gamma)(log["alpha"])[0]
        assert semi_dual_plan(ot, k, gamma, DO)[1].value == pytest.approx(peer, rel=1e-4)


# ---- parts


def test_adam_leaves_the_kink_where_lbfgs_stays():
    def ridge(x):  # -(|x0 - 1| + 5 |x1 - x0|), best at (1, 1)
        s, q = np.sign(x[0] - 1), np.sign(x[1] - x[0])
        return -abs(x[0] - 1) - 5 * abs(x[1] - x[0]), np.array([5 * q - s, -5 * q])

    stuck = lbfgs(ridge, np.array([0.8, 0.8]), 1000)
    assert stuck.value == stuck.values.max() < -0.1
    assert adam(ridge, stuck, 3000).value > -1e-3
    smooth = lbfgs(lambda x: (-((x - 2) ** 2).sum(), -2 * (x - 2)), np.zeros(3), 100)
    np.testing.assert_allclose(smooth.x, 2, atol=1e-8)


def test_keep_largest_and_expert_choice():
    T = np.array([[0.1, 0.3], [0.2, 0.1], [0.3, 0.2]])
    np.testing.assert_allclose(keep_largest(T, 1), [[0, 0.6], [0, 0], [0.6, 0]])
    np.testing.assert_allclose(keep_largest(T, 3), T)
    assert unrouted(keep_largest(T, 1)) == pytest.approx(1 / 3)
    ot = OT(1 - T, uniform(3), uniform(2))
    np.testing.assert_allclose(expert_choice(ot, 2), [[0, 0.25], [0.25, 0], [0.25, 0.25]])


def test_token_batches_share_the_experts():
    whole = token_batch(IMAGES, 40, 3, 0).C
    again = token_batch(IMAGES, 40, 3, 1).C  # all tokens in another order
    assert (whole.min(), whole.max()) == (0, 1)
    np.testing.assert_allclose(np.sort(whole, axis=0), np.sort(again, axis=0), atol=1e-12)
    assert not np.allclose(whole, again)


def test_palettes():
    two = np.random.default_rng(1).integers(0, 6, (10, 10, 3)).astype(np.uint8)
    two[:, 3:] += 250
    colours, mass = palette(two, 2, 0)
    np.testing.assert_allclose(np.sort(colours, axis=0), [[0, 0, 0], [1, 1, 1]], atol=0.02)
    assert mass[colours[:, 0].argmax()] == pytest.approx(0.7, abs=0.03)
    assert mass.sum() == pytest.approx(1)
    other = np.random.default_rng(0).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    ot, (x, y) = palette_pair(two, other, 4, 0)
    assert ot.C.shape == (len(x), len(y)) == (len(ot.r), len(ot.c))
    assert ot.C.max() == 1 and ot.r.min() > 0 and ot.c.min() > 0


# ---- runs


@pytest.mark.parametrize("method", METHODS)
def test_splitting_the_seeds_changes_nothing(method):
    problem = ROUTER if "greedy" in method else CLOUDS
    whole, *parts = (
        run(problem, method, SETTINGS, s, Inputs({"digits": {"x": IMAGES}}), "cpu") for s in ([3, 4], [3], [4])
    )
    assert whole.rows == parts[0].rows + parts[1].rows
    assert whole.traces == parts[0].traces + parts[1].traces
    assert {(row["gamma"], row["k"]) for row in whole.rows} >= {(10.0, 2), (0.001, 1)}


def test_the_control_ignores_k():
    rows = run(CLOUDS, "k_ignored", SETTINGS, [0], Inputs(), "cpu").rows
    assert {row["evaluations"] for row in rows if row["gamma"] == 10} == {rows[0]["evaluations"]}
    sparse = run(CLOUDS, "sparse", SETTINGS, [0], Inputs(), "cpu").rows
    assert [row["k"] for row in sparse] == [1, 2, 12, 1]
    assert sparse[2]["evaluations"] == rows[2]["evaluations"]


def test_evaluations_are_counted_or_capped():
    _, told, gaps = METHODS["sparse"](make_ot("clouds", 12, 0), 12, 10.0, DO)
    n = told["evaluations"]
    assert told["reached"] and gaps[n - 1] <= 1e-4 < gaps[n - 2]
    _, told, _ = METHODS["sparse"](make_ot("clouds", 12, 0), 12, 10.0, DO | {"cap": n - 1})
    assert (told["evaluations"], told["reached"]) == (n - 1, 0)


def test_palettes_are_recoloured():
    photographs = {
        n: np.random.default_rng(i).integers(0, 256, (9, 9, 3)) for i, n in enumerate(("astronaut", "coffee"))
    }
    problem = {**CLOUDS, "family": "palettes", "n": 5}
    found = run(problem, "sparse", {"plans": [[10.0, [1, 5]]]}, [7], Inputs({"photographs": photographs}), "cpu")
    assert set(found.state) == {"7/source", "7/target", "7/k=1", "7/k=5"}
    moved, target = found.state["7/k=5"], found.state["7/target"]
    assert (moved >= target.min(axis=0) - 1e-9).all() and (moved <= target.max(axis=0) + 1e-9).all()


# ---- judging


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)


def table(values, problems=("clouds-2", "clouds-16"), seeds=5) -> Evidence:
    """Rows from {(method, gamma, k): {metric: number}}, slightly different from seed to seed."""
    rows = [
        {"problem": p, "method": m, "gamma": g, "k": k, "seed": s} | {n: v * (1 + 1e-9 * s) for n, v in metrics.items()}
        for p in problems
        for s in range(seeds)
        for (m, g, k), metrics in values.items()
    ]
    return Evidence(pd.DataFrame(rows))


def test_c1():
    judge = evidence.larger_k_is_solved_faster
    fast = {("sparse", 10.0, k): {"evaluations": round(100 / k)} for k in (1, 2, 4, 64)}
    constant = {("k_ignored", 10.0, k): {"evaluations": 10} for k in (1, 2, 4, 64)}
    found = table(fast | constant | {("sparse", 0.001, 1): {"evaluations": 3}})
    assert verdicts.verdict(judge(found)) == "replicated"
    control = judge(found.standing_in("k_ignored", "sparse"))
    assert [c.estimate for c in control] == [0, 1] and verdicts.verdict(control) == "not replicated"
    flat = {("sparse", 10.0, k): {"evaluations": n} for k, n in ((1, 17), (2, 14), (4, 13), (64, 10))}
    assert [c.passed for c in judge(table(flat))] == [True, False]
    with pytest.raises(LookupError):
        judge(table(constant))


def test_spearman_with_ties():
    assert evidence.spearman(np.array([9.0, 5, 5, 1])) == pytest.approx(-0.9486832980505138)
    assert evidence.spearman(np.full(4, 2.0)) == 0


def test_c2():
    judge = evidence.sparse_plans_nearly_meet_the_rows
    truncated = {(m, 10.0, k): {"r": 0.2, "cost": 1.0} for m in ("truncated", "truncated_control") for k in (2, 4, 8)}

    def plans(r, cost):
        return table(truncated | {("sparse", 10.0, k): {"r": r, "cost": cost} for k in (1, 2, 4, 8)})

    criteria = judge(plans(0.09, 1.04))
    assert len(criteria) == 12 and verdicts.verdict(criteria) == "replicated"
    assert verdicts.verdict(judge(plans(0.11, 1.04))) == "not replicated"
    assert verdicts.verdict(judge(plans(0.09, 1.06))) == "not replicated"
    assert verdicts.verdict(judge(plans(0, 1).standing_in("truncated_control", "sparse"))) == "not replicated"


def test_c3():
    judge = evidence.between_linear_and_quadratic

    def values(whole, single, nonzeros):
        return table(
            {
                ("sparse", 10.0, 1): {"value": 9.0},
                ("sparse", 10.0, 64): {"value": whole},
                ("sparse", 0.001, 1): {"value": single},
                ("quadratic", 10.0, 64): {"value": 1.0, "nonzeros_max": nonzeros},
                ("linear", 10.0, 1): {"value": 0.5},
            }
        )

    linear = 0.5 + 0.001 / 128
    assert verdicts.verdict(judge(values(1 + 9e-6, linear + 0.0049, 3))) == "replicated"
    assert [c.passed for c in judge(values(1 + 2e-5, linear, 3))] == [False, True, True]
    assert [c.passed for c in judge(values(1, linear - 0.006, 3))] == [True, False, True]
    assert [c.passed for c in judge(values(1, linear, 2))] == [True, True, False]


def test_c4():
    judge = evidence.routes_as_well_as_sinkhorn

    def routers(cost, left_out):
        greedy = {"cost": 0.4, "unrouted": 0.1}
        return table(
            {
                ("sparse", 1.0, 32): {"cost": cost, "unrouted": left_out},
                ("sinkhorn_truncated", 1.0, 32): {"cost": 0.4, "unrouted": 0.02},
                ("greedy", 1.0, 32): greedy,
                ("greedy_control", 1.0, 32): greedy,
            },
            problems=["router"],
        )

    assert verdicts.verdict(judge(routers(0.405, 0.025))) == "replicated"
    assert [c.passed for c in judge(routers(0.41, 0.02))] == [False, True, True]
    assert [c.passed for c in judge(routers(0.4, 0.04))] == [True, False, True]
    control = judge(routers(0.4, 0).standing_in("greedy_control", "sparse"))
    assert [c.passed for c in control] == [True, False, False]
