"""Students of a denoiser that sample in one to four evaluations; ``distil`` is consistency distillation (cd)."""

from collections.abc import Callable

import numpy as np
from torch import nn

from papertrial.methods.consistency import GAMMAS, Student, consistency
from papertrial.models.edm import EDM, Draw
from papertrial.models.training import Training, fit


def distil(
    teacher: EDM,
    draw: Draw,
    levels: np.ndarray,
    updates: int,
    lr: float,
    seed: int,
    gammas: str = "one",
    batch: int = 128,
    ema: float = 0.95,
    student: Callable[[EDM], Student] = Student,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[Student, list[dict]]:
    """Train a student of a denoiser; ``cd``, plain consistency distillation, by default.

    Args:
        teacher: the denoiser, as it stands; not changed.
        draw: (n, generator) -> data and labels.
        levels: n + 1 falling levels, the n intervals of the teacher's grid, the last one s_min.
        updates, lr, batch: of Adam, at a constant rate.
        seed: of data, noise and intervals: the same for every law of gamma.
        gammas: a key of ``GAMMAS``.
        ema: of the average, which is both the target and the student that is returned.
        student: what is trained, from the teacher.
        watch: called with (updates done, average) after every update.

    Returns:
        the student, a function (x, s, label) -> x0, and its mean losses.
    """
    loss = consistency(teacher, draw, levels, GAMMAS[gammas], batch)
    return fit(student(teacher), loss, Training(updates, lr, decay=0.0, ema=ema), seed, watch=watch)
