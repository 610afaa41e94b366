"""What a selection will cost, before anything is submitted: for exactly the jobs that the DAG would run now.

A figure rests on the best that is known of it, and says so:

recorded   the same runs at the same scale, measured before
counted    floating-point operations of the network, counted, against a recorded job's or an assumed rate
scaled     a recorded run of another scale, times the ratio of evaluations (seeds, and tuning points times tuning
           seeds) and of the problem's declared ``work``; without a declaration only where its settings are the same
unknown    nothing of that is there: never a made-up number
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from papertrial.engine import networks, records
from papertrial.engine.cards import SCALES, Card, Scale
from papertrial.engine.plans import Planner, absent, needed_paths
from papertrial.engine.records import Spent
from papertrial.engine.units import Run, cut, runs

BASES = ("recorded", "counted", "scaled", "unknown")  # from the best to none
NEAREST: dict[Scale, tuple[Scale, ...]] = {
    "smoke": ("smoke", "laptop", "paper"),
    "laptop": ("laptop", "smoke", "paper"),
    "paper": ("paper", "laptop", "smoke"),
}


@dataclass(frozen=True)
class Estimate:
    """Of one job: None where nothing is known.

    seconds: of a core, or of the GPU where ``gpu``.
    """

    seconds: float | None
    basis: str
    gpu: bool = False
    asked_mb: int = 0
    peak_mb: float | None = None
    disk: float | None = None
    joules: float | None = None


class Pricer:
    """Prices for one project.

    Args:
        planner: of the project.
        scale: what would run.
        device: where; on "cpu" nothing takes a GPU.
        gpu_rate: floating-point operations per second assumed of a GPU that has not been measured.
        sources: the scales whose records may be used, the nearest first; all by default.
    """

    def __init__(
        self,
        planner: Planner,
        scale: Scale,
        device: str = "cpu",
        gpu_rate: float = 1e13,
        sources: tuple[Scale, ...] | None = None,
    ) -> None:
        self.planner, self.scale, self.device, self.gpu_rate = planner, scale, device, gpu_rate
        self._sources = sources or NEAREST[scale]
        self._core_rate: float | None = None

    def jobs(self, papers: list[str]) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
        """The jobs that are due: {paper: units}, {base model: paths of parts}, data sets."""
        units: dict[str, list[str]] = {}
        needed: list[str] = []
        for paper in papers:
            plan = self.planner.paper(self.scale, paper)
            units[paper] = [name for name, u in plan["units"].items() if absent([u["path"]])]
            needed += needed_paths(plan["needs"]) if units[paper] else []
            needed += needed_paths(plan["shared"])
        models: dict[str, list[str]] = {}
        datasets: list[str] = []
        while needed:
            path = needed.pop(0)
            kind, name = path.split("/")[1], path.split("/")[-2]
            if not absent([path]) or path in datasets or path in models.get(name, []):
                continue
            if kind == "datasets":
                datasets.append(path)
            else:
                models.setdefault(name, []).append(path)
                needed += needed_paths(self.planner.model(self.scale, name)["needs"])
        return units, models, datasets

    def unit(self, paper: str, name: str) -> Estimate:
        """One unit of a paper."""
        card = self.planner.project.card(paper)
        at = card.scales[self.scale]
        work = cut(card, self.scale, self.planner.project.config.extra_seeds)[name]
        gpu = bool(at.gpu) and self.device != "cpu"
        ways = [w for s in self._sources for w in (self._from(card, work, records.of_paper(card, s), gpu),) if w]
        seconds, basis, source = ways[0] if ways else (None, "unknown", None)
        if gpu and seconds is None:
            seconds = self._counted(card, work)
            basis = "unknown" if seconds is None else "counted"
        same = source if source and source.scale == self.scale else None
        seeds = sum(len(run["seeds"]) for run in work)
        return Estimate(
            seconds,
            basis,
            gpu,
            at.mem_mb,
            same.peak_mb if same else None,
            source.bytes_per_seed * seeds if source else None,
            source.watts * seconds if source and source.watts and seconds is not None else None,
        )

    def _from(self, card: Card, work: list[Run], known: records.Recorded | None, gpu: bool) -> tuple | None:
        """(seconds, basis, record) of a unit's runs from what a scale's took; None if it can't be told."""
        if known is None or (known.device == "cuda") != gpu:
            return None
        seconds = known.overhead
        for run in work:
            spent = known.runs.get((run["problem"]["name"], run["method"]))
            ratio = self._ratio(card, run, spent, known.scale) if spent else None
            if ratio is None:
                return None
            seconds += spent.seconds * ratio
        return seconds, "recorded" if known.scale == self.scale else "scaled", known

    def _ratio(self, card: Card, run: Run, spent: Spent, scale: Scale) -> float | None:
        evaluated = evaluations(run) / spent.evaluations if spent.evaluations else 1.0
        if scale == self.scale:
            return evaluated
        factors = card.problems[run["problem"]["name"]].work
        if factors is None:
            return evaluated if run["problem"] == spent.problem else None
        ours, theirs = self._size(card, factors, run["problem"], self.scale), self._size(card, factors, spent.problem, scale)
        return evaluated * ours / theirs if ours and theirs else None

    def _size(self, card: Card, factors: list[str], settings: Mapping[str, Any], scale: Scale) -> float | None:
        """The product of the factors: settings of the problem, or a network's operations by the base model's name."""
        found = []
        for name in factors:
            if name in settings:
                found.append(value(settings[name]))
            elif name in {m.partition("/")[0] for m in card.needs.models}:
                counted = self.count(name, scale)
                if counted is None:
                    return None
                found.append(counted.flops)
        return prod(found)

    def _counted(self, card: Card, work: list[Run]) -> float | None:
        """GPU seconds of forward passes: where every run's ``work`` names a network, the rest counts its passes."""
        operations = 0.0
        for run in work:
            factors = card.problems[run["problem"]["name"]].work or []
            size = self._size(card, factors, run["problem"], self.scale)
            if size is None or not any(f in {m.partition("/")[0] for m in card.needs.models} for f in factors):
                return None
            operations += evaluations(run) * size
        return operations / self.gpu_rate

    def model(self, name: str, part: str) -> Estimate:
        """One part of a base model."""
        card = self.planner.project.model(name)
        at = card.scales[self.scale]
        gpu = bool(at.gpu) and self.device != "cpu"
        counted = self.count(name, self.scale)
        seconds, basis, same = None, "unknown", None
        for scale in self._sources:
            known = records.of_model(card, scale)
            if known is None or (known.device == "cuda") != gpu:
                continue
            ratio = self._model_ratio(card, scale)
            if ratio is not None:
                seconds = known.parts.get(part, known.mean) * ratio
                basis = "recorded" if scale == self.scale else "counted" if counted else "scaled"
                same = known if scale == self.scale else None
                break
        if seconds is None and counted:
            rate = self.gpu_rate if gpu else self.core_rate()
            seconds, basis = (counted.job_flops / rate, "counted") if rate else (None, "unknown")
        disk = same.bytes if same else 4.0 * counted.parameters if counted else None
        joules = same.watts * seconds if same and same.watts else None
        return Estimate(seconds, basis, gpu, at.mem_mb, same.peak_mb if same else None, disk, joules)

    def _model_ratio(self, card: Any, scale: Scale) -> float | None:
        if scale == self.scale:
            return 1.0
        ours, theirs = self.count(card.name, self.scale), self.count(card.name, scale)
        if ours and theirs:
            return ours.job_flops / theirs.job_flops
        here, there = ({**card.settings, **card.scales[s].settings} for s in (self.scale, scale))
        if card.work is None:
            return 1.0 if here == there else None
        return prod(value(here[f]) for f in card.work) / prod(value(there[f]) for f in card.work)

    def count(self, name: str, scale: Scale) -> networks.Count | None:
        """The operations of a base model's network at a scale."""
        card = self.planner.project.model(name)
        return networks.count_once(card.module, {**card.settings, **card.scales[scale].settings})

    def core_rate(self) -> float | None:
        """Operations per second of a core, from the base models that were trained here: the median."""
        if self._core_rate is None:
            rates = []
            for file in sorted(Path("config/models").glob("*.yaml")):
                card = self.planner.project.model(file.stem)
                for scale in self._sources:
                    known = records.of_model(card, scale)
                    counted = self.count(card.name, scale) if known and known.device == "cpu" else None
                    if counted:
                        rates.append(counted.job_flops / known.mean)
            self._core_rate = sorted(rates)[len(rates) // 2] if rates else 0.0
        return self._core_rate or None


def evaluations(run: Run) -> int:
    """How often a method is called on one seed: its seeds, and its tuning points times the tuning seeds."""
    tune = run["tune"]
    return len(run["seeds"]) + (len(tune["points"]) * len(tune["seeds"]) if tune else 0)


def value(setting: Any, inside: bool = False) -> float:
    """A size as a number: a list counts as the sum of its members, a list or a mapping inside one as a product."""
    if isinstance(setting, bool) or not isinstance(setting, int | float | list | dict):
        return 1.0
    if isinstance(setting, int | float):
        return float(setting)
    members = [value(v, inside=True) for v in (setting.values() if isinstance(setting, dict) else setting)]
    return prod(members) if inside or isinstance(setting, dict) else sum(members)
