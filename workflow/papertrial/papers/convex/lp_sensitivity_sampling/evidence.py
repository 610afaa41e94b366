"""What counts as evidence for the claims on sampling rows by their sensitivities."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point
from papertrial.papers.convex.lp_sensitivity_sampling.method import GROWTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "sensitivity": "sensitivity",
    "root_leverage": "root leverage",
    "lewis": "Lewis",
    "leverage": "leverage",
    "uniform": "uniform",
    "permuted": "sensitivity, permuted",
    "both": "max of both",
}
FAMILIES = {
    "gaussian": "Gaussian",
    "coherent": "coherent",
    "identity": "identity",
    "vandermonde": "polynomials",
    "spam": "spam",
}
EPS = 0.5


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


# ---- c1, c3: how the sample size grows with d


def over_sizes(results: Evidence, problem: str, method: str) -> tuple[np.ndarray, float, np.ndarray]:
    """d (D,), n, and the distortions (draws, D, K) at m = d GROWTH^k; 0 beyond the last size that was run."""
    rows = results.of(problem, method).sort_values(["d", "seed"])
    steps = sorted((c for c in rows if c.startswith("step_")), key=lambda c: int(c.removeprefix("step_")))
    by_d = [part[steps].to_numpy() for _, part in rows.groupby("d")]
    return np.sort(rows["d"].unique()), float(rows["n"].max()), np.nan_to_num(np.stack(by_d, axis=1))


def rows_needed(d: np.ndarray, n: float, found: np.ndarray) -> np.ndarray:
    """m_eps (D,): the smallest m at which the median distortion is EPS, in log m between two sizes.

    It is n where no size that was run is large enough.
    """
    draws = len(found)
    middle = np.sort(found, axis=0)[(draws - 1) // 2 : draws // 2 + 1].mean(axis=0)  # (D, K): median
    middle = np.where((found == 0).all(axis=0), np.inf, middle)  # wasn't run
    reached = middle <= EPS
    k = reached.argmax(axis=1)  # the first, or 0
    i = np.arange(len(d))
    at, before = middle[i, k], middle[i, np.maximum(k - 1, 0)]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.where(k > 0, (before - EPS) / (before - at), 1)  # of the way from one size to the next
    return np.where(reached.any(axis=1), d * GROWTH ** (np.maximum(k - 1, 0) + part * (k > 0)), n)


def growth(results: Evidence, problem: str, method: str, name: str) -> Criterion:
    d, n, found = over_sizes(results, problem, method)
    return interval(name, found, "<=", 1.4, lambda drawn: slope(np.log(d), np.log(rows_needed(d, n, drawn))))


@claim("c1")
def sensitivity_sample_size(results: Evidence) -> list[Criterion]:
    d, n, found = over_sizes(results, "heavy", "sensitivity")
    criteria = [
        growth(results, "heavy", "sensitivity", "slope of log m_eps on log d"),
        point("largest m_eps over n", float((rows_needed(d, n, found) / n).max()), "<=", 0.25),
    ]
    rows = results.of("heavy", "sensitivity")
    if "S" in rows:  # it is A's and no method's, but only sensitivity sampling computes it
        S = rows.groupby("d")["S"].mean()
        order = slope(np.log(d), np.log(S.to_numpy()))
        criteria += [point("slope of log S on log d", order, op, edge) for op, edge in ((">=", 0.4), ("<=", 0.6))]
    return criteria


@claim("c3")
def root_leverage_sample_size(results: Evidence) -> list[Criterion]:
    drawn = [
        results.of("coherent-12d", method).sort_values("seed")["distortion"].to_numpy()
        for method in ("uniform", "root_leverage")
    ]
    return [
        growth(results, "coherent-sizes", "root_leverage", "slope of log m_eps on log d, coherent"),
        growth(results, "vandermonde-sizes", "root_leverage", "slope of log m_eps on log d, polynomials"),
        point(
            "median distortion of uniform over root leverage, m = 12d",
            drawn,
            ">=",
            2,
            lambda drawn: float(np.median(drawn[0]) / np.median(drawn[1])),
        ),
    ]


# ---- c2: one constant


def cells(results: Evidence, method: str) -> list[tuple[str, float, np.ndarray]]:
    """(family, p, distortions (draws,)) of the cells that aren't capped."""
    found = []
    for family in FAMILIES:
        rows = results.of(family, method)
        for p, part in rows[rows["capped"] == 0].groupby("p"):
            found.append((family, p, part.sort_values("seed")["distortion"].to_numpy()))
    return found


