"""lmd28-ddpm: a pixel diffusion model of 32 x 32 Fashion-MNIST on a budget, to in-paint with.

A U-Net with EDM's preconditioning, for pictures in [-1, 1]; it sees the pictures that lmd28 was trained on.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.methods.samplers import Denoiser
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.edm import EDM, batched, denoising
from papertrial.models.lmd28 import SIDE, training_images
from papertrial.models.training import Training, fit
from papertrial.models.unet import UNet
from papertrial.testbeds.fashion import pictures


def build(settings: Mapping) -> EDM:
    return EDM(UNet(**settings["unet"]), settings["sigma_data"])


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    x = torch.from_numpy(pictures(training_images("fashion", inputs, settings["images"])[0], SIDE)).to(device)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return x[torch.randint(len(x), (n,), generator=generator).to(device)], None

    model = seeded(lambda: build(settings), 0).to(device, memory_format=torch.channels_last)
    loss = denoising(draw, settings["batch"], settings["log_mean"], settings["log_sd"])
    model, losses = fit(model, loss, Training.of(settings), 0, checkpoint)
    state = {"config": from_settings({k: settings[k] for k in ("unet", "sigma_data")})}
    row = {"seed": 0, "loss": float(np.mean([r["loss"] for r in losses[-4:]])), "macs": macs(model)}
    return Results([row], traces=losses, state=state | to_arrays(model.state_dict(), "net/"))


def macs(model: EDM) -> int:
    """Multiply-adds of one evaluation for one picture."""
    from torch.utils.flop_counter import FlopCounterMode

    weight = next(model.parameters())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, SIDE, SIDE, device=weight.device), 1.0)
    return counter.get_total_flops() // 2


def denoiser(state: Mapping[str, np.ndarray], device: str = "cpu") -> tuple[Denoiser, int]:
    """D(x, s) of pictures in [-1, 1], and the multiply-adds of an evaluation."""
    model = build(to_settings(state["config"]))
    model.load_state_dict(from_arrays(state, "net/"))
    model = model.to(device, memory_format=torch.channels_last).eval()
    return batched(model), macs(model)


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained network and an example's arguments, to count parameters and FLOPs."""
    return build(settings), (torch.empty(1, 1, SIDE, SIDE), torch.ones(1))


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    return 3.0 * settings["steps"] * settings["batch"]
