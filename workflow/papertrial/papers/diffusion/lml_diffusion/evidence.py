"""What the rows of LML say about its three claims."""

from ast import literal_eval

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

LML = "lml"
BASES = {"dpm3": "DPM-Solver-3", "ddim": "DDIM"}


@claim("c1")
def better_at_equal_evaluations(results: Evidence) -> list[Criterion]:
    """The control runs on the DPM-Solver-3 base alone."""
    ran = [base for base in BASES if LML in set(results.of(f"fm16-{base}")["method"])]
    if not ran:
        raise LookupError("no results of lml on fm16")
    criteria = []
    for base in ran:
        fd = results.paired(f"fm16-{base}", "fd", "nfe")
        gain = (fd["base"] - fd[LML]).dropna().groupby(level="seed").mean()
        criteria.append(interval(f"{BASES[base]}, mean over NFE: FD of base - of LML", gain.to_numpy(), ">", 0))
    return criteria


@claim("c2")
def negligible_overhead(results: Evidence) -> list[Criterion]:
    criteria = []
    for base, name in BASES.items():
        rows = results.of(f"time-{base}", LML)
        more = float((rows["evaluations"] - rows["evaluations_base"]).abs().max())
        spent = seconds(results, base)
        criteria += [
            point(f"{name}: evaluations that base and LML differ by", more, "<=", 0),
            point(f"{name}: CPU time of LML / of base", spent, "<=", 1.05, ratio_of_medians),
        ]
    return criteria


def seconds(results: Evidence, base: str) -> np.ndarray:
    """(repetitions, 2) CPU seconds with and without LML."""
    timings = results.timings
    return timings[timings["problem"] == f"time-{base}"][[LML, "base"]].to_numpy()


def ratio_of_medians(spent: np.ndarray) -> float:
    return float(np.median(spent[:, 0]) / np.median(spent[:, 1]))


@claim("c3")
def more_accurate_langevin_steps(results: Evidence) -> list[Criterion]:
    results.of("langevin", LML)
    sw2 = results.paired("langevin", "sw2", "steps")
    closer = [
        interval(f"K = {k:.0f}: SW2 of first order - of LML", of.to_numpy(), ">", 0)
        for k, of in (sw2["first-order"] - sw2[LML]).groupby(level="steps")
    ]
    return [at_least("K for which LML is closer", 2, closer)]


NAMES = {
    "base": "base",
    LML: "LML",
    "rolled": "control: another\nsample's geometry",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "first-order": "first order",
    "unscaled": "LML, not rescaled",
    "newton": "damped Newton",
}
COLOURS = dict(zip(NAMES.values(), ("C1", "C0", "C7", "C2", "C1", "C9", "C4"), strict=True))


@figure(
    "FD at equal evaluations",
    caption="FD (n = 1,000) on fm16, final denoising included; bands: all noise seeds. DPM-Solver++(2M), on its best "
    "grid, is the strongest simple sampler.",
    alt="Two panels, DPM-Solver-3 and DDIM as bases: FD against 8, 10, 12 and 20 evaluations with and without LML.",
    panels=2,
)
def frechet(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, (base, title) in zip(axes, BASES.items(), strict=True):
        table = results.of(f"fm16-{base}")
        table = table.assign(sampler=table["method"].map(NAMES))
        how = {"hue": "sampler", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(table, x="nfe", y="fd", ax=ax, **how)
        ax.set(yscale="log", xlabel="evaluations", ylabel="FD", title=title, xticks=sorted(table["nfe"].unique()))
        ax.get_legend().set_title(None)


@figure(
    "What the correction changes",
    caption="The same samples, noise by noise: FD of the base less FD with the correction (above zero it helps), and "
    "the ODE error with the correction over the base's (below one it helps). Bands: all noise seeds.",
    alt="Two panels against evaluations, lines for LML on DPM-Solver-3, its control, and LML on DDIM: gain in FD with "
    "zero marked, and ratio of ODE errors with one marked.",
    panels=2,
)
def what_changes(results: Evidence, axes: list) -> None:
    import seaborn as sns

    tables = []
    for base, name in BASES.items():
        fd, error = (results.paired(f"fm16-{base}", metric, "nfe") for metric in ("fd", "ode_rms"))
        for method in (m for m in (LML, "rolled") if m in fd):
            both = pd.DataFrame({"gain": fd["base"] - fd[method], "ratio": error[method] / error["base"]}).dropna()
            tables.append(both.reset_index().assign(what=f"{name}, {'LML' if method == LML else 'control'}"))
    table = pd.concat(tables, ignore_index=True)
    palette = {"DPM-Solver-3, LML": "C0", "DPM-Solver-3, control": "C7", "DDIM, LML": "C1"}
    for ax, metric, zero in zip(axes, ("gain", "ratio"), (0, 1), strict=True):
        how = {"hue": "what", "palette": palette, "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(table, x="nfe", y=metric, ax=ax, legend="auto" if ax is axes[0] else False, **how)
        ax.axhline(zero, color="0.4", linestyle=":")
        ax.set(xlabel="evaluations", xticks=sorted(table["nfe"].unique()))
    axes[0].set_ylabel("FD of base - with correction")
    axes[1].set_ylabel("ODE error, with correction / base")
    axes[0].get_legend().set_title(None)


@figure(
    "What tuning saw",
    caption="FD of LML less FD of the base on its best grid, both on the tuning seed at 10 evaluations, for every "
    "setting tried; below zero LML is better. Crosses: correction left out in the first half of the steps.",
    alt="Two panels, DPM-Solver-3 and DDIM as bases: difference in FD against damping on a logarithmic axis, a "
    "colour for each kappa, zero marked.",
    panels=2,
)
def tuning(results: Evidence, axes: list) -> None:
    import seaborn as sns

    traces = results.traces
    for ax, (base, title) in zip(axes, BASES.items(), strict=True):
        tried = traces[(traces["problem"] == f"fm16-{base}") & (traces["method"] == LML)]
        is_grid = ~tried["tried"].str.startswith("(")
        settings = pd.DataFrame(
            tried.loc[~is_grid, "tried"].map(literal_eval).tolist(), columns=["m", "kappa", "freeze"]
        )
        settings["excess"] = tried.loc[~is_grid, "fd"].to_numpy() - tried.loc[is_grid, "fd"].min()
        how = {"hue": "kappa", "style": "freeze", "palette": "viridis", "legend": "full" if ax is axes[1] else False}
        sns.scatterplot(settings, x="m", y="excess", ax=ax, **how)
        ax.axhline(0, color="0.4", linestyle=":")
        ax.set(xscale="log", xlabel="damping, in squared lengths of e", ylabel="FD of LML - of base", title=title)
        ax.set_yscale("symlog", linthresh=0.1)


@figure(
    "Langevin steps at one noise level",
    caption="SW2 to exact draws after K steps, each method at its best step size (and damping) for that K; a dot a "
    "seed. Damped Newton has the true Hessian.",
    alt="SW2 against K = 5, 10, 20 for first-order steps, LML, the control, LML without rescaling and damped Newton.",
)
def langevin(results: Evidence, ax: object) -> None:
    import seaborn as sns

    table = results.of("langevin")
    table = table.assign(direction=table["method"].map(NAMES), steps=table["steps"].astype(int).astype(str))
    how = {"hue": "direction", "palette": COLOURS, "dodge": True, "jitter": False, "size": 4}
    sns.stripplot(table, x="steps", y="sw2", ax=ax, **how)
    ax.set(yscale="log", xlabel="K", ylabel="SW2")
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), title=None)
