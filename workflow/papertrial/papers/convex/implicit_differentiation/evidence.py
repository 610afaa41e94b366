"""What counts as evidence for the claims on implicit differentiation."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "implicit": "implicit",
    "unrolled": "unrolled",
    "truncated": "unrolled, last 10%",
    "implicit_at_start": "implicit, at the start point",
    "implicit_half": "implicit, after t/2 steps",
}
FIXED_POINTS = {"svm-projected": "projected gradient", "svm-mirror": "mirror descent"}


def window(results: Evidence) -> pd.DataFrame:
    """Jacobian errors of ridge, one column a method, and the error of xhat, where that is 1e-8 to 1e-1 of x*."""
    rows = results.of("ridge", "implicit").set_index(["t", "seed"])
    table = results.paired("ridge", "jacobian_error", "t").assign(error=rows["error"])
    return table[rows["relative"].reindex(table.index).between(1e-8, 1e-1)]


def slope(x: pd.Series, y: pd.Series) -> float:
    """Ordinary least squares in the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@claim("c1")
def jacobian_as_precise_as_the_solution(results: Evidence) -> list[Criterion]:
    slopes = [slope(part["error"], part["implicit"]) for _, part in window(results).groupby("seed")]
    return [
        point("least slope of a subsample", slopes, ">=", 0.9, np.min),
        point("largest slope of a subsample", slopes, "<=", 1.1, np.max),
    ]


@claim("c2")
def more_precise_than_unrolling(results: Evidence) -> list[Criterion]:
    table = window(results)
    ratios = np.exp(np.log(table["implicit"] / table["unrolled"]).groupby("seed").mean())
    return [point("largest geometric mean of a subsample, implicit / unrolled", ratios, "<", 0.5, np.max)]


def pooled_geometric_mean(strata: list[np.ndarray]) -> float:
    return float(np.exp(np.log(np.concatenate(strata)).mean()))


def seconds(results: Evidence, problem: str, *by: str) -> pd.DataFrame:
    measured = results.timings[results.timings["problem"] == problem].dropna(subset=["cpu_s"])
    return measured.pivot(index=[*by, "seed"], columns="method", values="cpu_s")


@claim("c3")
def cheaper_hypergradients(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, label in FIXED_POINTS.items():
        time = seconds(results, problem, "features")
        ratio = time["unrolled"] / time["implicit"]
        strata = [part.to_numpy() for _, part in ratio.groupby("features")]
        stored = results.paired(problem, "stored_bytes", "features")
        criteria += [
            interval(f"{label}: seconds, unrolled / implicit", strata, ">", 1, pooled_geometric_mean),
            point(f"{label}: least ratio of stored bytes", stored["unrolled"] / stored["implicit"], ">=", 10, np.min),
        ]
    return criteria


@claim("c4")
def distillation_at_a_fraction_of_the_cost(results: Evidence) -> list[Criterion]:
    time = seconds(results, "distillation")
    accuracy = results.paired("distillation", "accuracy")
    difference = (accuracy["implicit"] - accuracy["unrolled"]).abs()
    return [
        point(
            "least ratio of a seed, unrolled / implicit seconds", time["unrolled"] / time["implicit"], ">=", 1.5, np.min
        ),
        point("mean |difference of the test accuracies|", difference, "<=", 0.02),
    ]


@figure(
    "Precision of the Jacobian",
    caption="Ridge, one dot a subsample and a number of gradient steps; between the dashed lines lies the window that "
    "is judged. The implicit Jacobian is as precise as the solution it is taken at; differentiating the steps lags.",
    alt="Log-log scatter of the Jacobian's error against the solution's: implicit on a line of slope one, unrolled "
    "above it, the control at the start point flat.",
    size=(6.5, 4.0),
)
def precision(results: Evidence, ax: "Axes") -> None:
    import seaborn as sns

    rows = results.of("ridge")
    rows = rows[(rows["relative"] > 1e-12) & (rows["jacobian_error"] > 0)]
    rows = rows.assign(method=rows["method"].map(LABELS))
    order = [label for name, label in LABELS.items() if name != "truncated"]
    sns.scatterplot(
        rows,
        x="relative",
        y="jacobian_error",
        hue="method",
        style="method",
        hue_order=order,
        style_order=order,
        ax=ax,
        s=22,
    )
    for edge in (1e-8, 1e-1):
        ax.axvline(edge, color="0.6", linestyle="--", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="relative error of the solution", ylabel="error of the Jacobian")
    ax.legend(title=None, fontsize="small")


@figure(
    "Cost of a hyper-gradient",
    caption="Multi-class SVM, 500 inner steps. Bytes are those that automatic differentiation stores beside the data. "
    "The last 10% of the steps are cheap to unroll as well, but leave a bias.",
    alt="Seconds and stored bytes against the number of features, two fixed points; implicit lies below unrolled.",
    panels=4,
    size=(3.3, 3.0),
)
def cost(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    order = [LABELS[m] for m in ("implicit", "unrolled", "truncated")]
    for k, (problem, label) in enumerate(FIXED_POINTS.items()):
        time = seconds(results, problem, "features").melt(ignore_index=False, value_name="cpu_s").reset_index()
        for ax, table, y, name in (
            (axes[2 * k], time, "cpu_s", "CPU seconds"),
            (axes[2 * k + 1], results.of(problem), "stored_bytes", "stored bytes"),
        ):
            drawn = table.assign(method=table["method"].map(LABELS))
            sns.lineplot(drawn, x="features", y=y, hue="method", hue_order=order, marker="o", legend=k == 0, ax=ax)
            ax.set(xscale="log", yscale="log", title=label, ylabel=name)
    for ax in axes[:2]:
        ax.legend(title=None, fontsize="x-small")


@figure(
    "Distilled digits",
    caption="The first seed's ten images, one a class, as learned with implicit hyper-gradients (left) and by "
    "unrolling (middle), and the training loss on the way.",
    alt="Two montages of ten blurred digit images and a falling loss curve of both methods.",
    panels=3,
    size=(3.6, 2.6),
)
def distilled(results: Evidence, axes: list["Axes"]) -> None:
    import seaborn as sns

    traces = results.traces[results.traces["problem"] == "distillation"]
    first = int(traces["seed"].min())
    for ax, method in zip(axes, ("implicit", "unrolled"), strict=False):
        images = results.state["distillation", method][f"images_{first}"]  # (10, p)
        side = round(images.shape[1] ** 0.5)
        montage = images.reshape(2, 5, side, side).transpose(0, 2, 1, 3).reshape(2 * side, 5 * side)
        ax.imshow(montage, cmap="gray")
        ax.set(title=LABELS[method], xticks=[], yticks=[])
        ax.grid(False)
    traces = traces.assign(method=traces["method"].map(LABELS))
    sns.lineplot(traces, x="outer", y="loss", hue="method", style="method", ax=axes[2])
    axes[2].set(xlabel="outer step", ylabel="training loss", yscale="log")
    axes[2].legend(title=None, fontsize="small")
