"""Diabetes: how far does the disease progress in a year, from ten measurements at its start?

Arrays:
    x (442, 10) float64    columns FEATURES in their units, neither centred nor scaled
    y (442,) float64       progression after one year, 25 to 346

Origin: Efron, Hastie, Johnstone and Tibshirani 2004 (Least Angle Regression), as scikit-learn ships it. Licence:
BSD-3 (scikit-learn).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Installed, PyPI, Source

FEATURES = ("age", "sex", "bmi", "blood pressure", "tc", "ldl", "hdl", "tch", "ltg", "glu")  # sex is 1 or 2

SHA256 = {
    "diabetes_data_raw.csv": "86badf50b4f9436ddd1e497dc0ae1b93166f8120221ee7dca4634fe849f3be7c",
    "diabetes_target.csv": "244713a551f62a291a354212d8a048adec6cb1244b2bc44e66a0698f5006d26d",
}
SOURCES = tuple(
    Source(
        f"diabetes/{name}",
        sha256,
        (
            Installed("sklearn", f"datasets/data/{name}.gz"),
            PyPI("scikit-learn", "1.9.1", member=f"sklearn/datasets/data/{name}.gz"),
        ),
    )
    for name, sha256 in SHA256.items()
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    x, y = (np.loadtxt(files[source.file]) for source in SOURCES)
    return {"x": x, "y": y}
