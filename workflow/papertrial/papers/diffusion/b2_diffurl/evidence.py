"""What the rows of B2-DiffuRL say about its four claims."""

import numpy as np
import pandas as pd

from papertrial.engine.evidence import Evidence, claim, figure
from papertrial.engine.verdicts import Criterion, interval, point

TASKS = ("ring8-prompt", "fm8-prompt")
FINAL = 0  # round of the rows on the larger number of samples, after the last update
LABELS = {
    "b2": "B2-DiffuRL",
    "ddpo": "DDPO",
    "bpt": "progressive only",
    "bs": "branches only",
    "dpok": "DPOK",
    "dpok-b2": "DPOK with B2",
    "reward-weighted": "reward-weighted",
    "permuted": "shuffled rewards",
}


def final(results: Evidence, task: str) -> pd.DataFrame:
    """Final reward, one column a method, one row a seed."""
    rows = results.of(task)
    return rows[rows["round"] == FINAL].pivot(index="seed", columns="method", values="reward")


def present(results: Evidence, method: str = "b2") -> list[str]:
    """The tasks that a method, or the control in its place, has rows on."""
    rows = results.rows
    tasks = [t for t in TASKS if ((rows["problem"] == t) & (rows["method"] == method)).any()]
    if not tasks:
        raise LookupError(f"no results of {method}")
    return tasks


@claim("c1")
def better_alignment(results: Evidence) -> list[Criterion]:
    criteria = []
    for task in present(results):
        reward = final(results, task)
        gain = (reward["b2"] - reward["ddpo"]).to_numpy()
        criteria.append(interval(f"reward of B2-DiffuRL - reward of DDPO, {task}", gain, ">", 0))
    return criteria


def matched(results: Evidence, task: str) -> tuple[np.ndarray, int]:
    """Differences of diversity at equal reward, a seed each; and how many runs never came to that reward."""
    goal = 0.95 * final(results, task)[["b2", "ddpo"]].min(axis=1)
    found: dict[str, list[float]] = {}
    for method in ("b2", "ddpo"):
        rows = results.of(task, method)
        rows = rows[rows["round"] != FINAL].sort_values("round")
        reached = rows[rows["reward"] >= rows["seed"].map(goal)].groupby("seed")["diversity"].first()
        found[method] = reached.reindex(goal.index)
    table = pd.DataFrame(found)
    missing = int(table.isna().to_numpy().sum())
    table = table.dropna()
    return (table["b2"] - table["ddpo"]).to_numpy(), missing


@claim("c2")
def more_diversity(results: Evidence) -> list[Criterion]:
    criteria = []
    for task in present(results):
        gain, missing = matched(results, task)
        criteria.append(point(f"runs that never reach the common reward, {task}", missing, "<=", 0))
        if len(gain):
            criteria.append(interval(f"diversity of B2-DiffuRL - diversity of DDPO, {task}", gain, ">", 0))
    return criteria


@claim("c3")
def both_components_help(results: Evidence) -> list[Criterion]:
    parts = [final(results, task)[["b2", "bpt", "bs", "ddpo"]] for task in present(results)]
    average = sum(parts) / len(parts)
    criteria = []
    for part in ("bpt", "bs"):
        name = LABELS[part]
        criteria += [
            point(f"full - {name}", (average["b2"] - average[part]).to_numpy(), ">=", 0),
            point(f"{name} - DDPO", (average[part] - average["ddpo"]).to_numpy(), ">=", 0),
        ]
    return [*criteria, interval("full - DDPO", (average["b2"] - average["ddpo"]).to_numpy(), ">", 0)]


@claim("c4")
def combines_with_dpok(results: Evidence) -> list[Criterion]:
    reward = final(results, "ring8-prompt")
    gain = (reward["dpok-b2"] - reward["dpok"]).to_numpy()
    return [interval("reward of DPOK with B2 - reward of DPOK", gain, ">", 0)]


@figure(
    "Learning",
    caption="Mean reward of the samples that a round asks rewards for, before its update; mean and range of the seeds. "
    "All methods have the same number of queries a round.",
    alt="Two panels of rising reward curves by round, one line a method.",
    panels=2,
)
def learning(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, task in zip(axes, TASKS, strict=True):
        rows = results.traces[results.traces["problem"] == task].dropna(subset=["rollout_reward"])
        rows = rows.assign(method=rows["method"].map(LABELS))
        how = {"hue": "method", "hue_order": list(LABELS.values()), "palette": "colorblind"}
        sns.lineplot(rows, x="round", y="rollout_reward", ax=ax, errorbar=("pi", 100), legend=task == TASKS[0], **how)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(title=task, ylabel="reward")
    axes[0].legend(fontsize="x-small")


@figure(
    "Final reward",
    caption="Reward of the last policy, a dot a seed. Dashed: the base model; dotted: the best of eight of its "
    "samples.",
    alt="Two panels of dots of the final reward by method.",
    panels=2,
    size=(6.0, 4.0),
)
def final_reward(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, task in zip(axes, TASKS, strict=True):
        rows = results.of(task)
        rows = rows[rows["round"] == FINAL]
        rows = rows.assign(method=rows["method"].map(LABELS))
        sns.stripplot(rows, x="reward", y="method", hue="method", ax=ax, palette="colorblind", legend=False)
        traces = results.traces[results.traces["problem"] == task]
        for column, style in (("base_reward", "--"), ("best_of_8", ":")):
            if column in traces and traces[column].notna().any():
                ax.axvline(traces[column].mean(), color="0.4", linestyle=style)
        ax.set(title=task, ylabel="")


@figure(
    "Diversity against reward",
    caption="Every evaluation of every seed: diversity of rewarded samples against reward. Points further up keep more "
    "of the data's spread at the same alignment.",
    alt="Two panels of scattered points, B2-DiffuRL and DDPO, with diversity falling as reward rises.",
    panels=2,
)
def diversity_against_reward(results: Evidence, axes: list) -> None:
    import seaborn as sns

    for ax, task in zip(axes, TASKS, strict=True):
        rows = results.of(task)
        rows = rows[(rows["round"] != FINAL) & rows["method"].isin(["b2", "ddpo"])]
        rows = rows.assign(method=rows["method"].map(LABELS))
        sns.scatterplot(rows, x="reward", y="diversity", hue="method", ax=ax, palette="colorblind", s=18)
        ax.set(title=task)


@figure(
    "Samples on the ring",
    caption="400 samples of the first seed's last policies on the ring, coloured by the mode asked for.",
    alt="Two scatter plots of eight clusters on a circle.",
    panels=2,
    size=(3.6, 3.6),
)
def samples_on_the_ring(results: Evidence, axes: list) -> None:
    for ax, method in zip(axes, ("b2", "ddpo"), strict=True):
        x = results.state.get(("ring8-prompt", method), {}).get("samples")
        ax.set(title=LABELS[method], aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
        if x is not None:
            x = np.asarray(x, np.float32)
            ax.scatter(*x.T, c=np.arange(len(x)) % 8, cmap="tab10", s=6)
