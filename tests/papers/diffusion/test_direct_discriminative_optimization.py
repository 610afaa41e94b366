"""The hidden discriminator against what is known of it, the rounds, the transformer, and the judging of the claims."""

from copy import deepcopy
from itertools import permutations, product
from math import log

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.models import ddo_start
from papertrial.models.ddo_start import PixelTransformer, change, quantised, shown
from papertrial.models.edm import EDM
from papertrial.models.perceptrons import PlaneMLP
from papertrial.papers.diffusion.direct_discriminative_optimization import evidence
from papertrial.papers.diffusion.direct_discriminative_optimization.benches import BENCHES, Ring, elbo
from papertrial.papers.diffusion.direct_discriminative_optimization.loss import OBJECTIVES, ddo, pooled
from papertrial.papers.diffusion.direct_discriminative_optimization.method import run
from papertrial.papers.diffusion.direct_discriminative_optimization.selfplay import (
    Rounds,
    Setting,
    difference_loss,
    opening,
    self_play,
    tuned,
)
from papertrial.testbeds.mixtures import density

LAW = {"log_mean": -1.0, "log_sd": 1.3, "drop_label": 0.1}


def seeded(k=1000):
    return torch.Generator().manual_seed(k)


@pytest.fixture(scope="module")
def inputs(tiny_fm8) -> Inputs:
    """ddo-start of seeds 1000, 1001 and 1100, barely trained."""
    common = {"size": 8, "images": 200, "steps": 10, "batch": 8, "lr": 1e-3, "ema": 0.9, "decay": 0.5} | LAW
    tasks = {
        "pictures": {"sigma_data": 0.6, "network": {"kind": "mlp", "dim": 64, "width": 8, "blocks": 1}},
        "ring8": {"sigma_data": 1.5, "network": {"width": 8, "depth": 2, "features": 4}},
        "pixels": {"network": {"pixels": 64, "values": 8, "dim": 8, "layers": 2, "heads": 2}},
    }
    parts = {}
    for part in (f"{task}-{seed}" for task in tasks for seed in (1000, 1001, 1100)):
        found = ddo_start.train(part, {**common, "tasks": tasks}, tiny_fm8, "cpu", None)
        assert set(found.rows[0]) == {"seed", "task", "loss", "change"}
        parts[part] = {k: np.ascontiguousarray(v) for k, v in found.state.items()}
    return Inputs(tiny_fm8.datasets, {**tiny_fm8.models, "ddo-start": parts})


COMMON = {"rounds": 2, "rounds_tuning": 1, "updates": 4, "batch": 6, "fakes": 20, "every": 2, "tuning_seed": 1100}
COMMON |= {"images": 200, "size": 8, "steps": 2, "n": 40, "n_select": 40, "n_guidance": 40, "pretrained_on": 80}
COMMON |= {"lr": [1e-4, 1e-2], "beta": [0.02], "alpha": [1], "search": "all", "all_rounds": 1, **LAW}
PROBLEMS = {
    "pictures": {**COMMON, "name": "fm8", "task": "pictures", "strengths": [0.5]},
    "ring8": {**COMMON, "name": "ring8", "task": "ring8", "every": 0, "n": 200},
    "pixels": {**COMMON, "name": "pixels", "task": "pixels", "values": 8, "guidance": [0, 1], "search": "other"},
}


# What must hold.


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (4, 0.02), (0.5, 7)])
def test_at_the_reference_the_loss_is_one_plus_alpha_times_log_two(alpha, beta, inputs):
    for task, p in PROBLEMS.items():
        bench = BENCHES[task](p, inputs, "cpu")
        model = bench.start(1000)
        x, label = bench.real(12, seeded())
        noise = bench.noise(x, seeded())
        delta = bench.log_density(deepcopy(model), x, label, noise) - bench.log_density(model, x, label, noise)
        assert torch.equal(delta, torch.zeros(12))
        assert ddo(delta, delta, alpha, beta).item() == pytest.approx((1 + alpha) * log(2), rel=1e-6)
        loss = difference_loss(bench, model, OBJECTIVES["ddo"], Setting(1.0, beta, alpha), (x, label), (x, label), 12)
        assert loss(deepcopy(model), model, 0, seeded()).item() == pytest.approx((1 + alpha) * log(2), rel=1e-6)


