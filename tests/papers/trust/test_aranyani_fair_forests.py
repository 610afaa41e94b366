from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from papertrial.engine import verdicts
from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.methods.soft_forest import SoftForest
from papertrial.papers.trust.aranyani_fair_forests import evidence, hoeffding, method
from papertrial.papers.trust.aranyani_fair_forests.learners import Adam, Logistic, Mlp
from papertrial.papers.trust.aranyani_fair_forests.parity import (
    GroupMeans,
    NodeAggregates,
    NodeReservoir,
    OutputAggregates,
    exact_gradient,
    huber_slope,
)
from papertrial.testbeds.fair_tabular import RECIPES, Table

SEEDS = [1000, 1001]
DOUBLE = np.dtype(float)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(verdicts, "RESAMPLES", 99)


@pytest.fixture
def rng():
    return np.random.default_rng(1000)


@pytest.fixture
def streams(rng):
    """Two orders of a table whose labels follow a feature that follows the attribute."""
    n = 400
    a = rng.integers(2, size=n)
    x = np.clip(rng.normal(scale=0.3, size=(n, 4)) + np.outer(a - 0.5, [1, 0.5, 0, 0]), -1, 1)
    y = (x[:, 0] + x[:, 2] + rng.normal(scale=0.2, size=n) > 0).astype(int)
    return method.in_orders(Table(x, y, a, list("pqrs")), SEEDS, n, dtype=float)


def forest_of(streams):
    return SoftForest(streams.x.shape[-1], trees=2, depth=2)


def node_aggregates(streams, model, configurations, decay=1.0):
    return NodeAggregates(model, len(SEEDS), configurations, DOUBLE, decay)


# ---- what the paper's mathematics demands


def test_lambda_zero_is_the_plain_online_forest(streams):
    model = forest_of(streams)
    lam = np.array([0.0, 1.0])
    watched = {}
    with_penalty = method.learn(
        streams,
        model,
        node_aggregates(streams, model, 2),
        lam,
        0.01,
        lambda t, params, step: watched.update({t: params[:, 0].copy()}),
    )
    params = np.stack([model.draw(d) for d in streams.draws("parameters")])[:, None]
    optimizer, grad = Adam(params, 0.01), np.empty_like(params)
    plain = np.empty_like(with_penalty[:, :1])
    for t in range(streams.x.shape[1]):
        x = streams.x[:, t]
        np.testing.assert_array_equal(params[:, 0], watched[t + 1])
        f, walk = model.forward(params, x)
        plain[:, :, t] = f > 0.5
        model.backward(walk, params, x, f - streams.y[:, t, None], grad)
        optimizer.step(params, grad)
    np.testing.assert_array_equal(with_penalty[:, :1], plain)
    assert (with_penalty[:, 1] != plain[:, 0]).any()


def test_with_frozen_weights_the_aggregate_gradient_is_the_exact_one(streams, rng):
    model = forest_of(streams)
    params = rng.normal(size=(2, 3, model.size))
    aggregates = node_aggregates(streams, model, 3)
    for t in range(100):
        _, walk = model.forward(params, streams.x[:, t])
        aggregates.see(streams.x[:, t], streams.a[:, t], params, walk)
        if t in (20, 99):
            for s in range(2):
                exact = exact_gradient(model.w(params)[s], streams.x[s, : t + 1], streams.a[s, : t + 1])
                np.testing.assert_allclose(aggregates.gradient(params)[s], exact, atol=1e-8)
                assert np.abs(exact).max() > 1e-3


def test_exact_gradient_equals_finite_differences_of_the_penalty(streams, rng):
    x, a = streams.x[0, :50], streams.a[0, :50]
    w = rng.normal(size=(1, 3, x.shape[1]))

    def F(w):
        n = 1 / (1 + np.exp(-x @ w[0].T))
        return n[a == 1].mean(axis=0) - n[a == 0].mean(axis=0)

    def penalty(w):  # its slope is F near 0, the sign of F outside
        return np.where(np.abs(F(w)) < 0.01, F(w) ** 2 / 2, np.abs(F(w)))

    assert np.abs(F(w)).min() > 0.02
    w[0, 0] *= 0.001  # one node inside the quadratic part
    assert 0 < np.abs(F(w)[0]) < 0.009
    exact, eps = exact_gradient(w, x, a), 1e-6
    for i, k in np.ndindex(3, x.shape[1]):
        shift = np.zeros_like(w)
        shift[0, i, k] = eps
        np.testing.assert_allclose(exact[0, i, k], (penalty(w + shift) - penalty(w - shift))[i] / (2 * eps), atol=1e-7)


