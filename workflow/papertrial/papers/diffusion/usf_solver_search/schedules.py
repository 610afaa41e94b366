"""The space that is searched: a solver schedule is a list of decisions, one a step, and the levels between steps.

Every step is an exponential integrator: x_t follows exactly from the mean, over the step, of a polynomial through
known network outputs (methods.multistep). What is decided is which output is expanded (noise or data), the order of
the polynomial, whether its points lie in the past or inside the step, which past points are taken, how the first
derivative is weighted, and whether the step is taken again once the output at its end is known (a corrector, free).
DDIM, DPM-Solver, DPM-Solver++ and UniPC are constant schedules.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import log

import numpy as np
from torch import Tensor

from papertrial.methods.multistep import DATA, NOISE, mean_output
from papertrial.methods.noise_levels import GRIDS, S_MAX, S_MIN, grid
from papertrial.methods.samplers import Flow, Rule, fast_orders

INNER = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # where inside the step, as DPM-Solver-2 and -3 have it
KINDS = [(1, False), (2, False), (3, False), (2, True), (3, True)]  # (order, inner)
FIRST, LAST = -log(S_MAX), -log(S_MIN)  # lam at the noisiest and at the cleanest level
GAP = 1e-2  # between levels, in lam
JITTER = 0.1


@dataclass(frozen=True)
class Decision:
    """How a step from lam to lam + h is taken.

    data: x0 is expanded in lam; else eps.
    order: 1 to 3; order - 1 derivatives.
    inner: they come from points inside the step, at order - 1 further evaluations; else from past points.
    skip: of the past points, the newest ones passed over (0 or 1).
    midpoint: the first derivative, where it is the only one, has half the weight of the output; else the exact one.
    correct: take the step again when the output at its end is known.
    """

    data: bool = True
    order: int = 1
    inner: bool = False
    skip: int = 0
    midpoint: bool = False
    correct: bool = False

    @property
    def cost(self) -> int:
        """Evaluations."""
        return self.order if self.inner else 1


@dataclass(frozen=True)
class Point:
    """A point where the network was evaluated."""

    lam: float
    x0: Tensor
    eps: Tensor


def _evaluate(flow: Flow, x: Tensor, lam: float) -> Point:
    x0 = flow.x0(x, lam)
    return Point(lam, x0, (x - flow.path.alpha(lam) * x0) / flow.path.sigma(lam))


def rule(decision: Decision) -> Rule:
    """A decision as a step for ``samplers.solve``; steps hand on their points and a pending correction."""
    prediction, skip, order = DATA if decision.data else NOISE, decision.skip, decision.order

    def step(flow: Flow, x: Tensor, lam: float, lam_t: float, memory: dict) -> Tensor:
        here = _evaluate(flow, x, lam)
        if "correct" in memory:
            x = memory.pop("correct")(here)

        def advance(to: float, points: Sequence[Point]) -> Tensor:
            known = [(p.lam, p.x0 if decision.data else p.eps) for p in points]
            return prediction.advance(flow, x, lam, to, mean_output(prediction, lam, to, known, decision.midpoint))

        past, new, points = memory.get("past", []), [here], [here]
        if decision.inner:
            for r in INNER[order]:
                at = lam + r * (lam_t - lam)
                new.insert(0, _evaluate(flow, advance(at, points), at))
                points = [here, new[0]]
        else:
            points += past[skip : skip + order - 1]
        memory["past"] = [*new, *past][:4]  # as far back as any decision looks
        if decision.correct:
            memory["correct"] = lambda end: advance(end.lam, [*points, end])
        return advance(lam_t, points)

    return step


@dataclass(frozen=True)
class Schedule:
    """N decisions and N + 1 rising values of lam; a last evaluation denoises."""

    steps: tuple[Decision, ...]
    lams: tuple[float, ...]

    @property
    def nfe(self) -> int:
        return 1 + sum(d.cost for d in self.steps)

    @property
    def plan(self) -> tuple[list[Rule], np.ndarray]:
        """What ``solve`` takes: a rule for each step, and the levels."""
        return [rule(d) for d in self.steps], np.exp(-np.array(self.lams))

    def encoded(self) -> np.ndarray:
        """(nfe - 1, 9) a row for each step, zeros below: its decisions and the lam it leads to."""
        rows = np.zeros((self.nfe - 1, 9))
        for row, d, lam in zip(rows, self.steps, self.lams[1:], strict=False):
            orders = [d.order == k for k in (2, 3)]
            row[:] = [1, d.data, *orders, d.inner, d.skip, d.midpoint, d.correct, lam / LAST]
        return rows


def settled(steps: Sequence[Decision], lams: Sequence[float]) -> Schedule:
    """A valid schedule in its simplest form: orders that history allows, and no decision that changes nothing."""
    simple, past = [], 0
    for i, d in enumerate(steps):
        order = d.order if d.inner else min(d.order, past + 1)
        inner, correct = d.inner and order > 1, d.correct and i < len(steps) - 1  # the last output is the sample
        skip = min(d.skip, past + 1 - order) if not inner and order > 1 else 0
        two_points = order == 2 or (inner and order == 3) or (order == 1 and correct)
        data = d.data or (order == 1 and not correct)  # where both are DDIM
        simple.append(Decision(data, order, inner, skip, d.midpoint and two_points, correct))
        past += simple[-1].cost
    # FIRST stays; the others are sorted, at least GAP apart and at most LAST
    rest = np.sort(np.clip(lams[1:], FIRST, LAST))
    count = len(rest)
    rest = np.maximum.accumulate(rest - GAP * np.arange(count)) + GAP * np.arange(count)
    rest = np.clip(rest, FIRST + GAP * np.arange(1, count + 1), LAST - GAP * np.arange(count)[::-1])
    return Schedule(tuple(simple), (FIRST, *rest.tolist()))


def _lams(name: str, steps: int) -> list[float]:
    return [FIRST, *(-np.log(grid(name, steps)))[1:].tolist()]


# Fixed solvers.


def constant(decision: Decision, nfe: int, spacing: str) -> Schedule:
    """One decision at every step; a remainder of evaluations goes to a last step of lower order."""
    full, rest = divmod(nfe - 1, decision.cost)
    steps = [decision] * full + ([replace(decision, order=rest)] if rest else [])
    return settled(steps, _lams(spacing, len(steps)))


def dpm3_fast(nfe: int, spacing: str) -> Schedule:
    """DPM-Solver's own rule for spending evaluations in steps of order 3 and lower."""
    steps = [Decision(False, k, k > 1, midpoint=k == 2) for k in fast_orders(nfe - 1)]
    return settled(steps, _lams(spacing, len(steps)))


