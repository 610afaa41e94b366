"""consensus-based-optimization: hops, particles and gradient steps."""

from itertools import islice, pairwise

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.papers.convex.consensus_based_optimization import evidence
from papertrial.papers.convex.consensus_based_optimization.method import (
    METHODS,
    Normals,
    annealed_langevin,
    cbo,
    consensus,
    consensus_hopping,
    consensus_integral,
    gradient_descent,
    point_of,
    run,
)
from papertrial.testbeds.landscapes import Counted, canyon, kinked, quadratic, rosenbrock

CLOUD = {"start": 8, "spread": 0.5, "particles": 40, "hops": 20, "steps": 20, "descents": 20, "box": (-2, 8)}


def cloud(seed=0, N=30, d=3):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2, N, d))
    return X, (X**2).sum(axis=-1) + rng.random((2, N))


def random_spd(seed=0):
    B = np.random.default_rng(seed).standard_normal((2, 2))
    return B @ B.T + 0.3 * np.eye(2)


# ---- what must hold


def test_on_quadratics_a_hop_is_an_implicit_gradient_step():
    for seed in range(5):
        H, x = random_spd(seed), np.array([0.7, -1.1])
        for alpha, sigma in ((10, 0.1), (3, 0.5)):
            hop = consensus_integral(quadratic(H), x, alpha, sigma)
            np.testing.assert_allclose(hop, np.linalg.solve(np.eye(2) + alpha * sigma**2 * H, x), atol=1e-6)


def test_on_linear_functions_a_hop_is_a_gradient_step():
    g, x = np.array([0.8, -0.3]), np.array([2.0, 1.0])
    hop = consensus_integral(lambda z: z @ g, x, 10, 0.2)
    np.testing.assert_allclose(hop, x - 10 * 0.2**2 * g, atol=1e-12)


def test_limits_and_invariances_of_the_weighted_mean():
    X, E = cloud()
    np.testing.assert_allclose(consensus(X, E, 0), X.mean(axis=1), atol=1e-14)
    best = X[np.arange(2), E.argmin(axis=1)]
    np.testing.assert_array_equal(consensus(X, E, 1e15), best)
    np.testing.assert_allclose(consensus(X, E + 1e3, 5), consensus(X, E, 5), atol=1e-10)
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(consensus(X[:, order], E[:, order], 5), consensus(X, E, 5), atol=1e-14)
    w = np.exp(-5 * E)
    np.testing.assert_allclose(consensus(X, E, 5), (w[..., None] * X).sum(axis=1) / w.sum(axis=1)[:, None])


def test_without_noise_particles_contract_by_the_drift_alone():
    """X_i - X_j shrinks by exactly 1 - lambda dt a step, wherever the consensus lies."""
    spreads, dt, lam = [], 0.05, 1.5

    class Watched(Counted):
        def __call__(self, X):
            spreads.append(X - X[:, :1])
            return super().__call__(X)

    E = Watched(canyon())
    list(cbo(E, np.zeros((2, 2)), Normals([0, 1], 1), CLOUD, alpha=100, sigma=0, lam=lam, dt=dt))
    for before, after in pairwise(spreads):
        np.testing.assert_allclose(after, (1 - lam * dt) * before, atol=1e-13)


# ---- more mathematics


def test_the_remainder_shrinks_like_tau():
    f, x = rosenbrock(0.01), np.array([-0.8, 0.9])
    e = []
    for sigma in (0.01, 0.005):
        tau = 10 * sigma**2
        e.append(np.linalg.norm(consensus_integral(f, x, 10, sigma) - x + tau * f.gradient(x)) / tau)
    assert e[0] / e[1] == pytest.approx(4, rel=0.05)


def test_a_hop_of_many_particles_is_the_integral():
    f, x = rosenbrock(0.01), np.array([[-0.8, 0.9]])
    rng = np.random.default_rng(0)
    X = x[:, None] + 0.02 * rng.standard_normal((1, 400_000, 2))
    limit = consensus_integral(f, x[0], 10, 0.02)
    assert np.abs(consensus(X, f(X), 10)[0] - limit).max() < 5 * 0.02 / np.sqrt(400_000) * 2


def test_points_have_a_gradient_of_ordinary_size():
    f = rosenbrock(0.01)
    norms = [np.linalg.norm(f.gradient(point_of(f, seed))) for seed in range(50)]
    assert min(norms) >= 0.1 and max(norms) <= 5 and len(set(norms)) == 50


def test_descent_from_the_far_end_is_caught_near_a_known_ripple():
    f = canyon()
    (*_, last) = gradient_descent(Counted(f), np.full((1, 2), 8.0), None, CLOUD | {"descents": 3000}, [0.005])
    np.testing.assert_allclose(last[0, 0], [2.3, 2.5], atol=0.2)
    assert np.linalg.norm(f.gradient(last[0, 0])) < 1e-6


def test_langevin_without_heat_is_gradient_descent():
    f, x = canyon(), np.full((2, 2), 7.0)
    cold = list(islice(annealed_langevin(Counted(f), x, Normals([0, 1], 1), CLOUD, 0.002, 0.0), 20))
    plain = [p[0] for p in gradient_descent(Counted(f), x, None, CLOUD, [0.002])]
    np.testing.assert_array_equal(cold, plain)


def test_langevin_at_a_fixed_height_has_the_temperature_it_states():
    """On x^2/2 steps of length tau at temperature H settle at variance H / (1 - tau/2); H hardly moves here."""
    x, seeds = np.zeros((60, 1)), list(range(60))
    problem = CLOUD | {"hops": 40, "particles": 50}
    path = np.array(list(annealed_langevin(Counted(quadratic(np.eye(1))), x, Normals(seeds, 1), problem, 0.1, 2.0)))
    late = path[500:, :, 0]
    assert late.var() == pytest.approx(2.0 / np.log(1200) / 0.95, rel=0.06)


