"""Aranyani: an oblique decision forest that learns online, one example at a time, under demographic parity.

Problem: examples (x, y, a) arrive one by one. Predict y, then learn from it, keeping the decisions of the whole
stream accurate and equally frequent in both groups of a. The disparity is an expectation over all the past, which
an online learner may not store.

Method: take the disparity at the nodes of a soft oblique forest, F_i = E[n_i | a=1] - E[n_i | a=0]. The gradient of
its Huber penalty, H'(F_i) (E[grad n_i | a=1] - E[grad n_i | a=0]), needs four expectations; each is a running mean
of what was computed when its example passed. So a step is one forward and one backward pass:

    grad  =  grad of the cross-entropy of (x, y)  +  lam * sum_i H'(F_i) (E[grad n_i | 1] - E[grad n_i | 0])

Streams (seeds) and penalty weights lam are axes S and L of all arrays: one numpy step per example serves all.

Source: Basu Roy Chowdhury, Monath, Beirami, Kidambi, Dubey, Ahmed, Chaturvedi, ICLR 2024.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.soft_forest import SoftForest
from papertrial.papers.trust.aranyani_fair_forests.hoeffding import corrected, tree_scores
from papertrial.papers.trust.aranyani_fair_forests.learners import Adam, Learner, Logistic, Mlp
from papertrial.papers.trust.aranyani_fair_forests.parity import (
    NodeAggregates,
    NodeReservoir,
    OutputAggregates,
    Penalty,
    exact_gradient,
)
from papertrial.testbeds.fair_tabular import Table, dp_gap, load, stream, trade_off

Array = np.ndarray


class Streams(NamedTuple):
    """One table in S orders."""

    x: Array  # (S, n, d) float32: gradients at batch size 1 cost memory traffic; the attribute and a constant are last
    y: Array  # (S, n)
    a: Array  # (S, n)
    told: Array  # (S, n) the attribute that the penalty is told; a, except in the control
    seeds: list[int]
    names: list[str]  # (d,)

    def draws(self, purpose: str) -> list[np.random.Generator]:
        """One generator a stream, so that it doesn't matter which streams run together."""
        return [np.random.default_rng([*purpose.encode(), seed]) for seed in self.seeds]


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    streams = in_orders(load(problem["name"], inputs.datasets), seeds, problem["n"])
    return Results(METHODS[method](streams, settings))


def in_orders(table: Table, seeds: list[int], n: int, dtype: type = np.float32) -> Streams:
    """The first n rows of the seeds' shuffles. The attribute is a feature, too: everybody may use it."""
    x = np.column_stack([table.x, 2 * table.a - 1, np.ones(len(table.y))]).astype(dtype)
    order = np.stack([stream(len(table.y), seed, n) for seed in seeds])  # (S, n)
    a = table.a[order]
    return Streams(x[order], table.y[order], a, a, seeds, [*table.names, "attribute", "constant"])


def forest(streams: Streams, settings: dict) -> SoftForest:
    return SoftForest(streams.x.shape[-1], settings["trees"], settings["depth"])


def learn(
    streams: Streams, model: Learner, penalty: Penalty, lam: Array, lr: float, watch: Callable | None = None
) -> Array:
    """Predict, then update, one example a stream at a time; decisions (S, L, n) of L penalty weights `lam`.

    watch(t, params, step) may look at the penalty's gradient after t examples, before the update.
    """
    S, n, _ = streams.x.shape
    start = np.stack([model.draw(draw) for draw in streams.draws("parameters")])  # (S, size), alike for all lam
    params = np.repeat(start[:, None], len(lam), axis=1).astype(streams.x.dtype)  # (S, L, size)
    grad = np.empty_like(params)
    optimizer = Adam(params, lr)
    weight = lam.astype(params.dtype)[:, None, None]
    decisions = np.empty((S, len(lam), n), dtype=bool)
    for t in range(n):
        x = streams.x[:, t]
        f, cache = model.forward(params, x)  # (S, L)
        decisions[:, :, t] = f > 0.5
        penalty.see(x, streams.told[:, t], params, cache)
        model.backward(cache, params, x, f - streams.y[:, t, None], grad)
        step = penalty.gradient(params)  # (S, L, K, D)
        if watch is not None:
            watch(t + 1, params, step)
        step *= weight
        penalty.block(grad)[...] += step
        optimizer.step(params, grad)
    return decisions


def aranyani(streams: Streams, settings: dict) -> list[Row]:
    """The method: parity at the nodes from running means (decay 1: plain ones, below 1: exponential ones).

    Every `every` examples, and at the end, the aggregate gradient is held against the exact one: over all examples so
    far, at the current parameters. That costs a pass over the past and is for the record only.
    """
    lam, model = np.array(settings["lam"]), forest(streams, settings)
    penalty = NodeAggregates(model, len(streams.seeds), len(lam), streams.x.dtype, settings["decay"])
    closeness: dict[tuple, Row] = {}

    def compare(t: int, params: Array, step: Array) -> None:
        if t % settings["every"] == 0 or t == streams.y.shape[1]:
            for s, seed in enumerate(streams.seeds):
                exact = exact_gradient(model.w(params)[s], streams.x[s, :t], streams.a[s, :t])
                for i in np.flatnonzero(lam > 0):
                    closeness[seed, lam[i], t] = similarity(step[s, i], exact[i])

    decisions = learn(streams, model, penalty, lam, settings["lr"], compare)
    return evaluate(streams, settings, decisions, cost(model, penalty, streams), closeness)


