"""DualFast's correction against what is known of it, and the judging of its claims on made-up tables."""

from itertools import pairwise
from math import exp, log

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.multistep import dpmpp3m
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VP, Counted, Flow, ab2, ddim, dpmpp2m, initial_noise, solve
from papertrial.papers.diffusion.dualfast import evidence
from papertrial.papers.diffusion.dualfast.method import TAU, dualfast, ramp, run
from papertrial.testbeds.mixtures import density

BASES = {"ddim": ddim, "2m": dpmpp2m, "3m": dpmpp3m, "ab2": ab2}


def start(n=30):
    return 20 * initial_noise([1000], n, (2,), torch.float64)


@pytest.mark.parametrize("tau", TAU)
@pytest.mark.parametrize("base", BASES)
def test_c_0_is_the_base_solver_bit_for_bit(base, tau):
    for target, x in ((density("ring8"), start()), (density("spiral", torch.float32), start().float())):
        rule, levels = BASES[base], grid("karras", 6)
        assert torch.equal(solve(target, x, levels, ramp(rule, 0.0, tau, 6)), solve(target, x, levels, rule))


@pytest.mark.parametrize("tau", TAU)
@pytest.mark.parametrize("base", BASES)
def test_constant_eps_is_left_alone(base, tau):
    eps, x0 = torch.randn(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1000))
    constant = lambda x, s, label: x - s * eps  # noqa: E731
    found = solve(constant, x0 + 20 * eps, grid("time", 7), ramp(BASES[base], 0.7, tau, 7), final=False)
    assert torch.allclose(found, x0 + 0.02 * eps, rtol=0, atol=1e-11)


def test_half_on_equal_steps_is_adams_bashforth():
    target, levels = density("ring8"), np.linspace(4.0, 0.1, 14)
    x = start() / 5
    both = [solve(target, x, levels, rule, final=False) for rule in (dualfast(ddim, 0.5), ab2)]
    assert torch.allclose(*both, rtol=0, atol=1e-12)


def test_correction_is_the_formula_of_the_paper():
    """Three steps of DDIM in VP coordinates, eps' written out; tau is the step before or the first one."""
    target, s, c = density("spiral"), (3.0, 2.0, 1.0, 0.5), 0.4
    for tau in TAU:
        x, cached = start(5) / 5, None
        for i in range(3):
            lam, lam_t = -log(s[i]), -log(s[i + 1])
            a, sd = VP.alpha(lam), VP.sigma(lam)
            eps = target.eps(x, a, sd)
            c_t = c * i / 2
            used = eps if cached is None else (1 + c_t) * eps - c_t * cached
            cached = eps if cached is None or tau == "previous" else cached
            x = VP.alpha(lam_t) * (x - sd * used) / a + VP.sigma(lam_t) * used
        found = solve(target, start(5) / 5, s, ramp(ddim, c, tau, 3), path=VP, final=False)
        assert torch.allclose(found, x, rtol=0, atol=1e-12)


def test_multistep_memory_holds_corrected_predictions_and_the_cache_raw_ones():
    target, x, memory, c = density("ring8"), start(), {}, 0.3
    flow = Flow(target)
    levels = grid("karras", 5)
    seen = []
    for s, s_t in pairwise(levels[:4]):
        here, seen = x, [*seen, target.eps(x, 1.0, s)]
        x = dualfast(dpmpp2m, c)(flow, x, -log(s), -log(s_t), memory)
    assert torch.allclose(memory["eps_tau"], seen[-1], rtol=0, atol=1e-9)
    lam, kept = memory["x0"]
    corrected = here - exp(-lam) * ((1 + c) * seen[-1] - c * seen[-2])
    assert torch.allclose(kept, corrected, rtol=0, atol=1e-9)


def test_no_evaluation_is_added():
    for base in BASES.values():
        counted = Counted(density("ring8"))
        solve(counted, start(2), grid("log", 7), ramp(base, 0.3, "previous", 7))
        assert counted.nfe == 8


DECOMPOSITION = {
    "name": "error-ring8",
    "measure": "decomposition",
    "part": "ring8",
    "n": 10,
    "steps": [5, 20],
    "all": 30,
}


