"""Handwritten digits in 8 x 8: 1,797 of them, small enough for anything.

Arrays:
    x (1797, 8, 8) uint8    ink in 0..16
    y (1797,) int64         the digit

Origin: the test part of the UCI set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), as
scikit-learn ships it. Licence: CC BY 4.0 (UCI), BSD-3 (scikit-learn).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Installed, PyPI, Source

SOURCES = (
    Source(
        "digits/digits.csv",
        "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
        (
            Installed("sklearn", "datasets/data/digits.csv.gz"),
            PyPI("scikit-learn", "1.9.1", member="sklearn/datasets/data/digits.csv.gz"),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = np.loadtxt(files[SOURCES[0].file], delimiter=",")  # (1797, 65): 64 pixels, the digit
    return {"x": table[:, :64].astype(np.uint8).reshape(-1, 8, 8), "y": table[:, 64].astype(np.int64)}
