"""How important is every gate: EcoDiff's learnt masks, and the criteria that it is compared with.

    L(mask) = |x0(mask) - x0|^2 + beta E|mask|_0

x0 is what the whole sampler makes of a noise, mask or no mask; the L0 norm counts parameters. The gradient goes through
every step of the sampler and is checkpointed there: only the state x of each step is stored, and its network is
evaluated again on the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from papertrial.methods.consistency import multistep
from papertrial.methods.noise_levels import S_MAX, S_MIN, vp_level, vp_time
from papertrial.methods.samplers import Denoiser, Rule, solve
from papertrial.models.edm import Draw, denoising
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.ecodiff_pruning.gates import Gated, hard_concrete, open_probability

Masked = Callable[[Gated, Tensor], Denoiser]
Objective = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Sampler:
    """From noise (draws, n, ...) and labels (n,) to pictures: walk(denoise, noise, label)."""

    walk: Callable[[Denoiser, Tensor, Tensor], Tensor]
    draws: int = 1


def along(levels: np.ndarray, rule: Rule) -> Sampler:
    """A solver of the flow, whose last step goes from the last level to 0: one evaluation of the network."""
    return Sampler(lambda denoise, noise, label: solve(denoise, levels[0] * noise[0], levels, rule, label))


def in_few_steps(levels: list[float]) -> Sampler:
    """That of a consistency student: fresh noise at every level."""

    def walk(denoise: Denoiser, noise: Tensor, label: Tensor) -> Tensor:
        return multistep(denoise, levels, noise[0], iter(noise[1:]).__next__, label)

    return Sampler(walk, len(levels))


def checkpointed(gated: Gated, mask: Tensor) -> Denoiser:
    """Stores its arguments; what the evaluation needs besides is computed again on the way back."""

    def denoise(x: Tensor, s: float, label: Tensor) -> Tensor:
        keep_rng_state = False  # there is no chance in an evaluation
        return CheckpointFunction.apply(gated, keep_rng_state, mask, x, s, label)

    return denoise


def plain(gated: Gated, mask: Tensor) -> Denoiser:
    """Stores all that the way back needs."""
    return partial(gated, mask)


@dataclass(frozen=True)
class Lessons:
    """Noise (updates, draws, n, ...), labels (updates, n) and what the unpruned sampler makes of them."""

    noise: Tensor
    label: Tensor
    target: Tensor

    @classmethod
    def of(cls, model: nn.Module, sampler: Sampler, shape: tuple, updates: int, n: int, seed: int) -> "Lessons":
        generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
        noise = torch.randn(updates, sampler.draws, n, *shape, generator=generator).to(device)
        label = torch.randint(10, (updates, n), generator=generator).to(device)
        many = max(1, 128 // n)  # updates at a time
        with torch.no_grad():
            parts = [
                sampler.walk(model, e.transpose(0, 1).flatten(1, 2), y.flatten()).unflatten(0, y.shape)
                for e, y in zip(noise.split(many), label.split(many), strict=True)
            ]
        return cls(noise, label, torch.cat(parts))

    def rolled(self) -> "Lessons":
        """The control: every noise with another one's target."""
        return replace(self, target=self.target.roll(1, dims=1))


def end_to_end(gated: Gated, sampler: Sampler, lessons: Lessons, how: Masked = checkpointed) -> Objective:
    """Mean squared distance of final pictures."""

    def objective(mask: Tensor, step: int, generator: torch.Generator | None = None) -> Tensor:
        x0 = sampler.walk(how(gated, mask), lessons.noise[step], lessons.label[step])
        return (x0 - lessons.target[step]).square().mean()

    return objective


def step_wise(gated: Gated, model: nn.Module, draw: Draw) -> Objective:
    """Mean squared distance of noise predictions, on noised data at times uniform in VP-linear's."""
    first, last = vp_time(S_MIN), vp_time(S_MAX)

    def objective(mask: Tensor, step: int, generator: torch.Generator) -> Tensor:
        x0, label = draw(len(mask), generator)
        t = first + (last - first) * torch.rand(len(mask), generator=generator).double().numpy()
        s = torch.tensor(vp_level(t), dtype=torch.float32, device=x0.device)
        level = s.reshape(-1, *[1] * (x0.ndim - 1))
        x = x0 + level * torch.randn(x0.shape, generator=generator).to(x0.device)
        with torch.no_grad():
            D = model(x, s, label)
        return ((gated(mask, x, s, label) - D) / level).square().mean()

    return objective


class Gates(nn.Module):
    """The log-odds of every gate."""

    def __init__(self, gates: int, start: float, device: str) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((gates,), float(start), device=device))


def learn(
    gated: Gated, objective: Objective, n: int, beta: float, p: dict, updates: int, seed: int, device: str
) -> tuple[np.ndarray, list[dict]]:
    """Log-odds (gates,) after Adam's updates, and the mean losses.

    Args:
        n: masks of an update, one a picture; each mask stays the same along its picture's way.
        p: ``start``, the log-odds before the first update, and Adam's ``lr``.
    """
    weight = torch.tensor(gated.costs / gated.total, dtype=torch.float32, device=device)

    def loss(gates: Gates, average: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, len(weight), generator=generator).clamp(1e-6, 1 - 1e-6).to(device)
        mask = hard_concrete(gates.log_alpha, u)
        return objective(mask, step, generator) + beta * weight @ open_probability(gates.log_alpha)

    gates, losses = fit(
        Gates(len(weight), p["start"], device), loss, Training(updates, p["lr"], decay=0.0, ema=0.0), seed
    )
    return gates.log_alpha.cpu().numpy(), losses


def taylor(gated: Gated, draw: Draw, n: int, p: dict, updates: int, seed: int, device: str) -> np.ndarray:
    """(gates,) |dL/dm| at the open gate, L one sample's denoising loss: to first order, what closing it changes."""
    generator, loss = torch.Generator().manual_seed(seed), denoising(draw, n, p["log_mean"], p["log_sd"])
    total = np.zeros(len(gated.costs))
    for step in range(updates):
        mask = torch.ones(n, len(total), device=device, requires_grad=True)
        (n * loss(gated.under(mask), None, step, generator)).backward()
        total += mask.grad.abs().double().sum(0).cpu().numpy()
    return total / (updates * n)


def magnitude(gated: Gated) -> np.ndarray:
    """(gates,) L2 norm of the weights that a gate removes."""
    return np.concatenate([block.magnitudes() for block in gated.blocks])


def by_layer(score: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Scores over the mean of their layer."""
    mean = np.bincount(layers, score) / np.bincount(layers)
    return score / mean[layers]


SCALINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "raw": lambda score, layers: score,
    "layer": by_layer,
}
