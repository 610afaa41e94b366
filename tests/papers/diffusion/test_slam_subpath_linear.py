"""Sub-path consistency against what is known of it, and the judging of its claims on made-up tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.consistency import (
    GAMMAS,
    TIMES,
    Student,
    beside,
    consistency,
    huber,
    interval,
    multistep,
    sampling_levels,
)
from papertrial.methods.noise_levels import S_MIN, grid
from papertrial.methods.samplers import VP, ddim, solve
from papertrial.models.picture_denoisers import load, training_pictures
from papertrial.models.students import distil
from papertrial.papers.diffusion.slam_subpath_linear import evidence
from papertrial.papers.diffusion.slam_subpath_linear.method import run
from papertrial.papers.diffusion.slam_subpath_linear.others import AtTheStart, two_steps_in_one

SIZES = {"n": 12, "images": 200, "batch": 8, "updates": 4, "every": 2, "tuning_seed": 1100}
FM8 = {**SIZES, "name": "fm8", "measure": "few-steps", "intervals": [10, 5], "lr": [3e-4, 1e-3]}
SKIPS = {**SIZES, "name": "fm8-skips", "measure": "skips", "intervals": [10, 5], "skip_lr": 3e-4}


@pytest.fixture(scope="module")
def teacher(tiny_fm8):
    return load(tiny_fm8.models["fm8"]["256-0"])


@pytest.fixture(scope="module")
def draw(tiny_fm8):
    return training_pictures(tiny_fm8.datasets["fashion_mnist"], 8, 200, "cpu")[0]


class Oracle(nn.Module):
    """Knows the clean pictures: eps is what was added, at every level."""

    def __init__(self, x0):
        super().__init__()
        self.clean = x0
        self.net = nn.Module()
        self.net.embed_label = nn.Embedding(11, 4)

    def forward(self, x, s, label=None):
        return self.clean


def batch(n=9):
    g = torch.Generator().manual_seed(1000)
    x0, eps = torch.randn(2, n, 1, 8, 8, dtype=torch.float64, generator=g)
    i = torch.randint(10, (n,), generator=g)
    levels = torch.from_numpy(grid("karras", 10))
    return x0, eps, levels[i], levels[i + 1], torch.rand(n, dtype=torch.float64, generator=g)


def path_loss(gamma, teacher, draw, seed=1000):
    """The loss with a fixed gamma, and what the student was given."""
    seen = []

    class Watched(Student):
        def forward(self, x, s, label=None, gamma=1.0, s_gamma=None):
            seen.append((x, s, s_gamma, gamma))
            return super().forward(x, s, label, gamma, s_gamma)

    law = GAMMAS["one"] if gamma is None else lambda u: (torch.full_like(u[0], gamma),) * 2
    loss = consistency(teacher, draw, grid("karras", 10), law, 16)
    average = Student(teacher)
    value = loss(Watched(teacher), average, 0, torch.Generator().manual_seed(seed))
    return value, seen[-1], loss


def test_gamma_1_is_consistency_distillation(teacher, draw):
    one, (x, s, s_gamma, _), _ = path_loss(1.0, teacher, draw)
    cd, (x_cd, *_), _ = path_loss(None, teacher, draw)
    assert one == cd and torch.equal(x, x_cd) and torch.equal(s, s_gamma)
    # written out: x_t and the answer one DDIM step on
    g = torch.Generator().manual_seed(1000)
    x0, label = draw(16, g)
    noise, i = torch.randn(x0.shape, generator=g), torch.randint(10, (16,), generator=g)
    levels = torch.tensor(grid("karras", 10), dtype=torch.float32)
    x_t, x_next = interval(teacher, x0, noise, levels[i], levels[i + 1], label)
    assert torch.equal(x, x_t)
    f = Student(teacher)
    by_hand = huber(f(x_t, levels[i], label) - f(x_next, levels[i + 1], label)).mean()
    assert cd.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_gamma_0_is_the_next_point_at_its_level(teacher, draw):
    _, (x, _, s_gamma, _), _ = path_loss(0.0, teacher, draw)
    g = torch.Generator().manual_seed(1000)
    x0, label = draw(16, g)
    noise, i = torch.randn(x0.shape, generator=g), torch.randint(10, (16,), generator=g)
    levels = torch.tensor(grid("karras", 10), dtype=torch.float32)
    _, x_next = interval(teacher, x0, noise, levels[i], levels[i + 1], label)
    assert torch.allclose(x, x_next, atol=1e-6)
    assert torch.equal(s_gamma, levels[i + 1])


def test_next_point_is_the_solver_s_ddim_step(teacher):
    x0, noise, *_ = (v.float() for v in batch())
    s, s_next = 5.0, 1.5
    x, x_next = interval(teacher, x0, noise, torch.full((9,), s), torch.full((9,), s_next), None)
    with torch.no_grad():
        expected = solve(teacher, x, [s, s_next], ddim, final=False)
    assert torch.allclose(x_next, expected, atol=1e-5)


def test_x0_is_recovered_for_every_gamma():
    """With the same x0 and eps at both ends, in VP coordinates as the paper writes it and in ours."""
    x0, eps, s, s_next, gamma = batch()
    lam, lam_next = -s.log(), -s_next.log()
    vp = [
        (torch.tensor([f(v) for v in lams.tolist()]).double()) for lams in (lam, lam_next) for f in (VP.alpha, VP.sigma)
    ]
    alpha, sigma, alpha_next, sigma_next = (beside(v, x0) for v in vp)
    g = beside(gamma, x0)
    x_t, x_next = alpha * x0 + sigma * eps, alpha_next * x0 + sigma_next * eps
    x_gamma = g * x_t + (1 - g) * alpha / alpha_next * x_next
    sigma_gamma = g * sigma + (1 - g) * sigma_next * alpha / alpha_next
    assert torch.allclose((x_gamma - sigma_gamma * eps) / alpha, x0, atol=1e-6)
    s_gamma = torch.lerp(s_next, s, gamma)
    ours = torch.lerp(x0 + beside(s_next, x0) * eps, x0 + beside(s, x0) * eps, g)
    assert torch.allclose(ours, x_gamma / alpha, atol=1e-10)
    assert torch.allclose(beside(s_gamma, x0), sigma_gamma / alpha, atol=1e-10)
    for kind in (Student, AtTheStart):
        student = kind(Oracle(x0 if kind is Student else x0 + beside(s_gamma - s, x0) * eps))  # so that eps is eps
        found = student.x0(ours, s, None, gamma, s_gamma)
        assert torch.allclose(found, x0, atol=1e-6)


def test_student_returns_its_input_at_s_min(teacher):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1000))
    assert torch.equal(Student(teacher)(x, S_MIN, torch.arange(5)), x)


@pytest.mark.parametrize("kind", [Student, AtTheStart])
def test_it_starts_as_its_teacher(kind, teacher):
    x0, eps, s, _, _ = (v.float() for v in batch())
    x, label, student = x0 + beside(s, x0) * eps, torch.arange(9), kind(teacher)
    gamma = torch.ones(9)
    with torch.no_grad():
        assert torch.allclose(student.x0(x, s, label, gamma, s), teacher(x, s, label), atol=1e-5)
        assert torch.allclose(student.x0(x, s, None, gamma, s), teacher(x, s, None), atol=1e-5)
        # nor does gamma matter at the start, but as soon as its embedding moves
        half = student.x0(x, s, label, 0.5 * gamma, s)
        assert torch.allclose(half, teacher(x, s, label), atol=1e-5)
        student.denoiser.net.embed_label.weight[0] += 10.0
        assert torch.allclose(student.x0(x, s, label, gamma, s), teacher(x, s, label), atol=1e-4)
        assert not torch.allclose(student.x0(x, s, label, 0.5 * gamma, s), half, atol=1e-4)


def test_target_receives_no_gradient(teacher, draw):
    student, average = Student(teacher), Student(teacher)  # the average's weights could take one
    loss = consistency(teacher, draw, grid("karras", 10), GAMMAS["uniform"], 16)
    loss(student, average, 0, torch.Generator().manual_seed(1000)).backward()
    assert all(p.grad is None for p in average.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert student.denoiser.net.embed_label.weight.grad is not None


def test_laws_of_gamma_draw_alike_and_differ_in_one_thing():
    u = torch.rand(2, 4000, generator=torch.Generator().manual_seed(1000))
    built, told = (
        torch.stack(pair) for pair in zip(*(GAMMAS[k](u) for k in ("one", "uniform", "mismatched")), strict=True)
    )
    assert (built[0] == 1).all() and torch.equal(built[1], told[1])
    assert torch.equal(built[2], built[1])  # the control's points are SLAM's
    assert abs(np.corrcoef(built[2], told[2])[0, 1]) < 0.05 and told[2].mean() == pytest.approx(0.5, abs=0.03)
    assert set(GAMMAS["ends"](u)[0].unique().tolist()) == {0.0, 1.0}


def test_training_sees_the_same_data_whatever_the_law(teacher, draw):
    seen = {}
    for law in ("one", "uniform", "mismatched"):
        drawn = seen[law] = []

        def noted(n, generator, drawn=drawn):
            drawn.append(draw(n, generator))
            return drawn[-1]

        distil(teacher, noted, grid("karras", 5), 3, 1e-3, 1000, law, batch=4)
    for a, b in (("one", "uniform"), ("one", "mismatched")):
        assert all(torch.equal(x, y) for (x, _), (y, _) in zip(seen[a], seen[b], strict=True))


def test_distillation_lowers_its_loss_and_leaves_the_teacher(teacher, draw):
    before = [p.clone() for p in teacher.parameters()]
    levels, loss = grid("karras", 5), consistency(teacher, draw, grid("karras", 5), GAMMAS["one"], 100)
    student, _ = distil(teacher, draw, levels, 100, 1e-3, 1000, batch=32)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    value = lambda f: loss(f, f, 0, torch.Generator().manual_seed(1001)).item()  # noqa: E731
    with torch.no_grad():
        assert value(student) < value(Student(teacher))


def test_sampling_starts_at_the_top_and_uses_trained_levels():
    for n in (50, 20, 10, 5):
        levels = grid("karras", n)
        for nfe in TIMES:
            at = sampling_levels(nfe, levels)
            assert len(set(at)) == nfe and at[0] == 20 and at == sorted(at, reverse=True)
            assert set(at) <= set(levels[:-1])
    generator = torch.Generator().manual_seed(1000)
    x0 = torch.randn(2000, 2, generator=generator)
    noise = iter(torch.randn(3, 2000, 2, generator=generator))
    calls = []

    def student(x, s, label):
        calls.append((x, s))
        return x0

    first = next(noise)
    assert multistep(student, [20.0, 1.5, 0.5], first, lambda: next(noise)) is x0
    assert torch.equal(calls[0][0], 20 * first) and [s for _, s in calls] == [20.0, 1.5, 0.5]
    assert (calls[2][0] - x0).std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow  # importing diffusers takes seconds
def test_multistep_is_the_peer_s_loop():
    """diffusers' LCM scheduler, boundary condition off, on the same levels."""
    schedulers = pytest.importorskip("diffusers.schedulers")
    made = schedulers.LCMScheduler(prediction_type="sample", clip_sample=False, timestep_scaling=1e6, steps_offset=0)
    made.set_timesteps(3, original_inference_steps=3)
    alphas = made.alphas_cumprod[made.timesteps].double()
    levels = ((1 - alphas) / alphas).sqrt().tolist()
    g = torch.Generator().manual_seed(1000)
    first, x0 = torch.randn(2, 4, 2, dtype=torch.float64, generator=g)
    answer = lambda x, s, label: x0 + x / (1 + s)  # noqa: E731
    sample = alphas[0].sqrt() * levels[0] * first
    g2 = torch.Generator().manual_seed(1)
    for t, a, s in zip(made.timesteps, alphas, levels, strict=True):
        out = made.step(answer(sample / a.sqrt(), s, None), t, sample, generator=g2)
        sample = out.prev_sample
    g3 = torch.Generator().manual_seed(1)
    ours = multistep(answer, levels, first, lambda: torch.randn(4, 2, dtype=torch.float64, generator=g3))
    assert torch.allclose(ours, out.denoised, atol=1e-5)


