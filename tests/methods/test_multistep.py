"""Multistep exponential integrators against exact solutions, against their closed forms and against diffusers."""

from itertools import pairwise
from math import exp, expm1, log

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from papertrial.methods.multistep import (
    DATA,
    NOISE,
    dpm3m,
    dpmpp3m,
    mean_output,
    moments,
    multistep,
    phi,
    unipc,
    unipc2,
    unipc3,
)
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VE, VP, Counted, Flow, ddim, dpmpp2m, initial_noise, solve
from papertrial.testbeds.mixtures import Mixture, density

V = 0.25  # data N(0, V): the flow multiplies x by sqrt((V + t^2) / (V + s^2)) from level s to t
GAUSSIAN = Mixture([[0.0]], V)


def start(n=20):
    return initial_noise([1000], n, (2,), torch.float64)


@pytest.mark.parametrize("z", [-3.0, -1.0, -0.4, -1e-9, 0.2, 0.999, 1.0, 4.0])
def test_moments_are_what_they_integrate(z):
    weight = [quad(lambda u, k=k: exp(z * (1 - u)) * u**k, 0, 1)[0] for k in range(5)]
    assert np.allclose(moments(5, z), np.array(weight) / weight[0], rtol=1e-10)
    assert phi(1, z)[0] == pytest.approx(expm1(z) / z)


@pytest.mark.parametrize("prediction", [NOISE, DATA])
@pytest.mark.parametrize("path", [VE, VP])
def test_polynomial_outputs_are_integrated_exactly(prediction, path):
    """Where the output is a polynomial of lam and nothing else, the ODE has a solution by quadrature."""
    output = lambda u: 1 - 0.7 * u + 0.4 * u**2  # noqa: E731
    lam, lam_t, x = -1.2, -0.3, torch.tensor([[0.8]], dtype=torch.float64)
    known = [(u, torch.full_like(x, output(u))) for u in (lam, -1.9, -2.3)]
    found = prediction.advance(Flow(None, path=path), x, lam, lam_t, mean_output(prediction, lam, lam_t, known))
    scale, sign = {NOISE: (path.alpha, -1), DATA: (path.sigma, 1)}[prediction]
    integral, _ = quad(lambda u: exp(sign * u) * output(u), lam, lam_t)
    exact = scale(lam_t) * (x / scale(lam) + sign * integral)
    assert torch.allclose(found, exact, atol=1e-12)


RULES = {  # the rule, what it expands, how many outputs it keeps, its order
    "noise 1": (multistep(NOISE, 1), NOISE, 1, 1),
    "noise 2": (multistep(NOISE, 2), NOISE, 2, 2),
    "data 2": (multistep(DATA, 2), DATA, 2, 2),
    "2M": (multistep(DATA, 2, midpoint=True), DATA, 2, 2),
    "dpm3m": (dpm3m, NOISE, 3, 3),
    "dpmpp3m": (dpmpp3m, DATA, 3, 3),
    "unipc2": (unipc2, DATA, 2, 3),  # the corrector raises the order by one
    "unipc2 noise": (unipc(2, NOISE), NOISE, 2, 3),
    "unipc3": (unipc3, DATA, 3, 4),
}


def errors(rule, prediction, kept, steps, s_max=3.0, s_min=1.0):
    """Of a rule on data N(0, V) that starts with exact outputs as its history."""
    flow, scale = Flow(GAUSSIAN), lambda lam: torch.full((1, 1), V + exp(-2 * lam), dtype=torch.float64).sqrt()
    for n in steps:
        lams = -np.log(grid("log", n, s_max, s_min))
        past = [lams[0] - j * (lams[1] - lams[0]) for j in range(1, kept + 1)]
        memory = {"known": [(u, prediction.output(flow, scale(u), u)) for u in past], "from": (past[0], scale(past[0]))}
        x = scale(lams[0])
        for lam, lam_t in pairwise(lams):
            x = rule(flow, x, lam, lam_t, memory)
        yield abs(x - scale(lams[-1])).item()


def order_of(*rule):
    return np.log2(np.divide(*errors(*rule, (64, 128))))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_its_order(name):
    *rule, order = RULES[name]
    assert order_of(*rule) == pytest.approx(order, abs=0.25)


def halved(flow, x, lam, lam_t, memory):
    """DPM-Solver++(3M) with the second difference's weight halved, as it is widely implemented."""
    h, before = lam_t - lam, memory["known"]
    (lam_1, y_1), (lam_2, y_2), y = *before[:2], flow.x0(x, lam)
    memory["known"] = [(lam, y), (lam_1, y_1)]
    slope, slope_1 = (y - y_1) / (lam - lam_1), (y_1 - y_2) / (lam_1 - lam_2)
    curve = (slope - slope_1) / (lam - lam_2)  # y = y + slope tau + curve tau (tau + lam - lam_1)
    mean = moments(3, -h)
    mean = y + slope * h * mean[1] + curve * (h * (lam - lam_1) * mean[1] + h * h * mean[2] / 2)
    return DATA.advance(flow, x, lam, lam_t, mean)


