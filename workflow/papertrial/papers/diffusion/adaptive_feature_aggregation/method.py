"""AFA: put several diffusion models together block by block, with weights that depend on the state.

Two specialists of fm16 are given, frozen. The aggregators (``aggregator``) are trained by the denoising loss on
general data; weight and output averages (``merging``) are what they must beat, at equal experts, pictures and noise.

A seed is that of the experts, the aggregators and their data; noise seeds are a column of the rows. The aggregators'
rate is chosen once, for AFA, by the held-out loss of a tuning seed; ablations and the control train alike.

Source: Wang et al. 2024 (arXiv 2405.17082).
"""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from papertrial.engine.results import Inputs, Results, Row
from papertrial.methods.noise_levels import grid
from papertrial.methods.samplers import Denoiser, balanced_labels, heun, initial_noise, solve
from papertrial.models.arrays import seeded
from papertrial.models.classifiers import SampleJudge
from papertrial.models.edm import EDM, batched, denoising
from papertrial.models.fm16_experts import drawn_from, load
from papertrial.models.picture_denoisers import load as load_base
from papertrial.models.picture_denoisers import shape, training_pictures
from papertrial.models.training import Training, fit
from papertrial.papers.diffusion.adaptive_feature_aggregation.aggregator import attention, ensemble, parameters_share
from papertrial.papers.diffusion.adaptive_feature_aggregation.merging import (
    HeldOut,
    OutputAverage,
    Switch,
    best_output_average,
    best_weight_average,
)

Watch = Callable[[int, nn.Module], None]
NEVER = 2  # of all updates: what stands for a loss that is never reached


class Lab:
    """The experts of every seed, general data, held-out pictures, and the judge of samples."""

    def __init__(self, p: dict, inputs: Inputs, device: str) -> None:
        self.p, self.device, self.inputs = p, device, inputs
        self.base, data = inputs.models["fm16"]["0"], inputs.datasets["fashion_mnist"]
        self.shape = shape(self.base)
        _, self.x = training_pictures(data, self.shape[-1], p["images"], device)
        self.y = torch.tensor(data["y_train"][: p["images"]]).to(device)
        self.seen = len(self.x) - p["held_out"]
        self.law = (p["log_mean"], p["log_sd"])
        self.sigma_data = load_base(self.base).sigma_data
        self.general = drawn_from(self.x, self.y, torch.arange(self.seen))
        self.held_out = HeldOut(self.x[self.seen :], self.y[self.seen :], *self.law, self.sigma_data, 0)
        self.judge = SampleJudge(inputs.models["clf16"]["0"], device)
        tuning = inputs.models["fm16-experts"][str(p["tuning_seed"])]
        what = [json.dumps(p, sort_keys=True).encode(), device.encode(), self.x.cpu().numpy(), self.y.cpu().numpy()]
        self.key = checksum([*what, *(tuning[k] for k in sorted(tuning))])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lab) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def experts(self, seed: int) -> list[EDM]:
        return load(self.inputs.models["fm16-experts"][str(seed)], self.device)

    def learnt(self, kind: str, seed: int, updates: int, lr: float, watch: Watch | None = None) -> tuple[EDM, EDM]:
        """The ensemble with averaged aggregators, and the one whose aggregators were updated."""
        size = (self.p["hidden"], self.p["width"])
        model = seeded(lambda: ensemble(self.experts(seed), kind, *size).to(self.device), seed)
        loss = denoising(self.general, self.p["batch"], *self.law)
        return fit(model, loss, Training(updates, lr, decay=0.0), seed, watch=watch)[0], model

    def loss(self, model: nn.Module) -> float:
        """The denoising loss on the held-out pictures."""
        return self.held_out.loss(self.held_out.denoised(model))

    def quality(self, denoise: Denoiser, noise: int, n: int) -> tuple[Row, np.ndarray]:
        """{"n", "fd", "accuracy"} of n samples by Heun's rule, and the first of them."""
        label = balanced_labels([noise], n).to(self.device)
        levels = grid("karras", self.p["steps"])
        x = levels[0] * initial_noise([noise], n, self.shape).to(self.device)
        x = solve(batched(denoise), x, levels, heun, label)
        return {"n": n, **self.judge(x, label.cpu())}, x[:20, 0].cpu().numpy().copy()

    def macs(self, model: nn.Module) -> float:
        """Millions of multiply-adds of one evaluation of one picture, in convolutions and linear layers."""
        total = 0

        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            nonlocal total
            total += output.numel() * module.weight[0].numel()

        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        with torch.inference_mode():
            model(self.x[:1], 1.0, self.y[:1])
        for hook in hooks:
            hook.remove()
        return total / 1e6


