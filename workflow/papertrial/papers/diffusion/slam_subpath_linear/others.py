"""Students that are printed beside SLAM: its estimate in another parametrisation, and progressive distillation."""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from papertrial.methods.consistency import Student, beside, interval
from papertrial.models.edm import EDM, Draw
from papertrial.models.training import Loss, Training, fit


class AtTheStart(Student):
    """eps = (x_g - D)/s with the denoiser's coefficients of level s, where the sub-path begins, not of x_g's own.

    x0 = x_g - s_g eps is the same at gamma = 1; below it the network's output has to grow to (s - s_g) eps/sigma_data.
    """

    def x0(self, x: Tensor, s: Tensor, label: Tensor | None, gamma: Tensor, s_gamma: Tensor) -> Tensor:
        return x - beside(s_gamma / s, x) * (x - self.denoiser(x, s, (label, gamma)))


def two_steps_in_one(teacher: EDM, draw: Draw, levels: np.ndarray, batch: int) -> Loss:
    """How far the student's DDIM step over two intervals ends from where two steps of the teacher end."""
    at = torch.tensor(levels, dtype=torch.float32)

    def loss(student: EDM, average: EDM, step: int, generator: torch.Generator) -> Tensor:
        x0, label = draw(batch, generator)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)
        i = 2 * torch.randint(len(at) // 2, (batch,), generator=generator)
        s, middle, end = (at[i + k].to(x0.device) for k in range(3))
        x, x_middle = interval(teacher, x0, noise, s, middle, label)
        with torch.no_grad():
            clean = teacher(x_middle, middle, label)
        x_end = clean + beside(end / middle, x) * (x_middle - clean)
        ratio = beside(end / s, x)
        target = (x_end - ratio * x) / (1 - ratio)  # from where DDIM's step leads to x_end
        weight = s.square().reciprocal().clamp(min=1)  # truncated signal-to-noise ratio
        return (beside(weight, x) * (student(x, s, label) - target).square()).mean()

    return loss


def progressive(
    teacher: EDM, draw: Draw, levels: np.ndarray, how: Training, batch: int, seed: int
) -> Iterator[tuple[EDM, np.ndarray]]:
    """Halve the steps until two are left (Salimans and Ho 2022): each student, and the levels that it walks."""
    while len(levels) > 3:
        loss = two_steps_in_one(teacher, draw, levels, batch)
        teacher, _ = fit(deepcopy(teacher).requires_grad_(True), loss, how, seed)
        levels = levels[::2]
        yield teacher, levels
