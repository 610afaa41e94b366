"""DPM-Solver's steps against what is known of them, and the judging of its claims on made-up tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import DPM, VE, VP, Counted, Flow, ddim, initial_noise, solve
from papertrial.papers.diffusion.dpm_solver import evidence
from papertrial.papers.diffusion.dpm_solver.method import STEPS, fast, run, zeroed
from papertrial.testbeds.mixtures import Mixture, density

ORDER = {"measure": "order", "n": 20, "steps": [4, 8], "few_nfe": [6], "reference_steps": 20}
QUALITY = {"name": "fm16", "measure": "quality", "n": 8, "nfe": [5], "tuning_seed": 100, "tuning_n": 8}
BUDGET = {**QUALITY, "name": "fm16-budget", "measure": "budget", "nfe": [4, 6], "grid_nfe": 5}
BUDGET |= {"margin": 0.5, "ode_bound": 0.01}
ERROR = {"name": "fm16-error", "measure": "error", "n": 6, "nfe": [6], "orders": [2, 3]}
ERROR |= {"tuning_seed": 100, "truth_steps": 6}
DDIM = {"grids": ["log", "karras", "time"]}


def start(n=50):
    return 20 * initial_noise([1000], n, (2,), torch.float64)


@pytest.mark.parametrize("path", [VE, VP])
def test_order_1_is_ddim(path):
    target, levels = density("ring8"), grid("log", 12)
    x = path.sigma(-np.log(20.0)) * start() / 20
    both = [solve(target, x, levels, rule, path=path, final=False) for rule in (DPM[1], ddim)]
    assert torch.allclose(*both, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "factor"), [(1, 0.0420458), (2, 0.0516085), (3, 0.0499792)])
def test_known_factor_on_standard_normal_data(order, factor):
    x = torch.ones(1, 1, dtype=torch.float64)
    found = solve(Mixture([[0.0]], 1.0), x, grid("log", 10), DPM[order], final=False).item()
    assert found == pytest.approx(factor, abs=5e-8)
    exact = np.sqrt((1 + 0.02**2) / (1 + 20**2))
    assert exact == pytest.approx(0.0499476, abs=5e-8)


@pytest.mark.parametrize("path", [VE, VP])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_constant_eps_is_solved_in_one_step(order, path):
    x0, eps = torch.randn(2, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1000))
    constant = lambda x, s, label: x - s * eps  # noqa: E731
    lam, lam_t = -np.log(20.0), -np.log(0.02)
    x = path.alpha(lam) * x0 + path.sigma(lam) * eps
    found = solve(constant, x, [20.0, 0.02], DPM[order], path=path, final=False)
    assert torch.allclose(found, path.alpha(lam_t) * x0 + path.sigma(lam_t) * eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_vp_and_ve_agree_after_rescaling(order):
    target, levels = density("ring8"), grid("log", 20)
    lam, lam_t = -np.log(20.0), -np.log(0.02)
    ve = solve(target, start(), levels, DPM[order], final=False)
    vp = solve(target, VP.alpha(lam) * start(), levels, DPM[order], path=VP, final=False)
    assert torch.allclose(vp / VP.alpha(lam_t), ve, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rules", STEPS.values(), ids=STEPS)
def test_fast_rule_spends_exactly_k_evaluations(rules):
    for k in range(6, 25):
        counted = Counted(density("ring8"))
        plan, levels = fast(k + 1, rules)
        solve(counted, start(2), levels, plan, final=False)
        assert counted.nfe == k
        assert np.allclose(np.diff(np.log(levels)), np.diff(np.log(levels))[0])  # uniform in lam


def slopes(problem, method, n, steps, reference_steps):
    p = {**ORDER, "name": problem, "density": problem, "n": n, "steps": steps, "reference_steps": reference_steps}
    rows = pd.DataFrame(run(p, method, {"orders": [1, 2, 3]}, [1000], Inputs(), "cpu").rows)
    error = rows.assign(steps=rows["nfe"] // rows["order"]).pivot(index="steps", columns="order", values="ode_median")
    return {k: [np.log2(error[k][m] / error[k][2 * m]) for m in steps[:-1]] for k in (1, 2, 3)}


def test_orders_show_as_slopes():
    for k, (slope,) in slopes("ring8", "dpm-solver", 100, [30, 60], 150).items():
        assert k - 0.2 <= slope <= k + 0.4
    for slope in slopes("ring8", "zeroed", 100, [30, 60], 150).values():  # the control is of order 1
        assert slope[0] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["ring8", "spiral"])
def test_slopes_of_the_protocol(problem):
    tried = {1: (1.00, 1.03), 2: (2.02, 2.09), 3: (3.09, 3.18)}
    for k, found in slopes(problem, "dpm-solver", 1000, [30, 60, 120], 400).items():
        assert all(tried[k][0] <= slope <= tried[k][1] for slope in found)


@pytest.mark.parametrize("order", [2, 3])
def test_control_is_one_long_step_of_order_1_that_costs_k(order):
    target, levels = density("ring8"), grid("log", 8)
    counted = Counted(target)
    control = solve(counted, start(), levels, zeroed(DPM[order]), final=False)
    assert torch.allclose(control, solve(target, start(), levels, DPM[1], final=False), rtol=0, atol=1e-12)
    assert counted.nfe == 8 * order


def test_known_steps_of_the_paper():
    """Orders 2 and 3 written out from the paper's formulas, on the VP path."""
    target, lam, h = density("ring8"), -1.0, 0.8
    flow, x = Flow(target, path=VP), VP.sigma(-1.0) * start() / 20
    a, s = VP.alpha, VP.sigma
    eps = lambda x, lam: target.eps(x, a(lam), s(lam))  # noqa: E731
    e = eps(x, lam)
    u = a(lam + h / 2) / a(lam) * x - s(lam + h / 2) * np.expm1(h / 2) * e
    second = a(lam + h) / a(lam) * x - s(lam + h) * np.expm1(h) * e
    second = second - s(lam + h) * np.expm1(h) * (eps(u, lam + h / 2) - e)
    assert torch.allclose(DPM[2](flow, x, lam, lam + h, {}), second, atol=1e-12)
    l1, l2 = lam + h / 3, lam + 2 * h / 3
    u1 = a(l1) / a(lam) * x - s(l1) * np.expm1(h / 3) * e
    d1 = eps(u1, l1) - e
    u2 = a(l2) / a(lam) * x - s(l2) * np.expm1(2 * h / 3) * e
    u2 = u2 - 2 * s(l2) * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
    d2 = eps(u2, l2) - e
    third = a(lam + h) / a(lam) * x - s(lam + h) * np.expm1(h) * e
    third = third - 1.5 * s(lam + h) * (np.expm1(h) / h - 1) * d2
    assert torch.allclose(DPM[3](flow, x, lam, lam + h, {}), third, atol=1e-12)


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("order", [1, 2, 3])
def test_agrees_with_diffusers(order):
    schedulers = pytest.importorskip("diffusers.schedulers")

    def peer(solver_type):
        made = schedulers.DPMSolverSinglestepScheduler(
            algorithm_type="dpmsolver", solver_type=solver_type, solver_order=order, final_sigmas_type="sigma_min"
        )
        made.sigmas = torch.from_numpy(grid("log", 6 * order)).double()
        return made

    midpoint, heun = peer("midpoint"), peer("heun")
    target = density("ring8")
    x = VP.sigma(-np.log(20.0)) * start() / 20
    ours = solve(target, x, grid("log", 6), DPM[order], path=VP, final=False)
    for first in range(0, 6 * order, order):
        here, outputs = x, []
        for j in range(order):
            lam = -np.log(float(midpoint.sigmas[first + j]))
            outputs.append(target.eps(here, VP.alpha(lam), VP.sigma(lam)))
            # The paper's u_2 in order 3 is what diffusers calls heun, its last combination midpoint.
            scheduler = heun if (order, j) == (3, 1) else midpoint
            scheduler._step_index = first + j
            here = scheduler.singlestep_dpm_solver_update(outputs, sample=x, order=j + 1)
        x = here
    assert torch.allclose(ours, x, rtol=0, atol=1e-10)


