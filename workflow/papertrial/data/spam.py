"""Spam: is an e-mail advertising? Word and character frequencies of 4,601 e-mails of the 1990s.

Arrays:
    x (4601, 57) float64    columns FEATURES: percentages of words and characters, and lengths of runs of capitals
    y (4601,) int64         1: spam (1,813)

Origin: UCI "Spambase" (Hopkins, Reeber, Forman and Suermondt 1999), through the R package kernlab (`spam`). Licence:
CC BY 4.0 (UCI), GPL-2 (the package).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.rfiles import rda_objects
from papertrial.data.sources import Address, Debian, Source
from papertrial.data.tables import code, numbers

FEATURES = (
    "make", "address", "all", "num3d", "our", "over", "remove", "internet", "order", "mail", "receive", "will",
    "people", "report", "addresses", "free", "business", "email", "you", "credit", "your", "font", "num000", "money",
    "hp", "hpl", "george", "num650", "lab", "labs", "telnet", "num857", "data", "num415", "num85", "technology",
    "num1999", "parts", "pm", "direct", "cs", "meeting", "original", "project", "re", "edu", "table", "conference",
    "charSemicolon", "charRoundbracket", "charSquarebracket", "charExclamation", "charDollar", "charHash",
    "capitalAve", "capitalLong", "capitalTotal",
)  # fmt: skip
LABEL = ("nonspam", "spam")

CRAN = "https://raw.githubusercontent.com/cran/kernlab/07c4bf72d0ad77e73adb41190770e460006b8bbd"
SOURCES = (
    Source(
        "spam/spam.rda",
        "09281b38bc7b064f63616d9056091f924f59e38aa9fd07dd3bc1af0cba9613d3",
        (
            Debian("r-cran-kernlab", "0.9-32-1", member="usr/lib/R/site-library/kernlab/data/spam.rda"),
            Address(f"{CRAN}/data/spam.rda"),
        ),
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    table = rda_objects(files[SOURCES[0].file].read_bytes())["spam"]
    return {"x": numbers(table, FEATURES), "y": code("type", table["type"], LABEL)}
