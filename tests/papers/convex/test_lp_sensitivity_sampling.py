"""lp-sensitivity-sampling: rows sampled by how much they can matter."""

import itertools

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.row_scores import leverage_scores, row_sensitivities
from papertrial.papers.convex.lp_sensitivity_sampling import evidence
from papertrial.papers.convex.lp_sensitivity_sampling.method import (
    FAMILIES,
    GROWTH,
    SCORES,
    Rows,
    exponent,
    principal_columns,
    run,
    sample,
    sizes,
)
from papertrial.testbeds.subspace_distortion import distortion, subspace
from papertrial.testbeds.tall_matrices import coherent_rows, gaussian_rows, repeated_identity, spiked_identity

POWERS = [1, 1.5, 3, 4]
BASE = {"instance": 5, "n": 40, "d": [2, 3], "p": 1}
PROBLEMS = [
    {"name": "heavy", "task": "over sizes", "family": "heavy", **BASE},
    {"name": "coherent", "task": "by theorem", "family": "coherent", "width": 2, "powers": [1, 4], "C": 4, **BASE},
    {"name": "coherent-12d", "task": "at ratio", "family": "coherent", "ratio": 6, **BASE},
    {"name": "spikes", "task": "on spikes", "repeats": 32, "C": 4, "instance": 5, "d": [4, 8], "p": 4},
]


def rng(seed=0):
    return np.random.default_rng(seed)


# ---- what must hold


def test_at_p_2_sensitivities_are_leverage_scores_and_change_of_basis_changes_nothing():
    A = coherent_rows(100, 4, rng(), share=0.1, scale=20)
    sigma = row_sensitivities(A, 2)
    np.testing.assert_allclose(sigma, leverage_scores(A), atol=1e-8)
    assert sigma.sum() == pytest.approx(4, abs=1e-8)
    np.testing.assert_allclose(row_sensitivities(A @ rng(1).standard_normal((4, 4)), 2), sigma, atol=1e-8)
    for p in (1, 3):  # by an iteration, so not to the last digit
        np.testing.assert_allclose(
            row_sensitivities(A @ rng(1).standard_normal((4, 4)), p), row_sensitivities(A, p), rtol=1e-3
        )


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_repeated_identity_has_equal_sensitivities(p):
    sigma = row_sensitivities(repeated_identity(60, 5), p)
    np.testing.assert_allclose(sigma, 1 / 12, rtol=1e-9)
    assert sigma.sum() == pytest.approx(5)


def test_reweighted_least_squares_equals_the_linear_program():
    """1/sigma_i = min 1't over -t <= A x <= t, <a_i, x> = 1."""
    optimize = pytest.importorskip("scipy.optimize")
    A = coherent_rows(80, 4, rng(2), share=0.1, scale=20)
    n, d = A.shape
    sigma = row_sensitivities(A, 1)
    both_signs = np.block([[A, -np.eye(n)], [-A, -np.eye(n)]])
    for i in np.argsort(sigma)[::8]:
        found = optimize.linprog(
            np.r_[np.zeros(d), np.ones(n)],
            A_ub=both_signs,
            b_ub=np.zeros(2 * n),
            A_eq=np.r_[A[i], np.zeros(n)][None],
            b_eq=[1],
            bounds=[(None, None)] * d + [(0, None)] * n,
        )
        assert sigma[i] == pytest.approx(1 / found.fun, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.5, 3, 4])
