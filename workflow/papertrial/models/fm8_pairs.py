"""fm8-pairs: noise and the picture that fm8's ODE leads it to, for what learns from such pairs (reflow, regression).

State:
    x (n, 1, size, size)   the pictures; ``load`` gives the noise and the labels, too, which come from the seed
    seed ()                of the noise
    nfe ()                 evaluations that a picture took
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Counted, balanced_labels, heun, initial_noise, solve
from papertrial.models.arrays import Checkpoint
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import batched
from papertrial.models.picture_denoisers import load as load_denoiser
from papertrial.models.picture_denoisers import shape


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """A part is a part of fm8; minutes at most, so nothing is checkpointed."""
    network, seed, n = inputs.models["fm8"][part], settings["seed"], settings["n"]
    denoise = Counted(batched(load_denoiser(network, device)))
    noise = initial_noise([seed], n, shape(network)).to(device)
    label = balanced_labels([seed], n).to(device)
    levels = grid("karras", settings["steps"])
    x = solve(denoise, levels[0] * noise, levels, heun, label)
    judged = min(n, settings["judged"])
    found = SampleJudge(inputs.models["clf8"]["0"], device)(x[:judged], label[:judged].cpu())
    state = {"x": x.cpu().numpy(), "seed": np.array(seed), "nfe": np.array(denoise.nfe)}
    return Results([{"seed": 0, "nfe": denoise.nfe, **found}], state=state)


def load(state: Mapping[str, np.ndarray], device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Pictures and noise (n, 1, size, size), labels (n,)."""
    x, seed = torch.tensor(state["x"]), state["seed"].item()
    noise = initial_noise([seed], len(x), x.shape[1:])
    return x.to(device), noise.to(device), balanced_labels([seed], len(x)).to(device)
