"""What the rows of latent masking diffusion say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

LMD, MAE, FIXED = "lmd", "mae", "latent-mae"
SLACK = 1.05  # of the pixel autoencoder's final error


@claim("c1")
def cost_to_a_given_quality(results: Evidence) -> list[Criterion]:
    ratio = cost_ratio(results)
    return [point("median of multiply-adds, pixel MAE / LMD", ratio, ">=", 3, np.median)]


def cost_ratio(results: Evidence, cost: str = "gmacs") -> np.ndarray:
    """Of every seed: the pixel autoencoder's cost to its final error * 1.05 over LMD's; 0 if LMD never gets there."""
    mae, lmd = (dict(list(curves(results, method).groupby("seed"))) for method in (MAE, LMD))
    ratios = []
    for seed, curve in lmd.items():
        bound = SLACK * mae[seed]["err"].iloc[-1]
        reached = first_reach(curve, bound, cost)
        own = first_reach(mae[seed], bound, cost) or mae[seed][cost].iloc[-1]
        ratios.append(own / reached if reached else 0.0)
    return np.array(ratios)


def curves(results: Evidence, method: str) -> pd.DataFrame:
    """err against updates on Fashion-MNIST, measured CPU seconds beside it where there are any."""
    rows = results.of("fashion", method).sort_values(["seed", "updates"])
    if "cpu_s" not in results.timings:
        return rows
    key = ["problem", "method", "seed", "schedule", "updates"]
    return rows.merge(results.timings[[*key, "cpu_s"]], on=key, how="left")


def first_reach(curve: pd.DataFrame, bound: float, cost: str) -> float | None:
    """The cost at which the running median of 3 evaluations is first within the bound."""
    within = curve.loc[curve["err"].rolling(3, min_periods=1).median() <= bound, cost]
    return None if within.empty else float(within.iloc[0])


def final(results: Evidence, problem: str, metric: str) -> pd.DataFrame:
    """Seed by method: the last value of a metric."""
    rows = results.of(problem).dropna(subset=[metric]).sort_values("updates")
    return rows.pivot_table(index="seed", columns="method", values=metric, aggfunc="last")


@claim("c2")
def accuracy_suffers_little(results: Evidence) -> list[Criterion]:
    err, accuracy = (final(results, "fashion", metric) for metric in ("err", "accuracy"))
    return [
        point("mean of err, LMD / pixel MAE", (err[LMD] / err[MAE]).to_numpy(), "<=", 1.10),
        point("mean probe accuracy, LMD - pixel MAE", (accuracy[LMD] - accuracy[MAE]).to_numpy(), ">=", -0.02),
    ]


@claim("c3")
def progressive_beats_fixed(results: Evidence) -> list[Criterion]:
    excess = log_excess(results)  # log err_schedule - log err_fixed
    whole = excess.index.get_level_values("updates").max()
    halfway = -excess.loc[whole // 2].mean(axis=1).to_numpy()
    at_the_end = excess.loc[whole]
    return [
        interval(f"log err of fixed .75 - mean over schedules, {whole // 2} updates", halfway, ">", 0),
        *[
            point(f"log err of {name} - of fixed .75, {whole} updates", of.to_numpy(), "<=", np.log(1.03))
            for name, of in at_the_end.items()
        ],
    ]


def log_excess(results: Evidence) -> pd.DataFrame:
    """(updates, seed) by schedule."""
    ours, fixed = results.of("schedules", LMD), results.of("schedules", FIXED)
    err = ours.pivot(index=["updates", "seed"], columns="schedule", values="err")
    return np.log(err).sub(np.log(fixed.set_index(["updates", "seed"])["err"]), axis=0)


@claim("c4")
def cheap_inference(results: Evidence) -> list[Criterion]:
    gmacs, rms = (final(results, "fashion", metric) for metric in ("hole_gmacs", "hole_rms"))
    return [
        point("multiply-adds, diffusion / LMD", (gmacs["ddpm"] / gmacs[LMD]).to_numpy(), ">=", 20),
        point("multiply-adds, pixel MAE / LMD", (gmacs[MAE] / gmacs[LMD]).to_numpy(), ">=", 1.5),
        point("mean of rms in the hole, LMD / diffusion", (rms[LMD] / rms["ddpm"]).to_numpy(), "<=", 1.1),
    ]


NAMES = {
    LMD: "LMD",
    MAE: "pixel MAE",
    FIXED: "latent MAE, fixed .75",
    "rolled": "control: another's latents",
    "ddpm": "pixel diffusion",
    "lmd-64": "LMD, 64 tokens",
    "mae-16": "pixel MAE, 16 tokens",
    "random": "random share",
    "reversed": "reversed",
    "nearest": "nearest picture",
    "mean-picture": "mean picture",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C2", "C7", "C3", "C9", "C8", "C4", "C7", "C5", "C6"), strict=True))


@figure(
    "Quality against training cost",
    caption="Error over the hidden pixels of validation pictures at 75% masking, one line a seed. Dotted: 1.05 times "
    "the pixel MAE's final error, the quality that c1 asks for. Crosses: final errors with the hidden pixels taken "
    "away before encoding, which a latent model isn't trained for. Right: CPU seconds in one process.",
    alt="Two panels of falling lines, error against training multiply-adds and against CPU seconds, for LMD, the "
    "pixel MAE, the latent MAE and the control, which stays high.",
    panels=2,
)
def quality_against_cost(results: Evidence, axes: list) -> None:
    import seaborn as sns

    methods = [m for m in (LMD, MAE, FIXED, "rolled") if (results.of("fashion")["method"] == m).any()]
    table = pd.concat([curves(results, m) for m in methods], ignore_index=True)
    table = table.assign(model=table["method"].map(NAMES))
    bound = SLACK * final(results, "fashion", "err")[MAE].mean()
    for ax, cost, label in zip(axes, ("gmacs", "cpu_s"), ("multiply-adds (10^9)", "CPU seconds"), strict=True):
        if cost in table:
            how = {"hue": "model", "palette": COLOURS, "units": "seed", "estimator": None}
            sns.lineplot(table, x=cost, y="err", ax=ax, legend="auto" if ax is axes[0] else False, **how)
            sns.scatterplot(table, x=cost, y="err_blind", hue="model", palette=COLOURS, marker="X", ax=ax, legend=False)
            ax.axhline(bound, color="0.4", linestyle=":")
            ratio = np.median(cost_ratio(results, cost))
            ax.set(xscale="log", xlabel=label, ylabel="rms error", title=f"pixel MAE / LMD: median {ratio:.2g}")
    if LMD in methods:
        pretraining = final(results, "fashion", "gmacs_pretraining")[LMD].iloc[0]
        axes[0].axvline(pretraining, color="0.7", linestyle="--", label="autoencoder's training")
        axes[0].legend(fontsize="x-small")


@figure(
    "Schedules of the masked share",
    caption="Log error relative to fixed .75 in latent space, at equal updates (left; mean and range over seeds) and "
    "errors at equal multiply-adds (right). Above 0 is worse than fixed. Random shares: one seed.",
    alt="Left: lines for linear, cosine, piecewise, reversed and random against updates around zero. Right: their "
    "errors and that of fixed .75 against multiply-adds.",
    panels=2,
)
def schedules(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.of("schedules")
    if (results.rows["method"] == "random").any():
        table = pd.concat([table, results.of("printed", "random")], ignore_index=True)
    fixed = table[table["method"] == FIXED].set_index(["updates", "seed"])["err"]
    base = fixed.reindex(pd.MultiIndex.from_frame(table[["updates", "seed"]])).to_numpy()
    table = table.assign(excess=np.log(table["err"]) - np.log(base))
    names = ("fixed", "linear", "cosine", "piecewise", "random", "reversed")
    palette = dict(zip(names, ("C2", "C0", "C9", "C3", "C4", "C7"), strict=True))
    how = {"hue": "schedule", "palette": palette, "marker": "o", "errorbar": ("pi", 100)}
    sns.lineplot(table, x="updates", y="excess", ax=axes[0], legend=False, **how)
    mean = table.groupby(["schedule", "updates"], as_index=False)[["gmacs", "err"]].mean()
    sns.lineplot(mean, x="gmacs", y="err", hue="schedule", palette=palette, marker="o", ax=axes[1])
    axes[0].axhline(np.log(1.03), color="0.4", linestyle=":")
    axes[0].set(ylabel="log err - log err of fixed")
    axes[1].set(xscale="log", xlabel="multiply-adds (10^9)", ylabel="rms error")


@figure(
    "In-painting",
    caption="Test pictures (first seed): the original and what fills a hole of 12 x 12 pixels; below, "
    "reconstructions of validation pictures from a quarter of their blocks.",
    alt="Rows of six small pictures of clothing: the originals, in-painted by LMD, the pixel MAE and the diffusion "
    "model, and reconstructed from a quarter by LMD and the pixel MAE.",
    size=(6.0, 6.0),
)
def pictures(results: Evidence, ax) -> None:  # noqa: ANN001
    shown = [("original", LMD, "truth"), *[(f"{NAMES[m]}\nhole", m, "hole") for m in (LMD, MAE, "ddpm")]]
    shown += [(f"{NAMES[m]}\n75% hidden", m, "masked") for m in (LMD, MAE)]
    rows = []
    for name, method, kind in shown:
        of = results.state.get(("fashion", method), {})
        rows += [(name, np.hstack(of[key])) for key in sorted(of) if key.startswith(kind)][:1]
    ax.imshow(np.vstack([picture for _, picture in rows]), cmap="gray", vmin=0, vmax=255)
    side = rows[0][1].shape[0]
    ax.set_yticks([side * (i + 0.5) for i in range(len(rows))], [name for name, _ in rows])
    ax.set_xticks([])
    ax.grid(False)


@figure(
    "What in-painting costs",
    caption="Error inside the hole against multiply-adds a picture, the autoencoder's encoding and decoding included. "
    "Dashed: the nearest training picture; dotted: the mean picture.",
    alt="Points for LMD, pixel MAE, latent MAE and pixel diffusion: error in the hole against cost on a log axis, "
    "with two horizontal lines.",
)
def inpainting_cost(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    table = results.of("fashion").dropna(subset=["hole_rms"])
    table = table.assign(model=table["method"].map(NAMES))
    measured = table.dropna(subset=["hole_gmacs"])
    sns.scatterplot(measured, x="hole_gmacs", y="hole_rms", hue="model", palette=COLOURS, s=60, ax=ax)
    for method, style in (("nearest", "--"), ("mean-picture", ":")):
        ax.axhline(table.loc[table["method"] == method, "hole_rms"].mean(), color="0.4", linestyle=style)
    ax.set(xscale="log", xlabel="multiply-adds a picture (10^9)", ylabel="rms error in the hole")
