"""lion-lyapunov: what Lion minimises, how it gets there, and how that is judged."""

import numpy as np
import pandas as pd
import pytest

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import verdict
from papertrial.methods.optimizers.lion import Lion
from papertrial.methods.optimizers.signsgd import SignSGD
from papertrial.papers.optimizers.lion_lyapunov import evidence
from papertrial.papers.optimizers.lion_lyapunov.kappa import KAPPAS
from papertrial.papers.optimizers.lion_lyapunov.method import lyapunov, minimum, run, tightest_bound
from papertrial.papers.optimizers.lion_lyapunov.objectives import logistic, minibatches, tanh_net, tanh_net_start
from papertrial.testbeds.optbench.schedule import hold_cosine
from papertrial.testbeds.quadratics import random_quadratic

RNG = np.random.default_rng
ODE = {"alpha": 0.7, "gamma": 1.3, "eps": 0.1, "lambda": 0.8}


@pytest.fixture
def inputs():
    rng = RNG(0)
    x = rng.normal(size=(80, 5))
    return Inputs({"breast_cancer": {"x": x, "y": (x[:, 0] + x[:, 1] > 0).astype(int)}})


# ---- the card's "must hold"


def test_without_decay_and_momentum_it_is_signsgd_bit_for_bit():
    rng = RNG(1000)
    lion, sign = Lion(beta1=0.0, beta2=0.0, weight_decay=0.0), SignSGD()
    x = y = rng.normal(size=50)
    state = lion.init(x)
    for _ in range(100):
        g = rng.normal(size=50)
        x, state = lion.step(x, g, state, 0.01)
        y, _ = sign.step(y, g, {}, 0.01)
        assert np.array_equal(x, y)


@pytest.mark.parametrize("lr_lambda", [1e-3, 0.3, 1.0])
def test_inside_the_box_no_step_leaves_it(lr_lambda):
    rng = RNG(1001)
    lam = 2.0
    rule = Lion(weight_decay=lam)
    x = rng.uniform(-1 / lam, 1 / lam, size=(200, 10))
    x[:, 0] = rng.choice([-1, 1], size=200) / lam  # some at the bound
    x, _ = rule.step(x, rng.normal(size=x.shape), {"m": rng.normal(size=x.shape)}, lr_lambda / lam)
    assert np.abs(x).max() <= (1 + 1e-15) / lam


@pytest.mark.parametrize("lam", [0.5, 1.0, 4.0])
def test_the_limit_in_one_dimension_is_the_clipped_minimum(lam):
    target, peak, floor, K = np.linspace(-3, 3, 25), 0.01, 0.01, 4000
    rule = Lion(weight_decay=lam)
    x = np.zeros_like(target)
    state = rule.init(x)
    for k in range(K):
        x, state = rule.step(x, x - target, state, peak * hold_cosine(k, K, floor))
    assert np.abs(x - np.clip(target, -1 / lam, 1 / lam)).max() <= peak * floor


@pytest.mark.parametrize("name", KAPPAS)
def test_fenchel_young(name):
    kappa, rng = KAPPAS[name], RNG(1002)
    m = rng.normal(size=(300, 6)) * 10.0 ** rng.uniform(-3, 1, size=(300, 1))
    y = rng.uniform(-1, 1, size=(300, 6)) / np.sqrt(6)  # within the ball, hence in every domain
    assert (kappa.conjugate(y) + kappa.value(m) - (y * m).sum(axis=1) >= -1e-12).all()
    y = kappa.subgradient(m)
    equality = kappa.conjugate(y) + kappa.value(m) - (y * m).sum(axis=1)
    assert np.abs(equality).max() <= 1e-12 * max(1.0, kappa.value(m).max())


# ---- the mathematics around it


@pytest.mark.parametrize("name", KAPPAS)
def test_subgradients_are_gradients_where_there_is_one(name):
    kappa, m, h = KAPPAS[name], RNG(1003).normal(size=6), 1e-6
    slopes = [(kappa.value(m + h * e) - kappa.value(m - h * e)) / (2 * h) for e in np.eye(6)]
    assert np.allclose(kappa.subgradient(m), slopes, atol=1e-6)


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_conjugates_are_infinite_outside(name):
    assert np.isinf(KAPPAS[name].conjugate(np.array([0.0, 1.1])))


