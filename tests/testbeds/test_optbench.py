"""opt-bench: splits, objectives, schedules, the training loop, tuning and bytes; and the optimizers that run on it."""

import math
import subprocess
import sys

import numpy as np
import pytest

from papertrial.methods.optimizers.adamw import AdamW
from papertrial.methods.optimizers.lion import Lion
from papertrial.methods.optimizers.sgd import GradientDescent, Momentum
from papertrial.methods.optimizers.signsgd import SignSGD
from papertrial.testbeds.optbench import splits
from papertrial.testbeds.optbench.adult import HALVES, Logistic, design, factors, newton
from papertrial.testbeds.optbench.memory import state_bytes
from papertrial.testbeds.optbench.schedule import hold_cosine, warmup_cosine
from papertrial.testbeds.optbench.tuning import tune
from papertrial.testbeds.quadratics import log_uniform, random_quadratic, rotation, stack

RNG = np.random.default_rng
RULES = {"gd": GradientDescent(), "sgd": Momentum(), "sign": SignSGD(), "lion": Lion(), "adamw": AdamW()}
BYTES = {"gd": 0, "sgd": 4, "sign": 0, "lion": 4, "adamw": 8}  # a parameter, float32


# ---- quadratics


def test_quadratics_have_the_spectrum_and_the_optimum_they_say():
    f = random_quadratic(RNG(1000), 30, 100, 2.0)
    eigenvalues = np.linalg.eigvalsh(f.A)
    assert np.isclose(eigenvalues[0], 0.01)
    assert np.isclose(eigenvalues[-1], f.smoothness)
    assert f.value(f.optimum) == 0
    assert np.abs(f.grad(f.optimum)).max() == 0


def test_quadratic_gradient_by_finite_differences_and_stacking():
    fs = [random_quadratic(RNG(s), 5, 10, 1.0) for s in (1000, 1001)]
    x, h = RNG(1).normal(size=(2, 5)), 1e-6
    both = stack(fs)
    assert np.allclose(both.grad(x), [f.grad(row) for f, row in zip(fs, x, strict=True)])
    slopes = [(fs[0].value(x + h * e) - fs[0].value(x - h * e)) / (2 * h) for e in np.eye(5)]
    assert np.allclose(fs[0].grad(x), np.transpose(slopes), atol=1e-7)


def test_spectrum_is_log_uniform_and_the_rotation_orthogonal():
    logs = np.log(log_uniform(RNG(2), 20000, 100))
    assert np.isclose(logs.min(), -math.log(100), rtol=1e-12)
    assert logs.max() == 0
    assert abs(logs.mean() / math.log(100) + 0.5) < 0.01
    Q = rotation(RNG(3), 20)
    assert np.allclose(Q @ Q.T, np.eye(20))
    assert abs(np.mean([rotation(RNG(s), 3)[0, 0] for s in range(2000)])) < 0.05  # no preferred sign


# ---- adult-logreg


def people(n=400, seed=0):
    rng = RNG(seed)
    known = (9, 16, 7, 15, 6, 5, 2, 42)

    def part(n):
        codes = np.stack([np.r_[np.arange(k) % k, rng.integers(k, size=n - k)] for k in known], axis=1)
        return {
            "numeric": np.abs(rng.normal(size=(n, 6))) * 100,
            "categorical": codes,
            "label": rng.integers(2, size=n),
        }

    return {f"{k}_{name}": v for name in ("train", "test") for k, v in part(n).items()}


def test_design_is_standardised_one_hot_with_intercept():
    data = people()
    X, y = design(data)
    assert X.shape == (400, 109)
    assert np.allclose(X[:, :6].mean(axis=0), 0)
    assert np.allclose(X[:, :6].std(axis=0), 1)
    assert (X[:, 6:108].sum(axis=1) == 8).all()
    assert (X[:, 108] == 1).all()
    assert set(y) == {0.0, 1.0}
    gain = np.log1p(data["numeric_train"][:, 3])
    assert np.allclose(X[:, 3], (gain - gain.mean()) / gain.std())
    X_test, _ = design(data, "test")
    assert not np.allclose(X_test[:, :6].mean(axis=0), 0)  # on the train part's scale


