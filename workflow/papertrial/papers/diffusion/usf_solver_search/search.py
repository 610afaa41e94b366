"""S^3: search with a learned predictor that says which candidates deserve a true evaluation; and random search.

Source: Liu et al. 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models".
"""

from collections.abc import Callable, Container, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from papertrial.models.arrays import seeded
from papertrial.papers.diffusion.usf_solver_search.schedules import Schedule, Space

Fitness = Callable[[Schedule], float]  # smaller is better
Seen = Callable[[np.ndarray], np.ndarray]  # values (m,) -> what is seen of them
Proposal = Callable[[Space, dict[Schedule, float], int, np.random.Generator], list[Schedule]]


def as_is(values: np.ndarray) -> np.ndarray:
    return values


class Predictor:
    """Ranks schedules: a perceptron 64-64 on their encoding, trained on all pairs of evaluated ones.

    Args:
        schedules, values: evaluated ones and their fitness (smaller is better).
        margin: of the pairwise ranking loss max(0, margin - (score of the better - score of the worse)).
    """

    def __init__(
        self,
        schedules: Sequence[Schedule],
        values: np.ndarray,
        seed: int,
        margin: float = 0.1,
        epochs: int = 100,
        lr: float = 3e-3,
        decay: float = 0.1,
    ) -> None:
        x, y = _encoded(schedules), torch.tensor(values)
        width = x.shape[1]
        self.net = seeded(
            lambda: nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)),
            seed,
        )
        better, worse = torch.nonzero(y[:, None] < y, as_tuple=True)
        optimizer = torch.optim.AdamW(self.net.parameters(), lr, weight_decay=decay)
        for _ in range(epochs):
            score = self.net(x)[:, 0]
            loss = F.relu(margin - (score[better] - score[worse])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def __call__(self, schedules: Sequence[Schedule]) -> np.ndarray:
        """(m,) scores; larger is better."""
        with torch.inference_mode():
            return self.net(_encoded(schedules))[:, 0].numpy()


def _encoded(schedules: Sequence[Schedule]) -> torch.Tensor:
    return torch.tensor(np.stack([s.encoded().ravel() for s in schedules]), dtype=torch.float32)


def at_random(space: Space, tried: Container[Schedule], count: int, rng: np.random.Generator) -> list[Schedule]:
    """Random schedules that are not among the tried ones and come once."""
    found: dict[Schedule, None] = {}
    while len(found) < count:
        schedule = space.random(rng)
        if schedule not in tried:
            found[schedule] = None
    return list(found)


def predicted(candidates: int = 200, parents: int = 10, seen: Seen = as_is, taught: Seen = as_is) -> Proposal:
    """S^3's proposals: mutants of the best and random schedules in equal parts, of which the predictor keeps the top.

    With a fixed number of evaluations the Pareto fronts of (fitness, NFE) are the ranking itself, so the parents are
    its first ten.

    Args:
        seen: what the selection sees of the fitness values; a control permutes them.
        taught: the same for the predictor alone.
    """

    def propose(space: Space, tried: dict[Schedule, float], count: int, rng: np.random.Generator) -> list[Schedule]:
        schedules, values = list(tried), seen(np.array(list(tried.values())))
        best = [schedules[i] for i in np.argsort(values, kind="stable")[:parents]]
        pool = dict.fromkeys(schedules)
        for _ in range(candidates // 2):
            pool[space.mutated(best[rng.integers(len(best))], pool, rng)] = None
        pool = [*pool, *at_random(space, pool, candidates - candidates // 2, rng)][len(schedules) :]
        score = Predictor(schedules, taught(values), int(rng.integers(2**31)))(pool)
        return [pool[i] for i in np.argsort(-score, kind="stable")[:count]]

    return propose


def search(
    space: Space,
    fitness: Fitness,
    pool: Sequence[Schedule],
    propose: Proposal,
    rounds: Sequence[int],
    rng: np.random.Generator,
) -> dict[Schedule, float]:
    """Evaluate the pool, then round by round what is proposed.

    Args:
        rounds: how many to evaluate in each.

    Returns:
        {schedule: fitness} in the order of evaluation.
    """
    tried = {schedule: fitness(schedule) for schedule in pool}
    for count in rounds:
        for schedule in propose(space, tried, count, rng):
            tried[schedule] = fitness(schedule)
    return tried


def best(tried: dict[Schedule, float], seen: Seen = as_is) -> Schedule:
    return list(tried)[int(np.argmin(seen(np.array(list(tried.values())))))]


def climb(space: Space, fitness: Fitness, draws: int, mutants: int, rng: np.random.Generator) -> dict[Schedule, float]:
    """Random schedules, then mutants of the best one so far, one by one."""
    tried = {schedule: fitness(schedule) for schedule in at_random(space, {}, draws, rng)}
    for _ in range(mutants):
        child = space.mutated(best(tried), tried, rng)
        tried[child] = fitness(child)
    return tried
