"""autocoreset: coresets from losses at a few queries."""

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.vector_summaries import SUMMARISERS, Summary, caratheodory_set, importance, sampled, uniform
from papertrial.papers.convex.autocoreset import evidence, method
from papertrial.papers.convex.autocoreset.method import (
    LEARNERS,
    METHODS,
    Task,
    autocoreset,
    d2_sensitivities,
    heavy_tailed,
    loss_errors,
    run,
    split,
    unseen_queries,
)
from papertrial.testbeds.weighted_learners import Learner, Points

BASE = {"sizes": [20], "queries": 4, "instance": 0, "most_points": 100, "synthetic": 200}


def rng(seed=0):
    return np.random.default_rng(seed)


def classification(n=200, d=3, seed=0):
    X = rng(seed).standard_normal((n, d))
    return Points(X, np.where(X[:, 0] + rng(seed + 1).standard_normal(n) > 0.5, 1.0, -1.0))


def inputs():
    P = classification()
    return Inputs({"breast_cancer": {"x": P.X, "y": (P.y > 0).astype(int)}})


# ---- what must hold


def test_caratheodory_is_exact():
    task = Task("logistic", classification())
    M = np.stack([task.column(q) for q in 0.1 * rng().standard_normal((6, 4))], axis=1)
    found = caratheodory_set(M)
    assert len(found.rows) <= 7 and (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights @ M[found.rows], M.sum(axis=0), rtol=1e-9)
    assert found.weights.sum() == pytest.approx(200, rel=1e-9)


def test_importance_sampling_is_unbiased_before_normalisation():
    M = rng(1).exponential(size=(40, 2))
    norms = np.linalg.norm(M, axis=1)
    sums = np.array([s.weights @ M[s.rows] for s in (sampled(norms, 10, rng([2, t])) for t in range(5000))])
    assert (np.abs(sums.mean(axis=0) - M.sum(axis=0)) < 4 * sums.std(axis=0) / np.sqrt(5000)).all()
    assert importance(M, 10, rng()).weights.sum() == pytest.approx(40)


@pytest.mark.parametrize("name", ["logistic", "svm", "regression"])
def test_all_points_with_weight_one_have_no_excess_loss(name):
    task = Task(name, classification())
    everything = Summary(np.arange(200), np.ones(200))
    least = task.column(task.learner.fit(task.P, np.ones(200), 0)).sum()
    assert task.trained(everything, rng()).loss / least - 1 == pytest.approx(0, abs=1e-4)
    # and a sample of everything is everything
    found = task.summarise(uniform, task.P.X, 200, rng())
    assert len(found.rows) == 200 and (found.weights == 1).all()


@pytest.mark.parametrize("name", ["logistic", "regression"])
def test_whole_weights_are_repetitions(name):
    P, u = classification(), rng(3).integers(1, 4, size=200)
    repeated = Points(np.repeat(P.X, u, axis=0), np.repeat(P.y, u))
    fit = LEARNERS[name].fit
    np.testing.assert_allclose(fit(P, u.astype(float), 0), fit(repeated, np.ones(u.sum()), 0), atol=1e-6)


def test_new_columns_are_losses_of_all_points(monkeypatch):
    seen = []
    squared = LEARNERS["regression"]

    def losses(P, q, total):
        seen.append((len(P.X), total))
        return squared.losses(P, q, total)

    watched = Learner(squared.fit, losses, squared.score, by_class=False)
    monkeypatch.setitem(LEARNERS, "regression", watched)
    best, last = autocoreset(Task("regression", classification()), 20, rng(), "importance")
    assert set(seen) == {(200, 200)}  # never of a part
    assert len(seen) == best.passes == last.passes >= method.ETA + method.PATIENCE


# ---- more mathematics


@pytest.mark.parametrize("summariser", SUMMARISERS)
@pytest.mark.parametrize("name", LEARNERS)
def test_the_best_round_is_returned_with_its_loss(name, summariser):
    task = Task(name, classification())
    best, last = autocoreset(task, 40, rng(4), summariser)
    assert best.loss <= last.loss
    assert best.loss == pytest.approx(task.column(best.q).sum())
    assert len(best.coreset.rows) <= 42 and best.coreset.weights.sum() == pytest.approx(200)
    for c in task.classes:  # class shares are kept
        assert best.coreset.weights[np.isin(best.coreset.rows, c)].sum() == pytest.approx(len(c))


def test_exact_summaries_converge_to_the_optimum():
    """Ridge regression: once M has a column for every direction, matching the losses is matching the problem."""
    P = heavy_tailed(2000, 4, rng(5))
    task = Task("regression", P)
    least = task.column(task.learner.fit(P, np.ones(task.n), 0)).sum()
    best, _ = autocoreset(task, 60, rng(6), "caratheodory")
    assert best.loss / least - 1 < 1e-4
    sample = [METHODS["uniform"](task, 60, rng([7, t]), "none")[""].loss / least - 1 for t in range(5)]
    assert np.median(sample) > 1e-2


def test_shuffled_losses_say_nothing(monkeypatch):
    """Every point keeps its class, gets another's losses, and the sum over a class is as before."""
    summarised = []

    def watched(M, m, rng):
        summarised.append(M.copy())
        return uniform(M, m, rng)

    monkeypatch.setitem(SUMMARISERS, "watched", watched)
    task = Task("logistic", classification())
    plain, other = [], []
    for shuffle, kept in ((False, plain), (True, other)):
        summarised.clear()
        autocoreset(task, 40, rng(8), "watched", shuffle=shuffle)
        kept += summarised[:2]  # the first round's, by class: the queries to start with are the same
    for a, b in zip(plain, other, strict=True):
        assert not np.allclose(a, b)
        np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0))
        np.testing.assert_allclose(a[np.lexsort(a.T)], b[np.lexsort(b.T)])  # whole rows moved


