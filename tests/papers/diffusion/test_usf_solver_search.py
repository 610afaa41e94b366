"""The solver space against the solvers that it contains, the search against its seed, and the judging of the claims."""

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.multistep import dpmpp3m, unipc2, unipc3
from papertrial.methods.noise_levels import GRIDS, grid
from papertrial.methods.samplers import DPM, VP, Counted, ddim, dpmpp2m, fast_orders, initial_noise, solve
from papertrial.papers.diffusion.usf_solver_search import evidence
from papertrial.papers.diffusion.usf_solver_search.method import EVERYWHERE, run
from papertrial.papers.diffusion.usf_solver_search.schedules import (
    FIRST,
    GAP,
    LAST,
    SOLVERS,
    Decision,
    Space,
    constant,
    constants,
    fixed,
    jitter,
    rule,
    settled,
)
from papertrial.papers.diffusion.usf_solver_search.search import Predictor, at_random, best, climb, predicted, search
from papertrial.testbeds.mixtures import density

SEARCH = {"search_n": 10, "pool": 3, "per_round": 2, "rounds": 2, "candidates": 4, "truth_n": 6, "truth_steps": 6}
QUALITY = {**SEARCH, "name": "fm8", "measure": "quality", "n": 20, "nfe": [5], "noise": [1000, 1001]}
EFFICIENCY = {**SEARCH, "name": "fm8-search", "measure": "efficiency", "nfe": [5], "evaluated": [5, 7]}
SPEED = {**SEARCH, "name": "fm8-speed", "measure": "speed", "nfe": [5], "most": 6, "noise": [1000]}
TRUNCATION = {"name": "ring8", "measure": "truncation", "density": "ring8", "search_n": 10, "n": 10, "nfe": [6]}
TRUNCATION |= {"draws": 6, "mutants": 6, "reference_steps": 20}


def start(n=20):
    return 20 * initial_noise([1000], n, (2,), torch.float64)


def agree(schedule, rules, levels, target=None, tolerance=1e-10):
    target = target or density("ring8")
    ours = solve(target, start(), schedule.plan[1], schedule.plan[0])
    return torch.allclose(ours, solve(target, start(), levels, rules), rtol=0, atol=tolerance)


# What must hold.


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("spacing", GRIDS)
def test_order_1_is_ddim_in_either_prediction_type(data, spacing):
    steps = [Decision(data)] * 6
    levels = grid(spacing, 6)
    as_they_are = [rule(d) for d in steps]  # not in simplest form, where both types are one
    ours = solve(density("ring8"), start(), levels, as_they_are)
    assert torch.allclose(ours, solve(density("ring8"), start(), levels, ddim), rtol=0, atol=1e-10)
    assert agree(constant(Decision(data), 7, spacing), ddim, levels)


def test_known_solvers_are_constant_schedules():
    levels = grid("karras", 6)
    assert agree(constant(Decision(order=2, midpoint=True), 7, "karras"), dpmpp2m, levels)
    assert not agree(constant(Decision(order=2), 7, "karras"), dpmpp2m, levels, tolerance=1e-4)
    third = constant(Decision(data=False, order=3, inner=True), 10, "karras")
    assert agree(third, DPM[3], grid("karras", 3))
    second = constant(Decision(data=False, order=2, inner=True, midpoint=True), 9, "karras")
    assert agree(second, DPM[2], grid("karras", 4))


def test_fixed_solvers_are_the_shared_rules():
    rules = {"DDIM": ddim, "2M": dpmpp2m, "3M": dpmpp3m, "UniPC-2": unipc2, "UniPC-3": unipc3}
    for name, shared in rules.items():
        assert agree(SOLVERS[name](9, "log"), shared, grid("log", 8)), name
    orders = fast_orders(9)
    assert agree(SOLVERS["DPM-3"](10, "log"), [DPM[k] for k in orders], grid("log", len(orders)))
    assert len(fixed(7)) == 7 * len(GRIDS)


def random_schedules(nfe, count=30, seed=1000):
    rng, space = np.random.default_rng(seed), Space(nfe)
    drawn = at_random(space, {}, count, rng)
    return drawn + [space.mutated(s, {s}, rng) for s in drawn]


