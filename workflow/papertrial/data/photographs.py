"""Two colour photographs: an astronaut (Eileen Collins, 1999) and a cup of coffee.

Arrays:
    astronaut (512, 512, 3) uint8    red, green, blue
    coffee (400, 600, 3) uint8       likewise

Origin: NASA, and Rachel Michetti (2014), as scikit-image ships them. Licence: public domain, and CC0.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, PyPI, Source

GITLAB = "https://gitlab.com/scikit-image/data/-/raw/5c090b56df3988d988ff97928e2ef2d2cbe38e1b"
SHA256 = {
    "astronaut": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "coffee": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
}
SOURCES = tuple(
    Source(
        f"photographs/{name}.png",
        sha256,
        (
            PyPI("scikit-image", "0.26.0", member=f"skimage/data/{name}.png"),
            Address(f"{GITLAB}/{name}.png"),
        ),
    )
    for name, sha256 in SHA256.items()
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    from PIL import Image

    return {name: np.asarray(Image.open(files[s.file]).convert("RGB")) for name, s in zip(SHA256, SOURCES, strict=True)}
