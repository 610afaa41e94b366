"""fm16: a class-conditional diffusion model of 16 x 16 Fashion-MNIST, the base of the sampler papers.

``denoiser(state)`` gives D(x, s, label) for levels s in [.02, 20]; labels 0..9, none for the unconditional model.
At paper scale the same recipe trains a full-size U-Net at 32 x 32.
"""

from collections.abc import Mapping

import numpy as np
import torch

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Denoiser, balanced_labels, heun, initial_noise, solve
from papertrial.models.clf16 import SampleJudge
from papertrial.models.edm import EDM, Checkpoint, Training, batched, fit, from_arrays, seeded, to_arrays
from papertrial.models.unet import UNet
from papertrial.testbeds.fashion import pictures


def build(settings: Mapping, seed: int, device: str) -> EDM:
    """The untrained network; channels last is what CPU and GPU convolve fastest."""
    model = seeded(lambda: EDM(UNet(**settings["unet"]), settings["sigma_data"]), seed)
    return model.to(device, memory_format=torch.channels_last)


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a training seed."""
    seed, data, size = int(part), inputs.datasets["fashion_mnist"], settings["size"]
    x = torch.from_numpy(pictures(data["x_train"][: settings["images"]], size)).to(device)
    y = torch.tensor(data["y_train"][: settings["images"]]).to(device)

    def draw(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(x), (n,), generator=generator).to(device)
        return x[rows], y[rows]

    model = build(settings, seed, device)
    model, losses = fit(model, draw, Training.of(settings), seed, checkpoint, null=model.net.null)
    state = {f"unet/{k}": np.asarray(v) for k, v in settings["unet"].items()}
    state |= {"sigma_data": np.array(settings["sigma_data"]), "size": np.array(size)}
    state |= to_arrays(model.state_dict(), "net/")

    gate = settings["gate"]  # samples of a noise seed that no paper uses
    label = balanced_labels([0], gate["n"]).to(device)
    levels = grid("karras", gate["steps"])
    noise = initial_noise([gate["seed"]], gate["n"], (1, size, size)).to(device)
    samples = solve(batched(model), levels[0] * noise, levels, heun, label)
    found = SampleJudge(inputs.models["clf16"]["0"], device)(samples, label.cpu())
    last = float(np.mean([row["loss"] for row in losses[-4:]]))
    return Results([{"seed": seed, "loss": last, **found}], traces=losses, state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> EDM:
    """The trained network (averaged weights), for gradients, blocks and further training."""
    unet = {k.removeprefix("unet/"): v for k, v in state.items() if k.startswith("unet/")}
    unet = {k: v.tolist() if k in ("channels", "attention") else v.item() for k, v in unet.items()}
    model = EDM(UNet(**unet), state["sigma_data"].item())
    model.load_state_dict(from_arrays(state, "net/"))
    return model.to(device, memory_format=torch.channels_last).eval()


def denoiser(state: Mapping[str, np.ndarray], device: str = "cpu") -> Denoiser:
    """The trained network for sampling: D(x, s, label) without gradients, any batch size."""
    return batched(load(state, device))


def shape(state: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
    """Of one picture."""
    return 1, state["size"].item(), state["size"].item()
