"""What the regrets say about optimistic online mirror descent.

On the rotating losses a row holds Reg_T and rho = max(Reg_T, 0) / (D (sqrt(sigma^2) + sqrt(Sigma^2)) + D G); OGD has
one column rho@c for each factor c of its step, without a suffix for c = 1.
"""

from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

LABELS = {
    "omd": "optimistic OMD",
    "omd-stale": "OMD, stale guess",
    "omd-even-noise": "OMD, even noise",
    "omd-endless-burst": "OMD, endless burst",
    "oftrl": "optimistic FTRL",
    "adagrad": "AdaGrad-norm",
    "ogd": "OGD",
    "ogd-constant": "OGD, constant steps",
    "newton": "optimistic Newton",
}
UNTUNED = ("ogd", "ogd-constant", "adagrad")
Cell = tuple[float, float]  # period, sigma


# ---- c1: rotating losses


def cells(results: Evidence, metric: str) -> dict[Cell, pd.DataFrame]:
    """{(period, sigma): (seeds, methods)}"""
    table = results.paired("rotating", metric, "period", "sigma")
    return {cell: part.droplevel([0, 1]) for cell, part in table.groupby(level=["period", "sigma"])}


def benign(cell: Cell) -> bool:
    """sqrt(sigma^2 + Sigma^2) <= 0.4 G in a round, for G = 1 and Sigma = 2 sin(pi / P)."""
    period, sigma = cell
    return np.hypot(sigma, 2 * np.sin(np.pi / period)) <= 0.4


def best_ogd(results: Evidence) -> pd.Series:
    """Mean rho of OGD with the best of its rules and factors in each cell."""
    found = []
    for method in ("ogd", "ogd-constant"):
        rows = results.of("rotating", method)
        columns = [c for c in rows if c == "rho" or c.startswith("rho@")]
        found.append(rows.groupby(["period", "sigma"])[columns].mean().min(axis=1))
    return pd.concat(found, axis=1).min(axis=1)


@claim("c1")
def one_rule_for_all_regimes(results: Evidence) -> list[Criterion]:
    rho = {cell: part["omd"].to_numpy() for cell, part in cells(results, "rho").items()}
    regret = cells(results, "regret")
    rival = best_ogd(results)
    worst = max(rho, key=lambda cell: rho[cell].mean())
    return [
        point(f"largest mean rho ({named(worst)})", rho[worst], "<=", 2),
        *(
            interval(
                f"least untuned regret minus OMD's, {named(cell)}",
                part[list(UNTUNED)].min(axis=1) - part["omd"],
                ">",
                0,
            )
            for cell, part in regret.items()
            if benign(cell)
        ),
        *(
            point(f"rho minus 3 times the best OGD's, {named(cell)}", r - 3 * rival[cell], "<=", 0.1)
            for cell, r in rho.items()
            if cell[1] >= 1
        ),
    ]


def gain(regret: pd.DataFrame) -> pd.Series:
    """What OMD saves on the best of the untuned rules, seed by seed."""
    return regret[list(UNTUNED)].min(axis=1) - regret["omd"]


def named(cell: Cell) -> str:
    return f"P = {cell[0]:g}, sigma = {cell[1]:g}"


# ---- c2, c3, c4


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


@claim("c2")
def rate_follows_the_variance(results: Evidence) -> list[Criterion]:
    regret = results.of("fading", "omd").pivot(index="seed", columns="T", values="regret")
    log_T = np.log(regret.columns.to_numpy(dtype=float))
    growth = lambda drawn: slope(log_T, np.log(np.maximum(drawn.mean(axis=0), 1e-12)))  # noqa: E731
    return [interval("slope of log mean Reg_T on log T", regret.to_numpy(), "<=", 0.37, growth)]


@claim("c3")
def convex_in_the_mean_only(results: Evidence) -> list[Criterion]:
    means = results.of("indefinite", "omd").groupby("scale")[["indefinite", "rho"]].mean()
    return [
        point("least share of rounds with an indefinite loss", float(means["indefinite"].min()), ">=", 0.5),
        point("largest mean rho", float(means["rho"].max()), "<=", 2),
    ]


def regrets(results: Evidence, problem: str) -> pd.DataFrame | None:
    """(seeds, rounds), or None if the method isn't there."""
    rows = results.rows[(results.rows["problem"] == problem) & (results.rows["method"] == "omd")]
    return None if rows.empty else rows.pivot(index="seed", columns="t", values="regret")


def r_squared(log_t: np.ndarray, regret: np.ndarray) -> float:
    return float(np.corrcoef(log_t, regret)[0, 1] ** 2)


@claim("c4")
def a_burst_is_paid_once(results: Evidence) -> list[Criterion]:
    burst, even = regrets(results, "burst"), regrets(results, "even")
    criteria = []
    if burst is not None:
        early, late = burst.iloc[:, 0], burst.iloc[:, -1]
        criteria.append(point("share of the regret that comes after T/5", (late - early) / early, "<=", 0.1))
    if even is not None:
        log_t = np.log(even.columns.to_numpy(dtype=float))
        fit = lambda drawn: r_squared(log_t, drawn.mean(axis=0))  # noqa: E731
        criteria.append(point("R^2 of mean Reg_t on log t", even.to_numpy(), ">=", 0.9, fit))
    if not criteria:
        raise LookupError("no results on strongly convex losses")
    return criteria


