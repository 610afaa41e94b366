"""What the rows of SLAM say about its three claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

SLAM, CD, NEVER = "slam", "cd", 2.0


def at_the_end(results: Evidence) -> pd.DataFrame:
    """(nfe, seed) by method: log FD after all updates."""
    rows = results.of("fm8")
    rows = rows[rows["updates"] == rows.groupby("method")["updates"].transform("max")]
    return np.log(rows[rows["nfe"] > 0].pivot(index=["nfe", "seed"], columns="method", values="fd"))


@claim("c1")
def beats_consistency_distillation(results: Evidence) -> list[Criterion]:
    log_fd = at_the_end(results)
    gain = (log_fd[CD] - log_fd[SLAM]).unstack("nfe")  # (seeds, 3)
    return [
        interval("log FD of cd - log FD of SLAM, mean over 2, 3, 4 evaluations", gain.mean(axis=1).to_numpy(), ">", 0),
        *[point(f"the same at {nfe} evaluations, mean", gain[nfe].to_numpy(), ">", 0) for nfe in gain],
    ]


@claim("c2")
def tolerates_large_skips(results: Evidence) -> list[Criterion]:
    log_fd = np.log(results.paired("fm8-skips", "fd", "intervals"))
    coarse = (log_fd[CD] - log_fd[SLAM]).loc[[10, 5]].groupby("seed").mean()
    slope = {m: slopes(log_fd[m]) for m in (SLAM, CD)}
    return [
        interval("log FD of cd - log FD of SLAM, mean over n = 10 and 5", coarse.to_numpy(), ">", 0),
        point("slope of log FD against log skip, SLAM - cd, mean", slope[SLAM] - slope[CD], "<", 0),
    ]


def slopes(log_fd: pd.Series) -> np.ndarray:
    """Per seed, by least squares against log skip = -log n."""
    table = log_fd.unstack("seed")  # (n, seeds)
    return np.polyfit(-np.log(table.index.to_numpy(float)), table.to_numpy(), 1)[0]


@claim("c3")
def trains_faster(results: Evidence) -> list[Criterion]:
    return [point("median of updates to cd's final FD, SLAM / cd", updates_ratio(results), "<=", 0.8, np.median)]


def curves(results: Evidence) -> pd.DataFrame:
    """(updates, seed) by method: FD in 4 evaluations during training."""
    rows = results.of("fm8")
    rows = rows[(rows["nfe"] == 4) & rows["method"].isin((SLAM, CD))]
    return rows.pivot(index=["updates", "seed"], columns="method", values="fd")


def updates_ratio(results: Evidence) -> np.ndarray:
    """Per seed: first-reach updates of SLAM over those of cd, whose last three evaluations set the target."""
    ratio = []
    for _, curve in curves(results).groupby("seed"):
        curve = curve.droplevel("seed").sort_index()
        target = 1.02 * curve[CD].iloc[-3:].mean()
        smooth = curve.rolling(3, center=True, min_periods=2).median()
        reached = {m: smooth.index[smooth[m] <= target] for m in (SLAM, CD)}
        cd = reached[CD][0] if len(reached[CD]) else smooth.index[-1]
        ratio.append(reached[SLAM][0] / cd if len(reached[SLAM]) else NEVER)
    return np.array(ratio)


NAMES = {
    SLAM: "SLAM",
    CD: "consistency distillation",
    "mismatched": "SLAM, unrelated gamma",
    "ddim": "DDIM",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "ends": "SLAM, gamma 0 or 1",
    "at-the-start": "SLAM, coefficients of s",
    "progressive": "progressive distillation",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C7", "C5", "C2", "C3", "C4", "C6"), strict=True))


@figure(
    "Quality at two to four evaluations",
    caption="FD (n = 2,000) after 500 updates, each student at the number of intervals and the rate that are best for "
    "it on a tuning seed; the teacher's own samplers beside them. Dotted: as many real pictures. Right: the same, "
    "while training; one line a seed, and dashed what cd comes to.",
    alt="Left: FD against evaluations for SLAM, consistency distillation, the control, DDIM and DPM-Solver++(2M). "
    "Right: FD in four evaluations against updates for SLAM and consistency distillation.",
    panels=2,
)
def quality_at_few_evaluations(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = at_the_end(results).stack().apply(np.exp).rename("FD").reset_index()
    table = table.assign(sampler=table["method"].map(NAMES))
    sns.lineplot(table, x="nfe", y="FD", hue="sampler", palette=COLOURS, marker="o", errorbar=("pi", 100), ax=axes[0])
    rows = results.of("fm8")
    axes[0].axhline(rows.loc[rows["method"] == "real", "fd"].mean(), color="0.4", linestyle=":")
    axes[0].set(yscale="log", xlabel="evaluations", xticks=sorted(table["nfe"].unique()))
    axes[0].legend(title=None, fontsize="small")
    during = curves(results)
    target = during[CD].unstack("seed").iloc[-3:].mean().mean()
    during = during.stack().rename("FD").reset_index()
    during = during.assign(sampler=during["method"].map(NAMES))
    how = {"hue": "sampler", "palette": COLOURS, "units": "seed", "estimator": None, "legend": False}
    sns.lineplot(during, x="updates", y="FD", ax=axes[1], **how)
    axes[1].axhline(target, color="0.4", linestyle="--")
    axes[1].set(yscale="log", ylabel="FD in 4 evaluations")


@figure(
    "Large skips",
    caption="FD in four evaluations after 250 updates on teacher grids of n intervals, skip = 1/n, all at one rate. "
    "Crosses: printed variants. A fine grid needs more updates to carry the answer from one end to the other.",
    alt="FD against skip on log axes, one line a seed for SLAM and consistency distillation; crosses for variants.",
)
def large_skips(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    rows = results.of("fm8-skips")
    rows = rows.assign(skip=1 / rows["intervals"], sampler=rows["method"].map(NAMES))
    how = {"hue": "sampler", "palette": COLOURS}
    sns.lineplot(rows, x="skip", y="fd", units="seed", estimator=None, marker="o", ax=ax, **how)
    others = results.of("fm8-others")
    others = others[others["nfe"] == 4].assign(skip=1 / others["intervals"], sampler=others["method"].map(NAMES))
    sns.scatterplot(others, x="skip", y="fd", marker="X", s=70, ax=ax, **how)
    ax.set(xscale="log", yscale="log", xlabel="skip", ylabel="FD in 4 evaluations")
    n = sorted(rows["intervals"].unique())
    ax.set_xticks([1 / k for k in n], labels=[f"1/{k:.0f}" for k in n])
    ax.minorticks_off()
    ax.legend(title=None, fontsize="small")


@figure(
    "Samples in two evaluations",
    caption="Two evaluations from the same noise; columns are labels 0 to 9, twice. From above: SLAM, consistency "
    "distillation, the control, DDIM.",
    alt="Four rows of small grey pictures of clothing.",
    size=(8.0, 2.0),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    kept = [results.state[("fm8", m)] for m in (SLAM, CD, "mismatched", "ddim")]
    rows = [np.concatenate(state[sorted(state)[0]], axis=1) for state in kept]  # (8, 160) each
    ax.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=np.arange(4) * 8 + 3.5, yticklabels=["SLAM", "cd", "control", "DDIM"])
