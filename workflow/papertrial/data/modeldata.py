"""The R package modeldata 1.1.0, which several data sets come from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from papertrial.data.rfiles import package_object
from papertrial.data.sources import Address, Debian, Source

SOURCES = (
    Source(
        "modeldata/modeldata_1.1.0",
        "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95",  # Debian's build
        (
            Debian("r-cran-modeldata", "1.1.0-1"),
            Address("https://cran.r-project.org/src/contrib/Archive/modeldata/modeldata_1.1.0.tar.gz"),
        ),
        also=("9c5bc17a94026ffc49ed47899107381ddbf7392938d000dd72566dc836b25873",),  # the authors' package
    ),
)


def frame(files: Mapping[str, Path], name: str) -> Any:
    """The pandas DataFrame `name` of the package."""
    return package_object(files[SOURCES[0].file], "modeldata", name)