def exact(logits, reference, data, alpha=1.0, beta=1.0):
    """The DDO loss of categorical models, expectations by summation."""
    delta = logits.log_softmax(0) - reference.log_softmax(0)
    each = torch.nn.functional.softplus
    return (data * each(-beta * delta)).sum() + alpha * (reference.softmax(0) * each(beta * delta)).sum()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_the_optimum_is_the_data(seed):
    """Five states, any reference of full support."""
    data = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02], dtype=torch.float64)
    reference = 1.5 * torch.randn(5, dtype=torch.float64, generator=seeded(seed))
    logits = reference.clone().requires_grad_(True)
    optimizer = torch.optim.SGD([logits], 5.0)
    for _ in range(1500):
        optimizer.zero_grad()
        exact(logits, reference, data).backward()
        optimizer.step()
    tv = 0.5 * (logits.softmax(0) - data).abs().sum().item()
    assert tv < 1e-3 < 0.5 * (reference.softmax(0) - data).abs().sum().item()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (4.0, 0.1), (0.5, 2.0)])
def test_gradient_at_the_reference(alpha, beta):
    """(beta / 2) (-E_data + alpha E_ref) of the score, against finite differences."""
    data = torch.tensor([0.4, 0.3, 0.2, 0.08, 0.02], dtype=torch.float64)
    theta = torch.randn(5, dtype=torch.float64, generator=seeded())
    score = torch.autograd.functional.jacobian(lambda t: t.log_softmax(0), theta)  # (states, parameters)
    expected = beta / 2 * ((alpha * theta.softmax(0) - data)[:, None] * score).sum(0)
    h = 1e-4
    for j, step in enumerate(h * torch.eye(5, dtype=torch.float64)):
        up, down = (exact(theta + sign * step, theta, data, alpha, beta) for sign in (1, -1))
        assert ((up - down) / (2 * h)).item() == pytest.approx(expected[j].item(), abs=1e-5)


