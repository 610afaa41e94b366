"""Turn the text columns of a table into numbers."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from papertrial.engine.errors import PapertrialError

MISSING = ("", "NA")


def columns(text: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Columns of comma separated text by name; `names` where it has no header line. Empty lines are skipped."""
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row]
    names, rows = (rows[0], rows[1:]) if names is None else (names, rows)
    if wrong := [i for i, row in enumerate(rows) if len(row) != len(names)]:
        raise PapertrialError(f"row {wrong[0] + 1} of the table has {len(rows[wrong[0]])} fields, not {len(names)}")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def numbers(table: Mapping[str, Iterable], names: Iterable[str]) -> np.ndarray:
    """(rows, names) float64; what is missing is NaN."""
    return np.array([[np.nan if v in MISSING else float(v) for v in table[name]] for name in names]).T.copy()


def codes(table: Mapping[str, Iterable], values: Mapping[str, Sequence[str]]) -> np.ndarray:
    """(rows, columns) int64: the place of each entry among its column's `values`."""
    return np.stack([code(name, table[name], known) for name, known in values.items()], axis=1)


def code(name: str, column: Iterable, values: Sequence[str]) -> np.ndarray:
    """(rows,) int64: the place of each entry among `values`."""
    place = {value: i for i, value in enumerate(values)}
    try:
        return np.array([place[str(v)] for v in column], dtype=np.int64)
    except KeyError as error:
        raise PapertrialError(f"column {name} has the unknown value {error}") from None
