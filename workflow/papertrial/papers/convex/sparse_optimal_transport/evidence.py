"""What counts as evidence for the claims on sparsity-constrained optimal transport."""

from typing import Any

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

GAMMA = 10.0
CLOUDS = {"clouds-2": "d = 2", "clouds-16": "d = 16"}
LABELS = {
    "sparse": "k-sparse",
    "truncated": "quadratic, truncated",
    "sinkhorn_truncated": "Sinkhorn, truncated",
    "greedy": "expert choice",
}


def by_k(results: Evidence, problem: str, method: str, metric: str, gamma: float = GAMMA) -> pd.DataFrame:
    """The metric: one row an instance, one column a k."""
    rows = results.of(problem, method)
    return rows[rows["gamma"] == gamma].pivot(index="seed", columns="k", values=metric)


def present(results: Evidence, method: str) -> list[str]:
    """The clouds that the method ran on."""
    ran = set(results.rows.loc[results.rows["method"] == method, "problem"])
    found = [problem for problem in CLOUDS if problem in ran]
    if not found:
        raise LookupError(f"no results of {method} on any clouds")
    return found


def spearman(instance: np.ndarray) -> float:
    """Rank correlation of k (ascending) and the evaluations (k,), with average ranks; 0 if they are constant."""
    if np.ptp(instance) == 0:
        return 0.0
    ranks = pd.Series(instance).rank()
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


@claim("c1")
def larger_k_is_solved_faster(results: Evidence) -> list[Criterion]:
    evaluations = [by_k(results, problem, "sparse", "evaluations") for problem in present(results, "sparse")]
    correlations = np.concatenate([[spearman(row) for row in table.to_numpy()] for table in evaluations])
    ratios = np.concatenate([(table[2] / table[table.columns.max()]).to_numpy() for table in evaluations])
    return [
        point("mean rank correlation of k and evaluations", correlations, "<=", -0.7),
        point("median of evaluations with k = 2 / with k = m", ratios, ">=", 1.5, np.median),
    ]


