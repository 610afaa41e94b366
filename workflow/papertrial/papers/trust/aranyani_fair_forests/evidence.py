"""Is the trade-off better than the baselines', is the aggregate gradient a stand-in, does lambda control the gap?"""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

METHOD, OUTPUT, RESERVOIR = "aranyani", "forest-output", "reservoir"
BASELINES = ("majority", "logistic", "mlp", "hoeffding", OUTPUT)
TABLES = ("adult", "compas", "attrition")
HISTORIES = ("adult", "compas")  # where the gradient is held against the exact one
CONTROL = "shuffled"
SHOWN = (METHOD, "aranyani-ema", CONTROL, RESERVOIR, OUTPUT, "logistic", "mlp", "hoeffding", "majority")
LAMBDAS = [0, 0.05, 0.1, 0.3, 1, 3]  # of the third claim


def tables(results: Evidence, names: tuple[str, ...] = TABLES) -> list[str]:
    """Those on which the method (or what stands in for it) ran."""
    ran = set(results.rows.loc[results.rows["method"] == METHOD, "problem"])
    if not ran & set(names):
        raise LookupError(f"no results of {METHOD} on any of {', '.join(names)}")
    return [name for name in names if name in ran]


def streams(results: Evidence, problem: str, method: str) -> pd.DataFrame:
    """The rows about whole streams."""
    return results.of(problem, method).dropna(subset=["accuracy"])


def areas(results: Evidence, problem: str, method: str) -> pd.Series:
    """A of each seed: the accuracy at prescribed gaps."""
    return streams(results, problem, method).groupby("seed")["trade_off"].first()


@claim("c1")
def better_trade_off(results: Evidence) -> list[Criterion]:
    over_best, over_output = [], []
    for problem in tables(results):
        ours = areas(results, problem, METHOD)
        best = max((areas(results, problem, m) for m in BASELINES), key=lambda a: a.mean())
        over_best.append((ours - best).to_numpy())
        over_output.append((ours - areas(results, problem, OUTPUT)).to_numpy())
    return [
        interval("A, over the best online baseline of each data set", over_best, ">", 0),
        point("A, over the same forest with output-level fairness", over_output, ">=", 0),
    ]


@claim("c2")
def aggregates_stand_in(results: Evidence) -> list[Criterion]:
    cosines, gaps, accuracies, passes = [], [], [], []
    for problem in tables(results, HISTORIES):
        near = results.of(problem, METHOD).dropna(subset=["cosine"])
        cosines.append(near.pivot(index="seed", columns=["lam", "step"], values="cosine").to_numpy())
        both = [streams(results, problem, m).query("lam > 0").set_index(["seed", "lam"]) for m in (METHOD, RESERVOIR)]
        ours, reference = (rows[["accuracy", "dp_gap", "passes"]].astype(float) for rows in both)
        ours = ours.loc[ours.index.isin(reference.index)]
        difference = (ours - reference.loc[ours.index]).unstack("lam")
        gaps.append(difference["dp_gap"].to_numpy())
        accuracies.append(difference["accuracy"].to_numpy())
        passes.append((ours["passes"] / reference.loc[ours.index, "passes"]).unstack("lam").to_numpy())
    return [
        point("cosine with the exact gradient, median", cosines, ">=", 0.8, median),
        point("gap, over that with a reservoir's exact gradient", gaps, "<=", 0.02),
        point("accuracy, over that with a reservoir's exact gradient", accuracies, ">=", -0.01),
        point("passes a step, as a share of the reservoir's", passes, "<=", 0.01),
    ]


