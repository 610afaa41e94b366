"""What counts as evidence for the claims on AutoCoreset.

A row is a trial on a data set with one summariser; log10 eps and the log10 loss error stand side by side for the sizes.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, bootstrap, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROBLEMS = {
    "logistic": "logistic regression",
    "svm": "linear SVM",
    "regression": "ridge regression",
    "kmeans": "k-means",
}
LABELS = {
    "auto": "AutoCoreset",
    "uniform": "uniform",
    "specific": "made for the problem",
    "best_of_uniform": "best of as many uniform",
    "shuffled": "losses shuffled",
    "kept": "losses shuffled, best kept",
}
SUMMARISERS = {"importance": "importance", "caratheodory": "Caratheodory", "best_uniform": "best of 100 uniform"}


def columns(rows: pd.DataFrame, metric: str, sizes: tuple[int, ...] = ()) -> dict[int, str]:
    """{size: column} of a metric, for the given sizes or for all."""
    found = {int(c.rpartition("_")[2]): c for c in rows if c.startswith(f"{metric}_")}
    return {m: c for m, c in sorted(found.items()) if not sizes or m in sizes}


def trials(results: Evidence, problem: str, method: str, metric: str, sizes: tuple[int, ...] = ()) -> pd.DataFrame:
    """Mean over the sizes: one row a (data set, trial), one column a summariser."""
    rows = results.of(problem, method)
    mean = rows[list(columns(rows, metric, sizes).values())].mean(axis=1)
    return rows.assign(mean=mean).pivot(index=["data", "seed"], columns="summariser", values="mean")


def chosen(results: Evidence) -> str:
    """The summariser with the lowest mean log10 eps on breast_cancer."""
    return trials(results, "selection", "auto", "log_eps").mean().idxmin()


def gain(results: Evidence, problem: str, over: str) -> np.ndarray:
    """log10 eps of `over` minus AutoCoreset's, sizes averaged: one value a (data set, trial)."""
    ours = trials(results, problem, "auto", "log_eps")[chosen(results)]
    theirs = trials(results, problem, over, "log_eps").iloc[:, 0]
    return (theirs - ours).dropna().to_numpy()


@claim("c1")
def better_than_uniform(results: Evidence) -> list[Criterion]:
    gains = {problem: gain(results, problem, "uniform") for problem in PROBLEMS}
    each = [interval(f"log10 eps saved, {PROBLEMS[problem]}", g, ">", 0) for problem, g in gains.items()]
    return [
        at_least("problems with log10 eps saved", 3, each),
        interval("log10 eps saved, all problems", list(gains.values()), ">", 0),
    ]


@claim("c2")
def competitive(results: Evidence) -> list[Criterion]:
    gains = [gain(results, problem, "specific") for problem in ("logistic", "regression", "kmeans")]
    return [interval("log10 eps saved against the problem's own sampler", gains, ">", -0.05)]


def geometric_mean(name: str, log10_ratios: np.ndarray, op: str, threshold: float) -> Criterion:
    """As interval, of 10 to the mean; its bounds are those of the mean."""
    _, low, high = bootstrap(log10_ratios)
    mean = lambda drawn: float(10 ** np.mean(drawn))  # noqa: E731
    return interval(name, log10_ratios, op, threshold, mean, limits=(10**low, 10**high))


@claim("c3")
def general(results: Evidence) -> list[Criterion]:
    """By summariser; a control brings one of its own."""
    ratios: dict[str, list[Criterion]] = {}
    for problem in ("logistic", "kmeans"):
        ours = trials(results, problem, "auto", "log_error", (50, 200))
        uniform = trials(results, problem, "uniform", "log_error", (50, 200)).iloc[:, 0]
        for summariser in ours:
            difference = ours[summariser].sub(uniform).dropna().to_numpy()
            name = f"loss error over uniform's, {summariser}, {PROBLEMS[problem]}"
            ratios.setdefault(summariser, []).append(geometric_mean(name, difference, "<", 1))
    both = [at_least(f"{summariser} on both problems", 2, pair) for summariser, pair in ratios.items()]
    return [at_least("summarisers that are closer than uniform on both problems", 1, both)]


# ---- figures


def colours() -> dict[str, tuple]:
    import seaborn as sns

    return dict(zip(LABELS, sns.color_palette("tab10"), strict=False))


