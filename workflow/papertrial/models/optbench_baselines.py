"""Tuned baseline runs on opt-bench, made once for every paper that compares with them.

A part is <optimizer>.<workload>: six learning rates on the tuning seed, one more where the best is on the edge, then
the evaluation seeds at the best. Rows: problem (the workload), method (the optimizer), seed, and what
``measured_run`` records. The traces hold the learning curves, and every trial as trial_lr and trial_loss.
"""

from papertrial.engine.checkpoints import Checkpoint
from papertrial.engine.results import Inputs, Results
from papertrial.methods.optimizers.adamw import AdamW
from papertrial.methods.optimizers.lion import Lion
from papertrial.methods.optimizers.sgd import Momentum
from papertrial.testbeds.optbench.training import measured_run
from papertrial.testbeds.optbench.training import train as train_network
from papertrial.testbeds.optbench.tuning import tune
from papertrial.testbeds.optbench.workloads import workload

RULES = {"adamw": AdamW(), "sgd": Momentum(0.9), "lion": Lion()}


def train(part: str, settings: dict, inputs: Inputs, device: str, checkpoint: Checkpoint) -> Results:
    """Tune and run one optimizer on one workload.

    settings:
        grids: {optimizer: learning rates}, ascending; trials: try only the first so many of them (smoke).
        tuning_seed, seeds (a count), steps: updates, null for the workload's standard budget.
    """
    method, problem = part.split(".", 1)
    rule, work, steps = RULES[method], workload(problem, inputs.datasets, device), settings["steps"]

    def attempt(lr: float) -> float:
        trained = train_network(work, rule, lr, settings["tuning_seed"], steps, every=None)
        return trained.history[-1]["val_loss"]

    grid = settings["grids"][method][: settings["trials"]]
    best, trials = tune(attempt, grid, edge=settings["trials"] is None)
    rows, traces = [], [{"seed": settings["tuning_seed"], "trial_lr": lr, "trial_loss": loss} for lr, loss in trials]
    for seed in range(settings["seeds"]):
        row, curve = measured_run(work, train_network(work, rule, best, seed, steps), seed, best)
        rows.append(row)
        traces += curve
    names = {"problem": problem, "method": method}
    return Results([names | row for row in rows], [names | point for point in traces])
