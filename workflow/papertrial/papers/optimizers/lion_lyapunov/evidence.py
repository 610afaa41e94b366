"""What the runs say about the claims of lion-lyapunov.

Rows, by problem: box-* one a (seed, lambda) with gap, clip_gap, extent = max|x| lambda and at_bound; entry-* one a
(seed, lambda, lr) with the numbers of violations and exits; ode-* one a (seed, kappa) with H_rise and f_rise;
fmnist-mlp and char-lm one a seed, of AdamW as shared baseline rows.
"""

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOX = {"box-quadratic": "quadratic", "box-adult": "logistic regression, Adult"}
ENTRY = {
    "entry-quadratic": "quadratic",
    "entry-adult": "logistic regression, mini-batches",
    "entry-tanh-net": "tanh net, mini-batches",
}
NETWORKS = {"fmnist-mlp": 0.02, "char-lm": 0.03}  # the margin in nats
LABELS = {
    "lion": "Lion",
    "coupled-lion": "decay inside the sign (control)",
    "sign-projected": "signSGD, projected",
    "gradient-projected": "projected gradient",
    "adamw": "AdamW",
}
KAPPAS = {"l1": "l1 (Lion)", "l2": "l2", "huber": "Huber", "half-l2-squared": "half squared l2"}


def on_present(results: Evidence, problems: dict[str, str], method: str) -> pd.DataFrame:
    """The method's rows on those of the problems that it ran on."""
    rows = results.rows
    found = rows[rows["problem"].isin(list(problems)) & (rows["method"] == method)]
    if found.empty:
        raise LookupError(f"no results of {method} on any of {', '.join(problems)}")
    return found


@claim("c1")
def solves_the_box(results: Evidence) -> list[Criterion]:
    rows = on_present(results, BOX, "lion")
    cells = {f"{BOX[p]}, lambda = {lam:g}": cell for (p, lam), cell in rows.groupby(["problem", "lambda"])}
    gaps = {name: cell["gap"].mean() for name, cell in cells.items()}
    worst = max(gaps, key=gaps.get)
    return [
        point(f"largest gap of {len(cells)} cells ({worst})", float(gaps[worst]), "<=", 1e-3),
        point("largest max|x| lambda", float(rows["extent"].max()), "<=", 1.01),
        at_least(
            "cells in which the clipped free optimum's gap is larger",
            6,
            [point(name, (cell["clip_gap"] - cell["gap"]).to_numpy(), ">", 0) for name, cell in cells.items()],
        ),
    ]


@claim("c2")
def enters_and_stays(results: Evidence) -> list[Criterion]:
    rows = on_present(results, ENTRY, "lion")
    return [
        point(f"violations of the exponential bound in {len(rows)} runs", float(rows["violations"].sum()), "<=", 0),
        point("exits after entry", float(rows["exits"].sum()), "<=", 0),
    ]


@claim("c3")
def lyapunov_decreases(results: Evidence) -> list[Criterion]:
    rows = results.of("ode-tanh-net", "lion")
    of_kappa = {KAPPAS[name]: cell for name, cell in rows.groupby("kappa", sort=False)}
    rises = [point(f"single steps of f, {name}", cell["f_rise"].to_numpy(), ">", 0) for name, cell in of_kappa.items()]
    return [
        *(
            point(f"largest step of H over its decrease, {name}", float(cell["H_rise"].max()), "<=", 1e-3)
            for name, cell in of_kappa.items()
        ),
        at_least("kappas along which f alone rises", 1, rises),
    ]


@claim("c4")
def comparable_with_half_the_state(results: Evidence) -> list[Criterion]:
    criteria, ratios = [], []
    for problem, margin in NETWORKS.items():
        loss, state = results.paired(problem, "val_loss"), results.paired(problem, "state_bytes")
        difference = (loss["lion"] - loss["adamw"]).dropna().to_numpy()
        higher = int((difference > 0).sum())
        name = f"validation loss above AdamW's, {problem} (higher on {higher} of {len(difference)} seeds)"
        criteria.append(interval(name, difference, "<=", margin))
        ratios += (state["lion"] / state["adamw"]).dropna().tolist()
    return [
        *criteria,
        point("state bytes over AdamW's, largest", max(ratios), "<=", 0.5),
        point("state bytes over AdamW's, smallest", min(ratios), ">=", 0.5),
    ]


# ---- figures


def colours() -> dict[str, tuple]:
    """A method has one colour in all figures."""
    import seaborn as sns

    return dict(zip(LABELS.values(), sns.color_palette(), strict=False))


def traces(results: Evidence, problem: str) -> pd.DataFrame:
    found = results.traces[results.traces["problem"] == problem].dropna(axis=1, how="all")
    if found.empty:
        raise LookupError(f"no traces of {problem}")
    return found.assign(method=found["method"].map(LABELS))


