"""Places criteria on strips: a forest plot in which every criterion has an axis of its own.

Criteria come in different units, so what can be read across them is on which side of its threshold a number
lies, and how far its interval keeps from it. Every strip therefore has its threshold in the middle and the side
that the claim needs on the right, whichever way the criterion's inequality points; its scale is what its own
numbers need.
"""

import math
from typing import Any, NamedTuple

from papertrial.atlas.wording import number

Record = dict[str, Any]
REACH = 44  # per cent of the width on either side of the threshold
SPAN = 20  # from this ratio of the largest to the smallest number on, a strip is logarithmic
OUTCOME = {True: "passes", False: "fails", None: "undecided"}
SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


class Mark(NamedTuple):
    """A method's estimate and interval on a strip, in per cent of its width."""

    at: float | None
    low: float | None
    high: float | None


class Strip(NamedTuple):
    criterion: Record
    held: list[Record | None]  # the same criterion of each control, where it has one
    ours: Mark
    controls: list[Mark]
    logarithmic: bool
    outcome: str
    words: str  # the same for those who can't see it


def strips(claim: Record) -> list[Strip]:
    """One strip a criterion of a claim's record."""
    held = [_beside(claim["criteria"], control["criteria"]) for control in claim["controls"]]
    return [_strip(criterion, [h[row] for h in held]) for row, criterion in enumerate(claim["criteria"])]


def _beside(ours: list[Record], control: list[Record]) -> list[Record | None]:
    """The control's criterion for each of ours: a control may lack some, and may name them after its own results."""
    if [(c["op"], c["threshold"]) for c in ours] == [(c["op"], c["threshold"]) for c in control]:
        return list(control)
    known = {(c["name"], c["op"]): c for c in control}
    return [known.get((c["name"], c["op"])) for c in ours]


def _strip(criterion: Record, held: list[Record | None]) -> Strip:
    controls = [c for c in held if c]
    shown = [c[key] for c in (criterion, *controls) for key in ("estimate", "low", "high")]
    numbers = [x for x in (*shown, criterion["threshold"]) if x is not None]
    logarithmic = min(numbers) > 0 and max(numbers) / min(numbers) > SPAN
    scale = math.log if logarithmic else float
    needed = 1 if criterion["op"] in (">", ">=") else -1

    def distance(x: float) -> float:
        return needed * (scale(x) - scale(criterion["threshold"]))

    furthest = max(abs(distance(x)) for x in numbers) or 1.0

    def place(x: float | None) -> float | None:
        return None if x is None else round(50 + REACH * distance(x) / furthest, 2)

    def mark(c: Record) -> Mark:
        ends = sorted(e for e in (place(c["low"]), place(c["high"])) if e is not None)
        return Mark(place(c["estimate"]), *(ends if len(ends) == 2 else (None, None)))

    marks = [mark(c) for c in controls]
    outcome, words = OUTCOME[criterion["passed"]], _words(criterion, controls)
    return Strip(criterion, held, mark(criterion), marks, logarithmic, outcome, words)


def _words(criterion: Record, controls: list[Record]) -> str:
    said = f"{number(criterion['estimate'])}"
    if criterion["low"] is not None:
        said += f", interval {number(criterion['low'])} to {number(criterion['high'])}"
    said += f", needed {SIGNS[criterion['op']]} {number(criterion['threshold'])}: {OUTCOME[criterion['passed']]}"
    return said + "".join(f"; control {number(c['estimate'])}" for c in controls)
