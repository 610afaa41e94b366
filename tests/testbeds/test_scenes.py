"""scenes48: boxes hold their things, what is hidden is bounded, scenes follow from their seed."""

import numpy as np
import pytest

from papertrial.testbeds import scenes as testbed
from papertrial.testbeds.scenes import MOST, SIDE, cut_out, interpolation, scenes


@pytest.fixture(scope="module")
def pool():
    """Bright rectangles with a margin."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((40, 28, 28), np.uint8)
    for picture in pictures:
        height, width = rng.integers(8, 25, 2)
        picture[2 : 2 + height, 2 : 2 + width] = 255
    return pictures, np.arange(40) % 10


def test_interpolation_is_exact_on_constants_and_ramps():
    for size, source in ((24, 12), (10, 28), (7, 7)):
        weights = interpolation(size, source)
        assert np.allclose(weights.sum(axis=1), 1)
        inside = slice(3, -3)
        expected = (np.arange(size) + 0.5) * source / size - 0.5
        assert np.allclose(
            (weights @ np.arange(source))[inside], expected[inside], atol=1e-9 if size >= source else 0.05
        )
    assert np.allclose(interpolation(7, 7), np.eye(7))


@pytest.mark.parametrize("longer", [10, 24])
def test_things_are_scaled_to_the_side_asked_for(longer, pool):
    for picture in pool[0][:5] / 255:
        assert max(cut_out(picture, longer).shape) == longer


def test_boxes_are_tight_and_inside(pool):
    made = scenes(*pool, 40, seed=1000)
    assert made.x.shape == (40, SIDE, SIDE) and made.boxes.shape == (40, MOST, 4)
    assert made.there[:, 0].all() and (made.there.sum(axis=1) <= MOST).all()
    boxes = made.boxes[made.there]
    assert (boxes[:, :2] - boxes[:, 2:] / 2 >= -1e-6).all() and (boxes[:, :2] + boxes[:, 2:] / 2 <= 1 + 1e-6).all()
    longer = 48 * boxes[:, 2:].max(axis=1)
    assert longer.min() >= 10 - 1e-3 and longer.max() <= 24 + 1e-3
    assert (made.boxes[~made.there] == 0).all()


def test_a_lone_thing_is_where_its_box_says(pool, monkeypatch):
    monkeypatch.setattr(testbed, "clutter", lambda *a: None)
    monkeypatch.setattr(testbed, "NOISE", 0.0)
    made = scenes(*pool, 30, seed=1000)
    alone = made.there.sum(axis=1) == 1
    assert alone.any()
    for x, box in zip(made.x[alone], made.boxes[alone, 0], strict=True):
        bright = x > 255 * 0.5
        rows, columns = (np.flatnonzero(bright.any(axis=a)) for a in (1, 0))
        edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        cx, cy, w, h = 48 * box
        assert np.abs(edges - [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]).max() <= 1


def test_things_stay_visible(pool, monkeypatch):
    """Rectangles of one brightness each: the part that is seen is what has the thing's brightness."""
    monkeypatch.setattr(testbed, "clutter", lambda *a: None)
    monkeypatch.setattr(testbed, "NOISE", 0.0)
    made = scenes(*pool, 40, seed=1001)
    for x, boxes in zip(made.x, made.boxes, strict=True):
        for cx, cy, w, h in 48 * boxes[boxes[:, 2] > 0]:
            inside = x[round(cy - h / 2) : round(cy + h / 2), round(cx - w / 2) : round(cx + w / 2)]
            _, counts = np.unique(inside, return_counts=True)
            assert counts.max() >= 0.5 * inside.size  # 60%, less the faded edge


def test_scenes_follow_from_their_seed(pool):
    first, again, other = (scenes(*pool, 5, seed=s) for s in (1000, 1000, 1001))
    assert (first.x == again.x).all() and (first.boxes == again.boxes).all()
    assert (first.x != other.x).any()
