"""A dense, anchor-free detector: every place of a feature map says what it sees and how far the edges are.

Source: Tian et al. 2019 (arXiv 1904.01355), one level of features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papertrial.testbeds.detection import focal_loss, iou_and_giou

REACH = 1.5  # places around a truth's centre that may answer for it
USUAL = 0.15  # distance to an edge at the start, share of the side


class DenseHead(nn.Module):
    """(n, inner, h, w) to class logits (n, h w, classes), boxes (n, h w, 4) and centre-ness logits (n, h w).

    Args:
        width: channels of the two convolutions between.
    """

    def __init__(self, inner: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes
        self.tower = nn.Sequential(
            *(nn.Conv2d(inner, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU())
        )
        self.out = nn.Conv2d(width, classes + 5, 3, padding=1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)
        nn.init.constant_(self.out.bias[:classes], -4.0)  # p = .02: nothing is there in most places

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = features.shape[-2:]
        found = self.out(self.tower(features)).flatten(2).transpose(1, 2)  # (n, h w, classes + 5)
        logits, edges, centre = found.split([self.classes, 4, 1], dim=-1)
        left, top, right, bottom = (USUAL * edges.clamp(max=4).exp()).unbind(dim=-1)
        x, y = places(height, width, features.device).unbind(dim=-1)
        boxes = torch.stack([x + (right - left) / 2, y + (bottom - top) / 2, left + right, top + bottom], dim=-1)
        return logits, boxes, centre[..., 0]


def places(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """(h w, 2): x, y of the places' centres in shares of the side."""
    y, x = torch.meshgrid(
        (torch.arange(height, device=device) + 0.5) / height,
        (torch.arange(width, device=device) + 0.5) / width,
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1).flatten(0, 1)


def targets(truths: Tensor, labels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """What every place answers for: the smallest thing that it's in, near the middle.

    Args:
        truths, labels: (n, g, 4), (n, g); label -1 where there is nothing.

    Returns:
        (n, h w) truth or -1, and (n, h w) centre-ness: 1 in the middle, falling to 0 at the edges.
    """
    at = places(height, width, truths.device)[:, None]  # (h w, 1, 2)
    centre, half = truths[:, None].split(2, dim=-1)[0], truths[:, None, :, 2:] / 2  # (n, 1, g, 2)
    offset = (at - centre).abs()  # (n, h w, g, 2)
    near = torch.tensor([REACH / width, REACH / height], device=truths.device)
    inside = (offset < torch.minimum(half, near)).all(dim=-1) & (labels >= 0)[:, None]
    area = truths[..., 2:].prod(dim=-1)[:, None].expand_as(inside).masked_fill(~inside, torch.inf)
    truth = area.argmin(dim=-1)
    ratio = (half - offset) / (half + offset).clamp(min=1e-9)  # nearer edge over farther edge, by axis
    centredness = ratio.clamp(min=0).prod(dim=-1).sqrt().gather(2, truth[..., None])[..., 0]
    return truth.where(inside.any(dim=-1), -1), centredness


def dense_loss(head: DenseHead, features: Tensor, truths: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of the classes, 1 - GIoU weighted by centre-ness, and cross-entropy of the centre-ness."""
    logits, boxes, centre = head(features)
    truth, centredness = targets(truths, labels, *features.shape[-2:])
    n, m = (truth >= 0).nonzero(as_tuple=True)
    target = torch.zeros_like(logits)
    target[n, m, labels[n, truth[n, m]]] = 1
    giou = iou_and_giou(boxes[n, m], truths[n, truth[n, m]])[1]
    weight = centredness[n, m]
    geometry = (weight * (1 - giou)).sum() / weight.sum().clamp(min=1e-6)
    positives = max(1, len(n))
    centring = F.binary_cross_entropy_with_logits(centre[n, m], weight, reduction="sum") / positives
    return focal_loss(logits, target).sum() / positives + geometry + centring


def dense_detections(head: DenseHead, features: Tensor, most: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """The ``most`` best boxes (n, most, 4), their scores and classes: the root of class times centre-ness."""
    logits, boxes, centre = head(features)
    p, label = logits.sigmoid().max(dim=-1)
    score, best = (p * centre.sigmoid()).sqrt().topk(min(most, p.shape[1]), dim=1)
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)), score, label.gather(1, best)