def test_no_approximation_error_with_the_exact_score(tiny_plane):
    rows = run(DECOMPOSITION, "exact", {}, [1000], tiny_plane, "cpu").rows
    assert all(row["A"] <= 1e-8 for row in rows) and rows[0]["B"] > rows[1]["B"] > 0
    assert run(DECOMPOSITION, "learned", {}, [1000], tiny_plane, "cpu").rows[0]["A"] > 1e-2


def test_error_by_level_is_that_of_eps(tiny_plane):
    problem = {"name": "levels-ring8", "measure": "by-level", "part": "ring8", "n": 50, "levels": 4}
    rows = run(problem, "exact", {}, [1000], tiny_plane, "cpu").rows
    assert all(row["error"] < 1e-12 for row in rows)
    rows = run(problem, "untrained", {}, [1000], tiny_plane, "cpu").rows
    assert [row["lam"] for row in rows] == sorted(row["lam"] for row in rows)
    # at s = 157 eps itself is all that an untrained network misses; below the components' width eps is small
    assert rows[0]["error"] == pytest.approx(2, abs=1) and rows[-1]["error"] < rows[0]["error"]


GRIDS = {"grids": ["log", "karras", "time"], "grid_seeds": [100], "c": [0.1, 0.5], "tuning_seeds": [100, 101]}
PICTURES = {"name": "fm16-ddim", "measure": "quality", "net": "fm16", "base": "ddim", "metric": "fd"} | GRIDS
PICTURES |= {"n": 8, "nfe": [3, 4], "tuning_n": 8}
PLANE = {"name": "net-2m", "measure": "quality", "net": "edm2d", "part": "spiral", "base": "dpmpp-2m", "metric": "sw2"}
PLANE |= GRIDS | {"n": 20, "nfe": [3], "tuning_n": 20, "truth_n": 5, "truth_steps": 4}
CASES = {
    "base": (PICTURES, "base", {}, "tiny_fm16"),
    "dualfast": (PICTURES, "dualfast", {}, "tiny_fm16"),
    "control": (PICTURES, "reversed", {"nfe": [3]}, "tiny_fm16"),
    "ab2": (PICTURES, "ab2", {"base": "ab2"}, "tiny_fm16"),
    "network in the plane": (PLANE, "dualfast", {}, "tiny_plane"),
    "exact score": (PLANE | {"net": "exact"}, "dualfast", {}, "tiny_plane"),
    "decomposition": (DECOMPOSITION, "learned", {}, "tiny_plane"),
    "levels": ({"measure": "by-level", "part": "spiral", "n": 9, "levels": 4}, "learned", {}, "tiny_plane"),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, request):
    problem, method, settings, fixture = CASES[case]
    inputs = request.getfixturevalue(fixture)
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu").rows
    parts = [run(problem, method, settings, [seed], inputs, "cpu").rows for seed in (1000, 1001)]
    key = [k for k in ("seed", "nfe", "level") if k in whole[0]]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4, atol=1e-6)
    assert not whole.duplicated(key).any()


def test_choices_are_the_best_on_tuning_seeds(tiny_fm16):
    found = run(PICTURES, "dualfast", {"nfe": [4]}, [1000], tiny_fm16, "cpu")
    tried = {row["tried"]: row["fd"] for row in found.traces}
    assert set(tried) == {"log", "karras", "time"} | {str((c, tau)) for c in (0.1, 0.5) for tau in TAU}
    (row,) = found.rows
    chosen = str((row["c"], TAU[row["tau"]]))
    assert tried[chosen] == min(v for k, v in tried.items() if k.startswith("("))
    assert tried[PICTURES["grids"][row["grid"]]] == min(v for k, v in tried.items() if not k.startswith("("))
    (control,) = run(PICTURES, "reversed", {"nfe": [4]}, [1000], tiny_fm16, "cpu").rows
    assert control["c"] == -row["c"] and control["tau"] == row["tau"] and control["grid"] == row["grid"]
    assert control["evaluations"] == row["evaluations"] == 4


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_base_agrees_with_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    peer = schedulers.DPMSolverMultistepScheduler(solver_order=2, final_sigmas_type="sigma_min")
    target, levels = density("ring8"), grid("log", 6)
    peer.sigmas = torch.from_numpy(levels).double()
    lams, x, outputs = -np.log(levels), VP.sigma(-log(20.0)) * start() / 20, []
    ours = solve(target, x, levels, ramp(dpmpp2m, 0.0, "previous", 6), path=VP, final=False)
    for i in range(6):
        peer._step_index = i
        outputs.append(target.x0(x, VP.alpha(lams[i]), VP.sigma(lams[i])))
        if i == 0:
            x = peer.dpm_solver_first_order_update(outputs[-1], sample=x)
        else:
            x = peer.multistep_dpm_solver_second_order_update(outputs[-2:], sample=x)
    assert torch.allclose(ours, x, rtol=0, atol=1e-10)


