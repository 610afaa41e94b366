"""prompt8's gated denoiser, APTP's router, transport and stages, and the judging of its claims on tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs, Results
from papertrial.engine.verdicts import verdict
from papertrial.models import prompt8
from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM
from papertrial.models.prompt8 import GatedMLP, Mask, Pictures, Prompt, pruned, share
from papertrial.papers.diffusion.prompt_tailored_pruning import evidence
from papertrial.papers.diffusion.prompt_tailored_pruning import pruning as stages
from papertrial.papers.diffusion.prompt_tailored_pruning.method import (
    GROUP,
    Lab,
    by_experts,
    difficulty,
    hashed,
    held_out_by_cell,
    judged,
)
from papertrial.papers.diffusion.prompt_tailored_pruning.method import run as run_method
from papertrial.papers.diffusion.prompt_tailored_pruning.pruning import (
    Plan,
    batch,
    gated_loss,
    harden,
    learn,
    magnitudes,
    planned,
    specialise,
    usage,
)
from papertrial.papers.diffusion.prompt_tailored_pruning.router import (
    EPS,
    OPEN,
    Router,
    by_transport,
    contrastive,
    mutual_information,
    open_gates,
    perplexity,
    straight_through,
    transport,
)

CONFIG = Path(__file__).parents[3] / "config"
P = {"name": "prompt8", "images": 200, "batch": 16, "groups": 4, "codes": 3, "budget": 0.6, "router_updates": 3}
P |= {"router_lr": 1e-2, "updates": 6, "lr": 1e-3, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3, "distil": 0.5}
P |= {
    "resource": 2.0,
    "contrast": 0.1,
    "agree": 1.0,
    "taylor_batches": 1,
    "n": 60,
    "steps": 2,
    "probes": 2,
    "untrained": 4,
}


def generator(seed=1000):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def inputs():
    """prompt8, barely trained on made-up pictures."""
    rng, data = np.random.default_rng(0), {}
    for part, n in (("train", 200), ("test", 100)):
        data[f"x_{part}"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        data[f"y_{part}"] = np.arange(n) % 10
    settings = {
        "size": 8,
        "images": 200,
        "sigma_data": 0.6,
        "width": 16,
        "hidden": [16, 16, 16],
        "steps": 3,
        "batch": 16,
    }
    settings |= {"lr": 1e-3, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3, "gate": {"n": 30, "steps": 1, "seed": 1000}}
    settings |= {"classifier": {"steps": 3, "batch": 16, "lr": 1e-3, "ema": 0.9}}
    found = prompt8.train("0", settings, Inputs({"fashion_mnist": data}), "cpu", None)
    assert {"fd", "accuracy", "floor", "loss"} <= set(found.rows[0])
    return Inputs({"fashion_mnist": data}, {"prompt8": {"0": found.state}})


@pytest.fixture(scope="module")
def lab(inputs):
    """With weights that make the gates matter."""
    state, data = inputs.models["prompt8"]["0"], inputs.datasets["fashion_mnist"]
    training, test = (Pictures(data, split, 8, 200) for split in ("train", "test"))
    return Lab(random_model(), prompt8.load_judge(state), training, test, P, 1000)


def random_model(hidden=(16, 16, 16)) -> EDM:
    model = seeded(lambda: EDM(GatedMLP(64, 16, hidden), 0.6), 1000)
    nn.init.normal_(model.net.out.weight, std=0.2, generator=generator())
    return model.eval().requires_grad_(False)


def random_mask(seed, share_open=0.5) -> Mask:
    rng = generator(seed)
    units = (torch.rand(3, 4, generator=rng) < share_open).float()
    blocks = (torch.rand(3, generator=rng) < 0.7).float()
    return Mask(units * blocks[:, None], blocks * (units.sum(1) > 0))


def spread(mask: Mask, n: int) -> Mask:
    return Mask(mask.units.expand(n, -1, -1), mask.blocks.expand(n, -1))


def noisy(n=7):
    rng = generator()
    s = (torch.randn(n, generator=rng) - 1).exp()
    return torch.randn(n, 1, 8, 8, generator=rng), s, torch.randn(n, 32, generator=rng)


# What must hold.


def test_one_code_is_the_single_mask(lab):
    """Against a loop without a router: a mask whose logits depend on nothing, trained on the same batches and gates."""
    router = learn(lab.model, lab.training, P, 1000, 1, by_transport)
    alone = seeded(lambda: Router(1, 3, 4), 1000)
    weights = [alone.codes, *alone.predictor.parameters()]
    average = [w.detach().clone() for w in weights]
    optimizer, rng = torch.optim.Adam(weights), generator(1000)
    for step in range(P["router_updates"]):
        b = batch(lab.training, P, rng)
        logits = alone.logits(alone.codes.expand(P["batch"], -1))
        gates = open_gates(logits, rng)
        with torch.no_grad(), stages.recorded(lab.model) as wanted:
            target = lab.model(b.noisy, b.s, b.encoded)
        with stages.recorded(lab.model) as found:
            D = lab.model(b.noisy, b.s, Prompt(b.encoded, gates))
        features = torch.stack(
            [(f - t).square().mean() / t.square().mean() for f, t in zip(found, wanted, strict=True)]
        )
        R = share(lab.model.net, Mask(logits.units.sigmoid(), logits.blocks.sigmoid())).mean()
        loss = b.error(D, b.x, 0.6) + P["distil"] * (b.error(D, target, 0.6) + features.mean())
        loss = loss + P["resource"] * (R / P["budget"]).log().abs()
        optimizer.param_groups[0]["lr"] = P["router_lr"] * (1 - step / P["router_updates"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mean, w in zip(average, weights, strict=True):
            mean.lerp_(w.detach(), 1 - min(P["ema"], (1 + step) / (10 + step)))
    for mean, w in zip(average, [router.codes, *router.predictor.parameters()], strict=True):
        assert torch.allclose(mean, w, atol=1e-5)
    assert (router.choose(lab.training.encoded) == 0).all()
    assert run_rows("aptp", lab, codes=1) == run_rows("learned", lab)


def run_rows(method, lab, **changed):
    """FD, agreement and compute of a method on the random model."""
    codes = changed.get("codes", 1)
    router = learn(lab.model, lab.training, P, lab.seed, codes, by_transport)
    plan = planned(lab.model, router, lab.training, P)
    experts, updates = specialise(lab.model, plan, lab.training, P, lab.seed)
    return judged(lab, by_experts(lab, experts, plan), plan, updates, Results([]))


def similarities(B, K, seed=1000):
    rng = np.random.default_rng(seed)
    z, a = rng.standard_normal((B, 32)), rng.standard_normal((K, 32))
    z, a = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (z, a))
    return z @ a.T


@pytest.mark.parametrize(("B", "K"), [(256, 4), (60, 16)])
def test_transport_has_the_marginals_asked_for(B, K):
    Q, _ = transport(similarities(B, K), EPS, 50)
    assert np.allclose(Q.sum(1), 1 / B, rtol=1e-3) and np.allclose(Q.sum(0), 1 / K, rtol=1e-3)


def test_transport_tends_to_the_assignment_as_eps_vanishes():
    sim = similarities(12, 12)
    rows, columns = linear_sum_assignment(-sim)
    plans = [transport(sim, eps, sweeps)[0] for eps, sweeps in ((0.1, 50), (0.02, 200), (0.004, 1000))]
    value = [(12 * Q * sim).sum() for Q in plans]
    best = sim[rows, columns].sum()
    assert value[0] < value[1] < value[2] <= best * (1 + 1e-6) and value[2] == pytest.approx(best, rel=0.01)
    assert (plans[-1].argmax(1) == columns).all()


def test_all_gates_open_is_the_full_network():
    model, (x, s, encoded) = random_model(), noisy()
    ones = Mask(torch.ones(7, 3, 4), torch.ones(7, 3))
    assert torch.allclose(model(x, s, Prompt(encoded, ones)), model(x, s, encoded), atol=1e-6)
    assert float(share(model.net, Mask(ones.units[0], ones.blocks[0]))) == pytest.approx(1)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_hard_gates_give_the_counted_multiply_adds_and_the_same_pictures(seed):
    model, (x, s, encoded), mask = random_model(), noisy(), random_mask(seed)
    small = pruned(model, mask)
    assert torch.allclose(small(x, s, encoded), model(x, s, Prompt(encoded, spread(mask, 7))), atol=1e-5)
    with FlopCounterMode(display=False) as counter:
        small(x[:1], s[:1], encoded[:1])
    assert counter.get_total_flops() == 2 * small.net.macs()
    assert float(share(model.net, mask)) * model.net.macs() == pytest.approx(small.net.macs(), rel=1e-6)


def test_the_codes_order_changes_nothing(lab):
    router = learn(lab.model, lab.training, P, 1000, 3, by_transport)
    order = torch.tensor([2, 0, 1])
    other = seeded(lambda: Router(3, 3, 4), 0)
    other.load_state_dict({**router.state_dict(), "codes": router.codes[order]})
    assert torch.equal(order[other.choose(lab.test.encoded)], router.choose(lab.test.encoded))
    rows = []
    for r in (router, other):
        plan = planned(lab.model, r, lab.training, P)
        experts, updates = specialise(lab.model, plan, lab.training, P, 1000)
        found = judged(lab, by_experts(lab, experts, plan), plan, updates, Results([]))
        rows.append(found | {"cells": held_out_by_cell(lab, plan.compute(lab.model)).tolist()})
        code = r.choose(lab.test.encoded).numpy()
        rows[-1] |= {"perplexity": perplexity(code, 3), "nmi": mutual_information(code, lab.test.style.numpy())}
    for name, value in rows[0].items():
        assert rows[1][name] == pytest.approx(value, rel=1e-5), name


def test_the_router_sees_captions_only(lab, monkeypatch):
    """The same captions with other pictures: the same similarities, assignment and route."""
    seen = []

    def spy(sim, caption):
        seen.append(sim.detach())
        return by_transport(sim, caption)

    loss = gated_loss(lab.model, lab.training, P, spy)
    router = seeded(lambda: Router(3, 3, 4), 1000)
    loss(router, router, 0, generator())
    x = lab.training.wardrobe.x
    monkeypatch.setattr(lab.training.wardrobe, "x", x[torch.randperm(len(x), generator=generator())])
    loss(router, router, 0, generator())
    assert torch.equal(seen[0], seen[1])


# The parts.


SLOW = ("magnitude", "taylor", "no-transport", "transport-alone", "hashed", "random-router", "full")


@pytest.mark.parametrize(
    "method", ["aptp", "learned", "dynamic", *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)]
)
def test_splitting_the_seeds_changes_nothing(method, inputs):
    whole = run_method(P, method, {}, [1000, 1001], inputs, "cpu").rows
    parts = [row for s in (1000, 1001) for row in run_method(P, method, {}, [s], inputs, "cpu").rows]
    assert whole == parts and all(np.isfinite(v) for row in whole for v in row.values() if not isinstance(v, str))


def test_transport_agrees_with_pot():
    ot = pytest.importorskip("ot")
    sim = similarities(40, 4)
    theirs = ot.sinkhorn(np.full(40, 1 / 40), np.full(4, 1 / 4), -sim, EPS, method="sinkhorn_log", numItermax=300)
    assert np.allclose(transport(sim, EPS, 100)[0], theirs, atol=1e-6)


def test_magnitudes_agree_with_torch_pruning():
    tp = pytest.importorskip("torch_pruning")
    block = random_model().net.layers[0]
    chain = nn.Sequential(block.up, nn.SiLU(), block.down).requires_grad_(True)
    graph = tp.DependencyGraph().build_dependency(chain, torch.zeros(1, 16))
    group = graph.get_pruning_group(chain[0], tp.prune_linear_out_channels, idxs=list(range(16)))
    theirs = tp.importance.MagnitudeImportance(p=2, group_reduction="sum", normalizer=None, bias=False)(group)
    ours = magnitudes(random_model(), 16)[0]
    assert torch.allclose(ours.square(), theirs.detach(), rtol=1e-4)


def test_relaxed_plan_is_the_transport_plan():
    sim = torch.tensor(similarities(64, 4), dtype=torch.float64)
    chosen, soft = by_transport(sim, torch.arange(64))
    Q, _ = transport(sim.numpy())
    assert torch.equal(chosen, torch.from_numpy(Q.argmax(1)))
    assert np.allclose(soft.numpy(), Q / Q.sum(1, keepdims=True), rtol=1e-6)


def test_gates_open_as_often_as_their_probability_says():
    logits = Mask(torch.full((4000, 3, 4), 0.7), torch.full((4000, 3), -1.2))
    gates = open_gates(logits, generator())
    assert set(gates.units.unique().tolist()) == {0, 1} and set(gates.blocks.unique().tolist()) == {0, 1}
    assert gates.units.mean().item() == pytest.approx(1 / (1 + np.exp(-0.7)), abs=0.01)
    assert gates.blocks.mean().item() == pytest.approx(1 / (1 + np.exp(1.2)), abs=0.02)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = torch.tensor([0.3, 0.7], requires_grad=True)
    out = straight_through(torch.tensor([0.0, 1.0]), soft)
    (out * torch.tensor([2.0, 5.0])).sum().backward()
    assert torch.allclose(out, torch.tensor([0.0, 1.0])) and soft.grad.tolist() == [2, 5]


def test_contrastive_loss_is_least_where_similarities_are_the_captions():
    e = torch.randn(20, 32, generator=generator())
    z = F.normalize(e, dim=1).requires_grad_(True)
    least = contrastive(z, e)
    (gradient,) = torch.autograd.grad(least, z)
    assert gradient.abs().max() < 1e-5
    for seed in range(3):
        other = F.normalize(z + 0.3 * torch.randn(z.shape, generator=generator(seed)), dim=1)
        assert contrastive(other, e) > least
    assert contrastive(torch.ones(20, 32) / 32**0.5, e).item() == pytest.approx(np.log(19), rel=1e-5)


def test_a_router_starts_with_open_gates():
    logits = seeded(lambda: Router(4, 5, 16), 1000).logits(torch.randn(4, 32, generator=generator()))
    assert logits.units.shape == (4, 5, 16) and logits.blocks.shape == (4, 5)
    assert logits.units.mean().item() == pytest.approx(OPEN, abs=0.3)


@pytest.mark.parametrize("budget", [0.6, 0.7, 0.85])
def test_hardening_just_meets_the_budget(budget):
    net, weight = random_model().net, torch.tensor([0.5, 0.3, 0.2])
    logits = Mask(torch.randn(3, 3, 4, generator=generator()), torch.ones(3, 3))
    mask = harden(random_model(), logits, weight, budget)
    spent = float((weight * share(net, mask)).sum())
    _, block, group = prompt8.costs(net, 4)
    assert spent <= budget and spent + 0.5 * (block + group) / net.macs() >= budget
    assert mask.units[mask.blocks == 0].sum() == 0 and (mask.units.sum(-1) > 0).eq(mask.blocks > 0).all()


def test_scores_by_taylor_are_derivatives_by_the_gates(lab):
    """One sample, one batch: the square of the loss's central difference."""
    p = {**P, "batch": 1}
    scores = stages.taylor(lab.model, lab.training, p, 1000)
    b = batch(lab.training, p, generator(1000))

    def loss(i, j, step):
        units = torch.ones(1, 3, 4, dtype=torch.float64)
        units[0, i, j] += step
        prompt = Prompt(b.encoded.double(), Mask(units, torch.ones(1, 3).double()))
        D = random_model().double()(b.noisy.double(), b.s.double(), prompt)
        return b.error(D, b.x.double(), 0.6).item()

    for i, j in ((0, 0), (1, 3), (2, 2)):
        slope = (loss(i, j, 1e-4) - loss(i, j, -1e-4)) / 2e-4
        assert scores[i, j].item() == pytest.approx(slope**2, rel=1e-3, abs=1e-10)


