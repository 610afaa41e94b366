"""optimistic-mirror-descent: players, their regret, and how it is judged."""

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.papers.convex.optimistic_mirror_descent import evidence
from papertrial.papers.convex.optimistic_mirror_descent.method import (
    METHODS,
    STEPS,
    adagrad_norm,
    ball_in_metric,
    ogd,
    optimistic_ftrl,
    optimistic_newton,
    optimistic_omd,
    play,
    run,
    stale_omd,
)
from papertrial.testbeds.online_convex import Linear, ball, rotating


def against(player, gradients):
    """The points that a player plays against fixed linear losses, (T + 1, ...)."""
    points = [next(player)]
    points += [player.send(g) for g in gradients]
    return np.array(points)


def losses(T=200, d=3, seed=0):
    return np.random.default_rng(seed).standard_normal((T, d))


FREE = 1e12  # a ball that is never left


# ---- what must hold


def test_without_a_guess_it_is_gradient_descent():
    g, eta = losses(), 0.07
    ours = against(optimistic_omd(np.zeros(3), 1.0, lambda t, V: eta, guess=np.zeros_like), g)
    plain = against(ogd(np.zeros(3), 1.0, lambda t: eta), g)
    np.testing.assert_array_equal(ours, plain)


def test_with_a_perfect_guess_the_regret_is_a_constant():
    """Constant linear losses, M_t = grad f_t: Reg_T <= D^2 / (2 eta_1), however long the game."""
    g, eta, radius = np.array([0.6, -0.8]), 0.02, 1.0
    x = against(optimistic_omd(np.zeros(2), radius, lambda t, V: eta, guess=lambda last: g), [g] * 5000)[:-1]
    regret = (x @ g).sum() + 5000 * radius * np.linalg.norm(g)
    assert 0 < regret <= (2 * radius) ** 2 / (2 * eta)


def test_a_fixed_noiseless_loss_costs_a_constant():
    """Vbar stops growing after the first gradient, so eta is constant from round 2 on, and Reg_T <= 2 D G."""
    steps = []

    def step(t, V):
        eta = 2 / np.sqrt(4 + V)
        steps.append(float(eta))
        return eta

    g = np.array([1.0, 0.0])
    x = against(optimistic_omd(np.zeros(2), 1.0, step), [g] * 1000)[:-1]
    assert len(set(steps[1:])) == 1 and steps[1] < steps[0]
    assert (x @ g).sum() + 1000 <= 2 * 2 * 1


def test_the_identity_of_unconstrained_gradient_descent():
    g, eta, u = losses(), 0.03, np.array([1.0, -2.0, 0.5])
    x = against(ogd(np.zeros(3), FREE, lambda t: eta), g)
    left = (g * (x[:-1] - u)).sum()
    right = eta / 2 * (g**2).sum() + (((x[0] - u) ** 2).sum() - ((x[-1] - u) ** 2).sum()) / (2 * eta)
    assert left == pytest.approx(right, abs=1e-9)


def test_noise_and_movement_of_the_rotating_losses_match_simulation():
    stream = rotating(range(40), 500, [2, 5, 20], [0.1, 1])
    sigma2, Sigma2 = stream.variation()
    x = np.zeros((*stream.lanes, 2))
    noise = np.array([stream.gradient(t, x) - stream.means[t - 1] for t in range(1, 501)])
    np.testing.assert_allclose((noise**2).sum(axis=(0, -1)).mean(axis=-1), sigma2.mean(axis=-1), rtol=0.03)
    for i, P in enumerate((2, 5, 20)):
        assert Sigma2[i, 0, 0] == pytest.approx(499 * 4 * np.sin(np.pi / P) ** 2)


# ---- more mathematics


def test_the_regret_bound_of_optimistic_descent():
    """Reg_T <= D^2 / (2 eta) + (eta/2) sum ||g_t - M_t||^2 for any fixed step."""
    g, eta = losses(500), 0.05
    x = against(optimistic_omd(np.zeros(3), 1.0, lambda t, V: eta), g)[:-1]
    missed = np.diff(g, axis=0, prepend=0)
    regret = (x * g).sum() + np.linalg.norm(g.sum(axis=0))
    assert regret <= 4 / (2 * eta) + eta / 2 * (missed**2).sum()


