"""Score distillation and its degradation path against what is known of them, and the judging on made-up tables."""

from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.plane_denoisers import load
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.disback_distillation import evidence
from papertrial.papers.diffusion.disback_distillation.distillation import (
    Effort,
    Meter,
    OneStep,
    Setup,
    backwards,
    beside,
    denoising_update,
    direction,
    distil,
    endpoint,
    forwards,
    generator_loss,
    interpolated,
    mismatch,
    record,
    target_at,
)
from papertrial.papers.diffusion.disback_distillation.lab import points, tuned
from papertrial.papers.diffusion.disback_distillation.method import RECIPES, Recipe, bench, run, trained

TUNING = {"seed": 1100, "iterations": 2, "s_init": [1.0, 2.5], "lr": [3e-4], "phi_lr": [1e-3], "phi_steps": [1, 2]}
COMMON = {"iterations": 12, "every": 4, "batch": 8, "n": 20, "final_n": 20, "recording": 3, "looks": []}
COMMON |= {"fit_updates": 1, "fit_n": 8, "share": 0.4, "M": 3, "ema": 0.9, "shown": 5, "normalised": False}
COMMON |= {"log_mean": -1.2, "log_sd": 1.5, "tuning": TUNING}
FM8 = {**COMMON, "name": "fm8", "base": "fm8", "part": "128-0", "judge": "clf8", "looks": [0, 2, 5]}
GRID = {**COMMON, "name": "grid25", "base": "edm2d", "part": "grid25", "judge": None, "reference": 20}


def draw(n, rng):
    return torch.randn((n, 2), generator=rng), None


def setup(batch=16, **changed):
    return Setup(draw, -1.0, 1.0, batch, **{"lr": 1e-3, "phi_lr": 1e-3, "phi_steps": 1, **changed})


def seed(n):
    return torch.Generator().manual_seed(n)


@pytest.fixture(scope="module")
def real():
    """Two clusters in the plane."""

    def sample(n, rng):
        sign = 2 * torch.randint(2, (n, 1), generator=rng) - 1
        return sign * torch.tensor([1.0, 0.5]) + 0.1 * torch.randn((n, 2), generator=rng)

    return sample


@pytest.fixture(scope="module")
def teacher(real):
    """A denoiser of them, trained in a second."""
    model = seeded(lambda: EDM(PlaneMLP(width=32, depth=2, features=4), 1.0), 1000)

    def loss(model, average, step, rng):
        s = (-1.0 + torch.randn(128, generator=rng)).exp()
        return model.loss(real(128, rng), s, torch.randn((128, 2), generator=rng)).mean()

    return fit(model, loss, Training(400, 3e-3, ema=0.98), 1000)[0].requires_grad_(True)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# The generator's gradient.


@pytest.mark.parametrize("normalised", [False, True])
def test_equal_scores_give_no_gradient(teacher, normalised):
    student = OneStep(teacher, 2.5)
    how = setup(normalised=normalised)
    generator_loss(student, teacher, deepcopy(teacher), how, Effort(), seed(1000)).backward()
    assert all(p.grad is None or not p.grad.any() for p in student.parameters())


class Shifted(nn.Module):
    """z + b."""

    def __init__(self, b):
        super().__init__()
        self.b = nn.Parameter(torch.tensor([b]))

    def forward(self, z, label=None):
        return z + self.b


def unit_gaussian(mean):
    """The exact denoiser of N(mean, 1)."""
    return lambda y, s, label=None: (y + beside(s, y) ** 2 * mean) / (1 + beside(s, y) ** 2)


@pytest.mark.parametrize("level", [0.1, 1.0, 5.0])
def test_gaussian_gradient_is_known(level):
    b, m = 3.0, -1.0
    student = Shifted(b)
    how = Setup(lambda n, rng: (torch.randn((n, 1), generator=rng), None), np.log(level), 0.0, 50, 0.1, 0.1, 1)
    generator_loss(student, unit_gaussian(b), unit_gaussian(m), how, Effort(), seed(1000)).backward()
    assert student.b.grad.item() == pytest.approx(level**2 / (1 + level**2) * (b - m), rel=1e-4)
    assert abs(b - 0.1 * student.b.grad.item() - m) < abs(b - m)  # a step of descent


