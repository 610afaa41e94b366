"""Bilevel problems: derivatives, lower solutions, hyper-gradients."""

from collections import Counter

import numpy as np
import pytest

from papertrial.testbeds.bilevel import (
    counted,
    hyper_objective,
    hypergradient,
    lower_solution,
    many_solutions,
    minimise,
    penalised,
    strongly_convex,
)

FAMILIES = [strongly_convex, many_solutions]


def central(function, at, h=1e-5):
    """d function / d at for a function of one vector: the last axis is at's."""
    steps = h * np.eye(len(at))
    return np.stack([(function(at + e) - function(at - e)) / (2 * h) for e in steps], axis=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_derivatives(family):
    problem = family(1000, 6)
    x, y = np.random.default_rng(1).standard_normal((2, 6))
    for objective in (problem.upper, problem.lower, penalised(problem, 0.3)):
        assert np.allclose(objective.grad_x(x, y), central(lambda x: objective.value(x, y), x), atol=1e-8)
        assert np.allclose(objective.grad_y(x, y), central(lambda y: objective.value(x, y), y), atol=1e-8)
        assert np.allclose(objective.hess_yy(x, y), central(lambda y: objective.grad_y(x, y), y), atol=1e-8)
    assert np.allclose(problem.lower.hess_xy(x, y), central(lambda x: problem.lower.grad_y(x, y), x).T, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_are_points_by_themselves(family):
    problem = family(1000, 6)
    x, y = np.random.default_rng(1).standard_normal((2, 4, 6))
    solution = lower_solution(problem, x)
    for k in range(4):
        assert np.allclose(solution[k], lower_solution(problem, x[k]), atol=1e-10)
        for objective in (problem.upper, penalised(problem, np.array([0.1, 0.2, 0.3, 0.4]))):
            if objective is problem.upper:
                assert np.allclose(objective.grad_y(x, y)[k], objective.grad_y(x[k], y[k]))
    h = penalised(problem, np.array([0.1, 0.2, 0.3, 0.4]))
    assert np.allclose(h.grad_y(x, y)[2], penalised(problem, 0.3).grad_y(x[2], y[2]))


def test_lower_solutions_are_stationary_and_best_for_the_upper_level():
    for family in FAMILIES:
        problem = family(1000, 6)
        x = np.random.default_rng(2).standard_normal((5, 6))
        y = lower_solution(problem, x)
        assert np.abs(problem.lower.grad_y(x, y)).max() < 1e-11
        null = np.linalg.svd(problem.lower.hess_yy(x, y)[0])[2][3:] if family is many_solutions else np.zeros((0, 6))
        assert np.abs(problem.upper.grad_y(x, y) @ null.T).max(initial=0) < 1e-11


@pytest.mark.parametrize("family", FAMILIES)
def test_hypergradient_is_the_gradient_of_the_hyper_objective(family):
    problem = family(1000, 6)
    x = np.random.default_rng(3).standard_normal(6)
    by_differences = central(lambda x: hyper_objective(problem, x), x, 1e-4)
    assert np.allclose(hypergradient(problem, x, lower_solution(problem, x)), by_differences, atol=1e-6)


def test_it_is_the_gradient_of_implicit_differentiation():
    torch = pytest.importorskip("torch")
    from papertrial.methods.implicit import root_vjp

    rng = np.random.default_rng(1000)  # the same draws as the family's
    n = 5
    problem = strongly_convex(1000, n)
    rng.standard_normal((2, n))
    B, W = rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal((n, n))
    Q, B = torch.as_tensor(np.eye(n) + W @ W.T / n), torch.as_tensor(B)
    x = np.random.default_rng(4).standard_normal(n)
    y = lower_solution(problem, x)
    F = lambda y, x: Q @ (y - B @ x) + 0.1 * y.tanh()  # noqa: E731
    v = torch.as_tensor(problem.upper.grad_y(x, y))
    implicit = root_vjp(F, torch.as_tensor(y), torch.as_tensor(x), v).numpy()
    assert np.allclose(hypergradient(problem, x, y), problem.upper.grad_x(x, y) + implicit, atol=1e-9)


def test_minimise_stays_in_the_span_of_its_basis():
    problem = strongly_convex(1000, 6)
    x, basis = np.ones(6), np.linalg.qr(np.random.default_rng(5).standard_normal((6, 2)))[0]
    y = minimise(problem.lower, x, np.zeros(6), basis)
    assert np.allclose(y, basis @ (basis.T @ y)) and np.abs(problem.lower.grad_y(x, y) @ basis).max() < 1e-11


def test_calls_are_counted_by_lane():
    calls = Counter()
    g = counted(strongly_convex(1000, 6).lower, calls)
    g.grad_y(np.zeros((3, 6)), np.zeros((3, 6)))
    g.grad_x(np.zeros(6), np.zeros(6))
    assert calls == {"grad_y": 3, "grad_x": 1}