def test_the_conjugate_of_huber_is_the_largest_gap():
    kappa = KAPPAS["huber"]
    m = np.linspace(-3, 3, 60001)[:, None]
    for y in (-1.0, -0.4, 0.0, 0.9):
        assert np.isclose(kappa.conjugate(np.array([y])), (y * m[:, 0] - kappa.value(m)).max(), atol=1e-6)


@pytest.mark.parametrize("loss", [logistic, tanh_net])
def test_gradients_by_finite_differences(loss):
    rng = RNG(1004)
    A, t = rng.normal(size=(2, 7, 3)), rng.integers(2, size=(2, 7)).astype(float)
    d = 3 if loss is logistic else len(tanh_net_start(rng, 3))
    x, h = rng.normal(size=(2, d)), 1e-6
    _, g = loss(x, A, t)
    numeric = [(loss(x + h * e, A, t)[0] - loss(x - h * e, A, t)[0]) / (2 * h) for e in np.eye(d)]
    assert np.allclose(g, np.transpose(numeric), atol=1e-8)


@pytest.mark.parametrize("name", KAPPAS)
def test_H_falls_along_the_flow(name):
    """dH/dt <= 0 at random feasible points, by a small step along x' and m'."""
    kappa, rng, h, p = KAPPAS[name], RNG(1005), 1e-7, ODE
    f = random_quadratic(rng, 6, 10, 2.0)
    x = rng.uniform(-0.9, 0.9, size=(400, 6)) / np.sqrt(6) / p["lambda"]
    m = rng.normal(size=x.shape)
    dm = -p["alpha"] * f.grad(x) - p["gamma"] * m
    dx = kappa.subgradient(m + p["eps"] * dm) - p["lambda"] * x

    def H(x, m):
        return lyapunov(kappa, f.value(x), x, m, p)

    assert ((H(x + h * dx, m + h * dm) - H(x, m)) / h <= 1e-5).all()


def test_the_tightest_bound_answers_for_every_pair():
    rng = RNG(1006)
    dist, decay = rng.uniform(1, 2, size=(30, 3)), 0.9 ** np.arange(30.0)
    bound = tightest_bound(dist, decay)
    assert np.isinf(bound[0]).all()
    for t in range(1, 30):
        pairs = [decay[t] / decay[s] * dist[s] for s in range(t)]
        assert np.allclose(bound[t], np.min(pairs, axis=0))


def test_the_reference_is_the_projection_where_coordinates_are_independent():
    f = random_quadratic(RNG(1007), 8, 10, 2.0)
    separable = type(f)(np.diag(np.linspace(0.1, 1, 8)), f.optimum)
    assert np.allclose(minimum(separable, np.zeros(8), 0.5), np.clip(f.optimum, -0.5, 0.5), atol=1e-8)
    assert np.allclose(minimum(f, np.zeros(8), np.inf), f.optimum, atol=1e-6)


def test_batches_are_the_seeds_own():
    X, y = np.arange(50.0)[:, None], np.arange(50.0)
    both = [A for A, _ in minibatches(X, y, [1000, 1001], 1500, 4)]
    alone = [A for A, _ in minibatches(X, y, [1001], 1500, 4)]
    assert np.array_equal(np.stack(both)[:, 1], np.stack(alone)[:, 0])
    assert len(alone) == 1500


# ---- runs


BOX = {"name": "box-quadratic", "task": "box", "objective": "quadratic", "dim": 20, "condition": 100, "spread": 2.0}
BOX |= {"lambdas": [1.0, 5.0], "lr": 1e-2, "steps": 2000}
ENTRY = {"name": "entry-tanh-net", "task": "entry", "objective": "tanh-net", "batch": 8, "lambdas": [2.0]}
ENTRY |= {"lrs": [0.05], "horizon": 20, "logs": 100}
FLOW = {"name": "ode-tanh-net", "task": "ode", "alpha": 1.0, "gamma": 1.0, "eps": 0.1, "lambda": 1.0, "h": 5e-3}
FLOW |= {"steps": 200}


