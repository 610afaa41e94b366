"""From a card to the runs of a scale, and from runs to units: the slices that one job computes."""

from itertools import product
from typing import Any

from papertrial.engine.cards import AtScale, Card, Scale, Settings, Tune, UnitSlice
from papertrial.engine.errors import PapertrialError

Run = dict[str, Any]  # problem, method, settings, seeds, tune: plain data, goes into plans and fingerprints


def runs(card: Card, scale: Scale, extra_seeds: int = 0) -> list[Run]:
    """Every (problem, method) of a paper at a scale with its settings and seeds, in the yaml's order."""
    at = card.scales[scale]
    found = []
    for name, problem in card.problems.items():
        here = at.problems.get(name)
        chosen = (here.methods if here else None) or problem.methods or list(card.methods)
        seeds = at.seeds if here is None or here.seeds is None else here.seeds
        settings = {**problem.settings, **at.settings, **(here.settings if here else {}), "name": name}
        for method_name in chosen:
            method = card.methods[method_name]
            found.append(
                {
                    "problem": settings,
                    "method": method_name,
                    "settings": {**method.settings, **method.on.get(name, {})},
                    "seeds": _seeds(seeds, extra_seeds),
                    "tune": _tuning(card, at, method_name, name),
                }
            )
    return found


def _seeds(seeds: int | list[int], extra: int) -> list[int]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    return chosen + list(range(max(chosen) + 1, max(chosen) + 1 + extra))


def _tuning(card: Card, at: AtScale, method: str, problem: str) -> Run | None:
    for tune in card.tune:
        if method in tune.grids and (tune.problems is None or problem in tune.problems):
            points = grid_points(tune, method)
            return {
                "points": points[: at.trials] if at.trials else points,
                "seeds": tune.seeds,
                "metric": tune.metric,
                "goal": tune.goal,
                "edge": tune.edge and at.trials is None,
            }
    return None


def grid_points(tune: Tune, method: str) -> list[Settings]:
    """All combinations of a method's grid."""
    grid = tune.grids[method]
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def cut(card: Card, scale: Scale, extra_seeds: int = 0) -> dict[str, list[Run]]:
    """{unit: its runs}. A unit of kind tune stands before the runs that it serves where seeds are split."""
    everything = runs(card, scale, extra_seeds)
    how = card.scales[scale].units
    if how == "paper":
        return {"all": everything}
    if how in ("method", "problem"):
        units: dict[str, list[Run]] = {}
        for run in everything:
            name = run["method"] if how == "method" else run["problem"]["name"]
            units.setdefault(name, []).append(run)
        return units
    if how == "run":
        return _one_by_one(everything)
    return _slices(card, scale, everything, how)


def _one_by_one(everything: list[Run]) -> dict[str, list[Run]]:
    units = {}
    for run in everything:
        name = f"{run['problem']['name']}.{run['method']}"
        tuned_by = None
        if run["tune"]:
            tuned_by = f"{name}.tune"
            units[tuned_by] = [{**run, "seeds": []}]
        for seed in run["seeds"]:
            units[f"{name}.{seed}"] = [{**run, "seeds": [seed], "tune": None, "tuned_by": tuned_by}]
    return units


def _slices(card: Card, scale: Scale, everything: list[Run], slices: dict[str, UnitSlice]) -> dict[str, list[Run]]:
    units: dict[str, list[Run]] = {name: [] for name in slices}
    for run in everything:
        method, problem = run["method"], run["problem"]["name"]
        homes = [
            name
            for name, part in slices.items()
            if (part.methods is None or method in part.methods) and (part.problems is None or problem in part.problems)
        ]
        if len(homes) != 1:
            raise PapertrialError(
                f"config/papers/{card.chapter}/{card.slug}.yaml: scales.{scale}.units: the run of {method} on "
                f"{problem} belongs to {' and '.join(homes) if homes else 'no unit'}; every run belongs to exactly one"
            )
        units[homes[0]].append(run)
    empty = [name for name, part in units.items() if not part]
    if empty:
        raise PapertrialError(
            f"config/papers/{card.chapter}/{card.slug}.yaml: scales.{scale}.units: {', '.join(empty)} has no runs"
        )
    return units
