"""BDIA's update and inversion against what is known of them, and the judging of its claims on made-up tables."""

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.verdicts import verdict
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VE, VP, Counted, Flow, ddim, dpm3, heun, initial_noise, solve
from papertrial.papers.diffusion.bdia_inversion import evidence
from papertrial.papers.diffusion.bdia_inversion.method import bdia, by_bdia, by_ddim, by_edict, run, trapezoid
from papertrial.testbeds.mixtures import Mixture, density
from papertrial.testbeds.samplequality import ode_error

DATA = Mixture([[0.0]], 1.0)  # N(0, 1): its flow is known


def start(n, path=VP, seed=1000):
    return path.sigma(-np.log(20.0)) * initial_noise([seed], n, (2,), torch.float64)


def test_gamma_0_is_ddim():
    both = [solve(density("ring8"), start(50), grid("time", 20), rule, path=VP) for rule in (bdia(0.0), ddim)]
    assert torch.allclose(*both, rtol=0, atol=1e-12)


def test_update_is_the_paper_s():
    """z_{i-1} written out with its increments."""
    target, g, (s2, s1, s0) = density("ring8"), 0.7, (3.0, 2.0, 1.0)
    flow, z2 = Flow(target, path=VP), start(5)

    def delta(z, s, s_t):
        lam, lam_t = -np.log(s), -np.log(s_t)
        e = target.eps(z, VP.alpha(lam), VP.sigma(lam))
        return VP.alpha(lam_t) * (z - VP.sigma(lam) * e) / VP.alpha(lam) + VP.sigma(lam_t) * e - z

    z1 = z2 + delta(z2, s2, s1)
    z0 = z2 - (1 - g) * (z2 - z1) - g * delta(z1, s1, s2) + delta(z1, s1, s0)
    found = solve(target, z2, [s2, s1, s0], bdia(g), path=VP, final=False)
    assert torch.allclose(found, z0, rtol=0, atol=1e-13)
    memory = {"z": (-np.log(s0), z0)}  # and solved for z_{i+1}: one evaluation, in z_i
    assert torch.allclose(bdia(1 / g)(flow, z1, -np.log(s1), -np.log(s2), memory), z2, rtol=0, atol=1e-12)


def there_and_back(inverter, steps, n=20, seed=1000):
    target, levels = Counted(density("ring8")), grid("time", steps)
    flow, z0 = Flow(target, path=VP), density("ring8").sample(n, torch.Generator().manual_seed(seed))
    latent = inverter.up(flow, z0, levels[::-1])
    back = inverter.down(flow, latent, levels)
    return float((back - z0).abs().max()), float(latent[0].abs().max()), target.nfe


def test_round_trip_is_exact_with_gamma_1_and_rounding_grows_with_gamma_half():
    error, size, nfe = there_and_back(by_bdia(1.0), 50)
    assert error <= 1e-9 and size < 10 and nfe == 99
    error_half, size_half, _ = there_and_back(by_bdia(0.5), 50)
    assert 1e-12 < error_half < 1e-3 and size_half > 1e6  # up to 2^50 times the rounding; the latent isn't noise
    assert error < 1e-3 * error_half


def test_edict_is_exact_at_twice_the_cost_and_ddim_is_not():
    error, _, nfe = there_and_back(by_edict(0.93), 20)
    assert error <= 1e-9 and nfe == 80
    error, _, nfe = there_and_back(by_ddim(), 20)
    assert error > 1e-3 and nfe == 40


@pytest.mark.parametrize(("gamma", "factor"), [(0.0, 0.839853), (0.5, 0.944339), (1.0, 1.002274)])
def test_known_factor_on_standard_normal_data_in_vp(gamma, factor):
    levels, x = np.exp(-np.linspace(-3, 4, 11)), torch.ones(1, 1, dtype=torch.float64)
    found = solve(DATA, x, levels, bdia(gamma), path=VP, final=False).item()
    assert found == pytest.approx(factor, abs=5e-7)  # exact: 1


