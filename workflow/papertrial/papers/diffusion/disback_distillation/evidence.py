"""What the rows of DisBack say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, at_least, interval, point

DISBACK, DI, NEVER = "disback", "diff-instruct", 2.0
FM8, ABLATIONS, NORMALISED, GRID = "fm8", "fm8-ablations", "fm8-normalised", "grid25"


def stage(results: Evidence, problem: str, name: str, method: str | None = None) -> pd.DataFrame:
    """The rows of a part of the trainings."""
    rows = results.of(problem, method)
    return rows[rows["stage"] == name].dropna(axis=1, how="all")


def present(results: Evidence, *problems: str) -> list[str]:
    """The problems that DisBack, or the control in its place, has rows on."""
    rows = results.rows[results.rows["method"] == DISBACK]
    found = [p for p in problems if (rows["problem"] == p).any()]
    if not found:
        raise LookupError(f"no results of {DISBACK} on {' or '.join(problems)}")
    return found


def first_reaches(results: Evidence, problem: str) -> pd.DataFrame:
    """Per seed: the target, and the passes after which each method's running median of three first has reached it."""
    curves = stage(results, problem, "curve").sort_values("iteration")
    curves = curves[curves["iteration"] > 0]  # where nothing has been trained
    found = []
    for seed, rows in curves.groupby("seed"):
        curve = {m: rows[rows["method"] == m].set_index("passes")["distance"] for m in (DISBACK, DI)}
        target = 1.05 * curve[DI].iloc[-3:].mean()
        smooth = {m: c.rolling(3, center=True, min_periods=2).median() for m, c in curve.items()}
        reached = {m: c.index[c <= target].min() for m, c in smooth.items()}
        found.append({"seed": seed, "target": target, "all": curve[DI].index[-1], **reached})
    return pd.DataFrame(found)


def passes_ratio(results: Evidence, problem: str) -> np.ndarray:
    """Per seed: passes to the target, DisBack over Diff-Instruct."""
    found = first_reaches(results, problem)
    return (found[DISBACK] / found[DI].fillna(found["all"])).fillna(NEVER).to_numpy()


@claim("c1")
def converges_faster(results: Evidence) -> list[Criterion]:
    needed = {FM8: ("<=", 0.8), GRID: ("<", 1.0)}
    return [
        point(f"median of passes, DisBack / Diff-Instruct, {p}", passes_ratio(results, p), *needed[p], np.median)
        for p in present(results, FM8, GRID)
    ]


def log_gain(results: Evidence, problem: str) -> np.ndarray:
    """Per seed: log distance at the end, Diff-Instruct - DisBack."""
    end = np.log(stage(results, problem, "final").pivot(index="seed", columns="method", values="distance"))
    return (end[DI] - end[DISBACK]).to_numpy()


@claim("c2")
def ends_better(results: Evidence) -> list[Criterion]:
    judged = {FM8: interval, GRID: point}
    return [
        judged[p](f"log distance of Diff-Instruct - of DisBack, {p}", log_gain(results, p), ">", 0)
        for p in present(results, FM8, GRID)
    ]


def mismatches(results: Evidence, column: str) -> dict[str, pd.DataFrame]:
    """{method: (iteration, seed) table}."""
    rows = stage(results, FM8, "mismatch")
    return {m: rows[rows["method"] == m].pivot(index="iteration", columns="seed", values=column) for m in (DISBACK, DI)}


@claim("c3")
def mismatch_is_reduced(results: Evidence) -> list[Criterion]:
    early = {m: table.iloc[:-1].mean() for m, table in mismatches(results, "in_use").items()}
    ratio = early[DISBACK] / early[DI]
    late = {m: table.iloc[-1] for m, table in mismatches(results, "to_teacher").items()}
    parts = [point(f"seed {seed}", value, "<=", 0.5) for seed, value in ratio.items()]
    return [
        at_least("seeds with early mismatch to the target in use, DisBack / Diff-Instruct, <= 0.5", 4, parts),
        point("mismatch to T_0 after backtracking, DisBack - Diff-Instruct", late[DISBACK] - late[DI], "<=", 0),
    ]


@claim("c4")
def generalises_to_normalised_gradients(results: Evidence) -> list[Criterion]:
    gain = log_gain(results, NORMALISED)
    parts = [point(f"seed {i}", float(g), ">", 0) for i, g in enumerate(gain)]
    return [at_least("seeds with log FD of the base loss - with DisBack > 0", 3, parts)]


NAMES = {
    DISBACK: "DisBack",
    DI: "Diff-Instruct",
    "warm-start": "warm start only",
    "interpolated": "interpolated path",
    "wrong-way": "wrong way (control)",
}
COLOURS = dict(zip(NAMES.values(), ("C0", "C1", "C2", "C4", "C7"), strict=True))
MEASURES = {FM8: "FD", GRID: "SW2"}


