"""fm8-flow: rectified flows of 8 x 8 Fashion-MNIST trained from scratch (1-RF), and the pairs that they lead to.

The velocity v(x, t, label) of X_t = t X1 + (1 - t) X0, noise at t = 0, pictures at t = 1.

State:
    net/...                        the network (averaged weights)
    x (pairs, 1, size, size)       pictures that the flow leads noise to; ``load_pairs`` gives noise and labels, too
    seed ()                        of that noise
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.methods.rectified_flow import heun, integrate, residual, without_gradients
from papertrial.methods.samplers import balanced_labels, initial_noise
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, seeded, to_arrays, to_settings
from papertrial.models.classifiers import SampleJudge
from papertrial.models.picture_denoisers import NETWORKS, training_pictures
from papertrial.models.training import Training, fit

Pairs = tuple[Tensor, Tensor, Tensor]  # noise and pictures (n, 1, size, size), labels (n,)


class Flow(nn.Module):
    """A network F(x, c_noise, label) as a velocity: c_noise = 2 t - 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        return self.net(x, 2 * t - 1, label)


def build(network: Mapping) -> Flow:
    """The untrained flow: {"kind": "unet" or "mlp", and that class's arguments}."""
    return Flow(NETWORKS[network["kind"]](**{k: v for k, v in network.items() if k != "kind"}))


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a training seed."""
    seed, size, batch = int(part), settings["size"], settings["batch"]
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], size, settings["images"], device)

    def loss(flow: Flow, average: Flow, step: int, generator: torch.Generator) -> Tensor:
        x, label = draw(batch, generator)
        noise, t = torch.randn(x.shape, generator=generator), torch.rand(batch, generator=generator)
        return residual(flow, noise.to(x.device), x, t.to(x.device), label).square().mean()

    model = seeded(lambda: build(settings["network"]), seed).to(device)
    flow, losses = fit(model, loss, Training.of(settings), seed, checkpoint)

    n, noise_seed = settings["pairs"], settings["pairs_seed"] + seed  # noise seeds that no paper uses
    noise = initial_noise([noise_seed], n, (1, size, size)).to(device)
    label = balanced_labels([noise_seed], n).to(device)
    times = np.linspace(0, 1, settings["pairs_steps"] + 1)
    x = integrate(without_gradients(flow), noise, times, label, heun)
    judged = min(n, settings["judged"])
    found = SampleJudge(inputs.models["clf8"]["0"], device)(x[:judged], label[:judged].cpu())
    state = {"config": from_settings(settings["network"]), "x": x.cpu().numpy(), "seed": np.array(noise_seed)}
    state |= to_arrays(flow.state_dict(), "net/")
    last = float(np.mean([row["loss"] for row in losses[-4:]]))
    return Results([{"seed": seed, "loss": last, **found}], traces=losses, state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> Flow:
    """The trained flow, for simulation and further training."""
    flow = build(to_settings(state["config"]))
    flow.load_state_dict(from_arrays(state, "net/"))
    return flow.to(device).eval()


def load_pairs(state: Mapping[str, np.ndarray], device: str = "cpu") -> Pairs:
    """The flow's coupling."""
    x, seed = torch.tensor(state["x"]), state["seed"].item()
    noise = initial_noise([seed], len(x), x.shape[1:])
    return noise.to(device), x.to(device), balanced_labels([seed], len(x)).to(device)


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The untrained network and an example's arguments, to count parameters and FLOPs."""
    size = settings["size"]
    return build(settings["network"]), (torch.empty(1, 1, size, size), torch.ones(1), torch.zeros(1, dtype=torch.long))


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example, and the pairs by Heun's rule."""
    return 3.0 * settings["steps"] * settings["batch"] + settings["pairs"] * 2 * settings["pairs_steps"]
