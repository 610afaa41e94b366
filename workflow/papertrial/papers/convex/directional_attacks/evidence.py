"""What the searches found, and how fast: the claims of directional-attacks.

Rows are one a network (the seed) and start: f before, after shares of the budget (in percent: 5, 10, 25, 100) and at
the end, what a look around the final point still gains, and how many successful steps were attacks.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "hybrid": "hybrid",
    "hybrid-pgd": "hybrid, PGD",
    "cdsm": "direct search (cDSM)",
    "blind": "hybrid, random signs",
    "attack-only": "attacks only",
    "cma-es": "CMA-ES",
    "nelder-mead": "Nelder-Mead",
    "random-search": "random search",
    "projected-gradient": "projected gradient",
    "reference": "gradient multistart, 20 budgets",
}
PROBLEMS = ("process", "counterfactual", "kinetics")
DFO = ("cma-es", "nelder-mead", "random-search")
PERCENT = {200: 5, 1000: 25, 4000: 100}  # of the budget of 4000


def range_of(results: Evidence, problem: str) -> pd.DataFrame:
    """f_best_known and f_best_known - f(x_0), by network and start."""
    rows = results.of(problem)
    same_target = ["seed", "start"] if problem == "counterfactual" else ["seed"]
    best = rows.groupby(same_target)["value"].transform("max")
    rows = rows.assign(best=best, span=np.maximum(best - rows["before"], 1e-12))
    return rows.groupby(["seed", "start"])[["best", "span"]].first()


def regrets(results: Evidence, problem: str, method: str, evaluations: int) -> pd.DataFrame:
    """Normalised regret, networks by starts."""
    known = range_of(results, problem)
    reached = results.of(problem, method).set_index(["seed", "start"])[f"after_{PERCENT[evaluations]}"]
    return (((known["best"] - reached) / known["span"]).clip(lower=1e-4)).unstack()


def gains(results: Evidence, problem: str, over: str, evaluations: int) -> np.ndarray:
    """(networks, starts): log10 of the other method's regret over the hybrid's."""
    ours, theirs = (regrets(results, problem, m, evaluations) for m in ("hybrid", over))
    return np.log10(theirs / ours).to_numpy()


@claim("c1")
def better_than_direct_search(results: Evidence) -> list[Criterion]:
    return [
        interval(f"log10 regret, cDSM less hybrid, {problem}, {B}", gains(results, problem, "cdsm", B), ">", 0)
        for problem in PROBLEMS
        for B in (1000, 4000)
    ]


def early_share(results: Evidence, problem: str, method: str) -> pd.DataFrame:
    """(f(400) - f(0)) / (f(4000) - f(0)), networks by starts; missing without improvement."""
    rows = results.of(problem, method).set_index(["seed", "start"])
    total = rows["after_100"] - rows["before"]
    return ((rows["after_10"] - rows["before"]) / total.where(total > 0)).unstack()


def attack_shares(results: Evidence, problem: str) -> np.ndarray:
    """(runs, 2): attacks among the successes of the first and of the last quarter; missing without successes."""
    rows = results.of(problem, "hybrid")
    return np.stack(
        [rows[f"{q}_attacks"] / rows[f"{q}_successes"].where(rows[f"{q}_successes"] > 0) for q in ("first", "last")],
        axis=1,
    )


@claim("c2")
def early_gain(results: Evidence) -> list[Criterion]:
    differences = [
        (early_share(results, problem, "hybrid") - early_share(results, problem, "cdsm")).to_numpy()
        for problem in PROBLEMS
    ]
    mean = lambda drawn: float(np.nanmean(np.concatenate([d.ravel() for d in drawn])))  # noqa: E731
    criteria = [interval("early share of the improvement, hybrid less cDSM", differences, ">", 0, mean)]
    for problem in PROBLEMS:
        first, last = (s[np.isfinite(s)] for s in attack_shares(results, problem).T)
        change = float((first.mean() if len(first) else 0.0) - (last.mean() if len(last) else 0.0))
        criteria.append(point(f"attack share, first quarter less last, {problem}", change, ">", 0))
    return criteria


def locally_optimal(results: Evidence, problem: str, method: str) -> np.ndarray:
    """(networks, starts) of 0 and 1."""
    rows = results.of(problem, method).set_index(["seed", "start"])
    return (rows["local_gain"] <= 1e-3 * range_of(results, problem)["span"]).unstack().to_numpy(dtype=float)


@claim("c3")
def attacks_need_direct_search(results: Evidence) -> list[Criterion]:
    hybrid = [locally_optimal(results, problem, "hybrid") for problem in PROBLEMS]
    # attacks alone are the control as well: in the hybrid's place they meet themselves
    other = "attack-only" if "attack-only" in set(results.rows["method"]) else "hybrid"
    alone = [locally_optimal(results, problem, other) for problem in PROBLEMS]
    more = [h - a for h, a in zip(hybrid, alone, strict=True)]
    return [
        point("share of locally optimal ends, hybrid", hybrid, ">=", 0.8),
        interval("share of locally optimal ends, hybrid less attacks only", more, ">", 0),
    ]


@claim("c4")
def better_than_general_search(results: Evidence) -> list[Criterion]:
    pooled, names = [], []
    for problem in PROBLEMS:
        mean = {m: float(regrets(results, problem, m, 1000).to_numpy().mean()) for m in DFO}
        best = min(mean, key=mean.__getitem__)
        pooled.append(gains(results, problem, best, 1000))
        names.append(LABELS[best])
    return [interval(f"log10 regret, best DFO ({', '.join(names)}) less hybrid, 1000", pooled, ">", 0)]


# ---- figures


def colours() -> dict[str, tuple]:
    """A method has one colour in all figures."""
    import seaborn as sns

    return dict(zip(LABELS, sns.color_palette("tab10"), strict=True))


@figure(
    "Regret by evaluations",
    caption="Normalised regret, geometric mean over networks and starts; a gradient counts three evaluations. The "
    "claim wants the hybrid below direct search everywhere, the control not.",
    alt="Three panels of falling lines on logarithmic axes, one line a method.",
    panels=3,
    size=(4.6, 3.8),
)
def regret_curves(results: Evidence, axes: "list[Axes]") -> None:
    for ax, problem in zip(axes, PROBLEMS, strict=True):
        known = range_of(results, problem)
        traces = results.traces[results.traces["problem"] == problem]
        for method in LABELS:
            rows = traces[(traces["method"] == method)].set_index(["seed", "start"])
            if rows.empty or method == "reference":
                continue
            regret = ((known["best"] - rows["value"]) / known["span"]).clip(lower=1e-4)
            line = np.exp(np.log(regret).groupby(rows["used"].to_numpy()).mean())
            style = "--" if method in ("blind", "attack-only") else "-"
            ax.plot(line.index, line, style, color=colours()[method], label=LABELS[method])
        ax.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="normalised regret")
        ax.set_title(problem, fontsize="small")
    axes[-1].legend(fontsize="x-small", bbox_to_anchor=(1.01, 0.5), loc="center left")


@figure(
    "Which steps succeed",
    caption="Attacks among the hybrid's successful steps, in the first and in the last quarter of its iterations: mean "
    "and 95% interval over runs.",
    alt="Pairs of bars by problem: share of attacks early and late.",
    size=(5.4, 3.6),
)
def successful_steps(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    frames = []
    for problem in PROBLEMS:
        shares = pd.DataFrame(attack_shares(results, problem), columns=["first quarter", "last quarter"])
        frames.append(shares.melt(var_name="when", value_name="share").assign(problem=problem))
    sns.barplot(pd.concat(frames), x="problem", y="share", hue="when", palette="crest", ax=ax)
    ax.set(xlabel="", ylabel="share of attacks", ylim=(0, 1))
    ax.legend(title=None, fontsize="x-small")


@figure(
    "Local optimality at the end",
    caption="Share of runs after which none of 200 points nearby is better by a thousandth of what there was to gain.",
    alt="Bars by problem and method: shares between zero and one.",
    size=(7.0, 3.8),
)
def local_optimality(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = pd.DataFrame(
        {"problem": problem, "method": LABELS[method], "share": optimal}
        for problem in PROBLEMS
        for method in LABELS
        if method in set(results.of(problem)["method"])
        for optimal in locally_optimal(results, problem, method).ravel()
    )
    palette = {LABELS[m]: c for m, c in colours().items()}
    sns.barplot(rows, x="problem", y="share", hue="method", palette=palette, errorbar=None, ax=ax)
    ax.set(xlabel="", ylabel="locally optimal", ylim=(0, 1))
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), title=None, fontsize="x-small")


@figure(
    "What the simulator says",
    caption="f at the end through the network, and of the simulator that it stands for, one point a run; on the dotted "
    "line they agree. Crosses violate the simulator's bounds.",
    alt="Two panels of points near a diagonal, below it where the network promises too much.",
    panels=2,
    size=(4.4, 3.8),
)
def simulator(results: Evidence, axes: "list[Axes]") -> None:
    for ax, problem in zip(axes, ("process", "kinetics"), strict=True):
        rows = results.of(problem)
        for method in ("hybrid", "cdsm", "cma-es", "reference"):
            run = rows[rows["method"] == method]
            for feasible, mark in ((1, "o"), (0, "x")):
                part = run[run["truly_feasible"] == feasible]
                label = LABELS[method] if feasible else None
                ax.plot(part["value"], part["truth"], mark, ms=4, color=colours()[method], label=label)
        ends = [rows["value"].min(), rows["value"].max()]
        ax.plot(ends, ends, ":", color="0.3")
        ax.set(xlabel="f through the network", ylabel="f of the simulator")
        ax.set_title(problem, fontsize="small")
    axes[0].legend(fontsize="x-small")
