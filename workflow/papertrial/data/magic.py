"""Magic: did a gamma ray or a hadron cause the shower of light that a telescope saw? 19,020 simulated showers.

Arrays:
    x (19020, 10) float64    columns FEATURES: the image's ellipse and how light spreads in it
    y (19020,) int64         1: gamma (12,332)

Origin: UCI "MAGIC Gamma Telescope" (Bock 2007), a Monte Carlo simulation, as the KEEL repository has it. Licence:
CC BY 4.0 (UCI).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data import keel
from papertrial.data.tables import code, columns, numbers

FEATURES = ("length", "width", "size", "conc", "conc1", "asym", "m3_long", "m3_trans", "alpha", "dist")
LABEL = ("h", "g")

SOURCES = (keel.table("magic", "e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a"),)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = columns(files[SOURCES[0].file].read_text("ascii"), (*FEATURES, "class"))
    return {"x": numbers(table, FEATURES), "y": code("class", table["class"], LABEL)}
