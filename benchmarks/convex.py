"""Our convex solvers against the installable peers: the same problem, the same tolerance, one process, ratios.

    OMP_NUM_THREADS=1 python benchmarks/convex.py            # needs pip install -e .[peers]

A ratio is the peer's CPU seconds over ours, median of five alternating runs: above 1 we are faster. Beside it the
accuracy that both reached; a faster but coarser answer doesn't count.
"""

import contextlib
import importlib.util
import io
import time
import warnings
from collections.abc import Callable
from statistics import median

import numpy as np

from papertrial.methods import sinkhorn as entropic
from papertrial.testbeds.transport import gaussian_clouds, marginal_error, random_assignment

RUNS = 5
Solver = Callable[[], object]
Measure = Callable[[object], float]


def compare(what: str, ours: Solver, peer: Solver, error: tuple[Measure, Measure], note: str = "") -> None:
    """Print one row of the table."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    found = {}
    for _ in range(RUNS):
        for name, solve in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            found[name] = solve()
            seconds[name].append(time.process_time() - start)
    ratio = median(seconds["peer"]) / median(seconds["ours"])
    errors = f"{error[0](found['ours']):.1e} / {error[1](found['peer']):.1e}"
    print(f"{what:58s} {ratio:7.2f}   {errors:20s} {note}")


def transport() -> None:
    import ot as pot

    for name, problem, eta in (
        ("assignment n=500", random_assignment(500, 1000), 300.0),
        ("clouds n=500", gaussian_clouds(500, 1000), 300.0),
    ):
        _, r, c = problem

        def ours(problem: tuple = problem, eta: float = eta) -> np.ndarray:
            C, r, c = problem
            x, y, _ = entropic.sinkhorn(C, r, c, eta, 1e-8, 100_000)
            return entropic.plan(C, x, y, eta)

        for method in ("sinkhorn_log", "sinkhorn_stabilized"):

            def peer(problem: tuple = problem, eta: float = eta, how: str = method) -> object:
                C, r, c = problem
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return pot.sinkhorn(r, c, C, 1 / eta, method=how, stopThr=1e-8, numItermax=100_000)

            measure = lambda P, r=r, c=c: marginal_error(P, r, c)  # noqa: E731
            compare(f"entropic transport, {name}: POT {method}", ours, peer, (measure, measure))


def sparse_transport() -> None:
    import ot as pot

    from papertrial.methods.dual_ascent import lbfgs
    from papertrial.papers.convex.sparse_optimal_transport.method import h_star_b, semi_dual

    problem, k, gamma = gaussian_clouds(200, 1000), 2, 0.1
    C, r, c = problem

    def ours() -> np.ndarray:
        found = lbfgs(semi_dual(problem, k, gamma), np.zeros(len(r)), 200)
        return h_star_b(found.x[:, None] - C, c, k, gamma)[1]

    def peer() -> np.ndarray:
        regular = "sparsity_constrained"
        settings = {"reg_type": regular, "max_nz": k, "numItermax": 200, "stopThr": 1e-12}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints shapes
            return pot.smooth.smooth_ot_semi_dual(r, c, C, gamma, **settings)

    measure = lambda T: float(np.abs(T.sum(axis=1) - r).sum())  # noqa: E731
    compare("sparse transport, clouds n=200, k=2: POT smooth", ours, peer, (measure, measure), "row-marginal error")


def implicit() -> None:
    import torch

    from papertrial.methods.implicit import custom_root

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1000)
    A = torch.randn(400, 100, generator=generator, dtype=torch.float64)
    b = torch.randn(400, generator=generator, dtype=torch.float64)
    theta = torch.full((100,), 10.0, dtype=torch.float64)
    step = 1 / (torch.linalg.matrix_norm(A, 2) ** 2 + 10)
    F = lambda x, t: A.T @ (A @ x - b) + t * x  # noqa: E731
    x_star = torch.linalg.solve(A.T @ A + torch.diag(theta), A.T @ b)
    exact = -torch.linalg.solve(A.T @ A + torch.diag(theta), torch.ones(100, dtype=torch.float64)) * x_star

    def descend(t: torch.Tensor, steps: int = 500) -> torch.Tensor:
        x = torch.zeros(100, dtype=torch.float64)
        for _ in range(steps):
            x = x - step * F(x, t)
        return x

    def gradient(solver: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        t = theta.clone().requires_grad_()
        solver(t).sum().backward()
        return t.grad

    measure = lambda g: float((g - exact).norm() / exact.norm())  # noqa: E731
    ours = lambda: gradient(custom_root(descend, F))  # noqa: E731
    compare("hypergradient of ridge, 500 inner steps: unrolling", ours, lambda: gradient(descend), (measure, measure))
    if importlib.util.find_spec("torchopt"):
        from torchopt.diff.implicit import custom_root as peer_root

        solver = peer_root(lambda x, t: F(x, t), argnums=1)(lambda x0, t: descend(t))
        peer = lambda: gradient(lambda t: solver(torch.zeros(100, dtype=torch.float64), t))  # noqa: E731
        compare("the same: torchopt", ours, peer, (measure, measure))


def sketches() -> None:
    from scipy.linalg import clarkson_woodruff_transform

    from papertrial.methods.sketches import countsketch

    A = np.random.default_rng(1000).standard_normal((2**16, 50))
    singular = np.linalg.svd(A, compute_uv=False)
    measure = lambda SA: float(np.abs(np.linalg.svd(SA, compute_uv=False) / singular - 1).max())  # noqa: E731
    ours = lambda: countsketch(A, 4096, np.random.default_rng(0))  # noqa: E731
    peer = lambda: clarkson_woodruff_transform(A, 4096, seed=0)  # noqa: E731
    compare("CountSketch of 65,536 x 50 to 4,096 rows: scipy", ours, peer, (measure, measure), "spectrum's distortion")


def lasso() -> None:
    from sklearn.linear_model import Lasso

    from papertrial.methods.l1_blocks import identify, two_metric
    from papertrial.testbeds.coordinate_descent import LinearModel

    rng = np.random.default_rng(1000)
    A = rng.standard_normal((200, 1000))
    truth = np.zeros(1000)
    truth[:20] = rng.standard_normal(20)
    y = A @ truth + 0.1 * rng.standard_normal(200)
    lam = 0.1 * np.abs(A.T @ y).max()

    def ours() -> np.ndarray:
        model = LinearModel(A, y[:, None], "squares")
        x, _, _ = identify(model, lam, 5, 2000)
        for _ in range(3):
            x = two_metric(model, lam, x, np.flatnonzero(x))
        return x

    def peer() -> np.ndarray:
        return Lasso(alpha=lam / len(y), fit_intercept=False, tol=1e-12, max_iter=100_000).fit(A, y).coef_

    def stationarity(x: np.ndarray) -> float:
        g = A.T @ (A @ x - y)
        return float(np.abs(np.where(x != 0, g + lam * np.sign(x), np.maximum(np.abs(g) - lam, 0))).max() / lam)

    why = "KKT residual; greedy selection in Python against cyclic sweeps in Cython"
    compare("lasso 200 x 1,000, greedy blocks: scikit-learn", ours, peer, (stationarity, stationarity), why)


def main() -> None:
    print(f"{'problem: peer':58s} {'ratio':>7s}   {'error, ours / peer':20s}")
    for benchmark in (transport, sparse_transport, implicit, sketches, lasso):
        try:
            benchmark()
        except ImportError as error:
            print(f"{benchmark.__name__}: not run, {error}")


if __name__ == "__main__":
    main()