def _always(decision: Decision) -> Callable[[int, str], Schedule]:
    return lambda nfe, spacing: constant(decision, nfe, spacing)


SOLVERS: dict[str, Callable[[int, str], Schedule]] = {
    "DDIM": _always(Decision()),
    "DPM-2": _always(Decision(data=False, order=2, inner=True, midpoint=True)),
    "DPM-3": dpm3_fast,
    "2M": _always(Decision(order=2, midpoint=True)),
    "3M": _always(Decision(order=3, midpoint=True)),
    "UniPC-2": _always(Decision(order=2, midpoint=True, correct=True)),
    "UniPC-3": _always(Decision(order=3, midpoint=True, correct=True)),
}


def fixed(nfe: int) -> dict[Schedule, str]:
    """Every fixed solver on every grid, with its name."""
    named = {make(nfe, spacing): f"{name}, {spacing}" for name, make in SOLVERS.items() for spacing in GRIDS}
    return {schedule: name for schedule, name in named.items() if schedule.nfe == nfe}


def constants(nfe: int, spacing: str) -> list[Schedule]:
    """Every constant strategy on one grid, without doubles."""
    choices = product((True, False), KINDS, (0, 1), (True, False), (True, False))
    made = [constant(Decision(data, *kind, skip, mid, fix), nfe, spacing) for data, kind, skip, mid, fix in choices]
    return list(dict.fromkeys(made))


