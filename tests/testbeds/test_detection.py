"""Boxes, RoI-align, assignment, suppression and AP against what is known of them and against COCO's own code."""

import contextlib
import io

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from papertrial.testbeds.detection import (
    assign,
    average_precision,
    clip_boxes,
    corners,
    focal_loss,
    iou,
    iou_and_giou,
    roi_align,
    scale_boxes,
    set_loss,
    suppress,
    unscale_boxes,
)


def some_boxes(*shape, seed=1000):
    """Inside the picture."""
    u = torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))
    sides = 0.1 + 0.3 * u[..., 2:]
    return torch.cat([sides / 2 + (1 - sides) * u[..., :2], sides], dim=-1)


def test_scaling_and_its_inverse_are_identities():
    boxes = some_boxes(50)
    assert torch.allclose(unscale_boxes(scale_boxes(boxes, 2.0), 2.0), boxes, atol=1e-6)
    assert torch.allclose(scale_boxes(unscale_boxes(boxes, 2.0), 2.0), boxes, atol=1e-6)
    assert torch.equal(scale_boxes(torch.tensor([0.0, 0.5, 1.0]), 2.0), torch.tensor([-2.0, 0.0, 2.0]))


def test_clipped_boxes_have_positive_area():
    wild = 30 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(1000))
    clipped = clip_boxes(wild)
    assert (clipped[:, 2:].prod(dim=1) > 0).all() and (clipped >= 0).all() and (clipped <= 1).all()
    assert torch.equal(clip_boxes(some_boxes(20)), some_boxes(20))


def test_iou_of_known_boxes():
    a = torch.tensor([0.5, 0.5, 0.4, 0.4])
    for b, overlap, giou in (
        ([0.5, 0.5, 0.4, 0.4], 1.0, 1.0),
        ([0.7, 0.5, 0.4, 0.4], 1 / 3, 1 / 3),  # half of each, hull equals union
        ([0.5, 0.5, 0.2, 0.2], 0.25, 0.25),
        ([0.1, 0.5, 0.2, 0.4], 0.0, -0.04 / 0.28),  # apart by .1
    ):
        found = iou_and_giou(a, torch.tensor(b))
        assert found[0].item() == pytest.approx(overlap, abs=1e-6)
        assert found[1].item() == pytest.approx(giou, abs=1e-6)
    assert torch.allclose(iou(some_boxes(9)[:, None], some_boxes(9)).diagonal(), torch.ones(9))


def test_roi_align_of_a_linear_ramp_is_the_ramp_at_the_bins_centres():
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    ramp = torch.stack([3 * (x + 0.5) / 12 - 2 * (y + 0.5) / 12, torch.ones(12, 12)])[None]  # of shares of the side
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.6], [0.3, 0.6, 0.2, 0.3]]])
    found = roi_align(ramp, boxes)
    low, high = corners(boxes[0]).split(2, dim=1)
    centres = low[:, None] + (high - low)[:, None] * ((torch.arange(7.0) + 0.5) / 7)[:, None]  # (2, 7, 2)
    expected = 3 * centres[:, None, :, 0] - 2 * centres[:, :, None, 1]
    assert found.shape == (1, 2, 2, 7, 7)
    assert torch.allclose(found[0, :, 0], expected, atol=1e-4) and torch.allclose(found[0, :, 1], torch.ones(7, 7))


def test_roi_align_agrees_with_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    features, boxes = torch.randn(2, 3, 12, 12), some_boxes(2, 5)
    theirs = ops.roi_align(features, list(12 * corners(boxes)), 7, sampling_ratio=2, aligned=True)
    assert torch.allclose(roi_align(features, boxes).flatten(0, 1), theirs, atol=1e-5)


def test_assignment_is_the_hungarian_one_where_each_truth_takes_one():
    """Small predictions beside the truths overlap nothing, so every truth takes its cheapest one."""
    truths, labels = torch.tensor([[[0.2, 0.2], [0.2, 0.7], [0.7, 0.2]]]), torch.tensor([[4, 0, 7]])
    truths = torch.cat([truths, torch.full((1, 3, 2), 0.1)], dim=2)
    beside = truths + torch.tensor([0.12, 0.0, -0.06, -0.06])
    boxes = torch.cat([beside, torch.full((1, 9, 4), 3.0)], dim=1)[:, torch.randperm(12)]
    distance = (boxes[0][:, None] - truths[0]).abs().sum(dim=-1)
    rows, columns = linear_sum_assignment(5 * distance - 2 * iou_and_giou(boxes[0][:, None], truths[0])[1])
    found = assign(torch.zeros(1, 12, 10), boxes, truths, labels)[0]
    assert found[rows].tolist() == columns.tolist() and (found >= 0).sum() == 3


def test_assignment_takes_as_many_as_overlap_and_none_for_what_is_absent():
    truths = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.0, 0.0, 0.0, 0.0]]])
    labels = torch.tensor([[1, 2, -1]])
    boxes = torch.cat([truths[:, :1]] * 3 + [truths[:, 1:2]] * 2 + [torch.full((1, 5, 4), 0.1)], dim=1)
    found = assign(torch.zeros(1, 10, 10), boxes, truths, labels)
    assert found.tolist() == [[0, 0, 0, 1, 1, -1, -1, -1, -1, -1]]
    assert (assign(torch.zeros(1, 10, 10), boxes, truths, torch.full((1, 3), -1)) == -1).all()


