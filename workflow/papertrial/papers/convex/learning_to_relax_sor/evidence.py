"""What counts as evidence for the claims on learning to relax."""

from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

SHIFTS = {"high": "high variance", "low": "low variance"}
RIVALS = [1.0, 1.2, 1.4, 1.6, 1.8]
LABELS = {
    "tsallis": "Tsallis-INF",
    "chebcb": "ChebCB",
    "binned": "Tsallis-INF, 5 bins",
    "epsilon-greedy-0.01": "greedy, epsilon 0.01",
    "explore-then-commit": "explore, then commit",
    "optimal": "each system's optimum",
    "tsallis-misfed": "Tsallis-INF misfed (control)",
    "chebcb-permuted": "ChebCB permuted (control)",
}


def by_seed(results: Evidence, problem: str, method: str) -> pd.DataFrame:
    return results.of(problem, method).set_index("seed")


def fixed(results: Evidence, problem: str, metric: str) -> pd.DataFrame:
    """Of the fixed omegas: one row a seed, one column an omega."""
    return results.of(problem, "fixed").pivot(index="seed", columns="omega", values=metric)


def shifts_of(results: Evidence, method: str) -> list[str]:
    """The distributions of shifts that the method ran on."""
    found = [p for p in SHIFTS if ((results.rows["problem"] == p) & (results.rows["method"] == method)).any()]
    if not found:
        raise LookupError(f"no results of {method}")
    return found


@claim("c1")
def close_to_the_best_fixed_omega(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in shifts_of(results, "tsallis"):
        learner, total = by_seed(results, problem, "tsallis"), fixed(results, problem, "total")
        late, best = fixed(results, problem, "last_fifth"), total.idxmin(axis=1)
        reference = pd.Series({seed: late.loc[seed, omega] for seed, omega in best.items()})
        beaten = total[RIVALS].gt(learner["total"], axis=0).sum(axis=1)
        criteria += [
            interval(f"{SHIFTS[problem]}: late cost / best omega's", learner["last_fifth"] / reference, "<=", 1.15),
            point(f"{SHIFTS[problem]}: fewest fixed omegas beaten, of 5", beaten, ">=", 4, np.min),
        ]
    return criteria


@claim("c2")
def the_shift_as_context_helps(results: Evidence) -> list[Criterion]:
    ours, blind = (by_seed(results, "high", m)["total"] for m in ("chebcb", "tsallis"))
    best = fixed(results, "high", "total")[1.8]
    return [
        interval("mean saving over Tsallis-INF", (blind - ours) / blind, ">", 0),
        interval("mean saving over omega = 1.8", (best - ours) / best, ">", 0),
    ]


@claim("c3")
def approaches_the_optimal_policy(results: Evidence) -> list[Criterion]:
    ours, optimal = (by_seed(results, "high", m) for m in ("chebcb", "optimal"))
    first, last = (ours[part] / optimal[part] for part in ("first_fifth", "last_fifth"))
    return [
        point("late cost / the optimal omegas'", last, "<=", 1.15),
        interval("early ratio - late ratio", first - last, ">", 0),
    ]


@claim("c4")
def regret_grows_sublinearly(results: Evidence) -> list[Criterion]:
    return [
        point(f"{SHIFTS[p]}: mean slope of log regret on log t", by_seed(results, p, "tsallis")["slope"], "<=", 0.75)
        for p in shifts_of(results, "tsallis")
    ]


def labelled(table: pd.DataFrame, problem: str) -> pd.DataFrame:
    rows = table[(table["problem"] == problem) & table["method"].isin(LABELS)]
    return rows.assign(method=rows["method"].map(LABELS))


@figure(
    "Learning",
    caption="Steps per system, in 25 stretches of the sequence, mean of the seeds. Tsallis-INF should come down to the "
    "dashed line, the best fixed omega, and ChebCB below it, towards each system's optimum.",
    alt="Two panels of steps against the round: learners' lines fall, ChebCB's to just above the optimum, "
    "Tsallis-INF's to the dashed line, and the misfed control's stays high.",
    panels=2,
    size=(5.0, 3.8),
)
def learning(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, SHIFTS.items(), strict=True):
        traces = labelled(results.traces, problem).dropna(subset=["round"])
        look = {"hue": "method", "hue_order": LABELS.values(), "errorbar": None, "legend": ax is axes[-1]}
        sns.lineplot(traces, x="round", y="steps", ax=ax, **look)
        rounds = traces["round"].max()
        best = fixed(results, problem, "total").min(axis=1).mean() / rounds
        ax.axhline(best, color="black", linewidth=1, linestyle="--")
        ax.set(yscale="log", title=title, ylabel="steps per system" if ax is axes[0] else "")
    sns.move_legend(axes[-1], "upper left", bbox_to_anchor=(1, 1), title=None)


@figure(
    "What an omega costs",
    caption="Total steps with each fixed omega (line) and those of the learners, mean of the seeds. Past its "
    "minimum the curve is steep, so exploring large omegas is dear.",
    alt="Two panels of total steps against omega, a valley with its minimum near 1.8 and 1.65, and horizontal lines "
    "for Tsallis-INF, ChebCB and the optimal policy.",
    panels=2,
    size=(4.6, 3.6),
)
def totals(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, SHIFTS.items(), strict=True):
        sns.lineplot(results.of(problem, "fixed"), x="omega", y="total", color="grey", errorbar=None, ax=ax)
        colours = sns.color_palette("colorblind")
        for method, colour in zip(("tsallis", "chebcb", "optimal"), colours, strict=False):
            ax.axhline(by_seed(results, problem, method)["total"].mean(), color=colour, label=LABELS[method])
        ax.set(yscale="log", title=title, ylabel="total steps" if ax is axes[0] else "")
    axes[-1].legend()


@figure(
    "Omega and the shift",
    caption="Omegas played in the last 200 rounds of one sequence with shifts of high variance. ChebCB's should follow "
    "the optimal omega (line), which falls with the shift; Tsallis-INF can't see the shift.",
    alt="Scatter of the omega played against the shift: ChebCB along the falling curve of the optimum, "
    "Tsallis-INF along a horizontal line.",
)
def choices(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    traces = results.traces[
        (results.traces["problem"] == "high") & results.traces["method"].isin(["tsallis", "chebcb"])
    ]
    traces = traces[traces["seed"] == traces["seed"].min()].dropna(subset=["played"])
    traces = traces.assign(method=traces["method"].map(LABELS))
    sns.scatterplot(traces, x="c", y="played", hue="method", style="method", alpha=0.6, s=22, ax=ax)
    sns.lineplot(traces, x="c", y="optimum", color="black", linewidth=1, errorbar=None, label="optimal", ax=ax)
    ax.set(xlabel="shift c", ylabel="omega played")
    sns.move_legend(ax, "best", title=None)
