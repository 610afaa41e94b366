"""PFGM++: known denoisers, the kernel's radius, its limit, and a sampler that is diffusion's at D = inf."""

from math import inf, tanh

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import balanced_labels, heun, initial_noise, solve
from papertrial.models.arrays import seeded
from papertrial.models.edm import batched, denoising
from papertrial.models.picture_denoisers import build, load
from papertrial.papers.diffusion.pfgm_plus_plus import evidence
from papertrial.papers.diffusion.pfgm_plus_plus.method import (
    exact_denoiser,
    kernel_of,
    light,
    loss_of,
    quantised,
    run,
    sample,
    tail,
)

NETWORK = {"kind": "mlp", "dim": 64, "width": 16, "blocks": 1}
P = {"size": 8, "network": NETWORK, "sigma_data": 0.6, "images": 200, "batch": 16, "steps": 2, "lr": 1e-3}
P |= {"decay": 0.5, "ema": 0.9, "log_mean": -1.0, "log_sd": 1.3, "drop_label": 0.1}
P |= {"n": 40, "sampling_steps": 2, "alphas": [0.1], "bits": [4]}
ROBUST = {**P, "name": "robust", "measure": "robust", "noise_seeds": [1000, 1001]}
CLEAN = {**P, "name": "clean", "measure": "clean", "offered": [128, 2048], "tuning_seed": 1100}
TRANSFER = {**P, "name": "transfer", "measure": "transfer", "dimension": 128}
LIMIT = {"name": "limit", "measure": "limit", "size": 8, "images": 20, "levels": [0.5], "dimensions": [1024, 2048]}


@pytest.mark.parametrize(("D", "first"), [(1, 0.72588), (64, 0.7656), (2048, 0.7699), (10**6, 0.7700)])
def test_denoiser_of_two_points(D, first):
    data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    assert exact_denoiser(y, data, 0.7, D)[0, 0].item() == pytest.approx(first, abs=6e-5)
    assert exact_denoiser(y, data, 0.7, inf)[0, 0].item() == pytest.approx(tanh(0.5 / 0.49), abs=1e-12)


@pytest.mark.parametrize("D", [64, 128])
def test_mean_square_radius_of_the_kernel(D):
    """E R^2 = r^2 N/(D - 2) = s^2 N D/(D - 2); the control has the same."""
    rng, N, s = np.random.default_rng(1000), 64, 0.7
    for kernel in (tail, light):
        factor = kernel(D, 200_000, rng)
        square = (s * factor) ** 2 * rng.chisquare(N, len(factor))  # |s g factor|^2
        assert square.mean() == pytest.approx(s**2 * N * D / (D - 2), rel=0.01)


def test_radius_follows_the_beta_law():
    """R = r sqrt(R1/(1 - R1)), R1 ~ Beta(N/2, D/2): the same law as s g sqrt(D/chi2_D)."""
    from scipy.stats import ks_2samp

    rng, N, D, s = np.random.default_rng(1000), 64, 64, 0.7
    ours = s * tail(D, 20_000, rng) * np.sqrt(rng.chisquare(N, 20_000))
    share = rng.beta(N / 2, D / 2, 20_000)
    assert ks_2samp(ours, s * np.sqrt(D) * np.sqrt(share / (1 - share))).pvalue > 0.01


