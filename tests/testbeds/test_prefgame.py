"""Preference games: their definitions, equilibria and the sampling that the network papers share."""

import numpy as np
import pytest

from papertrial.testbeds import prefgame
from papertrial.testbeds import prefgame_contextual as testbed


@pytest.mark.parametrize("kind", prefgame.KINDS)
@pytest.mark.parametrize("K", [5, 8])
def test_a_game_is_complementary_and_its_seed_fixes_it(kind, K):
    P = prefgame.make_game(kind, K, seed=1000)
    np.testing.assert_allclose(P + P.T, 1, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(np.diag(P), 0.5)
    assert (P >= 0).all() and (P <= 1).all()
    np.testing.assert_array_equal(P, prefgame.make_game(kind, K, seed=1000))
    assert not np.array_equal(P, prefgame.make_game(kind, K, seed=1001))


def test_rps_beats_the_next_half_circle():
    P = prefgame.make_game("rps", 5, seed=1000, strength=1.0)
    np.testing.assert_array_equal(P[0], [0.5, 1, 1, 0, 0])
    np.testing.assert_array_equal(P[1:, 1:], P[:-1, :-1])  # the same all round the circle
    assert prefgame.make_game("rps", 4, seed=1000, strength=0.6)[0].tolist() == pytest.approx([0.5, 0.8, 0.5, 0.2])
    drawn = prefgame.make_game("rps", 5, seed=1000)
    np.testing.assert_array_equal(drawn > 0.5, P > 0.5)


def test_blade_log_odds_are_the_reward_and_the_turn_in_every_plane():
    rng = np.random.default_rng(1000)
    r, c = rng.standard_normal(4), rng.standard_normal((4, 3, 2))
    J = np.array([[0, 1], [-1, 0]])
    for i in range(4):
        for j in range(4):
            expected = 0.3 * (r[i] - r[j]) + 1.5 * sum(c[i, k] @ J @ c[j, k] for k in range(3))
            assert prefgame.blade_logits(r, c)[i, j] == pytest.approx(expected, abs=1e-12)


def test_mixed_groups_have_the_rewards_correlation_asked_for_and_their_shares():
    r = prefgame.correlated(np.random.default_rng(1000), 3, 100_000, -0.2)
    np.testing.assert_allclose(np.cov(r), 1.2 * np.eye(3) - 0.2, atol=0.02)
    alone = prefgame.make_game("mix", 6, seed=1000, weights=[1.0])
    np.testing.assert_allclose(alone, prefgame.make_game("blade", 6, seed=1000), atol=1e-15)
    first, other, both = (prefgame.make_game("mix", 6, 1000, weights=w) for w in ([1, 0], [0, 1], [0.7, 0.3]))
    np.testing.assert_allclose(both, 0.7 * first + 0.3 * other, atol=1e-15)


@pytest.mark.parametrize("kind", prefgame.KINDS)
def test_no_response_beats_the_nash_policy(kind):
    P = prefgame.make_game(kind, 15, seed=1000)
    pi = prefgame.nash(P)
    assert prefgame.gap(P, pi) == pytest.approx(0, abs=1e-9)
    assert prefgame.gap(P, np.full(15, 1 / 15)) > 1e-3


def test_nash_of_known_games():
    np.testing.assert_allclose(prefgame.nash(prefgame.make_game("rps", 7, seed=0, strength=0.4)), 1 / 7, atol=1e-9)
    # rock-paper-scissors with unequal stakes: each is played as often as the other two's stake
    a, b, c = 0.2, 0.5, 0.9
    margin = np.array([[0, a, -b], [-a, 0, c], [b, -c, 0]])
    np.testing.assert_allclose(prefgame.nash(0.5 + margin / 2), np.array([c, b, a]) / (a + b + c), atol=1e-9)
    r = np.random.default_rng(1000).standard_normal(6)  # the same draw as the game's
    assert prefgame.nash(prefgame.make_game("bt", 6, seed=1000)).argmax() == r.argmax()


def test_nash_agrees_with_nashpy():
    nashpy = pytest.importorskip("nashpy")
    P = prefgame.make_game("blade", 4, seed=1000)
    row, _ = next(nashpy.Game(2 * P - 1).support_enumeration())
    np.testing.assert_allclose(prefgame.nash(P), row, atol=1e-9)


def test_gap_is_twice_the_best_reply_less_one_and_precise_near_zero():
    P = np.stack([prefgame.make_game("rand", 9, seed) for seed in (1000, 1001)])
    pi = np.random.default_rng(1000).dirichlet(np.ones(9), 2)
    best = [max(P[g, y] @ pi[g] for y in range(9)) for g in range(2)]
    np.testing.assert_allclose(prefgame.gap(P, pi), 2 * np.array(best) - 1, atol=1e-14)
    P = prefgame.make_game("bt", 2, seed=1000)
    nearly_pure = np.where(np.arange(2) == prefgame.nash(P).argmax(), 1.0, 1e-40)
    assert 0 < prefgame.gap(P, nearly_pure) < 1e-40


def test_win_rate_and_kl():
    rng = np.random.default_rng(1000)
    P, (pi, mu) = prefgame.make_game("blade", 6, seed=1000), rng.dirichlet(np.ones(6), 2)
    assert prefgame.win_rate(P, pi, mu) == pytest.approx(pi @ P @ mu)
    assert prefgame.win_rate(P, pi, mu) + prefgame.win_rate(P, mu, pi) == pytest.approx(1)
    assert prefgame.win_rate(P, pi, pi) == pytest.approx(0.5)
    assert prefgame.kl(np.array([0.5, 0.5, 0]), np.array([0.25, 0.25, 0.5])) == pytest.approx(np.log(2))
    assert prefgame.kl(pi, mu) > 0 == prefgame.kl(pi, pi)
    assert prefgame.kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


# Contextual games


def test_a_set_of_prompts_does_not_depend_on_the_other_sets_sizes():
    small = testbed.contextual("blade", {"train": 3, "test": 4}, 1000, responses=6)
    large = testbed.contextual("blade", {"train": 30, "test": 4}, 1000, responses=6)
    np.testing.assert_array_equal(small["test"].features, large["test"].features)
    np.testing.assert_array_equal(small["test"].P, large["test"].P)
    assert small["test"].P.shape == (4, 6, 6) and small["test"].features.shape == (4, 6, testbed.FEATURES)
    np.testing.assert_array_equal(small["test"].P + small["test"].P.swapaxes(1, 2), 1)
    np.testing.assert_array_equal(large["train"][5:7].P, large["train"].P[5:7])


def test_contextual_blade_is_intransitive_and_bt_is_not():
    for kind, low, high in (("blade", 0.05, 0.25), ("bt", 0.0, 0.0)):
        wins = (testbed.contextual(kind, {"test": 20}, 1000)["test"].P > 0.5).astype(float)
        triples = 64 * 63 * 62 / 6
        cyclic = np.einsum("nij,njk,nki->n", wins, wins, wins, optimize=True) / 3 / triples
        assert low <= cyclic.mean() <= high


def test_smooth_function_has_unit_variance_and_a_gaussian_kernel():
    rng = np.random.default_rng(1000)
    z = rng.standard_normal(5)
    near = z + np.array([1.5, 0, 0, 0, 0])
    f = np.array([testbed.smooth_function(rng, 5, 50)(np.stack([z, near])) for _ in range(80)])  # (draws, 2, outputs)
    a, b = f[:, 0].ravel(), f[:, 1].ravel()
    assert np.mean(a * a) == pytest.approx(1, abs=0.08)
    assert np.mean(a * b) == pytest.approx(np.exp(-(1.5**2) / (2 * testbed.LENGTH_SCALE**2)), abs=0.08)


def test_samples_follow_the_policy():
    pi = np.random.default_rng(1000).dirichlet(np.ones(4), 2)
    y = testbed.sample(pi, 20_000, np.random.default_rng(1001))
    frequencies = np.stack([np.bincount(own, minlength=4) for own in y]) / 20_000
    np.testing.assert_allclose(frequencies, pi, atol=0.015)


def test_sampled_win_rates_count_a_meeting_with_oneself_as_a_half():
    P = testbed.contextual("blade", {"test": 3}, 1000, responses=8)["test"].P
    y = np.array([[0, 1, 2], [3, 3, 3], [7, 0, 7]])
    p = testbed.sampled_win_rates(P, y)
    np.testing.assert_allclose(p.mean(1), 0.5, atol=1e-12)
    assert p[0, 1] == pytest.approx((P[0, 1, 0] + 0.5 + P[0, 1, 2]) / 3)
    np.testing.assert_allclose(p[1], 0.5)


def test_the_policy_is_normalised_and_seeds_train_apart():
    torch = pytest.importorskip("torch")
    games = [testbed.contextual("blade", {"train": 6}, seed, responses=5)["train"] for seed in (1000, 1001)]
    x = testbed.stack(games)
    policy = testbed.init_policy([1000, 1001], hidden=8)
    np.testing.assert_allclose(testbed.probabilities(policy, x).sum(-1), 1, atol=1e-12)

    def loss(log_pi, rows):  # make the first response likely
        return -log_pi[..., 0]

    both = testbed.train_round(policy, loss, x, steps=7, lr=0.01, batch=4)
    alone = testbed.train_round(testbed.init_policy([1001], 8), loss, x[1:], steps=7, lr=0.01, batch=4)
    torch.testing.assert_close(both["w1"][1:], alone["w1"], rtol=1e-9, atol=1e-12)
    before, after = (testbed.probabilities(p, x)[..., 0] for p in (policy, both))
    assert (after.mean(1) > before.mean(1)).all()
