"""What counts as evidence for the claims on Sinkhorn-Newton-Sparse."""

from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

LABELS = {
    "sinkhorn": "Sinkhorn",
    "overrelaxed": "overrelaxed",
    "eta_scaling": "eta-scaling",
    "newton": "dense Newton",
    "sns": "SNS",
    "sns_tuned": "SNS, kept entries tuned",
    "sns_random": "SNS, random entries",
}
FAMILIES = {
    "assignment": "random assignment",
    "l2": "digits, squared l2",
    "l1": "digits, l1",
    "clouds": "Gaussian clouds",
}


def iteration_ratio(results: Evidence, problem: str) -> pd.Series:
    """Sinkhorn's iterations over SNS's, one a seed."""
    iterations = results.paired(problem, "iterations")
    return iterations["sinkhorn"] / iterations["sns"]


def time_ratio(results: Evidence, problem: str) -> pd.Series:
    """Sinkhorn's CPU seconds over SNS's, one a seed; 0 where SNS doesn't reach the tolerance."""
    measured = results.timings[results.timings["problem"] == problem].dropna(subset=["cpu_s"])
    seconds = measured.pivot(index="seed", columns="method", values="cpu_s")
    return seconds["sinkhorn"] / seconds["sns"] * results.paired(problem, "reached")["sns"]


def geometric_mean(ratios: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(ratios).mean()))


@claim("c1")
def orders_of_magnitude_fewer_iterations(results: Evidence) -> list[Criterion]:
    ratio = iteration_ratio(results, "assignment")
    return [
        point("median of Sinkhorn's iterations / SNS's", ratio, ">=", 100, np.median),
        point("the least ratio of a seed", ratio, ">=", 30, np.min),
    ]


@claim("c2")
def fewer_iterations_between_images(results: Evidence) -> list[Criterion]:
    l2, l1 = (iteration_ratio(results, costs) for costs in ("l2", "l1"))
    return [
        point("squared l2: median of Sinkhorn's iterations / SNS's", l2, ">=", 10, np.median),
        point("l1: median of Sinkhorn's iterations / SNS's", l1, ">=", 2, np.median),
    ]


@claim("c3")
def faster(results: Evidence) -> list[Criterion]:
    ratio = time_ratio(results, "assignment")
    return [interval("geometric mean of Sinkhorn's seconds / SNS's", ratio, ">", 1, geometric_mean)]


@claim("c4")
def nearly_sparse_after_the_warm_up(results: Evidence) -> list[Criterion]:
    tail = results.of("warm-up", "warm_up").pivot(index="seed", columns=["eta", "t"], values="s").sort_index(axis=1)
    etas, ts = (list(level) for level in tail.columns.levels)
    s = tail.to_numpy().reshape(len(tail), len(etas), len(ts))  # (seeds, eta, t)

    def steepest_rise(curves: np.ndarray) -> float:  # (seeds, points, ...): the largest increase of the medians
        return np.diff(np.median(curves, axis=0), axis=0).max()

    largest = f"eta = {etas[-1]:g}"
    return [
        point(f"median s at t = 20, {largest}", s[:, -1, ts.index(20)], "<=", 0.05, np.median),
        point("rise of median s with eta, at any t", s, "<=", 0.005, steepest_rise),
        point(f"rise of median s with t, {largest}", s[:, -1, :], "<=", 0.005, steepest_rise),
    ]


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    drawn = table[table["method"].isin(LABELS) & table["problem"].isin(FAMILIES)]
    return drawn.assign(method=drawn["method"].map(LABELS), problem=drawn["problem"].map(FAMILIES))


@figure(
    "The way to 1e-10",
    caption="One instance of each family. Sinkhorn's error falls like a geometric sequence, slowly; Newton's steps, "
    "which begin where SNS leaves that curve, should square it.",
    alt="Four log-log panels of the marginal error against the iteration, one line a method; the lines of SNS and "
    "dense Newton drop steeply after the warm-up.",
    panels=4,
    size=(3.4, 3.2),
)
def convergence(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    traces = labelled(results.traces)
    traces = traces[traces["seed"] == traces["seed"].min()]
    for ax, family in zip(axes, FAMILIES.values(), strict=True):
        drawn = traces[traces["problem"] == family]
        last = ax is axes[-1]
        sns.lineplot(drawn, x="iteration", y="error", hue="method", hue_order=LABELS.values(), legend=last, ax=ax)
        ax.set(xscale="log", yscale="log", title=family, ylabel="")
    axes[0].set(ylabel="marginal error")
    sns.move_legend(axes[-1], "upper left", bbox_to_anchor=(1, 1), title=None)


@figure(
    "Iterations and seconds to 1e-10",
    caption="A dot is an instance; dots at the cap of iterations did not arrive. A Newton step costs as much as dozens "
    "of sweeps, so fewer iterations need not be less time.",
    alt="Two panels of dots on a log scale, iterations and CPU seconds, for four problem families, coloured by method.",
    panels=2,
    size=(7.5, 3.6),
)
def cost(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    look = {"hue": "method", "hue_order": LABELS.values(), "dodge": True, "jitter": False, "size": 4}
    for ax, table, y in zip(axes, (results.rows, results.timings), ("iterations", "cpu_s"), strict=True):
        drawn = labelled(table).dropna(subset=[y])
        sns.stripplot(drawn, x="problem", y=y, order=FAMILIES.values(), legend=ax is axes[1], ax=ax, **look)
        ax.set(yscale="log", xlabel="")
    axes[1].set(ylabel="CPU seconds")
    sns.move_legend(axes[1], "upper left", bbox_to_anchor=(1, 1), title=None)


@figure(
    "A nearly sparse plan",
    caption="Median share of the plan's mass outside its 3n largest entries, after t sweeps. Large eta should push it "
    "down; with constant costs there is nothing to choose between, and it stays at 1 - 3/n.",
    alt="Share of mass outside the largest entries against eta: a falling line for every number of sweeps, and a "
    "flat line at almost one for constant costs.",
)
def sparsity(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    rows = results.of("warm-up").astype({"t": int})
    rows = rows.assign(costs=rows["method"].map({"warm_up": "random", "constant_costs": "constant"}))
    look = {"hue": "t", "style": "costs", "palette": "flare", "errorbar": None}
    sns.lineplot(rows, x="eta", y="s", estimator="median", ax=ax, **look)
    ax.set(xscale="log", yscale="log", ylabel="tail mass s")
