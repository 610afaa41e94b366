"""AFA: what an ensemble of features must leave unchanged, the averages it is compared with, and the judging."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.models import fm16_experts
from papertrial.models.edm import EDM
from papertrial.models.unet import UNet
from papertrial.papers.diffusion.adaptive_feature_aggregation import evidence
from papertrial.papers.diffusion.adaptive_feature_aggregation.aggregator import (
    KINDS,
    Aggregator,
    attention,
    ensemble,
    parameters_share,
)
from papertrial.papers.diffusion.adaptive_feature_aggregation.merging import (
    WEIGHTS,
    HeldOut,
    OutputAverage,
    Switch,
    best_output_average,
    best_weight_average,
    weight_average,
)
from papertrial.papers.diffusion.adaptive_feature_aggregation.method import Lab, run, shares, tuned, weights

SIZE = {"hidden": 8, "width": 8}


def scattered(model: nn.Module, seed: int) -> nn.Module:
    """All weights at random, so that nothing is zero by construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def expert(seed: int, blocks: int = 1) -> EDM:
    net = UNet(channels=(8, 8, 16), blocks=blocks, middle=2, attention=(1,), width=8, groups=2)
    return scattered(EDM(net, 0.6), seed).to(memory_format=torch.channels_last).eval()


def awake(model: EDM, seed: int = 7) -> EDM:
    """With aggregators at random."""
    for aggregator in model.net.aggregators:
        scattered(aggregator, seed)
    return model


def batch(n: int = 6):
    g = torch.Generator().manual_seed(1000)
    return torch.randn(n, 1, 16, 16, generator=g), torch.rand(n, generator=g) + 0.1, torch.arange(n) % 10


class Forced(nn.Module):
    """Attention as it is told."""

    def __init__(self, A):
        super().__init__()
        self.A = A

    def forward(self, features, time, label):
        N, _, h, w = features[0].shape
        return torch.tensor(self.A)[None, :, None, None].expand(N, -1, h, w)


def force(model: EDM, A) -> EDM:
    model.net.aggregators = nn.ModuleList(Forced(A) for _ in model.net.aggregators)
    return model


# What must hold.


@pytest.mark.parametrize("kind", KINDS)
def test_identical_experts_are_the_single_expert(kind):
    one = expert(1)
    model = awake(ensemble([one, deepcopy(one)], kind, **SIZE))
    with torch.no_grad():
        alone, together = one(*batch()), model(*batch())
    assert (together - alone).norm() <= 1e-5 * alone.norm()


def test_untrained_aggregators_average_uniformly():
    experts = [expert(1), expert(2), expert(3)]
    fresh, even = ensemble(experts, "adaptive", **SIZE), force(ensemble(experts, "adaptive", **SIZE), [1 / 3] * 3)
    with torch.no_grad():
        assert torch.allclose(fresh(*batch()), even(*batch()), rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(A, torch.full_like(A, 1 / 3)) for A in attention(fresh, *batch()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 3])
def test_attention_sums_to_one_at_each_position(kind, n):
    model = awake(ensemble([expert(k) for k in range(n)], kind, **SIZE))
    found = attention(model, *batch())
    assert [A.shape for A in found] == [(6, n, k, k) for k in (16, 8, 4, 4, 8, 16, 16)]
    assert all((A >= 0).all() and torch.allclose(A.sum(1), torch.ones(()), atol=1e-6) for A in found)


@pytest.mark.parametrize("blocks", [1, 2])
def test_all_attention_on_one_expert_is_that_expert_bit_for_bit(blocks):
    experts = [expert(1, blocks), expert(2, blocks)]
    for k, A in enumerate(([1.0, 0.0], [0.0, 1.0])):
        model = force(ensemble(experts, "adaptive", **SIZE), A)
        with torch.no_grad():
            assert torch.equal(model(*batch()), experts[k](*batch()))


def test_order_of_experts_does_not_matter():
    experts, order = [expert(k) for k in (1, 2, 3)], [2, 0, 1]
    model = awake(ensemble(experts, "adaptive", **SIZE))
    other = ensemble([experts[k] for k in order], "adaptive", **SIZE)
    other.net.embed_time, other.net.embed_label = model.net.embed_time, model.net.embed_label
    for mine, theirs in zip(model.net.aggregators, other.net.aggregators, strict=True):
        theirs.load_state_dict(mine.state_dict())
        with torch.no_grad():
            groups = mine.enter.weight.chunk(3, dim=1)  # input channels, expert by expert
            theirs.enter.weight.copy_(torch.cat([groups[k] for k in order], dim=1))
            theirs.leave.weight.copy_(mine.leave.weight[order])
            theirs.leave.bias.copy_(mine.leave.bias[order])
    with torch.no_grad():
        a, b = model(*batch()), other(*batch())
    assert (a - b).norm() <= 1e-5 * a.norm()
    assert not torch.allclose(a, ensemble(experts, "adaptive", **SIZE)(*batch()), rtol=1e-3)


