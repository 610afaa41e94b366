"""What the rows of DDO say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

DDO, CONTINUED, START, REAL = "ddo", "continued", "start", "real"
SETTINGS = {"plain": "guidance 0", "guided": "best guidance"}
LABELS = {
    START: "start",
    CONTINUED: "continued likelihood",
    DDO: "DDO",
    "pooled": "DDO, real and fake mixed",
    "unbounded": "no sigmoid",
    "guided": "start, guidance",
    REAL: "real pictures",
}
COLOURS = dict(zip(LABELS.values(), ("C7", "C0", "C1", "C2", "C3", "C4", "0.3"), strict=True))


def last(results: Evidence, problem: str, metric: str, sampling: str = "plain") -> pd.DataFrame:
    """The metric after the last round, one column a method, one row a seed."""
    rows = results.of(problem)
    rows = rows[rows["sampling"] == sampling]
    rows = rows[rows["round"] == rows.groupby("method")["round"].transform("max")]
    return rows.pivot(index="seed", columns="method", values=metric)


def gain(table: pd.DataFrame, of: str = CONTINUED) -> np.ndarray:
    """log of another method's value - log of DDO's, per seed."""
    return (np.log(table[of]) - np.log(table[DDO])).dropna().to_numpy()


@claim("c1")
def lowers_fd(results: Evidence) -> list[Criterion]:
    fd = last(results, "fm8", "fd")
    closed = ((fd[START] - fd[DDO]) / (fd[START] - fd[REAL])).to_numpy()
    return [
        interval("log FD of the start - log FD of DDO", gain(fd, START), ">", 0),
        interval("log FD of continued training - log FD of DDO", gain(fd), ">", 0),
        point("share of the way from the start to the floor, mean", closed, ">=", 0.15),
    ]


@claim("c2")
def a_round_is_cheap(results: Evidence) -> list[Criterion]:
    """r is the first round whose end passes; as long as none does, the first that hasn't failed."""
    rows, start = results.of("fm8", DDO), last(results, "fm8", "fd")[START]
    ends = []
    for r, at in rows[rows["round"] > 0].groupby("round"):
        drop = (np.log(start) - np.log(at.set_index("seed")["fd"])).to_numpy()
        end = interval(f"log FD of the start - log FD at the end of round {r:.0f}", drop, ">", 0)
        ends.append((end, float(at["real_share"].iloc[0])))
    open_ends = [e for e in ends if e[0].passed] or [e for e in ends if e[0].passed is None] or ends[-1:]
    return [
        at_least("rounds whose end is below the start", 1, [e for e, _ in ends]),
        point("real pictures until the end of round r, share of pre-training's", open_ends[0][1], "<=", 0.05),
    ]


@claim("c3")
def moves_mass_to_the_modes(results: Evidence) -> list[Criterion]:
    tv = last(results, "ring8", "mode_tv")
    return [
        interval("log off of continued training - log off of DDO", gain(last(results, "ring8", "off")), ">", 0),
        point("mode_tv of DDO - mode_tv of continued training, mean", (tv[DDO] - tv[CONTINUED]).to_numpy(), "<=", 0.05),
    ]


@claim("c4")
def improves_autoregressive_models(results: Evidence) -> list[Criterion]:
    criteria = []
    for sampling, name in SETTINGS.items():
        z = gain(last(results, "pixels", "fd", sampling))
        seeds = [point("a seed's difference", float(v), ">", 0) for v in z]
        criteria += [
            point(f"log FD of likelihood - log FD of DDO, {name}, mean", z, ">", 0),
            at_least(f"seeds in which it is > 0, {name}", 2, seeds),
        ]
    return criteria


