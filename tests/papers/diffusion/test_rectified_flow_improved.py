"""2-RF++ against what is known of it, and the judging of its claims on made-up tables."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import grid
from papertrial.methods.rectified_flow import (
    PREMETRICS,
    TIMES,
    DenoiserFlow,
    euler,
    heun,
    integrate,
    pseudo_huber,
    residual,
    straightness,
)
from papertrial.methods.samplers import heun as ode_heun
from papertrial.methods.samplers import initial_noise, solve
from papertrial.models import fm8_pairs
from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.picture_denoisers import load
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.rectified_flow_improved import evidence
from papertrial.papers.diffusion.rectified_flow_improved.method import ends, permuted, reflow_loss, run
from papertrial.testbeds.mixtures import Mixture

SIZES = {"name": "fm8", "n": 12, "images": 200, "held_out": 20, "bins": 10, "batch": 8, "updates": 4, "warmup": 2}
SIZES |= {"ema": 0.9, "tuning_seed": 1100, "straight_seeds": [1000, 1001], "straight_n": 6, "straight_steps": 4}
SIZES |= {"redrawn": 20, "redrawn_steps": 2, "redrawn_seed": 3000, "teacher_steps": 2, "cd_updates": 3, "cd_batch": 8}
PP = {"kind": "flow", "rounds": "one", "times": "u-shaped", "premetric": "pseudo-huber", "lr": 1e-3}


@pytest.fixture(scope="module")
def tiny(tiny_fm8) -> Inputs:
    """With the pairs, 40 for training and 20 held out."""
    settings = {"n": 60, "steps": 2, "seed": 2000, "judged": 60}
    state = fm8_pairs.train("256-0", settings, tiny_fm8, "cpu", None).state
    return Inputs(tiny_fm8.datasets, {**tiny_fm8.models, "fm8-pairs": {"256-0": state}})


# The time densities.


def uniform(n=200_000):
    return torch.rand(2, n, generator=torch.Generator().manual_seed(1000), dtype=torch.float64)


def test_u_shaped_density():
    """Against the exact masses: P(t < .1) = P(t > .9) = .17250, and the mean 1/2."""
    t = TIMES["u-shaped"](uniform())
    share = lambda low, high: ((t > low) & (t < high)).double().mean().item()  # noqa: E731
    exact = 0.5 * (np.expm1(0.4) + np.exp(4) - np.exp(3.6)) / np.expm1(4)
    assert exact == pytest.approx(0.17250, abs=5e-6)
    assert share(0, 0.1) == pytest.approx(exact, abs=0.003) and share(0.9, 1) == pytest.approx(exact, abs=0.003)
    assert t.mean().item() == pytest.approx(0.5, abs=0.003)
    assert t.min() >= 1e-5 and t.max() <= 1 - 1e-5
    u = torch.stack([torch.linspace(0, 1, 11, dtype=torch.float64)] * 2)  # and its quantiles, exactly
    u[1] = 0.0
    cdf = torch.expm1(4 * TIMES["u-shaped"](u)) / np.expm1(4)
    assert torch.allclose(cdf, u[0], atol=1e-4)  # but for the clipped ends


def test_control_s_density_is_the_same_turned_inside_out():
    t, u = TIMES["inside-out"](uniform()), TIMES["u-shaped"](uniform())
    near = lambda t, c: ((t - c).abs() < 0.1).double().mean().item()  # noqa: E731
    assert near(t, 0.5) == pytest.approx(((u < 0.1) | (u > 0.9)).double().mean().item(), abs=1e-9)
    assert near(t, 0.5) > 3 * near(t, 0.05) and near(u, 0.5) < near(t, 0.5) / 3


# The flow form.


@pytest.mark.parametrize("t", [0.02, 0.3, 0.5, 0.9, 0.952])
def test_velocity_of_the_base_is_eps_minus_x0(t, tiny_fm8):
    base, s = load(tiny_fm8.models["fm8"]["256-0"]).double(), t / (1 - t)
    x0, eps = torch.randn(2, 7, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1000))
    label = torch.arange(7)
    x_t = (1 - t) * x0 + t * eps
    with torch.no_grad():
        clean = base(x_t / (1 - t), s, label)
        found = DenoiserFlow(base)(x_t, t, label)
    assert torch.allclose(found, (x_t / (1 - t) - clean) / s - clean, atol=1e-5)
    assert torch.allclose(found, (x_t - clean) / t, atol=1e-5)


def test_flow_form_is_finite_at_both_ends_and_starts_like_the_base(tiny_fm8):
    base = load(tiny_fm8.models["fm8"]["256-0"])
    flow, z = DenoiserFlow(base), torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1000))
    with torch.no_grad():
        for t in (0.0, 1e-5, 1 - 1e-5, 1.0):
            assert flow(z, t, torch.arange(5)).isfinite().all()
        one_step = z - flow(z, 1.0, torch.arange(5))
        assert torch.allclose(one_step, base(20 * z, 20.0, torch.arange(5)), atol=0.1)  # what the base makes of noise


def test_one_step_of_an_oracle_is_exact():
    x, z = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1000))
    oracle = lambda _, t, label: z - x  # noqa: E731
    assert torch.allclose(integrate(oracle, z, (1.0, 0.0)), x, atol=1e-6)
    assert residual(oracle, x, z, torch.rand(6)).abs().max() == 0


# The premetric.


def test_pseudo_huber_limits():
    r = torch.randn(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1000))
    norm = r.norm(dim=1)
    assert torch.allclose(pseudo_huber(r, 1e-9), norm, atol=1e-8)
    c = 1e4
    assert torch.allclose(pseudo_huber(r, c) * 2 * c, norm.square(), rtol=1e-4)
    assert torch.equal(pseudo_huber(r), pseudo_huber(r, 0.00054 * 64))
    assert torch.allclose(pseudo_huber(r), norm, rtol=0.01)  # nearly L1 in its length
    assert torch.allclose(PREMETRICS["squared"](r.reshape(5, 1, 8, 8)), norm.square())


# Gaussian data.


def gaussian_pairs(n=2000):
    target = Mixture([[0.5, -0.3]], [[0.5, 0.2], [0.2, 0.3]])
    z, levels = initial_noise([1000], n, (2,), torch.float64), grid("karras", 60)
    return solve(target, levels[0] * z, levels, ode_heun, final=True), z


def test_gaussian_pairs_are_linear():
    x, z = gaussian_pairs()
    design = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1)
    fit_ = torch.linalg.lstsq(design, x)
    assert (x - design @ fit_.solution).abs().max() < 1e-6
    # the square root of the covariance, up to what the levels 20 and .02 leave out
    assert torch.allclose(
        fit_.solution[:2] @ fit_.solution[:2], torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double(), atol=0.02
    )


@pytest.mark.parametrize(("times", "premetric"), [("uniform", "squared"), ("u-shaped", "pseudo-huber")])
def test_student_of_gaussian_pairs_loses_its_loss(times, premetric):
    """Paths of a linear map don't cross, so the squared loss can go to 0: below 1% of what it was."""
    x, z = (v.float() for v in gaussian_pairs())
    label = torch.zeros(len(x), dtype=torch.long)
    flow = DenoiserFlow(seeded(lambda: EDM(PlaneMLP(width=64), 0.6), 1000))
    of = reflow_loss((x, z, label), "uniform", "squared", 1000)
    loss = lambda f: of(f, f, 0, torch.Generator().manual_seed(1001)).item()  # noqa: E731
    before = loss(flow)
    recipe = reflow_loss((x, z, label), times, premetric, 128)
    trained, _ = fit(flow, recipe, Training(400, 5e-3, ema=0.99, warmup=20), 1000)
    with torch.no_grad():
        assert loss(trained) < 0.01 * before


