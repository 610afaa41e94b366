"""streaming-bandits: policies on a stream of arms."""

import math

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.papers.decisions.streaming_bandits import evidence
from papertrial.papers.decisions.streaming_bandits.method import (
    POLICIES,
    Policy,
    keep_best,
    king,
    king_batches,
    play,
    run,
    tower,
    tower_log,
)
from papertrial.testbeds.bandits import ForgottenArm

SETTINGS = {
    "ue": {"constant": 1},
    "ue-tuned": {"constant": 0.5},
    "tower": {"capacity": 4},
    "tower-log": {"capacity": 6},
}
UNIFORM = {"name": "uniform", "family": "drawn", "means": {"a": 1, "b": 1}, "sizes": [[40, 40_000], [7, 70_000]]}
HARD = {"name": "hard", "family": "hard", "means": {"gaps": [0.5, 2]}, "sizes": [[30, 30_000]]}


def policy(method, K, T):
    return POLICIES[method](K, T, **SETTINGS.get(method, {}))


def rngs(n):
    return [np.random.default_rng(i) for i in range(n)]


def played(method, p, T):
    p = np.atleast_2d(np.asarray(p, dtype=float))
    return play(policy(method, p.shape[1], T), p, T, rngs(len(p)))


def log_star(K):
    """How often log2 must be taken to come down to 1."""
    return 0 if K <= 1 else 1 + log_star(math.log2(K))


# ---- what must hold


@pytest.mark.parametrize("K", [2, 5, 50, 600])
def test_stored_arms(K):
    p = np.random.default_rng(K).random((3, K))
    for method in POLICIES:
        peak = played(method, p, 1000 * K).peak
        if method == "tower":
            assert (peak <= log_star(K) + 3).all()
        elif method == "tower-log":
            assert (peak <= max(1, math.log(K))).all()
        else:
            assert (peak == 1).all()


@pytest.mark.parametrize("K", [2, 17, 500, 5000, 10**5, 10**9])
def test_tower_has_log_star_levels_that_hold_all_arms(K):
    assert tower(K, 1000 * K, 4).slots <= log_star(K) + 1
    assert 6 ** tower_log(K, 1000 * K, 6).slots >= K or math.e**2 > K


def test_reading_a_dropped_arm_raises():
    def greedy_hindsight(stream):
        for arm in stream:
            stream.store(0, arm, np.ones(stream.lanes, dtype=bool))
        return np.zeros(stream.lanes, dtype=int)  # the first arm is long gone

    with pytest.raises(ForgottenArm):
        play(Policy([5], 1, greedy_hindsight), np.full((2, 3), 0.5), 100, rngs(2))


@pytest.mark.parametrize("method", POLICIES)
def test_pulls_sum_to_the_horizon_and_equal_or_single_arms_cost_nothing(method):
    for K, T in [(1, 50), (2, 999), (33, 33_000), (60, 600)]:  # the last is too short to commit after exploring
        stream = played(method, np.random.default_rng(K).random((2, K)), T)
        assert (stream.ledger.pulls == T).all() and (stream.explored <= T).all()
        assert (stream.ledger.regret >= 0).all() and (stream.ledger.regret <= T).all()
        assert (played(method, np.full((2, K), 0.37), T).ledger.regret == 0).all()
    assert (played(method, np.random.default_rng(1).random((4, 1)), 500).ledger.regret == 0).all()


def test_regret_of_uniform_exploration_on_two_arms_is_the_closed_form():
    from scipy.stats import binom

    seeds, T, p = 20_000, 2000, (0.45, 0.5)
    n = policy("ue", 2, T).batches[0]
    regret = played("ue", np.tile(p, (seeds, 1)), T).ledger.regret
    x = np.arange(n + 1)
    first_is_kept = (binom.pmf(x, n, p[1]) * binom.sf(x - 1, n, p[0])).sum()  # ties go to the earlier arm
    expected = 0.05 * (n + (T - 2 * n) * first_is_kept)
    assert abs(regret.mean() - expected) < 3 * regret.std() / math.sqrt(seeds)


