"""What counts as evidence for the claims on sketched regression in the l-infinity norm."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "srht": "SRHT",
    "tensor_srht": "TensorSRHT",
    "gaussian": "Gaussian",
    "rademacher": "Rademacher",
    "countsketch": "CountSketch",
    "osnap2": "sparse, 2 a column",
    "osnap4": "sparse, 4 a column",
    "osnap8": "sparse, 8 a column",
    "uniform": "uniform rows",
    "leverage": "rows by leverage",
}
FAMILIES = ("gaussian", "coherent", "spike")
EPS = 0.5  # c1's m_0.5 is the m at which q95 is this


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


# ---- c1: q95 falls like m^(-1/2), and the m it takes grows like d


def grid(results: Evidence, family: str, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d (D,), m (D, M) and q95 (D, M), the mean over instances."""
    q95 = results.of(family, method).pivot_table(index="d", columns="m_over_d", values="q95")
    d = q95.index.to_numpy(dtype=float)
    return d, np.outer(d, q95.columns), np.maximum(q95.to_numpy(), 1e-6)  # a sketch without errors has a logarithm, too


def rows_needed(m: np.ndarray, q95: np.ndarray, eps: float = EPS) -> float:
    """The smallest m with q95 <= eps, by interpolation of the logarithms, or on the fitted line beyond the grid."""
    x, y = np.log(m), np.log(q95 / eps)
    crossings = [i for i in range(len(m) - 1) if y[i] > 0 >= y[i + 1]]
    if crossings:
        i = crossings[0]
        return float(np.exp(x[i] + (x[i + 1] - x[i]) * y[i] / (y[i] - y[i + 1])))
    fall = min(slope(x, y), -0.01)  # a line that doesn't fall comes down at no m worth naming
    return float(np.exp(np.clip(x.mean() - y.mean() / fall, 0, 100)))


@claim("c1")
def near_linear_rows(results: Evidence) -> list[Criterion]:
    criteria = []
    for family in FAMILIES:
        d, m, q95 = grid(results, family, "srht")
        fall = float(np.mean([slope(np.log(m[i]), np.log(q95[i])) for i in range(len(d))]))
        needed = np.array([rows_needed(m[i], q95[i]) for i in range(len(d))])
        criteria += [
            point(f"slope of log q95 on log m, {family}", fall, ">=", -0.65),
            point(f"slope of log q95 on log m, {family}", fall, "<=", -0.4),
            point(f"slope of log m_0.5 on log d, {family}", slope(np.log(d), np.log(needed)), "<=", 1.35),
        ]
    return criteria


# ---- c2, c3: the spike, draw by draw


def q95(R: np.ndarray) -> float:
    """As np.quantile(R, 0.95), at a tenth of its time."""
    place = 0.95 * (len(R) - 1)
    below = int(place)
    low, high = np.partition(R, (below, below + 1))[below : below + 2]
    return float(low + (place - below) * (high - low))


def draws(results: Evidence, method: str, metric: str, m_over_d: int) -> np.ndarray:
    """(draws,) in the order of the seeds."""
    rows = results.of("spike-draws", method)
    return rows[rows["m_over_d"] == m_over_d].sort_values("seed")[metric].to_numpy()


@claim("c2")
def sparse_fails(results: Evidence) -> list[Criterion]:
    l2 = [draws(results, method, "l2", 32) for method in ("countsketch", "srht")]
    return [
        interval("q95 of R, CountSketch", draws(results, "countsketch", "R", 32), ">=", 0.95, q95),
        interval("q95 of R, SRHT", draws(results, "srht", "R", 32), "<=", 0.65, q95),
        interval(
            "median l2 error, CountSketch over SRHT",
            l2,  # drawn independently of each other
            "<=",
            1.15,
            lambda drawn: float(np.median(drawn[0]) / np.median(drawn[1])),
        ),
    ]


@claim("c3")
def rows_do_not_repair(results: Evidence) -> list[Criterion]:
    R = [draws(results, method, "R", m) for m in (64, 8) for method in ("countsketch", "srht")]

    def growth(R: list[np.ndarray]) -> float:
        sparse_64, dense_64, sparse_8, dense_8 = map(q95, R)
        return (sparse_64 / dense_64) / (sparse_8 / dense_8)

    return [point("q95(CountSketch) / q95(SRHT), m = 64d over m = 8d", R, ">=", 1.2, growth)]


# ---- c4: cost


@claim("c4")
def fast_transform(results: Evidence) -> list[Criterion]:
    count = results.of("cost", "srht").groupby("n")["operations"].mean().reset_index()
    growth = slope(np.log(count["n"]), np.log(count["operations"]))
    seconds = results.timings[(results.timings["problem"] == "cost") & (results.timings["method"] == "srht")]
    longest = seconds[seconds["n"] == seconds["n"].max()]
    ratio = (longest["dense_s"] / longest["fast_s"]).to_numpy()
    return [
        point("slope of log operations on log n", growth, "<=", 1.15),
        point(f"time of S @ A over the transform's, n = {longest['n'].iloc[0]:.0f}", ratio, ">", 3, np.median),
    ]


# ---- figures


