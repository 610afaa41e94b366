"""What the rows of rectified flow say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

RECTIFIED = "rectified"
INDEPENDENT = ("grid25-spiral", "normal-ring8", "ring8-checker")
STARTS = (*INDEPENDENT, "normal-ring8-sorted")
TRANSFERS = ("ring8-checker", "spiral-grid25")
COSTS = {"l1": "|u|_1", "l2": "|u|_2", "l2_2": "|u|_2^2", "l2_4": "|u|_2^4"}


def measured(results: Evidence, problems: tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """The method's rows on those of the problems where it has any (a control may have fewer)."""
    rows = results.rows[results.rows["method"] == RECTIFIED]
    found = {p: rows[rows["problem"] == p] for p in problems if (rows["problem"] == p).any()}
    if not found:
        raise LookupError(f"no results of {RECTIFIED} on any of {', '.join(problems)}")
    return found


def by_stage(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Seeds by stage (1-rf, 2-rf, ...)."""
    return rows.pivot(index="seed", columns="stage", values=column)


def floor(results: Evidence, problem: str) -> float:
    """The mean SW2 of other draws of the target."""
    return float(results.of(problem, "exact")["sw2"].mean())


@claim("c1")
def costs_do_not_rise(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, rows in measured(results, STARTS).items():
        for cost, c in COSTS.items():
            C, C_0 = by_stage(rows, cost), by_stage(rows, f"{cost}_0")["1-rf"]
            name, first = f"{problem}, {c}: ", C["1-rf"] / C_0
            criteria.append(point(f"{name}C_1/C_0, mean", first.to_numpy(), "<=", 1.01))
            if problem in INDEPENDENT:
                criteria.append(point(f"{name}C_1/C_0, mean", first.to_numpy(), "<", 0.97))
            if "2-rf" in C:
                rise, ratio = (C["2-rf"] - C["1-rf"]) / C_0, C["2-rf"] / C["1-rf"]
                criteria.append(point(f"{name}(C_2 - C_1)/C_0, mean", rise.to_numpy(), "<=", 0.01))
                criteria.append(point(f"{name}C_2/C_1, mean", ratio.to_numpy(), "<=", 1.05))
        sw2, allowed = by_stage(rows, "sw2"), 4 * floor(results, problem)
        for stage in [s for s in ("1-rf", "2-rf") if s in sw2]:
            criteria.append(point(f"{problem}, {stage}: SW2, median", sw2[stage].to_numpy(), "<=", allowed, np.median))
    return criteria


@claim("c2")
def paths_get_straight(results: Evidence) -> list[Criterion]:
    criteria = []
    for problem, rows in measured(results, INDEPENDENT).items():
        s = by_stage(rows, "straightness")
        criteria += [
            interval(f"{problem}: S(1) - S(2)", (s["1-rf"] - s["2-rf"]).to_numpy(), ">", 0),
            point(f"{problem}: S(2) - 0.1 S(1), mean", (s["2-rf"] - 0.1 * s["1-rf"]).to_numpy(), "<=", 0),
            *[point(f"{problem}: S({k}), mean", s[f"{k}-rf"].to_numpy(), "<=", 0.05) for k in (2, 3) if f"{k}-rf" in s],
        ]
    return criteria


@claim("c3")
def one_step_samples(results: Evidence) -> list[Criterion]:
    rows = results.of("fm8", RECTIFIED)
    fd = by_stage(rows[rows["nfe"] == 1], "fd")
    ratio = fd["2-rf"] / fd["1-rf"]
    criteria = [point(f"FD in one step, 2-RF / 1-RF, seed {seed}", r, "<=", 0.3) for seed, r in ratio.items()]
    if "2-rf-distilled" in fd:  # the control isn't distilled
        gain = (fd["2-rf-distilled"] - fd["2-rf"]).to_numpy()
        criteria.append(point("FD in one step, 2-RF + distillation - 2-RF, mean", gain, "<=", 0))
    return criteria


@claim("c4")
def transfers(results: Evidence) -> list[Criterion]:
    return [
        point(
            f"{problem}: SW2 of 1-RF, median",
            by_stage(rows, "sw2")["1-rf"].to_numpy(),
            "<=",
            4 * floor(results, problem),
            np.median,
        )
        for problem, rows in measured(results, TRANSFERS).items()
    ]


LABELS = {
    "grid25-spiral": "grid25 to spiral",
    "normal-ring8": "normal to ring8",
    "ring8-checker": "ring8 to checker",
    "normal-ring8-sorted": "normal to ring8, sorted",
}


@figure(
    "Paths",
    caption="Paths of forty points from N(0, I) to ring8, one seed, after one, two and three rounds. They never cross "
    "at one time, and from the second round on they are straight.",
    alt="Three panels of thin lines from a normal cloud to eight spots on a ring: curved, then straight, straight.",
    panels=3,
    size=(3.2, 3.2),
)
def paths(results: Evidence, axes: list) -> None:
    kept = results.state[("normal-ring8", RECTIFIED)]
    for k, ax in enumerate(axes, start=1):
        along = kept[min(name for name in kept if name.startswith(f"paths_{k}_"))]  # (40, 21, 2)
        ax.plot(*along.transpose(2, 1, 0), color="C0", linewidth=0.8, alpha=0.7)
        ax.scatter(*along[:, 0].T, s=8, color="0.6", zorder=3)
        ax.scatter(*along[:, -1].T, s=8, color="C1", zorder=3)
        ax.set(title=f"round {k}", xticks=[], yticks=[], aspect="equal")


@figure(
    "Costs and straightness",
    caption="Left: transport costs over those of the starting coupling after one and two rounds, one point a seed; "
    "crosses are the optimal transport between samples of 500, a little more than that of the laws. Right: "
    "straightness S(k); grey, the control, which pairs ends with starts at random before the second round.",
    alt="Left: cost ratios by cost and problem, all below one. Right: S against round on a log axis, falling lines.",
    panels=2,
    size=(6.0, 4.2),
)
def costs_and_straightness(results: Evidence, axes: list) -> None:
    import seaborn as sns

    wide = results.rows[results.rows["problem"].isin(STARTS) & results.rows["method"].isin((RECTIFIED, "optimal"))]
    ratios = pd.concat(
        [wide.assign(cost=name, ratio=wide[cost] / wide[f"{cost}_0"]) for cost, name in COSTS.items()],
        ignore_index=True,
    )
    ratios = ratios.assign(pair=ratios["problem"].map(LABELS)).dropna(subset=["ratio"])
    flows = ratios[ratios["stage"].isin(("1-rf", "2-rf"))]
    how = {"x": "cost", "y": "ratio", "hue": "pair", "hue_order": list(LABELS.values()), "ax": axes[0], "dodge": True}
    sns.stripplot(flows, palette="colorblind", alpha=0.7, **how)
    sns.stripplot(ratios[ratios["stage"] == "optimal"], palette="colorblind", marker="X", legend=False, **how)
    axes[0].axhline(1, color="0.4", linewidth=0.8)
    axes[0].set(yscale="log", xlabel=None, ylabel="cost / cost of the start")
    axes[0].legend(title=None, fontsize="x-small")
    rows = results.rows.dropna(subset=["straightness"])
    rows = rows.assign(k=rows["stage"].str[0].astype(int), pair=rows["problem"].map(LABELS))
    rows = rows[rows["problem"].isin(STARTS)]
    ours, control = (rows[rows["method"] == m] for m in (RECTIFIED, "permuted"))
    how = {"x": "k", "y": "straightness", "marker": "o", "errorbar": ("pi", 100), "ax": axes[1], "legend": False}
    sns.lineplot(ours, hue="pair", hue_order=list(LABELS.values()), palette="colorblind", **how)
    sns.lineplot(control, color="0.6", **how)
    axes[1].set(yscale="log", xticks=[1, 2, 3], xlabel="round k", ylabel="S(k)")


STAGES = {
    ("vp-ode", "vp-ode"): "diffusion's ODE",
    (RECTIFIED, "1-rf"): "1-RF",
    (RECTIFIED, "1-rf-distilled"): "1-RF, distilled",
    (RECTIFIED, "2-rf"): "2-RF",
    (RECTIFIED, "2-rf-distilled"): "2-RF, distilled",
    ("permuted", "2-rf"): "control: permuted pairs",
}


@figure(
    "Pictures in one step",
    caption="FD (n = 2,000) in one Euler step and in 100, one point a seed. Dotted: as many real pictures.",
    alt="FD by stage on a log axis: near ten for one step of 1-RF, about one for 2-RF and its distillation.",
)
def pictures_in_one_step(results: Evidence, ax) -> None:  # noqa: ANN001
    import seaborn as sns

    rows = results.of("fm8")
    names = [STAGES.get(key) for key in zip(rows["method"], rows["stage"], strict=True)]
    rows = rows.assign(flow=names, steps=np.where(rows["nfe"] == 1, "1", "many")).dropna(subset=["flow"])
    order = [name for name in STAGES.values() if name in set(names)]
    sns.stripplot(rows, x="fd", y="flow", order=order, hue="steps", hue_order=["1", "many"], ax=ax)
    ax.axvline(results.of("fm8", "real")["fd"].mean(), color="0.4", linestyle=":")
    ax.set(xscale="log", xlabel="FD", ylabel=None)
    ax.legend(title="steps")


@figure(
    "Samples",
    caption="From the same noise; columns are labels 0 to 9, twice. One step of 1-RF gives the mean of its label.",
    alt="Four rows of small grey pictures of clothing, the first one blurred.",
    size=(8.0, 2.0),
)
def samples(results: Evidence, ax) -> None:  # noqa: ANN001
    kept = results.state[("fm8", RECTIFIED)]
    shown = {"1-rf_1_": "1-RF, 1 step", "2-rf_1_": "2-RF, 1 step", "2-rf-distilled_1_": "distilled"}
    many = min(int(name.split("_")[2]) for name in kept if name.startswith("samples_1-rf_") and "_1_" not in name)
    shown[f"1-rf_{many}_"] = f"1-RF, {many} steps"
    rows = [np.concatenate(kept[min(n for n in kept if n.startswith(f"samples_{k}"))], axis=1) for k in shown]
    ax.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=np.arange(len(rows)) * 8 + 3.5, yticklabels=list(shown.values()))
