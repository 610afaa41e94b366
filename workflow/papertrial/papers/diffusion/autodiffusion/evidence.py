"""What the rows of AutoDiffusion say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

SEARCHED, FEWEST = "autodiffusion", 4


def fd(results: Evidence, problem: str, asked: tuple[int, ...], *methods: str) -> dict[int, pd.DataFrame]:
    """{K: one column a method, one row a (search, noise) seed pair}, for those of the asked K that all have."""
    table = results.paired(problem, "fd", "nfe", "noise")[list(methods)].dropna()
    found = {k: table.loc[k] for k in asked if k in table.index.get_level_values("nfe")}
    if not found:
        raise LookupError(f"{' and '.join(methods)} have no K of {asked} in common on {problem}")
    return found


@claim("c1")
def beats_uniform(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, asked in (("fm8", (4, 6, 10)), ("fm16", (4,))):
        by_k = fd(results, problem, asked, "uniform", SEARCHED)
        criteria += [
            interval(f"{problem}, K = {k}: FD uniform - FD searched", (t["uniform"] - t[SEARCHED]).to_numpy(), ">", 0)
            for k, t in by_k.items()
        ]
        ratio = (by_k[FEWEST][SEARCHED] / by_k[FEWEST]["uniform"]).to_numpy()
        criteria.append(point(f"{problem}, K = {FEWEST}: mean of FD searched / FD uniform", ratio, "<=", 0.7))
    return criteria


@claim("c2")
def beats_hand_made_spacings(results: Evidence) -> list[Criterion]:
    return [
        interval(f"{problem}, K = {k}: FD hand-made - FD searched", (t["handmade"] - t[SEARCHED]).to_numpy(), ">", 0)
        for problem, asked in (("fm8", (4, 6)), ("fm16", (4,)))
        for k, t in fd(results, problem, asked, "handmade", SEARCHED).items()
    ]


@claim("c3")
def joint_beats_steps_alone(results: Evidence) -> list[Criterion]:
    name = "budget {}: FD steps - FD joint"
    gain = {k: (t[SEARCHED] - t["joint"]).to_numpy() for k, t in fd(results, "fm16", (4, 6), SEARCHED, "joint").items()}
    better = [interval(name.format(k), g, ">", 0) for k, g in gain.items()]
    return [
        at_least("budgets at which the joint search is better", 1, better),
        *[interval(name.format(k), g, ">", -0.3) for k, g in gain.items()],
    ]


@claim("c4")
def orthogonal_and_transferable(results: Evidence) -> list[Criterion]:
    two_m = fd(results, "fm8-2m", (FEWEST,), "handmade", SEARCHED)[FEWEST]
    standard = (two_m["handmade"] - two_m[SEARCHED]).to_numpy()
    criteria = [interval(f"2M, K = {FEWEST}: FD of the best standard grid - FD searched", standard, ">", 0)]
    for k, gain in gains(results).groupby("nfe"):
        kept = (gain["transfer"] - 0.6 * gain["source"]).to_numpy()
        criteria += [
            point(f"K = {k}: mean gain on the other network", gain["transfer"].to_numpy(), ">", 0),
            point(f"K = {k}: mean gain on the other network - 60% of that on the source", kept, ">=", 0),
        ]
    return criteria


def gains(results: Evidence, asked: tuple[int, ...] = (4, 6)) -> pd.DataFrame:
    """1 - FD searched / FD uniform of every seed pair, on the network of the search and on the other one."""
    found = {}
    for name, metric in (("source", "fd"), ("transfer", "fd_transfer")):
        table = results.paired("fm8", metric, "nfe", "noise")
        found[name] = 1 - table[SEARCHED] / table["uniform"]
    table = pd.DataFrame(found).dropna()
    return table[table.index.get_level_values("nfe").isin(asked)]


NAMES = {
    "uniform": "uniform",
    "handmade": "best hand-made",
    "random": "random search",
    SEARCHED: "searched steps",
    "joint": "searched steps and blocks",
    "uninformed": "fitness at random",
}
COLOURS = dict(zip(NAMES.values(), ("C1", "C2", "C4", "C0", "C3", "C7"), strict=True))


@figure(
    "Quality by spacing of the time steps",
    caption="FD on fresh noise against test pictures; dots: every search and noise seed. On fm16 the budget is in "
    "multiply-adds of whole evaluations. Dotted: as many real pictures.",
    alt="Three panels of dots of FD against the number of evaluations, coloured by how the time steps were chosen: "
    "DDIM on fm8, DDIM on fm16, DPM-Solver++(2M) on fm8.",
    panels=3,
    size=(4.4, 3.4),
)
def quality(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, (problem, title) in zip(axes, (("fm8", "fm8"), ("fm16", "fm16"), ("fm8-2m", "fm8, 2M")), strict=True):
        rows = results.of(problem)
        table = rows[rows["method"].isin(list(NAMES))]
        table = table.assign(method=table["method"].map(NAMES), nfe=table["nfe"].astype(int))
        how = {"hue": "method", "palette": COLOURS, "hue_order": [n for n in COLOURS if n in set(table["method"])]}
        sns.stripplot(table, x="nfe", y="fd", dodge=True, alpha=0.6, size=4, ax=ax, **how)
        ax.set(yscale="log", xlabel="evaluations", ylabel="FD", title=title)
        ax.legend(title=None, fontsize="x-small")
        real = rows.loc[rows["method"] == "real", "fd"]
        if len(real):
            ax.axhline(real.mean(), color="0.4", linestyle=":")


@figure(
    "Where the evaluations go",
    caption="The levels s of the lists found by every search seed, and the uniform and best hand-made ones, for four "
    "evaluations (fm16's joint search: more steps at the same multiply-adds; small dots skip more blocks).",
    alt="Rows of dots on a logarithmic axis of noise levels, for fm8 and fm16.",
    panels=2,
    size=(5.6, 3.4),
)
def lists(results: Evidence, axes: list) -> None:
    import seaborn as sns

    steps = results.traces[(results.traces["kind"] == "step") & (results.traces["nfe"] == FEWEST)]
    steps = steps[steps["method"].isin(["uniform", "handmade", SEARCHED, "joint"])]
    for ax, problem in zip(axes, ("fm8", "fm16"), strict=True):
        table = steps[steps["problem"] == problem].assign(spacing=lambda t: t["method"].map(NAMES))
        label = table["spacing"] + ", seed " + table["seed"].astype(int).astype(str)
        table = table.assign(label=label, kept=4 - table["skipped"])
        table = table[(table["method"] != "uniform") | (table["seed"] == table["seed"].min())]
        how = {"hue": "spacing", "palette": COLOURS, "size": "kept", "size_norm": (0, 4), "sizes": (10, 80)}
        sns.scatterplot(table, x="level", y="label", ax=ax, legend=False, **how)
        ax.set(xscale="log", xlabel="level s", ylabel="", title=problem)
        ax.invert_xaxis()
        ax.margins(y=0.1)


@figure(
    "Samples with four evaluations",
    caption="fm16, from the same noise and labels: uniform steps, searched steps, searched steps and blocks.",
    alt="Three rows of ten 16 x 16 pictures of clothing.",
    size=(6.0, 2.0),
)
def samples(results: Evidence, ax: object) -> None:
    rows = {}
    for method in ("uniform", SEARCHED, "joint"):
        kept = results.state.get(("fm16", method), {})
        first = next((kept[k] for k in sorted(kept) if k.startswith(f"samples-{FEWEST}-")), None)
        if first is not None:
            rows[NAMES[method]] = np.concatenate(list(first), axis=1)
    if not rows:
        raise LookupError("no samples are kept")
    height = len(next(iter(rows.values())))
    ax.imshow(np.concatenate(list(rows.values())), cmap="gray_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=height * (np.arange(len(rows)) + 0.5) - 0.5, yticklabels=list(rows))


@figure(
    "The search, and what it carries over",
    caption="Left: best search FD on fm8, four evaluations, against the number of lists evaluated. Right: gain over "
    "uniform of the same lists on the network of the search and on one trained independently; the claim asks for the "
    "shaded side of the 60% line.",
    alt="Left: falling curves of evolution and random search. Right: scatter of gains on two networks.",
    panels=2,
)
def search_and_transfer(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.traces[(results.traces["kind"] == "fitness") & (results.traces["problem"] == "fm8")]
    table = table[(table["nfe"] == FEWEST) & table["method"].isin([SEARCHED, "random"])]
    table = table.assign(search=table["method"].map(NAMES))
    how = {"hue": "search", "palette": COLOURS, "marker": "o", "errorbar": ("pi", 100)}
    sns.lineplot(table, x="evaluated", y="fd", ax=axes[0], **how)
    axes[0].set(xlabel="lists evaluated", ylabel="best search FD")
    gain = gains(results, (4, 6, 10)).reset_index()
    gain = gain.assign(evaluations=gain["nfe"].astype(int).astype(str))
    sns.scatterplot(gain, x="source", y="transfer", hue="evaluations", ax=axes[1])
    reach = np.array([min(0.0, gain["source"].min()), max(0.1, gain["source"].max())])
    axes[1].fill_between(reach, 0.6 * reach, axes[1].get_ylim()[1], color="0.9", zorder=0)
    axes[1].set(xlabel="gain on the source network", ylabel="gain on the other network")
