"""What the rows of EcoDiff say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

ECO = "ecodiff"


def pairs(results: Evidence, problem: str, metric: str) -> pd.DataFrame:
    """(noise, mask seed) by method, where there is one of EcoDiff's masks."""
    return results.paired(problem, metric, "noise").dropna(subset=[ECO])


@claim("c1")
def little_loss_of_quality(results: Evidence) -> list[Criterion]:
    fd = pairs(results, "fm16", "fd")
    loss = {m: fd[m] - fd["full"] for m in (ECO, "random")}
    return [
        interval("FD of Taylor - FD of EcoDiff", (fd["taylor"] - fd[ECO]).to_numpy(), ">", 0),
        interval("FD of magnitude - FD of EcoDiff", (fd["magnitude"] - fd[ECO]).to_numpy(), ">", 0),
        point(
            "(FD of EcoDiff - FD of the whole) - (FD of random - FD of the whole)/4, mean",
            (loss[ECO] - 0.25 * loss["random"]).to_numpy(),
            "<=",
            0,
        ),
    ]


@claim("c2")
def the_whole_process_counts(results: Evidence) -> list[Criterion]:
    gain = {}
    for metric in ("rms", "fd"):
        table = pairs(results, "fm16", metric).dropna(subset=["stepwise"])
        gain[metric] = (table["stepwise"] - table[ECO]).groupby("seed").mean().to_numpy()
    return [
        interval("rms of step-wise - rms of end-to-end", gain["rms"], ">", 0),
        point("FD of step-wise - FD of end-to-end, mean", gain["fd"], ">", 0),
    ]


def slope(table: pd.DataFrame, column: str) -> np.ndarray:
    """Per seed, of log bytes against log T."""
    by_steps = table.pivot(index="steps", columns="seed", values=column)
    return np.polyfit(np.log(by_steps.index.to_numpy(float)), np.log(by_steps.to_numpy(float)), 1)[0]


@claim("c3")
def small_memory(results: Evidence) -> list[Criterion]:
    rows = results.of("memory", ECO)
    most = rows[rows["steps"] == 16]
    times = results.timings[(results.timings["problem"] == "memory") & (results.timings["steps"] == 8)]
    ratio = (times["checkpointed"] / times["plain"]).groupby(times["seed"]).median()
    return [
        point("slope of log bytes against log T without checkpoints", slope(rows, "bytes_plain"), ">=", 0.9),
        point("the same with checkpoints", slope(rows, "bytes_checkpointed"), "<=", 0.4),
        point("bytes without / with, T = 16", (most["bytes_plain"] / most["bytes_checkpointed"]).to_numpy(), ">=", 5),
        point("CPU time with / without, T = 8, median", ratio.to_numpy(), "<=", 2.2, np.median),
        point("relative difference of gradients, largest", rows["gradient_difference"].to_numpy(), "<=", 1e-4, np.max),
    ]


@claim("c4")
def distilled_models_too(results: Evidence) -> list[Criterion]:
    fd = pairs(results, "fm8", "fd")
    return [interval("FD of magnitude - FD of EcoDiff, students", (fd["magnitude"] - fd[ECO]).to_numpy(), ">", 0)]


LABELS = {
    "full": "unpruned",
    ECO: "EcoDiff",
    "stepwise": "step-wise masks",
    "taylor": "Taylor",
    "magnitude": "magnitude",
    "random": "random",
    "rolled": "other noises' targets",
}
COLOURS = dict(zip(LABELS.values(), ("0.4", "C0", "C1", "C2", "C3", "C4", "C7"), strict=True))


