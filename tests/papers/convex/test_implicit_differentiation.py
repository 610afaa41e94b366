"""implicit-differentiation: derivatives of solutions by their optimality conditions."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from papertrial.engine.evidence import Evidence
from papertrial.engine.results import Inputs
from papertrial.engine.verdicts import NOT_REPLICATED, REPLICATED, verdict
from papertrial.methods.implicit import bicgstab, cg, custom_root, root_jvp, root_vjp
from papertrial.methods.optimality import (
    kkt,
    mirror_descent,
    projected_gradient,
    proximal_gradient,
    residual,
    simplex,
    soft_threshold,
)
from papertrial.papers.convex.implicit_differentiation import evidence
from papertrial.papers.convex.implicit_differentiation.method import (
    descent,
    gaussian_classes,
    jacobian,
    line_search_descent,
    ridge_gradient,
    run,
    softmax_regression,
    stored_bytes,
    unrolled_descent,
)

tight = partial(cg, tol=1e-13)
tight_bicgstab = partial(bicgstab, tol=1e-13)


def randn(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape))


def full_jacobian(F, x, theta, solve):
    """J (x.size, theta.size) from products with its transpose."""
    return torch.stack([root_vjp(F, x, theta, e.reshape(x.shape), solve).ravel() for e in torch.eye(x.numel()).to(x)])


@pytest.fixture
def ridge():
    X, y, theta = randn(30, 6), randn(30, seed=1), torch.linspace(0.1, 1, 6).double()
    H = X.T @ X + theta.diag()
    return ridge_gradient(X, y), theta, H, torch.linalg.solve(H, X.T @ y)


# ---- what must hold


def test_ridge_has_the_closed_form_jacobian(ridge):
    F, theta, H, x = ridge
    assert torch.allclose(jacobian(F, x, theta), -torch.linalg.solve(H, x.diag()), atol=1e-9, rtol=0)


def test_products_with_the_jacobian_and_its_transpose_are_adjoint(ridge):
    F, theta, _, x = ridge
    v, w = randn(6, seed=2), randn(6, seed=3)
    Jv, JTw = root_jvp(F, x, theta, v, tight), root_vjp(F, x, theta, w, tight)
    assert abs(Jv @ w - v @ JTw) < 1e-9


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.3])
def test_lasso_has_the_jacobian_of_least_squares_on_its_support(eta):
    X, y = randn(40, 8) / 40**0.5, randn(40, seed=1)
    gradient = lambda x, theta: X.T @ (X @ x - y)  # noqa: E731
    theta = torch.tensor(0.15, dtype=torch.float64)
    T = proximal_gradient(gradient, soft_threshold, 0.3)
    x = torch.zeros(8).double()
    for _ in range(4000):
        x = T(x, theta)
    S = x != 0
    assert 0 < S.sum() < 8
    F = residual(proximal_gradient(gradient, soft_threshold, eta))
    J = root_jvp(F, x, theta, torch.ones_like(theta), tight_bicgstab)
    expected = torch.zeros(8).double()
    expected[S] = -torch.linalg.solve(X[:, S].T @ X[:, S], x[S].sign())
    assert torch.allclose(J, expected, atol=1e-8)
    assert (J[~S] == 0).all()


def test_conditions_of_one_problem_agree_inside_the_simplex():
    n = 5
    M, b = randn(n, n), randn(n, seed=1) * 0.1
    Q = M @ M.T / n + torch.eye(n).double()
    gradient = lambda x, theta: Q @ x - theta * b  # noqa: E731
    theta = torch.ones(n).double()
    saddle = torch.cat(
        [torch.cat([Q, torch.ones(n, 1)], 1), torch.cat([torch.ones(1, n), torch.zeros(1, 1)], 1)]
    ).double()
    z = torch.linalg.solve(saddle, torch.cat([b, torch.ones(1).double()]))
    x, nu = z[:n], z[n:]
    assert (x > 0.01).all()
    projected = full_jacobian(residual(projected_gradient(gradient, simplex, 0.3)), x, theta, tight_bicgstab)
    mirrored = full_jacobian(residual(mirror_descent(gradient, 0.3)), x, theta, tight_bicgstab)
    F = kkt(gradient, lambda x, t: x.sum()[None] - 1, lambda x, t: -x, (n, 1, n))
    point = torch.cat([x, nu, torch.zeros(n).double()])
    by_kkt = full_jacobian(F, point, theta, tight_bicgstab)[:n]
    assert torch.allclose(projected, by_kkt, atol=1e-5)
    assert torch.allclose(mirrored, by_kkt, atol=1e-5)
    exact = torch.linalg.solve(saddle, torch.cat([b.diag(), torch.zeros(1, n).double()]))[:n]
    assert torch.allclose(by_kkt, exact, atol=1e-8)


def equality_qp():
    """min 1/2 x^T Q x - theta^T x over A x = b; its KKT matrix and its solver."""
    n, m = 6, 2
    M, A, b = randn(n, n), randn(m, n, seed=1), randn(m, seed=2)
    Q = M @ M.T / n + torch.eye(n).double()
    K = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, torch.zeros(m, m).double()], 1)])
    F = kkt(lambda x, t: Q @ x - t, lambda x, t: A @ x - b, lambda x, t: x[:0], (n, m, 0))
    return F, K, lambda theta: torch.linalg.solve(K, torch.cat([theta, b])), n


def test_equality_qp_has_the_jacobian_of_the_kkt_inverse():
    F, K, solver, n = equality_qp()
    theta = randn(n, seed=4)
    J = torch.stack([root_vjp(F, solver(theta), theta, e, tight_bicgstab) for e in torch.eye(len(K)).double()[:n]])
    assert torch.allclose(J, torch.linalg.inv(K)[:n, :n], atol=1e-8)


def test_gradcheck_of_a_differentiable_solver(ridge):
    F, _, solver, n = equality_qp()
    primal = lambda theta: custom_root(solver, F, tight_bicgstab)(theta)[:n]  # noqa: E731
    assert torch.autograd.gradcheck(primal, randn(n, seed=4).requires_grad_())
    F, theta, H, _ = ridge
    X_T_y = -F(torch.zeros(6).double(), theta)
    plain = lambda theta: torch.linalg.solve(H - torch.linspace(0.1, 1, 6).double().diag() + theta.diag(), X_T_y)  # noqa: E731
    assert torch.autograd.gradcheck(custom_root(plain, F, tight), theta.clone().requires_grad_())


# ---- more mathematics


def test_linear_solvers():
    M, b = randn(20, 20), randn(20, seed=1)
    A = M @ M.T + torch.eye(20).double()
    assert torch.allclose(cg(lambda p: A @ p, b, 1e-13), torch.linalg.solve(A, b))
    assert torch.allclose(cg(lambda p: -A @ p, b, 1e-13), -torch.linalg.solve(A, b))
    B = M + 8 * torch.eye(20).double()
    assert torch.allclose(bicgstab(lambda p: B @ p, b, 1e-13), torch.linalg.solve(B, b))
    P = torch.eye(20).double() - torch.ones(20, 20).double() / 20  # singular, b in its range
    assert torch.allclose(cg(lambda p: P @ p, P @ b, 1e-13), P @ b)


def test_the_projection_on_the_simplex_is_the_nearest_point_and_has_the_support_for_derivative():
    x = randn(50, 5)
    p = simplex(x)
    assert torch.allclose(p.sum(-1), torch.ones(50).double()) and (p >= 0).all()
    others = torch.distributions.Dirichlet(torch.ones(5).double()).sample((200,))
    assert (((x - p)[:, None] * (others - p[:, None])).sum(-1) <= 1e-12).all()  # variational inequality
    assert torch.autograd.gradcheck(simplex, x[:4].requires_grad_())


def test_forward_mode_differentiates_the_iterates(ridge):
    F, theta, H, _ = ridge
    L = torch.linalg.eigvalsh(H)[-1].item()
    J = unrolled_descent(F, theta, descent(F, theta, L, 25), L)[25]
    h = 1e-6
    columns = [
        (descent(F, theta + h * e, L, 25)[25] - descent(F, theta - h * e, L, 25)[25]) / (2 * h)
        for e in torch.eye(6).double()
    ]
    assert torch.allclose(J, torch.stack(columns, 1), atol=1e-8)


def test_the_line_search_descends_to_a_stationary_point():
    f, gradient = softmax_regression(0.1)
    theta = randn(4, 7)
    W = line_search_descent(f, gradient, 300, 1e-6)(theta)
    assert gradient(W, theta).norm() <= 1e-6
    automatic = torch.func.grad(f)(randn(7, 4), theta)
    assert torch.allclose(gradient(randn(7, 4), theta), automatic)


def test_stored_bytes_count_each_tensor_once_and_tell_data_from_graph():
    X, y = randn(10, 10), randn(10)

    def compute():
        z = y.clone().requires_grad_()
        for _ in range(5):
            z = (X @ z).tanh()

    graph, data = stored_bytes(compute, [X, y])
    assert data == X.numel() * 8
    assert graph == 5 * 10 * 8  # tanh keeps its outputs


def test_classes_lie_on_rows_of_norm_about_one():
    Z, Y, _, _ = gaussian_classes(200, 5, 300, np.random.default_rng(1000))
    assert abs(np.linalg.norm(Z, axis=1).mean() - 1) < 0.1 and (Y.sum(axis=1) == 1).all()


# ---- the runs

RIDGE = {"name": "ridge", "family": "ridge", "steps": 60, "points": 8}
SVM = {"name": "svm", "family": "svm", "fixed_point": "mirror", "n": 12, "classes": 3, "features": [6]}
SVM |= {"log_theta": 2, "steps": 1000}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    x = rng.random((50, 10))
    images = {"x": rng.integers(0, 17, (300, 8, 8)), "y": rng.integers(10, size=300)}
    return Inputs({"diabetes": {"x": x, "y": x.sum(axis=1)}, "digits": images})


def test_splitting_the_seeds_changes_nothing(inputs):
    distillation = {"name": "d", "family": "distillation", "images": "digits", "train": 100, "test": 100, "l2": 0.01}
    distillation |= {"steps": 20, "outer": 2, "outer_step": 0.1}
    packing = {"name": "p", "family": "packing", "spheres": 4, "density": 0.95, "steps": 100}
    for problem in (RIDGE, {**SVM, "steps": 50}, distillation, packing):
        together = run(problem, "implicit", {}, [3, 4], inputs, "cpu").rows
        apart = [row for seed in (3, 4) for row in run(problem, "implicit", {}, [seed], inputs, "cpu").rows]
        assert together == apart


@pytest.mark.parametrize("fixed_point", ["projected", "mirror"])
def test_hypergradients_agree_with_central_differences(inputs, fixed_point):
    for method in ("implicit", "unrolled"):
        (row,) = run({**SVM, "fixed_point": fixed_point}, method, {}, [1000], inputs, "cpu").rows
        assert row["gradient"] == pytest.approx(row["difference"], rel=1e-3)


@pytest.mark.slow
def test_velocities_of_packed_spheres_agree_with_central_differences(inputs):
    problem = {"name": "packing", "family": "packing", "spheres": 6, "density": 1.0, "steps": 1500}
    (row,) = run(problem, "implicit", {}, [1000], inputs, "cpu").rows
    assert row["force"] < 1e-11 and row["error"] < 1e-3 and row["speed"] > 0.01


def test_the_peer_gives_the_same_gradient(ridge):
    torchopt = pytest.importorskip("torchopt")
    F, theta, _, x = ridge

    @torchopt.diff.implicit.custom_root(F, argnums=1)
    def solver(start, theta):
        return x.clone()

    t = theta.clone().requires_grad_()
    v = randn(6, seed=5)
    (theirs,) = torch.autograd.grad(solver(torch.zeros(6).double(), t), t, v)
    assert torch.allclose(theirs, root_vjp(F, x, theta, v, tight), atol=1e-5)


# ---- judging


def ridge_table(unrolled_factor, exponent=1.0):
    rows = []
    for seed in range(5):
        for t, error in enumerate(10.0 ** -np.arange(1, 8)):
            base = {"problem": "ridge", "seed": seed, "t": t, "error": error, "relative": error}
            rows.append(base | {"method": "implicit", "jacobian_error": 3 * error**exponent})
            rows.append(base | {"method": "unrolled", "jacobian_error": unrolled_factor * error})
    return Evidence(pd.DataFrame(rows))


def test_judging_the_jacobians():
    good, bad = ridge_table(10.0), ridge_table(4.0, exponent=0.5)
    assert verdict(evidence.jacobian_as_precise_as_the_solution(good)) == REPLICATED
    assert verdict(evidence.more_precise_than_unrolling(good)) == REPLICATED
    assert verdict(evidence.jacobian_as_precise_as_the_solution(bad)) == NOT_REPLICATED
    assert verdict(evidence.more_precise_than_unrolling(bad)) == NOT_REPLICATED


def cost_table(speed_up, bytes_ratio, gap):
    rows, timings = [], []
    rng = np.random.default_rng(0)
    for method, factor in (("implicit", 1), ("unrolled", speed_up)):
        for seed in range(5):
            for problem in evidence.FIXED_POINTS:
                for features in (50, 200):
                    base = {"problem": problem, "method": method, "seed": seed, "features": features}
                    rows.append(base | {"stored_bytes": 100 if method == "implicit" else 100 * bytes_ratio})
                    timings.append(base | {"cpu_s": factor * rng.uniform(1, 1.1)})
            base = {"problem": "distillation", "method": method, "seed": seed}
            rows.append(base | {"accuracy": 0.8 + gap * (method == "implicit")})
            timings.append(base | {"cpu_s": factor * 1.0})
    return Evidence(pd.DataFrame(rows), timings=pd.DataFrame(timings))


def test_judging_the_costs():
    good, bad = cost_table(2.0, 20, 0.01), cost_table(0.5, 5, 0.05)
    assert verdict(evidence.cheaper_hypergradients(good)) == REPLICATED
    assert verdict(evidence.distillation_at_a_fraction_of_the_cost(good)) == REPLICATED
    assert verdict(evidence.cheaper_hypergradients(bad)) == NOT_REPLICATED
    assert verdict(evidence.distillation_at_a_fraction_of_the_cost(bad)) == NOT_REPLICATED