def test_progressive_target_is_where_two_steps_end():
    """For data at 0 the exact teacher's steps are exact at any length, so it is its own student."""
    x0 = torch.zeros(6, 1, 2, 2)
    loss = two_steps_in_one(Oracle(0.0), lambda n, g: (x0[:n], None), grid("karras", 4), 6)
    value = lambda w: loss(lambda x, s, label: w * x, None, 0, torch.Generator().manual_seed(1000)).item()  # noqa: E731
    assert value(0.0) < 1e-10 < 1e-5 < value(0.01)


CASES = {
    "slam": (FM8, "slam", {"gammas": "uniform", "curve": 1}),
    "control": (FM8, "mismatched", {"gammas": "mismatched", "curve": 0}),
    "ddim": (FM8, "ddim", {"measure": "teacher", "grids": ["log", "karras"]}),
    "real": (FM8, "real", {"measure": "real"}),
    "skips": (SKIPS, "cd", {"gammas": "one"}),
    "at the start": (SKIPS, "at-the-start", {"gammas": "uniform", "coefficients": "start"}),
    "progressive": (SKIPS, "progressive", {"measure": "halving"}),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, tiny_fm8):
    whole = run(*CASES[case], [1000, 1001], tiny_fm8, "cpu").rows
    parts = [run(*CASES[case], [seed], tiny_fm8, "cpu").rows for seed in (1000, 1001)]
    key = ["seed", "intervals", "updates", "nfe"]
    whole, split = (pd.DataFrame(rows).sort_values(key, ignore_index=True) for rows in (whole, parts[0] + parts[1]))
    pd.testing.assert_frame_equal(whole, split, rtol=1e-4)
    assert not whole.duplicated(key).any() and np.isfinite(whole).all().all()