def checksum(parts: list) -> str:
    """Of arrays and bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return digest.hexdigest()


def weights(experts: nn.Module) -> str:
    """The checksum of all weights."""
    return checksum([v.detach().cpu().contiguous().numpy() for _, v in sorted(experts.state_dict().items())])


@cache  # the methods of a unit share the answer
def tuned(lab: Lab) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The rate with the smallest held-out loss of AFA on the tuning seed; and all (rate, loss) that were tried."""
    p = lab.p
    tried = [(lr, lab.loss(lab.learnt("adaptive", p["tuning_seed"], p["updates"], lr)[0])) for lr in p["rates"]]
    return min(tried, key=lambda t: t[1])[0], tuple(tried)


def shares(A: np.ndarray) -> Row:
    """Main effects' shares of the variance of A (levels, classes, images, positions).

    ``image`` is that of the pictures within their classes, of which a 1/images-th shows up as an effect of the class.
    """
    total = A.var() or 1.0
    by_class, by_image = A.mean((0, 2, 3)).var(), A.mean((0, 3)).var()
    found = {"time": A.mean((1, 2, 3)).var(), "class": by_class, "position": A.mean((0, 1, 2)).var()}
    return {k: float(v / total) for k, v in {**found, "image": by_image - by_class}.items()}


