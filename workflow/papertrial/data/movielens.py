"""MovieLens small: how many stars did a viewer give a film? 100,004 ratings by 671 viewers.

Arrays:
    user (100004,) int64       0..670
    film (100004,) int64       0..9065
    rating (100004,) float64   half stars, 0.5 to 5
    time (100004,) int64       seconds since 1970, when the rating was given

Ratings come in the source's order, by viewer. Viewers have rated 20 films at least; a third of the films have one
rating only.

Origin: GroupLens, ml-latest-small of October 2016 (Harper and Konstan 2015), through the R package dslabs
(`movielens`). Licence: GroupLens' (research use, acknowledged), Artistic-2.0 (the package).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.archives import is_debian
from papertrial.data.rfiles import package_object, rda_objects
from papertrial.data.sources import Address, Debian, Source

CRAN = "https://raw.githubusercontent.com/cran/dslabs/85e0bb38557b86e734bcdd9786b6160ee7041aaa"  # 0.7.4
SOURCES = (
    Source(
        "movielens/dslabs_0.7.4",
        "c3f93382c44d4581de9561792a87b110cb239c70771cac5ad63fa0a259e71ef3",  # Debian's build
        (
            Debian("r-cran-dslabs", "0.7.4-1"),
            Address(f"{CRAN}/data/movielens.rda"),
        ),
        also=(
            "a16879541927d66c9b7d7f2a2eb23306c4ce1aa285d20a6db1d6434c80a1483c",
        ),  # the one file of the authors' package
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    file = files[SOURCES[0].file]
    if is_debian(file):
        table = package_object(file, "dslabs", "movielens")
    else:
        table = rda_objects(file.read_bytes())["movielens"]
    return {
        "user": places(table["userId"]),
        "film": places(table["movieId"]),
        "rating": np.asarray(table["rating"], dtype=float),
        "time": np.asarray(table["timestamp"], dtype=np.int64),
    }


def places(names: object) -> np.ndarray:
    """The place of each number among the sorted ones that occur."""
    return np.unique(np.asarray(names, dtype=np.int64), return_inverse=True)[1].astype(np.int64)