def test_unconstrained_optimistic_descent_and_ftrl_agree_for_a_fixed_step():
    g = losses()
    omd = against(optimistic_omd(np.zeros(3), FREE, lambda t, V: 0.1), g)
    ftrl = against(optimistic_ftrl(np.zeros(3), FREE, lambda t, V: 0.1), g)
    np.testing.assert_allclose(omd, ftrl, atol=1e-12)
    np.testing.assert_allclose(omd[5], -0.1 * (g[:5].sum(axis=0) + g[4]))


def test_the_stale_guess_has_the_other_sign():
    g = losses()
    np.testing.assert_allclose(
        against(stale_omd(np.zeros(3), FREE, lambda t, V: 0.1), g)[5], -0.1 * (g[:5].sum(axis=0) - g[4])
    )


def test_adagrad_norm_takes_its_first_step_across_the_ball():
    x = against(adagrad_norm(np.zeros(2), 3.0), [np.array([0.0, 5.0]), np.array([0.0, 5.0])])
    np.testing.assert_allclose(x[1], [0, -3])


def test_newton_steps_are_those_of_the_metric():
    g, beta = losses(5), 0.5
    x = against(optimistic_newton(np.zeros(3), FREE, beta), g)
    A, xhat = np.eye(3), np.zeros(3)
    for t in range(5):
        xhat = xhat - np.linalg.solve(A, g[t])
        A = A + beta / 2 * np.outer(g[t], g[t])
        np.testing.assert_allclose(x[t + 1], xhat - np.linalg.solve(A, g[t]), atol=1e-10)


def test_projection_in_a_metric_is_the_nearest_point():
    rng = np.random.default_rng(0)
    B = rng.standard_normal((4, 4))
    A, y = B @ B.T + 0.1 * np.eye(4), 3 * rng.standard_normal(4)
    x = ball_in_metric(y, A, 1.0)
    assert np.linalg.norm(x) == pytest.approx(1)
    others = ball(rng.standard_normal((500, 4)), 1.0)
    distance = lambda p: np.einsum("...i,ij,...j->...", p - y, A, p - y)  # noqa: E731
    assert (distance(others) >= distance(x) - 1e-9).all()
    np.testing.assert_array_equal(ball_in_metric(0.1 * x, A, 1.0), 0.1 * x)


def test_step_rules():
    stream = Linear(np.ones((9, 1, 2)), np.zeros((9, 1, 2)), np.ones((9, 1, 1)), G=3.0, L=0.5, radius=2.0)
    assert STEPS["convex"](stream)(1, 7.0) == pytest.approx(4 / np.sqrt(10 * 16 * 0.25 + 4 * 9 + 7))
    assert STEPS["nearly-free"](stream)(1, 7.0) == pytest.approx(4 / np.sqrt(7.1))


def test_factors_are_games_of_their_own():
    stream = rotating([0, 1], 50, [5], [0.3])
    one = lambda c: list(play(stream, METHODS["ogd"](stream, None, factors=[c]), [50]))[0]  # noqa: E731, RUF015
    three = list(play(stream, METHODS["ogd"](stream, None, factors=[0.5, 1, 2]), [50]))[0]  # noqa: RUF015
    np.testing.assert_array_equal(three, np.concatenate([one(0.5), one(1), one(2)]))


# ---- runs

SMALL = [
    {"name": "r", "game": "rotation", "step": "convex", "T": 60, "periods": [2, 20], "sigmas": [0, 1]},
    {"name": "f", "game": "fading", "step": "nearly-free", "power": -0.5, "horizons": [50, 100]},
    {"name": "i", "game": "indefinite", "step": "convex", "T": 60, "scales": [0.1, 1]},
    {
        "name": "b", "game": "targets", "step": "strongly-convex", "T": 100, "noise": "burst", "sd": 10,
        "rounds": [0.2, 1, 2],
    },
    {"name": "c", "game": "cancer", "step": "convex", "radius": 2},
]  # fmt: skip


def inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    return Inputs(datasets={"breast_cancer": {"x": x, "y": (x[:, 0] > 0).astype(int)}})


