"""What errors and operation counts say about the claims of robust-alternating-matrix-completion.

Rows of a completion hold the relative error after the last round and the contraction factor, one a seed and
(k, condition, oversampling p n / k); rows of `cost` hold multiplications a sample, one a seed and k.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "exact": "exact",
    "robust-1e-8": "sketched, e = 1e-8",
    "robust-1e-4": "sketched, e = 1e-4",
    "robust-1e-2": "sketched, e = 1e-2",
    "injected-1e-6": "error injected, 1e-6",
    "injected-1e-4": "error injected, 1e-4",
    "injected-1e-2": "error injected, 1e-2",
    "injected-1e-1": "error injected, 1e-1",
    "robust-conditioned": "sketched, condition 100",
    "cg": "conjugate gradients",
    "cg-conditioned": "conjugate gradients, condition 100",
    "scaled-gd": "ScaledGD",
    "soft-impute": "Soft-Impute",
}
SUCCESS = 1e-4


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


def within(
    name: str, samples: np.ndarray, low: float, high: float, statistic: Callable[[np.ndarray], float]
) -> list[Criterion]:
    """A range is two criteria on one estimate."""
    above = point(name, samples, ">=", low, statistic)
    return [above, replace(above, op="<=", threshold=high, passed=above.estimate <= high)]


# ---- c1: recovery


def by_instance(results: Evidence, method: str, metric: str) -> dict[str, np.ndarray]:
    """{"k = 5, condition 1": (seeds,)} in the order of the seeds."""
    cells = results.of("recovery", method).sort_values("seed").groupby(["k", "condition"])
    return {f"k = {k:g}, condition {condition:g}": cell[metric].to_numpy() for (k, condition), cell in cells}


@claim("c1")
def errors_are_tolerated(results: Evidence) -> list[Criterion]:
    criteria = [
        point(f"median error, {LABELS[method]}, {where}", error, "<=", 1e-6, np.median)
        for method in ("exact", "robust-1e-8", "robust-1e-4")
        for where, error in by_instance(results, method, "error").items()
    ]
    exact = by_instance(results, "exact", "contraction")
    criteria += [
        point(f"contraction, e = 1e-4 less exact, {where}", factor - exact[where], "<=", 0.05)
        for where, factor in by_instance(results, "robust-1e-4", "contraction").items()
    ]
    return criteria


# ---- c2: errors that don't fade


def injected(results: Evidence, k: int, condition: float) -> tuple[np.ndarray, np.ndarray]:
    """e (E,) and final errors (seeds, E)."""
    rows = results.of("recovery")
    rows = rows[rows["method"].str.startswith("injected-") & (rows["k"] == k) & (rows["condition"] == condition)]
    table = rows.pivot(index="seed", columns="e", values="error")
    return table.columns.to_numpy(dtype=float), table.to_numpy()


@claim("c2")
def graceful(results: Evidence) -> list[Criterion]:
    rows = results.of("recovery", "injected-1e-2")
    k, criteria = int(rows["k"].min()), []
    for condition in sorted(rows["condition"].unique()):
        e, errors = injected(results, k, condition)
        statistic = lambda drawn, e=e: slope(np.log(e), np.log(np.median(drawn, axis=0)))  # noqa: E731
        criteria += within(f"slope of log error on log e, condition {condition:g}", errors, 0.7, 1.3, statistic)
    return criteria


# ---- c3: cost


def multiplications(results: Evidence, method: str) -> pd.Series:
    """Mean count a sample, by k."""
    return results.of("cost", method).groupby("k")["multiplications"].mean()


@claim("c3")
def cheaper_rounds(results: Evidence) -> list[Criterion]:
    sketched, exact = multiplications(results, "robust-1e-4"), multiplications(results, "exact")
    largest = sketched.index.max()
    growth = lambda count: slope(np.log(count.index.to_numpy()), np.log(count.to_numpy()))  # noqa: E731
    return [
        point("slope of log count on log k, sketched", growth(sketched), "<=", 1.4),
        point("slope of log count on log k, exact", growth(exact), ">=", 1.7),
        point(f"sketched over exact, k = {largest}", float(sketched[largest] / exact[largest]), "<", 1),
    ]


# ---- c4: samples


def successes(results: Evidence, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Oversampling p n / k (F,) and successes (seeds, F), 0 or 1."""
    table = results.of("samples", method).pivot(index="seed", columns="oversampling", values="error")
    return table.columns.to_numpy(dtype=float), (table <= SUCCESS).to_numpy(dtype=float)


def half_way(factor: np.ndarray, rate: np.ndarray) -> float:
    """The factor at which the rate first comes up to one half, by interpolation; if the largest one is too small, twice
    that, so that a method that never succeeds has a number."""
    reached = np.flatnonzero(rate >= 0.5)
    if not len(reached):
        return 2 * float(factor[-1])
    i = reached[0]
    if i == 0:
        return float(factor[0])
    return float(np.interp(0.5, rate[i - 1 : i + 1], factor[i - 1 : i + 1]))


@claim("c4")
def same_samples(results: Evidence) -> list[Criterion]:
    factor, robust = successes(results, "robust-1e-4")
    _, exact = successes(results, "exact")

    def ratio(drawn: np.ndarray) -> float:  # (seeds, 2, F)
        approximate, exact = drawn.mean(axis=0)
        return half_way(factor, approximate) / half_way(factor, exact)

    return within("samples for 50% success, e = 1e-4 over exact", np.stack([robust, exact], axis=1), 0.9, 1.15, ratio)


# ---- figures


