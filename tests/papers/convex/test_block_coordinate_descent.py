"""block-coordinate-descent: rules and steps, forests as blocks, and the l1 penalty."""

import networkx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from papertrial.engine import verdicts
from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.methods import block_rules as rules
from papertrial.methods.forest import greedy_forest, solve_forest
from papertrial.methods.l1_blocks import cyclic_path, fista_path, identify, prox_gradient, two_metric
from papertrial.methods.sparse_regression import shrink
from papertrial.papers.convex.block_coordinate_descent import evidence
from papertrial.papers.convex.block_coordinate_descent.method import CHOICES, SMOOTH, descend, run
from papertrial.testbeds import coordinate_descent as models
from papertrial.testbeds import label_propagation as graphs

SMALL = {
    "squares": models.least_squares(60, 20, np.random.default_rng(0)),
    "logistic": models.logistic(60, 20, np.random.default_rng(1)),
    "softmax": models.softmax(60, 8, np.random.default_rng(2), c=5),
}
DATASETS = {
    "digits": {"x": np.random.default_rng(0).integers(0, 17, (50, 4, 4)).astype(np.uint8), "y": np.arange(50) % 10},
    "spam": {"x": np.random.default_rng(1).random((40, 7)), "y": np.arange(40) % 2},
}


def tree(m: int, seed: int) -> sparse.csr_array:
    """A positive definite matrix whose graph is a random forest of a few trees."""
    rng = np.random.default_rng(seed)
    H = np.zeros((m, m))
    for v in range(1, m):
        if rng.random() < 0.9:
            H[v, rng.integers(v)] = rng.uniform(-1, 1)
    H += H.T
    order = rng.permutation(m)
    return sparse.csr_array((H + np.diag(np.abs(H).sum(axis=1) + rng.uniform(0.1, 1, m)))[order][:, order])


# ---- what must hold


def test_one_block_with_matrix_step_solves_least_squares():
    model = SMALL["squares"]
    gaps = descend(model, SMOOTH["gsq"](model, 20, 0), models.minimum(model), 1, 1, 0)
    assert abs(gaps[-1]) < 1e-12


def test_block_size_one_is_the_classical_rule():
    model, x = SMALL["logistic"], np.random.default_rng(0).normal(scale=0.01, size=20)
    Z = model.predict(x)
    g = model.gradient(x, Z)
    expected = (np.abs(g) / np.sqrt(model.L)).argmax()
    for method in ("gsl", "variable_gsd", "gsq"):
        block, step = SMOOTH[method](model, 1, 0)(x, Z, g)
        assert block == [expected]
        assert step == pytest.approx(-g[block] / model.L[block])


@pytest.mark.parametrize("tau", [2, 5])
def test_gsq_guarantees_the_decrease_of_a_quadratic(tau):
    model, x = SMALL["squares"], np.random.default_rng(0).normal(size=20)
    Z, at = model.predict(x), rules.sorted_partition(model, tau)
    g, here = model.gradient(x, Z), model.value(x, Z)
    falls = []
    for b, block in enumerate(at.blocks):
        there = x.copy()
        there[block] += rules.matrix_step(model, at, b, x, Z, g[block])
        falls.append(here - model.value(there, model.predict(there)))
        assert falls[-1] == pytest.approx(0.5 * g[block] @ at.inverse[b] @ g[block], rel=1e-10)
    assert rules.gsq(at, np.random.default_rng())(g[at.blocks]) == np.argmax(falls)


@pytest.mark.parametrize("seed", range(5))
def test_forest_solve_is_the_dense_solve(seed):
    H, right = tree(40, seed), np.random.default_rng(seed).normal(size=40)
    x, operations = solve_forest(H, right)
    np.testing.assert_allclose(x, np.linalg.solve(H.toarray(), right), atol=1e-10)
    assert operations <= 5 * 40


def test_a_cycle_is_no_forest():
    ring = sparse.csr_array(graphs.lattice(2) + 5 * sparse.eye_array(4))
    with pytest.raises(ValueError, match="cycle"):
        solve_forest(ring, np.ones(4))


@pytest.mark.parametrize("method", SMOOTH)
@pytest.mark.parametrize("name", SMALL)
def test_f_never_rises(method, name):
    if name == "softmax" and method == "gsq_newton":
        pytest.skip("Newton steps are for one class")
    model = SMALL[name]
    gaps = descend(model, SMOOTH[method](model, 4, 0), 0.0, 120, 120, 0)
    assert np.diff(gaps).max() <= 1e-13 and gaps[-1] < gaps[0] < 1 + 1e-13


