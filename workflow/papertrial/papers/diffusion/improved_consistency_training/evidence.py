"""What the rows of improved consistency training say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

ICT, CT = "ict", "ct"
WITHOUT = ("squared", "uniform-index", "fixed-count", "constant-weight")


def log_sw2(results: Evidence, problem: str) -> pd.DataFrame:
    """(density, updates, seed) by method."""
    return np.log(results.paired(problem, "sw2", "density", "updates"))


@claim("c1")
def better_than_consistency_training(results: Evidence) -> list[Criterion]:
    table = log_sw2(results, "plane")
    criteria = []
    for name, rows in table.groupby(level="density"):
        gain = (rows[CT] - rows[ICT]).dropna().to_numpy()
        criteria += [
            interval(f"{name}: log SW2 of CT - log SW2 of iCT", gain, ">", 0),
            point(f"{name}: mean log ratio, at least log 1.5", gain, ">=", float(np.log(1.5))),
        ]
    return criteria


@claim("c2")
def no_average_in_the_teacher(results: Evidence) -> list[Criterion]:
    table = log_sw2(results, "ablation")
    gain = (table["teacher-ema"] - table[ICT]).dropna().to_numpy()
    return [interval("log SW2 with averaged teacher - log SW2 without", gain, ">", 0)]


@claim("c3")
def every_change_contributes(results: Evidence) -> list[Criterion]:
    table = log_sw2(results, "ablation")
    worse = {name: (table[name] - table[ICT]).dropna().to_numpy() for name in WITHOUT}
    clear = [interval(f"log SW2 of {name} - log SW2 of iCT", w, ">", 0) for name, w in worse.items()]
    means = [point(f"mean log SW2 of {name} - of iCT", w, ">", 0) for name, w in worse.items()]
    return [*means, at_least("changes whose removal is clearly worse", 2, clear)]


@claim("c4")
def a_second_evaluation_helps(results: Evidence) -> list[Criterion]:
    fd = results.of("pictures", ICT).pivot(index="seed", columns="evaluations", values="fd")
    return [interval("FD of one evaluation - FD of two", (fd[1] - fd[2]).to_numpy(), ">", 0)]


NAMES = {"ict": "iCT", "ct": "CT, tuned", "independent-noise": "control", "exact": "exact draws"}


@figure(
    "One-step samples",
    caption="1,500 samples by one evaluation, first training seed: the spiral by CT at its best settings and by iCT.",
    alt="Two scatter plots of a two-armed spiral, blurred for CT and sharper for iCT.",
    panels=2,
    size=(4.2, 4.0),
)
def one_step_samples(results: Evidence, axes: list) -> None:
    for ax, method in zip(axes, (CT, ICT), strict=True):
        kept = results.state.get(("plane", method), {})
        name = next((k for k in kept if k.startswith("spiral")), None)
        if name:
            x = np.asarray(kept[name], np.float32)
            ax.scatter(*x.T, s=2, alpha=0.5, color="C0")
        ax.set(title=NAMES[method], xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal")


@figure(
    "Distance to the density",
    caption="Sliced W2 of 10,000 one-step samples, a dot a training seed; both recipes at their tuned settings. "
    "The control sees different noise at the two levels. Exact draws are the floor.",
    alt="Two panels of dots, spiral and checker: CT, iCT, the control and exact draws.",
    panels=2,
)
def distance_to_the_density(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = results.of("plane")
    for ax, (name, part) in zip(axes, rows.groupby("density"), strict=False):
        labels = part["method"].map(NAMES)
        order = [n for n in NAMES.values() if n in set(labels)]
        sns.stripplot(part.assign(recipe=labels), x="recipe", y="sw2", order=order, hue="recipe", ax=ax, legend=False)
        ax.set(yscale="log", xlabel="", ylabel="sliced W2", title=name)


@figure(
    "One ingredient less",
    caption="iCT on the spiral without one of its ingredients, and with an averaged teacher, at iCT's tuned "
    "discretisation and rate. A dot is a training seed.",
    alt="Dots of sliced W2 for iCT and five variants at 3,000 updates, for two of them at 1,500 as well.",
)
def one_ingredient_less(results: Evidence, ax: object) -> None:
    import seaborn as sns

    rows = results.of("ablation").rename(columns={"method": "recipe"})
    rows = rows.assign(updates=rows["updates"].astype(str))
    sns.stripplot(rows, x="recipe", y="sw2", hue="updates", dodge=True, ax=ax, palette="colorblind")
    ax.set(yscale="log", xlabel="", ylabel="sliced W2")
    ax.tick_params(axis="x", rotation=20)
    ax.legend(title="updates", loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


@figure(
    "Pictures by one and two evaluations",
    caption="Fréchet distance on 8 x 8 Fashion-MNIST (n = 2,000), a dot a training seed. CT with the published and "
    "with a coarse discretisation, a student distilled from the base model and the base model itself are printed "
    "for comparison. At this size a coarse CT suffices.",
    alt="Dots of FD on a log axis against the number of evaluations, one colour a method.",
)
def pictures_by_evaluations(results: Evidence, ax: object) -> None:
    import seaborn as sns

    rows = pd.concat([results.of(p) for p in ("pictures", "pictures-printed") if p in set(results.rows["problem"])])
    rows = rows.assign(evaluations=rows["evaluations"].astype(int).astype(str))
    sns.stripplot(rows, x="evaluations", y="fd", hue="method", ax=ax, palette="colorblind")
    ax.set(yscale="log", ylabel="FD")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