def test_factors_give_the_matrix_back():
    X, _ = design(people())
    A, E = factors(X, HALVES)
    assert np.array_equal((A @ E).toarray(), X)
    assert (np.diff(A.indptr) <= 8).all()


def test_logistic_derivatives_by_finite_differences():
    rng, h = RNG(4), 1e-5
    f = Logistic(rng.normal(size=(40, 6)), rng.integers(2, size=40).astype(float), l2=0.1)
    w = rng.normal(size=(3, 6))
    slopes = [(f.value(w + h * e) - f.value(w - h * e)) / (2 * h) for e in np.eye(6)]
    assert np.allclose(f.grad(w), np.transpose(slopes), atol=1e-8)
    curves = [(f.grad(w[0] + h * e) - f.grad(w[0] - h * e)) / (2 * h) for e in np.eye(6)]
    assert np.allclose(f.hess(w[0]), curves, atol=1e-8)
    assert np.linalg.eigvalsh(f.hess(w[0]))[-1] <= f.smoothness


def test_logistic_at_zero_is_log_two_and_far_away_stays_finite():
    rng = RNG(5)
    f = Logistic(rng.normal(size=(40, 6)), rng.integers(2, size=40).astype(float))
    assert np.isclose(f.value(np.zeros(6)), math.log(2))
    assert np.isfinite(f.value(np.full(6, 1e4)))
    assert np.isfinite(f.grad(np.full(6, 1e4))).all()


def test_newton_reaches_the_optimum():
    X, y = design(people())
    f = Logistic(X, y, l2=1e-2, starts=HALVES)
    w = newton(f)
    assert np.linalg.norm(f.grad(w)) <= 1e-12
    assert (f.value(w + 0.01 * RNG(6).normal(size=(5, f.d))) > f.value(w)).all()


# ---- schedules, tuning, bytes


def test_warmup_cosine_rises_for_a_twentieth_and_ends_at_a_tenth():
    factors_ = [warmup_cosine(k, 600) for k in range(600)]
    assert np.allclose(factors_[:30], np.arange(1, 31) / 30)
    assert factors_[30] == 1.0
    assert np.isclose(factors_[-1], 0.1)
    assert (np.diff(factors_[30:]) < 0).all()
    assert [warmup_cosine(k, 1) for k in range(1)] == [1.0]


def test_hold_cosine_holds_for_half_and_ends_at_the_floor():
    factors_ = [hold_cosine(k, 100, 0.01) for k in range(100)]
    assert factors_[:51] == [1.0] * 51
    assert np.isclose(factors_[-1], 0.01)


def test_tuning_tries_one_more_point_outwards_only_at_an_edge():
    def bowl(at):
        return lambda lr: abs(math.log(lr / at))

    grid = [1e-3, 3e-3, 1e-2]
    best, trials = tune(bowl(3e-3), grid)
    assert best == 3e-3
    assert len(trials) == 3
    best, trials = tune(bowl(1e-1), grid)
    assert np.isclose(best, 1e-2 * 1e-2 / 3e-3)
    assert len(trials) == 4
    best, trials = tune(bowl(1e-5), grid)
    assert np.isclose(best, 1e-3 / 3)
    assert tune(bowl(1e-1), grid, edge=False) == (1e-2, [(lr, bowl(1e-1)(lr)) for lr in grid])


def test_what_diverges_loses_in_tuning():
    best, trials = tune(lambda lr: math.nan if lr > 2e-3 else lr, [1e-3, 3e-3, 1e-2], edge=False)
    assert best == 1e-3
    assert trials[1:] == [(3e-3, math.inf), (1e-2, math.inf)]


