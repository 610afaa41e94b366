"""Jobs: make one data set, one part of a base model, or one unit of a paper."""

import importlib
import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from papertrial.engine import artifacts, paths
from papertrial.engine.cost import Meter, cpu_seconds, gpu_memory, peak_mb, surroundings
from papertrial.engine.devices import lent, numerics
from papertrial.engine.energy import EnergyMeter
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Plan, moved, read_plan
from papertrial.engine.preemption import FileCheckpoint, on_sigterm, stop
from papertrial.engine.results import Inputs, Results, Row


class Lazy(Mapping):
    """A mapping whose values are loaded when first asked for."""

    def __init__(self, load: Mapping[str, Callable[[], Any]]) -> None:
        self._load, self._loaded = load, {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._loaded:
            self._loaded[key] = self._load[key]()
        return self._loaded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load)

    def __len__(self) -> int:
        return len(self._load)


def inputs_of(needs: Plan) -> Inputs:
    """What a plan's ``needs`` name, loaded on first use."""

    def later(path: str) -> Callable[[], dict[str, np.ndarray]]:
        return lambda: artifacts.state(path)

    datasets = Lazy({name: later(path) for name, path in needs["datasets"].items()})
    models = {m: Lazy({part: later(path) for part, path in parts.items()}) for m, parts in needs["models"].items()}
    return Inputs(datasets, models)


def make_dataset(path: str) -> None:
    """Download and prepare one data set at the path its plan names."""
    name, _, fingerprint = path.rpartition("/")[2].partition("@")
    with told(path):
        plan = read_plan(paths.dataset_plan()).get(name, {})
        _refuse_outdated(path, fingerprint, plan.get("fingerprint"), {})
        from papertrial.data.sources import obtain

        meter = Meter()
        module = importlib.import_module(plan["module"])
        files = {s.file: obtain(s, paths.DOWNLOADS) for s in module.SOURCES}
        arrays = module.prepare(files)
        record = {"artifact": path, "fingerprint": fingerprint, "sources": {s.file: s.sha256 for s in module.SOURCES}}
        artifacts.write(path, {}, arrays, {**record, **_account(meter)})


def make_model(path: str, device: str) -> None:
    """Train one part of a base model."""
    scale, name, last = Path(path).parts[-3:]
    part, _, fingerprint = last.rpartition("@")
    with told(path):
        plan = read_plan(paths.model_plan(scale, name))
        _refuse_outdated(path, fingerprint, plan["parts"].get(part, {}).get("fingerprint"), plan["modules"])
        checkpoint = FileCheckpoint(paths.checkpoint(fingerprint))
        settings = [plan["settings"]]
        with lent(device, plan["torch"], settings, _fit(plan)) as device, on_sigterm(checkpoint.ask):
            meter, energy = Meter(), EnergyMeter()
            recipe = importlib.import_module(plan["module"])
            found = recipe.train(part, plan["settings"], inputs_of(plan["needs"]), device, checkpoint)
            by_run: dict[tuple, list[Row]] = {}
            for row in found.rows:
                by_run.setdefault((row.get("problem"), row.get("method")), []).append(row)
            for run, rows in by_run.items():
                artifacts.check_rows(rows, {r["seed"] for r in rows}, plan["cells"], f"{path}, {run}")
            tables = {"results": found.rows, "traces": found.traces, "timings": found.timings}
            record = {"artifact": path, "fingerprint": fingerprint, "device": device, "modules": plan["modules"]}
            record |= {"gates": [_gate(g, found.rows) for g in plan["gates"]], "numerics": numerics(device, settings)}
            artifacts.write(path, tables, found.state, record | _account(meter, energy, device))
        checkpoint.discard()


def _gate(gate: dict, rows: list[Row]) -> dict:
    value = float(np.mean([row[gate["metric"]] for row in rows if gate["metric"] in row]))
    low, high = gate["min"], gate["max"]
    return {**gate, "value": value, "met": bool((low is None or value >= low) and (high is None or value <= high))}


def make_unit(path: str, device: str) -> None:
    """Run one unit of a paper: tune where the yaml says so, run, check, write."""
    scale, chapter, slug, last = Path(path).parts[-4:]
    name, _, fingerprint = last.rpartition("@")
    with told(path):
        plan = read_plan(paths.paper_plan(scale, f"{chapter}/{slug}"))
        unit = plan["units"].get(name, {})
        _refuse_outdated(path, fingerprint, unit.get("fingerprint"), plan["modules"])
        settings = [{**run["problem"], **run["settings"]} for run in unit["runs"]]
        with lent(device, plan["torch"], settings, _fit(plan)) as device, on_sigterm(stop):
            meter, energy = Meter(), EnergyMeter()
            method = importlib.import_module(f"{plan['module']}.method")
            inputs = inputs_of(plan["needs"])
            tables: dict[str, list[Row]] = {"results": [], "traces": [], "trials": [], "timings": []}
            state: dict[str, np.ndarray] = {}
            costs = []
            for run in unit["runs"]:
                spent = Meter()
                best, trials = _tune(method.run, run, inputs, device)
                tables["trials"] += trials
                if run.get("tuned_by"):
                    best = _tuned_before(unit["after"][run["tuned_by"]])
                if run["seeds"]:
                    _run(method.run, run, best, inputs, device, plan["cells"], tables, state)
                costs.append({"problem": run["problem"]["name"], "method": run["method"], **spent.read()})
            seeds = sorted({s for run in unit["runs"] for s in run["seeds"]})
            record = {"artifact": path, "fingerprint": fingerprint, "device": device, "seeds": seeds}
            record |= {"modules": plan["modules"], "needs": plan["needs"], "card": plan["page"]["card"], "runs": costs}
            record |= {"numerics": numerics(device, settings)}
            artifacts.write(path, tables, state, record | _account(meter, energy, device))