@pytest.mark.parametrize("problem", [BOX | {"steps": 50}, ENTRY, FLOW], ids=lambda p: p["task"])
def test_splitting_the_seeds_changes_nothing(problem, inputs):
    together = run(problem, "lion", {}, [1000, 1001], inputs, "cpu").rows
    apart = [row for seed in (1000, 1001) for row in run(problem, "lion", {}, [seed], inputs, "cpu").rows]
    keys = [k for k in together[0] if k in ("seed", "lambda", "lr", "kappa")]
    together, apart = (pd.DataFrame(rows).sort_values(keys).reset_index(drop=True) for rows in (together, apart))
    pd.testing.assert_frame_equal(together, apart, rtol=1e-9, atol=1e-12)


def test_lion_ends_at_the_constrained_optimum_and_the_control_does_not(inputs):
    ends = {m: pd.DataFrame(run(BOX, m, {}, [1000], inputs, "cpu").rows) for m in ("lion", "coupled-lion")}
    assert (ends["lion"]["gap"].abs() <= 1e-3).all()
    assert ends["lion"]["extent"].max() <= 1 + 1e-12
    assert (ends["coupled-lion"]["gap"].abs() > 0.01).all()
    assert (ends["lion"]["at_bound"] >= 0.2).all()


@pytest.mark.parametrize(("method", "settings"), [("sign-projected", {}), ("gradient-projected", {"lr": "1/L"})])
def test_the_references_end_there_too(method, settings, inputs):
    rows = run(BOX, method, settings, [1000], inputs, "cpu").rows
    assert all(abs(row["gap"]) <= 1e-6 and row["extent"] <= 1 + 1e-12 for row in rows)


def test_lion_enters_as_the_bound_says_and_the_control_is_late(inputs):
    (lion,) = run(ENTRY, "lion", {}, [1000], inputs, "cpu").rows
    (control,) = run(ENTRY, "coupled-lion", {}, [1000], inputs, "cpu").rows
    assert (lion["violations"], lion["exits"], lion["entered"]) == (0, 0, 1)
    assert control["violations"] > 50


def test_euler_follows_the_flow_with_order_one(inputs):
    ends = {}
    for n in (20, 40, 80, 640):
        rows = run(FLOW | {"h": 1.0 / n, "steps": n}, "lion", {}, [1000], inputs, "cpu").rows
        ends[n] = next(row["f_end"] for row in rows if row["kappa"] == "half-l2-squared")
    errors = [abs(ends[n] - ends[640]) for n in (20, 40, 80)]
    assert 1.8 < errors[0] / errors[1] < 2.4
    assert 1.8 < errors[1] / errors[2] < 2.6


# ---- peer


