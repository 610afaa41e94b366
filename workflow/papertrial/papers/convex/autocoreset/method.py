"""A small weighted part of the data on which training gives nearly the solution of the whole.

AutoCoreset needs the data, the loss f(p, q) and a solver of the weighted problem, no analysis of the loss. The matrix
M (n, columns) holds the losses of all points at a few queries q. A summary of M's rows is a coreset for these queries;
training on it gives a new query, hence a new column of M, and so on, until the full loss no longer falls.

Source: Maalouf, Tukan, Braverman and Rus 2023.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from papertrial.engine.results import Inputs, Results
from papertrial.methods.row_scores import leverage_scores, lewis_weights
from papertrial.methods.vector_summaries import SUMMARISERS, Summary, normalised, sampled, uniform
from papertrial.testbeds.weighted_learners import LOGISTIC, RIDGE, Points, k_means, square_distances, svm

Settings = dict[str, Any]
Rng = np.random.Generator

ETA = 3  # queries to start with
PATIENCE = 5  # rounds without a lower full loss
GAIN = 1e-6  # of the full loss, that counts as lower


class Trained(NamedTuple):
    """A coreset, what training on it gives, and how many passes over all points it took to find it."""

    coreset: Summary
    q: np.ndarray
    loss: float  # L(P; q)
    passes: int


Found = dict[str, Trained]  # "" is what is judged

CLUSTERS = 5
LEARNERS = {"logistic": LOGISTIC, "svm": svm(3000), "regression": RIDGE, "kmeans": k_means(CLUSTERS, restarts=5)}
THOROUGH = {**LEARNERS, "svm": svm(100_000), "kmeans": k_means(CLUSTERS, restarts=20)}  # on all points


class Task:
    """A learner on its training points, split by class where it has classes."""

    def __init__(self, name: str, P: Points) -> None:
        self.name, self.learner = name, LEARNERS[name]
        self.P, self.n = P, len(P.X)
        labels = np.unique(P.y) if self.learner.by_class else [None]
        self.classes = [np.arange(self.n) if c is None else np.flatnonzero(P.y == c) for c in labels]

    def shares(self, m: int) -> list[int]:
        """m split over the classes in proportion, 2 at least."""
        return [max(2, round(m * len(c) / self.n)) for c in self.classes]

    def summarise(self, how: Callable[[np.ndarray, int, Rng], Summary], M: np.ndarray, m: int, rng: Rng) -> Summary:
        """By class; what `how` says of the rows of M (n, columns)."""
        parts = [how(M[c], min(k, len(c)), rng) for c, k in zip(self.classes, self.shares(m), strict=True)]
        rows = np.concatenate([c[s.rows] for c, s in zip(self.classes, parts, strict=True)])
        return Summary(rows, np.concatenate([s.weights for s in parts]))

    def train(self, coreset: Summary, rng: Rng) -> np.ndarray:
        part = Points(self.P.X[coreset.rows], self.P.y[coreset.rows])
        return self.learner.fit(part, coreset.weights, int(rng.integers(1 << 31)))

    def column(self, q: np.ndarray) -> np.ndarray:
        """f(p, q) of every point, (n,): one pass."""
        return self.learner.losses(self.P, q, self.n)

    def trained(self, coreset: Summary, rng: Rng) -> Trained:
        q = self.train(coreset, rng)
        return Trained(coreset, q, float(self.column(q).sum()), 1)


# ---- AutoCoreset


def autocoreset(task: Task, m: int, rng: Rng, summariser: str, shuffle: bool = False) -> tuple[Trained, Trained]:
    """The best round's coreset and the last round's.

    Args:
        shuffle: hand every point the losses of another of its class before summarising: the control.
    """
    start = [task.train(task.summarise(uniform, task.P.X, m, rng), rng) for _ in range(ETA)]
    columns = [task.column(q) for q in start]
    best, waited = None, 0
    while waited < PATIENCE and (best is None or len(columns) + 1 < min(task.shares(m))):
        M = np.stack(columns, axis=1)  # (n, columns)
        if shuffle:
            for c in task.classes:
                M[c] = M[rng.permutation(c)]
        coreset = task.summarise(SUMMARISERS[summariser], M, m, rng)
        q = task.train(coreset, rng)
        columns.append(task.column(q))
        last = Trained(coreset, q, float(columns[-1].sum()), len(columns))
        lower = best is None or last.loss < best.loss * (1 - GAIN)
        waited = 0 if lower else waited + 1
        best = last if best is None or last.loss < best.loss else best
    return best._replace(passes=last.passes), last


def auto(task: Task, m: int, rng: Rng, summariser: str) -> Found:
    return {"": autocoreset(task, m, rng, summariser)[0]}


def shuffled(task: Task, m: int, rng: Rng, summariser: str) -> Found:
    """The control: M says nothing about the points, and no round is chosen by its full loss; and with that choice."""
    best, last = autocoreset(task, m, rng, summariser, shuffle=True)
    return {"": last, "kept_": best}


# ---- what it is compared with


def of_uniform(task: Task, m: int, rng: Rng) -> Trained:
    return task.trained(task.summarise(uniform, task.P.X, m, rng), rng)


def one_uniform(task: Task, m: int, rng: Rng, summariser: str) -> Found:
    return {"": of_uniform(task, m, rng)}


def best_of_uniform(task: Task, m: int, rng: Rng, summariser: str) -> Found:
    """The best, by full loss, of as many uniform samples as AutoCoreset made passes over the points."""
    passes = autocoreset(task, m, rng, summariser)[0].passes
    best = min((of_uniform(task, m, rng) for _ in range(passes)), key=lambda t: t.loss)
    return {"": best._replace(passes=passes)}


def d2_sensitivities(P: Points, rng: Rng) -> np.ndarray:
    """For k-means: the share in the cost of k-means++ seeds, and in the own seed's cluster."""
    from sklearn.cluster import kmeans_plusplus

    seeds, _ = kmeans_plusplus(P.X, CLUSTERS, random_state=int(rng.integers(1 << 31)))
    D = square_distances(P.X, seeds)  # (n, k)
    nearest, cost = D.argmin(axis=1), D.min(axis=1)
    sizes = np.bincount(nearest, minlength=CLUSTERS)
    in_cluster = np.bincount(nearest, cost, minlength=CLUSTERS) / np.maximum(sizes, 1)
    return cost / cost.mean() + in_cluster[nearest] / cost.mean() + len(P.X) / sizes[nearest]