def test_gradient_is_the_difference_of_scores_times_s_squared(teacher):
    x, s = torch.randn((5, 2), generator=seed(1000)), torch.tensor([0.1, 0.3, 1.0, 2.0, 5.0])
    d_phi, d_target = teacher(x, s).detach(), unit_gaussian(0.5)(x, s)
    scores = [(d - x) / beside(s, x) ** 2 for d in (d_phi, d_target)]
    expected = beside(s, x) ** 2 * (scores[0] - scores[1])
    assert torch.allclose(direction(x, d_phi, d_target, False), expected, atol=1e-5)


def test_normalised_gradient_is_dmd_s(teacher):
    """Each sample's is divided by its own mean distance to what the target makes of it."""
    x, d_phi, d_target = torch.randn((3, 6, 2), generator=seed(1000))
    found = direction(x, d_phi, d_target, True)
    for i in range(6):
        assert torch.allclose(found[i], (d_phi[i] - d_target[i]) / (x[i] - d_target[i]).abs().mean())
    twice = direction(2 * x, 2 * d_phi, 2 * d_target, True)
    assert torch.allclose(twice, found, atol=1e-5)  # has no scale


def test_only_the_generator_is_differentiated(teacher):
    phi, target, student = deepcopy(teacher), deepcopy(teacher), OneStep(teacher, 1.0)
    with torch.no_grad():
        phi.net.out.bias += 0.3
    generator_loss(student, phi, target, setup(), Effort(), seed(1000)).backward()
    assert all(p.grad is None for p in [*phi.parameters(), *target.parameters()])
    assert student.denoiser.net.out.weight.grad.abs().sum() > 0


def test_generator_starts_as_the_teacher_at_one_level(teacher):
    z = torch.randn((7, 2), generator=seed(1000))
    student = OneStep(teacher, 2.5)
    with torch.no_grad():
        assert torch.equal(student(z), teacher(2.5 * z, 2.5))
        student.denoiser.net.out.bias += 1.0
        assert not torch.equal(student(z), teacher(2.5 * z, 2.5))  # and has its own weights


# The degradation path.


def test_checkpoints_degrade_from_real_data_to_the_generator_s(teacher, real):
    student, M = OneStep(teacher, 5.0), 5
    path = record(teacher, student, M, 100, setup(256, phi_lr=1e-3), Effort(), 1000)
    assert len(path) == M + 1 and path[0] is teacher
    z = torch.randn((4000, 2), generator=seed(1001))
    s, eps = (-1.0 + torch.randn(4000, generator=seed(1002))).exp(), torch.randn((4000, 2), generator=seed(1003))
    with torch.no_grad():
        on = {"initial": student(z), "real": real(4000, seed(1004))}
        loss = {k: np.array([t.loss(x, s, eps).mean().item() for t in path]) for k, x in on.items()}
    assert loss["initial"][-1] < loss["initial"][0] and loss["real"][-1] > loss["real"][0]
    assert (np.diff(loss["initial"]) <= 0.02 * loss["initial"][:-1]).all()
    assert (np.diff(loss["real"]) >= -0.02 * loss["real"][:-1]).all()


def test_recording_leaves_teacher_and_generator(teacher):
    before, student = deepcopy(teacher), OneStep(teacher, 2.5)
    fresh = deepcopy(student)
    path = record(teacher, student, 2, 7, setup(), Effort(), 1000)
    assert same(teacher, before) and same(student, fresh) and not same(path[1], path[2])


