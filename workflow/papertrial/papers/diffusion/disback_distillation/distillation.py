"""Distil a denoiser into a one-step generator by the difference of two scores: Diff-Instruct and DisBack.

The generator G_eta follows s^2 (score_phi - score_T) = D_phi - D_T at its noised samples, where T is a teacher and phi
a running denoiser of the samples. Far from the teacher's data score_T is unreliable, so DisBack first records how the
teacher degrades into the initial generator's denoiser, T_0 (teacher), ..., T_M, and then has the generator follow the
checkpoints backwards.

Networks are denoisers D(x, s, label) with EDM's loss. Source: Zhang et al. 2024, algorithms 1 and 2; Luo et al. 2023
(Diff-Instruct, arXiv 2305.18455); Yin et al. 2024 (DMD's normalisation, arXiv 2311.18828).
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from papertrial.models.edm import EDM

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]  # z and labels of n samples
Watch = Callable[[int, nn.Module, nn.Module, nn.Module], None]  # updates done, generator, its average, target in use


@dataclass
class Effort:
    """What one part of the training costs, counted where the work is done; a pass is that of one batch."""

    updates: int = 0
    forward: int = 0
    backward: int = 0

    @property
    def passes(self) -> int:
        return self.forward + 2 * self.backward

    def run(self, network: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A forward pass."""
        self.forward += 1
        return network(*inputs)

    def descend(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """A backward pass and an update."""
        self.backward += 1
        self.updates += 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@dataclass
class Meter:
    recording: Effort = field(default_factory=Effort)
    phi: Effort = field(default_factory=Effort)
    generator: Effort = field(default_factory=Effort)

    @property
    def passes(self) -> int:
        return self.recording.passes + self.phi.passes + self.generator.passes


class OneStep(nn.Module):
    """G(z, label) = D(s_init z, s_init, label), with weights of its own."""

    def __init__(self, teacher: EDM, s_init: float) -> None:
        super().__init__()
        self.denoiser, self.s_init = deepcopy(teacher), s_init

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoiser(self.s_init * z, self.s_init, label)


@dataclass(frozen=True)
class Setup:
    """What all methods share.

    draw: z and labels for the generator, drawn on the CPU: equal on every device.
    log_mean, log_sd: noise levels log s ~ N(log_mean, log_sd^2), the teacher's training law.
    lr, phi_lr: Adam's rates; phi_lr also that of the recording.
    phi_steps: updates of phi before one of the generator.
    ema: decay of the generator's averaged weights, which are what is judged; less at the start.
    normalised: the generator's gradient is divided, sample by sample, by the mean of |x - D_T| (DMD).
    """

    draw: Draw
    log_mean: float
    log_sd: float
    batch: int
    lr: float
    phi_lr: float
    phi_steps: int
    ema: float = 0.95
    normalised: bool = False

    @property
    def passes(self) -> int:
        """Of one iteration: phi's updates need a sample and phi's two ways, the generator's G's two ways, phi and T."""
        return self.phi_steps * 4 + 5

    def noise(self, like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Levels s (n,) and eps (n, ...) for samples."""
        s = (self.log_mean + self.log_sd * torch.randn(len(like), generator=generator)).exp()
        return s.to(like), torch.randn(like.shape, generator=generator).to(like)


def adam(network: nn.Module, lr: float) -> torch.optim.Adam:
    """Without momentum, which alternating updates don't bear, as in Diff-Instruct."""
    return torch.optim.Adam(network.parameters(), lr, betas=(0.0, 0.999), fused=True)


def beside(s: Tensor, x: Tensor) -> Tensor:
    """(n,) -> (n, 1, ...)."""
    return s.reshape(-1, *[1] * (x.ndim - 1))


def denoising_update(
    phi: EDM, optimizer: torch.optim.Adam, student: nn.Module, setup: Setup, effort: Effort, rng: torch.Generator
) -> None:
    """One step of phi towards the denoiser of the student's samples."""
    z, label = setup.draw(setup.batch, rng)
    with torch.no_grad():
        x = effort.run(student, z, label)
    s, eps = setup.noise(x, rng)
    effort.descend(effort.run(phi.loss, x, s, eps, label).mean(), optimizer)


def direction(x: Tensor, d_phi: Tensor, d_target: Tensor, normalised: bool) -> Tensor:
    """The gradient in x, (n, ...): s^2 (score_phi - score_T) = D_phi - D_T; neither net is differentiated."""
    difference = d_phi - d_target
    if normalised:
        difference = difference / beside((x - d_target).abs().flatten(1).mean(1).clamp(min=1e-6), x)
    return difference


def generator_loss(
    student: nn.Module, phi: Any, target: Any, setup: Setup, effort: Effort, rng: torch.Generator
) -> Tensor:
    """A scalar whose gradient in eta is E[direction dG/deta]."""
    z, label = setup.draw(setup.batch, rng)
    x = effort.run(student, z, label)
    s, eps = setup.noise(x, rng)
    y = x.detach() + beside(s, x) * eps
    with torch.no_grad():
        d_phi, d_target = effort.run(phi, y, s, label), effort.run(target, y, s, label)
    return (direction(x.detach(), d_phi, d_target, setup.normalised) * x).flatten(1).sum(1).mean()


def record(
    teacher: EDM, student: nn.Module, M: int, updates: int, setup: Setup, effort: Effort, seed: int
) -> list[EDM]:
    """The degradation path [T_0 = teacher, ..., T_M]: the teacher becomes the denoiser of the student as it stands."""
    path, current, rng = [teacher], deepcopy(teacher), torch.Generator().manual_seed(seed)
    optimizer = adam(current, setup.phi_lr)
    for i in range(1, M + 1):
        for _ in range(updates * i // M - updates * (i - 1) // M):
            denoising_update(current, optimizer, student, setup, effort, rng)
        path.append(deepcopy(current))
    return path


def interpolated(path: Sequence[EDM]) -> list[EDM]:
    """Weights on the straight line between the path's ends: what a path costs that records only T_M."""
    line = [deepcopy(t) for t in path]
    with torch.no_grad():
        for i, network in enumerate(line):
            for w, a, b in zip(network.parameters(), path[0].parameters(), path[-1].parameters(), strict=True):
                w.copy_(torch.lerp(a, b, i / max(1, len(path) - 1)))
    return line


# In which order the path is walked; the last one is followed to the end.


def backwards(path: Sequence[EDM]) -> list[EDM]:
    """T_{M-1}, ..., T_1, T_0: DisBack."""
    return list(path[-2::-1]) if len(path) > 1 else list(path)


def forwards(path: Sequence[EDM]) -> list[EDM]:
    """T_1, ..., T_{M-1}, T_0: the wrong way."""
    return [*path[1:-1], path[0]]


def endpoint(path: Sequence[EDM]) -> list[EDM]:
    """T_0 alone: Diff-Instruct."""
    return [path[0]]


def target_at(step: int, targets: Sequence[EDM], walk: int) -> EDM:
    """The intermediate targets share the first ``walk`` iterations equally, then the last one stays."""
    return targets[min(step * (len(targets) - 1) // walk, len(targets) - 1)] if walk else targets[-1]


def distil(
    student: nn.Module,
    phi: EDM,
    targets: Sequence[EDM],
    walk: int,
    setup: Setup,
    meter: Meter,
    budget: int,
    seed: int,
    watch: Watch | None = None,
) -> nn.Module:
    """Train the student in place until another iteration would exceed the budget.

    Args:
        phi: the running denoiser's start; trained in place.
        targets, walk: see ``target_at``.
        meter: may hold the passes of a recording.
        budget: network passes, the recording's among them.
        watch: called before the first iteration and after each.

    Returns:
        the student with averaged weights.
    """
    rng = torch.Generator().manual_seed(seed)
    student_adam, phi_adam = adam(student, setup.lr), adam(phi, setup.phi_lr)
    average = deepcopy(student).requires_grad_(False)
    means, weights = list(average.parameters()), list(student.parameters())
    steps = max(0, budget - meter.passes) // setup.passes
    for step in range(steps + 1):
        target = target_at(step, targets, walk)
        if watch:
            watch(step, student, average, target)
        if step < steps:
            for _ in range(setup.phi_steps):
                denoising_update(phi, phi_adam, student, setup, meter.phi, rng)
            loss = generator_loss(student, phi, target, setup, meter.generator, rng)
            meter.generator.descend(loss, student_adam)
            with torch.no_grad():
                torch._foreach_lerp_(means, weights, 1 - min(setup.ema, (1 + step) / (10 + step)))
    return average


def mismatch(
    targets: Sequence[EDM], start: EDM, student: nn.Module, setup: Setup, updates: int, n: int, seed: int
) -> list[float]:
    """E |D_T(y, s) - D_fit(y, s)|^2 / s^2 for each target T, on n noised samples of the student.

    D_fit, fitted from ``start`` to the frozen student, stands for the exact denoiser of its samples.
    """
    rng, fit = torch.Generator().manual_seed(seed), deepcopy(start)
    optimizer = adam(fit, setup.phi_lr)
    for _ in range(updates):
        denoising_update(fit, optimizer, student, setup, Effort(), rng)
    z, label = setup.draw(n, rng)
    with torch.no_grad():
        x = student(z, label)
        s, eps = setup.noise(x, rng)
        y = x + beside(s, x) * eps
        fitted = fit(y, s, label)
        return [float(((t(y, s, label) - fitted).flatten(1).square().sum(1) / s**2).mean()) for t in targets]
