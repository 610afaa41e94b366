"""What is searched (time steps, and blocks kept at each of them) and the evolution that searches it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import numpy as np

from papertrial.methods.noise_levels import index_level, vp_time
from papertrial.papers.diffusion.autodiffusion.gates import Mask

INDICES = 1000
REDRAW, FLIP = 0.2, 0.1  # chances of an index and of a mask's bit in a mutation
ADD, DROP = 0.3, 0.1  # chances of one more and of one less step, where their number is free
PARENTS = 10

Fitness = Callable[["Candidate"], float]  # smaller is better


@dataclass(frozen=True)
class Step:
    """One evaluation: a time index in 1..1000 and what of the network it uses."""

    index: int
    mask: Mask = ()


@dataclass(frozen=True)
class Candidate:
    """Steps in the order in which they are taken, indices falling; the last one denoises."""

    steps: tuple[Step, ...]

    @property
    def indices(self) -> list[int]:
        return [step.index for step in self.steps]

    @property
    def masks(self) -> list[Mask]:
        return [step.mask for step in self.steps]

    @property
    def levels(self) -> np.ndarray:
        """(K,) s = sigma/alpha of the steps."""
        return index_level(np.array(self.indices))


def sequence(indices: Sequence[int]) -> Candidate:
    """Time indices in any order, with the whole network."""
    return Candidate(tuple(Step(int(i)) for i in sorted(indices, reverse=True)))


def uniform(k: int) -> Candidate:
    return sequence(np.round(np.linspace(1, INDICES, k)))


def from_levels(levels: np.ndarray) -> Candidate:
    """The nearest indices of a standard grid."""
    first, last = vp_time(index_level(1)), vp_time(index_level(INDICES))
    return sequence(np.round(1 + (vp_time(levels) - first) / (last - first) * (INDICES - 1)))


def _settled(steps: Sequence[Step], rng: np.random.Generator) -> Candidate:
    """Sorted; an index that comes twice is drawn anew."""
    taken: dict[int, Step] = {}
    for step in steps:
        while step.index in taken:
            step = replace(step, index=int(rng.integers(1, INDICES + 1)))
        taken[step.index] = step
    return Candidate(tuple(taken[i] for i in sorted(taken, reverse=True)))


class Genes(Protocol):
    """How candidates are drawn, changed and mixed."""

    def random(self, rng: np.random.Generator) -> Candidate: ...

    def mutated(self, candidate: Candidate, rng: np.random.Generator) -> Candidate: ...

    def crossed(self, a: Candidate, b: Candidate, rng: np.random.Generator) -> Candidate: ...


@dataclass(frozen=True)
class TimeSteps:
    """K time indices with the whole network (the first stage)."""

    k: int

    def random(self, rng: np.random.Generator) -> Candidate:
        return sequence(rng.choice(INDICES, self.k, replace=False) + 1)

    def mutated(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Every index is drawn anew with probability 0.2."""
        return _settled([_moved(step, rng) for step in candidate.steps], rng)

    def crossed(self, a: Candidate, b: Candidate, rng: np.random.Generator) -> Candidate:
        """Index by index from one parent or the other."""
        return _settled([(x, y)[rng.integers(2)] for x, y in zip(a.steps, b.steps, strict=True)], rng)


def _moved(step: Step, rng: np.random.Generator) -> Step:
    return replace(step, index=int(rng.integers(1, INDICES + 1))) if rng.random() < REDRAW else step


@dataclass(frozen=True)
class StepsAndBlocks:
    """More steps than K, paid for by blocks that are skipped (the second stage).

    budget: multiply-adds of a sample; never exceeded.
    full, saved: of one whole evaluation, and what each skipped block saves.
    k, extra: random candidates have k to k + extra steps.
    """

    budget: float
    full: int
    saved: tuple[int, ...]
    k: int
    extra: int = 3

    def compute(self, candidate: Candidate) -> int:
        """Multiply-adds of a sample."""
        skipped = [c for mask in candidate.masks for c, kept in zip(self.saved, mask, strict=False) if not kept]
        return self.full * len(candidate.steps) - sum(skipped)

    def random(self, rng: np.random.Generator) -> Candidate:
        drawn = TimeSteps(self.k + int(rng.integers(self.extra + 1))).random(rng)
        return self._afforded(drawn, rng)

    def mutated(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """As ``TimeSteps``; every bit of a mask flips with probability 0.1; at times a step comes or goes."""
        steps, chance = [], rng.random()
        for step in candidate.steps:
            mask = np.array(step.mask or [True] * len(self.saved)) ^ (rng.random(len(self.saved)) < FLIP)
            steps.append(replace(_moved(step, rng), mask=tuple(mask.tolist())))
        if chance < ADD:
            steps.append(Step(int(rng.integers(1, INDICES + 1))))
        elif chance < ADD + DROP and len(steps) > 1:
            del steps[rng.integers(len(steps))]
        return self._afforded(_settled(steps, rng), rng)

    def crossed(self, a: Candidate, b: Candidate, rng: np.random.Generator) -> Candidate:
        """Step by step, blocks included; as many steps as one of the parents."""
        first, second = (a.steps, b.steps) if rng.integers(2) else (b.steps, a.steps)
        mixed = [second[j] if j < len(second) and rng.integers(2) else step for j, step in enumerate(first)]
        return self._afforded(_settled(mixed, rng), rng)

    def _afforded(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Blocks are skipped at random until the budget is kept; a step goes if all are skipped."""
        steps = [replace(s, mask=s.mask or (True,) * len(self.saved)) for s in candidate.steps]
        while self.compute(Candidate(tuple(steps))) > self.budget:
            kept = [(i, j) for i, step in enumerate(steps) for j, on in enumerate(step.mask) if on]
            if kept:
                i, j = kept[rng.integers(len(kept))]
                mask = steps[i].mask
                steps[i] = replace(steps[i], mask=(*mask[:j], False, *mask[j + 1 :]))
            else:
                del steps[rng.integers(len(steps))]
        return Candidate(tuple(steps))


def evolve(
    genes: Genes,
    fitness: Fitness,
    generations: int,
    population: int,
    rng: np.random.Generator,
    first: Sequence[Candidate] = (),
    tried: Mapping[Candidate, float] | None = None,
) -> dict[Candidate, float]:
    """Generations of new candidates: half mutants, 30% crossovers of the ten best so far, the rest random.

    Args:
        population: how many are evaluated in a generation.
        first: are in the first generation.
        tried: what is known already.

    Returns:
        {candidate: fitness} in the order of evaluation.
    """
    known = dict(tried or {})
    for generation in range(generations):
        best = sorted(known, key=known.get)[:PARENTS]
        children = dict.fromkeys(first if generation == 0 else ())
        for attempt in count():  # what is no news leaves its place to a random one
            if len(children) >= population:
                break
            child = _child(genes, best, attempt / population, rng)
            if child not in known:
                children[child] = None
        known |= {child: fitness(child) for child in children}
    return known


def _child(genes: Genes, best: Sequence[Candidate], share: float, rng: np.random.Generator) -> Candidate:
    if not best or share >= 0.8:
        return genes.random(rng)
    if share < 0.5:
        return genes.mutated(best[rng.integers(len(best))], rng)
    return genes.crossed(best[rng.integers(len(best))], best[rng.integers(len(best))], rng)