def test_experts_share_the_images_of_an_update(lab):
    route = hashed(torch.tensor([0.5, 0.3, 0.2]))
    assert torch.allclose(usage(route, lab.training, 3), torch.tensor([0.5, 0.3, 0.2]), atol=0.01)
    plan = Plan(Mask(torch.ones(3, 3, 4), torch.ones(3, 3)), route)
    experts, images = specialise(lab.model, plan, lab.training, {**P, "batch": 20}, 1000)
    assert images == 20 * P["updates"] and len(experts) == 3


def test_the_hash_goes_by_paraphrase_not_by_cell(lab):
    route = hashed(torch.ones(4) / 4).numpy()
    cell = 10 * lab.training.style.numpy() + lab.training.item.numpy()
    assert mutual_information(route, cell) < 0.35  # 8 captions a cell: some by chance
    assert np.bincount(route).tolist() == [60] * 4


def test_nothing_pruned_is_no_difficulty(lab):
    route = torch.zeros(240, dtype=torch.long)
    full = Plan(Mask(torch.ones(1, 3, 4), torch.ones(1, 3)), route)
    assert np.abs(difficulty(lab, full)).max() < 1e-5
    less = Plan(Mask(*(part[None] for part in random_mask(1))), route)
    assert np.abs(difficulty(lab, less)).max() > 1e-4