# Judging.


def quality_table(ddim=(1.0, 1.0, 1.0, 1.0), twom=0.2, more=0):
    rows = []
    for problem, gains in (("fm16-ddim", ddim), ("fm16-2m", [twom] * 4)):
        for nfe, gain in zip((5, 6, 8, 10), gains, strict=True):
            for seed in range(5):
                row = {"problem": problem, "seed": seed, "nfe": nfe, "evaluations": nfe}
                fd = 5 + 0.1 * seed
                rows.append({**row, "method": "base", "fd": fd})
                dual = {"method": "dualfast", "fd": fd - gain - 0.01 * (seed - 2), "evaluations": nfe + more}
                rows.append({**row, **dual})
                if problem == "fm16-ddim" and nfe in (5, 10):
                    rows.append({**row, "method": "reversed", "fd": fd + 1})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = evidence.better_at_no_evaluation
    good = quality_table()
    assert verdict(judge(good)) == "replicated" and len(judge(good)) == 6
    control = judge(good.standing_in("reversed", "dualfast"))
    assert verdict(control) == "not replicated" and len(control) == 3
    assert verdict(judge(quality_table(ddim=(1.0, -1.0, 1.0, 1.0)))) == "not replicated"
    assert verdict(judge(quality_table(twom=-0.2))) == "not replicated"
    assert verdict(judge(quality_table(twom=0.001))) == "inconclusive"
    assert verdict(judge(quality_table(more=1))) == "not replicated"


def error_table(a=0.3, b=(0.9, 0.1, 0.04)):
    rows = []
    for part in ("ring8", "spiral"):
        for method, approximation in (("learned", a), ("exact", 0.0)):
            row = {"problem": f"error-{part}", "method": method, "seed": 0, "A": approximation}
            rows += [{**row, "nfe": n, "B": error} for n, error in zip((5, 40, 100), b, strict=True)]
    return Evidence(pd.DataFrame(rows))


def test_c2_is_judged_as_the_card_says():
    judge = evidence.two_parts_of_the_error
    good = error_table()
    assert verdict(judge(good)) == "replicated" and len(judge(good)) == 6
    assert verdict(judge(good.standing_in("exact", "learned"))) == "not replicated"
    assert verdict(judge(error_table(b=(0.9, 0.31, 0.04)))) == "not replicated"
    assert verdict(judge(error_table(a=0.03))) == "not replicated"
    assert verdict(judge(error_table(a=3.0))) == "not replicated"


def levels_table(slope, swapped=()):
    rows = []
    for part in evidence.DENSITIES:
        for method, sign in (("learned", -1 if part in swapped else 1), ("untrained", -1)):
            for i in range(20):
                row = {"problem": f"levels-{part}", "method": method, "seed": 0, "level": i, "lam": i / 2 - 5}
                rows.append({**row, "error": np.exp(sign * slope * (i / 2 - 5))})
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = evidence.worse_at_less_noise
    good = levels_table(1.0)
    assert verdict(judge(good)) == "replicated" and len(judge(good)) == 5
    assert judge(good)[0].estimate == pytest.approx(1)
    assert verdict(judge(good.standing_in("untrained", "learned"))) == "not replicated"
    assert verdict(judge(levels_table(0.2))) == "not replicated"  # a ratio below 5
    assert verdict(judge(levels_table(1.0, swapped=("checker",)))) == "not replicated"


def test_nothing_is_judged_without_the_method():
    with pytest.raises(LookupError):
        evidence.better_at_no_evaluation(quality_table().standing_in("absent", "dualfast"))
    with pytest.raises(LookupError):
        evidence.two_parts_of_the_error(error_table().standing_in("absent", "learned"))
