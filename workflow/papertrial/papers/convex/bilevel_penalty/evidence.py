"""What counts as evidence for the claims on penalty methods for bilevel optimisation."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSENESS = {"p1": "P1, strongly convex", "p2": "P2, many solutions"}
ERRORS = {"value_error": "value", "gradient_error": "gradient"}
LABELS = {
    "penalty": "penalty, sigma = s eps",
    "implicit": "implicit gradient",
    "bome": "BOME",
    "single_loop": "single loop, STORM",
    "double_loop": "double loop",
    "plain_single_loop": "single loop, plain (F2SA)",
}


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Ordinary least squares in the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def present(results: Evidence, problems: list[str], method: str) -> list[str]:
    """The problems on which the method has rows (a control may have fewer)."""
    rows = results.rows[results.rows["method"] == method]
    found = [p for p in problems if (rows["problem"] == p).any()]
    if not found:
        raise LookupError(f"no results of {method} on {' or '.join(problems)}")
    return found


@claim("c1")
def close_to_the_hyper_objective(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in present(results, list(CLOSENESS), "penalty"):
        rows = results.of(problem, "penalty")
        for column, name in ERRORS.items():
            largest = rows.groupby("sigma")[column].max()  # over the points x, one a seed
            steepness = slope(largest.index.to_numpy(), largest.to_numpy())
            what = f"{CLOSENESS[problem]}: slope of the largest error of the {name} in sigma"
            criteria += [point(what, steepness, ">=", 0.85), point(what, steepness, "<=", 1.25)]
    return criteria


@claim("c2")
def gradient_with_many_solutions(results: Evidence) -> list[Criterion]:
    rows = results.of("formula", "penalty")
    return [
        point("largest relative error of the formula", rows["formula_error"], "<=", 1e-5, np.max),
        point("largest relative error of the penalty's gradient", rows["penalty_error"], "<=", 1e-2, np.max),
    ]


@claim("c3")
def calls_to_stationarity(results: Evidence) -> list[Criterion]:
    rows = results.of("p3", "penalty")
    calls = rows.groupby("eps")["calls"].mean()
    growth = slope(1 / calls.index.to_numpy(), calls.to_numpy())
    fixed = rows[rows["eps"] == rows["eps"].max()]  # sigma = s eps of the largest eps, left running
    return [
        point("slope of the mean calls in 1/eps", growth, "<=", 3.3),
        point("least share of the starts that reach an eps", rows.groupby("eps")["reached"].mean(), ">=", 1, np.min),
        point("least norm of any start with sigma fixed", fixed["least_norm"], ">", 0.005, np.min),
    ]


def log_ratios(results: Evidence) -> pd.DataFrame:
    """log(double loop's samples / single loop's), one column an eps."""
    samples = np.log(results.paired("p3-noisy", "samples", "eps"))
    return (samples["double_loop"] - samples["single_loop"]).unstack("eps")


@claim("c4")
def single_loop_needs_fewer_samples(results: Evidence) -> list[Criterion]:
    ratios = log_ratios(results)
    least, largest = ratios.columns.min(), ratios.columns.max()
    gain = ratios[least] - ratios[largest]
    return [
        interval(f"mean log-ratio double / single loop at eps = {least:g}", ratios[least], ">", 0),
        point(f"mean log-ratio at eps = {least:g} less that at {largest:g}", gain, ">=", 0),
    ]


@figure(
    "Distance from the hyper-objective",
    caption="The largest error over the points x. It falls in proportion to sigma on both families; where the solution "
    "set jumps, no error bound holds, and neither the value nor the gradient converges.",
    alt="Two log-log panels, value and gradient: straight lines of slope one for the two families, and a line that "
    "flattens out or rises for the jumping lower level.",
    panels=2,
    size=(4.2, 3.4),
)
def closeness(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    rows = results.rows[results.rows["problem"].isin(CLOSENESS)]
    label = rows["problem"].map(CLOSENESS).where(rows["method"] == "penalty", "jumping solution set")
    for ax, (column, name) in zip(axes, ERRORS.items(), strict=True):
        drawn = rows.assign(lower=label).groupby(["lower", "sigma"])[column].max().reset_index()
        order = [*CLOSENESS.values(), "jumping solution set"]
        sns.lineplot(drawn, x="sigma", y=column, hue="lower", hue_order=order, marker="o", legend=ax is axes[0], ax=ax)
        ax.set(xscale="log", yscale="log", xlabel="sigma", ylabel=f"largest error of the {name}")
    axes[0].legend(title=None, fontsize="x-small")


@figure(
    "Calls to a stationary point",
    caption="Left: the true projected hyper-gradient along the first start's runs, one line an eps (and its sigma). "
    "Each levels off at the bias of its sigma. Right: calls until eps is reached, mean of the starts; second "
    "derivatives are not charged to the implicit gradient.",
    alt="Left, falling curves that flatten at heights in proportion to sigma; right, calls against eps on log axes.",
    panels=2,
    size=(4.6, 3.4),
)
def calls(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    traces = results.traces[(results.traces["problem"] == "p3") & (results.traces["method"] == "penalty")]
    traces = traces[traces["seed"] == traces["seed"].min()]
    traces = traces.assign(eps=traces["eps"].map("{:g}".format))
    sns.lineplot(traces, x="calls", y="norm", hue="eps", ax=axes[0])
    axes[0].set(xscale="log", yscale="log", ylabel="projected hyper-gradient")
    rows = results.of("p3")
    rows = rows[rows["reached"] == 1].assign(method=rows["method"].map(LABELS))
    sns.lineplot(rows, x="eps", y="calls", hue="method", marker="o", errorbar=None, ax=axes[1])
    axes[1].set(xscale="log", yscale="log")
    axes[1].legend(title=None, fontsize="x-small")


@figure(
    "Samples under noise",
    caption="Stochastic gradient calls until the hyper-gradient is eps, one dot a start; dots at the cap did not "
    "arrive. A sample that is used at two points counts twice.",
    alt="Dots of samples on a log scale for three accuracies, coloured by method.",
)
def noisy(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("p3-noisy")
    rows = rows.assign(method=rows["method"].map(LABELS), eps=rows["eps"].map("{:g}".format))
    sns.stripplot(rows, x="eps", y="samples", hue="method", dodge=True, jitter=False, size=5, ax=ax)
    ax.set(yscale="log")
    ax.legend(title=None, fontsize="small")