def shuffled(streams: Streams, settings: dict) -> list[Row]:
    """Control: the running means are told a permuted attribute, so they average over groups that mean nothing."""
    told = [draw.permutation(a) for draw, a in zip(streams.draws("shuffle"), streams.a, strict=True)]
    return aranyani(streams._replace(told=np.stack(told)), settings)


def reservoir(streams: Streams, settings: dict) -> list[Row]:
    """Upper reference, not an online method: the nodes' parity exactly, on a sample of the past that is stored."""
    model = forest(streams, settings)
    penalty = NodeReservoir(model, streams.draws("reservoir"), settings["size"], streams.x.dtype)
    decisions = learn(streams, model, penalty, np.array(settings["lam"]), settings["lr"])
    return evaluate(streams, settings, decisions, cost(model, penalty, streams))


def output_parity(build: Callable[[Streams, dict], Learner]) -> Callable:
    """Baselines: parity of the model's output, by the same running means."""

    def method(streams: Streams, settings: dict) -> list[Row]:
        lam, model = np.array(settings["lam"]), build(streams, settings)
        penalty = OutputAggregates(model, len(streams.seeds), len(lam), streams.x.dtype)
        decisions = learn(streams, model, penalty, lam, settings["lr"])
        return evaluate(streams, settings, decisions, cost(model, penalty, streams))

    return method


def hoeffding(streams: Streams, settings: dict) -> list[Row]:
    """Baseline: a Hoeffding adaptive tree with a threshold per group; `lam` is how far thresholds are corrected."""
    draws = streams.draws("ties")
    decisions = [
        corrected(tree_scores(x, y, streams.names, settings["delta"]), a, settings["lam"], draw)
        for x, y, a, draw in zip(streams.x, streams.y, streams.a, draws, strict=True)
    ]
    return evaluate(streams, settings, np.stack(decisions))


def majority(streams: Streams, settings: dict) -> list[Row]:
    """Baseline: the label that has been more frequent so far."""
    before = np.cumsum(2 * streams.y - 1, axis=1) - (2 * streams.y - 1)
    return evaluate(streams, settings, (before > 0)[:, None])


METHODS: dict[str, Callable[[Streams, dict], list[Row]]] = {
    "aranyani": aranyani,
    "aranyani-ema": aranyani,
    "shuffled": shuffled,
    "reservoir": reservoir,
    "forest-output": output_parity(forest),
    "logistic": output_parity(lambda streams, settings: Logistic(streams.x.shape[-1])),
    "mlp": output_parity(lambda streams, settings: Mlp(streams.x.shape[-1], settings["width"])),
    "hoeffding": hoeffding,
    "majority": majority,
}


def evaluate(
    streams: Streams, settings: dict, decisions: Array, costs: Row | None = None, closeness: dict | None = None
) -> list[Row]:
    """Accuracy and gap of the prequential decisions (S, L, n) over the whole stream, a row a (seed, lam).

    `trade_off` is the seed's A over the lam of the sweep, repeated in each of its rows. Similarities of gradients
    make rows of their own, at their step. Digits that no stream can resolve are cut: the table is large.
    """
    lam, closeness, n = settings["lam"], dict(closeness or {}), streams.y.shape[1]
    swept = np.isin(lam, settings["sweep"])
    accuracy = (decisions == streams.y[:, None]).mean(axis=-1)  # (S, L)
    gap = dp_gap(decisions, streams.a[:, None])
    base = streams.y.mean(axis=1)
    rows = []
    for s, seed in enumerate(streams.seeds):
        area = round(trade_off(accuracy[s, swept], gap[s, swept], floor=max(base[s], 1 - base[s])), 6)
        for i, weight in enumerate(lam):
            here = {"seed": seed, "lam": float(weight)}
            quality = {"accuracy": round(float(accuracy[s, i]), 6), "dp_gap": round(float(gap[s, i]), 6)}
            whole = here | {"step": n, "trade_off": area} | quality | (costs or {})
            rows.append(whole | closeness.pop((seed, weight, n), {}))
            rows += [here | {"step": k[2]} | v for k, v in closeness.items() if k[:2] == (seed, weight)]
    return rows


def similarity(estimate: Array, exact: Array) -> Row:
    """Cosine and relative norm of two gradients; 0 where one of them vanishes."""
    u, v = estimate.ravel().astype(float), exact.ravel().astype(float)
    norms = np.linalg.norm(u), np.linalg.norm(v)
    cosine = u @ v / (norms[0] * norms[1]) if min(norms) > 0 else 0.0
    ratio = norms[0] / norms[1] if norms[1] > 0 else 0.0
    return {"cosine": round(float(cosine), 4), "norm_ratio": round(float(ratio), 4)}


def cost(model: Learner, penalty: Penalty, streams: Streams) -> Row:
    """Forward and backward passes through an example, per step, and the floats that the penalty stores."""
    return {"passes": 1 + penalty.passes / streams.y.shape[1], "floats": penalty.floats}
