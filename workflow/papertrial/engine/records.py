"""What earlier runs took, from the artifacts that lie here or else from data/recorded/.

Artifacts of an older fingerprint count, too: a paper whose code moved costs about what it did.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papertrial.engine import artifacts, paths
from papertrial.engine.cards import Card, Scale
from papertrial.engine.models import BaseModelCard
from papertrial.engine.units import Run, cut

SECONDS = {"cuda": "wall_s"}  # a GPU job occupies its GPU for its wall time; any other job its core


@dataclass
class Spent:
    """What the runs of one method on one problem took: seconds, evaluations, and the problem's settings."""

    seconds: float
    evaluations: int
    problem: dict[str, Any]


@dataclass
class Recorded:
    """What a paper's units took at one scale.

    Attributes:
        overhead: seconds of a unit outside its runs (start, imports, writing), on average.
        total: seconds of all units.
        watts: mean power, where energy was measured throughout.
    """

    scale: Scale
    device: str
    runs: dict[tuple[str, str], Spent]
    overhead: float
    total: float
    peak_mb: float
    bytes_per_seed: float | None  # unknown where only the record in git is left
    watts: float | None


@dataclass
class RecordedModel:
    """What a base model's parts took at one scale."""

    device: str
    parts: dict[str, float]
    peak_mb: float
    bytes: float
    watts: float | None

    @property
    def mean(self) -> float:
        return sum(self.parts.values()) / len(self.parts)


def evaluations(run: Run) -> int:
    """How often a method is called on one seed: its seeds, and its tuning points times the tuning seeds."""
    tune = run["tune"]
    return len(run["seeds"]) + (len(tune["points"]) * len(tune["seeds"]) if tune else 0)


def of_paper(card: Card, scale: Scale) -> Recorded | None:
    """What a paper took at a scale; None where nothing is known of all of its runs."""
    folder = Path("data/runs") / scale / card.chapter / card.slug
    runs: dict[tuple[str, str], Spent] = {}
    found, overhead, size, seeds = [], [], 0, 0
    for name, planned in cut(card, scale).items():
        latest = _latest(folder, name)
        if latest is None:
            return _from_git(card) if scale == "laptop" else None
        path, told = latest
        spent = told.get("runs", [])
        if [(s["problem"], s["method"]) for s in spent] != [(r["problem"]["name"], r["method"]) for r in planned]:
            return None  # the card's runs changed since
        unit = SECONDS.get(told["device"], "cpu_s")
        for run, took in zip(planned, spent, strict=True):
            key = run["problem"]["name"], run["method"]
            whole = runs.setdefault(key, Spent(0.0, 0, run["problem"]))
            whole.seconds += took[unit]
            whole.evaluations += evaluations(run)
            seeds += len(run["seeds"])
        overhead.append(told["cost"][unit] - sum(took[unit] for took in spent))
        size += _bytes(path)
        found.append(told)
    return Recorded(
        scale,
        found[0]["device"],
        runs,
        max(0.0, sum(overhead) / len(overhead)),
        sum(t["cost"][SECONDS.get(t["device"], "cpu_s")] for t in found),
        max(t["cost"]["peak_mb"] for t in found),
        size / max(seeds, 1),
        _watts(found),
    )


def of_model(card: BaseModelCard, scale: Scale) -> RecordedModel | None:
    """What a base model's parts took at a scale; None where none of them is known."""
    folder = Path("data/models") / scale / card.name
    parts = {part: latest for part in card.scales[scale].parts if (latest := _latest(folder, part))}
    if not parts:
        return None
    told = [provenance for _, provenance in parts.values()]
    seconds = {p: t["cost"][SECONDS.get(t["device"], "cpu_s")] for p, (_, t) in parts.items()}
    size = sum(_bytes(path) for path, _ in parts.values()) / len(parts)
    return RecordedModel(told[0]["device"], seconds, max(t["cost"]["peak_mb"] for t in told), size, _watts(told))


def _from_git(card: Card) -> Recorded | None:
    """The paper's total at laptop scale, spread evenly over its evaluations."""
    try:
        cost = json.loads((paths.RECORDED / card.chapter / f"{card.slug}.json").read_text())["cost"]
    except (OSError, ValueError, KeyError):
        return None
    planned = [run for unit in cut(card, "laptop").values() for run in unit]
    each = cost["cpu_s"] / sum(map(evaluations, planned))
    runs: dict[tuple[str, str], Spent] = {}
    for run in planned:
        whole = runs.setdefault((run["problem"]["name"], run["method"]), Spent(0.0, 0, run["problem"]))
        whole.evaluations += evaluations(run)
        whole.seconds = each * whole.evaluations
    return Recorded("laptop", "cpu", runs, 0.0, cost["cpu_s"], cost["peak_mb"], None, None)


def _latest(folder: Path, name: str) -> tuple[Path, dict[str, Any]] | None:
    """The artifact of that name that was made last, and its provenance."""
    told = [(path, artifacts.provenance(path)) for path in folder.glob(f"{name}@*") if path.is_dir()]
    return max(told, key=lambda pair: pair[1]["start"], default=None)


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.iterdir())


def _watts(told: list[dict[str, Any]]) -> float | None:
    joules = [t["cost"].get("energy_j") for t in told]
    seconds = sum(t["cost"][SECONDS.get(t["device"], "cpu_s")] for t in told)
    return sum(joules) / seconds if None not in joules and seconds else None