@pytest.mark.parametrize("name", RULES)
def test_state_bytes_are_exact_after_steps(name):
    rule, x = RULES[name], np.ones(1000, np.float32)
    state = rule.init(x)
    for _ in range(3):
        x, state = rule.step(x, x, state, 0.01)
        assert state_bytes(state) == 1000 * BYTES[name]
    assert x.dtype == np.float32


def test_scalars_count_four_bytes_and_counters_none():
    assert state_bytes({"scale": 1.0, "k": 7, "nested": [np.zeros(2, np.int32), {"a": np.zeros(3)}]}) == 4 + 8 + 24


# ---- optimizers


@pytest.mark.parametrize("name", RULES)
def test_a_step_leaves_its_arguments_alone_and_minimises(name):
    rule, f = RULES[name], random_quadratic(RNG(1002), 8, 5, 1.0)
    x = np.zeros(8)
    state, start = rule.init(x), f.value(x)
    g = f.grad(x)
    before = {k: np.copy(v) for k, v in state.items()}
    rule.step(x, g, state, 0.1)
    assert (x == 0).all()
    assert all(np.array_equal(before[k], state[k]) for k in before)
    for k in range(500):
        x, state = rule.step(x, f.grad(x), state, 0.1 / (1 + k / 20))
    assert f.value(x) < 0.01 * start


def test_numpy_methods_do_not_import_torch():
    modules = ["methods.optimizers.lion", "methods.optimizers.adamw", "testbeds.optbench.adult", "testbeds.quadratics"]
    modules += ["testbeds.optbench.splits", "papers.optimizers.lion_lyapunov.method"]
    imports = "; ".join(f"import papertrial.{m}" for m in modules)
    code = f"import sys; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


# ---- splits


def test_fashion_splits_are_disjoint_and_scaled():
    n = 6100
    x = np.zeros((n, 28, 28), np.uint8)
    x[:, 0, 0], x[:, 0, 1] = np.arange(n) % 256, np.arange(n) // 256  # a picture tells its place
    data = {"x_train": x, "y_train": np.arange(n) % 10, "x_test": x[:50], "y_test": np.arange(50) % 10}
    parts = splits.fashion(data)
    assert {k: len(v[1]) for k, v in parts.items()} == {"train": 100, "validation": 6000, "test": 50}
    pixels = np.concatenate([parts["train"][0], parts["validation"][0]]) * 0.353 + 0.286
    places = np.rint(pixels[:, 0] * 255) + 256 * np.rint(pixels[:, 1] * 255)
    assert sorted(places) == list(range(n))
    assert (np.concatenate([parts["train"][1], parts["validation"][1]]) == places % 10).all()


def test_encoding_lowers_replaces_and_merges():
    text = 'Mr. Darcy_(the  £5)\n\nsaid: "No!"'.encode()
    codes = splits.encode(np.frombuffer(text, np.uint8))
    assert bytes(splits.ALPHABET[c] for c in codes) == b'mr. darcy the \n\nsaid: "no!"'
    assert len(splits.ALPHABET) == len(set(splits.ALPHABET)) == 37


def test_austen_holds_out_persuasion_and_the_ends_of_the_others():
    novels = {"emma": b"a" * 1000 + b"b" * 100, "pride": b"c" * 2000, "persuasion": b"d" * 300}
    parts = splits.austen({k: np.frombuffer(v, np.uint8) for k, v in novels.items()})
    letters = {k: bytes(splits.ALPHABET[c] for c in v) for k, v in parts.items()}
    assert letters["test"] == b"d" * 300
    assert letters["validation"] == b"b" * 55 + b"c" * 100
    assert letters["train"] == b"a" * 1000 + b"b" * 45 + b"c" * 1900


# ---- training (torch)


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    found.set_num_threads(1)
    return found


