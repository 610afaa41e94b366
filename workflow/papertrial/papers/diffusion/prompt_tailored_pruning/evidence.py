"""What the rows of APTP say about its three claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

APTP, FREE, ALONE = "aptp", "no-transport", "transport-alone"
SINGLES = ("learned", "magnitude", "taylor")
STYLES = ("plain", "pair", "negative")


def whole(results: Evidence, method: str) -> pd.DataFrame:
    """The rows on the whole mix of prompts, by seed."""
    rows = results.of("prompt8", method)
    return rows[rows["style"] == "all"].set_index("seed").sort_index()


def single(results: Evidence) -> str:
    """The single pruned network with the lowest FD on the tuning seeds."""
    trials = results.trials
    if trials.empty:
        raise LookupError("no tuning trials, by which the strongest single network is chosen")
    rows = trials[(trials["problem"] == "prompt8") & trials["method"].isin(SINGLES) & (trials["chosen"] == 1)]
    if set(rows["method"]) != set(SINGLES):
        raise LookupError(f"tuning trials of {', '.join(SINGLES)} are asked for")
    return rows.loc[rows["value"].idxmin(), "method"]


@claim("c1")
def beats_one_pruned_model(results: Evidence) -> list[Criterion]:
    ours, name = whole(results, APTP), single(results)
    theirs = whole(results, name)
    return [
        interval(f"FD of {name} - FD of APTP", (theirs["fd"] - ours["fd"]).dropna().to_numpy(), ">", 0),
        point(
            f"agreement of APTP - of {name}, mean",
            (ours["agreement"] - theirs["agreement"]).dropna().to_numpy(),
            ">=",
            -0.01,
        ),
        point("realised compute of APTP, mean", ours["compute"].to_numpy(), "<=", 0.61),
    ]


@claim("c2")
def transport_prevents_collapse(results: Evidence) -> list[Criterion]:
    spread, free = whole(results, APTP)["perplexity"], whole(results, FREE)["perplexity"]
    return [
        point("perplexity with transport, mean", spread.to_numpy(), ">=", 3),
        point("perplexity without, mean", free.to_numpy(), "<=", 2.5),
        interval("perplexity with - without", (spread - free).dropna().to_numpy(), ">", 0),
    ]


@claim("c3")
def meaningful_clusters(results: Evidence) -> list[Criterion]:
    rows = whole(results, APTP)
    above = [
        point(f"NMI - untrained routers' 95th percentile, seed {s}", r["nmi"] - r["nmi_untrained"], ">", 0)
        for s, r in rows.iterrows()
    ]
    rank = rank_correlation(results)
    return [
        at_least("seeds with NMI above untrained routers", 4, above),
        point("Spearman of compute with difficulty, mean", rank, ">=", 0.3),
        interval("Spearman of compute with difficulty", rank, ">", 0),
    ]


def cells(results: Evidence) -> pd.DataFrame:
    """(seed, style, item): the compute that APTP assigns, and how hard the cell is for the learned mask."""
    columns = {}
    for method, name in ((APTP, "compute"), ("learned", "difficulty")):
        rows = results.of("prompt8", method)
        columns[name] = rows[rows["style"] != "all"].set_index(["seed", "style", "item"])[name]
    return pd.DataFrame(columns).dropna()


def rank_correlation(results: Evidence, styles: tuple[str, ...] = STYLES) -> np.ndarray:
    """Per seed, over the cells; 0 where all cells get the same compute."""
    from scipy.stats import spearmanr

    table = cells(results)
    table = table[table.index.get_level_values("style").isin(styles)]
    found = []
    for _, of in table.groupby("seed"):
        flat = of["compute"].nunique() == 1 or of["difficulty"].nunique() == 1
        found.append(0.0 if flat else float(spearmanr(of["compute"], of["difficulty"]).statistic))
    return np.array(found)


NAMES = {
    "full": "full network",
    APTP: "APTP",
    "learned": "one learned mask",
    "magnitude": "magnitude",
    "taylor": "Taylor",
    "random-router": "random router",
    "dynamic": "gates per prompt",
    "hashed": "control: hashed prompts",
}
COLOURS = dict(zip(NAMES.values(), ("C4", "C0", "C1", "C2", "C5", "C3", "C6", "C7"), strict=True))


@figure(
    "Quality at 60% of the multiply-adds",
    caption="FD (n = 3,000) and agreement with the prompt on held-out captions, a dot a seed, all with the same "
    "average multiply-adds but for the full network. Dotted: the FD of as many real pictures.",
    alt="Two panels of dots by method: the Frechet distance and the share of samples whose label agrees.",
    panels=2,
    size=(5.4, 3.4),
)
def quality(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.rows[(results.rows["style"] == "all") & results.rows["method"].isin(NAMES)]
    rows = rows.dropna(subset=["fd"])
    rows = rows.assign(method=rows["method"].map(NAMES))
    how = {"y": "method", "hue": "method", "order": list(NAMES.values()), "palette": COLOURS, "legend": False}
    for ax, metric, label in zip(axes, ("fd", "agreement"), ("FD", "agreement"), strict=True):
        sns.stripplot(rows, x=metric, ax=ax, **how)
        ax.set(xlabel=label, ylabel="")
    axes[0].axvline(rows["fd_real"].mean(), color="0.4", linestyle=":")
    axes[1].set_yticklabels([])


@figure(
    "Capacity and difficulty",
    caption="Left: mean compute that APTP's router assigns to each cell on held-out captions. Right: that compute "
    "against the cell's difficulty, the relative increase of its denoising loss under the single learned mask, for "
    "every seed.",
    alt="Left: a heat map, three styles by ten items. Right: a scatter of compute against difficulty by style.",
    panels=2,
    size=(5.6, 3.4),
)
def capacity(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = cells(results)
    mean = table["compute"].groupby(["style", "item"], sort=False).mean().unstack("item", sort=False)
    sns.heatmap(mean, ax=axes[0], cmap="viridis", cbar_kws={"label": "compute"})
    axes[0].set(xlabel="", ylabel="")
    flat = table.reset_index()
    sns.scatterplot(flat, x="difficulty", y="compute", hue="style", style="style", palette="colorblind", ax=axes[1])
    every, easy = rank_correlation(results).mean(), rank_correlation(results, STYLES[:2]).mean()
    axes[1].set_title(f"mean Spearman {every:.2f}; without the third style {easy:.2f}")


@figure(
    "Codes in use",
    caption="Left: perplexity of the codes that held-out prompts take, with transport in training, with transport "
    "but without the added term, and without either; 4 would be even use, dotted the claim's bounds. Right: normalised "
    "mutual information of code and (class group, style), against the 95th percentile of 200 untrained routers.",
    alt="Left: dots of perplexity for three ways of training. Right: dots of mutual information, trained and not.",
    panels=2,
    size=(5.0, 3.0),
)
def codes_in_use(results: Evidence, axes: list) -> None:
    import seaborn as sns

    ways = {APTP: "transport", ALONE: "without term", FREE: "arg-max"}
    used = pd.concat([whole(results, method).assign(training=way) for method, way in ways.items()])
    colours = ["C0", "C1", "C7"]
    sns.stripplot(used, x="training", y="perplexity", hue="training", palette=colours, legend=False, ax=axes[0])
    for bound in (2.5, 3.0):
        axes[0].axhline(bound, color="0.4", linestyle=":")
    axes[0].set(xlabel="", ylim=(0.9, 4.1))
    told = used.melt(["training"], ["nmi", "nmi_untrained"], "router", "NMI")
    told["router"] = told["router"].map({"nmi": "trained", "nmi_untrained": "untrained, 95%"})
    sns.stripplot(told, x="training", y="NMI", hue="router", palette=["C0", "0.5"], dodge=True, ax=axes[1])
    axes[1].set(xlabel="")
    axes[1].legend(title=None)


@figure(
    "Samples",
    caption="First seed, same noise: every item in the styles plain, pair and negative. From above: the full network, "
    "APTP, one learned mask, and the control.",
    alt="Four rows of thirty small grey pictures of clothing.",
    size=(9.0, 1.8),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    strips, names = [], []
    for method in ("full", APTP, "learned", "hashed"):
        states = [v for (_, m), v in results.state.items() if m == method]
        if states:
            kept = states[0][min(k for k in states[0] if k.startswith("samples"))]
            strips.append(np.hstack(list(kept[:30])))
            names.append(NAMES[method])
    side = strips[0].shape[0]
    ax.imshow(np.vstack(strips), cmap="gray_r", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=side * (np.arange(len(names)) + 0.5) - 0.5, yticklabels=names)
    ax.grid(False)