def test_half_a_second_difference_costs_an_order():
    assert order_of(halved, DATA, 3) == pytest.approx(2, abs=0.25)


def test_order_1_is_ddim():
    target, levels, x = density("ring8"), grid("log", 9), 20 * start()
    expected = solve(target, x, levels, ddim)
    for rule in (multistep(NOISE, 1), multistep(DATA, 1), unipc(1, correct=False)):
        assert torch.allclose(solve(target, x, levels, rule), expected, rtol=0, atol=1e-12)


def test_data_order_2_midpoint_is_2m():
    target, levels, x = density("ring8"), grid("karras", 9), 20 * start()
    expected = solve(target, x, levels, dpmpp2m)
    assert torch.allclose(solve(target, x, levels, multistep(DATA, 2, midpoint=True)), expected, rtol=0, atol=1e-12)
    assert torch.allclose(solve(target, x, levels, unipc(2, correct=False)), expected, rtol=0, atol=1e-12)
    assert not torch.allclose(solve(target, x, levels, multistep(DATA, 2)), expected, atol=1e-4)


def test_3m_is_unipc_without_its_corrector():
    target, levels, x = density("ring8"), grid("karras", 9), 20 * start()
    assert torch.equal(solve(target, x, levels, dpmpp3m), solve(target, x, levels, unipc(3, correct=False)))


@pytest.mark.parametrize("rule", [dpm3m, dpmpp3m, unipc2, unipc3])
def test_vp_and_ve_agree_and_every_step_costs_one(rule):
    counted, levels = Counted(density("ring8")), grid("log", 8)
    ve = solve(counted, 20 * start(), levels, rule)
    assert counted.nfe == 9
    vp = solve(counted, 20 * VP.alpha(-log(20.0)) * start(), levels, rule, path=VP)
    assert torch.allclose(ve, vp, rtol=0, atol=1e-9)


def test_a_corrected_step_is_the_step_taken_again():
    """Two steps of UniPC-1 by hand: a trapezoid once the output at the predicted x is known."""
    target, x, (a, b, c) = density("ring8"), 3 * start(), (3.0, 2.0, 1.0)
    y_a = target(x, a)
    predicted = b / a * x + (1 - b / a) * y_a
    y_b = target(predicted, b)
    corrected = b / a * x + (1 - b / a) * (y_a + y_b) / 2
    by_hand = c / b * corrected + (1 - c / b) * y_b
    assert torch.allclose(solve(target, x, [a, b, c], unipc(1), final=False), by_hand, rtol=0, atol=1e-12)


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("prediction", [NOISE, DATA])
def test_third_order_agrees_with_diffusers_but_for_the_second_difference(prediction):
    schedulers = pytest.importorskip("diffusers.schedulers")
    algorithm, sign = {NOISE: ("dpmsolver", 1), DATA: ("dpmsolver++", -1)}[prediction]
    peer = schedulers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_order=3, final_sigmas_type="sigma_min"
    )
    levels = np.array([5.0, 3.1, 2.2, 1.0])
    peer.sigmas, peer._step_index = torch.from_numpy(levels), 2
    lams, x = -np.log(levels), start()
    outputs = [start(20 + i)[i:] for i in range(1, 4)]
    theirs = peer.multistep_dpm_solver_third_order_update(outputs, sample=x)
    known = list(zip(lams[2::-1], outputs[::-1], strict=True))
    ours = prediction.advance(Flow(None, path=VP), x, lams[2], lams[3], mean_output(prediction, *lams[2:], known))
    # Their D2 = h^2 y''/2 stands where the expansion has h^2 y'': the other half is what they lack.
    h, h_0, h_1 = np.diff(lams)[::-1]
    second = ((outputs[2] - outputs[1]) / h_0 - (outputs[1] - outputs[0]) / h_1) / (h_0 + h_1) * h**2
    lacking = prediction.advance(Flow(None, path=VP), 0 * x, lams[2], lams[3], moments(3, sign * h)[2] / 2 * second)
    assert torch.allclose(ours, theirs + lacking, rtol=0, atol=1e-10)
    assert not torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("prediction", [NOISE, DATA])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees_with_diffusers(order, prediction):
    schedulers = pytest.importorskip("diffusers.schedulers")
    target, levels = density("ring8"), grid("karras", 8)
    peer = schedulers.UniPCMultistepScheduler(
        solver_order=order, solver_type="bh2", predict_x0=prediction is DATA, lower_order_final=False
    )
    peer.set_timesteps(len(levels) - 1)
    peer.sigmas, peer._step_index = torch.from_numpy(levels), 0
    x = VP.alpha(-log(levels[0])) * 20 * start()
    ours = solve(target, x, levels, unipc(order, prediction), path=VP, final=False)
    for s, t in zip(levels[:-1], peer.timesteps, strict=True):
        lam = -log(s)
        x = peer.step(target.eps(x, VP.alpha(lam), VP.sigma(lam)), t, x).prev_sample
    assert torch.allclose(ours, x, rtol=0, atol=1e-8)