def test_path_is_walked_backwards_and_then_stays_at_the_teacher():
    path = [f"T_{i}" for i in range(6)]
    assert backwards(path) == ["T_4", "T_3", "T_2", "T_1", "T_0"]
    assert forwards(path) == ["T_1", "T_2", "T_3", "T_4", "T_0"]
    assert endpoint(path) == ["T_0"]
    walked = [target_at(i, backwards(path), 240) for i in range(600)]
    assert [walked.count(t) for t in backwards(path)] == [60, 60, 60, 60, 360]
    assert walked[240:] == ["T_0"] * 360
    for order in (backwards, forwards, endpoint):
        assert order(path[:1]) == ["T_0"]
    assert backwards(path[:2]) == forwards(path[:2]) == ["T_0"]


def test_interpolated_path_shares_its_ends(teacher):
    path = record(teacher, OneStep(teacher, 2.5), 2, 10, setup(), Effort(), 1000)
    line = interpolated(path)
    assert same(line[0], path[0]) and same(line[2], path[2])
    a, middle, b = (t.net.out.weight for t in line)
    assert torch.allclose(middle, (a + b) / 2) and not torch.allclose(middle, path[1].net.out.weight)


def test_without_a_path_disback_is_diff_instruct_bit_for_bit(tiny_plane):
    b = bench(GRID, tiny_plane, "cpu")
    b.p["M"] = 0
    (one, x), (two, y) = (trained(b, RECIPES[m], 1000, False) for m in ("disback", "diff-instruct"))
    assert one == two and np.array_equal(x, y)
    b.p["M"] = 3
    assert trained(b, RECIPES["disback"], 1000, False)[0] != two


def test_control_differs_from_disback_in_the_order_alone():
    control = RECIPES["wrong-way"]
    assert control.order is forwards and RECIPES["disback"].order is backwards
    assert Recipe(control.recorded, control.through) == RECIPES["disback"] == Recipe()


# The accounts.


def test_updates_and_passes_are_counted_by_part(teacher):
    """The meter against hooks on every network's own forward pass."""
    how, meter, student = setup(phi_steps=3), Meter(), OneStep(teacher, 2.5)
    path = record(teacher, student, 5, 20, how, meter.recording, 1000)
    assert (meter.recording.updates, meter.recording.forward, meter.recording.backward) == (20, 40, 20)
    assert meter.recording.passes == meter.passes == 80
    called, phi = {"student": 0, "phi": 0, "target": 0}, deepcopy(path[-1])
    networks = {"student": [student.denoiser.net], "phi": [phi.net], "target": [t.net for t in path]}
    for name, nets in networks.items():
        for net in nets:
            net.register_forward_hook(lambda *_, name=name: called.__setitem__(name, called[name] + 1))
    budget = 80 + 4 * how.passes + how.passes - 1  # one short of a fifth iteration
    distil(student, phi, backwards(path), 2, how, meter, budget, 1000)
    assert (meter.generator.updates, meter.phi.updates) == (4, 12)
    assert called == {"student": 4 + 12, "phi": 4 + 12, "target": 4}
    assert meter.phi.forward + meter.generator.forward == sum(called.values())
    assert (meter.phi.backward, meter.generator.backward) == (12, 4)
    assert meter.passes == 80 + 4 * how.passes <= budget
    assert meter.recording.updates == 20


def test_every_method_gets_the_same_passes(tiny_plane):
    ends = {}
    for method in RECIPES:
        rows = run(GRID, method, {}, [1000], tiny_plane, "cpu").rows
        (ends[method],) = [r for r in rows if r["stage"] == "final"]
        assert (
            min(r["passes"] for r in rows) == ends[method]["recording_forward"] + 2 * ends[method]["recording_backward"]
        )
    total = ends["diff-instruct"]["passes"]
    assert ends["diff-instruct"]["iteration"] == 12 and ends["diff-instruct"]["recording_updates"] == 0
    iteration = total // 12
    assert all(total - iteration < end["passes"] <= total for end in ends.values())
    assert all(ends[m]["recording_updates"] == 3 and ends[m]["iteration"] < 12 for m in ends if m != "diff-instruct")