def _fit(plan: Plan) -> int:
    """How many of these jobs one GPU holds."""
    return plan["resources"].get("per_gpu", 1)


def _run(
    method: Callable[..., Results],
    run: dict,
    tuned: dict,
    inputs: Inputs,
    device: str,
    cells: list[str],
    tables: dict[str, list[Row]],
    state: dict[str, np.ndarray],
) -> None:
    """One (problem, method) with its seeds, added to the unit's tables."""
    names = {"problem": run["problem"]["name"], "method": run["method"]}
    what = f"{run['method']} on {names['problem']}"
    settings = {**run["settings"], **tuned}
    found = method(dict(run["problem"]), run["method"], settings, list(run["seeds"]), inputs, device)
    artifacts.check_rows(found.rows, run["seeds"], cells, what)
    for table in ("results", "traces", "timings"):
        rows = found.rows if table == "results" else getattr(found, table)
        tables[table] += [{**names, **row} for row in rows]
    for key, value in found.state.items():
        if not np.isfinite(value).all():
            raise PapertrialError(f"{what}: the array '{key}' is not finite")
        state["/".join((*names.values(), key))] = value


def _tune(method: Callable[..., Results], run: dict, inputs: Inputs, device: str) -> tuple[dict, list[Row]]:
    """The best of the settings that the yaml lists, by the mean of its metric over the tuning seeds."""
    tune = run["tune"]
    if tune is None:
        return {}, []
    sign = 1.0 if tune["goal"] == "min" else -1.0

    def attempt(point: dict) -> float:
        settings = {**run["settings"], **point}
        found = method(dict(run["problem"]), run["method"], settings, list(tune["seeds"]), inputs, device)
        values = [float(row[tune["metric"]]) for row in found.rows if tune["metric"] in row]
        if not values:
            raise PapertrialError(
                f"{run['method']} on {run['problem']['name']}: no row has the tuning metric '{tune['metric']}'"
            )
        mean = float(np.mean(values))
        return mean if math.isfinite(mean) else sign * math.inf  # what diverges loses

    points = list(tune["points"])
    values = [attempt(p) for p in points]
    best = min(range(len(points)), key=lambda i: sign * values[i])
    beyond = _outwards(points, best) if tune["edge"] else None
    if beyond is not None:
        points.append(beyond)
        values.append(attempt(beyond))
        best = min(range(len(points)), key=lambda i: sign * values[i])
    trials = [
        {
            "problem": run["problem"]["name"],
            "method": run["method"],
            "trial": i,
            "settings": json.dumps(point),
            "metric": tune["metric"],
            "value": value,
            "chosen": int(i == best),
        }
        for i, (point, value) in enumerate(zip(points, values, strict=True))
    ]
    return points[best], trials


def _outwards(points: list[dict], best: int) -> dict | None:
    """The next point beyond the end of a one-setting grid, by the ratio of its last two; None if inside."""
    keys = {k for p in points for k in p}
    if len(keys) != 1 or len(points) < 2:
        return None
    (key,) = keys
    values = sorted(p[key] for p in points)
    if points[best][key] == values[-1]:
        return {key: values[-1] * values[-1] / values[-2]}
    if points[best][key] == values[0]:
        return {key: values[0] * values[0] / values[1]}
    return None


def _tuned_before(path: str) -> dict:
    table = artifacts.table(path, "trials")
    chosen = [row for row in table.to_pylist() if row["chosen"]] if table is not None else []
    if not chosen:
        raise PapertrialError(f"{path}: no tuned setting in there; delete it and run again")
    return json.loads(chosen[0]["settings"])


@contextmanager
def told(artifact: str) -> Iterator[None]:
    """Turn a job's failure into one sentence and keep it for the atlas."""
    file = paths.failure(artifact)
    file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        known = isinstance(error, PapertrialError)
        if not known:
            traceback.print_exception(error)
        text = str(error) if known else f"{type(error).__name__}: {error} ({_origin(error)})"
        message = f"{artifact}: {text}"
        with suppress(OSError):  # a full disk must not hide the first error
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"artifact": artifact, "message": message}) + "\n")
        raise PapertrialError(message) from None


def _origin(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _refuse_outdated(path: str, asked: str, current: str | None, modules: dict[str, str]) -> None:
    changed = moved(modules)
    if changed:
        raise PapertrialError(f"the code changed after the plan was made ({', '.join(changed)}); run snakemake again")
    if current is None:
        raise PapertrialError("no such unit in the plan")
    if asked != current:
        raise PapertrialError(f"fingerprint {asked} is not the current one ({current}); run snakemake again")


def _account(meter: Meter, energy: EnergyMeter | None = None, device: str = "cpu") -> dict[str, Any]:
    """The whole process's cost: imports are part of the price of a job."""
    cost = {"wall_s": meter.read()["wall_s"], "cpu_s": cpu_seconds(), "peak_mb": peak_mb()}
    cost |= gpu_memory(device) | (energy.read(device) if energy else {})
    return {"start": meter.start, "cost": cost, **surroundings()}
