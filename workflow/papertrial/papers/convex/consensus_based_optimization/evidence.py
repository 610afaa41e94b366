"""What counts as evidence for the claims on consensus-based optimization and consensus hopping."""

from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point
from papertrial.testbeds.landscapes import canyon

LABELS = {
    "ch": "consensus hopping",
    "cbo": "CBO",
    "gd": "gradient descent",
    "ch-mean": "hopping, plain mean",
    "cbo-mean": "CBO, plain mean",
    "cbo-anisotropic": "CBO, anisotropic",
    "langevin": "annealed Langevin",
    "random-search": "random search",
    "cma-es": "CMA-ES, restarted",
}


def wilson(successes: np.ndarray) -> tuple[float, float]:
    """95% interval of a success probability from 0s and 1s."""
    n, p, z = len(successes), float(np.mean(successes)), 1.959964
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def best_descent(results: Evidence) -> tuple[float, np.ndarray]:
    """The step of gradient descent with most successes, and those."""
    by_step = {step: part["success"].to_numpy() for step, part in results.of("canyon", "gd").groupby("step")}
    step = max(by_step, key=lambda step: by_step[step].mean())
    return float(step), by_step[step]


@claim("c1")
def global_minimiser(results: Evidence) -> list[Criterion]:
    step, descents = best_descent(results)
    return [
        point("success of consensus hopping", results.of("canyon", "ch")["success"], ">=", 0.9),
        point("success of CBO", results.of("canyon", "cbo")["success"], ">=", 0.9),
        interval(f"success of gradient descent, step {step:g}", descents, "<", 0.25, limits=wilson(descents)),
    ]


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least squares."""
    x = x - x.mean()
    return float(x @ y / (x @ x))


@claim("c2")
def a_hop_is_a_gradient_step(results: Evidence) -> list[Criterion]:
    rows = results.of("remainder", "ch")
    tau = np.sort(rows["tau"].unique())
    e = rows.pivot(index="seed", columns="tau", values="remainder")[tau].to_numpy()  # (points, tau)
    order = lambda drawn: slope(np.log(tau), np.log(np.median(drawn, axis=0)))  # noqa: E731
    name = "slope of log remainder on log tau"
    return [
        point(f"{name}, from below", e, ">=", 0.85, order),
        point(f"{name}, from above", e, "<=", 1.15, order),
        point(f"median remainder at tau = {tau[0]:.3g}", e[:, 0], "<", 0.02, np.median),
    ]


@claim("c3")
def sampling_error(results: Evidence) -> list[Criterion]:
    rms = results.of("sampling", "ch").pivot(index="seed", columns="N", values="rms")
    log_N = np.log(rms.columns.to_numpy(dtype=float))
    slopes = np.array([slope(log_N, y) for y in np.log(rms.to_numpy())])
    name = "median slope of log error on log N"
    return [
        point(f"{name}, from below", slopes, ">=", -0.6, np.median),
        point(f"{name}, from above", slopes, "<=", -0.4, np.median),
    ]


# ---- figures


@figure(
    "Paths through the canyon",
    caption="Six runs from around (8, 8); cross: the global minimiser. Descent stops in the first ripple, where hops "
    "and the consensus of the particles, which see values only, go on.",
    alt="Three contour maps of a winding valley with paths from the upper right: those of consensus hopping and CBO "
    "end at the origin, those of gradient descent half way.",
    panels=3,
    size=(4.0, 3.8),
)
def paths(results: Evidence, axes: list[Any]) -> None:
    low, high = -2.5, 9.5
    x = np.linspace(low, high, 240)
    f = canyon()
    E = f(np.stack(np.meshgrid(x, x), axis=-1))
    for ax, method in zip(axes, ("ch", "cbo", "gd"), strict=True):
        ax.contourf(x, x, np.sqrt(E), levels=24, cmap="Greys_r", alpha=0.7)
        traces = results.traces[(results.traces["problem"] == "canyon") & (results.traces["method"] == method)]
        for i, (_, path) in enumerate(traces.groupby("seed")):
            if i < 6:
                path = path.sort_values("k")
                ax.plot(path["x"], path["y"], lw=1, marker=".", ms=3)
        ax.plot(*f.minimiser, "x", color="C3", ms=9, mew=2)
        ax.set(xlim=(low, high), ylim=(low, high), title=LABELS[method], aspect="equal")
        ax.grid(visible=False)


@figure(
    "Who finds the global minimiser",
    caption="Share of runs that end within 1 of the minimum and 1/2 of the minimiser. Plain means (alpha = 0) are the "
    "controls. Random search and CMA-ES use as many evaluations as consensus hopping and show how hard a landscape is; "
    "CBO uses ten times as many. Gradient descent with its best step.",
    alt="Grouped bars of success for three landscapes, one colour a method.",
    size=(9.0, 3.6),
)
def success(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    rows = pd.concat([results.of(problem) for problem in ("canyon", "rastrigin", "kinked")])
    shares = rows.groupby(["problem", "method", "step"], dropna=False, sort=False)["success"].mean()
    best = shares.groupby(["problem", "method"], sort=False).max().reset_index()
    best = best.assign(method=best["method"].map(LABELS))
    order = [label for label in LABELS.values() if label in set(best["method"])]
    sns.barplot(best, x="problem", y="success", hue="method", hue_order=order, ax=ax)
    ax.set(xlabel="", ylabel="share of runs", ylim=(0, 1.02))
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), title=None)


@figure(
    "A hop against a gradient step",
    caption="Left: what a hop of infinitely many particles differs from a gradient step of length tau = alpha sigma^2, "
    "relative to the step, at random points and in the median; the control compares with half the step. Right: the "
    "error of N particles. Dotted: slopes 1 and -1/2.",
    alt="Two log-log panels: the relative remainder rising with tau in slope one, and the sampling error falling with "
    "N in slope minus one half.",
    panels=2,
    size=(4.6, 3.8),
)
def orders(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    rows = results.of("remainder")
    drawn = rows.assign(method=rows["method"].map({"ch": "step tau", "ch-half": "step tau / 2"}))
    half = ("pi", 50)
    sns.lineplot(drawn, x="tau", y="remainder", hue="method", estimator="median", errorbar=half, marker="o", ax=axes[0])
    middle = rows[rows["method"] == "ch"].groupby("tau")["remainder"].median()
    tau = middle.index.to_numpy()
    axes[0].plot(tau, 0.5 * middle.iloc[0] * tau / tau[0], ":", color="0.3")
    axes[0].set(xscale="log", yscale="log", xlabel="tau", ylabel="relative remainder")
    axes[0].legend(title=None, fontsize="x-small")
    errors = results.of("sampling", "ch")
    sns.lineplot(errors, x="N", y="rms", units="seed", estimator=None, color="C0", lw=0.6, ax=axes[1])
    N = np.sort(errors["N"].unique())
    axes[1].plot(N, 0.7 * errors["rms"].min() * (N / N[-1]) ** -0.5, ":", color="0.3")
    axes[1].set(xscale="log", yscale="log", xlabel="particles N", ylabel="RMS error of the hop")