@claim("c2")
def one_constant(results: Evidence) -> list[Criterion]:
    uncapped = cells(results, "sensitivity")
    kept = [point(f"median distortion, {FAMILIES[f]}, p = {p:g}", D, "<=", EPS, np.median) for f, p, D in uncapped]
    return [
        at_least("uncapped cells with median distortion <= 1/2", math.ceil(0.9 * len(kept)), kept),
        point("uncapped cells", float(len(kept)), ">=", 10),
    ]


# ---- c4: which score for p > 2


@claim("c4")
def sensitivities_beyond_two(results: Evidence) -> list[Criterion]:
    rows = results.of("spikes")
    criteria = []
    for d in sorted(rows["d"].unique()):
        D = {m: part.sort_values("seed")["distortion"].to_numpy() for m, part in rows[rows["d"] == d].groupby("method")}

        def ratio(drawn: np.ndarray) -> float:
            return float(drawn[:, 0].mean() / drawn[:, 1].mean())

        pair = {m: np.column_stack([D[m], D["sensitivity"]]) for m in ("leverage", "both") if m in D}
        criteria.append(point(f"mean distortion of sensitivity, d = {d:g}", D["sensitivity"], "<=", EPS))
        if "leverage" in D:  # where leverage stands in for sensitivity it can't be held against itself
            criteria.append(point(f"leverage over sensitivity, d = {d:g}", pair["leverage"], ">=", 1.5, ratio))
        criteria.append(point(f"max of both over sensitivity, d = {d:g}", pair["both"], "<=", 1.1, ratio))
    return criteria


# ---- figures


def colours() -> dict[str, tuple]:
    import seaborn as sns

    return dict(zip(LABELS, sns.color_palette("tab10"), strict=False))


@figure(
    "Distortion against sample size",
    caption="Median over draws at p = 1, at the smallest and the largest d, on Gaussian rows with two heavy ones. "
    "Dotted: eps = 1/2 and a quarter of the rows. Uniform sampling misses the heavy rows however large the sample.",
    alt="Two panels of lines on logarithmic axes: distortion falls with m for sensitivity and Lewis sampling, not for "
    "uniform sampling.",
    panels=2,
    size=(5.0, 3.6),
)
def by_sample_size(results: Evidence, axes: "list[Axes]") -> None:
    from matplotlib.ticker import NullFormatter

    shown = [m for m in LABELS if m in set(results.of("heavy")["method"])]
    for ax, which in zip(axes, (0, -1), strict=True):
        for method in shown:
            d, n, found = over_sizes(results, "heavy", method)
            middle = np.median(found[:, which], axis=0)
            run = np.flatnonzero(middle > 0)
            ax.plot(d[which] * GROWTH**run, middle[run], "o-", ms=4, color=colours()[method], label=LABELS[method])
        ax.axhline(EPS, ls=":", color="0.4")
        ax.axvline(n / 4, ls=":", color="0.4")
        ax.set(xscale="log", yscale="log", xlabel="expected sample size m", ylabel="median distortion")
        ax.set_title(f"d = {d[which]:g}", fontsize="small")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].legend(fontsize="x-small")


