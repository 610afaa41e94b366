"""Lending Club: is a loan paid back? 9,857 loans, 5% of which go bad.

Arrays:
    numeric (9857, 17) float64      columns NUMERIC
    categorical (9857, 5) int64     columns CATEGORICAL; place among the column's values (ordered ones ascend)
    label (9857,) int64             1: bad

Origin: Lending Club's public loan data of 2016, through the R package modeldata (`lending_club`, a sample of them).
Licence: MIT (the package).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data import modeldata
from papertrial.data.tables import code, codes, numbers

NUMERIC = {  # name: a public range
    "funded_amnt": (0, 40_000),  # $
    "int_rate": (0, 31),  # % a year
    "annual_inc": (0, 1_000_000),  # $
    "delinq_2yrs": (0, 30),  # payments 30 days late in two years
    "inq_last_6mths": (0, 6),  # credit inquiries
    "revol_util": (0, 150),  # % of the revolving credit that is used
    "acc_now_delinq": (0, 5),  # accounts that are late now
    "open_il_6m": (0, 50),  # open instalment accounts
    "open_il_12m": (0, 25),  # of these opened in the last year
    "open_il_24m": (0, 50),  # in the last two years
    "total_bal_il": (0, 1_000_000),  # $ owed on instalment accounts
    "all_util": (0, 200),  # % of all credit that is used
    "inq_fi": (0, 20),  # personal finance inquiries
    "inq_last_12m": (0, 40),
    "delinq_amnt": (0, 100_000),  # $ past due
    "num_il_tl": (0, 100),  # instalment accounts, ever
    "total_il_high_credit_limit": (0, 1_000_000),  # $
}
CATEGORICAL = {
    "term": ("term_36", "term_60"),  # months
    "sub_grade": tuple(f"{grade}{step}" for grade in "ABCDEFG" for step in range(1, 6)),  # A1 is the safest
    "addr_state": (
        "AK", "AL", "AR", "AZ", "CA", "CO", "CT", "DC", "DE", "FL", "GA", "HI", "ID", "IL", "IN", "KS", "KY", "LA",
        "MA", "MD", "ME", "MI", "MN", "MO", "MS", "MT", "NC", "ND", "NE", "NH", "NJ", "NM", "NV", "NY", "OH", "OK",
        "OR", "PA", "RI", "SC", "SD", "TN", "TX", "UT", "VA", "VT", "WA", "WI", "WV", "WY",
    ),
    "verification_status": ("Not_Verified", "Source_Verified", "Verified"),  # of the income
    "emp_length": ("emp_lt_1", *(f"emp_{years}" for years in range(1, 10)), "emp_ge_10", "emp_unk"),  # years
}  # fmt: skip
LABEL = ("good", "bad")

SOURCES = modeldata.SOURCES


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = modeldata.frame(files, "lending_club")
    return {
        "numeric": numbers(table, NUMERIC),
        "categorical": codes(table, CATEGORICAL),
        "label": code("Class", table["Class"], LABEL),
    }
