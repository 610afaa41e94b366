"""SLAM: distil a diffusion model along linear sub-paths of its ODE, so that long steps of its solver do no harm.

The method is in methods.consistency, with consistency distillation (``cd``) as the case gamma = 1; here is what the
paper claims about the two, measured: at equal teacher, initialisation, data, noise, updates and loss, each at the
number of intervals n and the rate that suit it best on a tuning seed (c1, c3), and at every n (c2).

Source: Xu et al. 2024 (arXiv 2404.13903).
"""

from collections.abc import Callable
from time import process_time

import numpy as np
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.consistency import Student, multistep, sampling_levels
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import ddim, dpmpp2m, solve
from papertrial.models.edm import batched
from papertrial.models.picture_denoisers import load, training_pictures
from papertrial.models.sampler_lab import SamplerLab, on_grid
from papertrial.models.students import distil
from papertrial.models.training import Training
from papertrial.papers.diffusion.slam_subpath_linear.others import AtTheStart, progressive

BASE, PART = "fm8", "256-0"


class Workshop:
    """The teacher, its data, and the quality of students."""

    def __init__(self, p: dict, inputs: Inputs, device: str) -> None:
        state, data = inputs.models[BASE][PART], inputs.datasets["fashion_mnist"]
        self.p, self.lab, self.teacher = p, SamplerLab(inputs, device, BASE, PART), load(state, device)
        self.draw, _ = training_pictures(data, self.lab.shape[-1], p["images"], device)

    def train(
        self, intervals: int, lr: float, seed: int, watch: Callable[[int, nn.Module], None] | None = None
    ) -> Student:
        """A student of the method, on n intervals of the teacher's ODE from 20 to .02."""
        levels, how = grid("karras", intervals), {"gammas": self.p["gammas"], "batch": self.p["batch"]}
        kind = AtTheStart if self.p.get("coefficients") == "start" else Student
        return distil(self.teacher, self.draw, levels, self.p["updates"], lr, seed, **how, student=kind, watch=watch)[0]

    def quality(self, sample: Callable[..., Tensor], seed: int) -> tuple[Row, Tensor]:
        """fd and accuracy of sample(noise, source of more noise, labels) from the seed's noise; and the samples."""
        noise, label, more = self.lab.start([seed], self.p["n"])
        x0 = sample(noise, more, label)
        return self.lab.judge(x0, label.cpu()), x0

    def few_steps(self, student: nn.Module, intervals: int, nfe: int, seed: int) -> tuple[Row, Tensor]:
        """The same of a student, in nfe evaluations with fresh noise between them, gamma = 1."""
        at = sampling_levels(nfe, grid("karras", intervals))
        return self.quality(lambda noise, more, label: multistep(batched(student), at, noise, more, label), seed)


def tuned(shop: Workshop) -> tuple[int, float, list[Row]]:
    """The n and then the rate with the smallest 4-step FD on the tuning seed; and all that was tried."""
    p, fd = shop.p, {}

    def best(cells: list[tuple[int, float]]) -> tuple[int, float]:
        for intervals, lr in cells:
            if (intervals, lr) not in fd:
                student = shop.train(intervals, lr, p["tuning_seed"])
                fd[intervals, lr] = shop.few_steps(student, intervals, 4, p["tuning_seed"])[0]["fd"]
        return min(cells, key=lambda cell: fd[cell])

    middle = p["lr"][len(p["lr"]) // 2]
    intervals, _ = best([(n, middle) for n in p["intervals"]])
    intervals, lr = best([(intervals, lr) for lr in p["lr"]])
    return intervals, lr, [{"seed": p["tuning_seed"], "intervals": n, "lr": r, "fd": fd[n, r]} for n, r in fd]


def distilled(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1, c3: FD in 2, 3 and 4 evaluations after training, and in 4 of them all the way."""
    shop, found = Workshop(p, inputs, device), Results([])
    intervals, lr, found.traces = tuned(shop)
    every = p["every"] if p["curve"] else p["updates"]

    def measure(seed: int, update: int, student: nn.Module, nfe: int) -> Tensor:
        quality, x0 = shop.few_steps(student, intervals, nfe, seed)
        cell = {"seed": seed, "intervals": intervals, "updates": update, "nfe": nfe}
        found.rows.append({**cell, "lr": lr, **quality})
        return x0

    for seed in seeds:
        watch = lambda update, student: update % every or measure(seed, update, student, 4)  # noqa: E731
        begun = process_time()
        student = shop.train(intervals, lr, seed, watch)
        found.timings.append({"seed": seed, "intervals": intervals, "cpu_s": process_time() - begun})
        found.state[f"samples_{seed}"] = shown(measure(seed, p["updates"], student, 2))
        measure(seed, p["updates"], student, 3)
    return found


def shown(x0: Tensor, count: int = 20) -> np.ndarray:
    """The first samples, for a figure."""
    return x0[:count, 0].cpu().numpy().copy()


def untrained(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """The teacher at as few evaluations, on the grid that is best on the tuning seed."""
    shop, found, rule = Workshop(p, inputs, device), Results([]), {"ddim": ddim, "dpmpp-2m": dpmpp2m}[method]
    for nfe in (2, 3, 4):
        name, _ = shop.lab.best_grid(rule, nfe, p["grids"], p["tuning_seed"], p["n"])
        plan = on_grid(rule, name, nfe)
        for seed in seeds:
            quality, x0 = shop.quality(lambda noise, more, label: shop.lab.sample(plan, noise, label)[0], seed)
            found.rows.append({"seed": seed, "intervals": 0, "updates": 0, "nfe": nfe, **quality})
            if nfe == 2:
                found.state[f"samples_{seed}"] = shown(x0)
    return found


def real(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """As many real training pictures."""
    judge, cell = SamplerLab(inputs, device, BASE, PART).judge, {"intervals": 0, "updates": 0, "nfe": 0}
    return Results([{"seed": seed, **cell, "fd": judge.floor(seed, p["n"])} for seed in seeds])


def skips(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: FD in 4 evaluations on grids from fine to coarse, at one rate."""
    shop, found = Workshop(p, inputs, device), Results([])
    for seed in seeds:
        for intervals in p["intervals"]:
            student = shop.train(intervals, p["skip_lr"], seed)
            cell = {"seed": seed, "intervals": intervals, "updates": p["updates"], "nfe": 4}
            found.rows.append({**cell, **shop.few_steps(student, intervals, 4, seed)[0]})
    return found


def halving(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Progressive distillation from 16 steps to 2, the updates shared by its stages; its samplers are deterministic."""
    shop, found, stages = Workshop(p, inputs, device), Results([]), 3
    how = Training(p["updates"] // stages, p["skip_lr"], decay=0.0, ema=0.95)
    start = grid("karras", 2 ** (stages + 1))
    for seed in seeds:
        for student, levels in progressive(shop.teacher, shop.draw, start, how, p["batch"], seed):
            walk = lambda noise, more, label: solve(  # noqa: E731
                batched(student), levels[0] * noise, levels, ddim, label, final=False
            )
            cell = {"seed": seed, "intervals": len(levels) - 1, "updates": how.steps, "nfe": len(levels) - 1}
            found.rows.append({**cell, **shop.quality(walk, seed)[0]})
    return found


MEASURES = {"few-steps": distilled, "teacher": untrained, "real": real, "skips": skips, "halving": halving}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``measure``, the problem's or the method's own, says what is measured."""
    p = {**problem, **settings}
    return MEASURES[p["measure"]](p, method, seeds, inputs, device)
