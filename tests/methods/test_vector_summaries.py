"""Weighted rows that stand for the sum of all."""

import numpy as np
import pytest

from papertrial.methods.vector_summaries import (
    SUMMARISERS,
    best_uniform,
    caratheodory,
    caratheodory_set,
    importance,
    merged,
    sampled,
    uniform,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def collinear(n, k):
    """Losses at nearly the same query."""
    return rng(n).exponential(size=(n, 1)) * np.exp(0.01 * rng(k).standard_normal((n, k)))


@pytest.mark.parametrize(("n", "k"), [(5, 3), (60, 1), (300, 4), (2000, 20)])
@pytest.mark.parametrize("make", [collinear, lambda n, k: rng(n).standard_normal((n, k))], ids=["collinear", "normal"])
def test_caratheodory_set_is_exact(n, k, make):
    M = make(n, k)
    found = caratheodory_set(M)
    assert len(found.rows) == len(set(found.rows)) <= k + 1
    assert (found.weights >= 0).all()
    assert found.weights.sum() == pytest.approx(n, rel=1e-9)
    np.testing.assert_allclose(found.weights @ M[found.rows], M.sum(axis=0), rtol=1e-9, atol=1e-9 * np.abs(M).sum())


def test_caratheodory_uses_the_room_it_has():
    M = rng().exponential(size=(400, 3))
    found = caratheodory(M, 50, rng(1))
    assert 40 < len(found.rows) <= 50  # twelve sets of four
    np.testing.assert_allclose(found.weights @ M[found.rows], M.sum(axis=0), rtol=1e-9)
    assert len(caratheodory(M, 4, rng(1)).rows) <= 4


def test_importance_sampling_is_unbiased_before_normalisation():
    M = rng(2).exponential(size=(30, 3)) ** 2
    norms = np.linalg.norm(M, axis=1)
    sums = np.array([s.weights @ M[s.rows] for s in (sampled(norms, 8, rng([3, t])) for t in range(5000))])
    assert (np.abs(sums.mean(axis=0) - M.sum(axis=0)) < 4 * sums.std(axis=0) / np.sqrt(5000)).all()


def test_importance_weights():
    M = np.array([[3.0, 4.0], [0.0, 5.0], [10.0, 0.0]])
    found = importance(M, 40, rng())
    assert found.weights.sum() == pytest.approx(3)
    found = sampled(np.linalg.norm(M, axis=1), 1, rng())
    assert found.weights[0] == pytest.approx(20 / np.linalg.norm(M[found.rows[0]]))


def test_repeats_are_merged():
    found = merged(np.array([4, 1, 4]), np.array([1.0, 2.0, 0.5]))
    assert found.rows.tolist() == [1, 4] and found.weights.tolist() == [2.0, 1.5]


def test_best_uniform_is_nearer_than_uniform():
    M = rng(4).exponential(size=(500, 3))

    def distance(s):
        return np.linalg.norm((M[s.rows].mean(axis=0) - M.mean(axis=0)) / M.std(axis=0))

    nearest = np.mean([distance(best_uniform(M, 30, rng([5, t]))) for t in range(10)])
    assert nearest < 0.5 * np.mean([distance(uniform(M, 30, rng([6, t]))) for t in range(100)])


@pytest.mark.parametrize("name", SUMMARISERS)
def test_size_and_total_weight(name):
    M = rng(7).exponential(size=(200, 4))
    found = SUMMARISERS[name](M, 20, rng(8))
    assert 0 < len(found.rows) <= 20 and len(set(found.rows)) == len(found.rows)
    assert found.weights.sum() == pytest.approx(200) and (found.weights > 0).all()
