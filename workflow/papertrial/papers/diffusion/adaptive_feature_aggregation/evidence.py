"""What the rows of AFA say about its three claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

AFA, CLASSES = "afa", "classes"
NAMES = {
    AFA: "AFA",
    "a": "expert A",
    "b": "expert B",
    "weights": "weight average",
    "outputs": "output average",
    "switch": "output switch",
    "continued": "A, trained on",
    "base": "fm16",
    "real": "real pictures",
    "misled": "control",
}
RIVALS = ("a", "b", "weights", "outputs")
ABLATIONS = {"static": "constants", "timeless": "no noise level", "flat": "no maps"}
EFFECTS = ("time", "class", "position")


def finished(results: Evidence, *problems: str) -> pd.DataFrame:
    """The rows of samples after all updates, and of what has no aggregators."""
    rows = pd.concat([results.of(problem) for problem in problems])
    return rows[rows["updates"].isin([0, rows["updates"].max()])]


def afa(results: Evidence) -> pd.DataFrame:
    """AFA's rows after all updates that also say what was learnt, one a seed."""
    rows = results.of(CLASSES, AFA)
    rows = rows[rows["updates"] == rows["updates"].max()]
    return rows[rows["noise"] == rows["noise"].min()].set_index("seed").sort_index()


@claim("c1")
def beats_experts_and_averages(results: Evidence) -> list[Criterion]:
    fd = finished(results, CLASSES).pivot(index=["seed", "noise"], columns="method", values="fd")
    fd = fd.dropna(subset=[AFA])  # a control has fewer noise seeds
    return [interval(f"FD of {NAMES[x]} - FD of AFA", (fd[x] - fd[AFA]).to_numpy(), ">", 0) for x in RIVALS]


def increases(results: Evidence) -> pd.DataFrame:
    """FD of the ablations over AFA's at as many updates, one row a seed."""
    rows = results.of(CLASSES)
    early = rows.loc[rows["method"].isin(ABLATIONS), "updates"].max()
    fd = rows[rows["updates"] == early].pivot(index="seed", columns="method", values="fd")
    return fd[list(ABLATIONS)].sub(fd[AFA], axis=0)


@claim("c2")
def depends_on_the_state(results: Evidence) -> list[Criterion]:
    more, learnt = increases(results), afa(results)
    criteria = [point(f"FD increase, {what}", more[name].to_numpy(), ">", 0) for name, what in ABLATIONS.items()]
    criteria.append(interval("FD increase, constants", more["static"].to_numpy(), ">", 0))
    return criteria + [point(f"share of {x} in the variance of A", learnt[x].to_numpy(), ">=", 0.02) for x in EFFECTS]


@claim("c3")
def only_a_light_part_is_trained(results: Evidence) -> list[Criterion]:
    learnt = afa(results)
    return [
        point("trainable parameters / the experts'", learnt["share"].to_numpy(), "<=", 0.15, np.max),
        point("updates to the output average's loss, slowest seed", learnt["reached"].to_numpy(), "<=", 100, np.max),
        point("seeds in which a weight of the experts changed", float(learnt["changed"].sum()), "<=", 0),
    ]


