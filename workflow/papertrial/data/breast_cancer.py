"""Wisconsin diagnostic breast cancer: is a tumour benign, from measurements of its cells' nuclei?

Arrays:
    x (569, 30) float64    ten shape measures of the nuclei: means, then standard errors, then the worst; see FEATURES
    y (569,) int64         1: benign (357), 0: malignant (212)

Origin: Wolberg, Mangasarian, Street and Street 1993 (UCI), as scikit-learn ships it. Licence: CC BY 4.0 (UCI), BSD-3.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Installed, PyPI, Source

MEASURES = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
)  # fmt: skip
FEATURES = tuple(f"{summary} {measure}" for summary in ("mean", "error", "worst") for measure in MEASURES)

SOURCES = (
    Source(
        "breast_cancer/breast_cancer.csv",
        "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed",
        (
            Installed("sklearn", "datasets/data/breast_cancer.csv"),
            PyPI("scikit-learn", "1.9.1", member="sklearn/datasets/data/breast_cancer.csv"),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = np.loadtxt(files[SOURCES[0].file], delimiter=",", skiprows=1)  # (569, 31): 30 features, the class
    return {"x": table[:, :30].copy(), "y": table[:, 30].astype(np.int64)}
