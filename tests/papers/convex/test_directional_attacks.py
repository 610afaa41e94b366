"""directional-attacks: attacks and direct search on problems seen through a network."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.direct_search import DirectSearch, Meter, Point, directions, in_ball
from papertrial.models.surrogates import train
from papertrial.papers.convex.directional_attacks import evidence
from papertrial.papers.convex.directional_attacks.method import (
    ATTACKS,
    METHODS,
    attacked,
    blind,
    direct_search,
    fgsm,
    hybrid,
    local_gain,
    pgd,
    quarter_counts,
    run,
)
from papertrial.testbeds.process_models import reactor_chain, transesterification
from papertrial.testbeds.surrogates import SIMULATED, Network, Task, counterfactual_task, simulated_task


def rng(*seed):
    return np.random.default_rng(seed or 0)


def network(sizes, seed=1, scale=1.0):
    g = rng(seed)
    pairs = list(itertools.pairwise(sizes))
    state = {f"W{i}": scale * g.standard_normal(ab) / np.sqrt(ab[0]) for i, ab in enumerate(pairs)}
    return Network(state | {f"b{i}": scale * 0.1 * g.standard_normal(b) for i, (_, b) in enumerate(pairs)})


def task(net, u, c=lambda Y: -np.ones((len(Y), 1)), start=None):
    """Maximise <u, Phi>, feasible everywhere unless c says otherwise."""
    n = len(net.layers[0][0])
    nothing = lambda Y: np.zeros_like(Y)  # noqa: E731
    gradient = np.concatenate([u, np.zeros(n)])
    return Task(
        net,
        lambda Y: Y @ gradient,
        lambda Y: np.broadcast_to(gradient, Y.shape),
        c,
        nothing,
        np.full(n, 0.5) if start is None else start,
        lambda k, g: g.random((k, n)),
        lambda x: (np.zeros(len(x)), -np.ones(len(x))),
    )


def started(task, budget):
    meter = Meter(task.values, budget)
    return meter, meter.first_better(task.start[None], -np.inf)


def searched(task, method, budget=400, seed=2, **options):
    meter, at = started(task, budget)
    return meter, METHODS[method](task, meter, at, rng(seed), **options)


MODEL = {"samples": 300, "widths": [16, 16], "epochs": 6, "epochs_digits": 200}


@pytest.fixture(scope="module")
def inputs():
    """Two poorly trained networks, on blobs in place of digits."""
    g = rng(3)
    y = g.integers(10, size=300)
    x = np.clip(0.5 * g.random((10, 64))[y] + 0.5 * g.random((10, 64))[y] + 0.05 * g.standard_normal((300, 64)), 0, 1)
    data = Inputs({"digits": {"x": 16 * x, "y": y}}, {})
    parts = {part: train(part, MODEL, data, "cpu", None).state for part in ("0", "1")}
    return Inputs(data.datasets, {"surrogates": parts})


# ---- what must hold


def test_a_linear_networks_attack_is_the_exact_maximiser_and_a_zero_network_is_not_moved():
    linear = task(network([6, 3]), np.array([1.0, -2, 0.5]))
    meter, at = started(linear, 1000)
    r = 0.2
    for attack in (fgsm, pgd):
        d = attack(linear, meter, at.x, r, rng())
        corners = r * (2 * (np.arange(64)[:, None] >> np.arange(6) & 1) - 1)
        assert linear.values((at.x + d)[None])[0] == pytest.approx(linear.values(at.x + corners)[0].max())

    zero = task(network([6, 8, 3], scale=0.0), np.ones(3))
    for attack in (fgsm, pgd):
        assert not attack(zero, meter, zero.start, r, rng()).any()
    ends = [searched(zero, "hybrid", attack="fgsm")[0], searched(zero, "direct search")[0]]
    assert (ends[0].best.x == ends[1].best.x).all() and ends[0].best.value == ends[1].best.value


def test_without_attacks_the_hybrid_is_direct_search_step_for_step():
    problem = task(network([5, 16, 2]), np.array([1.0, 1]))
    meters, kinds = [], []
    for method in (lambda *a: hybrid(*a, attack="fgsm", r=0.0), direct_search):
        meter, at = started(problem, 500)
        kinds.append(method(problem, meter, at, rng(4)))
        meters.append(meter)
    assert meters[0].history == meters[1].history and kinds[0] == kinds[1]
    # with attacks, the search still draws the same directions
    drawn = [rng(4), rng(4)]
    drawn[0].spawn(1)
    assert (directions(5, drawn[0]) == directions(5, drawn[1])).all()


@pytest.mark.parametrize("method", ["hybrid", "direct search", "attack only", "projected gradient"])
def test_the_incumbent_is_feasible_and_never_gets_worse(method):
    bounded = task(network([5, 16, 2]), np.array([1.0, 1]), c=lambda Y: Y[:, :1] - 0.3)
    points = rng(5).random((200, 5))
    bounded = replace(bounded, start=points[bounded.values(points)[1] <= 0][0])
    options = {"attack": "pgd"} if method in ("hybrid", "attack only") else {}
    meter, _ = searched(bounded, method, **options)
    values = [value for _, value in meter.history]
    assert (np.diff(values) > 0).all() and values[-1] == meter.best.value
    assert bounded.values(meter.best.x[None])[1] <= 1e-12
    assert (meter.best.x >= 0).all() and (meter.best.x <= 1).all()


def test_direct_search_finds_the_maximum_of_a_concave_quadratic():
    g = rng(6)
    A = g.standard_normal((5, 5))
    H, peak = A @ A.T + np.eye(5), g.uniform(0.2, 0.8, 5)
    meter = Meter(lambda x: (-np.einsum("bi,ij,bj->b", x - peak, H, x - peak), -np.ones(len(x))), 20_000)
    at = meter.first_better(np.full((1, 5), 0.1), -np.inf)
    search, draw = DirectSearch(), rng(7)
    while not meter.spent and not search.converged:
        at = search.step(at, meter, draw)
    assert np.abs(at.x - peak).max() < 1e-4


@pytest.mark.parametrize("n", [2, 6, 20])
def test_the_poll_positively_spans(n):
    D = directions(n, rng(8))
    v = rng(9).standard_normal((1000, n))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    assert (v @ D.T).max(axis=1).min() >= 1 / np.sqrt(n) - 1e-12
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1)


def test_the_pulled_back_gradient_is_the_derivative():
    net, g = network([7, 12, 9, 3]), rng(10)
    for seed in range(5):
        x, u = g.random((1, 7)), g.standard_normal((1, 10))
        problem = task(net, u[0, :3])
        h = 1e-6 * np.eye(7)
        numeric = ((problem.phi(x + h) - problem.phi(x - h)) @ u[0]) / 2e-6
        np.testing.assert_allclose(problem.pull_back(x, u)[0], numeric, atol=1e-6, err_msg=str(seed))


@pytest.mark.slow
def test_foolbox_finds_the_same_attack():
    """Projected gradient steps against a linear two-class network, where the loss's sign is that of a margin."""
    foolbox = pytest.importorskip("foolbox")
    torch = pytest.importorskip("torch")
    net = network([6, 2])
    layer = torch.nn.Linear(6, 2)
    layer.load_state_dict({"weight": torch.tensor(net.layers[0][0].T), "bias": torch.tensor(net.layers[0][1])})
    x = rng(11).uniform(0.3, 0.7, 6).astype(np.float32)
    model = foolbox.PyTorchModel(layer.float().eval(), bounds=(0, 1), device="cpu")
    steps = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10, random_start=False)
    start = torch.tensor(x)[None]
    peer = steps.run(model, start, foolbox.criteria.Misclassification(torch.tensor([0])), epsilon=0.2)
    margin = task(net, np.array([-1.0, 1.0]), start=x.astype(float))  # away from class 0
    meter, at = started(margin, 1000)
    d = pgd(margin, meter, at.x, 0.2, rng())
    np.testing.assert_allclose(peer.numpy()[0] - x, d, atol=1e-5)


