"""What the rows of DualFast say about its three claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

DUAL, LEARNED = "dualfast", "learned"
DECOMPOSED = ("ring8", "spiral")
DENSITIES = ("ring8", "grid25", "spiral", "checker")


@claim("c1")
def better_at_no_evaluation(results: Evidence) -> list[Criterion]:
    """The control runs on DDIM, with two of the NFE."""
    ddim, of_ddim = gain(results, "fm16-ddim", "fd"), []
    for nfe, of in ddim.groupby(level="nfe"):
        of_ddim.append(interval(f"DDIM, NFE {nfe:.0f}: FD of base - of DualFast", of.to_numpy(), ">", 0))
    extra = [gain(results, "fm16-ddim", "evaluations")]
    of_2m = []
    if DUAL in set(results.of("fm16-2m")["method"]):
        mean = gain(results, "fm16-2m", "fd").groupby(level="seed").mean()
        of_2m.append(interval("2M, mean over NFE: FD of base - of DualFast", mean.to_numpy(), ">", 0))
        extra.append(gain(results, "fm16-2m", "evaluations"))
    most = float(np.abs(np.concatenate(extra)).max())
    return [*of_ddim, *of_2m, point("evaluations that base and DualFast differ by, at most", most, "<=", 0)]


def gain(results: Evidence, problem: str, metric: str) -> pd.Series:
    """(nfe, seed) base - DualFast, where both ran."""
    results.of(problem, DUAL)
    found = results.paired(problem, metric, "nfe")
    return (found["base"] - found[DUAL]).dropna()


@claim("c2")
def two_parts_of_the_error(results: Evidence) -> list[Criterion]:
    criteria = []
    for part in DECOMPOSED:
        rows = results.of(f"error-{part}", LEARNED).set_index("nfe").sort_index()
        a, b = rows["A"].iloc[0], rows["B"]
        criteria += [
            point(f"{part}: B(5) - 3 B(40)", b[5] - 3 * b[40], ">", 0),
            point(f"{part}: A - B(100)", a - b[100], ">", 0),
            point(f"{part}: B(5) - A/3", b[5] - a / 3, ">=", 0),
        ]
    return criteria


@claim("c3")
def worse_at_less_noise(results: Evidence) -> list[Criterion]:
    rank, ratio = {}, {}
    for part in DENSITIES:
        rows = results.of(f"levels-{part}", LEARNED).sort_values("lam")
        half = len(rows) // 2
        rank[part] = rows["lam"].corr(rows["error"], method="spearman")
        ratio[part] = rows["error"].iloc[half:].mean() / rows["error"].iloc[:half].mean()
    return [
        point("mean Spearman correlation of error and lam", list(rank.values()), ">=", 0.6),
        *[point(f"{part}: error at less noise / at more noise", value, ">=", 5) for part, value in ratio.items()],
    ]


NAMES = {
    "base": "base",
    DUAL: "DualFast",
    "reversed": "sign of c reversed",
    "ab2": "AB2",
    "dpmpp-3m": "DPM-Solver++(3M)",
}
COLOURS = dict(zip(NAMES.values(), ("C1", "C0", "C7", "C4", "C2"), strict=True))
SOLVERS = {"ddim": "DDIM", "2m": "DPM-Solver++(2M)"}


def lines(table: pd.DataFrame, metric: str, ax: object, legend: bool) -> None:
    import seaborn as sns

    table = table.assign(sampler=table["method"].map(NAMES))
    how = {"hue": "sampler", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
    sns.lineplot(table, x="nfe", y=metric, ax=ax, legend="auto" if legend else False, **how)
    ax.set(yscale="log", xlabel="evaluations", xticks=sorted(table["nfe"].unique()))
    if legend:
        ax.get_legend().set_title(None)


@figure(
    "FD with and without the correction",
    caption="FD (n = 1,000) on fm16; bands: all noise seeds. AB2 is the same formula on DDIM, its weights "
    "from the step sizes alone; DPM-Solver++(3M) is the strongest plain solver here.",
    alt="Two panels, DDIM and DPM-Solver++(2M): FD against 5, 6, 8 and 10 evaluations for the base solver, DualFast, "
    "the control and a stronger plain solver.",
    panels=2,
)
def frechet(results: Evidence, axes: list) -> None:
    for ax, (base, title) in zip(axes, SOLVERS.items(), strict=True):
        lines(results.of(f"fm16-{base}"), "fd", ax, True)
        ax.set(ylabel="FD", title=title)


@figure(
    "ODE error with and without the correction",
    caption="How far the same samples are from the network's own flow. Where FD falls and this rises, samples gain by "
    "leaving the flow, not by following it better.",
    alt="Two panels, DDIM and DPM-Solver++(2M): rms ODE error against evaluations.",
    panels=2,
)
def distance_to_the_flow(results: Evidence, axes: list) -> None:
    for ax, (base, title) in zip(axes, SOLVERS.items(), strict=True):
        lines(results.of(f"fm16-{base}"), "ode_rms", ax, ax is axes[1])
        ax.set(ylabel="rms ODE error", title=title)


@figure(
    "Does it correct the network?",
    caption="Gain of DualFast in SW2 on spiral, with the exact score, where there is nothing to correct but "
    "discretization, and with a trained network. Dots: noise seeds; (c, tau) is chosen for each.",
    alt="Two panels, DDIM and DPM-Solver++(2M): SW2 of the base minus SW2 of DualFast against evaluations, for the "
    "exact score and the network, zero marked.",
    panels=2,
)
def exact_and_learned(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, (base, title) in zip(axes, SOLVERS.items(), strict=True):
        tables = [
            gain(results, f"{net}-{base}", "sw2").rename("gain").reset_index().assign(score=name)
            for net, name in (("exact", "exact score"), ("net", "network"))
        ]
        how = {"hue": "score", "palette": ["0.5", "C0"], "marker": "o", "errorbar": None}
        table = pd.concat(tables, ignore_index=True)
        sns.lineplot(table, x="nfe", y="gain", ax=ax, legend="auto" if ax is axes[1] else False, **how)
        sns.scatterplot(table, x="nfe", y="gain", hue="score", palette=["0.5", "C0"], ax=ax, legend=False, s=12)
        ax.axhline(0, color="0.4", linestyle=":")
        ax.set(xlabel="evaluations", ylabel="SW2 of base - of DualFast", title=title)


@figure(
    "What the network gets wrong",
    caption="Left: discretization error B(N) of DDIM falls with the number of steps, approximation error A (dashed) "
    "does not. Right: error of the noise prediction by level, from much noise to little; dotted: an untrained network.",
    alt="Left: log-log, two falling lines and two horizontal ones. Right: mean squared error against lam for four "
    "densities, rising, and dotted lines of untrained networks that fall.",
    panels=2,
)
def parts_of_the_error(results: Evidence, axes: list) -> None:
    import seaborn as sns

    colours = dict(zip(DENSITIES, ("C0", "C2", "C1", "C3"), strict=True))
    for part in DECOMPOSED:
        rows = results.of(f"error-{part}", LEARNED)
        sns.lineplot(rows, x="nfe", y="B", ax=axes[0], marker="o", color=colours[part], label=f"B, {part}")
        axes[0].axhline(rows["A"].iloc[0], color=colours[part], linestyle="--", label=f"A, {part}")
    axes[0].set(xscale="log", yscale="log", xlabel="steps", ylabel="rms distance")
    axes[0].legend()
    for part in DENSITIES:
        for method, line in ((LEARNED, "-"), ("untrained", ":")):
            rows, label = results.of(f"levels-{part}", method), part if method == LEARNED else None
            how = {"color": colours[part], "linestyle": line, "label": label}
            sns.lineplot(rows, x="lam", y="error", ax=axes[1], **how)
    axes[1].set(yscale="log", xlabel="lam", ylabel="E |eps_net - eps|^2")
    axes[1].legend()
