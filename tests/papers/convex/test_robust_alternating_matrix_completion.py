"""robust-alternating-matrix-completion: alternating least squares with inexact solves."""

import itertools
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.matrix_completion import scaled_gd, soft_impute, top
from papertrial.methods.sketched_least_squares import (
    conjugate_gradients,
    from_sketch,
    normal_equations,
    sketch_rows,
    srht_stack,
)
from papertrial.papers.convex.robust_alternating_matrix_completion import evidence
from papertrial.papers.convex.robust_alternating_matrix_completion.method import (
    alternate,
    contraction,
    count_plain,
    count_sketched,
    dense_core,
    exact,
    injected,
    limits,
    orthonormal,
    robust,
    run,
)
from papertrial.testbeds.matrix_completion import distance, haar, incoherence, low_rank, observe, relative_error

GENERATED = {"task": "recovery", "n": 60, "k": [2, 3], "condition": [1], "rounds": 8, "parts": 1, "until": 0}


def rng(*seed):
    return np.random.default_rng(seed or 0)


def instance(n=60, k=3, p=0.5, seed=1):
    M = low_rank(n, n + 5, k, 2, rng(seed))
    return M, observe(M, p, rng(seed, 1))


def rounds(known, M, update, count, seed=2):
    return list(itertools.islice(alternate([known], len(M.s), limits(M), rng(seed), update), count))


def regressions(B=50, L=120, k=8, seed=3):
    g = rng(seed)
    return g.standard_normal((B, L, k)), g.standard_normal((B, L))


# ---- what must hold


def test_one_exact_round_on_all_entries_gives_the_matrix():
    M, known = instance(p=1.0)
    ((U, V),) = rounds(known, M, exact, 1)
    assert relative_error(U, V, M) < 1e-13


def test_small_errors_give_the_exact_iterates():
    M, known = instance()
    for one, other in zip(rounds(known, M, exact, 6), rounds(known, M, partial(robust, e=1e-12), 6), strict=True):
        np.testing.assert_allclose(one[0] @ one[1].T, other[0] @ other[1].T, atol=1e-8)


@pytest.mark.parametrize("k", [4, 12])
def test_preconditioned_error_contracts_by_a_constant(k):
    """Geometric mean over four steps of the ratio of ||A (x - x*)||."""
    A, b = regressions(200, 16 * k, k)
    A = A * np.geomspace(1, 1e-3, k)  # badly conditioned: the preconditioner's work
    start = from_sketch(srht_stack(np.concatenate([A, b[..., None]], axis=2), sketch_rows(k), rng(4)))
    x_star = normal_equations(A, b)

    def error(x):
        return np.linalg.norm((A @ (x - x_star)[..., None])[..., 0], axis=1)

    after = error(conjugate_gradients(A, b, start, x_star, 0.0, 4)[0])
    assert np.mean((after / error(start.x)) ** (1 / 4) < 0.6) >= 0.95


def test_distance_is_the_sine_of_the_largest_angle_whatever_the_rotation():
    linalg = pytest.importorskip("scipy.linalg")
    U, W = haar(40, 4, rng(5)), haar(40, 4, rng(6))
    sine = math.sin(linalg.subspace_angles(U, W).max())
    assert distance(U, W) == pytest.approx(sine, abs=1e-12)
    assert distance(U @ haar(4, 4, rng(7)), W @ haar(4, 4, rng(8))) == pytest.approx(sine, abs=1e-12)
    assert distance(U, U @ haar(4, 4, rng(9))) < 1e-14