def named(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(gates=rows["method"].map(LABELS))


def dots(rows: pd.DataFrame, x: str, order: list[str], ax) -> None:  # noqa: ANN001
    import seaborn as sns
    from matplotlib.ticker import LogLocator

    how = {"order": order, "hue": "gates", "palette": COLOURS, "legend": False}
    sns.stripplot(named(rows), x=x, y="gates", size=5, alpha=0.8, ax=ax, **how)
    ax.set(xscale="log", ylabel="")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")


@figure(
    "Quality with a fifth of the parameters gone",
    caption="U-Net, one dot a mask and noise. Left: FD (n = 1,000); dashed, the unpruned network, dotted, as many real "
    "pictures; crosses: one mask with a tenth gone; the plus: EcoDiff's after 100 updates of fine-tuning. Right: rms "
    "distance of samples to those of the unpruned network from the same noise, one dot a mask.",
    alt="Two panels of dots by method, EcoDiff, step-wise masks, Taylor, magnitude, random and the control.",
    panels=2,
    size=(5.6, 3.4),
)
def quality(results: Evidence, axes: list) -> None:
    rows, traces = results.of("fm16"), results.traces[results.traces["problem"] == "fm16"]
    order = [LABELS[m] for m in LABELS if m != "full" and m in set(rows["method"])]
    pruned = rows[rows["method"] != "full"]
    for ax, metric in zip(axes, ("fd", "rms"), strict=True):
        dots(pruned, metric, order, ax)
        for finetuned, marker in ((0, "x"), (1, "+")):
            extra = traces.dropna(subset=["finetuned"]) if "finetuned" in traces else traces.iloc[:0]
            extra = named(extra[(extra["finetuned"] > 0) == finetuned]) if len(extra) else extra
            if len(extra):
                ax.scatter(extra[metric], [order.index(g) for g in extra["gates"]], marker=marker, color="k", s=45)
    axes[0].axvline(rows.loc[rows["method"] == "full", "fd"].mean(), color="0.4", linestyle="--")
    axes[0].axvline(traces["floor"].mean(), color="0.4", linestyle=":")
    axes[0].set(xlabel="FD")
    axes[1].set(xlabel="rms distance to unpruned samples", yticklabels=[])


BLOCKS = ("16 px, down", "8 px, down", "4 px, first", "4 px, second", "8 px, up", "16 px, up")


@figure(
    "What is left of every block",
    caption="Share of a block's hidden channels that are left, mean over masks; a closed branch counts as none. Deep "
    "layers hold most of the parameters.",
    alt="A table of shades, methods by blocks of the U-Net.",
    size=(7.0, 3.2),
)
def what_is_left(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    traces = results.traces.dropna(subset=["left"])
    traces = traces[(traces["problem"] == "fm16") & (traces["method"] != "full")]
    table = named(traces).pivot_table(index="gates", columns="block", values="left")
    table = table.loc[[label for label in LABELS.values() if label in table.index]]
    if table.shape[1] == len(BLOCKS):
        table.columns = list(BLOCKS)
    sns.heatmap(table, vmin=0, vmax=1, cmap="crest_r", annot=True, fmt=".2f", ax=ax, cbar=False)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=20)


@figure(
    "Memory of an update, and distilled models",
    caption="Left: the most that is saved for the way back in one mask update, against sampling steps. Right: FD "
    "(n = 2,000) of consistency students in three evaluations, a fifth of the parameters gone; one dot a student, "
    "dashed their mean when whole.",
    alt="Left: a rising line without checkpoints and a flat one with them. Right: dots for EcoDiff and magnitude.",
    panels=2,
    size=(5.0, 3.2),
)
def memory_and_students(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("memory", ECO)
    kinds = {"bytes_plain": "without checkpoints", "bytes_checkpointed": "with checkpoints"}
    table = rows.melt("steps", list(kinds), "how", "bytes").assign(MB=lambda t: t["bytes"] / 1e6)
    table["how"] = table["how"].map(kinds)
    how = {"palette": {"without checkpoints": "C1", "with checkpoints": "C0"}, "marker": "o", "errorbar": None}
    sns.lineplot(table, x="steps", y="MB", hue="how", ax=axes[0], **how)
    steps = sorted(rows["steps"].unique())
    axes[0].set(xscale="log", yscale="log", xlabel="sampling steps T", ylabel="saved activations, MB")
    axes[0].set_xticks(steps, labels=[f"{t:.0f}" for t in steps])
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].minorticks_off()
    axes[0].legend(title=None, fontsize="small")
    rows = results.of("fm8")
    students = rows[rows["method"] != "full"]
    dots(students, "fd", [LABELS[m] for m in LABELS if m in set(students["method"])], axes[1])
    axes[1].axvline(rows.loc[rows["method"] == "full", "fd"].mean(), color="0.4", linestyle="--")
    axes[1].set(xlabel="FD")


@figure(
    "Samples",
    caption="The same noises and labels 0 to 9, twice; a fifth of the parameters gone, nothing retrained.",
    alt="Rows of small grey pictures of clothing, from the unpruned network and from every pruned one.",
    size=(8.0, 3.4),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    kept = {m: results.state[("fm16", m)] for m in LABELS if ("fm16", m) in results.state}
    first = {m: next(state[k] for k in sorted(state) if k.startswith("samples")) for m, state in kept.items()}
    ax.imshow(np.concatenate([np.concatenate(x, axis=1) for x in first.values()]), cmap="gray_r", vmin=-1, vmax=1)
    height = len(next(iter(first.values()))[0])
    ticks = np.arange(len(first)) * height + height / 2 - 0.5
    ax.set(xticks=[], yticks=ticks, yticklabels=[LABELS[m] for m in first])
    ax.grid(False)
