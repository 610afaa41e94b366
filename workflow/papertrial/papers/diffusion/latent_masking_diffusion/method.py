"""Latent masking diffusion: reconstruct pictures from a few latents, trained from little to much hidden.

A frozen VAE turns pictures into 8 x 8 latents. At update t a share m(t) of their blocks is hidden at random, and a
masked autoencoder predicts the hidden latents from the visible ones alone, m growing from .15 to .75. "Diffusion" is
this forward process of masking; nothing is denoised step by step, and in-painting takes one pass and a decoding.
A masked autoencoder of pixels is the same program on other tokens with a fixed m; a pixel diffusion model in-paints
by putting the known pixels back, noised, after every step.

Source: Ma et al. 2023 (arXiv 2312.07971); masked autoencoders: He et al. 2022 (arXiv 2111.06377).
"""

from collections.abc import Callable, Mapping
from time import process_time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.models.arrays import seeded
from papertrial.models.lmd28 import in_unit
from papertrial.models.training import Loss, Training, fit
from papertrial.papers.diffusion.latent_masking_diffusion.autoencoder import MaskedAutoencoder, at
from papertrial.papers.diffusion.latent_masking_diffusion.bench import Bench, View, picture_bytes, reconstruct, rms
from papertrial.papers.diffusion.latent_masking_diffusion.inpainting import (
    diffusion,
    inpaint,
    mean_picture,
    nearest_picture,
    without_model,
)
from papertrial.papers.diffusion.latent_masking_diffusion.masking import (
    BLOCKS,
    LAST,
    SCHEDULES,
    pixels_of,
    places,
    split,
    whole_blocks,
)

TRAINING = 3  # multiply-adds of an update in forward passes: one forward, two backward


def masking_loss(z: Tensor, p: dict, schedule: str, per: int, spend: Callable[[int, int], None]) -> Loss:
    """Squared error of the hidden tokens.

    Args:
        z: (N, T, features) tokens of the training pictures.
        per: tokens in a block.
        spend: told the numbers of visible and hidden tokens of every update.
    """

    def loss(model: MaskedAutoencoder, average: MaskedAutoencoder, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(z), (p["batch"],), generator=generator).to(z.device)
        draw = torch.rand((), generator=generator).item()
        m = SCHEDULES[schedule](step / (p["updates"] - 1), draw)
        visible, hidden = (places(b, per).to(z.device) for b in split(p["batch"], whole_blocks(m), generator))
        spend(visible.shape[1], hidden.shape[1])
        x = z[rows]  # (batch, T, features)
        target = x.roll(p["roll"], dims=0)  # the control's is another picture
        return hidden_error(model(x, visible, hidden), target, hidden)

    return loss


