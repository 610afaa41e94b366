"""Transition matching: exact kernels, marginals at any T, the causal mask and its cache, heads, counted evaluations."""

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.papers.diffusion.transition_matching import evidence
from papertrial.papers.diffusion.transition_matching.kernels import (
    exact_difference,
    flow,
    kept,
    transitions,
    velocity,
)
from papertrial.papers.diffusion.transition_matching.method import (
    build,
    difference_transitions,
    euler,
    full_history,
    midpoint,
    multiply_adds,
    pictures_of,
    run,
)
from papertrial.papers.diffusion.transition_matching.networks import (
    FlowHead,
    LinearHead,
    PerceptronHead,
    to_pictures,
    to_tokens,
)
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2

NETWORK = {"dim": 8, "layers": 2, "heads": 2, "width": 8}
PICTURES = {"name": "pictures", "measure": "pictures", "size": 8, "side": 2, "network": NETWORK, "images": 200}
PICTURES |= {"batch": 8, "causal_batch": 4, "draws": 2, "transitions": 3, "lr": 1e-3, "warmup": 1, "ema": 0.9}
PICTURES |= {"evaluations": [2, 4], "fewest": 4, "shown": 2, "noise_seeds": [1000, 1001], "tuning_noise": 1100}
PICTURES |= {"split": 10, "steps": 2, "n": 20, "tuning_n": 10, "head_steps": [2]}
EXACT = {"name": "ring8", "measure": "exact", "density": "ring8", "starts": 10, "replicas": 4, "T": [2, 4]}
EXACT |= {"flow_steps": 10}


def seed(k):
    return torch.Generator().manual_seed(k)


def start(n):
    return torch.randn(n, 2, generator=seed(1000), dtype=torch.float64)


@pytest.mark.parametrize("T", [1, 2, 4])
def test_marginals_are_exact_at_any_number_of_transitions(T):
    data, n = density("ring8"), 10_000
    distance = SlicedW2(data.sample(n, seed(1)).numpy(), 64)
    floor = max(distance(data.sample(n, seed(k)).numpy()) for k in range(2, 8))
    assert distance(transitions(exact_difference(data), start(n), T, seed(9)).numpy()) < 1.3 * floor


def test_one_euler_step_of_the_flow_is_far_off():
    data, n = density("ring8"), 5000
    distance = SlicedW2(data.sample(n, seed(1)).numpy(), 64)
    floor = distance(data.sample(n, seed(2)).numpy())
    x = start(n)
    assert distance((x + velocity(data, x, 0.0)).numpy()) > 5 * floor


@pytest.mark.parametrize("u", [0.0, 0.3, 0.8])
def test_mean_difference_is_the_flow_velocity(u):
    data, n = density("spiral"), 40_000
    for x in ([0.5, -0.2], [1.0, 1.0]):
        at = torch.tensor([x], dtype=torch.float64)
        Y = exact_difference(data)(at.expand(n, 2), u, seed(3))
        error = (Y.mean(0) - velocity(data, at, u)[0]).abs()
        assert (error < 3.5 * Y.std(0) / n**0.5 + 1e-9).all()


def test_a_kept_difference_keeps_its_variance():
    data, x = density("ring8"), start(1).expand(4000, 2)
    variances = [kept(exact_difference(data), x, T, seed(T)).var(0).sum().item() for T in (4, 64)]
    assert variances[1] == pytest.approx(variances[0], rel=0.1)
    moved = [transitions(exact_difference(data), x[:1000], T, seed(T)).var(0).sum().item() for T in (4, 64)]
    assert moved[1] < 0.5 * moved[0]


def test_flow_of_a_normal_law_is_known():
    """For N(0, c) the flow is x_u = x sqrt((1-u)^2 + u^2 c): it ends at sqrt(c) x."""
    from papertrial.testbeds.mixtures import Mixture

    x = start(5)
    assert torch.allclose(flow(Mixture([[0.0, 0.0]], 0.09), x, 400), 0.3 * x, atol=1e-3)


