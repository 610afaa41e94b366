"""B2-DiffuRL against DDPO: aligning a diffusion model with its labels under a reward at the end alone.

Two misaligned base models (half of their labels were random) are fine-tuned for R rounds. DDPO's rate and clip, R, the
number of branches and the KL weight are found on a tuning seed, in this order; then every method runs with them.

Source: Hu et al. 2025, "Towards Better Alignment: Training Diffusion Models with Reinforcement Learning Against Sparse
Rewards".
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import numpy as np
import torch
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack
from torch import nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.models.mislabelled import load
from papertrial.papers.diffusion.b2_diffurl.learning import Counts, Recipe, Settings, learn
from papertrial.papers.diffusion.b2_diffurl.policy import TASKS, Task, roll

FINAL = 0  # in the column ``round``: the last policy, on the larger number of samples

DDPO = Recipe()
B2 = Recipe(progressive=True, branches=5, select=True, epochs=2)  # branches: as tuned
RECIPES = {
    "b2": B2,
    "ddpo": DDPO,
    "bpt": replace(DDPO, progressive=True),
    "bs": replace(B2, progressive=False),
    "permuted": replace(B2, permute=True),
    "dpok": replace(DDPO, kl=0.1),  # kl: as tuned
    "dpok-b2": replace(B2, kl=0.1),
    "reward-weighted": replace(DDPO, raw=True),
}


@dataclass(frozen=True)
class Lab:
    """A task and its base model."""

    task: Task
    base: nn.Module
    p: dict

    def settings(self, lr: float, clip: float) -> Settings:
        return Settings(lr, clip, **{k: self.p[k] for k in ("queries", "minibatches", "shortest")})

    def evaluate(self, model: nn.Module, n: int, seed: int) -> Row:
        """Reward and diversity of n samples from a noise seed common to all methods."""
        generator, label = torch.Generator().manual_seed(10_000 + seed), self.task.labels(n)
        x = roll(model, self.task, self.task.noise(n, generator), label, 0, self.task.T, generator)[0][-1]
        reward = self.task.reward(x, label)
        return {"reward": float(reward.mean()), "diversity": self.task.diversity(x, label, reward)}

    def fine_tuned(self, recipe: Recipe, how: Settings, R: int, seed: int, watch: object = None) -> nn.Module:
        """A copy of the base model after R rounds."""
        model = deepcopy(self.base).train()
        learn(model, self.task, recipe, how, R, seed, self.base, watch and watch(model))
        return model


def lab(p: dict, base: Mapping, clf8: Mapping, real: Mapping, device: str) -> Lab:
    task = TASKS[p["task"]](p, dict(clf8), dict(real), device)
    return Lab(task, load(p["task"], base, device), p)


@dataclass(frozen=True)
class Tuned:
    """What the tuning seed says; ``tried`` holds (what, value, reward) of every trial."""

    lr: float
    clip: float
    rounds: int
    branches: int
    kl: float
    tried: tuple[tuple[str, str, float], ...]


@cache
def tuned(plain: str, base: bytes, clf8: bytes, y_test: bytes, device: str) -> Tuned:
    """DDPO's rate and clip at half of the most rounds; R; then b and the KL weight at R rounds.

    Args:
        plain: the problem's settings as JSON, which with the packed arrays lets the answer be remembered.
    """
    p = json.loads(plain)
    here, seed, most = lab(p, unpack(base), unpack(clf8), unpack(y_test), device), p["tuning_seed"], p["rounds"]
    tried: dict[tuple[str, str], float] = {}

    def quality(name: str, value: object, recipe: Recipe, how: Settings, R: int) -> float:
        found = here.evaluate(here.fine_tuned(recipe, how, R, seed), p["n"], seed)["reward"]
        tried[name, str(value)] = found
        return found

    def best(name: str, offered: dict, R: int) -> object:
        return max(offered, key=lambda v: quality(name, v, *offered[v], R))

    pairs = list(product(p["rates"], p["clips"]))
    lr, clip = best("rate, clip", {v: (DDPO, here.settings(*v)) for v in pairs}, max(1, most // 2))
    how, reached = here.settings(lr, clip), [most]

    def until(model: nn.Module) -> object:
        def watch(i: int, reward: float, counts: Counts) -> bool:
            if reward >= p["enough"]:
                reached[0] = max(1, i - 1)  # the reward was that of the policy before this round's update
            return reward >= p["enough"]

        return watch

    here.fine_tuned(DDPO, how, most, seed, until)
    R = reached[0]
    b = best("branches", {b: (replace(B2, branches=b), how) for b in p["branches"]}, R)
    weights = p.get("kl", [])
    kl = best("kl", {w: (replace(DDPO, kl=w), how) for w in weights}, R) if weights else 0.0
    return Tuned(lr, clip, R, b, kl, tuple((*k, v) for k, v in tried.items()))


def fitted(recipe: Recipe, found: Tuned) -> Recipe:
    """The recipe with the tuned number of branches and KL weight, where it has them."""
    return replace(
        recipe,
        branches=found.branches if recipe.select else 1,
        kl=found.kl if recipe.kl else 0.0,
    )


def best_of(model: nn.Module, here: Lab, k: int, n: int, seed: int) -> float:
    """The reward if the best of k samples of the base model is shown: a reference at inference time."""
    generator = torch.Generator().manual_seed(20_000 + seed)
    label = here.task.labels(n).repeat_interleave(k)
    x = roll(model, here.task, here.task.noise(n * k, generator), label, 0, here.task.T, generator)[0][-1]
    return float(here.task.reward(x, label).reshape(n, k).amax(1).mean())


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Rows (round): evaluations of the policy, every second round and the last; and FINAL."""
    p = {**problem, **settings}
    base, clf8 = (
        {k: np.ascontiguousarray(v) for k, v in inputs.models[m][part].items()}
        for m, part in (("mislabelled", p["task"]), ("clf8", "0"))
    )
    real = {"y_test": np.ascontiguousarray(inputs.datasets["fashion_mnist"]["y_test"])}
    found = tuned(json.dumps(problem, sort_keys=True), pack(base), pack(clf8), pack(real), device)
    here, R, results = lab(p, base, clf8, real, device), found.rounds, Results([])
    how, recipe = here.settings(found.lr, found.clip), fitted(RECIPES[method], found)
    results.traces += [{"seed": p["tuning_seed"], "tried": n, "value": v, "reward": r} for n, v, r in found.tried]
    for seed in seeds:
        spent = Counts()

        def watching(model: nn.Module, seed: int = seed) -> object:
            def watch(i: int, reward: float, counts: Counts) -> bool:
                nonlocal spent
                spent = counts
                results.traces.append({"seed": seed, "round": i - 1, "rollout_reward": reward})
                if p["watched"] and (i % 2 == 0 or i == R):
                    results.rows.append({"seed": seed, "round": i, **here.evaluate(model, p["n"], seed)})
                return False

            return watch

        model = here.fine_tuned(recipe, how, R, seed, watching)
        row = {"seed": seed, "round": FINAL, **here.evaluate(model, p["final_n"], seed), "rounds": R}
        row |= {"queries": spent.queries, "trained_steps": spent.trained, "sampled_steps": spent.sampled}
        results.rows.append(row)
        if method == "ddpo":
            base_reward = here.evaluate(here.base, p["n"], seed)["reward"]
            best = best_of(here.base, here, 8, max(1, p["n"] // 8), seed)
            results.traces.append({"seed": seed, "base_reward": base_reward, "best_of_8": best})
        if seed == seeds[0] and method in ("ddpo", "b2"):
            generator, label = torch.Generator().manual_seed(1), here.task.labels(400 if p["task"] == "ring8" else 40)
            x = roll(model, here.task, here.task.noise(len(label), generator), label, 0, here.task.T, generator)[0][-1]
            results.state["samples"] = x.cpu().numpy().astype(np.float16)
    return results
