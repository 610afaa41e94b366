"""Class-conditional diffusion models of Fashion-MNIST at any size (fm8, fm16): one recipe, the network by name.

``denoiser(state)`` gives D(x, s, label) for levels s in [.02, 20]; labels 0..9, none for the unconditional model.
At paper scale the same recipe trains a full-size U-Net at 32 x 32.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Denoiser, balanced_labels, heun, initial_noise, solve
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import EDM, Draw, batched, denoising
from papertrial.models.perceptrons import ResidualMLP
from papertrial.models.training import Training, fit
from papertrial.models.unet import UNet
from papertrial.testbeds.fashion import pictures

NETWORKS = {"unet": UNet, "mlp": ResidualMLP}


def build(network: Mapping, sigma_data: float, device: str = "cpu") -> EDM:
    """The untrained denoiser.

    Args:
        network: {"kind": "unet" or "mlp", and that class's arguments}.
    """
    arguments = {k: v for k, v in network.items() if k != "kind"}
    model = EDM(NETWORKS[network["kind"]](**arguments), sigma_data)
    return model.to(device, memory_format=torch.channels_last)  # what CPU and GPU convolve fastest


def training_pictures(data: Mapping[str, np.ndarray], size: int, images: int, device: str) -> tuple[Draw, Tensor]:
    """A source of random training pictures and their labels, and all pictures (images, 1, size, size)."""
    x = torch.from_numpy(pictures(data["x_train"][:images], size)).to(device)
    y = torch.tensor(data["y_train"][:images]).to(device)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(x), (n,), generator=generator).to(device)
        return x[rows], y[rows]

    return draw, x


def chosen(part: str, settings: Mapping) -> tuple[dict, int]:
    """A part is <network>-<seed>, or a seed where there is one network, called main."""
    name, _, seed = part.rpartition("-")
    return settings["networks"][name or "main"], int(seed)


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    network, seed = chosen(part, settings)
    size, sigma_data = settings["size"], settings["sigma_data"]
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], size, settings["images"], device)
    model = seeded(lambda: build(network, sigma_data), seed).to(device)
    levels = (settings["log_mean"], settings["log_sd"])
    loss = denoising(draw, settings["batch"], *levels, settings["drop_label"], model.net.null)
    model, losses = fit(model, loss, Training.of(settings), seed, checkpoint)
    config = {"network": network, "sigma_data": sigma_data, "size": size}
    state = {"config": from_settings(config)} | to_arrays(model.state_dict(), "net/")

    gate = settings["gate"]  # samples of a noise seed that no paper uses
    label = balanced_labels([0], gate["n"]).to(device)
    levels = grid("karras", gate["steps"])
    noise = initial_noise([gate["seed"]], gate["n"], (1, size, size)).to(device)
    samples = solve(batched(model), levels[0] * noise, levels, heun, label)
    (judge,) = inputs.models  # the classifier that the yaml names
    found = SampleJudge(inputs.models[judge]["0"], device)(samples, label.cpu())
    last = float(np.mean([row["loss"] for row in losses[-4:]]))
    losses = [{**row, "network": part} for row in losses]
    return Results([{"seed": seed, "loss": last, **found}], traces=losses, state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> EDM:
    """The trained network (averaged weights), for gradients, blocks and further training."""
    config = to_settings(state["config"])
    model = build(config["network"], config["sigma_data"])
    model.load_state_dict(from_arrays(state, "net/"))
    return model.to(device).eval()


def denoiser(state: Mapping[str, np.ndarray], device: str = "cpu") -> Denoiser:
    """The trained network for sampling: D(x, s, label) without gradients, any batch size."""
    return batched(load(state, device))


def shape(state: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """Of one picture."""
    size = to_settings(state["config"])["size"]
    return 1, size, size


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The largest untrained network and an example's arguments, to count parameters and FLOPs."""
    size, first = settings["size"], next(iter(settings["networks"].values()))
    model = EDM(NETWORKS[first["kind"]](**{k: v for k, v in first.items() if k != "kind"}), settings["sigma_data"])
    return model, (torch.empty(1, 1, size, size), torch.ones(1), torch.zeros(1, dtype=torch.long))


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example, and the gate's sampling by Heun's rule."""
    gate = settings["gate"]
    return 3.0 * settings["steps"] * settings["batch"] + gate["n"] * (2 * gate["steps"] + 1)
