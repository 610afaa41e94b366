"""BDIA: a sampler that can be run backwards exactly, to find the noise behind a given picture.

DDIM goes from z_i to z_{i-1} by the increment Delta(t_i -> t_{i-1} | z_i), eps held at its value in z_i. Its inversion
would need eps at a state that isn't known yet. BDIA also integrates from t_i back to t_{i+1}, where z_{i+1} is known:
    z_{i-1} = z_{i+1} - (1-g)(z_{i+1} - z_i) - g Delta(t_i -> t_{i+1} | z_i) + Delta(t_i -> t_{i-1} | z_i),
that is DDIM's z_{i-1} plus g times what a step back from z_i misses z_{i+1} by. The equation is linear in z_{i+1} and
evaluates eps in z_i alone: solved for z_{i+1} it is the same rule with 1/g, walked upwards. The first step of either
direction is plain DDIM; a latent is the pair of the last two states.

States are in VP coordinates (the rule is not invariant under rescaling), those of BDIA-EDM in VE.
Source: Zhang et al. 2023 (arXiv 2307.10829); EDICT: Wallace et al. 2022 (arXiv 2211.12446).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import S_MAX, grid
from papertrial.methods.samplers import (
    VE,
    VP,
    Counted,
    Flow,
    Path,
    Rule,
    ab2,
    ddim,
    dpmpp2m,
    heun,
    initial_noise,
    solve,
)
from papertrial.models import edm2d
from papertrial.models.sampler_lab import SamplerLab
from papertrial.testbeds.fashion import pictures
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2

Slope = Callable[[Flow, Tensor, float, float], Tensor]  # (flow, z_i, lam_i, lam_{i-1}) -> the eps that a step holds


def euler(flow: Flow, x: Tensor, lam: float, lam_t: float) -> Tensor:
    """DDIM's: eps where the step begins."""
    return flow.eps(x, lam)


def trapezoid(flow: Flow, x: Tensor, lam: float, lam_t: float) -> Tensor:
    """Heun's: the mean of eps here and where DDIM would arrive."""
    eps = flow.eps(x, lam)
    return (eps + flow.eps(flow.move(x, lam, lam_t, eps), lam_t)) / 2


