"""multi-block-bilevel: blockwise estimators and the algorithms built of them."""

from itertools import islice

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.papers.convex.multi_block_bilevel import evidence
from papertrial.papers.convex.multi_block_bilevel.algorithms import (
    ALGORITHMS,
    at_least,
    bsvrb_v1,
    bsvrb_v2,
    correction,
    msvr,
)
from papertrial.papers.convex.multi_block_bilevel.families import Digits, Quadratic, pick, put
from papertrial.papers.convex.multi_block_bilevel.method import COSTS, iterations, run

STEPS = {"a": 0.5, "b": 0.2, "tau": 0.5, "eta": 0.02}


def lanes(**steps):
    return {k: np.full((1, 1, 1), v) for k, v in steps.items()}


def digits(m=3, seeds=(0, 1)):
    rng = np.random.default_rng(1000)
    label = np.repeat(np.arange(10), 20)
    images = rng.integers(0, 5, (200, 4, 4)) + 3 * label[:, None, None] % 11
    return Digits(list(seeds), m, images, label, 25, 10)


def quadratic(m=5, seeds=(0, 1), sd=0.3):
    family = Quadratic(list(seeds), m)
    family.sd = sd
    return family


# ---- what must hold


def test_with_all_blocks_it_is_storm_and_without_memory_the_plain_value():
    s, new, old = np.random.default_rng(0).standard_normal((3, 4))
    for a in (0.1, 0.5):
        assert correction(a, 8, 8) == 1 - a
        storm = new + (1 - a) * (s - old)
        assert np.allclose(msvr(s, new, old, a, correction(a, 8, 8)), storm)
    assert correction(1.0, 8, 8) == 0
    assert (msvr(s, new, old, 1.0, 0.0) == new).all()


def test_at_a_fixed_point_its_time_average_is_the_mean():
    rng = np.random.default_rng(0)
    a, m, I = 0.2, 4, 1
    s, total = np.zeros(500), 0.0
    for t in range(1500):
        h = 3 + rng.standard_normal(500)
        s = np.where(rng.random(500) < I / m, msvr(s, h, h, a, correction(a, m, I)), s)
        total += s.mean() * (t >= 500)
    assert total / 1000 == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("kind", ["stated", "exact", "none"])
def test_lag_under_a_linear_drift(kind):
    a, m, I, delta = 0.3, 4, 1, 0.1
    q = I / m
    c, lag = {
        "stated": (correction(a, m, I), delta * (1 - q) / (q * (1 - a))),
        "exact": ((m - I) / I + 1 - a, 0.0),
        "none": (0.0, -delta * ((1 - a) * q + 1 - q) / (q * a)),
    }[kind]
    rng = np.random.default_rng(0)
    s, errors = np.zeros(2000), []
    for t in range(1, 3001):
        s = np.where(rng.random(2000) < q, msvr(s, delta * t, delta * (t - 1), a, c), s)
        errors.append(s.mean() - delta * t)
    assert np.mean(errors[500:]) == pytest.approx(lag, rel=0.02, abs=0.02 * delta)


def test_without_noise_the_estimate_is_the_closed_form_hypergradient():
    family = quadratic(sd=0.0)
    x = np.random.default_rng(3).standard_normal((1, 2, family.p))
    y = np.linalg.solve(family.Q, (family.P @ x[0, :, None, :, None] + family.b[..., None]))[..., 0][None]
    d = next(family.draws(family.m, 1))
    order = pick(y, d.idx)
    v = np.linalg.solve(family.hess(x, order, d), family.grad_y_f(x, order, d)[..., None])[..., 0]
    assert np.abs(family.grad_y_g(x, order, d)).max() < 1e-12
    assert np.allclose(family.reduced(x, order, v, d), family.gradient(x), atol=1e-9)


def test_fixed_point_of_the_tracked_product():
    family = quadratic(sd=0.0)
    x = family.start[None]
    y = v = np.zeros((1, 2, family.m, family.q))
    d = next(family.draws(family.m, 1))
    for _ in range(600):  # all blocks, x at rest
        y_i, v_i = pick(y, d.idx), pick(v, d.idx)
        y = put(y, d.idx, y_i - family.grad_y_g(x, y_i, d) / family.L)
        v = put(v, d.idx, v_i - (family.hvp(x, y_i, v_i, d) - family.grad_y_f(x, y_i, d)) / family.L)
    exact = np.linalg.solve(family.Q, (y[0] - family.r)[..., None])[..., 0]
    assert np.allclose(v[0], exact, atol=1e-9)