def test_tuning_chooses_the_smallest_fd(tiny_fm8):
    found = run(*CASES["slam"], [1000], tiny_fm8, "cpu")
    tried = pd.DataFrame(found.traces)
    assert len(tried) == 3 and set(tried["seed"]) == {1100}  # two n at the middle rate, the other rate at the better n
    best = tried.loc[tried["fd"].idxmin()]
    assert {(r["intervals"], r["lr"]) for r in found.rows} == {(best["intervals"], best["lr"])}
    assert sorted((r["updates"], r["nfe"]) for r in found.rows) == [(2, 4), (4, 2), (4, 3), (4, 4)]


# Judging.


def cell(problem, method, seed, intervals, updates, nfe, fd):
    names = ("problem", "method", "seed", "intervals", "updates", "nfe", "fd")
    return dict(zip(names, (problem, method, seed, intervals, updates, nfe, fd), strict=True))


def c1_rows(gain):
    """gain: log FD of cd - log FD of SLAM by evaluations."""
    rows = [cell("fm8", "real", s, 0, 0, 0, 0.2) for s in range(5)]
    for s in range(5):
        for method, log_fd in (
            ("slam", dict.fromkeys(gain, 0.0)),
            ("cd", gain),
            ("mismatched", dict.fromkeys(gain, 1.0)),
        ):
            wobble = 0.001 * s * (method == "cd")
            rows += [cell("fm8", method, s, 5, 500, nfe, np.exp(e + wobble)) for nfe, e in log_fd.items()]
            rows.append(cell("fm8", method, s, 5, 25, 4, 99.0))
    return rows


