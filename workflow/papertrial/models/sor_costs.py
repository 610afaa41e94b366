"""sor-costs: what every choice of omega costs on every system of a sequence, so that all policies meet the same ones.

A part is "high-0", "low-3", ...: the variance of the shifts and the seed.

State, for T systems:
    c (T,)          shifts
    grid (T, 20)    SOR steps with each omega of testbeds.sor.GRID
    optimal (T,)    with the omega that is asymptotically best for the system
"""

import numpy as np

from papertrial.engine.checkpoints import Checkpoint
from papertrial.engine.results import Inputs, Results
from papertrial.testbeds.sor import GRID, tabulate


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """Half a minute at most, so nothing is checkpointed."""
    variance, _, seed = part.partition("-")
    costs = tabulate(variance, settings["T"], settings["side"], int(seed))
    best = int(costs.grid.sum(axis=0).argmin())
    row = {"seed": int(seed), "best_omega": float(GRID[best]), "mean_steps": float(costs.grid[:, best].mean())}
    state = {name: np.asarray(values) for name, values in costs._asdict().items()}
    return Results([row | {"mean_steps_optimal": float(costs.optimal.mean())}], state=state)
