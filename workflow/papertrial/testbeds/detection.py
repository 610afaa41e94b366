"""Object detection: geometry of boxes, RoI-align, assignment of predictions to truths, suppression, and AP.

Boxes are (cx, cy, w, h) in shares of the picture's side, in tensors (..., 4); corners are (x0, y0, x1, y1).
Sources: generalised IoU arXiv 1902.09630; RoI-align arXiv 1703.06870; SimOTA arXiv 2107.08430; focal loss arXiv
1708.02002; AP as COCO defines it.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 1 / 48  # side of a clipped box
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU, AP is averaged over
RECALLS = np.linspace(0, 1, 101)
KEPT = 100  # detections a picture


# Geometry.


def scale_boxes(boxes: Tensor, scale: float) -> Tensor:
    """[0, 1] to [-scale, scale]."""
    return (2 * boxes - 1) * scale


def unscale_boxes(scaled: Tensor, scale: float) -> Tensor:
    """The inverse of ``scale_boxes``."""
    return (scaled / scale + 1) / 2


def clip_boxes(boxes: Tensor) -> Tensor:
    """Centres inside the picture, sides between a pixel's and the picture's: always of positive area."""
    return torch.cat([boxes[..., :2].clamp(0, 1), boxes[..., 2:].clamp(SMALLEST, 1)], dim=-1)


def corners(boxes: Tensor) -> Tensor:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes that broadcast against each other."""
    a0, a1, b0, b1 = *corners(a).split(2, dim=-1), *corners(b).split(2, dim=-1)
    inner = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(dim=-1)
    union = (a1 - a0).clamp(min=0).prod(dim=-1) + (b1 - b0).clamp(min=0).prod(dim=-1) - inner
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).clamp(min=0).prod(dim=-1)
    iou = inner / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def iou(a: Tensor, b: Tensor) -> Tensor:
    return iou_and_giou(a, b)[0]


# Features of a region.


def roi_align(features: Tensor, boxes: Tensor, size: int = 7, samples: int = 2) -> Tensor:
    """Mean of bilinear samples in each of size x size bins of every box.

    Bilinear interpolation on a grid is a product of two interpolations, so a box costs two small matrix products.

    Args:
        features: (n, c, h, w).
        boxes: (n, m, 4).
        samples: a side of each bin.

    Returns:
        (n, m, c, size, size)
    """
    low, high = corners(boxes).split(2, dim=-1)
    at = (torch.arange(size * samples, device=boxes.device) + 0.5) / (size * samples)

    def weights(axis: int, length: int) -> Tensor:
        """(n, m, size, length): how much each pixel contributes to a bin; beyond the edge it counts as the edge."""
        where = low[..., axis, None] + (high - low)[..., axis, None] * at  # (n, m, size samples), shares
        where = (where * length - 0.5).clamp(0, length - 1)
        hat = (1 - (where[..., None] - torch.arange(length, device=boxes.device)).abs()).clamp(min=0)
        return hat.unflatten(-2, (size, samples)).mean(dim=-2)

    across, down = weights(0, features.shape[-1]), weights(1, features.shape[-2])
    rows = torch.einsum("nmyh,nchw->nmycw", down, features).flatten(2, 3)  # (n, m, size c, w)
    return (rows @ across.transpose(-1, -2)).unflatten(2, (size, -1)).transpose(2, 3)


# Assignment.


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Of sigmoids against targets in [0, 1], element by element."""
    p = logits.sigmoid()
    weight = torch.where(target > 0.5, alpha * (1 - p) ** gamma, (1 - alpha) * p**gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, m, g): what focal loss would change by if a prediction (n, m, classes) took the class of a truth (n, g)."""
    one, zero = torch.ones_like(logits), torch.zeros_like(logits)
    change = focal_loss(logits, one) - focal_loss(logits, zero)
    return change.gather(2, labels.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1))


@torch.no_grad()
def assign(logits: Tensor, boxes: Tensor, truths: Tensor, labels: Tensor, most: int = 5) -> Tensor:
    """SimOTA: every truth takes its cheapest predictions, as many as the sum of its best IoUs says (at least one).

    Args:
        logits, boxes: (n, m, classes), (n, m, 4) predictions.
        truths, labels: (n, g, 4), (n, g); label -1 where there is nothing.

    Returns:
        (n, m): the truth that a prediction is for, -1 for none.
    """
    overlap, giou = iou_and_giou(boxes[:, :, None], truths[:, None])  # (n, m, g)
    distance = (boxes[:, :, None] - truths[:, None]).abs().sum(dim=-1)
    cost = 2 * class_cost(logits, labels) + 5 * distance - 2 * giou
    absent = (labels < 0)[:, None]
    cost = cost.masked_fill(absent, torch.inf)
    wanted = overlap.topk(min(most, overlap.shape[1]), dim=1).values.sum(dim=1).int().clamp(min=1)  # (n, g)
    rank = cost.argsort(dim=1).argsort(dim=1)  # of a prediction among a truth's
    taken = (rank < wanted[:, None]) & ~absent
    cheapest = cost.masked_fill(~taken, torch.inf).argmin(dim=2)  # a prediction wanted twice goes to the cheaper truth
    return cheapest.where(taken.any(dim=2), -1)


