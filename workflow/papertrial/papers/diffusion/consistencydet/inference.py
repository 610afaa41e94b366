"""From random boxes to detections, one evaluation a level."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from papertrial.methods.noise_levels import grid
from papertrial.papers.diffusion.consistencydet.head import S_MAX, S_MIN, TIMES, BoxHead, S, cosine_levels
from papertrial.testbeds.detection import clip_boxes, unscale_boxes

CHUNK = 25  # pictures at a time: what fits a cache

Steps = Callable[[int], list[float]]  # number of evaluations -> their levels


@torch.no_grad()
def detect(
    head: BoxHead, features: Tensor, levels: list[float], renew: float, draw: Callable[[], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes from noise, one evaluation a level.

    Proposals whose best class scores below ``renew`` start anew at the next level, the others take an Euler step there.

    Args:
        draw: gives standard normal (n, m, 4), another one with every call.

    Returns:
        boxes (n, k m, 4) in shares of the side, scores and classes (n, k m): the detections of all steps.
    """
    b, pooled = levels[0] * draw(), []
    for s, s_next in zip(levels, [*levels[1:], None], strict=True):
        at = torch.full(b.shape[:2], s, device=b.device)
        parts = zip(features.split(CHUNK), b.split(CHUNK), at.split(CHUNK), strict=True)
        logits, b0 = (torch.cat(x) for x in zip(*[head(*part) for part in parts], strict=True))
        b0 = b0.clamp(-S, S)
        score, label = logits.sigmoid().max(dim=-1)
        pooled.append((clip_boxes(unscale_boxes(b0, S)), score, label))
        if s_next is not None:
            moved = s_next / s * b + (1 - s_next / s) * b0  # b + (b - b0)(s_next - s)/s
            b = torch.where((score >= renew)[..., None], moved, s_next * draw())
    return tuple(torch.cat(x, dim=1) for x in zip(*pooled, strict=True))


def karras_levels(k: int) -> list[float]:
    """k levels from s_max towards s_min, which itself is not evaluated: there the head is the identity."""
    return grid("karras", k, S_MAX, S_MIN)[:-1].tolist()


def ddim_levels(k: int) -> list[float]:
    """Levels of k times spread evenly over the cosine schedule, from the last one."""
    times = np.linspace(TIMES - 1, -1, k + 1)[:-1].astype(int)
    return cosine_levels()[times].tolist()