def test_reweighted_least_squares_equals_a_convex_solver(p):
    cvxpy = pytest.importorskip("cvxpy")
    A = coherent_rows(60, 4, rng(3), share=0.1, scale=20)
    sigma = row_sensitivities(A, p)
    for i in np.argsort(sigma)[::19]:
        x = cvxpy.Variable(4)
        least = cvxpy.Problem(cvxpy.Minimize(cvxpy.pnorm(A @ x, p)), [A[i] @ x == 1]).solve()
        assert sigma[i] == pytest.approx(least**-p, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("p", POWERS)
def test_total_sensitivity_is_bounded(family, p):
    d = 5
    S = row_sensitivities(FAMILIES[family](160, d, rng(4)), p).sum()
    assert 1.01 * d ** max(1, p / 2) >= S
    assert S >= 1  # already one x makes the shares of all rows add up to one


def test_samples_are_unbiased():
    A, x = coherent_rows(60, 3, rng(5), share=0.1, scale=20), rng(6).standard_normal(3)
    for p, method in ((1, "sensitivity"), (3, "leverage")):
        length = np.abs(A @ x) ** p
        scores = SCORES[method](Rows(A, p))
        found = np.array([sample(scores, 15, rng([7, t])) @ length for t in range(5000)])
        assert abs(found.mean() - length.sum()) < 4 * found.std() / np.sqrt(5000)


def test_a_sample_of_everything_is_the_matrix():
    A = coherent_rows(60, 3, rng(8), share=0.1, scale=20)
    weights = sample(row_sensitivities(A, 1), 60, rng())
    np.testing.assert_array_equal(weights, 1)
    assert distortion(subspace(A, 1, rng()), weights, rng()) < 1e-5  # single precision


# ---- more mathematics


def test_expected_size():
    scores = row_sensitivities(coherent_rows(100, 3, rng(9), share=0.1, scale=20), 1)
    kept = [np.count_nonzero(sample(scores, 20, rng([1, t]))) for t in range(800)]
    assert np.mean(kept) == pytest.approx(20, abs=4 * np.std(kept) / np.sqrt(800))


def test_heavy_rows_have_three_quarters_of_a_length():
    sigma = np.sort(row_sensitivities(FAMILIES["heavy"](512, 4, rng(10)), 1))
    np.testing.assert_allclose(sigma[-2:], 0.75, atol=0.03)
    assert sigma[-3] < 0.05


def test_spikes_are_half_of_a_mass_and_hardly_any_leverage():
    A = spiked_identity(1024, 3, 4)
    assert row_sensitivities(A, 4)[:3] == pytest.approx(1024 / 2047)
    assert row_sensitivities(A, 4).sum() == pytest.approx(3)
    assert leverage_scores(A)[:3] == pytest.approx(32 / (1023 + 32))


def test_scores():
    A = gaussian_rows(40, 3, rng())
    scores = {m: SCORES[m](Rows(A, 1)) for m in SCORES}
    np.testing.assert_allclose(scores["root_leverage"], np.sqrt(scores["leverage"]))
    np.testing.assert_array_equal(np.sort(scores["permuted"]), np.sort(scores["sensitivity"]))
    assert not (scores["permuted"] == scores["sensitivity"]).all()
    assert (scores["both"] >= scores["leverage"]).all() and (scores["both"] >= scores["sensitivity"]).all()


def test_sizes_and_exponents():
    m = sizes(4, 2048)
    assert m[0] == 4 and m[-2] < 512 <= m[-1]
    np.testing.assert_allclose(np.diff(np.log(m)), np.log(GROWTH))
    assert [exponent(p) for p in (1, 1.5, 4)] == pytest.approx([2, 4 / 3, 1.5])


def test_principal_columns_span_the_most_variance():
    x = rng().standard_normal((50, 6)) @ np.diag([1, 2, 3, 4, 5, 6.0])
    x = np.column_stack([x, np.full(50, 3.0)])  # a constant is no information
    A = principal_columns(x, 3)
    z = (x[:, :6] - x[:, :6].mean(axis=0)) / x[:, :6].std(axis=0)
    np.testing.assert_allclose((A**2).sum(axis=0), np.sort(np.linalg.eigvalsh(z.T @ z))[::-1][:3])


# ---- runs


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p["name"])
@pytest.mark.parametrize("method", ["sensitivity", "uniform", "permuted"])
def test_splitting_the_seeds_changes_nothing(problem, method):
    def rows(seeds):
        found = pd.DataFrame(run(problem, method, {}, seeds, Inputs(), "cpu").rows)
        return found.sort_values([c for c in ("d", "p", "seed") if c in found], ignore_index=True)

    whole = rows([0, 1])
    parts = pd.concat([rows([1]), rows([0])])
    keys = [c for c in ("d", "p", "seed") if c in parts]
    pd.testing.assert_frame_equal(whole, parts.sort_values(keys, ignore_index=True))
    assert len(whole) == 4


