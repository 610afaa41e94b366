"""Derivatives of a solution x*(theta), by its optimality condition or through the steps of its solver.

Four inner problems:

    ridge         min_x 1/2 ||X x - y||^2 + 1/2 sum_j theta_j x_j^2             the precision of the Jacobian
    svm           min_x theta/2 ||W||^2 + <x, Y>,  W = Z^T (Y - x) / theta,     the cost of a hyper-gradient
                  rows of x (n, k) in the simplex
    distillation  min_W cross-entropy on theta + l2/2 ||W||^2, theta (k, p)     both, over a whole training
                  the pixels of one image a class
    packing       min_x energy of soft spheres of diameters 1.4 theta, theta    a degenerate minimum

The implicit derivative solves a linear system at the solver's last iterate, whatever led there; unrolling
differentiates the iterations and keeps them all.

Source: Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert, arXiv:2105.15183 (2022).
"""

import math
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from papertrial.engine.results import Inputs, Results
from papertrial.methods.implicit import Condition, bicgstab, cg, custom_root, root_jvp, root_vjp
from papertrial.methods.optimality import mirror_descent, projected_gradient, residual, simplex

Settings = dict[str, Any]
Solver = Callable[[Tensor], Tensor]


def tensors(device: str, *arrays: np.ndarray) -> list[Tensor]:
    return [torch.as_tensor(a, dtype=torch.float64, device=device) for a in arrays]


# ---- ridge: how far is J(xhat) from J(x*)?


def ridge_gradient(X: Tensor, y: Tensor) -> Condition:
    return lambda x, theta: X.T @ (X @ x - y) + theta * x


def jacobian(F: Condition, x: Tensor, theta: Tensor) -> Tensor:
    """J (d, d) with row i = J^T e_i."""
    return torch.stack([root_vjp(F, x, theta, e, partial(cg, tol=1e-10)) for e in torch.eye(len(x)).to(x)])


def descent(F: Condition, theta: Tensor, L: float, steps: int) -> list[Tensor]:
    """Gradient steps of length 1/L from 0: x_t (d,) for t = 0 .. steps."""
    path = [torch.zeros_like(theta)]
    for _ in range(steps):
        path.append(path[-1] - F(path[-1], theta) / L)
    return path


def unrolled_descent(F: Condition, theta: Tensor, path: list[Tensor], L: float) -> list[Tensor]:
    """Forward-mode derivatives of the same steps: J_t (d, d) for t = 0 .. steps."""

    def step(x: Tensor, theta: Tensor) -> Tensor:
        return x - F(x, theta) / L

    along = torch.vmap(lambda x, dx, dt: torch.func.jvp(step, (x, theta), (dx, dt))[1], (None, 1, 1), 1)
    I = torch.eye(len(theta)).to(theta)
    J = [torch.zeros_like(I)]
    for x in path[:-1]:
        J.append(along(x, J[-1], I))
    return J


