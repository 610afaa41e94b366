"""iCT against CT: one-step samplers trained from scratch, on densities in the plane and on 8 x 8 pictures.

The recipes and their loss are in recipes.py. What depends on tuning is tuned on a seed of its own: the grid's
discretisation first, then the rest at the best. Tuning is remembered within a job, since several methods need it.
"""

import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import S_MAX, S_MIN, grid
from papertrial.methods.samplers import balanced_labels, heun, initial_noise, noise_stream, solve
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import batched
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.picture_denoisers import NETWORKS, load, training_pictures
from papertrial.models.students import distil
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.improved_consistency_training.recipes import (
    CT,
    Consistency,
    Recipe,
    consistency_training,
    two_steps,
)
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2

ICT = Recipe()
# What a method changes of iCT, at iCT's tuned discretisation and rate.
VARIANTS: dict[str, dict] = {
    "ict": {},
    "independent-noise": {"same_noise": False},
    "squared": {"metric": "squared"},
    "uniform-index": {"index": "uniform"},
    "fixed-count": {"counts": "fixed"},
    "constant-weight": {"weight": "one"},
}


def trained(recipe: Recipe, p: dict, name: str, updates: int, seed: int, device: str) -> Consistency:
    """f for a density in the plane, with averaged weights."""
    exact, s_max = density(name, torch.float32), S_MAX

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return exact.sample(n, generator).to(device), None

    model = seeded(lambda: Consistency(PlaneMLP(**p["network"]), p["sigma_data"], p["s_min"]), seed).to(device)
    how = Training(updates, recipe.lr, decay=0.0, ema=0.999)
    return fit(model, consistency_training(recipe, draw, p["batch"], updates, s_max), how, seed)[0]


def one_step(f: Consistency, p: dict, seed: int, device: str) -> np.ndarray:
    """(n, 2) samples by one evaluation."""
    with torch.inference_mode():
        return f(S_MAX * initial_noise([seed], p["n"], (2,)).to(device), S_MAX).cpu().numpy()


def sw2_of(recipe: Recipe, p: dict, name: str, updates: int, seed: int, device: str) -> float:
    reference = density(name).sample(p["n"], torch.Generator().manual_seed(0)).numpy()
    return SlicedW2(reference)(one_step(trained(recipe, p, name, updates, seed, device), p, seed, device))


@cache
def tuned(family: str, plain: str, device: str) -> tuple[Recipe, tuple[tuple[str, float], ...]]:
    """The best recipe of a family by SW2 on the tuning seed, and everything tried.

    Args:
        family: "ict", "ct" or "teacher-ema".
        plain: the problem's settings as JSON, so that the answer can be remembered.
    """
    p = json.loads(plain)
    tried: dict[Recipe, float] = {}

    def best(offered: list[Recipe]) -> Recipe:
        for recipe in offered:
            if recipe not in tried:
                tried[recipe] = sw2_of(recipe, p, p["tuned_on"], p["tuning_updates"], p["tuning_seed"], device)
        return min(tried, key=tried.get)

    if family == "teacher-ema":
        found = best([replace(tuned("ict", plain, device)[0], mu=mu) for mu in p["mu"]])
    else:
        if family == "ict":
            found = best([replace(ICT, s1=s1) for s1 in p["s1_ict"]])
        else:
            found = best([replace(CT, s1=s1, mu0=mu0) for s1 in p["s1_ct"] for mu0 in p["mu0"]])
            found = best([replace(found, metric="absolute")])
        found = best([replace(found, lr=lr) for lr in p["rates"]])
    names = [{k: v for k, v in asdict(r).items() if k in ("s1", "mu0", "mu", "metric", "lr")} for r in tried]
    return found, tuple((json.dumps(name), value) for name, value in zip(names, tried.values(), strict=True))


def recipe_for(method: str, p: dict, device: str) -> tuple[Recipe, list[Row]]:
    """A method's recipe, and its tuning as rows for the traces."""
    family = method if method in ("ct", "teacher-ema") else "ict"
    recipe, tried = tuned(family, json.dumps({k: p[k] for k in sorted(p) if k in PLANE}), device)
    trials = [{"seed": p["tuning_seed"], "tried": name, "sw2": value} for name, value in tried]
    return replace(recipe, **VARIANTS.get(method, {})), trials


PLANE = ("network", "sigma_data", "s_min", "batch", "n", "rates", "mu", "mu0", "s1_ct", "s1_ict")
PLANE += ("tuned_on", "tuning_updates", "tuning_seed")