# ---- judging


def table(power=1.0, S_power=0.5, root=1.0, uniform=0.6, kept=0.3, leverage=0.9, capped=2, at_16=0.2):
    """Handmade results: distortions fall like (c d^power / m)^(1/2), with a little noise over seeds."""
    noise = np.random.default_rng(0)
    rows = []

    def add(problem, method, seed, **values):
        rows.append({"problem": problem, "method": method, "seed": seed, **values})

    def falling(d, power):
        return {
            f"step_{k}": 0.5 * (4 * d**power / m) ** 0.5 * (1 + 0.01 * noise.random())
            for k, m in enumerate(sizes(d, 2048))
        }

    for seed, d in itertools.product(range(10), (4, 8, 16, 32)):
        add("heavy", "sensitivity", seed, d=d, n=2048, S=1.2 * d**S_power, **falling(d, power))
        add("heavy", "uniform", seed, d=d, n=2048, **{f"step_{k}": 0.8 for k, _ in enumerate(sizes(d, 2048))})
        for family in ("coherent-sizes", "vandermonde-sizes"):
            add(family, "root_leverage", seed, d=d, n=2048, **falling(d, root))
    for seed in range(10):
        add("coherent-12d", "root_leverage", seed, d=16, distortion=at_16)
        add("coherent-12d", "uniform", seed, d=16, distortion=uniform)
        for d in (8, 16):
            for method, D in (("sensitivity", kept), ("both", kept), ("leverage", leverage), ("uniform", 5.0)):
                add("spikes", method, seed, d=d, distortion=D)
        for i, (family, p) in enumerate(itertools.product(evidence.FAMILIES, POWERS)):
            add(family, "sensitivity", seed, p=p, capped=int(i < capped), distortion=0.3 if i < 17 else kept)
            add(family, "permuted", seed, p=p, capped=int(i < capped), distortion=2.0)
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("sensitivity_sample_size", {}, "replicated"),
    ("sensitivity_sample_size", {"power": 1.6}, "not replicated"),
    ("sensitivity_sample_size", {"S_power": 1.0}, "not replicated"),
    ("one_constant", {}, "replicated"),
    ("one_constant", {"kept": 0.7}, "not replicated"),  # 3 of 18 cells
    ("one_constant", {"capped": 11}, "not replicated"),
    ("root_leverage_sample_size", {}, "replicated"),
    ("root_leverage_sample_size", {"root": 1.6}, "not replicated"),
    ("root_leverage_sample_size", {"uniform": 0.3}, "not replicated"),
    ("sensitivities_beyond_two", {}, "replicated"),
    ("sensitivities_beyond_two", {"leverage": 0.4}, "not replicated"),
    ("sensitivities_beyond_two", {"kept": 0.7}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


@pytest.mark.parametrize(
    ("claim", "control"),
    [("sensitivity_sample_size", "uniform"), ("one_constant", "permuted"), ("sensitivities_beyond_two", "leverage")],
)
def test_controls_fail(claim, control, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table().standing_in(control, "sensitivity"))) == "not replicated"


def test_rows_needed():
    d, n = np.array([4, 16]), 2048.0
    found = np.zeros((3, 2, 13))
    for i, target in enumerate((30.0, 100.0)):  # distortion 1/2 at this m, falling linearly in log m
        for k, m in enumerate(sizes(d[i], 2048)):
            found[:, i, k] = 0.5 - 0.2 * np.log(m / target)
    np.testing.assert_allclose(evidence.rows_needed(d, n, np.maximum(found, 1e-3)), [30, 100])
    np.testing.assert_allclose(evidence.rows_needed(d, n, np.full((3, 2, 13), 0.1)), d)  # at once
    np.testing.assert_allclose(evidence.rows_needed(d, n, np.full((3, 2, 13), 0.9)), n)  # never
