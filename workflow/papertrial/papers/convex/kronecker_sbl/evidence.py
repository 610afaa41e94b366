"""What counts as evidence for the claims on Kronecker-structured sparse Bayesian learning.

Rows hold log10 NMSE, one an instance (seed); SNRs are problems of their own and strata when pooled.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

LABELS = {
    "svd": "SVD-KroSBL",
    "am": "AM-KroSBL",
    "csbl": "cSBL",
    "omp": "OMP, true sparsity",
    "kronecker-omp": "Kronecker-OMP",
    "lasso": "lasso",
    "svd-noise": "SVD-KroSBL, noise fitted",
    "svd-scrambled": "SVD-KroSBL, unknowns scrambled",
    "oracle": "least squares on the support",
}
GAUSSIAN = ("gaussian-5", "gaussian-10", "gaussian-15", "gaussian-20")


def has(results: Evidence, problem: str, method: str) -> bool:
    rows = results.rows
    return bool(((rows["problem"] == problem) & (rows["method"] == method)).any())


def gains(results: Evidence, method: str, over: str) -> list[np.ndarray]:
    """log10 NMSE of ``over`` minus that of the method, an array of instances for each SNR that the method ran on."""
    strata = []
    for problem in GAUSSIAN:
        if has(results, problem, method):
            errors = results.paired(problem, "log_nmse")
            strata.append((errors[over] - errors[method]).to_numpy())
    if not strata:
        raise LookupError(f"no results of {method} on the Gaussian family")
    return strata


@claim("c1")
def structure_helps(results: Evidence) -> list[Criterion]:
    return [
        interval(f"log10 NMSE, {label} minus SVD-KroSBL", gains(results, "svd", over), ">", 0.15)
        for over, label in (("csbl", "cSBL"), ("omp", "OMP"))
    ]


@claim("c2")
def alternating_and_projected(results: Evidence) -> list[Criterion]:
    return [
        interval("log10 NMSE, cSBL minus AM-KroSBL", gains(results, "am", "csbl"), ">", 0),
        interval("log10 NMSE, AM-KroSBL minus SVD-KroSBL", gains(results, "svd", "am"), ">", -0.05),
    ]


@claim("c3")
def fewer_iterations(results: Evidence) -> list[Criterion]:
    settled = results.paired("gaussian-15", "settled")
    return [point("median of AM's iterations / SVD's", settled["am"] / settled["svd"], ">=", 3, np.median)]


@claim("c4")
def monotone_descent(results: Evidence) -> list[Criterion]:
    rows = pd.concat([results.of(problem, "am") for problem in ("gaussian-10", "gaussian-20")])
    instances = zip(rows["problem"], rows["seed"], rows["gradient"], strict=True)
    gradients = [point(f"relative gradient, {p}, instance {s}", float(g), "<=", 0.02) for p, s, g in instances]
    return [
        point("largest relative rise of the cost", rows["rise"], "<=", 1e-9, np.max),
        at_least("instances whose gradient has fallen to 2%", math.ceil(0.8 * len(gradients)), gradients),
    ]


# ---- figures


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    table = table[table["method"].isin(LABELS)]
    kind = table["problem"].str.split("-", n=1, expand=True)
    return table.assign(method=table["method"].map(LABELS), kind=kind[0], snr=kind[1].astype(float))


def colours() -> dict[str, tuple]:
    import seaborn as sns

    return dict(zip(LABELS.values(), sns.color_palette("colorblind", len(LABELS)), strict=True))


@figure(
    "Error against signal-to-noise ratio",
    caption="Median NMSE over instances. Left: random dictionaries, the judged ones; right: steering vectors. Both "
    "KroSBL lines should lie below cSBL and the lasso, and near least squares on the true support, the lower bound.",
    alt="Two panels of falling lines: median NMSE on a log scale against SNR in dB, one line a method.",
    panels=2,
    size=(5.0, 4.6),
)
def error_against_snr(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    rows = labelled(results.rows)
    for ax, (kind, title) in zip(axes, {"gaussian": "Gaussian", "steering": "steering vectors"}.items(), strict=True):
        drawn = rows[rows["kind"] == kind]
        order = [label for label in LABELS.values() if label in set(drawn["method"])]
        look = {"hue": "method", "hue_order": order, "palette": colours(), "estimator": "median", "errorbar": None}
        sns.lineplot(drawn, x="snr", y="nmse", marker="o", ax=ax, **look)
        ax.set(yscale="log", xlabel="SNR [dB]", ylabel="median NMSE", title=title)
        sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.15), ncol=2, title=None, fontsize="x-small")


@figure(
    "Instance by instance",
    caption="log10 NMSE minus SVD-KroSBL's on the same instance, Gaussian family: above zero SVD-KroSBL is better. "
    "Points far below are instances in which the rank-one projection has dropped a part of the support.",
    alt="Dots in columns, one a method, at each SNR; most lie above the line at zero.",
    size=(9.0, 3.8),
)
def differences(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    shown = ("am", "csbl", "omp", "kronecker-omp")
    rows = []
    for problem in GAUSSIAN:
        errors = results.paired(problem, "log_nmse")
        over = errors[[m for m in shown if m in errors]].sub(errors["svd"], axis=0)
        rows.append(over.melt(var_name="method", value_name="difference").assign(problem=problem))
    table = labelled(pd.concat(rows))
    table = table.assign(snr=table["snr"].map("{:g} dB".format))
    order = [LABELS[m] for m in shown]
    look = {"hue": "method", "hue_order": order, "palette": colours(), "dodge": True, "size": 3.5}
    sns.stripplot(table, x="snr", y="difference", ax=ax, **look)
    ax.axhline(0, color="0.4", lw=0.8)
    ax.set(xlabel="SNR", ylabel="log10 NMSE - SVD-KroSBL's")
    sns.move_legend(ax, "center left", bbox_to_anchor=(1.01, 0.5), title=None)


@figure(
    "EM iterations",
    caption="Left: median NMSE over iterations at 15 dB; AM needs many more than SVD, and looks worse than cSBL when "
    "stopped early. Right: the cost of one instance, which AM may never raise and SVD may.",
    alt="Two panels against the iteration on a log scale: median NMSE and the cost, one line a method.",
    panels=2,
    size=(5.0, 3.6),
)
def iterations(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    drawn = results.traces[results.traces["problem"] == "gaussian-15"]
    drawn = labelled(drawn[drawn["method"].isin(["svd", "am", "csbl"])])
    drawn = drawn.assign(nmse=10.0 ** drawn["log_nmse"])
    one = drawn[drawn["seed"] == drawn["seed"].min()]
    look = {"hue": "method", "palette": colours(), "errorbar": None}
    sns.lineplot(drawn, x="iteration", y="nmse", estimator="median", ax=axes[0], **look)
    sns.lineplot(one, x="iteration", y="cost", legend=False, ax=axes[1], **look)
    axes[0].set(xscale="log", yscale="log", ylabel="median NMSE")
    axes[1].set(xscale="log", ylabel="log det + quadratic form")
    axes[0].legend(title=None, fontsize="x-small")