CASES = {
    "order": ({**ORDER, "name": "ring8", "density": "ring8"}, "dpm-solver", {"orders": [1, 3]}),
    "dpm": (QUALITY, "dpm-solver", {"grids": ["log"]}),
    "control": (QUALITY, "zeroed", {"grids": ["log"]}),
    "ddim": (QUALITY, "ddim", DDIM),
    "ancestral": (QUALITY, "ancestral", {"grids": ["time"]}),
    "2m": (QUALITY, "dpmpp-2m", {"grids": ["karras"]}),
    "reference": (QUALITY, "reference", {}),
    "real": (QUALITY, "real", {}),
    "budget": (BUDGET, "ddim", DDIM),
    "error": (ERROR, "rk", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, tiny_fm16):
    problem, method, settings = CASES[case]
    whole = run(problem, method, settings, [1000, 1001], tiny_fm16, "cpu").rows
    parts = [run(problem, method, settings, [seed], tiny_fm16, "cpu").rows for seed in (1000, 1001)]
    key = ["seed", "order", "nfe"]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-3, atol=1e-5)
    assert not whole.duplicated(key).any()


def test_nfe_in_the_rows_is_what_was_counted(tiny_fm16):
    for problem, method, settings in (CASES["dpm"], CASES["control"], CASES["ddim"]):
        rows = run({**problem, "nfe": [5, 8]}, method, settings, [1000], tiny_fm16, "cpu").rows
        assert [row["nfe"] for row in rows] == [5, 8]
    rows = run(ERROR, "dpm-solver", {}, [1000], tiny_fm16, "cpu").rows
    assert [(row["order"], row["nfe"]) for row in rows] == [(2, 6), (3, 6)]


