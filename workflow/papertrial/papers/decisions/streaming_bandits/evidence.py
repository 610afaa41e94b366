"""What the regrets say about the claims of streaming-bandits.

Rows hold rho = R / (K^(1/3) T^(2/3)), one a seed and (arms K, horizon T); on the hard family one column a gap.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "ue": "uniform exploration",
    "ue-tuned": "uniform exploration, tuned",
    "naive": "NAIVE",
    "const": "CONST",
    "king": "KING",
    "tower": "TOWER",
    "tower-log": "TOWER, log memory",
    "king-late": "KING without early rejection",
}
JUDGED = ("ue", "king", "tower")
ALGORITHMS = {"king": "KING", "tower": "TOWER"}
Cell = tuple[int, int]  # K, T


# ---- c1, c2: the saving D = (R_UE - R_alg) / R_UE of each seed


def savings(results: Evidence, problem: str, alg: str) -> dict[Cell, np.ndarray]:
    """{(K, T): (seeds,)} of D, for the cells in which none of the judged methods explores for more than T/2."""
    explored = results.paired(problem, "explored", "arms", "horizon")[list(JUDGED)]
    fair = (explored.groupby(level=["arms", "horizon"]).mean() <= 0.5).all(axis=1)
    rho = results.paired(problem, "rho", "arms", "horizon")
    D = ((rho["ue"] - rho[alg]) / rho["ue"]).dropna()
    fairly = {cell: d.to_numpy() for cell, d in D.groupby(level=["arms", "horizon"]) if fair[cell]}
    if not fairly:
        raise LookupError(f"no cell of {problem} leaves half of the horizon to commit in")
    return fairly


@claim("c1")
def saving(results: Evidence) -> list[Criterion]:
    criteria = []
    for alg, label in ALGORITHMS.items():
        D = savings(results, "uniform", alg)
        criteria += [interval(f"{label} saves at {named(cell)}", d, ">", 0) for cell, d in D.items()]
        large = [point(f"{label} at {named(cell)}", float(d.mean()), ">=", 0.25) for cell, d in D.items()]
        criteria.append(at_least(f"cells in which {label} saves 25%", 7, large))
    return criteria


@claim("c2")
def largest_saving(results: Evidence) -> list[Criterion]:
    everywhere = [
        (f"{label}, {problem}, {named(cell)}", d)
        for problem in ("uniform", "beta")
        for alg, label in ALGORITHMS.items()
        for cell, d in savings(results, problem, alg).items()
    ]
    name, best = max(everywhere, key=lambda cell: cell[1].mean())
    return [
        point(f"largest mean saving ({name})", best, ">=", 0.60),
        interval(f"the same cell's mean saving ({name})", best, ">=", 0.50),
    ]


def named(cell: Cell) -> str:
    K, T = cell
    return f"K={K}, T/K={T / K:g}"


# ---- c3: growth of rho with ln T


def over_horizons(results: Evidence, method: str) -> tuple[np.ndarray, np.ndarray]:
    """T (H,) and rho (seeds, H) at the number of arms of the longest horizon."""
    longest = results.of("uniform-long", method)
    shorter = results.of("uniform", method)
    K = longest["arms"].iloc[0]
    rho = pd.concat([shorter[shorter["arms"] == K], longest]).pivot(index="seed", columns="horizon", values="rho")
    return rho.columns.to_numpy(dtype=float), rho.to_numpy()


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


@claim("c3")
def log_factor(results: Evidence) -> list[Criterion]:
    def growth(method: str, label: str, op: str, threshold: float) -> Criterion:
        T, rho = over_horizons(results, method)
        b = lambda drawn: slope(np.log(np.log(T)), np.log(drawn.mean(axis=0)))  # noqa: E731
        return point(f"slope of ln rho on ln ln T, {label}", rho, op, threshold, b)

    return [
        growth("ue", "uniform exploration", ">=", 0.15),
        *(growth(alg, label, "<=", 0.10) for alg, label in ALGORITHMS.items()),
    ]


# ---- c4: the worst case over the gap


def over_gaps(results: Evidence, problem: str, method: str) -> tuple[list[Cell], list[float], np.ndarray]:
    """Cells (C), gaps in units of eps (G) and rho (seeds, C, G)."""
    rows = results.of(problem, method)
    gaps = {name: float(name.removeprefix("rho_").removesuffix("eps")) for name in rows if name.startswith("rho_")}
    by_cell = [
        (cell, part.sort_values("seed")[list(gaps)].to_numpy()) for cell, part in rows.groupby(["arms", "horizon"])
    ]
    return [cell for cell, _ in by_cell], list(gaps.values()), np.stack([rho for _, rho in by_cell], axis=1)


def worst(rho: np.ndarray) -> np.ndarray:
    """(seeds, C, G) -> (C,): the largest mean over the gaps."""
    return rho.mean(axis=0).max(axis=-1)


@claim("c4")
def worst_case_order(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, of_cell, what, low, high in (
        ("hard-horizons", lambda K, T: T, "T-slope of TOWER's worst regret", 0.60, 0.73),
        ("hard-arms", lambda K, T: K, "K-slope of TOWER's worst regret", 0.25, 0.45),
    ):
        cells, _, rho = over_gaps(results, problem, "tower")
        x = np.log([of_cell(K, T) for K, T in cells])
        order = np.log([K ** (1 / 3) * T ** (2 / 3) for K, T in cells])  # R = rho K^(1/3) T^(2/3)
        criteria += within(what, rho, low, high, lambda drawn, x=x, order=order: slope(x, order + np.log(worst(drawn))))
    for method in JUDGED:
        floor = min(worst(over_gaps(results, problem, method)[2]).min() for problem in ("hard-horizons", "hard-arms"))
        criteria.append(point(f"least worst-case rho of any cell, {LABELS[method]}", float(floor), ">=", 0.05))
    return criteria


def within(
    name: str, samples: np.ndarray, low: float, high: float, statistic: Callable[[np.ndarray], float]
) -> list[Criterion]:
    """A range is two criteria on one estimate."""
    above = point(name, samples, ">=", low, statistic)
    return [above, replace(above, op="<=", threshold=high, passed=above.estimate <= high)]


# ---- figures


def colours() -> dict[str, tuple]:
    """A method has one colour in all figures."""
    import seaborn as sns

    return dict(zip(LABELS.values(), sns.color_palette(), strict=False))


@figure(
    "Saving over uniform exploration, means ~ U[0,1]",
    caption="Share of uniform exploration's regret that is saved, mean and 95% interval. KING and TOWER are the "
    "paper's; CONST spends 1/eps^2 pulls an arm without regard to the number of arms; KING without early rejection "
    "is the control. Below -1 is not drawn; cells in which a method explores for more than T/2 are left out.",
    alt="Points with intervals: saving by number of arms and pulls an arm, one colour a method, a line at zero.",
    size=(10.0, 4.0),
)
def saving_by_cell(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("uniform")
    rows = rows[(rows["explored"] <= 0.5) & (rows["method"] != "ue")]
    base = results.of("uniform", "ue").set_index(["arms", "horizon", "seed"])["rho"]
    ue = base.reindex(pd.MultiIndex.from_frame(rows[["arms", "horizon", "seed"]])).to_numpy()
    rows = rows.assign(
        saving=1 - rows["rho"].to_numpy() / ue,
        cell=[f"{K}\n{T / K:.0e}".replace("e+0", "e") for K, T in zip(rows["arms"], rows["horizon"], strict=True)],
        method=rows["method"].map(LABELS),
    ).sort_values(["arms", "horizon"])
    shown = [label for label in LABELS.values() if label in set(rows["method"])]
    sns.pointplot(
        rows,
        x="cell",
        y="saving",
        hue="method",
        palette=colours(),
        hue_order=shown,
        dodge=0.5,
        linestyle="none",
        markersize=4,
        ax=ax,
    )
    ax.axhline(0, color="0.5", lw=0.8)
    ax.set(xlabel="arms K, pulls an arm T/K", ylabel="saving D")
    ax.set_ylim(bottom=max(-1.0, ax.get_ylim()[0]))
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), title=None)


@figure(
    "The logarithmic factor",
    caption="Regret over K^(1/3) T^(2/3) at fixed K. A flat line has no logarithmic factor; uniform exploration's "
    "should rise like ln^(1/3) T (dotted).",
    alt="Lines: normalised regret against the horizon on a logarithmic axis, one a method, with 95% bands.",
)
def logarithmic_factor(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    methods = [m for m in LABELS if m in set(results.of("uniform-long")["method"])]
    K = results.of("uniform-long")["arms"].iloc[0]
    rows = pd.concat([results.of("uniform"), results.of("uniform-long")])
    rows = rows[(rows["arms"] == K) & rows["method"].isin(methods) & (rows["explored"] <= 0.5)]
    rows = rows.assign(method=rows["method"].map(LABELS))
    sns.lineplot(rows, x="horizon", y="rho", hue="method", palette=colours(), marker="o", ax=ax)
    T, rho = over_horizons(results, "ue")
    ax.plot(T, rho.mean(axis=0)[0] * (np.log(T) / np.log(T[0])) ** (1 / 3), ":", color="0.3")
    ax.set(xscale="log", yscale="log", xlabel=f"horizon T (K = {K})", ylabel="regret / K$^{1/3}$T$^{2/3}$")
    ax.legend(title=None, fontsize="x-small")


@figure(
    "Worst case over the gap",
    caption="All means 1/2 but one at 1/2 + Delta: the mean regret over K^(1/3) T^(2/3) at the worst Delta. The order "
    "of the lower bound is a flat line.",
    alt="Two panels of lines, one a method: worst normalised regret against the horizon, and against the arms.",
    panels=2,
)
def worst_case(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    for ax, problem, x in ((axes[0], "hard-horizons", "horizon"), (axes[1], "hard-arms", "arms")):
        rows = []
        for method in dict.fromkeys(results.of(problem)["method"]):
            cells, _, rho = over_gaps(results, problem, method)
            rows += [
                {"arms": K, "horizon": T, "rho": r, "method": LABELS[method]}
                for (K, T), r in zip(cells, worst(rho), strict=True)
            ]
        sns.lineplot(pd.DataFrame(rows), x=x, y="rho", hue="method", palette=colours(), marker="o", ax=ax)
        ax.set(xscale="log", ylim=(0, None), xlabel={"horizon": "horizon T", "arms": "arms K"}[x])
        ax.set_ylabel("worst regret / K$^{1/3}$T$^{2/3}$")
        ax.legend(title=None, fontsize="x-small")


@figure(
    "Where stopping early costs",
    caption="Mean regret over K^(1/3) T^(2/3) by the lead of the best arm, at the longest horizon of the hard family. "
    "A lead well below eps costs little and one well above is found; in between a batch that is too small for K arms "
    "(CONST) misses the best arm.",
    alt="Lines: normalised regret against the lead Delta in units of eps, one a method, with 95% bands.",
)
def by_gap(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    frames = []
    for method in dict.fromkeys(results.of("hard-horizons")["method"]):
        cells, gaps, rho = over_gaps(results, "hard-horizons", method)
        last = pd.DataFrame(rho[:, -1], columns=gaps).melt(var_name="gap", value_name="rho")
        frames.append(last.assign(method=LABELS[method]))
    sns.lineplot(pd.concat(frames), x="gap", y="rho", hue="method", palette=colours(), marker="o", ax=ax)
    ax.set(xscale="log", xlabel="Delta / eps", ylabel="regret / K$^{1/3}$T$^{2/3}$")
    ax.set_xticks(gaps, [f"{g:g}" for g in gaps])
    ax.set_xticks([], minor=True)
    ax.set_title(f"K = {cells[-1][0]}, T = {cells[-1][1]:.0e}", fontsize="small")
    ax.legend(title=None, fontsize="x-small")
