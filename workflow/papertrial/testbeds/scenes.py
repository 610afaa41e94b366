"""scenes48: small grey pictures with one to five things in them, to try object detectors on.

Things are cut out of Fashion-MNIST, scaled to a longer side of 10 to 24 pixels, dimmed at random and laid over each
other on a 48 x 48 canvas such that each stays visible to 60%. Clutter, patches from the borders of other pictures,
lies below them, and noise over everything. A box holds the whole thing, hidden parts included.
"""

from dataclasses import dataclass

import numpy as np

SIDE, MOST, CLASSES = 48, 5, 10
SMALLEST, LARGEST = 10, 24  # longer side of a thing, pixels
VISIBLE = 0.6
INK = 0.1  # brightness from which on a pixel belongs to the thing
NOISE = 0.05
ATTEMPTS = 20  # to place a thing


@dataclass(frozen=True)
class Scenes:
    """n pictures and what is in them.

    x: (n, 48, 48) uint8, brightness / 255.
    boxes: (n, 5, 4) float32, cx, cy, w, h as shares of the side; zeros where there is nothing.
    labels: (n, 5) int64, -1 where there is nothing.
    """

    x: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """(n, 5) bool."""
        return self.labels >= 0


def interpolation(size: int, source: int) -> np.ndarray:
    """(size, source): linear interpolation, with the hat widened where it shrinks; rows sum to 1."""
    step = source / size
    centres = (np.arange(size) + 0.5) * step - 0.5
    hat = np.maximum(0, 1 - np.abs(np.arange(source) - centres[:, None]) / max(step, 1.0))
    return hat / hat.sum(axis=1, keepdims=True)


def cut_out(picture: np.ndarray, longer: int) -> np.ndarray:
    """A thing in [0, 1] without its margins, its longer side scaled to ``longer`` pixels."""
    rows, columns = (np.flatnonzero((picture > INK).any(axis=1 - axis)) for axis in (0, 1))
    thing = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(2, round(longer * side / max(thing.shape))) for side in thing.shape)
    return interpolation(height, thing.shape[0]) @ thing @ interpolation(width, thing.shape[1]).T


def clutter(canvas: np.ndarray, pictures: np.ndarray, rng: np.random.Generator) -> None:
    """Lay two to four patches of 6 to 10 pixels from the borders of pictures onto the canvas."""
    for _ in range(rng.integers(2, 5)):
        height, width = rng.integers(6, 11, 2)
        turned = np.rot90(pictures[rng.integers(len(pictures))], rng.integers(4))
        left = rng.integers(0, turned.shape[1] - width + 1)
        y, x = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
        patch = turned[3 : 3 + height, left : left + width]  # the outermost rows are black
        canvas[y : y + height, x : x + width] = np.maximum(
            canvas[y : y + height, x : x + width], rng.uniform(0.3, 0.8) * patch
        )


def scene(
    pictures: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[float, float, float, float]], list[int]]:
    """One canvas (48, 48) in [0, 1], and the boxes and labels of its things."""
    canvas = np.full((SIDE, SIDE), rng.uniform(0, 0.2))
    clutter(canvas, pictures, rng)
    boxes, found, masks = [], [], []
    for _ in range(rng.integers(1, MOST + 1)):
        i = rng.integers(len(pictures))
        thing = cut_out(pictures[i], rng.integers(SMALLEST, LARGEST + 1))
        height, width = thing.shape
        brightness = rng.uniform(0.6, 1.0)
        for _ in range(ATTEMPTS):
            y, x = rng.integers(0, SIDE - height + 1), rng.integers(0, SIDE - width + 1)
            mask = np.zeros((SIDE, SIDE), bool)
            mask[y : y + height, x : x + width] = thing > INK
            if all((seen & ~mask).sum() >= VISIBLE * whole for seen, whole in masks):
                masks = [(seen & ~mask, whole) for seen, whole in masks] + [(mask, mask.sum())]
                canvas[mask] = brightness * thing[thing > INK]
                boxes.append(((x + width / 2) / SIDE, (y + height / 2) / SIDE, width / SIDE, height / SIDE))
                found.append(int(labels[i]))
                break
    return np.clip(canvas + NOISE * rng.standard_normal(canvas.shape), 0, 1), boxes, found


def scenes(pictures: np.ndarray, labels: np.ndarray, n: int, seed: int) -> Scenes:
    """n scenes from a pool of things.

    Args:
        pictures: (m, 28, 28) uint8.
        labels: (m,) 0..9.
    """
    rng, bright = np.random.default_rng(seed), pictures.astype(np.float32) / 255
    made = Scenes(
        np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, MOST, 4), np.float32), np.full((n, MOST), -1, np.int64)
    )
    for i in range(n):
        canvas, boxes, found = scene(bright, labels, rng)
        made.x[i] = np.rint(255 * canvas)
        made.boxes[i, : len(boxes)], made.labels[i, : len(found)] = boxes, found
    return made
