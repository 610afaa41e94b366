"""Colour transfer as optimal transport: the colours of one photograph are matched with those of another.

Both pictures are reduced to a palette by k-means; a colour's mass is the share of pixels next to it.
"""

import numpy as np
from scipy.cluster.vq import kmeans2

from papertrial.testbeds.transport import OT, squared_distances


def palette(photograph: np.ndarray, size: int, seed: int, pixels: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """At most ``size`` colours (size, 3) of a photograph and their masses (size,); no colour is without mass.

    Args:
        photograph: (h, w, 3) uint8.
        pixels: how many of the pixels, drawn by the seed, k-means looks at.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.choice(photograph.reshape(-1, 3) / 255.0, pixels)  # (pixels, 3)
    colours, nearest = kmeans2(drawn, size, minit="++", missing="warn", rng=rng)
    mass = np.bincount(nearest, minlength=size) / pixels
    return colours[mass > 0], mass[mass > 0]


def palette_pair(
    source: np.ndarray, target: np.ndarray, size: int, seed: int
) -> tuple[OT, tuple[np.ndarray, np.ndarray]]:
    """Transport between the palettes of two photographs, squared distances in RGB scaled to 1 at most.

    Returns:
        the problem, and the colours (m, 3) and (n, 3) of its rows and columns.
    """
    (x, r), (y, c) = palette(source, size, seed), palette(target, size, seed)
    C = squared_distances(x, y)
    return OT(C / C.max(), r, c), (x, y)
