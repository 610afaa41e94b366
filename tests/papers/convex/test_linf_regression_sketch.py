"""linf-regression-sketch: coordinate errors of sketched least squares."""

import itertools

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.sketches import countsketch, gaussian, hadamard, mixed, signs, sparse_embedding, srht
from papertrial.papers.convex.linf_regression_sketch import evidence
from papertrial.papers.convex.linf_regression_sketch.method import (
    GENERATED,
    SKETCHES,
    errors,
    regression,
    run,
    solve,
    spike_instance,
)
from papertrial.testbeds.tall_matrices import coherent_rows, off_range

GRID = {"task": "quantiles", "n": 128, "d": [4, 8], "m_over_d": [4, 8], "draws": 6}
PROBLEMS = [
    {"name": "gaussian", **GRID, "family": "gaussian"},
    {"name": "coherent", **GRID, "family": "coherent"},
    {"name": "spike-draws", "task": "single draws", "family": "spike", "n": 128, "d": [8], "m_over_d": [4]},
]


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- what must hold


def test_fast_transform_equals_the_explicit_matrix_and_preserves_norms():
    linalg = pytest.importorskip("scipy.linalg")
    A = rng().standard_normal((512, 5))
    H = linalg.hadamard(512)
    np.testing.assert_allclose(hadamard(A), H @ A, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(mixed(A, signs(512, rng(1))), axis=0), np.linalg.norm(A, axis=0))


def test_mean_of_StS_is_the_identity():
    n, draws = 16, 2000
    S = np.stack([srht(np.eye(n), 6, rng([1, t])) for t in range(draws)])
    G = np.einsum("tmi,tmj->tij", S, S)
    assert (np.abs(G.mean(axis=0) - np.eye(n)) <= 5 * G.std(axis=0) / np.sqrt(draws) + 1e-12).all()


@pytest.mark.parametrize("method", SKETCHES)
def test_a_right_side_in_the_range_is_solved_exactly(method):
    A = rng(2).standard_normal((256, 6))
    x = rng(3).standard_normal(6)
    r = regression(A, A @ x + 1e-3)  # only to have scores of it
    S_Ab = SKETCHES[method](r)(np.column_stack([A, A @ x]), 60, rng(4))
    np.testing.assert_allclose(solve(S_Ab[:, :-1], S_Ab[:, -1]), x, atol=1e-9)


def test_without_sampling_srht_solves_exactly():
    A = rng(5).standard_normal((64, 5))
    b = rng(6).standard_normal(64)
    S_Ab = mixed(np.column_stack([A, b]), signs(64, rng(7)))  # m = n, P = I
    np.testing.assert_allclose(solve(S_Ab[:, :-1], S_Ab[:, -1]), np.linalg.lstsq(A, b, rcond=None)[0], atol=1e-9)


def test_countsketch_is_off_by_whole_spikes():
    """x'_i of a bucket with j columns of A and spikes of signed number k: R = max |k| / j over the buckets."""
    n, d, m = 64, 16, 24
    r = spike_instance(n, d, rng())
    for seed in range(40):
        S = sparse_embedding(n, m, 1, rng(seed)).toarray()
        columns = np.abs(S[:, :d]).sum(axis=1)  # (m,): j
        spikes = np.abs(S[:, d : 2 * d].sum(axis=1))  # (m,): |k|
        both = columns > 0
        expected = (spikes[both] / columns[both]).max()
        R, _ = errors(r, countsketch, m, rng(seed))
        assert pytest.approx(expected, abs=1e-9) == R
        if not spikes[both].any():
            assert R < 1e-9


# ---- more mathematics


def test_R_does_not_depend_on_units():
    A, b = rng(1).standard_normal((128, 4)), rng(2).standard_normal(128)
    found = [errors(regression(s * A, t * b), gaussian, 40, rng(3))[0] for s, t in ((1, 1), (7, 1), (1, 0.01))]
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


@pytest.mark.parametrize("family", GENERATED)
def test_instances_have_a_unit_residual_off_the_range(family):
    r = GENERATED[family](256, 8, rng(0))
    np.testing.assert_allclose(r.x, 0, atol=1e-12)
    assert np.linalg.norm(r.b) == pytest.approx(1)
    assert r.unit == pytest.approx(np.linalg.norm(np.linalg.pinv(r.A), 2) / np.sqrt(8))


def test_a_right_side_off_the_range_stays_there():
    A = coherent_rows(200, 9, rng(), share=0.1, scale=1e6)
    assert np.abs(A.T @ off_range(A, rng(1).standard_normal(200))).max() < 1e-9


def test_R_follows_the_gaussian_law():
    """With a dense sketch each coordinate's error is near N(0, 1/m) on the spike: R is about sqrt(2 d ln d / m)."""
    d, m = 16, 640
    r = spike_instance(128, d, rng())
    R = [errors(r, sketch, m, rng([1, t]))[0] for sketch in (gaussian, srht) for t in range(30)]
    law = np.sqrt(2 * d * np.log(d) / m)
    assert 0.6 < np.mean(R) / law < 1.1