# ---- more mathematics


def test_what_is_charged():
    problem = task(network([4, 8, 2]), np.ones(2))
    meter, at = started(problem, 1000)
    assert meter.used == 1
    fgsm(problem, meter, at.x, 0.1, rng())
    assert meter.used == 4
    pgd(problem, meter, at.x, 0.1, rng())
    assert meter.used == 34
    blind(problem, meter, at.x, 0.1, rng())
    assert meter.used == 37
    step = fgsm(problem, Meter(problem.values, 9), at.x, 0.01, rng())
    worse = np.tile(at.x - step, (6, 1))
    assert meter.first_better(worse, at.value) is None and meter.used == 43
    better = at.x + step
    found = meter.first_better(np.vstack([worse[:2], better[None], worse]), at.value)
    assert meter.used == 46 and (found.x == better).all()
    assert meter.after(45) == at.value and meter.after(46) == found.value


def test_nothing_counts_beyond_the_budget():
    meter = Meter(lambda x: (x[:, 0], -np.ones(len(x))), 5)
    f, violation = meter.values(np.linspace(0, 1, 11)[:, None])
    assert meter.spent and meter.best.value == pytest.approx(0.4)
    assert (f[5:] == -np.inf).all() and (violation[5:] == np.inf).all()
    assert meter.first_better(np.ones((1, 1)), 0.0) is None


