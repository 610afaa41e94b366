"""What the rows of DPM-Solver say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

DPM, NEVER = "dpm-solver", 120


@claim("c1")
def far_better_than_ddim(results: Evidence) -> list[Criterion]:
    fd = results.paired("fm16", "fd", "nfe")
    asked = sorted(results.of("fm16", DPM)["nfe"].unique())
    gain = {nfe: (fd.loc[nfe, "ddim"] - fd.loc[nfe, DPM]).to_numpy() for nfe in asked}
    most = asked[-1]  # 20, but for smoke
    reference = results.of("fm16", "reference").set_index("seed")["fd"]
    excess = (fd.loc[most, DPM] - reference).to_numpy()
    return [
        *[interval(f"FD of DDIM - FD of DPM-Solver, NFE {nfe}", gain[nfe], ">", 0) for nfe in asked],
        point(f"mean FD at NFE {most} - mean FD of the reference", excess, "<=", 0.5),
    ]


@claim("c2")
def order_k(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in ("ring8", "spiral"):
        for k, rows in results.of(problem, DPM).groupby("order"):
            error = rows["ode_median"].groupby(rows["nfe"] // k).median()  # by steps N
            for steps in [n for n in error.index if 2 * n in error.index]:
                slope = float(np.log2(error[steps] / error[2 * steps]))
                name = f"{problem}, k = {k}, N = {steps} to {2 * steps}: slope"
                criteria += [point(name, slope, ">=", k - 0.2), point(name, slope, "<=", k + 0.4)]
    return criteria


@claim("c3")
def times_faster(results: Evidence) -> list[Criterion]:
    needed = nfe_needed(results, "within")
    ratio = (needed["ddim"] / needed[DPM]).to_numpy()
    return [point("median of NFE needed by DDIM / by DPM-Solver", ratio, ">=", 4, np.median)]


def nfe_needed(results: Evidence, within: str) -> pd.DataFrame:
    """Seed by method: the smallest NFE from which on a bound holds, 120 where it never does."""
    rows = results.of("fm16-budget")
    nfe = rows["nfe"].where(rows[within] == 1, NEVER)
    return rows.assign(nfe=nfe).pivot_table(index="seed", columns="method", values="nfe", aggfunc="min")


@claim("c4")
def beats_runge_kutta(results: Evidence) -> list[Criterion]:
    error = results.paired("fm16-error", "ode_rms", "order", "nfe")
    gain = np.log(error["rk"]) - np.log(error[DPM])
    cells = [
        interval(f"log error of RK-{k} - log error of DPM-Solver-{k}, NFE {nfe}", of_cell.to_numpy(), ">", 0)
        for (k, nfe), of_cell in gain.groupby(level=["order", "nfe"])
    ]
    needed = round(len(cells) * 5 / 6)  # 5 of the 6, but for smoke
    return [at_least("cells (k, NFE) where DPM-Solver has the smaller error", needed, cells)]


NAMES = {
    DPM: "DPM-Solver",
    "ddim": "DDIM, best grid",
    "zeroed": "differences zeroed",
    "ancestral": "ancestral DDPM",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "rk": "best Runge-Kutta",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C7", "C5", "C2", "C3"), strict=True))


@figure(
    "Order of convergence",
    caption="Median ODE error against steps, exact scores. Each order's slope shows from about 30 evaluations on; with "
    "a dozen, order 1 (DDIM) is the best on these sharp densities. Dashed: the control, order 1 whatever k.",
    alt="Two log-log panels, ring8 and spiral: three falling lines of slope 1, 2 and 3 that cross at about 20 "
    "evaluations, and the control's lines of slope 1.",
    panels=2,
)
def order_of_convergence(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, ("ring8", "spiral"), strict=True):
        table = results.of(problem)
        if "problem" in results.traces:
            table = pd.concat([table, results.traces[results.traces["problem"] == problem]])
        table = table[["method", "order", "nfe", "ode_median"]].reset_index(drop=True)
        table = table.assign(order=table["order"].astype(int), solver=table["method"].map(NAMES))
        how = {"hue": "order", "style": "solver", "palette": "colorblind", "marker": "o"}
        sns.lineplot(table, x="nfe", y="ode_median", ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="median ODE error", title=problem)


@figure(
    "Quality at few evaluations",
    caption="FD (n = 1,000) and ODE error on fm16, the final denoising counted. Solid line: the reference with 61 "
    "evaluations; dotted: as many real pictures. FD need not fall with NFE, so the ODE error stands beside it.",
    alt="Left: FD against evaluations for DPM-Solver, DDIM, the control and printed baselines, with two horizontal "
    "lines. Right: their ODE errors.",
    panels=2,
)
def quality_at_few_evaluations(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.of("fm16")
    sampled = table[table["method"].isin(list(NAMES))]
    sampled = sampled.assign(sampler=sampled["method"].map(NAMES))
    for ax, metric, label in zip(axes, ("fd", "ode_rms"), ("FD", "rms ODE error"), strict=True):
        how = {"hue": "sampler", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(sampled, x="nfe", y=metric, ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(yscale="log", xlabel="evaluations", ylabel=label)
    for method, style in (("reference", "-"), ("real", ":")):
        axes[0].axhline(table.loc[table["method"] == method, "fd"].mean(), color="0.4", linestyle=style)


@figure(
    "Evaluations needed",
    caption="FD (n = 500) above the reference's, and ODE error, scanned downwards until both bounds (dashed) have "
    "failed; one line a noise seed. The claim is about the first panel; the second is printed.",
    alt="Two panels against evaluations: FD minus the reference's FD, and rms ODE error, for DPM-Solver and DDIM.",
    panels=2,
)
def evaluations_needed(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.traces[results.traces["problem"] == "fm16-budget"]
    table = table.assign(excess=table["fd"] - table["bound"] + 0.5, sampler=table["method"].map(NAMES))
    for ax, metric, bound in zip(axes, ("excess", "ode_rms"), (0.5, 0.01), strict=True):
        how = {"hue": "sampler", "palette": COLOURS, "marker": "o", "units": "seed", "estimator": None}
        sns.lineplot(table, x="nfe", y=metric, ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.axhline(bound, color="0.4", linestyle="--")
        ax.set(xscale="log", xlabel="evaluations")
    ratio = [nfe_needed(results, w) for w in ("within", "within_ode")]
    fd, ode = (float(np.median(r["ddim"] / r[DPM])) for r in ratio)
    axes[0].set(ylabel="FD - reference FD", title=f"median ratio {fd:.2g}")
    axes[1].set(ylabel="rms ODE error", yscale="log", title=f"median ratio {ode:.2g}")


@figure(
    "Against black-box Runge-Kutta",
    caption="ODE error at s = .02 on fm16 with nfe/k equal steps. Runge-Kutta in t or in lam, whichever is better for "
    "the cell on a tuning seed. Dotted: how far the reference solution moves from 50 to 100 steps.",
    alt="Two log panels, order 2 and order 3: rms ODE error against 12, 18 and 24 evaluations for DPM-Solver and the "
    "better Runge-Kutta variant.",
    panels=2,
)
def against_runge_kutta(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.of("fm16-error")
    table = table.assign(sampler=table["method"].map(NAMES))
    for ax, k in zip(axes, (2, 3), strict=True):
        of_order = table[table["order"] == k]
        how = {"hue": "sampler", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(of_order, x="nfe", y="ode_rms", ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.axhline(of_order["reference_gap"].mean(), color="0.4", linestyle=":")
        ax.set(yscale="log", xlabel="evaluations", ylabel="rms ODE error", title=f"order {k}")