def test_the_dense_gaussian_behaves_like_srht_where_countsketch_fails():
    d, m = 16, 512
    r = spike_instance(512, d, rng())
    q95 = {s: np.quantile([errors(r, s, m, rng([2, t]))[0] for t in range(60)], 0.95) for s in (srht, gaussian)}
    assert q95[gaussian] == pytest.approx(q95[srht], rel=0.35)
    sparse = np.quantile([errors(r, countsketch, m, rng([2, t]))[0] for t in range(60)], 0.95)
    assert sparse == pytest.approx(1, abs=1e-9) and max(q95.values()) < 0.7


def test_real_regressions_have_full_rank():
    data = {"x": rng().integers(0, 17, size=(300, 4, 4)), "y": rng(1).integers(0, 10, size=300)}
    data["x"][:, 0, 0] = 0  # a pixel that is always empty
    data["x"][:, 0, 1] = data["x"][:, 0, 2]  # and one twice
    problem = {"name": "digits", "task": "quantiles", "data": "digits", "m_over_d": [8], "draws": 3}
    (row,) = run(problem, "srht", {}, [0], Inputs({"digits": data}), "cpu").rows
    assert row["d"] == 14 and np.isfinite(row["q95"])


# ---- runs


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["name"])
@pytest.mark.parametrize("method", ["srht", "countsketch", "leverage", "rademacher"])
def test_splitting_the_seeds_changes_nothing(problem, method):
    def rows(seeds):
        return run(problem, method, {"most_draws": 4}, seeds, Inputs(), "cpu").rows

    whole = rows([0, 3, 1])
    assert whole == rows([0]) + rows([3, 1])
    assert np.isfinite(pd.DataFrame(whole).to_numpy()).all()


def test_the_cost_is_counted_and_timed():
    problem = {"name": "cost", "task": "cost", "columns": 4, "m_over_d": 8, "rows": [64, 128]}
    found = run(problem, "srht", {}, [0, 1], Inputs(), "cpu")
    assert [r["operations"] for r in found.rows[:2]] == [64 * 4 * 7 + 128, 128 * 4 * 8 + 128]
    assert len(found.timings) == 4 and all(t["fast_s"] >= 0 and t["dense_s"] >= 0 for t in found.timings)


# ---- judging


def table(power=-0.5, d_power=1.0, sparse=1.0, dense=0.5, sparse_l2=0.18, repair=0.0, times=5.0):
    """Handmade results; `repair` is the power at which CountSketch's error falls with m."""
    rows, timings = [], []
    noise = np.random.default_rng(0)

    def add(problem, method, seed, **values):
        rows.append({"problem": problem, "method": method, "seed": seed, **values})

    for family, d, ratio in itertools.product(evidence.FAMILIES, (8, 16, 32, 64), (8, 16, 32, 64)):
        level = 2 * (d / 8) ** ((1 - d_power) * power)
        add(family, "srht", 0, d=d, m_over_d=ratio, q95=level * ratio**power)
        add(family, "countsketch", 0, d=d, m_over_d=ratio, q95=1.0)
    for seed in range(60):
        for ratio in (8, 32, 64):
            for method, level, p, l2 in (("srht", dense, -0.5, 0.18), ("countsketch", sparse, -repair, sparse_l2)):
                R = level * (ratio / 32) ** p * (1 + 0.01 * noise.random())
                add("spike-draws", method, seed, d=64, m_over_d=ratio, R=R, l2=l2)
        for n in (512, 4096):
            add("cost", "srht", seed, n=n, operations=n * np.log2(n))
            timings.append({**rows[-1], "fast_s": 1.0, "dense_s": times})
    return Evidence(pd.DataFrame(rows), timings=pd.DataFrame(timings))


CASES = [
    ("near_linear_rows", {}, "replicated"),
    ("near_linear_rows", {"power": -0.3}, "not replicated"),
    ("near_linear_rows", {"power": -0.7}, "not replicated"),
    ("near_linear_rows", {"d_power": 1.5}, "not replicated"),
    ("sparse_fails", {}, "replicated"),
    ("sparse_fails", {"sparse": 0.8}, "not replicated"),
    ("sparse_fails", {"dense": 0.7}, "not replicated"),
    ("sparse_fails", {"sparse_l2": 0.3}, "not replicated"),
    ("rows_do_not_repair", {}, "replicated"),
    ("rows_do_not_repair", {"repair": 0.5}, "not replicated"),
    ("fast_transform", {}, "replicated"),
    ("fast_transform", {"times": 2.0}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_the_control_fails_the_headline():
    assert verdict(evidence.near_linear_rows(table().standing_in("countsketch", "srht"))) == "not replicated"


def test_rows_needed_lies_on_the_power_law():
    m = np.array([8.0, 16, 32, 64])
    assert evidence.rows_needed(m, 0.5 * (m / 20) ** -0.5) == pytest.approx(20)
    assert evidence.rows_needed(m, 0.5 * (m / 300) ** -0.5) == pytest.approx(300)  # beyond the grid
    assert evidence.rows_needed(m, 0.5 * (m / 2) ** -0.5) == pytest.approx(2)
    assert evidence.rows_needed(m, np.ones(4)) > 1e20  # never


def test_q95_is_numpys():
    for n in (2, 19, 20, 21, 400):
        x = rng(n).standard_normal(n)
        assert evidence.q95(x) == pytest.approx(np.quantile(x, 0.95))