# Straightness and rules.


def test_straightness_is_the_card_s_integral():
    """One pass gives what storing the path gives; straight paths give 0, a circle's arc what it must."""
    a = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    curl = lambda x, t, label: x @ a.T  # noqa: E731
    x, times = (
        torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1000)),
        np.linspace(0, 1, 201),
    )
    found, end = straightness(curl, x, times)
    path, v = [x], []
    for t, t_next in pairwise(times):
        v.append(curl(path[-1], t, None))
        path.append(path[-1] + (t_next - t) * v[-1])
    move = path[-1] - x
    by_hand = np.mean([(move - u).square().sum(1).mean().item() for u in v]) / move.square().sum(1).mean().item()
    assert found == pytest.approx(by_hand, rel=1e-9) and torch.equal(end, path[-1])
    assert found == pytest.approx(1 / (2 - 2 * np.cos(1)) - 1, abs=0.01)  # |v| = 1 along an arc of one radian
    shift = lambda x, t, label: torch.ones_like(x) * 3  # noqa: E731
    for way in (times, times[::-1]):
        s, end = straightness(shift, x, way)
        assert abs(s) < 1e-12 and torch.allclose(end - x, torch.full_like(x, 3 * (way[-1] - way[0])))


@pytest.mark.parametrize(("rule", "order"), [(euler, 1), (heun, 2)])
def test_rules_have_their_order(rule, order):
    growth = lambda x, t, label: x * (1 + t)  # noqa: E731
    x, exact = torch.ones(1, 1, dtype=torch.float64), np.exp(1.5)
    error = [abs(integrate(growth, x, np.linspace(0, 1, n + 1), None, rule).item() - exact) for n in (40, 80)]
    assert np.log2(error[0] / error[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.slow  # the import takes seconds
def test_first_round_agrees_with_torchcfm():
    peer = pytest.importorskip("torchcfm.conditional_flow_matching")
    start, end = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1000))
    matcher = peer.ConditionalFlowMatcher(sigma=0.0)
    t, x_t, u_t = matcher.sample_location_and_conditional_flow(start, end)
    seen = []

    def velocity(x, t, label):
        seen.append(x)
        return torch.zeros_like(x)

    assert torch.allclose(residual(velocity, start, end, t), u_t, atol=1e-6)
    assert torch.allclose(seen[0], x_t, atol=1e-6)


