"""Letter: which capital letter is a distorted image of 20 fonts? 20,000 images, by 16 measurements.

Arrays:
    x (20000, 16) float64    columns FEATURES: moments and edge counts, scaled to the integers 0 to 15
    y (20000,) int64         0: A ... 25: Z

Origin: UCI "Letter Recognition" (Frey and Slate 1991), as the KEEL repository has it. Licence: CC BY 4.0 (UCI).
"""

import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data import keel
from papertrial.data.tables import code, columns, numbers

FEATURES = (
    "x-box", "y-box", "width", "high", "onpix", "x-bar", "y-bar", "x2bar", "y2bar", "xybar", "x2ybr", "xy2br", "x-ege",
    "xegvy", "y-ege", "yegvx",
)  # fmt: skip
LABEL = tuple(string.ascii_uppercase)

SOURCES = (keel.table("letter", "8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa"),)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = columns(files[SOURCES[0].file].read_text("ascii"), (*FEATURES, "letter"))
    return {"x": numbers(table, FEATURES), "y": code("letter", table["letter"], LABEL)}
