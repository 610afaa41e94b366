"""LML's direction against what is known of it, and the judging of its claims on made-up tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.multistep import dpm3m
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VP, Counted, ddim, initial_noise, solve
from papertrial.papers.diffusion.lml_diffusion import evidence
from papertrial.papers.diffusion.lml_diffusion.direction import damped, mix, norm
from papertrial.papers.diffusion.lml_diffusion.langevin import DIRECTIONS, Arcs
from papertrial.papers.diffusion.lml_diffusion.method import PLACES, corrected, correction, run
from papertrial.testbeds.mixtures import density

BASES = {"ddim": ddim, "dpm3": dpm3m}


def draws(n, *shape):
    return torch.randn(n, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1000))


def start(n=30):
    return VP.sigma(-np.log(20.0)) * initial_noise([1000], n, (2,), torch.float64)


def solution(rules, levels, target=None):
    return solve(target or density("ring8"), start(), levels, rules, path=VP)


@pytest.mark.parametrize("base", BASES)
def test_without_smoothing_nothing_happens(base):
    e, before = draws(2, 4, 4)
    assert torch.allclose(damped(e, mix(e, before, 0.0), 2.0), e, rtol=0, atol=1e-6)
    rules, levels = corrected({"base": base}, (0.5, 0.0, 0.0), "karras", 9)
    assert torch.allclose(solution(rules, levels), solution(BASES[base], levels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", BASES)
def test_endless_damping_is_the_base_sampler(base):
    rules, levels = corrected({"base": base}, (1e14, 0.5, 0.0), "time", 9)
    assert torch.allclose(solution(rules, levels), solution(BASES[base], levels), rtol=0, atol=1e-9)


@pytest.mark.parametrize("base", BASES)
def test_frozen_steps_are_the_base_s(base):
    always, levels = corrected({"base": base}, (1.0, 0.5, 0.0), "karras", 9)
    never, _ = corrected({"base": base}, (1.0, 0.5, 1.0), "karras", 9)
    half, _ = corrected({"base": base}, (1.0, 0.5, 0.5), "karras", 9)
    plain = solution(BASES[base], levels)
    assert torch.allclose(solution(never, levels), plain, rtol=0, atol=1e-12)
    short = [solve(density("ring8"), start(), levels[:5], r, path=VP, final=False) for r in (half[:4], BASES[base])]
    assert torch.allclose(*short, rtol=0, atol=1e-12)
    assert not torch.allclose(solution(half, levels), plain, atol=1e-3)
    assert not torch.allclose(solution(always, levels), solution(half, levels), rtol=0, atol=1e-6)


def test_sherman_morrison_solves_the_dense_system():
    """damped(v, v) without rescaling is lambda (lambda I + v v^T)^{-1} v; likewise for any e."""
    e, v = draws(2, 5)  # (3, 5) each
    for right in (v, e):
        lam = 0.7 * norm(right).square()  # (3, 1)
        dense = lam[..., None] * torch.eye(5, dtype=torch.float64) + v[:, :, None] * v[:, None, :]
        solved = torch.linalg.solve(dense, right[:, :, None])[..., 0]
        assert torch.allclose(damped(right, v, 0.7, rescale=False) / lam, solved, rtol=0, atol=1e-10)


def test_length_is_kept():
    e, before = draws(2, 6, 6)
    for m in (0.1, 1.0, 20.0):
        assert torch.allclose(norm(damped(e, mix(e, before, 0.75), m)), norm(e), rtol=1e-12)


def test_weak_correction_is_an_extrapolation():
    """d ~ e + (kappa/m) <e, v>/|e|^2 (e - e_prev) up to 1/m^2."""
    (e, other), kappa = draws(2, 4), 0.5
    before = e + 0.5 * other  # consecutive predictions resemble each other
    v = mix(e, before, kappa)
    inner = (e * v).sum(1, keepdim=True) / e.square().sum(1, keepdim=True)
    miss = []
    for m in (50.0, 100.0):
        expected = e + kappa / m * inner * (e - before)
        expected = expected * norm(e) / norm(expected)
        miss.append(float(norm(damped(e, v, m) - expected).max() / norm(e).max()))
    assert miss[0] < 10 / 50**2 and miss[0] / miss[1] == pytest.approx(4, abs=0.4)


def test_ddim_keeps_x0_and_dpm_solver_maps_the_increment():
    target, levels, m, kappa = density("ring8"), grid("karras", 2), 1.0, 0.5
    lam = [-np.log(s) for s in levels]
    a, s = [VP.alpha(v) for v in lam], [VP.sigma(v) for v in lam]
    x = start(5)
    e0 = target.eps(x, a[0], s[0])
    x1 = a[1] * (x - s[0] * e0) / a[0] + s[1] * e0  # the first step is the base's
    e1 = target.eps(x1, a[1], s[1])
    d = damped(e1, kappa * e0 + (1 - kappa) * e1, m)
    x2 = a[2] * (x1 - s[1] * e1) / a[1] + s[2] * d
    rules, _ = corrected({"base": "ddim"}, (m, kappa, 0.0), "karras", 3)
    assert torch.allclose(solve(target, x, levels, rules, path=VP, final=False), x2, rtol=0, atol=1e-12)

    plain = [solve(target, x, levels[:2], dpm3m, path=VP, final=False)]
    plain.append(solve(target, x, levels, dpm3m, path=VP, final=False))
    increments = [plain[0] - a[1] / a[0] * x, plain[1] - a[2] / a[1] * plain[0]]
    d = damped(increments[1], kappa * increments[0] + (1 - kappa) * increments[1], m)
    rules, _ = corrected({"base": "dpm3"}, (m, kappa, 0.0), "karras", 3)
    found = solve(target, x, levels, rules, path=VP, final=False)
    assert torch.allclose(found, a[2] / a[1] * plain[0] + d, rtol=0, atol=1e-12)


def test_control_does_the_same_arithmetic_with_a_neighbour_s_geometry():
    e, before = draws(2, 4)
    memory = {"e": before}
    found = correction(1.0, 0.5, True, "rolled")(e, memory)
    v = mix(e, before, 0.5)
    assert torch.allclose(found, damped(e, torch.cat([v[-1:], v[:-1]]), 1.0), rtol=0, atol=1e-12)
    assert torch.equal(memory["e"], e) and torch.allclose(norm(found), norm(e))


def test_no_evaluation_is_added():
    for base in PLACES:
        counted = Counted(density("ring8"))
        rules, levels = corrected({"base": base}, (1.0, 0.5, 0.5), "log", 9)
        solution(rules, levels, counted)
        assert counted.nfe == 9


def test_arcs_have_the_score_and_hessian_of_their_density():
    target, x = Arcs(0.05), 2 * draws(3)[:, 0, None] + torch.zeros(3, 2, dtype=torch.float64)
    x = x + torch.tensor([[0.3, -0.2], [1.9, 0.1], [-1.4, 1.5]], dtype=torch.float64)

    def logpdf(x):
        z = torch.einsum("nki,kai->nka", x[:, None] - target.centres, target.basis)
        return torch.logsumexp(-0.5 * (z.square() * target.precision).sum(2), 1)

    x.requires_grad_()
    (score,) = torch.autograd.grad(logpdf(x).sum(), x, create_graph=True)
    assert torch.allclose(target.eps(x), -0.05 * score, rtol=1e-9, atol=1e-9)
    rows = [torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
    assert torch.allclose(target.hessian(x), torch.stack(rows, 1), rtol=1e-8, atol=1e-6)


def test_arcs_draws_have_their_spreads():
    target = Arcs(0.05)
    x = target.sample(20_000, np.random.default_rng(1000))
    first = x[(x - target.centres[0]).norm(dim=1) < 0.75]  # around (2, 0): across is x, along is y
    assert float((first[:, 0] - 2).std()) == pytest.approx(np.hypot(0.05, 0.05), rel=0.1)
    assert float(first[:, 1].std()) == pytest.approx(np.hypot(0.4, 0.05), rel=0.15)  # the ball cuts tails


def test_newton_s_direction_is_straight_to_the_mode_of_a_gaussian():
    """Near a centre, with little damping, e is bent from across the arc towards the mode."""
    target = Arcs(0.05)
    x = target.centres[:1] + torch.tensor([[0.05, 0.2]], dtype=torch.float64)
    e = target.eps(x)
    d = DIRECTIONS["newton"][0](target, x, e, None, {"m": 1e-6})
    cosine = float((d * (x - target.centres[:1])).sum() / norm(d) / norm(x - target.centres[:1]))
    plain = float((e * (x - target.centres[:1])).sum() / norm(e) / norm(x - target.centres[:1]))
    assert cosine > 0.95 > plain and torch.allclose(norm(d), norm(e))


TUNING = {"tuning_seed": 100, "tuning_nfe": 4, "grids": ["log", "karras"], "m": [1, 5], "kappa": [0.5], "freeze": [0]}
PICTURES = {"name": "fm16-dpm3", "measure": "quality", "net": "fm16", "base": "dpm3", "metric": "fd"} | TUNING
PICTURES |= {"n": 8, "nfe": [4], "tuning_n": 8}
PLANE = {**PICTURES, "net": "edm2d", "part": "ring8", "base": "ddim", "metric": "sw2", "n": 220, "truth_steps": 4}
LANGEVIN = {"name": "langevin", "measure": "langevin", "s": 0.05, "tuning_seed": 100, "n": 30, "steps": [2, 4]}
SECOND = {"grid": {"eta": [1, 4], "m": [1], "kappa": [0.5]}}
CASES = {
    "base": (PICTURES, "base", {}, "tiny_fm16"),
    "lml": (PICTURES, "lml", {}, "tiny_fm16"),
    "control": (PICTURES, "rolled", {}, "tiny_fm16"),
    "2m": (PICTURES, "dpmpp-2m", {"base": "dpmpp-2m"}, "tiny_fm16"),
    "in the plane": (PLANE, "lml", {}, "tiny_plane"),
    "langevin": (LANGEVIN, "lml", SECOND, None),
    "langevin control": (LANGEVIN, "rolled", SECOND, None),
    "langevin unscaled": (LANGEVIN, "unscaled", SECOND, None),
    "langevin newton": (LANGEVIN, "newton", SECOND, None),
    "langevin first order": (LANGEVIN, "first-order", {"grid": {"eta": [1, 4]}}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, request):
    problem, method, settings, fixture = CASES[case]
    inputs = request.getfixturevalue(fixture) if fixture else None
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu").rows
    parts = [run(problem, method, settings, [seed], inputs, "cpu").rows for seed in (1000, 1001)]
    key = [k for k in ("seed", "nfe", "steps") if k in whole[0]]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4, atol=1e-6)
    assert not whole.duplicated(key).any()


def test_control_takes_the_settings_of_the_method(tiny_fm16):
    ours, control = (run(PICTURES, m, {}, [1000], tiny_fm16, "cpu").rows[0] for m in ("lml", "rolled"))
    assert all(ours[k] == control[k] for k in ("m", "kappa", "freeze", "evaluations")) and ours["fd"] != control["fd"]
    ours, control = (run(LANGEVIN, m, SECOND, [1000], None, "cpu").rows for m in ("lml", "rolled"))
    assert [row["eta"] for row in ours] == [row["eta"] for row in control]


def test_time_is_measured_on_both_by_turns(tiny_fm16):
    problem = {"measure": "overhead", "base": "dpm3", "setting": [5, 0.5, 0], "n": 8, "nfe": [4], "repetitions": 3}
    found = run(problem, "lml", {}, [1000], tiny_fm16, "cpu")
    (row,) = found.rows
    assert row["evaluations"] == row["evaluations_base"] == 4
    assert len(found.timings) == 3 and all({"base", "lml"} < set(t) for t in found.timings)


# Judging.


def quality_table(dpm3, ddim):
    rows = []
    for base, gain in (("dpm3", dpm3), ("ddim", ddim)):
        for nfe in (8, 10, 12, 20):
            for seed in range(5):
                row = {"problem": f"fm16-{base}", "seed": seed, "nfe": nfe}
                rows.append({**row, "method": "base", "fd": 4.0 + 0.1 * seed})
                rows.append({**row, "method": "lml", "fd": 4.0 + 0.1 * seed - gain - 0.01 * (seed - 2)})
                if base == "dpm3" and nfe < 20:
                    rows.append({**row, "method": "rolled", "fd": 5.0})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = evidence.better_at_equal_evaluations
    good = quality_table(0.2, 0.1)
    assert verdict(judge(good)) == "replicated" and [c.n for c in judge(good)] == [5, 5]
    control = judge(good.standing_in("rolled", "lml"))
    assert verdict(control) == "not replicated" and len(control) == 1
    assert verdict(judge(quality_table(0.2, -0.1))) == "not replicated"
    assert verdict(judge(quality_table(0.0, 0.1))) == "inconclusive"
    with pytest.raises(LookupError):
        judge(good.standing_in("absent", "lml"))


def time_table(ratio, more=0):
    rows = [
        {
            "problem": f"time-{b}",
            "method": "lml",
            "seed": 0,
            "nfe": 10,
            "evaluations": 10 + more,
            "evaluations_base": 10,
        }
        for b in ("dpm3", "ddim")
    ]
    timings = [
        {"problem": row["problem"], "method": "lml", "seed": 0, "repetition": i, "base": 1 + 0.01 * i, "lml": t}
        for row in rows
        for i, t in enumerate([ratio * (1 + 0.01 * i) for i in range(8)] + [9.0])
    ]
    return Evidence(pd.DataFrame(rows), timings=pd.DataFrame(timings))


def test_c2_is_judged_as_the_card_says():
    judge = evidence.negligible_overhead
    assert verdict(judge(time_table(1.03))) == "replicated"  # one slow repetition moves no median
    assert verdict(judge(time_table(1.08))) == "not replicated"
    assert verdict(judge(time_table(1.03, more=1))) == "not replicated"


def langevin_table(*gains):
    rows = []
    for k, gain in zip((5, 10, 20), gains, strict=True):
        for seed in range(10):
            row = {"problem": "langevin", "seed": seed, "steps": k}
            for method, sw2 in (("first-order", 0.5), ("lml", 0.5 - gain), ("rolled", 0.6)):
                rows.append({**row, "method": method, "sw2": sw2 + 0.001 * seed * (1 if method == "lml" else 1.1)})
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = evidence.more_accurate_langevin_steps
    good = langevin_table(0.1, 0.1, -0.1)
    assert verdict(judge(good)) == "replicated" and judge(good)[0].n == 3
    assert verdict(judge(good.standing_in("rolled", "lml"))) == "not replicated"
    assert verdict(judge(langevin_table(0.1, -0.1, -0.1))) == "not replicated"