@pytest.mark.parametrize("nfe", [2, 5, 7, 10])
def test_counted_nfe_is_the_declared_one(nfe):
    schedules = random_schedules(nfe, 5 if nfe == 2 else 15) + list(fixed(nfe)) + constants(nfe, "log")
    for schedule in schedules:
        counted = Counted(density("ring8"))
        solve(counted, start(1), schedule.plan[1], schedule.plan[0])
        assert counted.nfe == schedule.nfe == nfe


ORDERS = {
    "noise 1": (Decision(False), 1),
    "data 2 past": (Decision(order=2), 2),
    "noise 2 past midpoint": (Decision(False, 2, midpoint=True), 2),
    "data 2 inside": (Decision(order=2, inner=True), 2),
    "noise 2 inside": (Decision(False, 2, True, midpoint=True), 2),
    "data 3 past": (Decision(order=3), 3),
    "noise 3 inside": (Decision(False, 3, True), 3),
    "data 3 inside": (Decision(True, 3, True), 3),
    "data 1 corrected": (Decision(correct=True), 2),
    "data 2 corrected": (Decision(order=2, correct=True), 3),
    "data 2 past, skipping": (Decision(order=2, skip=1), 2),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_by_richardson_on_the_smooth_region(name):
    """From s = 20, where the output hardly moves while history builds up, to s = 1: no ridges yet."""
    decision, order = ORDERS[name]
    target, x = density("ring8"), start(40)

    def end(steps):
        return solve(target, x, grid("log", steps, 20.0, 1.0), rules(steps), final=False)

    def rules(steps):  # the engine of schedules, from s = 20 to 1 instead of .02
        schedule = settled([decision] * steps, np.linspace(FIRST, LAST, steps + 1))
        return schedule.plan[0]

    coarse, middle, fine = (end(n) for n in (40, 80, 160))
    slope = torch.log2((coarse - middle).norm(dim=1).median() / (middle - fine).norm(dim=1).median())
    assert slope.item() == pytest.approx(order, abs=0.3)


def test_search_is_reproducible_from_its_seed():
    def found(seed):
        rng, space = np.random.default_rng(seed), Space(6)
        fitness = lambda s: sum(s.lams) + s.steps[0].order  # noqa: E731
        return search(space, fitness, at_random(space, {}, 5, rng), predicted(8), [2, 2], rng)

    assert list(found(1000).items()) == list(found(1000).items())
    assert list(found(1000)) != list(found(1001))


# The space.


def test_schedules_are_in_simplest_form_and_valid():
    for schedule in random_schedules(8, 100):
        past = 0
        for i, d in enumerate(schedule.steps):
            assert d.inner or d.order <= past + 1 - d.skip
            assert not (d.correct and i == len(schedule.steps) - 1)
            past += d.cost
        lams = np.array(schedule.lams)
        assert lams[0] == FIRST and lams[-1] <= LAST and np.diff(lams).min() >= 0.99 * GAP
        assert settled(schedule.steps, schedule.lams) == schedule


def test_simplest_form_changes_no_sample():
    """Decisions that are dropped change nothing."""
    full = [Decision(False, 2, skip=1, midpoint=True), Decision(False, 1), Decision(True, 3, correct=True)]
    lams = np.linspace(FIRST, LAST, 4)
    simple = settled(full, lams)
    assert simple.steps != tuple(full)
    assert agree(simple, [rule(d) for d in full], np.exp(-lams))


def test_vp_and_ve_agree():
    target = density("ring8")
    for schedule in random_schedules(8, 5):
        rules, levels = schedule.plan
        ve = solve(target, start(), levels, rules)
        vp = solve(target, VP.alpha(FIRST) * start(), levels, rules, path=VP)
        assert torch.allclose(ve, vp, rtol=0, atol=1e-8)


def test_uniform_and_level_only_spaces_keep_what_they_promise():
    rng = np.random.default_rng(1000)
    free = Space(8, EVERYWHERE, uniform=True)
    for schedule in climb(free, lambda s: float(len(s.steps)), 10, 10, rng):
        assert np.allclose(np.diff(schedule.lams), np.diff(schedule.lams)[0])
    decision = Decision(order=2, midpoint=True)
    levels = Space(8, (jitter,), decision)
    drawn = at_random(levels, {}, 5, rng)
    steps = constant(decision, 8, "log").steps
    assert all(s.steps == levels.mutated(s, {s}, rng).steps == steps for s in drawn)
    assert len(drawn) == len(set(drawn)) == 5


def test_constant_strategies_are_exhaustive_without_doubles():
    found = constants(6, "log")
    assert len(found) == len(set(found)) > 40
    assert {s.steps[-1].inner for s in found} == {True, False}
    assert all(np.allclose(np.exp(-np.array(s.lams)), grid("log", len(s.steps))) for s in found)


# The search.


def test_predictor_learns_a_ranking():
    schedules = random_schedules(6, 60)
    value = lambda s: sum(s.lams) + 3 * s.steps[0].order  # noqa: E731
    seen, unseen = schedules[:60], schedules[60:]
    score = Predictor(seen, np.array([value(s) for s in seen]), 0)(unseen)
    assert np.corrcoef(score, [value(s) for s in unseen])[0, 1] < -0.6


@pytest.mark.slow
def test_guided_search_beats_a_misled_one_where_there_is_something_to_learn():
    fitness = lambda s: float(np.abs(np.array(s.lams) - 1).sum()) + sum(d.data for d in s.steps)  # noqa: E731

    def found(seed, **how):
        rng, space = np.random.default_rng(seed), Space(6)
        tried = search(space, fitness, at_random(space, {}, 20, rng), predicted(60, **how), [10, 10], rng)
        return fitness(best(tried))

    shuffled = lambda seed: np.random.default_rng(seed).permutation  # noqa: E731
    seeds = range(1000, 1006)
    guided, misled = ([found(s, **how(s)) for s in seeds] for how in (lambda s: {}, lambda s: {"taught": shuffled(s)}))
    assert np.mean(guided) < np.mean(misled)


def test_search_spends_what_it_is_given():
    calls, rng, space = [], np.random.default_rng(1000), Space(6)
    tried = climb(space, lambda s: calls.append(s) or 0.0, 5, 4, rng)
    assert len(tried) == len(calls) == 9
    tried = search(space, lambda s: calls.append(s) or 0.0, at_random(space, {}, 5, rng), at_random, [3, 3], rng)
    assert len(tried) == 11 and len(calls) == 20


# Runs.

CASES = {
    "usf": (QUALITY, "usf", {}),
    "fixed": (QUALITY, "fixed", {}),
    "levels": (QUALITY, "levels-only", {}),
    "control": (QUALITY, "permuted", {}),
    "real": (QUALITY, "real", {"measure": "floor"}),
    "s3": (EFFICIENCY, "usf", {}),
    "misled": (EFFICIENCY, "misled", {}),
    "speed": (SPEED, "usf", {}),
    "free": (TRUNCATION, "usf", {}),
    "constant": (TRUNCATION, "constant", {}),
}


LONG = {"levels", "control", "misled", "speed"}  # the same code on the same problems


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in LONG else c for c in CASES])
def test_splitting_the_seeds_changes_nothing(case, tiny_fm8):
    whole = run(*CASES[case], [1000, 1001], tiny_fm8, "cpu").rows
    parts = [row for seed in (1000, 1001) for row in run(*CASES[case], [seed], tiny_fm8, "cpu").rows]
    pd.testing.assert_frame_equal(pd.DataFrame(whole), pd.DataFrame(parts), rtol=1e-3, atol=1e-5)


