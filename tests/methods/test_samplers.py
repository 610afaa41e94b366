"""Solvers against exact solutions, against each other and against the orders they are known to have."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from papertrial.methods.noise_levels import GRIDS, grid, index_level, vp_level, vp_log_alpha, vp_time
from papertrial.methods.samplers import (
    DPM,
    LAM,
    RK_LAM,
    RK_TIME,
    TIME,
    VE,
    VP,
    Counted,
    ab2,
    ancestral,
    balanced_labels,
    ddim,
    dpmpp2m,
    fast_orders,
    heun,
    initial_noise,
    noise_stream,
    solve,
)
from papertrial.testbeds.mixtures import Mixture, density

V = 0.25  # data N(0, V): the flow multiplies x by sqrt((V + t^2) / (V + s^2)) from level s to t
GAUSSIAN = Mixture([[0.0]], V)
ONE = torch.ones(1, 1, dtype=torch.float64)


def factor(rule, levels, path=VE):
    """What a rule multiplies x by in VE coordinates when the data are N(0, V)."""
    start, end = -np.log(levels[0]), -np.log(levels[-1])
    x = solve(GAUSSIAN, path.alpha(start) * ONE, levels, rule, path=path, final=False)
    return x.item() / path.alpha(end)


ORDERS = {
    "ddim": (ddim, "log", VE, 1),
    "ddim VP": (ddim, "time", VP, 1),
    "heun": (heun, "karras", VE, 2),
    "dpm1": (DPM[1], "log", VE, 1),
    "dpm2": (DPM[2], "log", VE, 2),
    "dpm3": (DPM[3], "log", VP, 3),
    "dpmpp2m": (dpmpp2m, "karras", VE, 2),
    "ab2": (ab2, "karras", VE, 2),
    "rk2 lam": (RK_LAM[2], "log", VP, 2),
    "rk3 lam": (RK_LAM[3], "log", VP, 3),
    "rk2 time": (RK_TIME[2], "time", VP, 2),
    "rk3 time": (RK_TIME[3], "time", VP, 3),
}


@pytest.mark.parametrize("name", ORDERS)
def test_every_rule_has_its_order(name):
    rule, spacing, path, order = ORDERS[name]
    s_max, s_min = 3.0, 0.25
    exact = np.sqrt((V + s_min**2) / (V + s_max**2))
    errors = [abs(factor(rule, grid(spacing, n, s_max, s_min), path) - exact) for n in (128, 256)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("spacing", GRIDS)
def test_grids_fall_from_end_to_end(spacing):
    levels = grid(spacing, 12)
    assert levels[0] == 20.0 and levels[-1] == 0.02 and len(levels) == 13
    assert np.all(np.diff(levels) < 0)
    assert np.array_equal(grid(spacing, 0), [20.0])


def test_grids_are_uniform_in_what_they_say():
    even = lambda u: np.allclose(np.diff(u), np.diff(u)[0])  # noqa: E731
    assert even(np.log(grid("log", 9)))
    assert even(grid("karras", 9) ** (1 / 7))
    assert even(vp_time(grid("time", 9)))
    assert even(np.sqrt(vp_time(grid("quad", 9))))


def test_vp_time_inverts_the_level():
    t = np.linspace(1e-4, 1, 50)
    assert np.allclose(vp_time(vp_level(t)), t, rtol=1e-10)
    assert np.allclose(np.exp(2 * vp_log_alpha(t)) * (1 + vp_level(t) ** 2), 1)  # alpha^2 + sigma^2 = 1
    assert vp_time(0.02) == pytest.approx(0.00306, abs=5e-6) and vp_time(20.0) == pytest.approx(0.77114, abs=5e-6)


def test_discrete_indices_end_at_the_trained_levels():
    assert index_level(1) == pytest.approx(0.02) and index_level(1000) == pytest.approx(20.0)
    assert np.all(np.diff(index_level(np.arange(1, 1001))) > 0)


@pytest.mark.parametrize("clock", [LAM, TIME])
def test_a_clock_agrees_with_its_rate(clock):
    for lam in (-2.5, 0.0, 3.0):
        u, d = clock.u(lam), 1e-5
        assert clock.lam(u) == pytest.approx(lam, abs=1e-9)
        assert (clock.lam(u + d) - clock.lam(u - d)) / (2 * d) == pytest.approx(clock.rate(u), rel=1e-6)


@pytest.mark.parametrize("path", [VE, VP])
def test_path_derivative(path):
    for lam in (-2.0, 0.5, 3.0):
        slope = (np.log(path.alpha(lam + 1e-6)) - np.log(path.alpha(lam - 1e-6))) / 2e-6
        assert path.f(lam) == pytest.approx(slope, abs=1e-8)
        assert np.log(path.alpha(lam) / path.sigma(lam)) == pytest.approx(lam)


def test_ddim_is_euler_in_s():
    target = density("ring8")
    x = 3 * initial_noise([1000], 20, (2,), torch.float64)
    levels = [3.0, 2.0, 0.7]
    by_hand = x
    for s, t in pairwise(levels):
        by_hand = by_hand + (t - s) * target.eps(by_hand, 1.0, s)
    assert torch.allclose(solve(target, x, levels, ddim, final=False), by_hand, atol=1e-12)


def test_heun_is_edms():
    target = density("spiral")
    x = 3 * initial_noise([1000], 20, (2,), torch.float64)
    levels = [3.0, 1.0, 0.3]
    by_hand = x
    for s, t in pairwise(levels):
        d = (by_hand - target(by_hand, s)) / s
        euler = by_hand + (t - s) * d
        by_hand = by_hand + (t - s) * (d + (euler - target(euler, t)) / t) / 2
    assert torch.allclose(solve(target, x, levels, heun, final=False), by_hand, atol=1e-12)


def test_ab2_on_even_levels_has_weights_three_halves_and_minus_half():
    target, levels = density("ring8"), np.linspace(3, 1, 5)
    x = 3 * initial_noise([1000], 10, (2,), torch.float64)
    by_hand, before = x, None
    for s in levels[:-1]:
        eps = target.eps(by_hand, 1.0, s)
        by_hand, before = by_hand - 0.5 * (eps if before is None else 1.5 * eps - 0.5 * before), eps
    assert torch.allclose(solve(target, x, levels, ab2, final=False), by_hand, atol=1e-12)


def test_2m_is_exact_where_x0_is_linear_in_lam():
    """x_t = (sigma_t/sigma) x - sigma_t Int -e^lam D dlam with D = lam: Int e^lam lam = e^lam (lam - 1)."""
    denoise = lambda x, s, label: torch.full_like(x, -float(np.log(s)))  # noqa: E731
    levels = grid("log", 2, 2.0, 0.5)
    one_step = solve(denoise, ONE, levels[:2], dpmpp2m, final=False).item()
    found = solve(denoise, ONE, levels, dpmpp2m, final=False).item()
    h = np.log(2.0)
    # The slope is exact, the step integrates D at its midpoint: D(lam) + h/2.
    midpoint = levels[2] / levels[1] * one_step + (1 - np.exp(-h)) * (-np.log(levels[1]) + h / 2)
    assert found == pytest.approx(midpoint, abs=1e-12)


def test_inversion_returns():
    levels, target = grid("log", 150, 5.0, 0.1), density("ring8")
    x = 5 * initial_noise([1000], 20, (2,), torch.float64)
    there = solve(target, x, levels, DPM[3], final=False)
    back = solve(target, there, levels[::-1], DPM[3], final=False)
    assert (back - x).abs().median() < 1e-3


def test_ancestral_without_noise_is_ddim():
    target, levels = density("ring8"), grid("time", 8)
    x = 20 * initial_noise([1000], 20, (2,), torch.float64)
    quiet = ancestral(lambda: torch.randn(20, 2, dtype=torch.float64), eta=0.0)
    assert torch.allclose(solve(target, x, levels, quiet), solve(target, x, levels, ddim), atol=1e-12)


@pytest.mark.parametrize("path", [VE, VP])
def test_ancestral_reaches_the_data(path):
    """The posterior's variance is short of the kernel's by O(1/N), so the data's variance is met in the limit."""
    draw, missing = noise_stream([1000], 10_000, (1,), torch.float64), []
    for steps in (40, 160):
        levels = grid("log", steps, 5.0, 0.05)
        end = -np.log(levels[-1])
        x = np.sqrt(V + 25) * path.alpha(-np.log(5.0)) * draw()  # a draw of the marginal
        x = solve(GAUSSIAN, x, levels, ancestral(draw), path=path, final=False) / path.alpha(end)
        missing.append(1 - x.var().item() / (V + 0.05**2))
    assert abs(missing[1]) < 0.06 and missing[0] > 2 * missing[1]