def test_huge_dimension_trains_like_diffusion():
    data = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def draw(n, generator):
        rows = torch.randint(64, (n,), generator=generator)
        return data[rows], rows % 10

    model = seeded(lambda: build(NETWORK, 0.6), 3)
    torch.nn.init.normal_(model.net.out.weight, std=0.1)
    how = {**P, "batch": 256}
    losses = [
        loss_of(kernel_of("pfgm-plus-plus", D), draw, how, 5, 10)(model, model, 0, torch.Generator().manual_seed(2))
        for D in (1e8, inf)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    shared = denoising(draw, 256, -1.0, 1.3, 0.1, 10)(model, model, 0, torch.Generator().manual_seed(2))
    assert losses[1].item() == pytest.approx(shared.item(), rel=1e-6)


def test_at_infinity_the_sampler_is_the_shared_one(tiny_fm8):
    model = load(tiny_fm8.models["fm8"]["128-0"])
    x, label = sample(model, kernel_of("diffusion", inf), P, 1000, 12)
    levels = grid("karras", P["sampling_steps"])
    shared = solve(
        batched(model, 1000),
        levels[0] * initial_noise([1000], 12, (1, 8, 8)),
        levels,
        heun,
        balanced_labels([1000], 12),
    )
    assert torch.equal(x, shared) and torch.equal(label, balanced_labels([1000], 12))


def test_no_perturbation_changes_nothing(tiny_fm8):
    model = load(tiny_fm8.models["fm8"]["128-0"])
    kernel = kernel_of("pfgm-plus-plus", 64)
    plain, _ = sample(model, kernel, P, 1000, 12)
    assert torch.equal(sample(model, kernel, P, 1000, 12, alpha=0.0)[0], plain)
    assert torch.equal(sample(quantised(model, 32), kernel, P, 1000, 12)[0], plain)
    assert not torch.allclose(sample(model, kernel, P, 1000, 12, alpha=0.1)[0], plain)
    coarse = quantised(model, 4)
    assert all(len(w.unique()) <= 15 for w in coarse.parameters())
    assert not torch.allclose(sample(coarse, kernel, P, 1000, 12)[0], plain)


def test_noise_is_not_injected_after_the_last_step(tiny_fm8):
    model, kernel = load(tiny_fm8.models["fm8"]["128-0"]), kernel_of("diffusion", inf)
    one_step = {**P, "sampling_steps": 1}
    assert torch.equal(sample(model, kernel, one_step, 1000, 5, 0.3)[0], sample(model, kernel, one_step, 1000, 5)[0])


def test_limit_is_first_order_in_one_over_D(tiny_fm8):
    found = run(LIMIT, "pfgm-plus-plus", {}, [1000], tiny_fm8, "cpu").rows
    assert found[0]["difference"] > 1e-12
    assert found[1]["difference"] / found[0]["difference"] == pytest.approx(0.5, abs=0.1)


CASES = {
    "robust": (ROBUST, "pfgm-plus-plus", {"dimensions": [64, 128]}),
    "diffusion": (ROBUST, "diffusion", {"dimensions": [inf]}),
    "control": (ROBUST, "light-tail", {"dimensions": [64]}),
    "clean": (CLEAN, "pfgm-plus-plus", {}),
    "transfer": (TRANSFER, "retuned", {"settings": [[0.0, 1.0], [-0.5, 2.0]]}),
    "unaligned": (TRANSFER, "unaligned", {"settings": [[0.0, 1.0]]}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, tiny_fm8):
    problem, method, settings = CASES[case]
    whole = run(problem, method, settings, [1000, 1001], tiny_fm8, "cpu").rows
    parts = [row for s in (1000, 1001) for row in run(problem, method, settings, [s], tiny_fm8, "cpu").rows]
    assert whole == parts


def judged(**changed):
    """A table on which every claim holds, and the verdicts on it."""
    at = {"log_r": {"64": 0.5, "128": 0.6, "2048": 0.7, "inf": 0.8}, "best": 0.5, "slope": -1.0, "un": 3.0}
    at["aligned"] = 1.0
    at |= changed
    rows = []
    for s in range(5):
        for D, value in at["log_r"].items():
            method = "diffusion" if D == "inf" else "pfgm-plus-plus"
            cell = {"problem": "robust", "method": method, "seed": s, "D": D, "noise": 0}
            rows.append({**cell, "log_r": value + 0.01 * s * len(D)})
        rows.append({"problem": "clean", "method": "pfgm-plus-plus", "seed": s, "fd": at["best"] + 0.01 * s})
        rows.append({"problem": "clean", "method": "diffusion", "seed": s, "fd": 0.6 + 0.012 * s})
        for method, setting, fd in (
            ("pfgm-plus-plus", "+0 x1", at["aligned"]),
            ("retuned", "+0 x2", 0.95),
            ("unaligned", "+0 x1", at["un"]),
        ):
            rows.append({"problem": "transfer", "method": method, "seed": s, "setting": setting, "fd": fd})
    rows += [
        {"problem": "limit", "method": "pfgm-plus-plus", "seed": 0, "D": str(D), "s": s, "difference": D ** at["slope"]}
        for s in (0.2, 0.5)
        for D in 2 ** np.arange(10, 16)
    ]
    results = Evidence(pd.DataFrame(rows))
    claims = (
        evidence.small_dimensions_are_robust,
        evidence.finite_dimension_is_better,
        evidence.diffusion_is_the_limit,
        evidence.settings_carry_over,
    )
    return [verdict(judge(results)) for judge in claims], results


def test_claims_are_judged():
    assert judged()[0] == ["replicated"] * 4
    falling = {"64": 0.8, "128": 0.7, "2048": 0.6, "inf": 0.5}
    worse = judged(log_r=falling, best=0.7, slope=-0.5, un=1.5)[0]
    assert worse == ["not replicated"] * 4
    assert judged(aligned=1.2)[0][3] == "not replicated"


def test_the_unaligned_control_fails_when_it_stands_in():
    results = judged()[1].standing_in("unaligned", "pfgm-plus-plus")
    assert verdict(evidence.settings_carry_over(results)) == "not replicated"