# ---- figures


@figure(
    "Between stochastic and adversarial",
    caption="Left: rho of optimistic OMD, regret over its bound; 0 where the regret is negative because the player "
    "follows the rotation. Right: what it gains on the better of untuned OGD and AdaGrad-norm, as a share of T; "
    "framed: the benign cells that are judged.",
    alt="Two heat maps over noise level and period of rotation: rho, largest for the fastest rotation, and the gain, "
    "largest for slow rotation and little noise.",
    panels=2,
    size=(5.2, 3.8),
)
def regimes(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns
    from matplotlib.patches import Rectangle

    rows = results.of("rotating", "omd")
    T = results.of("rotating")["T"].iloc[0]
    rho = rows.groupby(["sigma", "period"])["rho"].mean().unstack()
    regret = cells(results, "regret")
    saved = pd.Series({(sigma, period): gain(part).mean() / T for (period, sigma), part in regret.items()}).unstack()
    look = {"annot": True, "fmt": ".2f", "annot_kws": {"size": 8}, "cbar": False}
    sns.heatmap(rho, cmap="flare", vmin=0, ax=axes[0], **look)
    sns.heatmap(saved, cmap="vlag_r", center=0, ax=axes[1], **look)
    for i, sigma in enumerate(saved.index):
        for j, period in enumerate(saved.columns):
            if benign((period, sigma)):
                axes[1].add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec="0.1", lw=1.2))
    for ax, title in zip(axes, ("rho", "gain on the better untuned rule / T"), strict=True):
        ax.set(title=title, xlabel="period P", ylabel="noise sigma")
        ax.set_xticklabels([f"{p:g}" for p in saved.columns])


@figure(
    "Growth of the regret",
    caption="Left: noise whose variance fades like t^(-1/2). Regret like T^(1/4) (dotted) is what the accumulated "
    "variance allows; with even noise it must grow faster. Right: strongly convex losses, even noise; a straight line "
    "is logarithmic growth.",
    alt="Left, log-log lines of mean regret against the horizon, one a method. Right, mean regret against the round "
    "on a logarithmic axis, nearly straight.",
    panels=2,
    size=(5.0, 3.8),
)
def growth(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    rows = results.of("fading")
    rows = rows.assign(method=rows["method"].map(LABELS))
    sns.lineplot(rows, x="T", y="regret", hue="method", style="method", markers=True, dashes=False, ax=axes[0])
    T = np.array([rows["T"].min(), rows["T"].max()], dtype=float)
    first = rows[(rows["T"] == T[0]) & (rows["method"] == LABELS["omd"])]["regret"].mean()
    axes[0].plot(T, 0.7 * first * (T / T[0]) ** 0.25, ":", color="0.3")
    axes[0].set(xscale="log", yscale="log", xlabel="horizon T", ylabel="Reg_T")
    axes[0].legend(title=None, fontsize="x-small")
    even = results.of("even")
    sns.lineplot(even.assign(method=even["method"].map(LABELS)), x="t", y="regret", hue="method", ax=axes[1])
    axes[1].set(xscale="log", xlabel="round t", ylabel="Reg_t")
    axes[1].legend(title=None, fontsize="x-small")


@figure(
    "Single losses that are not convex",
    caption="rho on quadratics whose random part makes more than half of them indefinite. Bounded rho at every size "
    "of the random part is the claim; a player that stays at the start is at the dotted line.",
    alt="Lines of rho against the size of the random part on logarithmic axes, one a method, far below a dotted line.",
)
def indefinite(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    rows = results.of("indefinite")
    drawn = rows.assign(method=rows["method"].map(LABELS))
    sns.lineplot(drawn, x="scale", y="rho", hue="method", style="method", markers=True, dashes=False, ax=ax)
    T, s = rows["T"].iloc[0], np.sort(rows["scale"].unique())
    ax.plot(s, np.sqrt(T) / (2 * (np.sqrt(10 * T) * s + np.sqrt(1 + 1 / T))), ":", color="0.3")
    ax.set(xscale="log", yscale="log", xlabel="size s of the random part", ylabel="rho")
    ax.legend(title=None, fontsize="x-small")


@figure(
    "Breast cancer, one example a round",
    caption="Regret of untuned rules on logistic losses (reported, not judged): in random order, sorted by class, and "
    "half and half. The player that can follow a sorted stream has negative regret.",
    alt="Grouped bars of regret for three orders of the data, one colour a method.",
    size=(6.5, 3.4),
)
def real_stream(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    rows = results.of("cancer")
    sns.barplot(rows.assign(method=rows["method"].map(LABELS)), x="order", y="regret", hue="method", ax=ax)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set(xlabel="order", ylabel="Reg_T")
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), title=None)