# The aggregators' variants.


def given(n: int = 5):
    g = torch.Generator().manual_seed(1001)
    features = [torch.randn(n, 4, 6, 6, generator=g) for _ in range(2)]
    return features, torch.randn(n, 8, generator=g), torch.randn(n, 8, generator=g)


def test_ablations_leave_out_what_they_say():
    full, static, timeless, flat = (
        scattered(KINDS[k](2, 4, 8, 8), 3) for k in ("adaptive", "static", "timeless", "flat")
    )
    features, time, label = given()
    assert torch.equal(static(features, time, label), static([f + 1 for f in features], time + 1, label + 1))
    assert torch.equal(timeless(features, time, label), timeless(features, time + 1, label))
    A = flat(features, time, label)
    assert torch.allclose(A, A[:, :, :1, :1].expand_as(A)) and not torch.allclose(A[0], A[1])
    A = full(features, time, label)
    assert not torch.allclose(A, full(features, time + 1, label))
    assert not torch.allclose(A, full(features, time, label + 1))
    assert A.std(dim=(2, 3)).min() > 1e-4


def test_the_control_only_looks_at_the_neighbour():
    full, misled = (scattered(KINDS[k](2, 4, 8, 8), 3) for k in ("adaptive", "misled"))
    features, time, label = given()
    assert torch.allclose(misled(features, time, label), full(features, time, label).roll(1, 0), atol=1e-6)


def test_normalisation_hides_the_scale_of_an_expert():
    aggregator = scattered(Aggregator(2, 4, 8, 8), 3)
    (a, b), time, label = given()
    assert torch.allclose(aggregator([a, b], time, label), aggregator([50 * a, b], time, label), atol=1e-3)


def test_only_aggregators_learn():
    model = ensemble([expert(1), expert(2)], "adaptive", **SIZE)
    x, s, label = batch()
    model.loss(x, s, torch.randn_like(x), label).mean().backward()
    assert all(p.grad is None for p in model.net.experts.parameters())
    assert all(a.leave.weight.grad.abs().sum() > 0 for a in model.net.aggregators)


def test_aggregators_of_fm16_are_light():
    experts = [EDM(UNet(), 0.6), EDM(UNet(), 0.6)]
    assert parameters_share(ensemble(experts, "adaptive", 8, 32)) < 0.05
    assert parameters_share(ensemble(experts, "adaptive", 16, 32)) <= 0.15
    assert parameters_share(ensemble(experts, "static", 8, 32)) < parameters_share(ensemble(experts, "flat", 8, 32))


# Averages.


@pytest.fixture(scope="module")
def held_out():
    x, _, label = batch(20)
    return HeldOut(0.5 * x, label, -1.0, 1.3, 0.6, 1000)


def test_held_out_loss_is_the_training_loss(held_out):
    one, x = expert(1), held_out.x
    eps = (held_out.noisy - x) / held_out.s.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        expected = one.loss(x, held_out.s, eps, held_out.label).mean()
    assert held_out.loss(held_out.denoised(one)) == pytest.approx(expected.item(), rel=1e-4)
    assert held_out.loss(x) == 0


def test_averages_end_in_the_experts(held_out):
    experts = [expert(1), expert(2)]
    for w, one in ((0.0, experts[0]), (1.0, experts[1])):
        expected = held_out.denoised(one)
        assert torch.equal(held_out.denoised(weight_average(experts, w)), expected)
        found = held_out.denoised(OutputAverage(experts, lambda s, label, w=w: w))
        assert torch.allclose(found, expected, atol=1e-4)


def test_best_averages_are_the_best_of_nine(held_out):
    experts = [expert(1), expert(2)]
    for best, build in (
        (best_weight_average, weight_average),
        (best_output_average, lambda e, w: OutputAverage(e, lambda s, label: w)),
    ):
        model, w, loss = best(experts, held_out)
        losses = [held_out.loss(held_out.denoised(build(experts, v))) for v in WEIGHTS]
        assert w == WEIGHTS[int(np.argmin(losses))] and loss == pytest.approx(min(losses), rel=1e-4)
        assert held_out.loss(held_out.denoised(model)) == pytest.approx(loss, rel=1e-4)