# Learning.


def test_distillation_moves_a_gaussian_to_its_teacher():
    """With phi exact at every step: the teacher's mean is where it ends."""
    student, m = Shifted(3.0), 1.0
    how = Setup(lambda n, rng: (torch.randn((n, 1), generator=rng), None), 0.0, 1.0, 16, 0.1, 0.1, 1)
    optimizer = torch.optim.Adam(student.parameters(), how.lr, betas=(0.0, 0.999))
    effort, rng = Effort(), seed(1000)
    for _ in range(150):
        phi = unit_gaussian(student.b.item())
        effort.descend(generator_loss(student, phi, unit_gaussian(m), how, effort, rng), optimizer)
    assert student.b.item() == pytest.approx(m, abs=0.02)


def test_average_follows_the_generator(teacher):
    seen = []
    student = OneStep(teacher, 2.5)
    watch = lambda step, now, average, target: seen.append((step, deepcopy(now), deepcopy(average)))  # noqa: E731
    average = distil(student, deepcopy(teacher), [teacher], 0, setup(ema=0.5), Meter(), 30, 1000, watch)
    assert [step for step, *_ in seen] == [0, 1, 2, 3]
    expected = seen[0][1].denoiser.net.out.weight
    for k, (_, now, mean) in enumerate(seen[1:]):
        expected = torch.lerp(expected, now.denoiser.net.out.weight, 1 - min(0.5, (1 + k) / (10 + k)))
        assert torch.allclose(mean.denoiser.net.out.weight, expected)
    assert same(average, seen[-1][2])


def test_mismatch_is_the_distance_of_denoisers_over_s_squared():
    """A target that differs from the fit by s c has mismatch |c|^2; one that doesn't has none."""
    start = seeded(lambda: EDM(PlaneMLP(width=8, depth=1, features=2), 1.0), 1000)
    student = OneStep(start, 1.0)
    c = torch.tensor([0.3, -0.4])
    shifted = lambda y, s, label: start(y, s) + beside(s, y) * c  # noqa: E731
    found = mismatch([start, shifted], start, student, setup(), 0, 64, 1000)
    assert found == pytest.approx([0.0, 0.25], abs=1e-5)
    before = deepcopy(start)
    mismatch([start], start, student, setup(), 3, 8, 1000)
    assert same(start, before)  # the fit is a copy's


def test_fit_lowers_the_denoising_loss(teacher):
    student, fit_ = OneStep(teacher, 5.0), deepcopy(teacher)
    how, rng = setup(64), seed(1000)
    optimizer = torch.optim.Adam(fit_.parameters(), how.phi_lr)
    for _ in range(60):
        denoising_update(fit_, optimizer, student, how, Effort(), rng)
    with torch.no_grad():
        x = student(draw(2000, seed(1001))[0])
        s, eps = how.noise(x, seed(1002))
        assert fit_.loss(x, s, eps).mean() < teacher.loss(x, s, eps).mean()


# The runs.


@pytest.mark.parametrize(
    ("problem", "method", "settings"),
    [
        (FM8, "disback", {"mismatch": True}),
        pytest.param(FM8, "diff-instruct", {"mismatch": True}, marks=pytest.mark.slow),
        ({**GRID, "normalised": True}, "wrong-way", {}),
    ],
)
def test_splitting_the_seeds_changes_nothing(problem, method, settings, tiny_fm8, tiny_plane):
    inputs = Inputs({}, {**tiny_fm8.models, **tiny_plane.models})
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu")
    parts = [run(problem, method, settings, [s], inputs, "cpu") for s in (1000, 1001)]
    key = ["seed", "stage", "iteration"]
    one = pd.DataFrame(whole.rows).sort_values(key, ignore_index=True)
    two = pd.DataFrame(parts[0].rows + parts[1].rows).sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    assert not one.duplicated(key).any() and whole.state.keys() == parts[0].state.keys() | parts[1].state.keys()
    assert all(np.isfinite(v) for row in whole.rows for v in row.values() if not isinstance(v, str))
    looked = one[one["stage"] == "mismatch"]
    assert sorted(set(looked["iteration"])) == (problem["looks"] if settings else [])


