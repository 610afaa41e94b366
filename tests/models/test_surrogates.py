"""surrogates: small networks trained by hand-written back-propagation."""

import numpy as np
import pytest

from papertrial.models.surrogates import LOSSES, backward, fit, named, simulator
from papertrial.testbeds.surrogates import Network, log_softmax


def value(loss, out, y):
    return {"squares": ((out - y) ** 2).mean(), "entropy": -(log_softmax(out) * y).sum(axis=1).mean()}[loss]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_the_losses_derivatives(loss):
    g = np.random.default_rng(0)
    layers = [(g.standard_normal((4, 6)), g.standard_normal(6)), (g.standard_normal((6, 3)), g.standard_normal(3))]
    x, y = g.standard_normal((9, 4)), np.eye(3)[g.integers(3, size=9)]
    gradients = backward(layers, x, y, LOSSES[loss])
    flat = [p for layer in layers for p in layer]
    for p, found in zip(flat, gradients, strict=True):
        numeric = np.zeros_like(p)
        for place in np.ndindex(p.shape):
            ends = []
            for h in (1e-6, -1e-6):
                p[place] += h
                ends.append(value(loss, Network(named(layers, ""))(x), y))
                p[place] -= h
            numeric[place] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found, numeric, atol=1e-6)


def test_fit_learns_a_kink():
    g = np.random.default_rng(1)
    x = g.uniform(-1, 1, (500, 2))
    y = np.maximum(x[:, :1], 0) - np.abs(x[:, 1:])
    net = Network(named(fit(x, y, "squares", [16, 16], 60, g), ""))
    assert ((net(x) - y) ** 2).mean() < 0.01 * y.var()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["process", "kinetics"])
def test_a_surrogate_explains_95_percent(family):
    settings = {"samples": 5000, "widths": [64, 64], "epochs": 80}
    state, r2 = simulator(family, settings, np.random.default_rng(1001))
    assert r2 > 0.95 and all(name.startswith(f"{family}/") for name in state)