def test_fairness_gradient_of_theta_is_exactly_zero(streams, rng):
    model = forest_of(streams)
    params = rng.normal(size=(2, 1, model.size))
    aggregates = node_aggregates(streams, model, 1)
    for t in range(30):
        _, walk = model.forward(params, streams.x[:, t])
        aggregates.see(streams.x[:, t], streams.a[:, t], params, walk)
    grad = np.zeros_like(params)
    aggregates.block(grad)[...] += aggregates.gradient(params)
    assert not model.theta(grad).any()
    assert model.w(grad).all()


def test_swapping_the_groups_leaves_the_penalty_unchanged(streams):
    model = forest_of(streams)
    lam = np.array([0.3, 3])
    swapped = streams._replace(told=1 - streams.told)
    for penalty in (
        lambda: node_aggregates(streams, model, 2),
        lambda: OutputAggregates(model, 2, 2, DOUBLE),
        lambda: NodeReservoir(model, streams.draws("reservoir"), 50, DOUBLE),
    ):
        first, second = (method.learn(s, model, penalty(), lam, 0.01) for s in (streams, swapped))
        np.testing.assert_array_equal(first, second)
    w = np.random.default_rng(0).normal(size=(1, 3, streams.x.shape[-1]))
    one, other = (exact_gradient(w, streams.x[0], a) for a in (streams.a[0], 1 - streams.a[0]))
    np.testing.assert_allclose(one, other, atol=1e-12)


# ---- the parts


def test_huber_slope_has_the_public_codes_scaling():
    np.testing.assert_allclose(huber_slope(np.array([-0.5, -0.009, 0, 0.004, 0.2])), [-1, -0.009, 0, 0.004, 1])


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_group_means_are_plain_or_bias_corrected_exponential_averages(decay, rng):
    means = GroupMeans((1, 1, 2, 3), decay, DOUBLE)
    groups, values = rng.integers(2, size=40), rng.normal(size=(40, 1, 1, 2))
    slopes = rng.normal(size=(40, 1, 1, 2, 3))
    for t in range(40):
        means.add(groups[t : t + 1], values[t].copy(), slopes[t].copy())
    for g in (0, 1):
        mine = np.flatnonzero(groups == g)
        weights = decay ** np.arange(len(mine))[::-1]
        weights = weights / weights.sum()
        np.testing.assert_allclose(means.d[0, g, 0], weights @ values[mine, 0, 0], atol=1e-12)
        np.testing.assert_allclose(means.grad_d[0, g, 0], np.tensordot(weights, slopes[mine, 0, 0], 1), atol=1e-12)
    assert means.floats == 2 * (2 + 6)


def test_nothing_is_pushed_before_both_groups_were_seen(rng):
    means = GroupMeans((1, 1, 2, 3), 1.0, DOUBLE)
    means.add(np.array([1]), rng.normal(size=(1, 1, 2)), rng.normal(size=(1, 1, 2, 3)))
    assert not means.gradient().any()
    means.add(np.array([0]), rng.normal(size=(1, 1, 2)), rng.normal(size=(1, 1, 2, 3)))
    assert means.gradient().all()
    assert not exact_gradient(rng.normal(size=(1, 2, 3)), rng.normal(size=(5, 3)), np.ones(5, int)).any()


@pytest.mark.parametrize("model", [Logistic(4), Mlp(4, width=3), SoftForest(4, trees=2, depth=2)])
def test_gradients_of_the_cross_entropy_and_of_the_output_equal_finite_differences(model, rng):
    params, x, y = rng.normal(size=(2, 2, model.size)), rng.normal(size=(2, 4)), np.array([[0], [1]])

    def loss(params):
        f = model.forward(params, x)[0]
        return -np.log(np.where(y == 1, f, 1 - f))

    f, cache = model.forward(params, x)
    task, output = np.empty_like(params), np.empty_like(params)
    model.backward(cache, params, x, f - y, task)
    model.backward(cache, params, x, f * (1 - f), output)
    for k in range(model.size):
        shift = np.zeros(model.size)
        shift[k] = 1e-6
        up, down = params + shift, params - shift
        np.testing.assert_allclose(task[..., k], (loss(up) - loss(down)) / 2e-6, atol=1e-7)
        slope = (model.forward(up, x)[0] - model.forward(down, x)[0]) / 2e-6
        np.testing.assert_allclose(output[..., k], slope, atol=1e-7)


def test_adam_is_the_textbooks(rng):
    params = rng.normal(size=7)
    ours, m, v = params.copy(), 0, 0
    optimizer = Adam(ours, 0.01)
    for t in range(1, 30):
        g = rng.normal(size=7)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        params -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        optimizer.step(ours, g.copy())
        np.testing.assert_allclose(ours, params, rtol=1e-12)


