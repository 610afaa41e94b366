"""Rectified flow against what is known of it, and the judging of its claims on made-up tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.rectified_flow import heun, integrate, residual, straightness
from papertrial.models import fm8_flow
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.rectified_flow import evidence
from papertrial.papers.diffusion.rectified_flow.method import (
    COSTS,
    PlaneFlow,
    flow_loss,
    independent,
    law,
    of_pairs,
    run,
    sorted_along,
    within_labels,
)
from papertrial.testbeds.mixtures import Mixture, density
from papertrial.testbeds.samplequality import SlicedW2

PLANE = {"measure": "plane", "start": "normal", "end": "ring8", "coupling": "independent", "rounds": 2, "n": 60}
PLANE |= {"n_third": 30, "n_optimal": 20, "sw2_n": 50, "steps_measured": 8, "batch": 16, "steps": 4, "lr": 2e-3}
PLANE |= {"lr_end": 1e-5, "ema": 0.9}
FM8 = {
    "measure": "pictures",
    "n": 12,
    "batch": 8,
    "steps": 3,
    "steps_distil": 2,
    "steps_many": 3,
    "lr": 1e-3,
    "ema": 0.9,
}
TIMES = np.linspace(0, 1, 201)


def generator(seed=1000):
    return torch.Generator().manual_seed(seed)


def noise(n, d=2):
    return torch.randn(n, d, dtype=torch.float64, generator=generator())


# Exact velocities.


def exact_velocity(target):
    """E[X1 - X0 | X_t] of X_t = t X1 + (1 - t) X0, X0 ~ N(0, I) and X1 from a mixture, independent."""
    return lambda x, t, label=None: target.x0(x, t, 1 - t) - target.eps(x, t, 1 - t)


def test_in_one_dimension_the_flow_is_the_monotone_map():
    """N(0, 1) to N(3, 4): Z1 = 3 + 2 Z0, whatever the rounds; and one learned from independent pairs gets there too."""
    z0 = noise(500, 1)
    z1 = integrate(exact_velocity(Mixture([[3.0]], 4.0)), z0, TIMES)
    assert (z1 - (3 + 2 * z0)).square().mean().sqrt() < 0.05


@pytest.mark.slow
def test_in_one_dimension_a_learned_flow_is_the_monotone_map():
    class Line(nn.Module):  # v is linear in x for every t; a small network of (x, t) can say so
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

        def forward(self, x, t, label=None):
            return self.net(torch.cat([x, torch.as_tensor(t).expand(len(x))[:, None]], 1))

    draw = lambda n, g: (torch.randn(n, 1, generator=g), 3 + 2 * torch.randn(n, 1, generator=g), None)  # noqa: E731
    torch.manual_seed(1000)
    flow, _ = fit(Line(), flow_loss(draw, 1024), Training(3000, 5e-3, ema=0.995), 1000)
    z0 = noise(2000, 1).float()
    with torch.no_grad():
        z1 = integrate(flow, z0, TIMES)
    assert (z1 - (3 + 2 * z0)).square().mean().sqrt() < 0.15


@pytest.mark.parametrize("t", [0.0, 0.3, 0.7, 1.0])
def test_exact_velocity_of_gaussians_is_the_closed_form(t):
    """E[X1 - X0 | X_t] by the regression of jointly Gaussian vectors."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    cov = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    x, eye = noise(40), torch.eye(2, dtype=torch.float64)
    of_t = t**2 * cov + (1 - t) ** 2 * eye  # Cov X_t
    cross = t * cov - (1 - t) * eye  # Cov(X1 - X0, X_t)
    closed = mean + (x - t * mean) @ torch.linalg.solve(of_t, cross)
    assert torch.allclose(exact_velocity(Mixture(mean[None], cov))(x, t), closed, atol=1e-10)


def test_flow_view_and_ve_view_agree():
    """With s = (1 - t)/t and x/t = x0 + s eps: v = x0 - eps here, eps - x0 where noise is at t = 1."""
    target, x = density("ring8"), noise(30)
    for t in (0.2, 0.5, 0.9):
        s = (1 - t) / t
        clean = target(x / t, s)
        eps = (x / t - clean) / s
        assert torch.allclose(exact_velocity(target)(x, t), clean - eps, atol=1e-10)


def test_exact_flow_keeps_the_marginal_at_the_floor_of_sw2():
    target = density("ring8")
    sw2 = SlicedW2(target.sample(4000, generator(0)).numpy())
    z1 = integrate(exact_velocity(target), noise(4000), np.linspace(0, 1, 61), rule=heun)
    floor = np.mean([sw2(target.sample(4000, generator(seed)).numpy()) for seed in range(1001, 1005)])
    assert sw2(z1.numpy()) < 1.8 * floor
    half = integrate(exact_velocity(target), noise(4000), np.linspace(0, 0.5, 31), rule=heun)  # X_t's law at t = 1/2
    mixed = 0.5 * target.sample(4000, generator(0)) + 0.5 * torch.randn(4000, 2, generator=generator(1)).double()
    assert SlicedW2(mixed.numpy())(half.numpy()) < 0.08