def test_evaluations_are_counted():
    per_step = {ddim: 1, dpmpp2m: 1, ab2: 1, heun: 2, DPM[2]: 2, DPM[3]: 3, RK_LAM[2]: 2, RK_TIME[3]: 3}
    for rule, cost in per_step.items():
        counted = Counted(GAUSSIAN)
        solve(counted, 20 * ONE, grid("log", 4), rule, path=VP)
        assert counted.nfe == 4 * cost + 1


def test_fast_orders():
    assert fast_orders(9) == [3, 3, 2, 1]
    assert fast_orders(10) == [3, 3, 3, 1]
    assert fast_orders(11) == [3, 3, 3, 2]
    assert fast_orders(3) == [2, 1] and fast_orders(2) == [2] and fast_orders(1) == [1] and fast_orders(0) == []


def test_a_list_of_rules_must_fit_the_levels():
    with pytest.raises(ValueError):
        solve(GAUSSIAN, ONE, grid("log", 3), [ddim, ddim])


def test_noise_belongs_to_its_seed():
    both = initial_noise([1000, 1001], 6, (2, 3))
    assert torch.equal(both[6:], initial_noise([1001], 6, (2, 3)))
    assert torch.equal(both[:4], initial_noise([1000], 4, (2, 3)))
    draw = noise_stream([1000], 6, (2, 3))
    assert torch.equal(draw(), both[:6]) and not torch.equal(draw(), both[:6])
    assert balanced_labels([0, 1], 12).tolist() == [*range(10), 0, 1] * 2