@pytest.mark.parametrize(("gamma", "factor"), [(0.5, 0.0499330), (1.0, 0.0587186)])
def test_same_rule_in_ve_is_another_method(gamma, factor):
    x = torch.ones(1, 1, dtype=torch.float64)
    found = solve(DATA, x, grid("log", 10), bdia(gamma), path=VE, final=False).item()
    assert found == pytest.approx(factor, abs=5e-8)  # exact: .0499476


def ode_errors(n, steps, reference_steps):
    target, noise = density("ring8"), start(n)
    truth = solve(target, noise, grid("log", reference_steps), dpm3, path=VP, final=False).numpy()

    def error(gamma, m):
        found = solve(target, noise, grid("log", m), bdia(gamma), path=VP, final=False)
        return ode_error(found.numpy(), truth)["ode_median"]

    return {g: [error(g, m) for m in steps] for g in (0.0, 0.5, 1.0)}


@pytest.mark.parametrize(
    ("n", "reference_steps"), [(100, 150), pytest.param(1000, 400, marks=pytest.mark.slow)], ids=["few", "protocol"]
)
def test_only_gamma_1_is_of_second_order(n, reference_steps):
    found = ode_errors(n, (60, 120), reference_steps)
    slope = {g: np.log2(a / b) for g, (a, b) in found.items()}
    assert slope[1.0] >= 1.8
    assert 0.9 <= slope[0.0] <= 1.15 and 0.9 <= slope[0.5] <= 1.15
    ratio = np.array(found[0.5]) / found[0.0]  # (1 - g)/(1 + g) = 1/3
    assert np.allclose(ratio, 0.33, rtol=0, atol=0.03)


def test_bdia_edm_is_heun_but_for_gamma():
    target, levels, x = density("ring8"), grid("karras", 8), 20 * start(20)
    plain = solve(target, x, levels, heun)
    assert torch.allclose(solve(target, x, levels, bdia(0.0, trapezoid)), plain, rtol=0, atol=1e-12)
    counted = Counted(target)
    assert not torch.allclose(solve(counted, x, levels, bdia(0.1, trapezoid)), plain, atol=1e-3)
    assert counted.nfe == 2 * 8 + 1


def test_sharing_the_slope_of_the_step_before_would_leave_heun():
    """Why both increments hold the slope at z_i."""

    def stale(gamma):
        def step(flow, z, lam, lam_t, memory):
            e = trapezoid(flow, z, lam, lam_t)
            before, memory["z"] = memory.get("z"), (lam, z, e)
            there = flow.move(z, lam, lam_t, e)
            if before is None:
                return there
            lam_s, z_s, e_s = before
            return there + gamma * (z_s - flow.move(z, lam, lam_s, e_s))

        return step

    target, levels, x = density("ring8"), grid("karras", 8), 20 * start(20)
    assert torch.allclose(solve(target, x, levels, stale(0.2)), solve(target, x, levels, heun), rtol=0, atol=1e-10)


TRIP = {"name": "roundtrip", "measure": "round-trip", "n": 3, "steps": [4]}
SAMPLE = {"name": "fm16-10", "measure": "sampling", "n": 8, "steps": 5}
PLANE = {"name": "heun-ring8", "measure": "second-order", "net": "edm2d", "part": "ring8", "n": 30, "steps": [2, 3]}
PICTURE = {"name": "heun-fm8", "measure": "second-order", "net": "fm8", "part": "256-0", "n": 8, "steps": [2]}
EDIT = {"name": "editing", "measure": "editing", "n": 2, "steps": 4, "pairs": [[2, 4], [6, 3]], "shown": 1}
CASES = {
    "bdia there and back": (TRIP, "bdia", {}, "tiny_fm16"),
    "noised there and back": (TRIP, "noised", {"noise": 0.02}, "tiny_fm16"),
    "control there and back": (TRIP, "no-history", {}, "tiny_fm16"),
    "edict there and back": (TRIP, "edict", {"mixing": 0.93}, "tiny_fm16"),
    "bdia samples": (SAMPLE, "bdia", {"gamma": 0.5, "grid": "time"}, "tiny_fm16"),
    "control's samples": (SAMPLE, "negative", {"grid": "time"}, "tiny_fm16"),
    "2m samples": (SAMPLE, "dpmpp-2m", {"grid": "karras"}, "tiny_fm16"),
    "heun in the plane": (PLANE, "heun", {}, "tiny_plane"),
    "bdia-edm of pictures": (PICTURE, "bdia", {"gamma": 0.1}, "tiny_fm8"),
    "editing": (EDIT, "ddim", {}, "tiny_fm16"),
}


