"""What counts as evidence for the claims on block coordinate descent."""

import math
from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

GENERATED = {"least-squares": "least squares", "logistic": "logistic", "softmax": "softmax"}
L1 = {"lasso": "l1 least squares", "l1-logistic": "l1 logistic"}
FORESTS = ["red_black", "combs", "greedy_forest"]
RULES = {
    "random": "random",
    "cyclic": "cyclic",
    "gs": "GS",
    "gsl": "GSL",
    "gsl_permuted": "GSL, bounds permuted",
    "gsq": "GSQ, matrix",
    "variable_gs": "variable GS",
    "variable_gsd": "variable GSD",
    "accelerated": "accelerated gradient",
}
GRAPH_METHODS = {
    "small_blocks": "GSQ, blocks of 5",
    "red_black": "red-black",
    "combs": "two combs",
    "greedy_forest": "greedy forest",
}


@claim("c1")
def rules_that_know_curvature(results: Evidence) -> list[Criterion]:
    progress = [results.paired(problem, "mean_log_gap", "tau").loc[5] for problem in GENERATED]
    blind = [table[["cyclic", "random"]].min(axis=1) for table in progress]
    return [
        interval("GSL - GS, mean log10 gap", [(p["gsl"] - p["gs"]).to_numpy() for p in progress], "<", 0),
        interval(
            "GS - the better of cyclic and random",
            [(p["gs"] - b).to_numpy() for p, b in zip(progress, blind, strict=True)],
            "<",
            0,
        ),
        interval(
            "variable GSD - variable GS", [(p["variable_gsd"] - p["variable_gs"]).to_numpy() for p in progress], "<", 0
        ),
    ]


def geometric_mean(logs: list[np.ndarray]) -> float:
    return float(np.exp(np.concatenate(logs).mean()))


@claim("c2")
def matrix_updates_by_their_rule(results: Evidence) -> list[Criterion]:
    logs = []
    for problem in ("least-squares", "logistic"):
        iterations = results.paired(problem, "iterations", "tau")
        ratio = np.log(iterations["gsl"] / iterations["gsq"]).dropna()
        logs += [ratio.loc[tau].to_numpy() for tau in (5, 20)]
    name = "geometric mean of iterations, GSL with gradient / GSQ with matrix steps"
    return [point(name, logs, ">=", 1.5, geometric_mean), interval(name, logs, ">", 1, geometric_mean)]


@claim("c3")
def huge_forest_blocks(results: Evidence) -> list[Criterion]:
    solves = results.of("forests", "forest_solve")
    slope = np.polyfit(np.log(solves["size"]), np.log(solves["operations"]), 1)[0]
    operations = results.paired("lattice", "operations")
    ratio = operations["small_blocks"] / operations[FORESTS].min(axis=1)
    return [
        point("slope of log operations against log size of the block", float(slope), "<=", 1.1),
        point("largest error of a solve", solves["error"], "<=", 1e-8, np.max),
        point("least ratio of operations, small blocks / best forests", ratio, ">", 1, np.min),
    ]


@claim("c4")
def support_then_superlinear(results: Evidence) -> list[Criterion]:
    criteria = [
        point(f"{label}: last change of the support", results.of(problem, "two_metric")["K"], "<", 3000, np.max)
        for problem, label in L1.items()
    ]
    logistic, squares = (results.of(problem, "two_metric") for problem in ("l1-logistic", "lasso"))
    last, first = logistic["last_ratio"], logistic["first_ratio"]
    superlinear = (last <= 1e-2) & ((last <= 0.1 * first) | (first <= 1e-3))
    finite = (squares["reached"] == 1) & (squares["further_steps"] <= 3)
    for name, holds in (
        ("l1 logistic: errors fall faster and faster", superlinear),
        ("l1 least squares: ends", finite),
    ):
        parts = [point(f"seed {s}", float(h), ">=", 1) for s, h in enumerate(holds)]
        criteria.append(at_least(f"{name}, seeds", math.ceil(0.8 * len(parts)), parts))
    return criteria


def of_problem(table: pd.DataFrame, problem: str, labels: dict[str, str]) -> pd.DataFrame:
    rows = table[(table["problem"] == problem) & table["method"].isin(labels)]
    return rows.assign(method=rows["method"].map(labels))