def test_attack_candidates_shrink_until_one_is_feasible():
    linear = task(network([3, 1], seed=12), np.ones(1))
    w = linear.network.layers[0][0][:, 0]
    step = 0.4 * np.abs(w).sum()  # what a full step gains
    limit = linear.values(linear.start[None])[0][0] + 0.3 * step
    bounded = task(linear.network, np.ones(1), c=lambda Y: Y[:, :1] - limit)
    meter, at = started(bounded, 100)
    found = attacked(bounded, meter, at, ATTACKS["fgsm"], 0.4, rng())
    np.testing.assert_allclose(found.x - at.x, 0.1 * np.sign(w))  # a quarter


def test_covering_keeps_away_from_earlier_points_and_the_ball_is_uniform():
    points = in_ball(20_000, 3, rng(13))
    radius = np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(np.quantile(radius, [0.25, 0.5]), np.array([0.25, 0.5]) ** (1 / 3), atol=0.01)
    search, draw = DirectSearch(), rng(14)
    chosen = []
    for _ in range(30):
        chosen.append(search.cover(np.full(2, 0.5), draw))
        search.tried.append(chosen[-1])
    gaps = lambda p: np.sort(np.linalg.norm(p[:, None] - p, axis=2), axis=1)[:, 1].min()  # noqa: E731
    assert gaps(np.stack(chosen)) > 2 * gaps(0.5 + 0.25 * in_ball(30, 2, rng(15)))


def test_simulators_keep_mass():
    x = rng(16).random((50, 10))
    outputs = reactor_chain(np.hstack([x[:, :9], np.full((50, 1), 50.0)]))  # perfect separation
    made = (outputs[:, 0], outputs[:, 1], outputs[:, 3])
    np.testing.assert_allclose(sum(made), 0.5 + x[:, 7])
    x = rng(17).random((50, 6))
    coarse, fine = transesterification(x, 60), transesterification(x, 240)
    np.testing.assert_allclose(coarse, fine, atol=1e-5)
    assert (coarse[:, [0, 1, 3]] >= -1e-9).all() and (coarse[:, 0] <= 1).all()
    # without water and with all the time in the world the more methanol the more ester
    few, many = (transesterification(np.array([[0.5, 1, m, 1, 0.5, 0]]))[0, 0] for m in (0.0, 1.0))
    assert many > few


def test_gradients_of_tasks(inputs):
    state = inputs.models["surrogates"]["0"]
    digits = inputs.datasets["digits"]
    tasks = [simulated_task(SIMULATED[f], Network(state, f"{f}/"), rng(18)) for f in SIMULATED]
    tasks.append(counterfactual_task(Network(state, "digits/"), digits["x"] / 16, digits["y"], rng(19)))
    for problem in tasks:
        assert problem.values(problem.start[None])[1] <= 0
        Y = problem.phi(problem.draw(1, rng(20)))
        h = 1e-6 * np.eye(Y.shape[1])
        numeric = (problem.f(Y + h) - problem.f(Y - h)) / 2e-6
        np.testing.assert_allclose(problem.f_gradient(Y)[0], numeric, atol=1e-6)
        total = lambda Y, problem=problem: np.maximum(problem.c(Y), 0).sum(axis=1)  # noqa: E731
        np.testing.assert_allclose(problem.c_gradient(Y)[0], (total(Y + h) - total(Y - h)) / 2e-6, atol=1e-5)


def test_local_gain():
    slope = task(network([3, 1], seed=21), np.ones(1))
    w = slope.network.layers[0][0][:, 0]
    at = Point(slope.start, float(slope.values(slope.start[None])[0][0]))
    assert 0.5 * 1e-2 * np.linalg.norm(w) < local_gain(slope, at, rng(22)) <= 1e-2 * np.linalg.norm(w)
    top = Point(np.clip(np.sign(w), 0, 1), float(slope.values(np.clip(np.sign(w), 0, 1)[None])[0][0]))
    assert local_gain(slope, top, rng(23)) == 0


def test_quarters():
    kinds = ["attack", "", "search", "", "", "", "search", "attack"]
    counts = {"first_attacks": 1, "first_successes": 1, "last_attacks": 1, "last_successes": 2}
    assert quarter_counts(kinds) == counts
    assert set(quarter_counts([]).values()) == {0}


# ---- runs


RUNS = [
    ("hybrid", {"attack": "fgsm"}),
    ("hybrid", {"attack": "pgd"}),
    ("hybrid", {"attack": "blind"}),
    ("direct search", {}),
    ("attack only", {"attack": "pgd"}),
    ("projected gradient", {}),
    ("cma-es", {"sigma": 0.2}),
    ("nelder-mead", {"size": 0.2}),
    ("random search", {}),
    ("multistart", {"times": 5}),
]


