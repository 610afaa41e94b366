"""What counts as evidence for the claims on blockwise variance-reduced bilevel optimisation."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "v1": "BSVRB-v1",
    "v2": "BSVRB-v2",
    "moving_average": "moving average",
    "rsvrb": "RSVRB-like",
    "double_loop": "double loop",
    "copies": "v2 on copies",
    "no_correction": "v2 with c = 0",
    "no_second_order": "v2 with v = 0",
}
SPEED_UPS = [((4, 1), (4, 16), 1.5), ((1, 4), (16, 4), 4.0)]


def geometric_mean(ratios: np.ndarray) -> float:
    return float(np.exp(np.log(ratios).mean()))


@claim("c1")
def parallel_speed_up(results: Evidence) -> list[Criterion]:
    iterations = results.paired("speed-up", "iterations", "blocks", "batch")["v2"]
    criteria = []
    for few, many, threshold in SPEED_UPS:
        ratio = (iterations.loc[few] / iterations.loc[many]).to_numpy()
        name = f"iterations with (I, B) = {few} / {many}, geometric mean"
        criteria.append(interval(name, ratio, ">=", threshold, geometric_mean))
    return criteria


def advantages(results: Evidence, problem: str) -> list[Criterion]:
    """By how many orders the moving average's squared hyper-gradient is larger, for the versions there are."""
    square = results.paired(problem, "log_square")
    return [
        interval(f"{problem}: moving average - {LABELS[v]}, log10", square["moving_average"] - square[v], ">", 0)
        for v in ("v1", "v2")
        if v in square
    ]


@claim("c2")
def variance_reduction_pays(results: Evidence) -> list[Criterion]:
    quadratic = advantages(results, "quadratic")
    if len(quadratic) < 2:
        raise LookupError("v1 and v2 must both have run on the quadratic family")
    return [*quadratic, at_least("versions ahead of the moving average on digits", 1, advantages(results, "digits"))]


def growth(results: Evidence, version: str) -> float:
    """Log-log slope of the multiplications in the dimension of y."""
    cost = results.of("cost", version).drop_duplicates("dim")
    return float(np.polyfit(np.log(cost["dim"]), np.log(cost["multiplications"]), 1)[0])


@claim("c3")
def no_inverse_needed(results: Evidence) -> list[Criterion]:
    square = results.paired("quadratic", "log_square")
    ratio = 10 ** ((square["v2"] - square["v1"]) / 2)
    return [
        interval("final hyper-gradient, v2 / v1, geometric mean", ratio.to_numpy(), "<=", 2, geometric_mean),
        point("slope of v2's multiplications in the dimension", growth(results, "v2"), "<=", 1.3),
        point("slope of v1's multiplications in the dimension", growth(results, "v1"), ">=", 2.5),
    ]


@figure(
    "Parallel speed-up",
    caption="Iterations to 5% of the initial hyper-gradient, one dot a seed, each (I, B) with its own best "
    "configuration; dots at the cap did not arrive. If the samples are copies, more of them help nothing.",
    alt="Dots of iterations on a log scale for four pairs of blocks and batch sizes, for BSVRB-v2 and for the control.",
)
def speed_up(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("speed-up")
    pairs = [f"{i:g} x {b:g}" for i, b in zip(rows["blocks"], rows["batch"], strict=True)]
    rows = rows.assign(method=rows["method"].map(LABELS), pair=pairs)
    sns.stripplot(rows, x="pair", y="iterations", hue="method", dodge=True, jitter=False, ax=ax)
    ax.set(yscale="log", xlabel="blocks x samples of each")
    ax.legend(title=None, fontsize="small")


@figure(
    "Hyper-gradient after the same number of samples",
    caption="Mean squared hyper-gradient over the last tenth of the budget, one dot a seed. A sample that is used at "
    "two points counts twice.",
    alt="Dots of the logarithm of the squared hyper-gradient for each method, on the quadratic family and on digits.",
    panels=2,
    size=(4.6, 3.4),
)
def accuracy(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, ("quadratic", "digits"), strict=True):
        rows = results.of(problem)
        rows = rows.assign(method=rows["method"].map(LABELS))
        order = [label for label in LABELS.values() if (rows["method"] == label).any()]
        sns.stripplot(rows, x="log_square", y="method", hue="method", order=order, hue_order=order, ax=ax)
        ax.set(title=problem, xlabel="log10 of the squared hyper-gradient", ylabel="")


@figure(
    "Arithmetic of a block",
    caption="Multiplications and stored numbers of one block and iteration with a logistic lower level. Version 1 "
    "tracks and inverts a Hessian, version 2 a product with it.",
    alt="Two log-log lines each: version 1 rises with the cube of the dimension, version 2 linearly.",
    panels=2,
    size=(3.8, 3.2),
)
def arithmetic(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    rows = pd.concat([results.of("cost", v).drop_duplicates("dim") for v in ("v1", "v2")])
    rows = rows.assign(method=rows["method"].map(LABELS))
    for ax, y in zip(axes, ("multiplications", "stored"), strict=True):
        sns.lineplot(rows, x="dim", y=y, hue="method", marker="o", legend=ax is axes[0], ax=ax)
        ax.set(xscale="log", yscale="log", xlabel="dimension of y")
    axes[0].legend(title=None, fontsize="small")
