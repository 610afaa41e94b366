"""Is the average policy near the Nash policy, do likelihoods move apart, and who is preferred to whom?"""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

GAMES = ("rps", "blade")


def bound(K: np.ndarray, T: np.ndarray) -> np.ndarray:
    """The theorem's bound on the duality gap of the averaged policy."""
    return 2 * np.sqrt(np.log(K) / (2 * T))


def gaps(results: Evidence, method: str) -> dict[tuple[str, int], pd.DataFrame]:
    """{(kind, K): duality gaps, a row a game and a column a horizon T}, for the kinds the method has played."""
    played = [kind for kind in GAMES if ((results.rows["problem"] == kind) & (results.rows["method"] == method)).any()]
    if not played:
        raise LookupError(f"no matrix games of {method}")
    return {
        (kind, int(K)): rows.pivot(index="seed", columns="T", values="gap")
        for kind in played
        for K, rows in results.of(kind, method).groupby("K")
    }


def win_rates(results: Evidence, method: str, opponent: str) -> np.ndarray:
    """P(method's policy > opponent's policy) after all rounds, a seed each: the mean over the test prompts."""
    seeds = sorted(results.of("three-rounds", method)["seed"])
    mine, theirs = results.state["three-rounds", method], results.state["three-rounds", opponent]
    wins = [mine[f"test.policy.{s}"].astype(float) * theirs[f"test.against.{s}"] for s in seeds]  # (n, R) each
    return np.array([w.sum(-1).mean() for w in wins])


@claim("c1")
def gap_of_the_average(results: Evidence) -> list[Criterion]:
    tables = gaps(results, "sppo")
    floor = np.finfo(float).tiny  # a last iterate may reach a pure equilibrium to the last digit
    slopes = [
        np.polyfit(np.log(t.columns.astype(float)), np.log(np.maximum(t.T, floor)), 1)[0] for t in tables.values()
    ]
    worst = max((t / bound(K, t.columns.to_numpy(float))).to_numpy().max() for (_, K), t in tables.items())
    return [
        point("mean slope of ln gap on ln T", slopes, "<=", -0.45),
        point("largest gap as a share of the bound", worst, "<=", 1.000001),
    ]


@claim("c2")
def likelihoods(results: Evidence) -> list[Criterion]:
    own = results.of("one-round", "sppo")
    up = results.paired("one-round", "up")
    return [
        interval("mean change of the chosen log-probability", own["d_c"], ">", 0),
        interval("mean change of the rejected log-probability", own["d_r"], "<", 0),
        interval(
            "chosen raised: SPPO's share less the better of DPO's and IPO's",
            up["sppo"] - up[["dpo", "ipo"]].max(axis=1),
            ">",
            0,
        ),
    ]


@claim("c3")
def preferred(results: Evidence) -> list[Criterion]:
    return [
        interval(
            f"win rate against iterative {opponent.upper()} less 1/2",
            win_rates(results, "sppo", opponent) - 0.5,
            ">",
            0,
        )
        for opponent in ("dpo", "ipo")
    ]


@figure(
    "The average settles, the last iterate circles",
    caption="Duality gap of the policy after T updates, median over the games of a size, against the theorem's "
    "bound (grey). Solid: average of the iterates, which is the claim; dashed: the last iterate, the control.",
    alt="Two log-log panels, rock-paper-scissors and blade games: gap against T for three sizes, with the bound.",
    panels=2,
)
def duality_gap(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, kind in zip(axes, GAMES, strict=True):
        rows = results.of(kind)
        sizes = sorted(rows["K"].astype(int).unique())
        colors = dict(zip(sizes, sns.color_palette("colorblind", len(sizes)), strict=True))
        medians = rows.groupby(["method", "K", "T"])["gap"].median()
        for (method, K), line in medians.groupby(level=["method", "K"]):
            T = line.index.get_level_values("T").to_numpy(float)
            if method == "sppo":
                ax.plot(T, line, "o-", color=colors[K], label=f"K = {int(K)}")
                ax.plot(T, bound(K, T), color="0.7", lw=1, zorder=0)
            else:
                ax.plot(T, line, "o--", color=colors[K])
        ax.set(xscale="log", yscale="log", xlabel="updates T", ylabel="duality gap", title=kind)
        ax.legend()


@figure(
    "Likelihoods of the chosen and the rejected response",
    caption="Mean change of log-probability on all training pairs in one round, every loss at its own best setting. "
    "A loss on the difference alone may lower both, as long as the rejected one falls faster.",
    alt="One panel a loss: change of the log-probability of the chosen and the rejected response against Adam steps.",
    panels=4,
    size=(3.4, 3.4),
)
def likelihood_curves(results: Evidence, axes: list) -> None:
    import seaborn as sns

    traces = results.traces[results.traces["problem"] == "one-round"]
    names = {"sppo": "SPPO", "sppo-difference": "SPPO, difference only", "dpo": "DPO", "ipo": "IPO"}
    for ax, (method, label) in zip(axes, names.items(), strict=True):
        curves = traces[traces["method"] == method].melt(["seed", "step"], ["chosen", "rejected"], "response", "change")
        sns.lineplot(curves, x="step", y="change", hue="response", ax=ax, legend=method == "sppo")
        ax.axhline(0, color="0.7", lw=1, zorder=0)
        ax.set(title=label, xlabel="Adam step", ylabel="change of log-probability")


@figure(
    "Who is preferred to whom",
    caption="Exact win rate of the row's policy against the column's after training, mean over test prompts and seeds. "
    "Above 1/2 the row wins; preferences with cycles need not order the methods.",
    alt="Heat map of the win rates of all methods against each other, and against the reference.",
    size=(7.0, 5.6),
)
def tournament(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    order = ("sppo", "dpo", "ipo", "dpo-one-shot", "best-of-5", "sppo-shuffled", "reference")
    present = [m for m in order if ("three-rounds", m) in results.state]
    table = pd.DataFrame({b: {a: win_rates(results, a, b).mean() for a in present} for b in present})
    sns.heatmap(table, annot=True, fmt=".3f", center=0.5, cmap="vlag", cbar=False, ax=ax)
    ax.set(xlabel="against", ylabel="")