def test_counts_of_codes_are_scored_as_elsewhere():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, 60), rng.integers(0, 12, 60)
    assert mutual_information(a, b) == pytest.approx(metrics.normalized_mutual_info_score(a, b))
    assert mutual_information(a, a) == pytest.approx(1) and mutual_information(0 * a, b) == pytest.approx(0, abs=1e-12)
    assert perplexity(np.arange(40) % 4, 4) == pytest.approx(4) and perplexity(np.zeros(9, int), 4) == 1


def test_groups_of_items_are_those_of_the_claim():
    assert [np.flatnonzero(g == GROUP).tolist() for g in range(4)] == [[0, 2, 3, 4, 6], [1], [5, 7, 9], [8]]


def test_the_base_model_is_as_large_as_it_says_and_its_splits_are_disjoint(lab):
    settings = yaml.safe_load((CONFIG / "models/prompt8.yaml").read_text())["settings"]
    model, _ = prompt8.network(settings)
    assert model.net.macs() == 514_048
    assert not set(lab.training.captions.tolist()) & set(lab.test.captions.tolist())
    cells = lab.test.style[lab.test.balanced(60)] * 10 + lab.test.item[lab.test.balanced(60)]
    assert torch.equal(cells, torch.arange(60) % 30) and len(set(lab.test.balanced(60).tolist())) == 60


