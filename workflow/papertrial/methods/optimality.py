"""Optimality conditions F(x, theta) = 0, or fixed points T(x, theta) = x with F = T - x, for implicit differentiation.

Each is built from what a user has at hand: the gradient (x, theta) -> grad_1 f(x, theta), a projection, a proximal
operator. All have the solution as a root, so all give the same derivative of it.

Source: Blondel et al., arXiv:2105.15183 (2022), table 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from papertrial.methods.implicit import Condition

Prox = Callable[[Tensor, Tensor, float], Tensor]  # (x, theta, eta) -> prox of eta g(., theta)


def residual(T: Condition) -> Condition:
    """F = T - x of a fixed point."""
    return lambda x, theta: T(x, theta) - x


def proximal_gradient(gradient: Condition, prox: Prox, eta: float) -> Condition:
    """T(x) = prox(x - eta grad f)."""
    return lambda x, theta: prox(x - eta * gradient(x, theta), theta, eta)


def projected_gradient(gradient: Condition, project: Callable[[Tensor], Tensor], eta: float) -> Condition:
    """T(x) = proj(x - eta grad f)."""
    return lambda x, theta: project(x - eta * gradient(x, theta))


def mirror_descent(gradient: Condition, eta: float) -> Condition:
    """T(x) = softmax(log x - eta grad f): the simplex under the Kullback-Leibler divergence, for every row of x > 0."""

    def T(x: Tensor, theta: Tensor) -> Tensor:
        inside = x.clamp_min(torch.finfo(x.dtype).tiny)  # what has underflowed stays on the boundary
        return torch.softmax(inside.log() - eta * gradient(x, theta), dim=-1)

    return T


def kkt(gradient: Condition, equality: Condition, inequality: Condition, sizes: tuple[int, int, int]) -> Condition:
    """Karush-Kuhn-Tucker conditions of min f over h = 0, g <= 0, at (x, nu, lambda) in one vector.

    Args:
        equality: h(x, theta) of length sizes[1].
        inequality: g(x, theta) of length sizes[2].
        sizes: of x, nu and lambda.
    """

    def F(z: Tensor, theta: Tensor) -> Tensor:
        x, nu, lam = z.split(sizes)

        def constraints(x: Tensor) -> tuple[Tensor, Tensor]:
            return equality(x, theta), inequality(x, theta)

        (h, g), pull_back = torch.func.vjp(constraints, x)
        stationarity = gradient(x, theta) + pull_back((nu, lam))[0]
        return torch.cat([stationarity, h, lam * g])

    return F


def soft_threshold(x: Tensor, theta: Tensor, eta: float) -> Tensor:
    """The proximal operator of eta theta ||x||_1."""
    return x.sign() * (x.abs() - eta * theta).relu()


def simplex(x: Tensor) -> Tensor:
    """The Euclidean projection of every row of x (..., k) on the simplex; its derivative is that of the support."""
    k = x.shape[-1]
    with torch.no_grad():
        ordered = x.sort(dim=-1, descending=True).values
        excess = ordered.cumsum(-1) - 1
        size = (ordered * torch.arange(1, k + 1, dtype=x.dtype, device=x.device) > excess).sum(-1, keepdim=True)
        support = x > (excess.gather(-1, size - 1) / size)  # (..., k)
    tau = ((x * support).sum(-1, keepdim=True) - 1) / size
    return (x - tau) * support
