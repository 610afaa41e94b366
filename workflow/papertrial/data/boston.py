"""Boston: what is a house worth in each of 506 census tracts, from 13 numbers on the tract?

Arrays:
    x (506, 13) float64    columns FEATURES in the source's units
    y (506,) float64       median value of owner-occupied homes, in $1000, cut off at 50

Among the features is a function of the share of Black residents (`b`): a regression benchmark, not a model to use.

Origin: Harrison and Rubinfeld 1978 on the census of 1970, through the R package mlbench (`BostonHousing`). Licence:
GPL-2 (the package).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.rfiles import rda_objects
from papertrial.data.sources import Address, Debian, Source
from papertrial.data.tables import numbers

FEATURES = ("crim", "zn", "indus", "chas", "nox", "rm", "age", "dis", "rad", "tax", "ptratio", "b", "lstat")

CRAN = "https://raw.githubusercontent.com/cran/mlbench/284897141ab0b6122499f759257fddb67d1bcadb"
SOURCES = (
    Source(
        "boston/BostonHousing.rda",
        "ba0ed85a4af37d0b89ae8742b25d8a0c79b1c132c3e25f6a413639ddbba49e1b",
        (
            Debian("r-cran-mlbench", "2.1-3-1", member="usr/lib/R/site-library/mlbench/data/BostonHousing.rda"),
            Address(f"{CRAN}/data/BostonHousing.rda"),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = rda_objects(files[SOURCES[0].file].read_bytes())["BostonHousing"]
    return {"x": numbers(table, FEATURES), "y": numbers(table, ("medv",))[:, 0].copy()}