def test_switch_finds_the_better_expert_of_a_class():
    """Experts that know half of the labels each: the table routes, whatever the level."""

    class Half(nn.Module):
        def __init__(self, clean, low):
            super().__init__()
            self.clean, self.low, self.net = clean, low, UNet((4, 4), groups=2, width=4)

        def forward(self, x, s, label):
            mine = (label < 5) == self.low
            return torch.where(mine.reshape(-1, 1, 1, 1), self.clean, 0 * x)

    x, _, label = batch(200)
    data = HeldOut(x, label, -1.0, 1.3, 0.6, 1000)
    experts = [Half(x, True), Half(x, False)]
    data.denoised = lambda model: model(data.noisy, data.s, data.label)
    switch = Switch(experts, data, 4, -1.0, 1.3)
    assert torch.allclose(switch.table[:5], torch.zeros(5, 4)) and torch.allclose(switch.table[5:], torch.ones(5, 4))
    assert torch.allclose(OutputAverage(experts, switch)(data.noisy, data.s, label), x)
    counts = torch.bincount(switch.bin((-1 + 1.3 * torch.randn(8000, generator=torch.Generator())).exp()))
    assert (counts / 8000 - 0.25).abs().max() < 0.03  # equally likely


def test_switch_is_the_least_squares_solution(held_out):
    experts = [expert(1), expert(2)]
    switch = Switch(experts, held_out, 2, -1.0, 1.3)

    def loss():
        return held_out.loss(held_out.denoised(OutputAverage(experts, switch)))

    least, best = loss(), switch.table.clone()
    for step in (-0.05, 0.05):
        switch.table = (best + step).clamp(0, 1)
        assert loss() >= least * (1 - 1e-6)


# Variance, experts, whole runs.


def test_shares_of_the_variance():
    t, c, m, p = (np.arange(k, dtype=float) for k in (4, 3, 5, 6))
    zero = np.zeros((4, 3, 5, 6))
    only = {"time": t[:, None, None, None], "class": c[None, :, None, None], "position": p}
    for name, effect in only.items():
        found = shares(zero + effect)
        assert found.pop(name) == pytest.approx(1) and all(abs(v) < 1e-12 for v in found.values())
    images = np.random.default_rng(0).permuted(np.tile(m, (3, 1)), axis=1)[None, :, :, None]
    assert shares(zero + images)["image"] == pytest.approx(1)
    both = shares(zero + t[:, None, None, None] + p)
    assert both["time"] == pytest.approx(t.var() / (t.var() + p.var()))
    assert shares(zero + 0.5) == {"time": 0, "class": 0, "position": 0, "image": 0}


def test_experts_see_their_own_classes_and_some_of_the_rest():
    label = np.arange(1000) % 10
    rows = fm16_experts.special(label, [0, 1, 2, 3, 4], 0.1, 1000).numpy()
    assert (label[rows] < 5).sum() == 500 and (label[rows] >= 5).sum() == 50 and len(set(rows)) == 550
    assert not np.array_equal(rows, fm16_experts.special(label, [0, 1, 2, 3, 4], 0.1, 1001).numpy())


TINY = {"name": "classes", "hidden": 8, "width": 8, "steps": 1, "log_mean": -1.0, "log_sd": 1.3, "levels": 3}
TINY |= {"per_class": 1, "bins": 2, "noise": [1000, 1001], "rates": [1e-3], "tuning_seed": 1100, "images": 200}
TINY |= {"held_out": 50, "n": 12, "n_early": 10, "updates": 2, "early": 1, "every": 1, "batch": 4}
RECIPE = {"images": 200, "held_out": 50, "specialities": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "share": 0.1, "steps": 2}
RECIPE |= {"batch": 4, "lr": 1e-2, "decay": 0.5, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3}


@pytest.fixture(scope="module")
def inputs(tiny_fm16):
    states = {p: fm16_experts.train(p, RECIPE, tiny_fm16, "cpu", None).state for p in ("1000", "1001", "1100")}
    return Inputs(tiny_fm16.datasets, {**tiny_fm16.models, "fm16-experts": states})


def test_expert_recipe_comes_back_from_its_state(inputs, tiny_fm16):
    found = fm16_experts.train("1000", RECIPE, tiny_fm16, "cpu", None)
    assert [row["expert"] for row in found.rows] == [0, 1]
    state = inputs.models["fm16-experts"]["1000"]
    assert all(np.array_equal(v, state[k]) for k, v in found.state.items())
    a, b = fm16_experts.load(found.state)
    assert not any(p.requires_grad for p in a.parameters()) and weights(a) != weights(b)