@figure(
    "Quality, and what it costs",
    caption="FD of samples by 6 Heun steps; left a dot a seed and noise, right the mean by the cost of one "
    "evaluation, colours as on the left. Output switch, continued expert, fm16 and real pictures are printed only.",
    alt="Left: dots of FD by method. Right: mean FD against millions of multiply-adds, one point a method.",
    panels=2,
    size=(6.0, 4.2),
)
def quality(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = finished(results, CLASSES, "printed")
    rows = rows[rows["method"].isin(NAMES)].assign(name=rows["method"].map(NAMES))
    order, palette = list(NAMES.values()), sns.color_palette("colorblind", len(NAMES))
    how = {"hue": "name", "hue_order": order, "palette": palette}
    sns.stripplot(rows, x="fd", y="name", order=order, legend=False, ax=axes[0], **how)
    axes[0].set(xlabel="FD", ylabel="")
    mean = rows.dropna(subset=["macs"]).groupby("name")[["macs", "fd"]].mean()
    sns.scatterplot(mean, x="macs", y="fd", s=60, legend=False, ax=axes[1], **how)
    axes[1].set(xlabel="million multiply-adds", ylabel="FD, mean", xlim=(0, None))


@figure(
    "What attention depends on",
    caption="Left: the weight of expert A (classes 0 to 4), mean over blocks, positions, pictures and seeds, by level "
    "and class. Right: shares of the variance of A_1 by its main effects, mean over blocks, a dot a seed; dashed, "
    "the 2% that the claim asks for.",
    alt="Left: heat map of expert A's weight by noise level and class. Right: dots of the shares of time, class and "
    "position, and of the single picture.",
    panels=2,
)
def dependence(results: Evidence, axes: list) -> None:
    import seaborn as sns

    state = results.state[CLASSES, AFA]
    table = np.mean([v.mean(0) for k, v in sorted(state.items()) if k.startswith("table")], axis=0)
    levels = next(v for k, v in sorted(state.items()) if k.startswith("levels"))
    reach = max(0.01, np.abs(table - 0.5).max())
    how = {"cmap": "RdBu", "vmin": 0.5 - reach, "vmax": 0.5 + reach, "yticklabels": [f"{s:.2g}" for s in levels]}
    sns.heatmap(table, ax=axes[0], cbar_kws={"label": "weight of A"}, **how)
    axes[0].set(xlabel="class", ylabel="noise level")
    effects = [*EFFECTS, "image"]
    long = afa(results)[effects].melt(var_name="effect", value_name="share")
    sns.stripplot(long, x="effect", y="share", order=effects, hue="effect", legend=False, ax=axes[1])
    axes[1].axhline(0.02, color="0.4", linestyle="--")
    axes[1].set(xlabel="", ylabel="share of the variance")


@figure(
    "Learning",
    caption="Left: loss on held-out pictures, less that of the best fixed output average (dashed), one line a seed. "
    "Right: FD of ablations less that of AFA, both half-way, a dot a seed; right of 0 AFA is better.",
    alt="Left: falling loss curves. Right: dots of FD increases by ablation.",
    panels=2,
)
def learning(results: Evidence, axes: list) -> None:
    import seaborn as sns

    curves = results.traces.dropna(subset=["target"])
    curves = curves.assign(gap=curves["loss"] - curves["target"])
    sns.lineplot(curves, x="updates", y="gap", units="seed", estimator=None, marker="o", ax=axes[0])
    axes[0].axhline(0, color="0.4", linestyle="--")
    axes[0].set(ylabel="loss - loss of the output average")
    more = increases(results).rename(columns=ABLATIONS).melt(var_name="ablation", value_name="increase")
    sns.stripplot(more, x="increase", y="ablation", hue="ablation", legend=False, ax=axes[1])
    axes[1].axvline(0, color="0.4", linestyle="--")
    axes[1].set(xlabel="FD - FD of AFA", ylabel="")


@figure(
    "Samples, and who drew them",
    caption="Left: samples of the first seed from the same noise, labels 0 to 9. Right: expert A's "
    "weight in the last block before the output, for a picture of each class at a high, a middle and a low level; "
    "white is 0.5, blue more of A, red more of B.",
    alt="Left: four rows of small grey pictures of clothing. Right: three rows of coloured maps of the same shapes.",
    panels=2,
    size=(7.0, 2.2),
)
def samples(results: Evidence, axes: list) -> None:
    shown = [m for m in (AFA, "a", "b", "weights") if (CLASSES, m) in results.state]
    first = min(int(k.split("_")[1]) for k in results.state[CLASSES, AFA] if k.startswith("samples"))
    kept = [results.state[CLASSES, m][f"samples_{first}"][:10] for m in shown]
    size = kept[0].shape[-1]
    axes[0].imshow(np.concatenate([np.concatenate(x, axis=1) for x in kept]), cmap="gray_r", vmin=-1, vmax=1)
    axes[0].set(xticks=[], yticks=np.arange(len(shown)) * size + size / 2, yticklabels=[NAMES[m] for m in shown])
    maps = results.state[CLASSES, AFA][f"maps_{first}"]  # (3, 10, h, w)
    reach = max(0.01, np.abs(maps - 0.5).max())
    grid = np.concatenate([np.concatenate(row, axis=1) for row in maps])
    axes[1].imshow(grid, cmap="RdBu", vmin=0.5 - reach, vmax=0.5 + reach)
    height = maps.shape[-2]
    for ax in axes:
        ax.grid(False)
    axes[1].set(xticks=[], yticks=np.arange(3) * height + height / 2, yticklabels=["s = 20", "middle", "s = 0.02"])
