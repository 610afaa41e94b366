"""Landscapes: known minimisers and gradients."""

import numpy as np
import pytest

from papertrial.testbeds.landscapes import Counted, canyon, kinked, quadratic, rastrigin, rosenbrock

LANDSCAPES = {
    "canyon": canyon(),
    "rastrigin": rastrigin(3),
    "rosenbrock": rosenbrock(0.01),
    "quadratic": quadratic(np.array([[2.0, 0.5], [0.5, 1.0]])),
    "kinked": kinked(2),
}


@pytest.mark.parametrize("name", LANDSCAPES)
def test_gradient(name):
    f, rng, h = LANDSCAPES[name], np.random.default_rng(0), 1e-6
    x = rng.uniform(f.low, f.high, (100, f.d))
    numeric = np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(f.d)], axis=-1)
    np.testing.assert_allclose(f.gradient(x), numeric, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_minimiser(name):
    f, rng = LANDSCAPES[name], np.random.default_rng(0)
    assert f(f.minimiser) == pytest.approx(f.minimum, abs=1e-12)
    assert (f(rng.uniform(f.low, f.high, (20_000, f.d))) > f.minimum).all()
    assert (f(f.minimiser + 1e-3 * rng.standard_normal((500, f.d))) >= f.minimum).all()


def test_batches_of_any_shape():
    for f in LANDSCAPES.values():
        x = np.random.default_rng(0).standard_normal((2, 3, f.d))
        assert f(x).shape == (2, 3) and f.gradient(x).shape == x.shape
        np.testing.assert_allclose(f(x)[1, 2], f(x[1, 2]))


def test_the_meter():
    E = Counted(canyon(), gradient_cost=3)
    E(np.zeros((4, 5, 2)))
    E.gradient(np.zeros((2, 2)))
    E(np.zeros(2))
    assert E.evaluations == 20 + 6 + 1
