"""fm16-experts: fm16 fine-tuned to some of the classes each, for methods that put several experts together.

A part is a training seed. Expert k sees all pictures of the classes ``specialities[k]`` and a share of the others.
The last ``held_out`` training pictures are shown to none of them.

State:
    config        as fm16's
    <k>/...       weights of expert k (averaged)
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results
from papertrial.models.arrays import Checkpoint, from_arrays, from_settings, to_arrays, to_settings
from papertrial.models.edm import EDM, Draw, denoising
from papertrial.models.picture_denoisers import build, training_pictures
from papertrial.models.picture_denoisers import load as load_denoiser
from papertrial.models.picture_denoisers import network as base_network
from papertrial.models.training import Training, fit


def drawn_from(x: Tensor, y: Tensor, rows: Tensor) -> Draw:
    """A source of random pictures and labels among some rows."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = rows[torch.randint(len(rows), (n,), generator=generator)].to(x.device)
        return x[at], y[at]

    return draw


def special(label: np.ndarray, own: Sequence[int], share: float, seed: int) -> Tensor:
    """Rows of all pictures of one's own classes, and of a random share of the others."""
    mine = np.isin(label, own)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~mine))
    kept = others[: round(share * len(others))]
    return torch.from_numpy(np.sort(np.concatenate([np.flatnonzero(mine), kept])))


def held_out_loss(model: EDM, x: Tensor, y: Tensor, log_mean: float, log_sd: float) -> Tensor:
    """(n,) the denoising loss of every picture at one fixed level and noise."""
    generator = torch.Generator().manual_seed(0)
    s = (log_mean + log_sd * torch.randn(len(x), generator=generator)).exp().to(x.device)
    eps = torch.randn(x.shape, generator=generator).to(x.device)
    with torch.inference_mode():
        parts = zip(*(v.split(250) for v in (x, s, eps, y)), strict=True)
        return torch.cat([model.loss(*part) for part in parts]).cpu()


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a seed. The experts share the loop, but no weight, so that it resumes as one."""
    seed, base, data = int(part), inputs.models["fm16"]["0"], inputs.datasets["fashion_mnist"]
    config = to_settings(base["config"])
    _, x = training_pictures(data, config["size"], settings["images"], device)
    label = data["y_train"][: settings["images"]]
    y, seen = torch.tensor(label).to(device), len(x) - settings["held_out"]

    levels = (settings["log_mean"], settings["log_sd"])
    losses = []
    for own in settings["specialities"]:
        rows = special(label[:seen], own, settings["share"], seed)
        losses.append(denoising(drawn_from(x, y, rows), settings["batch"], *levels))

    def loss(experts: nn.ModuleList, average: nn.ModuleList, step: int, generator: torch.Generator) -> Tensor:
        each = zip(losses, experts, average, strict=True)
        return sum(one(expert, mean, step, generator) for one, expert, mean in each)

    experts = nn.ModuleList(load_denoiser(base, device) for _ in losses)
    experts, curve = fit(experts, loss, Training.of(settings), seed, checkpoint)

    before = held_out_loss(load_denoiser(base, device), x[seen:], y[seen:], *levels)
    rows = []
    for k, (expert, own) in enumerate(zip(experts, settings["specialities"], strict=True)):
        change = held_out_loss(expert, x[seen:], y[seen:], *levels) - before
        mine = torch.from_numpy(np.isin(label[seen:], own))
        own_change, others = (float(change[these].mean()) for these in (mine, ~mine))
        rows.append({"seed": seed, "expert": k, "own": own_change, "others": others})
    state = {"config": from_settings(config)}
    for k, expert in enumerate(experts):
        state |= to_arrays(expert.state_dict(), f"{k}/")
    return Results(rows, traces=curve, state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> list[EDM]:
    """The experts, frozen."""
    config, experts = to_settings(state["config"]), []
    for k in range(len({name.split("/")[0] for name in state} - {"config"})):
        expert = build(config["network"], config["sigma_data"])
        expert.load_state_dict(from_arrays(state, f"{k}/"))
        experts.append(expert.requires_grad_(False).to(device).eval())
    return experts


def network(settings: dict) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """An untrained expert and an example's arguments, to count parameters and FLOPs."""
    return base_network(settings)


def passes(settings: dict) -> float:
    """Forward-equivalents of an example: three a training example."""
    return 3.0 * settings["steps"] * settings["batch"] * len(settings["specialities"])
