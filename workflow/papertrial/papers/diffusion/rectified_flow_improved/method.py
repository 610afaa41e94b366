"""2-RF++: train a rectified flow on the noise-picture pairs of a diffusion model so that one Euler step samples well.

Three changes to plain reflow: start from the diffusion model itself (given to the baseline as well), draw t where the
loss is large, near both ends, and measure the residual by a pseudo-Huber premetric instead of its square. Noise is at
t = 1: x_t = (1 - t) x + t z, v = z - x; samples are x = z - v(z, 1). The pairs are fm8-pairs; the flow form, the time
densities and premetrics are in methods.rectified_flow.

Source: Lee et al. 2024 (arXiv 2405.20320).
"""

from collections.abc import Callable
from time import process_time

import numpy as np
import torch
from torch import Tensor

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.consistency import multistep
from papertrial.methods.noise_levels import grid
from papertrial.methods.rectified_flow import (
    PREMETRICS,
    T_MIN,
    TIMES,
    DenoiserFlow,
    heun,
    integrate,
    residual,
    straightness,
    without_gradients,
)
from papertrial.methods.samplers import balanced_labels, initial_noise, solve
from papertrial.methods.samplers import heun as ode_heun
from papertrial.models import fm8_pairs
from papertrial.models.edm import batched
from papertrial.models.picture_denoisers import load, training_pictures
from papertrial.models.sampler_lab import SamplerLab
from papertrial.models.students import distil
from papertrial.models.training import Loss, Training, fit

BASE, PART = "fm8", "256-0"
MIDDLES = (0.5, 0.6, 0.7, 0.8, 0.9)  # where the second of two steps may begin

Pairs = tuple[Tensor, Tensor, Tensor]  # pictures and noise (n, 1, 8, 8), labels (n,)