@pytest.mark.parametrize(("algorithm", "options"), RUNS)
def test_splitting_the_seeds_changes_nothing(algorithm, options, inputs):
    problem = {"name": "p", "family": "process", "starts": 1, "budget": 120}

    def rows(seeds):
        return run(problem, "m", {"algorithm": algorithm, **options}, seeds, inputs, "cpu").rows

    whole = rows([0, 1])
    assert whole == rows([0]) + rows([1])
    assert all(np.isfinite(v) for row in whole for v in row.values())
    assert all(row["after_100"] >= row["after_10"] >= row["before"] for row in whole)


def test_methods_meet_the_same_start_and_stay_in_the_budget(inputs):
    problem = {"name": "p", "family": "counterfactual", "starts": 2, "budget": 60}
    found = [run(problem, "m", {"algorithm": a, **o}, [1], inputs, "cpu") for a, o in (RUNS[0], RUNS[3], RUNS[6])]
    assert len({tuple(row["before"] for row in f.rows) for f in found}) == 1
    assert all(row["value"] == row["after_100"] for f in found for row in f.rows)


# ---- judging


def table(ahead=0.5, early=0.2, attacks=(8, 2), optimal=(20, 4), dfo=0.5):
    """Handmade results: regret after the whole budget is 1e-2 for the hybrid, 10^ahead times that for cDSM."""
    g, rows = rng(24), []

    def add(problem, method, seed, start, regret, gain=0.0, share=0.8, **more):
        after = {5: 3 * regret, 10: None, 25: 2 * regret, 100: regret}
        row = {"problem": problem, "method": method, "seed": seed, "start": start, "before": 0.0, "local_gain": gain}
        row |= {f"after_{p}": 1 - min(1.0, r) for p, r in after.items() if r is not None}
        rows.append(row | {"after_10": share * (1 - regret), "value": 1 - regret} | more)

    for problem in evidence.PROBLEMS:
        for i, (seed, start) in enumerate(np.ndindex(5, 4)):
            noise = 1 + 0.05 * g.standard_normal()
            quarters = {"first_attacks": attacks[0], "first_successes": 10}
            quarters |= {"last_attacks": attacks[1], "last_successes": 10}
            add(problem, "hybrid", seed, start, 0.01 * noise, 0.1 * (i >= optimal[0]), 0.7 + early, **quarters)
            add(problem, "cdsm", seed, start, 0.01 * 10**ahead, share=0.7)
            add(problem, "attack-only", seed, start, 0.2, 0.1 * (i >= optimal[1]))
            for method, factor in zip(evidence.DFO, (10**dfo, 20, 40), strict=True):
                add(problem, method, seed, start, 0.01 * factor)
            add(problem, "reference", seed, start, 0.0)
    return Evidence(pd.DataFrame(rows))


CASES = [
    ("better_than_direct_search", {}, "replicated"),
    ("better_than_direct_search", {"ahead": -0.3}, "not replicated"),
    ("early_gain", {}, "replicated"),
    ("early_gain", {"early": -0.2}, "not replicated"),
    ("early_gain", {"attacks": (3, 3)}, "not replicated"),
    ("attacks_need_direct_search", {}, "replicated"),
    ("attacks_need_direct_search", {"optimal": (12, 4)}, "not replicated"),
    ("attacks_need_direct_search", {"optimal": (18, 20)}, "not replicated"),
    ("better_than_general_search", {}, "replicated"),
    ("better_than_general_search", {"dfo": -0.5}, "not replicated"),
]


@pytest.mark.parametrize(("claim", "change", "expected"), CASES)
def test_judging(claim, change, expected, monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 20)
    assert verdict(getattr(evidence, claim)(table(**change))) == expected


def test_attacks_alone_in_the_hybrids_place_fail(monkeypatch):
    monkeypatch.setattr("papertrial.engine.verdicts.RESAMPLES", 20)
    swapped = table().standing_in("attack-only", "hybrid")
    assert verdict(evidence.attacks_need_direct_search(swapped)) == "not replicated"


def test_regret_is_measured_from_the_best_known():
    results = table()
    assert (evidence.regrets(results, "process", "reference", 4000) == 1e-4).all(axis=None)
    assert evidence.regrets(results, "kinetics", "attack-only", 4000).to_numpy() == pytest.approx(0.2)
    # the best known is a network's, or, where every start has its own target, a start's
    rows = results.rows
    rows.loc[(rows["method"] == "reference") & (rows["start"] == 0), "value"] = 3.0
    assert evidence.range_of(results, "process")["best"].to_numpy() == pytest.approx(3.0)
    assert evidence.range_of(results, "counterfactual")["best"].unstack().iloc[0, 1:].max() == pytest.approx(1.0)