def colours() -> dict[str, tuple]:
    import seaborn as sns

    return dict(zip(LABELS, sns.color_palette("tab10"), strict=True))


def lines(table: pd.DataFrame, x: str, y: str, ax: "Axes") -> None:
    """One line a method, in its colour in all figures."""
    import seaborn as sns

    shown = [m for m in LABELS if m in set(table["method"])]
    sns.lineplot(
        table,
        x=x,
        y=y,
        hue="method",
        hue_order=shown,
        palette=colours(),
        marker="o",
        errorbar=None,
        legend=False,
        ax=ax,
    )


def legend(methods: list[str], ax: "Axes", label: Callable[[str], str] = LABELS.__getitem__) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colours()[m], marker="o", label=label(m)) for m in methods]
    ax.legend(handles=handles, fontsize="x-small", title=None)


@figure(
    "The largest coordinate error against the sketch's rows",
    caption="95% quantile of R over draws, at the largest d. Dotted: m^(-1/2), which SRHT and the dense sketches "
    "should follow on every family. CountSketch should stay at 1 on the spike family and nowhere else; row sampling "
    "makes no error there (its rows don't mix) and isn't drawn.",
    alt="Three panels of falling lines on logarithmic axes, one line a sketch; CountSketch is flat in the third.",
    panels=3,
    size=(4.6, 3.8),
)
def error_by_rows(results: Evidence, axes: "list[Axes]") -> None:
    for ax, family in zip(axes, FAMILIES, strict=True):
        rows = results.of(family)
        rows = rows[(rows["d"] == rows["d"].max()) & (rows["q95"] > 0)]
        lines(rows, "m_over_d", "q95", ax)
        ratio = np.sort(rows["m_over_d"].unique()).astype(float)
        srht = rows[(rows["method"] == "srht") & (rows["m_over_d"] == ratio[0])]["q95"].mean()
        ax.plot(ratio, srht * (ratio / ratio[0]) ** -0.5, ":", color="0.3")
        ax.set(xscale="log", yscale="log", xlabel=f"m / d (d = {rows['d'].max():.0f})", ylabel="q95 of R")
        ax.set_title(family, fontsize="small")
        ax.set_xticks(ratio, [f"{r:g}" for r in ratio])
        ax.set_xticks([], minor=True)
    legend([m for m in LABELS if m in set(results.of("gaussian")["method"])], axes[0])


@figure(
    "How many rows it takes",
    caption="m_0.5, the rows at which SRHT's q95 comes down to 0.5, with lines of slope 1 (near-linear, the paper's) "
    "and 2 (what the l2 guarantee would give).",
    alt="Lines on logarithmic axes: rows needed against d, one a family, parallel to the dotted line of slope one.",
    size=(5.0, 3.8),
)
def rows_by_columns(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    found = []
    for family in FAMILIES:
        d, m, q = grid(results, family, "srht")
        found += [{"d": d[i], "m": rows_needed(m[i], q[i]), "family": family} for i in range(len(d))]
    table = pd.DataFrame(found)
    sns.lineplot(table, x="d", y="m", hue="family", marker="o", ax=ax)
    d, start = np.sort(table["d"].unique()), table[table["d"] == table["d"].min()]["m"].mean()
    for power, style in ((1, ":"), (2, "--")):
        ax.plot(d, start * (d / d[0]) ** power, style, color="0.3", label=f"slope {power}")
    ax.set(xscale="log", yscale="log", xlabel="d", ylabel="m at which q95 = 0.5")
    ax.set_xticks(d, [f"{v:g}" for v in d])
    ax.set_xticks([], minor=True)
    ax.legend(title=None, fontsize="x-small")


@figure(
    "The spike instance, draw by draw",
    caption="Share of draws with R at most so much, at m = 8d (dotted), 32d (solid) and 64d (dashed). CountSketch is "
    "right or wrong by whole spikes, however many rows it has; the dense sketches' errors shrink.",
    alt="Cumulative distributions: steps at 0, 1 and 2 for CountSketch, smooth curves for SRHT and Gaussian.",
    size=(5.4, 3.8),
)
def spike_draws(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    methods = [m for m in LABELS if m in set(results.of("spike-draws")["method"])]
    for method in methods:
        for m_over_d, style in ((8, ":"), (32, "-"), (64, "--")):
            if len(R := draws(results, method, "R", m_over_d)):
                sns.ecdfplot(R, color=colours()[method], linestyle=style, ax=ax)
    ax.set(xlabel="R", ylabel="share of draws")
    legend(methods, ax)


@figure(
    "Operations of S A",
    caption="Counted operations of SRHT's fast transform, against those of a dense product with m = 32d rows.",
    alt="Two lines on logarithmic axes: operations against the number of rows n.",
    size=(5.0, 3.6),
)
def operations(results: Evidence, ax: "Axes") -> None:
    rows = results.of("cost", "srht").groupby("n")[["operations", "dense_operations"]].mean()
    ax.plot(rows.index, rows["operations"], "o-", color=colours()["srht"], label="fast transform")
    ax.plot(rows.index, rows["dense_operations"], "s-", color=colours()["gaussian"], label="dense product")
    ax.set(xscale="log", yscale="log", xlabel="rows n", ylabel="operations")
    ax.legend(fontsize="x-small")
