"""What a weighted sample of rows does to l_p lengths."""

import numpy as np
import pytest

from papertrial.testbeds.subspace_distortion import ascend, distortion, powers, subspace
from papertrial.testbeds.tall_matrices import (
    coherent_rows,
    gaussian_rows,
    repeated_identity,
    spiked_identity,
    vandermonde,
    with_heavy_rows,
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 4])
def test_powers(p):
    r = np.array([[-2.0, 0.5], [3.0, -0.1]])
    size, below = powers(r, p)
    np.testing.assert_allclose(size, np.abs(r) ** p)
    np.testing.assert_allclose(below, np.sign(r) * np.abs(r) ** (p - 1))


def test_at_p_2_it_is_the_largest_generalised_eigenvalue():
    A = coherent_rows(300, 5, rng(1), share=0.1, scale=20)
    w = rng(2).exponential(size=300)
    Q = np.linalg.qr(A)[0]
    exact = np.abs(np.linalg.eigvalsh(Q.T @ (Q * w[:, None])) - 1).max()
    assert distortion(subspace(A, 2, rng(3)), w, rng(4)) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("p", [1, 1.5, 3, 4])
def test_on_identities_it_is_the_worst_coordinate(p):
    A = repeated_identity(60, 4)
    w = rng(5).exponential(size=60)
    mass = w @ np.abs(A) ** p / 15
    assert distortion(subspace(A, p, rng()), w, rng()) == pytest.approx(np.abs(mass - 1).max(), rel=1e-4)


def test_a_dropped_row_costs_its_sensitivity():
    A = with_heavy_rows(256, 4, rng(6), scale=2.4)
    w = np.ones(256)
    heavy = np.argmax(np.abs(A).sum(axis=1))
    w[heavy] = 0
    from papertrial.methods.row_scores import row_sensitivities

    assert distortion(subspace(A, 1, rng()), w, rng()) == pytest.approx(row_sensitivities(A, 1)[heavy], rel=1e-3)


def test_a_sample_of_low_rank_has_distortion_one():
    A = gaussian_rows(50, 5, rng(7))
    w = np.zeros(50)
    w[:4] = 10
    assert distortion(subspace(A, 1, rng()), w, rng()) == 1


def test_ascent_finds_more_than_random_directions():
    A = np.linalg.qr(coherent_rows(500, 8, rng(8), share=0.02, scale=50))[0]
    w = rng(9).integers(0, 2, size=500) * 2.0
    x, one = rng(10).standard_normal((8, 100)), np.ones(500)
    r = np.abs(A @ x)
    start = np.abs(w @ r / r.sum(axis=0) - 1).max()
    assert ascend(A, one, w, x, 1, steps=0) == pytest.approx(start, rel=1e-4)
    assert ascend(A, one, w, x, 1) > 1.2 * start


# ---- the matrices


def test_families():
    A = spiked_identity(100, 3, 4)
    mass = (A**4).sum(axis=0)
    np.testing.assert_allclose(mass, 199)
    np.testing.assert_allclose((A**4).max(axis=0), 100)
    V = vandermonde(400, 6)
    np.testing.assert_allclose(V.T @ V, np.eye(6), atol=1e-12)
    C = coherent_rows(200, 3, rng(), share=0.05, scale=1000)
    assert (np.abs(C).max(axis=1) > 30).sum() == 10
    H = with_heavy_rows(128, 5, rng(), scale=2.4)
    norms = np.sort(np.linalg.norm(H, axis=1))
    np.testing.assert_allclose(norms[-2:], 2.4 * 128)
    assert norms[-3] < 10
    assert repeated_identity(12, 4).sum(axis=0).tolist() == [3, 3, 3, 3]