def test_ddim_takes_the_grid_that_is_best_on_the_tuning_seed(tiny_fm16):
    found = run(QUALITY, "ddim", DDIM, [1000], tiny_fm16, "cpu")
    tried = {row["grid"]: row["fd"] for row in found.traces}
    assert set(tried) == {"log", "karras", "time"} and {row["seed"] for row in found.traces} == {100}
    best = min(tried, key=tried.get)
    alone = run(QUALITY, "ddim", {"grids": [best]}, [1000], tiny_fm16, "cpu")
    assert alone.rows == found.rows


def test_budget_is_monotone(tiny_fm16):
    rows = run(BUDGET, "ddim", DDIM, [1000], tiny_fm16, "cpu").rows
    within = [row["within"] for row in sorted(rows, key=lambda row: -row["nfe"])]
    assert within == sorted(within, reverse=True)


# Judging.


def table(*rows):
    return Evidence(pd.DataFrame(rows))


def c1_table(gain, excess):
    rows = []
    for seed in range(5):
        wobble = 0.01 * seed
        rows.append({"problem": "fm16", "method": "reference", "seed": seed, "order": 2, "nfe": 61, "fd": 2.0})
        for nfe in (10, 12, 15, 20):
            cell = {"problem": "fm16", "seed": seed, "nfe": nfe}
            rows.append({**cell, "method": "dpm-solver", "order": 3, "fd": 2.0 + excess})
            rows.append({**cell, "method": "ddim", "order": 1, "fd": 2.0 + excess + gain + wobble})
            if nfe in (10, 20):
                rows.append({**cell, "method": "zeroed", "order": 3, "fd": 9.0})
    return table(*rows)