# The paper's parts.


def test_pairs_come_back_with_their_noise(tiny):
    state = tiny.models["fm8-pairs"]["256-0"]
    x, z, label = fm8_pairs.load(state)
    levels = grid("karras", 2)
    with torch.no_grad():
        again = solve(load(tiny.models["fm8"]["256-0"]), 20 * z, levels, ode_heun, label)
    assert torch.allclose(x, again, atol=1e-5)
    assert state["nfe"] == 5


def test_permuted_pairs_keep_their_labels():
    class Shop:
        pairs = (torch.arange(40.0)[:, None], torch.arange(40.0)[:, None], torch.arange(40) % 10)
        pair_nfe, p = 1, {"updates": 1, "batch": 1, "lr": 0.0}

        def flow(self):
            return None

        def reflow(self, flow, pairs, *how):
            return pairs

    (x, z, label), _ = permuted(Shop(), 1000)
    assert torch.equal(z.flatten().long() % 10, label) and torch.equal(x, Shop.pairs[0])
    assert torch.equal(z.sort(0).values, x) and (z != x).double().mean() > 0.4


def test_ends_of_the_loss():
    loss = np.ones(20)
    loss[:2], loss[-2:], loss[2] = 3.0, 2.0, 99.0
    assert ends(loss) == {"loss_data_end": 3.0, "loss_noise_end": 2.0}


CASES = {
    "pp": {**PP, "loss_by_time": 1},
    "permuted": {**PP, "rounds": "permuted"},
    "3-rf": {**{k: v for k, v in PP.items() if k != "lr"}, "rounds": "two", "rates": [1e-3, 2e-3]},
    "1-rf": {"kind": "flow", "rounds": "none"},
    "cd": {"kind": "consistency", "intervals": 5, "lr": 1e-3},
    "teacher": {"kind": "teacher"},
    "real": {"kind": "real"},
}


@pytest.mark.parametrize("method", CASES)
def test_splitting_the_seeds_changes_nothing(method, tiny):
    whole = run(SIZES, method, CASES[method], [1000, 1001], tiny, "cpu").rows
    parts = [run(SIZES, method, CASES[method], [seed], tiny, "cpu").rows for seed in (1000, 1001)]
    whole, split = (
        pd.DataFrame(r).sort_values(["seed", "nfe"], ignore_index=True) for r in (whole, parts[0] + parts[1])
    )
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)
    assert not whole.duplicated(["seed", "nfe"]).any()
    counts = {"teacher": [5], "real": [0]}.get(method, [1, 2])
    assert sorted(whole["nfe"].unique()) == counts


