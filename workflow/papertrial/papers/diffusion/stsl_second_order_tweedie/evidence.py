"""What the rows of STSL say about its four claims."""

from math import log

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

STSL, DPS = "stsl", "dps"
TASKS = {"random-mask": "70% of the pixels hidden", "box": "8 x 8 box hidden", "pooling": "4 x average-pooling"}
NAMES = {
    "exact": "exact posterior draws",
    "pigdm": "Pi-GDM",
    DPS: "DPS (first order)",
    STSL: "STSL (second order)",
    "random": "STSL, trace's direction random",
    "ridge": "ridge",
    "nearest": "nearest training picture",
}
COLOURS = dict(zip(NAMES.values(), ("0.6", "C2", "C1", "C0", "C3", "C5", "C9"), strict=True))


@claim("c1")
def closer_to_the_posterior(results: Evidence) -> list[Criterion]:
    sw2 = results.paired("posterior", "sw2", "case").dropna(subset=[STSL])
    gain = np.log(sw2[DPS]) - np.log(sw2[STSL])
    by_case = gain.groupby("case").mean()
    better = [point(f"{name}: mean log SW2 of DPS - of STSL", z.to_numpy(), ">", 0) for name, z in gain.groupby("case")]
    needed = round(len(better) * 8 / 12)  # 8 of the 12, but for smoke
    return [
        interval("log SW2 of DPS - log SW2 of STSL over the problems", by_case.to_numpy(), ">", 0),
        at_least("problems where STSL is closer", needed, better),
    ]


@claim("c2")
def as_good_with_a_quarter_of_the_evaluations(results: Evidence) -> list[Criterion]:
    tasks = []
    for task, label in TASKS.items():
        psnr = results.paired(task, "psnr", "image")
        feature = np.log(results.paired(task, "feature", "image"))
        both = [
            interval(f"{label}: PSNR of STSL - of DPS, dB", (psnr[STSL] - psnr[DPS]).to_numpy(), ">", -0.3),
            interval(f"{label}: log feature distance", (feature[STSL] - feature[DPS]).to_numpy(), "<", log(1.05)),
        ]
        tasks.append(at_least(f"{label}: both conditions", 2, both))
    return [at_least("tasks on which both conditions hold", 2, tasks)]


def slope(error: pd.Series) -> float:
    """Of log error in log probes."""
    return float(np.polyfit(np.log(error.index.to_numpy(float)), np.log(error.to_numpy()), 1)[0])


@claim("c3")
def constant_extra_cost(results: Evidence) -> list[Criterion]:
    rows = results.of("trace", STSL)
    extra, error = rows.dropna(subset=["d"])["extra"], rows.groupby("n")["error"].mean()
    return [
        point("largest - smallest number of extra evaluations over the dimensions", float(np.ptp(extra)), "<=", 0),
        point("slope of the error in the number of probes", slope(error), ">=", -0.6),
        point("slope of the error in the number of probes", slope(error), "<=", -0.4),
    ]


@claim("c4")
def lower_bound(results: Evidence) -> list[Criterion]:
    rows = results.of("bound", STSL)
    return [
        point("share of the draws where the bound holds", rows["holds"].to_numpy(), ">=", 1),
        point("rank correlation of gap and Tr(Cov)", rows["spearman"].to_numpy(), ">=", 0.5),
    ]


@figure(
    "Distance to the exact posterior",
    caption="SW2 of 2,000 samples to 2,000 draws of the exact posterior, mean and range over the seeds; a name says "
    "the prior, the shape of A and the noise. Grey: the exact posterior's own draws, the floor.",
    alt="Twelve inverse problems along the axis; on a log scale the distances of DPS, STSL, its control and Pi-GDM, "
    "and the floor below them.",
    size=(11.0, 4.0),
)
def distance_to_the_posterior(results: Evidence, ax: object) -> None:
    import seaborn as sns

    table = results.of("posterior")
    table = table.assign(sampler=table["method"].map(NAMES))
    order = [name for name in NAMES.values() if name in set(table["sampler"])]
    how = {"hue": "sampler", "hue_order": order, "palette": COLOURS, "errorbar": ("pi", 100), "dodge": 0.4}
    sns.pointplot(table, x="case", y="sw2", linestyle="none", markersize=4, ax=ax, **how)
    ax.set(yscale="log", xlabel="", ylabel="SW2")
    ax.tick_params("x", rotation=25)
    ax.legend(title=None, fontsize="x-small", ncols=len(order), loc="upper center", bbox_to_anchor=(0.5, 1.15))