OWN_SCORES: dict[str, Callable[[Points, Rng], np.ndarray]] = {
    "logistic": lambda P, rng: lewis_weights(P.X, 1) + P.X.shape[1] / len(P.X),
    "regression": lambda P, rng: leverage_scores(P.X),
    "kmeans": d2_sensitivities,
}


def specific(task: Task, m: int, rng: Rng, summariser: str) -> Found:
    """Sampling by scores made for the problem."""
    scores = OWN_SCORES[task.name](task.P, rng)

    def by_scores(own: np.ndarray, k: int, rng: Rng) -> Summary:
        return normalised(sampled(own, k, rng), len(own))

    return {"": task.trained(task.summarise(by_scores, scores, m, rng), rng)}


METHODS: dict[str, Callable[[Task, int, Rng, str], Found]] = {
    "auto": auto,
    "shuffled": shuffled,
    "uniform": one_uniform,
    "best_of_uniform": best_of_uniform,
    "specific": specific,
}


# ---- data


POSITIVE = {  # the classes told apart; for letter A-M and N-Z
    "magic": lambda y: y == 1,
    "spam": lambda y: y == 1,
    "letter": lambda y: y >= 13,
    "breast_cancer": lambda y: y == 1,
}


def heavy_tailed(n: int, d: int, rng: Rng) -> Points:
    """A linear model whose rows have t-distributed sizes, so that few of them have most of the leverage."""
    X = rng.standard_normal((n, d)) * rng.standard_t(2.5, size=(n, 1))
    return Points(X, X @ rng.standard_normal(d) + rng.standard_normal(n) * np.abs(X).mean())


