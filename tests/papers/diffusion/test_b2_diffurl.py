"""B2-DiffuRL: densities and ratios, branches, the interval, selection, and the policy gradient itself."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.models import mislabelled
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.plane_denoisers import EpsNet
from papertrial.papers.diffusion.b2_diffurl import evidence
from papertrial.papers.diffusion.b2_diffurl.learning import (
    Recipe,
    Scores,
    Settings,
    branch,
    clipped_loss,
    extremes,
    learn,
    permuted,
    update,
)
from papertrial.papers.diffusion.b2_diffurl.method import B2, DDPO, run, tuned
from papertrial.papers.diffusion.b2_diffurl.policy import TASKS, law, log_density, pairwise_distance, roll

HOW = Settings(lr=1e-3, clip=0.1, queries=24, minibatches=3, shortest=4)


def seeded(k=0):
    return torch.Generator().manual_seed(k)


@pytest.fixture
def ring():
    return TASKS["ring8"]({"T": 6}, {}, {}, "cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return EpsNet(PlaneMLP(width=16, depth=2, features=4, classes=8))


def test_log_ratios_match_normal_densities(ring, model):
    label = ring.labels(16)
    states, logs = roll(model, ring, ring.noise(16, seeded()), label, 0, 6, seeded(1))
    other = deepcopy(model).double()
    for k in range(6):
        x, x_next = states[k].double(), states[k + 1].double()
        s, s_next = (ring.levels[j].double().expand(16) for j in (k, k + 1))
        mean, sd = law(other, x, s, s_next, label)
        changed = mean + 0.1 * sd
        found = log_density(x_next, changed, sd) - log_density(x_next, mean, sd)
        normal = [stats.norm.logpdf(x_next.numpy(), m.detach().numpy(), sd.numpy()).sum(1) for m in (changed, mean)]
        assert np.allclose(found.detach().numpy(), normal[0] - normal[1], atol=1e-6)
        assert np.allclose(logs[k].numpy(), normal[1], atol=1e-2)  # as it was drawn, in single precision


def test_ratio_is_one_at_the_first_update(ring, model):
    states, logs, label = branch(model, ring, 24, 1, 6, seeded())
    for k in range(6):
        s, s_next = (ring.levels[j].expand(24) for j in (k, k + 1))
        mean, sd = law(model, states[k], s, s_next, label)
        assert torch.allclose((log_density(states[k + 1], mean, sd) - logs[k]).exp(), torch.ones(24), atol=1e-4)


def test_members_of_a_branch_share_their_start_bitwise(ring, model):
    states, _, label = branch(model, ring, 25, 5, 4, seeded())
    groups = states.reshape(5, 5, 5, 2)  # (tau + 1, groups, members, d)
    assert all(torch.equal(groups[0, :, 0], groups[0, :, m]) for m in range(1, 5))
    assert not torch.equal(groups[1, :, 0], groups[1, :, 1])
    assert (label.reshape(5, 5) == label.reshape(5, 5)[:, :1]).all()


def plain_ddpo(model, task, how, R, seed):
    """DDPO, written down once more: independent samples, all steps, one epoch."""
    generator, optimizer = seeded(seed), torch.optim.Adam(model.parameters(), how.lr)
    scores, T, n = Scores(task.classes), task.T, how.queries
    for _ in range(R):
        label = task.labels(n)
        states, logs = roll(model, task, task.noise(n, generator), label, 0, T, generator)
        A = scores(task.reward(states[-1], label), label)
        for rows in torch.randperm(T * n, generator=generator).split(T * n // how.minibatches):
            k, i = rows // n, rows % n
            mean, sd = law(model, states[k, i], task.levels[k], task.levels[k + 1], label[i])
            loss = clipped_loss(log_density(states[k + 1, i], mean, sd), logs[k, i], A[i], how.clip).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def test_whole_interval_without_branches_and_selection_is_ddpo(ring, model):
    reduced = replace(B2, progressive=False, branches=1, select=False, epochs=1)
    mine, plain = deepcopy(model), deepcopy(model)
    learn(mine, ring, reduced, HOW, 2, 1000)
    plain_ddpo(plain, ring, HOW, 2, 1000)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), plain.parameters(), strict=True))
    assert reduced == DDPO


class OneStep(nn.Module):
    """A policy whose mean is a parameter: D such that the mean of the only step is theta."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x, s, label):
        ratio = 0.25
        return (self.theta - ratio * x) / (1 - ratio)