@pytest.fixture(scope="module")
def datasets():
    rng = RNG(0)
    y = rng.integers(10, size=6500)
    x = rng.integers(100, size=(6500, 28, 28)).astype(np.uint8)
    x[np.arange(6500), 2 * y] = 255  # the class is a bright row
    text = np.frombuffer(b"the quick brown fox, jumps over the lazy dog. " * 300, np.uint8)
    return {
        "fashion_mnist": {"x_train": x, "y_train": y, "x_test": x[:500], "y_test": y[:500]},
        "austen": {"emma": text, "persuasion": text[:4000]},
    }


@pytest.fixture(scope="module")
def mlp(torch, datasets):
    from papertrial.testbeds.optbench.workloads import workload

    return workload("fmnist-mlp", datasets)


@pytest.fixture(scope="module")
def char_lm(torch, datasets):
    from papertrial.testbeds.optbench.workloads import workload

    return workload("char-lm", datasets)


def test_networks_have_the_stated_sizes(torch):
    from papertrial.testbeds.optbench.networks import CharLM, cnn, mlp, parameters

    assert parameters(mlp()) == 109_386
    assert parameters(cnn()) == 14_538
    blocks, norms = 2 * 12 * 64**2, 5 * 2 * 64
    assert parameters(CharLM(37, 2)) == 2 * 37 * 64 + 64 * 64 + blocks + norms
    assert cnn()(torch.zeros(2, 784)).shape == (2, 10)


def test_the_language_model_looks_back_only(torch):
    from papertrial.testbeds.optbench.networks import CharLM

    torch.manual_seed(0)
    net = CharLM(37, 2)
    tokens = torch.randint(37, (2, 64))
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 37
    difference = (net(tokens) - net(changed)).abs().amax(dim=(0, 2))
    assert (difference[:40] == 0).all()
    assert (difference[40:] > 0).all()


def test_flat_parameters_move_the_network_and_collect_its_gradients(torch, mlp):
    from papertrial.testbeds.optbench.flat import Flat
    from papertrial.testbeds.optbench.networks import initialised
    from papertrial.testbeds.optbench.training import cross_entropy

    net, twin = (initialised(mlp.build, 1000, "cpu") for _ in range(2))
    flat = Flat(net)
    inputs, targets = mlp.validation[0][:32], mlp.validation[1][:32]
    cross_entropy(net(inputs), targets).backward()
    cross_entropy(twin(inputs), targets).backward()
    assert torch.equal(flat.g, torch.cat([p.grad.flatten() for p in twin.parameters()]))
    flat.x.zero_()
    assert net(inputs).abs().max() == 0
    assert [name for name, _ in net.named_parameters()] == list(flat.tensors())


@pytest.mark.slow  # torch.optim imports the compiler
def test_the_loop_takes_torchs_own_steps(torch, mlp):
    """AdamW and momentum against torch.optim, over the same batches and schedule."""
    from papertrial.testbeds.optbench.networks import initialised
    from papertrial.testbeds.optbench.training import cross_entropy, train

    steps, peak = 30, 3e-3
    for rule, build in (
        (AdamW(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=peak, weight_decay=0.1)),
        (Momentum(0.9), lambda p: torch.optim.SGD(p, lr=peak, momentum=0.9)),
    ):
        net = initialised(mlp.build, 1000, "cpu")
        optimizer = build(net.parameters())
        order = mlp.train.order(RNG(1000), steps, mlp.batch)
        for k, index in enumerate(order):
            optimizer.param_groups[0]["lr"] = peak * warmup_cosine(k, steps)
            inputs, targets = mlp.train[torch.from_numpy(index)]
            optimizer.zero_grad()
            cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        ours = train(mlp, rule, peak, 1000, steps).net
        for a, b in zip(ours.parameters(), net.parameters(), strict=True):
            assert torch.allclose(a, b, atol=2e-6)


