"""What the rows of USF say about its four claims."""

import numpy as np

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

USF, DENSITIES = "usf", ("ring8", "spiral")


@claim("c1")
def beats_fixed_solvers(results: Evidence) -> list[Criterion]:
    fd = results.paired("fm8", "fd", "nfe", "noise")
    asked = sorted(results.of("fm8", USF)["nfe"].unique())
    gain = {nfe: (fd.loc[nfe, "fixed"] - fd.loc[nfe, USF]).to_numpy() for nfe in asked}
    return [
        interval(f"FD of the best fixed solver - FD of the searched one, NFE {nfe}", gain[nfe], ">", 0) for nfe in asked
    ]


@claim("c2")
def freedom_lowers_truncation_error(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem in DENSITIES:
        error = results.paired(problem, "ode_median", "nfe")
        ratio = error[USF] / error["constant"]
        criteria += [
            point(f"{problem}, NFE {nfe}: error of free / of the best constant strategy", r.to_numpy(), "<=", 0.8)
            for nfe, r in ratio.groupby("nfe")
        ]
    return criteria


@claim("c3")
def predictor_saves_evaluations(results: Evidence) -> list[Criterion]:
    fd = results.paired("fm8-search", "fd", "evaluated")
    most = fd.index.get_level_values("evaluated").max()  # 120, but for smoke
    gain = (fd.loc[most, "random"] - fd.loc[most, USF]).to_numpy()
    return [interval(f"best search FD of random search - of S^3, {most} schedules evaluated", gain, ">", 0)]


@claim("c4")
def half_the_evaluations(results: Evidence) -> list[Criterion]:
    rows = results.of("fm8-speed", USF)
    ratio = (rows["needed"] / rows["nfe"]).groupby(rows["seed"]).mean().to_numpy()
    return [point("NFE that the best fixed solver needs / NFE of the searched schedule", ratio, ">=", 1.5)]


NAMES = {
    USF: "searched (USF)",
    "fixed": "best fixed solver",
    "levels-only": "levels searched, 2M",
    "permuted": "fitness permuted",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C2", "C7"), strict=True))
SEARCHES = {USF: "S^3", "random": "random search", "misled": "predictor taught permuted fitness"}


@figure(
    "Quality at very few evaluations",
    caption="FD of 2,000 samples from fresh noise against test pictures that the search did not see, and ODE error, "
    "which the search did not look at. Dots: every search seed and noise seed. Dotted: as many real pictures.",
    alt="Two panels against 5, 7 and 10 evaluations: FD and rms ODE error of searched schedules, the best fixed "
    "solvers and, at 5, the level-only search and the control.",
    panels=2,
)
def quality(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("fm8")
    table = rows[rows["method"].isin(list(NAMES))]
    table = table.assign(method=table["method"].map(NAMES), nfe=table["nfe"].astype(int))
    for ax, metric, label in zip(axes, ("fd", "ode_rms"), ("FD", "rms ODE error"), strict=True):
        how = {"hue": "method", "palette": COLOURS, "legend": "auto" if ax is axes[1] else False}
        sns.stripplot(table, x="nfe", y=metric, dodge=True, alpha=0.6, size=4, ax=ax, **how)
        ax.set(yscale="log", xlabel="evaluations", ylabel=label)
    axes[1].legend(title=None, fontsize="small")
    axes[0].axhline(rows.loc[rows["method"] == "real", "fd"].mean(), color="0.4", linestyle=":")


@figure(
    "Samples with five evaluations",
    caption="From the same noise and labels: the best fixed solver, the searched schedule, and the control's schedule.",
    alt="Three rows of ten 8 x 8 pictures of clothing.",
    size=(6.0, 2.0),
)
def samples(results: Evidence, ax: object) -> None:
    rows = {}
    for method in ("fixed", USF, "permuted"):
        kept = results.state.get(("fm8", method), {})
        first = next((kept[k] for k in sorted(kept) if k.startswith("samples-5-")), None)
        if first is not None:
            rows[NAMES[method]] = np.concatenate(list(first), axis=1)
    if not rows:
        raise LookupError("no samples are kept")
    height = len(next(iter(rows.values())))
    ax.imshow(np.concatenate(list(rows.values())), cmap="gray_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=height * (np.arange(len(rows)) + 0.5) - 0.5, yticklabels=list(rows))


@figure(
    "What the search finds",
    caption="The levels s at which steps start: the first seed's best fixed solver, and what every seed found. Large "
    "marks have order 2 or 3. Every step may differ from the one before.",
    alt="Three panels, one for each number of evaluations: dots on a logarithmic axis of noise levels, coloured by "
    "whether noise or data is expanded, shaped by where derivatives come from.",
    panels=3,
    size=(4.4, 3.0),
)
def schedules(results: Evidence, axes: list) -> None:
    import seaborn as sns

    traces = results.traces
    table = traces[(traces["problem"] == "fm8") & traces["method"].isin([USF, "fixed"])]
    table = table[(table["method"] == USF) | (table["seed"] == table["seed"].min())]
    who = np.where(table["method"] == USF, "seed " + table["seed"].astype(str), "fixed")
    source = np.select([table["order"] == 1, table["inner"] == 1], ["order 1", "inside"], "past")
    table = table.assign(schedule=who, derivatives=source)
    asked = sorted(table["nfe"].unique())
    for ax, nfe in zip(axes, asked, strict=False):
        how = {"hue": "output", "style": "derivatives", "size": "order", "sizes": {1: 40, 2: 80, 3: 140}}
        how |= {"hue_order": ["data", "noise"], "style_order": ["order 1", "past", "inside"]}
        here = table[table["nfe"] == nfe].sort_values(["method", "seed"])
        sns.scatterplot(here, x="level", y="schedule", ax=ax, legend="auto" if nfe == asked[-1] else False, **how)
        ax.set(xscale="log", xlabel="level s", ylabel="", title=f"{int(nfe)} evaluations")
        ax.invert_xaxis()
        ax.margins(y=0.2)
    if axes[len(asked) - 1].get_legend():
        sns.move_legend(axes[len(asked) - 1], "upper left", bbox_to_anchor=(1, 1), fontsize="small")
    for ax in axes[len(asked) :]:
        ax.set_visible(False)


@figure(
    "What the predictor saves",
    caption="How far the best search FD at five evaluations falls below the best of the common pool, against how "
    "many schedules were truly evaluated. Thin: search seeds; thick: their mean.",
    alt="Three curves of the change in search FD: S^3, random search, and S^3 with a predictor that learned nothing.",
)
def search_cost(results: Evidence, ax: object) -> None:
    import seaborn as sns

    table = results.traces[results.traces["problem"] == "fm8-search"].sort_values("evaluated")
    gain = table["fd"] - table.groupby(["method", "seed"])["fd"].transform("first")
    table = table.assign(search=table["method"].map(SEARCHES), gain=gain)
    common = {"x": "evaluated", "y": "gain", "hue": "search", "hue_order": list(SEARCHES.values()), "ax": ax}
    sns.lineplot(table, units="seed", estimator=None, alpha=0.3, legend=False, **common)
    sns.lineplot(table, errorbar=None, linewidth=2.5, **common)
    ax.legend(title=None)
    ax.set(xlabel="schedules evaluated", ylabel="search FD - that of the pool")


@figure(
    "Freedom against constancy, and evaluations saved",
    caption="Left: median ODE error, exact scores, of the best of 200 per-step schedules over the best constant "
    "strategy on the same levels; the claim needs 0.8 (dashed). Right: ODE error on fm8 of the best fixed solver at "
    "each NFE, and of the schedules searched for that error.",
    alt="Left: dots of error ratios for two densities and two numbers of evaluations. Right: error of fixed solvers "
    "falling with NFE, and of searched schedules at 5 and 7.",
    panels=2,
)
def errors(results: Evidence, axes: list) -> None:
    import pandas as pd
    import seaborn as sns

    found = []
    for problem in DENSITIES:
        error = results.paired(problem, "ode_median", "nfe")
        found.append((error[USF] / error["constant"]).rename("ratio").reset_index().assign(density=problem))
    table = pd.concat(found)
    sns.stripplot(table.assign(nfe=table["nfe"].astype(int)), x="nfe", y="ratio", hue="density", dodge=True, ax=axes[0])
    axes[0].axhline(0.8, color="0.4", linestyle="--")
    axes[0].set(xlabel="evaluations", ylabel="error, free / constant", ylim=(0, None))
    traces = results.traces[results.traces["problem"] == "fm8-speed"]
    kind = np.where(traces["solver"] == "searched", NAMES[USF], NAMES["fixed"])
    table = traces.assign(kind=kind, nfe=traces["nfe"].astype(int))
    common = {"x": "nfe", "y": "ode_rms", "hue": "kind", "palette": COLOURS, "ax": axes[1]}
    sns.lineplot(table[table["kind"] == NAMES["fixed"]], units="seed", estimator=None, **common)
    sns.scatterplot(table[table["kind"] == NAMES[USF]], zorder=3, **common)
    axes[1].legend(title=None)
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    axes[1].set(yscale="log", xlabel="evaluations", ylabel="rms ODE error")
