"""The two stages: learn gates with the denoiser frozen, then take out what is closed and fine-tune what is left.

Stage 1:  L = denoising + w_d distillation + w_R |log(R / budget)| + w_C contrastive
Stage 2:  L = denoising + w_d distillation (of the output), each sub-network on its own captions

R is the mean share of multiply-adds over the batch's codes; distillation is towards the full network, of the output
and, in stage 1, of the blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.models.arrays import seeded
from papertrial.models.edm import EDM
from papertrial.models.prompt8 import Mask, Pictures, Prompt, levels_and_noise, pruned, share
from papertrial.models.training import Loss, Training, fit
from papertrial.papers.diffusion.prompt_tailored_pruning.router import (
    Assign,
    Router,
    contrastive,
    divergence,
    open_gates,
    straight_through,
)


class Plan(NamedTuple):
    """Hard masks of M sub-networks, and which of them every caption of the book gets (240,)."""

    masks: Mask
    route: Tensor

    def compute(self, model: EDM) -> Tensor:
        """(240,) share of the full network's multiply-adds, caption by caption."""
        return share(model.net, self.masks)[self.route]


@contextmanager
def recorded(model: EDM) -> Iterator[list[Tensor]]:
    """The outputs of all blocks while this is open."""
    found: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda m, i, out: found.append(out)) for block in model.net.layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Batch:
    """Noisy pictures x + s eps of captions."""

    x: Tensor
    noisy: Tensor
    s: Tensor
    encoded: Tensor
    caption: Tensor

    def error(self, a: Tensor, b: Tensor, sigma_data: float) -> Tensor:
        """Mean squared difference of denoised pictures with EDM's weight 1/c_out^2."""
        weight = (self.s.square() + sigma_data**2) / (self.s * sigma_data).square()
        return (weight * (a - b).square().flatten(1).mean(1)).mean()


def batch(of: Pictures, p: dict, generator: torch.Generator, among: Tensor | None = None) -> Batch:
    caption, x, encoded = of.draw(p["batch"], generator, among)
    s, eps = levels_and_noise(x, p["log_mean"], p["log_sd"], generator)
    return Batch(x, x + s[:, None, None, None] * eps, s, encoded, caption)


def gated_loss(model: EDM, of: Pictures, p: dict, assign: Assign | None) -> Loss:
    """Stage 1.

    Args:
        assign: similarities (n, K) to codes (n,) and their relaxation (n, K); None gives every caption its own gates.
    """

    def loss(router: Router, average: Router, step: int, generator: torch.Generator) -> Tensor:
        b = batch(of, p, generator)
        z = router.embed(b.encoded)
        code, agreement = z, 0.0
        if assign is not None:
            sim = router.similarity(z)
            chosen, soft = assign(sim, b.caption)
            agreement = divergence(soft, sim)
            code = straight_through(F.one_hot(chosen, sim.shape[1]).to(soft), soft) @ router.codes  # (n, 32)
        logits = router.logits(code)
        gates = open_gates(logits, generator)
        with torch.no_grad(), recorded(model) as wanted:
            target = model(b.noisy, b.s, b.encoded)
        with recorded(model) as found:
            D = model(b.noisy, b.s, Prompt(b.encoded, gates))
        features = sum((f - t).square().mean() / t.square().mean() for f, t in zip(found, wanted, strict=True))
        distilled = b.error(D, target, model.sigma_data) + features / len(found)
        R = share(model.net, Mask(logits.units.sigmoid(), logits.blocks.sigmoid())).mean()
        return (
            b.error(D, b.x, model.sigma_data)
            + p["distil"] * distilled
            + p["resource"] * (R / p["budget"]).log().abs()
            + p["contrast"] * contrastive(z, b.encoded)
            + p["agree"] * agreement
        )

    return loss


def learn(model: EDM, of: Pictures, p: dict, seed: int, codes: int, assign: Assign | None) -> Router:
    """A router, its codes and their gates after stage 1."""
    net = model.net
    router = seeded(lambda: Router(codes, len(net.layers), p["groups"]), seed).to(of.encoded.device)
    how = Training(p["router_updates"], p["router_lr"], ema=p["ema"])
    return fit(router, gated_loss(model, of, p, assign), how, seed)[0]


def harden(model: EDM, logits: Mask, weight: Tensor, budget: float) -> Mask:
    """Zeros and ones: blocks open at logits above 0, groups above the lowest threshold that keeps to the budget.

    Args:
        logits: (M, blocks, groups) and (M, blocks).
        weight: (M,) how often each of the M masks is used; sums to 1.
        budget: of the mean share of multiply-adds.
    """
    blocks, units = (logits.blocks > 0).to(logits.units), logits.units

    def above(threshold: float) -> Mask:
        kept = (units > threshold).to(units)
        return Mask(kept * blocks[..., None], blocks * (kept.sum(-1) > 0))

    thresholds = [-torch.inf, *units.unique().tolist()]
    low, high = 0, len(thresholds) - 1
    while low < high:  # compute falls with the threshold
        middle = (low + high) // 2
        within = float((weight * share(model.net, above(thresholds[middle]))).sum()) <= budget
        low, high = (low, middle) if within else (middle + 1, high)
    return above(thresholds[low])


