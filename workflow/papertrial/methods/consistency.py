"""Distil a diffusion model into a sampler of one to four evaluations: consistency along its ODE, or along sub-paths.

A student f(x, s) is to give one and the same answer everywhere on a solution of the teacher's ODE, so it is trained
to agree with its own slow average at the two ends of every interval [s_next, s] of a grid, the far end found by one
step of DDIM (consistency distillation). On coarse grids the two ends are far apart. The sub-path linear model starts
anywhere on the straight line between them:

    x_g = g x + (1 - g) x_next,   s_g = g s + (1 - g) s_next,   g ~ U[0, 1],

and tells the network g. With g = 1 always it is consistency distillation; nothing else differs. All in VE coordinates
x = x0 + s eps.

Sources: Xu et al. 2024 (arXiv 2404.13903); Luo et al. 2023 (arXiv 2310.04378) for latent consistency distillation.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.methods.noise_levels import S_MIN

HUBER = 1e-3
TIMES = {1: (20.0,), 2: (20.0, 1.5), 3: (20.0, 5.0, 0.5), 4: (20.0, 5.0, 1.5, 0.5)}  # levels of multistep sampling

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]
Loss = Callable[[nn.Module, nn.Module, int, torch.Generator], Tensor]
Law = Callable[[Tensor], tuple[Tensor, Tensor]]
# From u (2, n) uniform: the gamma that x_g is built with, and the gamma that the student is told.
GAMMAS: dict[str, Law] = {
    "one": lambda u: (torch.ones_like(u[0]), torch.ones_like(u[0])),  # consistency distillation
    "uniform": lambda u: (u[0], u[0]),  # sub-path linear
    "ends": lambda u: (u[0].round(), u[0].round()),  # both ends, nothing between them
    "mismatched": lambda u: (u[0], u[1]),  # no valid sub-path
}


class LabelAndGamma(nn.Module):
    """Takes the place of a network's label embedding: that of the label plus one of gamma, zero at the start.

    The features of gamma vanish at gamma = 1, where the network is a plain denoiser, so consistency distillation
    has no parameters that the teacher hasn't.
    """

    def __init__(self, labels: nn.Embedding, features: int = 8) -> None:
        super().__init__()
        self.labels = labels
        self.weight = nn.Parameter(labels.weight.new_zeros(features, labels.embedding_dim))

    def forward(self, condition: tuple[Tensor | None, Tensor]) -> Tensor:
        """(n, width) from labels (n,), or None, and gamma (n,)."""
        label, gamma = condition
        if label is None:
            label = torch.full(gamma.shape, self.labels.num_embeddings - 1, device=gamma.device)
        k = torch.arange(1, len(self.weight) + 1, device=gamma.device)
        return self.labels(label) + torch.sin((1 - gamma[:, None]) * k * (pi / 2)) @ self.weight


class Student(nn.Module):
    """f(x_g, s, gamma), which starts as its teacher.

    Args:
        teacher: a denoiser D(x, s, label), copied; its network ``net`` has a label embedding ``embed_label``, which it
            gives the label as it comes.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.denoiser = deepcopy(teacher).requires_grad_(True)
        self.denoiser.net.embed_label = LabelAndGamma(self.denoiser.net.embed_label)

    def x0(self, x: Tensor, s: Tensor, label: Tensor | None, gamma: Tensor, s_gamma: Tensor) -> Tensor:
        """The estimate x_g - s_g eps, where eps = (x_g - D)/s_g: D of the level that x_g is at, told gamma."""
        return self.denoiser(x, s_gamma, (label, gamma))

    def forward(self, x: Tensor, s: Any, label: Tensor | None = None, gamma: Any = 1.0, s_gamma: Any = None) -> Tensor:
        """c_skip x + c_out x0, which is x itself at s_min.

        Args:
            x: (n, ...) on the sub-path that begins at level s, at its level s_gamma.
            s: one for all, or (n,); so are gamma and s_gamma, which is s where it isn't given.
        """
        s_gamma = s if s_gamma is None else s_gamma
        s, gamma, s_gamma = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device).expand(len(x)) for v in (s, gamma, s_gamma)
        )
        total = (s - S_MIN).square() + S_MIN**2
        c_skip, c_out = S_MIN**2 / total, (s - S_MIN) * total.rsqrt()
        return beside(c_skip, x) * x + beside(c_out, x) * self.x0(x, s, label, gamma, s_gamma)


def beside(v: Tensor, x: Tensor) -> Tensor:
    """(n,), in the shape that multiplies x (n, ...)."""
    return v.reshape(-1, *[1] * (x.ndim - 1))


def huber(error: Tensor, c: float = HUBER) -> Tensor:
    """sqrt(e^2 + c^2) - c of every coordinate: |e| but for its corner."""
    return (error.square() + c * c).sqrt() - c


def interval(
    teacher: nn.Module, x0: Tensor, noise: Tensor, s: Tensor, s_next: Tensor, label: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two ends of an interval of the teacher's ODE: x at s, and one DDIM step on, at s_next."""
    x = x0 + beside(s, x0) * noise
    with torch.no_grad():
        clean = teacher(x, s, label)
    return x, clean + beside(s_next / s, x) * (x - clean)


def consistency(teacher: nn.Module, draw: Draw, levels: np.ndarray, gammas: Law, batch: int) -> Loss:
    """How far the student on a sub-path is from its average at the sub-path's end; to be minimised.

    Args:
        teacher: the denoiser, as it stands; not changed.
        draw: (n, generator) -> data and labels, on the teacher's device.
        levels: n + 1 falling levels, the n intervals of the teacher's grid, the last one s_min.
        gammas: one of ``GAMMAS``; whichever it is, a generator gives the same data, noise and intervals.

    Returns:
        (student, its average, step, generator) -> scalar.
    """
    at = torch.tensor(levels, dtype=torch.float32)

    def loss(student: Student, average: Student, step: int, generator: torch.Generator) -> Tensor:
        x0, label = draw(batch, generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        i = torch.randint(len(at) - 1, (batch,), generator=generator)
        built, told = (g.to(x0.device) for g in gammas(torch.rand(2, batch, generator=generator)))
        s, s_next = at[i].to(x0.device), at[i + 1].to(x0.device)
        x, x_next = interval(teacher, x0, noise, s, s_next, label)
        with torch.no_grad():
            target = average(x_next, s_next, label)
        x_gamma = torch.lerp(x_next, x, beside(built, x))
        s_gamma = torch.lerp(s_next, s, told)
        return huber(student(x_gamma, s, label, told, s_gamma) - target).mean()

    return loss


def sampling_levels(evaluations: int, levels: np.ndarray) -> list[float]:
    """``TIMES``, each moved to the nearest level (in log s) that the student was trained at."""
    trained = np.asarray(levels)[:-1]
    return [float(trained[np.abs(np.log(trained / s)).argmin()]) for s in TIMES[evaluations]]


def multistep(
    student: Callable[[Tensor, float, Tensor | None], Tensor],
    levels: Sequence[float],
    noise: Tensor,
    draw: Callable[[], Tensor],
    label: Tensor | None = None,
) -> Tensor:
    """Alternate the student and fresh noise.

    Args:
        levels: falling; one evaluation each.
        noise: (n, ...) standard normal, what the first level starts from.
        draw: gives further noise of that shape.
    """
    x0 = student(levels[0] * noise, levels[0], label)
    for s in levels[1:]:
        x0 = student(x0 + s * draw(), s, label)
    return x0