def points(name: str, problem: Settings, inputs: Inputs) -> Points:
    if name == "heavy_tailed":
        return heavy_tailed(problem["synthetic"], 10, np.random.default_rng(problem["instance"]))
    data = inputs.datasets[name]
    X = np.asarray(data["x"], dtype=float)
    y = np.where(POSITIVE[name](data["y"]), 1.0, -1.0) if name in POSITIVE else np.asarray(data["y"], dtype=float)
    return Points(X, y)


def split(P: Points, problem: Settings) -> tuple[Points, Points]:
    """70% to train on and 30% to test on, in the training part's units; at most so many points."""
    rng = np.random.default_rng(problem["instance"])
    order = rng.permutation(len(P.X))[: problem["most_points"]]
    cut = round(0.7 * len(order))
    train, test = order[:cut], order[cut:]
    mean, std = P.X[train].mean(axis=0), P.X[train].std(axis=0)
    X = (P.X - mean) / np.where(std > 0, std, 1)
    y = P.y if LEARNERS[problem["learner"]].by_class else (P.y - P.y[train].mean()) / P.y[train].std()
    return Points(X[train], y[train]), Points(X[test], y[test])


# ---- what is measured


def unseen_queries(task: Task, optimum: np.ndarray, count: int, rng: Rng) -> list[np.ndarray]:
    """Half trained on random parts of the points, half the optimum moved by a fifth of its norm."""
    size = min(task.n, max(round(0.01 * task.n), 40))
    parts = [Summary(rng.choice(task.n, size, replace=False), np.full(size, task.n / size)) for _ in range(count // 2)]
    moves = rng.standard_normal((count - count // 2, *optimum.shape))
    moved = [optimum + 0.2 * np.linalg.norm(optimum) / np.linalg.norm(move) * move for move in moves]
    return [task.train(part, rng) for part in parts] + moved


def loss_errors(task: Task, coreset: Summary, queries: list[np.ndarray], losses: np.ndarray) -> np.ndarray:
    """|L(C, w; q) - L(P; q)| / L(P; q) of each query; losses are L(P; q)."""
    part = Points(task.P.X[coreset.rows], task.P.y[coreset.rows])
    found = np.array([coreset.weights @ task.learner.losses(part, q, task.n) for q in queries])
    return np.abs(found - losses) / losses


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One row a trial, data set and summariser, with the sizes side by side."""
    rows = []
    for place, name in enumerate(problem["data"]):
        P, test = split(points(name, problem, inputs), problem)
        task = Task(problem["learner"], P)
        optimum = THOROUGH[task.name].fit(P, np.ones(task.n), 0)
        least = float(task.column(optimum).sum())
        queries = unseen_queries(task, optimum, problem["queries"], np.random.default_rng([problem["instance"], place]))
        losses = np.array([task.column(q).sum() for q in queries])
        for seed in seeds:
            for summariser in settings.get("summarisers", ["none"]):
                row = {"seed": seed, "data": name, "summariser": summariser}
                for m in problem["sizes"]:
                    found = METHODS[method](task, m, np.random.default_rng([seed, place, m]), summariser)
                    for prefix, trained in found.items():
                        row[f"{prefix}log_eps_{m}"] = log10(trained.loss / least - 1, floor=1e-6)
                    if queries:
                        errors = loss_errors(task, found[""].coreset, queries, losses)
                        row[f"log_error_{m}"] = log10(np.median(errors), floor=1e-9)
                    row |= {"passes": found[""].passes, "score": round(task.learner.score(test, found[""].q), 4)}
                rows.append(row)
    return Results(rows)


def log10(x: float, floor: float) -> float:
    return round(float(np.log10(max(x, floor))), 4)
