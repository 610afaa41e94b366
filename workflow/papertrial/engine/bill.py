"""The price of a selection as a table, and how far the same reckoning was off where it can be checked."""

from collections.abc import Iterable
from dataclasses import dataclass

from papertrial.engine import records
from papertrial.engine.cards import Scale
from papertrial.engine.errors import PapertrialError
from papertrial.engine.plans import Planner
from papertrial.engine.price import BASES, Estimate, Pricer
from papertrial.engine.units import cut

HEAD = ("", "jobs", "CPU h", "GPU h", "memory MB", "disk MB", "energy kWh", "basis", "off by")


@dataclass(frozen=True)
class Line:
    """What one paper's or one base model's jobs come to."""

    name: str
    jobs: list[Estimate]
    off: float | None = None

    def cells(self) -> tuple[str, ...]:
        priced = [j for j in self.jobs if j.seconds is not None]
        unknown = len(self.jobs) - len(priced)
        bases = [b for b in BASES if any(j.basis == b for j in self.jobs)]
        return (
            self.name,
            str(len(self.jobs)),
            _hours(j.seconds for j in self.jobs if not j.gpu),
            _hours(j.seconds for j in self.jobs if j.gpu),
            _memory(self.jobs),
            _sum(self.jobs, "disk", 1e6, "unknown"),
            _sum(self.jobs, "joules", 3.6e6, "not measured"),
            ", ".join(f"{unknown} unknown" if b == "unknown" else b for b in bases),
            f"x{self.off:.2g}" if self.off else "",
        )


def bill(planner: Planner, scale: Scale, device: str, gpu_tflops: float) -> str:
    """The table for everything of the selected papers that is due at a scale."""
    pricer = Pricer(planner, scale, device, gpu_tflops * 1e12)
    units, models, datasets = pricer.jobs(planner.project.selected)
    lines = [
        Line(paper, [pricer.unit(paper, u) for u in due], _off(planner, paper)) for paper, due in units.items() if due
    ]
    lines += [
        Line(f"base model {name}", [pricer.model(name, _part(p)) for p in paths_]) for name, paths_ in models.items()
    ]
    if not lines and not datasets:
        return f"{scale} scale: nothing to run"
    everything = Line("total", [job for line in lines for job in line.jobs])
    text = [_table([HEAD, *(line.cells() for line in [*lines, everything])])]
    if datasets:
        text.append(f"data sets to prepare, not priced: {', '.join(sorted(map(_part, datasets)))}")
    return "\n".join([*text, *_notes(everything.jobs, scale, device, gpu_tflops)])


def check(planner: Planner, scale: Scale, source: Scale) -> str:
    """What a scale would have been priced at from another one's records, against what it took."""
    rows, factors = [("", "predicted CPU s", "measured CPU s", "off by")], []
    for paper in planner.project.selected:
        found = _held_against(planner, paper, scale, source)
        if found is None:
            continue
        predicted, measured = found
        off = "unknown" if predicted is None else f"x{max(predicted / measured, measured / predicted):.2g}"
        rows.append((paper, "unknown" if predicted is None else f"{predicted:.1f}", f"{measured:.1f}", off))
        factors.append(None if predicted is None else max(predicted / measured, measured / predicted))
    if not factors:
        raise PapertrialError(f"no paper has been measured both at {source} and at {scale} scale; run both first")
    told = sorted(f for f in factors if f is not None)
    within = sum(f <= 1.5 for f in told)
    median = f", median x{told[len(told) // 2]:.2g}" if told else ""
    return "\n".join(
        [
            _table(rows),
            f"{scale} predicted from {source}: {len(told)} of {len(factors)} papers can be priced{median}; "
            f"within a factor of 1.5: {within} of {len(factors)}",
        ]
    )


def _held_against(planner: Planner, paper: str, scale: Scale, source: Scale) -> tuple[float | None, float] | None:
    """(predicted, measured) seconds of all units of a paper; None where one of both scales hasn't been measured."""
    card = planner.project.card(paper)
    took, known = records.of_paper(card, scale), records.of_paper(card, source)
    if took is None or known is None or took.device != known.device:
        return None
    pricer = Pricer(planner, scale, took.device, sources=(source,))
    priced = [pricer.unit(paper, unit).seconds for unit in cut(card, scale)]
    predicted = None if None in priced else sum(priced)
    return predicted, took.total


def _off(planner: Planner, paper: str) -> float | None:
    """By what factor laptop scale was mispriced from smoke scale, where both have run."""
    found = _held_against(planner, paper, "laptop", "smoke")
    if found is None or found[0] is None:
        return None
    return max(found[0] / found[1], found[1] / found[0])


def _notes(jobs: list[Estimate], scale: Scale, device: str, gpu_tflops: float) -> list[str]:
    found = {j.basis for j in jobs}
    notes = []
    if "unknown" in found:
        notes.append("unknown: nothing comparable has run, and the card declares no work:; totals leave it out")
    if "scaled" in found:
        notes.append("scaled: a recorded run of another scale, times seeds, tuning and the card's work:")
    if any(j.basis == "counted" and j.gpu for j in jobs):
        notes.append(f"counted: operations on the meta device; assumed of a GPU: {gpu_tflops:g} TFLOP/s (--gpu-tflops)")
        notes.append("         of a unit only the forward passes that work: names, so less than it takes if it trains")
    if any(j.peak_mb is None for j in jobs):
        notes.append("memory: what the card asks for (<=) where no run at this scale was measured")
    if device == "cpu":
        notes.append(f"device: cpu; --device cuda prices the jobs that ask for a GPU at {scale} scale on one")
    notes.append("off by: this reckoning of laptop scale from smoke scale against what laptop scale took")
    return notes


def _part(path: str) -> str:
    return path.split("/")[-1].partition("@")[0]


def _hours(seconds: Iterable[float | None]) -> str:
    known = list(seconds)
    priced = [s for s in known if s is not None]
    if not known:
        return "-"
    text = f"{sum(priced) / 3600:.3g}"
    return "unknown" if not priced else text if len(priced) == len(known) else f">= {text}"


def _memory(jobs: list[Estimate]) -> str:
    if all(j.peak_mb is not None for j in jobs):
        return f"{max((j.peak_mb for j in jobs), default=0):.0f}"
    return f"<= {max(j.asked_mb for j in jobs)}"


def _sum(jobs: list[Estimate], name: str, unit: float, nothing: str) -> str:
    known = [getattr(j, name) for j in jobs if getattr(j, name) is not None]
    if not known:
        return nothing
    return ("" if len(known) == len(jobs) else ">= ") + f"{sum(known) / unit:.3g}"


def _table(rows: list[tuple[str, ...]]) -> str:
    """Columns as wide as they must be; words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {i for i, name in enumerate(rows[0]) if name in ("", "basis")}
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
    return "\n".join(lines)