def test_looks_compare_the_right_networks(tiny_fm8):
    """Diff-Instruct's target is always the teacher, DisBack's from the last look on; both start the fits alike."""
    found = {}
    for method in ("disback", "diff-instruct"):
        rows = run(FM8, method, {"mismatch": True}, [1000], tiny_fm8, "cpu").rows
        found[method] = [(r["in_use"], r["to_teacher"]) for r in rows if r["stage"] == "mismatch"]
    assert [a == b for a, b in found["disback"]] == [False, False, True]
    assert [a == b for a, b in found["diff-instruct"]] == [True] * 3
    assert found["disback"][0][1] == found["diff-instruct"][0][1]  # the student is still the same


def test_tuning_is_at_equal_passes_and_takes_the_smallest(tiny_plane):
    tuned.cache_clear()
    found = run(GRID, "diff-instruct", {}, [1000], tiny_plane, "cpu")
    tried = pd.DataFrame(found.traces)
    assert len(tried) == 3 and set(tried["seed"]) == {1100}
    b = bench(GRID, tiny_plane, "cpu")
    best = tried.loc[tried["distance"].idxmin()]
    assert (b.tuned.s_init, b.tuned.phi_steps) == (best["s_init"], best["phi_steps"])
    assert run(GRID, "disback", {}, [1000], tiny_plane, "cpu").traces == found.traces


def test_samples_in_the_plane_are_judged_against_the_density(tiny_plane):
    p = {**GRID, "reference": 2000}
    lab = points(p, tiny_plane.models["edm2d"]["grid25"], {}, "cpu")
    x = torch.from_numpy(np.random.default_rng(0).uniform(-2, 2, (2000, 2)))
    assert lab.quality(x, None)["distance"] > 2 * lab.floor(1000, 2000)
    corner = lab.quality(torch.full((2000, 2), 2.0, dtype=torch.float64), None)
    assert corner["mode_tv"] == pytest.approx(24 / 25)
    assert isinstance(load(tiny_plane.models["edm2d"]["grid25"]), EDM)


# Judging.


def curve(problem, method, seed, reach, begin=0, end=5400):
    """Distance 1 from the pass count ``reach`` on, 9 before."""
    passes = np.linspace(begin, end, 25)
    cell = {"problem": problem, "method": method, "seed": seed, "stage": "curve"}
    distance = np.where(passes >= reach, 1.0, 9.0)
    pairs = enumerate(zip(passes, distance, strict=True))
    return [{**cell, "iteration": 25 * i, "passes": q, "distance": d} for i, (q, d) in pairs]


def curves(fm8, grid, di=2700):
    rows = []
    for problem, reach in (("fm8", fm8), ("grid25", grid)):
        for s in range(5):
            rows += curve(problem, "diff-instruct", s, di) + curve(problem, "disback", s, reach[s])
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = evidence.converges_faster
    found = curves([1800, 1800, 2700, 900, 10**9], [2475] * 5)
    assert evidence.passes_ratio(found, "fm8").tolist() == pytest.approx([2 / 3, 2 / 3, 1, 1 / 3, 2])
    assert verdict(judge(found)) == "replicated"
    assert verdict(judge(curves([2475] * 5, [2475] * 5))) == "not replicated"  # .92 > .8 on fm8
    assert verdict(judge(curves([1800] * 5, [2700] * 5))) == "not replicated"  # 1 on grid25
    untrained = curves([0] * 5, [0] * 5, di=0)  # what is there at the start isn't reached
    assert evidence.passes_ratio(untrained, "fm8").tolist() == [1.0] * 5
    lucky = curves([2700] * 5, [2475] * 5)
    lucky.rows.loc[(lucky.rows["method"] == "disback") & (lucky.rows["iteration"] == 100), "distance"] = 0.5
    assert evidence.passes_ratio(lucky, "fm8").tolist() == [1.0] * 5  # one good evaluation is no reach


