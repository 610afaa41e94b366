"""Second-order Tweedie: pull a diffusion sampler towards a measurement by more than a point estimate of x0.

x_t = alpha x0 + sigma eps. Tweedie: m(x_t) = E[x0|x_t] = (x_t + sigma^2 score)/alpha and
Cov(x0|x_t) = (sigma^2/alpha^2)(I + sigma^2 H), H the Hessian of log p_t. First order: p(y|x_t) ~ N(y; A m, sy^2 I).
Jensen's inequality bounds the true one from below by adding -Tr(A Cov A')/(2 sy^2) to the exponent, and
Tr(A Cov A') <= |A|^2 Tr(Cov) = const + |A|^2 (sigma^4/alpha^2) Tr H: the trace of H is all that is needed.

Source: Rout et al. 2023 (arXiv 2312.00852); first order: DPS, Chung et al. 2023 (arXiv 2209.14687).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from papertrial.methods.samplers import Denoiser, Flow, Path, Rule, ancestral
from papertrial.papers.diffusion.stsl_second_order_tweedie.inverse import Inverse

Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Guidance:
    """zeta: step size of the residual; eta_2: of the trace, 0 is DPS; K: refinements a step; probes: for each trace."""

    zeta: float
    eta_2: float = 0.0
    K: int = 1
    probes: int = 1

    @property
    def cost(self) -> int:
        """Evaluations a step: a forward and a backward pass for the point estimate and for each probe."""
        return 2 * self.K * (1 + self.probes * (self.eta_2 > 0))


def score(flow: Flow, x: Tensor, lam: float) -> Tensor:
    return (flow.path.alpha(lam) * flow.x0(x, lam) - x) / flow.path.sigma(lam) ** 2


def trace_by_differences(flow: Flow, x: Tensor, lam: float, at_x: Tensor, probes: int, draw: Draw) -> Tensor:
    """(n,) estimate of Tr H: (1/(n delta)) sum_j e_j' (score(x + delta e_j) - score(x)), delta = 1e-3 sigma.

    at_x: the score at x, which is known already; draw: e_j ~ N(0, I) of x's shape.
    """
    delta, total = 1e-3 * flow.path.sigma(lam), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(probes):
        e = draw()
        total = total + (e * (score(flow, x + delta * e, lam) - at_x)).flatten(1).sum(1)
    return total / (probes * delta)


def keep(flow: Flow, x: Tensor, outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The gradient of both terms in one backward pass."""
    return torch.autograd.grad(outputs, x, weights)[0]


def at_random(draw: Draw) -> Callable:
    """The control: the trace term's gradient turned into a random direction, its norm kept."""

    def turned(flow: Flow, x: Tensor, outputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        first = torch.autograd.grad(outputs[0], x, weights[0], retain_graph=True)[0]
        second, e = torch.autograd.grad(outputs[1], x, weights[1])[0], draw()
        sizes = [g.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1)) for g in (second, e)]
        return first + sizes[0] / sizes[1] * e

    return turned


def descent(
    flow: Flow, x: Tensor, lam: float, inverse: Inverse, how: Guidance, draw: Draw, gradient: Callable = keep
) -> tuple[Tensor, Tensor]:
    """What to subtract from x, and m(x):

    zeta grad |y - A m|^2 / |y - A m| + eta_2 |A|^2 (sigma^4/alpha^2) grad Tr H.

    Only the residual's part is normalised: the trace's part over a small residual would blow up.
    """
    alpha, sigma = flow.path.alpha(lam), flow.path.sigma(lam)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        m = flow.x0(x, lam)
        misfit = inverse.residual(m).square().sum(1)  # (n,)
        outputs, weights = [misfit], [how.zeta / misfit.detach().sqrt()]
        if how.eta_2 > 0:
            at_x = (alpha * m - x) / sigma**2
            outputs.append(trace_by_differences(flow, x, lam, at_x, how.probes, draw))
            weights.append(torch.full_like(misfit, how.eta_2 * inverse.norm**2 * sigma**4 / alpha**2))
            found = gradient(flow, x, outputs, weights)
        else:
            found = torch.autograd.grad(outputs, x, weights)[0]
    return found, m.detach()


@dataclass(frozen=True)
class Known:
    """A flow at a point where m is known already."""

    path: Path
    m: Tensor

    def x0(self, x: Tensor, lam: float) -> Tensor:
        return self.m


def refined(inverse: Inverse, how: Guidance, noise: Draw, draw: Draw, gradient: Callable = keep) -> Rule:
    """A step of the ancestral sampler and K refinements; the first one's gradient is taken where the step began,
    as in DPS, so that both share an evaluation."""
    move = ancestral(noise)

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        pull, m = descent(flow, x, lam, inverse, how, draw, gradient)
        x = move(Known(flow.path, m), x, lam, lam_t, memory) - pull
        for _ in range(how.K - 1):
            x = x - descent(flow, x, lam_t, inverse, how, draw, gradient)[0]
        return x

    return step


def pseudo_inverse_guided(denoise: Denoiser, inverse: Inverse) -> Denoiser:
    """Pi-GDM: E[x0|x, y] if x0|x were N(m, r^2 I) with r^2 = s^2/(1 + s^2); a forward and a backward pass.

    D + s^2 grad log N(y; A m, r^2 A A' + sy^2 I), in VE coordinates, the gradient through m alone.
    Source: Song et al., Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023.
    """
    value, vector = torch.linalg.eigh(inverse.A @ inverse.A.T)

    def call(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            m = denoise(x, s, label)
            surprise = inverse.residual(m.detach()) @ vector / (s**2 / (1 + s**2) * value + inverse.sy**2)
            pulled = (surprise @ vector.T @ inverse.A).reshape(x.shape)
            return (m + s**2 * torch.autograd.grad(m, x, pulled)[0]).detach()

    return call