# What is taken for the Jacobian after t steps: a function of t.
ESTIMATES = {
    "implicit": lambda F, theta, path, L: lambda t: jacobian(F, path[t], theta),
    "unrolled": lambda F, theta, path, L: unrolled_descent(F, theta, path, L).__getitem__,
    "implicit_at_start": lambda F, theta, path, L: lambda t: jacobian(F, path[0], theta),
    "implicit_half": lambda F, theta, path, L: lambda t: jacobian(F, path[t // 2], theta),
}


def ridge(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs, device: str) -> Results:
    """Errors of xhat and of J(xhat) after t steps, on 80% of the patients; features of mean 0 and norm 1."""
    rng = np.random.default_rng(seed)
    x, y = inputs.datasets["diabetes"]["x"], inputs.datasets["diabetes"]["y"]
    x, y = x - x.mean(axis=0), y - y.mean()
    kept = rng.choice(len(x), size=round(0.8 * len(x)), replace=False)
    theta = np.exp(rng.uniform(math.log(0.01), 0.0, x.shape[1]))
    X, y, theta = tensors(device, (x / np.linalg.norm(x, axis=0))[kept], y[kept], theta)
    F = ridge_gradient(X, y)
    H = X.T @ X + theta.diag()
    best = torch.linalg.solve(H, X.T @ y)
    J = -torch.linalg.solve(H, best.diag())  # closed form
    L = torch.linalg.eigvalsh(H)[-1].item()
    path = descent(F, theta, L, problem["steps"])
    estimate = ESTIMATES[method](F, theta, path, L)
    rows = []
    for t in np.unique(np.geomspace(1, problem["steps"], problem["points"]).round().astype(int)).tolist():
        error = torch.linalg.vector_norm(path[t] - best).item()
        jacobian_error = torch.linalg.matrix_norm(estimate(t) - J).item()
        row = {"seed": seed, "t": t, "error": error, "relative": error / torch.linalg.vector_norm(best).item()}
        rows.append(row | {"jacobian_error": jacobian_error})
    return Results(rows)


# ---- hyper-gradients, four ways: each turns an inner problem into loss(theta) with a derivative


def implicitly(solver: Solver, F: Condition, solve: Callable) -> Solver:
    return custom_root(torch.no_grad()(solver), F, solve)


def hypergradient(solver: Solver, loss: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Tensor, Tensor]:
    """x and d loss(x(theta)) / d theta."""
    theta = theta.detach().requires_grad_()
    x = solver(theta)
    return x.detach(), torch.autograd.grad(loss(x), theta)[0]


def stored_bytes(compute: Callable[[], Any], data: list[Tensor]) -> tuple[int, int]:
    """Bytes that autograd saves for backward while ``compute`` runs: tensors it made, and tensors of ``data``.

    Tensors that share their storage count once. All are kept to the end, so the first number is no less than the
    peak.
    """
    saved: dict[int, Tensor] = {}

    def keep(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        compute()
    before = {t.untyped_storage().data_ptr() for t in data}
    size = {p: t.untyped_storage().nbytes() for p, t in saved.items()}
    of_data = sum(bytes for p, bytes in size.items() if p in before)
    return sum(size.values()) - of_data, of_data


# ---- multi-class SVM in its dual


def gaussian_classes(n: int, k: int, p: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Training and validation sets Z (n, p), Y (n, k): k Gaussian classes, rows of Z of norm about 1."""
    centres = rng.standard_normal((k, p))

    def draw() -> tuple[np.ndarray, np.ndarray]:
        label = rng.integers(k, size=n)
        Z = centres[label] + 2 * rng.standard_normal((n, p))
        return Z / math.sqrt(5 * p), np.eye(k)[label]

    return *draw(), *draw()


FIXED_POINTS = {
    "projected": lambda gradient, eta: projected_gradient(gradient, simplex, eta),
    "mirror": mirror_descent,
}


def svm(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs, device: str) -> Results:
    """Seconds and bytes of one hyper-gradient of 1/2 ||Z_val W - Y_val||^2 in lambda = log theta."""
    rows, timings = [], []
    for p in problem["features"]:
        rng = np.random.default_rng([seed, p])
        Z, Y, Z_val, Y_val = tensors(device, *gaussian_classes(problem["n"], problem["classes"], p, rng))
        at = torch.tensor(float(problem["log_theta"])).to(Z)
        eta = (at.exp() / torch.linalg.matrix_norm(Z, 2) ** 2).item()  # 1/L

        def W(x: Tensor, lam: Tensor) -> Tensor:
            return Z.T @ (Y - x) / lam.exp()  # (p, k)

        T = FIXED_POINTS[problem["fixed_point"]](lambda x, lam: Y - Z @ W(x, lam), eta)

        def iterate(lam: Tensor, x: Tensor, steps: int) -> Tensor:
            for _ in range(steps):
                x = T(x, lam)
            return x

        start, steps = torch.full_like(Y, 1 / Y.shape[1]), problem["steps"]

        def unrolled(lam: Tensor) -> Tensor:
            return iterate(lam, start, steps)

        def truncated(lam: Tensor) -> Tensor:
            last = steps // 10
            with torch.no_grad():
                x = iterate(lam, start, steps - last)
            return iterate(lam, x, last)

        solvers = {
            "implicit": implicitly(unrolled, residual(T), partial(bicgstab, tol=1e-6, cap=steps)),
            "unrolled": unrolled,
            "truncated": truncated,
        }
        solver = solvers[method]

        def gradient() -> float:
            lam = at.clone().requires_grad_()
            outer = 0.5 * (Z_val @ W(solver(lam), lam) - Y_val).square().sum()
            return torch.autograd.grad(outer, lam)[0].item()

        with torch.no_grad():  # the reference: central differences of the same 500 steps
            h = 1e-5
            values = [(Z_val @ W(unrolled(at + s), at + s) - Y_val).square().sum().item() / 2 for s in (h, -h)]
        stored, of_data = stored_bytes(gradient, [Z, Y, Z_val, Y_val, start, at])  # and warm-up
        begin = process_time()
        found = gradient()
        seconds = process_time() - begin
        difference = (values[0] - values[1]) / (2 * h)
        row = {"seed": seed, "features": p, "stored_bytes": stored, "data_bytes": of_data}
        rows.append(row | {"gradient": found, "difference": difference})
        timings.append({"seed": seed, "features": p, "cpu_s": seconds})
    return Results(rows, timings=timings)


# ---- data-set distillation


def softmax_regression(l2: float) -> tuple[Callable[[Tensor, Tensor], Tensor], Condition]:
    """f(W, theta) and its gradient in W (p, k), for images theta (k, p) of the classes 0 .. k-1."""

    def f(W: Tensor, theta: Tensor) -> Tensor:
        logits = theta @ W
        return (logits.logsumexp(-1) - logits.diagonal()).mean() + 0.5 * l2 * W.square().sum()

    def gradient(W: Tensor, theta: Tensor) -> Tensor:
        k = len(theta)
        return theta.T @ (torch.softmax(theta @ W, -1) - torch.eye(k).to(W)) / k + l2 * W

    return f, gradient


def line_search_descent(f: Callable, gradient: Condition, steps: int, tol: float) -> Solver:
    """Gradient descent from 0 that halves its step until Armijo's rule holds and tries twice the last one next."""

    def solver(theta: Tensor) -> Tensor:
        W = torch.zeros(theta.shape[1], len(theta)).to(theta)
        step = 1.0
        for _ in range(steps):
            g = gradient(W, theta)
            with torch.no_grad():  # the length of a step counts as a constant
                squared = g.square().sum()
                if squared <= tol**2:
                    break
                value = f(W, theta)
                while f(W - step * g, theta) > value - 0.5 * step * squared:
                    step /= 2
            W = W - step * g
            step *= 2
        return W

    return solver


def images_of(data: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in [0, 1], 28 x 28 pictures halved to 14 x 14."""
    x = data["x"] / data["x"].max()
    if x.shape[1] == 28:
        x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return x.reshape(len(x), -1), data["y"]


def distillation(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs, device: str) -> Results:
    """Learn one image a class so that the regression fitted to them classifies the training set."""
    x, y = images_of(inputs.datasets[problem["images"]])
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[: problem["train"]], order[problem["train"] : problem["train"] + problem["test"]]
    x, x_test = tensors(device, x[train], x[test])
    y, y_test = torch.as_tensor(y[train], device=device), torch.as_tensor(y[test], device=device)
    f, gradient = softmax_regression(problem["l2"])
    descend = line_search_descent(f, gradient, problem["steps"], 1e-4)
    solvers = {"implicit": implicitly(descend, gradient, partial(cg, tol=1e-6)), "unrolled": descend}

    def loss(W: Tensor) -> Tensor:
        return cross_entropy(x @ W, y)

    (theta,) = tensors(device, 0.1 * np.random.default_rng([seed, 1]).standard_normal((10, x.shape[1])))
    momentum, traces, seconds = torch.zeros_like(theta), [], 0.0
    hypergradient(solvers[method], loss, theta)  # warm-up
    for k in range(problem["outer"]):
        begin = process_time()
        W, g = hypergradient(solvers[method], loss, theta)
        momentum = 0.9 * momentum + g
        theta = theta - problem["outer_step"] * momentum
        seconds += process_time() - begin
        traces.append({"seed": seed, "outer": k, "loss": loss(W).item()})
    W = descend(theta)
    accuracy = ((x_test @ W).argmax(-1) == y_test).double().mean().item()
    row = {"seed": seed, "accuracy": accuracy, "loss": loss(W).item()}
    return Results([row], traces, [{"seed": seed, "cpu_s": seconds}], {f"images_{seed}": theta.cpu().numpy()})


# ---- soft spheres


def packing_energy(box: float, small: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Sum of 1/2 (1 - r_ij / s_ij)^2 over the pairs that overlap; ``small`` (N,) spheres have diameter theta."""
    i, j = torch.triu_indices(len(small), len(small), 1)

    def energy(x: Tensor, theta: Tensor) -> Tensor:  # x (N, 2)
        diameter = torch.where(small, theta, 1.4)
        gap = x[i] - x[j]
        r = (gap - box * (gap / box).round()).square().sum(-1).sqrt()  # nearest images
        overlap = (1 - r / (0.5 * (diameter[i] + diameter[j]))).relu()
        return 0.5 * overlap.square().sum()

    return energy


def packing(problem: Settings, method: str, settings: Settings, seed: int, inputs: Inputs, device: str) -> Results:
    """Relative error of d positions / d diameter of the small spheres against central differences."""
    N = problem["spheres"]
    small = torch.arange(N, device=device) < N // 2
    area = math.pi / 4 * (N // 2 + (N - N // 2) * 1.4**2)
    box = math.sqrt(area / problem["density"])
    F = torch.func.grad(packing_energy(box, small))

    def relax(x: Tensor, theta: Tensor) -> Tensor:
        for k in range(problem["steps"]):
            g = F(x, theta)
            if k % 100 == 0 and g.norm() < 1e-12:
                break
            x = x - 0.2 * g
        return x

    (x,) = tensors(device, np.random.default_rng(seed).uniform(0, box, (N, 2)))
    theta, h = torch.ones((), dtype=torch.float64, device=device), 1e-6
    x = relax(x, theta)
    differences = (relax(x, theta + h) - relax(x, theta - h)) / (2 * h)
    estimates = {
        "implicit": lambda: root_jvp(F, x, theta, torch.ones_like(theta), partial(cg, tol=1e-10, cap=4 * N)),
        "differences": lambda: differences,
    }
    velocity = estimates[method]()
    error = (velocity - differences).norm() / differences.norm()
    row = {"seed": seed, "error": error.item(), "speed": velocity.norm().item(), "force": F(x, theta).norm().item()}
    state = {f"positions_{seed}": x.cpu().numpy(), f"velocity_{seed}": velocity.cpu().numpy()}
    return Results([row], state=state)


FAMILIES = {"ridge": ridge, "svm": svm, "distillation": distillation, "packing": packing}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    found = Results([])
    for seed in seeds:
        one = FAMILIES[problem["family"]](problem, method, settings, seed, inputs, device)
        found.rows += one.rows
        found.traces += one.traces
        found.timings += one.timings
        found.state |= one.state
    return found
