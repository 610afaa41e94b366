"""APTP: prune a text-to-image diffusion model into a few sub-networks, and let the prompt choose among them.

A router maps captions to K architecture codes, whose gates are learned with the denoiser frozen; optimal transport
spreads a batch over the codes. Then each code's closed gates are taken out and the sub-network is fine-tuned on its own
captions. What is compared has the same average multiply-adds, updates and losses: one mask learned alike (K = 1), and
one network pruned by magnitude or by Taylor scores.

Source: Ganjdanesh et al. 2024, "Not All Prompts Are Made Equal: Prompt-based Pruning of Text-to-Image Diffusion
Models".
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import dpmpp2m, initial_noise, solve
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import EDM, batched
from papertrial.models.prompt8 import Pictures, load, load_judge, size_of
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.prompt_tailored_pruning.pruning import (
    Plan,
    by_scores,
    gated,
    learn,
    magnitudes,
    planned,
    planned_one_by_one,
    specialise,
    taylor,
    tuning_loss,
    usage,
)
from papertrial.papers.diffusion.prompt_tailored_pruning.router import (
    Assign,
    Router,
    by_similarity,
    by_transport,
    mutual_information,
    perplexity,
    transport,
)
from papertrial.testbeds.prompts import ITEMS, STYLES, captions

ALL = "all"  # in the columns style and item: a row on the whole mix
GROUP = np.array([0, 1, 0, 0, 0, 2, 0, 2, 3, 2])  # of an item: tops, trousers, shoes, bag
SHOWN = 2  # samples kept of every cell

Sampler = Callable[[Tensor, Tensor], Tensor]  # initial noise and captions (n,) to pictures


@dataclass(frozen=True)
class Lab:
    """The frozen denoiser, its judge, and captioned pictures to train and to test with."""

    model: EDM
    judge: SampleJudge
    training: Pictures
    test: Pictures
    p: dict
    seed: int


Measure = Callable[[Lab, Results], None]


def whole(lab: Lab, **found: float) -> Row:
    return {"seed": lab.seed, "style": ALL, "item": ALL, **found}


def by_cell(lab: Lab, values: np.ndarray, name: str) -> list[Row]:
    """A row for each of the 30 cells."""
    cells = [(style, item) for style in STYLES for item in ITEMS]
    return [{"seed": lab.seed, "style": s, "item": i, name: float(v)} for (s, i), v in zip(cells, values, strict=True)]


def held_out_by_cell(lab: Lab, values: Tensor) -> np.ndarray:
    """(30,) mean over a cell's held-out captions of (240,) values."""
    return values.cpu()[lab.test.captions].reshape(len(STYLES) * len(ITEMS), -1).mean(1).numpy()


def judged(lab: Lab, sample: Sampler, plan: Plan | None, images: int, found: Results) -> Row:
    """FD, agreement and realised compute on samples of held-out captions, all cells equally often."""
    p, size = lab.p, lab.test.wardrobe.x.shape[-1]
    caption = lab.test.balanced(p["n"])
    x = sample(initial_noise([lab.seed], p["n"], (1, size, size)).to(lab.test.encoded.device), caption)
    scores = lab.judge(x, lab.test.item[caption])
    compute = 1.0 if plan is None else float(plan.compute(lab.model).cpu()[caption].mean())
    shown = x[: SHOWN * len(STYLES) * len(ITEMS), 0]  # (60, size, size), through the cells in turn
    found.state[f"samples-{lab.seed}"] = (127.5 * (shown.clamp(-1, 1) + 1)).round().to(torch.uint8).cpu().numpy()
    return {"fd": scores["fd"], "agreement": scores["accuracy"], "compute": compute, "images": images}


def sampler(lab: Lab, denoise: Callable, noise: Tensor, condition: Tensor) -> Tensor:
    levels = grid("karras", lab.p["steps"])
    return solve(batched(denoise), levels[0] * noise, levels, dpmpp2m, condition)


def by_experts(lab: Lab, experts: list[EDM], plan: Plan) -> Sampler:
    """Each caption's sub-network draws its pictures."""

    def sample(noise: Tensor, caption: Tensor) -> Tensor:
        x, code = torch.empty_like(noise), plan.route[caption.to(plan.route.device)]
        for k, expert in enumerate(experts):
            at = (code == k).nonzero()[:, 0]
            if len(at):
                x[at] = sampler(lab, expert.eval(), noise[at], lab.test.encoded[caption.to(at.device)[at]])
        return x

    return sample