@pytest.mark.parametrize("case", CASES)
def test_splitting_the_seeds_changes_nothing(case, request):
    problem, method, settings, fixture = CASES[case]
    inputs = request.getfixturevalue(fixture)
    whole = run(problem, method, settings, [1000, 1001], inputs, "cpu").rows
    parts = [run(problem, method, settings, [seed], inputs, "cpu").rows for seed in (1000, 1001)]
    pd.testing.assert_frame_equal(pd.DataFrame(whole), pd.DataFrame(parts[0] + parts[1]), rtol=1e-4, atol=1e-6)
    key = [k for k in ("seed", "steps", "source", "picture") if k in whole[0]]
    assert not pd.DataFrame(whole).duplicated(key).any()


def test_evaluations_in_the_rows_are_what_was_counted(tiny_fm16, tiny_plane):
    nfe = {m: run(TRIP, m, {"mixing": 0.9}, [1000], tiny_fm16, "cpu").rows[0]["nfe"] for m in ("bdia", "ddim", "edict")}
    assert nfe == {"bdia": 7, "ddim": 8, "edict": 16}
    assert run(SAMPLE, "bdia", {"gamma": 1.0, "grid": "time"}, [1000], tiny_fm16, "cpu").rows[0]["nfe"] == 6
    assert [row["nfe"] for row in run(PLANE, "heun", {}, [1000], tiny_plane, "cpu").rows] == [5, 7]


def test_a_tuning_seed_needs_no_reference(tiny_fm16):
    (row,) = run(SAMPLE, "ddim", {"grid": "time"}, [100], tiny_fm16, "cpu").rows
    assert "fd" in row and "ode_rms" not in row