def test_c1_target_is_from_the_same_seed_s_diff_instruct():
    found = curves([1800] * 5, [1800] * 5)
    last = found.rows["method"].eq("diff-instruct") & found.rows["iteration"].gt(25 * 21) & found.rows["seed"].eq(3)
    found.rows.loc[last, "distance"] = 0.5
    assert evidence.first_reaches(found, "fm8")["target"].tolist() == pytest.approx([1.05] * 3 + [0.525, 1.05])
    assert evidence.passes_ratio(found, "fm8")[3] == 2  # DisBack's 1 never reaches it


def test_c1_of_a_control_on_one_problem():
    rows = pd.concat([curves([1800] * 5, [1800] * 5).rows, pd.DataFrame(curve("fm8", "wrong-way", 0, 9999))])
    control = rows[~((rows["method"] == "diff-instruct") & (rows["seed"] > 0))]
    found = Evidence(control).standing_in("wrong-way", "disback")
    assert [c.passed for c in evidence.converges_faster(found)] == [False]
    with pytest.raises(LookupError):
        evidence.converges_faster(Evidence(rows[rows["method"] == "diff-instruct"]))


def ends(problem, gains):
    rows = []
    for s, gain in enumerate(gains):
        cell = {"problem": problem, "seed": s, "stage": "final", "iteration": 1}
        rows += [{**cell, "method": "disback", "distance": 1.0}]
        rows += [{**cell, "method": "diff-instruct", "distance": np.exp(gain)}]
    return pd.DataFrame(rows)


def test_c2_is_judged_as_the_card_says():
    def judge(fm8, grid):
        return verdict(evidence.ends_better(Evidence(pd.concat([ends("fm8", fm8), ends("grid25", grid)]))))

    good, mixed, bad = [0.2, 0.3, 0.1, 0.2, 0.3], [0.3, -0.2, 0.2, -0.1, 0.1], [-0.2, -0.3, -0.1, -0.2, -0.3]
    assert judge(good, mixed) == "replicated"  # on grid25 the mean decides
    assert judge(mixed, good) == "inconclusive"
    assert judge(bad, good) == judge(good, bad) == "not replicated"


def looks(in_use, to_teacher):
    """Of DisBack, by seed; Diff-Instruct's are 1."""
    rows = []
    for s, (a, b) in enumerate(zip(in_use, to_teacher, strict=True)):
        for i in (0, 25, 50, 75, 100, 240):
            cell = {"problem": "fm8", "seed": s, "stage": "mismatch", "iteration": i}
            rows.append({**cell, "method": "diff-instruct", "in_use": 1.0, "to_teacher": 1.0})
            last = i == 240  # what is in use then doesn't count, nor the teacher earlier
            rows.append({**cell, "method": "disback", "in_use": 99 if last else a, "to_teacher": b if last else 99})
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = lambda *table: verdict(evidence.mismatch_is_reduced(looks(*table)))  # noqa: E731
    assert judge([0.1, 0.5, 0.2, 0.3, 0.9], [0.5, 1.4, 0.9, 1.0, 0.8]) == "replicated"
    assert judge([0.1, 0.6, 0.2, 0.3, 0.9], [0.5] * 5) == "not replicated"  # 3 of 5
    assert judge([0.1] * 5, [1.1, 1.0, 1.0, 1.0, 1.0]) == "not replicated"


def test_c4_is_judged_as_the_card_says():
    judge = lambda gains: verdict(  # noqa: E731
        evidence.generalises_to_normalised_gradients(Evidence(ends("fm8-normalised", gains)))
    )
    assert judge([0.1, 0.01, 0.3]) == "replicated"
    assert judge([0.5, 0.5, -0.01]) == "not replicated"
