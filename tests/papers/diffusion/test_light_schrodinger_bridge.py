"""LightSB against known bridges, quadrature and simulation, and the judging of its claims on made-up tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.papers.diffusion.light_schrodinger_bridge import evidence
from papertrial.papers.diffusion.light_schrodinger_bridge.baselines import EntropicMap
from papertrial.papers.diffusion.light_schrodinger_bridge.method import (
    drift,
    estimate,
    fit,
    light,
    paths,
    run,
    without_x,
)
from papertrial.papers.diffusion.light_schrodinger_bridge.neural import Drift, simulate
from papertrial.testbeds.schrodinger import Diagonal, Pair, Potential, mixture_pair, normal, planar_pair

HOW = {"K": 1, "covariance": "full", "lr": 0.03, "decay": 0.6, "steps": 300, "batch": 512}
SMALL = {"K": 4, "covariance": "diagonal", "lr": 0.01, "decay": 0.4, "steps": 4, "batch": 16}


def potential(dim=1, K=3, eps=0.5, seed=1000):
    rng = np.random.default_rng(seed)
    log_a, r = torch.from_numpy(rng.uniform(-1, 1, K)), 1.5 * normal(rng, K, dim)
    return Potential(log_a, r, Diagonal(torch.from_numpy(rng.uniform(-0.7, 0.7, (K, dim)))), eps)


def one_to_four(eps):
    """N(0, 1) -> N(0, 4)."""
    return Pair(1, eps, lambda n, rng: normal(rng, n, 1), lambda n, rng: 2 * normal(rng, n, 1))


@pytest.mark.parametrize(("eps", "known"), [(0.1, 1.950625), (1, 1.561553), (10, 0.385165)])
def test_solver_finds_the_known_plan_covariance(eps, known):
    v = fit(one_to_four(eps), HOW, np.random.default_rng(1000))
    assert v.S.matrices().item() == pytest.approx(known, rel=0.02)  # Cov(x, y) = S Var(x), Var(x) = 1


def test_normaliser_is_an_integral():
    v = potential()
    y = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    for x in (-1.3, 0.0, 0.9):
        integral = torch.trapezoid((x * y / v.eps + v.log_v(y[:, None])).exp(), y).log().item()
        assert v.log_c(torch.tensor([[x]], dtype=torch.float64)).item() == pytest.approx(integral, abs=1e-6)


def test_bridge_ends_in_the_plan():
    v, n = potential(dim=1), 10_000
    x = torch.tensor([[0.6]], dtype=torch.float64)
    mean, cov = v.moments(x)
    rng, y = np.random.default_rng(1000), x.expand(n, -1)
    for i in range(500):
        y = y + drift(v, y, i / 500) / 500 + (v.eps / 500) ** 0.5 * normal(rng, n, 1)
    size = cov.item()
    assert torch.allclose(y.mean(0), mean[0], atol=0.03 * size**0.5)
    assert torch.cov(y.T).item() == pytest.approx(size, rel=0.03)
    assert paths(v, x, 3, rng).shape == (4, 1, 1)


def test_drift_starts_as_the_slope_of_the_normaliser():
    """At t = 0 the braces are log c(x) - |x|^2/(2 eps) + const."""
    v, x = potential(dim=2), normal(np.random.default_rng(1001), 5, 2).requires_grad_()
    braces = v.log_c(x) - x.square().sum(1) / (2 * v.eps)
    slope = v.eps * torch.autograd.grad(braces.sum(), x)[0]
    assert torch.allclose(drift(v, x.detach(), 0.0), slope, atol=1e-10)


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_objective_is_lowest_at_the_truth(n):
    pair, rng = mixture_pair(2, 1.0, 1000), np.random.default_rng(1001)
    x, y = pair.sample0(n, rng), pair.sample1(n, rng)
    truth, least = pair.plan, light(pair.plan, x, y)
    for _ in range(100):
        moved = [p + 0.1 * normal(rng, *p.shape) for p in (truth.log_a, truth.r, truth.S.log_s)]
        assert light(Potential(moved[0], moved[1], Diagonal(moved[2]), 1.0), x, y) > least


def test_objective_does_not_see_the_scale_of_the_potential():
    v, rng = potential(dim=2), np.random.default_rng(1002)
    x, y = normal(rng, 50, 2), normal(rng, 50, 2)
    assert light(replace(v, log_a=v.log_a + 3), x, y).item() == pytest.approx(light(v, x, y).item())


def test_control_fits_the_marginal_and_misses_the_bridge():
    """Without x the best single Gaussian is p1's, eps S = 4, so S is 4/eps and not the plan's."""
    v = fit(one_to_four(1.0), HOW, np.random.default_rng(1000), without_x)
    assert v.S.matrices().item() == pytest.approx(4, rel=0.1)


def test_estimation_ends_at_a_minimum():
    pair, rng = mixture_pair(2, 1.0, 1000), np.random.default_rng(1001)
    x, y = pair.sample0(500, rng), pair.sample1(500, rng)
    v, slope = estimate(pair.plan, x, y)
    assert slope < 1e-6 and light(v, x, y) < light(pair.plan, x, y)


def test_networks_start_as_paths_of_the_right_noise():
    still = Drift(2, 4)
    torch.nn.init.zeros_(still.net[-1].weight), torch.nn.init.zeros_(still.net[-1].bias)
    y = simulate(still, torch.zeros(20_000, 2), 0.5, 10, np.random.default_rng(1000))
    assert torch.allclose(torch.cov(y.T), 0.5 * torch.eye(2), atol=0.02)


@pytest.mark.slow  # importing ot takes a second
def test_agrees_with_pot():
    ot = pytest.importorskip("ot")
    pair, rng = planar_pair("ring8", "checker", 0.3), np.random.default_rng(1000)
    x, y = pair.sample0(100, rng), pair.sample1(120, rng)
    found = EntropicMap(x, y, 0.3, 1e-10, 5000)
    cost = 0.5 * ot.dist(x.numpy(), y.numpy())
    plan = ot.sinkhorn(np.full(100, 1 / 100), np.full(120, 1 / 120), cost, 0.3, stopThr=1e-10, numItermax=5000)
    assert np.allclose(found.weights(x).numpy(), 100 * plan, atol=1e-6)
    assert np.allclose(found.mean(x).numpy(), 100 * plan @ y.numpy(), atol=1e-6)
    assert found.moments(x)[1].diagonal(dim1=1, dim2=2).min() > 0


COST = {"measure": "cost", "dim": 2, "eps": 1, "cost_x": 3, "watch_x": 2, "paths": 10, "ends": 20, "path_steps": 3}
COST |= {"outer": 2, "inner_steps": 3}
NEURAL = {"width": 8, "ema": 0.9, "lr": 1e-3, "decay": 0.4, "steps_of_paths": 3, "batch": 8}
CELLS = {"dims": [2], "epsilons": [1], "test_x": 10, "moment_draws": 50}
FEW = {"draws": 20, "tol": 0.1, "cap": 5}
CASES = {
    "mixture": ({"measure": "accuracy", "family": "mixture", **CELLS}, "lightsb", SMALL),
    "control": ({"measure": "accuracy", "family": "mixture", **CELLS}, "no-x", SMALL),
    "linear": ({"measure": "accuracy", "family": "gaussian", **CELLS}, "linear", {}),
    "sinkhorn": (
        {"measure": "accuracy", "family": "mixture", **CELLS},
        "sinkhorn",
        FEW,
    ),
    "cost": (COST, "lightsb", SMALL),
    "neural": (COST, "neural", NEURAL),
    "universal": (
        {"measure": "universal", "first": "ring8", "second": "checker", "eps": 0.3, "tol": 0.1, "cap": 5}
        | {"points": 20, "draws": 20, "moment_draws": 50, "Ks": [1, 2], "drawn": 5, "drawn_paths": 2},
        "lightsb",
        SMALL,
    ),
    "rate": ({"measure": "rate", "dim": 2, "eps": 1, "sizes": [100, 200], "fresh": 500}, "lightsb", {}),
    "digits": (
        {"measure": "digits", "source": 3, "target": 8, "dim": 4, "eps": 1, "train": 0.5, "shown": 2, "draws_shown": 2},
        "lightsb",
        SMALL,
    ),
}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1000)
    return Inputs({"digits": {"x": rng.integers(0, 17, (60, 8, 8)).astype(np.uint8), "y": np.repeat([3, 8, 5], 20)}})


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, inputs):
    problem, method, settings = CASES[case]
    both, first, second = (
        pd.DataFrame(run({"name": case, **problem}, method, settings, seeds, inputs, "cpu").rows)
        for seeds in ([1000, 1001], [1000], [1001])
    )
    pd.testing.assert_frame_equal(both, pd.concat([first, second], ignore_index=True))
    assert np.isfinite(both.to_numpy(dtype=float)).all()


def table(*rows, **tables):
    return Evidence(pd.DataFrame(list(rows)), **tables)


def c1_table(mixture, gaussian):
    """Errors of nine cells each; the control fails everywhere in 16 dimensions."""
    cells = [(d, e) for d in (2, 16, 64) for e in (0.1, 1, 10)]
    return table(
        *[
            {"problem": p, "method": m, "seed": s, "dim": d, "eps": e, "error": error + 0.01 * (s - 1)}
            for p, errors in (("mixture", mixture), ("gaussian", gaussian))
            for (d, e), found in zip(cells, errors, strict=True)
            for m, error in (("lightsb", found), *([("no-x", 200.0)] if d == 16 else []))
            for s in range(3)
        ]
    )


def test_c1_is_judged_as_the_card_says():
    good = c1_table([0.9] * 8 + [1.5], [0.4] * 9)
    criteria = evidence.accurate_with_one_setting(good)
    assert [(c.threshold, c.n) for c in criteria] == [(8, 9), (9, 9)] and verdict(criteria) == "replicated"
    assert verdict(evidence.accurate_with_one_setting(good.standing_in("no-x", "lightsb"))) == "not replicated"
    assert verdict(evidence.accurate_with_one_setting(c1_table([0.9] * 7 + [1.5] * 2, [0.4] * 9))) == "not replicated"
    assert verdict(evidence.accurate_with_one_setting(c1_table([0.9] * 9, [0.4] * 8 + [0.6]))) == "not replicated"


def c2_table(times, errors):
    rows, timings = [], []
    for p, dim in (("cost-d2", 2), ("cost-d16", 16)):
        for s in range(3):
            key = {"problem": p, "seed": s, "dim": dim}
            rows += [{**key, "method": m, "error": e} for m, e in (("lightsb", 0.2), ("neural", errors[dim]))]
            timings += [{**key, "method": m, "cpu_s": t} for m, t in (("lightsb", 2.0), ("neural", times[dim]))]
    return table(*rows, timings=pd.DataFrame(timings))


@pytest.mark.parametrize(
    ("times", "errors", "expected"),
    [
        ({2: 6.0, 16: 9.0}, {2: 1.0, 16: 5.0}, "replicated"),
        ({2: 5.9, 16: 9.0}, {2: 1.0, 16: 5.0}, "not replicated"),
        ({2: 6.0, 16: 9.0}, {2: 0.1, 16: 5.0}, "not replicated"),
    ],
)
def test_c2_is_judged_as_the_card_says(times, errors, expected):
    assert verdict(evidence.minutes_on_a_cpu(c2_table(times, errors))) == expected


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([1.0, 0.5, 0.3, 0.32, 0.34], "replicated"),
        ([1.0, 0.5, 0.3, 0.33, 0.36], "not replicated"),  # a fall by less than a factor of .35
        ([1.0, 0.5, 0.2, 0.23, 0.2], "not replicated"),
    ],
)
def test_c3_is_judged_as_the_card_says(errors, expected):
    rows = [
        {"problem": "universal", "method": "lightsb", "seed": s, "K": K, "error": e * (1 + 0.1 * s)}
        for K, e in zip((1, 3, 10, 30, 100), errors, strict=True)
        for s in range(3)
    ]
    criteria = evidence.universal_approximation(table(*rows))
    assert len(criteria) == 5 and verdict(criteria) == expected


@pytest.mark.parametrize(("power", "noise", "expected"), [(-1.0, 0.3, "replicated"), (-0.45, 0.05, "not replicated")])
def test_c4_is_judged_as_the_card_says(power, noise, expected):
    rng = np.random.default_rng(0)
    rows = [
        {"problem": "rate", "method": "lightsb", "seed": s, "N": N, "excess": N**power * np.exp(noise * rng.normal())}
        for s in range(10)
        for N in (250, 500, 1000, 2000, 4000, 8000, 16000)
    ]
    criteria = evidence.parametric_rate(table(*rows))
    assert criteria[0].estimate == pytest.approx(power, abs=0.1) and verdict(criteria) == expected