def test_gradient_of_a_one_step_policy_with_quadratic_reward():
    """x ~ N(theta, v), r = -x^2: d E r / d theta = -2 theta."""
    model, n = OneStep(), 50_000
    x0 = torch.randn(n, 1, generator=seeded())
    s, s_next = torch.full((n,), 2.0), torch.full((n,), 1.0)
    mean, sd = law(model, x0, s, s_next, None)
    x = (mean + sd * torch.randn(n, 1, generator=seeded(1))).detach()
    reward = -x.square()[:, 0]
    log_new = log_density(x, mean, sd)
    loss = clipped_loss(log_new, log_new.detach(), reward, 0.1)
    loss.mean().backward()
    each = -reward * (x - 0.3)[:, 0] / sd.square()[:, 0]  # of the loss, by the score of the normal law
    error = 3 * each.std() / n**0.5
    assert model.theta.grad.item() == pytest.approx(2 * 0.3, abs=error.item())
    assert model.theta.grad.item() == pytest.approx(each.mean().item(), rel=1e-3)


class PerStep(nn.Module):
    """A denoiser with a parameter for every level."""

    def __init__(self, levels):
        super().__init__()
        self.levels, self.shift = levels, nn.Parameter(torch.zeros(len(levels)))

    def forward(self, x, s, label):
        k = (self.levels[None] - s.reshape(-1, 1)).abs().argmin(1)
        return 0.5 * x + self.shift[k][:, None]


def test_no_parameter_gets_gradient_from_steps_outside_the_interval(ring):
    policy = PerStep(ring.levels)
    states, logs, label = branch(policy, ring, 24, 1, 4, seeded())
    optimizer = torch.optim.SGD(policy.parameters(), 1e-3)
    update(policy, optimizer, ring, states, logs, label, torch.ones(24), Recipe(), HOW, None, seeded())
    moved = policy.shift.detach() != 0
    assert moved.tolist() == [False, False, True, True, True, True, False]


def test_interval_grows_to_all_steps():
    taus = [B2.interval(i, 14, 20, 14) for i in range(14)]
    assert taus[0] == 14 and taus[-1] == 20 and taus == sorted(taus)
    assert DDPO.interval(0, 14, 20, 14) == 20


def test_selection_keeps_the_best_and_the_worst_of_groups_with_spread():
    score = torch.tensor([1.0, -1.0, 1.0, 0.5, 0.5, 0.5, -2.0, 3.0, -1.0])
    kept = extremes(score, 3, seeded()).tolist()
    assert len(kept) == 4 and 1 in kept and 7 in kept and 6 in kept and ({0, 2} & set(kept))
    firsts = {extremes(score, 3, seeded(k)).tolist()[0] for k in range(20)}
    assert firsts == {0, 2}  # ties at random


def test_the_control_only_shuffles_within_groups():
    reward = torch.arange(30.0)
    shuffled = permuted(reward, 5, seeded())
    assert not torch.equal(shuffled, reward)
    assert torch.equal(shuffled.reshape(6, 5).sort(1).values, reward.reshape(6, 5))


def test_scores_are_standardised_within_labels_over_rounds():
    scores, label = Scores(2), torch.tensor([0, 0, 1, 1])
    first = scores(torch.tensor([0.0, 1.0, 1.0, 1.0]), label)
    assert torch.allclose(first, torch.tensor([-1.0, 1.0, 0.0, 0.0]), atol=1e-3)
    second = scores(torch.tensor([1.0, 1.0, 1.0, 0.0]), label)
    assert second[0] == pytest.approx(0.25 / 0.1875**0.5, abs=1e-2)
    assert second.abs().max() <= 5


@pytest.mark.parametrize("b", [3, 5])
def test_budgets_are_kept(ring, model, b):
    plain, whole = (learn(deepcopy(model), ring, r, HOW, 3, 1) for r in (DDPO, replace(B2, branches=b, epochs=9)))
    assert plain.queries == 3 * 24 and plain.trained == 3 * 24 * 6 == plain.sampled
    assert whole.queries <= plain.queries and whole.trained <= plain.trained and whole.sampled < plain.sampled


def test_divergence_holds_the_policy_back(ring, model):
    def moved(kl):
        tuned_model = deepcopy(model)
        learn(tuned_model, ring, replace(DDPO, kl=kl), HOW, 3, 1, model)
        x, label = ring.noise(200, seeded()), ring.labels(200)
        s = ring.levels[0].expand(200)
        with torch.no_grad():
            return (tuned_model(x, s, label) - model(x, s, label)).norm().item()

    assert moved(100.0) < moved(0.01)


