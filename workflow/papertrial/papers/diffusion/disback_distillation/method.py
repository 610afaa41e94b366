"""DisBack against Diff-Instruct: does a generator that is led back along the teacher's degradation converge faster?

All methods have one loop (``distillation.distil``), the same hyperparameters, those that suit Diff-Instruct on a
tuning seed, and the same budget of network passes, from which a recording is paid. They differ in the path that is
recorded, the order in which it is walked, and where phi starts, which is always the path's last checkpoint.

Source: Zhang et al. 2024, "Distribution Backtracking Builds A Faster Convergence Trajectory for One-step Diffusion
Distillation".
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from time import process_time

import numpy as np
from safetensors.numpy import save as pack
from torch import nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.papers.diffusion.disback_distillation.distillation import (
    Effort,
    Meter,
    OneStep,
    Setup,
    backwards,
    distil,
    endpoint,
    forwards,
    interpolated,
    mismatch,
    record,
)
from papertrial.papers.diffusion.disback_distillation.lab import NEEDED, Lab, Tuned, lab, tuned

RECORDING, FITTING = 10_000, 20_000  # what the seeds of these streams are above the training's


@dataclass(frozen=True)
class Recipe:
    """What a method does with the degradation path.

    recorded: else the path is the teacher alone.
    through: which checkpoints stand for the recorded ones.
    order: of the targets.
    """

    recorded: bool = True
    through: Callable = list
    order: Callable = backwards


RECIPES = {
    "disback": Recipe(),
    "diff-instruct": Recipe(recorded=False, order=endpoint),
    "warm-start": Recipe(order=endpoint),
    "interpolated": Recipe(through=interpolated),
    "wrong-way": Recipe(order=forwards),
}


@dataclass(frozen=True)
class Bench:
    """A lab with its settings in place."""

    p: dict
    lab: Lab
    tuned: Tuned
    setup: Setup

    @property
    def walk(self) -> int:
        """Iterations in which the intermediate targets take their turns."""
        return round(self.p["share"] * self.p["iterations"])

    def recorded(self, student: nn.Module, M: int, effort: Effort, seed: int) -> list:
        updates = self.p["recording"]
        return record(self.lab.teacher, student, M, updates, self.setup, effort, RECORDING + seed)


def bench(p: dict, inputs: Inputs, device: str) -> Bench:
    def arrays(model: str, part: str) -> dict[str, np.ndarray]:
        return {k: np.ascontiguousarray(v) for k, v in inputs.models[model][part].items()}

    base, judge = arrays(p["base"], p["part"]), arrays(p["judge"], "0") if p["judge"] else {}
    plain = json.dumps({k: p[k] for k in NEEDED if k in p}, sort_keys=True)
    best = tuned(plain, pack(base), pack(judge), device)
    here = lab(p, base, judge, device)
    return Bench(p, here, best, here.setup(best.lr, best.phi_lr, best.phi_steps, p["normalised"]))


def trained(b: Bench, recipe: Recipe, seed: int, measured: bool) -> tuple[list[Row], np.ndarray]:
    """The rows of one training: its curve, its end and, if ``measured``, the score mismatch; and a few samples."""
    p, meter, rows = b.p, Meter(), []
    student = OneStep(b.lab.teacher, b.tuned.s_init)
    path = recipe.through(b.recorded(student, p["M"] if recipe.recorded else 0, meter.recording, seed))
    looks, worst = (p["looks"] if measured else []), path[-1]
    if looks and not recipe.recorded:  # T_M is where the fits start for all; it isn't used here, so it isn't counted
        worst = b.recorded(student, p["M"], Effort(), seed)[-1]

    def watch(step: int, generator: nn.Module, average: OneStep, target: nn.Module) -> None:
        cell = {"seed": seed, "iteration": step, "passes": meter.passes}
        if step % p["every"] == 0:
            rows.append({**cell, "stage": "curve", **b.lab.judge(average, seed, p["n"])})
        if step in looks:
            nets, sizes = [target, b.lab.teacher], (p["fit_updates"], p["fit_n"])
            in_use, to_teacher = mismatch(nets, worst, generator, b.setup, *sizes, FITTING + seed)
            rows.append({**cell, "stage": "mismatch", "in_use": in_use, "to_teacher": to_teacher})

    budget = p["iterations"] * b.setup.passes
    average = distil(student, deepcopy(path[-1]), recipe.order(path), b.walk, b.setup, meter, budget, seed, watch)
    x, label = b.lab.samples(average, seed, p["final_n"])
    spent = {f"{part}_{what}": n for part, effort in asdict(meter).items() for what, n in effort.items()}
    end = {"seed": seed, "iteration": meter.generator.updates, "passes": meter.passes, "stage": "final", **spent}
    rows.append({**end, **b.lab.quality(x, label), "floor": b.lab.floor(seed, p["final_n"])})
    return rows, x[: p["shown"]].cpu().numpy().astype(np.float16)


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Rows (stage, iteration): the curve while training, the mismatch at some iterations, and the end."""
    b, results = bench({**problem, **settings}, inputs, device), Results([])
    names = ("s_init", "lr", "phi_lr", "phi_steps", "distance")
    tuning_seed = problem["tuning"]["seed"]
    results.traces = [{"seed": tuning_seed, **dict(zip(names, t, strict=True))} for t in b.tuned.tried]
    for seed in seeds:
        begun = process_time()
        rows, samples = trained(b, RECIPES[method], seed, settings.get("mismatch", False))
        results.rows += rows
        results.timings.append({"seed": seed, "cpu_s": process_time() - begun})
        results.state[f"samples_{seed}"] = samples
    return results