def by_size(results: Evidence, problem: str) -> pd.DataFrame:
    """Columns method, data, seed, size, log_eps; AutoCoreset with the chosen summariser."""
    rows = results.of(problem)
    rows = rows[(rows["method"] != "auto") | (rows["summariser"] == chosen(results))]
    keep = ["method", "data", "seed"]
    found = [rows[keep].assign(size=m, log_eps=rows[c]) for m, c in columns(rows, "log_eps").items()]
    control = rows[rows["method"] == "shuffled"].assign(method="kept")
    found += [control[keep].assign(size=m, log_eps=control[c]) for m, c in columns(rows, "kept_log_eps").items()]
    return pd.concat(found)


@figure(
    "Excess loss against the coreset's size",
    caption="log10 of eps, mean over data sets and trials with 95% intervals; AutoCoreset with the summariser "
    "chosen on breast_cancer. It looks at the full loss in every round: beside it the best of as many uniform samples, "
    "and itself with the losses shuffled (last round, and best round kept), where only that look is left.",
    alt="Four panels of falling lines, one a learning problem, one line a method.",
    panels=4,
    size=(3.6, 3.8),
)
def excess_loss(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    for ax, (problem, label) in zip(axes, PROBLEMS.items(), strict=True):
        table = by_size(results, problem)
        shown = [m for m in LABELS if m in set(table["method"])]
        style = {"hue_order": shown, "palette": colours(), "marker": "o", "legend": False, "seed": 0, "n_boot": 200}
        sns.lineplot(table, x="size", y="log_eps", hue="method", ax=ax, **style)
        ax.set(xlabel="coreset size", ylabel="log10 eps" if ax is axes[0] else "")
        ax.set_title(label, fontsize="small")
    handles = [axes[0].plot([], [], "o-", color=colours()[m], label=text)[0] for m, text in LABELS.items()]
    axes[-1].legend(handles=handles, fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


@figure(
    "Which summary",
    caption="log10 of eps by summariser, relative to uniform sampling of the same size (below 0 is better), sizes "
    "averaged, one point a data set and trial. The exact summary was chosen on logistic regression.",
    alt="Strips of points by learning problem, one colour a summariser, with a line at zero.",
    size=(7.0, 3.6),
)
def by_summariser(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    found = []
    for problem, label in PROBLEMS.items():
        uniform = trials(results, problem, "uniform", "log_eps").iloc[:, 0]
        ours = trials(results, problem, "auto", "log_eps").sub(uniform, axis=0)
        long = ours.melt(var_name="summariser", value_name="difference")
        found.append(long.assign(problem=label, summariser=long["summariser"].map(SUMMARISERS)))
    style = {"hue_order": list(SUMMARISERS.values()), "dodge": True, "size": 3}
    sns.stripplot(pd.concat(found), x="problem", y="difference", hue="summariser", ax=ax, **style)
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel="", ylabel="log10 eps - uniform's")
    ax.legend(title=None, fontsize="x-small")


@figure(
    "Loss at unseen queries",
    caption="Median over 200 unseen queries of the coreset's relative loss error, mean over data sets and trials with "
    "95% intervals, at sizes 50 and 200.",
    alt="Points with intervals by size, one colour a method: two panels, logistic regression and k-means.",
    panels=2,
    size=(5.0, 3.6),
)
def unseen_queries(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    names = {("uniform", "none"): "uniform", ("best_of_uniform", "caratheodory"): "best of as many uniform"}
    names |= {("auto", s): f"AutoCoreset, {label}" for s, label in SUMMARISERS.items()}
    names |= {("specific", "none"): "made for the problem"}
    for ax, problem in zip(axes, ("logistic", "kmeans"), strict=True):
        rows = results.of(problem)
        rows = rows.assign(name=[names.get(k) for k in zip(rows["method"], rows["summariser"], strict=True)])
        sizes = columns(rows, "log_error", (50, 200))
        table = pd.concat([rows[["name"]].assign(size=m, error=10 ** rows[c]) for m, c in sizes.items()]).dropna()
        order = list(dict.fromkeys(names.values()))
        style = {"hue_order": order, "dodge": 0.5, "linestyle": "none", "markersize": 4, "seed": 0, "n_boot": 200}
        sns.pointplot(table, x="size", y="error", hue="name", legend=ax is axes[-1], ax=ax, **style)
        ax.set(yscale="log", xlabel="coreset size", ylabel="relative loss error")
        ax.set_title(PROBLEMS[problem], fontsize="small")
    axes[-1].legend(title=None, fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