@claim("c2")
def sparse_plans_nearly_meet_the_rows(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in present(results, "sparse"):
        r, baseline_r = (by_k(results, problem, m, "r") for m in ("sparse", "truncated"))
        cost, baseline_cost = (by_k(results, problem, m, "cost") for m in ("sparse", "truncated"))
        for k in baseline_r.columns.intersection(r.columns):
            where = f"{CLOUDS[problem]}, k = {k:g}"
            criteria += [
                interval(f"{where}: mean of r - half the truncated plan's", r[k] - 0.5 * baseline_r[k], "<=", 0),
                point(f"{where}: mean of cost / the truncated plan's", cost[k] / baseline_cost[k], "<=", 1.05),
            ]
    return criteria


@claim("c3")
def between_linear_and_quadratic(results: Evidence) -> list[Criterion]:
    whole, single, nonzeros = [], [], []
    for problem in present(results, "sparse"):
        value, quadratic = (by_k(results, problem, m, "value") for m in ("sparse", "quadratic"))
        m = quadratic.columns.max()
        whole.append((value[m] - quadratic[m]).abs() / quadratic[m].abs())
        linear = by_k(results, problem, "linear", "value")[1]
        value = by_k(results, problem, "sparse", "value", 0.001)[1]
        constant = 0.001 / 2 / m  # (gamma/2) ||b||^2 of uniform b
        single.append((value - linear - constant).abs() / linear.abs())
        nonzeros.append(by_k(results, problem, "quadratic", "nonzeros_max")[m] > 2)
    whole, single, nonzeros = (np.concatenate(parts) for parts in (whole, single, nonzeros))
    return [
        point("(a) k = m: largest relative distance to quadratic transport", whole, "<=", 1e-5, np.max),
        point("(b) k = 1: largest relative distance to the linear program", single, "<=", 1e-2, np.max),
        point("(c) share of quadratic plans with more than 2 nonzeros in a column", nonzeros, ">=", 0.9),
    ]


@claim("c4")
def routes_as_well_as_sinkhorn(results: Evidence) -> list[Criterion]:
    affinity = 1 - results.paired("router", "cost")
    left_out = results.paired("router", "unrouted")
    relative = (affinity["sparse"] - affinity["sinkhorn_truncated"]) / affinity["sinkhorn_truncated"]
    to_sinkhorn, to_greedy = (left_out["sparse"] - left_out[m] for m in ("sinkhorn_truncated", "greedy"))
    return [
        interval("mean relative difference of affinity to Sinkhorn's", relative, ">", -0.01),
        interval("mean difference of unrouted tokens to Sinkhorn's", to_sinkhorn, "<=", 0.01),
        interval("mean difference of unrouted tokens to expert choice", to_greedy, "<", 0),
    ]


@figure(
    "The dial k and the effort",
    caption="Left and middle: evaluations until the semi-dual is within 1e-4 of its optimum, a line an instance; "
    "falling lines carry the claim. Right: how one instance gets there; with small k the kinks stop L-BFGS.",
    alt="Two panels of evaluations falling with k on log axes, and one of relative suboptimality against evaluations "
    "with a line for each k, the large k dropping soonest.",
    panels=3,
    size=(4.0, 3.4),
)
def effort(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, CLOUDS.items(), strict=False):
        rows = results.of(problem)
        rows = rows[rows["method"].isin(["sparse", "k_ignored"]) & (rows["gamma"] == GAMMA)]
        rows = rows.assign(method=rows["method"].map({"sparse": "k-sparse", "k_ignored": "k ignored (control)"}))
        look = {"hue": "method", "units": "seed", "estimator": None, "alpha": 0.5, "marker": "o", "markersize": 4}
        sns.lineplot(rows, x="k", y="evaluations", legend=ax is axes[0], ax=ax, **look)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", title=title)
    sns.move_legend(axes[0], "best", title=None)
    traces = results.traces[(results.traces["problem"] == "clouds-2") & (results.traces["method"] == "sparse")]
    traces = traces[(traces["seed"] == traces["seed"].min()) & (traces["gamma"] == GAMMA)]
    traces = traces.assign(gap=traces["gap"].clip(lower=1e-9), k=traces["k"].astype(int).astype(str))
    sns.lineplot(traces, x="evaluation", y="gap", hue="k", palette="flare", ax=axes[2])
    axes[2].axhline(1e-4, color="grey", linewidth=0.8, linestyle="--")
    axes[2].set(xscale="log", yscale="log", title="d = 2, one instance", ylabel="relative suboptimality")


@figure(
    "What sparsity costs",
    caption="Error of the row marginal and transport cost of plans with k nonzeros a column; cost over that of the "
    "linear program. Plans that break the row marginal can be cheaper than it.",
    alt="Four panels, error of rows and relative cost for d = 2 and d = 16 against k, one line a method.",
    panels=4,
    size=(3.4, 3.2),
)
def sparsity(results: Evidence, axes: list[Any]) -> None:
    import seaborn as sns

    for i, (problem, title) in enumerate(CLOUDS.items()):
        rows = results.of(problem)
        best = rows[rows["method"] == "linear"].set_index("seed")["value"]
        shown = ["sparse", "truncated", "sinkhorn_truncated"]
        rows = rows[rows["method"].isin(shown) & (rows["gamma"] == GAMMA) & rows["k"].isin([2, 4, 8])]
        rows = rows.assign(method=rows["method"].map(LABELS), cost=rows["cost"] / rows["seed"].map(best))
        look = {"hue": "method", "hue_order": [LABELS[m] for m in shown], "errorbar": ("ci", 95), "marker": "o"}
        for ax, y in ((axes[i], "r"), (axes[2 + i], "cost")):
            sns.lineplot(rows, x="k", y=y, legend=ax is axes[3], ax=ax, **look)
            ax.set_xscale("log", base=2)
            ax.set(title=title, xticks=[2, 4, 8], xticklabels=[2, 4, 8])
        axes[i].set(yscale="log", ylabel="" if i else "error of the rows, r")
        axes[2 + i].set(ylabel="" if i else "cost / linear program's")
    sns.move_legend(axes[3], "upper left", bbox_to_anchor=(1, 1), title=None)


@figure(
    "Colours of one photograph in those of another",
    caption="Each column is a colour of the astronaut's palette, from dark to bright, and what the plan turns it into "
    "(the mean of the coffee's colours it is matched with; a gap if there is none). More nonzeros mean more mixing, so "
    "duller colours.",
    alt="Strips of colours: the source's palette, its recolourings with k = 1, 2, 4, 8 and quadratic transport, and "
    "the target's palette.",
    size=(8.0, 3.2),
)
def palettes(results: Evidence, ax: Any) -> None:
    sparse, quadratic = (results.state["palettes", method] for method in ("sparse", "quadratic"))
    seed = min(name.partition("/")[0] for name in sparse)
    source, target = sparse[f"{seed}/source"], sparse[f"{seed}/target"]
    strips = {"source": source}
    strips |= {f"k = {k}": sparse[f"{seed}/k={k}"] for k in (1, 2, 4, 8) if f"{seed}/k={k}" in sparse}
    strips["quadratic"] = next(v for name, v in quadratic.items() if name.startswith(f"{seed}/k="))
    order = np.argsort(source.sum(axis=1))
    strips = {name: colours[order] for name, colours in strips.items()}
    strips["target"] = target[np.argsort(target.sum(axis=1))]
    for i, colours in enumerate(strips.values()):
        shown = np.where(colours < 0, 1.0, colours)[None]
        ax.imshow(shown, extent=(0, 1, -i - 0.9, -i), aspect="auto", interpolation="nearest")
    ax.set(xlim=(0, 1), ylim=(-len(strips), 0.1), xticks=[], yticks=[-i - 0.45 for i in range(len(strips))])
    ax.set_yticklabels(strips)
    ax.tick_params(length=0)
    ax.grid(False)
    for side in ax.spines.values():
        side.set_visible(False)


@figure(
    "Routing",
    caption="A dot is a batch: affinity that is kept against the share of tokens no expert takes; up and left is "
    "better.",
    alt="Scatter of affinity against unrouted share for three routers: k-sparse and Sinkhorn near zero, expert choice "
    "further right.",
)
def routing(results: Evidence, ax: Any) -> None:
    import seaborn as sns

    rows = results.of("router")
    rows = rows[rows["method"].isin(LABELS)]
    rows = rows.assign(affinity=1 - rows["cost"], method=rows["method"].map(LABELS))
    look = {"hue": "method", "style": "method", "s": 50, "alpha": 0.7}
    sns.scatterplot(rows, x="unrouted", y="affinity", ax=ax, **look)
    ax.set(xlabel="share of tokens without an expert")
    sns.move_legend(ax, "best", title=None)