def named(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(training=rows["method"].map(NAMES))


@figure(
    "Convergence of the one-step generator",
    caption="Distance to the data against network passes, the recording included (it ends where the other curves "
    "begin); one line a seed. FD of 1,000 samples on fm8, SW2 on grid25. Dashed: Diff-Instruct's level to be reached, "
    "mean of the seeds. Dotted: where DisBack comes to its last target, the teacher.",
    alt="Two panels, fm8 and grid25: distance on a log axis against network passes for Diff-Instruct, DisBack, the "
    "wrong way and the ablations.",
    panels=2,
)
def convergence(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, (FM8, GRID), strict=True):
        rows = stage(results, problem, "curve")
        if problem == FM8:
            rows = pd.concat([rows, stage(results, ABLATIONS, "curve")])
        how = {"hue": "training", "palette": COLOURS, "units": "seed", "estimator": None, "linewidth": 1}
        order = [n for n in NAMES.values() if n in set(named(rows)["training"])]
        sns.lineplot(named(rows), x="passes", y="distance", hue_order=order, legend=problem == FM8, ax=ax, **how)
        ax.axhline(first_reaches(results, problem)["target"].mean(), color="0.4", linestyle="--", linewidth=1)
        mine = rows[rows["method"] == DISBACK]
        begun, last = mine["passes"].min(), mine["passes"].max()
        looks = stage(results, FM8, "mismatch", DISBACK)["iteration"].max()  # the last look is when the walk is over
        per_iteration = (last - begun) / max(1, mine["iteration"].max())
        ax.axvline(begun + looks * per_iteration, color="0.4", linestyle=":", linewidth=1)
        ax.set(yscale="log", xlabel="network passes", ylabel=MEASURES[problem], title=problem)
    axes[0].legend(title=None, fontsize="small")


@figure(
    "Score mismatch",
    caption="Distance between the scores of a target and of the generator's own samples (a net fitted to them), fm8, "
    "one line a seed. Left: to the target in use, small for DisBack almost by construction. Right: to the teacher, "
    "which tells whether the generator has come closer.",
    alt="Two panels of mismatch on a log axis against iterations for DisBack and Diff-Instruct.",
    panels=2,
)
def score_mismatch(results: Evidence, axes: list) -> None:
    import seaborn as sns

    rows = named(stage(results, FM8, "mismatch"))
    how = {"hue": "training", "palette": COLOURS, "hue_order": [NAMES[DISBACK], NAMES[DI]], "units": "seed"}
    for ax, column, title in zip(axes, ("in_use", "to_teacher"), ("target in use", "teacher $T_0$"), strict=True):
        sns.lineplot(rows, x="iteration", y=column, estimator=None, marker="o", legend=column == "in_use", ax=ax, **how)
        ax.set(yscale="log", ylabel="mismatch", title=title)
    axes[0].legend(title=None, fontsize="small")


@figure(
    "Quality at the end",
    caption="One dot a seed, at equal network passes: FD of 2,000 samples and SW2 of 10,000. The bar is the distance "
    "of as many real samples. The middle panel has DMD's normalised gradient and half of the passes.",
    alt="Three panels of dots, distance by method: fm8 with its ablations, fm8 with normalised gradients, grid25.",
    panels=3,
    size=(3.6, 3.6),
)
def quality_at_the_end(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, problem in zip(axes, (FM8, NORMALISED, GRID), strict=True):
        rows = stage(results, problem, "final")
        if problem == FM8:
            rows = pd.concat([rows, stage(results, ABLATIONS, "final")])
        rows = named(rows)
        order = [n for n in NAMES.values() if n in set(rows["training"])]
        sns.stripplot(rows, x="distance", y="training", hue="training", order=order, palette=COLOURS, ax=ax)
        if ax.get_legend():
            ax.get_legend().remove()
        ax.axvline(rows["floor"].mean(), color="0.4", linewidth=1)
        ax.set(xlim=(0, None), xlabel=MEASURES.get(problem, "FD, normalised"), ylabel="", title=problem)
        if ax is not axes[0]:
            ax.set_yticks(range(len(order)), labels=[n.split(" (")[0] for n in order])


@figure(
    "Samples in one evaluation",
    caption="Left: fm8, the same noise for all, columns are labels 0 to 9, twice. Middle and right: grid25.",
    alt="Rows of small grey pictures of clothing, and two scatter plots of a 5 x 5 grid of clusters.",
    panels=3,
    size=(4.2, 3.6),
)
def samples(results: Evidence, axes: list) -> None:
    def of(problem: str, method: str) -> np.ndarray:
        state = results.state[problem, method]
        return np.asarray(state[sorted(state)[0]], np.float32)

    drawn = [DISBACK, DI, "wrong-way"]
    rows = []
    for method in drawn:
        x = of(FM8, method)[:20, 0]
        rows += [np.concatenate(x[:10], axis=1), np.concatenate(x[10:20], axis=1)]  # (size, 10 size) each
    axes[0].imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1)
    height = len(rows[0])
    centres = (2 * np.arange(len(drawn)) + 1) * height - 0.5
    axes[0].set(xticks=[], yticks=centres, yticklabels=["DisBack", "Diff-\nInstruct", "wrong\nway"])
    for ax, method in zip(axes[1:], drawn[:2], strict=True):
        x = of(GRID, method)
        ax.scatter(x[:, 0], x[:, 1], s=2, color=COLOURS[NAMES[method]], linewidth=0)
        ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", title=NAMES[method])