def test_c1_is_judged_as_the_card_says():
    good = c1_table(gain=1.0, excess=0.4)
    assert verdict(evidence.far_better_than_ddim(good)) == "replicated"
    assert len(evidence.far_better_than_ddim(good)) == 5
    assert verdict(evidence.far_better_than_ddim(good.standing_in("zeroed", "dpm-solver"))) == "not replicated"
    assert verdict(evidence.far_better_than_ddim(c1_table(gain=1.0, excess=0.6))) == "not replicated"
    assert verdict(evidence.far_better_than_ddim(c1_table(gain=-1.0, excess=0.4))) == "not replicated"
    assert verdict(evidence.far_better_than_ddim(c1_table(gain=-0.02, excess=0.4))) == "inconclusive"


def c2_table(slope_of):
    return table(
        *[
            {"problem": p, "method": m, "seed": 0, "order": k, "nfe": k * n, "ode_median": n ** -slope(k)}
            for p in ("ring8", "spiral")
            for m, slope in (("dpm-solver", slope_of), ("zeroed", lambda k: 1.0))
            for k in ((1, 2, 3) if m == "dpm-solver" else (2, 3))
            for n in (30, 60, 120)
        ]
    )


def test_c2_is_judged_as_the_card_says():
    good = c2_table(lambda k: k + 0.1)
    criteria = evidence.order_k(good)
    assert verdict(criteria) == "replicated" and len(criteria) == 2 * 3 * 2 * 2
    assert verdict(evidence.order_k(good.standing_in("zeroed", "dpm-solver"))) == "not replicated"
    assert verdict(evidence.order_k(c2_table(lambda k: k + 0.5))) == "not replicated"
    assert verdict(evidence.order_k(c2_table(lambda k: k - 0.3))) == "not replicated"
    with pytest.raises(LookupError):
        evidence.order_k(table({"problem": "ring8", "method": "zeroed", "seed": 0}))


def c3_table(ddim_from, dpm_from):
    return table(
        *[
            {"problem": "fm16-budget", "method": m, "seed": s, "order": 1, "nfe": n, "within": int(n >= needed[s])}
            for m, needed in (("ddim", ddim_from), ("dpm-solver", dpm_from))
            for s in range(3)
            for n in (6, 9, 12, 15, 20, 30, 40, 60, 80)
        ]
    )


def test_c3_is_judged_as_the_card_says():
    never = 1000
    for ddim_from, dpm_from, expected in (
        ((60, 60, 20), (15, 15, 15), "replicated"),  # the median of 4, 4, 1.33
        ((never, 60, 60), (30, 15, 20), "replicated"),  # 120/30, 60/15, 3
        ((40, 40, 80), (15, 15, 15), "not replicated"),
        ((never, never, never), (40, 40, 40), "not replicated"),
        ((80, 80, 80), (never, never, never), "not replicated"),
    ):
        assert verdict(evidence.times_faster(c3_table(ddim_from, dpm_from))) == expected


def c4_table(better):
    """In the first ``better`` of six cells DPM-Solver's error is half of Runge-Kutta's, in the others twice."""
    cells = [(k, nfe) for k in (2, 3) for nfe in (12, 18, 24)]
    return table(
        *[
            {"problem": "fm16-error", "method": m, "seed": s, "order": k, "nfe": n, "ode_rms": e * (1 + 0.01 * s)}
            for i, (k, n) in enumerate(cells)
            for m, e in (("rk", 1.0), ("dpm-solver", 0.5 if i < better else 2.0))
            for s in range(5)
        ]
    )


def test_c4_is_judged_as_the_card_says():
    (criterion,) = evidence.beats_runge_kutta(c4_table(5))
    assert criterion.threshold == 5 and criterion.n == 6
    assert verdict([criterion]) == "replicated"
    assert verdict(evidence.beats_runge_kutta(c4_table(4))) == "not replicated"