@pytest.fixture(scope="module")
def fitted():
    """Four Gaussians fitted to the ring of eight by maximum likelihood on a grid: parameters, log-density, data."""
    side = torch.linspace(-3.5, 3.5, 90, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    data = density("ring8").logpdf(x).exp()
    data = data / data.sum()

    def logpdf(theta):
        """(points,) of theta (4, 4): means, log sd, logit of the weight; normalised on the grid."""
        square = (x[:, None] - theta[:, :2]).square().sum(-1)
        parts = theta[:, 3].log_softmax(0) - 2 * theta[:, 2] - square / (2 * torch.exp(2 * theta[:, 2]))
        return parts.logsumexp(1).log_softmax(0)

    angle = torch.arange(4, dtype=torch.float64) * torch.pi / 2 + 0.3
    theta = torch.stack([1.8 * angle.cos(), 1.8 * angle.sin(), 0 * angle - 0.3, 0 * angle], 1).requires_grad_(True)
    search = {"tolerance_grad": 1e-10, "tolerance_change": 1e-16, "line_search_fn": "strong_wolfe", "max_iter": 300}
    optimizer = torch.optim.LBFGS([theta], **search)

    def closure():
        optimizer.zero_grad()
        loss = -(data * logpdf(theta)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert theta.grad.abs().max() < 1e-8
    return theta.detach(), logpdf, data


def mixture_loss(theta, reference, data, alpha, beta):
    delta, each = theta - reference, torch.nn.functional.softplus
    return (data * each(-beta * delta)).sum() + alpha * (reference.exp() * each(beta * delta)).sum()


def test_a_converged_likelihood_fit_is_stationary(fitted):
    """Both expectations of the score are 0 there: so gains have to come from the ELBO or an unconverged fit."""
    theta, logpdf, data = fitted
    reference = logpdf(theta)
    for alpha, beta in product((0.5, 1.0, 4.0), (0.02, 1.0, 3.0)):
        here = theta.clone().requires_grad_(True)
        mixture_loss(logpdf(here), reference, data, alpha, beta).backward()
        assert here.grad.abs().max() < 1e-7
    moved = (theta + 0.05).requires_grad_(True)  # elsewhere it isn't
    mixture_loss(logpdf(moved), logpdf(moved).detach(), data, 1.0, 1.0).backward()
    assert moved.grad.abs().max() > 1e-3


@pytest.mark.slow
def test_descent_from_a_converged_fit_goes_nowhere(fitted):
    theta, logpdf, data = fitted

    def jensen_shannon(t):
        p = logpdf(t).exp()
        half = (0.5 * (p + data)).clamp_min(1e-300).log()
        terms = [(q * (q.clamp_min(1e-300).log() - half)).sum() for q in (p, data)]
        return 0.5 * sum(terms).item()

    here, reference = theta.clone().requires_grad_(True), logpdf(theta)
    optimizer = torch.optim.Adam([here], 1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        mixture_loss(logpdf(here), reference, data, 1.0, 1.0).backward()
        optimizer.step()
    assert jensen_shannon(here.detach()) == pytest.approx(jensen_shannon(theta), abs=1e-4)


def test_updating_the_reference_changes_nothing_in_theta(inputs):
    bench, how = Ring(PROBLEMS["ring8"], inputs, "cpu"), Rounds(3, 3, 8, 20, 0)
    stages = self_play(bench, opening(bench, 1000), OBJECTIVES["ddo"], Setting(1e-2), how, 1000)
    first = next(stages).model
    before = [w.clone() for w in first.parameters()]
    second = next(stages).model  # first has become p_ref
    assert all(torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    kept = [w.clone() for w in second.parameters()]
    with torch.no_grad():
        for w in first.parameters():
            w.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(kept, second.parameters(), strict=True))
    theta, reference = deepcopy(second).requires_grad_(True), deepcopy(second).requires_grad_(True)
    data = bench.real(8, seeded())
    difference_loss(bench, reference, OBJECTIVES["ddo"], Setting(1.0), data, data, 8)(
        theta, theta, 0, seeded()
    ).backward()
    assert all(w.grad is None for w in reference.parameters())


# The ELBO, the control, the rounds.


def test_elbo_difference_is_the_weighted_squared_error():
    torch.manual_seed(0)
    a, b = (EDM(PlaneMLP(width=8, depth=2, features=4), 1.5) for _ in range(2))
    x, eps, s = torch.randn(6, 2), torch.randn(6, 2), torch.rand(6) + 0.1
    w = (s**2 + 1.5**2) / (s * 1.5) ** 2
    errors = [(m(x + s[:, None] * eps, s) - x).square().sum(1) for m in (a, b)]
    found = elbo(a, x, None, (s, eps)) - elbo(b, x, None, (s, eps))
    assert torch.allclose(found, -w * (errors[0] - errors[1]), rtol=1e-4, atol=1e-5)


def test_pooling_leaves_nothing_to_tell_apart():
    """Averaged over all splits the control's gradient at the reference is 0 at alpha = 1."""

    delta = torch.zeros(4, requires_grad=True)
    splits = list(permutations(range(4)))
    total = sum(ddo(delta[list(s[:2])], delta[list(s[2:])], 1.0, 1.0) for s in splits) / len(splits)
    (slope,) = torch.autograd.grad(total, delta)
    assert slope.abs().max() < 1e-6
    (slope,) = torch.autograd.grad(ddo(delta[:2], delta[2:], 1.0, 1.0), delta)
    assert torch.allclose(slope, torch.tensor([-0.25, -0.25, 0.25, 0.25]))
    real, fake = torch.full((500,), 3.0), torch.full((500,), -3.0)  # told apart perfectly
    assert ddo(real, fake, 1.0, 1.0) < 0.1 and pooled(real, fake, 1.0, 1.0, seeded()) > 2.5


def test_all_methods_see_the_same_real_samples(inputs):
    seen = {}

    class Noted(Ring):
        def real(self, n, generator):
            drawn = super().real(n, generator)
            seen[method].append(drawn[0])
            return drawn

    bench, how = Noted(PROBLEMS["ring8"], inputs, "cpu"), Rounds(2, 2, 8, 20, 0)
    for method in OBJECTIVES:
        seen[method] = []
        list(self_play(bench, opening(bench, 1000), OBJECTIVES[method], Setting(1e-3), how, 1000))
    assert all(len(v) == 2 and torch.equal(torch.cat(v), torch.cat(seen["ddo"])) for v in seen.values())
    assert len(seen["ddo"][0]) == 16 and not torch.equal(*seen["ddo"])


def test_a_round_ends_with_its_best_checkpoint(inputs):
    """By the score of the tuning half."""
    bench, how = BENCHES["pictures"](PROBLEMS["pictures"], inputs, "cpu"), Rounds(1, 4, 8, 20, 1)
    scores = iter([6.0, 3.0, 4.0, 3.5])
    bench.score = lambda model, seed: next(scores)
    (stage,) = self_play(bench, opening(bench, 1000), OBJECTIVES["continued"], Setting(1e-3), how, 1000)
    assert (stage.round, stage.kept, stage.score) == (1, 2, 3.0)


def test_selection_and_report_use_different_pictures(inputs):
    bench = BENCHES["pictures"](PROBLEMS["pictures"], inputs, "cpu")
    test = bench.judge.test_features
    assert (
        bench.fd_tuning(test[:50])
        == pytest.approx(0, abs=1e-6)
        == pytest.approx(bench.fd_reported(test[50:]), abs=1e-6)
    )
    assert bench.fd_reported(test[:50]) > 1e-3


def test_tuning_tries_what_the_objective_has(inputs):
    bench, how = BENCHES["ring8"](PROBLEMS["ring8"], inputs, "cpu"), Rounds(1, 1, 4, 8, 0)
    grids = {"lr": [1e-4, 1e-3, 1e-2], "beta": [0.1, 1.0, 2.0], "alpha": [0.5, 1.0, 4.0]}
    for method, search, count in (("ddo", "other", 7), ("continued", "all", 3), ("unbounded", "all", 9)):
        best, tried = tuned(bench, OBJECTIVES[method], grids, search, how, 1100)
        assert len(tried) == count
        chosen = [t for t in tried if all(t[k] == getattr(best, k) for k in OBJECTIVES[method].tuned)]
        assert [t["score"] for t in chosen] == [min(t["score"] for t in tried)]


# The autoregressive model.


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return PixelTransformer(pixels=4, values=3, dim=8, heads=2, classes=2).eval()


def test_likelihoods_sum_to_one(transformer):
    x = torch.tensor(list(product(range(3), repeat=4)))
    assert transformer.log_likelihood(x, torch.zeros(81, dtype=torch.long)).exp().sum().item() == pytest.approx(
        1, rel=1e-5
    )


def test_a_pixel_sees_only_those_before_it(transformer):
    x, label = torch.tensor([[0, 1, 2, 0]]), torch.tensor([1])
    for i in range(4):
        changed = x.clone()
        changed[0, i] = (changed[0, i] + 1) % 3
        difference = (transformer(x, label) - transformer(changed, label)).abs().amax(2)[0]
        assert (difference[: i + 1] == 0).all() and (difference[i + 1 :] > 0).all()


def test_samples_follow_the_likelihood_and_guidance(transformer):
    label = torch.ones(20_000, dtype=torch.long)
    u = torch.rand(20_000, 4, generator=seeded())
    x = transformer.sample(u, label)
    code = (x * torch.tensor([27, 9, 3, 1])).sum(1)
    states = torch.tensor(list(product(range(3), repeat=4)))
    expected = transformer.log_likelihood(states, torch.ones(81, dtype=torch.long)).exp().detach()
    assert 0.5 * (torch.bincount(code, minlength=81) / 20_000 - expected).abs().sum() < 0.05
    with torch.no_grad():  # cached logits are those of the whole picture: the same pixels come out of the same u
        for w in (0.0, 1.5):
            x = transformer.sample(u[:50], label[:50], w)
            logits, null = transformer(x, label[:50]), transformer(x, 0 * label[:50] + transformer.null)
            below = (logits + w * (logits - null)).softmax(2).cumsum(2)[..., :-1]
            assert torch.equal((below <= u[:50, :, None]).sum(2), x)


def test_quantisation_is_undone_up_to_half_a_step():
    x = torch.rand(5, 1, 8, 8, generator=seeded()) * 2 - 1
    q = quantised(x, 8)
    assert q.min() >= 0 and q.max() <= 7 and (shown(q, 8, 8) - x).abs().max() <= 1 / 7 + 1e-6
    assert torch.equal(quantised(shown(q, 8, 8), 8), q)


def test_change_of_a_flat_and_of_a_falling_loss():
    assert change([{"loss": 2.0}] * 50) == 0
    assert change([{"loss": 2.0 - 0.01 * i} for i in range(50)]) == pytest.approx(0.05 / 1.575, rel=0.01)


# Runs.


CASES = [("pictures", "ddo"), ("ring8", "pooled"), ("pixels", "start"), ("pictures", "guided"), ("pixels", "real")]
CASES += [pytest.param("pixels", "ddo", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("task", "method"), CASES)
def test_splitting_the_seeds_changes_nothing(task, method, inputs):
    p = PROBLEMS[task]
    whole = run(p, method, {}, [1000, 1001], inputs, "cpu").rows
    parts = [run(p, method, {}, [seed], inputs, "cpu").rows for seed in (1000, 1001)]
    key = ["seed", "round", "sampling"]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)
    assert not whole.duplicated(key).any()
    numbers = whole.drop(columns=["sampling", "w"], errors="ignore")  # plain sampling has no w
    assert np.isfinite(numbers.to_numpy(float)).all()


def test_rows_say_what_was_drawn(inputs):
    found = run(PROBLEMS["pictures"], "ddo", {}, [1000], inputs, "cpu")
    assert [(r["round"], r["real_share"]) for r in found.rows] == [(1, 24 / 80), (2, 48 / 80)]
    pixels = run(PROBLEMS["pixels"], "start", {}, [1000], inputs, "cpu").rows
    assert {r["sampling"] for r in pixels} == {"plain", "guided"} and pixels[1]["w"] in (0, 1)


# Judging.


def fm8_table(final, per_round=(0.9, 0.8, 0.7, 0.6), seeds=5):
    """FD of the last round by method; of DDO's rounds; start 1, floor 0.2."""
    rows = []
    for s in range(seeds):
        wobble = np.exp(0.01 * s)
        cells = [("start", 0, 1.0), ("real", 0, 0.2)] + [(m, 4, v) for m, v in final.items() if m != "ddo"]
        cells += [("ddo", r + 1, v * wobble) for r, v in enumerate((*per_round[:-1], final["ddo"]))]
        for method, r, fd in cells:
            row = {"problem": "fm8", "method": method, "seed": s, "round": r, "sampling": "plain", "fd": fd}
            rows.append(row | {"real_share": 0.02 * r, "coverage": 0.5})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = lambda **final: verdict(evidence.lowers_fd(fm8_table(final)))  # noqa: E731
    assert judge(ddo=0.6, continued=0.8) == "replicated"
    assert judge(ddo=0.6, continued=0.5) == "not replicated"
    assert judge(ddo=0.9, continued=0.99) == "not replicated"  # 8% of the way to the floor
    control = fm8_table({"ddo": 0.6, "continued": 0.8, "pooled": 0.85}).standing_in("pooled", "ddo")
    assert verdict(evidence.lowers_fd(control)) == "not replicated"
    shares = evidence.lowers_fd(fm8_table({"ddo": 0.6, "continued": 0.8}, seeds=1))[2]
    assert shares.estimate == pytest.approx(0.5)


def test_c2_is_judged_as_the_card_says():
    judge = lambda *ends: evidence.a_round_is_cheap(fm8_table({"ddo": ends[-1]}, ends))  # noqa: E731
    assert [c.estimate for c in judge(0.8, 0.7, 0.7, 0.7)] == [4, 0.02]
    assert verdict(judge(1.2, 0.9, 0.7, 0.7)) == "replicated"  # two rounds, 4%
    assert verdict(judge(1.2, 1.2, 0.7, 0.7)) == "not replicated"  # three, 6%
    assert verdict(judge(1.2, 1.2, 1.2, 1.2)) == "not replicated"
    assert verdict(judge(0.98, 1.2, 1.2, 1.2)) == "inconclusive"  # the first round's interval holds the start


def ring_table(off, tv, seeds=6):
    rows = [
        {"problem": "ring8", "method": m, "seed": s, "round": 6, "sampling": "plain", "off": v, "mode_tv": tv[m]}
        for s in range(seeds)
        for m, v in {k: v + 0.001 * s * (k == "ddo") for k, v in off.items()}.items()
    ]
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = lambda off, tv: verdict(  # noqa: E731
        evidence.moves_mass_to_the_modes(
            ring_table(dict(zip(("ddo", "continued"), off, strict=True)), {"ddo": tv, "continued": 0.03})
        )
    )
    assert judge((0.2, 0.25), 0.05) == "replicated"
    assert judge((0.2, 0.25), 0.09) == "not replicated"  # modes were lost
    assert judge((0.26, 0.25), 0.03) == "not replicated"
    assert judge((0.2475, 0.25), 0.03) == "inconclusive"


def pixels_table(plain, guided):
    """log FD of likelihood - log FD of DDO by seed."""
    rows = [
        {"problem": "pixels", "method": m, "seed": s, "round": 2, "sampling": k, "fd": np.exp(v * (m == "continued"))}
        for k, z in (("plain", plain), ("guided", guided))
        for s, v in enumerate(z)
        for m in ("ddo", "continued")
    ]
    return Evidence(pd.DataFrame(rows))


def test_c4_is_judged_as_the_card_says():
    judge = lambda *z: verdict(evidence.improves_autoregressive_models(pixels_table(*z)))  # noqa: E731
    assert judge((0.1, 0.1, -0.05), (0.1, 0.2, 0.3)) == "replicated"
    assert judge((0.1, 0.1, -0.3), (0.1, 0.2, 0.3)) == "not replicated"  # on average worse
    assert judge((0.9, -0.1, -0.1), (0.1, 0.2, 0.3)) == "not replicated"  # one seed of three
    assert judge((0.1, 0.1, 0.1), (-0.1, -0.2, 0.1)) == "not replicated"  # not with guidance