def test_costs_fall_by_at_least_the_straightness():
    """E|X1 - X0|^2 - E|Z1 - Z0|^2 >= int E|(Z1 - Z0) - v|^2 dt: where S = O(1/k) comes from."""
    target, x0 = density("ring8"), noise(2000)
    x1 = target.sample(2000, generator())
    s, z1 = straightness(exact_velocity(target), x0, TIMES)
    first, second = ((b - x0).square().sum(1).mean().item() for b in (x1, z1))
    assert first - second >= 0.99 * s * second
    for cost in COSTS.values():  # and all convex costs at once
        assert cost(z1 - x0).mean() < 0.97 * cost(x1 - x0).mean()


def test_a_straight_coupling_is_a_fixed_point():
    shift = torch.tensor([1.5, -2.0], dtype=torch.float64)
    velocity = lambda x, t, label=None: shift.expand_as(x)  # noqa: E731
    x0 = noise(100)
    assert residual(velocity, x0, x0 + shift, torch.rand(100).double()).abs().max() < 1e-12
    s, z1 = straightness(velocity, x0, TIMES)
    assert abs(s) < 1e-12 and torch.allclose(z1, x0 + shift, atol=1e-12)
    again = straightness(velocity, x0, TIMES)[1]  # the flow learned from (x0, z1) is the same
    assert torch.equal(again, z1)


def test_control_s_coupling_has_the_marginals_and_not_the_costs():
    target, x0 = density("ring8"), noise(3000)
    z1 = integrate(exact_velocity(target), x0, np.linspace(0, 1, 101))
    shuffled = z1[torch.randperm(len(z1), generator=generator())]
    independent_cost = (target.sample(3000, generator()) - x0).square().sum(1).mean()
    assert (shuffled - x0).square().sum(1).mean() > 0.97 * independent_cost
    sw2 = SlicedW2(target.sample(3000, generator(0)).numpy())
    assert sw2(shuffled.numpy()) == pytest.approx(sw2(z1.numpy()))


# The paper's parts.


def test_costs_are_convex_and_even():
    u, v = torch.randn(2, 50, 2, dtype=torch.float64, generator=generator())
    for cost in COSTS.values():
        assert (cost((u + v) / 2) <= (cost(u) + cost(v)) / 2 + 1e-12).all()
        assert torch.equal(cost(u), cost(-u))
    assert COSTS["l2_4"](torch.tensor([[3.0, 4.0]])).item() == 625.0


def test_sorted_coupling_keeps_both_samples_and_every_pair_s_rank():
    laws = law("normal"), law("ring8")
    x0, x1 = sorted_along(*laws, 200, generator())
    y0, y1 = independent(*laws, 200, generator())
    for x, y in ((x0, y0), (x1, y1)):
        assert torch.equal(x[x[:, 0].argsort()], y[y[:, 0].argsort()])
    directions = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal((x0 @ directions[0]).argsort(), (x1 @ directions[1]).argsort())
    assert abs(np.corrcoef(np.arange(200), (x0 @ directions[0]).numpy())[0, 1]) < 0.2  # in no order


def test_finite_coupling_keeps_its_pairs():
    x0 = torch.arange(50.0)[:, None]
    a, b, label = of_pairs(x0, -x0, torch.arange(50))(30, generator())
    assert torch.equal(a, -b) and torch.equal(a[:, 0].long(), label)
    assert of_pairs(x0, -x0, None)(3, generator())[2] is None


def test_permutation_within_labels():
    label = torch.arange(40) % 4
    rows = within_labels(label, 1000)
    assert torch.equal(label[rows], label) and sorted(rows) == list(range(40)) and (rows != np.arange(40)).any()


def test_distillation_is_regression_at_the_start():
    """With t = 0 the loss is |X1 - (X0 + v(X0, 0))|^2, whatever is drawn."""
    x0, x1 = noise(20).float(), noise(20).float() * 2
    flow = PlaneFlow()
    draw = lambda n, g: (x0, x1, None)  # noqa: E731
    found = flow_loss(draw, 20, regression=True)(flow, flow, 0, generator())
    assert torch.allclose(found, (x1 - (x0 + flow(x0, 0.0))).square().mean(), atol=1e-6)