def colours() -> dict[str, tuple | str]:
    """A method has one colour in all figures: warm where the error is injected."""
    import seaborn as sns

    cold, warm, other = sns.color_palette("crest", 3), sns.color_palette("flare", 4), sns.color_palette("tab10")
    palette = ["0.2", *cold, *warm, other[2], other[7], other[3], other[4], other[5]]
    return dict(zip(LABELS, palette, strict=True))


@figure(
    "Convergence",
    caption="Relative error by round, median over the seeds, condition 1. With errors relative to the residual every "
    "sketched solver follows the exact one (the lines lie on each other, hence the dashes); injected errors end at a "
    "floor of about their size.",
    alt="Two panels, small and large k: falling lines of exact and sketched methods in one, flat ends of the others.",
    panels=2,
    size=(5.0, 3.8),
)
def convergence(results: Evidence, axes: "list[Axes]") -> None:
    traces = results.traces[(results.traces["problem"] == "recovery") & (results.traces["condition"] == 1)]
    sizes = sorted(traces["k"].unique())
    for ax, k in zip(axes, (sizes * 2)[:2], strict=True):
        for method in LABELS:
            rows = traces[(traces["k"] == k) & (traces["method"] == method)]
            if rows.empty or method in ("scaled-gd", "soft-impute"):  # a step isn't a round
                continue
            line = rows.groupby("round")["error"].median()
            style = (0, (4, 4)) if method.startswith("robust") else "-"
            ax.plot(line.index, line, linestyle=style, color=colours()[method], label=LABELS[method])
        ax.set(yscale="log", xlabel="round", ylabel="relative error")
        ax.set_title(f"k = {k}", fontsize="small")
    axes[-1].legend(fontsize="x-small", bbox_to_anchor=(1.01, 0.5), loc="center left")


@figure(
    "Two kinds of error",
    caption="Final error against the error e of every row's solution. Relative to the residual (points at the bottom) "
    "it leaves no trace; relative to the solution it comes out about 1.5-fold (dotted: equal).",
    alt="Points on logarithmic axes: injected errors on a line of slope one, sketched errors far below.",
    size=(5.0, 3.8),
)
def two_kinds_of_error(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("recovery")
    rows = rows[rows["e"] > 0]
    kind = rows["method"].str.startswith("injected").map({True: "of the solution", False: "of the residual"})
    rows = rows.assign(kind=kind, k="k = " + rows["k"].astype(str))
    palette = {"of the solution": colours()["injected-1e-2"], "of the residual": colours()["robust-1e-4"]}
    sns.scatterplot(rows, x="e", y="error", hue="kind", style="k", palette=palette, ax=ax)
    e = np.sort(rows["e"].unique())
    ax.plot(e, e, ":", color="0.3")
    ax.set(xscale="log", yscale="log", xlabel="error e of a solve", ylabel="final relative error")
    ax.legend(title=None, fontsize="x-small")


@figure(
    "Work a sample",
    caption="Multiplications for a row with 4 k^2 samples, over the samples. The sketched solver's count doesn't "
    "depend on the condition of the row's matrix; plain conjugate gradients need one step if it is perfectly "
    "conditioned and hundreds of operations more a sample if it isn't.",
    alt="Lines on logarithmic axes against k: exact rises with slope two, sketched with slope one and crosses it.",
    size=(5.0, 3.8),
)
def work(results: Evidence, ax: "Axes") -> None:
    for method in ("exact", "robust-1e-4", "robust-conditioned", "cg", "cg-conditioned"):
        count = multiplications(results, method)
        style = "o--" if method == "robust-conditioned" else "o-"
        ax.plot(count.index, count, style, color=colours()[method], label=LABELS[method])
    k = count.index.to_numpy()
    ax.set(xscale="log", yscale="log", xlabel="rank k", ylabel="multiplications a sample")
    ax.set_xticks(k, [f"{v:g}" for v in k])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize="x-small")


@figure(
    "Known entries needed",
    caption="Share of seeds that end below 1e-4, by the known entries a row over k. Exact and sketched lie on each "
    "other; injected errors of 1e-2 never get there, however many entries are known.",
    alt="Two rising curves that coincide, and a flat line at zero.",
    size=(5.0, 3.6),
)
def known_entries(results: Evidence, ax: "Axes") -> None:
    for method, style in (("exact", "o-"), ("robust-1e-4", "s--"), ("injected-1e-2", "^-")):
        factor, success = successes(results, method)
        ax.plot(factor, success.mean(axis=0), style, color=colours()[method], label=LABELS[method])
    ax.axhline(0.5, color="0.6", lw=0.8)
    ax.set(xlabel="p n / k", ylabel="share of seeds that succeed", ylim=(-0.03, 1.03))
    ax.legend(fontsize="x-small")


@figure(
    "Two reports",
    caption="No claim rests on these. Left: root mean squared error on held-out ratings of MovieLens small, one point "
    "a split. Right: error after five rounds in which every step has fresh entries, as in the theory; all are known.",
    alt="Two panels of points by method: held-out error of ratings, and relative error with fresh entries.",
    panels=2,
    size=(4.4, 3.6),
)
def reports(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    for ax, problem, metric in ((axes[0], "ratings", "rmse"), (axes[1], "split", "error")):
        rows = results.of(problem)
        rows = rows.assign(method=rows["method"].map(LABELS))
        palette = {LABELS[m]: c for m, c in colours().items()}
        sns.stripplot(rows, x="method", y=metric, hue="method", palette=palette, legend=False, ax=ax)
        ax.set(xlabel="", ylabel={"rmse": "RMSE, stars", "error": "relative error"}[metric])
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.tick_params(axis="x", labelsize="x-small")
