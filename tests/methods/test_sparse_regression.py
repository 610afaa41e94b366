"""Orthogonal matching pursuit and the lasso."""

import numpy as np
import pytest

from papertrial.methods.sparse_regression import fista, omp, shrink


def system(complex_valued=False, m=30, n=60, k=4, noise=0.0):
    rng = np.random.default_rng(0)
    H = rng.standard_normal((m, n)) + (1j * rng.standard_normal((m, n)) if complex_valued else 0)
    H = H / np.linalg.norm(H, axis=0)
    x = np.zeros(n, dtype=H.dtype)
    x[rng.choice(n, k, replace=False)] = 1 + rng.random(k)
    return H, x, H @ x + noise * rng.standard_normal(m)


@pytest.mark.parametrize("complex_valued", [False, True])
def test_omp_is_exact_without_noise_and_leaves_an_orthogonal_residual(complex_valued):
    H, x, y = system(complex_valued)
    np.testing.assert_allclose(omp(H, y, 4), x, atol=1e-10)
    H, x, y = system(complex_valued, noise=0.3)
    found = omp(H, y, 6)
    assert np.count_nonzero(found) == 6
    np.testing.assert_allclose(H[:, found != 0].conj().T @ (y - H @ found), 0, atol=1e-10)


def test_fista_meets_the_optimality_conditions_of_the_lasso():
    H, _, y = system(noise=0.1)
    lam = 0.2
    x = fista(lambda x: H.T @ (H @ x - y), np.zeros(60), np.linalg.norm(H, 2) ** 2, lam, 3000)
    pull = H.T @ (y - H @ x)
    np.testing.assert_allclose(pull[x != 0], lam * np.sign(x[x != 0]), atol=1e-6)
    assert (np.abs(pull[x == 0]) <= lam + 1e-6).all() and 0 < np.count_nonzero(x) < 30


def test_shrink():
    np.testing.assert_allclose(shrink(np.array([3.0, -0.5, 0, -2]), 1), [2, 0, 0, -1])
    np.testing.assert_allclose(shrink(np.array([3j, 0.5j]), 1), [2j, 0])


@pytest.mark.slow  # the import alone takes two seconds
def test_against_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    H, _, y = system(noise=0.3)
    peer = linear_model.OrthogonalMatchingPursuit(n_nonzero_coefs=6, fit_intercept=False).fit(H, y)
    np.testing.assert_allclose(omp(H, y, 6), peer.coef_, atol=1e-8)
    lam = 0.2
    peer = linear_model.Lasso(lam / len(y), fit_intercept=False, tol=1e-12, max_iter=100_000).fit(H, y)
    ours = fista(lambda x: H.T @ (H @ x - y), np.zeros(60), np.linalg.norm(H, 2) ** 2, lam, 3000)
    np.testing.assert_allclose(ours, peer.coef_, atol=1e-6)
