"""Families of finite-sum monotone operators keep the constants that they state."""

import numpy as np
import pytest

from papertrial.testbeds.monotone_operators import Counted, bilinear, logistic, matrix_game, projections, simplex


def labelled(seed=0, n=50, d=4):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True), rng.choice([-1.0, 1.0], n)


FAMILIES = {
    "projections": lambda: projections(np.random.default_rng(0), 50, 6),
    "bilinear": lambda: bilinear(np.random.default_rng(0), 50, 5),
    "logistic": lambda: logistic(*labelled()),
    "matrix-game": lambda: matrix_game(np.random.default_rng(0), 12),
}


def components(F, u):
    return np.array([F.batch(np.array([i]), u) for i in range(F.n)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_operator_is_the_mean_of_its_components_and_batches_are_means(family):
    F, rng = FAMILIES[family](), np.random.default_rng(1)
    u = rng.standard_normal(len(F.u0))
    np.testing.assert_allclose(components(F, u).mean(axis=0), F(u), atol=1e-12)
    i = rng.integers(F.n, size=7)
    np.testing.assert_allclose(F.batch(i, u), components(F, u)[i].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_constants_hold(family):
    F, rng = FAMILIES[family](), np.random.default_rng(2)
    for _ in range(30):
        u, v = rng.standard_normal((2, len(F.u0)))
        squares = ((components(F, u) - components(F, v)) ** 2).sum(axis=1).mean()
        inner, distance = (F(u) - F(v)) @ (u - v), np.linalg.norm(u - v)
        bound = F.L * inner if family in ("projections", "logistic") else F.L**2 * distance**2
        assert squares <= bound * (1 + 1e-9)
        assert inner >= -1e-9
        assert np.linalg.norm(F(u) - F(v)) <= F.L_F * distance * (1 + 1e-9)


def test_projections_meet_their_constant_with_equality():
    """H_i is a projection, so ||H_i x||^2 = <H_i x, x>."""
    F, rng = FAMILIES["projections"](), np.random.default_rng(3)
    u, v = rng.standard_normal((2, len(F.u0)))
    squares = ((components(F, u) - components(F, v)) ** 2).sum(axis=1).mean()
    assert squares == pytest.approx((F(u) - F(v)) @ (u - v))


def test_logistic_is_the_gradient_of_its_loss():
    x, y = labelled()
    F, rng = logistic(x, y), np.random.default_rng(4)
    u, h = rng.standard_normal(4), 1e-6
    loss = lambda u: np.logaddexp(0, -y * (x @ u)).mean()  # noqa: E731
    numeric = [(loss(u + h * e) - loss(u - h * e)) / (2 * h) for e in np.eye(4)]
    np.testing.assert_allclose(F(u), numeric, atol=1e-8)


def test_the_residual_of_a_game_vanishes_at_its_equilibrium():
    F = matrix_game(np.random.default_rng(5), 3)
    u = F.u0
    for _ in range(5000):
        u = F.project(u - 0.3 * F(F.project(u - 0.3 * F(u))))
    assert F.residual(u) < 1e-8
    A = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])  # rock, paper, scissors: uniform play
    np.testing.assert_allclose(A @ (np.ones(3) / 3), 0)


def test_simplex_projection():
    rng = np.random.default_rng(6)
    v = rng.standard_normal((20, 5)) * 2
    p = simplex(v)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert (p >= 0).all()
    others = rng.dirichlet(np.ones(5), size=200)  # variational inequality: (v - p)(q - p) <= 0
    assert (((v - p)[:, None] * (others[None] - p[:, None])).sum(axis=-1) <= 1e-12).all()
    np.testing.assert_allclose(simplex(p), p, atol=1e-15)


def test_the_meter():
    F = Counted(FAMILIES["projections"]())
    F(F.operator.u0)
    F.batch(np.array([1, 1, 3]), F.operator.u0)
    assert F.calls == 53