class Workshop:
    """The base model, its pairs, and the quality of samplers."""

    def __init__(self, p: dict, inputs: Inputs, device: str) -> None:
        self.p, self.device, self.inputs = p, device, inputs
        self.lab, self.base = SamplerLab(inputs, device, BASE, PART), load(inputs.models[BASE][PART], device)
        kept = inputs.models["fm8-pairs"][PART]
        pairs, self.pair_nfe = fm8_pairs.load(kept, device), kept["nfe"].item()
        self.pairs: Pairs = tuple(part[: -p["held_out"]] for part in pairs)
        self.held_out: Pairs = tuple(part[-p["held_out"] :] for part in pairs)

    def flow(self) -> DenoiserFlow:
        """1-RF: the base model as it stands, in flow form."""
        return DenoiserFlow(self.base)

    def reflow(self, flow: DenoiserFlow, pairs: Pairs, updates: int, lr: float, seed: int) -> DenoiserFlow:
        """Train a flow on pairs by the recipe that ``times`` and ``premetric`` name."""
        p, loss = self.p, reflow_loss(pairs, self.p["times"], self.p["premetric"], self.p["batch"])
        warmup = min(p["warmup"], updates // 2)
        flow.requires_grad_(True)
        return fit(flow, loss, Training(updates, lr, decay=0.5, ema=p["ema"], warmup=warmup), seed)[0]

    def quality(self, sample: Callable[..., Tensor], seed: int) -> tuple[Row, Tensor]:
        """fd and accuracy of sample(noise, source of more noise, labels) from the seed's noise; and the samples."""
        noise, label, more = self.lab.start([seed], self.p["n"])
        x = sample(noise, more, label)
        return self.lab.judge(x, label.cpu()), x

    def rows(
        self, seed: int, one: Callable[..., Tensor], two: dict[float, Callable[..., Tensor]], **columns: float
    ) -> tuple[list[Row], Tensor]:
        """FD in one evaluation, and in two, the second one where it suits the tuning noise best.

        Args:
            one: a sampler, as for ``quality``.
            two: samplers by the time of their second evaluation.

        Returns:
            the rows, and the samples in one evaluation.
        """
        fd = {middle: self.quality(sampler, self.p["tuning_seed"])[0]["fd"] for middle, sampler in two.items()}
        middle = min(fd, key=fd.get)
        (first, x), (second, _) = self.quality(one, seed), self.quality(two[middle], seed)
        first, second = {"nfe": 1, **first, "fd_one": first["fd"]}, {"nfe": 2, **second, "middle": middle}
        return [{"seed": seed, **first, **columns}, {"seed": seed, **second}], x

    def flow_rows(self, flow: DenoiserFlow, seed: int, **columns: float) -> tuple[list[Row], Tensor]:
        """The rows of a flow, in Euler steps from t = 1 to 0; with S along 200 of them where it's asked for."""
        velocity = without_gradients(flow)

        def steps(*times: float) -> Callable[..., Tensor]:
            return lambda noise, more, label: integrate(velocity, noise, times, label)

        if seed in self.p["straight_seeds"]:
            noise, label, _ = self.lab.start([seed], self.p["straight_n"])
            times = np.linspace(1, 0, self.p["straight_steps"] + 1)
            columns["straightness"] = straightness(velocity, noise, times, label)[0]
        return self.rows(seed, steps(1.0, 0.0), {m: steps(1.0, m, 0.0) for m in MIDDLES}, **columns)


def reflow_loss(pairs: Pairs, times: str, premetric: str, batch: int) -> Loss:
    """E m((z - x) - v(x_t, t)), t from its density; for ``training.fit``."""
    x, z, label = pairs

    def loss(flow: DenoiserFlow, average: DenoiserFlow, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(x), (batch,), generator=generator).to(x.device)
        t = TIMES[times](torch.rand(2, batch, generator=generator)).to(x.device)
        return PREMETRICS[premetric](residual(flow, x[rows], z[rows], t, label[rows])).mean()

    return loss


def loss_by_time(flow: DenoiserFlow, pairs: Pairs, bins: int, seed: int) -> np.ndarray:
    """(bins,) mean of |(z - x) - v|^2 over t uniform in each bin."""
    generator, (x, z, label) = torch.Generator().manual_seed(seed), pairs
    means = []
    with torch.inference_mode():
        for b in range(bins):
            t = ((b + torch.rand(len(x), generator=generator)) / bins).clamp(T_MIN, 1 - T_MIN).to(x.device)
            parts = zip(*(v.split(250) for v in (x, z, t, label)), strict=True)
            means.append(torch.cat([residual(flow, *part).flatten(1).square().sum(1) for part in parts]).mean().item())
    return np.array(means)


def ends(loss: np.ndarray) -> dict[str, float]:
    """Mean loss over [0, .1] and over [.9, 1], each over that of [.4, .6]."""
    tenth, bins = len(loss) // 10, len(loss)
    middle = loss[bins * 2 // 5 : bins * 3 // 5].mean()
    return {"loss_data_end": loss[:tenth].mean() / middle, "loss_noise_end": loss[-tenth:].mean() / middle}


def shown(x: Tensor, count: int = 20) -> np.ndarray:
    """The first samples, for a figure."""
    return x[:count, 0].cpu().numpy().copy()


Trained = tuple[DenoiserFlow, int]  # a flow, and the network evaluations that it cost, pairs included


def one_reflow(shop: Workshop, seed: int) -> Trained:
    p = shop.p
    flow = shop.reflow(shop.flow(), shop.pairs, p["updates"], p["lr"], seed)
    return flow, len(shop.pairs[0]) * shop.pair_nfe + p["updates"] * p["batch"]


def permuted(shop: Workshop, seed: int) -> Trained:
    """The control of c2: each picture gets the noise of another one of its label."""
    x, z, label = shop.pairs
    rng, rows = np.random.default_rng(seed), np.arange(len(x))
    for k in label.unique().tolist():
        of_label = np.flatnonzero(label.cpu().numpy() == k)
        rows[of_label] = rng.permutation(of_label)
    flow = shop.reflow(shop.flow(), (x, z[rows], label), shop.p["updates"], shop.p["lr"], seed)
    return flow, len(x) * shop.pair_nfe + shop.p["updates"] * shop.p["batch"]


def two_reflows(shop: Workshop, seed: int) -> Trained:
    """3-RF: half of the updates on the base's pairs, the other half on pairs of that flow."""
    p, half = shop.p, shop.p["updates"] // 2
    flow = shop.reflow(shop.flow(), shop.pairs, half, p["lr"], seed)
    noise = initial_noise([p["redrawn_seed"] + seed], p["redrawn"], shop.lab.shape).to(shop.device)
    label = balanced_labels([seed], p["redrawn"]).to(shop.device)
    x = integrate(without_gradients(flow), noise, np.linspace(1, 0, p["redrawn_steps"] + 1), label, heun)
    flow = shop.reflow(flow, (x, noise, label), half, p["lr"], seed)
    return flow, len(shop.pairs[0]) * shop.pair_nfe + len(x) * 2 * p["redrawn_steps"] + 2 * half * p["batch"]


def rate_after_half(shop: Workshop) -> tuple[float, list[Row]]:
    """The rate with the smallest one-step FD after the first half, on the tuning seed; and all that was tried."""
    p, tried = shop.p, []
    for lr in p["rates"]:
        flow = shop.reflow(shop.flow(), shop.pairs, p["updates"] // 2, lr, p["tuning_seed"])
        one = lambda noise, more, label: integrate(without_gradients(flow.eval()), noise, (1.0, 0.0), label)  # noqa: E731
        tried.append({"seed": p["tuning_seed"], "lr": lr, "fd": shop.quality(one, p["tuning_seed"])[0]["fd"]})
    return min(tried, key=lambda row: row["fd"])["lr"], tried


ROUNDS = {"none": lambda shop, seed: (shop.flow(), 0), "one": one_reflow, "permuted": permuted, "two": two_reflows}


def flows(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """FD of a flow in one and two steps, its straightness, and where in time its loss is."""
    shop, found = Workshop(p, inputs, device), Results([])
    if "rates" in p:
        p["lr"], found.traces = rate_after_half(shop)
    for seed in seeds:
        begun = process_time()
        flow, evaluations = ROUNDS[p["rounds"]](shop, seed)
        found.timings.append({"seed": seed, "cpu_s": process_time() - begun})
        columns = {"evaluations": evaluations}
        if p.get("loss_by_time"):
            loss = loss_by_time(flow.eval(), shop.held_out, p["bins"], seed)
            found.traces += [{"seed": seed, "t": (b + 0.5) / p["bins"], "loss": v} for b, v in enumerate(loss)]
            columns |= ends(loss)
        rows, x = shop.flow_rows(flow.eval(), seed, **columns)
        found.rows += rows
        found.state[f"samples_{seed}"] = shown(x)
    return found


def consistency(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Consistency distillation of the same base."""
    shop, found, levels = Workshop(p, inputs, device), Results([]), grid("karras", p["intervals"])
    draw, _ = training_pictures(inputs.datasets["fashion_mnist"], shop.lab.shape[-1], p["images"], device)

    def sampler(student: Callable, *at: float) -> Callable[..., Tensor]:
        return lambda noise, more, label: multistep(student, at, noise, more, label)

    for seed in seeds:
        begun = process_time()
        student, _ = distil(shop.base, draw, levels, p["cd_updates"], p["lr"], seed, batch=p["cd_batch"])
        found.timings.append({"seed": seed, "cpu_s": process_time() - begun})
        inner, two = levels[1:-1], {}
        for m in MIDDLES:  # the trained level nearest to s = t/(1 - t)
            two[m] = sampler(batched(student), levels[0], inner[np.abs(np.log(inner * (1 - m) / m)).argmin()])
        one, evaluations = sampler(batched(student), levels[0]), 3 * p["cd_updates"] * p["cd_batch"]
        rows, x = shop.rows(seed, one, two, evaluations=evaluations)
        found.rows += rows
        found.state[f"samples_{seed}"] = shown(x)
    return found


def teacher(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """What made the pairs: the base's ODE by Heun."""
    shop, found, levels = Workshop(p, inputs, device), Results([]), grid("karras", p["teacher_steps"])
    for seed in seeds:
        walk = lambda noise, more, label: solve(shop.lab.denoise, levels[0] * noise, levels, ode_heun, label)  # noqa: E731
        quality, x = shop.quality(walk, seed)
        found.rows.append({"seed": seed, "nfe": 2 * p["teacher_steps"] + 1, **quality})
        found.state[f"samples_{seed}"] = shown(x)
    return found


def real(p: dict, method: str, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """As many real training pictures."""
    judge = SamplerLab(inputs, device, BASE, PART).judge
    return Results([{"seed": seed, "nfe": 0, "fd": judge.floor(seed, p["n"])} for seed in seeds])


MEASURES = {"flow": flows, "consistency": consistency, "teacher": teacher, "real": real}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One way to sample in one and in two evaluations; ``kind`` names it."""
    p = {**problem, **settings}
    return MEASURES[p["kind"]](p, method, seeds, inputs, device)