@pytest.mark.parametrize("loss", ["squares", "logistic"])
def test_prox_steps_stay_exactly_at_stationary_points(loss):
    model = models.sparse_regression(40, 30, loss, np.random.default_rng(0), nonzeros=4)
    lam = 0.2 * models.largest_penalty(model)
    solution = models.l1_minimum(model, lam)

    def residual(x):
        g = model.gradient(x, model.predict(x))
        return np.abs(shrink(x - g / model.L, lam / model.L) - x).max()

    assert residual(solution) < 1e-14
    g = model.gradient(solution, model.predict(solution))
    on = solution != 0
    np.testing.assert_allclose(g[on], -lam * np.sign(solution[on]), atol=1e-11)
    assert np.abs(g[~on]).max() < lam
    for x in (np.zeros(30), solution + 1e-3, np.where(solution == 0, 0, solution + 1e-4)):
        assert residual(x) > 1e-6
    assert residual(identify(model, lam, 5, 600)[0]) > 1e-14  # the first with the support isn't the solution yet


# ---- parts


@pytest.mark.parametrize("name", SMALL)
def test_gradients_hessians_and_bounds(name):
    model, rng, e = SMALL[name], np.random.default_rng(3), 1e-6
    x = rng.normal(scale=0.02, size=model.size)

    def f(x):
        return model.value(x, model.predict(x))

    slopes = [(f(x + e * d) - f(x - e * d)) / (2 * e) for d in np.eye(model.size)]
    np.testing.assert_allclose(model.gradient(x, model.predict(x)), slopes, rtol=1e-6, atol=1e-4)

    def g(x):
        return model.gradient(x, model.predict(x))

    block = rng.choice(model.size, 6, replace=False)
    hessian = np.array([(g(x + e * d) - g(x - e * d)) / (2 * e) for d in np.eye(model.size)[block]])[:, block]
    if model.c == 1:
        np.testing.assert_allclose(model.hessian(model.predict(x), block), hessian, rtol=1e-5, atol=1e-3)
    slack = np.linalg.eigvalsh(model.bounds(block) - (hessian + hessian.T) / 2)
    assert slack.min() > -1e-6 * model.L.max()
    np.testing.assert_allclose(np.diag(model.bounds(block)), model.L[block])
    Z = model.predict(x)
    model.move(Z, block, np.arange(6.0))
    moved = x.copy()
    moved[block] += np.arange(6.0)
    np.testing.assert_allclose(Z, model.predict(moved), atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_minimum_is_stationary(name):
    model = SMALL[name]
    low = models.minimum(model)
    gaps = rules.accelerated(model, low, 800)
    assert -1e-10 < gaps[-1] < 1e-4


def test_cyclic_visits_every_block_once_in_a_pass():
    model = SMALL["squares"]
    at = rules.sorted_partition(model, 4)
    turn = rules.cyclic(at, np.random.default_rng(0))
    visits = [turn(None) for _ in range(10)]
    assert sorted(visits[:5]) == [0, 1, 2, 3, 4] and visits[5:] == visits[:5]
    assert visits[:5] != [0, 1, 2, 3, 4]
    assert (np.diff(model.L[at.blocks].ravel()) <= 0).all()


def test_random_rules_draw_by_their_weights():
    at = rules.Partition(np.zeros((3, 1), int), np.ones((3, 1, 1)), np.array([1.0, 2.0, 7.0]), np.ones((3, 1, 1)))
    for rule, shares in ((rules.uniform, [1 / 3] * 3), (rules.proportional, [0.1, 0.2, 0.7])):
        pick = rule(at, np.random.default_rng(0))
        np.testing.assert_allclose(np.bincount([pick(None) for _ in range(3000)]) / 3000, shares, atol=0.03)


def test_the_permuted_bounds_change_the_rule_and_not_the_step():
    model, x = SMALL["squares"], np.zeros(20)
    g = model.gradient(x, model.predict(x))
    at = rules.sorted_partition(model, 2)
    same = {float(s @ s * at.L[b] ** 2 - g[at.blocks[b]] @ g[at.blocks[b]]) for b, s in _steps(model, g)}
    assert max(map(abs, same)) < 1e-6
    chosen = {rules.gsl_permuted(at, np.random.default_rng(seed))(g[at.blocks]) for seed in range(20)}
    assert len(chosen) > 1


def _steps(model, g):
    for seed in range(5):
        block, step = SMOOTH["gsl_permuted"](model, 2, seed)(None, None, g)
        b = np.flatnonzero((rules.sorted_partition(model, 2).blocks == block).all(axis=1))[0]
        yield b, step


@pytest.mark.parametrize("seed", range(3))
def test_greedy_forests_are_maximal_forests(seed):
    H = sparse.csr_array(graphs.lattice(8) + 5 * sparse.eye_array(64))
    block = greedy_forest(H, np.random.default_rng(seed).random(64))
    graph = networkx.grid_2d_graph(8, 8)
    names = sorted(graph)
    assert networkx.is_forest(graph.subgraph([names[v] for v in block]))
    for v in set(range(64)) - set(block.tolist()):
        assert not networkx.is_forest(graph.subgraph([names[u] for u in [*block, v]]))
    assert len(greedy_forest(H, np.ones(64), 10)) == 10


def test_partitions_of_the_lattice_are_forests():
    graph, names = networkx.grid_2d_graph(7, 7), sorted(networkx.grid_2d_graph(7, 7))
    for partition in (graphs.red_black(7), graphs.combs(7)):
        assert sorted(np.concatenate(partition)) == list(range(49))
        for block in partition:
            assert networkx.is_forest(graph.subgraph([names[v] for v in block]))
    assert all(networkx.is_tree(graph.subgraph([names[v] for v in block])) for block in graphs.combs(7))


def test_propagation_minimises_the_differences():
    at = graphs.lattice_labels(5, 4, np.random.default_rng(0))
    assert (np.abs(at.solution) <= 1 + 1e-12).all()  # a weighted mean of labels
    degrees = at.H.diagonal()
    mean = ((np.diag(degrees) - at.H.toarray()) @ at.solution + at.b) / degrees
    np.testing.assert_allclose(mean, at.solution, atol=1e-12)
    moons = graphs.moons(100, 10, np.random.default_rng(0))
    assert abs(moons.H - moons.H.T).max() == 0
    upper = moons.nodes < 50
    assert ((moons.solution < 0) == upper).mean() > 0.7


@pytest.mark.parametrize("method", CHOICES)
def test_propagation_by_blocks_finds_the_solution(method):
    problem = {"graph": "lattice", "side": 8, "labels": 8, "gap": 1e-8, "cap": 5000}
    (row,) = run(problem, method, {}, [0], Inputs(), "cpu").rows
    assert row["reached"] and row["error"] < 1e-3
    assert row["multiplications"] > row["operations"] > row["iterations"]


def test_selection_is_charged():
    at = graphs.lattice_labels(8, 8, np.random.default_rng(0))
    choose = CHOICES["small_blocks"](at, 8)
    first = choose(-at.b, np.arange(56))
    assert first.scored == 12 and first.scoring == 11 * 30 + 2 and first.solving == 25
    assert choose(-at.b, np.array([0, 1, 7])).scored == 2
    residual = -at.b + at.H[first.block].T @ first.step
    np.testing.assert_allclose(residual[first.block], 0, atol=1e-12)


@pytest.mark.parametrize("loss", ["squares", "logistic"])
def test_l1_paths_and_modes_find_the_solution(loss):
    model = models.sparse_regression(60, 40, loss, np.random.default_rng(1), nonzeros=5)
    lam = 0.2 * models.largest_penalty(model)
    solution = models.l1_minimum(model, lam)
    x, K, path = identify(model, lam, 5, 600)
    assert ((x != 0) == (solution != 0)).all() and len(path) - 1 <= K < 600
    block = np.flatnonzero(x)
    slow = x
    for _ in range(8):
        x, slow = two_metric(model, lam, x, block), prox_gradient(model, lam, slow, block)
    assert np.abs(x - solution).max() < 1e-12 < np.abs(slow - solution).max()
    for path in (fista_path(model, lam), cyclic_path(model, lam)):
        *_, last = (next(path) for _ in range(150))
        assert np.abs(last - solution).max() < 1e-3


def test_two_metric_steps_never_rise_and_can_enlarge_the_support():
    model = models.sparse_regression(60, 40, "logistic", np.random.default_rng(2), nonzeros=5)
    lam = 0.1 * models.largest_penalty(model)

    def F(x):
        return model.value(x, model.predict(x)) + lam * np.abs(x).sum()

    x, values = np.zeros(40), []
    for _ in range(10):
        values.append(F(x))
        g = np.abs(model.gradient(x, model.predict(x)))
        x = two_metric(model, lam, x, rules.largest(np.where(x != 0, np.inf, g), 12))
    assert np.diff(values).max() <= 1e-12 and np.count_nonzero(x) > 0


@pytest.mark.slow
def test_scikit_learn_finds_the_same_solution():
    linear_model = pytest.importorskip("sklearn.linear_model")
    model = models.sparse_regression(50, 30, "squares", np.random.default_rng(0), nonzeros=5)
    lam = 0.1 * models.largest_penalty(model)
    peer = linear_model.Lasso(lam / 50, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(model.A, model.Y[:, 0])
    np.testing.assert_allclose(models.l1_minimum(model, lam), peer.coef_, atol=1e-7)
    model = models.sparse_regression(50, 30, "logistic", np.random.default_rng(0), nonzeros=5)
    lam = 0.1 * models.largest_penalty(model)
    peer = linear_model.LogisticRegression(
        l1_ratio=1, C=1 / lam, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=10_000
    ).fit(model.A, model.Y[:, 0])
    np.testing.assert_allclose(models.l1_minimum(model, lam), peer.coef_[0], atol=1e-5)


# ---- runs

LEAST = {"model": "least_squares", "n": 30, "d": 40, "horizon": 20, "cap": 60, "gap": 1e-2}
L1 = {"loss": "logistic", "n": 30, "d": 40, "tau": 3, "budget": 100}
LATTICE = {"graph": "lattice", "side": 7, "labels": 5, "gap": 1e-2, "cap": 500}
RUNS = {
    **{m: (LEAST, {"taus": [5]}) for m in (*SMOOTH, "accelerated")},
    "gsq": (LEAST, {"taus": [4, 10], "to_gap": True}),
    **{m: (L1, {"steps": 4}) for m in ("two_metric", "prox_gradient")},
    **{m: (L1, {"cap": 20}) for m in ("fista", "cyclic_prox")},
    **{m: (LATTICE, {}) for m in CHOICES},
    "greedy_forest": ({"graph": "moons", "points": 60, "labels": 6, "gap": 1e-2, "cap": 500}, {}),
    "forest_solve": ({"sizes": [50, 100]}, {}),
}


@pytest.mark.parametrize("method", RUNS)
def test_splitting_the_seeds_changes_nothing(method):
    problem, settings = RUNS[method]
    whole, *parts = (run(problem, method, settings, seeds, Inputs(), "cpu") for seeds in ([5, 6], [5], [6]))
    assert whole.rows == parts[0].rows + parts[1].rows
    assert whole.traces == parts[0].traces + parts[1].traces
    assert [row["seed"] for row in whole.rows] == sorted(row["seed"] for row in whole.rows)


def test_iterations_are_counted_or_capped():
    problem = LEAST | {"cap": 2000, "horizon": 10}
    (row,) = run(problem, "gsq", {"taus": [5], "to_gap": True}, [0], Inputs(), "cpu").rows
    assert row["reached"] and 10 < row["iterations"] < 2000
    (capped,) = run(problem | {"cap": 10}, "gsq", {"taus": [5], "to_gap": True}, [0], Inputs(), "cpu").rows
    assert (capped["iterations"], capped["reached"]) == (10, 0)
    assert capped["mean_log_gap"] == row["mean_log_gap"]


@pytest.mark.parametrize("name", models.REAL)
def test_real_data_are_padded(name):
    model = models.REAL[name](DATASETS, 5)
    assert model.A.shape[1] % 5 == 0
    problem = {"model": name, "multiple": 5, "horizon": 20, "cap": 20, "gap": 0}
    (row,) = run(problem, "gsl", {"taus": [5]}, [0], Inputs(DATASETS), "cpu").rows
    assert row["mean_log_gap"] < 0


# ---- judging


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 200)


def progress(**means) -> Evidence:
    means = {"gsl_permuted": -0.1} | means
    return Evidence(
        pd.DataFrame(
            {"problem": p, "method": m, "seed": s, "tau": 5, "mean_log_gap": v * scale - 0.01 * s}
            for p, scale in (("least-squares", 1), ("logistic", 0.5), ("softmax", 0.6))
            for m, v in means.items()
            for s in range(5)
        )
    )


def test_c1():
    judge = evidence.rules_that_know_curvature
    good = {"gsl": -1.7, "gs": -1.2, "cyclic": -0.9, "random": -0.8, "variable_gs": -1.4, "variable_gsd": -1.6}
    assert verdicts.verdict(judge(progress(**good))) == "replicated"
    control = judge(progress(**good).standing_in("gsl_permuted", "gsl"))
    assert [c.passed for c in control] == [False, True, True]
    assert [c.passed for c in judge(progress(**good | {"random": -1.3}))] == [True, False, True]
    assert [c.passed for c in judge(progress(**good | {"variable_gsd": -1.3}))] == [True, True, False]


def iterations(gsl, gsq) -> Evidence:
    return Evidence(
        pd.DataFrame(
            {"problem": p, "method": m, "seed": s, "tau": tau, "iterations": n * (1 + 0.01 * s * (m == "gsl"))}
            for p in ("least-squares", "logistic")
            for m, n in (("gsl", gsl), ("gsq", gsq), ("gs", np.nan))
            for tau in (5, 20)
            for s in range(5)
        )
    )


def test_c2():
    judge = evidence.matrix_updates_by_their_rule
    assert verdicts.verdict(judge(iterations(150, 100))) == "replicated"
    assert judge(iterations(200, 100))[0].estimate == pytest.approx(2.04, abs=0.01)
    assert [c.passed for c in judge(iterations(140, 100))] == [False, True]
    assert verdicts.verdict(judge(iterations(90, 100))) == "not replicated"


def forests(slope=1.0, error=1e-12, **operations) -> Evidence:
    rows = [
        {"problem": "forests", "method": "forest_solve", "seed": s, "size": n, "operations": n**slope, "error": error}
        for s in range(3)
        for n in (100, 1000, 10000)
    ]
    operations = {"small_blocks": 10, "red_black": 9, "combs": 12, "greedy_forest": 20} | operations
    rows += [
        {"problem": "lattice", "method": m, "seed": s, "operations": v} for s in range(3) for m, v in operations.items()
    ]
    return Evidence(pd.DataFrame(rows))


def test_c3():
    judge = evidence.huge_forest_blocks
    assert verdicts.verdict(judge(forests())) == "replicated"
    assert [c.passed for c in judge(forests(slope=1.2))] == [False, True, True]
    assert [c.passed for c in judge(forests(error=1e-7))] == [True, False, True]
    assert [c.passed for c in judge(forests(red_black=10))] == [True, True, False]


def support(K=1000, first=5e-4, last=1e-6, steps=2, control=None) -> Evidence:
    rows = []
    for method, (k, f, l, n) in {"two_metric": (K, first, last, steps), "prox_gradient": (K, 0.9, 0.9, 30)}.items():
        for problem in ("lasso", "l1-logistic"):
            for s in range(5):
                row = {"problem": problem, "method": method, "seed": s, "K": k, "first_ratio": f, "last_ratio": l}
                rows.append(row | {"further_steps": n, "reached": int(n < 30)})
    return Evidence(pd.DataFrame(rows))


def test_c4():
    judge = evidence.support_then_superlinear
    assert verdicts.verdict(judge(support())) == "replicated"
    assert verdicts.verdict(judge(support().standing_in("prox_gradient", "two_metric"))) == "not replicated"
    assert [c.passed for c in judge(support(K=3000))] == [False, False, True, True]
    assert [c.passed for c in judge(support(first=0.05, last=0.006))] == [True, True, False, True]
    assert [c.passed for c in judge(support(first=0.05, last=0.004))] == [True] * 4
    assert [c.passed for c in judge(support(steps=4))] == [True, True, True, False]
    once = support()
    once.rows.loc[(once.rows["seed"] == 2) & (once.rows["method"] == "two_metric"), "last_ratio"] = 0.5
    assert verdicts.verdict(judge(once)) == "replicated"  # 4 of 5
    once.rows.loc[(once.rows["seed"] == 3) & (once.rows["method"] == "two_metric"), "last_ratio"] = 0.5
    assert verdicts.verdict(judge(once)) == "not replicated"