def test_searches_start_from_one_pool(tiny_fm8):
    first = [run(EFFICIENCY, m, {}, [1000], tiny_fm8, "cpu").traces[0] for m in ("usf", "random", "misled")]
    assert first[0] == first[1] == first[2] and first[0]["evaluated"] == SEARCH["pool"]


def test_search_never_ends_above_the_best_fixed_solver(tiny_fm8):
    """On the search's own FD, which is not what is reported."""
    rows = run({**EFFICIENCY, "pool": 1, "evaluated": [1, 5]}, "usf", {}, [1000], tiny_fm8, "cpu").rows
    assert rows[1]["fd"] <= rows[0]["fd"]


def test_a_fixed_solver_is_never_cheaper_than_itself(tiny_fm8):
    rows = run(SPEED, "usf", {}, [1000], tiny_fm8, "cpu").rows
    assert [row["nfe"] for row in rows] == [5] and 5 <= rows[0]["needed"] <= 6


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["2M", "UniPC-2", "UniPC-3"])
def test_fixed_points_agree_with_diffusers(name):
    schedulers = pytest.importorskip("diffusers.schedulers")
    common = {"solver_order": int(name[-1]) if name != "2M" else 2, "lower_order_final": False}
    made = {
        "2M": lambda: schedulers.DPMSolverMultistepScheduler(**common, final_sigmas_type="sigma_min"),
        "UniPC": lambda: schedulers.UniPCMultistepScheduler(**common, final_sigmas_type="sigma_min"),
    }[name.split("-")[0]]()
    target, levels = density("ring8"), grid("karras", 8)
    made.set_timesteps(len(levels) - 1)
    made.sigmas, made._step_index = torch.from_numpy(levels), 0
    rules, _ = SOLVERS[name](9, "karras").plan
    x = VP.alpha(FIRST) * start()
    ours = solve(target, x, levels, rules, path=VP, final=False)
    for s, t in zip(levels[:-1], made.timesteps, strict=True):
        lam = -np.log(s)
        x = made.step(target.eps(x, VP.alpha(lam), VP.sigma(lam)), t, x).prev_sample.double()
    single = name == "2M"  # that scheduler rounds its samples to single precision
    assert torch.allclose(ours, x, rtol=0, atol=1e-4 if single else 1e-8)