def test_orthonormalising_keeps_the_column_space():
    V = rng(10).standard_normal((30, 3)) * [1, 5, 0.1]
    Q = orthonormal(V, limit=math.inf)
    np.testing.assert_allclose(Q.T @ Q, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(Q @ (Q.T @ V), V, atol=1e-12)
    # a round is the same whichever basis of U's span it starts from
    _, known = instance()
    U = rng(11).standard_normal((60, 3))
    fit = [exact(known.by_column.design(X), known.by_column.value, rng()) for X in (U, orthonormal(U, math.inf))]
    np.testing.assert_allclose(U @ fit[0].T, orthonormal(U, math.inf) @ fit[1].T, atol=1e-8)


def test_soft_impute_recovers_the_same_matrix():
    """The cross-check of recovery: the limit of a convex method, computed by plain dense SVDs here."""
    M, known = instance(n=40, k=2, p=0.7)
    X, filled = np.zeros(known.shape), known.filled().toarray()
    there = known.filled(np.ones(len(known.i))).toarray() > 0
    for threshold in np.geomspace(0.3, 1e-7, 300):
        U, s, Vt = np.linalg.svd(np.where(there, filled, X), full_matrices=False)
        X = (U * np.maximum(s - threshold, 0)) @ Vt
    U, V = rounds(known, M, exact, 30)[-1]
    assert np.linalg.norm(X - U @ V.T) < 1e-4 * np.linalg.norm(X)
    U, V = next(itertools.islice(soft_impute(known, 2, rng(), 0.93), 250, None))
    assert np.linalg.norm(X - U @ V.T) < 1e-4 * np.linalg.norm(X)


def test_fancyimpute_agrees():
    peer = pytest.importorskip("fancyimpute")
    M, known = instance(n=40, k=2, p=0.7)
    holes = np.full(known.shape, np.nan)
    holes[known.i, known.j] = known.value
    X = peer.SoftImpute(shrinkage_value=1e-4, max_iters=2000, verbose=False).fit_transform(holes)
    U, V = rounds(known, M, exact, 30)[-1]
    assert np.linalg.norm(X - U @ V.T) < 1e-2 * np.linalg.norm(X)


# ---- more mathematics


def test_accuracy_is_what_was_asked_for_and_the_exact_solution_is_least_squares():
    A, b = regressions()
    x_star = normal_equations(A, b)
    np.testing.assert_allclose(x_star[7], np.linalg.lstsq(A[7], b[7], rcond=None)[0], atol=1e-12)
    start = from_sketch(srht_stack(np.concatenate([A, b[..., None]], axis=2), sketch_rows(8), rng(1)))
    for e in (1e-2, 1e-6):
        x, steps = conjugate_gradients(A, b, start, x_star, e, 60)
        gap = np.linalg.norm(np.einsum("blk,bk->bl", A, x - x_star), axis=1)
        rest = np.linalg.norm(b - np.einsum("blk,bk->bl", A, x_star), axis=1)
        assert (gap <= 1.001 * e * rest).all() and (steps < 25).all()


def test_underdetermined_rows_get_the_shortest_solution_from_both_solvers():
    A, b = regressions(5, 12, 4)
    A[2, 3:], b[2, 3:] = 0, 0  # three known places, k = 4
    shortest = np.linalg.pinv(A[2]) @ b[2]
    np.testing.assert_allclose(exact(A, b, rng())[2], shortest, atol=1e-10)
    np.testing.assert_allclose(robust(A, b, rng(1), 1e-10)[2], shortest, atol=1e-8)


def test_injected_errors_have_their_size():
    A, b = regressions()
    off = injected(A, b, rng(2), 0.03) - exact(A, b, rng())
    np.testing.assert_allclose(np.linalg.norm(off, axis=1) / np.linalg.norm(exact(A, b, rng()), axis=1), 0.03)


def test_long_rows_are_dropped():
    U = np.vstack([haar(50, 2, rng(12)), [[3.0, 0]]])
    Q = orthonormal(U, 0.6)
    assert (Q[-1] == 0).all()
    np.testing.assert_allclose(Q.T @ Q, np.eye(2), atol=1e-12)
    M = low_rank(50, 50, 2, 1, rng(13))
    np.testing.assert_array_equal(orthonormal(M.U, limits(M)[0]), np.linalg.qr(M.U)[0])  # none is too long at M itself
    assert incoherence(np.eye(50, 2)) == 25 and incoherence(M.U) >= 1


def test_relative_error_and_entries_are_those_of_the_full_matrix():
    M, known = instance(p=0.2)
    full = (M.U * M.s) @ M.V.T
    np.testing.assert_allclose(known.value, full[known.i, known.j])
    U, V = rng(14).standard_normal((60, 4)), rng(15).standard_normal((65, 4))
    assert relative_error(U, V, M) == pytest.approx(np.linalg.norm(U @ V.T - full) / np.linalg.norm(full))
    assert relative_error(M.U * M.s + 1e-12, M.V, M) < 1e-10
    assert known.share == pytest.approx(0.2, abs=0.03)
    np.testing.assert_array_equal(np.unique(known.i * 65 + known.j), known.i * 65 + known.j)
    parts = known.split(3, rng(16))
    assert sum(len(part.value) for part in parts) == len(known.value)


def test_start_is_the_leading_singular_space():
    M, known = instance(p=1.0)
    U, s, V = top(known, 3, rng())
    np.testing.assert_allclose(s, M.s)
    assert distance(U, M.U) < 1e-10 and distance(V, M.V) < 1e-10


def test_scaled_gradient_descent_recovers():
    M, known = instance(p=0.6)
    U, V = next(itertools.islice(scaled_gd(known, 3, rng(), 0.5), 150, None))
    assert relative_error(U, V, M) < 1e-8


def test_counted_work():
    """One step of plain CG suffices on an orthonormal A; the sketched solver pays for its few steps."""
    for k in (4, 8):
        A = haar(4 * k * k, k, rng(k))
        b = A @ np.ones(k) + rng(k, 1).standard_normal(len(A))
        count, steps = count_plain(A, b, 1e-4, 50, rng())
        assert steps == 1 and 4 * k < count / len(A) < 4 * k + 3
        count, steps = count_sketched(A, b, 1e-4, 50, rng())
        assert 3 <= steps <= 15 and count / len(A) > (2 * k + 2) * steps


def test_contraction_factor():
    assert contraction([0.5**r for r in range(1, 41)])["contraction"] == pytest.approx(0.5)
    assert contraction([0.1**r for r in range(1, 41)])["contraction"] == pytest.approx(0.1)  # rounds 5 to 9
    assert contraction([1e-3] * 3) == {}


def test_dense_core():
    user, film = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 7])
    u, f, r = dense_core(user, film, np.arange(5.0), 2)
    assert u.tolist() == [0, 0, 1, 1] and f.tolist() == [0, 1, 0, 1] and r.tolist() == [0, 1, 2, 3]