def test_diversity_of_the_data_is_one(ring):
    from papertrial.testbeds.mixtures import density

    x, label = density("ring8", torch.float32).sample_labelled(20_000, seeded())
    reward = ring.reward(x, label)
    assert reward.mean() > 0.999 and ring.diversity(x, label, reward) == pytest.approx(1, abs=0.02)
    modes = density("ring8", torch.float32).means
    assert ring.diversity(modes, torch.arange(8), torch.ones(8)) == pytest.approx(0, abs=1e-9)
    assert pairwise_distance(np.array([[0.0], [3.0], [0.0]], np.float32)) == pytest.approx(2.0)


def test_half_of_the_labels_are_random():
    def draw(n, generator):
        return torch.zeros(n, 1), torch.zeros(n, dtype=torch.long)

    _, label = mislabelled.mislabelled(draw, 0.5, 8)(20_000, seeded())
    assert (label == 0).float().mean().item() == pytest.approx(0.5 + 0.5 / 8, abs=0.015)


TINY = {"T": 5, "shortest": 3, "minibatches": 2, "enough": 0.99, "tuning_seed": 1100, "rates": [1e-3], "clips": [0.1]}
TINY |= {"branches": [2], "kl": [0.1], "rounds": 2, "queries": 16, "n": 16, "final_n": 24, "size": 8, "per_label": 10}
TRAINING = {"share": 0.5, "gate": {"n": 20, "steps": 1, "seed": 1000}, "steps": 2, "batch": 8, "lr": 1e-3, "ema": 0.9}
NETWORKS = {
    "ring8": {"network": {"width": 8, "depth": 2, "features": 4, "classes": 8}},
    "fm8": {
        "network": {"kind": "mlp", "dim": 64, "width": 16, "blocks": 1},
        "size": 8,
        "images": 200,
        "sigma_data": 0.6,
        "log_mean": -1.0,
        "log_sd": 1.3,
    },
}


@pytest.fixture(scope="module")
def inputs(tiny_fm8):
    settings = TRAINING | {"tasks": NETWORKS}
    states = {part: mislabelled.train(part, settings, tiny_fm8, "cpu", None).state for part in NETWORKS}
    return Inputs(tiny_fm8.datasets, {**tiny_fm8.models, "mislabelled": states})


@pytest.mark.parametrize(
    ("task", "method"),
    [("ring8", m) for m in ("b2", "ddpo", "permuted", "dpok-b2", "reward-weighted")] + [("fm8", "b2"), ("fm8", "bpt")],
)
def test_splitting_the_seeds_changes_nothing(task, method, inputs):
    problem, settings = TINY | {"task": task, "name": task}, {"watched": method in ("b2", "ddpo")}
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu").rows
    parts = [row for s in (1000, 1001) for row in run(problem, method, settings, [s], inputs, "cpu").rows]
    assert whole == parts
    assert sum(row["round"] == 0 for row in whole) == 2


def test_every_offered_setting_is_tried_on_the_tuning_seed(inputs):
    tuned.cache_clear()
    problem = TINY | {"task": "ring8", "name": "ring8", "clips": [0.1, 0.2], "branches": [2, 4]}
    traces = run(problem, "ddpo", {"watched": False}, [1000], inputs, "cpu").traces
    tried = [t for t in traces if "tried" in t]
    assert len(tried) == 2 + 2 + 1 and {t["seed"] for t in tried} == {1100}


def judged(**changed):
    at = {"b2": 0.9, "ddpo": 0.8, "bpt": 0.85, "bs": 0.86, "dpok": 0.7, "dpok-b2": 0.8, "spread": 0.9} | changed
    rows = []
    for task in evidence.TASKS:
        for s in range(5):
            for method in ("b2", "ddpo", "bpt", "bs", "dpok", "dpok-b2"):
                cell = {"problem": task, "method": method, "seed": s}
                spread = at["spread"] if method == "b2" else 0.5
                reward = at[method] + 0.01 * s * (method == "b2")
                rows.append({**cell, "round": 0, "reward": reward, "diversity": spread})
                for i in (2, 4):
                    rows.append({**cell, "round": i, "reward": reward * i / 4, "diversity": spread + 0.01 * s})
    results = Evidence(pd.DataFrame(rows))
    judges = (
        evidence.better_alignment,
        evidence.more_diversity,
        evidence.both_components_help,
        evidence.combines_with_dpok,
    )
    return [verdict(judge(results)) for judge in judges]


def test_claims_are_judged():
    assert judged() == ["replicated"] * 4
    assert judged(b2=0.7)[0] == "not replicated"
    assert judged(spread=0.2)[1] == "not replicated"
    assert judged(bs=0.95)[2] == "not replicated"
    assert judged(**{"dpok-b2": 0.6})[3] == "not replicated"