def set_loss(logits: Tensor, boxes: Tensor, truths: Tensor, labels: Tensor) -> Tensor:
    """2 focal + 5 L1 + 2 (1 - GIoU) after assignment, over the number of assigned predictions; shapes of ``assign``."""
    assigned = assign(logits, boxes, truths, labels)
    found = assigned >= 0
    target = torch.zeros_like(logits)
    n, m = found.nonzero(as_tuple=True)
    target[n, m, labels[n, assigned[n, m]]] = 1
    predicted, truth = boxes[n, m], truths[n, assigned[n, m]]
    giou = iou_and_giou(predicted, truth)[1]
    geometry = 5 * (predicted - truth).abs().sum() + 2 * (1 - giou).sum()
    return (2 * focal_loss(logits, target).sum() + geometry) / found.sum().clamp(min=1)


# Detections.


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float = 0.5, keep: int = KEPT) -> Tensor:
    """Greedy non-maximum suppression within classes, for many pictures at once.

    Args:
        boxes, scores, labels: (n, m, 4), (n, m), (n, m); scores above 0.

    Returns:
        (n, keep): indices of what is kept, best first; -1 where less is left.
    """
    left, rows, kept = scores.clone(), torch.arange(len(scores), device=scores.device), []
    for _ in range(min(keep, scores.shape[1])):
        best = left.argmax(dim=1)
        kept.append(best.where(left[rows, best] > 0, -1))
        if (kept[-1] < 0).all():
            break
        same = labels == labels[rows, best][:, None]
        left[same & (iou(boxes, boxes[rows, best][:, None]) > threshold)] = 0
        left[rows, best] = 0
    return torch.stack(kept, dim=1)


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The detections that ``suppress`` keeps, best first: (n, keep, 4), (n, keep), (n, keep); label -1 for none."""
    kept = suppress(boxes, scores, labels)
    at = kept.clamp(min=0)
    boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
    return boxes, scores.gather(1, at), labels.gather(1, at).where(kept >= 0, -1)


def average_precision(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, truths: np.ndarray, classes: np.ndarray
) -> dict[str, float]:
    """COCO's AP over a set of pictures: the mean over IoU thresholds and classes of 101-point interpolated precision.

    Args:
        boxes, scores, labels: (n, m, 4), (n, m), (n, m) detections; label -1 where there is none.
        truths, classes: (n, g, 4), (n, g); class -1 where there is nothing.

    Returns:
        {"ap", "ap50"}: over .5:.05:.95, and at .5.
    """
    precision = []
    for label in np.unique(classes[classes >= 0]):
        is_truth = classes == label
        hit, order = _matched(boxes, np.where(labels == label, scores, -np.inf), truths, is_truth)
        precision.append([_interpolated(h, is_truth.sum()) for h in hit[order].T])
    over_classes = np.mean(precision, axis=0)  # (thresholds,)
    return {"ap": float(over_classes.mean()), "ap50": float(over_classes[0])}


def _matched(
    boxes: np.ndarray, scores: np.ndarray, truths: np.ndarray, is_truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of one class: (d, thresholds) which detections hit, in the order of pictures, and their order by score.

    In every picture the best detection comes first; it takes the free truth that it overlaps most.
    """
    by_score = np.argsort(-scores, axis=1, kind="stable")[:, :KEPT]
    scores = np.take_along_axis(scores, by_score, axis=1)
    depth = int((scores > -np.inf).sum(axis=1).max(initial=0))
    by_score, scores = by_score[:, :depth], scores[:, :depth]
    detected = torch.from_numpy(np.take_along_axis(boxes, by_score[..., None], axis=1)).double()
    overlap = iou(detected[:, :, None], torch.from_numpy(truths).double()[:, None]).numpy()  # (n, depth, g)
    free = np.repeat(is_truth[:, None], len(THRESHOLDS), axis=1)  # (n, thresholds, g)
    hit = np.zeros((len(scores), depth, len(THRESHOLDS)), bool)
    for rank in range(depth):
        allowed = np.where(free, overlap[:, rank, None], -1)  # (n, thresholds, g)
        best = allowed.shape[-1] - 1 - allowed[..., ::-1].argmax(axis=-1)  # the last of equals, as COCO has it
        found = np.take_along_axis(allowed, best[..., None], axis=-1)[..., 0] >= THRESHOLDS
        found &= (scores[:, rank] > -np.inf)[:, None]
        n, t = found.nonzero()
        free[n, t, best[n, t]] = False
        hit[:, rank] = found
    real = scores > -np.inf
    return hit[real], np.argsort(-scores[real], kind="stable")


def _interpolated(hit: np.ndarray, truths: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or a higher one."""
    right = np.cumsum(hit)
    recall, precision = right / truths, right / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(at < len(hit), np.append(precision, 0)[at], 0).mean())