def plane(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1, c2, c3: SW2 of one-step samples, for each density and number of updates."""
    recipe, trials = recipe_for(method, p, device)
    found = Results([], traces=trials)
    counts = [k for u in p["updates"] for k in ([u // 2, u] if p.get("half") else [u])]
    for seed in seeds:
        for name in p["densities"]:
            for updates in counts:
                f = trained(recipe, p, name, updates, seed, device)
                x = one_step(f, p, seed, device)
                reference = density(name).sample(p["n"], torch.Generator().manual_seed(0)).numpy()
                sw2 = SlicedW2(reference)(x)
                found.rows.append({"seed": seed, "density": name, "updates": updates, "evaluations": 1, "sw2": sw2})
                if seed == seeds[0]:
                    found.state[f"{name}_{updates}"] = x[:1500].astype(np.float16)
    return found


def floor(p: dict, seeds: list[int]) -> Results:
    """SW2 of exact draws."""
    found = Results([])
    for seed in seeds:
        for name in p["densities"]:
            exact = density(name)
            reference = exact.sample(p["n"], torch.Generator().manual_seed(0)).numpy()
            sw2 = SlicedW2(reference)(exact.sample(p["n"], torch.Generator().manual_seed(seed + 1)).numpy())
            row = {"seed": seed, "density": name, "updates": 0, "evaluations": 0, "sw2": sw2}
            found.rows.append(row)
    return found


def trained_pictures(recipe: Recipe, p: dict, seed: int, inputs: Inputs, device: str) -> Consistency:
    """f for Fashion-MNIST, class-conditional."""
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], p["size"], p["images"], device)
    kind, arguments = p["network"]["kind"], {k: v for k, v in p["network"].items() if k != "kind"}
    model = seeded(lambda: Consistency(NETWORKS[kind](**arguments), p["sigma_data"], S_MIN), seed).to(device)
    how = Training(p["picture_updates"], recipe.lr, decay=0.0, ema=0.999)
    return fit(model, consistency_training(recipe, draw, p["batch"], p["picture_updates"], S_MAX), how, seed)[0]


def pictures(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4, and printed comparisons: FD of one and of two evaluations from the same initial noise."""
    judge, found = SampleJudge(inputs.models["clf8"]["0"], device), Results([])
    recipe = replace(CT if method.startswith("ct") else ICT, **p["recipe"])

    def sampled(seed: int, levels: list[float]) -> dict[float, Tensor]:
        """Level of the second evaluation -> samples; 0 is one evaluation."""
        f = batched(trained_pictures(recipe, p, seed, inputs, device), 1000)
        draw = noise_stream([seed], p["n"], (1, p["size"], p["size"]))
        z, again = draw().to(device), draw().to(device)
        label = balanced_labels([seed], p["n"]).to(device)
        x = f(S_MAX * z, S_MAX, label)
        return {0.0: x} | {s: two_steps(f, x, s, again, label) for s in levels}

    label = balanced_labels([0], p["n"])
    level = p["levels"][0]
    if len(p["levels"]) > 1:
        tried = {s: judge(x, label)["fd"] for s, x in sampled(p["tuning_seed"], p["levels"]).items() if s}
        level = min(tried, key=tried.get)
        found.traces += [{"seed": p["tuning_seed"], "level": s, "fd": fd} for s, fd in tried.items()]
    for seed in seeds:
        for s, x in sampled(seed, [level]).items():
            found.rows.append({"seed": seed, **picture_cell(p, 2 if s else 1), "level": s, **judge(x, label)})
            if seed == seeds[0]:
                found.state[f"samples_{2 if s else 1}"] = x[:40].cpu().numpy().astype(np.float16)
    return found


def with_a_teacher(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Printed: a student distilled from the base model, and the base model itself with few evaluations."""
    judge, found = SampleJudge(inputs.models["clf8"]["0"], device), Results([])
    base = load(inputs.models["fm8"]["128-0"], device)
    label = balanced_labels([0], p["n"])
    for seed in seeds:
        noise = initial_noise([seed], p["n"], (1, p["size"], p["size"])).to(device)
        if method == "distilled":
            draw, _ = training_pictures(inputs.datasets["fashion_mnist"], p["size"], p["images"], device)
            levels = grid("karras", p["intervals"])
            f, _ = distil(base, draw, levels, p["picture_updates"], p["lr"], seed, batch=p["batch"])
            samples = {1: batched(f, 1000)(S_MAX * noise, S_MAX, label.to(device))}
        else:
            steps = {1: 0, 5: 2}  # evaluations: steps of Heun's rule before the last one denoises
            samples = {
                n: solve(batched(base, 1000), S_MAX * noise, grid("karras", k), heun, label.to(device))
                for n, k in steps.items()
            }
        found.rows += [{"seed": seed, **picture_cell(p, n), **judge(x, label)} for n, x in samples.items()]
    return found


def picture_cell(p: dict, evaluations: int) -> Row:
    return {"density": "fm8", "updates": p["picture_updates"], "evaluations": evaluations}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    p = {**problem, **settings}
    if method == "exact":
        return floor(p, seeds)
    if method in ("distilled", "base"):
        return with_a_teacher(p, method, seeds, inputs, device)
    return (pictures if p["measure"] == "pictures" else plane)(p, method, seeds, inputs, device)
