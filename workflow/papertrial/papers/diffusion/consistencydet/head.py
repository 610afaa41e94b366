"""A head that looks at a noisy box and says what is there and where it belongs.

Boxes b are (cx, cy, w, h) scaled to [-S, S]; a noisy one is b + s z with standard normal z. The head looks where the
noisy box points to once it's shrunk to unit variance. What it answers becomes a box in one of two ways:

    consistency   f(b, s) = c_skip(s) b + c_out(s) F, the identity at s_min
    offset        F moves the box that was looked at

Both start by giving back the box that was looked at: an offset of 0 does, and a consistency head starts from the
weights that do, since far from s_min its answer is a position.

Sources: Jiang et al. 2024 (arXiv 2404.07773); consistency models: Song et al. 2023 (arXiv 2303.01469).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.testbeds.detection import clip_boxes, roi_align, scale_boxes, unscale_boxes

S = 2.0  # signal scale: boxes lie in [-S, S]
S_MIN, S_MAX = 0.01, 10.0  # noise levels
SD = 1.0  # of the data
BINS = 7  # of RoI-align, a side
TIMES = 1000  # of DiffusionDet's schedule


def cosine_levels(times: int = TIMES) -> Tensor:
    """s = sigma/alpha at t = 0, ..., times - 1 (Nichol and Dhariwal 2021)."""
    t = torch.arange(times + 1, dtype=torch.float64) / times
    alpha_bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    beta = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    alpha_bar = (1 - beta).cumprod(dim=0)
    return (1 / alpha_bar - 1).sqrt().float()


def looked_at(noisy: Tensor, s: Tensor) -> Tensor:
    """c_in b, clipped to a box of positive area inside the picture; s broadcasts against b (..., 4)."""
    return scale_boxes(clip_boxes(unscale_boxes(noisy / (1 + (s / SD) ** 2).sqrt(), S)), S)


def consistency(noisy: Tensor, seen: Tensor, answer: Tensor, s: Tensor) -> Tensor:
    c_skip = SD**2 / ((s - S_MIN) ** 2 + SD**2)
    c_out = SD * (s - S_MIN) / (s**2 + SD**2).sqrt()
    return c_skip * noisy + c_out * answer


def offset(noisy: Tensor, seen: Tensor, answer: Tensor, s: Tensor) -> Tensor:
    return seen + answer


# How an answer becomes a box, and the first weight of the box in it.
OUTPUTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], float]] = {
    "consistency": (consistency, 1.0),
    "offset": (offset, 0.0),
}


class BoxHead(nn.Module):
    """(features, noisy boxes, levels) to class logits and boxes.

    Args:
        inner: channels of the features.
        narrow: channels that RoI-align sees.
        width: hidden units of the two layers.
        output: a name in OUTPUTS.
    """

    def __init__(self, inner: int, narrow: int, width: int, output: str, classes: int = 10) -> None:
        super().__init__()
        (self.output, start), self.classes = OUTPUTS[output], classes
        self.narrow = nn.Conv2d(inner, narrow, 1)
        self.hidden = nn.Sequential(
            *(nn.Linear(narrow * BINS**2 + 5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        )
        self.last = nn.Linear(width + 9, classes + 4)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        nn.init.constant_(self.last.bias[:classes], -3.0)  # most proposals are of nothing
        nn.init.eye_(self.last.weight[classes:, -4:]).data.mul_(start)

    def forward(self, features: Tensor, noisy: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, m, classes) and boxes (n, m, 4) in [-S, S], from features (n, c, h, w), b (n, m, 4), s (n, m)."""
        s = s[..., None]
        seen = looked_at(noisy, s)
        region = roi_align(F.silu(self.narrow(features)), unscale_boxes(seen, S), BINS)  # (n, m, narrow, 7, 7)
        given = torch.cat([seen, s.log() / 4], dim=-1)
        hidden = self.hidden(torch.cat([region.flatten(2), given], dim=-1))  # (n, m, width)
        position = ((1 + (s / SD) ** 2).sqrt() - 1) * SD / s * seen  # F for which f is the box that is looked at
        logits, answer = self.last(torch.cat([hidden, given, position], dim=-1)).split([self.classes, 4], dim=-1)
        return logits, self.output(noisy, seen, answer, s)
