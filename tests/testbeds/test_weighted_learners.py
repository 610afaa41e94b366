"""Solvers of weighted learning problems."""

import numpy as np
import pytest

from papertrial.testbeds.weighted_learners import LOGISTIC, RIDGE, Points, k_means, svm

LEARNERS = {"logistic": LOGISTIC, "svm": svm(20_000), "ridge": RIDGE, "kmeans": k_means(3, restarts=5)}


def rng(seed=0):
    return np.random.default_rng(seed)


def points(n=120, d=3, seed=0):
    X = rng(seed).standard_normal((n, d))
    return Points(X, np.where(X @ np.arange(1, d + 1) + rng(seed + 1).standard_normal(n) > 0.3, 1.0, -1.0))


def loss(learner, P, u, q):
    return float(u @ learner.losses(P, q, u.sum()))


@pytest.mark.parametrize("name", LEARNERS)
def test_whole_weights_are_repetitions(name):
    P, learner = points(), LEARNERS[name]
    u = rng(3).integers(1, 4, size=120).astype(float)
    repeated = Points(np.repeat(P.X, u.astype(int), axis=0), np.repeat(P.y, u.astype(int)))
    a, b = learner.fit(P, u, 0), learner.fit(repeated, np.ones(len(repeated.X)), 0)
    assert loss(learner, P, u, a) == pytest.approx(loss(learner, P, u, b), rel=1e-4)
    assert loss(learner, P, u, b) == pytest.approx(loss(learner, repeated, np.ones(len(repeated.X)), b))
    if name in ("logistic", "ridge"):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["logistic", "svm", "ridge"])
def test_no_move_lowers_the_loss(name):
    P, learner = points(), LEARNERS[name]
    u = rng(4).exponential(size=120)
    q = learner.fit(P, u, 0)
    moved = [loss(learner, P, u, q + size * m) for size in (0.1, 0.01) for m in rng(5).standard_normal((50, len(q)))]
    assert min(moved) > loss(learner, P, u, q) * (1 - 1e-5)


@pytest.mark.parametrize(("name", "P"), [("logistic", points()), ("ridge", points(seed=7))])
def test_equal_to_scikit_learn(name, P):
    linear_model = pytest.importorskip("sklearn.linear_model")
    u = rng(6).exponential(size=120)
    peer = {
        "logistic": linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=5000),
        "ridge": linear_model.Ridge(alpha=1.0),
    }[name].fit(P.X, P.y, sample_weight=u)
    theirs = np.append(peer.coef_, peer.intercept_)
    np.testing.assert_allclose(LEARNERS[name].fit(P, u, 0), theirs, atol=1e-4)


def test_shares_of_the_regularisation_add_up():
    P, q = points(), np.array([1.0, -2.0, 0.5, 0.3])
    margin = P.y * (P.X @ q[:3] + q[3])
    assert LOGISTIC.losses(P, q, 120).sum() == pytest.approx(np.logaddexp(0, -margin).sum() + 0.5 * (q[:3] @ q[:3]))
    assert LEARNERS["svm"].losses(P, q, 120).sum() == pytest.approx(np.maximum(0, 1 - margin).sum() + 0.5 * (q @ q))


def test_one_class_and_separable_points():
    X = rng().standard_normal((10, 2))
    for name in ("logistic", "svm"):
        learner = LEARNERS[name]
        P = Points(X, np.ones(10))
        assert learner.score(P, learner.fit(P, np.full(10, 100.0), 0)) == 1
        P = Points(X, np.sign(X[:, 0]))
        q = learner.fit(P, np.full(10, 1000.0), 0)
        assert np.isfinite(q).all() and learner.score(P, q) == 1


def test_k_means_finds_separate_clusters():
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    X = np.repeat(centres, 20, axis=0) + 0.1 * rng().standard_normal((60, 2))
    learner = LEARNERS["kmeans"]
    P = Points(X, np.zeros(60))
    q = learner.fit(P, np.ones(60), 0)
    np.testing.assert_allclose(q[np.lexsort(q.T.round())], centres[np.lexsort(centres.T)], atol=0.1)
    assert learner.score(P, q) > 0.99 and learner.losses(P, q, 60).max() < 1