@figure(
    "Rows needed for distortion 1/2",
    caption="m_eps at p = 1 against d, with lines of slope 1 (dotted) and 1.5 (dashed, the classical S d). Uniform "
    "sampling stays at n: it doesn't get there.",
    alt="Lines on logarithmic axes: m_eps against d, one a method and family.",
    size=(5.6, 3.8),
)
def sizes_by_columns(results: Evidence, ax: "Axes") -> None:
    curves = [("heavy", m, f"{LABELS[m]}, heavy rows") for m in LABELS if m in set(results.of("heavy")["method"])]
    curves += [(f"{f}-sizes", "root_leverage", f"root leverage, {FAMILIES[f]}") for f in ("coherent", "vandermonde")]
    for problem, method, label in curves:
        d, n, found = over_sizes(results, problem, method)
        style = {"heavy": "o-", "coherent-sizes": "s--", "vandermonde-sizes": "^-."}[problem]
        ax.plot(d, rows_needed(d, n, found), style, ms=4, color=colours()[method], label=label)
    start = rows_needed(*over_sizes(results, "heavy", "sensitivity"))[0]
    for power, style in ((1, ":"), (1.5, "--")):
        ax.plot(d, start * (d / d[0]) ** power, style, color="0.6", lw=1)
    ax.set(xscale="log", yscale="log", xlabel="d", ylabel="m_eps")
    ax.set_xticks(d, [f"{v:g}" for v in d])
    ax.set_xticks([], minor=True)
    ax.legend(fontsize="x-small")


@figure(
    "One constant for all matrices",
    caption="Median distortion at m = 4 S^e ln(10 d), by family and p; dotted: 1/2. Open: capped at n/2, left out. All "
    "methods have the same expected m.",
    alt="Points by family and p on a logarithmic axis, one colour a method: sensitivities lie below the line at 1/2, "
    "permuted ones above.",
    size=(9.0, 3.8),
)
def one_constant_everywhere(results: Evidence, ax: "Axes") -> None:
    rows = pd.concat([results.of(family) for family in FAMILIES])
    shown = [m for m in LABELS if m in set(rows["method"])]
    places = {cell: i for i, cell in enumerate((f, p) for f in FAMILIES for p in sorted(rows["p"].unique()))}
    for k, method in enumerate(shown):
        cell = rows[rows["method"] == method].groupby(["problem", "p"])[["distortion", "capped"]].median()
        x = np.array([places[c] for c in cell.index]) + 0.12 * (k - (len(shown) - 1) / 2)
        edge, open_ = colours()[method], cell["capped"].to_numpy() > 0
        y = np.maximum(cell["distortion"].to_numpy(), 1e-4)
        ax.plot(x[~open_], y[~open_], "o", ms=5, color=edge, label=LABELS[method])
        ax.plot(x[open_], y[open_], "o", ms=5, mfc="none", color=edge)
    ax.axhline(EPS, ls=":", color="0.4")
    ax.set_xticks(list(places.values()), [f"{FAMILIES[f]}\np={p:g}" for f, p in places], fontsize="xx-small")
    ax.set(yscale="log", ylabel="median distortion")
    ax.legend(fontsize="x-small", ncols=len(shown))


@figure(
    "Spikes that leverage scores don't see",
    caption="Exact distortion on the spiked identity at p = 4, one point a draw; dotted: 1/2.",
    alt="Strips of points by d, one colour a method: sensitivity and max of both below 1/2, the others above.",
    size=(5.6, 3.6),
)
def spikes(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("spikes")
    shown = [m for m in LABELS if m in set(rows["method"])]
    style = {"hue_order": shown, "palette": colours(), "dodge": True}
    rows = rows.assign(d=rows["d"].astype(int))
    sns.stripplot(rows, x="d", y="distortion", hue="method", size=3, ax=ax, **style)
    ax.axhline(EPS, ls=":", color="0.4")
    ax.set(yscale="log", ylabel="distortion")
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles[: len(shown)], [LABELS[m] for m in shown], fontsize="x-small")