# ---- runs


def data():
    g = rng(17)
    user, film = np.divmod(np.flatnonzero(g.random(30 * 25) < 0.7), 25)
    return Inputs({"movielens": {"user": user, "film": film, "rating": g.integers(1, 11, size=len(user)) / 2}}, {})


RUNS = [
    ({**GENERATED, "oversampling": [8, 12]}, {"algorithm": "exact"}),
    ({**GENERATED, "oversampling": [8]}, {"algorithm": "robust", "e": 1e-3}),
    ({**GENERATED, "oversampling": [8]}, {"algorithm": "injected", "e": 1e-2}),
    ({**GENERATED, "oversampling": [30], "parts": 7}, {"algorithm": "robust", "e": 1e-3}),
    ({**GENERATED, "oversampling": [8]}, {"algorithm": "scaled-gd", "eta": 0.3}),
    ({**GENERATED, "oversampling": [8]}, {"algorithm": "soft-impute", "shrink": 0.9}),
    ({"task": "cost", "k": [4], "most_steps": 99}, {"algorithm": "robust", "e": 1e-3, "condition": 10}),
    ({"task": "ratings", "at_least": 4, "rank": 2, "rounds": 2}, {"algorithm": "robust", "e": 1e-3}),
]


@pytest.mark.parametrize(("problem", "settings"), RUNS)
def test_splitting_the_seeds_changes_nothing(problem, settings):
    def rows(seeds):
        return run({"name": "p", **problem}, "m", settings, seeds, data(), "cpu").rows

    whole = rows([0, 4])
    assert whole == rows([0]) + rows([4])
    assert all(np.isfinite(value) for row in whole for value in row.values())


def test_methods_meet_the_same_matrix():
    """Both end at it."""
    problem = {"name": "p", **GENERATED, "k": [2], "oversampling": [12], "rounds": 30}
    settings = [{"algorithm": "exact"}, {"algorithm": "robust", "e": 1e-6}]
    found = [run(problem, "m", s, [1], Inputs(), "cpu").rows[0] for s in settings]
    assert all(row["error"] < 1e-9 for row in found)
    assert found[0]["contraction"] == pytest.approx(found[1]["contraction"], rel=1e-3)


# ---- judging


def table(exact_error=1e-12, robust_error=1e-12, slower=0.0, power=1.0, sketched=1.0, needs=3.2):
    """Handmade results."""
    g, rows = rng(18), []

    def add(problem, method, seed, **values):
        rows.append({"problem": problem, "method": method, "seed": seed, **values})

    for seed, k, condition in itertools.product(range(5), (5, 10), (1, 10)):
        cell = {"k": k, "condition": condition}
        add("recovery", "exact", seed, **cell, error=exact_error, contraction=0.5, e=0)
        for e in ("1e-8", "1e-4"):
            add("recovery", f"robust-{e}", seed, **cell, error=robust_error, contraction=0.5 + slower, e=float(e))
        for e in (1e-6, 1e-4, 1e-2, 1e-1):
            error = 1.5 * e**power * g.uniform(0.9, 1.1)
            add("recovery", f"injected-{e:.0e}".replace("e-0", "e-"), seed, **cell, error=error, contraction=1, e=e)
    for seed, k in itertools.product(range(4), (8, 16, 32, 64)):
        add("cost", "exact", seed, k=k, multiplications=k * k / 2 + k / 2)
        add("cost", "robust-1e-4", seed, k=k, multiplications=20 * k * sketched)
    for seed, factor in itertools.product(range(10), (2.5, 3, 3.25, 3.5, 4)):
        for method, least in (("exact", 3.2), ("robust-1e-4", needs)):
            error = 1e-9 if factor > least + 0.01 * seed else 1e-2
            add("samples", method, seed, k=5, oversampling=factor, error=error)
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("errors_are_tolerated", {}, "replicated"),
    ("errors_are_tolerated", {"robust_error": 1e-2}, "not replicated"),
    ("errors_are_tolerated", {"exact_error": 1e-2}, "not replicated"),
    ("errors_are_tolerated", {"slower": 0.1}, "not replicated"),
    ("graceful", {}, "replicated"),
    ("graceful", {"power": 2.0}, "not replicated"),
    ("cheaper_rounds", {}, "replicated"),
    ("cheaper_rounds", {"sketched": 2.0}, "not replicated"),
    ("same_samples", {}, "replicated"),
    ("same_samples", {"needs": 3.8}, "not replicated"),
    ("same_samples", {"needs": 9}, "not replicated"),  # never succeeds
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 20)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_half_way():
    factor = np.array([2.0, 3.0, 4.0])
    assert evidence.half_way(factor, np.array([0, 0.25, 0.75])) == 3.5
    assert evidence.half_way(factor, np.array([0.6, 1, 1])) == 2
    assert evidence.half_way(factor, np.array([0, 0, 0.4])) == 8