def test_loss_is_least_at_the_truth():
    truths, labels = some_boxes(2, 3), torch.tensor([[1, 2, 3], [4, 5, -1]])
    boxes = torch.cat([truths, some_boxes(2, 9, seed=7)], dim=1)
    logits = torch.full((2, 12, 10), -8.0)
    for n, g in (labels >= 0).nonzero().tolist():
        logits[n, g, labels[n, g]] = 8.0
    least = set_loss(logits, boxes, truths, labels)
    shifted = boxes.clone()
    shifted[:, :3, 0] += 0.05
    assert least < 0.05 < set_loss(logits, shifted, truths, labels)
    assert set_loss(-logits, boxes, truths, labels) > 1


def test_focal_loss_of_known_values():
    logits = torch.tensor([0.0, np.log(3)])  # p = 1/2, 3/4
    found = focal_loss(logits, torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([0.25 * 0.25 * np.log(2), 0.75 * 0.5625 * np.log(4)], rel=1e-5)


def test_suppression_keeps_the_best_of_what_overlaps_within_a_class():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4], [0.52, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]])
    scores, labels = torch.tensor([[0.8, 0.9, 0.7, 0.3]]), torch.tensor([[1, 1, 2, 1]])
    assert suppress(boxes[None], scores, labels, keep=4).tolist() == [[1, 2, 3, -1]]
    assert suppress(boxes[None], scores, labels, keep=2).tolist() == [[1, 2]]


def detections(seed, n=6, m=30, truths=4):
    """Noisy copies of the truths and random boxes."""
    rng = np.random.default_rng(seed)
    boxes = some_boxes(n, truths, seed=seed)
    classes = rng.integers(-1, 3, (n, truths))
    pick = rng.integers(0, truths, (n, m))
    copies = np.take_along_axis(boxes.numpy(), pick[..., None], axis=1) + 0.04 * rng.standard_normal((n, m, 4))
    copies[..., 2:] = np.clip(copies[..., 2:], 0.02, 1)
    random = some_boxes(n, m, seed=seed + 1).numpy()
    found = np.where(rng.random((n, m, 1)) < 0.6, copies, random)
    labels = np.where(rng.random((n, m)) < 0.7, np.take_along_axis(classes, pick, axis=1), rng.integers(0, 3, (n, m)))
    scores = np.round(rng.random((n, m)), 2)  # with ties
    return found, scores, labels, boxes.numpy(), classes


def test_perfect_detections_have_ap_one_and_duplicates_lower_it():
    *_, truths, classes = detections(1000)
    scores = np.random.default_rng(0).random(classes.shape)
    assert average_precision(truths, scores, classes, truths, classes) == {"ap": 1.0, "ap50": 1.0}
    doubled = [np.concatenate([x, x], axis=1) for x in (truths, scores, classes)]
    shuffled = np.random.default_rng(1).permutation(doubled[1].ravel()).reshape(doubled[1].shape)
    assert average_precision(doubled[0], shuffled, doubled[2], truths, classes)["ap"] < 0.95
    assert average_precision(truths, scores, (classes + 1) % 3, truths, classes)["ap"] < 0.5
    nothing = np.full_like(classes, -1)
    assert average_precision(truths, scores, nothing, truths, classes) == {"ap": 0.0, "ap50": 0.0}


def test_ap_by_hand():
    """Two truths; a hit at .9, a miss at .8, a hit at .7: precision 1 up to recall 1/2, then 2/3."""
    truths = np.array([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    boxes = np.array([[[0.3, 0.3, 0.2, 0.2], [0.1, 0.9, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]])
    scores, labels, classes = np.array([[0.9, 0.8, 0.7]]), np.zeros((1, 3), int), np.zeros((1, 2), int)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert average_precision(boxes, scores, labels, truths, classes)["ap"] == pytest.approx(expected)


def test_ap_is_cocos():
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    for seed in range(1000, 1050):
        boxes, scores, labels, truths, classes = detections(seed)
        side = 48.0

        def entry(box, side=side):
            x0, y0, x1, y1 = corners(torch.from_numpy(np.asarray(box, float))).numpy() * side
            return {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}

        gt = [
            {**entry(truths[i, j]), "image_id": i + 1, "category_id": int(classes[i, j]) + 1, "iscrowd": 0}
            for i, j in np.argwhere(classes >= 0)
        ]
        dt = [
            {
                "bbox": entry(boxes[i, j])["bbox"],
                "image_id": int(i) + 1,
                "category_id": int(labels[i, j]) + 1,
                "score": scores[i, j],
            }
            for i, j in np.argwhere(labels >= 0)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco.COCO()
            truth.dataset = {
                "images": [{"id": i + 1} for i in range(len(boxes))],
                "categories": [{"id": c + 1} for c in range(3)],
                "annotations": [{**a, "image_id": int(a["image_id"]), "id": k + 1} for k, a in enumerate(gt)],
            }
            truth.createIndex()
            judge = cocoeval.COCOeval(truth, truth.loadRes(dt), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        found = average_precision(boxes, scores, labels, truths, classes)
        assert found["ap"] == pytest.approx(judge.stats[0], abs=1e-6)
        assert found["ap50"] == pytest.approx(judge.stats[1], abs=1e-6)
