"""In-paint a square hole: with a masked autoencoder, with a pixel diffusion model, and without a model.

The hole's pixels are replaced by the mean picture's before anything else sees them.
"""

from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import VE, Flow, Rule, ancestral, noise_stream, solve
from papertrial.models import lmd28_ddpm
from papertrial.papers.diffusion.latent_masking_diffusion.autoencoder import MaskedAutoencoder
from papertrial.papers.diffusion.latent_masking_diffusion.bench import Bench, View, picture_bytes, reconstruct, rms
from papertrial.papers.diffusion.latent_masking_diffusion.masking import to_tokens

HOLE = slice(8, 20)  # rows and columns
BATCH = 100


def hole_of(x: Tensor) -> Tensor:
    """(1, 1, 32, 32) bool."""
    hole = torch.zeros(1, 1, *x.shape[-2:], dtype=torch.bool, device=x.device)
    hole[..., HOLE, HOLE] = True
    return hole


def hidden_by_hole(view: View, x: Tensor) -> Tensor:
    """(T,) bool: the tokens that share a pixel with the hole."""
    hole = hole_of(x).float()
    places_a_side = view.codec.encode(x[:1]).shape[-1]
    return to_tokens(F.adaptive_max_pool2d(hole, places_a_side), view.side)[0].bool().any(dim=-1)


def inpaint(model: MaskedAutoencoder, view: View, bench: Bench) -> tuple[Tensor, Row, Row]:
    """Fill a hole whose pixels nobody has seen: the pictures, error and cost a picture, and measured seconds."""
    x, hole = bench.test, hole_of(bench.test)
    blank = torch.where(hole, bench.train.mean(dim=0), x)
    lost = hidden_by_hole(view, x)
    visible, hidden = (~lost).nonzero()[:, 0], lost.nonzero()[:, 0]

    def fill(passes: int) -> Tensor:
        at_once = [(b, visible.expand(len(b), -1), hidden.expand(len(b), -1)) for b in blank.split(BATCH)]
        return torch.where(hole, torch.cat([reconstruct(model, view, *b, passes) for b in at_once]), x)

    begun = process_time()
    once = fill(1)
    seconds = {"inpaint_ms": 1000 * (process_time() - begun) / len(x)}
    codec = view.codec
    macs = codec.encode_macs + model.macs(len(visible), len(hidden)) + codec.decode_macs
    row = {"hole_rms": rms(once - x, hole), "hole_rms_4": rms(fill(4) - x, hole), "hole_gmacs": macs / 1e9}
    return once, row, seconds


def put_back(rule: Rule, known: Tensor, x0: Tensor, draw: Callable[[], Tensor]) -> Rule:
    """After every step, the known pixels as they would be at that level."""

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        return torch.where(known, x0 + VE.sigma(lam_t) * draw(), rule(flow, x, lam, lam_t, memory))

    return step


def diffusion(p: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """A pixel diffusion model in-paints in p["evaluations"] steps of DDPM's sampler."""
    denoise, macs = lmd28_ddpm.denoiser(inputs.models["lmd28-ddpm"]["0"], device)
    bench, found = Bench.of(p, inputs, device), Results([])
    x, hole, levels = bench.test, hole_of(bench.test), grid("time", p["evaluations"] - 1)
    x0 = 2 * x - 1  # what the diffusion model works on
    for seed in seeds:
        stream = noise_stream([seed], len(x), x.shape[1:])
        draw = lambda stream=stream: stream().to(device)  # noqa: E731
        begun = process_time()
        start = torch.where(hole, 0, x0) + levels[0] * draw()
        filled = solve(denoise, start, levels, put_back(ancestral(draw), ~hole, x0, draw))
        ms = 1000 * (process_time() - begun) / len(x)
        inpainted = torch.where(hole, (filled + 1) / 2, x)
        row = {"seed": seed, "schedule": "diffusion", "updates": 0}
        found.timings.append({**row, "inpaint_ms": ms})
        found.rows.append({**row, "hole_rms": rms(inpainted - x, hole), "hole_gmacs": p["evaluations"] * macs / 1e9})
        found.state[f"hole-{seed}"] = picture_bytes(inpainted)
    return found


def mean_picture(bench: Bench) -> Tensor:
    return bench.train.mean(dim=0).expand_as(bench.test)


def nearest_picture(bench: Bench) -> Tensor:
    """The training picture that is closest outside the hole."""
    known = ~hole_of(bench.test)
    a, b = (x.masked_fill(~known, 0).flatten(1) for x in (bench.test, bench.train))
    return bench.train[(b.square().sum(dim=1) - 2 * a @ b.T).argmin(dim=1)]


def without_model(fill: Callable[[Bench], Tensor]) -> Callable[..., Results]:
    """In-painting without a model; the same for every seed."""

    def measured(p: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
        bench = Bench.of(p, inputs, device)
        error = rms(fill(bench) - bench.test, hole_of(bench.test))
        return Results([{"seed": s, "schedule": "none", "updates": 0, "hole_rms": error} for s in seeds])

    return measured
