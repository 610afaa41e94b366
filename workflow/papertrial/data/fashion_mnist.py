"""Fashion-MNIST: 70,000 grey pictures of clothing, in ten classes of the same size.

Arrays:
    x_train (60000, 28, 28) uint8, x_test (10000, 28, 28) uint8    brightness, 0 is background
    y_train (60000,) int64, y_test (10000,) int64                  place in CLASSES

Origin: Xiao, Rasul and Vollgraf 2017 (Zalando Research). Licence: MIT.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, Debian, Source

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

DEBIAN = "usr/share/datasets/fashion-mnist"
AUTHORS = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141"
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SOURCES = tuple(
    Source(
        f"fashion_mnist/{name}",
        sha256,
        (
            Debian("dataset-fashion-mnist", member=f"{DEBIAN}/{name}.gz"),
            Address(f"{AUTHORS}/data/fashion/{name}.gz"),
        ),
    )
    for name, sha256 in SHA256.items()
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    train_x, train_y, test_x, test_y = (files[source.file].read_bytes() for source in SOURCES)
    return {
        "x_train": images(train_x),
        "y_train": labels(train_y),
        "x_test": images(test_x),
        "y_test": labels(test_y),
    }


def images(idx: bytes) -> np.ndarray:
    """(n, 28, 28) uint8 from an idx3 file: 16 bytes of header, then the pixels."""
    return np.frombuffer(idx, np.uint8, offset=16).reshape(-1, 28, 28)


def labels(idx: bytes) -> np.ndarray:
    """(n,) int64 from an idx1 file: 8 bytes of header, then a byte a label."""
    return np.frombuffer(idx, np.uint8, offset=8).astype(np.int64)
