"""Pima: will a woman develop diabetes, from eight measurements? 768 Pima women of 21 years or more.

Arrays:
    x (768, 8) float64    columns FEATURES in their units; a glucose, pressure, skin, insulin or mass of 0 is missing
    y (768,) int64        1: diabetes (268)

Origin: National Institute of Diabetes and Digestive and Kidney Diseases (Smith et al. 1988), as the KEEL repository has
it. Licence: CC0 (the former UCI page).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data import keel
from papertrial.data.tables import code, columns, numbers

FEATURES = ("pregnancies", "glucose", "pressure", "skin", "insulin", "mass", "pedigree", "age")
LABEL = ("tested_negative", "tested_positive")

SOURCES = (keel.table("pima", "8c47d6392aa12d154ed5c34ee8c98fe7827d8554d04a4ffec1fafd75741e24fd"),)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = columns(files[SOURCES[0].file].read_text("ascii"), (*FEATURES, "class"))
    return {"x": numbers(table, FEATURES), "y": code("class", table["class"], LABEL)}
