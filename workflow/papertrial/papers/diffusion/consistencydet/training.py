"""How heads that denoise boxes are trained: noisy proposals at one level, or at two of a trajectory."""

from collections.abc import Callable

import torch
from torch import Tensor

from papertrial.methods.noise_levels import grid
from papertrial.models.scenes48 import Split
from papertrial.models.training import Loss
from papertrial.papers.diffusion.consistencydet.head import S_MAX, S_MIN, BoxHead, S, cosine_levels
from papertrial.testbeds.detection import clip_boxes, scale_boxes, set_loss, unscale_boxes

LEVELS = 40  # of the grid that training takes adjacent levels from
PADDING_SD = 1 / 6  # random boxes that pad the true ones: N(1/2, 1/6) in shares of the side

DrawLevels = Callable[[int, torch.Generator], Tensor]


def proposals(boxes: Tensor, labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(n, count, 4) in [-S, S]: true boxes (n, g, 4) first, random ones in the other places."""
    u = 0.5 + PADDING_SD * torch.randn(len(boxes), count, 4, generator=generator).to(boxes.device)
    padded = clip_boxes(u)
    there = (labels >= 0)[..., None]
    padded[:, : boxes.shape[1]] = torch.where(there, boxes, padded[:, : boxes.shape[1]])
    return scale_boxes(padded, S)


def two_levels(p: dict, device: str) -> DrawLevels:
    """Adjacent levels s_i < s_{i+1} of the karras grid, up to p["s_train"]: (n, 2)."""
    levels = torch.tensor(grid("karras", LEVELS - 1, S_MAX, S_MIN)[::-1].copy(), dtype=torch.float32)
    levels = levels[levels <= p["s_train"] * (1 + 1e-6)]

    def draw(n: int, generator: torch.Generator) -> Tensor:
        i = torch.randint(len(levels) - 1, (n,), generator=generator)
        return torch.stack([levels[i], levels[i + 1]], dim=1).to(device)

    return draw


def one_time(p: dict, device: str) -> DrawLevels:
    """A uniform time of the cosine schedule: (n, 1)."""
    levels = cosine_levels()
    return lambda n, generator: levels[torch.randint(len(levels), (n, 1), generator=generator)].to(device)


def farthest(p: dict, device: str) -> DrawLevels:
    return lambda n, generator: torch.full((n, 1), S_MAX, device=device)


def denoising_loss(split: Split, p: dict, draw_levels: DrawLevels, signal: float = 1.0) -> Loss:
    """Set loss of the predictions from b + s z at every drawn level, plus the distance between two levels' boxes.

    Args:
        draw_levels: (n, generator) -> (n, levels).
        signal: 0 leaves nothing of the true boxes in the proposals.
    """

    def loss(model: BoxHead, average: BoxHead, step: int, generator: torch.Generator) -> Tensor:
        device = split.boxes.device
        rows = torch.randint(len(split.boxes), (p["batch"],), generator=generator).to(device)
        truths, labels = split.boxes[rows], split.labels[rows]
        s = draw_levels(p["batch"], generator)  # (n, levels)
        b = signal * proposals(truths, labels, p["proposals"], generator)
        z = torch.randn(b.shape, generator=generator).to(device)
        noisy = torch.cat([b + level[:, None, None] * z for level in s.T], dim=1)  # (n, levels m, 4)
        logits, found = model(split.features[rows], noisy, s.repeat_interleave(p["proposals"], dim=1))
        found = unscale_boxes(found, S)
        of_levels = list(zip(logits.chunk(s.shape[1], dim=1), found.chunk(s.shape[1], dim=1), strict=True))
        total = sum(set_loss(y, x, truths, labels) for y, x in of_levels)
        if p["consistency"]:
            (_, lower), (_, upper) = of_levels
            total = total + p["consistency"] * (upper - lower.detach()).abs().sum(dim=-1).mean()
        return total

    return loss
