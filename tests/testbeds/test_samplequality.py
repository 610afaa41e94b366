"""Distances with known answers, and the pictures that they are taken of."""

import numpy as np
import pytest

from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.samplequality import FrechetDistance, SlicedW2, distances, mode_tv, ode_error


def normal(n, d, seed=1000):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_frechet_of_gaussians():
    x = normal(500, 4)
    fd = FrechetDistance(x)
    assert fd(x) == pytest.approx(0, abs=1e-9)
    assert fd(x + 2.0) == pytest.approx(16)  # |shift|^2
    centred = x - x.mean(0)
    assert FrechetDistance(centred)(3 * centred) == pytest.approx(4 * np.trace(np.cov(x.T)))  # (3 - 1)^2 tr C


def test_frechet_is_invariant_under_rotation_and_symmetric():
    x, y = normal(300, 4), normal(200, 4, 1001) @ np.diag([1, 2, 0.5, 1]) + 1
    q = np.linalg.qr(normal(4, 4, 1002))[0]
    assert FrechetDistance(x @ q)(y @ q) == pytest.approx(FrechetDistance(x)(y))
    assert FrechetDistance(y)(x) == pytest.approx(FrechetDistance(x)(y))


def test_frechet_is_biased_upwards_in_one_over_n():
    real = normal(20_000, 8)
    fd = FrechetDistance(real)
    few, many = (np.mean([fd(normal(n, 8, s)) for s in range(1001, 1011)]) for n in (100, 400))
    assert few / many == pytest.approx(4, rel=0.3)


def test_frechet_with_fewer_samples_than_features():
    assert np.isfinite(FrechetDistance(normal(100, 16))(normal(5, 16, 1001)))


def test_sliced_w2():
    x = normal(2000, 2)
    w2 = SlicedW2(x)
    assert w2(x) == 0
    assert w2(x[::-1]) == 0
    assert w2(x + np.array([3.0, 4.0])) == pytest.approx(5 / np.sqrt(2), rel=0.05)  # mean square of a direction's share
    assert w2(np.repeat(x, 2, axis=0)) == pytest.approx(0, abs=1e-12)


def test_mode_tv():
    modes = np.array([[0.0, 0], [4, 0]])
    assert mode_tv(np.array([[0.1, 0], [4, 1]]), modes) == 0
    assert mode_tv(np.zeros((5, 2)), modes) == 0.5
    assert mode_tv(np.zeros((5, 2)), modes, np.array([1.0, 0])) == 0


def test_ode_error_of_points_and_pictures():
    assert distances(np.array([[3.0, 4.0]]), np.zeros((1, 2))).tolist() == [5]
    x = np.zeros((3, 1, 2, 2))
    x[0] = 2
    assert distances(x, np.zeros_like(x)).tolist() == [2, 0, 0]
    assert ode_error(x, np.zeros_like(x)) == {"ode_median": 0, "ode_rms": pytest.approx(2 / np.sqrt(3))}


@pytest.mark.parametrize("size", [32, 16, 8])
def test_pictures_are_averages(size):
    x = np.random.default_rng(1000).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    found = pictures(x, size)
    pool = 32 // size
    padded = np.pad(x / 127.5 - 1, ((0, 0), (2, 2), (2, 2)), constant_values=-1)
    expected = padded.reshape(3, size, pool, size, pool).mean((2, 4))
    assert found.shape == (3, 1, size, size) and found.dtype == np.float32
    assert np.allclose(found[:, 0], expected, atol=1e-6)
    assert pictures(np.full((1, 28, 28), 255, np.uint8), size).max() == pytest.approx(1)
