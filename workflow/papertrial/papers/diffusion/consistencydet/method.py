"""ConsistencyDet: find things by denoising boxes in one step, with a head that maps every noise level to the clean box.

Noise is added to the true boxes, padded with random ones, at two adjacent levels of one trajectory, and class and box
are predicted from both; a consistency model's output is the identity at s_min. So at inference a random box at s_max is
a detection after one evaluation. Further evaluations renew proposals that found nothing and move the others down to the
next level. DiffusionDet is the same head with another output, trained at single times of a cosine schedule; in the
coordinates b + s z its DDIM step is the same Euler step.

Source: Jiang et al. 2024 (arXiv 2404.07773); DiffusionDet: Chen et al. 2022 (arXiv 2211.09788).
"""

from collections.abc import Callable
from itertools import combinations
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.engine.results import Inputs, Results
from papertrial.methods.samplers import noise_stream
from papertrial.models.arrays import seeded
from papertrial.models.fcos import DenseHead, dense_detections, dense_loss
from papertrial.models.scenes48 import Split, load, precision
from papertrial.models.training import Loss, Training, fit
from papertrial.papers.diffusion.consistencydet.head import BoxHead, S
from papertrial.papers.diffusion.consistencydet.inference import CHUNK, Steps, ddim_levels, detect, karras_levels
from papertrial.papers.diffusion.consistencydet.training import (
    DrawLevels,
    denoising_loss,
    farthest,
    one_time,
    two_levels,
)
from papertrial.testbeds.detection import clip_boxes, iou, scale_boxes, suppressed, unscale_boxes

SHOWN = 4  # pictures kept for a figure

Splits = dict[str, Split]
Measure = Callable[[dict, int, Splits, Results], None]


def weights(head: nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


def denoise(
    head: BoxHead, split: Split, levels: list[float], renew: float, p: dict, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], float]:
    """Detections from the seed's noise on these levels, and CPU milliseconds a picture."""
    stream, device = noise_stream([seed], len(split.boxes), (p["boxes"], 4)), split.boxes.device
    begun = process_time()
    found = detect(head, split.features, levels, renew, lambda: stream().to(device))
    return found, 1000 * (process_time() - begun) / len(split.boxes)


def best_threshold(head: BoxHead, split: Split, steps: Steps, p: dict, seed: int, found: Results) -> float:
    """Of box renewal: the best validation AP after p["tune_k"] steps; every trial goes to the traces."""
    few = split.first(p["tune_n"])
    trials = {}
    for renew in p["renew"]:
        detections, _ = denoise(head, few, steps(p["tune_k"]), renew, p, seed)
        trials[renew] = precision(*detections, few)["ap"]
        found.traces.append({"seed": seed, "steps": p["tune_k"], "renew": renew, "val_ap": trials[renew]})
    return max(trials, key=trials.get)


@torch.no_grad()
def self_consistency(head: BoxHead, split: Split, p: dict, seed: int) -> dict[str, float]:
    """c3: the first true box of every picture, one z, s from .1 to 10: how much the predictions overlap.

    Returns:
        {"self_iou": mean over pairs of levels, "truth_iou": with the true box}, and "kept_iou": of the prediction at
        s = .3 from the true box itself, without noise.
    """
    truth = split.boxes[:, :1]  # (n, 1, 4)
    b = scale_boxes(truth, S)
    s = torch.logspace(-1, 1, p["trajectory"], device=b.device)
    noisy = b + s[:, None] * noise_stream([seed], len(b), (1, 4))().to(b.device)  # (n, levels, 4)
    noisy, s = torch.cat([noisy, b], dim=1), torch.cat([s, s.new_tensor([0.3])])
    parts = zip(split.features.split(CHUNK), noisy.split(CHUNK), strict=True)
    found = torch.cat([head(f, x, s.expand(len(x), -1))[1] for f, x in parts])
    *on_path, kept = clip_boxes(unscale_boxes(found, S)).unbind(dim=1)  # (n, 4) each
    pairs = torch.stack([iou(a, b).mean() for a, b in combinations(on_path, 2)])
    near = torch.stack([iou(a, truth[:, 0]).mean() for a in on_path])
    return {
        "self_iou": float(pairs.mean()),
        "truth_iou": float(near.mean()),
        "kept_iou": float(iou(kept, truth[:, 0]).mean()),
    }


