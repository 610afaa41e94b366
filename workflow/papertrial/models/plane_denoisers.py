"""Diffusion models of the densities in the plane (edm2d, ddpm2d): networks whose exact answer is known.

``edm2d`` is the EDM recipe with levels s in [.01, 20]. ``ddpm2d`` predicts eps at the 1000 levels of DDPM's linear
schedule, s from .01 to 157. Both are denoisers D(x, s, label) in VE coordinates.

Sources: Karras et al. 2022 (arXiv 2206.00364); Ho et al. 2020 (arXiv 2006.11239).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Denoiser, heun, initial_noise, solve
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.edm import EDM, Draw, batched, denoising
from papertrial.models.perceptrons import PlaneMLP
from papertrial.models.training import Loss, Training, fit
from papertrial.testbeds.mixtures import density
from papertrial.testbeds.samplequality import SlicedW2

# DDPM's levels, index 0..999 from little noise to much.
ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
DDPM_LEVELS = np.sqrt((1 - ALPHA_BAR) / ALPHA_BAR)


class EpsNet(nn.Module):
    """A network that predicts eps from alpha x, behind the denoiser interface D = x - s eps."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def eps(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        """(n, d) from x = x0 + s eps; s is one level for all, or (n,)."""
        s = torch.as_tensor(s, dtype=x.dtype, device=x.device).expand(len(x))
        return self.net(x * (1 + s.square()).rsqrt()[:, None], s.log() / 4, label)

    def forward(self, x: Tensor, s: Any, label: Tensor | None = None) -> Tensor:
        level = torch.as_tensor(s, dtype=x.dtype, device=x.device).reshape(-1, 1)
        return x - level * self.eps(x, s, label)


def ddpm_loss(draw: Draw, batch: int) -> Loss:
    """E |eps_net - eps|^2, the level uniform among DDPM_LEVELS; for ``training.fit``."""
    levels = torch.tensor(DDPM_LEVELS, dtype=torch.float32)

    def loss(model: EpsNet, average: EpsNet, step: int, generator: torch.Generator) -> Tensor:
        x0, label = draw(batch, generator)
        s = levels[torch.randint(len(levels), (batch,), generator=generator)].to(x0.device)
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        return (model.eps(x0 + s[:, None] * eps, s, label) - eps).square().mean()

    return loss


def build(config: Mapping) -> EDM | EpsNet:
    """The untrained model: {"kind": "edm" or "ddpm", "sigma_data", "network": arguments of PlaneMLP}."""
    net = PlaneMLP(**config["network"])
    return EDM(net, config["sigma_data"]) if config["kind"] == "edm" else EpsNet(net)


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a density; the seed of the training is 0."""
    exact, batch = density(part, torch.float32), settings["batch"]

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return exact.sample(n, generator).to(device), None

    config = {k: settings[k] for k in ("kind", "sigma_data", "network")}
    model = seeded(lambda: build(config), 0).to(device)
    edm = settings["kind"] == "edm"
    loss = denoising(draw, batch, settings["log_mean"], settings["log_sd"]) if edm else ddpm_loss(draw, batch)
    model, losses = fit(model, loss, Training.of(settings), 0, checkpoint)

    gate = settings["gate"]
    levels = grid("karras", gate["steps"], settings["s_max"], settings["s_min"])
    noise = initial_noise([gate["seed"]], gate["n"], (2,)).to(device)
    samples = solve(batched(model, 10_000), levels[0] * noise, levels, heun)
    reference = exact.sample(gate["n"], torch.Generator().manual_seed(0)).numpy()
    sw2 = SlicedW2(reference)(samples.cpu().numpy())
    traces = [{**row, "density": part} for row in losses]
    state = {"config": from_settings(config)} | to_arrays(model.state_dict(), "net/")
    return Results([{"seed": 0, "density": part, "sw2": sw2}], traces=traces, state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> EDM | EpsNet:
    """The trained network (averaged weights)."""
    model = build(to_settings(state["config"]))
    model.load_state_dict(from_arrays(state, "net/"))
    return model.to(device).eval()


def denoiser(state: Mapping[str, np.ndarray], device: str = "cpu") -> Denoiser:
    """The trained network for sampling: D(x, s, label) without gradients."""
    return batched(load(state, device), 10_000)


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained network and an example's arguments, to count parameters and FLOPs."""
    return build(settings), (torch.empty(1, 2), torch.ones(1))


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example, and the gate's sampling by Heun's rule."""
    gate = settings["gate"]
    return 3.0 * settings["steps"] * settings["batch"] + gate["n"] * (2 * gate["steps"] + 1)