@pytest.mark.slow  # torch.optim imports the compiler
def test_lion_pytorch_takes_the_same_path():
    peer = pytest.importorskip("lion_pytorch")
    torch = pytest.importorskip("torch")
    f = random_quadratic(RNG(1008), 30, 100, 2.0)
    A, optimum = torch.from_numpy(f.A), torch.from_numpy(f.optimum)
    theirs = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    optimizer = peer.Lion([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.3)
    rule = Lion(weight_decay=0.3)
    ours = np.zeros(30)
    state = rule.init(ours)
    for _ in range(100):
        optimizer.zero_grad()
        (0.5 * (theirs - optimum) @ A @ (theirs - optimum)).backward()
        optimizer.step()
        ours, state = rule.step(ours, f.grad(ours), state, 0.01)
        assert np.abs(ours - theirs.detach().numpy()).max() <= 1e-6


# ---- judging


def table(problems: dict[str, list[dict]], methods: dict[str, dict]) -> Evidence:
    """Rows of every problem for every method, the methods' columns over the problem's."""
    rows = [
        {"problem": p, "method": m, "seed": s, **cell, **columns}
        for p, cells in problems.items()
        for cell in cells
        for m, columns in methods.items()
        for s in range(5)
    ]
    return Evidence(pd.DataFrame(rows))


def boxes(**columns) -> Evidence:
    cells = [{"lambda": lam} for lam in (0.5, 1, 2, 5)]
    good = {"gap": 1e-5, "clip_gap": 0.1, "extent": 1.0}
    return table({"box-quadratic": cells, "box-adult": cells}, {"lion": good | columns})


def test_c1_judges_gap_extent_and_clip():
    assert verdict(evidence.solves_the_box(boxes())) == "replicated"
    assert verdict(evidence.solves_the_box(boxes(gap=2e-3))) == "not replicated"
    assert verdict(evidence.solves_the_box(boxes(extent=1.02))) == "not replicated"
    assert verdict(evidence.solves_the_box(boxes(clip_gap=1e-6))) == "not replicated"


def test_c1_allows_two_cells_in_which_clipping_is_as_good():
    results = boxes()
    easy = results.rows["lambda"] == 0.5  # two of eight cells
    results.rows.loc[easy, "clip_gap"] = 0.0
    assert verdict(evidence.solves_the_box(results)) == "replicated"
    results.rows.loc[easy | ((results.rows["lambda"] == 1) & (results.rows["problem"] == "box-adult")), "clip_gap"] = 0
    assert verdict(evidence.solves_the_box(results)) == "not replicated"


def test_c1_takes_a_control_that_ran_on_one_problem_and_none_that_ran_on_none():
    one = Evidence(boxes().rows.query("problem == 'box-quadratic'"))
    assert "4 cells" in evidence.solves_the_box(one)[0].name
    with pytest.raises(LookupError):
        evidence.solves_the_box(Evidence(boxes().rows.query("problem == 'nowhere'")))


def test_c2_counts_violations_and_exits():
    def runs(**columns) -> Evidence:
        cells = [{"lambda": lam, "lr": lr} for lam in (0.5, 2) for lr in (1e-3, 1e-2)]
        return table(dict.fromkeys(evidence.ENTRY, cells), {"lion": {"violations": 0, "exits": 0} | columns})

    assert verdict(evidence.enters_and_stays(runs())) == "replicated"
    assert verdict(evidence.enters_and_stays(runs(violations=1))) == "not replicated"
    assert verdict(evidence.enters_and_stays(runs(exits=1))) == "not replicated"


def test_c3_asks_for_H_to_fall_for_all_and_f_to_rise_for_one():
    def flows(l1: dict, others: dict) -> Evidence:
        cells = [{"kappa": k, **(l1 if k == "l1" else others)} for k in KAPPAS]
        return table({"ode-tanh-net": cells}, {"lion": {}})

    falls, rises = {"H_rise": -1e-6, "f_rise": -1e-6}, {"H_rise": -1e-6, "f_rise": 1e-5}
    assert verdict(evidence.lyapunov_decreases(flows(rises, falls))) == "replicated"
    assert verdict(evidence.lyapunov_decreases(flows(falls, falls))) == "not replicated"
    assert verdict(evidence.lyapunov_decreases(flows(rises | {"H_rise": 2e-3}, falls))) == "not replicated"


def test_c4_judges_the_bound_of_the_interval_and_exact_bytes():
    def networks(above: float, noise: float = 0.001, state_bytes: int = 4) -> Evidence:
        rows = [
            {"problem": p, "method": m, "seed": s, "val_loss": loss + noise * s * (m == "lion"), "state_bytes": b}
            for p in evidence.NETWORKS
            for m, loss, b in (("lion", 1 + above, state_bytes), ("adamw", 1.0, 8))
            for s in range(5)
        ]
        return Evidence(pd.DataFrame(rows))

    judged = evidence.comparable_with_half_the_state
    assert verdict(judged(networks(0.0))) == "replicated"
    assert verdict(judged(networks(0.05))) == "not replicated"
    assert verdict(judged(networks(0.0, noise=0.01))) == "inconclusive"  # mean 0.02, on the margin of fmnist-mlp
    assert verdict(judged(networks(0.0, state_bytes=5))) == "not replicated"
    assert verdict(judged(networks(0.0, state_bytes=3))) == "not replicated"