@figure(
    "FD by round",
    caption="FD (n = 5,000) to the half of the test pictures that nothing was chosen by, at every round's end, over "
    "that of the pre-trained model (round 0); mean and range of the seeds, whose starts differ. Right: the share "
    "of test pictures that have a sample near them at the end.",
    alt="Left: FD over the start's against rounds for DDO and continued training. Right: dots of coverage by method.",
    panels=2,
    size=(5.6, 3.8),
)
def fd_by_round(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("fm8")
    first = rows[rows["method"] == START]
    lines = [first.assign(method=m) for m in (DDO, CONTINUED, "pooled")]
    lines = pd.concat([*lines, rows[~rows["method"].isin((START, REAL))]]).sort_values("round")
    start = first.set_index("seed")["fd"]
    lines = lines.assign(method=lines["method"].map(LABELS), share=lines["fd"] / lines["seed"].map(start))
    how = {"hue": "method", "palette": COLOURS}
    sns.lineplot(lines, x="round", y="share", marker="o", errorbar=("pi", 100), ax=axes[0], **how)
    floor = rows.loc[rows["method"] == REAL, "fd"].mean()
    axes[0].set(ylabel="FD / FD of the start", xticks=sorted(lines["round"].unique()))
    axes[0].set_title(f"real pictures: {floor:.2f}; starts: {start.min():.2f} to {start.max():.2f}")
    axes[0].legend(title=None, fontsize="x-small")
    final = last(results, "fm8", "coverage").stack().rename("coverage").reset_index()
    if "fm8-printed" in set(results.rows["problem"]):
        others = results.of("fm8-printed")
        others = others.groupby(["method", "seed"], as_index=False)["coverage"].max()
        final = pd.concat([final, others])
    final = final.assign(method=final["method"].map(LABELS))
    order = [m for m in LABELS.values() if m in set(final["method"])]
    sns.stripplot(final, x="coverage", y="method", order=order, legend=False, ax=axes[1], **how)
    axes[1].set(ylabel="")


@figure(
    "On the ring of eight",
    caption="1,500 samples of the first seed's models: pre-trained, after continued likelihood training, after DDO. A "
    "network this small leaves samples between the modes; circles are 4 standard deviations wide.",
    alt="Three scatter plots of eight clusters on a circle, with bridges of stray samples between them.",
    panels=3,
    size=(3.4, 3.4),
)
def on_the_ring(results: Evidence, axes: list) -> None:
    angle = np.arange(8) * np.pi / 4
    off = last(results, "ring8", "off")
    for ax, method in zip(axes, (START, CONTINUED, DDO), strict=True):
        x = np.asarray(results.state[("ring8", method)]["samples"], np.float32)
        ax.scatter(*x.T, s=2, alpha=0.5, linewidths=0)
        for a in angle:
            ax.add_patch(_circle(2 * np.cos(a), 2 * np.sin(a)))
        title = f"{LABELS[method]}: {off[method].mean():.1%} off"
        ax.set(title=title, aspect="equal", xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[])


def _circle(x: float, y: float):  # noqa: ANN202
    from matplotlib.patches import Circle

    return Circle((x, y), 0.6, fill=False, color="0.6", linewidth=0.8)


@figure(
    "What every seed says",
    caption="log of a method's value minus that of DDO, a dot a seed: right of the line DDO is better. FD for pictures "
    "(denoisers) and pixels (autoregressive, plain and at the best guidance), samples off the modes for the ring.",
    alt="Rows of dots beside a vertical line at zero, against the start and against continued training.",
    size=(7.0, 3.4),
)
def every_seed(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    shown = {
        "pictures": last(results, "fm8", "fd"),
        "ring": last(results, "ring8", "off"),
        "pixels, guidance 0": last(results, "pixels", "fd"),
        "pixels, best guidance": last(results, "pixels", "fd", "guided"),
    }
    found = [
        {"model": name, "against": LABELS[m], "difference": v}
        for name, table in shown.items()
        for m in (START, CONTINUED, "pooled")
        if m in table
        for v in gain(table, m)
    ]
    how = {"hue": "against", "palette": COLOURS, "dodge": True}
    sns.stripplot(pd.DataFrame(found), x="difference", y="model", ax=ax, **how)
    ax.axvline(0, color="0.4", linewidth=0.8)
    ax.set(xlabel="log of the other - log of DDO", ylabel="")
    ax.legend(title="against", fontsize="x-small")


@figure(
    "Pictures",
    caption="The first seed's samples from one noise, columns are labels 0 to 9, three times. From above: denoisers "
    "before and after DDO, autoregressive models before and after DDO.",
    alt="Four rows of small grey pictures of clothing.",
    size=(9.0, 2.0),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    cells = [(p, m) for p in ("fm8", "pixels") for m in (START, DDO)]
    rows = [np.concatenate(np.asarray(results.state[c]["samples"], np.float32), axis=1) for c in cells]
    ax.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1)
    size = rows[0].shape[0]
    names = [f"{p}, {LABELS[m]}" for p, m in zip(("denoiser",) * 2 + ("pixels",) * 2, (START, DDO) * 2, strict=True)]
    ax.set(xticks=[], yticks=(np.arange(4) + 0.5) * size - 0.5, yticklabels=names)