def test_the_reservoir_is_a_uniform_sample_and_counts_its_passes():
    size, n, streams = 10, 40, 400
    model = SoftForest(1, trees=1, depth=1)
    held = NodeReservoir(model, [np.random.default_rng(s) for s in range(streams)], size, DOUBLE)
    params = np.zeros((streams, 1, model.size))
    for t in range(n):
        held.see(np.full((streams, 1), t), np.ones(streams, int), params, None)
    share = np.bincount(held.x.astype(int).ravel(), minlength=n) / streams
    assert np.abs(share - size / n).max() < 4 * np.sqrt(0.25 * 0.75 / streams)
    held.gradient(params)
    assert held.passes == size
    assert held.floats == size * 2


# ---- baselines


def test_thresholds_leave_the_tree_alone_at_strength_zero_and_even_out_the_rates_at_one(rng):
    a = rng.integers(2, size=6000)
    scores = np.clip(rng.normal(0.4 + 0.2 * a, 0.15), 0, 1)
    none, half, full = hoeffding.corrected(scores, a, [0, 0.5, 1], rng)
    np.testing.assert_array_equal(none, scores > 0.5)
    gap = [abs(d[a == 1].mean() - d[a == 0].mean()) for d in (none, half, full)]
    assert gap[0] > 0.3
    assert gap[2] < 0.03 < gap[1] < gap[0]
    assert abs(full.mean() - none.mean()) < 0.03


def test_thresholds_split_ties(rng):
    a = np.arange(4000) % 2
    scores = np.where(a == 1, 0.8, np.where(rng.random(4000) < 0.5, 0.8, 0.2))  # a group of one score only
    (full,) = hoeffding.corrected(scores, a, [1], rng)
    assert abs(full[a == 1].mean() - full[a == 0].mean()) < 0.1


def test_one_hot_columns_are_joined():
    x = np.array([[0.5, 0, 1, 1], [0.1, 1, 0, 1]])
    columns, nominal = hoeffding.attributes(x, ["age", "race=White", "race=Black", "one"])
    assert columns == {"age": [0.5, 0.1], "race": [1, 0], "one": [1.0, 1.0]}
    assert nominal == ["race"]


@pytest.mark.slow  # river's import alone takes a second
def test_the_hoeffding_tree_learns_after_it_has_predicted(rng):
    pytest.importorskip("river")
    x = rng.uniform(-1, 1, size=(1200, 2))
    y = (x[:, 0] > 0.2).astype(int)
    scores = hoeffding.tree_scores(x, y, ["u", "v"], delta=1e-7)
    assert scores[0] == 0
    assert ((scores > 0.5) == y)[600:].mean() > 0.95


def test_majority_predicts_the_label_that_was_more_frequent():
    y = np.array([[1, 1, 0, 0, 0, 1]])
    streams = SimpleNamespace(y=y, a=np.array([[0, 1] * 3]), seeds=[1000])
    (row,) = method.majority(streams, {"lam": [0], "sweep": [0]})
    assert row["accuracy"] == pytest.approx(2 / 6, abs=1e-6)  # predicts 0 1 1 1 0 0


# ---- the whole


def test_lambda_lowers_the_gap_unless_the_attribute_is_permuted(streams):
    settings = {"sweep": [0, 1], "lam": [0, 1], "lr": 0.02, "decay": 1.0, "every": 200, "trees": 2, "depth": 2}
    gaps = {}
    for name in ("aranyani", "shuffled"):
        rows = [r for r in method.METHODS[name](streams, settings) if "dp_gap" in r]
        gaps[name] = [np.mean([r["dp_gap"] for r in rows if r["lam"] == lam]) for lam in (0, 1)]
    assert gaps["aranyani"][0] == gaps["shuffled"][0]
    assert gaps["aranyani"][1] < 0.6 * gaps["aranyani"][0] < gaps["shuffled"][1]


SETTINGS = {
    "sweep": [0, 1], "lam": [0, 0.05, 1], "lr": 0.01, "decay": 0.9, "every": 40, "trees": 2, "depth": 2, "size": 20,
    "width": 4, "delta": 0.01,
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(m, marks=[pytest.mark.slow] if m == "hoeffding" else []) for m in method.METHODS]
)
def test_splitting_the_seeds_changes_nothing(name, rng):
    if name == "hoeffding":
        pytest.importorskip("river")
    schema = RECIPES["compas"].schema
    arrays = {
        "numeric": np.column_stack([rng.uniform(*span, size=150) for span in schema.NUMERIC.values()]),
        "categorical": np.column_stack([rng.integers(2, size=150) for _ in schema.CATEGORICAL]),
        "label": rng.integers(2, size=150),
    }
    inputs = Inputs(datasets={"compas": arrays})
    problem, settings = {"name": "compas", "n": 100}, SETTINGS
    if name == "majority":
        settings = settings | {"lam": [0]}
    together = method.run(problem, name, settings, SEEDS, inputs, "cpu").rows
    apart = [row for seed in SEEDS for row in method.run(problem, name, settings, [seed], inputs, "cpu").rows]
    assert len(together) == len(apart)
    for a, b in zip(together, apart, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), atol=2e-4)
        assert np.isfinite(list(a.values())).all()
    keys = [(r["seed"], r["lam"], r["step"]) for r in together]
    assert len(set(keys)) == len(keys)