# ---- more mathematics


def test_exact_hypergradients_by_differences():
    family = quadratic()

    def objective(x):
        problems = zip(family.Q[0], family.P[0], family.b[0], strict=True)
        y = np.stack([np.linalg.solve(Q, P @ x + b) for Q, P, b in problems])
        return 0.5 * ((y - family.r[0]) ** 2).sum() / family.m + (x**2 / (1 + x**2)).sum()

    x = np.random.default_rng(0).standard_normal(family.p)
    differences = [(objective(x + e) - objective(x - e)) / 2e-5 for e in 1e-5 * np.eye(family.p)]
    assert np.allclose(family.gradient(np.stack([x, x])[None])[0, 0], differences, atol=1e-7)


def test_hypergradient_of_the_digits_by_differences():
    family = digits(seeds=(0,))
    d = family.whole(0)
    x = family.start[None] + 0.3 * np.random.default_rng(0).standard_normal((1, 1, family.p))

    def objective(x):
        family.gradient(x)  # leaves the solutions in ``solved``
        y = family.solved
        t = d.t_val * (d.z_val @ y[..., None])[..., 0]
        return np.log1p(np.exp(-t)).mean(axis=-1).mean() + 0.5 * family.decay * (x**2).sum()

    e = np.random.default_rng(1).standard_normal(x.shape)
    difference = (objective(x + 1e-5 * e) - objective(x - 1e-5 * e)) / 2e-5
    assert (family.gradient(x) * e).sum() == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("family", [quadratic(), digits()])
def test_derivatives_of_a_draw_fit_together_and_draws_are_unbiased(family):
    d = next(family.draws(2, 3))
    rng = np.random.default_rng(0)
    x = family.start[None] + 0.1 * rng.standard_normal((1, 2, family.p))
    y, v = rng.standard_normal((2, 1, 2, 2, family.q))
    h = 1e-6
    along = (family.grad_y_g(x, y + h * v, d) - family.grad_y_g(x, y - h * v, d)) / (2 * h)
    assert np.allclose(family.hvp(x, y, v, d), along, atol=1e-7)
    # the cross derivative: d/dx of (grad_y g . v), the mean over the blocks
    w = rng.standard_normal(x.shape)
    cross = ((family.grad_y_g(x + h * w, y, d) - family.grad_y_g(x - h * w, y, d)) / (2 * h) * v).sum(-1).mean(-1)
    rest = family.reduced(x, y, 0 * v, d)
    assert np.allclose(((rest - family.reduced(x, y, v, d)) * w).sum(-1), cross, atol=1e-6)