def test_best_of_uniform_makes_as_many_passes():
    task = Task("logistic", classification())
    ours = METHODS["auto"](task, 40, rng(9), "importance")[""]
    best = METHODS["best_of_uniform"](task, 40, rng(9), "importance")[""]
    assert best.passes == ours.passes


def test_d2_scores_prefer_far_points():
    X = np.vstack([rng().standard_normal((200, 2)), [[40.0, 40.0]]])
    scores = d2_sensitivities(Points(X, np.zeros(201)), rng(10))
    assert (scores > 0).all() and scores[-1] > 5 * np.median(scores)


def test_unseen_queries_and_their_errors():
    task = Task("logistic", classification())
    optimum = task.learner.fit(task.P, np.ones(200), 0)
    queries = unseen_queries(task, optimum, 10, rng())
    assert len(queries) == 10
    for q in queries[5:]:
        assert np.linalg.norm(q - optimum) == pytest.approx(0.2 * np.linalg.norm(optimum))
    losses = np.array([task.column(q).sum() for q in queries])
    everything = Summary(np.arange(200), np.ones(200))
    np.testing.assert_allclose(loss_errors(task, everything, queries, losses), 0, atol=1e-12)
    half = Summary(np.arange(100), np.full(100, 2.0))
    assert (loss_errors(task, half, queries, losses) > 1e-6).all()


def test_split_and_units():
    P = classification(100)
    train, test = split(P, {**BASE, "learner": "regression"})
    assert len(train.X) == 70 and len(test.X) == 30
    np.testing.assert_allclose(train.X.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(train.X.std(axis=0), 1)
    assert train.y.std() == pytest.approx(1)
    assert set(split(P, {**BASE, "learner": "svm"})[0].y) == {-1.0, 1.0}


# ---- runs


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("learner", ["logistic", "regression"])
def test_splitting_the_seeds_changes_nothing(learner, name):
    data = ["breast_cancer"] if learner == "logistic" else ["heavy_tailed"]
    problem = {"name": learner, "learner": learner, "data": data, **BASE}
    settings = {} if name in ("uniform", "specific") else {"summarisers": ["caratheodory", "importance"]}

    def rows(seeds):
        return run(problem, name, settings, seeds, inputs(), "cpu").rows

    whole = rows([0, 1])
    assert whole == rows([0]) + rows([1])
    numbers = pd.DataFrame(whole).select_dtypes("number").to_numpy()
    assert np.isfinite(numbers).all()
    assert len(whole) == 2 * len(settings.get("summarisers", ["none"]))


# ---- judging


def table(saved=None, specific=0.3, closer=0.5, selection=None, best_closer=1.2):
    """Handmade results. `saved`: log10 eps saved by the exact summary, by problem; the others lose 0.2."""
    saved = {"logistic": 0.5, "svm": 0.5, "regression": 0.5, "kmeans": -0.1} | (saved or {})
    selection = {"importance": -1.0, "caratheodory": -3.0, "best_uniform": -1.0} | (selection or {})
    noise = rng(0)
    rows = []

    def add(problem, method, seed, data, summariser, eps, error):
        jitter = 0.02 * noise.standard_normal()
        row = {"problem": problem, "method": method, "seed": seed, "data": data, "summariser": summariser}
        rows.append(
            row | {"log_eps_50": eps + jitter, "log_eps_200": eps - 0.3 + jitter, "log_error_50": error + jitter}
        )

    for problem, gain in saved.items():
        for seed in range(4):
            for data in ("a", "b", "c"):
                add(problem, "uniform", seed, data, "none", -1.0, -1.0)
                add(problem, "specific", seed, data, "none", -1.0 - gain + specific, -1.0)
                add(problem, "shuffled", seed, data, "caratheodory", -0.95, -0.9)
                add(problem, "best_of_uniform", seed, data, "caratheodory", -1.3, -1.0 + np.log10(best_closer))
                for summariser in selection:
                    own = gain if summariser == "caratheodory" else -0.2
                    error = np.log10(closer) if summariser == "caratheodory" else 0.1
                    add(problem, "auto", seed, data, summariser, -1.0 - own, -1.0 + error)
    for seed in range(3):
        add("selection", "shuffled", seed, "breast_cancer", "caratheodory", -0.5, 0.0)
        for summariser, eps in selection.items():
            add("selection", "auto", seed, "breast_cancer", summariser, eps, 0.0)
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("better_than_uniform", {}, "replicated"),
    ("better_than_uniform", {"saved": {"svm": -0.2}}, "not replicated"),  # two of four
    ("better_than_uniform", {"selection": {"importance": -4.0}}, "not replicated"),  # another one was chosen
    ("competitive", {}, "replicated"),
    ("competitive", {"specific": -0.2}, "not replicated"),
    ("general", {}, "replicated"),
    ("general", {"closer": 1.3}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


@pytest.mark.parametrize(("claim", "control"), [("better_than_uniform", "shuffled"), ("general", "best_of_uniform")])
def test_controls_fail(claim, control, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 200)
    assert verdict(getattr(evidence, claim)(table().standing_in(control, "auto"))) == "not replicated"


def test_the_summariser_is_the_best_on_the_selection():
    assert evidence.chosen(table()) == "caratheodory"
    assert evidence.chosen(table(selection={"best_uniform": -5.0})) == "best_uniform"
