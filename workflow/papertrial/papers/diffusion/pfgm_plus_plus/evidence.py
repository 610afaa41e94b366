"""What the rows of PFGM++ say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

PFGM, DIFFUSION = "pfgm-plus-plus", "diffusion"


@claim("c1")
def small_dimensions_are_robust(results: Evidence) -> list[Criterion]:
    rows = pd.concat([results.of("robust", PFGM), results.of("robust", DIFFUSION)])
    log_r = rows.assign(D=rows["D"].astype(float)).pivot(index=["seed", "noise"], columns="D", values="log_r")
    gain = (log_r[np.inf] - log_r[64.0]).to_numpy()
    criteria = [interval("log R of diffusion - log R of D = 64", gain, ">", 0)]
    if len(log_r.columns) > 2:  # the control has D = 64 alone
        rank, n = log_r.mean().rank().to_numpy(), len(log_r.columns)
        spearman = 1 - 6 * float(np.square(rank - np.arange(1, n + 1)).sum()) / (n**3 - n)  # columns rise with D
        criteria.append(point("Spearman of mean log R with D", spearman, ">=", 0.8))
    return criteria


@claim("c2")
def finite_dimension_is_better(results: Evidence) -> list[Criterion]:
    fd = results.paired("clean", "fd")
    return [interval("FD of diffusion - FD of the best D", (fd[DIFFUSION] - fd[PFGM]).to_numpy(), ">", 0)]


@claim("c3")
def diffusion_is_the_limit(results: Evidence) -> list[Criterion]:
    criteria = []
    for s, rows in results.of("limit", PFGM).groupby("s"):
        rows = rows.assign(D=rows["D"].astype(float)).sort_values("D").tail(6)  # five octaves
        slope = float(np.polyfit(np.log(rows["D"]), np.log(rows["difference"]), 1)[0])
        criteria += [point(f"slope at s = {s:g}", slope, op, bound) for op, bound in ((">=", -1.15), ("<=", -0.85))]
    return criteria


@claim("c4")
def settings_carry_over(results: Evidence) -> list[Criterion]:
    rows = results.of("transfer")
    means = rows.groupby(["method", "setting"])["fd"].mean()
    aligned = means[PFGM].mean()
    retuned = min(aligned, means["retuned"].min())
    # Standing in for the method, the unaligned kernel is compared with itself.
    unaligned = means["unaligned" if "unaligned" in means.index.levels[0] else PFGM].mean()
    return [
        point("mean FD aligned / mean FD of the best retuned setting", float(aligned / retuned), "<=", 1.15),
        point("mean FD unaligned / mean FD aligned", float(unaligned / aligned), ">=", 2),
    ]


@figure(
    "Degradation by perturbation",
    caption="Fréchet distance of 2,000 samples against the strength of two perturbations: noise injected at every "
    "step, and weights rounded to a few bits. 0 and 32 mean none. Bands span training and noise seeds. "
    "The claim is about the ratio to the clean value.",
    alt="Two panels of FD, against injected noise and against bits, one line for each D and for diffusion.",
    panels=2,
)
def degradation(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("robust")
    rows = rows.assign(model=np.where(rows["method"] == "light-tail", "light tail, D = 64", "D = " + rows["D"]))
    order = sorted(rows["model"].unique(), key=lambda m: (m.startswith("light"), float(m.split("= ")[1])))
    for ax, kind, none, label in (
        (axes[0], "fd_noise_", 0.0, "injected noise alpha"),
        (axes[1], "fd_bits_", 8.0, "bits (none: 8)"),
    ):
        columns = [c for c in rows if c.startswith(kind)]
        long = rows.melt(["model"], ["fd", *columns], "at", "FD")
        long["x"] = [none if a == "fd" else float(a.removeprefix(kind)) for a in long["at"]]
        how = {"hue": "model", "hue_order": order, "palette": "colorblind", "marker": "o", "errorbar": ("pi", 100)}
        sns.lineplot(long, x="x", y="FD", ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(yscale="log", xlabel=label)
    axes[1].invert_xaxis()
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


@figure(
    "Robustness and the limit",
    caption="Left: mean log ratio of perturbed to clean FD, a dot a pair of seeds; the claim says it rises with D. "
    "Right: the exact denoisers' rms distance to diffusion's falls like 1/D (dotted).",
    alt="Left: dots of log R for D = 64, 128, 2048, infinity and the control. Right: three falling log-log lines.",
    panels=2,
)
def robustness_and_limit(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("robust")
    label = np.where(rows["method"] == "light-tail", "64, light tail", rows["D"])
    sns.stripplot(rows.assign(D=label), x="D", y="log_r", hue="D", ax=axes[0], palette="colorblind", legend=False)
    axes[0].set(ylabel="log R")
    limit = results.of("limit", PFGM)
    limit = limit.assign(D=limit["D"].astype(float), s=limit["s"].map("s = {:g}".format))
    sns.lineplot(limit, x="D", y="difference", hue="s", palette="colorblind", marker="o", ax=axes[1])
    D = np.sort(limit["D"].unique())
    axes[1].plot(D, limit["difference"].max() * D[0] / D, ":", color="0.4")
    axes[1].set(xscale="log", yscale="log", ylabel="rms difference to D = inf")


@figure(
    "Samples",
    caption="Forty clean samples of the first training seed, labels 0 to 9 repeated: D = 64 above, diffusion below.",
    alt="Two blocks of small grey pictures of clothing.",
    panels=2,
    size=(6.0, 2.6),
)
def samples(results: Evidence, axes: list) -> None:
    for ax, (method, D) in zip(axes, ((PFGM, "64"), (DIFFUSION, "inf")), strict=True):
        kept = results.state.get(("robust", method), {}).get(f"samples_{D}")
        ax.set(title=f"D = {D}", xticks=[], yticks=[])
        if kept is not None:
            x = np.asarray(kept, np.float32)[:40, 0]
            size = x.shape[-1]
            tiles = x.reshape(4, 10, size, size).transpose(0, 2, 1, 3).reshape(4 * size, 10 * size)
            ax.imshow(tiles, cmap="gray", vmin=-1, vmax=1)


@figure(
    "Settings carried over",
    caption="FD of D = 128 for shifts of the levels' mean and factors of s_max, a dot a training seed; +0 x1 is what "
    "diffusion uses. Unaligned: r = s instead of s sqrt(D).",
    alt="Dots of FD by setting, the aligned one, five others and the unaligned kernel.",
)
def settings_carried_over(results: Evidence, ax: object) -> None:
    import seaborn as sns

    rows = results.of("transfer")
    label = np.where(rows["method"] == "unaligned", "unaligned", rows["setting"])
    sns.stripplot(rows.assign(setting=label), x="setting", y="fd", hue="method", ax=ax, palette="colorblind")
    ax.set(yscale="log", xlabel="shift of the mean of log s, factor of s_max", ylabel="FD")
    ax.tick_params(axis="x", rotation=30)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
