"""Where students are judged, a teacher and a distance to its data, and the settings that suit Diff-Instruct there."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from safetensors.numpy import load as unpack
from torch import Tensor

from papertrial.engine.results import Row
from papertrial.methods.samplers import balanced_labels, initial_noise
from papertrial.models import picture_denoisers, plane_denoisers
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import EDM, batched
from papertrial.papers.diffusion.disback_distillation.distillation import Meter, OneStep, Setup, distil
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2, mode_tv

CLASSES = 10


@dataclass(frozen=True)
class Lab:
    """A teacher and its testbed.

    shape: of one sample.
    labelled: whether the teacher knows classes.
    quality: of samples and their labels, {"distance": FD or SW2, ...}.
    floor: (seed, n) -> the distance of as many real samples.
    """

    p: Mapping
    teacher: EDM
    shape: tuple[int, ...]
    labelled: bool
    quality: Callable[[Tensor, Tensor | None], Row]
    floor: Callable[[int, int], float]
    device: str

    def draw(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        z = torch.randn((n, *self.shape), generator=rng).to(self.device)
        return z, torch.randint(CLASSES, (n,), generator=rng).to(self.device) if self.labelled else None

    def setup(self, lr: float, phi_lr: float, phi_steps: int, normalised: bool = False) -> Setup:
        fixed = {k: self.p[k] for k in ("log_mean", "log_sd", "batch", "ema")}
        return Setup(self.draw, lr=lr, phi_lr=phi_lr, phi_steps=phi_steps, normalised=normalised, **fixed)

    def samples(self, student: OneStep, seed: int, n: int) -> tuple[Tensor, Tensor | None]:
        """One evaluation from a seed's noise, which is common to all methods."""
        z = initial_noise([seed], n, self.shape).to(self.device)
        label = balanced_labels([seed], n).to(self.device) if self.labelled else None
        return batched(student.denoiser, 1000)(student.s_init * z, student.s_init, label), label

    def judge(self, student: OneStep, seed: int, n: int) -> Row:
        return self.quality(*self.samples(student, seed, n))


def pictures(p: Mapping, base: Mapping, judge: Mapping, device: str) -> Lab:
    """fm8: FD and label accuracy by a classifier."""
    found = SampleJudge(judge, device)

    def quality(x: Tensor, label: Tensor) -> Row:
        row = found(x, label.cpu())
        return {"distance": row["fd"], "accuracy": row["accuracy"]}

    teacher = picture_denoisers.load(base, device)
    return Lab(p, teacher, picture_denoisers.shape(base), True, quality, found.floor, device)


def points(p: Mapping, base: Mapping, judge: Mapping, device: str) -> Lab:
    """A density in the plane: SW2, and the total variation of its modes' shares."""
    exact = density(p["part"], torch.float32)
    sw2 = SlicedW2(exact.sample(p["reference"], torch.Generator().manual_seed(0)).numpy())
    modes = exact.means.numpy()

    def quality(x: Tensor, label: None) -> Row:
        x = x.cpu().numpy()
        return {"distance": sw2(x), "mode_tv": mode_tv(x, modes)}

    def floor(seed: int, n: int) -> float:
        return sw2(exact.sample(n, torch.Generator().manual_seed(30_000 + seed)).numpy())

    return Lab(p, plane_denoisers.load(base, device), (2,), False, quality, floor, device)


LABS = {"fm8": pictures, "edm2d": points}
NEEDED = ("base", "part", "reference", "log_mean", "log_sd", "batch", "ema", "n", "tuning")  # by a lab and its tuning


def lab(p: Mapping, base: Mapping, judge: Mapping, device: str) -> Lab:
    return LABS[p["base"]](p, base, judge, device)


@dataclass(frozen=True)
class Tuned:
    """What suits Diff-Instruct on the tuning seed; ``tried`` holds every (s_init, lr, phi_lr, phi_steps, distance)."""

    s_init: float
    lr: float
    phi_lr: float
    phi_steps: int
    tried: tuple[tuple[float, float, float, int, float], ...]


@cache
def tuned(plain: str, base: bytes, judge: bytes, device: str) -> Tuned:
    """The smallest distance after equal passes: the level and both rates together, then the number of phi's updates.

    Args:
        plain: the settings NEEDED as JSON, which with the packed arrays lets the answer be remembered.
    """
    p = json.loads(plain)
    here, how = lab(p, unpack(base), unpack(judge), device), p["tuning"]
    budget = how["iterations"] * here.setup(0, 0, how["phi_steps"][0]).passes
    tried: dict[tuple, float] = {}

    def best(cells: list[tuple]) -> tuple:
        for cell in cells:
            if cell not in tried:
                student, setup = OneStep(here.teacher, cell[0]), here.setup(*cell[1:])
                phi, targets = deepcopy(here.teacher), [here.teacher]
                average = distil(student, phi, targets, 0, setup, Meter(), budget, how["seed"])
                tried[cell] = here.judge(average, how["seed"], p["n"])["distance"]
        return min(cells, key=lambda cell: tried[cell] if np.isfinite(tried[cell]) else np.inf)

    first, *more = how["phi_steps"]
    cell = best([(*c, first) for c in product(how["s_init"], how["lr"], how["phi_lr"])])
    cell = best([cell, *((*cell[:3], k) for k in more)])
    return Tuned(*cell, tuple((*c, v) for c, v in tried.items()))