@figure(
    "One measurement, four samplers",
    caption="Samples given y on the first problem, over the prior's (grey). Where a sampler misjudges how far x0 is "
    "spread it puts weight on the wrong modes or pinches them.",
    alt="Four scatter plots of the plane with a ring of eight grey clouds: draws of the exact posterior, of Pi-GDM, of "
    "DPS and of STSL on two or three of them.",
    panels=4,
    size=(3.0, 3.2),
)
def one_measurement(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, method in zip(axes, ("exact", "pigdm", DPS, STSL), strict=True):
        kept = results.state["posterior", method]
        for name, colour in (("prior", "0.8"), ("samples", COLOURS[NAMES[method]])):
            sns.scatterplot(x=kept[name][:, 0], y=kept[name][:, 1], color=colour, s=7, linewidth=0, ax=ax)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=NAMES[method], xlabel="", ylabel="")


@figure(
    "Restored pictures",
    caption="Judged pictures, what is seen of them, and what each method makes of it, with its mean PSNR and feature "
    "distance over all pictures and the evaluations spent on each. A low PSNR need not mean a poor picture: means over "
    "the posterior win it.",
    alt="Three sheets of small grey pictures of clothing, one a task; rows: truth, measurement, ridge, DPS, STSL and "
    "Pi-GDM.",
    panels=3,
    size=(4.4, 4.2),
)
def restored_pictures(results: Evidence, axes: list) -> None:
    for ax, (task, label) in zip(axes, TASKS.items(), strict=True):
        rows, texts = [results.state[task, STSL][name] for name in ("truth", "seen")], ["truth", "seen"]
        means = results.of(task).groupby("method")[["psnr", "feature", "nfe"]].mean()
        for method in ("ridge", "pigdm", DPS, STSL):
            rows.append(results.state[task, method]["restored"])
            dB, distance, nfe = means.loc[method]
            texts.append(f"{NAMES[method].split(' (')[0]}\n{dB:.1f} dB, {distance:.1f}\n{nfe:.0f} evaluations")
        sheet = np.stack(rows)  # (rows, pictures, h, w)
        side = sheet.shape[-1] + 1
        sheet = np.pad(sheet, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=1)
        sheet = sheet.transpose(0, 2, 1, 3).reshape(len(rows) * side, -1)
        ax.imshow(sheet, cmap="Greys_r", vmin=-1, vmax=1, interpolation="nearest")
        ax.set(xticks=[], title=label)
        ax.set_yticks(side * np.arange(len(rows)) + side / 2, texts, fontsize="xx-small")
        ax.grid(False)


@figure(
    "The trace's estimate, and the bound",
    caption="Left: relative rms error of Tr H by n probes on the 20-dimensional mixture; dashed, slope -1/2. Right: "
    "how far the surrogate lies below the exact log-likelihood, against the trace of the covariance, for random draws.",
    alt="Left: a falling log-log line along a dashed one. Right: a log-log cloud that rises to the right.",
    panels=2,
)
def trace_and_bound(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("trace", STSL).dropna(subset=["n"])
    sns.lineplot(rows, x="n", y="error", marker="o", errorbar=None, ax=axes[0])
    error = rows.groupby("n")["error"].mean()
    axes[0].plot(error.index, error.iloc[0] * error.index.to_numpy() ** -0.5, "--", color="0.5")
    title = f"slope {slope(error):.2f}"
    axes[0].set(xscale="log", yscale="log", xlabel="probes n", ylabel="relative rms error of Tr H", title=title)
    kept = results.state["bound", STSL]
    seed = min(int(name.split("-")[1]) for name in kept)
    gap, spread = kept[f"gap-{seed}"].clip(1e-12), kept[f"spread-{seed}"].clip(1e-12)
    sns.scatterplot(x=spread, y=gap, s=6, linewidth=0, alpha=0.5, ax=axes[1])
    axes[1].set(xscale="log", yscale="log", xlabel="Tr Cov(x0 | x)", ylabel="exact - surrogate, at least 1e-12")
