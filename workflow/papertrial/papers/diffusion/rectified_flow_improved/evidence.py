"""What the rows of 2-RF++ say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

PP, BASELINE, CD, BASE, THIRD = "pp", "2-rf", "cd", "1-rf", "3-rf"


def floor(results: Evidence) -> float:
    """The mean FD of as many real training pictures."""
    return float(results.of("fm8", "real")["fd"].mean())


@claim("c1")
def better_one_step(results: Evidence) -> list[Criterion]:
    fd = results.paired("fm8", "fd", "nfe")
    base, pp, least = fd[BASELINE], fd[PP], floor(results)
    gain = 1 - (pp.loc[1] - least) / (base.loc[1] - least)
    return [
        interval("FD of 2-RF - FD of 2-RF++, 1 step", (base - pp).loc[1].to_numpy(), ">", 0),
        point("share of the way from 2-RF to the floor, 1 step", gain.to_numpy(), ">=", 0.25),
        point("FD of 2-RF - FD of 2-RF++, 2 steps", (base - pp).loc[2].to_numpy(), ">", 0),
    ]


def by_round(results: Evidence, metric: str, nfe: int) -> pd.DataFrame:
    """Seeds of 3-RF by method (1-RF, 2-RF++, 3-RF): a metric of the rows with nfe evaluations."""
    rows = results.rows
    rows = rows[rows["problem"].isin(("fm8", "fm8-rounds")) & (rows["nfe"] == nfe)].dropna(subset=[metric])
    table = rows.pivot(index="seed", columns="method", values=metric)
    if not {BASE, PP, THIRD} <= set(table):
        raise LookupError(f"no {metric} of all three rounds")
    return table[[BASE, PP, THIRD]].dropna()


@claim("c2")
def one_reflow_is_enough(results: Evidence) -> list[Criterion]:
    s = by_round(results, "straightness", 1)
    criteria = [point("S(2) - 0.3 S(1), mean", (s[PP] - 0.3 * s[BASE]).to_numpy(), "<=", 0)]
    for nfe in (1, 2):
        fd = by_round(results, "fd", nfe)
        excess = (fd[PP] - fd[THIRD] - 0.15 * fd[PP]).to_numpy()
        steps = f"{nfe} step{'s' * (nfe > 1)}"
        criteria.append(point(f"FD of 2-RF - FD of 3-RF - 0.15 FD of 2-RF, {steps}, mean", excess, "<=", 0))
    return criteria


@claim("c3")
def loss_at_the_ends(results: Evidence) -> list[Criterion]:
    rows = results.of("fm8", BASELINE).dropna(subset=["loss_data_end"]).sort_values("seed").head(3)
    if rows.empty:
        raise LookupError("no loss by time of the baseline")
    return [
        point(f"mean loss at the {name} end over that in the middle, seed {row['seed']}", row[column], ">=", 1.5)
        for _, row in rows.iterrows()
        for name, column in (("data", "loss_data_end"), ("noise", "loss_noise_end"))
    ]


@claim("c4")
def rivals_consistency_distillation(results: Evidence) -> list[Criterion]:
    fd = results.paired("fm8", "fd", "nfe")
    return [
        interval(f"FD of 2-RF++ - FD of cd, {nfe} evaluation{'s' * (nfe > 1)}", gap.to_numpy(), "<=", 0)
        for nfe, gap in ((k, (fd[PP] - fd[CD]).loc[k]) for k in (1, 2))
    ]


NAMES = {
    PP: "2-RF++",
    BASELINE: "2-RF",
    "inside-out": "control, times in the middle",
    CD: "consistency distillation",
    BASE: "1-RF, the base",
    THIRD: "3-RF",
    "permuted": "control, noise permuted",
    "u-only": "U-shaped times only",
    "huber-only": "premetric only",
    "regression": "one-step regression",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C7", "C2", "C3", "C4", "C6", "C5", "C8", "C9"), strict=True))


@figure(
    "Quality in one and two evaluations",
    caption="FD (n = 2,000), one point a seed. Dashed: the base with 18 Heun steps, which made the pairs; dotted: as "
    "many real pictures. Right: one-step FD against the network evaluations that a sample in training cost, pairs "
    "included.",
    alt="Left: FD of every method in one evaluation and in two, on a log axis. Right: one-step FD against training "
    "evaluations.",
    panels=2,
    size=(6.0, 4.2),
)
def quality(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.rows[results.rows["nfe"].isin((1, 2)) & results.rows["method"].isin(list(NAMES))]
    rows = rows.assign(sampler=rows["method"].map(NAMES), evaluations_used=rows["nfe"].astype(int).astype(str))
    order = [name for name in NAMES.values() if name in set(rows["sampler"])]
    sns.stripplot(
        rows, x="fd", y="sampler", order=order, hue="evaluations_used", palette=["C0", "C1"], dodge=True, ax=axes[0]
    )
    for method, style in (("teacher", "--"), ("real", ":")):
        axes[0].axvline(results.of("fm8", method)["fd"].mean(), color="0.4", linestyle=style)
    axes[0].set(xscale="log", xlabel="FD", ylabel=None)
    axes[0].legend(title="evaluations", fontsize="small")
    cost = rows[(rows["nfe"] == 1) & (rows["evaluations"] > 0)]
    how = {"hue": "sampler", "style": "sampler", "palette": COLOURS, "s": 60}
    sns.scatterplot(cost, x="evaluations", y="fd", ax=axes[1], **how)
    axes[1].set(xscale="log", yscale="log", xlabel="network evaluations in training", ylabel="FD in one evaluation")
    axes[1].legend(title=None, fontsize="x-small")


@figure(
    "Where the loss is",
    caption="Squared residual by time on pairs that were held out, data at t = 0, noise at t = 1; one line a seed, and "
    "dotted the U-shaped density of 2-RF++.",
    alt="Loss against time on a log axis: high at both ends, low in the middle, for 2-RF and 2-RF++.",
)
def loss_by_time(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    rows = results.traces.dropna(subset=["t"])
    rows = rows.assign(flow=rows["method"].map(NAMES))
    how = {"hue": "flow", "palette": COLOURS, "units": "seed", "estimator": None}
    sns.lineplot(rows, x="t", y="loss", ax=ax, **how)
    t = np.linspace(0, 1, 101)
    density = 2 * (np.exp(4 * t) + np.exp(4 - 4 * t)) / np.expm1(4)
    ax.plot(t, density * rows["loss"].min() / density.min(), ":", color="0.4", label="U-shaped density, scaled")
    ax.set(yscale="log", xlabel="t", ylabel="mean of |(z - x) - v|²")
    ax.legend(title=None, fontsize="small")


@figure(
    "Round by round",
    caption="Straightness S(k), 0 for straight paths, and FD in one and two steps after k = 1, 2, 3 rounds; 3-RF has "
    "as many updates as 2-RF. Grey: the control, whose pairs are no longer a flow's.",
    alt="Left: S against round on a log axis, falling from 1 to 2. Right: FD against round for one and two steps.",
    panels=2,
)
def rounds(results: Evidence, axes: list) -> None:
    import seaborn as sns

    number = {BASE: 1, PP: 2, THIRD: 3}
    s = by_round(results, "straightness", 1).stack().rename("S").reset_index()
    sns.lineplot(s.assign(k=s["method"].map(number)), x="k", y="S", marker="o", errorbar=("pi", 100), ax=axes[0])
    control = results.of("fm8-rounds", "permuted")
    axes[0].scatter([2] * len(control), control["straightness"], color="0.6", marker="X", zorder=3)
    fd = pd.concat(
        [by_round(results, "fd", nfe).stack().rename("FD").reset_index().assign(steps=f"{nfe}") for nfe in (1, 2)]
    )
    fd = fd.assign(k=fd["method"].map(number))
    sns.lineplot(fd, x="k", y="FD", hue="steps", marker="o", errorbar=("pi", 100), ax=axes[1])
    axes[1].scatter([2] * len(control), control["fd"], color="0.6", marker="X", zorder=3)
    for ax in axes:
        ax.set(yscale="log", xticks=[1, 2, 3])


@figure(
    "Samples in one evaluation",
    caption="From the same noise; columns are labels 0 to 9, twice. The last row is the base with 18 Heun steps.",
    alt="Five rows of small grey pictures of clothing.",
    size=(8.0, 2.4),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    methods = {PP: "2-RF++", BASELINE: "2-RF", CD: "cd", BASE: "1-RF", "teacher": "18 steps"}
    kept = [results.state[("fm8", m)] for m in methods]
    rows = [np.concatenate(state[sorted(state)[0]], axis=1) for state in kept]  # (8, 160) each
    ax.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=np.arange(len(rows)) * 8 + 3.5, yticklabels=list(methods.values()))