def test_c1_is_judged_as_the_card_says():
    judge = lambda rows: verdict(evidence.beats_consistency_distillation(Evidence(pd.DataFrame(rows))))  # noqa: E731
    assert judge(c1_rows({2: 0.1, 3: 0.1, 4: 0.1})) == "replicated"
    assert judge(c1_rows({2: 0.5, 3: 0.1, 4: -0.1})) == "not replicated"
    assert judge(c1_rows({2: -0.1, 3: -0.1, 4: -0.1})) == "not replicated"
    control = Evidence(pd.DataFrame(c1_rows({2: 0.1, 3: 0.1, 4: 0.1}))).standing_in("mismatched", "slam")
    assert verdict(evidence.beats_consistency_distillation(control)) == "not replicated"


def c2_table(slam, cd):
    """Log FD as functions of n."""
    grids = [(s, n, m, e) for s in range(3) for n in (50, 20, 10, 5) for m, e in (("slam", slam), ("cd", cd))]
    return Evidence(
        pd.DataFrame([cell("fm8-skips", m, s, n, 250, 4, np.exp(e(n) + 0.001 * s)) for s, n, m, e in grids])
    )


def test_c2_is_judged_as_the_card_says():
    slope, c2 = (lambda b: lambda n: -b * np.log(n)), evidence.tolerates_large_skips
    assert [c.estimate for c in c2(c2_table(slope(0.2), slope(0.7)))][1] == pytest.approx(-0.5)
    assert verdict(c2(c2_table(lambda n: -3 - 0.2 * np.log(n), slope(0.7)))) == "replicated"
    assert verdict(c2(c2_table(slope(0.2), slope(0.7)))) == "not replicated"  # worse at coarse grids
    assert verdict(c2(c2_table(lambda n: -3 - 0.7 * np.log(n), slope(0.2)))) == "not replicated"  # steeper


def c3_rows(slam_at, cd_at, end=500):
    """FD is 1 from a given update on, 9 before."""
    rows = [
        cell("fm8", m, s, 5, u, 4, 1.0 if u >= at[s] else 9.0)
        for s in range(5)
        for m, at in (("slam", slam_at), ("cd", cd_at))
        for u in range(25, end + 1, 25)
    ]
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    found = evidence.updates_ratio(c3_rows([200] * 4 + [10**9], [250, 400, 250, 200, 250]))
    assert found.tolist() == pytest.approx([0.8, 0.5, 0.8, 1.0, 2.0])
    assert verdict(evidence.trains_faster(c3_rows([200] * 4 + [10**9], [250, 400, 250, 200, 250]))) == "replicated"
    assert verdict(evidence.trains_faster(c3_rows([300] * 5, [250] * 5))) == "not replicated"
    lucky = c3_rows([300] * 5, [300] * 5)
    lucky.rows.loc[(lucky.rows["method"] == "slam") & (lucky.rows["updates"] == 100), "fd"] = 0.5  # one evaluation
    assert evidence.updates_ratio(lucky).tolist() == [1.0] * 5