@pytest.mark.slow
def test_paper_scale_can_be_built():
    card = yaml.safe_load((CONFIG / "models/prompt8.yaml").read_text())
    with torch.device("meta"):
        model, (x, s, encoded) = prompt8.network({**card["settings"], **card["scales"]["paper"]["settings"]})
        assert model(x, s, encoded).shape == (1, 1, 32, 32)


# Judging.


def table(single=2.0, ours=1.5, agreement=0.7, compute=0.6, spread=3.8, free=1.5, nmi=0.5, slope=1.0, chosen="learned"):
    rows = []
    for seed in range(5):
        for method in ("aptp", "learned", "magnitude", "taylor", "no-transport"):
            fd = {"aptp": ours, "learned": single}.get(method, 4.0) + 0.01 * seed * (method == "aptp")
            row = {"problem": "prompt8", "method": method, "seed": seed, "style": "all", "item": "all", "fd": fd}
            row |= {"agreement": agreement if method == "aptp" else 0.7, "compute": compute}
            row |= {"perplexity": free if method == "no-transport" else spread + 0.01 * seed}
            row |= {"nmi": nmi, "nmi_untrained": 0.4}
            rows.append(row)
        for i, (style, item) in enumerate((s, str(k)) for s in evidence.STYLES for k in range(10)):
            cell = {"problem": "prompt8", "seed": seed, "style": style, "item": item}
            rows.append({**cell, "method": "aptp", "compute": 0.5 + slope * 0.01 * ((i + seed) % 30)})
            rows.append({**cell, "method": "learned", "difficulty": 0.1 * i})
    value = {"learned": 2.0, "magnitude": 4.0, "taylor": 4.0} | {chosen: 1.0}
    trials = [{"problem": "prompt8", "method": m, "chosen": 1, "value": v} for m, v in value.items()]
    return Evidence(pd.DataFrame(rows), trials=pd.DataFrame(trials))


def verdicts(**changed):
    results = table(**changed)
    judges = (evidence.beats_one_pruned_model, evidence.transport_prevents_collapse, evidence.meaningful_clusters)
    return [verdict(judge(results)) for judge in judges]


def test_claims_are_judged():
    assert verdicts() == ["replicated"] * 3
    assert verdicts(ours=2.5)[0] == "not replicated"
    assert verdicts(agreement=0.68)[0] == "not replicated"
    assert verdicts(compute=0.62)[0] == "not replicated"
    assert verdicts(free=2.6)[1] == "not replicated"
    assert verdicts(spread=2.0)[1] == "not replicated"
    assert verdicts(nmi=0.3)[2] == "not replicated"
    assert verdicts(slope=-1.0)[2] == "not replicated"
    assert verdicts(slope=0.0)[2] == "not replicated"  # all cells alike: no correlation


def test_the_single_network_is_chosen_on_tuning_seeds():
    assert evidence.single(table()) == "learned" and evidence.single(table(chosen="taylor")) == "taylor"
    with pytest.raises(LookupError):
        evidence.beats_one_pruned_model(Evidence(table().rows))
