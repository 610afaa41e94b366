"""Our samplers against diffusers' schedulers, and our training loop against one written out by hand: ratios.

    OMP_NUM_THREADS=1 python benchmarks/diffusion.py         # needs pip install -e .[peers]

Both sides call the same denoiser, a U-Net of fm16's size with random weights, in one process, in turns. A ratio is the
peer's CPU seconds over ours, median of the runs: above 1 we are faster. "a step" leaves the network out (it is
replaced by a constant), "end to end" keeps it. Beside it the largest difference of the two results.
"""

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VP, Denoiser, ddim, dpmpp2m, initial_noise, solve
from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM, batched, denoising
from papertrial.models.training import Training, fit
from papertrial.models.unet import UNet

RUNS, STEPS, N = 7, 20, 250


def in_turns(ours: Callable[[], Any], peer: Callable[[], Any], runs: int = RUNS) -> tuple[float, Any, Any]:
    """The peer's CPU seconds over ours, and what both returned; a first run of each is not counted."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    found: dict[str, Any] = {}
    for _ in range(runs + 1):
        for name, work in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            found[name] = work()
            seconds[name].append(time.process_time() - start)
    return median(seconds["peer"][1:]) / median(seconds["ours"][1:]), found["ours"], found["peer"]


def diffusers_loop(scheduler: Any, denoise: Denoiser, x: Tensor, levels: np.ndarray, label: Tensor) -> Tensor:
    """VP coordinates and noise prediction, as its pipelines do it; the scheduler's own time grid is set to ours."""
    sigmas = torch.from_numpy(levels).float()
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(len(levels) - 1)
    scheduler._step_index = None
    for i in range(len(levels) - 1):
        lam = -float(np.log(levels[i]))
        x0 = denoise(x / VP.alpha(lam), levels[i], label)
        eps = (x - VP.alpha(lam) * x0) / VP.sigma(lam)
        x = scheduler.step(eps, scheduler.timesteps[i], x).prev_sample
    return x


def samplers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.schedulers import DPMSolverMultistepScheduler

    network = batched(seeded(lambda: EDM(UNet(), 0.626), 0).to(memory_format=torch.channels_last).eval())

    def constant(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)

    levels = grid("karras", STEPS)
    label = torch.arange(N) % 10
    x = VP.sigma(-float(np.log(levels[0]))) * initial_noise([1000], N, (1, 16, 16))
    for name, rule, order in (("DDIM", ddim, 1), ("DPM-Solver++(2M)", dpmpp2m, 2)):
        how = {"solver_order": order, "algorithm_type": "dpmsolver++", "lower_order_final": False}
        for what, denoise, runs in (("a step", constant, 5 * RUNS), ("end to end", network, RUNS)):

            def ours(denoise: Denoiser = denoise, rule: Any = rule) -> Tensor:
                return solve(denoise, x, levels, rule, label, VP, final=False)

            def peer(denoise: Denoiser = denoise, how: dict = how) -> Tensor:
                scheduler = DPMSolverMultistepScheduler(**how, final_sigmas_type="sigma_min")
                return diffusers_loop(scheduler, denoise, x, levels, label)

            ratio, mine, theirs = in_turns(ours, peer, runs)
            print(f"{name + ', ' + what:44s} {ratio:7.2f}   {(mine - theirs).abs().max():.1e}")


def training(steps: int = 30, batch: int = 128) -> None:
    data = initial_noise([0], 2000, (1, 16, 16))
    labels = torch.arange(2000) % 10
    start = seeded(lambda: EDM(UNet(), 0.626), 0).to(memory_format=torch.channels_last)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data), (n,), generator=generator)
        return data[rows], labels[rows]

    def ours() -> Tensor:
        how = Training(steps=steps, lr=2e-3, decay=1 / 3)
        return fit(deepcopy(start), denoising(draw, batch, -1.0, 1.3), how, 0)[0].net.stem.weight

    def peer() -> Tensor:
        model, average = deepcopy(start), deepcopy(start)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
        g = torch.Generator().manual_seed(0)
        for step in range(steps):
            rows = torch.randint(len(data), (batch,), generator=g)
            s = (-1.0 + 1.3 * torch.randn(batch, generator=g)).exp()
            noise = torch.randn(batch, 1, 16, 16, generator=g)
            torch.rand(batch, generator=g)
            weight = (s.square() + 0.626**2) / (s * 0.626).square()
            out = model(data[rows] + s[:, None, None, None] * noise, s, labels[rows])
            loss = ((out - data[rows]).square().flatten(1).mean(1) * weight).mean()
            optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (1 - step / steps) * 3)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            keep = min(0.999, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                    mean.mul_(keep).add_(now, alpha=1 - keep)
        return average.net.stem.weight

    ratio, mine, theirs = in_turns(ours, peer, 5)
    print(f"{'training, throughput':44s} {ratio:7.2f}   {(mine - theirs).abs().max():.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'':44s} {'peer/us':>7s}   largest difference")
    samplers()
    training()