def state_dependence(lab: Lab, model: EDM) -> tuple[Row, dict[str, np.ndarray]]:
    """Claim 2(d): ``shares``, mean over blocks; and A_1 by block, level and class, and of some pictures."""
    levels, classes, m = grid("log", lab.p["levels"] - 1), 10, lab.p["per_class"]
    held_x, held_y = lab.held_out.x, lab.held_out.label.cpu()
    rows = torch.cat([torch.nonzero(held_y == c)[:m, 0] for c in range(classes)])
    x, label = held_x[rows.to(lab.device)], held_y[rows].to(lab.device)
    eps = initial_noise([0], len(x), lab.shape).to(lab.device)
    maps = [[a[:, 0].cpu().numpy() for a in attention(model, x + s * eps, s, label)] for s in levels.tolist()]
    blocks = [np.stack(block).reshape(len(levels), classes, m, -1) for block in zip(*maps, strict=True)]
    found = [shares(block) for block in blocks]
    mean = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    fine = model.net.names.index("up0.0")
    few = [np.stack([maps[k][fine][::m] for k in (0, len(levels) // 2, len(levels) - 1)])]  # (3, 10, h, w)
    table = np.stack([block.mean((2, 3)) for block in blocks])  # (blocks, levels, classes)
    return mean, {"table": table.astype(np.float32), "maps": few[0].astype(np.float32), "levels": levels}


def adaptive(lab: Lab, method: str, seed: int) -> Results:
    """AFA, or the control in its place: samples after all updates, its losses on the way, and half-way samples."""
    p, found = lab.p, Results([])
    whole, half, every = p["updates"], p["early"], p["every"]
    lr, tried = tuned(lab)
    experts = lab.experts(seed)
    target, kind = best_output_average(experts, lab.held_out)[2], KINDS[method]
    watched, losses = kind == "adaptive", {}

    def watch(update: int, model: nn.Module) -> None:
        if watched and update % every == 0:
            losses[update] = lab.loss(model)
        if watched and update == half:
            row, _ = lab.quality(model, p["noise"][0], p["n_early"])
            found.rows.append({"seed": seed, "updates": half, "noise": p["noise"][0], **row})

    model, updated = lab.learnt(kind, seed, whole, lr, watch)
    facts: Row = {"macs": lab.macs(model), "loss": lab.loss(model), "lr": lr, "share": parameters_share(updated)}
    facts["changed"] = float(weights(updated.net.experts) != weights(nn.ModuleList(e.net for e in experts)))
    if watched:
        facts["reached"] = next((k for k, v in losses.items() if v < target), NEVER * whole)
        effects, found.state = state_dependence(lab, model)
        facts |= effects
    for noise in p["noise"] if watched else p["noise"][:1]:
        row, x = lab.quality(model, noise, p["n"])
        found.rows.append({"seed": seed, "updates": whole, "noise": noise, **row, **facts})
        found.state.setdefault("samples", x)
    found.traces = [{"seed": seed, "updates": k, "loss": v, "target": target} for k, v in losses.items()]
    if watched:
        found.traces += [{"seed": p["tuning_seed"], "lr": rate, "tuning_loss": v} for rate, v in tried]
    return found


def ablated(lab: Lab, method: str, seed: int) -> Results:
    """Claim 2(a) to (c): as AFA half-way."""
    p = lab.p
    lr, _ = tuned(lab)
    model, _ = lab.learnt(KINDS[method], seed, p["early"], lr)
    row, x = lab.quality(model, p["noise"][0], p["n_early"])
    facts = {"macs": lab.macs(model), "loss": lab.loss(model), "lr": lr}
    cell = {"seed": seed, "updates": p["early"], "noise": p["noise"][0]}
    return Results([{**cell, **row, **facts}], state={"samples": x})


KINDS = {"afa": "adaptive", "misled": "misled", "static": "static", "timeless": "timeless", "flat": "flat"}


# Without aggregators: (lab, seed) -> the model and what was chosen.


def switched(lab: Lab, seed: int) -> tuple[nn.Module, Row]:
    """A table of output weights, from as many pictures as the aggregators see."""
    experts = lab.experts(seed)
    x, label = lab.general(lab.p["updates"] * lab.p["batch"], torch.Generator().manual_seed(seed))
    data = HeldOut(x, label, *lab.law, lab.sigma_data, seed)
    return OutputAverage(experts, Switch(experts, data, lab.p["bins"], *lab.law)), {}


def continued(lab: Lab, seed: int) -> tuple[nn.Module, Row]:
    """The first expert, all of its weights trained on the general data for as many updates."""
    loss = denoising(lab.general, lab.p["batch"], *lab.law)
    model = deepcopy(lab.experts(seed)[0]).requires_grad_(True)
    return fit(model, loss, Training(lab.p["updates"], lab.p["rate"], decay=0.0), seed)[0], {}


def averaged_weights(lab: Lab, seed: int) -> tuple[nn.Module, Row]:
    model, w, _ = best_weight_average(lab.experts(seed), lab.held_out)
    return model, {"w": w}


def averaged_outputs(lab: Lab, seed: int) -> tuple[nn.Module, Row]:
    model, w, _ = best_output_average(lab.experts(seed), lab.held_out)
    return model, {"w": w}


OTHERS: dict[str, Callable[[Lab, int], tuple[nn.Module, Row]]] = {
    "base": lambda lab, seed: (load_base(lab.base, lab.device), {}),
    "a": lambda lab, seed: (lab.experts(seed)[0], {}),
    "b": lambda lab, seed: (lab.experts(seed)[1], {}),
    "weights": averaged_weights,
    "outputs": averaged_outputs,
    "switch": switched,
    "continued": continued,
}
COMPARED = ("a", "b", "weights", "outputs")  # on all noise seeds; the others are printed


def merged(lab: Lab, method: str, seed: int) -> Results:
    """What no aggregator is needed for."""
    p, found = lab.p, Results([])
    model, chosen = OTHERS[method](lab, seed)
    facts = {"macs": lab.macs(model), "loss": lab.loss(model), **chosen}
    for noise in p["noise"] if method in COMPARED else p["noise"][:1]:
        row, x = lab.quality(model, noise, p["n"])
        found.rows.append({"seed": seed, "updates": 0, "noise": noise, **row, **facts})
        found.state.setdefault("samples", x)
    return found


def real(lab: Lab, method: str, seed: int) -> Results:
    """As many training pictures as samples."""
    n = lab.p["n"]
    return Results([{"seed": seed, "updates": 0, "noise": 0, "n": n, "fd": lab.judge.floor(seed, n)}])


RUNS = {"afa": adaptive, "misled": adaptive, "static": ablated, "timeless": ablated, "flat": ablated, "real": real}
RUNS |= dict.fromkeys(OTHERS, merged)


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """One method on one problem: rows are (seed, updates of the aggregators, noise seed)."""
    lab, whole = Lab({**problem, **settings}, inputs, device), Results([])
    for seed in seeds:
        found = RUNS[method](lab, method, seed)
        whole.rows += found.rows
        whole.traces += found.traces
        whole.state |= {f"{name}_{seed}": value for name, value in found.state.items()}
    return whole