def test_training_learns_repeats_and_reports(mlp):
    from papertrial.testbeds.optbench.training import measured_run, train

    runs = [train(mlp, Lion(), 1e-3, 1000, 60) for _ in range(2)]
    assert runs[0].history == runs[1].history
    history = runs[0].history
    assert [row["step"] for row in history] == [25, 50, 60]
    assert history[-1]["samples"] == 60 * 128
    assert history[-1]["val_loss"] < 0.7 * math.log(10)
    row, curve = measured_run(mlp, runs[0], 1000, 1e-3)
    assert row["state_bytes"] == 4 * 109_386
    assert row["test_accuracy"] > 0.5
    assert len(curve) == 3
    assert train(mlp, Lion(), 1e-3, 1001, 10).history != train(mlp, Lion(), 1e-3, 1000, 10).history


def test_clipping_bounds_the_gradient_of_the_language_model(torch, char_lm):
    from dataclasses import dataclass

    from papertrial.testbeds.optbench.training import train

    @dataclass(frozen=True)
    class Recorder:
        norms: list

        def init(self, x):
            return {}

        def step(self, x, g, state, lr):
            self.norms.append(float(g.norm()))
            return x - 10 * lr * g, state

    recorder = Recorder([])
    train(char_lm, recorder, 1.0, 1000, 5)
    assert max(recorder.norms) <= 1 + 1e-5


def test_an_untrained_language_model_guesses_uniformly(torch, char_lm):
    from papertrial.testbeds.optbench.networks import initialised
    from papertrial.testbeds.optbench.training import evaluate

    loss, _ = evaluate(initialised(char_lm.build, 1000, "cpu"), char_lm.validation, char_lm.chunk)
    assert abs(float(loss) - math.log(37)) < 0.05
    inputs, targets = char_lm.validation
    assert inputs.shape == targets.shape == (128, 64)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_evaluation_does_not_depend_on_the_chunk_and_leaves_the_mode(torch, mlp):
    from papertrial.testbeds.optbench.networks import initialised
    from papertrial.testbeds.optbench.training import evaluate

    net = initialised(mlp.build, 1000, "cpu")
    whole, parts = (evaluate(net, mlp.validation, chunk) for chunk in (6000, 77))
    assert torch.allclose(torch.stack(whole), torch.stack(parts), atol=1e-6)
    assert net.training


def test_orders_are_epochs_for_images_and_windows_for_text(mlp, char_lm):
    order = mlp.train.order(RNG(1000), 12, 128)  # 500 images: more than three epochs
    assert all(sorted(order.ravel()[i * 500 : (i + 1) * 500]) == list(range(500)) for i in range(3))
    starts = char_lm.train.order(RNG(1000), 500, 16)
    assert starts.min() < 20
    assert len(char_lm.train.codes) - 20 < starts.max() + 65 <= len(char_lm.train.codes)


def test_a_shared_baseline_is_tuned_and_has_the_papers_columns(torch, datasets):
    from papertrial.engine.results import Inputs
    from papertrial.models.optbench_baselines import train
    from papertrial.testbeds.optbench.training import measured_run
    from papertrial.testbeds.optbench.training import train as train_network
    from papertrial.testbeds.optbench.workloads import workload

    settings = {"grids": {"adamw": [1e-5, 1e-3, 3e-3]}, "tuning_seed": 100, "seeds": 2, "steps": 8, "trials": 2}
    found = train("adamw.fmnist-mlp", settings, Inputs(datasets), "cpu", None)
    work = workload("fmnist-mlp", datasets)
    row, _ = measured_run(work, train_network(work, Lion(), 1e-3, 0, 8), 0, 1e-3)
    assert [(r["problem"], r["method"], r["seed"]) for r in found.rows] == [("fmnist-mlp", "adamw", s) for s in (0, 1)]
    assert set(found.rows[0]) == {"problem", "method", *row}
    assert found.rows[0]["state_bytes"] == 2 * row["state_bytes"]
    assert [t["trial_lr"] for t in found.traces if "trial_lr" in t] == [1e-5, 1e-3]
    assert {r["peak_lr"] for r in found.rows} == {1e-3}