def bdia(gamma: float, slope: Slope = euler) -> Rule:
    """The update above; with ``trapezoid`` BDIA-EDM, both of whose increments hold the averaged slope at z_i."""

    def step(flow: Flow, z: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        e = slope(flow, z, lam, lam_t)
        there = flow.move(z, lam, lam_t, e)  # z_i + Delta(t_i -> t_{i-1} | z_i)
        before = memory.get("z")
        memory["z"] = (lam, z)
        if before is None:
            return there
        lam_s, z_s = before  # z_{i+1}
        return there + gamma * (z_s - flow.move(z, lam, lam_s, e))

    return step


def edict(p: float) -> Rule:
    """Two DDIM chains x and y, each fed with eps of the other one, then mixed: two evaluations a step."""

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        y = memory.get("y", x)
        x = flow.move(x, lam, lam_t, flow.eps(y, lam))
        y = flow.move(y, lam, lam_t, flow.eps(x, lam))
        x = p * x + (1 - p) * y
        memory["y"] = p * y + (1 - p) * x
        return x

    return step


def edict_inverse(p: float) -> Rule:
    """The same equations in reverse order, from t_{i-1} up to t_i."""

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        y = memory.get("y", x)
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        y = flow.move(y, lam, lam_t, flow.eps(x, lam_t))
        memory["y"] = y
        return flow.move(x, lam, lam_t, flow.eps(y, lam_t))

    return step


# Round trips. A latent is z_N and what else the way back starts from.

Latent = tuple[Tensor, Tensor]
Levels = Sequence[float]


@dataclass(frozen=True)
class Inverter:
    """``up`` finds the latent of pictures z_0 along rising levels, ``down`` generates along falling ones."""

    up: Callable[[Flow, Tensor, Levels], Latent]
    down: Callable[[Flow, Latent, Levels], Tensor]


def walk(flow: Flow, x: Tensor, levels: Levels, rule: Rule, memory: dict) -> Tensor:
    """Take a rule along the levels, with a memory that the caller keeps."""
    for s, s_t in pairwise(levels):
        x = rule(flow, x, -log(s), -log(s_t), memory)
    return x


def by_bdia(gamma: float) -> Inverter:
    """N evaluations up, N - 1 down."""

    def up(flow: Flow, z0: Tensor, levels: Levels) -> Latent:
        memory: dict = {}
        z = walk(flow, z0, levels, bdia(1 / gamma), memory)
        return z, memory["z"][1]  # z_N, z_{N-1}

    def down(flow: Flow, latent: Latent, levels: Levels) -> Tensor:
        return walk(flow, latent[1], levels[1:], bdia(gamma), {"z": (-log(levels[0]), latent[0])})

    return Inverter(up, down)


def by_edict(p: float) -> Inverter:
    def up(flow: Flow, z0: Tensor, levels: Levels) -> Latent:
        memory: dict = {}
        return walk(flow, z0, levels, edict_inverse(p), memory), memory["y"]

    def down(flow: Flow, latent: Latent, levels: Levels) -> Tensor:
        return walk(flow, latent[0], levels, edict(p), {"y": latent[1]})

    return Inverter(up, down)


def by_ddim() -> Inverter:
    """Upwards eps is taken at the state that the step leaves: inconsistent."""

    def up(flow: Flow, z0: Tensor, levels: Levels) -> Latent:
        memory: dict = {}
        z = walk(flow, z0, levels[:-1], ddim, memory)
        return walk(flow, z, levels[-2:], ddim, memory), z

    return Inverter(up, lambda flow, latent, levels: walk(flow, latent[0], levels, ddim, {}))


INVERTERS: dict[str, Callable[[dict], Inverter]] = {
    "bdia": lambda p: by_bdia(1.0),
    "half": lambda p: by_bdia(0.5),  # control: exact as well, but what for
    "no-history": lambda p: Inverter(by_ddim().up, by_bdia(1.0).down),  # control
    "noised": lambda p: by_bdia(1.0),
    "ddim": lambda p: by_ddim(),
    "edict": lambda p: by_edict(p["mixing"]),
}


class TestPictures:
    """The test pictures at the network's size, and the ODE's flow under labels."""

    def __init__(self, inputs: Inputs, device: str) -> None:
        data, self.lab = inputs.datasets["fashion_mnist"], SamplerLab(inputs, device)
        self.x, self.y, self.device = data["x_test"], torch.tensor(data["y_test"]).long(), device

    def at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """z_0 (n, 1, size, size), the pictures taken as states at s = .02, and their labels (n,)."""
        x = torch.from_numpy(pictures(self.x[rows], self.lab.shape[-1]))
        return x.to(self.device), self.y[torch.from_numpy(rows)].to(self.device)

    def flow(self, label: Tensor) -> Flow:
        return Flow(self.lab.denoise, label, VP)


def round_trip(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c1: picture -> latent -> picture, n test pictures under their own labels, no final denoising.

    A clean picture taken as a state at s = .02 lacks the noise of that level; ``noise`` adds it (printed only).
    """
    test, inverter, found = TestPictures(inputs, device), INVERTERS[method](p), Results([])
    for seed in seeds:
        rng = np.random.default_rng(seed)
        z0, label = test.at(rng.permutation(len(test.x))[: p["n"]])
        z0 = z0 + p.get("noise", 0.0) * torch.from_numpy(rng.standard_normal(z0.shape)).to(z0)
        for steps in p["steps"]:
            test.lab.denoise.nfe = 0
            levels, flow = grid("time", steps), test.flow(label)
            latent = inverter.up(flow, z0, levels[::-1])
            rms = float((inverter.down(flow, latent, levels) - z0).square().mean().sqrt())
            row = {"round_trip": rms, "latent_sd": float(latent[0].std()), "nfe": test.lab.denoise.nfe}
            found.rows.append({"seed": seed, "steps": steps, **row})
    return found


def editing(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c4: invert under the picture's label, generate under another one; one row a picture."""
    test, inverter, found = TestPictures(inputs, device), INVERTERS[method](p), Results([])
    levels = grid("time", p["steps"])
    for seed in seeds:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(test.x)))
        for source, target in p["pairs"]:
            z0, label = test.at(order[test.y[order] == source][: p["n"]].numpy())
            latent = inverter.up(test.flow(label), z0, levels[::-1])
            flow = test.flow(torch.full_like(label, target))
            x0 = flow.x0(inverter.down(flow, latent, levels), -log(levels[-1]))  # (n, 1, size, size)
            edited = test.lab.judge.classify(x0)[1].argmax(1) == target
            distance = (x0 - z0).square().flatten(1).mean(1).sqrt()
            what = {"seed": seed, "steps": p["steps"], "source": source, "target": target}
            for i, (e, d) in enumerate(zip(edited, distance.tolist(), strict=True)):
                found.rows.append({**what, "picture": i, "edited": int(e), "distance": d})
            if seed == seeds[0]:
                shown = torch.stack([z0, x0], dim=1)[: p["shown"], :, 0]  # (k, original and edited, size, size)
                found.state[f"{source}-{target}"] = shown.cpu().numpy()
    return found