@pytest.mark.slow  # importing diffusers takes seconds
@pytest.mark.parametrize("up", [False, True], ids=["sampling", "inversion"])
def test_ddim_agrees_with_diffusers(up):
    """On DDPM's 1000 indices, sampling and inversion."""
    schedulers = pytest.importorskip("diffusers.schedulers")
    kind = schedulers.DDIMInverseScheduler if up else schedulers.DDIMScheduler
    peer = kind(beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading")
    peer.alphas_cumprod = peer.alphas_cumprod.double()
    for end in ("initial_alpha_cumprod", "final_alpha_cumprod"):
        if hasattr(peer, end):
            setattr(peer, end, peer.alphas_cumprod[0])
    peer.set_timesteps(10)
    target, times = density("ring8"), [int(t) for t in peer.timesteps]
    s = ((1 - peer.alphas_cumprod) / peer.alphas_cumprod).sqrt()
    stride = 100 if up else -100
    steps = [(t, t + stride) for t in times[:-1]]
    if up:  # diffusers names a step by where it arrives
        times, steps = times[1:], steps
    x = ours = start(20)
    for named, (t, to) in zip(times, steps, strict=up):
        lam, lam_t = -float(s[t].log()), -float(s[to].log())
        e = target.eps(x, VP.alpha(lam), VP.sigma(lam))
        x = peer.step(e, named, x).prev_sample
        ours = ddim(Flow(target, path=VP), ours, lam, lam_t, {})
    assert torch.allclose(ours, x, rtol=0, atol=1e-6)


# Judging.


def trip_table(ratio=1e-4, sd=1.0, nfe=39):
    rows = []
    for steps in (20, 50):
        for method, error, spread, evaluations in (
            ("bdia", 0.05 * ratio, sd, nfe),
            ("ddim", 0.05, 0.9, 40),
            ("edict", 1e-6, 0.9, 80),
            ("half", 1e-5, 4000.0, nfe),
            ("no-history", 0.04, 1.0, nfe),
        ):
            row = {"round_trip": error, "latent_sd": spread, "nfe": evaluations}
            rows.append({"problem": "roundtrip", "method": method, "seed": 0, "steps": steps, **row})
    return Evidence(pd.DataFrame(rows))


def test_c1_is_judged_as_the_card_says():
    judge = evidence.exact_at_the_cost_of_ddim
    good = trip_table()
    assert verdict(judge(good)) == "replicated" and len(judge(good)) == 10
    for control in ("half", "no-history"):
        assert verdict(judge(good.standing_in(control, "bdia"))) == "not replicated"
    for bad in (trip_table(ratio=0.02), trip_table(sd=0.7), trip_table(sd=1.3), trip_table(nfe=45)):
        assert verdict(judge(bad)) == "not replicated"


def samples_table(ten, twenty):
    rows = []
    for problem, fd in (("fm16-10", ten), ("fm16-20", twenty)):
        for method, value in (("ddim", 4.0), ("bdia", fd), ("negative", 6.0)):
            if (problem, method) != ("fm16-20", "negative"):
                rows += [
                    {"problem": problem, "method": method, "seed": s, "steps": 10, "fd": value + 0.01 * s}
                    for s in range(5)
                ]
    return Evidence(pd.DataFrame(rows))


def test_c2_is_judged_as_the_card_says():
    judge = evidence.better_than_ddim
    good = samples_table(3.5, 3.9)
    assert verdict(judge(good)) == "replicated" and len(judge(good)) == 3
    assert verdict(judge(good.standing_in("negative", "bdia"))) == "not replicated"
    assert len(judge(good.standing_in("negative", "bdia"))) == 2
    assert verdict(judge(samples_table(3.7, 3.9))) == "not replicated"  # a ratio of .925
    assert verdict(judge(samples_table(3.5, 4.1))) == "not replicated"


def heun_table(gains):
    rows = []
    for (net, metric), gain in zip(evidence.NETS.items(), gains, strict=True):
        for method in ("heun", "bdia"):
            for seed in range(5):
                value = 1.0 if method == "heun" else 1 - gain - 0.01 * (seed - 2)
                rows += [
                    {"problem": net, "method": method, "seed": seed, "steps": n, metric: value} for n in (6, 8, 10)
                ]
    return Evidence(pd.DataFrame(rows))


def test_c3_is_judged_as_the_card_says():
    judge = evidence.better_than_heun
    assert verdict(judge(heun_table([0.1, 0.2, 0.05, 0.002]))) == "replicated"  # the last one's interval holds 0
    assert verdict(judge(heun_table([0.1, 0.2, 0.05, -0.002]))) == "not replicated"
    assert verdict(judge(heun_table([0.1, 0.2, 0.002, 0.002]))) == "inconclusive"
    assert np.allclose(evidence.heun_gain(heun_table([0.1] * 4), "heun-fm8").mean(), 0.1)


def edit_table(closer, edited):
    rows = []
    for method, distance, rate in (("ddim", 0.3, 8), ("bdia", 0.3 - closer, edited)):
        for source, target in ((2, 4), (6, 3), (7, 9)):
            for i in range(10):
                row = {"problem": "editing", "method": method, "seed": 0, "source": source, "target": target}
                rows.append({**row, "picture": i, "edited": int(i < rate), "distance": distance + 0.001 * i * closer})
    return Evidence(pd.DataFrame(rows))


def test_c4_is_judged_as_the_card_says():
    judge = evidence.keeps_the_content
    assert verdict(judge(edit_table(0.01, 8))) == "replicated"
    assert judge(edit_table(0.01, 8))[0].n == 30
    assert verdict(judge(edit_table(0.01, 7))) == "not replicated"  # edits 10% less
    assert verdict(judge(edit_table(-0.01, 9))) == "not replicated"


def test_nothing_is_judged_without_the_method():
    with pytest.raises((LookupError, KeyError)):
        evidence.exact_at_the_cost_of_ddim(trip_table().standing_in("absent", "bdia"))
    with pytest.raises((LookupError, KeyError)):
        evidence.better_than_ddim(samples_table(3.5, 3.9).standing_in("absent", "bdia"))