@figure(
    "The limit is the constrained optimum",
    caption="Objective above its minimum in the box |x| <= 1/lambda after the last step, relative to the start; dots: "
    "the card's 1e-3. The clipped free optimum is what one gets by ignoring the box until the end. The percentage is "
    "the share of the constrained optimum's coordinates at a bound: where it is small, the box hardly matters. Below "
    "1e-13 is drawn at 1e-13; so is what lies below the box's minimum, which only a point outside can.",
    alt="Two panels of points: relative gap on a logarithmic axis by lambda, one colour a method.",
    panels=2,
)
def limit(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    clipped = "free optimum, clipped"
    for ax, (problem, title) in zip(axes, BOX.items(), strict=True):
        rows = results.of(problem)
        share = rows.groupby("lambda")["at_bound"].mean()
        clips = rows[rows["method"] == "lion"].assign(method=clipped, gap=lambda r: r["clip_gap"])
        rows = pd.concat([rows.assign(method=rows["method"].map(LABELS)), clips])
        rows = rows.assign(
            gap=rows["gap"].clip(lower=1e-13), cell=[f"{lam:g}\n{share[lam]:.0%}" for lam in rows["lambda"]]
        )
        sns.stripplot(
            rows,
            x="cell",
            y="gap",
            hue="method",
            palette={**colours(), clipped: "0.3"},
            order=[f"{lam:g}\n{s:.0%}" for lam, s in share.items()],
            dodge=True,
            jitter=False,
            size=4,
            legend=ax is axes[-1],
            ax=ax,
        )
        ax.axhline(1e-3, ls=":", color="0.4", lw=1)
        ax.set(yscale="log", title=title, xlabel="lambda, share at a bound", ylabel="relative gap")
    sns.move_legend(axes[-1], "center left", bbox_to_anchor=(1.01, 0.5), title=None)


@figure(
    "Into the box from outside",
    caption="Distance of lambda x to the box, relative to the start at 20 in every coordinate, against t = step * lr * "
    "lambda; every lambda, learning rate and seed is a line. Dotted: the bound exp(-t). Where the objective pulls "
    "inwards Lion is in at t = ln(21/2), or later; with the decay inside the sign the first steps are too short.",
    alt="Three panels of falling lines on a logarithmic axis, Lion's below the dotted bound, the control's above it.",
    panels=3,
    size=(4.4, 3.6),
)
def from_outside(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, ENTRY.items(), strict=True):
        lines = traces(results, problem)
        start = lines.groupby(["method", "seed", "lambda", "lr"])["dist"].transform("first")
        lines = lines.assign(
            dist=(lines["dist"] / start).clip(lower=1e-10),
            run=lines[["seed", "lambda", "lr"]].astype(str).agg("/".join, axis=1),
        )
        sns.lineplot(
            lines,
            x="time",
            y="dist",
            hue="method",
            palette=colours(),
            units="run",
            estimator=None,
            lw=0.7,
            alpha=0.6,
            legend=ax is axes[0],
            ax=ax,
        )
        t = np.linspace(0, lines["time"].max(), 50)
        ax.plot(t, np.exp(-t), ":", color="0.2")
        ax.set(yscale="log", title=title, xlabel="t", ylabel="distance to the box", ylim=(1e-10, 30))
    axes[0].legend(title=None, fontsize="x-small")


@figure(
    "What decreases",
    caption="Left: the Lyapunov function H above its end, relative to its start, on the way of Lion-kappa. Right: "
    "the objective f along the same paths, which need not decrease. Mean and range over seeds.",
    alt="Two panels of lines against time, one colour a kappa: H falls throughout, f falls and in places rises.",
    panels=2,
)
def lyapunov_function(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    paths = traces(results, "ode-tanh-net")
    paths = paths.assign(kappa=paths["kappa"].map(KAPPAS))
    ends = paths.groupby(["kappa", "seed"])["H"].agg(["first", "last"])
    at = ends.reindex(pd.MultiIndex.from_frame(paths[["kappa", "seed"]])).to_numpy()
    paths = paths.assign(H=(paths["H"] - at[:, 1]) / (at[:, 0] - at[:, 1]))
    for ax, column, label in ((axes[0], "H", "H, 1 at the start, 0 at the end"), (axes[1], "f", "objective f")):
        sns.lineplot(paths, x="time", y=column, hue="kappa", errorbar=("pi", 100), legend=ax is axes[0], ax=ax)
        ax.set(xlabel="time", ylabel=label)
    axes[0].legend(title=None, fontsize="x-small")


@figure(
    "Networks: Lion and AdamW",
    caption="Validation loss on the way, mean and 95% interval over seeds, each optimizer at the best of equally many "
    "learning rates; and the loss after training at each of these rates, on the tuning seed, which tells how much the "
    "choice matters. Trials that diverged are left out.",
    alt="Four panels of lines, two a workload: validation loss against the step, and final loss against learning rate.",
    panels=4,
    size=(3.9, 3.4),
)
def networks(results: Evidence, axes: "list[Axes]") -> None:
    import seaborn as sns

    for (curve, tuning), problem in zip((axes[:2], axes[2:]), NETWORKS, strict=True):
        lines = traces(results, problem)
        steps, trials = lines.dropna(subset="step"), tried(results, lines, problem)
        sns.lineplot(steps, x="step", y="val_loss", hue="method", palette=colours(), ax=curve)
        curve.set(title=problem, ylabel="validation loss")
        curve.legend(title=None, fontsize="x-small")
        sns.lineplot(trials, x="lr", y="loss", hue="method", palette=colours(), marker="o", legend=False, ax=tuning)
        tuning.set(
            title=problem, xscale="log", xlabel="peak learning rate", ylabel="final validation loss, tuning seed"
        )


def tried(results: Evidence, lines: pd.DataFrame, problem: str) -> pd.DataFrame:
    """method, lr, loss of every trial: Lion's are the paper's own, AdamW's came with the shared baseline."""
    own = results.trials[results.trials["problem"] == problem]
    own = pd.DataFrame({"lr": [json.loads(s)["lr"] for s in own["settings"]], "loss": own["value"].to_numpy()})
    shared = lines.dropna(subset="trial_lr")[["method", "trial_lr", "trial_loss"]]
    shared = shared.rename(columns={"trial_lr": "lr", "trial_loss": "loss"})
    return pd.concat([own.assign(method=LABELS["lion"]), shared]).replace(np.inf, np.nan).dropna()