@pytest.mark.parametrize(
    "method",
    ["static", *(pytest.param(m, marks=pytest.mark.slow) for m in ("afa", "misled", "flat", "timeless", "a", "base"))]
    + [pytest.param(m, marks=pytest.mark.slow) for m in ("weights", "outputs", "switch", "continued", "real")],
)
def test_splitting_the_seeds_changes_nothing(method, inputs):
    settings = {"rate": 1e-3} if method == "continued" else {}
    whole = run(TINY, method, settings, [1000, 1001], inputs, "cpu")
    parts = [run(TINY, method, settings, [s], inputs, "cpu") for s in (1000, 1001)]
    assert whole.rows == [row for part in parts for row in part.rows]
    assert all(np.isfinite(v) for row in whole.rows for v in row.values())
    if method == "afa":
        assert all(row["share"] > 0 for row in whole.rows if "share" in row)
        cells = {(row["updates"], row["noise"]) for row in whole.rows}
        assert cells == {(1, 1000), (2, 1000), (2, 1001)}
        assert all(row["changed"] == 0 for row in whole.rows if "changed" in row)


def test_half_way_is_where_the_ablations_are(inputs):
    """A run of as many updates as AFA's half gives AFA's half-way samples."""
    half = next(r for r in run(TINY, "afa", {}, [1000], inputs, "cpu").rows if r["updates"] == 1)
    lab = Lab(TINY, inputs, "cpu")
    model, _ = lab.learnt("adaptive", 1000, 1, 1e-3)
    assert lab.quality(model, 1000, TINY["n_early"])[0]["fd"] == pytest.approx(half["fd"], rel=1e-6)


def test_tuning_is_shared_and_on_the_tuning_seed(inputs):
    tuned.cache_clear()
    p = TINY | {"rates": [1e-3, 1e-2], "updates": 1}
    lr, tried = tuned(Lab(p, inputs, "cpu"))
    assert [r for r, _ in tried] == p["rates"] and lr == min(tried, key=lambda t: t[1])[0]
    assert tuned(Lab(dict(p), inputs, "cpu")) == (lr, tried) and tuned.cache_info().hits == 1


def test_multiply_adds_count_every_expert(inputs):
    lab = Lab(TINY, inputs, "cpu")
    a, b = lab.experts(1000)
    one = lab.macs(a)
    assert one == lab.macs(weight_average([a, b], 0.5))
    assert lab.macs(OutputAverage([a, b], lambda s, label: 0.5)) == pytest.approx(2 * one)
    assert lab.macs(ensemble([a, b], "static", **SIZE)) == pytest.approx(2 * one, rel=1e-3)
    assert lab.macs(ensemble([a, b], "adaptive", **SIZE)) > 2 * one


BEATS, DEPENDS, LIGHT = (
    evidence.beats_experts_and_averages,
    evidence.depends_on_the_state,
    evidence.only_a_light_part_is_trained,
)


def judged(judge, control=False, **changed):
    at = {"afa": 1.0, "a": 2.0, "b": 2.0, "weights": 1.5, "outputs": 1.5, "static": 1.6, "timeless": 1.4, "flat": 1.4}
    at |= {"time": 0.1, "class": 0.1, "position": 0.1, "share": 0.04, "reached": 50, "changed": 0.0} | changed
    rng, rows = np.random.default_rng(0), []
    facts = {k: at[k] for k in ("time", "class", "position", "share", "reached", "changed")}
    for seed in range(3):
        for noise in (0, 1):
            for m in ("afa", "a", "b", "weights", "outputs"):
                cell = {"method": m, "seed": seed, "updates": 150 * (m == "afa"), "noise": noise}
                rows.append({**cell, "fd": at[m] + 0.01 * rng.standard_normal(), **(facts if m == "afa" else {})})
        for m in ("afa", "static", "timeless", "flat"):
            rows.append({"method": m, "seed": seed, "updates": 75, "noise": 0, "fd": at[m] + 0.1})
        rows.append({"method": "misled", "seed": seed, "updates": 150, "noise": 0, "fd": 1.7 + 0.1 * seed})
    results = Evidence(pd.DataFrame(rows).assign(problem="classes"))
    return verdict(judge(results.standing_in("misled", "afa") if control else results))


def test_claims_are_judged():
    assert [judged(judge) for judge in (BEATS, DEPENDS, LIGHT)] == ["replicated"] * 3
    assert judged(BEATS, control=True) == "not replicated" == judged(BEATS, weights=0.9)
    assert judged(DEPENDS, position=0.01) == "not replicated" == judged(DEPENDS, timeless=0.9)
    assert judged(LIGHT, reached=110) == judged(LIGHT, share=0.2) == judged(LIGHT, changed=1.0) == "not replicated"