@pytest.mark.parametrize("problem", SMALL, ids=lambda p: p["name"])
@pytest.mark.parametrize("method", ["omd", "ogd", "adagrad", "oftrl", "newton"])
def test_splitting_the_seeds_changes_nothing(problem, method):
    if (method == "newton") != (problem["game"] == "cancer"):
        return  # the only problem that Newton plays on, and the slowest for all
    settings = {"factors": [0.5, 1]} if method == "ogd" else {}
    found = lambda seeds: pd.DataFrame(run(problem, method, settings, seeds, inputs(), "cpu").rows)  # noqa: E731
    sort = lambda t: t.sort_values([c for c in t if c not in ("regret", "rho")], ignore_index=True)  # noqa: E731
    whole, parts = sort(found([0, 1, 5])), sort(pd.concat([found([5]), found([0, 1])]))
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-9)
    assert np.isfinite(whole.select_dtypes("number").to_numpy()).all()


def test_a_control_puts_its_own_noise_in_place():
    f = SMALL[1]
    even = run(f, "omd-even-noise", {"instead": {"power": 0}}, [0], inputs(), "cpu").rows
    assert even == run({**f, "power": 0}, "omd", {}, [0], inputs(), "cpu").rows
    assert even != run(f, "omd", {}, [0], inputs(), "cpu").rows


# ---- judging


def table(rho=0.5, gain=100.0, rival=0.4, growth=0.25, share=0.6, worst=0.5, late=0.01, curve=1.0, seeds=10):
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for P in (2, 20, 100):
            for sigma in (0, 0.1, 1, 3):
                row = {"problem": "rotating", "seed": seed, "period": P, "sigma": sigma, "T": 100}
                rows.append(row | {"method": "omd", "regret": 10 + rng.standard_normal(), "rho": rho})
                for method in ("ogd", "ogd-constant", "adagrad"):
                    rows.append(row | {"method": method, "regret": 10 + gain, "rho": 2.0, "rho@0.5": rival})
        for T in (10**3, 10**4, 10**5):
            regret = T**growth * np.exp(0.05 * rng.standard_normal())
            rows.append({"problem": "fading", "method": "omd", "seed": seed, "T": T, "regret": regret})
        for s in (0.1, 1):
            rows.append({"problem": "indefinite", "method": "omd", "seed": seed, "scale": s, "indefinite": share})
            rows[-1]["rho"] = worst
        for t, regret in ((20, 100.0), (100, 100 * (1 + late))):
            rows.append({"problem": "burst", "method": "omd", "seed": seed, "t": t, "regret": regret})
        for t in (1, 10, 100):
            rows.append({"problem": "even", "method": "omd", "seed": seed, "t": t, "regret": np.log(t) ** curve})
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("one_rule_for_all_regimes", {}, "replicated"),
    ("one_rule_for_all_regimes", {"rho": 2.5, "rival": 3}, "not replicated"),
    ("one_rule_for_all_regimes", {"gain": -5}, "not replicated"),
    ("one_rule_for_all_regimes", {"rival": 0.1}, "not replicated"),
    ("rate_follows_the_variance", {}, "replicated"),
    ("rate_follows_the_variance", {"growth": 0.5}, "not replicated"),
    ("convex_in_the_mean_only", {}, "replicated"),
    ("convex_in_the_mean_only", {"share": 0.4}, "not replicated"),
    ("convex_in_the_mean_only", {"worst": 3}, "not replicated"),
    ("a_burst_is_paid_once", {}, "replicated"),
    ("a_burst_is_paid_once", {"late": 0.2}, "not replicated"),
    ("a_burst_is_paid_once", {"curve": 9}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_fifteen_cells_of_the_grid_are_benign():
    grid = [(P, sigma) for P in (2, 5, 20, 100, 500, 2500) for sigma in (0, 0.01, 0.1, 0.3, 1, 3)]
    assert sum(evidence.benign(cell) for cell in grid) == 15


def test_a_control_on_the_burst_alone_is_judged_on_it():
    rows = table().rows
    control = rows[rows["problem"] == "burst"].assign(method="omd-endless-burst")
    standing = Evidence(pd.concat([rows, control])).standing_in("omd-endless-burst", "omd")
    assert len(evidence.a_burst_is_paid_once(standing)) == 1
    with pytest.raises(LookupError):
        evidence.a_burst_is_paid_once(Evidence(rows[rows["problem"] == "fading"]))
