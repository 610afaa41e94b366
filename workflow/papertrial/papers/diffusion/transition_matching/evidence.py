"""What the rows of transition matching say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

BEST = 0  # evaluations of the rows at a model's best count
DENSITIES = ("ring8", "spiral")


def log_fd(results: Evidence, method: str, evaluations: int) -> pd.Series:
    """log FD by (seed, noise)."""
    rows = results.of("pictures", method)
    rows = rows[rows["evaluations"] == evaluations]
    if rows.empty:
        raise LookupError(f"no pictures of {method} at {evaluations} evaluations")
    return np.log(rows.set_index(["seed", "noise"])["fd"])


@claim("c1")
def better_samples(results: Evidence) -> list[Criterion]:
    gain = log_fd(results, "flow-matching", BEST) - log_fd(results, "dtm", BEST)
    return [interval("log FD of flow matching - log FD of DTM", gain.to_numpy(), ">", 0)]


@claim("c2")
def fewer_evaluations(results: Evidence) -> list[Criterion]:
    def curve(method: str, seed: int) -> pd.DataFrame:
        rows = results.of("pictures", method)
        rows = rows[(rows["seed"] == seed) & (rows["noise"] == 0) & (rows["evaluations"] != BEST)]
        return rows.set_index("evaluations").sort_index()

    ratios = []
    for seed in sorted(results.of("pictures", "dtm")["seed"].unique()):
        fm, dtm = curve("flow-matching", seed), curve("dtm", seed)
        wanted = 1.05 * fm.loc[64, "fd"]
        needs, reached = fm[fm["fd"] <= wanted], dtm[dtm["fd"] <= wanted]
        if reached.empty:
            ratios.append((0.0, 0.0))
            continue
        saved = needs["multiply_adds"].iloc[0] / reached["multiply_adds"].iloc[0]
        ratios.append((needs.index[0] / reached.index[0], saved))
    evaluations, work = np.array(ratios).T
    return [
        point("backbone evaluations, flow matching / DTM", evaluations, ">=", 2, np.median),
        point("multiply-adds, flow matching / DTM", work, ">", 1, np.median),
    ]


@claim("c3")
def converges_to_the_flow(results: Evidence) -> list[Criterion]:
    criteria = []
    for name in DENSITIES:
        rows = results.of(name, "dtm").groupby("evaluations")[["variance", "distance"]].mean().sort_index()
        last = rows.tail(4)
        slope = float(np.polyfit(np.log(last.index), np.log(last["variance"]), 1)[0])
        share = float(rows["distance"].iloc[-1] / rows["distance"].iloc[0])
        criteria += [
            point(f"slope of log variance in log T, {name}", slope, "<=", -0.7),
            point(f"distance to the flow at the largest T / at the smallest, {name}", share, "<=", 0.25),
        ]
    return criteria


@claim("c4")
def causal_matches_flow(results: Evidence) -> list[Criterion]:
    loss = log_fd(results, "fhtm", BEST) - log_fd(results, "flow-matching", 32)
    return [interval("log FD of FHTM - log FD of flow matching at 32", loss.to_numpy(), "<=", 0.1)]


LABELS = {
    "dtm": "DTM",
    "flow-matching": "flow matching",
    "deterministic": "DTM, head started at 0",
    "fhtm": "FHTM",
    "kept-difference": "difference drawn once",
}


@figure(
    "Quality by evaluations",
    caption="Fréchet distance against backbone evaluations (left) and total multiply-adds of a sample, head included "
    "(right), mean and range of the training seeds. Flow matching has its best head and solver at every count. Dashed: "
    "FHTM; dotted: real pictures.",
    alt="Two panels of FD curves that fall with evaluations and with multiply-adds, for DTM, flow matching, control.",
    panels=2,
)
def quality_by_evaluations(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("pictures")
    curves = rows[(rows["noise"] == 0) & (rows["evaluations"] != BEST)]
    curves = curves.assign(method=curves["method"].map(LABELS))
    work = curves.groupby(["method", "evaluations"])["multiply_adds"].transform("median")
    how = {"y": "fd", "hue": "method", "palette": "colorblind", "marker": "o", "errorbar": ("pi", 100)}
    sns.lineplot(curves, x="evaluations", ax=axes[0], legend=False, **how)
    sns.lineplot(curves.assign(work=work), x="work", ax=axes[1], **how)
    causal = rows[rows["method"] == "fhtm"]["fd"]
    real = results.traces[results.traces["variant"] == "real pictures"]["fd"] if len(results.traces) else pd.Series()
    for ax, label in zip(axes, ("backbone evaluations", "multiply-adds"), strict=True):
        for value, style in ((causal.mean(), "--"), (real.mean(), ":")):
            if np.isfinite(value):
                ax.axhline(value, color="0.4", linestyle=style)
        ax.set(xlabel=label, ylabel="FD")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


@figure(
    "Towards the flow",
    caption="Exact kernels. Left: variance of the end X_T given the start X_0; it falls like 1/T (dotted) unless the "
    "difference is drawn once. Right: distance of the replicas' mean to the end of the flow.",
    alt="Two log-log panels against the number of transitions: falling lines for DTM, flat ones for the control.",
    panels=2,
)
def towards_the_flow(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.rows[results.rows["problem"].isin(DENSITIES)]
    rows = rows.assign(method=rows["method"].map(LABELS))
    for ax, metric in zip(axes, ("variance", "distance"), strict=True):
        how = {"hue": "method", "style": "problem", "palette": "colorblind", "markers": True, "errorbar": None}
        sns.lineplot(rows, x="evaluations", y=metric, ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(xlabel="transitions T", ylabel=metric)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
    T = np.sort(rows["evaluations"].unique())
    top = rows[rows["method"] == LABELS["dtm"]]["variance"].max()
    axes[0].plot(T, top * T[0] / T, ":", color="0.4")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


@figure(
    "Samples",
    caption="Forty samples of the first training seed from the same noise, each model at its best count; labels 0 to "
    "9 repeated.",
    alt="Three blocks of small grey pictures of clothing.",
    panels=3,
    size=(5.0, 2.4),
)
def samples(results: Evidence, axes: list) -> None:
    for ax, method in zip(axes, ("dtm", "flow-matching", "fhtm"), strict=True):
        kept = results.state.get(("pictures", method), {}).get("samples")
        ax.set(title=LABELS[method], xticks=[], yticks=[])
        if kept is not None:
            x = np.asarray(kept, np.float32)[:40, 0]
            size = x.shape[-1]
            tiles = x.reshape(4, 10, size, size).transpose(0, 2, 1, 3).reshape(4 * size, 10 * size)
            ax.imshow(tiles, cmap="gray", vmin=-1, vmax=1)