def test_evaluations_are_counted():
    problem = {**CLOUD, "name": "p", "measure": "search", "landscape": "kinked"}
    spent = {
        "ch": 20 * 40, "cbo": 21 * 40, "gd": 20, "random-search": 800, "langevin": 800,
    }  # fmt: skip
    for method, evaluations in spent.items():
        assert run(problem, method, SETTINGS[method], [0, 1], Inputs(), "cpu").rows[0]["evaluations"] == evaluations
    assert 790 <= run(problem, "cma-es", {}, [0], Inputs(), "cpu").rows[0]["evaluations"] <= 800


def test_peer_consensus_point():
    pytest.importorskip("cbx")
    from cbx.dynamics import CBO

    X, _ = cloud(N=20, d=2)
    f = lambda x: (x**2).sum(axis=-1)  # noqa: E731
    for alpha in (0.5, 30.0):
        dynamic = CBO(f, x=X, alpha=alpha, f_dim="3D", verbosity=0)
        dynamic.compute_consensus()
        np.testing.assert_allclose(dynamic.consensus[:, 0], consensus(X, f(X), alpha), atol=1e-10)


# ---- runs

SETTINGS = {
    "ch": {"alpha": 100, "sigma": 0.7},
    "cbo": {"alpha": 100, "sigma": 1.6, "lam": 1, "dt": 0.01},
    "cbo-anisotropic": {"alpha": 100, "sigma": 1.6, "lam": 1, "dt": 0.01},
    "gd": {"steps": [0.001, 0.01]},
    "langevin": {"tau": 0.001, "sigma": 3},
    "random-search": {},
    "cma-es": {},
}
PROBLEMS = [
    {**CLOUD, "name": "canyon", "measure": "search", "landscape": "canyon"},
    {"name": "r", "measure": "remainder", "alpha": 10, "sigmas": [0.01, 0.02]},
    {"name": "s", "measure": "sampling", "alpha": 10, "sigma": 0.02, "sizes": [10, 40], "draws": 5},
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["measure"])
@pytest.mark.parametrize("method", SETTINGS)
def test_splitting_the_seeds_changes_nothing(problem, method):
    if method != "ch" and problem["measure"] != "search":
        return
    found = lambda seeds: pd.DataFrame(run(problem, method, SETTINGS[method], seeds, Inputs(), "cpu").rows)  # noqa: E731
    sort = lambda t: t.sort_values([c for c in ("step", "sigma", "N", "seed") if c in t], ignore_index=True)  # noqa: E731
    whole, parts = sort(found([0, 1, 5])), sort(pd.concat([found([5]), found([0, 1])]))
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-8)
    assert np.isfinite(whole.to_numpy(dtype=float)).all()


def test_the_control_compares_with_half_the_step():
    ours, half = (run(PROBLEMS[1], "ch", settings, [0, 1], Inputs(), "cpu").rows for settings in ({}, {"share": 0.5}))
    assert all(row["remainder"] < 0.1 for row in ours)
    assert all(row["remainder"] == pytest.approx(1, abs=0.2) for row in half)


def test_hops_with_plain_means_go_nowhere():
    x = np.full((3, 2), 8.0)
    (*_, last) = consensus_hopping(Counted(kinked(2)), x, Normals([0, 1, 2], 1), CLOUD, alpha=0, sigma=0.7)
    assert np.abs(last - x).max() < 5 * 0.7 * np.sqrt(20 / 40)
    assert set(SETTINGS) | {"ch-mean", "cbo-mean"} == set(METHODS)


# ---- judging


def table(ch=1.0, cbo=1.0, gd=0.0, order=1.0, e=0.001, rate=-0.5):
    rng, rows = np.random.default_rng(0), []
    for seed in range(30):
        add = lambda method, share, seed=seed, **cell: rows.append(  # noqa: E731
            {"problem": "canyon", "method": method, "seed": seed, "success": int(seed < round(30 * share)), **cell}
        )
        add("ch", ch)
        add("cbo", cbo)
        add("gd", 0.0, step=0.001)
        add("gd", gd, step=0.01)
        noise = np.exp(0.05 * rng.standard_normal())
        for sigma in (0.01, 0.02, 0.04):
            row = {"problem": "remainder", "method": "ch", "seed": seed, "sigma": sigma, "tau": 10 * sigma**2}
            rows.append(row | {"remainder": e * noise * (sigma / 0.01) ** (2 * order)})
        for N in (100, 400, 1600):
            rows.append({"problem": "sampling", "method": "ch", "seed": seed, "N": N, "rms": noise * N**rate})
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("global_minimiser", {}, "replicated"),
    ("global_minimiser", {"ch": 0.8}, "not replicated"),
    ("global_minimiser", {"cbo": 0.8}, "not replicated"),
    ("global_minimiser", {"gd": 0.6}, "not replicated"),
    ("global_minimiser", {"gd": 0.15}, "inconclusive"),
    ("a_hop_is_a_gradient_step", {}, "replicated"),
    ("a_hop_is_a_gradient_step", {"order": 0.5}, "not replicated"),
    ("a_hop_is_a_gradient_step", {"order": 1.5}, "not replicated"),
    ("a_hop_is_a_gradient_step", {"e": 0.9}, "not replicated"),
    ("sampling_error", {}, "replicated"),
    ("sampling_error", {"rate": -0.8}, "not replicated"),
    ("sampling_error", {"rate": -0.1}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_wilson_interval():
    from scipy.stats import binomtest

    for k, n in ((0, 30), (3, 30), (15, 40)):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        np.testing.assert_allclose(evidence.wilson(np.arange(n) < k), (expected.low, expected.high), atol=1e-6)
