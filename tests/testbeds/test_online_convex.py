"""Streams of random losses."""

import numpy as np
import pytest

from papertrial.testbeds.online_convex import (
    Classification,
    IndefiniteQuadratics,
    ball,
    burst,
    fading_noise,
    rotating,
    stationary,
)


def classification(seed=0, n=25, d=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(rng.random(n) < 0.6, 1, -1)
    return Classification(x, y, np.stack([rng.permutation(n) for _ in range(2)]), 2.0)


STREAMS = {
    "rotating": lambda: rotating([0, 1], 25, [2, 7], [0.1, 1]),
    "fading": lambda: fading_noise([0, 1], 25, -0.5),
    "indefinite": lambda: IndefiniteQuadratics([0, 1], 25, [0.1, 1]),
    "burst": lambda: burst([0, 1], 100, 10.0),
    "stationary": lambda: stationary([0, 1], 25, 0.3),
    "classification": classification,
}


@pytest.mark.parametrize("name", STREAMS)
def test_no_point_of_the_ball_is_better_than_the_best(name):
    stream, rng = STREAMS[name](), np.random.default_rng(0)
    best, shape = stream.best(stream.T), (400, *stream.lanes, stream.d)
    u = ball(stream.radius * rng.standard_normal(shape), stream.radius)
    total = sum(stream.value(t, u) for t in range(1, stream.T + 1))
    assert best.shape == stream.lanes
    assert (total >= best - 1e-9).all()
    if name not in ("burst", "stationary"):  # and a point on the edge comes near it
        scale = max(1.0, np.abs(best).max())
        assert ((total.min(axis=0) - best) / scale < 0.35).all()


@pytest.mark.parametrize("name", ["indefinite", "classification", "stationary"])
def test_gradients_are_those_of_the_expected_losses_plus_noise(name):
    stream, rng, h = STREAMS[name](), np.random.default_rng(1), 1e-6
    x = ball(rng.standard_normal((*stream.lanes, stream.d)), stream.radius)
    numeric = np.stack(
        [(stream.value(3, x + h * e) - stream.value(3, x - h * e)) / (2 * h) for e in np.eye(stream.d)], axis=-1
    )
    noise = {
        "indefinite": lambda: stream.s[..., None] * ((stream.E[2] @ x[..., None])[..., 0] + stream.n[2]),
        "classification": lambda: 0,
        "stationary": lambda: stream.z - stream.targets[2],
    }[name]()
    np.testing.assert_allclose(stream.gradient(3, x), numeric + noise, atol=1e-7)


def test_gradient_bounds_and_noise_of_the_quadratics():
    stream, rng = IndefiniteQuadratics(range(30), 400, [0.5]), np.random.default_rng(2)
    x = ball(rng.standard_normal((*stream.lanes, 5)) * 9, 1.0)  # on the sphere
    assert np.linalg.norm(x @ stream.A + stream.drift, axis=-1).max() <= stream.G + 1e-12
    noise = [stream.gradient(t, x) - x @ stream.A - stream.drift for t in range(1, 401)]
    sigma2, Sigma2 = stream.variation()
    assert np.mean(np.sum(np.square(noise), axis=-1)) * stream.T == pytest.approx(sigma2[0, 0], rel=0.03)
    assert (Sigma2 == 0).all()
    np.testing.assert_allclose(stream.E, stream.E.swapaxes(-1, -2))
    assert (stream.indefinite() >= 0.5).all()


def test_noise_of_fading_and_burst():
    stream = fading_noise(range(400), 50, -0.5)
    assert (stream.scale.ravel() ** 2) == pytest.approx(np.arange(1, 51) ** -0.5)
    assert (stream.noise**2).sum(axis=-1).mean() == pytest.approx(1, rel=0.03)
    loud = (np.abs(burst([0], 1000, 10.0).targets - [0.3, -0.2]).max(axis=-1) > 0).ravel()
    assert loud.sum() == 20 and loud[49:69].all()  # rounds 50 to 69


def test_leading_axes_meet_the_same_losses():
    for name in STREAMS:
        stream = STREAMS[name]()
        x = np.random.default_rng(3).standard_normal((4, *stream.lanes, stream.d)) * 0.1
        many = stream.gradient(2, x)
        assert many.shape == x.shape
        np.testing.assert_allclose(many[3], stream.gradient(2, x[3]))
        np.testing.assert_allclose(stream.value(2, x)[3], stream.value(2, x[3]))


def test_ball():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0, 0]])
    np.testing.assert_allclose(ball(x, 1.0), [[0.6, 0.8], [0.3, 0.4], [0, 0]])
