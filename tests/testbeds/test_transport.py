"""Families of optimal transport problems, the marginal error, the linear program."""

from itertools import permutations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from papertrial.testbeds.transport import (
    FAMILIES,
    OT,
    gaussian_clouds,
    image_pair,
    lp_ot,
    make_ot,
    marginal_error,
    squared_distances,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 4)).astype(np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_problems_and_their_seeds(family):
    C, r, c = make_ot(family, 7, seed=3)
    assert C.shape == (7, 7)
    assert C.min() >= 0 and C.max() <= 1
    np.testing.assert_allclose([r.sum(), c.sum()], 1)
    np.testing.assert_array_equal(C, make_ot(family, 7, seed=3).C)
    assert (make_ot(family, 7, seed=4).C != C).any()


def test_clouds_stand_apart_by_the_shift():
    near, far = (gaussian_clouds(400, 0, d=16, shift=shift) for shift in (0.0, 3.0))
    # E ||x - y||^2 = d (2 + shift^2); relative to the largest distance the far clouds are tighter.
    assert near.C.std() / near.C.mean() > 1.5 * far.C.std() / far.C.mean()


def test_squared_distances():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    np.testing.assert_allclose(squared_distances(x, y), cdist(x, y, "sqeuclidean"), rtol=1e-14)


@pytest.mark.parametrize(("p", "metric"), [(1, "cityblock"), (2, "sqeuclidean")])
def test_image_costs_are_pixel_distances(p, metric):
    C = image_pair(IMAGES, 0, p).C
    pixels = np.array([(i, j) for i in range(3) for j in range(4)])
    np.testing.assert_allclose(C * cdist(pixels, pixels, metric).max(), cdist(pixels, pixels, metric), atol=1e-14)


def test_image_marginals_are_two_different_pictures():
    for seed in range(10):
        _, r, c = image_pair(IMAGES, seed, 1)
        masses = (IMAGES / IMAGES.max() + 0.01).reshape(5, -1)
        masses /= masses.sum(axis=1, keepdims=True)
        which = [int(np.abs(masses - m).sum(axis=1).argmin()) for m in (r, c)]
        assert len(set(which)) == 2
        np.testing.assert_allclose([r, c], masses[which])


def test_marginal_error():
    r, c = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert marginal_error(np.outer(r, c), r, c) == 0
    assert marginal_error(np.diag(r), r, c) == pytest.approx(0.5)


def test_lp_is_the_best_permutation():
    C, r, c = make_ot("assignment", 5, 0)
    value, P = lp_ot(C, r, c)
    assert value == pytest.approx(min(C[range(5), list(p)].mean() for p in permutations(range(5))))
    assert marginal_error(P, r, c) < 1e-15


def general(seed: int, m: int = 6, n: int = 8) -> OT:
    rng = np.random.default_rng(seed)
    r, c = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n))
    return OT(rng.random((m, n)), r, c / c.sum() * r.sum())


def test_lp_on_the_line_is_the_monotone_plan():
    r, c = general(0).r, general(0).c
    C = np.abs(np.subtract.outer(np.arange(6.0), np.arange(8.0)))
    gaps = np.cumsum(np.concatenate([r, np.zeros(2)])) - np.cumsum(c)
    assert lp_ot(C, r, c)[0] == pytest.approx(np.abs(gaps).sum())  # Wasserstein-1 is the area between the two CDFs


def test_lp_solvers_agree_and_are_feasible():
    C, r, c = make_ot("clouds", 6, 0)
    nudge = np.linspace(-1e-9, 1e-9, 6)  # no longer uniform: the general solver
    assert lp_ot(C, r + nudge, c)[0] == pytest.approx(lp_ot(C, r, c)[0], abs=1e-7)
    for seed in range(3):
        problem = general(seed)
        assert marginal_error(lp_ot(*problem)[1], problem.r, problem.c) < 1e-9


def test_lp_agrees_with_pot(monkeypatch):
    monkeypatch.setenv("POT_BACKEND_DISABLE_PYTORCH", "1")  # quick to import
    ot = pytest.importorskip("ot")
    for C, r, c in (general(0), general(1), make_ot("clouds", 12, 0)):
        assert lp_ot(C, r, c)[0] == pytest.approx(ot.emd2(r, c, C), abs=1e-9)
