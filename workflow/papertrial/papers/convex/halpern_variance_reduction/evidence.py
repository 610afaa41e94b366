"""What counts as evidence for the claims on variance-reduced Halpern iteration.

Rows hold the component calls of a method until the residual is small enough, one a seed and size n.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

LABELS = {
    "vr-halpern": "VR Halpern",
    "vr-halpern-full": "VR Halpern, every value full",
    "halpern": "Halpern, 1/L_F",
    "halpern-2": "Halpern, 2/L_F",
    "growing-batches": "growing batches",
    "sqrt-batches": "sqrt(n) batches",
    "vr-resolvent": "VR resolvents",
    "vr-resolvent-full": "resolvents by full values",
    "eag": "EAG",
    "extragradient": "extragradient",
    "vr-extragradient": "VR extragradient",
    "vr-extragradient-average": "VR extragradient, average",
}
GAMES = ("bilinear-small", "bilinear-middle", "bilinear-large")


def slopes(rows: pd.DataFrame) -> np.ndarray:
    """Least-squares slope of log calls on log n, one a seed; their mean is the slope of the mean log calls."""
    log_calls = rows.pivot(index="seed", columns="n", values="log_calls").dropna()
    x = np.log(log_calls.columns.to_numpy(dtype=float))
    x -= x.mean()
    return log_calls.to_numpy() @ x / (x @ x)


@claim("c1")
def calls_grow_like_sqrt_n(results: Evidence) -> list[Criterion]:
    ours, full = (slopes(results.of("cocoercive", method)) for method in ("vr-halpern", "halpern"))
    return [
        interval("slope of log calls on log n, VR Halpern", ours, "<=", 0.7),
        point("the same, deterministic Halpern", full, ">=", 0.9),
    ]


@claim("c2")
def cheaper_for_large_n(results: Evidence) -> list[Criterion]:
    calls = results.paired("cocoercive-large", "calls")
    ratio = calls["vr-halpern"] / calls[["halpern", "halpern-2"]].min(axis=1)
    return [interval("calls of VR Halpern / of Halpern with the better step", ratio, "<", 0.5)]


@claim("c3")
def last_iterate(results: Evidence) -> list[Criterion]:
    rows = results.of("last-iterate", "vr-halpern")
    return [
        point("slope of log ||F(u_k)|| on log k", rows["slope"], "<=", -0.9),
        point("largest k ||F(u_k)|| / (L ||u_0 - u*||)", rows["largest"], "<=", 32, np.max),
    ]


@claim("c4")
def monotone_games(results: Evidence) -> list[Criterion]:
    rows = pd.concat([results.of(game, "vr-resolvent") for game in GAMES])
    calls = results.paired(GAMES[-1], "calls")
    ratios = calls["vr-resolvent"] / calls["eag"]
    below = [point(f"VR resolvents / EAG, seed {seed}", float(r), "<", 1) for seed, r in ratios.items()]
    return [
        point("slope of log calls on log n, VR resolvents", slopes(rows), "<=", 0.8),
        at_least("seeds with fewer calls than EAG at the largest n", math.ceil(0.8 * len(below)), below),
    ]


# ---- figures


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(method=table["method"].map(LABELS))


def look(methods: list[str]) -> dict[str, Any]:
    """A method has one colour and one dash in all figures."""
    import seaborn as sns

    shown = [m for m in LABELS if m in methods]
    pairs = np.array(sns.color_palette("Paired", 10)).reshape(5, 2, 3)[:, ::-1].reshape(10, 3)  # dark first
    colours = dict(zip(LABELS.values(), [*map(tuple, pairs), (0.35,) * 3, (0.65,) * 3], strict=True))
    ours = {LABELS[m]: "" if m in ("vr-halpern", "vr-resolvent") else (2, 1) for m in shown}
    names = [LABELS[m] for m in shown]
    return {"hue": "method", "style": "method", "palette": colours, "dashes": ours, "hue_order": names}


def legend_below(ax: Any) -> None:
    import seaborn as sns

    sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.16), ncol=2, title=None, fontsize="x-small")


@figure(
    "Component calls against n",
    caption="Mean calls to the tolerance with 95% intervals. Cocoercive sums (left): full evaluations cost slope 1, "
    "variance reduction should halve it, from a larger constant. Bilinear games (right): the same with resolvents. "
    "Methods that stop at the cap are drawn there, on a line of slope 1. Extragradient converges linearly on these "
    "strongly monotone sums and is not what the theorem competes with.",
    alt="Two log-log panels of calls against n, one line a method; the proposed methods rise about half as steeply.",
    panels=2,
    size=(5.4, 5.0),
)
def calls_against_n(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, problems in zip(axes, (["cocoercive"], GAMES), strict=True):
        rows = pd.concat([results.of(p) for p in problems])
        style = look(list(rows["method"]))
        sns.lineplot(labelled(rows), x="n", y="calls", markers=True, style_order=style["hue_order"], ax=ax, **style)
        ax.set(xscale="log", yscale="log", ylabel="component calls", title=problems[0].split("-")[0])
        legend_below(ax)


@figure(
    "The residual against calls",
    caption="The least residual so far on one instance at the largest n. A full evaluation is n calls: variance "
    "reduction takes many cheap steps after it where deterministic methods pay again.",
    alt="Two log-log panels of the residual against component calls, one line a method, all falling.",
    panels=2,
    size=(5.4, 5.0),
)
def residuals(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    traces = results.traces
    traces = traces[(traces["seed"] == traces["seed"].min()) & (traces["calls"] > 0)]
    for ax, problem in zip(axes, ("cocoercive", GAMES[-1]), strict=True):
        drawn = traces[traces["problem"] == problem]
        drawn = drawn.assign(residual=drawn.groupby("method")["residual"].cummin())
        style = look(list(drawn["method"]))
        sns.lineplot(
            labelled(drawn), x="calls", y="residual", style_order=style["hue_order"], errorbar=None, ax=ax, **style
        )
        ax.set(xscale="log", yscale="log", xlabel="component calls", ylabel="||F(u)||", title=problem.split("-")[0])
        ax.set_xlim(left=drawn["n"].max() / 2)
        legend_below(ax)


@figure(
    "The last iterate",
    caption="||F(u_k)|| of VR Halpern over iterations, one line a seed; dotted: slope -1. The residual falls with the "
    "fading anchor and does not level off at the estimator's noise.",
    alt="Log-log lines of the residual against the iteration, parallel to a dotted line of slope -1.",
)
def decay(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    drawn = results.traces[results.traces["problem"] == "last-iterate"]
    sns.lineplot(drawn, x="k", y="residual", units="seed", estimator=None, color="C0", lw=0.8, ax=ax)
    last = drawn[drawn["k"] == drawn["k"].max()]
    k = np.array([20, drawn["k"].max()])
    ax.plot(k, 1.5 * last["residual"].max() * k[1] / k, ":", color="0.3")
    ax.set(xscale="log", yscale="log", xlabel="iteration k", ylabel="||F(u_k)||")
