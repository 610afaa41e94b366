"""Train a denoiser D(x, s, label) at all noise levels, and come back from a kill without a trace.

Preconditioning, loss and level distribution of EDM: D = c_skip x + c_out F(c_in x, log(s)/4, label), such that F's
input and target have unit variance and every level the same weight at the start.

Source: Karras et al. 2022 (arXiv 2206.00364), table 1.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]


class EDM(nn.Module):
    """A network behind the denoiser interface.

    Args:
        net: F(x, c_noise, label) with x (n, ...), c_noise (n,).
        sigma_data: standard deviation of the data.
    """

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.net, self.sigma_data = net, sigma_data

    def forward(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        """D of x = x0 + s eps; s is one level for all, or (n,)."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        level = s.reshape(-1, *[1] * (x.ndim - 1))
        total = level.square() + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, level * self.sigma_data * total.rsqrt()
        return c_skip * x + c_out * self.net(x * total.rsqrt(), s.log() / 4, label)

    def loss(self, x0: Tensor, s: Tensor, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """(n,) squared error of D per coordinate, weighted by 1/c_out^2."""
        error = (self(x0 + s.reshape(-1, *[1] * (x0.ndim - 1)) * eps, s, label) - x0).square().flatten(1).mean(1)
        return error * (s.square() + self.sigma_data**2) / (s * self.sigma_data).square()


@dataclass(frozen=True)
class Training:
    """How a denoiser is trained.

    steps, batch: updates, and samples of each.
    lr, lr_end, decay: Adam's rate, constant and then linear to lr_end over the last share ``decay`` of the steps.
    ema: averaged weights' decay, min(ema, (1 + k)/(10 + k)) at step k.
    log_mean, log_sd: log s ~ N(log_mean, log_sd^2).
    drop_label: share of samples that are shown the null label.
    save_every: steps between checkpoints.
    """

    steps: int
    batch: int
    lr: float
    decay: float
    ema: float
    log_mean: float
    log_sd: float
    lr_end: float = 0.0
    drop_label: float = 0.0
    save_every: int = 500

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Training":
        """From the settings of a recipe, which may hold more."""
        return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})

    def rate(self, step: int) -> float:
        left = (1 - step / self.steps) / self.decay
        return self.lr_end + (self.lr - self.lr_end) * min(1.0, left)


class Checkpoint(Protocol):
    def load(self) -> Arrays | None: ...

    def save(self, state: Arrays) -> None: ...


Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


def fit(
    model: EDM, draw: Draw, how: Training, seed: int, checkpoint: Checkpoint, null: int = 0
) -> tuple[EDM, list[dict]]:
    """Train ``model`` in place.

    Args:
        draw: (n, generator) -> data (n, ...) and labels (n,) or None, on the model's device.
        seed: of data order, levels and noise, which are drawn on the CPU: equal on every device.
        checkpoint: where to resume from and to leave the state; a resumed run ends in the same bits.
        null: the label that stands for none.

    Returns:
        the model with averaged weights, and {"seed", "step", "loss"}: the mean loss of every 50 steps.
    """
    model.train()
    average = deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), how.lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(how.steps)
    start = _resume(checkpoint.load(), model, average, optimizer, generator, losses)
    device = next(model.parameters()).device
    for step in range(start, how.steps):
        x0, label = draw(how.batch, generator)
        s = (how.log_mean + how.log_sd * torch.randn(how.batch, generator=generator)).exp().to(device)
        eps = torch.randn(x0.shape, generator=generator).to(device)
        if label is not None:
            dropped = (torch.rand(how.batch, generator=generator) < how.drop_label).to(device)
            label = torch.where(dropped, null, label)
        loss = model.loss(x0, s, eps, label).mean()
        optimizer.param_groups[0]["lr"] = how.rate(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        keep = min(how.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(weight, 1 - keep)
        losses[step] = loss.detach()
        if (step + 1) % how.save_every == 0 and step + 1 < how.steps:
            checkpoint.save(_everything(step + 1, model, average, optimizer, generator, losses))
    traces = [
        {"seed": seed, "step": i + len(part), "loss": float(part.mean())}
        for i, part in zip(range(0, how.steps, 50), losses.split(50), strict=True)
    ]
    return average.eval(), traces


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
    for i, weight in enumerate(model.parameters()):  # moments lie in memory as their weights do
        saved = from_arrays(state, f"adam/{i}/")
        step = saved.pop("step").reshape(())  # files may turn a number into an array of one
        adam[i] = {k: torch.empty_like(weight).copy_(v) for k, v in saved.items()} | {"step": step}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": adam})
    generator.set_state(torch.from_numpy(state["generator"].copy()))
    losses.copy_(torch.from_numpy(state["losses"]))
    return state["step"].item()


def to_arrays(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """Tensors by name as arrays (copies)."""
    return {prefix + k: v.detach().cpu().contiguous().numpy().copy() for k, v in tensors.items()}


def from_arrays(arrays: Arrays, prefix: str = "") -> dict[str, Tensor]:
    """The arrays under a prefix as tensors (copies), the prefix taken off."""
    return {k[len(prefix) :]: torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose initial weights come from a seed, the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def batched(denoise: Callable[..., Tensor], size: int = 250) -> Callable[..., Tensor]:
    """A denoiser for sampling: no gradients, and at most ``size`` samples at a time (one level for all)."""

    def call(x: Tensor, s: float, label: Tensor | None = None) -> Tensor:
        with torch.inference_mode():
            parts = x.split(size)
            labels = [None] * len(parts) if label is None else label.split(size)
            return torch.cat([denoise(part, s, y) for part, y in zip(parts, labels, strict=True)])

    return call