def test_a_perfect_first_king_stays():
    K, T = 80, 80_000
    stream = played("king", [1.0] + [0.0] * (K - 1), T)
    assert stream.held(0)[0] == 0
    # the king's own pulls are free; each challenger is rejected after the first level
    assert stream.ledger.regret[0] == (K - 1) * king_batches(K, T)[0]


# ---- more mathematics


def test_exploration_is_charged():
    K, T = 50, 50_000
    stream = played("ue", [1.0] + [0.0] * (K - 1), T)
    n = math.ceil(1000 ** (2 / 3) * math.log(T) ** (1 / 3))
    assert stream.ledger.regret[0] == n * (K - 1) and stream.explored[0] == n * K


def test_batch_sizes():
    K, T = 500, 500 * 10**6  # eps = 0.01
    assert king_batches(K, T) == pytest.approx([5000, 10_000, 20_000, 40_000], abs=1)
    assert policy("king-late", K, T).batches == [sum(king_batches(K, T))]
    assert policy("tower", K, T).batches == pytest.approx([10_000, 12_000, 14_400, 10_000], abs=1)
    assert policy("const", K, T).batches == pytest.approx([10_000], abs=1)
    assert policy("naive", K, T).batches == pytest.approx([10_000 * math.log(K)], abs=1)


def test_king_and_tower_pull_a_constant_number_of_times_an_arm():
    """In units of 1/eps^2: TOWER is exact up to the last, unfinished levels, KING below two on uniform means."""
    for K in (250, 1600):
        T, eps2 = 1000 * K, 100
        p = np.random.default_rng(0).random((1, K))
        spent = {m: played(m, p, T).explored[0] * 1.0 / (K * eps2) for m in ("king", "tower", "naive")}
        assert spent["tower"] == pytest.approx(1 + 1.2 / 4 + 1.44 / 64, abs=0.01)
        assert spent["king"] < 1
        assert spent["naive"] == pytest.approx(math.log(K), rel=0.01)


def test_a_clear_best_arm_is_found_wherever_it_stands():
    """Nothing is lost after the commitment: with one gap, regret / gap counts the pulls of other arms."""
    K, T, gap = 70, 70_000, 0.7
    p = 0.2 + gap * np.eye(K)  # lane s has its best arm at s
    for method in ("tower", "tower-log", "king", "ue"):
        stream = played(method, p, T)
        assert (stream.ledger.regret / gap <= stream.explored + 1e-6).all()
        assert (T - stream.explored > T / 2).all()


def test_the_control_differs_from_king_in_early_rejection_only():
    K, T = 60, 60_000
    early, late = king(K, T), policy("king-late", K, T)
    assert sum(early.batches) == sum(late.batches) and early.explore is late.explore and early.slots == late.slots
    stream = played("king-late", np.random.default_rng(0).random((2, K)), T)
    assert (stream.explored == K * sum(early.batches)).all()


def test_uniform_exploration_keeps_the_first_of_equal_arms():
    stream = play(Policy([9], 1, keep_best), np.ones((2, 5)), 100, rngs(2))
    assert (stream.held(0) == 0).all()


# ---- runs


@pytest.mark.parametrize("problem", [UNIFORM, HARD], ids=lambda p: p["name"])
@pytest.mark.parametrize("method", POLICIES)
def test_splitting_the_seeds_changes_nothing(problem, method):
    def rows(seeds):
        found = pd.DataFrame(run(problem, method, SETTINGS.get(method, {}), seeds, Inputs(), "cpu").rows)
        return found.sort_values(["arms", "horizon", "seed"], ignore_index=True)

    whole = rows([0, 1, 5])
    pd.testing.assert_frame_equal(
        whole, pd.concat([rows([5]), rows([0, 1])]).sort_values(["arms", "horizon", "seed"], ignore_index=True)
    )
    assert np.isfinite(whole.to_numpy(dtype=float)).all()
    assert len(whole) == 3 * len(problem["sizes"]) == len(whole.drop_duplicates(["arms", "horizon", "seed"]))


