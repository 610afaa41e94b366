"""What no single paper can show: many papers' methods on one problem, drawn from their results tables.

A view names a problem and two columns. It takes every row that has them, from whichever papers have run, so it
grows with the papers; one more view is one more entry in ``VIEWS``. Methods are told apart by paper and name;
a shared baseline, which stands in several tables, is drawn once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from papertrial.engine.cards import Card

SIZE = (7.2, 4.4)


@dataclass(frozen=True)
class View:
    """Rows of ``problem`` that have the columns ``x`` and ``y``; x = "method" gives dots rather than lines.

    Columns in ``unless`` mark rows that measure something else on the same problem: rows that have one are left out.
    """

    name: str
    title: str
    problem: str
    x: str
    y: str
    caption: str
    alt: str
    log: str = ""  # "x", "y" or "xy"
    labels: tuple[str, str] | None = None  # of the axes
    unless: tuple[str, ...] = ()
    at: tuple[float, ...] = ()  # values of x for a table beside the figure


VIEWS = (
    View(
        "samplers-on-fm16",
        "Samplers on one network",
        problem="fm16",
        x="nfe",
        y="fd",
        log="xy",
        labels=("network evaluations a sample", "Fréchet distance to held-out pictures"),
        caption="All samplers draw from the same network, starting at the same noise. Lower is better, and further "
        "left is cheaper; the real training pictures are the floor that no sampler should pass by much.",
        alt="Fréchet distance against network evaluations, one line a sampler with a band over noise seeds.",
    ),
    View(
        "samplers-error-on-fm16",
        "Samplers at 5, 10, 20 and 50 evaluations",
        problem="fm16-samplers",
        x="nfe",
        y="ode_rms",
        log="xy",
        at=(5, 10, 20, 50),
        labels=("network evaluations a sample", "rms distance to the ODE's solution, per pixel"),
        caption="How far samples are from what the network gives with evaluations to spare, from the same noise. Every "
        "sampler with a choice of grids takes the one that is best for it on noise that isn't shown here.",
        alt="Rms ODE error against network evaluations, one line a sampler, and a table of the same at 5, 10, 20, 50.",
    ),
    View(
        "samplers-fd-on-fm16",
        "The same samplers by Fréchet distance",
        problem="fm16-samplers",
        x="nfe",
        y="fd",
        log="xy",
        at=(5, 10, 20, 50),
        labels=("network evaluations a sample", "Fréchet distance to held-out pictures, n = 500"),
        caption="The Fréchet distance need not fall with more evaluations: a network's own mistakes show more clearly "
        "the better its ODE is solved. Compare with the errors above.",
        alt="Fréchet distance against network evaluations, one line a sampler, and a table of the same at 5, 10, 20, "
        "50.",
    ),
    View(
        "optimizers-on-char-lm",
        "Optimizers on one language model",
        problem="char-lm",
        x="method",
        y="val_loss",
        labels=("", "validation loss, nats a character"),
        caption="A dot is a seed. All optimizers train the same model on the same text for the same steps, each at the "
        "best of equally many learning rates.",
        alt="Dots of validation loss, one column an optimizer.",
    ),
    View(
        "optimizers-on-fmnist-mlp",
        "Optimizers on one classifier",
        problem="fmnist-mlp",
        x="method",
        y="val_loss",
        labels=("", "validation loss, nats"),
        caption="A dot is a seed. All optimizers train the same network on the same pictures for the same steps, each "
        "at the best of equally many learning rates.",
        alt="Dots of validation loss, one column an optimizer.",
    ),
    View(
        "preference-learning-on-games",
        "Preference optimizers on one game",
        problem="rps",
        x="T",
        y="gap",
        log="xy",
        labels=("rounds of play", "duality gap"),
        caption="Rock-paper-scissors among K responses, exact play. A gap of 0 is a policy that nothing beats.",
        alt="Duality gap against rounds, one line a method with a band over games.",
    ),
)


def table(view: View, tables: Mapping[str, pd.DataFrame], cards: Mapping[str, Card]) -> pd.DataFrame:
    """The rows that a view draws, with their paper and a label that tells methods of different papers apart.

    Args:
        tables: {paper: its results table}, of the papers that have one.
    """
    parts = []
    for paper, rows in tables.items():
        columns = {"problem", "method", "seed", view.y} | ({view.x} - {"method"})
        if not columns <= set(rows):
            continue
        part = rows[rows["problem"].eq(view.problem) & rows[list(columns)].notna().all(axis=1)]
        for column in (c for c in view.unless if c in part):
            part = part[part[column].isna()]
        methods = cards[paper].methods
        controls = [name for name, m in methods.items() if m.role == "control"]
        part = part[~part["method"].isin(controls)]
        if part.empty:
            continue
        named = part["method"].map(lambda m, known=methods: (m in known and known[m].label) or m)
        shared = part.get("shared", pd.Series(False, part.index)).fillna(False).astype(bool)
        proposed = part["method"].map(lambda m, known=methods: m in known and known[m].role == "proposed") & ~shared
        kept = part[["method", "seed", *({view.x} - {"method"}), view.y]]
        parts.append(kept.assign(paper=paper, shared=shared, name=named, proposed=proposed))
    if not parts:
        return pd.DataFrame()
    whole = pd.concat(parts, ignore_index=True)
    # A shared baseline, or a baseline that papers ran alike, has the same numbers in each of their tables.
    whole = whole.sort_values("proposed", ascending=False, kind="stable").drop_duplicates(
        [c for c in whole if c not in ("paper", "shared", "name", "proposed")]
    )
    several = whole.groupby("name")["paper"].transform("nunique") > 1
    label = whole["name"].where(~several, whole["name"] + " (" + whole["paper"].str.split("/").str[-1] + ")")
    return whole.assign(label=label).sort_values(["proposed", "label"], ascending=[False, True], kind="stable")


def draw(view: View, rows: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Draw a view and write its rows; what the page needs to show them."""
    from papertrial.atlas.figures import canvas

    with canvas(folder / f"{view.name}.svg", 1, SIZE) as (ax,):
        (_dots if view.x == "method" else _lines)(view, rows, ax)
        x, y = view.labels or (view.x, view.y)
        ax.set(xlabel=x, ylabel=y)
        for axis in view.log:
            _logarithmic(ax, axis)
    text = rows.drop(columns=["name", "proposed"]).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    (folder / f"{view.name}.csv").write_text(text, encoding="utf-8")
    papers = sorted(set(rows["paper"]))
    told = {"name": view.name, "title": view.title, "caption": view.caption, "alt": view.alt, "papers": papers}
    return told | {"columns": list(view.at), "x": x, "rows": _pivot(view, rows) if view.at else []}