def test_a_recipe_changes_nothing_but_times_and_premetric(tiny):
    """Baseline and control see the pairs that 2-RF++ sees."""
    pairs, seen = fm8_pairs.load(tiny.models["fm8-pairs"]["256-0"]), {}

    class Watched(nn.Module):
        def forward(self, x, t, label):
            self.label, self.t = label, t
            return x

    for times in ("u-shaped", "uniform", "inside-out"):
        flow = Watched()
        reflow_loss(pairs, times, "squared", 16)(flow, flow, 0, torch.Generator().manual_seed(1000))
        seen[times] = flow
    assert all(torch.equal(seen["u-shaped"].label, f.label) for f in seen.values())
    assert torch.allclose((seen["u-shaped"].t + 0.5) % 1, seen["inside-out"].t, atol=2e-5)


# Judging.


def table(pp=(0.6, 0.4), base=(1.0, 0.6), cd=(1.0, 0.8), s=(0.03, 0.005, 0.004), third=(0.58, 0.39), loss=(4.0, 3.0)):
    rows = []
    for seed in range(5):
        wobble = 0.001 * seed
        rows.append({"problem": "fm8", "method": "real", "seed": seed, "nfe": 0, "fd": 0.2})
        for method, fd, straight in (
            ("pp", pp, s[1]),
            ("2-rf", base, None),
            ("cd", cd, None),
            ("1-rf", (8.0, 4.0), s[0]),
        ):
            for nfe in (1, 2):
                row = {
                    "problem": "fm8",
                    "method": method,
                    "seed": seed,
                    "nfe": nfe,
                    "fd": fd[nfe - 1] + wobble * (method == "pp"),
                }
                if nfe == 1 and seed < 3:
                    row |= {"straightness": straight} if straight else {}
                if nfe == 1 and method == "2-rf":
                    row |= {"loss_data_end": loss[0] - 9 * (seed > 2), "loss_noise_end": loss[1]}
                rows.append(row)
        for method, fd, straight in (("3-rf", third, s[2]), ("permuted", (9.0, 7.0), 0.04)):
            for nfe in (1, 2) if seed < 3 else ():
                row = {"problem": "fm8-rounds", "method": method, "seed": seed, "nfe": nfe, "fd": fd[nfe - 1]}
                rows.append(row | ({"straightness": straight} if nfe == 1 else {}))
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.better_one_step(t))  # noqa: E731
    assert judge(table()) == "replicated"
    assert evidence.better_one_step(table())[1].estimate == pytest.approx(1 - (0.402 / 0.8))
    assert judge(table(pp=(0.85, 0.4))) == "not replicated"  # a gain, but of less than a quarter
    assert judge(table(pp=(0.6, 0.7))) == "not replicated"
    assert judge(table(pp=(1.2, 0.4))) == "not replicated"


def test_c2_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.one_reflow_is_enough(t))  # noqa: E731
    assert judge(table()) == "replicated" and len(evidence.one_reflow_is_enough(table())) == 3
    assert judge(table(s=(0.03, 0.01, 0.004))) == "not replicated"
    assert judge(table(third=(0.4, 0.39))) == "not replicated"
    assert judge(table(third=(0.58, 0.3))) == "not replicated"
    assert judge(table().standing_in("permuted", "pp")) == "not replicated"
    rows = table().rows
    with pytest.raises(LookupError):
        evidence.one_reflow_is_enough(Evidence(rows[rows["method"] != "3-rf"]))


def test_c3_is_judged_as_the_card_says():
    criteria = evidence.loss_at_the_ends(table())
    assert verdict(criteria) == "replicated" and len(criteria) == 6  # both ends, three seeds
    assert verdict(evidence.loss_at_the_ends(table(loss=(4.0, 1.4)))) == "not replicated"


def test_c4_is_judged_as_the_card_says():
    judge = lambda t: verdict(evidence.rivals_consistency_distillation(t))  # noqa: E731
    assert judge(table()) == "replicated"
    assert judge(table(cd=(1.0, 0.4))) == "not replicated"
    assert judge(table(cd=(0.602, 0.8))) == "inconclusive"