def denoising(
    draw_levels: Callable[[dict, str], DrawLevels], steps: Steps, output: str, signal: float = 1.0
) -> Measure:
    """A detector that denoises boxes: trained at drawn levels, run on ``steps(k)``."""

    def measure(p: dict, seed: int, splits: Splits, found: Results) -> None:
        train, validation, test = (splits[name] for name in ("train", "validation", "test"))
        loss = denoising_loss(train, p, draw_levels(p, train.boxes.device), signal)
        inner = train.features.shape[1]
        head = trained(lambda: BoxHead(inner, p["narrow"], p["width"], output), loss, p, seed, train)
        renew = best_threshold(head, validation, steps, p, seed, found) if max(p["k"]) > 1 else 0.0
        first = len(found.rows)
        for k in p["k"]:
            detections, ms = denoise(head, test, steps(k), renew, p, seed)
            found.rows.append({"seed": seed, "steps": k, **precision(*detections, test)})
            found.timings.append({"seed": seed, "steps": k, "ms": ms})
            if k == 1:
                found.state |= shown(*detections, test, seed)
        detections, _ = denoise(head, validation, steps(1), renew, p, seed)
        row = {"val_ap": precision(*detections, validation)["ap"], "renew": renew, "weights": weights(head)}
        found.rows[first] |= row | self_consistency(head, test, p, seed)

    return measure


def dense(p: dict, seed: int, splits: Splits, found: Results) -> None:
    """The anchor-free dense head on the same features."""
    train, inner = splits["train"], splits["train"].features.shape[1]

    def loss(model: DenseHead, average: DenseHead, step: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train.boxes), (p["batch"],), generator=generator).to(train.boxes.device)
        return dense_loss(model, train.features[rows], train.boxes[rows], train.labels[rows])

    head = trained(lambda: DenseHead(inner, p["width"]), loss, p, seed, train)
    ap = {}
    for name in ("validation", "test"):
        begun = process_time()
        with torch.no_grad():
            detections = dense_detections(head, splits[name].features, p["boxes"])
        ms = 1000 * (process_time() - begun) / len(splits[name].boxes)
        ap[name] = precision(*detections, splits[name])
    row = {"val_ap": ap["validation"]["ap"], "weights": weights(head)}
    found.rows.append({"seed": seed, "steps": 1, **ap["test"], **row})
    found.timings.append({"seed": seed, "steps": 1, "ms": ms})
    found.state |= shown(*detections, splits["test"], seed)


def shown(boxes: Tensor, scores: Tensor, labels: Tensor, split: Split, seed: int) -> dict[str, np.ndarray]:
    """For a figure: the first pictures, their true boxes, and as many of the best detections.

    Returns:
        {"pictures": (4, 48, 48) uint8, "truths" and "found-<seed>": rows of picture, cx, cy, w, h}
    """
    boxes, _, _ = suppressed(boxes[:SHOWN], scores[:SHOWN], labels[:SHOWN])
    things = (split.labels[:SHOWN] >= 0).sum(dim=1).tolist()  # they come first in their rows

    def listed(of: Tensor) -> np.ndarray:
        rows = [F.pad(b[:n], (1, 0), value=i) for i, (b, n) in enumerate(zip(of, things, strict=True))]
        return torch.cat(rows).cpu().numpy()

    pictures = (255 * split.pictures[:SHOWN, 0]).round().to(torch.uint8).cpu().numpy()
    return {"pictures": pictures, "truths": listed(split.boxes[:SHOWN]), f"found-{seed}": listed(boxes)}


def trained(build: Callable[[], nn.Module], loss: Loss, p: dict, seed: int, split: Split) -> nn.Module:
    head = seeded(build, seed).to(split.boxes.device)
    how = {**p, "steps": p["updates"], "lr": p["lr_times"] * p["lr"]}
    return fit(head, loss, Training.of(how), seed)[0]


METHODS: dict[str, Measure] = {
    "consistencydet": denoising(two_levels, karras_levels, "consistency"),
    "near-only": denoising(two_levels, karras_levels, "consistency"),  # its levels end at s_train = .3
    "diffusiondet": denoising(one_time, ddim_levels, "offset"),
    "one-shot": denoising(farthest, karras_levels, "offset", signal=0.0),
    "fcos": dense,
}


def run(problem: dict, method: str, settings: dict, seeds: list[int], inputs: Inputs, device: str) -> Results:
    """Heads of one kind, one a seed, on the frozen features of scenes48."""
    state, found = inputs.models["scenes48"]["0"], Results([])
    splits = {name: load(state, name, device) for name in ("train", "validation", "test")}
    for seed in seeds:
        METHODS[method]({**problem, **settings}, seed, splits, found)
    return found
