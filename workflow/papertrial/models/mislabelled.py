"""mislabelled: conditional diffusion models that listen badly, for reinforcement learning to align.

A part is a task: ``ring8``, a noise predictor of the ring of eight with the mode as its label, or ``fm8``, a denoiser
of 8 x 8 Fashion-MNIST. In training half of the labels are replaced by random ones, so that samples show what they were
asked for about half of the time. ``load(part, state)`` gives D(x, s, label).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import balanced_labels, heun, initial_noise, solve
from papertrial.models import picture_denoisers, plane_denoisers
from papertrial.models.arrays import Checkpoint, from_settings, seeded, to_arrays
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import Draw, batched, denoising
from papertrial.models.training import Training, fit
from papertrial.testbeds.mixtures import density


def mislabelled(draw: Draw, share: float, classes: int) -> Draw:
    """The same data, with a share of the labels replaced by random ones."""

    def draw_again(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, label = draw(n, generator)
        other = torch.randint(classes, (n,), generator=generator).to(label.device)
        return x, torch.where((torch.rand(n, generator=generator) < share).to(label.device), other, label)

    return draw_again


def of_ring(settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> tuple[nn.Module, dict, list]:
    exact = density("ring8", torch.float32)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, label = exact.sample_labelled(n, generator)
        return x.to(device), label.to(device)

    config = {"kind": "ddpm", "sigma_data": 1.5, "network": settings["network"]}
    model = seeded(lambda: plane_denoisers.build(config), 0).to(device)
    noisy = mislabelled(draw, settings["share"], settings["network"]["classes"])
    loss = plane_denoisers.ddpm_loss(noisy, settings["batch"])
    model, losses = fit(model, loss, Training.of(settings), 0, checkpoint)
    return model, config, losses


def of_pictures(settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> tuple[nn.Module, dict, list]:
    config = {k: settings[k] for k in ("network", "sigma_data", "size")}
    data = inputs.datasets["fashion_mnist"]
    draw, _ = picture_denoisers.training_pictures(data, settings["size"], settings["images"], device)
    model = seeded(lambda: picture_denoisers.build(config["network"], config["sigma_data"]), 0).to(device)
    noisy = mislabelled(draw, settings["share"], 10)
    loss = denoising(noisy, settings["batch"], settings["log_mean"], settings["log_sd"])
    model, losses = fit(model, loss, Training.of(settings), 0, checkpoint)
    return model, config, losses


TASKS = {"ring8": of_ring, "fm8": of_pictures}


def agreement(part: str, model: nn.Module, gate: Mapping, config: dict, inputs: Inputs, device: str) -> float:
    """The share of samples that show their label, by the nearest mode or by clf8."""
    shape = (2,) if part == "ring8" else (1, config["size"], config["size"])
    label = balanced_labels([0], gate["n"], 8 if part == "ring8" else 10)
    levels = grid("karras", gate["steps"])
    x = levels[0] * initial_noise([gate["seed"]], gate["n"], shape).to(device)
    x = solve(batched(model, 1000), x, levels, heun, label.to(device)).cpu()
    if part == "ring8":
        nearest = torch.cdist(x, density("ring8", torch.float32).means).argmin(1)
        return float((nearest == label).float().mean())
    return SampleJudge(inputs.models["clf8"]["0"])(x, label)["accuracy"]


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a task; the seed of the training is 0."""
    own = settings | settings["tasks"][part]
    model, config, losses = TASKS[part](own, inputs, device, checkpoint)
    row = {"seed": 0, "task": part, "agreement": agreement(part, model, own["gate"], config, inputs, device)}
    state = {"config": from_settings(config)} | to_arrays(model.state_dict(), "net/")
    return Results([row], traces=[{**r, "task": part} for r in losses], state=state)


def load(part: str, state: Mapping[str, np.ndarray], device: str = "cpu") -> nn.Module:
    """The trained network, with gradients."""
    return {"ring8": plane_denoisers, "fm8": picture_denoisers}[part].load(state, device)


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The larger untrained network and an example's arguments, to count parameters and FLOPs."""
    own = settings["tasks"]["fm8"]
    return picture_denoisers.network({**own, "networks": {"main": own["network"]}})


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    own = settings | settings["tasks"]["fm8"]
    return 3.0 * own["steps"] * own["batch"]