# Samplers.

SAMPLERS: dict[str, Callable[[dict], tuple[Rule, Path]]] = {
    "bdia": lambda p: (bdia(p["gamma"]), VP),
    "negative": lambda p: (bdia(-0.5), VP),  # control
    "ddim": lambda p: (ddim, VP),
    "ab2": lambda p: (ab2, VE),
    "dpmpp-2m": lambda p: (dpmpp2m, VE),
}


def sampling(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c2: FD and ODE error of n samples by a number of steps, and the final denoising."""
    lab, n, found = SamplerLab(inputs, device), p["n"], Results([])
    rule, path = SAMPLERS[method](p)
    for seed in seeds:
        noise, label, _ = lab.start([seed], n)
        x0, nfe = lab.sample((rule, grid(p["grid"], p["steps"])), noise, label, path)
        measure = lab.measure if str(seed) in lab.references else lambda x, y, seed: lab.judge(x, y.cpu())
        found.rows.append({"seed": seed, "steps": p["steps"], "nfe": nfe, **measure(x0, label, seed)})
    return found


def table(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Printed: the same for each NFE, to stand beside the samplers of other papers."""
    found = [sampling({**p, "steps": nfe - 1}, method, seeds, inputs, device) for nfe in p["nfe"]]
    return Results([row for part in found for row in part.rows])


# Heun's method on networks of both kinds: a bench gives (denoiser, seed -> noise and label, samples -> measure).

Bench = tuple[Counted, Callable[[int], tuple[Tensor, Any]], Callable[[Tensor, Any], Mapping[str, float]]]


def plane(p: dict, inputs: Inputs, device: str) -> Bench:
    denoise = Counted(edm2d.denoiser(inputs.models["edm2d"][p["part"]], device))
    true = SlicedW2(density(p["part"]).sample(p["n"], torch.Generator().manual_seed(0)).numpy())
    return (
        denoise,
        lambda seed: (initial_noise([seed], p["n"], (2,)).to(device), None),
        lambda x, label: {"sw2": true(x.cpu().numpy())},
    )


def picture(p: dict, inputs: Inputs, device: str) -> Bench:
    lab = SamplerLab(inputs, device, p["net"], p["part"])
    return lab.denoise, lambda seed: lab.start([seed], p["n"])[:2], lambda x, label: lab.judge(x, label.cpu())


BENCHES = {"edm2d": plane, "fm8": picture, "fm16": picture}
HEUN: dict[str, Callable[[dict], Rule]] = {"bdia": lambda p: bdia(p["gamma"], trapezoid), "heun": lambda p: heun}


def second_order(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """c3: SW2 or FD of n samples by steps of Heun's method, of BDIA-EDM or plain, and the final denoising."""
    denoise, start, measure = BENCHES[p["net"]](p, inputs, device)
    rule, found = HEUN[method](p), Results([])
    for seed in seeds:
        noise, label = start(seed)
        for steps in p["steps"]:
            denoise.nfe = 0
            x0 = solve(denoise, S_MAX * noise, grid("karras", steps), rule, label)
            found.rows.append({"seed": seed, "steps": steps, "nfe": denoise.nfe, **measure(x0, label)})
    return found


MEASURES = {
    "round-trip": round_trip,
    "sampling": sampling,
    "table": table,
    "second-order": second_order,
    "editing": editing,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem; ``problem["measure"]`` says which of the claims' quantities is measured."""
    return MEASURES[problem["measure"]]({**problem, **settings}, method, seeds, inputs, device)