def test_changing_a_token_leaves_outputs_before_it_unchanged():
    torch.manual_seed(0)
    backbone = build(True, FlowHead, PICTURES).backbone.eval()
    x, label = torch.randn(3, 63, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        before = backbone(x, label)
        for j in (0, 17, 62):
            changed = x.clone()
            changed[:, j] += 1
            after = backbone(changed, label)
            assert torch.equal(after[:, : j + 1], before[:, : j + 1])
            assert not torch.allclose(after[:, j + 1], before[:, j + 1])


def test_cache_gives_what_one_pass_gives():
    torch.manual_seed(0)
    backbone = build(True, FlowHead, PICTURES).backbone.eval()
    x, label = torch.randn(3, 20, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():
        whole = backbone(x, label)
        h, cache = backbone.start(x[:, :16], label)
        assert torch.allclose(h, whole[:, 16], atol=1e-5)
        for i in range(16, 20):
            assert torch.allclose(backbone.extend(x[:, i], i, cache), whole[:, i + 1], atol=1e-5)


@pytest.mark.slow
def test_head_reproduces_mean_and_variance_of_a_normal_law():
    """Y = h + .5 z: after training, samples given h have mean h and variance .25."""
    torch.manual_seed(0)
    head, generator = FlowHead(1, 1, 48), seed(0)
    steps = 900
    optimizer = torch.optim.Adam(head.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        h = 2 * torch.rand(256, 1, generator=generator) - 1
        Y = h + 0.5 * torch.randn(256, 1, generator=generator)
        optimizer.zero_grad()
        head.loss(Y, h, 4, generator).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for h in (-0.5, 0.8):
            drawn = head.generate(torch.randn(20_000, 1, generator=generator), torch.full((20_000, 1), h), 64)
            assert drawn.mean().item() == pytest.approx(h, rel=0.05)
            assert drawn.var().item() == pytest.approx(0.25, rel=0.05)


def calls(sampler, head, causal=False):
    model = build(causal, head, PICTURES).eval()
    pictures_of(sampler, model, PICTURES, 1000, 10)
    return model, model.calls


def test_backbone_and_head_evaluations_are_counted_separately():
    assert calls(difference_transitions(5, 3), FlowHead)[1] == {"backbone": 5, "head": 15}
    assert calls(euler(6), LinearHead)[1] == {"backbone": 6, "head": 6}
    assert calls(midpoint(3), PerceptronHead)[1] == {"backbone": 6, "head": 6}
    assert calls(full_history(3, 2), FlowHead, True)[1] == {"backbone": 48, "head": 96}  # a token each


def test_multiply_adds_grow_with_the_head_steps():
    few, many = (multiply_adds(*calls(difference_transitions(2, S), FlowHead)) for S in (1, 4))
    head = FlowHead(4, 8, 8).multiply_adds()
    assert many - few == 2 * 3 * 16 * head


def test_heads_have_equal_parameters():
    flow_head, mean_head = FlowHead(4, 8, 8), PerceptronHead(4, 8, 8)
    assert sum(p.numel() for p in flow_head.parameters()) == sum(p.numel() for p in mean_head.parameters())


def test_started_at_zero_the_transitions_are_deterministic():
    model = build(False, FlowHead, PICTURES).eval()
    x, label = torch.randn(4, 16, 4), torch.arange(4)
    noise = [torch.randn(4, 3, 16, 4, generator=seed(k)) for k in (1, 2)]
    with torch.no_grad():
        fixed = [difference_transitions(3, 2, 0.0)(model, x, lambda T, z=z: z, label) for z in noise]
        drawn = [difference_transitions(3, 2)(model, x, lambda T, z=z: z, label) for z in noise]
    assert torch.equal(*fixed) and not torch.allclose(*drawn)


def test_tokens_are_patches():
    x = torch.arange(128.0).reshape(2, 1, 8, 8)
    tokens = to_tokens(x, 2)
    assert tokens[0, 1].tolist() == [2, 3, 10, 11]
    assert torch.equal(to_pictures(tokens, 2), x)


def test_a_linear_flow_is_integrated_exactly_by_midpoint():
    """dx/du = u has the end 1/2: the midpoint rule is exact, Euler's is (T-1)/(2T)."""

    class Clock(torch.nn.Module):
        def forward(self, x, u, label):
            return u[:, None, None].expand_as(x)

        def mean(self, h):
            return h

    model = torch.nn.Module()
    model.backbone, model.head = Clock(), Clock()
    x = torch.zeros(2, 16, 4)
    assert torch.allclose(midpoint(4)(model, x, None, None), torch.full_like(x, 0.5))
    assert torch.allclose(euler(4)(model, x, None, None), torch.full_like(x, 3 / 8))


@pytest.mark.parametrize("method", ["dtm", "flow-matching", "fhtm", "deterministic"])
def test_splitting_the_seeds_changes_nothing(method, tiny_fm8):
    whole = run(PICTURES, method, {}, [1000, 1001], tiny_fm8, "cpu").rows
    parts = [row for s in (1000, 1001) for row in run(PICTURES, method, {}, [s], tiny_fm8, "cpu").rows]
    assert whole == parts


@pytest.mark.parametrize("method", ["dtm", "kept-difference"])
def test_splitting_the_seeds_of_exact_kernels(method):
    whole = run(EXACT, method, {}, [1000, 1001], None, "cpu").rows
    assert whole == [row for s in (1000, 1001) for row in run(EXACT, method, {}, [s], None, "cpu").rows]


def test_flow_matching_loss_agrees_with_the_peer():
    peer = pytest.importorskip("torchcfm.conditional_flow_matching")
    matcher, generator = peer.ConditionalFlowMatcher(sigma=0.0), seed(0)
    X_0, X_T = (torch.randn(6, 64, generator=generator) for _ in range(2))
    u, x, Y = matcher.sample_location_and_conditional_flow(X_0, X_T)
    assert torch.allclose(x, X_0 + u[:, None] * (X_T - X_0), atol=1e-6) and torch.allclose(Y, X_T - X_0)


def judged(dtm=1.0, flow_matching=2.0, fhtm=2.0, slope=-1.0):
    rows = []
    for s in range(3):
        for noise in (0, 1):
            wobble = 1 + 0.05 * s + 0.02 * noise
            cell = {"problem": "pictures", "seed": s, "noise": noise}
            for k in (0, 2, 4, 8, 16, 32, 64):
                error = 1 + 8 / (k or 64)
                work = {"evaluations": k}
                found = {"dtm": (dtm, 200.0), "flow-matching": (flow_matching, 100.0)}
                rows += [
                    {**cell, **work, "method": m, "fd": fd * error * wobble, "multiply_adds": c * k}
                    for m, (fd, c) in found.items()
                ]
            rows.append({**cell, "evaluations": 0, "method": "fhtm", "fd": fhtm * wobble, "multiply_adds": 1.0})
    for name in ("ring8", "spiral"):
        for T in (16, 32, 64, 128, 256):
            found = {"variance": float(T) ** slope, "distance": 1 / T}
            rows.append({"problem": name, "seed": 0, "noise": 0, "evaluations": T, "method": "dtm", **found})
    results = Evidence(pd.DataFrame(rows))
    judges = (
        evidence.better_samples,
        evidence.fewer_evaluations,
        evidence.converges_to_the_flow,
        evidence.causal_matches_flow,
    )
    return [verdict(judge(results)) for judge in judges]


def test_claims_are_judged():
    assert judged() == ["replicated"] * 4
    assert judged(dtm=2.5)[:2] == ["not replicated"] * 2
    assert judged(slope=-0.5)[2] == "not replicated"
    assert judged(fhtm=4.0)[3] == "not replicated"
    assert np.isfinite(evidence.fewer_evaluations(Evidence(pd.DataFrame(judged_rows_without_success())))[0].estimate)


def judged_rows_without_success():
    cells = [(m, k) for m in ("dtm", "flow-matching") for k in (2, 64)]
    fixed = {"problem": "pictures", "seed": 0, "noise": 0, "multiply_adds": 1.0}
    return [fixed | {"method": m, "evaluations": k, "fd": 9.0 if m == "dtm" else 1.0} for m, k in cells]
