"""Tables of people with a label y and a sensitive attribute a in two fixed groups, and how fair decisions are.

    table       y = 1                             a = 0, a = 1
    adult       earns more than $50,000 a year    Female, Male
    compas      arrested again within two years   Caucasian, African-American (others left out)
    attrition   left the company                  Female, Male

Numbers are mapped to [-1, 1] from ranges that are public, not computed from the data (amounts and counts that are 0
for most people on a log scale), categories to one-hot columns: no statistic of later rows leaks into a stream, and
none of the rows into a private method.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from papertrial.data import adult, attrition, compas

LEVELS = (0.02, 0.05, 0.1)


class Table(NamedTuple):
    x: np.ndarray  # (n, d) float64 in [-1, 1], the attribute left out
    y: np.ndarray  # (n,) int64, 0 or 1
    a: np.ndarray  # (n,) int64, 0 or 1
    names: list[str]  # of the columns of x: "age", "race=White"


class Recipe(NamedTuple):
    """How a data set becomes a table; NUMERIC and CATEGORICAL of its module say what its columns hold."""

    schema: ModuleType
    attribute: str
    groups: tuple[str, str]  # the values that are a = 0 and a = 1; people with another one are left out
    left_out: frozenset[str] = frozenset()
    logarithmic: frozenset[str] = frozenset()


RECIPES = {
    "adult": Recipe(
        adult,
        "sex",
        ("Female", "Male"),
        left_out=frozenset({"fnlwgt"}),  # a survey weight
        logarithmic=frozenset({"capital_gain", "capital_loss"}),
    ),
    "compas": Recipe(
        compas,
        "race",
        ("Caucasian", "African-American"),
        logarithmic=frozenset({"priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count"}),
    ),
    "attrition": Recipe(attrition, "Gender", ("Female", "Male")),
}


def load(name: str, datasets: Mapping[str, Mapping[str, np.ndarray]]) -> Table:
    """The table of a data set, its official parts (train, test) one after the other."""
    recipe, arrays = RECIPES[name], datasets[name]

    def whole(kind: str) -> np.ndarray:
        parts = [arrays[key] for key in (kind, f"{kind}_train", f"{kind}_test") if key in arrays]
        return np.concatenate(parts)

    place = list(recipe.schema.CATEGORICAL).index(recipe.attribute)
    values = recipe.schema.CATEGORICAL[recipe.attribute]
    codes = whole("categorical")
    group = [values.index(v) for v in recipe.groups]
    rows = np.isin(codes[:, place], group)

    columns, names = [], []
    for column, (key, span) in zip(whole("numeric")[rows].T, recipe.schema.NUMERIC.items(), strict=True):
        if key not in recipe.left_out:
            columns.append(to_unit(column, span, key in recipe.logarithmic))
            names.append(key)
    for column, (key, known) in zip(codes[rows].T, recipe.schema.CATEGORICAL.items(), strict=True):
        if key not in recipe.left_out | {recipe.attribute}:
            columns += [(column == i).astype(float) for i in range(len(known))]
            names += [f"{key}={value}" for value in known]
    a = (codes[rows, place] == group[1]).astype(np.int64)
    return Table(np.stack(columns, axis=1), whole("label")[rows].astype(np.int64), a, names)


def to_unit(column: np.ndarray, span: tuple[float, float], logarithmic: bool = False) -> np.ndarray:
    """[low, high] to [-1, 1], evenly or evenly in log(1 + value - low); what lies outside is clipped."""
    low, high = span
    share = np.clip((column - low) / (high - low), 0, 1)
    if logarithmic:
        share = np.log1p(share * (high - low)) / np.log1p(high - low)
    return 2 * share - 1


def stream(n: int, order_seed: int, length: int | None = None) -> np.ndarray:
    """The order in which the rows 0 to n - 1 arrive: the first `length` of a shuffle."""
    return np.random.default_rng(order_seed).permutation(n)[:length]


def dp_gap(decisions: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Demographic parity gap |P(decision = 1 | a = 1) - P(decision = 1 | a = 0)|; 0 where a group is missing.

    Args:
        decisions: (..., n) of 0 and 1.
        a: (n,), or (..., n) alike.
    """
    one = np.broadcast_to(a, decisions.shape) == 1
    ones, zeros = one.sum(axis=-1), (~one).sum(axis=-1)
    rate_1 = (decisions * one).sum(axis=-1) / np.maximum(ones, 1)
    rate_0 = (decisions * ~one).sum(axis=-1) / np.maximum(zeros, 1)
    return np.where(np.minimum(ones, zeros) > 0, np.abs(rate_1 - rate_0), 0.0)


def trade_off(accuracy: Sequence[float], gap: Sequence[float], floor: float, levels: Sequence[float] = LEVELS) -> float:
    """How accurate a method can be at a prescribed fairness: mean over levels g of A(g).

    A(g) is the best accuracy among the method's settings with a gap of at most g. Where none has: `floor`, the
    accuracy of the majority class, whose constant decision has gap 0.
    """
    accuracy, gap = np.asarray(accuracy), np.asarray(gap)
    return float(np.mean([accuracy[gap <= g].max(initial=-np.inf) if (gap <= g).any() else floor for g in levels]))