def test_training_lowers_the_flow_s_loss():
    laws = law("normal"), law("ring8")
    draw = lambda n, g: (*independent(*laws, n, g), None)  # noqa: E731
    torch.manual_seed(1000)
    flow, loss = PlaneFlow(), flow_loss(draw, 1000)
    value = lambda f: loss(f, f, 0, generator(1)).item()  # noqa: E731
    before = value(flow)
    trained, _ = fit(flow, flow_loss(draw, 128), Training(150, 3e-3, ema=0.95), 1000)
    exact = exact_velocity(density("ring8", torch.float32))
    with torch.no_grad():
        assert value(exact) < value(trained) < 0.9 * before


def test_optimal_transport_agrees_with_pot():
    ot = pytest.importorskip("ot")
    row = run({**PLANE, "n_optimal": 40}, "optimal", {}, [1000], Inputs(), "cpu").rows[0]
    x0, x1 = independent(law("normal"), law("ring8"), 40, torch.Generator().manual_seed(11_000))
    for name, metric in (("l1", "cityblock"), ("l2", "euclidean"), ("l2_2", "sqeuclidean")):
        expected = ot.emd2([], [], ot.dist(x0.double().numpy(), x1.double().numpy(), metric=metric))
        assert row[name] == pytest.approx(expected, rel=1e-5)
        assert row[name] < row[f"{name}_0"]


@pytest.fixture(scope="module")
def tiny(tiny_fm8) -> Inputs:
    """With barely trained flows of two seeds."""
    network = {"kind": "mlp", "dim": 64, "width": 32, "blocks": 2}
    settings = {"size": 8, "images": 200, "network": network, "steps": 3, "batch": 8, "lr": 1e-3, "decay": 0.5}
    settings |= {"ema": 0.9, "pairs": 40, "pairs_steps": 2, "pairs_seed": 2100, "judged": 40}
    flows = {str(seed): fm8_flow.train(str(seed), settings, tiny_fm8, "cpu", None).state for seed in (1000, 1001)}
    return Inputs(tiny_fm8.datasets, {**tiny_fm8.models, "fm8-flow": flows})


def test_kept_pairs_are_the_flow_s(tiny):
    state = tiny.models["fm8-flow"]["1000"]
    z0, z1, label = fm8_flow.load_pairs(state)
    with torch.no_grad():
        again = integrate(fm8_flow.load(state), z0, np.linspace(0, 1, 3), label, heun)
    assert torch.allclose(again, z1, atol=1e-5)


CASES = {
    "rounds": (PLANE, "rectified", {"shuffle": 0}),
    "three rounds": ({**PLANE, "rounds": 3}, "rectified", {"shuffle": 0}),
    "sorted": ({**PLANE, "coupling": "sorted"}, "rectified", {"shuffle": 0}),
    "permuted": (PLANE, "permuted", {"shuffle": 1}),
    "regression": (PLANE, "regression", {}),
    "still": (PLANE, "still", {}),
    "exact": (PLANE, "exact", {}),
    "optimal": (PLANE, "optimal", {}),
    "pictures": (FM8, "rectified", {"shuffle": 0}),
    "pictures, permuted": (FM8, "permuted", {"shuffle": 1}),
    "vp-ode": (FM8, "vp-ode", {}),
    "real": (FM8, "real", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, tiny):
    whole = run(*CASES[case], [1000, 1001], tiny, "cpu").rows
    parts = [run(*CASES[case], [seed], tiny, "cpu").rows for seed in (1000, 1001)]
    key = ["seed", "stage", "nfe"]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)
    assert not whole.duplicated(key).any()


def test_a_later_stage_leaves_an_earlier_one_as_it_was(tiny):
    """Distillation starts from a copy of 2-RF."""
    rows = pd.DataFrame(run(*CASES["pictures"], [1000], tiny, "cpu").rows).set_index(["stage", "nfe"])["fd"]
    none = run({**FM8, "steps_distil": 1, "lr": 1e-3}, "rectified", {"shuffle": 0}, [1000], tiny, "cpu").rows
    none = pd.DataFrame(none).set_index(["stage", "nfe"])["fd"]
    for stage in ("1-rf", "2-rf"):
        assert rows[stage, 1] == none[stage, 1]
    assert rows["2-rf-distilled", 1] != none["2-rf-distilled", 1]


@pytest.mark.slow  # the import takes seconds
def test_first_round_agrees_with_torchcfm():
    peer = pytest.importorskip("torchcfm.conditional_flow_matching")
    x0, x1 = torch.randn(2, 8, 2, generator=generator())
    t, x_t, u_t = peer.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(x0, x1)
    seen = []

    def velocity(x, t, label):
        seen.append(x)
        return torch.zeros_like(x)

    assert torch.allclose(residual(velocity, x0, x1, t), u_t, atol=1e-6)
    assert torch.allclose(seen[0], x_t, atol=1e-6)


# Judging.