# Random schedules and mutations.

Move = Callable[[list[Decision], list[float], np.random.Generator], None]  # changes both lists in place


def _drawn(rng: np.random.Generator, at_most: int = 3) -> Decision:
    """A decision at random, all kinds of it equally likely; at most so many evaluations."""
    kinds = [k for k in KINDS if Decision(True, *k).cost <= at_most]
    order, inner = kinds[rng.integers(len(kinds))]
    data, skip, midpoint, correct = rng.integers(2, size=4).tolist()
    return Decision(bool(data), order, inner, skip, bool(midpoint), bool(correct))


def _one(steps: list[Decision], rng: np.random.Generator, change: Callable[[Decision], dict]) -> None:
    i = rng.integers(len(steps))
    steps[i] = replace(steps[i], **change(steps[i]))


def swap_type(steps: list[Decision], lams: list[float], rng: np.random.Generator) -> None:
    _one(steps, rng, lambda d: {"data": not d.data})


def shift_order(steps: list[Decision], lams: list[float], rng: np.random.Generator) -> None:
    _one(steps, rng, lambda d: {"order": int(np.clip(d.order + rng.choice([-1, 1]), 1, 3))})


def toggle_corrector(steps: list[Decision], lams: list[float], rng: np.random.Generator) -> None:
    _one(steps, rng, lambda d: {"correct": not d.correct})


def redraw(steps: list[Decision], lams: list[float], rng: np.random.Generator) -> None:
    """All decisions of one step: the way to other points and weights."""
    steps[rng.integers(len(steps))] = _drawn(rng)


def jitter(steps: list[Decision], lams: list[float], rng: np.random.Generator) -> None:
    lams[rng.integers(1, len(lams))] += JITTER * rng.standard_normal()


def spent(steps: list[Decision], lams: list[float], nfe: int, rng: np.random.Generator) -> None:
    """Lower orders, drop steps or split steps, at random, until ``nfe`` evaluations are spent."""
    while (over := 1 + sum(d.cost for d in steps) - nfe) > 0:
        costly = [i for i, d in enumerate(steps) if d.cost > 1]
        i = int(rng.choice(costly or len(steps)))
        if costly:
            steps[i] = replace(steps[i], order=steps[i].order - 1, inner=steps[i].order > 2)
        else:
            del steps[i], lams[max(i, 1)]
    for _ in range(-over):
        i = rng.integers(len(steps))
        steps.insert(i + 1, _drawn(rng, at_most=1))
        lams.insert(i + 1, (lams[i] + lams[i + 1]) / 2)


@dataclass(frozen=True)
class Space:
    """Schedules of ``nfe`` evaluations.

    moves: what a mutation may do.
    only: the one decision that all steps take; free by default.
    uniform: levels stay uniform in lam; free by default.
    """

    nfe: int
    moves: tuple[Move, ...] = (swap_type, shift_order, toggle_corrector, redraw, jitter)
    only: Decision | None = None
    uniform: bool = False

    def random(self, rng: np.random.Generator) -> Schedule:
        """Decisions at random; one of the standard grids, every level jittered."""
        steps, left = [], self.nfe - 1
        while left:
            steps.append(self.only or _drawn(rng, left))
            left -= steps[-1].cost
        lams = _lams(list(GRIDS)[rng.integers(len(GRIDS))], len(steps))
        return self._made(steps, lams + JITTER * rng.standard_normal(len(lams)))

    def mutated(self, schedule: Schedule, known: Container[Schedule], rng: np.random.Generator) -> Schedule:
        """Moves, as a rule one, until the schedule is not known; evaluations stay the same by ``spent``."""
        while schedule in known:
            steps, lams = list(schedule.steps), list(schedule.lams)
            self.moves[rng.integers(len(self.moves))](steps, lams, rng)
            spent(steps, lams, self.nfe, rng)
            schedule = self._made(steps, lams)
        return schedule

    def _made(self, steps: list[Decision], lams: Sequence[float]) -> Schedule:
        return settled(steps, _lams("log", len(steps)) if self.uniform else lams)