def test_methods_meet_the_same_means_and_the_same_means_at_every_horizon():
    """The means fix what exploration costs; the rest of the regret is one arm's loss, T - K n times."""
    a = {**UNIFORM, "sizes": [[6, 6_000], [6, 60_000]]}
    rows = {m: pd.DataFrame(run(a, m, SETTINGS.get(m, {}), [3], Inputs(), "cpu").rows) for m in ("const", "ue")}
    p = np.random.default_rng([3, 6]).beta(1, 1, size=6)
    loss = p.max() - p
    for m, found in rows.items():
        for K, T, rho in zip(found["arms"], found["horizon"], found["rho"], strict=True):
            n = policy(m, K, T).batches[0]
            R = rho * K ** (1 / 3) * T ** (2 / 3)
            committed = (R - n * loss.sum()) / (T - K * n)  # the loss of the arm it settled on
            assert np.abs(loss - committed).min() < 1e-9


# ---- judging


def table(R_ue=1.0, R_king=0.3, R_tower=0.5, log_power=1 / 3, K_slope=1 / 3, explored=0.2, seeds=6):
    """Handmade results: rho of each method with a little noise over seeds."""
    rng = np.random.default_rng(0)
    rows = []

    def add(problem, method, K, T, rho, columns=("rho",)):
        for seed in range(seeds):
            values = {c: rho * (1 + 0.01 * rng.standard_normal()) for c in columns}
            names = {"problem": problem, "method": method, "seed": seed, "arms": K, "horizon": T}
            rows.append({**names, **values, "explored": explored})

    for method, rho, power in (("ue", R_ue, log_power), ("king", R_king, 0), ("tower", R_tower, 0)):
        grow = lambda T, power=power: (math.log(T) / 13) ** power  # noqa: E731
        for K in (50, 500, 2000):
            for ratio in (10**3, 10**4, 10**5):
                add("uniform", method, K, K * ratio, rho * grow(K * ratio))
        add("uniform-long", method, 500, 500 * 10**6, rho * grow(500 * 10**6))
        add("beta", method, 2000, 2 * 10**6, rho)
        gaps = ("rho_0.5eps", "rho_1eps")
        for ratio in (10**3, 10**4, 10**5, 10**6):
            add("hard-horizons", method, 500, 500 * ratio, rho, gaps)
        for K in (50, 500, 5000):
            add("hard-arms", method, K, 10**8, rho * (K / 500) ** (K_slope - 1 / 3), gaps)
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("saving", {}, "replicated"),
    ("saving", {"R_tower": 1.2}, "not replicated"),
    ("saving", {"R_king": 0.9}, "not replicated"),  # saves, but less than a quarter
    ("largest_saving", {}, "replicated"),
    ("largest_saving", {"R_king": 0.55}, "not replicated"),
    ("log_factor", {}, "replicated"),
    ("log_factor", {"log_power": 0}, "not replicated"),
    ("worst_case_order", {}, "replicated"),
    ("worst_case_order", {"K_slope": 0.6}, "not replicated"),
    ("worst_case_order", {"R_king": 0.01}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_cells_that_leave_no_time_to_commit_are_skipped():
    results = table()
    short = (results.rows["arms"] == 500) & (results.rows["horizon"] == 500_000) & (results.rows["method"] == "king")
    results.rows.loc[short, "explored"] = 0.8
    assert len(evidence.savings(results, "uniform", "tower")) == 8
    with pytest.raises(LookupError):
        evidence.savings(table(explored=0.8), "uniform", "tower")


def test_the_slopes_are_the_powers():
    T, rho = evidence.over_horizons(table(), "ue")
    assert evidence.slope(np.log(np.log(T)), np.log(rho.mean(axis=0))) == pytest.approx(1 / 3, abs=0.05)
    assert evidence.slope(np.log(T), 0.7 * np.log(T) + 3) == pytest.approx(0.7)
