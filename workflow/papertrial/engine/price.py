"""What a selection will cost, before anything is submitted: for exactly the jobs that the DAG would run now.

A figure rests on the best that is known of it, and says so:

recorded   the same runs at the same scale, measured before
counted    floating-point operations of the network, counted, against a recorded job's or an assumed rate
scaled     a recorded run of another scale, times the ratio of evaluations (seeds, and tuning points times tuning
           seeds) and of the problem's declared ``work``; without a declaration only where its settings are the same
unknown    nothing of that is there: never a made-up number
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from papertrial.engine import networks, records
from papertrial.engine.cards import Card, Scale
from papertrial.engine.plans import Planner, absent, needed_paths
from papertrial.engine.records import Spent, evaluations
from papertrial.engine.units import Run, cut

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
        self._cuts: dict[str, dict[str, list[Run]]] = {}
        self._known: dict[tuple[str, Scale], records.Recorded | None] = {}

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
        work = self._cut(paper)[name]
        gpu = bool(at.gpu) and self.device != "cpu"
        ways = (self._from(card, work, self._record(card, s), gpu) for s in self._sources)
        seconds, basis, source = next(filter(None, ways), (None, "unknown", None))
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
            source.bytes_per_seed * seeds if source and source.bytes_per_seed is not None else None,
            source.watts * seconds if source and source.watts and seconds is not None else None,
        )

    def _cut(self, paper: str) -> dict[str, list[Run]]:
        if paper not in self._cuts:
            card, extra = self.planner.project.card(paper), self.planner.project.config.extra_seeds
            self._cuts[paper] = cut(card, self.scale, extra)
        return self._cuts[paper]

    def _record(self, card: Card, scale: Scale) -> records.Recorded | None:
        key = f"{card.chapter}/{card.slug}", scale
        if key not in self._known:
            self._known[key] = records.of_paper(card, scale)
        return self._known[key]

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
        ours, theirs = (
            self._size(card, factors, run["problem"], run["method"], self.scale),
            self._size(card, factors, spent.problem, run["method"], scale),
        )
        return evaluated * ours / theirs if ours and theirs else None

    def _size(self, card: Card, factors: list[str], run: Mapping[str, Any], method: str, scale: Scale) -> float | None:
        """The product of the factors; None where one can't be told at that scale."""
        found = []
        for factor in factors:
            if factor in _models(card):
                counted = self.count(factor, scale)
                found.append(counted.flops if counted else None)
            else:
                found.append(size(run, factor, method))
        return None if None in found else prod(found)

    def _counted(self, card: Card, work: list[Run]) -> float | None:
        """GPU seconds of forward passes: where every run's ``work`` names a network, the rest counts its passes."""
        operations = 0.0
        for run in work:
            factors = card.problems[run["problem"]["name"]].work or []
            operations_each = self._size(card, factors, run["problem"], run["method"], self.scale)
            if operations_each is None or not _models(card).intersection(factors):
                return None
            operations += evaluations(run) * operations_each
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
        ours, theirs = ([size(settings, factor) for factor in card.work] for settings in (here, there))
        return None if None in ours or None in theirs else prod(ours) / prod(theirs)

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


def _models(card: Card) -> set[str]:
    """The base models that a paper needs, by name."""
    return {asked.partition("/")[0] for asked in card.needs.models}


def size(settings: Mapping[str, Any], factor: str, method: str = "") -> float | None:
    """A factor of a card's ``work`` as a number; None where the settings don't tell.

    A list of numbers counts as its sum, a mapping by method as the method's entry; ``len(grid)`` counts members.
    """
    name = factor.removeprefix("len(").removesuffix(")")
    setting = settings.get(name)
    if isinstance(setting, dict):
        setting = setting.get(method)
    members = setting if isinstance(setting, list) else [setting]
    if name != factor:
        return float(len(members)) if setting is not None else None
    numbers = [m for m in members if isinstance(m, int | float) and not isinstance(m, bool)]
    return float(sum(numbers)) if len(numbers) == len(members) else None
