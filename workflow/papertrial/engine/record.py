"""Recorded results: the small tables in git that outlive the artifacts.

data/recorded/<chapter>/<slug>.json   verdicts, criteria, fingerprints and cost of the last laptop-scale run
data/recorded/<chapter>/<slug>.csv    its results table, six significant digits, at most 200 kB
"""

import hashlib
import json
import re
from typing import Any

import pandas as pd

from papertrial.engine import paths
from papertrial.engine.cards import Card

LIMIT = 200_000  # bytes of csv
REGISTERED = ("id", "claim", "paper", "measure", "replicated_if")


def card_sha256(card: Card) -> str:
    """Hash of the claims as registered: the five texts of each, white space folded."""
    rows = [[re.sub(r"\s+", " ", str(getattr(c, key))).strip() for key in REGISTERED] for c in card.claims]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def write(paper: str, record: dict[str, Any], rows: pd.DataFrame, cells: list[str]) -> None:
    """Write a paper's record and its table."""
    folder = (paths.RECORDED / paper).parent
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (paths.RECORDED / f"{paper}.json").write_text(text + "\n")
    (paths.RECORDED / f"{paper}.csv").write_text(_csv(rows, cells))


def read(paper: str) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """A paper's record and table, or None where there is none."""
    file = paths.RECORDED / f"{paper}.json"
    if not file.exists():
        return None
    table = file.with_suffix(".csv")
    return json.loads(file.read_text()), pd.read_csv(table) if table.exists() else pd.DataFrame()


def moved(recorded: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """The modules that differ between a record and today's plan; if none does, what else must have moved."""
    then, now = recorded.get("modules", {}), plan["modules"]
    return sorted(m for m in then.keys() | now.keys() if then.get(m) != now.get(m)) or ["settings, data or libraries"]


def _csv(rows: pd.DataFrame, cells: list[str]) -> str:
    """One line a row; where that is too much, the problem with most rows is averaged over its seeds first."""
    rows = rows.drop(columns="shared", errors="ignore")
    keys = ["problem", "method", *(c for c in cells if c in rows)]
    parts = {p: g.assign(n=1, seed=g["seed"].astype(str)) for p, g in rows.groupby("problem", sort=False)}
    while True:
        table = pd.concat([p.dropna(axis=1, how="all") for p in parts.values()], ignore_index=True)
        text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        whole = {p: len(g) for p, g in parts.items() if (g["n"] == 1).all() and g["seed"].nunique() > 1}
        if len(text) <= LIMIT or not whole:
            return text
        largest = max(whole, key=whole.get)
        parts[largest] = _averaged(parts[largest], keys)


def _averaged(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    groups = rows.drop(columns=["seed", "n"]).groupby(keys, sort=False, dropna=False)
    sizes = groups.size().rename("n").reset_index()
    return groups.mean(numeric_only=True).reset_index().merge(sizes, on=keys).assign(seed="mean")


def compare(here: pd.DataFrame, recorded: pd.DataFrame, cells: list[str]) -> dict[str, Any]:
    """Hold a fresh local table against the recorded one, metric by metric.

    A cell agrees if the recorded mean lies in the local 95% interval of the mean over seeds (normal
    approximation), widened by a millionth of its size for rounding.

    Returns:
        {metric: {"cells": n, "agree": k}}, and "agree": whether all of them do.
    """
    keys = ["problem", "method", *(c for c in cells if c in here and c in recorded)]
    numeric = here.select_dtypes("number").columns
    metrics = [c for c in numeric if c in recorded and c not in {*keys, "seed", "shared", "n"}]
    local = here.groupby(keys, dropna=False)[metrics].agg(["mean", "std", "count"])
    known = recorded.groupby(keys, dropna=False)[metrics].mean()
    both = local.index.intersection(known.index)
    found: dict[str, Any] = {}
    for metric in metrics:
        ours, theirs = local.loc[both, metric], known.loc[both, metric]
        apart = (ours["mean"] - theirs).abs()[ours["count"] > 0]
        reach = 1.96 * ours["std"].fillna(0) / ours["count"].pow(0.5) + 1e-5 * theirs.abs() + 1e-12
        found[metric] = {"cells": len(apart), "agree": int((apart <= reach[apart.index]).sum())}
    return {"metrics": found, "agree": all(m["cells"] == m["agree"] for m in found.values())}