def plane_rows(problem, method="rectified", first=0.3, second=0.29, s=(1.0, 0.01, 0.005), sw2=0.1, seeds=5):
    rows = []
    for seed in range(seeds):
        for k, c in ((1, first), (2, second), (3, second))[: len(s)]:
            row = {"problem": problem, "method": method, "seed": seed, "stage": f"{k}-rf", "nfe": 200, "sw2": sw2}
            row |= dict.fromkeys(COSTS, 2 * (c + 0.0001 * seed)) | {f"{cost}_0": 2.0 for cost in COSTS}
            rows.append(row | {"straightness": s[k - 1] * (1 + 0.01 * seed)})
        rows.append({"problem": problem, "method": "exact", "seed": seed, "stage": "exact", "nfe": 0, "sw2": 0.04})
    return rows


def plane(**changes):
    """All problems in the plane as they should be, but for what is given of one."""
    rows = []
    for problem in (*evidence.STARTS, "spiral-grid25"):
        rows += plane_rows(problem, **changes.get(problem.replace("-", "_"), {}))
    return Evidence(pd.DataFrame(rows))


def with_control(method, **columns):
    rows = pd.DataFrame(plane_rows("normal-ring8", method=method, **columns))
    both = pd.concat([plane().rows, rows[rows["method"] == method]], ignore_index=True)
    return Evidence(both).standing_in(method, "rectified")


def test_c1_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.costs_do_not_rise(t))  # noqa: E731
    criteria = evidence.costs_do_not_rise(plane())
    assert verdict(criteria) == "replicated"
    assert len(criteria) == 16 * 3 + 12 + 4 * 2  # costs and starts, the clause of the independent ones, SW2
    assert judge(plane(normal_ring8={"first": 0.98, "second": 0.98})) == "not replicated"
    assert judge(plane(normal_ring8_sorted={"first": 0.98, "second": 0.98})) == "replicated"
    assert judge(plane(normal_ring8_sorted={"first": 1.02, "second": 1.02})) == "not replicated"
    assert judge(plane(grid25_spiral={"second": 0.312})) == "not replicated"  # a rise of more than .01 C_0
    assert judge(plane(grid25_spiral={"first": 0.03, "second": 0.032})) == "not replicated"  # and of more than 5%
    assert judge(plane(ring8_checker={"sw2": 0.17})) == "not replicated"
    assert judge(with_control("permuted", first=0.99, second=0.98)) == "not replicated"
    assert judge(with_control("regression", sw2=0.5, s=(1.0,))) == "not replicated"
    with pytest.raises(LookupError):
        evidence.costs_do_not_rise(Evidence(pd.DataFrame(plane_rows("normal-ring8", method="still"))))


def test_c2_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.paths_get_straight(t))  # noqa: E731
    assert judge(plane()) == "replicated" and len(evidence.paths_get_straight(plane())) == 12
    assert judge(plane(ring8_checker={"s": (1.0, 0.04, 0.06)})) == "not replicated"
    assert judge(plane(ring8_checker={"s": (0.3, 0.04, 0.03)})) == "not replicated"
    assert judge(plane(ring8_checker={"s": (1.0, 0.06, 0.03)})) == "not replicated"
    assert judge(plane(normal_ring8_sorted={"s": (1.0, 1.0, 1.0)})) == "replicated"  # not asked for
    assert judge(with_control("permuted", s=(1.7, 1.7))) == "not replicated"


def fm8(two=2.0, distilled=1.5, control=9.0):
    rows = []
    for seed in range(3):
        for method, stage, nfe, fd in (
            ("rectified", "1-rf", 1, 10.0),
            ("rectified", "1-rf", 100, 0.5),
            ("rectified", "2-rf", 1, two + 0.5 * (seed == 2)),
            ("rectified", "2-rf-distilled", 1, distilled),
            ("permuted", "1-rf", 1, 10.0),
            ("permuted", "2-rf", 1, control),
        ):
            rows.append({"problem": "fm8", "method": method, "seed": seed, "stage": stage, "nfe": nfe, "fd": fd})
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.one_step_samples(t))  # noqa: E731
    assert judge(fm8()) == "replicated" and len(evidence.one_step_samples(fm8())) == 4
    assert judge(fm8(two=2.8)) == "not replicated"  # in every seed, and the last one has 3.3
    assert judge(fm8(distilled=2.4)) == "not replicated"
    assert judge(fm8().standing_in("permuted", "rectified")) == "not replicated"


def test_c4_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.transfers(t))  # noqa: E731
    assert judge(plane()) == "replicated" and len(evidence.transfers(plane())) == 2
    assert judge(plane(spiral_grid25={"sw2": 0.2})) == "not replicated"
    rows = pd.concat([plane().rows, *(pd.DataFrame(plane_rows(p, "still", sw2=0.3)) for p in evidence.TRANSFERS)])
    rows = rows.drop_duplicates(["problem", "method", "seed", "stage", "nfe"])
    assert judge(Evidence(rows).standing_in("still", "rectified")) == "not replicated"