# Judging.


def c1_table(gains):
    rows = []
    for nfe, gain in zip((5, 7, 10), gains, strict=True):
        for seed in range(3):
            for noise in range(5):
                cell = {"problem": "fm8", "seed": seed, "nfe": nfe, "noise": noise}
                rows.append({**cell, "method": "fixed", "fd": 0.5 + 0.01 * noise})
                rows.append({**cell, "method": "usf", "fd": 0.5 + 0.01 * noise - gain * (1 + 0.1 * seed)})
                if nfe == 5:
                    rows.append({**cell, "method": "permuted", "fd": 3.0})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    good = c1_table((0.1, 0.05, 0.02))
    criteria = evidence.beats_fixed_solvers(good)
    assert verdict(criteria) == "replicated" and [c.n for c in criteria] == [15, 15, 15]
    assert verdict(evidence.beats_fixed_solvers(c1_table((0.1, 0.05, -0.02)))) == "not replicated"
    control = evidence.beats_fixed_solvers(good.standing_in("permuted", "usf"))
    assert len(control) == 1 and verdict(control) == "not replicated"


def c2_table(worst):
    ratios = {("ring8", 6): 0.5, ("ring8", 10): 0.6, ("spiral", 6): 0.7, ("spiral", 10): worst}
    return Evidence(
        pd.DataFrame(
            [
                {"problem": p, "method": m, "seed": s, "nfe": nfe, "ode_median": e * (1 + s)}
                for (p, nfe), ratio in ratios.items()
                for m, e in (("usf", ratio), ("constant", 1.0))
                for s in range(3)
            ]
        )
    )


def test_c2_is_judged_as_the_card_says():
    criteria = evidence.freedom_lowers_truncation_error(c2_table(0.79))
    assert verdict(criteria) == "replicated" and len(criteria) == 4
    assert verdict(evidence.freedom_lowers_truncation_error(c2_table(0.81))) == "not replicated"


def c3_table(gain):
    return Evidence(
        pd.DataFrame(
            [
                {"problem": "fm8-search", "method": m, "seed": s, "nfe": 5, "evaluated": k, "fd": fd + 0.01 * s}
                for m, fd in (("random", 0.8), ("usf", 0.8 - gain), ("misled", 0.8))
                for k in (60, 120)
                for s in range(5)
            ]
        )
    )


def test_c3_is_judged_as_the_card_says():
    good = c3_table(0.05)
    assert verdict(evidence.predictor_saves_evaluations(good)) == "replicated"
    assert verdict(evidence.predictor_saves_evaluations(c3_table(-0.05))) == "not replicated"
    assert verdict(evidence.predictor_saves_evaluations(good.standing_in("misled", "usf"))) != "replicated"


def c4_table(needed):
    rows = [
        {"problem": "fm8-speed", "method": "usf", "seed": s, "nfe": nfe, "needed": needed[nfe]}
        for s in range(3)
        for nfe in (5, 7)
    ]
    return Evidence(pd.DataFrame(rows))


def test_c4_is_judged_as_the_card_says():
    (criterion,) = evidence.half_the_evaluations(c4_table({5: 8, 7: 10}))  # 1.6 and 1.43
    assert criterion.estimate == pytest.approx((8 / 5 + 10 / 7) / 2) and criterion.passed
    assert verdict(evidence.half_the_evaluations(c4_table({5: 7, 7: 9}))) == "not replicated"