def usage(route: Tensor, of: Pictures, masks: int) -> Tensor:
    """(M,) how often training captions take each mask."""
    return torch.bincount(route[of.captions.to(route.device)], minlength=masks) / len(of.captions)


@torch.no_grad()
def planned(model: EDM, router: Router, of: Pictures, p: dict, route: Tensor | None = None) -> Plan:
    """Hard codes, and who gets them: the most similar, or as ``route`` says."""
    route = router.choose(of.encoded) if route is None else route
    masks = harden(model, router.logits(router.codes), usage(route, of, len(router.codes)), p["budget"])
    return Plan(masks, route)


@torch.no_grad()
def planned_one_by_one(model: EDM, router: Router, of: Pictures, p: dict) -> Plan:
    """Gates of its own for every caption."""
    route = torch.arange(len(of.encoded), device=of.encoded.device)
    return Plan(
        harden(model, router.logits(router.embed(of.encoded)), usage(route, of, len(route)), p["budget"]), route
    )


def by_scores(model: EDM, scores: Tensor, of: Pictures, p: dict) -> Plan:
    """One sub-network of the groups with the highest scores (blocks, groups)."""
    masks = Mask(scores[None], torch.ones(1, len(scores)).to(scores))
    one = torch.ones(1).to(scores)
    route = torch.zeros(len(of.encoded), dtype=torch.long, device=scores.device)
    return Plan(harden(model, masks, one, p["budget"]), route)


def magnitudes(model: EDM, groups: int) -> Tensor:
    """(blocks, groups) norm of the weights into and out of each group of hidden units."""

    def score(block: nn.Module) -> Tensor:
        square = block.up.weight.square().sum(1) + block.down.weight.square().sum(0)  # (hidden,)
        return square.unflatten(0, (groups, -1)).sum(1).sqrt()

    return torch.stack([score(block) for block in model.net.layers])


def taylor(model: EDM, of: Pictures, p: dict, seed: int) -> Tensor:
    """(blocks, groups) mean square, over samples, of the loss's derivative by each group's gate (Molchanov 2019)."""
    generator, layers, total = torch.Generator().manual_seed(seed), len(model.net.layers), 0.0
    for _ in range(p["taylor_batches"]):
        b = batch(of, p, generator)
        device = b.x.device
        units = torch.ones(len(b.x), layers, p["groups"], device=device, requires_grad=True)
        D = model(b.noisy, b.s, Prompt(b.encoded, Mask(units, torch.ones(len(b.x), layers, device=device))))
        (gradient,) = torch.autograd.grad(len(b.x) * b.error(D, b.x, model.sigma_data), units)
        total = total + gradient.square().mean(0)
    return total / p["taylor_batches"]


def tuning_loss(model: EDM, of: Pictures, p: dict, among: Tensor, plan: Plan | None = None) -> Loss:
    """Stage 2, on the given captions; with a plan the network keeps its size and is gated caption by caption."""

    def loss(small: EDM, average: EDM, step: int, generator: torch.Generator) -> Tensor:
        b = batch(of, p, generator, among)
        with torch.no_grad():
            target = model(b.noisy, b.s, b.encoded)
        prompt = b.encoded if plan is None else gated(plan, b.caption, b.encoded)
        D = small(b.noisy, b.s, prompt)
        return b.error(D, b.x, model.sigma_data) + p["distil"] * b.error(D, target, model.sigma_data)

    return loss


def gated(plan: Plan, caption: Tensor, encoded: Tensor) -> Prompt:
    at = plan.route[caption.to(plan.route.device)]
    return Prompt(encoded, Mask(plan.masks.units[at], plan.masks.blocks[at]))


def specialise(model: EDM, plan: Plan, of: Pictures, p: dict, seed: int) -> tuple[list[EDM], int]:
    """Sub-networks after stage 2, and the images that they were shown.

    An update shows p["batch"] images in all: each sub-network gets its captions' share of them.
    """
    shares = usage(plan.route, of, len(plan.masks.blocks)).tolist()
    tuned, shown = [], 0
    for k, part in enumerate(shares):
        small = pruned(model, Mask(plan.masks.units[k], plan.masks.blocks[k])).requires_grad_(True)
        images = int(part * p["batch"] + 1e-6)
        if images:
            own = of.captions[(plan.route[of.captions.to(plan.route.device)] == k).cpu()]
            loss = tuning_loss(model, of, {**p, "batch": images}, own)
            small, _ = fit(small, loss, Training(p["updates"], p["lr"], ema=p["ema"]), seed)
        tuned.append(small)
        shown += images * p["updates"]
    return tuned, shown
