"""Implicit differentiation: the derivative of a solution through the condition that it satisfies.

A solver returns x with F(x, theta) = 0; how it got there doesn't matter. The implicit function theorem gives
J = dx/dtheta from

    A J = B,        A = -d1 F(x, theta),  B = d2 F(x, theta),

and products with J need products with A and B alone, which automatic differentiation supplies: a linear solve without
a matrix. x and theta are tensors of any shape; F(x, theta) has the shape of x.

Source: Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert, arXiv:2105.15183 (2022).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Condition = Callable[[Tensor, Tensor], Tensor]  # F(x, theta)
LinearSolve = Callable[[Map, Tensor], Tensor]  # (matvec, b) -> matvec^-1 b


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


def cg(A: Map, b: Tensor, tol: float = 1e-10, cap: int = 1000) -> Tensor:
    """Conjugate gradients for a symmetric A, definite or semidefinite with b in its range, of either sign.

    Args:
        tol: of the residual's norm, relative to b's.
        cap: of the iterations.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r, dot(r, r)
    target = tol**2 * rr
    for _ in range(cap):
        if rr <= target:
            break
        Ap = A(p)
        alpha = rr / dot(p, Ap)
        x, r = x + alpha * p, r - alpha * Ap
        rr, before = dot(r, r), rr
        p = r + (rr / before) * p
    return x


def bicgstab(A: Map, b: Tensor, tol: float = 1e-10, cap: int = 1000) -> Tensor:
    """Stabilised bi-conjugate gradients for any A; two products an iteration, no basis to store.

    Returns the iterate with the least residual: a breakdown (a division by almost nothing) ends the search.
    """
    x, r = torch.zeros_like(b), b.clone()
    shadow, p, rho = r, r, dot(r, r)
    best, least = x, rho
    target = tol**2 * rho
    for _ in range(cap):
        if least <= target:
            break
        v = A(p)
        alpha = rho / dot(shadow, v)
        s = r - alpha * v
        t = A(s)
        omega = dot(t, s) / dot(t, t).clamp_min(torch.finfo(t.dtype).tiny)
        x, r = x + alpha * p + omega * s, s - omega * t
        rr = dot(r, r)
        if not torch.isfinite(rr):
            break
        if rr < least:
            best, least = x, rr
        rho, before = dot(shadow, r), rho
        p = r + (rho / before) * (alpha / omega) * (p - omega * v)
    return best


def root_jvp(F: Condition, x: Tensor, theta: Tensor, w: Tensor, solve: LinearSolve = cg) -> Tensor:
    """J w for a direction w of theta's shape: solve A (J w) = B w."""
    jvp = torch.func.jvp
    Bw = jvp(lambda t: F(x, t), (theta,), (w,))[1]
    return solve(lambda p: -jvp(lambda z: F(z, theta), (x,), (p,))[1], Bw)


def root_vjp(F: Condition, x: Tensor, theta: Tensor, v: Tensor, solve: LinearSolve = cg) -> Tensor:
    """J^T v for a cotangent v of x's shape: solve A^T u = v, then u^T B."""
    with torch.enable_grad():
        x, theta = x.detach().requires_grad_(), theta.detach().requires_grad_()
        residual = F(x, theta)

    def product(u: Tensor, wrt: Tensor) -> Tensor:
        return torch.autograd.grad(residual, wrt, u, retain_graph=True)[0]

    u = solve(lambda p: -product(p, x), v)
    return product(u, theta)


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx, solver: Map, F: Condition, solve: LinearSolve, theta: Tensor) -> Tensor:  # noqa: ANN001
        x = solver(theta)
        ctx.F, ctx.solve = F, solve
        ctx.save_for_backward(x, theta)
        return x

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[None, None, None, Tensor]:  # noqa: ANN001
        return None, None, None, root_vjp(ctx.F, *ctx.saved_tensors, v, ctx.solve)


def custom_root(solver: Map, F: Condition, solve: LinearSolve = cg) -> Map:
    """The solver theta -> x, made differentiable by its optimality condition; its own steps leave no graph."""
    return lambda theta: _Root.apply(solver, F, solve, theta)