def _pivot(view: View, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """A line of means for each method, at the view's values of x; None where it wasn't measured."""
    means = rows[rows[view.x].isin(view.at)].groupby(["label", view.x], sort=False)[view.y].mean().unstack()
    means = means.reindex(columns=view.at).sort_values(view.at[1], na_position="last")
    return [
        {"label": label, "cells": [None if pd.isna(v) else float(f"{v:.3g}") for v in row]}
        for label, row in zip(means.index, means.to_numpy(), strict=True)
    ]


def _logarithmic(ax: Any, axis: str) -> None:
    """Ticks at 1, 2, 5, 10 ..., written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set(**{f"{axis}scale": "log"})
    scale = getattr(ax, f"{axis}axis")
    scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
    scale.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    scale.set_minor_formatter(NullFormatter())


def _dots(view: View, rows: pd.DataFrame, ax: Any) -> None:
    import seaborn as sns

    labels = list(dict.fromkeys(rows["label"]))
    look = {"hue": "proposed", "hue_order": [False, True], "palette": ["#8a8f96", "C0"], "legend": False}
    sns.stripplot(rows, x="label", y=view.y, order=labels, jitter=False, ax=ax, **look)
    ax.tick_params(axis="x", rotation=30 if len(labels) > 4 else 0)


def _lines(view: View, rows: pd.DataFrame, ax: Any) -> None:
    """A line a method, dashed where it's a baseline; what has no place on a logarithmic axis is a level."""
    import seaborn as sns

    levels = rows[rows[view.x] <= 0] if "x" in view.log else rows[:0]
    drawn = rows.drop(levels.index)
    labels = drawn["label"].unique()
    hues = dict(zip(labels, sns.color_palette("colorblind" if len(labels) <= 10 else "husl", len(labels)), strict=True))
    for label, line in drawn.groupby("label", sort=False):
        dashes = "-" if line["proposed"].any() else "--"
        sns.lineplot(line, x=view.x, y=view.y, color=hues[label], ls=dashes, marker="o", label=label, ax=ax)
    for label, level in levels.groupby("label", sort=False):
        ax.axhline(level[view.y].mean(), color="#8a8f96", ls=":", label=label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def read_tables(papers: Iterable[str], folder: Path) -> dict[str, pd.DataFrame]:
    """{paper: the results table beside its page}, of the papers that have one."""
    found = {}
    for paper in papers:
        for name in ("results.csv", "results.csv.gz"):
            file = folder / paper / name
            if file.exists():
                found[paper] = pd.read_csv(file, low_memory=False)
    return found
