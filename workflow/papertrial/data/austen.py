"""The six finished novels of Jane Austen, as plain text of 73,422 lines.

Arrays, one a novel, of (bytes,) uint8: `sense`, `pride`, `mansfield`, `emma`, `northanger`, `persuasion`
    UTF-8 with a newline between lines, as printed: title page, chapter headings, capitals and all.
    `bytes(array).decode()` is the text. All of it is ASCII but the pound signs of `mansfield`.

Origin: Project Gutenberg, through the R package janeaustenr 1.0.0 (Silge). Licence: the text is in the public domain,
the package MIT.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from papertrial.data.rfiles import package_object
from papertrial.data.sources import Address, Debian, Source

NOVELS = {  # in the order of publication: our name, and the R package's
    "sense": "sensesensibility",
    "pride": "prideprejudice",
    "mansfield": "mansfieldpark",
    "emma": "emma",
    "northanger": "northangerabbey",
    "persuasion": "persuasion",
}

SOURCES = (
    Source(
        "austen/janeaustenr_1.0.0",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",  # Debian's build
        (
            Debian("r-cran-janeaustenr", "1.0.0-1"),
            Address("https://cran.r-project.org/src/contrib/janeaustenr_1.0.0.tar.gz"),
            Address("https://cran.r-project.org/src/contrib/Archive/janeaustenr/janeaustenr_1.0.0.tar.gz"),
        ),
        also=("b4c32ee1395ee4a8efe714c535c0fe578b0dbf5f3bb85b41fa5cc87569b8e8aa",),  # the author's package
    ),
)


def prepare(files: Mapping[str, Path]) -> dict[str, np.ndarray]:
    package = files[SOURCES[0].file]
    lines = {novel: package_object(package, "janeaustenr", name) for novel, name in NOVELS.items()}
    return {novel: np.frombuffer("\n".join(text).encode(), np.uint8) for novel, text in lines.items()}