def hidden_error(predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error of predicted tokens (n, M, p) against those of target (n, T, p) at the hidden places."""
    return (predicted - at(target, hidden)).square().mean()


def reconstruction(model: MaskedAutoencoder, view: View, bench: Bench, seed: int, blind: bool = False) -> dict:
    """err: rms over the hidden pixels of the validation pictures at 75% masking; the blocks depend on the seed only.

    A visible latent has seen a few hidden pixels through the encoder; ``blind`` takes them away before encoding.
    """
    x = bench.held_out
    per = model.position.shape[0] // BLOCKS
    blocks = split(len(x), whole_blocks(LAST), torch.Generator().manual_seed(seed))
    visible, hidden = (b.to(x.device) for b in blocks)
    mask = pixels_of(hidden, x.shape[-1])
    seen = torch.where(mask, bench.train.mean(dim=0), x) if blind else x
    found = reconstruct(model, view, seen, places(visible, per), places(hidden, per))
    return {"rms": rms(found - x, mask), "pictures": torch.where(mask, found, x)}


def spent(model: MaskedAutoencoder, view: View, batch: int, visible: int, hidden: int) -> float:
    """Multiply-adds of an update (10^9), the encoding of its pictures included."""
    return batch * (TRAINING * model.macs(visible, hidden) + view.codec.encode_macs) / 1e9


def trained(p: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Masked autoencoders: one for every schedule and seed, measured on the way and at the end."""
    bench, found = Bench.of(p, inputs, device), Results([])
    for schedule in p["schedules"]:
        for seed in seeds:
            train_one(p, schedule, seed, bench, inputs, found)
    return found


def train_one(p: dict, schedule: str, seed: int, bench: Bench, inputs: Inputs, found: Results) -> None:
    view, begun, paused, gmacs = bench.view(p["space"], p["side"]), process_time(), 0.0, 0.0
    z = view.tokens(bench.train)
    tokens, features = z.shape[1:]
    model = seeded(lambda: MaskedAutoencoder(tokens, features, p["encoder"], p["decoder"]), seed).to(z.device)

    def spend(visible: int, hidden: int) -> None:
        nonlocal gmacs
        gmacs += spent(model, view, p["batch"], visible, hidden)

    def watch(done: int, average: MaskedAutoencoder) -> None:
        nonlocal paused
        if done % p["every"] and done < p["updates"]:
            return
        stop = process_time()
        cell = {"seed": seed, "schedule": schedule, "updates": done}
        found.timings.append({**cell, "cpu_s": stop - begun - paused})
        found.rows.append({**cell, "err": reconstruction(average, view, bench, seed)["rms"], "gmacs": gmacs})
        paused += process_time() - stop

    loss = masking_loss(z, p, schedule, tokens // BLOCKS, spend)
    model, _ = fit(model, loss, Training.of({**p, "steps": p["updates"]}), seed, watch=watch)
    last = found.rows[-1]
    blind = reconstruction(model, view, bench, seed, blind=True)
    last |= {"err_blind": blind["rms"], "gmacs_pretraining": view.codec.pretraining_macs / 1e9}
    if p["probe"]:
        last["accuracy"] = linear_probe(model, view, p["probe"], inputs.datasets["fashion_mnist"])
    if p["inpaint"]:
        inpainted, row, seconds = inpaint(model, view, bench)
        last |= row
        found.timings[-1] |= seconds
        shown = {"truth": bench.test, "hole": inpainted, "masked": reconstruction(model, view, bench, seed)["pictures"]}
        found.state |= {f"{name}-{seed}": picture_bytes(x) for name, x in shown.items()}


def linear_probe(model: MaskedAutoencoder, view: View, n: int, data: Mapping[str, np.ndarray]) -> float:
    """Test accuracy of logistic regression on the mean of the encoder's outputs, nothing hidden."""

    @torch.no_grad()
    def features(x: np.ndarray) -> Tensor:
        every = torch.arange(model.position.shape[0], device=model.position.device)
        parts = in_unit(x).to(every.device).split(250)
        return torch.cat([model.encode(view.tokens(part), every.expand(len(part), -1)).mean(1) for part in parts])

    x, test = features(data["x_train"][:n]), features(data["x_test"][:n])
    mean, sd = x.mean(dim=0), x.std(dim=0)
    y, truth = (torch.tensor(data[k][:n]).to(x.device) for k in ("y_train", "y_test"))
    weights = logistic_regression((x - mean) / sd, y)
    return float(((test - mean) / sd @ weights[1:] + weights[0]).argmax(dim=1).eq(truth).float().mean())


def logistic_regression(x: Tensor, y: Tensor, penalty: float = 1e-4) -> Tensor:
    """(1 + d, 10): bias and weights that minimise the mean cross-entropy plus penalty/2 |weights|^2."""
    weights = torch.zeros(1 + x.shape[1], 10, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights[1:] + weights[0], y) + penalty / 2 * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


OTHERS = {"ddpm": diffusion, "mean-picture": without_model(mean_picture), "nearest": without_model(nearest_picture)}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem."""
    return OTHERS.get(method, trained)({**problem, **settings}, seeds, inputs, device)
