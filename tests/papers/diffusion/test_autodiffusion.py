"""Time-step lists and skipped blocks against the plain sampler, the evolution, and the judging of the claims."""

from copy import deepcopy
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import GRIDS, grid, index_level
from papertrial.methods.samplers import balanced_labels, initial_noise
from papertrial.models import fm8, fm16
from papertrial.models.edm import EDM
from papertrial.models.unet import UNet
from papertrial.papers.diffusion.autodiffusion import evidence
from papertrial.papers.diffusion.autodiffusion.evolution import (
    Candidate,
    Step,
    StepsAndBlocks,
    TimeSteps,
    evolve,
    from_levels,
    sequence,
    uniform,
)
from papertrial.papers.diffusion.autodiffusion.gates import GatedDenoiser
from papertrial.papers.diffusion.autodiffusion.method import Bench, run

SIZES = {"n": 20, "search_n": 20, "noise": [1000, 1001], "truth_n": 6, "truth_steps": 6}
SIZES |= {"generations": 2, "population": 5, "first_stage": 1}
FM8 = {**SIZES, "name": "fm8", "base": "fm8", "part": "256-0", "transfer": "128-1", "rule": "ddim"}
FM16 = {**SIZES, "name": "fm16", "base": "fm16", "part": "0", "rule": "ddim"}
HAND = {"grids": ["quad", "log"], "ends": [0.02, 0.2]}


