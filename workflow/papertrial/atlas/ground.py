"""Papers on a shared testbed: what each claims there, and whether their measurements bear one another out.

Two papers that run the same two methods on the same problem each put them in an order. Where both orders are
clear (the 95% intervals of the means keep apart) they agree or contradict one another; else the matter is open.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from papertrial.atlas.neighbours import testbeds
from papertrial.engine.cards import Card

Record = dict[str, Any]
OUTCOMES = {"agree": 1, "contradict": -1, "open": 0}


def common_testbeds(records: Sequence[Record], cards: Mapping[str, Card]) -> dict[str, list[Record]]:
    """{testbed: the records of the papers on it}, of testbeds with two papers or more."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        for name in testbeds(cards[f"{record['chapter']}/{record['slug']}"]):
            found[name].append(record)
    return {name: papers for name, papers in sorted(found.items()) if len(papers) > 1}


def comparisons(tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Card]) -> list[Record]:
    """Every two methods that two papers both measured: in how many cells the papers order them alike.

    Args:
        tables: {paper: its results table}, of papers that share a testbed.

    Returns:
        dicts with problem, metric, methods (two), papers (two), and the numbers of cells that agree, contradict
        and are open.
    """
    found = []
    for papers in combinations(sorted(tables), 2):
        cells = [c for c in cards[papers[0]].cells if c in cards[papers[1]].cells]
        one, two = (_means(tables[paper], cells) for paper in papers)
        for methods in combinations(sorted(set(one["mean"]) & set(two["mean"])), 2):
            alike = (_order(one, *methods) * _order(two, *methods)).dropna()
            for (problem, metric), signs in alike.groupby(level=["problem", "metric"]):
                counts = {name: int((signs == sign).sum()) for name, sign in OUTCOMES.items()}
                found.append({"problem": problem, "metric": metric, "methods": methods, "papers": papers, **counts})
    return found


def _means(rows: pd.DataFrame, cells: list[str]) -> dict[str, pd.DataFrame]:
    """Mean and standard error over seeds: a row a (problem, metric, cell), a column a method; shared rows left out."""
    own = rows[~rows["shared"].fillna(False).astype(bool)] if "shared" in rows else rows
    own = own.reindex(columns=list(dict.fromkeys([*own, *cells])))
    metrics = [c for c in own.select_dtypes("number") if c not in {*cells, "seed", "n"}]
    names = [" ".join(_name(x) for x in cell) for cell in own[cells].itertuples(index=False)]
    index = pd.MultiIndex.from_arrays([own["problem"], own["method"], names], names=["problem", "method", "cell"])
    long = own[metrics].set_axis(index).rename_axis(columns="metric").stack().dropna()  # a metric may be called "value"
    if long.empty:
        return {"mean": pd.DataFrame(), "sem": pd.DataFrame()}
    stats = long.groupby(level=["problem", "metric", "cell", "method"]).agg(["mean", "sem"]).unstack("method")
    return {"mean": stats["mean"], "sem": stats["sem"]}


def _name(x: Any) -> str:
    return f"{x:g}" if isinstance(x, int | float) else str(x)


def _order(stats: dict[str, pd.DataFrame], a: str, b: str) -> pd.Series:
    """1 where a lies clearly above b, -1 where below, 0 where that is not clear."""
    apart = stats["mean"][a] - stats["mean"][b]
    reach = 1.96 * np.hypot(stats["sem"][a], stats["sem"][b])  # nothing is clear from a single seed: NaN
    clear = np.sign(apart).where(apart.abs() > reach, 0.0)
    return clear.where(apart.notna())