@claim("c3")
def lambda_controls(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in tables(results):
        gaps = streams(results, problem, METHOD).pivot(index="seed", columns="lam", values="dp_gap")[LAMBDAS].to_numpy()
        criteria += [
            point(f"{problem}: Spearman correlation of lambda and gap", gaps, "<=", -0.7, spearman_of_mean),
            point(f"{problem}: gap at lambda 1 over gap at 0", gaps, "<=", 0.5, ratio_of_means),
        ]
    return criteria


def median(strata: list[np.ndarray]) -> float:
    return float(np.median(np.concatenate([s.ravel() for s in strata])))


def spearman_of_mean(gaps: np.ndarray) -> float:
    """Of lambda (ascending) and the gap averaged over orders, gaps (seeds, lambdas); 0 if the gap is constant."""
    mean = gaps.mean(axis=0)
    ranks = (mean[:, None] > mean).sum(axis=1) + (mean[:, None] == mean).sum(axis=1) / 2
    ranks = ranks - ranks.mean()
    order = np.arange(len(mean)) - (len(mean) - 1) / 2
    return float(ranks @ order / np.sqrt(max(ranks @ ranks, 1e-300) * (order @ order)))


def ratio_of_means(gaps: np.ndarray) -> float:
    mean = gaps.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(mean[LAMBDAS.index(1)] / mean[0])


def colours() -> dict:
    """The same for a method in every panel."""
    import seaborn as sns

    return dict(zip(SHOWN, sns.color_palette("tab10"), strict=False))


@figure(
    "Accuracy and fairness",
    caption="Prequential accuracy against the demographic-parity gap over the whole stream, mean over orders; a point "
    "is a penalty weight. Upper left is better. The reservoir stores examples and is a reference, no online method.",
    alt="Three panels, one a data set, with a curve of accuracy against gap for each method.",
    panels=3,
)
def trade_offs(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, tables(results), strict=False):
        rows = results.of(problem).dropna(subset=["accuracy"])
        means = rows.groupby(["method", "lam"], sort=False)[["accuracy", "dp_gap"]].mean().reset_index()
        sns.lineplot(
            means, x="dp_gap", y="accuracy", sort=False, hue="method", palette=colours(), style="method",
            style_order=SHOWN, markers=True, dashes=False, ax=ax,
        )  # fmt: skip
        ax.set(title=problem, xlabel="demographic-parity gap", ylabel="accuracy")
        if ax is not axes[0]:
            ax.get_legend().remove()


@figure(
    "Accuracy at a prescribed gap",
    caption="A: the best accuracy with a gap of at most g, averaged over g = 0.02, 0.05, 0.1; a point an order of the "
    "stream. The first claim compares Aranyani with the best online baseline of each panel.",
    alt="Three panels, one a data set, with the areas A of all methods as points.",
    panels=3,
)
def area(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, tables(results), strict=False):
        rows = results.of(problem).dropna(subset=["accuracy"]).drop_duplicates(["method", "seed"])
        sns.stripplot(
            rows, x="trade_off", y="method", order=SHOWN, hue="method", palette=colours(), legend=False, ax=ax
        )
        ax.set(title=problem, xlabel="A", ylabel="")


@figure(
    "How near the aggregate gradient is",
    caption="Cosine between the fairness gradient from running aggregates and the exact one over all examples so far, "
    "at the current parameters; median and middle half over penalty weights and orders. The second claim asks for a "
    "median of 0.8.",
    alt="Two panels, Adult and COMPAS, with the cosine against the number of examples for plain and exponential means "
    "and the control.",
    panels=2,
)
def closeness(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, tables(results, HISTORIES), strict=False):
        rows = results.of(problem).dropna(subset=["cosine"])
        sns.lineplot(
            rows, x="step", y="cosine", hue="method", palette=colours(), estimator="median", errorbar=("pi", 50),
            marker="o", ax=ax,
        )  # fmt: skip
        ax.axhline(0.8, color="0.6", linestyle=":")
        ax.set(title=problem, xlabel="examples", ylabel="cosine with the exact gradient")


@figure(
    "What lambda does",
    caption="Gap over the whole stream against lambda, mean over orders with its 95% interval: the method, and the "
    "control whose aggregates were told a permuted attribute.",
    alt="Three panels, one a data set, with the gap falling or not as lambda grows, for the method and its control.",
    panels=3,
)
def control_of_the_gap(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, tables(results), strict=False):
        rows = results.of(problem).dropna(subset=["accuracy"])
        rows = rows[rows["method"].isin([METHOD, CONTROL]) & rows["lam"].isin(LAMBDAS)]
        rows = rows.assign(lam=rows["lam"].map("{:g}".format))
        sns.pointplot(rows, x="lam", y="dp_gap", hue="method", palette=colours(), seed=0, ax=ax)
        ax.set(title=problem, xlabel="lambda", ylabel="demographic-parity gap")
        ax.set_ylim(bottom=0)
