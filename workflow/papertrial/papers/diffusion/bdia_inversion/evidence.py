"""What the rows of BDIA say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

BDIA, SAMPLES = "bdia", ("fm16-10", "fm16-20")
NETS = {"heun-ring8": "sw2", "heun-spiral": "sw2", "heun-fm8": "fd", "heun-fm16": "fd"}  # and their metric


@claim("c1")
def exact_at_the_cost_of_ddim(results: Evidence) -> list[Criterion]:
    rows = results.of("roundtrip").pivot(index="steps", columns="method", values=["round_trip", "latent_sd", "nfe"])
    results.of("roundtrip", BDIA)
    criteria = []
    for steps, row in rows.iterrows():
        rms, sd, nfe, n = row["round_trip"], row["latent_sd"][BDIA], row["nfe"], f"{int(steps)} steps"
        criteria += [
            point(f"{n}: round-trip rms of BDIA / of DDIM", rms[BDIA] / rms["ddim"], "<=", 0.01),
            point(f"{n}: sd of BDIA's noise", sd, ">=", 0.8),
            point(f"{n}: sd of BDIA's noise", sd, "<=", 1.25),
            point(f"{n}: evaluations of BDIA - 1.05 x DDIM's", nfe[BDIA] - 1.05 * nfe["ddim"], "<=", 2),
            point(f"{n}: evaluations of EDICT / of BDIA", nfe["edict"] / nfe[BDIA], ">=", 1.9),
        ]
    return criteria


@claim("c2")
def better_than_ddim(results: Evidence) -> list[Criterion]:
    """The control runs with 10 steps only."""
    fd = {problem: results.paired(problem, "fd") for problem in SAMPLES}
    fd = {problem: table for problem, table in fd.items() if BDIA in table}
    gains = [
        interval(f"FD of DDIM - FD of BDIA, {problem[-2:]} steps", (of["ddim"] - of[BDIA]).to_numpy(), ">", 0)
        for problem, of in fd.items()
    ]
    ten = fd[SAMPLES[0]]
    ratio = (ten[BDIA] / ten["ddim"]).to_numpy()
    return [*gains, point("FD of BDIA / of DDIM, 10 steps", ratio, "<=", 0.9)]


@claim("c3")
def better_than_heun(results: Evidence) -> list[Criterion]:
    gain = {net.removeprefix("heun-"): heun_gain(results, net) for net in NETS}
    above = [interval(f"gain on {net}", of, ">", 0) for net, of in gain.items()]
    return [
        *[point(f"mean gain on {net}", of, ">", 0) for net, of in gain.items()],
        at_least("nets whose gain is above 0 with its interval", 3, above),
    ]


def heun_gain(results: Evidence, net: str) -> np.ndarray:
    """Of every noise seed, 1 - metric of BDIA / metric of Heun, averaged over step counts."""
    metric = results.paired(net, NETS[net], "steps")
    return (1 - metric[BDIA] / metric["heun"]).groupby(level="seed").mean().to_numpy()


@claim("c4")
def keeps_the_content(results: Evidence) -> list[Criterion]:
    distance, edited = (results.paired("editing", m, "source", "target", "picture") for m in ("distance", "edited"))
    closer = (distance["ddim"] - distance[BDIA]).groupby(level="source", sort=True)
    return [
        interval("structure distance of DDIM - of BDIA", [of.to_numpy() for _, of in closer], ">", 0),
        point("edit rate of BDIA - of DDIM", (edited[BDIA] - edited["ddim"]).to_numpy(), ">=", -0.05),
    ]


NAMES = {
    BDIA: "BDIA",
    "ddim": "DDIM",
    "edict": "EDICT",
    "heun": "Heun",
    "ab2": "AB2",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "noised": "BDIA, noise of\ns = .02 added",
    "half": "control: gamma = .5",
    "no-history": "control: inverted\nby DDIM",
    "negative": "control: gamma = -.5",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C2", "C1", "C4", "C2", "C9", "C7", "C3", "C7"), strict=True))


@figure(
    "There and back",
    caption="Left: rms between a test picture and what comes back from its latent. Right: the latent's standard "
    "deviation, which the claim wants in the shaded band (10 stands for all above). With gamma = .5 the round trip "
    "is short of exact only by rounding, but the latent isn't noise.",
    alt="Two dot plots on logarithmic axes, a row a method, two dots (20 and 50 steps): round-trip error, and the "
    "standard deviation of the latent with the band from 0.8 to 1.25.",
    panels=2,
    size=(5.0, 3.4),
)
def there_and_back(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = results.of("roundtrip")
    table = table.assign(inversion=table["method"].map(NAMES), steps=table["steps"].astype(int).astype(str))
    table["latent_sd"] = table["latent_sd"].clip(upper=10)
    for ax, metric, label in zip(axes, ("round_trip", "latent_sd"), ("round-trip rms", "sd of $z_N$"), strict=True):
        how = {"hue": "steps", "palette": "colorblind", "jitter": False, "dodge": True, "size": 7}
        sns.stripplot(table, x=metric, y="inversion", ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(xscale="log", xlabel=label, ylabel="")
        ax.grid(axis="y", alpha=0.3)
    axes[1].axvspan(0.8, 1.25, color="C2", alpha=0.15)
    axes[1].set_yticklabels([])


@figure(
    "Samples at equal steps",
    caption="FD (n = 1,000) and ODE error on fm16, final denoising included; a dot is a noise seed. BDIA is a two-step "
    "method, so AB2 and DPM-Solver++(2M), each on its best grid, stand beside it with 10 steps.",
    alt="Two panels with groups of dots for 10 and 20 steps: FD and rms ODE error of DDIM, BDIA, the control and the "
    "two-step solvers.",
    panels=2,
)
def samples_at_equal_steps(results: Evidence, axes: list) -> None:
    import seaborn as sns

    table = pd.concat([results.of(problem) for problem in SAMPLES], ignore_index=True)
    table = table.assign(sampler=table["method"].map(NAMES), steps=table["steps"].astype(int).astype(str))
    for ax, metric, label in zip(axes, ("fd", "ode_rms"), ("FD", "rms ODE error"), strict=True):
        how = {"hue": "sampler", "palette": COLOURS, "dodge": True, "jitter": False}
        sns.stripplot(table, x="steps", y=metric, ax=ax, legend="auto" if ax is axes[1] else False, **how)
        ax.set(yscale="log", xlabel="solver steps", ylabel=label)
    sns.move_legend(axes[1], "upper left", bbox_to_anchor=(1, 1))


@figure(
    "BDIA-EDM against Heun",
    caption="Gain of BDIA-EDM over Heun, 1 - ratio of SW2 (plane) or FD (pictures), by steps; faint: noise seeds. "
    "gamma is chosen once per net by the mean over the three step counts on a tuning seed.",
    alt="A panel with four lines, one a net: gain against 6, 8 and 10 Heun steps, zero marked.",
)
def against_heun(results: Evidence, ax: object) -> None:
    import seaborn as sns

    tables = []
    for net, metric in NETS.items():
        found = results.paired(net, metric, "steps")
        gain = (1 - found[BDIA] / found["heun"]).rename("gain").reset_index()
        tables.append(gain.assign(net=f"{net.removeprefix('heun-')}, gamma {chosen(results, net)}"))
    table = pd.concat(tables, ignore_index=True)
    how = {"hue": "net", "palette": "colorblind"}
    sns.lineplot(table, x="steps", y="gain", ax=ax, marker="o", errorbar=None, **how)
    sns.lineplot(table, x="steps", y="gain", ax=ax, units="seed", estimator=None, alpha=0.25, legend=False, **how)
    ax.axhline(0, color="0.4", linestyle=":")
    ax.set(xlabel="Heun steps", ylabel="gain over Heun", xticks=sorted(table["steps"].unique()))


def chosen(results: Evidence, net: str) -> str:
    """The gamma that tuning settled on."""
    trials = results.trials
    rows = trials[(trials["problem"] == net) & (trials["method"] == BDIA) & (trials["chosen"] == 1)]
    return rows["settings"].iloc[0].strip("{}").split(":")[1].strip() if len(rows) else "?"


@figure(
    "Editing",
    caption="Left: test pictures inverted under their own label and generated under another (pullover to coat, shirt "
    "to dress, sneaker to boot). Right: structure distance of every picture's two edits; below the diagonal BDIA stays "
    "closer to the original. Filled: the classifier sees the new label in BDIA's edit.",
    alt="Left: a grid of small pictures, rows original, DDIM, BDIA for three kinds of edits. Right: scatter of "
    "structure distances, DDIM against BDIA, with the diagonal.",
    panels=2,
    size=(5.2, 4.0),
)
def edits(results: Evidence, axes: list) -> None:
    import seaborn as sns

    kept = {method: results.state["editing", method] for method in (BDIA, "ddim")}
    strips = []
    for pair, shown in kept[BDIA].items():  # (k, original and edited, size, size)
        strips += [shown[:, 0], kept["ddim"][pair][:, 1], shown[:, 1]]
    grid = np.concatenate([np.concatenate(list(strip), axis=1) for strip in strips])
    axes[0].imshow(grid, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    size = strips[0].shape[-1]
    names = [f"{what}" for _ in kept[BDIA] for what in ("original", "DDIM", "BDIA")]
    axes[0].set(xticks=[], yticks=size * (np.arange(len(names)) + 0.5), yticklabels=names)
    axes[0].grid(False)

    by = ["source", "target", "picture"]
    distance, edited = (results.paired("editing", metric, *by) for metric in ("distance", "edited"))
    found = distance.assign(edited=edited[BDIA].map({1: "edited", 0: "not edited"})).reset_index()
    how = {"hue": "edited", "hue_order": ["edited", "not edited"], "palette": ["C0", "0.7"], "s": 14}
    sns.scatterplot(found, x="ddim", y=BDIA, ax=axes[1], **how)
    top = float(found[["ddim", BDIA]].to_numpy().max())
    axes[1].plot([0, top], [0, top], color="0.4", linestyle=":")
    axes[1].set(xlabel="rms to the original, DDIM", ylabel="rms to the original, BDIA")