# ---- judging


def test_better_trade_off_is_judged_against_the_best_baseline_of_each_table():
    def table(ours, output=0.7):
        areas = {
            "aranyani": ours,
            "majority": 0.6,
            "logistic": 0.8,
            "mlp": 0.7,
            "hoeffding": 0.7,
            "forest-output": output,
        }
        return Evidence(
            pd.DataFrame(
                {"problem": p, "method": m, "seed": s, "lam": lam, "accuracy": 0.5, "trade_off": a + 0.001 * s}
                for p in ("adult", "compas")
                for m, a in areas.items()
                for s in range(5)
                for lam in (0, 1)
            )
        )

    criteria = evidence.better_trade_off(table(0.81))
    assert verdict(criteria) == REPLICATED
    assert criteria[0].estimate == pytest.approx(0.01)
    assert criteria[0].n == 10
    assert verdict(evidence.better_trade_off(table(0.79))) == NOT_REPLICATED
    assert verdict(evidence.better_trade_off(table(0.81, output=0.82))) == NOT_REPLICATED
    with pytest.raises(LookupError):
        evidence.better_trade_off(table(0.81).standing_in("nothing", "aranyani"))


def closeness_table(cosine, gap, accuracy, passes=1.0):
    rows = []
    for p in ("adult", "compas"):
        for s in range(3):
            for lam in (0, 0.05, 0.1, 1):
                final = {"problem": p, "seed": s, "lam": lam, "step": 1000, "floats": 9}
                mine = final | {"accuracy": 0.8 + accuracy, "dp_gap": 0.01 + gap, "passes": passes}
                rows.append({"method": "aranyani"} | mine | ({"cosine": cosine} if lam else {}))
                if lam:
                    rows.append(
                        {"method": "aranyani", "problem": p, "seed": s, "lam": lam, "step": 500, "cosine": cosine}
                    )
                if lam != 0.05:  # not in the reservoir's sweep
                    rows.append({"method": "reservoir"} | final | {"accuracy": 0.8, "dp_gap": 0.01, "passes": 900.0})
    return Evidence(pd.DataFrame(rows))


def test_the_aggregate_gradient_is_judged_on_all_four_counts():
    good = evidence.aggregates_stand_in(closeness_table(0.9, 0.01, -0.005))
    assert verdict(good) == REPLICATED
    np.testing.assert_allclose([c.estimate for c in good], [0.9, 0.01, -0.005, 1 / 900])
    for bad in ((0.7, 0, 0), (0.9, 0.03, 0), (0.9, 0, -0.02), (0.9, 0, 0, 20.0)):
        assert verdict(evidence.aggregates_stand_in(closeness_table(*bad))) == NOT_REPLICATED


def test_control_by_lambda_is_judged_on_every_table():
    def table(adult, compas):
        gaps = {"adult": adult, "compas": compas}
        return Evidence(
            pd.DataFrame(
                {
                    "problem": p,
                    "method": "aranyani",
                    "seed": s,
                    "lam": lam,
                    "accuracy": 0.5,
                    "dp_gap": g * (1 + 0.1 * s),
                }
                for p, values in gaps.items()
                for s in range(3)
                for lam, g in zip(evidence.LAMBDAS, values, strict=True)
            )
        )

    falling, flat = [0.2, 0.15, 0.1, 0.05, 0.03, 0.01], [0.2, 0.19, 0.18, 0.17, 0.16, 0.15]
    assert verdict(evidence.lambda_controls(table(falling, falling))) == REPLICATED
    assert verdict(evidence.lambda_controls(table(falling, flat))) == NOT_REPLICATED
    assert verdict(evidence.lambda_controls(table(falling, falling[::-1]))) == NOT_REPLICATED
    assert evidence.spearman_of_mean(np.full((3, 6), 0.1)) == 0


def test_rank_correlation_is_scipys(rng):
    stats = pytest.importorskip("scipy.stats")
    for gaps in (rng.random((5, 6)), np.array([[0.1, 0.1, 0.3, 0.2, 0.2, 0.2]])):
        expected = stats.spearmanr(evidence.LAMBDAS, gaps.mean(axis=0)).statistic
        assert evidence.spearman_of_mean(gaps) == pytest.approx(expected, abs=1e-9)
