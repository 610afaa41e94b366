"""What the rows of LightSB say about its four claims."""

from itertools import pairwise

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

LIGHT = "lightsb"
NAMES = {
    LIGHT: "LightSB",
    "lightsb-k10": "LightSB, K = 10 diagonal",
    "no-x": "x-dependence dropped",
    "independent": "independent coupling",
    "linear": "linear (Gaussian) bridge",
    "sinkhorn": "Sinkhorn on 1,000 draws",
    "neural": "two drift networks",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C9", "C7", "C5", "C2", "C1", "C3"), strict=True))


def within(results: Evidence, problem: str, percent: float) -> list[Criterion]:
    """One criterion a cell (D, eps): the mean error over the seeds."""
    cells = results.of(problem, LIGHT).groupby(["dim", "eps"])["error"]
    return [
        point(f"{problem}, D = {dim:g}, eps = {eps:g}: error in %", error.to_numpy(), "<=", percent)
        for (dim, eps), error in cells
    ]


@claim("c1")
def accurate_with_one_setting(results: Evidence) -> list[Criterion]:
    mixture, gaussian = within(results, "mixture", 1.0), within(results, "gaussian", 0.5)
    needed = round(len(mixture) * 8 / 9)  # 8 of the 9, but for smoke
    return [
        at_least("mixture: cells with an error of at most 1%", needed, mixture),
        at_least("Gaussian pairs: cells with an error of at most 0.5%", len(gaussian), gaussian),
    ]


def seconds(results: Evidence, problem: str) -> pd.DataFrame:
    """Seed by method: CPU seconds of training."""
    return results.timings[results.timings["problem"] == problem].pivot(index="seed", columns="method", values="cpu_s")


@claim("c2")
def minutes_on_a_cpu(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, dim in (("cost-d2", 2), ("cost-d16", 16)):
        spent, error = seconds(results, problem), results.paired(problem, "error")
        ratio = (spent["neural"] / spent[LIGHT]).to_numpy()
        excess = (error[LIGHT] - error["neural"]).to_numpy()
        criteria += [
            point(f"D = {dim}: median of the baseline's CPU seconds / LightSB's", ratio, ">=", 3, np.median),
            point(f"D = {dim}: mean error of LightSB - the baseline's, in %", excess, "<", 0),
        ]
    return criteria


def ratio_of_means(pairs: np.ndarray) -> float:
    """Of (n, 2) values: the second column's mean over the first's."""
    first, second = pairs.sum(axis=0)
    return float(second / first)


@claim("c3")
def universal_approximation(results: Evidence) -> list[Criterion]:
    error = results.of("universal", LIGHT).pivot(index="seed", columns="K", values="error").sort_index(axis=1)
    Ks = [int(K) for K in error.columns]

    def held(first: int, second: int, most: float) -> Criterion:
        pairs = error[[first, second]].to_numpy()
        return point(f"mean error at K = {second} / at K = {first}", pairs, "<=", most, ratio_of_means)

    return [held(Ks[0], Ks[-1], 0.35), *[held(a, b, 1.1) for a, b in pairwise(Ks)]]


@claim("c4")
def parametric_rate(results: Evidence) -> list[Criterion]:
    excess = results.of("rate", LIGHT).pivot(index="seed", columns="N", values="excess").sort_index(axis=1)
    u = np.log(excess.columns.to_numpy(dtype=float))
    u = (u - u.mean()) / np.square(u - u.mean()).sum()

    def slope(values: np.ndarray) -> float:  # (seeds, sizes)
        with np.errstate(invalid="ignore", divide="ignore"):  # a mean that isn't positive has no logarithm
            return float(u @ np.log(values.mean(axis=0)))

    values = excess.to_numpy()
    return [
        point("slope of log mean excess KL in log N", values, "<=", -0.5, slope),
        interval("the same slope: upper end of its interval", values, "<=", -0.4, slope),
    ]


@figure(
    "Error over dimensions and regularisations",
    caption="Error of the conditionals in % of half the variance of p1, mean and range over the seeds; one setting in "
    "all cells. Dashed: the thresholds. On Gaussian pairs LightSB has one full covariance.",
    alt="Two log panels over nine cells of D and eps, mixtures and Gaussian pairs: LightSB mostly below the dashed "
    "threshold, the baselines and the control above it.",
    panels=2,
)
def error_over_cells(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem, limit in zip(axes, ("mixture", "gaussian"), (1.0, 0.5), strict=True):
        table = results.of(problem).sort_values(["dim", "eps"])
        cell = [f"{int(d)}\n{e:g}" for d, e in zip(table["dim"], table["eps"], strict=True)]
        table = table.assign(cell=cell, plan=table["method"].map(NAMES))
        how = {"hue": "plan", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100), "linestyle": ""}
        order = [name for name in NAMES.values() if name in set(table["plan"])]
        sns.lineplot(table, x="cell", y="error", hue_order=order, err_style="bars", ax=ax, **how)
        ax.axhline(limit, color="0.4", linestyle="--")
        ax.set(yscale="log", xlabel="D (above), eps (below)", ylabel="error, %", title=f"{problem} pairs")
        ax.legend(fontsize="x-small", title=None)


@figure(
    "Cost, capacity, sample size",
    caption="Left: error of the neural baseline after each of its rounds (at a few x), and LightSB's as "
    "dashed lines. Middle: error of the conditional means against K where the bridge is outside the family; floors "
    "dotted, the lowest being what two Sinkhorn solutions on different draws differ by. Right: excess KL against the "
    "number of training draws, one line a seed, the mean in black.",
    alt="Three panels: the baseline's error over ten rounds far above LightSB's dashed lines; a curve that falls with "
    "K and levels off; and falling log-log lines of slope about -1.",
    panels=3,
    size=(4.6, 3.6),
)
def cost_capacity_sample_size(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rounds = results.traces[results.traces["method"] == "neural"]
    rounds = rounds.assign(D=rounds["dim"].astype(int))
    how = {"errorbar": ("pi", 100), "marker": "o", "palette": "colorblind"}
    sns.lineplot(rounds, x="outer", y="error", hue="D", ax=axes[0], **how)
    for colour, problem in zip(sns.color_palette("colorblind"), ("cost-d2", "cost-d16"), strict=False):
        axes[0].axhline(results.of(problem, LIGHT)["error"].mean(), color=colour, linestyle="--")
    times = [(s["neural"] / s[LIGHT]).median() for s in (seconds(results, p) for p in ("cost-d2", "cost-d16"))]
    title = "CPU time ratio " + " and ".join(f"{t:.2g}" for t in times)
    axes[0].set(yscale="log", xlabel="rounds of the baseline", ylabel="error, %", title=title)

    rows = results.of("universal", LIGHT)
    sns.lineplot(rows, x="K", y="error", errorbar=("pi", 100), marker="o", ax=axes[1])
    floors = results.traces[results.traces["problem"] == "universal"].groupby("floor")["error"].mean()
    for name, level in floors.items():
        axes[1].axhline(level, color="0.5", linestyle=":")
        axes[1].annotate(name, (1, level), va="bottom", color="0.4", fontsize="small")
    axes[1].set(xscale="log", yscale="log", ylabel="rms error of E[y|x]", title="ring8 to checker")

    rows = results.of("rate", LIGHT)
    positive = rows[rows["excess"] > 0]
    sns.lineplot(positive, x="N", y="excess", units="seed", estimator=None, color="C0", alpha=0.35, ax=axes[2])
    sns.lineplot(rows, x="N", y="excess", errorbar=None, color="black", marker="o", ax=axes[2])
    axes[2].set(
        xscale="log", yscale="log", ylabel="excess KL", title=f"slope {parametric_rate(results)[0].estimate:.2f}"
    )


@figure(
    "The bridge from ring8 to checker",
    caption="The start in grey; draws of the learned plan for K = 1 and for the largest K, and paths of the learned "
    "bridge's stochastic differential equation in between.",
    alt="Four scatter plots: eight small clouds on a ring; one Gaussian blob; a blob with the checker's fields; and "
    "noisy paths from the ring's clouds into the fields.",
    panels=4,
    size=(3.2, 3.4),
)
def bridge(results: Evidence, axes: list) -> None:
    import seaborn as sns

    kept = results.state["universal", LIGHT]
    Ks = sorted(int(name[2:]) for name in kept if name.startswith("y-"))
    shown = [
        ("y", "checker, true draws", "C2"),
        (f"y-{Ks[0]}", f"K = {Ks[0]}", "C0"),
        (f"y-{Ks[-1]}", f"K = {Ks[-1]}", "C0"),
    ]
    for ax, (name, title, colour) in zip(axes, shown, strict=False):
        ax.set_title(title)
        for cloud, paint in ((kept["x"], "0.7"), (kept[name], colour)):
            sns.scatterplot(x=cloud[:, 0], y=cloud[:, 1], color=paint, s=6, linewidth=0, ax=ax)
    for path in kept["paths"].transpose(1, 0, 2):
        axes[3].plot(path[:, 0], path[:, 1], color="C0", linewidth=0.6, alpha=0.6)
        axes[3].plot(*path[0], ".", color="0.6")
        axes[3].plot(*path[-1], ".", color="C3")
    axes[3].set_title("paths of the bridge")
    for ax in axes:
        ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xlabel="", ylabel="")


@figure(
    "Threes to eights",
    caption="Printed, no claim rests on it: held-out threes (top row, in 16 principal coordinates) and draws of the "
    "learned plan below each.",
    alt="A grid of small grey digits: a row of threes, and rows of eights of similar slant under them.",
    size=(6.0, 2.3),
)
def threes_to_eights(results: Evidence, ax: object) -> None:
    pictures = results.state["digits", LIGHT]["pictures"]
    rows, columns = pictures.shape[:2]
    framed = np.pad(pictures, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0)
    ax.imshow(
        framed.transpose(0, 2, 1, 3).reshape(9 * rows, 9 * columns),
        cmap="Greys",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    means = results.of("digits").groupby("method")[["energy", "moved", "floor"]].mean()
    text = [f"{NAMES[m]} {r['energy']:.3f}" for m, r in means.iterrows()]
    ax.set_title(f"energy distance to held-out eights: {', '.join(text)}", fontsize="x-small")
    ax.set_axis_off()