def specialised(lab: Lab, plan: Plan, found: Results) -> Row:
    """Stage 2 and what comes of it."""
    experts, images = specialise(lab.model, plan, lab.training, lab.p, lab.seed)
    return judged(lab, by_experts(lab, experts, plan), plan, images, found)


def hashed(shares: Tensor) -> Tensor:
    """(240,) codes by a fixed hash of the caption's text, with the given shares (K,) of trained and held-out ones."""
    of, code = captions(), torch.empty(len(captions()), dtype=torch.long)
    ends = shares.cpu().double().cumsum(0)
    for held_out in (False, True):
        group = sorted(
            (i for i, c in enumerate(of) if c.held_out == held_out), key=lambda i: crc32(of[i].text.encode())
        )
        place = (torch.arange(len(group), dtype=torch.float64) + 0.5) / len(group)
        code[group] = torch.searchsorted(ends, place).clamp(max=len(shares) - 1)
    return code.to(shares.device)


def routed_at_random(codes: int, device: torch.device) -> tuple[Assign, Tensor]:
    """Assignment by the hash, in training too."""
    route = hashed(torch.ones(codes, device=device) / codes)

    def assign(sim: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        return route[caption.to(route.device)], torch.ones_like(sim) / codes

    return assign, route


def aptp(lab: Lab, found: Results) -> None:
    p = lab.p
    router = learn(lab.model, lab.training, p, lab.seed, p["codes"], by_transport)
    plan = planned(lab.model, router, lab.training, p)
    row = specialised(lab, plan, found) | clusters(lab, router)
    found.rows += [whole(lab, **row), *by_cell(lab, held_out_by_cell(lab, plan.compute(lab.model)), "compute")]
    found.state |= {f"units-{lab.seed}": plan.masks.units.cpu().numpy().astype(np.uint8)}
    found.state |= {f"route-{lab.seed}": plan.route.cpu().numpy().astype(np.uint8)}


def clusters(lab: Lab, router: Router) -> Row:
    """c2 and c3 on the held-out captions, which are equally many for every cell."""
    held_out = lab.test.captions
    encoded = lab.test.encoded[held_out.to(lab.test.encoded.device)]
    code, K = router.choose(encoded).cpu().numpy(), len(router.codes)
    kind = lab.test.style[held_out].numpy() * (GROUP.max() + 1) + GROUP[lab.test.item[held_out].numpy()]
    untrained = []
    for i in range(lab.p["untrained"]):
        other = seeded(lambda: Router(K, 1, 1), 1_000_000 + 1000 * lab.seed + i).to(encoded.device)
        with torch.no_grad():
            Q, _ = transport(other.similarity(other.embed(encoded)).cpu().numpy())
        untrained.append(mutual_information(Q.argmax(1), kind))
    return {
        "perplexity": perplexity(code, K),
        "nmi": mutual_information(code, kind),
        "nmi_untrained": float(np.quantile(untrained, 0.95)),
    }


def routing_only(assign: Assign) -> Measure:
    """Stage 1, with transport or with the most similar code in training too."""

    def measure(lab: Lab, found: Results) -> None:
        router = learn(lab.model, lab.training, lab.p, lab.seed, lab.p["codes"], assign)
        found.rows.append(whole(lab, **clusters(lab, router)))

    return measure


def sent_by_hash(lab: Lab, found: Results) -> None:
    """The control: APTP's codes, but captions are sent to them by a hash, with the same shares."""
    p = lab.p
    router = learn(lab.model, lab.training, p, lab.seed, p["codes"], by_transport)
    shares = usage(router.choose(lab.training.encoded), lab.training, p["codes"])
    found.rows.append(
        whole(lab, **specialised(lab, planned(lab.model, router, lab.training, p, hashed(shares)), found))
    )


def random_router(lab: Lab, found: Results) -> None:
    """K codes that are learned and used under the hash's routing."""
    assign, route = routed_at_random(lab.p["codes"], lab.training.encoded.device)
    router = learn(lab.model, lab.training, lab.p, lab.seed, lab.p["codes"], assign)
    found.rows.append(whole(lab, **specialised(lab, planned(lab.model, router, lab.training, lab.p, route), found)))


def learned_mask(lab: Lab, found: Results) -> None:
    """One mask, K = 1, and how hard it makes each cell before fine-tuning."""
    router = learn(lab.model, lab.training, lab.p, lab.seed, 1, by_transport)
    plan = planned(lab.model, router, lab.training, lab.p)
    found.rows += [whole(lab, **specialised(lab, plan, found)), *by_cell(lab, difficulty(lab, plan), "difficulty")]


@torch.no_grad()
def difficulty(lab: Lab, plan: Plan) -> np.ndarray:
    """(30,) relative increase of a cell's denoising loss from the full network to the plan's; same noise for all."""
    p, cells = lab.p, len(STYLES) * len(ITEMS)
    caption = lab.test.balanced(p["probes"] * cells)
    generator = torch.Generator().manual_seed(lab.seed)
    x, encoded = lab.test.show(caption, generator)
    levels = torch.special.ndtri((torch.arange(p["probes"]) + 0.5) / p["probes"])  # the law's quantiles, for every cell
    s = (p["log_mean"] + p["log_sd"] * levels).exp().repeat_interleave(cells).to(x.device)
    eps = torch.randn(p["probes"], *x.shape[1:], generator=generator).repeat_interleave(cells, dim=0).to(x.device)
    full = lab.model.loss(x, s, eps, encoded)
    masked = lab.model.loss(x, s, eps, gated(plan, caption, encoded))
    of_cells = [loss.reshape(-1, cells).mean(0).cpu().numpy() for loss in (full, masked)]
    return of_cells[1] / of_cells[0] - 1


def magnitude(lab: Lab, found: Results) -> None:
    plan = by_scores(lab.model, magnitudes(lab.model, lab.p["groups"]), lab.training, lab.p)
    found.rows.append(whole(lab, **specialised(lab, plan, found)))


def taylor_scores(lab: Lab, found: Results) -> None:
    plan = by_scores(lab.model, taylor(lab.model, lab.training, lab.p, lab.seed), lab.training, lab.p)
    found.rows.append(whole(lab, **specialised(lab, plan, found)))


def dynamic(lab: Lab, found: Results) -> None:
    """Gates of its own for every caption, in one network that is fine-tuned under them."""
    p = lab.p
    router = learn(lab.model, lab.training, p, lab.seed, 1, None)
    plan = planned_one_by_one(lab.model, router, lab.training, p)
    loss = tuning_loss(lab.model, lab.training, p, lab.training.captions, plan)
    net, _ = fit(
        deepcopy(lab.model).requires_grad_(True), loss, Training(p["updates"], p["lr"], ema=p["ema"]), lab.seed
    )

    def sample(noise: Tensor, caption: Tensor) -> Tensor:
        def denoise(x: Tensor, s: float, at: Tensor) -> Tensor:
            return net(x, s, gated(plan, at, lab.test.encoded[at]))

        return sampler(lab, denoise, noise, caption.to(noise.device))

    found.rows.append(whole(lab, **judged(lab, sample, plan, p["updates"] * p["batch"], found)))


def unpruned(lab: Lab, found: Results) -> None:
    """The full network, and the FD of as many real pictures."""

    def sample(noise: Tensor, caption: Tensor) -> Tensor:
        return sampler(lab, lab.model, noise, lab.test.encoded[caption.to(noise.device)])

    row = judged(lab, sample, None, 0, found)
    found.rows.append(whole(lab, **row, fd_real=lab.judge.floor(lab.seed, lab.p["n"])))


METHODS: dict[str, Measure] = {
    "aptp": aptp,
    "learned": learned_mask,
    "magnitude": magnitude,
    "taylor": taylor_scores,
    "no-transport": routing_only(by_similarity),
    "transport-alone": routing_only(by_transport),
    "hashed": sent_by_hash,
    "random-router": random_router,
    "dynamic": dynamic,
    "full": unpruned,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on prompt8; a seed is that of router, batches and sampling noise, common to all methods."""
    state, data, p = inputs.models["prompt8"]["0"], inputs.datasets["fashion_mnist"], {**problem, **settings}
    model, judge = load(state, device), load_judge(state, device)
    training, test = (Pictures(data, split, size_of(state), p["images"], device) for split in ("train", "test"))
    found = Results([])
    for seed in seeds:
        METHODS[method](Lab(model, judge, training, test, p, seed), found)
    return found