def test_draws_average_to_the_whole():
    family = digits(seeds=(0,))
    y = np.random.default_rng(0).standard_normal((1, 1, family.m, family.q))
    x = family.start[None]
    mean = np.zeros_like(y)
    for d in islice(family.draws(family.m, 25), 400):
        mean = mean + put(0 * y, d.idx, family.grad_y_g(x, pick(y, d.idx), d)) / 400
    exact = family.grad_y_g(x, y, family.whole(0))
    assert np.abs(mean - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("algorithm", [bsvrb_v1, bsvrb_v2])
def test_without_noise_the_algorithms_find_a_stationary_point(algorithm):
    family = quadratic(seeds=(0,), sd=0.0)
    path = algorithm(family, family.m, 1, **lanes(a=0.5, b=0.2, tau=0.5, eta=0.05))
    x = list(islice(path, 1500))[-1]
    assert np.linalg.norm(family.gradient(x)) < 1e-6 * np.linalg.norm(family.gradient(family.start[None]))


def test_projection_keeps_what_is_allowed_and_lifts_the_rest():
    M = np.diag([0.1, 2.0, -3.0])
    assert np.allclose(at_least(M, 0.5), np.diag([0.5, 2.0, 0.5]))
    assert np.allclose(at_least(np.diag([1.0, 2.0]), 0.5), np.diag([1.0, 2.0]))


def test_iterations_are_counted_by_lane_and_capped():
    family = quadratic(seeds=(0, 1))
    path = (np.stack([family.start * s, family.start])[:] for s in (1.0, 1.0, 1e9))
    assert iterations(family, path, 0.5, 1, 3).tolist() == [[3, 3], [3, 3]]


def test_version_1_costs_a_cube_and_version_2_a_line():
    assert COSTS["v2"](4, 64)[0] == 8 * COSTS["v2"](4, 8)[0]
    assert COSTS["v1"](4, 64)[0] > 400 * COSTS["v1"](4, 8)[0]


def test_peer_gives_the_same_exact_hypergradient():
    torch = pytest.importorskip("torch")
    torchopt = pytest.importorskip("torchopt")
    family = digits(m=1, seeds=(0,))
    d = family.whole(0)
    z, t, z_val, t_val = (torch.as_tensor(part[0, 0]) for part in (d.z, d.t, d.z_val, d.t_val))
    x = family.start[None]
    mine = family.gradient(x)[0, 0]
    y = torch.as_tensor(family.solved[0, 0, 0])

    def lower(y, x):
        w = torch.sigmoid(z @ x[:-1])
        return -(w * t * torch.sigmoid(-t * (z @ y))) @ z / len(t) + (1e-3 + x[-1].exp()) * y

    @torchopt.diff.implicit.custom_root(lower, argnums=1)
    def solver(start, x):
        return y.clone()

    at = torch.as_tensor(x[0, 0]).requires_grad_()
    loss = torch.nn.functional.softplus(-t_val * (z_val @ solver(torch.zeros_like(y), at))).mean()
    (theirs,) = torch.autograd.grad(loss + 0.5 * family.decay * at.square().sum(), at)
    assert np.allclose(mine, theirs.numpy(), atol=1e-6)


# ---- the runs

GRID = {"a": [0.3], "b": [0.05, 0.2], "tau": [0.5], "eta": [0.02]}
QUADRATIC = {"name": "quadratic", "measure": "square", "family": "quadratic", "m": 6, "sizes": [[2, 2]], "budget": 400}
QUADRATIC |= {"looks": 3, "grid": GRID, "tuning_seeds": [1000]}


@pytest.mark.parametrize("method", ALGORITHMS)
def test_splitting_the_seeds_changes_nothing(method):
    together = run(QUADRATIC, method, {}, [3, 4], Inputs(), "cpu").rows
    apart = [row for seed in (3, 4) for row in run(QUADRATIC, method, {}, [seed], Inputs(), "cpu").rows]
    for a, b in zip(together, apart, strict=True):
        assert a == pytest.approx(b, rel=1e-6)


# ---- judging


def table(good):
    rows = []
    rng = np.random.default_rng(0)
    for seed in range(8):
        noise = rng.standard_normal()
        for blocks, batch, n in ((4, 1, 1000), (4, 16, 500 if good else 990), (1, 4, 9000), (16, 4, 1000)):
            base = {"problem": "speed-up", "method": "v2", "seed": seed, "blocks": blocks, "batch": batch}
            rows.append(base | {"iterations": round(n * np.exp(0.05 * noise))})
        for problem in ("quadratic", "digits"):
            for method, square in (("v1", -3), ("v2", -2.9 if good else -1), ("moving_average", -2)):
                base = {"problem": problem, "method": method, "seed": seed}
                rows.append(base | {"log_square": square + 0.1 * rng.standard_normal()})
    for version in ("v1", "v2"):
        for dim in (8, 32, 128):
            row = {"problem": "cost", "method": version, "seed": 0, "dim": dim}
            rows.append(row | {"multiplications": COSTS[version](4, dim)[0]})
    return Evidence(pd.DataFrame(rows))


@pytest.mark.parametrize(
    "judge", [evidence.parallel_speed_up, evidence.variance_reduction_pays, evidence.no_inverse_needed]
)
def test_judging(judge):
    assert verdict(judge(table(True))) == REPLICATED
    assert verdict(judge(table(False))) == NOT_REPLICATED
