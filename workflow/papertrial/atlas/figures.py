"""Draws what evidence.py registers, as SVG that comes out the same every time and looks the same everywhere."""

import gzip
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from papertrial.engine.cards import Card
from papertrial.engine.evidence import Evidence, Figure, figures_of

# Text as outlines: a reader's machine may lack the font, and its own would run into the lines.
STYLE = {
    "svg.hashsalt": "papertrial",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": "#8a8f96",
    "grid.color": "#e6e6e1",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
TABLES = ("rows", "traces", "timings", "trials")
LARGE = 400_000  # bytes of csv from which on a table is compressed


class Watched(Evidence):
    """Evidence that remembers which of its tables a figure read."""

    def __getattribute__(self, name: str) -> Any:
        if name in TABLES or name == "state":
            object.__getattribute__(self, "__dict__").setdefault("read", set()).add(name)
        return object.__getattribute__(self, name)


def draw(card: Card, evidence: Evidence, folder: Path) -> list[dict[str, Any]]:
    """Draw a paper's figures into a folder, each with the tables it was drawn from.

    Returns:
        one dict a figure: title, caption, alt, data (names of the tables' files), and the file's name or, where
        drawing failed, the reason.
    """
    try:
        module = importlib.import_module(f"{card.module}.evidence")
    except Exception:  # the claims say why
        return []
    files = {name: _write(getattr(evidence, name), folder, name) for name in ("rows", "traces", "timings")}
    drawn = []
    for figure in figures_of(module):
        watched = Watched(evidence.rows, evidence.traces, evidence.timings, evidence.state, evidence.trials)
        told = _draw(figure, watched, folder)
        read = watched.__dict__.get("read", set())
        lacking = sorted(name for name in read if len(getattr(evidence, name)) == 0)
        if told["reason"] and lacking:
            told["reason"] = f"it needs {' and '.join(lacking)}, which the results here don't have"
        drawn.append({**told, "data": [files[name] for name in files if files[name] and name in read]})
    return drawn


def _draw(figure: Figure, evidence: Evidence, folder: Path) -> dict[str, Any]:
    told = {"title": figure.title, "caption": figure.caption, "alt": figure.alt, "file": None, "reason": None}
    try:
        with canvas(folder / f"{figure.name}.svg", figure.panels, figure.size) as axes:
            figure.draw(evidence, axes[0] if figure.panels == 1 else axes)
        told["file"] = f"{figure.name}.svg"
    except Exception as error:  # a figure must not stop the page
        told["reason"] = f"{type(error).__name__}: {error}"
    return told


@contextmanager
def canvas(file: Path, panels: int, size: tuple[float, float]) -> Iterator[list[Any]]:
    """Axes side by side in the atlas's style, saved when the block ends well.

    Args:
        size: of one panel, in inches.
    """
    with sns.axes_style("whitegrid"), sns.color_palette("colorblind"), plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, panels, figsize=(size[0] * panels, size[1]), squeeze=False)
        try:
            yield list(axes[0])
            for ax in axes[0]:
                sns.despine(ax=ax)
            figure.savefig(file, metadata={"Date": None})
        finally:
            plt.close(figure)


def _write(table: pd.DataFrame, folder: Path, name: str) -> str | None:
    """The table as csv, six significant digits; its file's name, or None if it is empty."""
    if table.empty:
        return None
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()
    file = folder / f"{'results' if name == 'rows' else name}.csv"
    if len(text) > LARGE:
        file, text = file.with_suffix(".csv.gz"), gzip.compress(text, mtime=0)
    file.write_bytes(text)
    return file.name