def colours() -> dict[str, Any]:
    import seaborn as sns

    return dict(zip(RULES.values(), sns.color_palette("colorblind", len(RULES)), strict=True))


def legend_beside(axes: list[Any]) -> None:
    """The first panel, which has all methods, gives the legend; it stands right of the last one."""
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    axes[-1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1, 1))


@figure(
    "Rules",
    caption="Suboptimality (log10, relative) with blocks of 5, mean of the seeds. Rules that divide by the bounds "
    "should lie lowest, cyclic and random order highest.",
    alt="Three panels of falling curves for least squares, logistic and softmax regression, one line a rule.",
    panels=3,
    size=(4.0, 3.4),
)
def rules(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, GENERATED.items(), strict=True):
        traces = of_problem(results.traces, problem, RULES)
        traces = traces[
            (traces["tau"] == 5) & (traces["iteration"] <= 300) & (traces["method"] != RULES["accelerated"])
        ]
        look = {"hue": "method", "palette": colours(), "errorbar": None, "legend": ax is axes[0]}
        sns.lineplot(traces, x="iteration", y="log_gap", ax=ax, **look)
        ax.set(title=title, ylabel="log10 of the gap" if ax is axes[0] else "")
    legend_beside(axes)


@figure(
    "What a full gradient costs",
    caption="The same suboptimality against operations, with the accelerated gradient method: greedy rules pay for "
    "the whole gradient in every iteration, cyclic and random order don't.",
    alt="Three log-x panels of suboptimality against operations, cyclic and random far to the left.",
    panels=3,
    size=(4.0, 3.4),
)
def operations(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, GENERATED.items(), strict=True):
        traces = of_problem(results.traces, problem, RULES)
        traces = traces[(traces["tau"] == 5) & (traces["method"] != RULES["gsl_permuted"])]
        look = {"hue": "method", "palette": colours(), "errorbar": None, "legend": ax is axes[0]}
        sns.lineplot(traces, x="operations", y="log_gap", estimator="mean", ax=ax, **look)
        ax.set(xscale="log", title=title, ylabel="log10 of the gap" if ax is axes[0] else "")
    legend_beside(axes)


@figure(
    "Forests as blocks",
    caption="Left: operations of an exact solve grow in proportion to the block. Right: labels on a lattice, one "
    "instance; forests reach the gap with fewer operations if their curve ends further left.",
    alt="Left a log-log line of slope one, right falling curves of suboptimality against operations for four kinds "
    "of blocks.",
    panels=2,
    size=(4.6, 3.6),
)
def forests(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    sns.lineplot(results.of("forests"), x="size", y="operations", marker="o", errorbar=None, ax=axes[0])
    axes[0].set(xscale="log", yscale="log", xlabel="nodes in the block", ylabel="operations of the solve")
    traces = of_problem(results.traces, "lattice", GRAPH_METHODS)
    traces = traces[traces["seed"] == traces["seed"].min()]
    sns.lineplot(traces, x="operations", y="log_gap", hue="method", hue_order=GRAPH_METHODS.values(), ax=axes[1])
    axes[1].set(xscale="log", ylabel="log10 of the gap")
    sns.move_legend(axes[1], "best", title=None)


@figure(
    "From the support to the solution",
    caption="Distance to the solution, one instance. Small greedy blocks until the support is the final one (the "
    "kink); then steps on all of it: Newton's fall off a cliff, proximal gradient steps do not.",
    alt="Two semilog panels of error against iteration: a slow decline, then for the two-metric projection a drop to "
    "rounding error within a few steps and for the control an almost flat line.",
    panels=2,
    size=(4.6, 3.6),
)
def superlinear(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    labels = {"two_metric": "two-metric projection", "prox_gradient": "proximal gradient (control)"}
    for ax, (problem, title) in zip(axes, L1.items(), strict=True):
        traces = of_problem(results.traces, problem, labels)
        traces = traces[traces["seed"] == traces["seed"].min()]
        traces = traces.assign(error=traces["error"].clip(lower=1e-16))
        look = {"hue": "method", "hue_order": labels.values(), "estimator": None, "legend": ax is axes[-1]}
        sns.lineplot(traces, x="iteration", y="error", ax=ax, **look)
        ax.set(yscale="log", title=title, ylabel="distance to the solution" if ax is axes[0] else "")
    sns.move_legend(axes[-1], "best", title=None)
