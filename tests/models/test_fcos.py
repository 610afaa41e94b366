"""The dense detector: places, targets of known boxes, a loss that is least at the truth."""

import pytest
import torch

from papertrial.models.arrays import seeded
from papertrial.models.fcos import DenseHead, dense_detections, dense_loss, places, targets


def test_places_are_the_pixels_centres():
    assert places(2, 4).tolist() == [[x / 8, y / 4] for y in (1, 3) for x in (1, 3, 5, 7)]


def test_a_place_answers_for_the_smallest_thing_it_is_in():
    truths = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.25, 0.25], [0.1, 0.1, 0.9, 0.9]]])
    labels = torch.tensor([[3, 4, -1]])
    truth, centredness = targets(truths, labels, 12, 12)
    answered = truth.view(12, 12)
    assert (answered[5:7, 5:7] == 1).all()  # within both, the smaller one
    assert (answered == 2).sum() == 0  # nothing is there
    assert (answered[:4] == -1).all()  # the big one reaches up to 1.5 places from its middle only
    assert (answered >= 0).sum() == 4
    y, x = (5.5 / 12, 5.5 / 12)
    ratio = (0.125 - 0.5 / 12) / (0.125 + 0.5 / 12)
    assert (0.5 - y, 0.5 - x) == pytest.approx((0.5 / 12, 0.5 / 12))
    assert centredness.view(12, 12)[5, 5].item() == pytest.approx(ratio, abs=1e-6)  # the same along both axes


def test_loss_falls_towards_the_truth_and_detections_find_it():
    head = seeded(lambda: DenseHead(4, 8), 1000)
    features = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(1000))
    truths, labels = torch.tensor([[[0.5, 0.5, 0.3, 0.4]], [[0.3, 0.6, 0.3, 0.3]]]), torch.tensor([[2], [7]])
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = dense_loss(head, features, truths, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    boxes, scores, found = dense_detections(head, features, most=10)
    assert boxes.shape == (2, 10, 4) and (scores.diff(dim=1) <= 0).all()
    assert found[:, 0].tolist() == [2, 7]


def test_loss_without_anything_there_is_finite():
    head = seeded(lambda: DenseHead(4, 8), 1000)
    loss = dense_loss(head, torch.randn(1, 4, 12, 12), torch.zeros(1, 5, 4), torch.full((1, 5), -1))
    assert torch.isfinite(loss)
