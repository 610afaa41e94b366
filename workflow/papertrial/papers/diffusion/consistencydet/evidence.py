"""What the rows of ConsistencyDet say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

CONS, DIFF, FCOS = "consistencydet", "diffusiondet", "fcos"
NEAR = 0.98  # of DiffusionDet's best AP


def ap(results: Evidence, method: str) -> pd.DataFrame:
    """AP, seed by number of steps."""
    return results.of("scenes", method).pivot(index="seed", columns="steps", values="ap")


def retained(results: Evidence, method: str) -> np.ndarray:
    """AP of one step as a share of the best AP, of every seed; a head that finds nothing retains nothing."""
    of = ap(results, method)
    return (of[1] / of.max(axis=1).where(of.max(axis=1) > 0, np.inf)).to_numpy()


@claim("c1")
def one_step_is_enough(results: Evidence) -> list[Criterion]:
    gain = (ap(results, CONS)[1] - ap(results, DIFF)[1]).to_numpy()
    return [
        point("mean of AP(1) / max AP(k), ConsistencyDet", retained(results, CONS), ">=", 0.95),
        interval("AP(1) of ConsistencyDet - of DiffusionDet", gain, ">", 0),
    ]


@claim("c2")
def surpasses_other_detectors(results: Evidence) -> list[Criterion]:
    best = {method: ap(results, method).max(axis=1) for method in (CONS, DIFF, FCOS)}
    return [
        interval("best AP, ConsistencyDet - DiffusionDet", (best[CONS] - best[DIFF]).to_numpy(), ">", 0),
        interval("best AP, ConsistencyDet - dense head", (best[CONS] - best[FCOS]).to_numpy(), ">", -0.01),
    ]


@claim("c3")
def self_consistent(results: Evidence) -> list[Criterion]:
    overlap = at_once(results)["self_iou"]
    gain = (overlap[CONS] - overlap[DIFF]).to_numpy()
    return [interval("IoU between levels, ConsistencyDet - DiffusionDet", gain, ">", 0)]


def at_once(results: Evidence) -> pd.DataFrame:
    """What is measured once a head: columns (metric, method), one row a seed."""
    rows = results.of("scenes")
    return rows[rows["steps"] == 1].pivot(index="seed", columns="method", values=["self_iou", "truth_iou", "kept_iou"])


@claim("c4")
def cheaper_at_equal_accuracy(results: Evidence) -> list[Criterion]:
    ours, theirs = ap(results, CONS), ap(results, DIFF)
    bound = NEAR * theirs.max(axis=1)
    ratio = [needed(theirs.loc[s], bound[s]) / needed(ours.loc[s], bound[s]) for s in ours.index]
    return [point("median of steps, DiffusionDet / ConsistencyDet", np.array(ratio), ">=", 2, np.median)]


def needed(by_steps: pd.Series, bound: float) -> float:
    """The smallest number of steps within the bound; infinitely many if there is none."""
    within = by_steps.index[by_steps >= bound]
    return float(min(within, default=np.inf))


NAMES = {
    CONS: "ConsistencyDet",
    DIFF: "DiffusionDet",
    FCOS: "dense head",
    "one-shot": "one-shot regression",
    "near-only": "control: near levels only",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C2", "C4", "C7"), strict=True))


@figure(
    "Precision against steps",
    caption="AP on test scenes after 1 to 8 evaluations from 100 random boxes; mean and range over head seeds. Lines "
    "without steps: the dense head (dashed) and one-shot regression (dotted).",
    alt="Left: AP against steps for ConsistencyDet, DiffusionDet and the control, with two horizontal lines. Right: "
    "the same as a share of each head's best AP.",
    panels=2,
)
def precision_against_steps(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("scenes")
    table = rows[rows["method"].isin([CONS, DIFF, "near-only"])]
    best = table.groupby(["method", "seed"])["ap"].transform("max")
    table = table.assign(detector=table["method"].map(NAMES), share=table["ap"] / best.where(best > 0))
    ticks = sorted(table["steps"].unique())
    for ax, metric, label in zip(axes, ("ap", "share"), ("AP", "share of the best AP"), strict=True):
        how = {"hue": "detector", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(table, x="steps", y=metric, ax=ax, legend="auto" if ax is axes[0] else False, **how)
        ax.set(xscale="log", xlabel="steps", ylabel=label)
        ax.set_xticks(ticks, ticks)
        ax.minorticks_off()
    for problem, method, style in (("scenes", FCOS, "--"), ("printed", "one-shot", ":")):
        level = results.of(problem, method)["ap"].mean()
        axes[0].axhline(level, color=COLOURS[NAMES[method]], linestyle=style)
    axes[1].axhline(0.95, color="0.4", linestyle=":")


@figure(
    "Self-consistency",
    caption="Predictions for one true box from 8 noise levels of one trajectory, s = .1 to 10: their overlap with each "
    "other (c3) against their overlap with the truth. A head that ignores its box would be consistent, but not right.",
    alt="Points, one a seed: IoU between levels against IoU with the truth, for the denoising detectors.",
)
def overlap_of_a_trajectory(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    table = results.rows.dropna(subset=["self_iou"])
    table = table.assign(detector=table["method"].map(NAMES))
    sns.scatterplot(table, x="truth_iou", y="self_iou", hue="detector", palette=COLOURS, s=60, ax=ax)
    ax.set(xlabel="IoU with the truth", ylabel="IoU between levels")


@figure(
    "Detections",
    caption="Test scenes (first seed): true boxes (dotted) and as many of each detector's best boxes, after one step "
    "and suppression.",
    alt="Rows of four small scenes with boxes drawn on them: ConsistencyDet, DiffusionDet and the dense head.",
    size=(7.0, 5.4),
)
def detections(results: Evidence, ax) -> None:  # noqa: ANN001
    from matplotlib.patches import Rectangle

    shown = [m for m in (CONS, DIFF, FCOS) if ("scenes", m) in results.state]
    for row, method in enumerate(shown):
        state = results.state["scenes", method]
        pictures, truths, found = state["pictures"], state["truths"], state[min(k for k in state if "found" in k)]
        side = pictures.shape[-1]
        ax.imshow(np.hstack(pictures), cmap="gray", extent=(0, side * len(pictures), side * (row + 1), side * row))
        for boxes, colour, style in ((truths, "w", ":"), (found, COLOURS[NAMES[method]], "-")):
            for i, (cx, cy, w, h) in ((int(b[0]), side * b[1:5]) for b in boxes):
                where = (side * i + cx - w / 2, side * row + cy - h / 2)
                ax.add_patch(Rectangle(where, w, h, fill=False, edgecolor=colour, linestyle=style, linewidth=1))
    ax.set_xlim(0, side * len(pictures))
    ax.set_ylim(side * len(shown), 0)
    ax.set_yticks([side * (i + 0.5) for i in range(len(shown))], [NAMES[m] for m in shown])
    ax.set_xticks([])
    ax.grid(False)