@pytest.fixture(scope="module")
def gated() -> GatedDenoiser:
    """fm16's network at its true size, with random weights throughout."""
    torch.manual_seed(1000)
    model = EDM(UNet(), 0.6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return GatedDenoiser(model.eval())


def pictures(n=4, size=16):
    return initial_noise([1000], n, (1, size, size)), balanced_labels([1000], n)


# What must hold.


@pytest.mark.parametrize("k", [2, 4, 7])
def test_uniform_sequence_is_the_plain_ddim_loop(k, tiny_fm8):
    bench = Bench(tiny_fm8, "cpu", "fm8", "256-0", "ddim")
    found, label, compute = bench.sample(uniform(k), 1000, 12)
    model = fm8.load(tiny_fm8.models["fm8"]["256-0"])
    levels = [float(index_level(i)) for i in np.round(np.linspace(1, 1000, k))[::-1]]
    with torch.inference_mode():
        x = levels[0] * initial_noise([1000], 12, (1, 8, 8))
        for s, t in pairwise(levels):
            x0 = model(x, s, label)
            x = x0 + t / s * (x - x0)
        assert torch.allclose(found, model(x, levels[-1], label), rtol=0, atol=1e-6)
    assert compute == pytest.approx(k)


def valid(candidate, k=None):
    indices = candidate.indices
    falling = all(a > b for a, b in pairwise(indices))
    return falling and indices[-1] >= 1 and indices[0] <= 1000 and k in (None, len(indices))


def test_candidates_stay_sorted_unique_and_in_range():
    rng, genes = np.random.default_rng(1000), TimeSteps(6)
    drawn = [genes.random(rng) for _ in range(100)]
    drawn += [genes.mutated(c, rng) for c in drawn] + [genes.crossed(*pair, rng) for pair in pairwise(drawn)]
    assert all(valid(c, 6) for c in drawn)
    close = genes.crossed(sequence([1, 2, 3, 4, 5, 6]), sequence([2, 3, 4, 5, 6, 7]), rng)
    assert valid(close, 6)
    assert all(valid(from_levels(grid(name, 9)), 10) for name in GRIDS)
    assert uniform(4).indices == [1000, 667, 334, 1] and uniform(4).levels[0] == pytest.approx(20)


def test_compute_stays_within_budget_as_counted(gated):
    full, saved = gated.costs((1, 16, 16))
    assert len(saved) == 4 and full > sum(saved)
    rng, genes = np.random.default_rng(1000), StepsAndBlocks(4 * full, full, tuple(saved), 4)
    drawn = [genes.random(rng) for _ in range(10)]
    drawn += [genes.mutated(c, rng) for c in drawn] + [genes.crossed(*pair, rng) for pair in pairwise(drawn)]
    assert {len(c.steps) for c in drawn} >= {4, 5, 6}
    x, label = pictures(1)
    for candidate in drawn:
        assert valid(candidate)
        gated.macs = 0
        denoise = gated.along(candidate.masks)
        for s in candidate.levels:
            denoise(x, s, label)
        assert gated.macs == genes.compute(candidate) <= 4 * full


def test_all_ones_is_the_full_network_and_a_skipped_block_is_the_identity(gated):
    x, label = pictures()
    plain = EDM(UNet(), 0.6).eval()
    named = {k.replace(".block.block.", ".block."): v for k, v in gated.model.state_dict().items()}
    plain.load_state_dict(named)
    with torch.inference_mode():
        whole = plain(x, 0.7, label)
        assert torch.equal(gated.along([()])(x, 0.7, label), whole)
        assert torch.equal(gated.along([(True,) * 4])(x, 0.7, label), whole)
        cut = deepcopy(plain)
        for parameter in cut.net.middle[1].block.conv2.parameters():
            parameter.zero_()  # a residual block that adds nothing
        skipped = gated.along([(True, True, True, False)])(x, 0.7, label)
        assert torch.allclose(skipped, cut(x, 0.7, label), atol=1e-6)
        assert not torch.allclose(skipped, whole, atol=1e-3)


def test_a_skipped_block_costs_no_multiply_adds(gated):
    full, saved = gated.costs((1, 16, 16))
    conv, embed = 2 * 64 * 64 * 9 * 4 * 4, 64 * 128  # a middle block: two convolutions, one linear layer
    assert saved[2] == saved[3] == conv + embed
    gated.macs = 0
    gated.along([(False,) * 4])(*(lambda x, y: (x, 1.0, y))(*pictures(1)))
    assert gated.macs == full - sum(saved)


def test_best_fitness_never_rises():
    fitness = lambda c: float(np.abs(np.array(c.indices) - 500).sum())  # noqa: E731
    tried = evolve(TimeSteps(4), fitness, 6, 30, np.random.default_rng(1000), first=[uniform(4)])
    assert len(tried) == 180 and next(iter(tried)) == uniform(4)
    best = np.minimum.accumulate(list(tried.values()))[29::30]
    assert np.all(np.diff(best) <= 0) and best[-1] < best[0]


# The evolution.


def test_evolution_beats_random_search_and_needs_information():
    target = np.array([1000, 300, 120, 40])
    fitness = lambda c: float(np.abs(np.array(c.indices) - target).sum())  # noqa: E731
    seeds = range(1000, 1005)

    def found(seed, guide, generations, population):
        rng = np.random.default_rng(seed)
        tried = evolve(TimeSteps(4), guide or (lambda c: rng.random()), generations, population, rng)
        return fitness(min(tried, key=tried.get))

    evolved, drawn, blind = (
        np.mean([found(s, *how) for s in seeds]) for how in ((fitness, 6, 30), (fitness, 1, 180), (None, 6, 30))
    )
    assert evolved < drawn < blind


def test_evolution_goes_on_from_what_is_known():
    rng, calls = np.random.default_rng(1000), []
    known = {sequence([900, 400, 90]): 1.0, sequence([800, 300, 30]): 2.0}
    tried = evolve(TimeSteps(3), lambda c: calls.append(c) or 3.0, 2, 5, rng, tried=known)
    assert len(calls) == 10 and list(tried)[:2] == list(known) and min(tried.values()) == 1.0
    assert not set(calls) & set(known)


def test_a_converged_population_gives_way_to_random_candidates():
    """Where no mutant or crossover is news, the generation is filled up all the same."""

    class Stuck(TimeSteps):
        def mutated(self, candidate, rng):
            return candidate

        def crossed(self, a, b, rng):
            return a

    tried = evolve(Stuck(3), lambda c: 0.0, 3, 6, np.random.default_rng(1000))
    assert len(tried) == 18


def test_masks_travel_with_their_index():
    a = Candidate((Step(900, (True, False)), Step(100, (False, False))))
    b = Candidate((Step(800, (True, True)), Step(200, (False, True))))
    genes = StepsAndBlocks(1e9, 10, (1, 1), 2)
    rng, pairs = np.random.default_rng(1000), {(s.index, s.mask) for s in a.steps + b.steps}
    for _ in range(20):
        assert {(s.index, s.mask) for s in genes.crossed(a, b, rng).steps} <= pairs


# Runs.

CASES = {
    "steps": (FM8, "autodiffusion", {"nfe": [3, 4]}),
    "2m": ({**FM8, "rule": "dpmpp2m"}, "autodiffusion", {"nfe": [3]}),
    "joint": (FM16, "joint", {"nfe": [3]}),
    "uniform": (FM8, "uniform", {"nfe": [3]}),
    "handmade": (FM16, "handmade", {"nfe": [3], **HAND}),
    "random": (FM8, "random", {"nfe": [3]}),
    "control": (FM16, "uninformed", {"nfe": [3]}),
    "real": (FM8, "real", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, tiny_fm8, tiny_fm16):
    problem, method, settings = CASES[case]
    inputs = tiny_fm8 if problem["base"] == "fm8" else tiny_fm16
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu").rows
    parts = [row for seed in (1000, 1001) for row in run(problem, method, settings, [seed], inputs, "cpu").rows]
    pd.testing.assert_frame_equal(pd.DataFrame(whole), pd.DataFrame(parts), rtol=1e-3, atol=1e-5)
    assert all(row.get("compute", 0) <= row["nfe"] + 1e-9 for row in whole)


def test_joint_search_spends_as_many_evaluations_as_steps_alone(tiny_fm16):
    counts = []
    for method in ("autodiffusion", "joint"):
        traces = run(FM16, method, {"nfe": [3]}, [1000], tiny_fm16, "cpu").traces
        counts.append(max(row["evaluated"] for row in traces if row["kind"] == "fitness"))
    assert counts == [10, 10]


def test_gates_leave_the_trained_network_as_it_is(tiny_fm16):
    bench = Bench(tiny_fm16, "cpu", "fm16", "0", "ddim")
    x, label = pictures(3)
    plain = fm16.load(tiny_fm16.models["fm16"]["0"])
    with torch.inference_mode():
        assert torch.equal(bench.net.along([()])(x, 1.0, label), plain(x, 1.0, label))
    assert not Bench(tiny_fm16, "cpu", "fm16", "0", "ddim").lab.denoise.nfe


# Judging.


def rows_of(problem, method, ks, value, seeds=3, **more):
    return [
        {
            "problem": problem,
            "method": method,
            "seed": s,
            "nfe": k,
            "noise": n,
            "fd": value + 0.01 * n + 0.001 * s,
            **more,
        }
        for k in ks
        for s in range(seeds)
        for n in range(5)
    ]


def full_table(steps8=1.2, steps16=1.2, hand=1.5, joint=1.0, two_m=0.9, transfer=1.2, at_six=0.3):
    return Evidence(
        pd.DataFrame(
            rows_of("fm8", "uniform", (4, 6, 10), 2.0, fd_transfer=2.0)
            + rows_of("fm8", "autodiffusion", (4, 6, 10), steps8, fd_transfer=transfer)
            + rows_of("fm8", "handmade", (4, 6), hand)
            + rows_of("fm8", "uninformed", (4,), 4.0)
            + rows_of("fm16", "uniform", (4,), 2.0, 2)
            + rows_of("fm16", "autodiffusion", (4, 6), steps16, 2)
            + rows_of("fm16", "handmade", (4,), hand, 2)
            + rows_of("fm16", "joint", (4,), joint, 2)
            + rows_of("fm16", "joint", (6,), joint + at_six, 2)
            + rows_of("fm16", "uninformed", (4,), 4.0, 2)
            + rows_of("fm8-2m", "handmade", (4, 6), 1.0)
            + rows_of("fm8-2m", "autodiffusion", (4, 6), two_m)
        )
    )


def test_c1_is_judged_as_the_card_says():
    criteria = evidence.beats_uniform(full_table())
    assert verdict(criteria) == "replicated" and [c.n for c in criteria] == [15, 15, 15, 15, 10, 10]
    assert verdict(evidence.beats_uniform(full_table(steps16=1.5))) == "not replicated"  # better, but not by 30%
    control = evidence.beats_uniform(full_table().standing_in("uninformed", "autodiffusion"))
    assert verdict(control) == "not replicated" and len(control) == 4


def test_c2_is_judged_as_the_card_says():
    assert verdict(evidence.beats_hand_made_spacings(full_table())) == "replicated"
    assert len(evidence.beats_hand_made_spacings(full_table())) == 3
    assert verdict(evidence.beats_hand_made_spacings(full_table(hand=1.1))) == "not replicated"


def test_c3_needs_a_gain_at_one_budget_and_no_large_loss_at_the_other():
    assert verdict(evidence.joint_beats_steps_alone(full_table())) == "replicated"  # +0.2 and -0.1
    assert verdict(evidence.joint_beats_steps_alone(full_table(joint=1.25))) == "not replicated"  # no gain
    assert verdict(evidence.joint_beats_steps_alone(full_table(at_six=0.6))) == "not replicated"  # +0.2 and -0.4


def test_c4_is_judged_as_the_card_says():
    criteria = evidence.orthogonal_and_transferable(full_table())
    assert verdict(criteria) == "replicated" and len(criteria) == 5
    assert verdict(evidence.orthogonal_and_transferable(full_table(two_m=1.1))) == "not replicated"
    assert verdict(evidence.orthogonal_and_transferable(full_table(transfer=1.6))) == "not replicated"  # half the gain
