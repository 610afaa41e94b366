"""What a method or a recipe takes and returns: plain data, no files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Row = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a run may read.

    ``datasets["adult"]`` is a mapping of arrays; ``models["fm16"]["0"]`` is the state that part "0" of the
    base model fm16 kept, again a mapping of arrays. The engine loads both on first use; tests pass dicts.
    """

    datasets: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    models: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]] = field(default_factory=dict)


@dataclass
class Results:
    """What one call of ``run`` or ``train`` found.

    rows     one dict per (seed, cell): ``seed``, the cell's columns as the yaml names them, and finite numbers.
    traces   optional series for figures (learning curves, trajectories), in the same form.
    timings  measured seconds, in the same form; kept apart, since they never come out twice the same.
    state    arrays to keep (weights, samples), by name.
    """

    rows: list[Row]
    traces: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    state: dict[str, np.ndarray] = field(default_factory=dict)
