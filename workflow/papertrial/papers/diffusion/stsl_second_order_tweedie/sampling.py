"""Samplers for linear inverse problems under one interface, their counted evaluations, and the choice of a setting.

A sampler: (denoise, inverse, how, steps, stream) -> samples (n, ...), evaluations spent on each.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import isfinite, log

import torch
from torch import Tensor

from papertrial.engine.results import Row
from papertrial.methods.noise_levels import S_MAX, grid
from papertrial.methods.samplers import VP, Counted, Denoiser, Rule, ancestral, noise_stream, solve
from papertrial.papers.diffusion.stsl_second_order_tweedie.guidance import (
    Guidance,
    at_random,
    keep,
    pseudo_inverse_guided,
    refined,
)
from papertrial.papers.diffusion.stsl_second_order_tweedie.inverse import Inverse

PROBES, TURNS = 10**6, 2 * 10**6  # added to a seed: its streams of probes and of the control's directions
WORST = 1e9  # the loss of a setting that diverges


class Stream:
    """n standard normal draws of every seed's own generator with each call of what this returns; by purpose."""

    def __init__(self, seeds: list[int], n: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
        self.seeds, self.n, self.shape, self.dtype, self.device = seeds, n, shape, dtype, device

    def __call__(self, purpose: int = 0) -> Callable[[], Tensor]:
        draw = noise_stream([seed + purpose for seed in self.seeds], self.n, self.shape, self.dtype)
        return lambda: draw().to(self.device)


def walk(denoise: Denoiser, rule: Rule, steps: int, noise: Callable[[], Tensor]) -> Tensor:
    """Down a grid of VP times from noise to data; the last evaluation denoises."""
    return solve(denoise, VP.sigma(-log(S_MAX)) * noise(), grid("time", steps), rule, path=VP)


def guided(
    denoise: Denoiser, inverse: Inverse, how: Guidance, steps: int, stream: Stream, turned: bool = False
) -> tuple[Tensor, int]:
    """DPS (eta_2 = 0) and STSL; ``turned`` is the control."""
    counted, noise = Counted(denoise), stream()
    rule = refined(inverse, how, noise, stream(PROBES), at_random(stream(TURNS)) if turned else keep)
    x = walk(counted, rule, steps, noise)
    return x, 2 * counted.nfe - 1  # every evaluation but the last has a backward pass


def pi_gdm(denoise: Denoiser, inverse: Inverse, how: None, steps: int, stream: Stream) -> tuple[Tensor, int]:
    counted, noise = Counted(denoise), stream()
    x = walk(pseudo_inverse_guided(counted, inverse), ancestral(noise), steps, noise)
    return x, 2 * counted.nfe


SAMPLERS: dict[str, Callable[..., tuple[Tensor, int]]] = {
    "dps": guided,
    "stsl": guided,
    "random": partial(guided, turned=True),
    "pigdm": pi_gdm,
}


def best(p: dict, loss: Callable[[Guidance], float]) -> tuple[Guidance | None, list[Row]]:
    """The setting of p["grid"] with the smallest loss, and all that were tried; nothing where there is no grid."""
    if "grid" not in p:
        return None, []
    points = [dict(zip(p["grid"], values, strict=True)) for values in product(*p["grid"].values())][: p["trials"]]
    losses = [loss(Guidance(**point)) for point in points]
    losses = [min(value, WORST) if isfinite(value) else WORST for value in losses]
    first = min(range(len(points)), key=losses.__getitem__)
    tried = [{**point, "loss": losses[i], "chosen": int(i == first)} for i, point in enumerate(points)]
    return Guidance(**points[first]), tried
