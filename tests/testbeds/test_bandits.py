"""The bandits' arms, memory and ledger."""

import numpy as np
import pytest

from papertrial.testbeds.bandits import ArmStream, ForgottenArm, RegretLedger, beta_means, needle_means


def rngs(n, start=0):
    return [np.random.default_rng(start + i) for i in range(n)]


def stream_of(p, horizon=100, batches=(10, 20), slots=1):
    p = np.atleast_2d(np.asarray(p, dtype=float))
    return ArmStream(p, horizon, batches, slots, rngs(len(p)))


def test_a_batch_is_binomial():
    lanes = 5_000
    stream = stream_of(np.full((lanes, 1), 0.3), batches=[50])
    for arm in stream:
        x = stream.pull(arm)
    assert abs(x.mean() - 15) < 3 * np.sqrt(50 * 0.21 / lanes)
    assert x.var() == pytest.approx(50 * 0.21, rel=0.06)


def test_only_arriving_and_stored_arms_can_be_pulled():
    stream = stream_of([0.2, 0.4, 0.6])
    arms = iter(stream)
    next(arms)
    stream.store(0, 0, np.array([True]))
    next(arms)
    stream.pull(0)  # stored
    stream.pull(1)  # arriving
    next(arms)
    with pytest.raises(ForgottenArm):
        stream.pull(1, 1)
    with pytest.raises(ForgottenArm):
        stream.store(0, 1, np.array([True]))
    stream.store(0, 2, np.array([True]))  # drops arm 0
    with pytest.raises(ForgottenArm):
        stream.pull(0, 1)
    assert next(arms, None) is None
    stream.drop(0)
    with pytest.raises(ForgottenArm):
        stream.commit(np.array([2]))
    with pytest.raises(ForgottenArm):
        stream.commit(stream.held(0))  # an empty slot holds no arm


def test_memory_is_counted_lane_by_lane():
    stream = stream_of(np.full((2, 3), 0.5), slots=3)
    for arm in stream:
        stream.store(arm, arm, np.array([True, arm == 0]))
    stream.drop(0)
    assert stream.peak.tolist() == [3, 1]


def test_samples_are_read_once():
    stream = stream_of([0.5])
    for arm in stream:
        stream.pull(arm, 0)
        stream.pull(arm, 1)
        with pytest.raises(ValueError, match="second time"):
            stream.pull(arm, 0)


def test_lanes_that_do_not_pull_read_zero_and_pay_nothing():
    stream = stream_of(np.tile([1.0, 0.0], (2, 1)))
    for arm in stream:
        if arm == 0:
            assert stream.pull(arm, 0, np.array([True, False])).tolist() == [10, 0]
        else:
            stream.pull(arm, 0, np.array([False, True]))
    assert stream.ledger.pulls.tolist() == [10, 10]
    assert stream.ledger.regret.tolist() == [0, 10]


def test_ledger_counts_every_pull_up_to_the_horizon():
    ledger = RegretLedger(np.array([[0.9, 0.4, 0.1]]), 25)
    lane = np.array([0])
    ledger.charge(lane, np.array([1]), 10)
    ledger.charge(lane, np.array([2]), 10)
    ledger.charge(lane, np.array([2]), 10)  # only 5 are left
    assert ledger.pulls[0] == 25
    assert ledger.regret[0] == pytest.approx(10 * 0.5 + 15 * 0.8)


def test_how_lanes_are_grouped_changes_nothing():
    p = np.random.default_rng(0).random((4, 6))
    draw = lambda lanes, gens: np.stack([s.pull(a) for s in [ArmStream(lanes, 99, [40], 1, gens)] for a in s], 1)  # noqa: E731
    together = draw(p, rngs(4))
    apart = np.concatenate([draw(p[:1], rngs(1)), draw(p[1:], rngs(3, start=1))])
    assert (together == apart).all()


def test_instance_families():
    rng = np.random.default_rng(0)
    u, b = beta_means(rng, 100_000, 1, 1), beta_means(rng, 100_000, 2, 8)
    assert u.mean() == pytest.approx(0.5, abs=0.004) and u.var() == pytest.approx(1 / 12, rel=0.02)
    assert b.mean() == pytest.approx(0.2, abs=0.002) and b.var() == pytest.approx(2 * 8 / (100 * 11), rel=0.03)
    assert needle_means(4, 2, 0.125).tolist() == [0.5, 0.5, 0.625, 0.5]


def ucb1(stream, T, choose=None):
    """UCB1 with every arm stored and one pull at a time; batch r of an arm is its r-th reward.

    ``choose`` overrides the choice of the round. Returns decisions and rewards of lane 0.
    """
    hits, n = np.zeros(stream.arms), np.zeros(stream.arms, dtype=int)
    decisions, rewards = [], []

    def pull(arm):
        x = int(stream.pull(arm, n[arm])[0])
        hits[arm] += x
        n[arm] += 1
        decisions.append(int(arm))
        rewards.append(x)

    for arm in stream:
        stream.store(arm, arm, np.array([True]))
        pull(arm)
    for t in range(stream.arms, T):
        index = hits / n + np.sqrt(2 * np.log(t) / n)
        pull(int(index.argmax()) if choose is None else choose(decisions, rewards, index))
    return decisions, rewards


def test_stored_all_arms_stream_serves_a_classical_bandit():
    """UCB1's regret stays below the bound of Auer et al. (2002): 8 sum ln T / gap + (1 + pi^2/3) sum gap."""
    T, p = 400, np.array([[0.1, 0.8]])
    stream = ArmStream(p, T, [1] * T, 2, rngs(1))
    ucb1(stream, T)
    assert stream.ledger.pulls[0] == T and stream.peak[0] == 2
    assert 0 < stream.ledger.regret[0] < 8 * np.log(T) / 0.7 + (1 + np.pi**2 / 3) * 0.7


@pytest.mark.slow  # importing the peer costs two seconds
def test_ucb1_on_the_stream_agrees_with_mabwiser():
    mab = pytest.importorskip("mabwiser.mab")
    T, K = 60, 3
    checked = []

    def peer(decisions, rewards, index):
        bandit = mab.MAB(list(range(K)), mab.LearningPolicy.UCB1(alpha=1))
        bandit.fit(decisions, rewards)
        expected = bandit.predict_expectations()
        assert [expected[a] for a in range(K)] == pytest.approx(index)
        choice = bandit.predict()
        assert index[choice] == pytest.approx(index.max())
        checked.append(choice)
        return choice

    stream = ArmStream(np.array([[0.3, 0.5, 0.8]]), T, [1] * T, K, rngs(1))
    ucb1(stream, T, peer)
    assert len(checked) == T - K and stream.ledger.pulls[0] == T
