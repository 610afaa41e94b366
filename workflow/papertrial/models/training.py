"""Minimise a stochastic loss of a network with Adam, average the weights, and come back from a kill without a trace.

One loop for every network that is trained here: denoisers, flows, consistency models and students differ in the loss.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.models.arrays import Arrays, Checkpoint, from_arrays, to_arrays

Loss = Callable[[nn.Module, nn.Module, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    steps: updates.
    lr, lr_end, decay: Adam's rate, constant and then linear to lr_end over the last share ``decay`` of the steps.
    warmup: steps over which the rate rises linearly from 0.
    ema: averaged weights' decay, min(ema, (1 + k)/(10 + k)) at step k.
    save_every: steps between checkpoints.
    """

    steps: int
    lr: float
    decay: float = 1.0
    ema: float = 0.999
    lr_end: float = 0.0
    warmup: int = 0
    save_every: int = 500

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Training":
        """From the settings of a recipe, which may hold more."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})

    def rate(self, step: int) -> float:
        left = (1 - step / self.steps) / self.decay if self.decay else 1.0
        begun = (step + 1) / self.warmup if self.warmup else 1.0
        return min(1.0, begun) * (self.lr_end + (self.lr - self.lr_end) * min(1.0, left))


def fit(
    model: nn.Module,
    loss: Loss,
    how: Training,
    seed: int,
    checkpoint: Checkpoint | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, list[dict]]:
    """Train ``model`` in place.

    Args:
        loss: (model, average, step, generator) -> scalar; ``average`` is the model with averaged weights, for losses
            that have a slowly moving target. What it draws from the generator is drawn on the CPU: equal on every
            device.
        seed: of the generator.
        checkpoint: where to resume from and to leave the state; a resumed run ends in the same bits.
        watch: called with (updates done, average) after every update.

    Returns:
        the model with averaged weights, and {"seed", "step", "loss"}: the mean loss of every 50 steps.
    """
    model.train()
    average = deepcopy(model).requires_grad_(False).eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    means = [m for m, p in zip(average.parameters(), model.parameters(), strict=True) if p.requires_grad]
    optimizer = torch.optim.Adam(weights, how.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(how.steps)
    start = _resume(checkpoint.load() if checkpoint else None, model, average, optimizer, generator, losses)
    for step in range(start, how.steps):
        value = loss(model, average, step, generator)
        optimizer.param_groups[0]["lr"] = how.rate(step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1 - min(how.ema, (1 + step) / (10 + step)))
        losses[step] = value.detach()
        done = step + 1
        if watch:
            watch(done, average)
        if checkpoint and done < how.steps and (done % how.save_every == 0 or checkpoint.asked):
            checkpoint.save(_everything(done, model, average, optimizer, generator, losses))
    traces = [
        {"seed": seed, "step": i + len(part), "loss": float(part.mean())}
        for i, part in zip(range(0, how.steps, 50), losses.split(50), strict=True)
    ]
    return average, traces


def _everything(
    step: int,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    losses: Tensor,
) -> dict[str, np.ndarray]:
    """All that the next step depends on, as arrays."""
    state = {"step": np.array(step), "generator": generator.get_state().numpy(), "losses": losses.numpy().copy()}
    state |= to_arrays(model.state_dict(), "model/") | to_arrays(average.state_dict(), "average/")
    for i, moments in optimizer.state_dict()["state"].items():
        state |= to_arrays(moments, f"adam/{i}/")
    return state


def _resume(
    state: Arrays | None,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    losses: Tensor,
) -> int:
    """Put the saved state back; the step to go on with."""
    if state is None:
        return 0
    model.load_state_dict(from_arrays(state, "model/"))
    average.load_state_dict(from_arrays(state, "average/"))
    adam = {}
    for i, weight in enumerate(optimizer.param_groups[0]["params"]):  # moments lie in memory as their weights do
        saved = from_arrays(state, f"adam/{i}/")
        step = saved.pop("step").reshape(())  # files may turn a number into an array of one
        adam[i] = {k: torch.empty_like(weight).copy_(v) for k, v in saved.items()} | {"step": step}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": adam})
    generator.set_state(torch.from_numpy(state["generator"].copy()))
    losses.copy_(torch.from_numpy(state["losses"]))
    return state["step"].item()
