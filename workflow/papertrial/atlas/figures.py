"""Draws what evidence.py registers, as SVG that comes out the same every time."""

import importlib
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import seaborn as sns

from papertrial.engine.cards import Card
from papertrial.engine.evidence import Evidence, Figure, figures_of

STYLE = {"svg.hashsalt": "papertrial", "svg.fonttype": "none", "font.size": 9, "figure.constrained_layout.use": True}


def draw(card: Card, evidence: Evidence, folder: Path) -> list[dict[str, Any]]:
    """Draw a paper's figures into a folder.

    Returns:
        one dict a figure: title, caption, alt, and the file's name or, where drawing failed, the reason.
    """
    try:
        module = importlib.import_module(f"{card.module}.evidence")
    except Exception:  # the claims say why
        return []
    return [_draw(figure, evidence, folder) for figure in figures_of(module)]


def _draw(figure: Figure, evidence: Evidence, folder: Path) -> dict[str, Any]:
    told = {"title": figure.title, "caption": figure.caption, "alt": figure.alt, "file": None, "reason": None}
    width, height = figure.size
    with sns.axes_style("whitegrid"), sns.color_palette("colorblind"), plt.rc_context(STYLE):
        canvas, axes = plt.subplots(1, figure.panels, figsize=(width * figure.panels, height))
        try:
            figure.draw(evidence, axes if figure.panels == 1 else list(axes))
            file = folder / f"{figure.name}.svg"
            canvas.savefig(file, metadata={"Date": None})
            told["file"] = file.name
        except Exception as error:  # a figure must not stop the page
            told["reason"] = f"{type(error).__name__}: {error}"
        finally:
            plt.close(canvas)
    return told
